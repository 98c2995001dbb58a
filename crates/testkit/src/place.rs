//! Where a daemon runs: in the machine's namespaces, or in a network and mount namespace of its own.
//!
//! A namespace of its own is held by a small process, the anchor, which ends when its stdin does:
//! with us, however we end. Nothing that is mounted or configured inside reaches the machine.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Namespaces for the processes of one test.
#[derive(Debug)]
pub struct Place {
    anchor: Option<Child>,
}

/// Loopback up; the folders in which daemons put what other programs look for are empty.
const SETUP: &str = "ip link set lo up
for d in /run/netns /run/containerd; do
  mkdir -p $d
  mount -t tmpfs -o mode=755 wharf-test $d
done";

// The two directories stay, empty: places begin and end beside each other, and removing a directory
// takes away what others have mounted there.
const END: &str = "echo ready
cat > /dev/null";

/// Hides the cgroup2 mount beside v1 hierarchies: crun refuses it when it owns a controller.
const PLAIN_V1: &str = "cg=/sys/fs/cgroup
if [ \"$(stat -f -c %T $cg/unified 2>/dev/null)\" = cgroup2fs ]; then
  umount $cg/unified
  view=/run/netns
  for h in $cg/*; do
    n=${h##*/}
    if [ \"$n\" = unified ]; then continue; fi
    if [ -L \"$h\" ]; then cp -P \"$h\" \"$view/$n\"
    elif mountpoint -q \"$h\"; then mkdir \"$view/$n\"; mount --move \"$h\" \"$view/$n\"; fi
  done
  mount --move $view $cg
  mount -t tmpfs -o mode=755 wharf-test $view
fi";

impl Place {
    /// The machine's own namespaces.
    pub fn host() -> Arc<Self> {
        Arc::new(Self { anchor: None })
    }

    /// New network and mount namespaces.
    ///
    /// # Errors
    /// Not root, or unshare or ip is missing.
    pub fn own() -> io::Result<Arc<Self>> {
        Self::anchored("true")
    }

    /// The same, and where cgroup v1 and v2 are mounted side by side only v1 is seen.
    ///
    /// # Errors
    /// As [`Place::own`].
    pub fn own_without_hybrid() -> io::Result<Arc<Self>> {
        Self::anchored(PLAIN_V1)
    }

    fn anchored(more: &str) -> io::Result<Arc<Self>> {
        let script = format!("set -e\n{SETUP}\n{more}\n{END}");
        let mut anchor = Command::new("unshare")
            .args([
                "--mount",
                "--ipc",
                "--net",
                "--propagation",
                "private",
                "--",
                "/bin/sh",
                "-c",
                &script,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let stdout = anchor
            .stdout
            .take()
            .ok_or_else(|| io::Error::other("no stdout"))?;
        BufReader::new(stdout).read_line(&mut line)?;
        if line.trim() != "ready" {
            let status = anchor.wait()?;
            return Err(io::Error::other(format!(
                "no namespaces of our own ({status}): needs root, util-linux and iproute2"
            )));
        }
        Ok(Arc::new(Self {
            anchor: Some(anchor),
        }))
    }

    /// Whether it is a place of its own.
    pub fn is_own(&self) -> bool {
        self.anchor.is_some()
    }

    /// A command that runs inside. Its paths must be absolute; its id is that of the program.
    pub fn command(&self, program: impl Into<PathBuf>) -> Command {
        let program = program.into();
        let Some(anchor) = &self.anchor else {
            return Command::new(program);
        };
        let mut command = Command::new("nsenter");
        command
            .args([
                "--mount",
                "--ipc",
                "--net",
                "--target",
                &anchor.id().to_string(),
                "--",
            ])
            .arg(program);
        command
    }

    /// Path of the network namespace.
    pub fn netns(&self) -> PathBuf {
        let id = self
            .anchor
            .as_ref()
            .map_or_else(std::process::id, Child::id);
        format!("/proc/{id}/ns/net").into()
    }

    /// The root directory as it is seen inside: what is mounted there, too.
    pub fn root(&self) -> PathBuf {
        match &self.anchor {
            Some(anchor) => format!("/proc/{}/root", anchor.id()).into(),
            None => "/".into(),
        }
    }

    /// The folder of the bound network namespaces (/run/netns) of a place of its own. The machine's
    /// belongs to others too.
    pub fn netns_names(&self) -> Option<PathBuf> {
        let anchor = self.anchor.as_ref()?;
        Some(format!("/proc/{}/root/run/netns", anchor.id()).into())
    }

    /// Where a path of this place is seen from outside.
    pub fn path(&self, inside: &std::path::Path) -> PathBuf {
        let Some(anchor) = &self.anchor else {
            return inside.into();
        };
        let root = PathBuf::from(format!("/proc/{}/root", anchor.id()));
        root.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// Moves the calling thread, and it alone, into the network namespace.
    ///
    /// # Errors
    /// Not root, or the anchor is gone.
    pub fn enter_net(&self) -> io::Result<()> {
        if self.anchor.is_some() {
            let netns = File::open(self.netns())?;
            move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&netns),
                Some(LinkNameSpaceType::Network),
            )?;
        }
        Ok(())
    }

    /// Runs `work` on a thread inside the network namespace and gives what it gives.
    ///
    /// # Errors
    /// As [`Place::enter_net`], or what `work` says.
    pub fn in_net<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        std::thread::scope(|s| {
            let thread = s.spawn(|| {
                self.enter_net()?;
                work()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(anchor) = &mut self.anchor {
            drop(anchor.stdin.take());
            let _ended = anchor.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_place_of_its_own_has_a_loopback_and_leaves_nothing() {
        if !crate::needs_root("a_place_of_its_own") {
            return;
        }
        let mounts = || {
            let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
            // Other tests mount disks meanwhile; a place mounts these.
            all.lines()
                .filter(|l| l.contains(" - tmpfs wharf-test "))
                .count()
        };
        let before = mounts();
        let place = Place::own().unwrap();
        let link = |path: PathBuf| fs::read_link(path).unwrap();
        assert_ne!(link(place.netns()), link("/proc/self/ns/net".into()));
        let inside = place.in_net(|| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
            std::net::TcpStream::connect(listener.local_addr()?)?;
            fs::read_link("/proc/thread-self/ns/net")
        });
        assert_eq!(inside.unwrap(), link(place.netns()));
        let said = place
            .command("/bin/readlink")
            .arg("/proc/self/ns/net")
            .output()
            .unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        assert_eq!(said.trim(), link(place.netns()).to_string_lossy());
        let anchor = place.netns();
        drop(place);
        assert!(!anchor.exists(), "the anchor ended");
        assert!(mounts() <= before);
    }
}
