//! The pod's end of an interface, from outside: addresses and routes over the socket that was opened
//! inside.

use std::net::IpAddr;

use rustix::io::Errno;
use wharf_sys::netlink::{
    ARP_NOTIFY, Batch, Link, LinkChange, NewAddress, NewRoute, Socket, add_address, add_route,
    change_link, query_link,
};

use crate::builtin::Netns;
use crate::error::CniError;
use crate::plugin::host::{failed, send, socket_of};
use crate::result::CniResult;

/// How the pod's interface is set up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup<'a> {
    /// Its name.
    pub(crate) ifname: &'a str,
    /// Whether IPv6 addresses are tried on the wire first.
    pub(crate) detect_duplicates: bool,
    /// Whether neighbours are told when it comes up.
    pub(crate) announce: bool,
    /// Whether gateways are taken as reachable though no address says so.
    pub(crate) onlink: bool,
}

/// Gives the interface its addresses and routes, and brings it up. Gives it as it is then.
pub(crate) fn set_up(
    netns: &Netns<'_>,
    setup: Setup<'_>,
    result: &CniResult,
) -> Result<Link, CniError> {
    let mut socket = socket_of(netns.route)?;
    let mut batch = Batch::new();
    let has_ipv6 = result.ips.iter().any(|ip| ip.address.addr.is_ipv6());
    let quiet: &[(u16, u32)] = if setup.announce {
        &[(ARP_NOTIFY, 1)]
    } else {
        &[]
    };
    let before = LinkChange {
        // Nobody asks for IPv6: no address of its own, no packets to find neighbours and routers.
        link_local: (!has_ipv6).then_some(false),
        ipv4: quiet,
        ..LinkChange::default()
    };
    let up = LinkChange {
        up: Some(true),
        ..LinkChange::default()
    };
    if before.link_local.is_some() || !before.ipv4.is_empty() {
        change_link(&mut batch, 0, setup.ifname, &before);
    }
    change_link(&mut batch, 0, setup.ifname, &up);
    query_link(&mut batch, setup.ifname);
    let what = format!("interface {} of the pod", setup.ifname);
    let answers = send(&mut socket, &mut batch, &what)?;
    let link = answers
        .iter()
        .find_map(Link::read)
        .ok_or_else(|| CniError::internal(format!("{what} is not there")))?;
    addresses(&mut socket, netns, setup, &link, result)?;
    routes(&mut socket, setup, &link, result)?;
    Ok(link)
}

fn addresses(
    socket: &mut Socket,
    netns: &Netns<'_>,
    setup: Setup<'_>,
    link: &Link,
    result: &CniResult,
) -> Result<(), CniError> {
    let write = || {
        let mut batch = Batch::new();
        for ip in &result.ips {
            let new = NewAddress {
                address: ip.address.addr,
                prefix: ip.address.prefix,
                detect_duplicates: setup.detect_duplicates,
            };
            add_address(&mut batch, link.index, new);
        }
        batch
    };
    let named = |at: usize| {
        let ip = result.ips.get(at).map(|ip| ip.address.to_string());
        format!("address {} of the pod", ip.unwrap_or_default())
    };
    match socket.execute(&mut write()) {
        Ok(_none) => Ok(()),
        // IPv6 is switched off in the namespace; the pod is to have it.
        Err(e) if e.errno == Errno::ACCESS => {
            for name in ["lo", setup.ifname] {
                let name = format!("net/ipv6/conf/{name}/disable_ipv6");
                netns
                    .inside
                    .set_sysctl(&name, "0")
                    .map_err(|e| failed(&name, e))?;
            }
            let (_none, error) = socket
                .execute_all(&mut write())
                .map_err(|e| failed("addresses of the pod", e))?;
            error
                .filter(|e| e.errno != Errno::EXIST)
                .map_or(Ok(()), |e| Err(failed(named(e.at), e)))
        }
        Err(e) => Err(failed(named(e.at), e)),
    }
}

fn routes(
    socket: &mut Socket,
    setup: Setup<'_>,
    link: &Link,
    result: &CniResult,
) -> Result<(), CniError> {
    let gateway = |v4: bool| {
        let mut all = result.ips.iter().filter_map(|ip| ip.gateway);
        all.find(|gateway| gateway.is_ipv4() == v4)
    };
    let mut batch = Batch::new();
    for route in &result.routes {
        let dst = route.dst.network();
        let via: Option<IpAddr> = route.gw.or_else(|| gateway(dst.addr.is_ipv4()));
        let new = NewRoute {
            priority: route.priority.unwrap_or(0),
            table: route.table,
            scope: route.scope,
            mtu: route.mtu,
            advmss: route.advmss,
            onlink: setup.onlink && via.is_some(),
            ..NewRoute::new(dst.addr, dst.prefix, via, link.index)
        };
        add_route(&mut batch, &new);
    }
    socket.execute(&mut batch).map(drop).map_err(|e| {
        let dst = result.routes.get(e.at).map(|r| r.dst.to_string());
        failed(
            format!("route to {} of the pod", dst.unwrap_or_default()),
            e,
        )
    })
}
