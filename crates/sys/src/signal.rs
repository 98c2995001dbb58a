//! Signals: what a new program expects to find, and waiting for signals without handlers.

use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use rustix::io::Errno;

use crate::call::answer;

/// The kernel's `sigset_t`: bit n - 1 is signal n.
type KernelSet = u64;

/// The highest signal number of the kernel.
pub const MAX: i32 = 64;

/// The kernel's `struct sigaction` with everything zero (default action, no flags, empty mask);
/// 4 words on every architecture that we know (handler, flags, restorer, mask).
#[repr(C)]
struct DefaultAction([u64; 4]);

/// Gives every signal its default action and unblocks all: `execve(2)` would keep what is ignored
/// (Rust programs ignore `SIGPIPE`) and what is blocked.
///
/// By number, not through libc, which refuses the signals that it uses itself.
///
/// # Errors
///
/// None that a correct kernel gives.
pub fn reset() -> Result<(), Errno> {
    let default = DefaultAction([0; 4]);
    for signal in 1..=MAX {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: `default` is at least as large as the kernel's struct and lives during the call;
        // a null old action is allowed; default actions run no code of ours.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const default,
                std::ptr::null::<u8>(),
                size_of::<KernelSet>(),
            )
        };
        answer(rc)?;
    }
    change_mask(libc::SIG_SETMASK, 0)
}

/// Blocks all signals of this thread (`SIGKILL` and `SIGSTOP` cannot be).
///
/// # Errors
///
/// None that a correct kernel gives.
pub fn block_all() -> Result<(), Errno> {
    change_mask(libc::SIG_SETMASK, KernelSet::MAX)
}

/// Blocks `SIGCHLD` in the calling thread (and those that it starts) and gives its [`descriptor`]:
/// readable when a child has ended.
///
/// # Errors
///
/// As [`descriptor`].
pub fn child_ends() -> Result<OwnedFd, Errno> {
    change_mask(libc::SIG_BLOCK, set(&[libc::SIGCHLD]))?;
    descriptor(&[libc::SIGCHLD])
}

fn set(signals: &[i32]) -> KernelSet {
    signals.iter().fold(0, |set, signal| {
        let bit = u32::try_from(signal - 1).unwrap_or(KernelSet::BITS);
        set | 1_u64.checked_shl(bit).unwrap_or(0)
    })
}

fn change_mask(how: libc::c_int, mask: KernelSet) -> Result<(), Errno> {
    // SAFETY: the mask lives during the call and has the size that is passed; a null old mask is
    // allowed.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            how,
            &raw const mask,
            std::ptr::null::<u8>(),
            size_of::<KernelSet>(),
        )
    };
    answer(rc).map(drop)
}

/// A descriptor that gives the signals of `signals` (`signalfd(2)`), non-blocking and closed by
/// `execve`. They must be blocked, else their actions run instead.
///
/// # Errors
///
/// `EMFILE`, `ENFILE`, `ENOMEM`.
pub fn descriptor(signals: &[i32]) -> Result<OwnedFd, Errno> {
    let mask = set(signals);
    // SAFETY: the mask lives during the call and has the size that is passed.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_signalfd4,
            -1,
            &raw const mask,
            size_of::<KernelSet>(),
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        )
    };
    let fd = i32::try_from(answer(fd)?).map_err(|_too_big| Errno::BADF)?;
    // SAFETY: the kernel has just made `fd` for us and nobody else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes one signal from `descriptor`: its number and the sender's (or child's) process id.
///
/// # Errors
///
/// `EAGAIN` when none is pending.
pub fn take(descriptor: &OwnedFd) -> Result<(i32, u32), Errno> {
    let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
    let n = rustix::io::read(descriptor, &mut info)?;
    if n < info.len() {
        return Err(Errno::AGAIN);
    }
    let word = |at: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&info[at..at + 4]);
        u32::from_ne_bytes(bytes)
    };
    // ssi_signo is the first word, ssi_pid the fourth (after ssi_errno and ssi_code).
    Ok((i32::try_from(word(0)).unwrap_or(0), word(12)))
}

/// Sends `signal` (any number; 0 only asks) to the process that `pidfd` names.
///
/// # Errors
///
/// `ESRCH` when it has ended, `EINVAL` for an unknown number, `EPERM`.
pub fn send(pidfd: impl AsFd, signal: i32) -> Result<(), Errno> {
    let pidfd = pidfd.as_fd().as_raw_fd();
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null info asks the kernel to fill it as kill(2) does; the rest are integers.
    let rc = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, info, 0) };
    answer(rc).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clone::{How, clone3};
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::process::{WaitId, WaitIdOptions, waitid};

    #[test]
    fn a_blocked_signal_comes_out_of_the_descriptor() {
        // In a thread of its own: the mask is the thread's.
        std::thread::spawn(|| {
            block_all().unwrap();
            let fd = descriptor(&[libc::SIGUSR1]).unwrap();
            assert_eq!(take(&fd), Err(Errno::AGAIN));
            // SAFETY: takes nothing.
            let this = unsafe { libc::pthread_self() };
            // SAFETY: this thread lives, and the signal is blocked in it.
            unsafe { libc::pthread_kill(this, libc::SIGUSR1) };
            assert_eq!(take(&fd), Ok((libc::SIGUSR1, std::process::id())));
        })
        .join()
        .unwrap();
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
        send(&child.pidfd, 40).unwrap();
        let id = WaitId::PidFd(child.pidfd.as_fd());
        let status = waitid(id, WaitIdOptions::EXITED).unwrap().unwrap();
        assert_eq!(status.terminating_signal(), Some(40));
        assert_eq!(send(&child.pidfd, 40), Err(Errno::SRCH));
    }
}
