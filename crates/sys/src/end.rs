//! How processes end: children that can be waited for, and others by their pidfd.

use std::os::fd::{AsFd, AsRawFd as _};

use rustix::io::Errno;

use crate::call::answer_int;

/// `PIDFD_GET_INFO` of linux/pidfd.h for the first 64 bytes of `struct pidfd_info`, which is what has
/// the exit code; later kernels have more behind them.
const GET_INFO: u32 = 0xC040_FF0B;
/// `PIDFD_INFO_EXIT`.
const EXIT: u64 = 1 << 3;

/// `struct pidfd_info`, version 0.
#[derive(Debug, Default)]
#[repr(C)]
struct Info {
    mask: u64,
    cgroup: u64,
    /// Ids of process and user.
    ids: [u32; 11],
    exit_code: i32,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Exit status; 128 + signal for one that a signal ended.
    pub code: i32,
    /// The signal, or 0.
    pub signal: i32,
}

/// How the process ended that `pidfd` names. The descriptor must be older than its end. `None` while
/// it lives, and until its parent has waited for it.
///
/// # Errors
///
/// `ENOTTY` or `EINVAL` from a kernel that does not tell (before Linux 6.15).
pub fn of(pidfd: impl AsFd) -> Result<Option<End>, Errno> {
    let mut info = Info {
        mask: EXIT,
        ..Info::default()
    };
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: `Info` has the layout of the first version of struct pidfd_info, whose size is part of
    // the request: the kernel writes no more than that. It lives during the call.
    let asked = answer_int(unsafe {
        // The request's type differs between C libraries; its bits do not.
        libc::ioctl(fd, GET_INFO.cast_signed() as _, &raw mut info)
    });
    match asked {
        // Gone, and nobody noted how.
        Err(Errno::SRCH) => return Ok(None),
        other => other?,
    };
    if info.mask & EXIT == 0 {
        return Ok(None);
    }
    // As wait(2) gives it.
    let signal = info.exit_code & 0x7f;
    let code = match signal {
        0 => (info.exit_code >> 8) & 0xff,
        signal => 128 + signal,
    };
    Ok(Some(End { code, signal }))
}

/// A child of this process that has ended and was not waited for; it stays so, and its id its own.
///
/// # Errors
///
/// `ECHILD` without children, `EINTR`.
pub fn child() -> Result<Option<u32>, Errno> {
    // SAFETY: all zeroes is a valid siginfo_t: it has integers and pointers that nobody follows.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is a writable siginfo_t that lives during the call.
    answer_int(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, look) })?;
    // SAFETY: waitid(2) has filled in the fields of SIGCHLD, or left the zeroes.
    let pid = unsafe { info.si_pid() };
    Ok(u32::try_from(pid).ok().filter(|pid| *pid > 0))
}

#[cfg(test)]
#[expect(clippy::disallowed_types, reason = "a test has children of its own")]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    use std::process::Command;

    #[test]
    fn a_process_that_was_waited_for_tells_how_it_ended() {
        let own = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
        if let Err(Errno::NOTTY | Errno::INVAL) = of(&own) {
            return println!("skipped: an older kernel");
        }
        for (script, end_of) in [
            ("exit 3", End { code: 3, signal: 0 }),
            ("exit 0", End { code: 0, signal: 0 }),
            (
                "kill -KILL $$",
                End {
                    code: 137,
                    signal: 9,
                },
            ),
        ] {
            let mut child = Command::new("sh")
                .args(["-c", &format!("read x; {script}")])
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
            assert_eq!(of(&pidfd), Ok(None));
            drop(child.stdin.take());
            // A zombie has not told yet.
            let ended = PollFd::new(&pidfd, PollFlags::IN);
            rustix::event::poll(&mut [ended], None).unwrap();
            assert_eq!(of(&pidfd), Ok(None));
            child.wait().unwrap();
            assert_eq!(of(&pidfd), Ok(Some(end_of)), "{script}");
        }
    }
}
