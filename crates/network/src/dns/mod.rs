//! The embedded DNS of pods on networks of people's own: names of their neighbours, everything else by
//! the servers of the host.
//!
//! ```text
//! pod: 127.0.0.11:53 ──redirect──► 127.0.0.11:PORT    sockets opened inside by the shim, held by us
//!                                        │ server
//!                        name of a neighbour? ──book──► answered here
//!                                        │ no, and not internal
//!                                        ▼ forward: from the host's network, to its own servers
//! ```
//!
//! Nothing listens on port 53 inside: a container may serve DNS on all addresses itself.

pub mod wire; // messages: questions read, answers written
pub mod resolv; // the host's servers
pub mod book; // who has which name in which network
mod forward; // questions to the host's servers
pub mod redirect; // rules inside the pod's namespace
pub mod server; // the sockets of one pod, served

pub use book::{Book, Membership};
pub use redirect::redirect;
pub use server::{Listeners, Resolver, Serving};

use std::net::Ipv4Addr;

/// Where containers find it: the same address as Docker's.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// Its port, as containers see it.
pub const PORT: u16 = 53;
