//! The control thread of a shim: one loop around `poll(2)`.
//!
//! It never waits for one child, one client or one disk. Requests that take their time (making a
//! process, starting it, switching a log) leave a note of whom to answer, and the loop goes on.

mod process; // one init or exec
mod sockets; // sockets in the pod's network namespace
mod requests; // what clients ask for
mod exits; // what children say and how they end

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;
use wharf_plan::Fds;
use wharf_plan::container::Namespaces;
use wharf_plan::message::{Body, Done, ExecState, Failure, MakeShim, Message, Warning};

use crate::connection::{Connection, Received};
use crate::failure;
use crate::limits::{CONNECTIONS_MAX, LEFT_NAMED_MAX, REQUESTS_PER_TURN, UNHEARD};
use crate::log::{self, Logs, Stream};
use crate::own_log;
use crate::sandbox::Sandbox;
use process::{Phase, Process, ReplyTo};

/// How long no client is accepted after the kernel had no descriptor for one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What a shim begins with.
#[derive(Debug)]
pub(crate) struct Seed {
    /// The pod.
    pub(crate) request: MakeShim,
    /// Where the daemon connects.
    pub(crate) listener: OwnedFd,
    /// Where the shim's own lines go.
    pub(crate) log: Option<OwnedFd>,
}

/// A container: its init and what the shim holds for it.
#[derive(Debug)]
struct Container {
    init: Process,
    namespaces: Namespaces,
    stdin: Option<OwnedFd>,
    /// The container's side of its terminal, held as long as its init lives: a terminal that nobody
    /// has open answers each read with an error, though the init may open it again.
    slave: Option<OwnedFd>,
    /// Read ends and log file, until the init is parked and the log thread gets them.
    output: Option<Output>,
    /// The log thread has not read all output yet.
    output_open: bool,
}

/// A container's output on its way to the log thread.
#[derive(Debug)]
struct Output {
    log: Option<OwnedFd>,
    streams: Vec<(Stream, OwnedFd)>,
}

/// Which process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Init(String),
    Exec(String, String),
}

/// What `poll` can wake the loop for.
#[derive(Debug, Clone)]
enum Source {
    Logs,
    Children,
    Pending(Key),
    Connection(u64),
    Listener,
}

/// The shim's whole state.
#[derive(Debug)]
struct Pod {
    id: String,
    sandbox: Sandbox,
    /// Why there is no sandbox.
    failure: Option<Failure>,
    listener: OwnedFd,
    children: OwnedFd,
    connections: BTreeMap<u64, Connection>,
    containers: BTreeMap<String, Container>,
    execs: BTreeMap<(String, String), Process>,
    /// The last execs that have ended, for a daemon that was away.
    ended_execs: VecDeque<ExecState>,
    logs: Logs,
    /// Who waits for which switch of which container's log file.
    reopening: BTreeMap<u64, (String, ReplyTo)>,
    last_number: u64,
    /// The shim ends then, when nobody has ever said hello: nobody knows of it.
    unheard: Option<Instant>,
    accept_after: Option<Instant>,
    stopping: Option<(ReplyTo, Instant)>,
    ended: bool,
}

/// Runs a shim to its end.
pub(crate) fn run(seed: Seed) -> ExitCode {
    let Seed {
        request,
        listener,
        log,
    } = seed;
    match Pod::new(&request, listener, log) {
        Ok(mut pod) => {
            while !pod.ended {
                pod.turn();
            }
            ExitCode::SUCCESS
        }
        // Nobody is connected yet, and there is no log thread: the daemon sees that the socket that it
        // gave away is closed.
        Err(_) => ExitCode::FAILURE,
    }
}

/// The answer to a shutdown after which these processes are left.
fn stopped(left: &[String]) -> Result<(Body, Fds), Failure> {
    if left.is_empty() {
        return Ok((Body::Done(Done {}), Fds::new()));
    }
    let named = left.iter().take(LEFT_NAMED_MAX).map(String::as_str);
    let named = named.collect::<Vec<_>>().join(", ");
    let more = match left.len().saturating_sub(LEFT_NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let why = format!("{named}{more} did not end after SIGKILL");
    Err(failure::step("shutdown", &why, 0))
}

impl Pod {
    fn new(request: &MakeShim, listener: OwnedFd, log: Option<OwnedFd>) -> Result<Self, Errno> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let children = wharf_sys::signal::child_ends()?;
        let made = Sandbox::make(request);
        let logs = Logs::start(log)?;
        let (sandbox, failure) = match made {
            Ok(sandbox) => (sandbox, None),
            Err(failure) => (Sandbox::none(), Some(failure)),
        };
        Ok(Self {
            id: request.pod_id.clone(),
            sandbox,
            unheard: Some(Instant::now() + UNHEARD),
            failure,
            listener,
            children,
            connections: BTreeMap::new(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            ended_execs: VecDeque::new(),
            logs,
            reopening: BTreeMap::new(),
            last_number: 0,
            accept_after: None,
            stopping: None,
            ended: false,
        })
    }

    /// Waits for something and deals with all that is there.
    fn turn(&mut self) {
        for source in self.wait() {
            match source {
                Source::Logs => self.hear_logs(),
                Source::Pending(key) => self.advance(&key, false),
                Source::Children => self.reap(),
                Source::Connection(number) => self.serve(number),
                Source::Listener => self.accept(),
            }
        }
        let before = self.connections.len();
        self.connections
            .retain(|_, connection| !connection.is_broken());
        if self.connections.len() < before {
            self.say("info", "a client has gone");
        }
        self.mind_deadlines();
    }

    fn wait(&self) -> Vec<Source> {
        let mut sources = Vec::new();
        let mut polled = Vec::new();
        let mut watch = |source, fd, flags| {
            sources.push(source);
            polled.push(PollFd::from_borrowed_fd(fd, flags));
        };
        // In this order: what a process said comes before the news of its end.
        for waker in self.logs.wakers() {
            watch(Source::Logs, waker, PollFlags::IN);
        }
        let inits = self.containers.iter();
        let inits = inits.map(|(id, c)| (&c.init, Key::Init(id.clone())));
        let execs = self.execs.iter();
        let execs = execs.map(|((id, exec), p)| (p, Key::Exec(id.clone(), exec.clone())));
        for (process, key) in inits.chain(execs) {
            if let Some(status) = process.status_fd() {
                watch(Source::Pending(key), status, PollFlags::IN);
            }
        }
        watch(Source::Children, self.children.as_fd(), PollFlags::IN);
        for (number, connection) in &self.connections {
            let out = if connection.is_waiting() {
                PollFlags::OUT
            } else {
                PollFlags::empty()
            };
            watch(
                Source::Connection(*number),
                connection.as_fd(),
                PollFlags::IN | out,
            );
        }
        if self.accept_after.is_none() {
            watch(Source::Listener, self.listener.as_fd(), PollFlags::IN);
        }
        let timeout = self.next_deadline().and_then(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec::try_from(left).ok()
        });
        if poll(&mut polled, timeout.as_ref()).is_err() {
            return Vec::new(); // interrupted
        }
        let ready = polled.iter().map(|fd| !fd.revents().is_empty());
        let ready: Vec<bool> = ready.collect();
        sources
            .into_iter()
            .zip(ready)
            .filter_map(|(source, ready)| ready.then_some(source))
            .collect()
    }

    fn next_deadline(&self) -> Option<Instant> {
        let drains = self
            .containers
            .values()
            .filter_map(|c| match &c.init.phase {
                Phase::Draining(_, until) => Some(*until),
                _ => None,
            });
        let stopping = self.stopping.map(|(_, until)| until);
        drains
            .chain(self.unheard)
            .chain(self.accept_after)
            .chain(stopping)
            .min()
    }

    fn mind_deadlines(&mut self) {
        let now = Instant::now();
        let passed = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if passed(self.unheard) {
            self.ended = true;
        }
        if passed(self.accept_after) {
            self.accept_after = None;
        }
        let drained: Vec<String> = self
            .containers
            .iter()
            .filter(|(_, c)| matches!(&c.init.phase, Phase::Draining(_, until) if *until <= now))
            .map(|(id, _)| id.clone())
            .collect();
        for id in drained {
            self.report_exit(&id);
        }
        let Some((reply, until)) = self.stopping else {
            return;
        };
        let left = self.left();
        let all_told = self
            .containers
            .values()
            .all(|c| matches!(c.init.phase, Phase::Exited(_)));
        if (left.is_empty() && all_told) || until <= now {
            self.stopping = None;
            let answer = stopped(&left);
            if let Err(failure) = &answer {
                self.say("error", &format!("{}: {}", failure.step, failure.object));
            }
            self.answer(reply, answer);
            self.ended = true;
        }
    }

    /// The processes that live, in words.
    fn left(&self) -> Vec<String> {
        let inits = self.containers.iter().filter(|(_, c)| c.init.is_alive());
        let inits = inits.map(|(id, c)| format!("init of container {id} (pid {})", c.init.pid));
        let execs = self.execs.iter();
        let execs = execs.map(|((id, exec), process)| {
            format!("exec {exec} of container {id} (pid {})", process.pid)
        });
        let sandbox = self.sandbox.init().into_iter();
        let sandbox = sandbox.map(|init| format!("the pod's init (pid {})", init.pid));
        inits.chain(execs).chain(sandbox).collect()
    }

    fn accept(&mut self) {
        loop {
            match Connection::accept(&self.listener) {
                Ok(_one_too_many) if self.connections.len() >= CONNECTIONS_MAX => {
                    self.say("warning", "a client was turned away: there are too many");
                }
                Ok(connection) => {
                    let number = self.number();
                    self.connections.insert(number, connection);
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::ACCESS) => {
                    self.say("warning", "a client that is not root was turned away");
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => {
                    self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn serve(&mut self, number: u64) {
        for _ in 0..REQUESTS_PER_TURN {
            let Some(connection) = self.connections.get_mut(&number) else {
                return;
            };
            connection.flush();
            let Received::Message(message, fds) = connection.receive() else {
                return;
            };
            let reply = ReplyTo {
                connection: number,
                id: message.id,
            };
            if let Some(answer) = self.request(reply, message.body, fds).transpose() {
                self.answer(reply, answer);
            }
        }
    }

    fn hear_logs(&mut self) {
        self.logs.relieve();
        for event in self.logs.events() {
            match event {
                log::Event::Ended(id) => self.output_ended(&id),
                log::Event::Reopened(token) => {
                    if let Some((_, reply)) = self.reopening.remove(&token) {
                        self.answer(reply, Ok((Body::Done(Done {}), Fds::new())));
                    }
                }
                log::Event::Gap { container, reason } => {
                    self.warn(&container, format!("output is being lost: {reason}"));
                }
            }
        }
    }

    fn answer(&mut self, to: ReplyTo, answer: Result<(Body, Fds), Failure>) {
        // Whoever asked may have gone.
        let Some(connection) = self.connections.get_mut(&to.connection) else {
            return;
        };
        match answer {
            Ok((body, fds)) => connection.reply(to.id, body, fds),
            Err(failure) => connection.fail(to.id, failure),
        }
    }

    fn broadcast(&mut self, body: &Body) {
        for connection in self.connections.values_mut().filter(|c| c.greeted) {
            let message = Message {
                id: 0,
                fds: Vec::new(),
                body: Some(body.clone()),
            };
            connection.send(message, Fds::new());
        }
    }

    fn warn(&mut self, container: &str, text: String) {
        self.say("warning", &format!("{container}: {text}"));
        self.broadcast(&Body::Warning(Warning {
            container_id: container.to_owned(),
            text,
        }));
    }

    fn say(&self, level: &str, text: &str) {
        self.logs.say(&own_log::line(level, &self.id, text));
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn process_mut(&mut self, key: &Key) -> Option<&mut Process> {
        match key {
            Key::Init(id) => self.containers.get_mut(id).map(|c| &mut c.init),
            Key::Exec(id, exec) => self.execs.get_mut(&(id.clone(), exec.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shutdown_that_leaves_processes_names_them_within_a_bound() {
        stopped(&[]).unwrap();
        let left: Vec<String> = (0..1000).map(|n| format!("init {n}")).collect();
        let why = |count: usize| stopped(&left[..count]).unwrap_err().object;
        assert_eq!(why(2), "init 0, init 1 did not end after SIGKILL");
        assert!(why(1000).ends_with("init 7 and 992 more did not end after SIGKILL"));
    }
}
