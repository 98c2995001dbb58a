//! Interfaces, addresses, routes, queues and tracked connections over netlink: `netlink(7)`,
//! `rtnetlink(7)`, `linux/netlink.h`, `linux/rtnetlink.h`.
//!
//! A [`Batch`] is one buffer with several messages; a [`Socket`] sends it with one `sendmsg(2)` and
//! reads the answers. The other modules only write messages into batches and read answers: what they
//! give works in the network namespace where the socket was opened, whoever uses it.
//! These functions allocate: they are for the daemon and for programs, not for the child of `clone3`.

mod message; // headers and attributes: pure
mod socket; // one socket: batches, dumps, events
mod mac; // Ethernet addresses
mod link; // interfaces
mod address; // addresses and neighbours
mod route; // routes
mod queue; // queueing disciplines and filters
mod conntrack; // tracked connections

pub use address::{Address, NewAddress, add_address, addresses, delete_address, flush_neighbour};
pub use conntrack::{Flow, delete_flow, flows, forget_udp_to_ports};
pub use link::{
    ARP_NOTIFY, BridgeVlan, Counters, Link, LinkChange, NewLink, Peer, Placed, PortChange,
    SlaveMode, add_bridge_vlan, add_link, change_link, change_port, delete_bridge_vlan,
    delete_group, delete_link, delete_link_by_name, link_by_index, link_by_name, links, query_link,
};
pub use mac::{Mac, NotMac};
pub use message::{Attributes, Batch, MAX_MESSAGE, Message, Writer, find};
pub use queue::{Tbf, TickRate, add_ingress, add_redirect, add_tbf, queues};
pub use route::{NewRoute, Route, add_route, default_route_link, delete_route, routes};
pub use socket::{Group, NetlinkError, Socket};

/// Whether an interface can have this name: 1 to 15 bytes, not `.` or `..`, no `/`, `:` or blanks
/// (`dev_valid_name`, net/core/dev.c).
#[must_use]
pub fn is_link_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name
            .bytes()
            .any(|b| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace() || b == 0x0b)
}
