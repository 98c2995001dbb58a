//! `run`: makes, starts and, unless detached, stays: passes signals and terminal on, gives the exit
//! code of the container's program.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use wharf_runtime::launch::Progress;

use super::args::{New, Options};
use super::bundle::{self, Bundle};
use super::console::{self, Proxy};
use super::create::{Made, Waits, check_preserved, make};
use super::failure::Failure;
use super::log::Log;

/// Signals that are not passed on: they are about us, or are a program's own faults.
const OWN: [i32; 10] = [
    4,  // ILL
    5,  // TRAP
    7,  // BUS
    8,  // FPE
    9,  // KILL: cannot be caught
    11, // SEGV
    17, // CHLD
    19, // STOP: cannot be caught
    23, // URG
    28, // WINCH: becomes a size
];
const SIGWINCH: i32 = 28;

/// Runs a container; gives its exit code (0 when detached).
pub(crate) fn run(options: &Options, new: &New, log: &Log) -> Result<u8, Failure> {
    check_preserved(new)?;
    let bundle = bundle::load(new)?;
    check_terminal(new, &bundle)?;
    let failed = |e: Errno| Failure::io("wait for signals", e);
    // Before the init exists: none is missed. The init itself begins with none blocked.
    let signals = if new.detach {
        None
    } else {
        wharf_sys::signal::block_all().map_err(failed)?;
        let all: Vec<i32> = (1..=wharf_sys::signal::MAX).collect();
        Some(wharf_sys::signal::descriptor(&all).map_err(failed)?)
    };
    let mut made = make(options, new, &bundle, log, Waits::ForUs)?;
    let proxy = match (made.terminal.take(), &new.console_socket) {
        (Some(master), Some(socket)) => {
            console::send(socket, master.as_fd(), b"/dev/ptmx")?;
            None
        }
        (Some(master), None) => Some(Proxy::start(master)?),
        (None, _) => None,
    };
    execute(&mut made, log)?;
    made.tell(new)?;
    let (Some(signals), Some(pidfd)) = (signals, made.pidfd()) else {
        made.keep();
        return Ok(0);
    };
    let code = wait(pidfd, &signals, proxy.as_ref()).map_err(failed)?;
    if let Some(proxy) = proxy {
        proxy.finish();
    }
    if new.keep {
        made.keep();
    }
    Ok(code)
}

fn check_terminal(new: &New, bundle: &Bundle) -> Result<(), Failure> {
    let wants = bundle.terminal();
    if wants && new.detach && new.console_socket.is_none() {
        return Err(Failure::new(
            "cannot allocate a tty if the runtime detaches without a console socket",
        ));
    }
    if new.console_socket.is_some() && !(wants && new.detach) {
        return Err(Failure::new(
            "cannot use a console socket if the runtime does not detach or allocate a tty",
        ));
    }
    Ok(())
}

fn execute(made: &mut Made, log: &Log) -> Result<(), Failure> {
    let Some(init) = &mut made.init else {
        return Ok(());
    };
    let cannot = |e| Failure::because("error during container start", &e);
    init.release().map_err(cannot)?;
    match init.wait().map_err(cannot)? {
        Progress::Executed { warnings, .. } | Progress::Parked { warnings, .. } => {
            warnings.iter().for_each(|w| log.warn(w));
        }
    }
    Ok(())
}

/// Passes signals on until the init ends; gives its code, or 128 + signal.
fn wait(pidfd: BorrowedFd<'_>, signals: &OwnedFd, proxy: Option<&Proxy>) -> Result<u8, Errno> {
    loop {
        let mut fds = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::from_borrowed_fd(pidfd, PollFlags::IN),
        ];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
        let ended = fds[1].revents().contains(PollFlags::IN);
        while let Ok((signal, _)) = wharf_sys::signal::take(signals) {
            match (signal, proxy) {
                (SIGWINCH, Some(proxy)) => proxy.resize(),
                (own, _) if OWN.contains(&own) => {}
                // It may have ended meanwhile.
                (other, _) => {
                    wharf_sys::signal::send(pidfd, other).ok();
                }
            }
        }
        if ended {
            return exit_code(pidfd);
        }
    }
}

fn exit_code(pidfd: BorrowedFd<'_>) -> Result<u8, Errno> {
    let status = waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED)?;
    let status = status.ok_or(Errno::CHILD)?;
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    };
    Ok(u8::try_from(code & 0xff).unwrap_or(255))
}
