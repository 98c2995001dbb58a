//! What clients ask of a shim.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use wharf_plan::container::{ContainerPlan, MountSource, Namespace};
use wharf_plan::message::{
    Body, ContainerRef, ContainerState, Create, Done, Exec, ExecState, Failure, Hello, Resize,
    ShimState, Signal, Warning, Welcome,
};
use wharf_plan::{Fds, PROTOCOL, PROTOCOL_OLDEST};
use wharf_runtime::launch::{self, Park, Pending, Stdio, StepError, Target};
use wharf_sys::mount::Change;

use crate::control::process::{Phase, Process, ReplyTo, SIGKILL};
use crate::control::sockets;
use crate::control::{Container, Output, Pod};
use crate::limits::{CONTAINERS_MAX, EXECS_MAX, ID_MAX, PIPE_BYTES, STOPPING};
use crate::log::Stream;
use crate::{connection, failure, mounts};

/// A mount of the pod's /dev/shm, in `MountPlan::fs_type`.
const POD_SHM: &str = "wharf.shm";
const SIGNAL_MAX: i32 = 64;

/// `None`: the answer comes later.
type Answer = Result<Option<(Body, Fds)>, Failure>;

fn done() -> Answer {
    Ok(Some((Body::Done(Done {}), Fds::new())))
}

impl Pod {
    /// Carries out one request.
    pub(super) fn request(&mut self, reply: ReplyTo, body: Option<Body>, fds: Fds) -> Answer {
        let Some(body) = body else {
            return Err(failure::unknown("shim"));
        };
        if let Body::Hello(hello) = body {
            return self.hello(reply, &hello);
        }
        let connection = self.connections.get(&reply.connection);
        if !connection.is_some_and(|connection| connection.greeted) {
            let why = "a connection begins with Hello";
            return Err(failure::conflict("request", why));
        }
        if self.failure.is_some() {
            return Err(failure::conflict("request", "the pod could not be made"));
        }
        if self.stopping.is_some()
            && matches!(
                body,
                Body::Create(_) | Body::Start(_) | Body::Exec(_) | Body::OpenSocket(_)
            )
        {
            return Err(failure::conflict("request", "the pod is being shut down"));
        }
        match body {
            Body::Create(create) => self.create(reply, create, fds),
            Body::Start(container) => self.start(reply, &container.container_id),
            Body::Signal(signal) => self.signal(&signal),
            Body::Exec(exec) => self.exec(reply, &exec, fds),
            Body::Delete(container) => self.delete(&container.container_id),
            Body::ReopenLog(container) => self.reopen_log(reply, container, fds),
            Body::Resize(resize) => self.resize(&resize),
            Body::CloseStdin(container) => {
                self.container("close stdin", &container.container_id)?
                    .stdin = None;
                done()
            }
            Body::GetState(_) => Ok(Some((Body::ShimState(self.state()), Fds::new()))),
            Body::Shutdown(_) => self.shutdown(reply),
            Body::OpenSocket(asked) => {
                sockets::open(&asked).map(|fds| Some((Body::Done(Done {}), fds)))
            }
            Body::Attach(_) => Err(failure::invalid("attach", "not supported yet")),
            _ => Err(failure::invalid("request", "this is no request to a shim")),
        }
    }

    fn hello(&mut self, reply: ReplyTo, hello: &Hello) -> Answer {
        let welcome = Welcome {
            pod_id: self.id.clone(),
            sandbox_pid: self.sandbox.init().map_or(0, |init| init.pid),
            failure: self.failure.clone(),
            ..connection::welcome(hello)?
        };
        let fds = self.sandbox.descriptors()?;
        self.unheard = None;
        if self.failure.is_some() {
            self.ended = true;
        }
        self.answer(reply, Ok((Body::Welcome(welcome), fds)));
        let warnings = self.sandbox.take_warnings();
        let Some(connection) = self.connections.get_mut(&reply.connection) else {
            return Ok(None);
        };
        connection.greeted = true;
        for text in warnings {
            let container_id = String::new();
            connection.reply(0, Body::Warning(Warning { container_id, text }), Fds::new());
        }
        Ok(None)
    }

    fn create(&mut self, reply: ReplyTo, create: Create, mut fds: Fds) -> Answer {
        let Some(mut plan) = create.plan else {
            return Err(failure::invalid("create", "there is no plan"));
        };
        check_id("create", &plan.id)?;
        if !(PROTOCOL_OLDEST..=PROTOCOL).contains(&plan.version) {
            let why = format!("a plan of version {} is not understood", plan.version);
            return Err(failure::invalid("create", why));
        }
        if self.containers.contains_key(&plan.id) {
            return Err(failure::conflict(
                "create",
                format!("container {} exists", plan.id),
            ));
        }
        if self.containers.len() >= CONTAINERS_MAX {
            let why = format!("the pod has {CONTAINERS_MAX} containers, the most there can be");
            return Err(failure::conflict("create", why));
        }
        let Some(process) = &plan.process else {
            return Err(failure::invalid("create", "the plan has no process"));
        };
        let terminal = process.terminal;
        let log = fds.take("log");
        self.place_shm(&mut plan, &mut fds)?;
        self.join_pid_namespace(&mut plan, &mut fds)?;
        let (stdio, held) = stdio(terminal, create.stdin)?;
        let made = launch::create(&plan, fds, stdio, Park::Socket);
        let pending = self.launched(made)?;
        let container = Container {
            init: Process::launching(pending, reply)?,
            namespaces: plan.namespaces.unwrap_or_default(),
            stdin: held.stdin,
            slave: None,
            output: Some(Output {
                log,
                streams: held.output,
            }),
            output_open: false,
        };
        self.containers.insert(plan.id, container);
        Ok(None)
    }

    /// What came of a launch. A shim that could not come back from a container's PID namespace would
    /// make every further process there: it ends, and the daemon takes the pod down.
    fn launched(&mut self, made: Result<Pending, StepError>) -> Result<Pending, Failure> {
        made.map_err(|error| {
            self.ended |= error.caller_must_end();
            failure::launch(&error)
        })
    }

    /// Turns mounts of the pod's /dev/shm into binds of a copy, in the right place among the others.
    fn place_shm(&self, plan: &mut ContainerPlan, fds: &mut Fds) -> Result<(), Failure> {
        if plan.mounts.iter().all(|mount| mount.fs_type != POD_SHM) {
            return Ok(());
        }
        if !self.sandbox.has_shm() {
            let why = "the pod shares the host's IPC namespace: bind the host's /dev/shm";
            return Err(failure::invalid("create", why));
        }
        let mut given = fds.take_all("bind").into_iter();
        for mount in &mut plan.mounts {
            let source = if mount.fs_type == POD_SHM {
                let shm = mounts::clone_shm()?;
                let change = Change {
                    set: mount.attributes,
                    ..Change::default()
                };
                wharf_sys::mount::set_attributes(&shm, &change, false)
                    .map_err(failure::errno("mount_setattr", POD_SHM))?;
                mount.source = MountSource::Bind.into();
                mount.options.clear();
                Some(shm)
            } else if mount.source == i32::from(MountSource::Bind) {
                given.next()
            } else {
                continue;
            };
            fds.push(
                "bind",
                source.ok_or_else(|| failure::invalid("create", "a bind has no source"))?,
            );
        }
        Ok(())
    }

    /// Turns "the pod's PID namespace" into joining the one that this shim holds.
    fn join_pid_namespace(&self, plan: &mut ContainerPlan, fds: &mut Fds) -> Result<(), Failure> {
        let Some(namespaces) = &mut plan.namespaces else {
            return Ok(());
        };
        if namespaces.pid != i32::from(Namespace::Pod) {
            return Ok(());
        }
        let Some(init) = self.sandbox.init() else {
            let why = "the pod's shared PID namespace was never made or has ended";
            return Err(failure::conflict("create", why));
        };
        let namespace = init.namespace().try_clone_to_owned();
        fds.push("ns.pid", namespace.map_err(failure::io("dup", "ns.pid"))?);
        namespaces.pid = Namespace::Join.into();
        Ok(())
    }

    fn start(&mut self, reply: ReplyTo, id: &str) -> Answer {
        let container = self.container("start", id)?;
        match std::mem::replace(&mut container.init.phase, Phase::Running) {
            Phase::Parked(mut pending) => {
                let released = pending.release().map_err(|e| failure::launch(&e));
                container.init.phase = match released {
                    Ok(()) => Phase::Starting(pending, reply),
                    Err(_) => Phase::Parked(pending), // most likely it was killed: its end follows
                };
                released.map(|()| None)
            }
            other => {
                let state = match &other {
                    Phase::Launching(..) => "is still being made",
                    Phase::Starting(..) | Phase::Running | Phase::Parked(_) => "was started before",
                    Phase::Draining(..) | Phase::Exited(_) => "has exited",
                };
                container.init.phase = other;
                Err(failure::conflict(
                    "start",
                    format!("container {id} {state}"),
                ))
            }
        }
    }

    fn signal(&mut self, asked: &Signal) -> Answer {
        let (id, exec) = (&asked.container_id, &asked.exec_id);
        if !(1..=SIGNAL_MAX).contains(&asked.signal) {
            return Err(failure::invalid(
                "signal",
                format!("{} is no signal", asked.signal),
            ));
        }
        self.target("signal", id, exec)?.signal(asked.signal)?;
        done()
    }

    fn exec(&mut self, reply: ReplyTo, exec: &Exec, mut fds: Fds) -> Answer {
        let (id, exec_id) = (&exec.container_id, &exec.exec_id);
        check_id("exec", exec_id)?;
        let Some(process) = &exec.process else {
            return Err(failure::invalid("exec", "there is no process"));
        };
        let key = (id.clone(), exec_id.clone());
        if self.execs.contains_key(&key) {
            return Err(failure::conflict(
                "exec",
                format!("exec {exec_id} of container {id} exists"),
            ));
        }
        if self.execs.len() >= EXECS_MAX {
            let why = format!("the pod runs {EXECS_MAX} execs, the most there can be");
            return Err(failure::conflict("exec", why));
        }
        let container = self.container("exec", id)?;
        if !matches!(container.init.phase, Phase::Running) {
            return Err(failure::conflict(
                "exec",
                format!("container {id} is not running"),
            ));
        }
        let stdio = Stdio {
            stdin: fds.take("stdin"),
            stdout: fds.take("stdout"),
            stderr: fds.take("stderr"),
        };
        let target = Target {
            pidfd: container.init.pidfd.as_fd(),
            namespaces: container.namespaces,
        };
        let made = launch::exec(target, process, fds, stdio);
        let pending = self.launched(made)?;
        let process = Process::launching(pending, reply)?;
        self.execs.insert(key, process);
        Ok(None)
    }

    fn delete(&mut self, id: &str) -> Answer {
        let container = self.container("delete", id)?;
        if !matches!(container.init.phase, Phase::Exited(_)) {
            let why = format!("container {id} has not exited: kill it first");
            return Err(failure::conflict("delete", why));
        }
        self.containers.remove(id);
        self.ended_execs.retain(|exec| exec.container_id != id);
        self.logs.remove(id);
        // Its log thread may be held up by a disk, and would tell nobody afterwards.
        let waiting = self.reopening.extract_if(.., |_, (of, _)| of == id);
        let waiting: Vec<ReplyTo> = waiting.map(|(_, (_, reply))| reply).collect();
        for reply in waiting {
            let why = format!("container {id} was deleted before its log was switched");
            self.answer(reply, Err(failure::conflict("reopen log", why)));
        }
        // With the host's or the pod's PID namespace, execs can outlive their container.
        let execs = self.execs.iter().filter(|((of, _), _)| of == id);
        kill_all(execs.map(|(_, exec)| exec))?;
        done()
    }

    fn reopen_log(&mut self, reply: ReplyTo, container: ContainerRef, mut fds: Fds) -> Answer {
        let id = container.container_id;
        self.container("reopen log", &id)?;
        let Some(file) = fds.take("log") else {
            return Err(failure::invalid(
                "reopen log",
                "the descriptor log is missing",
            ));
        };
        let token = self.number();
        if self.logs.reopen(&id, file, token).is_err() {
            let why = format!("container {id} is still being made, or too many switches wait");
            return Err(failure::conflict("reopen log", why));
        }
        self.reopening.insert(token, (id, reply));
        Ok(None)
    }

    fn resize(&mut self, asked: &Resize) -> Answer {
        let (id, exec) = (&asked.container_id, &asked.exec_id);
        let size = asked.size.unwrap_or_default();
        let (Ok(rows), Ok(columns)) = (u16::try_from(size.height), u16::try_from(size.width))
        else {
            return Err(failure::invalid(
                "resize",
                "a terminal has at most 65535 rows and columns",
            ));
        };
        let Some(terminal) = &self.target("resize", id, exec)?.terminal else {
            return Err(failure::conflict(
                "resize",
                format!("container {id} has no terminal now"),
            ));
        };
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(terminal, size).map_err(failure::errno("resize", id))?;
        done()
    }

    fn state(&self) -> ShimState {
        let containers = self
            .containers
            .iter()
            .map(|(id, container)| ContainerState {
                container_id: id.clone(),
                pid: container.init.pid,
                started: !matches!(
                    container.init.phase,
                    Phase::Launching(..) | Phase::Parked(_)
                ),
                exited: match &container.init.phase {
                    Phase::Exited(exited) => Some(exited.clone()),
                    _ => None,
                },
            });
        let living = self.execs.iter().map(|((id, exec), process)| ExecState {
            container_id: id.clone(),
            exec_id: exec.clone(),
            pid: process.pid,
            exited: None,
        });
        let ended = self.ended_execs.iter().cloned();
        ShimState {
            containers: containers.collect(),
            execs: living.chain(ended).collect(),
        }
    }

    fn shutdown(&mut self, reply: ReplyTo) -> Answer {
        if self.stopping.is_some() {
            return Err(failure::conflict("shutdown", "it is under way"));
        }
        let inits = self
            .containers
            .values()
            .map(|c| &c.init)
            .filter(|init| init.is_alive());
        let killed = kill_all(inits.chain(self.execs.values()));
        let init = self.sandbox.init().map_or(Ok(()), |init| {
            wharf_sys::signal::send(&init.pidfd, SIGKILL)
                .map_err(failure::errno("signal", "the pod's init"))
        });
        killed.and(init)?;
        self.stopping = Some((reply, Instant::now() + STOPPING));
        Ok(None)
    }

    fn container(&mut self, request: &str, id: &str) -> Result<&mut Container, Failure> {
        self.containers
            .get_mut(id)
            .ok_or_else(|| failure::not_found(request, format!("container {id} does not exist")))
    }

    fn target(&mut self, request: &str, id: &str, exec: &str) -> Result<&Process, Failure> {
        if exec.is_empty() {
            return Ok(&self.container(request, id)?.init);
        }
        self.execs
            .get(&(id.to_owned(), exec.to_owned()))
            .ok_or_else(|| {
                failure::not_found(request, format!("container {id} has no exec {exec}"))
            })
    }
}

/// Kills each of them, also after one could not be; gives the first error.
fn kill_all<'a>(processes: impl Iterator<Item = &'a Process>) -> Result<(), Failure> {
    let mut all = Ok(());
    for process in processes {
        all = all.and(process.signal(SIGKILL));
    }
    all
}

fn check_id(request: &str, id: &str) -> Result<(), Failure> {
    if id.is_empty() || id.len() > ID_MAX {
        return Err(failure::invalid(
            request,
            format!("an id has 1 to {ID_MAX} bytes"),
        ));
    }
    Ok(())
}

/// The ends of a container's pipes that stay here.
struct Held {
    stdin: Option<OwnedFd>,
    output: Vec<(Stream, OwnedFd)>,
}

/// Pipes for a container's output, and for its input when that is wanted; a terminal needs none.
fn stdio(terminal: bool, stdin: bool) -> Result<(Stdio, Held), Failure> {
    let (mut theirs, mut held) = (
        Stdio {
            stdin: None,
            stdout: None,
            stderr: None,
        },
        Held {
            stdin: None,
            output: Vec::new(),
        },
    );
    if terminal {
        return Ok((theirs, held));
    }
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(failure::errno("pipe", "stdio"));
    if stdin {
        let (read, write) = pipe()?;
        theirs.stdin = Some(read);
        held.stdin = Some(write);
    }
    for stream in [Stream::Stdout, Stream::Stderr] {
        let (read, write) = pipe()?;
        rustix::io::ioctl_fionbio(&read, true).map_err(failure::errno("ioctl", "stdio"))?;
        // Refused when too much memory lies in pipes: then it stays as it is.
        let _default: Result<usize, Errno> = fcntl_setpipe_size(&read, PIPE_BYTES);
        held.output.push((stream, read));
        match stream {
            Stream::Stdout => theirs.stdout = Some(write),
            Stream::Stderr => theirs.stderr = Some(write),
        }
    }
    Ok((theirs, held))
}
