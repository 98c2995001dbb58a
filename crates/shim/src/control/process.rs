//! One process of the pod: a container's init, or an exec.
//!
//! ```text
//!          clone3              parked            Start            executed
//! Create ──────────► Launching ──────► Parked ──────────► Starting ──────► Running ─┐
//! Exec   ──────────► Launching ──────────────────executed─────────────────► Running ─┤
//!                                                                                    │ reaped
//!              reported, kept until Delete: Exited ◄── output read ── Draining ◄─────┘
//! ```
//!
//! From each of the first four states a process may also end; whoever waits for it is told first.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use wharf_plan::message::{Exited, Failure};
use wharf_runtime::launch::{Pending, Progress};

use crate::failure;

/// `SIGKILL`.
pub(crate) const SIGKILL: i32 = 9;

/// To whom a reply is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReplyTo {
    /// Number of the connection.
    pub(crate) connection: u64,
    /// The request's id.
    pub(crate) id: u64,
}

/// How far a process is.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Being made: an init until only `execve` is left, an exec until its program runs.
    Launching(Pending, ReplyTo),
    /// Made, not started.
    Parked(Pending),
    /// On its way to its program.
    Starting(Pending, ReplyTo),
    /// Its program runs.
    Running,
    /// Ended; its output is still read, until then at the latest.
    Draining(Exited, Instant),
    /// Ended and reported.
    Exited(Exited),
}

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    /// In the host's PID namespace.
    pub(crate) pid: u32,
    /// Names it for ever, also after the pid was given to another.
    pub(crate) pidfd: OwnedFd,
    /// How far it is.
    pub(crate) phase: Phase,
    /// Our end of its terminal.
    pub(crate) terminal: Option<OwnedFd>,
}

impl Process {
    /// A process that was just cloned.
    ///
    /// # Errors
    ///
    /// When there is no room for another descriptor.
    pub(crate) fn launching(pending: Pending, reply: ReplyTo) -> Result<Self, Failure> {
        let pidfd = pending.pidfd.try_clone().map_err(|error| {
            // Nobody could follow it: it must not run.
            let _gone = wharf_sys::signal::send(&pending.pidfd, SIGKILL);
            failure::io("dup", "pidfd")(error)
        })?;
        Ok(Self {
            pid: pending.pid,
            pidfd,
            phase: Phase::Launching(pending, reply),
            terminal: None,
        })
    }

    /// Readable when [`Self::progress`] has something.
    pub(crate) fn status_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.phase {
            Phase::Launching(pending, _) | Phase::Starting(pending, _) => Some(pending.status_fd()),
            Phase::Parked(_) | Phase::Running | Phase::Draining(..) | Phase::Exited(_) => None,
        }
    }

    /// What the process said since it was cloned or released, and who waits for it. With `last` the
    /// process has ended: saying nothing is a failure too.
    pub(crate) fn progress(&mut self, last: bool) -> Option<(ReplyTo, Result<Progress, Failure>)> {
        let (pending, reply) = match &mut self.phase {
            Phase::Launching(pending, reply) | Phase::Starting(pending, reply) => (pending, *reply),
            Phase::Parked(_) | Phase::Running | Phase::Draining(..) | Phase::Exited(_) => {
                return None;
            }
        };
        match pending.poll() {
            Ok(Some(progress)) => Some((reply, Ok(progress))),
            Err(error) => Some((reply, Err(failure::launch(&error)))),
            Ok(None) if last => {
                let failure = failure::step("launch", "the process ended before it was ready", 0);
                Some((reply, Err(failure)))
            }
            Ok(None) => None,
        }
    }

    /// Goes on from `Launching` to `Parked`, or from `Launching` and `Starting` to `Running`.
    pub(crate) fn go_on(&mut self, parked: bool) {
        let phase = std::mem::replace(&mut self.phase, Phase::Running);
        self.phase = match phase {
            Phase::Launching(pending, _) if parked => Phase::Parked(pending),
            Phase::Launching(..) | Phase::Starting(..) => Phase::Running,
            other => other,
        };
    }

    /// Whether it has not been reaped.
    pub(crate) fn is_alive(&self) -> bool {
        !matches!(self.phase, Phase::Draining(..) | Phase::Exited(_))
    }

    /// Sends a signal; to a process that has ended that is no error.
    ///
    /// # Errors
    ///
    /// The kernel's, e.g. `EINVAL` for a number that is no signal.
    pub(crate) fn signal(&self, signal: i32) -> Result<(), Failure> {
        const ESRCH: i32 = 3;
        match wharf_sys::signal::send(&self.pidfd, signal) {
            Err(error) if error.raw_os_error() != ESRCH => {
                Err(failure::errno("signal", &signal.to_string())(error))
            }
            _ => Ok(()),
        }
    }
}
