//! Tracked connections (`linux/netfilter/nfnetlink_conntrack.h`).

use std::net::IpAddr;

use rustix::io::Errno;

use super::address::{family, from_octets, octets};
use super::message::{Attributes, Batch, find};
use super::socket::{NetlinkError, Socket};

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// Length of `struct nfgenmsg`.
const FIXED: usize = 4;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const V4_FROM: u16 = 1;
const V4_TO: u16 = 2;
const V6_FROM: u16 = 3;
const V6_TO: u16 = 4;
const NUMBER: u16 = 1;
const FROM_PORT: u16 = 2;
const TO_PORT: u16 = 3;
const ZONE: u16 = 18;

const UDP: u8 = 17;

/// A tracked connection: its first packet's direction, and where answers come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Protocol number.
    pub protocol: u8,
    /// Who began.
    pub from: IpAddr,
    /// Its port; 0 for protocols without.
    pub from_port: u16,
    /// To whom, as it said.
    pub to: IpAddr,
    /// The port, as it said.
    pub to_port: u16,
    /// Who answers: another than `to` when the destination was translated.
    pub answers_from: IpAddr,
    /// The port of who answers.
    pub answers_port: u16,
    /// The zone; 0 without.
    pub zone: u16,
}

/// The tracked connections of one family.
///
/// # Errors
/// What the kernel refused. A kernel without connection tracking has none.
pub fn flows(socket: &mut Socket, ipv6: bool) -> Result<Vec<Flow>, NetlinkError> {
    let fixed = [if ipv6 { 10 } else { 2 }, 0, 0, 0];
    let all = match socket.dump(GET, &fixed, |_| {}) {
        Err(e) if e.errno == Errno::INVAL || e.errno == Errno::OPNOTSUPP => return Ok(Vec::new()),
        other => other?,
    };
    Ok(all
        .iter()
        .filter_map(|message| {
            let attributes = message.attributes(FIXED);
            let (protocol, from, from_port, to, to_port) =
                tuple(find(attributes, TUPLE_ORIGINAL)?)?;
            let reply = tuple(find(attributes, TUPLE_REPLY)?)?;
            Some(Flow {
                protocol,
                from,
                from_port,
                to,
                to_port,
                answers_from: reply.1,
                answers_port: reply.2,
                zone: find(attributes, ZONE).map_or(0, port),
            })
        })
        .collect())
}

type Tuple = (u8, IpAddr, u16, IpAddr, u16);

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let all = Attributes::of(bytes);
    let ip = Attributes::of(find(all, TUPLE_IP)?);
    let protocol = Attributes::of(find(all, TUPLE_PROTOCOL)?);
    let either = |v4, v6| find(ip, v4).or_else(|| find(ip, v6)).and_then(from_octets);
    Some((
        find(protocol, NUMBER)?.first().copied()?,
        either(V4_FROM, V6_FROM)?,
        find(protocol, FROM_PORT).map_or(0, port),
        either(V4_TO, V6_TO)?,
        find(protocol, TO_PORT).map_or(0, port),
    ))
}

fn port(bytes: &[u8]) -> u16 {
    bytes.try_into().map_or(0, u16::from_be_bytes)
}

/// Forgets a connection: its next packet is looked at as a first one. `ENOENT` when it has ended.
pub fn delete_flow(batch: &mut Batch, flow: &Flow) {
    let fixed = [family(flow.from), 0, 0, 0];
    batch.push(DELETE, 0, &fixed, |w| {
        w.nest(TUPLE_ORIGINAL, |w| {
            w.nest(TUPLE_IP, |w| {
                let v4 = flow.from.is_ipv4();
                w.raw(if v4 { V4_FROM } else { V6_FROM }, &octets(flow.from));
                w.raw(if v4 { V4_TO } else { V6_TO }, &octets(flow.to));
            });
            w.nest(TUPLE_PROTOCOL, |w| {
                w.u8(NUMBER, flow.protocol);
                w.raw(FROM_PORT, &flow.from_port.to_be_bytes());
                w.raw(TO_PORT, &flow.to_port.to_be_bytes());
            });
        });
        if flow.zone != 0 {
            w.raw(ZONE, &flow.zone.to_be_bytes());
        }
    });
}

/// Forgets the UDP connections to one of these ports of this machine: those that began before the
/// port led elsewhere would go on past it for ever. Gives how many there were.
///
/// # Errors
/// What the kernel refused.
pub fn forget_udp_to_ports(
    socket: &mut Socket,
    ipv6: bool,
    ports: &[u16],
) -> Result<usize, NetlinkError> {
    let stale: Vec<Flow> = flows(socket, ipv6)?
        .into_iter()
        .filter(|f| f.protocol == UDP && ports.contains(&f.to_port))
        .collect();
    for flow in &stale {
        let mut batch = Batch::new();
        delete_flow(&mut batch, flow);
        match socket.execute(&mut batch) {
            Err(e) if e.errno != Errno::NOENT => return Err(e),
            _gone => {}
        }
    }
    Ok(stale.len())
}
