//! What children say on their way to their programs, and how they end.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus, wait};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use wharf_plan::Fds;
use wharf_plan::message::{Body, Created, Done, ExecState, Exited, Failure};
use wharf_runtime::launch::Progress;

use crate::clock;
use crate::control::process::{Phase, SIGKILL};
use crate::control::{Key, Output, Pod};
use crate::failure;
use crate::limits::{DRAIN, EXEC_ENDS_MAX};
use crate::log::Stream;

impl Pod {
    /// Follows a process that is being made or started. With `last` it has ended.
    pub(super) fn advance(&mut self, key: &Key, last: bool) {
        let Some(process) = self.process_mut(key) else {
            return;
        };
        let launching = matches!(process.phase, Phase::Launching(..));
        let Some((reply, outcome)) = process.progress(last) else {
            return;
        };
        let (parked, terminal, warnings) = match outcome {
            Ok(Progress::Parked { terminal, warnings }) => (true, terminal, warnings),
            Ok(Progress::Executed { terminal, warnings }) => (false, terminal, warnings),
            Err(failure) => {
                if launching {
                    // It ends by itself and is reaped as a stranger.
                    self.forget(key);
                } else {
                    process.go_on(false); // its end will be reported like any other
                }
                self.answer(reply, Err(failure));
                return;
            }
        };
        process.go_on(parked);
        let answer = if launching {
            self.made(key, terminal)
        } else {
            Ok((Body::Done(Done {}), Fds::new()))
        };
        if let (Err(_), Some(process)) = (&answer, self.process_mut(key)) {
            // Who asked will not hear of it again, so it goes; it is reaped as a stranger.
            drop(process.signal(SIGKILL));
            self.forget(key);
        }
        self.answer(reply, answer);
        let (Key::Init(id) | Key::Exec(id, _)) = key;
        for text in warnings {
            self.warn(id, text);
        }
    }

    fn forget(&mut self, key: &Key) {
        match key {
            Key::Init(id) => drop(self.containers.remove(id)),
            Key::Exec(id, exec) => drop(self.execs.remove(&(id.clone(), exec.clone()))),
        }
    }

    /// A process was made: hands its output to the log thread, or its terminal to the caller.
    fn made(&mut self, key: &Key, terminal: Option<OwnedFd>) -> Result<(Body, Fds), Failure> {
        let mut fds = Fds::new();
        let copy = |fd: &OwnedFd, name| fd.try_clone().map_err(failure::io("dup", name));
        if let (Key::Init(id), Some(master)) = (key, &terminal)
            && let Some(container) = self.containers.get_mut(id)
            && let Some(Output { streams, .. }) = &mut container.output
        {
            let reader = copy(master, "terminal")?;
            rustix::io::ioctl_fionbio(&reader, true)
                .map_err(failure::errno("ioctl", "terminal"))?;
            streams.push((Stream::Stdout, reader));
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let slave = ioctl_tiocgptpeer(master, flags);
            container.slave =
                Some(slave.map_err(failure::errno("ioctl(TIOCGPTPEER)", "terminal"))?);
        }
        if let (Key::Exec(..), Some(master)) = (key, &terminal) {
            fds.push("terminal", copy(master, "terminal")?);
        }
        let Some(process) = self.process_mut(key) else {
            return Err(failure::not_found("make", "the process has gone"));
        };
        process.terminal = terminal;
        let pid = process.pid;
        fds.push("pidfd", copy(&process.pidfd, "pidfd")?);
        if let Key::Init(id) = key
            && let Some(container) = self.containers.get_mut(id)
            && let Some(Output { log, streams }) = container.output.take()
        {
            container.output_open = !streams.is_empty();
            self.logs.add(id, log, streams);
        }
        Ok((Body::Created(Created { pid }), fds))
    }

    /// Waits for every child that has ended: the pod's processes, and strangers (orphans of
    /// containers that share the host's PID namespace, and processes whose making failed).
    pub(super) fn reap(&mut self) {
        let mut signals = [0; 128];
        while rustix::io::read(&self.children, &mut signals).is_ok() {}
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let pid = pid.as_raw_nonzero().get();
                    self.ended(u32::try_from(pid).unwrap_or(0), status);
                }
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn ended(&mut self, pid: u32, status: WaitStatus) {
        if self.sandbox.init().is_some_and(|init| init.pid == pid) {
            self.sandbox.init_ended();
            self.say("info", "the pod's PID namespace has ended");
            self.broadcast(&Body::SandboxEnded(Done {}));
            return;
        }
        let Some(key) = self.living(pid) else {
            return;
        };
        self.advance(&key, true);
        // A process whose making failed is forgotten by now.
        if self.process_mut(&key).is_none() {
            return;
        }
        let exited = exited(&key, status);
        match &key {
            Key::Exec(..) => {
                self.forget(&key);
                if self.ended_execs.len() >= EXEC_ENDS_MAX {
                    self.ended_execs.pop_front();
                }
                self.ended_execs.push_back(ExecState {
                    container_id: exited.container_id.clone(),
                    exec_id: exited.exec_id.clone(),
                    pid,
                    exited: Some(exited.clone()),
                });
                self.broadcast(&Body::Exited(exited));
            }
            Key::Init(id) => {
                let Some(container) = self.containers.get_mut(id) else {
                    return;
                };
                container.stdin = None;
                container.slave = None;
                container.init.terminal = None;
                container.init.phase = Phase::Draining(exited, Instant::now() + DRAIN);
                if !container.output_open {
                    self.report_exit(id);
                }
            }
        }
    }

    fn living(&self, pid: u32) -> Option<Key> {
        let init = self
            .containers
            .iter()
            .find(|(_, c)| c.init.pid == pid && c.init.is_alive())
            .map(|(id, _)| Key::Init(id.clone()));
        init.or_else(|| {
            let mut execs = self.execs.iter();
            let ((id, exec), _) = execs.find(|(_, process)| process.pid == pid)?;
            Some(Key::Exec(id.clone(), exec.clone()))
        })
    }

    /// All output of a container was read and written.
    pub(super) fn output_ended(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        container.output_open = false;
        if matches!(container.init.phase, Phase::Draining(..)) {
            self.report_exit(id);
        }
    }

    /// Tells everybody that a container has ended, and keeps it for those who come later.
    pub(super) fn report_exit(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Phase::Draining(exited, _) = &container.init.phase else {
            return;
        };
        let exited = exited.clone();
        container.init.phase = Phase::Exited(exited.clone());
        self.broadcast(&Body::Exited(exited));
    }
}

fn exited(key: &Key, status: WaitStatus) -> Exited {
    let (id, exec) = match key {
        Key::Init(id) => (id.clone(), String::new()),
        Key::Exec(id, exec) => (id.clone(), exec.clone()),
    };
    let signal = status.terminating_signal().unwrap_or(0);
    Exited {
        container_id: id,
        exec_id: exec,
        code: status.exit_status().unwrap_or(128 + signal),
        signal,
        at_ns: clock::realtime_ns(),
    }
}
