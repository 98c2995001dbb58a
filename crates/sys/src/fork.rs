//! What a process that makes copies of itself needs: fork, and descriptors that were inherited over
//! `execve`.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

use rustix::process::Pid;

/// Which side of [`fork`] one is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The new process.
    Child,
    /// The old one, with the id of the new.
    Parent(Pid),
}

/// `fork(2)` through the C library, which gives the child its own thread id (a bare `clone3` would
/// leave the parent's in the library's memory, and the child's `abort` would then kill the parent).
///
/// # Errors
///
/// `EAGAIN`, `ENOMEM`; `EPERM` when the caller has more than one thread, because the child would
/// then have copies of locks that nobody releases.
pub fn fork() -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    // SAFETY: the process has one thread (checked above; nobody else could start another), so the
    // child's memory is a consistent copy and every lock in it is as free as in the caller.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => Ok(Fork::Child),
        pid if pid < 0 => Err(io::Error::last_os_error()),
        pid => Pid::from_raw(pid)
            .map(Fork::Parent)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// Takes ownership of descriptor `number`, which came over `execve`, and marks it close-on-exec.
///
/// # Errors
///
/// `EBADF` when it is not open, or is close-on-exec (then it did not come over `execve`: it is some
/// other part's, or it was claimed before).
pub fn claim_inherited(number: u32) -> io::Result<OwnedFd> {
    let bad = || io::Error::from_raw_os_error(libc::EBADF);
    let number = i32::try_from(number).map_err(|_too_big| bad())?;
    // SAFETY: F_GETFD only looks at the number.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if number <= libc::STDERR_FILENO || flags & libc::FD_CLOEXEC != 0 {
        return Err(bad());
    }
    // SAFETY: open (checked above); F_SETFD changes no ownership.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: everything that this program opens is close-on-exec from the start, and this one was
    // not: so it was inherited and nobody owns it; now that it is close-on-exec, nobody claims it again.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;
    use std::sync::mpsc;

    #[test]
    fn a_process_with_threads_is_not_forked() {
        let (stop, stopped) = mpsc::channel::<()>();
        let other = std::thread::spawn(move || stopped.recv());
        assert_eq!(fork().unwrap_err().raw_os_error(), Some(libc::EPERM));
        drop(stop);
        other.join().unwrap().unwrap_err();
    }

    #[test]
    fn a_descriptor_is_claimed_once_and_never_one_of_ours() {
        let file = std::fs::File::open("/proc/version").unwrap();
        let ours = u32::try_from(file.as_raw_fd()).unwrap();
        let bad = |number| claim_inherited(number).unwrap_err().raw_os_error();
        assert_eq!(bad(ours), Some(libc::EBADF));
        assert_eq!(bad(0), Some(libc::EBADF));
        assert_eq!(bad(u32::MAX), Some(libc::EBADF));
    }
}
