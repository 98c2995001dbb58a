//! What a process that makes copies of itself needs: fork, its children's ends as a descriptor, and
//! descriptors that were inherited over `execve`.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

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

/// `fork(2)` of a process that may have threads: the child runs `child(data)` and ends with the status
/// that it returns, without destructors or `atexit` handlers; a panic ends it with status 255. `data`
/// is the child's own copy, and so are all values of the caller, which the child never drops.
///
/// The child has one thread and may allocate. It must not take a lock that another thread of the
/// caller may hold at this moment: nobody would release it.
///
/// # Errors
///
/// `EAGAIN`, `ENOMEM`.
pub fn fork_apart<T>(data: &mut T, child: fn(&mut T) -> i32) -> io::Result<Pid> {
    // SAFETY: the C library's own state is consistent in the child whatever the other threads do:
    // fork(3) takes the allocator's and all its other locks and frees them in the child (musl since
    // 1.2.2, which Rust brings along; the GNU C library the allocator's). The child runs `child`
    // alone and never comes back into the caller's frames.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => crate::clone::run(data, child),
        pid if pid < 0 => Err(io::Error::last_os_error()),
        pid => Pid::from_raw(pid).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

fn sigchld_set() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset writes the whole set behind the pointer, which is valid for writes.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: sigemptyset initialised it.
    let mut set = unsafe { set.assume_init() };
    // SAFETY: the set is initialised and SIGCHLD is a signal.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) };
    set
}

/// Blocks `SIGCHLD` in the calling thread (and those that it starts) and gives a non-blocking
/// `signalfd(2)` that becomes readable when a child has ended. Descriptor: close-on-exec.
///
/// # Errors
///
/// `EMFILE`, `ENFILE`, `ENOMEM`.
pub fn child_ends() -> io::Result<OwnedFd> {
    let set = sigchld_set();
    // SAFETY: the set is initialised; the old mask is not asked for.
    let blocked =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if blocked != 0 {
        return Err(io::Error::from_raw_os_error(blocked));
    }
    // SAFETY: the set is initialised; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `pidfd_send_signal(2)` with any signal number, real-time ones too (Linux 5.1).
///
/// # Errors
///
/// `ESRCH` when the process has ended and was waited for, `EINVAL` for no signal.
pub fn pidfd_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let info: *const libc::siginfo_t = std::ptr::null();
    let pidfd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call; a null siginfo is allowed.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, info, 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
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
    use crate::clone::{How, clone3};
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::process::{WaitId, WaitIdOptions, waitid};
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
    fn a_child_of_a_process_with_threads_can_allocate() {
        let (stop, stopped) = mpsc::channel::<()>();
        let busy = std::thread::spawn(move || {
            let mut made = 0_usize;
            while matches!(stopped.try_recv(), Err(mpsc::TryRecvError::Empty)) {
                made += vec![0_u8; 100 + made % 5000].len();
            }
        });
        for _ in 0..50 {
            let pid = fork_apart(&mut 20, |n| {
                let all: Vec<String> = (0..*n).map(|n| "x".repeat(n * 100)).collect();
                i32::try_from(all.len()).unwrap_or(-1)
            });
            let ended = waitid(WaitId::Pid(pid.unwrap()), WaitIdOptions::EXITED);
            assert_eq!(ended.unwrap().unwrap().exit_status(), Some(20));
        }
        drop(stop);
        busy.join().unwrap();
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

    #[test]
    fn the_signal_of_an_ended_child_makes_the_descriptor_readable() {
        // In a thread of its own, to which the signal is sent: the mask is the thread's, and a real
        // child's would go to another thread of the test.
        let readable = std::thread::spawn(|| {
            let ends = child_ends().unwrap();
            // SAFETY: takes nothing.
            let this = unsafe { libc::pthread_self() };
            // SAFETY: this thread lives, and SIGCHLD is blocked in it.
            unsafe { libc::pthread_kill(this, libc::SIGCHLD) };
            poll(&mut [PollFd::new(&ends, PollFlags::IN)], None).unwrap()
        });
        assert_eq!(readable.join().unwrap(), 1);
    }

    #[test]
    fn real_time_signals_can_be_sent() {
        let child = clone3(&How::default(), &mut (), |()| {
            loop {
                // SAFETY: waits for a signal.
                unsafe { libc::pause() };
            }
        });
        let child = child.unwrap();
        pidfd_signal(&child.pidfd, 40).unwrap();
        let id = WaitId::PidFd(child.pidfd.as_fd());
        let status = waitid(id, WaitIdOptions::EXITED).unwrap().unwrap();
        assert_eq!(status.terminating_signal(), Some(40));
        let gone = pidfd_signal(&child.pidfd, 40).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
    }
}
