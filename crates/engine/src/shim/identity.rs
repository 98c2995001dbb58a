//! Which process a shim or an init is, kept for a daemon that finds the shim silent or gone: a number
//! alone may be somebody else's by then.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;

use super::watch::watch;

/// Writes down who `pid` is.
///
/// # Errors
///
/// It has ended, or the file system refuses.
pub(crate) fn save(path: &Path, pid: u32) -> io::Result<()> {
    std::fs::write(path, format!("{pid} {}", start_time(pid)?))
}

/// The process that was written down, if it is still the same.
pub(crate) fn load(path: &Path) -> Option<OwnedFd> {
    let (pid, started) = read(path)?;
    let pidfd = open(pid)?;
    // Looked at after the descriptor was there: from now on it can be nobody else.
    let same = start_time(pid).ok()? == started;
    same.then_some(pidfd)
}

/// Number and start of the process that was written down, in ticks since the boot.
pub(crate) fn read(path: &Path) -> Option<(u32, u64)> {
    let text = std::fs::read_to_string(path).ok()?;
    let (pid, started) = text.split_once(' ')?;
    Some((pid.parse().ok()?, started.parse().ok()?))
}

/// A descriptor of a process.
pub(crate) fn open(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Kills it and waits for its end; `false` when that takes longer than `within`.
///
/// # Errors
///
/// The kernel refuses.
pub(crate) async fn kill(pidfd: OwnedFd, within: Duration) -> io::Result<bool> {
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(e) => return Err(e.into()),
    }
    let ended = watch(pidfd, Interest::READABLE)?;
    Ok(tokio::time::timeout(within, ended.readable()).await.is_ok())
}

/// When it began, in ticks since the boot: proc_pid_stat(5), field 22.
fn start_time(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may contain anything.
    let rest = stat.rsplit_once(") ").map(|(_, rest)| rest);
    let field = rest.and_then(|rest| rest.split(' ').nth(19)?.parse().ok());
    field.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

#[cfg(test)]
#[expect(clippy::disallowed_types, reason = "a process to be found and killed")]
mod tests {
    use super::*;
    use std::process::Command;

    #[tokio::test]
    async fn a_process_is_found_again_and_another_with_its_number_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        assert!(load(&path).is_none());
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        save(&path, child.id()).unwrap();
        let pidfd = load(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{text}0")).unwrap();
        assert!(load(&path).is_none());
        assert!(kill(pidfd, Duration::from_secs(10)).await.unwrap());
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()),
            Some(9)
        );
    }
}
