//! Zygotes and shims of ours that nobody can reach any more. Somebody has emptied the state directory,
//! and with it their sockets; or the records are gone. Left alone, their containers would run on, and
//! nobody could list or stop them.
//!
//! What is ours is looked up, not believed: a member of the shims' cgroup that has our shim log open.
//! Other daemons, with a state directory of their own, may have shims in the same cgroup.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::process::{Signal, pidfd_send_signal};
use wharf_types::{ContainerId, PodId};

use super::pods::unbind;
use super::{Parts, home_path};
use crate::shim::identity;

/// How the kernel marks the path of an open file whose name is gone (proc_pid_fd(5)).
const DELETED: &str = " (deleted)";

/// A process of the shims' cgroup.
#[derive(Debug, PartialEq, Eq)]
enum Member {
    Zygote,
    Shim(PodId),
}

impl Parts {
    /// Ends them and what they hold. A failure is logged: the pods that can be reached do not wait.
    pub(super) fn end_strays(&self, known: &BTreeSet<PodId>) {
        let Ok(home) = self.cgroups.open(&home_path(&self.config)) else {
            return;
        };
        let pids = match home.processes() {
            Ok(pids) => pids,
            Err(e) => {
                let error = wharf_types::chain(&e);
                return tracing::warn!(error, "the shims' cgroup cannot be read");
            }
        };
        for pid in pids {
            // Looked at after the descriptor was there: from now on it can be nobody else.
            let Some(pidfd) = identity::open(pid) else {
                continue;
            };
            let member = self.member(pid);
            if let Some(member) = member.filter(|member| self.is_stray(member, known)) {
                self.end_stray(pid, &pidfd, &member, known);
            }
        }
    }

    /// What a process is, if it is one of ours.
    fn member(&self, pid: u32) -> Option<Member> {
        let log = self.config.state.join("shim.log");
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let mut targets = open
            .flatten()
            .filter_map(|fd| std::fs::read_link(fd.path()).ok());
        if !targets.any(|target| names(&target, &log)) {
            return None;
        }
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        member_of(&String::from_utf8_lossy(&line))
    }

    fn is_stray(&self, member: &Member, known: &BTreeSet<PodId>) -> bool {
        let socket = match member {
            Member::Zygote => self.config.state.join("zygote.sock"),
            Member::Shim(pod) if !known.contains(pod) => return true,
            Member::Shim(pod) => self.pod_dir(pod).join("shim.sock"),
        };
        // Provably not there: no other failure counts.
        matches!(std::fs::exists(socket), Ok(false))
    }

    fn end_stray(&self, pid: u32, pidfd: &OwnedFd, member: &Member, known: &BTreeSet<PodId>) {
        // While it has children: those of a shim that has ended are the zygote's.
        let containers = match member {
            Member::Zygote => BTreeSet::new(),
            Member::Shim(pod) => containers_of(pid, pod),
        };
        tracing::warn!(pid, ?member, "nobody can reach it: it is killed");
        if let Err(e) = pidfd_send_signal(pidfd, Signal::KILL) {
            tracing::warn!(pid, error = %e, "it cannot be killed");
        }
        let Member::Shim(pod) = member else {
            return;
        };
        if known.contains(pod) {
            // Its driver takes down the rest.
            return;
        }
        // Its containers may be in a cgroup that it was given, which only they can tell of any more.
        for path in containers.into_iter().chain([self.own_cgroup(pod)]) {
            let Ok(cgroup) = self.cgroups.open(&path) else {
                continue;
            };
            if let Err(e) = cgroup.kill().and_then(|()| cgroup.remove()) {
                let error = wharf_types::chain(&e);
                tracing::warn!(%pod, path, error, "its containers stay");
            }
        }
        if let Some(path) = self.netns_path(pod)
            && let Err(e) = unbind(&path)
        {
            tracing::warn!(%pod, path = %path.display(), error = %e, "its network namespace stays");
        }
        std::fs::remove_dir_all(self.pod_dir(pod)).ok();
    }
}

/// The cgroups of the containers whose processes are children of a pod's shim, each once.
fn containers_of(shim: u32, pod: &PodId) -> BTreeSet<String> {
    let Ok(all) = std::fs::read_dir("/proc") else {
        return BTreeSet::new();
    };
    let children = all.flatten().filter(|process| {
        let stat = std::fs::read_to_string(process.path().join("stat"));
        stat.is_ok_and(|stat| parent(&stat) == Some(shim))
    });
    children
        .filter_map(|child| std::fs::read_to_string(child.path().join("cgroup")).ok())
        .filter_map(|lines| container_cgroup(&lines, pod))
        .collect()
}

/// Who made a process: proc_pid_stat(5), field 4.
fn parent(stat: &str) -> Option<u32> {
    // The name, in parentheses, may contain anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok()
}

/// The cgroup of the container that a process is in, from its proc_pid_cgroup(5): the last name of its path
/// that is a container's id; below it are execs.
fn container_cgroup(lines: &str, pod: &PodId) -> Option<String> {
    lines.lines().find_map(|line| {
        let path = line.splitn(3, ':').nth(2)?.trim_start_matches('/');
        let names: Vec<_> = path.split('/').collect();
        let container = |name: &&str| *name != pod.as_str() && name.parse::<ContainerId>().is_ok();
        let last = names.iter().rposition(container)?;
        Some(names.get(..=last)?.join("/"))
    })
}

fn names(target: &Path, log: &Path) -> bool {
    let text = target.to_string_lossy();
    let path = text.strip_suffix(DELETED).unwrap_or(&text);
    Path::new(path) == log
}

/// From a command line: `wharf-shim zygote …`, or `wharf-shim POD`, which a shim gives itself.
fn member_of(line: &str) -> Option<Member> {
    let mut words = line.split(['\0', ' ']);
    if words.next()? != "wharf-shim" {
        return None;
    }
    match words.next()? {
        "zygote" => Some(Member::Zygote),
        pod => pod.parse().ok().map(Member::Shim),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zygotes_and_shims_are_told_by_their_command_lines() {
        let pod = PodId::from_random([7; 32]);
        let shim = member_of(&format!("wharf-shim {pod}\0\0\0"));
        assert_eq!(shim, Some(Member::Shim(pod)));
        let zygote = member_of("wharf-shim\0zygote\0--socket-fd\0");
        assert_eq!(zygote, Some(Member::Zygote));
        for other in ["", "wharf-shim", "wharf-shim\0x", "sh\0zygote"] {
            assert_eq!(member_of(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_container_is_told_by_its_cgroup_wherever_that_is() {
        let (pod, id) = (PodId::from_random([7; 32]), "b".repeat(64));
        let of =
            |path: &str| container_cgroup(&format!("9:name=x:/\n3:memory:{path}\n0::/\n"), &pod);
        for own in [
            format!("kubepods/podx/{id}"),
            format!("wharf/pods/{pod}/{id}"),
        ] {
            assert_eq!(of(&format!("/{own}")), Some(own.clone()));
            assert_eq!(of(&format!("/{own}/exec-1")), Some(own));
        }
        for other in ["/", "/wharf/shims", &format!("/wharf/pods/{pod}")] {
            assert_eq!(of(other), None, "{other}");
        }
        assert_eq!(parent("12 (a) b) S 7 12 12 0"), Some(7));
    }

    #[test]
    fn a_log_is_known_when_its_name_is_gone() {
        let log = Path::new("/run/wharf/shim.log");
        assert!(names(Path::new("/run/wharf/shim.log"), log));
        assert!(names(Path::new("/run/wharf/shim.log (deleted)"), log));
        assert!(!names(Path::new("/run/other/shim.log (deleted)"), log));
    }
}
