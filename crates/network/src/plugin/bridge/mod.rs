//! `bridge`: a veth from the pod to a bridge of the node.

mod config; // what a configuration says
mod gateway; // the bridge and its addresses
mod wire; // the pod's end

use std::sync::Arc;

use rustix::io::Errno;
use serde_json::{Map, Value};
use wharf_sys::netlink::{
    Batch, BridgeVlan, Link, LinkChange, Mac, NewLink, Peer, Placed, PortChange, Socket,
    add_bridge_vlan, add_link, change_link, change_port, delete_bridge_vlan, delete_group,
    delete_link_by_name, link_by_name, links, query_link,
};
use wharf_sys::nft::{Element, range, value};

use self::config::{Config, wished_mac};
pub(super) use self::gateway::{forward, uplink_mtu};
pub(super) use self::wire::{Setup, set_up};
use super::host::{Host, failed, netns_of, octets, owner, send, socket_of, veth_for};
use crate::builtin::{Attachment, Builtin, Invocation, Netns};
use crate::error::CniError;
use crate::ip::IpNet;
use crate::result::{CniResult, Dns, Interface};
use crate::rules::{Bridges, Filter};

/// Index of the pod's interface in the result: behind the bridge and the host's end.
const POD: usize = 2;
/// The bridge's default VLAN.
const DEFAULT_VLAN: u16 = 1;

/// The plugin.
#[derive(Debug)]
pub(crate) struct Bridge(pub(crate) Arc<Host>);

impl Bridge {
    fn attach(
        &self,
        call: &Invocation<'_>,
        config: &Config,
        ipam: CniResult,
    ) -> Result<CniResult, CniError> {
        let netns = netns_of(call)?;
        let mut result = ipam;
        result.interfaces.clear();
        let own = gateway::complete(config, &mut result, POD);
        let mac = pod_mac(call, &result)?;
        let (bridge, veth) = self.0.route(|socket| {
            let mtu = match config.mtu {
                Some(mtu) => Some(mtu),
                None => uplink_mtu(socket)?,
            };
            let bridge = gateway::ensure(socket, config, mtu)?;
            gateway::address(socket, config, &bridge, &own)?;
            let veth = self.plug(socket, call, config, (&bridge, mac, mtu))?;
            Ok((bridge, veth))
        })?;
        let pod = if config.leave_down {
            pod_link(&netns, call.ifname)?
        } else {
            let setup = Setup {
                ifname: call.ifname,
                detect_duplicates: config.detect_duplicates,
                announce: !config.ipam.is_empty(),
                onlink: false,
            };
            set_up(&netns, setup, &result)?
        };
        if config.check_mac {
            self.check_frames(call, &veth.name, pod.mac)?;
        }
        if config.masquerade {
            let elements = masquerading(call.network, &result);
            self.0.filter(|table| table.add(elements))?;
        }
        result.interfaces = vec![
            interface(&bridge, None),
            interface(&veth, None),
            interface(&pod, Some(&netns)),
        ];
        if config.dns != Dns::default() {
            result.dns = config.dns.clone();
        }
        Ok(result)
    }

    /// Makes the veth, one end in the pod, the other a port of the bridge. Gives the port.
    fn plug(
        &self,
        socket: &mut Socket,
        call: &Invocation<'_>,
        config: &Config,
        (bridge, mac, mtu): (&Link, Option<Mac>, Option<u32>),
    ) -> Result<Link, CniError> {
        let netns = netns_of(call)?;
        let name = veth_for(call.container_id, call.ifname);
        let new = NewLink {
            name: &name,
            kind: Placed::Veth(Peer {
                name: call.ifname,
                netns: Some(netns.fd),
                mac,
            }),
            mtu,
            mac: None,
            master: Some(bridge.index),
            group: self.0.group(),
        };
        let veth = make_veth(socket, &new, call.ifname)?;
        let mut batch = Batch::new();
        let change = LinkChange {
            alias: Some(call.container_id),
            link_local: Some(false),
            ..LinkChange::default()
        };
        change_link(&mut batch, veth.index, "", &change);
        if config.hairpin || config.isolated {
            let port = PortChange {
                hairpin: Some(config.hairpin),
                isolated: Some(config.isolated),
            };
            change_port(&mut batch, veth.index, port);
        }
        vlans(&mut batch, config, veth.index);
        let up = LinkChange {
            up: Some(true),
            ..LinkChange::default()
        };
        change_link(&mut batch, veth.index, "", &up);
        send(
            socket,
            &mut batch,
            format!("port {name} of bridge {}", config.bridge),
        )?;
        Ok(veth)
    }

    fn check_frames(
        &self,
        call: &Invocation<'_>,
        port: &str,
        mac: Option<Mac>,
    ) -> Result<(), CniError> {
        let Some(mac) = mac else { return Ok(()) };
        let name = name_bytes(port);
        let element = |parts: &[&[u8]]| Element {
            key: value(parts),
            comment: owner(call.container_id, call.ifname),
            ..Element::default()
        };
        let elements = vec![
            (Bridges::Genuine, element(&[&name, &mac.0])),
            (Bridges::Checked, element(&[&name])),
        ];
        self.0.bridges(|table| table.add(elements))
    }

    fn detach(&self, call: &Invocation<'_>, config: &Config) -> Result<(), CniError> {
        if config.check_mac {
            let owner = owner(call.container_id, call.ifname);
            let sets = [Bridges::Checked, Bridges::Genuine];
            self.0
                .bridges(|table| table.remove(&sets, |_set, e| e.comment == owner).map(drop))?;
        }
        // The daemon drops the pod's namespace, and the kernel removes the interface in its own
        // time; removing it here would hold the lock of all interfaces for 20 ms.
        if self.0.daemon {
            return Ok(());
        }
        let name = veth_for(call.container_id, call.ifname);
        self.0.route(|socket| unplug(socket, &name))
    }
}

/// Makes a veth and gives the host's end. One with the same name is of the same container's
/// interface, from an attempt before: it goes.
pub(super) fn make_veth(
    socket: &mut Socket,
    new: &NewLink<'_>,
    ifname: &str,
) -> Result<Link, CniError> {
    for attempt in 0.. {
        let mut batch = Batch::new();
        add_link(&mut batch, new);
        query_link(&mut batch, new.name);
        let error = match socket.execute(&mut batch) {
            Ok(answers) => {
                let link = answers.iter().find_map(Link::read);
                return link.ok_or_else(|| failed(new.name, "made and not there"));
            }
            Err(e) => e,
        };
        let there = link_by_name(socket, new.name).map_err(|e| failed(new.name, e))?;
        if error.errno != Errno::EXIST || attempt > 0 || there.is_none() {
            let what = format!("interfaces {} and {ifname} of the pod", new.name);
            return Err(failed(what, error));
        }
        unplug(socket, new.name)?;
    }
    Err(CniError::internal(format!(
        "interface {} comes back",
        new.name
    )))
}

/// Removes an interface of the host and so its other end.
pub(super) fn unplug(socket: &mut Socket, name: &str) -> Result<(), CniError> {
    let mut batch = Batch::new();
    delete_link_by_name(&mut batch, name);
    match socket.execute(&mut batch) {
        Err(e) if e.errno != Errno::NODEV => Err(failed(format!("interface {name}"), e)),
        _gone => Ok(()),
    }
}

fn pod_link(netns: &Netns<'_>, ifname: &str) -> Result<Link, CniError> {
    super::host::link(&mut socket_of(netns.route)?, ifname)
}

/// The address that was wished for, or one that belongs to the pod's IPv4 address.
fn pod_mac(call: &Invocation<'_>, result: &CniResult) -> Result<Option<Mac>, CniError> {
    if let Some(wish) = wished_mac(call)? {
        return Ok(Some(wish));
    }
    Ok(result.ips.iter().find_map(|ip| match ip.address.addr {
        std::net::IpAddr::V4(v4) => Some(Mac::of(v4)),
        std::net::IpAddr::V6(_) => None,
    }))
}

fn vlans(batch: &mut Batch, config: &Config, port: u32) {
    if !config.filters() {
        return;
    }
    if !config.keep_default_vlan {
        delete_bridge_vlan(batch, port, DEFAULT_VLAN);
    }
    // A trunk without a VLAN of its own has the default one for packets without a tag.
    let native = config.vlan.unwrap_or(DEFAULT_VLAN);
    let own = BridgeVlan {
        id: native,
        native: true,
        untagged: true,
    };
    add_bridge_vlan(batch, port, own);
    for id in config.trunk.iter().filter(|id| **id != native) {
        let tagged = BridgeVlan {
            id: *id,
            native: false,
            untagged: false,
        };
        add_bridge_vlan(batch, port, tagged);
    }
}

fn interface(link: &Link, netns: Option<&Netns<'_>>) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.map(|m| m.to_string()).unwrap_or_default(),
        sandbox: netns
            .map(|n| n.path.display().to_string())
            .unwrap_or_default(),
        ..Interface::default()
    }
}

/// An interface's name as a key of nftables: 16 bytes.
pub(super) fn name_bytes(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

/// What a network's rules say of themselves.
pub(super) fn network_owner(network: &str) -> String {
    format!("network {network}")
}

/// An element for packets from one network to another.
pub(super) fn from_to(from: IpNet, to: IpNet, comment: String) -> Element {
    let (from_first, from_last) = range(&octets(from.addr), from.prefix);
    let (to_first, to_last) = range(&octets(to.addr), to.prefix);
    Element {
        key: value(&[&from_first, &to_first]),
        last: value(&[&from_last, &to_last]),
        value: Vec::new(),
        comment,
    }
}

/// The networks of a result are masqueraded when they leave; not inside, not to groups.
pub(super) fn masquerading(network: &str, result: &CniResult) -> Vec<(Filter, Element)> {
    let mut all = Vec::new();
    for net in result.ips.iter().map(|ip| ip.address.network()) {
        let v4 = net.addr.is_ipv4();
        let (local, masquerade) = if v4 {
            (Filter::Local4, Filter::Masquerade4)
        } else {
            (Filter::Local6, Filter::Masquerade6)
        };
        let (groups, any): (IpNet, IpNet) = if v4 {
            let groups = std::net::Ipv4Addr::new(224, 0, 0, 0).into();
            let any = std::net::Ipv4Addr::UNSPECIFIED.into();
            (
                IpNet {
                    addr: groups,
                    prefix: 4,
                },
                IpNet {
                    addr: any,
                    prefix: 0,
                },
            )
        } else {
            let groups = std::net::Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into();
            let any = std::net::Ipv6Addr::UNSPECIFIED.into();
            (
                IpNet {
                    addr: groups,
                    prefix: 8,
                },
                IpNet {
                    addr: any,
                    prefix: 0,
                },
            )
        };
        let owner = || network_owner(network);
        all.push((local, from_to(net, net, owner())));
        all.push((local, from_to(net, groups, owner())));
        all.push((masquerade, from_to(net, any, owner())));
    }
    all
}

/// The sets that [`masquerading`] is about.
pub(super) const MASQUERADING: [Filter; 4] = [
    Filter::Local4,
    Filter::Local6,
    Filter::Masquerade4,
    Filter::Masquerade6,
];

impl Builtin for Bridge {
    fn name(&self) -> &'static str {
        "bridge"
    }

    fn add(&self, call: &Invocation<'_>) -> Result<CniResult, CniError> {
        let config = Config::of(call.plugin)?;
        if config.ipam.is_empty() {
            return self.attach(call, &config, CniResult::default());
        }
        let ipam = call.delegate.add(&config.ipam, call)?;
        let attached = if ipam.ips.is_empty() {
            let text = format!("{} gave no address", config.ipam);
            Err(CniError::config("ipam.type", text))
        } else {
            self.attach(call, &config, ipam)
        };
        attached.inspect_err(|_error| {
            let veth = veth_for(call.container_id, call.ifname);
            let undone = self
                .0
                .route(|socket| unplug(socket, &veth))
                .and_then(|()| call.delegate.del(&config.ipam, call));
            if let Err(error) = undone {
                tracing::warn!(%error, "left for the DEL that follows");
            }
        })
    }

    fn del(&self, call: &Invocation<'_>) -> Result<(), CniError> {
        let config = Config::of(call.plugin)?;
        self.detach(call, &config)?;
        if config.ipam.is_empty() {
            return Ok(());
        }
        call.delegate.del(&config.ipam, call)
    }

    fn check(&self, call: &Invocation<'_>) -> Result<(), CniError> {
        let config = Config::of(call.plugin)?;
        if !config.ipam.is_empty() {
            call.delegate.check(&config.ipam, call)?;
        }
        let veth = veth_for(call.container_id, call.ifname);
        self.0.route(|socket| {
            let bridge = super::host::link(socket, &config.bridge)?;
            let port = super::host::link(socket, &veth)?;
            if port.master != Some(bridge.index) {
                let text = format!("interface {veth} is no port of bridge {}", config.bridge);
                return Err(CniError::internal(text));
            }
            Ok(())
        })?;
        let netns = netns_of(call)?;
        check_pod(&netns, call)
    }

    fn status(&self, network: &str, plugin: &Map<String, Value>) -> Result<(), CniError> {
        let config = Config::of(plugin)?;
        if config.ipam.is_empty() {
            return Ok(());
        }
        call_status(network, plugin, &config)
    }

    fn gc(
        &self,
        network: &str,
        plugin: &Map<String, Value>,
        valid: &[Attachment],
    ) -> Result<(), CniError> {
        let _checked = Config::of(plugin)?;
        if valid.is_empty() {
            let owner = network_owner(network);
            self.0.filter(|table| {
                table
                    .remove(&MASQUERADING, |_set, e| e.comment == owner)
                    .map(drop)
            })?;
        }
        Ok(())
    }

    fn restore(&self, attached: &[Invocation<'_>]) -> Result<(), CniError> {
        let mut elements = Vec::new();
        let mut ports = Vec::new();
        for call in attached {
            let config = Config::of(call.plugin)?;
            ports.push(veth_for(call.container_id, call.ifname));
            if let Some(result) = call.prev_result.filter(|_| config.masquerade) {
                elements.extend(masquerading(call.network, result));
            }
        }
        self.0
            .filter(|table| table.replace(&MASQUERADING, elements))?;
        self.0.route(|socket| sweep(socket, self.0.group(), &ports))
    }
}

/// Address management says for itself whether it can attach; only what is built in is asked here.
fn call_status(
    _network: &str,
    plugin: &Map<String, Value>,
    config: &Config,
) -> Result<(), CniError> {
    if plugin.get("ipam").is_none_or(|i| !i.is_object()) {
        return Err(CniError::config(
            "ipam",
            format!("{} needs an object", config.ipam),
        ));
    }
    Ok(())
}

/// The pod's interface has the addresses of the result, and its routes.
pub(super) fn check_pod(netns: &Netns<'_>, call: &Invocation<'_>) -> Result<(), CniError> {
    let mut socket = socket_of(netns.route)?;
    let link = super::host::link(&mut socket, call.ifname)?;
    let Some(result) = call.prev_result else {
        return Ok(());
    };
    let own = result
        .interfaces
        .iter()
        .position(|i| i.name == call.ifname && !i.sandbox.is_empty());
    let there = wharf_sys::netlink::addresses(&mut socket).map_err(|e| failed("addresses", e))?;
    for ip in result.ips.iter().filter(|ip| ip.interface == own) {
        let found = there.iter().any(|a| {
            a.index == link.index && a.address == ip.address.addr && a.prefix == ip.address.prefix
        });
        if !found {
            let text = format!("{} of the pod does not have {}", call.ifname, ip.address);
            return Err(CniError::internal(text));
        }
    }
    for v6 in [false, true] {
        let routes =
            wharf_sys::netlink::routes(&mut socket, v6).map_err(|e| failed("routes", e))?;
        for route in result.routes.iter().filter(|r| r.dst.addr.is_ipv6() == v6) {
            let dst = route.dst.network();
            let main = route.table.is_none_or(|t| t == 254);
            if main
                && !routes
                    .iter()
                    .any(|r| r.to == dst.addr && r.prefix == dst.prefix)
            {
                return Err(CniError::internal(format!("the pod has no route to {dst}")));
            }
        }
    }
    Ok(())
}

/// Removes the interfaces of our group that belong to nobody: all at once, for each one alone would
/// cost 20 ms.
pub(super) fn sweep(socket: &mut Socket, group: u32, valid: &[String]) -> Result<(), CniError> {
    let all = links(socket).map_err(|e| failed("interfaces", e))?;
    let orphans: Vec<&Link> = all
        .iter()
        .filter(|l| l.group == group && !valid.contains(&l.name))
        .collect();
    if orphans.is_empty() {
        return Ok(());
    }
    let doomed = group | 0x8000;
    let mut batch = Batch::new();
    for orphan in &orphans {
        tracing::info!(
            interface = orphan.name,
            container = orphan.alias,
            "belongs to no pod: removed"
        );
        let change = LinkChange {
            group: Some(doomed),
            ..LinkChange::default()
        };
        change_link(&mut batch, orphan.index, "", &change);
    }
    // One that goes by itself in this moment is no failure.
    let (_none, _gone) = socket
        .execute_all(&mut batch)
        .map_err(|e| failed("orphaned interfaces", e))?;
    let mut batch = Batch::new();
    delete_group(&mut batch, doomed);
    match socket.execute(&mut batch) {
        Err(e) if e.errno != Errno::NODEV => Err(failed("orphaned interfaces", e)),
        _swept => Ok(()),
    }
}
