//! Signals: what a new program expects to find, and waiting for signals without handlers.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use rustix::io::Errno;

use crate::call::{answer, answer_int};

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
    set_mask(0)
}

/// Blocks all signals of this thread (`SIGKILL` and `SIGSTOP` cannot be).
///
/// # Errors
///
/// None that a correct kernel gives.
pub fn block_all() -> Result<(), Errno> {
    set_mask(KernelSet::MAX)
}

fn set_mask(mask: KernelSet) -> Result<(), Errno> {
    // SAFETY: the mask lives during the call and has the size that is passed; a null old mask is
    // allowed.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
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
    let mask = signals.iter().fold(0, |mask: KernelSet, signal| {
        let bit = u32::try_from(signal - 1).unwrap_or(KernelSet::BITS);
        mask | 1_u64.checked_shl(bit).unwrap_or(0)
    });
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

/// Whether this process ignores `signal`.
///
/// # Errors
///
/// `EINVAL` for an unknown number.
pub fn is_ignored(signal: i32) -> Result<bool, Errno> {
    let mut old = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null new action changes nothing; `old` is writable and of the right type.
    answer_int(unsafe { libc::sigaction(signal, std::ptr::null(), old.as_mut_ptr()) })?;
    // SAFETY: sigaction has succeeded, so `old` is filled.
    let old = unsafe { old.assume_init() };
    Ok(old.sa_sigaction == libc::SIG_IGN)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
