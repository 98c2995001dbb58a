//! Sockets that hold ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use super::forward::Forwarder;
use super::{Mapping, Protocol, holder};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// A port of the node cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("host port {port}/{protocol} cannot be had: {why}")]
pub struct PortTaken {
    port: u16,
    protocol: Protocol,
    why: String,
}

impl PortTaken {
    /// Someone has it.
    pub(super) fn by(mapping: &Mapping, who: impl std::fmt::Display) -> Self {
        Self::because(
            mapping,
            format!("it is taken by {who}; stop it or choose another port"),
        )
    }

    fn because(mapping: &Mapping, why: String) -> Self {
        Self {
            port: mapping.port,
            protocol: mapping.protocol,
            why,
        }
    }
}

/// A port that is held. It is free again when the value is dropped.
#[derive(Debug)]
pub struct Reserved {
    mapping: Mapping,
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
    /// What only holds the port.
    idle: Vec<OwnedFd>,
    forwarder: Forwarder,
}

impl Reserved {
    /// Holds the port of a mapping on all its addresses.
    ///
    /// # Errors
    /// It is taken: the text says by whom; or it is no address of this node.
    pub fn new(mapping: &Mapping) -> Result<Self, PortTaken> {
        let mut reserved = Self {
            mapping: mapping.clone(),
            tcp: Vec::new(),
            udp: Vec::new(),
            idle: Vec::new(),
            forwarder: Forwarder::default(),
        };
        for address in addresses(mapping) {
            match bind(mapping.protocol, SocketAddr::new(address, mapping.port)) {
                Ok(socket) => reserved.keep(socket),
                // The kernel has no such protocol or family: nobody can take the port there either.
                Err(Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT | Errno::SOCKTNOSUPPORT) => {}
                Err(Errno::ADDRNOTAVAIL) if mapping.at.is_none() => {}
                Err(Errno::ADDRINUSE) => {
                    let who = holder::of(mapping.protocol, mapping.port);
                    let who = who.unwrap_or_else(|| "someone".to_owned());
                    return Err(PortTaken::by(mapping, who));
                }
                Err(e) => {
                    let why = format!("{address}: {}", std::io::Error::from(e));
                    return Err(PortTaken::because(mapping, why));
                }
            }
        }
        Ok(reserved)
    }

    fn keep(&mut self, socket: OwnedFd) {
        match self.mapping.protocol {
            Protocol::Tcp => self.tcp.push(socket.into()),
            Protocol::Udp => self.udp.push(socket.into()),
            Protocol::Sctp => self.idle.push(socket),
        }
    }

    /// What it is for.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Whether another mapping cannot be had beside it.
    pub(super) fn collides(&self, other: &Mapping) -> bool {
        let same = self.mapping.protocol == other.protocol && self.mapping.port == other.port;
        let (Some(a), Some(b)) = (self.mapping.at, other.at) else {
            return same;
        };
        let any = a.is_unspecified() || b.is_unspecified();
        same && a.is_ipv4() == b.is_ipv4() && (a == b || any)
    }

    /// Forwards what comes to the sockets, on the tokio runtime of the calling thread; without one
    /// the port is held and nothing more.
    pub fn serve(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (forwarder, to) = (&mut self.forwarder, &self.mapping.to);
        let tcp = self.tcp.drain(..).map(|l| forwarder.tcp(&runtime, l, to));
        let failed = tcp.filter_map(Result::err).last();
        let udp = self.udp.drain(..).map(|s| forwarder.udp(&runtime, s, to));
        if let Some(error) = udp.filter_map(Result::err).last().or(failed) {
            let port = self.mapping.port;
            tracing::warn!(%error, port, "a host port is not served on loopback");
        }
    }
}

/// The addresses at which the port is held: all of the pod's families, and loopback of the other.
fn addresses(mapping: &Mapping) -> Vec<IpAddr> {
    if let Some(one) = mapping.at {
        return vec![one];
    }
    let has = |v6: bool| mapping.to.iter().any(|to| to.is_ipv6() == v6);
    vec![
        if has(false) {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::LOCALHOST.into()
        },
        if has(true) {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        },
    ]
}

fn bind(protocol: Protocol, address: SocketAddr) -> Result<OwnedFd, Errno> {
    let (kind, protocol_number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        Protocol::Sctp => (SocketType::STREAM, ipproto::SCTP),
    };
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, Some(protocol_number))?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol != Protocol::Udp {
        // Connections of before that still close do not keep the port; listeners do.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    if protocol != Protocol::Udp {
        rustix::net::listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}
