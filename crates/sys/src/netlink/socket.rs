//! One netlink socket: batches and their answers, dumps, events.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::message::{Attributes, Batch, Message, find, flag, split, text_of};
use crate::call::answer_int;

/// What one `recv(2)` can give; the kernel fills at most 32 KiB for a dump.
const BUFFER: usize = 64 << 10;
/// How much the kernel may keep for us: answers of a large batch and bursts of events.
const QUEUE: usize = 4 << 20;
/// How often a dump that a change interrupted begins again.
const DUMP_ATTEMPTS: usize = 10;
/// The kernel answers within the call that sends; more is a kernel that is stuck.
const PATIENCE: Duration = Duration::from_secs(30);

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Options of `SOL_NETLINK` (`linux/netlink.h`).
const ADD_MEMBERSHIP: libc::c_int = 1;
const CAP_ACK: libc::c_int = 10;
const EXT_ACK: libc::c_int = 11;
const STRICT_CHECK: libc::c_int = 12;

/// What the kernel said of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetlinkError {
    /// The error number.
    pub errno: Errno,
    /// The kernel's own words, often empty.
    pub text: String,
    /// Which message of the batch it was about.
    pub at: usize,
}

impl NetlinkError {
    pub(crate) fn plain(errno: Errno) -> Self {
        Self {
            errno,
            text: String::new(),
            at: 0,
        }
    }
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = std::io::Error::from(self.errno).to_string();
        // "File exists (os error 17)": the number says nothing more.
        let what = what.split(" (os error").next().unwrap_or(&what);
        if self.text.is_empty() {
            f.write_str(what)
        } else {
            write!(f, "{what}: {}", self.text)
        }
    }
}

impl std::error::Error for NetlinkError {}

impl From<Errno> for NetlinkError {
    fn from(errno: Errno) -> Self {
        Self::plain(errno)
    }
}

/// Whose changes a socket hears of (`enum rtnetlink_groups`, `enum nfnetlink_groups`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Interfaces that come, change and go (`RTNLGRP_LINK`).
    Links,
    /// IPv4 addresses (`RTNLGRP_IPV4_IFADDR`).
    Addresses4,
    /// IPv6 addresses (`RTNLGRP_IPV6_IFADDR`).
    Addresses6,
    /// Rules of nftables (`NFNLGRP_NFTABLES`), on a netfilter socket.
    Nftables,
}

impl Group {
    fn number(self) -> libc::c_int {
        match self {
            Self::Links => 1,
            Self::Addresses4 => 5,
            Self::Addresses6 => 9,
            Self::Nftables => 7,
        }
    }
}

/// A socket. It works in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    next: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// A route socket in this thread's network namespace.
    ///
    /// # Errors
    /// No descriptors are left, or the kernel has no netlink.
    pub fn route() -> Result<Self, NetlinkError> {
        Self::open(None) // protocol 0 is NETLINK_ROUTE
    }

    /// A netfilter socket in this thread's network namespace: nftables and tracked connections.
    ///
    /// # Errors
    /// As [`Socket::route`], or `EPROTONOSUPPORT`: the module `nfnetlink` is missing.
    pub fn netfilter() -> Result<Self, NetlinkError> {
        Self::open(Some(NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> Result<Self, NetlinkError> {
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        Self::from_fd(fd)
    }

    /// A socket that someone opened, perhaps in another network namespace.
    ///
    /// # Errors
    /// It is not a netlink socket.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NetlinkError> {
        set(fd.as_fd(), EXT_ACK, 1)?;
        set(fd.as_fd(), CAP_ACK, 1)?;
        // Old kernels lack it; dumps then give more than was asked for, and we filter anyway.
        let _old = set(fd.as_fd(), STRICT_CHECK, 1);
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&fd, QUEUE).is_err() {
            rustix::net::sockopt::set_socket_recv_buffer_size(&fd, QUEUE)?;
        }
        Ok(Self {
            fd,
            next: 1,
            buffer: vec![0; BUFFER],
        })
    }

    /// Its port: events say which socket made a change. 0 when it has none yet.
    #[must_use]
    pub fn port(&self) -> u32 {
        rustix::net::getsockname(&self.fd)
            .ok()
            .and_then(|name| SocketAddrNetlink::try_from(name).ok())
            .map_or(0, |name| name.pid())
    }

    /// Hears of changes from now on; [`Socket::events`] gives them. A socket for events is not
    /// used for requests: their answers would be lost among them.
    ///
    /// # Errors
    /// `EPERM` for nftables without `CAP_NET_ADMIN`.
    pub fn join(&self, group: Group) -> Result<(), NetlinkError> {
        Ok(set(self.fd.as_fd(), ADD_MEMBERSHIP, group.number())?)
    }

    /// The events that are there; waits for one. `None`: some were lost, look at everything.
    ///
    /// # Errors
    /// `EAGAIN` on a socket that does not block, `EBADF`.
    pub fn events(&mut self) -> Result<Option<Vec<Message>>, NetlinkError> {
        match self.receive(RecvFlags::empty()) {
            Ok(messages) => Ok(Some(messages)),
            Err(Errno::NOBUFS) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Sends all messages at once and gives the messages that answer them. The kernel works on
    /// them in order and does not stop at an error.
    ///
    /// # Errors
    /// The first thing that the kernel refused, and which message it was.
    pub fn execute(&mut self, batch: &mut Batch) -> Result<Vec<Message>, NetlinkError> {
        let (answers, error) = self.execute_all(batch)?;
        error.map_or(Ok(answers), Err)
    }

    /// As [`Socket::execute`], but what the kernel refused stands beside the answers.
    ///
    /// # Errors
    /// The batch could not be sent, or the kernel does not answer.
    pub fn execute_all(
        &mut self,
        batch: &mut Batch,
    ) -> Result<(Vec<Message>, Option<NetlinkError>), NetlinkError> {
        if batch.is_empty() {
            return Ok((Vec::new(), None));
        }
        batch.acknowledge_last();
        let first = self.send(batch)?;
        self.answers(first, batch.len() - 1)
    }

    /// Sends a transaction of nftables: between its first and its last message, which frame it,
    /// the last one asks for an answer.
    pub(crate) fn execute_batch(&mut self, batch: &mut Batch) -> Result<(), NetlinkError> {
        let first = self.send(batch)?;
        let (_none, error) = self.answers(first, batch.len().saturating_sub(2))?;
        error.map_or(Ok(()), Err)
    }

    /// Reads until message number `last`, counted from `first`, is answered; or until nothing more
    /// comes when something was refused: the frame of a transaction is refused alone.
    fn answers(
        &mut self,
        first: u32,
        last: usize,
    ) -> Result<(Vec<Message>, Option<NetlinkError>), NetlinkError> {
        let last = first.saturating_add(u32::try_from(last).unwrap_or(0));
        let mut answers = Vec::new();
        let mut error = None;
        loop {
            let messages = self.wait(error.is_some())?;
            if messages.is_empty() {
                return Ok((answers, error));
            }
            for message in messages {
                if !(first..=last).contains(&message.number) {
                    continue; // of a request that was given up
                }
                if message.kind != NLMSG_ERROR {
                    answers.push(message);
                    continue;
                }
                let at = usize::try_from(message.number - first).unwrap_or(0);
                error = error.or(refusal(&message, at));
                if message.number == last {
                    return Ok((answers, error));
                }
            }
        }
    }

    /// All objects of a kind, as one picture: begins again when a change came between.
    ///
    /// # Errors
    /// What the kernel refused; `EINTR` when it changes all the time.
    pub fn dump(
        &mut self,
        kind: u16,
        fixed: &[u8],
        write: impl Fn(&mut super::message::Writer<'_>),
    ) -> Result<Vec<Message>, NetlinkError> {
        for _attempt in 0..DUMP_ATTEMPTS {
            let mut batch = Batch::new();
            batch.push(kind, flag::DUMP, fixed, &write);
            if let Some(all) = self.dump_once(&mut batch)? {
                return Ok(all);
            }
        }
        Err(NetlinkError::plain(Errno::INTR))
    }

    fn dump_once(&mut self, batch: &mut Batch) -> Result<Option<Vec<Message>>, NetlinkError> {
        let number = self.send(batch)?;
        let mut all = Vec::new();
        let mut whole = true;
        loop {
            for message in self.wait(false)? {
                if message.number != number {
                    continue;
                }
                whole &= message.flags & flag::DUMP_INTERRUPTED == 0;
                match message.kind {
                    NLMSG_ERROR => {
                        return refusal(&message, 0).map_or(Ok(Some(Vec::new())), Err);
                    }
                    NLMSG_DONE => {
                        // The end of a dump has an error number in the place where an error has it.
                        return refusal(&message, 0).map_or(Ok(whole.then_some(all)), Err);
                    }
                    _object if message.flags & flag::MULTI != 0 => all.push(message),
                    _other => {}
                }
            }
        }
    }

    fn send(&mut self, batch: &mut Batch) -> Result<u32, NetlinkError> {
        if batch.too_long() {
            return Err(NetlinkError::plain(Errno::MSGSIZE));
        }
        let count = u32::try_from(batch.len()).map_err(|_too_many| Errno::MSGSIZE)?;
        if self.next.checked_add(count).is_none() {
            self.next = 1;
        }
        let first = self.next;
        self.next += count;
        let bytes = batch.numbered(first);
        // Room for all of it: the default is about 200 KiB, and a batch is one datagram.
        if bytes.len() > 128 << 10 {
            rustix::net::sockopt::set_socket_send_buffer_size_force(&self.fd, bytes.len() * 2)?;
        }
        loop {
            let kernel = SocketAddrNetlink::new(0, 0);
            match rustix::net::sendto(&self.fd, bytes, SendFlags::empty(), &kernel) {
                Ok(_all) => return Ok(first),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Messages that are there; where there are none and more may not come, `give_up`.
    fn wait(&mut self, give_up: bool) -> Result<Vec<Message>, NetlinkError> {
        loop {
            match self.receive(RecvFlags::DONTWAIT) {
                Ok(messages) => return Ok(messages),
                Err(Errno::AGAIN) if give_up => return Ok(Vec::new()),
                Err(Errno::AGAIN) => {
                    if !self.readable(PATIENCE)? {
                        return Err(NetlinkError::plain(Errno::TIMEDOUT));
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn readable(&self, patience: Duration) -> Result<bool, Errno> {
        let patience = Timespec::try_from(patience).map_err(|_too_long| Errno::INVAL)?;
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        loop {
            match poll(&mut fds, Some(&patience)) {
                Ok(n) => return Ok(n > 0),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn receive(&mut self, flags: RecvFlags) -> Result<Vec<Message>, Errno> {
        loop {
            match rustix::net::recv(&self.fd, &mut self.buffer[..], flags | RecvFlags::TRUNC) {
                Ok((_filled, length)) if length > self.buffer.len() => return Err(Errno::MSGSIZE),
                Ok((_filled, length)) => return Ok(split(&self.buffer[..length])),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `None` when the message says that all is well (`struct nlmsgerr`).
fn refusal(message: &Message, at: usize) -> Option<NetlinkError> {
    let code = message.u32_at(0).cast_signed();
    if code == 0 {
        return None;
    }
    let mut text = String::new();
    if message.flags & NLM_F_ACK_TLVS != 0 {
        // The code, then the header of the message in question, and unless capped the whole of it.
        let quoted = if message.flags & NLM_F_CAPPED == 0 {
            usize::try_from(message.u32_at(4)).unwrap_or(16)
        } else {
            16
        };
        let behind = message.payload.get(4 + quoted..).unwrap_or_default();
        text = find(Attributes::of(behind), NLMSGERR_ATTR_MSG).map_or(text, text_of);
    }
    Some(NetlinkError {
        errno: Errno::from_raw_os_error(code.wrapping_neg()),
        text,
        at,
    })
}

fn set(fd: BorrowedFd<'_>, option: libc::c_int, value: libc::c_int) -> Result<(), Errno> {
    let size = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4);
    // SAFETY: `value` lives through the call and `size` is its size; the kernel only reads it.
    let answer = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const value).cast(),
            size,
        )
    };
    answer_int(answer).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_its_message_and_gives_the_kernels_words() {
        let mut socket = Socket::route().unwrap();
        let mut batch = Batch::new();
        // Two queries: the loopback, and an interface that is not there.
        super::super::query_link(&mut batch, "lo");
        super::super::query_link(&mut batch, "wharf-none");
        let error = socket.execute(&mut batch).unwrap_err();
        assert_eq!((error.errno, error.at), (Errno::NODEV, 1));
        assert_eq!(error.to_string(), "No such device");
        // The socket goes on: nothing of the failed batch is left in it.
        let lo = super::super::link_by_name(&mut socket, "lo").unwrap();
        assert_eq!(lo.unwrap().index, 1);
    }

    #[test]
    fn what_is_not_a_netlink_socket_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = Socket::from_fd(file.into()).unwrap_err();
        assert_eq!(error.errno, Errno::NOTSOCK);
    }

    #[test]
    fn numbers_begin_again_before_they_overflow() {
        let mut socket = Socket::route().unwrap();
        socket.next = u32::MAX - 1;
        for _ in 0..3 {
            let lo = super::super::link_by_name(&mut socket, "lo").unwrap();
            assert_eq!(lo.unwrap().index, 1);
        }
    }

    #[test]
    fn a_message_that_is_too_long_is_not_sent() {
        let mut socket = Socket::route().unwrap();
        let mut batch = Batch::new();
        batch.push(18, 0, &[0; 16], |w| w.raw(1, &[0; 70_000]));
        assert_eq!(
            socket.execute(&mut batch).unwrap_err().errno,
            Errno::MSGSIZE
        );
    }
}
