//! Ports of the node that lead to pods: held by sockets, so that nobody else takes them and a taken
//! one is found out; what comes to them over loopback is forwarded, the rest by the kernel.

mod forward; // what comes over loopback
mod holder; // who has a port
mod reserve; // sockets that hold ports

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

pub use reserve::{PortTaken, Reserved};

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[serde(alias = "TCP")]
    Tcp,
    /// UDP.
    #[serde(alias = "UDP")]
    Udp,
    /// SCTP.
    #[serde(alias = "SCTP")]
    Sctp,
}

impl Protocol {
    /// Its number in IP headers.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A port of the node, and where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// The protocol.
    pub protocol: Protocol,
    /// The port of the node.
    pub port: u16,
    /// The one address of the node that it is about; all of one family where it is unspecified, and
    /// all of both for `None`.
    pub at: Option<IpAddr>,
    /// The pod's addresses, the first of each family, with the port there.
    pub to: Vec<SocketAddr>,
}

/// The ports that this process holds, by whom they are for.
#[derive(Debug, Default)]
pub struct Ports(Mutex<HashMap<String, Vec<Reserved>>>);

impl Ports {
    /// Holds ports; forwards what comes over loopback if the calling thread belongs to a tokio
    /// runtime. Those that the owner holds already stay as they are.
    ///
    /// # Errors
    /// One of them is taken; then none of the new ones is held.
    pub fn hold(&self, owner: &str, mappings: &[Mapping]) -> Result<(), PortTaken> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = Vec::new();
        for mapping in mappings {
            let held = all
                .get(owner)
                .is_some_and(|h| h.iter().any(|r| r.mapping() == mapping));
            if held {
                continue;
            }
            let other = all.iter().find(|(who, held)| {
                who.as_str() != owner && held.iter().any(|r| r.collides(mapping))
            });
            if let Some((who, _held)) = other {
                return Err(PortTaken::by(mapping, format!("pod {who}")));
            }
            let mut reserved = Reserved::new(mapping)?;
            reserved.serve();
            new.push(reserved);
        }
        all.entry(owner.to_owned()).or_default().append(&mut new);
        Ok(())
    }

    /// Gives up an owner's ports.
    pub fn release(&self, owner: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(all.remove(owner));
    }
}
