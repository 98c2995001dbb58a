//! One client of a zygote or a shim: messages in, a bounded queue of messages out.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::SocketFlags;
use wharf_plan::message::{Body, Failure, Hello, Message, Welcome};
use wharf_plan::{Channel, ChannelError, Encoded, Fds, PROTOCOL, PROTOCOL_OLDEST};

use crate::failure;
use crate::limits::QUEUE_MAX;

/// What this process says of itself to a client whose protocol it understands.
///
/// # Errors
///
/// The client's protocol is too old.
pub(crate) fn welcome(hello: &Hello) -> Result<Welcome, Failure> {
    if hello.protocol < PROTOCOL_OLDEST {
        let why = format!(
            "protocol {} is older than {PROTOCOL_OLDEST}",
            hello.protocol
        );
        return Err(failure::invalid("hello", why));
    }
    Ok(Welcome {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        ..Welcome::default()
    })
}

/// A connected client.
#[derive(Debug)]
pub(crate) struct Connection {
    channel: Channel,
    /// It has said `Hello`, so it gets events.
    pub(crate) greeted: bool,
    queue: VecDeque<(Encoded, Fds)>,
    broken: bool,
}

/// What came.
#[derive(Debug)]
pub(crate) enum Received {
    /// A message.
    Message(Box<Message>, Fds),
    /// Nothing more for now.
    Nothing,
    /// The client has gone, or is cut off.
    Gone,
}

impl Connection {
    /// Takes a waiting client from `listener`, if it is root's.
    ///
    /// # Errors
    ///
    /// `EAGAIN` when none waits, `EACCES` for anybody but root (who is then disconnected).
    pub(crate) fn accept(listener: &OwnedFd) -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::accept_with(listener, flags)?;
        let peer = rustix::net::sockopt::socket_peercred(&socket)?;
        if !peer.uid.is_root() {
            return Err(Errno::ACCESS);
        }
        Ok(Self {
            channel: Channel::new(socket),
            greeted: false,
            queue: VecDeque::new(),
            broken: false,
        })
    }

    /// The next message. A malformed one is answered, and skipped.
    pub(crate) fn receive(&mut self) -> Received {
        while !self.broken {
            match self.channel.receive() {
                Ok((message, fds)) => return Received::Message(Box::new(message), fds),
                Err(ChannelError::WouldBlock) => return Received::Nothing,
                Err(why @ (ChannelError::Malformed(_) | ChannelError::TooBig { .. })) => {
                    let failure = failure::invalid("receive", why.to_string());
                    self.reply(0, Body::Failed(failure), Fds::new());
                }
                Err(ChannelError::OutOfDescriptors { id }) => {
                    let why = "out of descriptors: raise RLIMIT_NOFILE";
                    let errno = Errno::MFILE.raw_os_error();
                    self.fail(id, failure::step("receive", why, errno));
                }
                Err(_) => self.broken = true,
            }
        }
        Received::Gone
    }

    /// Answers request `id`.
    pub(crate) fn reply(&mut self, id: u64, body: Body, fds: Fds) {
        self.send(
            Message {
                id,
                fds: Vec::new(),
                body: Some(body),
            },
            fds,
        );
    }

    /// Answers request `id` with a failure.
    pub(crate) fn fail(&mut self, id: u64, failure: Failure) {
        self.reply(id, Body::Failed(failure), Fds::new());
    }

    /// Sends or queues a message. A client whose queue is full is cut off.
    pub(crate) fn send(&mut self, message: Message, mut fds: Fds) {
        let id = message.id;
        let encoded = Encoded::new(message, &fds).or_else(|why| {
            // Only a reply can be as long; its client must not wait for ever.
            fds = Fds::new();
            let body = Some(Body::Failed(failure::invalid("reply", why.to_string())));
            let message = Message {
                id,
                fds: Vec::new(),
                body,
            };
            Encoded::new(message, &fds)
        });
        let Ok(encoded) = encoded else {
            self.broken = true;
            return;
        };
        self.queue.push_back((encoded, fds));
        self.flush();
        if self.queue.len() > QUEUE_MAX {
            self.broken = true;
        }
    }

    /// Sends what is queued, as far as the client reads it.
    pub(crate) fn flush(&mut self) {
        while let Some((message, fds)) = self.queue.front() {
            match self.channel.send_encoded(message, fds) {
                Ok(()) => {}
                Err(ChannelError::WouldBlock) => return,
                Err(_) => {
                    self.broken = true;
                    return;
                }
            }
            self.queue.pop_front();
        }
    }

    /// Whether messages wait for the client to read.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether it is to be dropped.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
