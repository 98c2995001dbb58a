//! PID 1 of a pod's shared PID namespace: a forked child without a program of its own. It reaps.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, WaitOptions, getpid, pidfd_open};
use wharf_sys::clone::{How, NEWPID, clone3};
use wharf_sys::{capability, process, signal};

use super::status::{Step, StepError};

/// `SIGINT`, `SIGTERM`, `SIGCHLD`: the same numbers on every architecture that we build for.
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;

/// Makes a process that is PID 1 of a new PID namespace. It reaps whoever is left to it, and ends, and
/// with it everything in the namespace, on `SIGKILL` or `SIGTERM` from outside, or when the caller's
/// process ends. (`SIGKILL` for certain: a `SIGTERM` that a container sends is ignored, and one from
/// outside that meets it still pending is lost with it, as signals of one number are.)
///
/// Gives its process id and pidfd; it is a child of the caller, who waits for it.
///
/// # Errors
///
/// The kernel's answer to `clone3`, with the step.
pub fn sandbox_init() -> Result<(u32, OwnedFd), StepError> {
    let failed = |object: &'static str| move |e: Errno| StepError::new(Step::Clone, object, e);
    let parent = pidfd_open(getpid(), PidfdFlags::empty()).map_err(failed("pidfd of the pod"))?;
    let how = How {
        namespaces: NEWPID,
        ..How::default()
    };
    let mut data = parent.as_fd();
    let child = clone3(&how, &mut data, main).map_err(failed("PID 1 of the pod"))?;
    Ok((child.pid, child.pidfd))
}

fn main(parent: &mut BorrowedFd<'_>) -> i32 {
    match reap_until_told(*parent) {
        Ok(()) => 0,
        Err(_nobody_is_told) => 1,
    }
}

fn reap_until_told(parent: BorrowedFd<'_>) -> Result<(), Errno> {
    process::close_all_but(0, &[parent])?;
    // Containers of the pod see this process as PID 1. It has nothing to give: no descriptors, no
    // capabilities, and memory and program (the shim's, on the host) out of reach.
    process::set_undumpable()?;
    process::set_name(c"wharf-sandbox")?;
    rustix::process::setsid()?;
    rustix::process::chdir(c"/")?;
    signal::reset()?;
    signal::block_all()?;
    let signals = signal::descriptor(&[SIGINT, SIGTERM, SIGCHLD])?;
    capability::set(capability::Sets::default())?;
    loop {
        let mut fds = [
            PollFd::new(&signals, PollFlags::IN),
            PollFd::from_borrowed_fd(parent, PollFlags::IN),
        ];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
        if fds[1].revents().contains(PollFlags::IN) {
            return Ok(());
        }
        match signal::take(&signals) {
            // Only from outside of the namespace, whose processes have no number in it: a container
            // must not end its pod.
            Ok((SIGINT | SIGTERM, 0)) => return Ok(()),
            Ok(_) | Err(Errno::AGAIN) => reap()?,
            Err(e) => return Err(e),
        }
    }
}

fn reap() -> Result<(), Errno> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) | Err(Errno::CHILD) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}
