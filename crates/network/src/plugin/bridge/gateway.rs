//! The bridge on the node, and the gateway's addresses on it.

use std::fs;
use std::net::IpAddr;

use rustix::io::Errno;
use wharf_sys::netlink::{
    self, Batch, Link, LinkChange, Mac, NewAddress, NewLink, Placed, Socket, add_address, add_link,
    addresses, change_link, delete_address, link_by_name,
};

use super::config::Config;
use crate::error::CniError;
use crate::ip::IpNet;
use crate::plugin::host::{failed, link, send};
use crate::result::{CniResult, Route};

/// Completes what address management gave, as the reference plugin does, and gives the addresses
/// that the bridge is to have.
pub(super) fn complete(config: &Config, result: &mut CniResult, interface: usize) -> Vec<IpNet> {
    let mut own = Vec::new();
    let mut has_default = [false; 2];
    for ip in &mut result.ips {
        ip.interface = Some(interface);
        if ip.gateway.is_none() && config.gateway {
            ip.gateway = ip.address.nth(1);
        }
        let v6 = ip.address.addr.is_ipv6();
        if config.default_gateway && !has_default[usize::from(v6)] {
            let any: IpAddr = if v6 {
                std::net::Ipv6Addr::UNSPECIFIED.into()
            } else {
                std::net::Ipv4Addr::UNSPECIFIED.into()
            };
            let default = IpNet {
                addr: any,
                prefix: 0,
            };
            let there = result
                .routes
                .iter()
                .any(|r| r.dst == default && r.gw.is_some());
            if !there {
                result.routes.push(Route::new(default, ip.gateway));
            }
            has_default[usize::from(v6)] = true;
        }
        if let Some(addr) = ip.gateway.filter(|_| config.gateway) {
            own.push(IpNet {
                addr,
                prefix: ip.address.prefix,
            });
        }
    }
    own
}

/// The bridge is there and up.
pub(super) fn ensure(
    socket: &mut Socket,
    config: &Config,
    mtu: Option<u32>,
) -> Result<Link, CniError> {
    let what = format!("bridge {}", config.bridge);
    let there = link_by_name(socket, &config.bridge).map_err(|e| failed(&what, e))?;
    let bridge = match there {
        Some(there) => there,
        None => make(socket, config, mtu)?,
    };
    if bridge.kind != "bridge" {
        let text = format!("interface {} is there and is no bridge", config.bridge);
        return Err(CniError::config("bridge", text));
    }
    let promiscuous = config.promiscuous && !bridge.promiscuous;
    if !bridge.up || promiscuous {
        let mut batch = Batch::new();
        let change = LinkChange {
            up: Some(true),
            promiscuous: promiscuous.then_some(true),
            ..LinkChange::default()
        };
        change_link(&mut batch, bridge.index, "", &change);
        send(socket, &mut batch, &what)?;
    }
    Ok(bridge)
}

fn make(socket: &mut Socket, config: &Config, mtu: Option<u32>) -> Result<Link, CniError> {
    let what = format!("bridge {}", config.bridge);
    // An address of its own from the beginning: without, it has that of its lowest port, and
    // changes as pods come and go.
    let mac = Mac::random().map_err(|e| failed(&what, std::io::Error::from(e)))?;
    let mut batch = Batch::new();
    let new = NewLink {
        name: &config.bridge,
        kind: Placed::Bridge(config.filters()),
        mtu,
        mac: Some(mac),
        master: None,
        group: 0,
    };
    add_link(&mut batch, &new);
    match socket.execute(&mut batch) {
        Ok(_none) => {}
        // Another call was faster.
        Err(e) if e.errno == Errno::EXIST => {}
        Err(e) => return Err(failed(&what, e)),
    }
    // Routes by it are ours to make. Where IPv6 is off there is nothing to switch off.
    let accept = format!("/proc/sys/net/ipv6/conf/{}/accept_ra", config.bridge);
    if let Err(error) = fs::write(accept, "0") {
        tracing::debug!(%error, bridge = config.bridge, "accept_ra stays");
    }
    link(socket, &config.bridge)
}

/// The bridge has these addresses, and the node forwards packets of their families.
pub(super) fn address(
    socket: &mut Socket,
    config: &Config,
    bridge: &Link,
    own: &[IpNet],
) -> Result<(), CniError> {
    let what = |net: &IpNet| format!("address {net} of bridge {}", config.bridge);
    for net in own {
        let mut batch = Batch::new();
        let new = NewAddress {
            address: net.addr,
            prefix: net.prefix,
            detect_duplicates: false,
        };
        add_address(&mut batch, bridge.index, new);
        match socket.execute(&mut batch) {
            // It has it: the common case costs one message.
            Err(e) if e.errno == Errno::EXIST => continue,
            Err(e) => return Err(failed(what(net), e)),
            Ok(_none) => {}
        }
        if let Err(refused) = alone(socket, config, bridge, net) {
            let mut batch = Batch::new();
            delete_address(&mut batch, bridge.index, net.addr, net.prefix);
            send(socket, &mut batch, what(net))?;
            return Err(refused);
        }
    }
    for (v6, path) in [
        (false, "/proc/sys/net/ipv4/ip_forward"),
        (true, "/proc/sys/net/ipv6/conf/all/forwarding"),
    ] {
        if own.iter().any(|net| net.addr.is_ipv6() == v6) {
            forward(path)?;
        }
    }
    Ok(())
}

/// One IPv4 address, and of IPv6 one of each network: others go or are in the way.
fn alone(socket: &mut Socket, config: &Config, bridge: &Link, net: &IpNet) -> Result<(), CniError> {
    let all = addresses(socket).map_err(|e| failed("addresses of the node", e))?;
    for other in all.iter().filter(|a| a.index == bridge.index) {
        let theirs = IpNet {
            addr: other.address,
            prefix: other.prefix,
        };
        let clash = theirs.addr.is_ipv4() == net.addr.is_ipv4()
            && (net.addr.is_ipv4() || theirs.overlaps(*net));
        if theirs == *net || !clash {
            continue;
        }
        if !config.force_address {
            return Err(CniError::internal(format!(
                "bridge {} has the address {theirs}, which is not {net}: set forceAddress, or give \
                 the network another bridge",
                config.bridge
            )));
        }
        let mut batch = Batch::new();
        delete_address(&mut batch, bridge.index, theirs.addr, theirs.prefix);
        send(
            socket,
            &mut batch,
            format!("address {theirs} of bridge {}", config.bridge),
        )?;
    }
    Ok(())
}

/// Switches forwarding on where it is off. Writing takes a lock of the whole network: reading not.
pub(crate) fn forward(path: &str) -> Result<(), CniError> {
    let on = fs::read_to_string(path).map_err(|e| failed(path, e))?;
    if on.trim() == "1" {
        return Ok(());
    }
    fs::write(path, "1").map_err(|e| failed(path, e))
}

/// The largest packet of the node's way to the world.
pub(crate) fn uplink_mtu(socket: &mut Socket) -> Result<Option<u32>, CniError> {
    let read = |e| failed("the node's default route", e);
    let Some(index) = netlink::default_route_link(socket).map_err(read)? else {
        return Ok(None);
    };
    let link = netlink::link_by_index(socket, index).map_err(read)?;
    Ok(link.map(|l| l.mtu))
}
