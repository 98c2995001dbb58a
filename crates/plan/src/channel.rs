//! One message with its descriptors over a `SOCK_SEQPACKET` socket.
//!
//! A short message is one datagram. A long one travels in a sealed memfd: the datagram then holds
//! nothing but its length and id, and the memfd is the first descriptor.
//!
//! ```text
//! byte 0      1..                                  descriptors
//! 0  inline   the message                          its own
//! 1  memfd    length, id: 8 bytes, little endian   memfd, then its own
//! ```

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message as _;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::fds::Fds;
use crate::limits::{FDS_MAX, INLINE_MAX, MESSAGE_MAX};
use crate::message::Message;

const INLINE: u8 = 0;
const MEMFD: u8 = 1;

/// A message could not be sent or received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The other side has closed the connection.
    #[error("the connection was closed")]
    Closed,
    /// Nothing can be sent or received now, on a non-blocking socket.
    #[error("the connection is not ready")]
    WouldBlock,
    /// Over [`MESSAGE_MAX`] bytes or [`FDS_MAX`] descriptors.
    #[error("message of {bytes} bytes and {fds} descriptors is over the limit")]
    TooBig {
        /// Its size.
        bytes: usize,
        /// Its descriptors.
        fds: usize,
    },
    /// What was received is no message.
    #[error("received a malformed message: {0}")]
    Malformed(&'static str),
    /// A message came without its descriptors (`MSG_CTRUNC`): this process may not open as many.
    #[error("out of descriptors for message {id}: raise RLIMIT_NOFILE of its receiver")]
    OutOfDescriptors {
        /// The message's id, to answer it.
        id: u64,
    },
    /// The kernel refused.
    #[error("{call}")]
    Io {
        /// The system call.
        call: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

fn io_error(call: &'static str, errno: Errno) -> ChannelError {
    match errno {
        Errno::AGAIN => ChannelError::WouldBlock,
        Errno::PIPE | Errno::CONNRESET => ChannelError::Closed,
        other => ChannelError::Io {
            call,
            source: other.into(),
        },
    }
}

/// A message as it travels, to be sent as often as it takes.
#[derive(Debug)]
pub struct Encoded {
    form: u8,
    /// The message, or what the memfd's form has in its place.
    body: Vec<u8>,
    memfd: Option<OwnedFd>,
}

impl Encoded {
    /// Encodes `message`, that is to go with `fds`; its `fds` names are filled in here.
    ///
    /// # Errors
    ///
    /// `TooBig`, or no memfd can be made for a long message.
    pub fn new(mut message: Message, fds: &Fds) -> Result<Self, ChannelError> {
        message.fds = fds.names();
        let body = message.encode_to_vec();
        if body.len() > MESSAGE_MAX || fds.len() >= FDS_MAX {
            return Err(ChannelError::TooBig {
                bytes: body.len(),
                fds: fds.len(),
            });
        }
        if body.len() <= INLINE_MAX {
            return Ok(Self {
                form: INLINE,
                body,
                memfd: None,
            });
        }
        let memfd = sealed_memfd(&body)?;
        let length = u64::try_from(body.len()).unwrap_or(u64::MAX);
        Ok(Self {
            form: MEMFD,
            body: [length.to_le_bytes(), message.id.to_le_bytes()].concat(),
            memfd: Some(memfd),
        })
    }
}

/// A connected `SOCK_SEQPACKET` socket that carries [`Message`]s.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Wraps a connected socket. Blocking or not is the socket's own setting.
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Sends `message` with `fds`; its `fds` names are filled in here.
    ///
    /// # Errors
    ///
    /// `WouldBlock` on a full non-blocking socket (nothing was sent), `Closed`, `TooBig`.
    pub fn send(&self, message: Message, fds: &Fds) -> Result<(), ChannelError> {
        self.send_encoded(&Encoded::new(message, fds)?, fds)
    }

    /// Sends a message that was encoded for these `fds`.
    ///
    /// # Errors
    ///
    /// `WouldBlock` on a full non-blocking socket (nothing was sent), `Closed`.
    pub fn send_encoded(&self, message: &Encoded, fds: &Fds) -> Result<(), ChannelError> {
        let mut borrowed = fds.borrowed();
        if let Some(memfd) = &message.memfd {
            borrowed.insert(0, memfd.as_fd());
        }
        let form = [message.form];
        let parts = [IoSlice::new(&form), IoSlice::new(&message.body)];
        self.send_parts(&parts, &borrowed)
    }

    fn send_parts(
        &self,
        parts: &[IoSlice<'_>],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(ChannelError::TooBig {
                bytes: 0,
                fds: fds.len(),
            });
        }
        let sent = rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.0, parts, &mut control, SendFlags::NOSIGNAL)
        });
        sent.map(drop).map_err(|e| io_error("sendmsg", e))
    }

    /// Receives one message. One thread at a time: another could take the message whose length
    /// was just asked for.
    ///
    /// # Errors
    ///
    /// `WouldBlock` on an empty non-blocking socket, `Closed`, `Malformed`, `OutOfDescriptors`.
    pub fn receive(&self) -> Result<(Message, Fds), ChannelError> {
        // Most calls only find that nothing more is there: a buffer is made when its size is known.
        let (_, waiting) = rustix::io::retry_on_intr(|| {
            let none: &mut [u8] = &mut [];
            rustix::net::recv(&self.0, none, RecvFlags::PEEK | RecvFlags::TRUNC)
        })
        .map_err(|e| io_error("recv", e))?;
        let mut buffer = vec![0; waiting.clamp(1, INLINE_MAX + 1)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            let parts = &mut [IoSliceMut::new(&mut buffer)];
            rustix::net::recvmsg(&self.0, parts, &mut control, RecvFlags::CMSG_CLOEXEC)
        })
        .map_err(|e| io_error("recvmsg", e))?;
        let mut fds: Vec<OwnedFd> = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                fds.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Err(ChannelError::Closed);
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(ChannelError::Malformed("a datagram over the limit"));
        }
        let cut = received.flags.contains(ReturnFlags::CTRUNC);
        let read;
        let body = match buffer.get(..received.bytes).and_then(<[u8]>::split_first) {
            Some((&INLINE, body)) => body,
            Some((&MEMFD, place)) => {
                let (length, id) = place_of_long(place)?;
                if cut {
                    return Err(ChannelError::OutOfDescriptors { id });
                }
                let memfd = fds.drain(..fds.len().min(1)).next();
                let memfd = memfd.ok_or(ChannelError::Malformed("the memfd is missing"))?;
                read = read_memfd(&memfd, length)?;
                &read
            }
            _ => return Err(ChannelError::Malformed("unknown form")),
        };
        let message = Message::decode(body)
            .map_err(|_undecodable| ChannelError::Malformed("not a message of this protocol"))?;
        if cut {
            return Err(ChannelError::OutOfDescriptors { id: message.id });
        }
        let fds = Fds::from_parts(message.fds.clone(), fds).ok_or(ChannelError::Malformed(
            "descriptors and their names differ in number",
        ))?;
        Ok((message, fds))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn sealed_memfd(body: &[u8]) -> Result<OwnedFd, ChannelError> {
    let fd = rustix::fs::memfd_create(
        c"wharf-message",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )
    .map_err(|e| io_error("memfd_create", e))?;
    let mut rest = body;
    while !rest.is_empty() {
        let n = rustix::io::write(&fd, rest).map_err(|e| io_error("write", e))?;
        rest = &rest[n..];
    }
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&fd, seals).map_err(|e| io_error("fcntl(F_ADD_SEALS)", e))?;
    Ok(fd)
}

/// Length and id of a message that lies in a memfd.
fn place_of_long(place: &[u8]) -> Result<(usize, u64), ChannelError> {
    let ([length, id], []) = place.as_chunks::<8>() else {
        return Err(ChannelError::Malformed("length and id are not 16 bytes"));
    };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    Ok((length, u64::from_le_bytes(*id)))
}

fn read_memfd(fd: &OwnedFd, length: usize) -> Result<Vec<u8>, ChannelError> {
    if length > MESSAGE_MAX {
        return Err(ChannelError::TooBig {
            bytes: length,
            fds: 0,
        });
    }
    let mut body = vec![0; length];
    let mut at = 0;
    while at < length {
        let offset = u64::try_from(at).unwrap_or(u64::MAX);
        match rustix::io::pread(fd, &mut body[at..], offset) {
            Ok(0) => return Err(ChannelError::Malformed("memfd is shorter than its length")),
            Ok(n) => at += n,
            Err(e) => return Err(io_error("pread", e)),
        }
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Body, Done, Warning};
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    fn pair() -> (Channel, Channel) {
        let (a, b) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        (Channel::new(a), Channel::new(b))
    }

    fn warning(bytes: usize) -> Message {
        let text = "x".repeat(bytes);
        let body = Body::Warning(Warning {
            container_id: String::new(),
            text,
        });
        Message {
            id: 7,
            fds: Vec::new(),
            body: Some(body),
        }
    }

    #[test]
    fn short_and_long_messages_arrive_with_their_descriptors() {
        let (a, b) = pair();
        for size in [0, 10, INLINE_MAX, 1_000_000] {
            let mut fds = Fds::new();
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            fds.push("in", reader);
            fds.push("out", writer);
            a.send(warning(size), &fds).unwrap();
            let (message, mut got) = b.receive().unwrap();
            assert_eq!((message.id, message.body), (7, warning(size).body));
            let out = got.take("out").unwrap();
            rustix::io::write(&out, b"!").unwrap();
            let mut byte = [0];
            rustix::io::read(got.take("in").unwrap(), &mut byte).unwrap();
            assert_eq!(&byte, b"!");
        }
    }

    #[test]
    fn what_is_over_a_limit_is_refused_before_it_is_sent() {
        let (a, b) = pair();
        assert!(matches!(
            a.send(warning(MESSAGE_MAX), &Fds::new()),
            Err(ChannelError::TooBig { .. })
        ));
        assert!(matches!(b.receive(), Err(ChannelError::WouldBlock)));
    }

    #[test]
    fn a_datagram_over_the_limit_is_skipped() {
        let (a, b) = pair();
        rustix::net::send(&a, &vec![0; INLINE_MAX + 2], SendFlags::empty()).unwrap();
        assert!(matches!(b.receive(), Err(ChannelError::Malformed(_))));
        assert!(matches!(b.receive(), Err(ChannelError::WouldBlock)));
    }

    #[test]
    fn what_was_encoded_once_can_be_sent_again() {
        let (a, b) = pair();
        for size in [10, 1_000_000] {
            let (_, writer) = rustix::pipe::pipe().unwrap();
            let mut fds = Fds::new();
            fds.push("out", writer);
            let encoded = Encoded::new(warning(size), &fds).unwrap();
            for _ in 0..2 {
                a.send_encoded(&encoded, &fds).unwrap();
                let (message, fds) = b.receive().unwrap();
                assert_eq!(message.body, warning(size).body);
                assert!(fds.get("out").is_some());
            }
        }
    }

    #[test]
    fn a_closed_connection_and_garbage_are_told_apart() {
        let (a, b) = pair();
        rustix::net::send(&a, b"\x00garbage", SendFlags::empty()).unwrap();
        assert!(matches!(b.receive(), Err(ChannelError::Malformed(_))));
        rustix::net::send(&a, b"\x07", SendFlags::empty()).unwrap();
        assert!(matches!(b.receive(), Err(ChannelError::Malformed(_))));
        drop(a);
        assert!(matches!(b.receive(), Err(ChannelError::Closed)));
    }

    #[test]
    fn an_unknown_kind_of_message_is_received_without_a_body() {
        let (a, b) = pair();
        // Field 99, a message of two bytes: what a newer release might send.
        rustix::net::send(&a, b"\x00\x08\x05\x9a\x06\x02\x08\x01", SendFlags::empty()).unwrap();
        let (message, _) = b.receive().unwrap();
        assert_eq!((message.id, message.body), (5, None));
        let known = Message {
            id: 0,
            fds: Vec::new(),
            body: Some(Body::Done(Done {})),
        };
        a.send(known.clone(), &Fds::new()).unwrap();
        assert_eq!(b.receive().unwrap().0, known);
    }
}
