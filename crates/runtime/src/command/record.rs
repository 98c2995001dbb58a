//! What is known about a container: `ROOT/ID/state.json`, written before the act and after it.
//!
//! ```text
//! ROOT/ID/            its name is the lock: who makes the directory makes the container
//! ROOT/ID/state.json  the record
//! ROOT/ID/start       socket of a parked init; gone when it was started
//! ```

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::failure::Failure;

const FILE: &str = "state.json";
const SOCKET: &str = "start";

/// What the record says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Record {
    pub(crate) oci_version: String,
    pub(crate) id: String,
    /// 0 until the init exists.
    pub(crate) pid: u32,
    /// When the init began, in the kernel's ticks since boot: another process of the same number began
    /// at another time.
    pub(crate) pid_start: u64,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    pub(crate) created: String,
    pub(crate) owner: String,
    pub(crate) annotations: std::collections::BTreeMap<String, String>,
    /// Path of its cgroup below each hierarchy.
    pub(crate) cgroup: String,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Stopped,
}

impl Status {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
        }
    }
}

/// A container's directory.
#[derive(Debug)]
pub(crate) struct Place {
    dir: PathBuf,
    id: String,
}

impl Place {
    pub(crate) fn new(root: &Path, id: &str) -> Self {
        Self {
            dir: root.join(id),
            id: id.to_owned(),
        }
    }

    /// Takes the name: makes the directory.
    pub(crate) fn take(&self) -> Result<(), Failure> {
        let named = |e| Failure::io(format!("create {}", self.dir.display()), e);
        if let Some(root) = self.dir.parent() {
            let mut private = fs::DirBuilder::new();
            private
                .recursive(true)
                .mode(0o700)
                .create(root)
                .map_err(named)?;
        }
        match fs::DirBuilder::new().mode(0o700).create(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(Failure::new(format!(
                "container with id {:?} already exists: delete it, or choose another id",
                self.id
            ))),
            other => other.map_err(named),
        }
    }

    /// Gives the name back.
    pub(crate) fn forget(&self) -> Result<(), Failure> {
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|e| Failure::io(format!("remove {}", self.dir.display()), e)),
        }
    }

    /// Writes the record: whole, or not at all.
    pub(crate) fn write(&self, record: &Record) -> Result<(), Failure> {
        let file = self.dir.join(FILE);
        let named = |e: io::Error| Failure::io(format!("write {}", file.display()), e);
        let text = serde_json::to_vec(record).map_err(|e| named(e.into()))?;
        let new = self.dir.join(".state.json.new");
        fs::write(&new, text).map_err(named)?;
        fs::rename(&new, &file).map_err(named)
    }

    /// Reads the record.
    pub(crate) fn read(&self) -> Result<Record, Failure> {
        let file = self.dir.join(FILE);
        let text = match fs::read(&file) {
            // The directory without a record: someone is just making it, or died doing so.
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.dir.exists() => {
                return Ok(Record {
                    id: self.id.clone(),
                    ..Record::default()
                });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Failure::does_not_exist(&self.id));
            }
            Err(e) => return Err(Failure::io(format!("read {}", file.display()), e)),
            Ok(text) => text,
        };
        serde_json::from_slice(&text)
            .map_err(|e| Failure::because(&format!("read {}", file.display()), &e))
    }

    /// Where it is in its life, and its init when that lives.
    pub(crate) fn status(&self, record: &Record) -> (Status, Option<OwnedFd>) {
        if record.pid == 0 {
            return (Status::Creating, None);
        }
        match living(record.pid, record.pid_start) {
            None => (Status::Stopped, None),
            Some(pidfd) if self.dir.join(SOCKET).exists() => (Status::Created, Some(pidfd)),
            Some(pidfd) => (Status::Running, Some(pidfd)),
        }
    }

    /// The listening socket that an init parks on.
    pub(crate) fn listen(&self) -> Result<OwnedFd, Failure> {
        let named = |e: Errno| Failure::io(format!("listen below {}", self.dir.display()), e);
        let (dir, address) = self.address().map_err(named)?;
        let socket = socket().map_err(named)?;
        rustix::net::bind(&socket, &address).map_err(named)?;
        rustix::net::listen(&socket, 8).map_err(named)?;
        drop(dir);
        Ok(socket)
    }

    /// A connection to the parked init.
    pub(crate) fn connect(&self) -> Result<OwnedFd, Failure> {
        let named = |e: Errno| Failure::io(format!("connect to container {:?}", self.id), e);
        let (dir, address) = self.address().map_err(named)?;
        let socket = socket().map_err(named)?;
        rustix::net::connect(&socket, &address).map_err(named)?;
        drop(dir);
        Ok(socket)
    }

    /// It does not wait any more.
    pub(crate) fn started(&self) -> Result<(), Failure> {
        let path = self.dir.join(SOCKET);
        fs::remove_file(&path).map_err(|e| Failure::io(format!("remove {}", path.display()), e))
    }

    /// The socket's address by way of a descriptor: a path may be longer than the 107 bytes that an
    /// address has room for.
    fn address(&self) -> Result<(OwnedFd, SocketAddrUnix), Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&self.dir, flags, Mode::empty())?;
        let number = dir.as_fd().as_raw_fd();
        let address = SocketAddrUnix::new(format!("/proc/self/fd/{number}/{SOCKET}"))?;
        Ok((dir, address))
    }
}

fn socket() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// The process `pid` if it is the one that began at `start`, and has not ended.
fn living(pid: u32, start: u64) -> Option<OwnedFd> {
    let number = Pid::from_raw(i32::try_from(pid).ok()?)?;
    // First the descriptor, then the look: what was looked at is then what the descriptor names.
    let pidfd = pidfd_open(number, PidfdFlags::empty()).ok()?;
    let (state, began) = stat(pid)?;
    (began == start && state != 'Z' && state != 'X').then_some(pidfd)
}

/// When the process `pid` began.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    stat(pid).map(|(_, start)| start)
}

/// State and start time: the first and the twentieth field behind the name, which may hold anything.
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_once() {
        let root = tempfile::tempdir().unwrap();
        let place = Place::new(root.path(), "web");
        assert!(
            place
                .read()
                .unwrap_err()
                .to_string()
                .contains("does not exist")
        );
        place.take().unwrap();
        assert!(
            place
                .take()
                .unwrap_err()
                .to_string()
                .contains("already exists")
        );
        assert_eq!(place.status(&place.read().unwrap()).0, Status::Creating);
        place.forget().unwrap();
        place.forget().unwrap();
        place.take().unwrap();
    }

    #[test]
    fn another_process_of_the_same_number_is_not_the_container() {
        let root = tempfile::tempdir().unwrap();
        let place = Place::new(root.path(), "web");
        place.take().unwrap();
        let pid = std::process::id();
        let mut record = Record {
            pid,
            pid_start: start_time(pid).unwrap(),
            ..Record::default()
        };
        place.write(&record).unwrap();
        assert_eq!(place.status(&place.read().unwrap()).0, Status::Running);
        let _socket = place.listen().unwrap();
        assert_eq!(place.status(&record).0, Status::Created);
        record.pid_start += 1;
        assert_eq!(place.status(&record).0, Status::Stopped);
    }
}
