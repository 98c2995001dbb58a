//! Routes (`rtnetlink(7)`, `linux/rtnetlink.h`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::io::Errno;

use super::address::{family, from_octets, octets};
use super::message::{Batch, find, flag, u32_of};
use super::socket::{NetlinkError, Socket};

const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
const GETROUTE: u16 = 26;

/// Length of `struct rtmsg`.
const FIXED: usize = 12;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

const TABLE_MAIN: u32 = 254;
const PROTOCOL_BOOT: u8 = 3;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const SCOPE_NOWHERE: u8 = 255;
const UNICAST: u8 = 1;
const ONLINK: u32 = 4;

/// A route that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewRoute {
    /// Network that it leads to.
    pub to: IpAddr,
    /// Bits of that network.
    pub prefix: u8,
    /// The next router; `None`: the network is on the interface.
    pub gateway: Option<IpAddr>,
    /// The interface.
    pub index: u32,
    /// Its preference: less is better; 0: the kernel's default.
    pub priority: u32,
    /// Its table; `None`: main.
    pub table: Option<u32>,
    /// How far its destination is (`RT_SCOPE_…`); `None`: by the gateway.
    pub scope: Option<u8>,
    /// The largest packet on it; `None`: the interface's.
    pub mtu: Option<u32>,
    /// The largest TCP segment that is advertised on it.
    pub advmss: Option<u32>,
    /// Whether the gateway is on the interface though no address says so.
    pub onlink: bool,
    /// The own address that packets by it have; `None`: the kernel chooses.
    pub source: Option<IpAddr>,
}

impl NewRoute {
    /// A route without special wishes.
    #[must_use]
    pub fn new(to: IpAddr, prefix: u8, gateway: Option<IpAddr>, index: u32) -> Self {
        Self {
            to,
            prefix,
            gateway,
            index,
            priority: 0,
            table: None,
            scope: None,
            mtu: None,
            advmss: None,
            onlink: false,
            source: None,
        }
    }
}

/// Makes a route. A second one to the same network is refused for IPv4 (`EEXIST`) and becomes
/// another way for IPv6.
pub fn add_route(batch: &mut Batch, route: &NewRoute) {
    let flags = flag::CREATE
        | if route.to.is_ipv6() {
            flag::APPEND
        } else {
            flag::EXCLUSIVE
        };
    push(batch, NEWROUTE, flags, route);
}

/// Removes a route, whoever made it. `ESRCH` when it is not there.
pub fn delete_route(batch: &mut Batch, route: &NewRoute) {
    push(batch, DELROUTE, 0, route);
}

fn push(batch: &mut Batch, kind: u16, flags: u16, route: &NewRoute) {
    let mut fixed = [0; FIXED];
    fixed[0] = family(route.to);
    fixed[1] = route.prefix;
    let near = if route.gateway.is_some() || route.to.is_ipv6() {
        SCOPE_UNIVERSE
    } else {
        SCOPE_LINK
    };
    fixed[4] = u8::try_from(route.table.unwrap_or(TABLE_MAIN)).unwrap_or(0);
    if kind == NEWROUTE {
        fixed[5] = PROTOCOL_BOOT;
        fixed[6] = route.scope.unwrap_or(near);
        fixed[7] = UNICAST;
    } else {
        // Whoever made it, and however far it leads.
        fixed[6] = route.scope.unwrap_or(SCOPE_NOWHERE);
    }
    let on = if route.onlink { ONLINK } else { 0 };
    fixed[8..].copy_from_slice(&on.to_ne_bytes());
    batch.push(kind, flags, &fixed, |w| {
        w.raw(RTA_DST, &octets(route.to));
        if let Some(gateway) = route.gateway {
            w.raw(RTA_GATEWAY, &octets(gateway));
        }
        w.u32(RTA_OIF, route.index);
        if let Some(source) = route.source {
            w.raw(RTA_PREFSRC, &octets(source));
        }
        if route.priority != 0 {
            w.u32(RTA_PRIORITY, route.priority);
        }
        route.table.into_iter().for_each(|t| w.u32(RTA_TABLE, t));
        if route.mtu.is_some() || route.advmss.is_some() {
            w.nest(RTA_METRICS, |w| {
                route.mtu.into_iter().for_each(|m| w.u32(RTAX_MTU, m));
                route.advmss.into_iter().for_each(|m| w.u32(RTAX_ADVMSS, m));
            });
        }
    });
}

/// A unicast route as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Network that it leads to.
    pub to: IpAddr,
    /// Bits of that network.
    pub prefix: u8,
    /// The next router.
    pub gateway: Option<IpAddr>,
    /// The interface; 0 for a route with several ways.
    pub index: u32,
    /// Its preference.
    pub priority: u32,
    /// Its table.
    pub table: u32,
}

impl Route {
    fn read(message: &super::message::Message) -> Option<Self> {
        if message.kind != NEWROUTE {
            return None;
        }
        let all = message.attributes(FIXED);
        let any: IpAddr = if message.u8_at(0) == 2 {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        Some(Self {
            to: find(all, RTA_DST).map_or(Some(any), from_octets)?,
            prefix: message.u8_at(1),
            gateway: find(all, RTA_GATEWAY).and_then(from_octets),
            index: find(all, RTA_OIF).map_or(0, u32_of),
            priority: find(all, RTA_PRIORITY).map_or(0, u32_of),
            table: find(all, RTA_TABLE).map_or_else(|| message.u8_at(4).into(), u32_of),
        })
    }
}

/// The unicast routes of the main table of one family.
///
/// # Errors
/// What the kernel refused.
pub fn routes(socket: &mut Socket, ipv6: bool) -> Result<Vec<Route>, NetlinkError> {
    let mut fixed = [0; FIXED];
    fixed[0] = if ipv6 { 10 } else { 2 };
    let all = socket.dump(GETROUTE, &fixed, |_| {})?;
    Ok(all
        .iter()
        .filter(|m| m.u8_at(7) == UNICAST)
        .filter_map(Route::read)
        .filter(|r| r.table == TABLE_MAIN)
        .collect())
}

/// Index of the interface by which the rest of the world is reached: IPv4 first, then IPv6. It asks
/// for the way to addresses that are reserved for documentation (RFC 5737, RFC 3849), so that it
/// costs the same with thousands of routes.
///
/// # Errors
/// What the kernel refused; no way is `None`.
pub fn default_route_link(socket: &mut Socket) -> Result<Option<u32>, NetlinkError> {
    let outside = [
        IpAddr::from([203, 0, 113, 1]),
        IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
    ];
    for address in outside {
        let mut batch = Batch::new();
        let mut fixed = [0; FIXED];
        fixed[0] = family(address);
        fixed[1] = if address.is_ipv4() { 32 } else { 128 };
        batch.push(GETROUTE, 0, &fixed, |w| w.raw(RTA_DST, &octets(address)));
        match socket.execute(&mut batch) {
            Ok(answers) => {
                // An unreachable route answers too, by the loopback and with another type.
                let way = answers.iter().find(|m| m.u8_at(7) == UNICAST);
                if let Some(route) = way.and_then(Route::read).filter(|r| r.index > 1) {
                    return Ok(Some(route.index));
                }
            }
            Err(e) if e.errno == Errno::NETUNREACH || e.errno == Errno::HOSTUNREACH => {}
            Err(e) if e.errno == Errno::AFNOSUPPORT || e.errno == Errno::OPNOTSUPP => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}
