//! One daemon a directory: a lock file that says who holds it.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// The file in the directory.
const NAME: &str = "daemon.lock";
/// Access to the directories: container processes reach their own files through descriptors only.
const DIRECTORY_MODE: u32 = 0o711;
/// A process id has at most 10 digits.
const PID_MAX: u64 = 16;

/// Why a directory is not ours.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum LockError {
    /// Another daemon works here.
    #[error(
        "{directory} is in use by the daemon with pid {pid}: stop it, or give this one other root and state directories"
    )]
    Held { directory: PathBuf, pid: String },
    /// The kernel refused.
    #[error("lock {path}")]
    Io { path: PathBuf, source: io::Error },
}

/// Holds the lock until it is dropped; the kernel drops it with the process at the latest.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Makes `directory` when it is missing and locks it (flock(2): the lock is not inherited, because
    /// the file closes on exec).
    pub(crate) fn take(directory: &Path) -> Result<Self, LockError> {
        let path = directory.join(NAME);
        let failed = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)
            .map_err(failed)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                file.take(PID_MAX)
                    .read_to_string(&mut pid)
                    .map_err(failed)?;
                return Err(LockError::Held {
                    directory: directory.to_owned(),
                    pid: pid.trim().to_owned(),
                });
            }
            Err(e) => return Err(failed(e.into())),
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_and_told_who_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/state");
        let first = Lock::take(&state).unwrap();
        let error = Lock::take(&state).unwrap_err().to_string();
        let pid = format!("pid {}:", std::process::id());
        assert!(error.contains(&pid) && error.contains("a/state"), "{error}");
        drop(first);
        let _next = Lock::take(&state).unwrap();
    }
}
