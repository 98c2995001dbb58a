//! What the tests need around them: a root file system with busybox, and the right to make containers.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Whether this process may make containers; says so when not.
pub(crate) fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("{test}: skipped, it needs root");
    }
    root
}

/// A static busybox of this machine.
pub(crate) fn busybox() -> Option<PathBuf> {
    let rig = std::env::var_os("RIG").map(PathBuf::from);
    let places = [
        rig.unwrap_or_default().join("bundle/rootfs/bin/busybox"),
        PathBuf::from("/usr/bin/busybox"),
        PathBuf::from("/bin/busybox"),
    ];
    let is_static = |path: &PathBuf| {
        let out = Command::new("ldd").arg(path).output();
        // ldd fails on a static program.
        path.exists() && out.is_ok_and(|out| !out.status.success())
    };
    places.into_iter().find(is_static)
}

/// A directory with a root file system: busybox under every name that the tests use.
pub(crate) struct Rootfs {
    dir: TempDir,
}

impl Rootfs {
    /// `None`, with a line, on a machine without a static busybox.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let Some(busybox) = busybox() else {
            println!("{test}: skipped, no static busybox (apt install busybox-static)");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        for name in ["bin", "proc", "sys", "dev", "tmp", "etc", "root"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        // By a process of its own: a file that this one has open for writing, a test that forks at the
        // same moment keeps open, and then nobody can execute it (ETXTBSY).
        let copied = Command::new("cp")
            .arg(&busybox)
            .arg(root.join("bin/busybox"))
            .status();
        assert!(copied.unwrap().success());
        let out = Command::new(&busybox).arg("--list").output().unwrap();
        for name in String::from_utf8(out.stdout)
            .unwrap()
            .lines()
            .filter(|n| *n != "busybox")
        {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        std::fs::write(root.join("etc/group"), "root:x:0:\n").unwrap();
        Some(Self { dir })
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    /// A directory beside it, for volumes and bundles.
    pub(crate) fn beside(&self) -> &Path {
        self.dir.path()
    }
}

/// A runtime under test, or an oracle.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    pub(crate) name: &'static str,
    /// Program and leading arguments.
    words: Vec<PathBuf>,
}

impl Runtime {
    /// Ours.
    pub(crate) fn ours() -> Self {
        Self {
            name: "wharf-runtime",
            words: vec![env!("CARGO_BIN_EXE_wharf-runtime").into()],
        }
    }

    /// The peers of this machine; says which are missing.
    pub(crate) fn peers(test: &str) -> Vec<Self> {
        let mut peers = Vec::new();
        for name in ["runc", "crun"] {
            let Some(program) = find(name) else {
                println!("{test}: without {name}, which is not in PATH or $RIG/bin");
                continue;
            };
            let mut words = vec![program];
            // crun refuses a machine with v1 hierarchies and a cgroup2 with controllers beside them.
            if name == "crun"
                && let Some(wrapper) = find("nohybrid")
            {
                words.insert(0, wrapper);
            }
            peers.push(Self { name, words });
        }
        peers
    }

    /// Ours where /sys/fs/cgroup is a cgroup2 tree; `None`, with a line, without the wrapper for that.
    pub(crate) fn ours_v2(test: &str) -> Option<Self> {
        let Some(wrapper) = find("v2view") else {
            println!("{test}: skipped, no v2view in PATH or $RIG/bin");
            return None;
        };
        let mut ours = Self::ours();
        ours.words.insert(0, wrapper);
        Some(ours)
    }

    /// A call with its state below `root`.
    pub(crate) fn command(&self, root: &Path) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).arg("--root").arg(root);
        command
    }
}

fn find(name: &str) -> Option<PathBuf> {
    let rig = std::env::var_os("RIG").map(|rig| Path::new(&rig).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = rig.into_iter().chain(std::env::split_paths(&path));
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// What a program said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) code: Option<i32>,
}

/// Runs a command to its end, with stdin closed off.
pub(crate) fn outcome(command: &mut Command) -> Outcome {
    let out = command.stdin(std::process::Stdio::null()).output().unwrap();
    Outcome {
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        code: out.status.code(),
    }
}

/// An OCI bundle with a directory for states, and a cgroup of its own that is removed in the end.
pub(crate) struct Bundle {
    pub(crate) rootfs: Rootfs,
    pub(crate) config: Value,
    cgroup: String,
}

static BUNDLES: AtomicU32 = AtomicU32::new(0);

impl Bundle {
    /// `None`, with a line, where it cannot be used.
    pub(crate) fn new(test: &str, args: &[&str]) -> Option<Self> {
        if !is_root(test) {
            return None;
        }
        let rootfs = Rootfs::new(test)?;
        let number = BUNDLES.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("wharf-test-{}-{number}", std::process::id());
        let config = config(args, &format!("/{cgroup}/c"));
        Some(Self {
            rootfs,
            config,
            cgroup,
        })
    }

    /// A bundle whose program is a shell script.
    pub(crate) fn script(test: &str, script: &str) -> Option<Self> {
        Self::new(test, &["sh", "-c", script])
    }

    /// Writes config.json; gives the bundle's directory.
    pub(crate) fn write(&self) -> PathBuf {
        let dir = self.rootfs.beside().to_owned();
        let text = serde_json::to_string_pretty(&self.config).unwrap();
        std::fs::write(dir.join("config.json"), text).unwrap();
        dir
    }

    /// Where `runtime` keeps its states.
    pub(crate) fn states(&self, runtime: &Runtime) -> PathBuf {
        self.rootfs
            .beside()
            .join(format!("{}-states", runtime.name))
    }

    /// How many cgroups of its containers are there.
    pub(crate) fn cgroups(&self) -> usize {
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten();
        let own = hierarchies.map(|h| h.path().join(&self.cgroup).join("c"));
        own.filter(|path| path.exists()).count()
    }

    /// `run` in the foreground.
    pub(crate) fn run(&self, runtime: &Runtime) -> Outcome {
        let dir = self.write();
        let id = format!("{}-{}", self.cgroup, runtime.name);
        let mut command = runtime.command(&self.states(runtime));
        outcome(command.arg("run").arg("--bundle").arg(dir).arg(id))
    }

    /// Runs it by ours and by the peers: the same output and the same exit code; gives ours.
    pub(crate) fn same(&self, test: &str) -> Outcome {
        let ours = self.run(&Runtime::ours());
        for peer in Runtime::peers(test) {
            let theirs = self.run(&peer);
            assert_eq!(
                (&ours.stdout, ours.code),
                (&theirs.stdout, theirs.code),
                "{test}: ours (left) and {} (right) differ\nours: {}\ntheirs: {}",
                peer.name,
                ours.stderr,
                theirs.stderr
            );
        }
        ours
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            let below = [format!("{}/c", self.cgroup), self.cgroup.clone()];
            for name in below {
                // Most hierarchies have none.
                let _none = std::fs::remove_dir(hierarchy.path().join(name));
            }
        }
    }
}

fn config(args: &[&str], cgroup: &str) -> Value {
    let caps = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SYS_CHROOT",
    ];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": args,
            "env": ["PATH=/usr/bin:/bin", "TERM=xterm"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"},
                {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"},
            ],
            "maskedPaths": ["/proc/acpi", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
        },
    })
}
