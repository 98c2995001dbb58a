//! The zygote: one small process that makes the shims, by fork, so that they share its memory.
//!
//! It is the parent of the shims, and of what a shim that is killed leaves: it waits for all of them,
//! and remembers for the daemon how they ended.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};
use wharf_plan::Fds;
use wharf_plan::message::{Body, Done, Failure, MakeShim, Orphan, Orphans, ShimMade};
use wharf_sys::fork::{Fork, claim_inherited, fork};

use crate::args::Args;
use crate::connection::{Connection, Received};
use crate::control::Seed;
use crate::limits::{CONNECTIONS_MAX, ID_MAX, ORPHANS_MAX, REQUESTS_PER_TURN};
use crate::{clock, connection, failure, mounts, title};

/// The first descriptor that is not a standard stream.
const FIRST_AFTER_STDIO: u32 = 3;

/// How a zygote's loop ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It was asked to end.
    Shutdown,
    /// This is a child that is to be a shim.
    Shim(Box<Seed>),
}

/// A zygote could not begin its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ZygoteError {
    /// A descriptor of the command line is not there.
    #[error("descriptor {number} ({flag}) was not handed over")]
    Descriptor {
        /// The flag that named it.
        flag: &'static str,
        /// Its number.
        number: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The shims' cgroup does not take it.
    #[error("entering the shims' cgroup by descriptor {number}")]
    Cgroup {
        /// Its number.
        number: u32,
        /// The kernel's answer.
        source: Errno,
    },
    /// A system call failed.
    #[error("{call}")]
    Call {
        /// The call.
        call: &'static str,
        /// Its answer.
        source: Errno,
    },
    /// The minimal mount namespace could not be made.
    #[error("{} {}: errno {}", .0.step, .0.object, .0.errno)]
    Mounts(Failure),
}

fn call(call: &'static str) -> impl FnOnce(Errno) -> ZygoteError {
    move |source| ZygoteError::Call { call, source }
}

fn claim(flag: &'static str, number: u32) -> Result<OwnedFd, ZygoteError> {
    claim_inherited(number).map_err(|source| ZygoteError::Descriptor {
        flag,
        number,
        source,
    })
}

struct Zygote {
    listener: OwnedFd,
    children: OwnedFd,
    connections: BTreeMap<u64, Connection>,
    last_number: u64,
    /// The last ends that it has seen.
    orphans: VecDeque<Orphan>,
}

/// Settles in a home of its own, then makes shims until it is told to end.
///
/// # Errors
///
/// What kept it from settling.
pub(crate) fn run(args: &Args) -> Result<Ended, ZygoteError> {
    let listener = claim("--socket-fd", args.socket)?;
    let log = args
        .log
        .map(|number| claim("--log-fd", number))
        .transpose()?;
    let cgroups = args.cgroups.iter();
    let cgroups = cgroups.map(|number| claim("--cgroup-fd", *number).map(|fd| (*number, fd)));
    let cgroups: Vec<(u32, OwnedFd)> = cgroups.collect::<Result<_, _>>()?;
    // Whatever else was inherited belongs to nobody here, and would live as long as the last pod.
    let mut keep: Vec<BorrowedFd<'_>> = cgroups.iter().map(|(_, fd)| fd.as_fd()).collect();
    keep.extend(log.as_ref().map(|fd| fd.as_fd()));
    keep.push(listener.as_fd());
    keep.sort_by_key(AsRawFd::as_raw_fd);
    wharf_sys::process::close_all_but(FIRST_AFTER_STDIO, &keep).map_err(call("close_range"))?;
    // All writes directly one after the other: on cgroup v1 only the first is slow.
    for (number, procs) in cgroups {
        rustix::io::write(&procs, b"0").map_err(|source| ZygoteError::Cgroup { number, source })?;
    }
    // Fails for the leader of a process group: then whoever started us made a session already.
    let _leader = rustix::process::setsid();
    wharf_sys::process::set_name(c"wharf-zygote").map_err(call("prctl(PR_SET_NAME)"))?;
    // A shim may be killed: then somebody has to wait for its containers.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(call("prctl(PR_SET_CHILD_SUBREAPER)"))?;
    mounts::leave_the_host().map_err(ZygoteError::Mounts)?;
    silence(log.as_ref()).map_err(call("dup2"))?;
    rustix::io::ioctl_fionbio(&listener, true).map_err(call("ioctl(FIONBIO)"))?;
    let children = wharf_sys::signal::child_ends().map_err(call("signalfd"))?;
    let mut zygote = Zygote {
        listener,
        children,
        connections: BTreeMap::new(),
        last_number: 0,
        orphans: VecDeque::new(),
    };
    loop {
        if let Some(ended) = zygote.turn() {
            return Ok(ended);
        }
    }
}

/// Lets go of the standard streams of whoever started us: they would keep a terminal or a pipe busy
/// for as long as pods live.
fn silence(log: Option<&OwnedFd>) -> Result<(), Errno> {
    use rustix::fs::{Mode, OFlags};
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    // Panics end up there.
    rustix::stdio::dup2_stderr(log.unwrap_or(&null))
}

impl Zygote {
    /// Waits for something and deals with it.
    fn turn(&mut self) -> Option<Ended> {
        let mut polled = vec![
            PollFd::new(&self.children, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        for connection in self.connections.values() {
            let out = if connection.is_waiting() {
                PollFlags::OUT
            } else {
                PollFlags::empty()
            };
            polled.push(PollFd::from_borrowed_fd(
                connection.as_fd(),
                PollFlags::IN | out,
            ));
        }
        if poll(&mut polled, None).is_err() {
            return None; // interrupted
        }
        let mut ready = polled.iter().map(|fd| !fd.revents().is_empty());
        let (children, listener) = (ready.next() == Some(true), ready.next() == Some(true));
        let ready: Vec<bool> = ready.collect();
        let numbers = self.connections.keys().copied().zip(ready);
        let ready: Vec<u64> = numbers
            .filter_map(|(n, ready)| ready.then_some(n))
            .collect();
        if children {
            self.reap();
        }
        for number in ready {
            if let Some(ended) = self.serve(number) {
                return Some(ended);
            }
        }
        if listener {
            self.accept();
        }
        self.connections
            .retain(|_, connection| !connection.is_broken());
        None
    }

    /// Shims that have ended, and what they left.
    fn reap(&mut self) {
        let mut signals = [0; 128];
        while rustix::io::read(&self.children, &mut signals).is_ok() {}
        loop {
            match wharf_sys::end::child() {
                Ok(Some(pid)) => self.wait_for(pid),
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Waits for a child that has ended, and keeps how it did: its daemon may be away.
    fn wait_for(&mut self, pid: u32) {
        // As long as it was not waited for, this is it and nobody else.
        let started = start_time(pid);
        let child = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Ok(Some((_, status))) = waitpid(child, WaitOptions::NOHANG) else {
            return;
        };
        let Some(started) = started else {
            return;
        };
        if self.orphans.len() >= ORPHANS_MAX {
            self.orphans.pop_front();
        }
        let signal = status.terminating_signal().unwrap_or(0);
        self.orphans.push_back(Orphan {
            pid,
            started,
            code: status.exit_status().unwrap_or(128 + signal),
            signal,
            at_ns: clock::realtime_ns(),
        });
    }

    fn accept(&mut self) {
        match Connection::accept(&self.listener) {
            Ok(connection) if self.connections.len() < CONNECTIONS_MAX => {
                self.last_number += 1;
                self.connections.insert(self.last_number, connection);
            }
            // Too many (dropped here), not root's, or gone again.
            Ok(_) | Err(_) => {}
        }
    }

    fn serve(&mut self, number: u64) -> Option<Ended> {
        for _ in 0..REQUESTS_PER_TURN {
            let connection = self.connections.get_mut(&number)?;
            connection.flush();
            let Received::Message(message, fds) = connection.receive() else {
                return None;
            };
            let id = message.id;
            let answer = match message.body {
                Some(Body::Hello(hello)) => {
                    connection::welcome(&hello).map(|w| (Body::Welcome(w), Fds::new()))
                }
                Some(Body::MakeShim(request)) => match make_shim(request, fds) {
                    Ok(Made::Here(seed)) => return Some(Ended::Shim(seed)),
                    Ok(Made::There(made, fds)) => Ok((Body::ShimMade(made), fds)),
                    Err(failure) => Err(failure),
                },
                Some(Body::GetOrphans(_)) => {
                    // Whoever has ended by now is among them.
                    self.reap();
                    let processes = self.orphans.iter().copied().collect();
                    Ok((Body::Orphans(Orphans { processes }), Fds::new()))
                }
                Some(Body::Shutdown(_)) => {
                    connection.reply(id, Body::Done(Done {}), Fds::new());
                    return Some(Ended::Shutdown);
                }
                None => Err(failure::unknown("zygote")),
                Some(_) => Err(failure::invalid(
                    "request",
                    "this is no request to a zygote",
                )),
            };
            let connection = self.connections.get_mut(&number)?;
            match answer {
                Ok((body, fds)) => connection.reply(id, body, fds),
                // Whoever asked logs it: this one thread makes every pod, and a disk can stall.
                Err(failure) => connection.fail(id, failure),
            }
        }
        None
    }
}

enum Made {
    /// In the zygote.
    There(ShimMade, Fds),
    /// In the shim.
    Here(Box<Seed>),
}

fn make_shim(request: MakeShim, mut fds: Fds) -> Result<Made, Failure> {
    if request.pod_id.is_empty() || request.pod_id.len() > ID_MAX {
        return Err(failure::invalid(
            "make shim",
            format!("an id has 1 to {ID_MAX} bytes"),
        ));
    }
    let Some(listener) = fds.take("listen") else {
        return Err(failure::invalid(
            "make shim",
            "the descriptor listen is missing",
        ));
    };
    let log = fds.take("log");
    match fork().map_err(failure::io("fork", &request.pod_id))? {
        Fork::Child => {
            // What ps shows is worth no failure.
            let _name = wharf_sys::process::set_name(c"wharf-shim");
            drop(title::set(&format!("wharf-shim {}", request.pod_id)));
            Ok(Made::Here(Box::new(Seed {
                request,
                listener,
                log,
            })))
        }
        Fork::Parent(pid) => {
            // It is our child and not reaped before the next turn, so the number is still its own.
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| {
                // Nobody would know of it. It can only have ended, and that is as good.
                let _ended = kill_process(pid, Signal::KILL);
                failure::errno("pidfd_open", &request.pod_id)(errno)
            })?;
            let mut fds = Fds::new();
            fds.push("pidfd", pidfd);
            let pid = u32::try_from(pid.as_raw_nonzero().get()).unwrap_or(0);
            Ok(Made::There(ShimMade { pid }, fds))
        }
    }
}

/// When a process began: proc_pid_stat(5), field 22.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}

/// Says on standard error why the zygote did not begin.
pub(crate) fn complain(error: &dyn std::error::Error) {
    let mut text = format!("wharf-shim: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    // Nobody may be listening.
    drop(writeln!(io::stderr().lock(), "{text}"));
}
