//! A connection to a shim or to the zygote: requests answered by id, events passed on.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, oneshot};
use wharf_plan::message::{Body, Exited, Failure, FailureKind, Message};
use wharf_plan::{Channel, ChannelError, Fds};
use wharf_sys::fault::point;
use wharf_types::{ContainerId, Kind};

use super::watch::watch;
use crate::error::io_kind;
use crate::limits::SHIM_ANSWER;
use crate::world::{ShimEvent, StepFailure};

/// A request to a shim or zygote failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum LinkError {
    /// The other side refused or could not do it.
    #[error("{}", failure_text(.0))]
    Failed(Failure),
    /// The connection is gone.
    #[error("the connection to the {0} was lost")]
    Lost(&'static str),
    /// No answer in time.
    #[error("the {peer} did not answer within {seconds} s")]
    Silent {
        /// `shim` or `zygote`.
        peer: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// The message could not be sent.
    #[error("cannot send to the {peer}")]
    Send {
        /// `shim` or `zygote`.
        peer: &'static str,
        /// Why.
        source: ChannelError,
    },
    /// The connection could not be made.
    #[error("{call}")]
    Connect {
        /// The system call.
        call: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A shim of a release that is not understood any more.
    #[error(
        "the shim is of wharf {version} and speaks protocol {theirs}, and this wharf knows {oldest} and \
         later: its containers can be stopped; to make new ones, remove the pod and run it again"
    )]
    TooOld {
        /// The version of its program.
        version: String,
        /// The protocol that it speaks.
        theirs: u32,
        /// The oldest one that is understood.
        oldest: u32,
    },
    /// An answer that does not belong to the question.
    #[error("the {0} gave an answer of the wrong kind")]
    Unexpected(&'static str),
}

/// ENOENT.
const ENOENT: i32 = 2;
/// ENOEXEC, EACCES, ENOTDIR, ELOOP, EISDIR: the image or the request is to blame.
const BLAME_REQUEST: [i32; 5] = [8, 13, 20, 40, 21];
/// ENOSPC, EDQUOT, EMFILE, ENFILE, ENOMEM, EAGAIN.
const EXHAUSTED: [i32; 6] = [28, 122, 24, 23, 12, 11];

impl LinkError {
    /// The class of the failure.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Failed(failure) => match FailureKind::try_from(failure.kind) {
                Ok(FailureKind::NotFound) => Kind::NotFound,
                Ok(FailureKind::Conflict) => Kind::Conflict,
                Ok(FailureKind::Unsupported) => Kind::Unsupported,
                Ok(FailureKind::Step) if failure.errno == ENOENT => Kind::Invalid,
                Ok(FailureKind::Step) if BLAME_REQUEST.contains(&failure.errno) => Kind::Invalid,
                Ok(FailureKind::Step) if EXHAUSTED.contains(&failure.errno) => Kind::Exhausted,
                _ => Kind::Internal,
            },
            // A refused connection is the peer's state; want of descriptors is ours.
            Self::Connect { source, .. } if io_kind(source) == Kind::Exhausted => Kind::Exhausted,
            Self::Lost(_) | Self::Silent { .. } | Self::Connect { .. } => Kind::Unavailable,
            Self::TooOld { .. } => Kind::Unsupported,
            Self::Send { .. } | Self::Unexpected(_) => Kind::Internal,
        }
    }

    /// Whether the shim says that it does not have what was meant.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Failed(f) if f.kind == i32::from(FailureKind::NotFound))
    }

    /// As the failure of a step.
    pub(crate) fn at(self, stage: &'static str) -> StepFailure {
        StepFailure::new(stage, self.kind(), self)
    }
}

fn failure_text(failure: &Failure) -> String {
    match failure.errno {
        0 => format!("{} {}", failure.step, failure.object),
        errno => {
            let reason = io::Error::from_raw_os_error(errno);
            format!("{} {}: {reason}", failure.step, failure.object)
        }
    }
}

/// Makes a channel pollable.
#[derive(Debug)]
struct Socket(Channel);

impl AsRawFd for Socket {
    #[expect(clippy::disallowed_types, reason = "the trait that tokio asks for")]
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

type Answer = (Body, Fds);

#[derive(Debug, Default)]
struct Waiting {
    replies: HashMap<u64, oneshot::Sender<Answer>>,
    execs: HashMap<String, oneshot::Sender<Exited>>,
}

#[derive(Debug)]
struct Inner {
    peer: &'static str,
    socket: AsyncFd<Socket>,
    waiting: Mutex<Waiting>,
    next: AtomicU64,
    lost: AtomicBool,
    /// We close it ourselves: its end is nobody's loss.
    closing: AtomicBool,
    events: Option<mpsc::Sender<ShimEvent>>,
    lost_notice: Notify,
}

/// A connection. Cheap to clone; it closes with the last clone and the last exec that is waited for.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    inner: Arc<Inner>,
    _open: Arc<Open>,
}

impl Link {
    /// Over a connected, non-blocking socket. `events` gets what comes without being asked for, and
    /// `Lost` at the end.
    ///
    /// # Errors
    ///
    /// The socket cannot be watched.
    pub(crate) fn new(
        peer: &'static str,
        socket: OwnedFd,
        events: Option<mpsc::Sender<ShimEvent>>,
    ) -> Result<Self, LinkError> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        let socket =
            watch(Socket(Channel::new(socket)), interest).map_err(|source| LinkError::Connect {
                call: "epoll_ctl",
                source,
            })?;
        let inner = Arc::new(Inner {
            peer,
            socket,
            waiting: Mutex::default(),
            next: AtomicU64::new(1),
            lost: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            events,
            lost_notice: Notify::new(),
        });
        tokio::spawn(receive(inner.clone()));
        let _open = Arc::new(Open(inner.clone()));
        Ok(Self { inner, _open })
    }

    /// Whether the connection has ended.
    pub(crate) fn is_lost(&self) -> bool {
        self.inner.lost.load(Ordering::Acquire)
    }

    /// Waits until the connection has ended.
    pub(crate) async fn lost(&self) {
        let notice = self.inner.lost_notice.notified();
        tokio::pin!(notice);
        notice.as_mut().enable();
        if !self.is_lost() {
            notice.await;
        }
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    ///
    /// [`LinkError`]. A request whose answer was not waited for is carried out all the same.
    pub(crate) async fn call(
        &self,
        body: Body,
        fds: Fds,
        within: Duration,
    ) -> Result<Answer, LinkError> {
        let peer = self.inner.peer;
        let asked = async {
            let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
            let (sender, answer) = oneshot::channel();
            self.inner.waiting().replies.insert(id, sender);
            let forget = Forget {
                inner: &self.inner,
                id,
            };
            if self.is_lost() {
                return Err(LinkError::Lost(peer));
            }
            self.send(
                Message {
                    id,
                    fds: Vec::new(),
                    body: Some(body),
                },
                &fds,
            )
            .await?;
            drop(fds);
            point("ask shim: request sent").map_err(|source| LinkError::Connect {
                call: "send",
                source,
            })?;
            let answer = answer.await.map_err(|_closed| LinkError::Lost(peer));
            drop(forget);
            answer
        };
        match tokio::time::timeout(within, asked).await {
            Ok(Ok((Body::Failed(failure), _))) => Err(LinkError::Failed(failure)),
            Ok(answer) => answer,
            Err(_elapsed) => {
                // A caller in a hurry says nothing about the shim.
                if within >= SHIM_ANSWER {
                    self.inner.tell_silent();
                }
                let seconds = within.as_secs();
                Err(LinkError::Silent { peer, seconds })
            }
        }
    }

    /// As [`Link::call`], where nothing but "done" is expected.
    pub(crate) async fn done(
        &self,
        body: Body,
        fds: Fds,
        within: Duration,
    ) -> Result<(), LinkError> {
        match self.call(body, fds, within).await? {
            (Body::Done(_), _) => Ok(()),
            _ => Err(LinkError::Unexpected(self.inner.peer)),
        }
    }

    /// Tells when this exec has ended. To be called before it is begun: it may be over soon.
    pub(crate) fn expect_exec(&self, exec_id: &str) -> ExecEnded {
        let (sender, ended) = oneshot::channel();
        self.inner
            .waiting()
            .execs
            .insert(exec_id.to_owned(), sender);
        ExecEnded {
            link: self.clone(),
            exec_id: exec_id.to_owned(),
            ended,
        }
    }

    async fn send(&self, message: Message, fds: &Fds) -> Result<(), LinkError> {
        let peer = self.inner.peer;
        loop {
            match self.inner.socket.get_ref().0.send(message.clone(), fds) {
                Ok(()) => return Ok(()),
                Err(ChannelError::Closed) => return Err(LinkError::Lost(peer)),
                Err(ChannelError::WouldBlock) => {
                    let ready = self.inner.socket.writable().await;
                    let mut ready = ready.map_err(|source| LinkError::Connect {
                        call: "poll",
                        source,
                    })?;
                    ready.clear_ready();
                }
                Err(source) => return Err(LinkError::Send { peer, source }),
            }
        }
    }
}

/// Somebody can ask or waits; the last one to go closes the connection. Apart from what the receiving
/// task holds, which lives until it is closed.
#[derive(Debug)]
struct Open(Arc<Inner>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closing.store(true, Ordering::Release);
        let socket = &self.0.socket.get_ref().0;
        // Wakes the receiving task with an end of file.
        if let Err(e) = rustix::net::shutdown(socket.as_fd(), rustix::net::Shutdown::Both) {
            tracing::debug!(error = %e, "shutdown");
        }
    }
}

/// Forgets a request that nobody waits for any more.
struct Forget<'a> {
    inner: &'a Inner,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.inner.waiting().replies.remove(&self.id);
    }
}

/// The end of an exec, to be waited for.
#[derive(Debug)]
pub(crate) struct ExecEnded {
    link: Link,
    exec_id: String,
    ended: oneshot::Receiver<Exited>,
}

impl ExecEnded {
    /// Waits for it.
    ///
    /// # Errors
    ///
    /// The connection was lost first.
    pub(crate) async fn wait(&mut self) -> Result<Exited, LinkError> {
        let ended = (&mut self.ended).await;
        ended.map_err(|_closed| LinkError::Lost(self.link.inner.peer))
    }
}

impl Drop for ExecEnded {
    fn drop(&mut self) {
        self.link.inner.waiting().execs.remove(&self.exec_id);
    }
}

impl Inner {
    fn tell_silent(&self) {
        if let Some(events) = &self.events {
            // A driver with so much to do hears of it the next time.
            events.try_send(ShimEvent::Silent).ok();
        }
    }

    // Held for map operations only.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Receives until the connection ends; then everybody who waits is told by a closed channel.
async fn receive(inner: Arc<Inner>) {
    while let Ok(mut ready) = inner.socket.readable().await {
        match inner.socket.get_ref().0.receive() {
            Ok((message, fds)) => dispatch(&inner, message, fds).await,
            Err(ChannelError::WouldBlock) => ready.clear_ready(),
            Err(ChannelError::Malformed(what)) => {
                tracing::warn!(peer = inner.peer, what, "malformed message");
            }
            // Ours are used up: only what this answer was for has failed, not the peer.
            Err(ChannelError::OutOfDescriptors { id }) => {
                let failure = Failure {
                    step: "receive descriptors".to_owned(),
                    object: inner.peer.to_owned(),
                    errno: rustix::io::Errno::MFILE.raw_os_error(),
                    kind: FailureKind::Step.into(),
                };
                let body = Some(Body::Failed(failure));
                let fds = Vec::new();
                dispatch(&inner, Message { id, fds, body }, Fds::new()).await;
            }
            Err(ChannelError::Closed) => break,
            Err(e) => {
                tracing::warn!(peer = inner.peer, error = %e, "the connection failed");
                break;
            }
        }
    }
    inner.lost.store(true, Ordering::Release);
    *inner.waiting() = Waiting::default();
    inner.lost_notice.notify_waiters();
    if let Some(events) = &inner.events
        && !inner.closing.load(Ordering::Acquire)
    {
        // Nobody drives the pod any more: fine.
        events.send(ShimEvent::Lost).await.ok();
    }
}

async fn dispatch(inner: &Inner, message: Message, fds: Fds) {
    let Some(body) = message.body else {
        return tracing::debug!(
            peer = inner.peer,
            "a message of a kind that is not known yet"
        );
    };
    if message.id != 0 {
        let waiter = inner.waiting().replies.remove(&message.id);
        if let Some(waiter) = waiter {
            // Whoever asked has gone: its descriptors close here.
            drop(waiter.send((body, fds)));
        }
        return;
    }
    let event = match body {
        Body::Exited(exited) if !exited.exec_id.is_empty() => {
            if let Some(waiter) = inner.waiting().execs.remove(&exited.exec_id) {
                drop(waiter.send(exited));
            }
            return;
        }
        Body::Exited(exited) => match exited.container_id.parse::<ContainerId>() {
            Ok(container) => ShimEvent::Exited {
                container,
                code: exited.code,
                signal: exited.signal,
                at_ns: exited.at_ns,
            },
            Err(e) => return tracing::warn!(error = %e, "an exit without a container"),
        },
        Body::Warning(w) => ShimEvent::Warning {
            container: w.container_id.parse().ok(),
            text: w.text,
        },
        Body::SandboxEnded(_) => ShimEvent::SandboxEnded,
        _ => return tracing::debug!(peer = inner.peer, "a message that is no event"),
    };
    if let Some(events) = &inner.events {
        events.send(event).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    use wharf_plan::message::{ContainerRef, Created, Done, Exec};

    const WITHIN: Duration = Duration::from_secs(5);

    /// A shim for tests: what it was asked, and a channel to answer by.
    struct Shim(Arc<Channel>);

    impl Shim {
        async fn next(&self) -> (Message, Fds) {
            let channel = self.0.clone();
            tokio::task::spawn_blocking(move || channel.receive().unwrap())
                .await
                .unwrap()
        }

        fn say(&self, id: u64, body: Body) {
            self.0
                .send(
                    Message {
                        id,
                        fds: Vec::new(),
                        body: Some(body),
                    },
                    &Fds::new(),
                )
                .unwrap();
        }
    }

    fn pair(events: Option<mpsc::Sender<ShimEvent>>) -> (Link, Shim) {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .unwrap();
        rustix::io::ioctl_fionbio(&ours, true).unwrap();
        let link = Link::new("shim", ours, events).unwrap();
        (link, Shim(Arc::new(Channel::new(theirs))))
    }

    fn start() -> Body {
        Body::Start(ContainerRef {
            container_id: "c".to_owned(),
        })
    }

    #[tokio::test]
    async fn answers_find_their_questions_in_any_order() {
        let (link, shim) = pair(None);
        let ask = || {
            let link = link.clone();
            tokio::spawn(async move { link.call(start(), Fds::new(), WITHIN).await })
        };
        let (a, b) = (ask(), ask());
        let (first, second) = (shim.next().await.0, shim.next().await.0);
        shim.say(second.id, Body::Created(Created { pid: 2 }));
        shim.say(999, Body::Done(Done {}));
        shim.say(first.id, Body::Created(Created { pid: 1 }));
        let mut pids = Vec::new();
        for asked in [a, b] {
            match asked.await.unwrap().unwrap().0 {
                Body::Created(created) => pids.push(created.pid),
                other => panic!("{other:?}"),
            }
        }
        pids.sort_unstable();
        assert_eq!(pids, [1, 2]);
    }

    #[tokio::test]
    async fn a_refusal_names_step_object_and_reason() {
        let (link, shim) = pair(None);
        let asked = tokio::spawn({
            let link = link.clone();
            async move { link.done(start(), Fds::new(), WITHIN).await }
        });
        let id = shim.next().await.0.id;
        let failure = Failure {
            step: "execve".to_owned(),
            object: "/bin/nosuch".to_owned(),
            errno: ENOENT,
            kind: FailureKind::Step.into(),
        };
        shim.say(id, Body::Failed(failure));
        let e = asked.await.unwrap().unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid);
        assert!(
            e.to_string()
                .starts_with("execve /bin/nosuch: No such file"),
            "{e}"
        );
    }

    #[tokio::test]
    async fn everybody_is_told_when_the_connection_ends() {
        let (events, mut told) = mpsc::channel(8);
        let (link, shim) = pair(Some(events));
        let mut ended = link.expect_exec("e");
        let asked = tokio::spawn({
            let link = link.clone();
            async move { link.done(start(), Fds::new(), WITHIN).await }
        });
        drop(shim.next().await);
        drop(shim);
        assert!(matches!(asked.await.unwrap(), Err(LinkError::Lost(_))));
        assert!(matches!(ended.wait().await, Err(LinkError::Lost(_))));
        assert_eq!(told.recv().await, Some(ShimEvent::Lost));
        link.lost().await;
        let late = link.done(start(), Fds::new(), WITHIN).await;
        assert!(matches!(late, Err(LinkError::Lost(_))), "{late:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_shim_holds_nobody_longer_than_the_limit() {
        let (link, shim) = pair(None);
        let e = link.done(start(), Fds::new(), WITHIN).await.unwrap_err();
        assert_eq!(
            (e.to_string(), e.kind()),
            (
                "the shim did not answer within 5 s".to_owned(),
                Kind::Unavailable
            )
        );
        // Nothing is kept of a question that nobody waits for.
        assert!(link.inner.waiting().replies.is_empty());
        drop(shim);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_told_and_a_connection_that_we_close_is_nobodys_loss() {
        let (events, mut told) = mpsc::channel(8);
        let (link, shim) = pair(Some(events));
        link.done(start(), Fds::new(), WITHIN).await.unwrap_err();
        link.done(start(), Fds::new(), SHIM_ANSWER)
            .await
            .unwrap_err();
        assert_eq!(told.recv().await, Some(ShimEvent::Silent));
        drop(link);
        assert_eq!(told.recv().await, None);
        drop(shim);
    }

    #[tokio::test]
    async fn ends_of_execs_and_of_containers_go_to_those_who_wait() {
        let (events, mut told) = mpsc::channel(8);
        let (link, shim) = pair(Some(events));
        let mut ended = link.expect_exec("e");
        let exited = |container_id: &str, exec_id: &str, code| {
            Body::Exited(Exited {
                container_id: container_id.to_owned(),
                exec_id: exec_id.to_owned(),
                code,
                signal: 0,
                at_ns: 3,
            })
        };
        let id = "c".repeat(64);
        shim.say(0, exited(&id, "unknown", 1));
        shim.say(0, exited(&id, "e", 2));
        shim.say(0, exited("not an id", "", 3));
        shim.say(0, exited(&id, "", 4));
        shim.say(0, Body::SandboxEnded(Done {}));
        assert_eq!(ended.wait().await.unwrap().code, 2);
        let container = id.parse().unwrap();
        let exit = ShimEvent::Exited {
            container,
            code: 4,
            signal: 0,
            at_ns: 3,
        };
        assert_eq!(told.recv().await, Some(exit));
        assert_eq!(told.recv().await, Some(ShimEvent::SandboxEnded));
    }

    #[tokio::test]
    async fn a_full_socket_delays_and_loses_nothing() {
        let (link, shim) = pair(None);
        let big = |n: usize| {
            Body::Exec(Exec {
                container_id: format!("{n}").repeat(8000),
                exec_id: String::new(),
                process: None,
            })
        };
        let asked: Vec<_> = (0..200)
            .map(|n| {
                let link = link.clone();
                tokio::spawn(async move { link.done(big(n), Fds::new(), WITHIN).await })
            })
            .collect();
        for _ in 0..200 {
            let (message, _) = shim.next().await;
            shim.say(message.id, Body::Done(Done {}));
        }
        for one in asked {
            one.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn a_connection_that_an_exec_waits_on_is_closed_after_it() {
        let (link, shim) = pair(None);
        let mut ended = link.expect_exec("e");
        drop(link);
        let exited = Exited {
            exec_id: "e".to_owned(),
            code: 3,
            ..Exited::default()
        };
        shim.say(0, Body::Exited(exited));
        assert_eq!(ended.wait().await.unwrap().code, 3);
        drop(ended);
        let channel = shim.0.clone();
        let end = tokio::task::spawn_blocking(move || channel.receive());
        assert!(matches!(end.await.unwrap(), Err(ChannelError::Closed)));
    }
}
