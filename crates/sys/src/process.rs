//! Attributes of the calling process that a container's plan sets.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::call::{answer, answer_int};

/// A soft and a hard limit; `u64::MAX` is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Limit {
    /// What is enforced.
    pub soft: u64,
    /// What the soft limit may be raised to.
    pub hard: u64,
}

/// Sets limit `resource` (`RLIMIT_*`) of this process, or only reads it; gives the former values.
///
/// # Errors
///
/// `EPERM` for a hard limit above the current one without `CAP_SYS_RESOURCE`, `EINVAL` for an unknown
/// resource or soft above hard.
pub fn limit(resource: u32, new: Option<Limit>) -> Result<Limit, Errno> {
    let mut old = Limit { soft: 0, hard: 0 };
    let new = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `Limit` has the layout of struct rlimit64; `new` is null or points to one that lives
    // during the call, `old` is writable.
    let rc = unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, new, &raw mut old) };
    answer(rc)?;
    Ok(old)
}

/// Leaves the session keyring of the maker for a new, anonymous one (`keyctl(2)`).
///
/// # Errors
///
/// `ENOSYS` on a kernel without keys, `EDQUOT` when the user has too many.
pub fn new_session_keyring() -> Result<(), Errno> {
    // SAFETY: a null name asks for an anonymous keyring; no memory of ours is touched.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<u8>(),
        )
    };
    answer(rc).map(drop)
}

/// Sets the execution domain (`personality(2)`).
///
/// # Errors
///
/// `EINVAL` for one that the kernel does not know.
pub fn set_personality(persona: u64) -> Result<(), Errno> {
    // SAFETY: takes an integer; the flags concern programs that are executed later.
    answer(unsafe { libc::syscall(libc::SYS_personality, persona) }).map(drop)
}

/// Sets the I/O priority of this process, class and level as `ioprio_set(2)` takes them.
///
/// # Errors
///
/// `EPERM` for the real-time class without privilege, `EINVAL` for an unknown class.
pub fn set_io_priority(priority: i32) -> Result<(), Errno> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: takes three integers.
    answer(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) })
        .map(drop)
}

/// Makes the process's memory, descriptors and program unreachable for others that lack
/// `CAP_SYS_PTRACE` (`PR_SET_DUMPABLE`); `execve` of an ordinary program ends it.
///
/// # Errors
///
/// None that a correct kernel gives.
pub fn set_undumpable() -> Result<(), Errno> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
}

/// The working directory is reachable from the root: `getcwd(2)` gives an absolute path, not one that
/// begins with `(unreachable)`.
///
/// # Errors
///
/// `ENOENT` when the directory was removed or lies outside of the root.
pub fn check_cwd() -> Result<(), Errno> {
    let mut buffer = [0_u8; 4096];
    // SAFETY: the buffer is writable and its size is passed.
    let rc = unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) };
    match answer(rc) {
        // Longer than PATH_MAX: the kernel found its way to the root, or it would say ENOENT.
        Err(Errno::RANGE | Errno::NAMETOOLONG) => Ok(()),
        Err(e) => Err(e),
        Ok(_) if buffer[0] == b'/' => Ok(()),
        Ok(_) => Err(Errno::NOENT),
    }
}

/// Marks every descriptor from `first` on as closed by `execve` (`close_range(2)`, Linux 5.11).
///
/// # Errors
///
/// `EINVAL` on an older kernel.
pub fn cloexec_from(first: u32) -> Result<(), Errno> {
    close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor from `first` on but those of `keep`, which must be sorted by number.
///
/// Only for a process that has just been cloned: what else refers to the closed numbers (the copies
/// of its parent's values) must not be used, nor dropped.
///
/// # Errors
///
/// `EINVAL` when `keep` is not sorted.
pub fn close_all_but(first: u32, keep: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    use std::os::fd::AsRawFd as _;
    let mut next = first;
    for fd in keep {
        let number = u32::try_from(fd.as_raw_fd()).map_err(|_negative| Errno::BADF)?;
        if number < first {
            continue;
        }
        if number < next {
            return Err(Errno::INVAL);
        }
        if number > next {
            close_range(next, number - 1, 0)?;
        }
        next = number + 1;
    }
    close_range(next, u32::MAX, 0)
}

fn close_range(first: u32, last: u32, flags: u32) -> Result<(), Errno> {
    // SAFETY: takes three integers. Descriptors that are closed may not be used any more, which is
    // the contract of the callers (`cloexec_from` closes nothing).
    answer(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

/// Whether this process has a descriptor `number`.
pub fn is_open(number: i32) -> bool {
    // SAFETY: takes integers; reads flags, and changes nothing whatever the number names.
    answer_int(unsafe { libc::fcntl(number, libc::F_GETFD) }).is_ok()
}

/// Leaves some namespaces of the maker for new ones: `CLONE_NEW*` flags (`unshare(2)`).
///
/// # Errors
///
/// `EINVAL` for other flags, `EPERM` without `CAP_SYS_ADMIN`, `ENOSPC` over a limit of namespaces.
pub fn unshare(namespaces: u64) -> Result<(), Errno> {
    let flags = i32::try_from(namespaces).map_err(|_too_big| Errno::INVAL)?;
    if namespaces & !crate::namespace::NAMESPACES != 0 {
        return Err(Errno::INVAL);
    }
    // SAFETY: takes an integer; without CLONE_FILES and CLONE_VM nothing that Rust relies on changes.
    answer_int(unsafe { libc::unshare(flags) }).map(drop)
}

/// Sets the name of this thread as ps shows it (15 bytes; the rest is cut off).
///
/// # Errors
///
/// None that a correct kernel gives.
pub fn set_name(name: &CStr) -> Result<(), Errno> {
    rustix::thread::set_name(name)
}

/// Ends the process at once: no destructors, no `atexit` handlers.
pub fn exit(status: i32) -> ! {
    // SAFETY: ends the process; nothing of Rust runs after it.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_can_be_read_and_lowered() {
        let nofile = 7; // RLIMIT_NOFILE
        let before = limit(nofile, None).unwrap();
        let lower = Limit {
            soft: before.soft - 1,
            ..before
        };
        limit(nofile, Some(lower)).unwrap();
        assert_eq!(limit(nofile, None).unwrap(), lower);
    }

    #[test]
    fn the_working_directory_of_a_test_is_absolute() {
        check_cwd().unwrap();
    }

    #[test]
    fn only_namespaces_can_be_unshared() {
        let files = u64::try_from(libc::CLONE_FILES).unwrap();
        assert_eq!(unshare(files), Err(Errno::INVAL));
    }
}
