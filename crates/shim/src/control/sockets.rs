//! Sockets in the pod's network namespace, for the daemon, which never enters one. The control thread is
//! inside: it opens, binds and connects without waiting, and gives the descriptor away.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with, sockopt};
use wharf_plan::Fds;
use wharf_plan::message::{Failure, OpenSocket, SocketEnd, SocketKind};

use crate::failure;
use crate::limits::BACKLOG_MAX;

/// The name of the request, in failures.
const OPEN: &str = "open socket";

/// Opens the socket; what it connects to may not have answered yet.
///
/// # Errors
///
/// `Invalid` for what makes no sense; else the step that failed, its object the address.
pub(super) fn open(asked: &OpenSocket) -> Result<Fds, Failure> {
    let kind = SocketKind::try_from(asked.kind).unwrap_or(SocketKind::Unspecified);
    let bind = asked.bind.as_ref().map(end).transpose()?;
    let connect = asked.connect.as_ref().map(end).transpose()?;
    let socket = match kind {
        SocketKind::Netfilter => netfilter()?,
        SocketKind::Stream => internet(SocketType::STREAM, asked, bind, connect)?,
        SocketKind::Datagram => internet(SocketType::DGRAM, asked, bind, connect)?,
        SocketKind::Unspecified => {
            let why = format!("{} is no kind of socket that this shim knows", asked.kind);
            return Err(failure::invalid(OPEN, why));
        }
    };
    let mut fds = Fds::new();
    fds.push("socket", socket);
    Ok(fds)
}

fn end(end: &SocketEnd) -> Result<SocketAddr, Failure> {
    let port = u16::try_from(end.port).ok();
    let four = <[u8; 4]>::try_from(&*end.address).map(|a| IpAddr::V4(Ipv4Addr::from(a)));
    let sixteen = <[u8; 16]>::try_from(&*end.address).map(|a| IpAddr::V6(Ipv6Addr::from(a)));
    match (four.or(sixteen), port) {
        (Ok(address), Some(port)) => Ok(SocketAddr::new(address, port)),
        _ => Err(failure::invalid(
            OPEN,
            "an end has 4 or 16 bytes of address and a port up to 65535",
        )),
    }
}

fn netfilter() -> Result<OwnedFd, Failure> {
    // Netlink answers while it is asked: whoever reads afterwards does not wait.
    let protocol = Some(netlink::NETFILTER);
    let flags = SocketFlags::CLOEXEC;
    socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)
        .map_err(failure::errno("socket", "netfilter"))
}

fn internet(
    kind: SocketType,
    asked: &OpenSocket,
    bind: Option<SocketAddr>,
    connect: Option<SocketAddr>,
) -> Result<OwnedFd, Failure> {
    let listens = asked.backlog > 0;
    let Some(one) = bind.or(connect) else {
        let why = "a socket needs an address to bind or to connect to";
        return Err(failure::invalid(OPEN, why));
    };
    if [bind, connect]
        .iter()
        .flatten()
        .any(|end| end.is_ipv4() != one.is_ipv4())
    {
        let why = "both ends are of the same family";
        return Err(failure::invalid(OPEN, why));
    }
    if listens && (connect.is_some() || kind != SocketType::STREAM) {
        let why = "only a stream socket that connects nowhere can listen";
        return Err(failure::invalid(OPEN, why));
    }
    let family = match one {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let named = one.to_string();
    let socket =
        socket_with(family, kind, flags, None).map_err(failure::errno("socket", &named))?;
    if one.is_ipv6() {
        // IPv4 has sockets of its own.
        sockopt::set_ipv6_v6only(&socket, true).map_err(failure::errno("setsockopt", &named))?;
    }
    if asked.reuse_address {
        sockopt::set_socket_reuseaddr(&socket, true)
            .map_err(failure::errno("setsockopt", &named))?;
    }
    if let Some(own) = bind {
        let named = own.to_string();
        rustix::net::bind(&socket, &own).map_err(failure::errno("bind", &named))?;
    }
    if listens {
        let backlog = i32::try_from(asked.backlog.min(BACKLOG_MAX)).unwrap_or(1);
        rustix::net::listen(&socket, backlog).map_err(failure::errno("listen", &named))?;
    }
    if let Some(peer) = connect {
        let named = peer.to_string();
        match rustix::net::connect(&socket, &peer) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(errno) => return Err(failure::errno("connect", &named)(errno)),
        }
    }
    Ok(socket)
}
