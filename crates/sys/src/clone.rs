//! A new process with a copy of this one's memory: `clone3(2)` without shared memory, so a fork.
//!
//! The parent may have threads. Then the child is alone in a copy of memory in which another thread
//! may hold any lock: it must not allocate, lock, log or panic. Everything it needs is prepared
//! before the call and given to it by reference.
//!
//! Kernel: Linux 5.7 for a cgroup. Man: <https://man7.org/linux/man-pages/man2/clone.2.html>

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::Errno;

use crate::call::answer;
pub use crate::namespace::{NAMESPACES, NEWCGROUP, NEWIPC, NEWNET, NEWNS, NEWPID, NEWUSER, NEWUTS};

const PIDFD: u64 = 0x0000_1000;
/// Signal handlers of the parent become default actions: none of its code can run in the child.
const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// What differs between child and parent.
#[derive(Debug, Clone, Copy, Default)]
pub struct How<'fd> {
    /// New namespaces: `NEW*` of this module; other flags are refused.
    pub namespaces: u64,
    /// Directory of a cgroup2 that the child is born in: no migration, which costs milliseconds.
    pub cgroup: Option<BorrowedFd<'fd>>,
}

/// A child that was made.
#[derive(Debug)]
pub struct Child {
    /// Its process id in the caller's PID namespace.
    pub pid: u32,
    /// Names this very process for ever; readable when it has ended.
    pub pidfd: OwnedFd,
}

#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Makes a child that runs `child(data)` and ends with the status that it returns; its parent gets
/// `SIGCHLD`. `data` is the child's own copy: what it changes there, the parent does not see.
///
/// `child` may use only system calls and memory that exists already (see the module). It never comes
/// back into the parent's frames: a panic in it ends it with status 255.
///
/// # Errors
///
/// `EAGAIN` or `ENOSPC` over a limit of processes or namespaces, `EPERM` without `CAP_SYS_ADMIN`, `EINVAL` for
/// flags that are no namespaces, `EBUSY` or `EOPNOTSUPP` for a cgroup that takes no processes, `ENODEV` for
/// one that was removed.
pub fn clone3<T>(how: &How<'_>, data: &mut T, child: fn(&mut T) -> i32) -> Result<Child, Errno> {
    if how.namespaces & !NAMESPACES != 0 {
        return Err(Errno::INVAL);
    }
    let mut pidfd: libc::c_int = -1;
    let cgroup = how
        .cgroup
        .map(|fd| u64::try_from(fd.as_raw_fd()).unwrap_or(0));
    let args = CloneArgs {
        flags: how.namespaces | PIDFD | CLEAR_SIGHAND | cgroup.map_or(0, |_| INTO_CGROUP),
        pidfd: u64::try_from((&raw mut pidfd).addr()).unwrap_or(0),
        exit_signal: u64::try_from(libc::SIGCHLD).unwrap_or(0),
        cgroup: cgroup.unwrap_or(0),
        ..CloneArgs::default()
    };
    (&raw mut pidfd).expose_provenance();
    // SAFETY: `args` lives during the call and has the size that is passed; its pidfd field is the
    // exposed address of a writable int. Without CLONE_VM and with a null stack the child runs on a
    // copy of this stack, so both returns are those of an ordinary function; the child leaves below
    // without returning.
    let rc = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    let pid = answer(rc)?;
    if pid == 0 {
        run(data, child);
    }
    // SAFETY: the kernel has just made this descriptor for us (CLONE_PIDFD, closed by execve).
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = u32::try_from(pid).map_err(|_negative| Errno::SRCH)?;
    Ok(Child { pid, pidfd })
}

/// Ends the child when `child` unwinds, before a frame of the parent is reached.
struct Barrier;

impl Drop for Barrier {
    fn drop(&mut self) {
        crate::process::exit(255);
    }
}

fn run<T>(data: &mut T, child: fn(&mut T) -> i32) -> ! {
    let _barrier = Barrier;
    crate::process::exit(child(data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use std::os::fd::AsFd as _;

    fn status(child: &Child) -> Option<i32> {
        waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)
            .unwrap()
            .unwrap()
            .exit_status()
    }

    #[test]
    fn the_child_has_its_own_copy_of_the_data() {
        let mut data = 41;
        let child = clone3(&How::default(), &mut data, |n| {
            *n += 1;
            *n
        });
        assert_eq!(status(&child.unwrap()), Some(42));
        assert_eq!(data, 41);
    }

    #[test]
    #[expect(
        clippy::disallowed_types,
        reason = "this test needs a process without threads"
    )]
    fn a_child_that_panics_does_not_come_back() {
        // A panic allocates and locks, which in the child of a process with threads may block for
        // ever: so this happens in a process of its own, where the test is all there is.
        if std::env::var_os("ALONE").is_none() {
            let status = std::process::Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "clone::tests::a_child_that_panics_does_not_come_back",
                ])
                .arg("--test-threads=1")
                .env("ALONE", "1")
                .status();
            assert!(status.unwrap().success());
            return;
        }
        let child = clone3(&How::default(), &mut (), |()| panic!("in the child"));
        assert_eq!(status(&child.unwrap()), Some(255));
    }

    #[test]
    fn other_flags_are_refused() {
        let vm = How {
            namespaces: 0x100,
            ..How::default()
        };
        assert_eq!(clone3(&vm, &mut (), |()| 0).unwrap_err(), Errno::INVAL);
    }
}
