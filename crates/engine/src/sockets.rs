//! Sockets inside pods and networks for them, as callers ask for them.

use std::net::{IpAddr, SocketAddr};

/// How bytes go through a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Stream,
    /// UDP.
    Datagram,
}

/// A socket that is to be opened in a pod's network namespace. It does not block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodSocket {
    /// Connects; the connection may still be under way when the descriptor is there.
    Connect(Transport, SocketAddr),
    /// Has this address of its own (port 0: the kernel chooses); a stream listens.
    Bind(Transport, SocketAddr),
    /// Netlink of netfilter: the rules of the namespace.
    Netfilter,
}

/// A network that a pod is to join.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JoinNetwork {
    /// Its name or id.
    pub network: String,
    /// What the pod is called there: its name, then aliases and host name.
    pub names: Vec<String>,
    /// Addresses that it shall have; any when empty.
    pub addresses: Vec<IpAddr>,
}
