//! Rules inside a pod's namespace that lead 127.0.0.11:53 to the ports that we got there.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use wharf_sys::netlink::Socket;
use wharf_sys::nft::{
    Chain, Compare, Expressions, Family, Hook, HookKind, Meta, Nat, Register, Transaction, Verdict,
};

use super::{ADDRESS, PORT};
use crate::rules::RulesError;

/// The table, in the pod's namespace.
const TABLE: &str = "wharf_dns";
/// `dstnat`.
const PRIORITY: i32 = -100;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Leads the pod's questions to these ports of 127.0.0.11, instead of where they were led before.
/// `netfilter` is a netlink socket of netfilter that was opened inside the namespace.
///
/// # Errors
///
/// The kernel refused; then nothing has changed.
pub fn redirect(netfilter: OwnedFd, udp: u16, tcp: u16) -> Result<(), RulesError> {
    let mut socket = Socket::from_fd(netfilter).map_err(RulesError::Socket)?;
    let mut t = Transaction::new(Family::Ipv4, TABLE);
    let says = "wharf: names of neighbours are answered for this pod";
    t.table(says).delete_table().table(says);
    t.chain(Chain {
        name: "output",
        hook: Some((HookKind::Nat, Hook::Output, PRIORITY)),
    });
    for (protocol, port) in [(UDP, udp), (TCP, tcp)] {
        t.rule("output", "", |e| lead(e, protocol, port));
    }
    Ok(t.commit(&mut socket)?)
}

fn lead(e: &mut Expressions<'_, '_>, protocol: u8, port: u16) {
    let (first, second) = (Register::new(0), Register::new(1));
    let address: Ipv4Addr = ADDRESS;
    e.network_header(16, 4, first)
        .compare(first, Compare::Equal, &address.octets())
        .meta(Meta::TransportProtocol, first)
        .compare(first, Compare::Equal, &[protocol])
        .transport_header(2, 2, first)
        .compare(first, Compare::Equal, &PORT.to_be_bytes())
        .put(first, &address.octets())
        .put(second, &port.to_be_bytes())
        .destination(Nat {
            family: Family::Ipv4,
            address: first,
            port: Some(second),
        })
        .verdict(Verdict::Accept);
}
