//! `ptp`: a veth from the pod to the node alone: the node is the pod's only neighbour and routes to
//! it.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};
use wharf_sys::netlink::{
    Batch, Link, LinkChange, Mac, NewAddress, NewLink, NewRoute, Peer, Placed, Socket, add_address,
    add_route, change_link, delete_route,
};

use super::bridge::{
    MASQUERADING, Setup, check_pod, forward, make_veth, masquerading, network_owner, set_up, sweep,
    unplug, uplink_mtu,
};
use super::config::decode;
use super::host::{Host, netns_of, send, socket_of, veth_for};
use crate::builtin::{Attachment, Builtin, Invocation};
use crate::error::CniError;
use crate::ip::IpNet;
use crate::result::{CniResult, Dns, Interface};

const KNOWN: [&str; 3] = ["ipMasq", "ipMasqBackend", "mtu"];

/// Index of the pod's interface in the result: behind the host's end.
const POD: usize = 1;

/// The plugin.
#[derive(Debug)]
pub(crate) struct PointToPoint(pub(crate) Arc<Host>);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    ipam: Ipam,
    #[serde(default)]
    dns: Dns,
}

#[derive(Debug, Default, Deserialize)]
struct Ipam {
    #[serde(rename = "type", default)]
    kind: String,
}

fn config(plugin: &Map<String, Value>) -> Result<Config, CniError> {
    let config: Config = decode(plugin, &KNOWN)?;
    if config.ipam.kind.is_empty() {
        return Err(CniError::config(
            "ipam.type",
            "is missing: a pod without neighbours needs addresses",
        ));
    }
    if let Some(other) = config.ip_masq_backend.as_deref()
        && other != "nftables"
        && other != "iptables"
    {
        let text = format!("{other:?} is neither nftables nor iptables");
        return Err(CniError::config("ipMasqBackend", text));
    }
    Ok(config)
}

impl PointToPoint {
    /// Its own: the bridge's interfaces are swept by what is attached to bridges.
    fn group(&self) -> u32 {
        self.0.group() | 0x10
    }

    fn attach(
        &self,
        call: &Invocation<'_>,
        config: &Config,
        mut result: CniResult,
    ) -> Result<CniResult, CniError> {
        let netns = netns_of(call)?;
        for ip in &mut result.ips {
            ip.interface = Some(POD);
            if ip.gateway.is_none() {
                let text = format!("{} gave {} without a gateway", config.ipam.kind, ip.address);
                return Err(CniError::config("ipam", text));
            }
        }
        for (v6, path) in [
            (false, "/proc/sys/net/ipv4/ip_forward"),
            (true, "/proc/sys/net/ipv6/conf/all/forwarding"),
        ] {
            if result.ips.iter().any(|ip| ip.address.addr.is_ipv6() == v6) {
                forward(path)?;
            }
        }
        let host = self
            .0
            .route(|socket| self.plug(socket, call, config, &result))?;
        let setup = Setup {
            ifname: call.ifname,
            detect_duplicates: false,
            announce: false,
            onlink: false,
        };
        let pod = set_up(&netns, setup, &result)?;
        only_neighbour(&mut socket_of(netns.route)?, &pod, &result)?;
        if config.ip_masq {
            let elements = masquerading(call.network, &result);
            self.0.filter(|table| table.add(elements))?;
        }
        let interface = |link: &Link, sandbox: String| Interface {
            name: link.name.clone(),
            mac: link.mac.map(|m| m.to_string()).unwrap_or_default(),
            sandbox,
            ..Interface::default()
        };
        result.interfaces = vec![
            interface(&host, String::new()),
            interface(&pod, netns.path.display().to_string()),
        ];
        if config.dns != Dns::default() {
            result.dns.clone_from(&config.dns);
        }
        Ok(result)
    }

    /// Makes the veth; the host's end has the gateways' addresses and routes to the pod.
    fn plug(
        &self,
        socket: &mut Socket,
        call: &Invocation<'_>,
        config: &Config,
        result: &CniResult,
    ) -> Result<Link, CniError> {
        let mtu = match config.mtu {
            0 => uplink_mtu(socket)?,
            mtu => Some(mtu),
        };
        let name = veth_for(call.container_id, call.ifname);
        let mac = result.ips.iter().find_map(|ip| match ip.address.addr {
            std::net::IpAddr::V4(v4) => Some(Mac::of(v4)),
            std::net::IpAddr::V6(_) => None,
        });
        let new = NewLink {
            name: &name,
            kind: Placed::Veth(Peer {
                name: call.ifname,
                netns: Some(netns_of(call)?.fd),
                mac,
            }),
            mtu,
            mac: None,
            master: None,
            group: self.group(),
        };
        let veth = make_veth(socket, &new, call.ifname)?;
        let mut batch = Batch::new();
        let up = LinkChange {
            alias: Some(call.container_id),
            up: Some(true),
            ..LinkChange::default()
        };
        change_link(&mut batch, veth.index, "", &up);
        for ip in &result.ips {
            if let Some(gateway) = ip.gateway {
                let new = NewAddress {
                    address: gateway,
                    prefix: IpNet::host(gateway).prefix,
                    detect_duplicates: false,
                };
                add_address(&mut batch, veth.index, new);
            }
            let pod = IpNet::host(ip.address.addr);
            add_route(
                &mut batch,
                &NewRoute::new(pod.addr, pod.prefix, None, veth.index),
            );
        }
        send(socket, &mut batch, format!("interface {name}"))?;
        Ok(veth)
    }
}

/// All but the gateway is behind the gateway.
fn only_neighbour(socket: &mut Socket, pod: &Link, result: &CniResult) -> Result<(), CniError> {
    let mut batch = Batch::new();
    for ip in &result.ips {
        let net = ip.address.network();
        let direct = NewRoute::new(net.addr, net.prefix, None, pod.index);
        delete_route(&mut batch, &direct);
        if let Some(gateway) = ip.gateway {
            let host = IpNet::host(gateway);
            for (to, via) in [(host, None), (net, Some(gateway))] {
                let route = NewRoute {
                    source: Some(ip.address.addr),
                    ..NewRoute::new(to.addr, to.prefix, via, pod.index)
                };
                add_route(&mut batch, &route);
            }
        }
    }
    send(socket, &mut batch, "routes of the pod").map(drop)
}

impl Builtin for PointToPoint {
    fn name(&self) -> &'static str {
        "ptp"
    }

    fn add(&self, call: &Invocation<'_>) -> Result<CniResult, CniError> {
        let config = config(call.plugin)?;
        let ipam = call.delegate.add(&config.ipam.kind, call)?;
        self.attach(call, &config, ipam).inspect_err(|_error| {
            let veth = veth_for(call.container_id, call.ifname);
            let undone = self
                .0
                .route(|socket| unplug(socket, &veth))
                .and_then(|()| call.delegate.del(&config.ipam.kind, call));
            if let Err(error) = undone {
                tracing::warn!(%error, "left for the DEL that follows");
            }
        })
    }

    fn del(&self, call: &Invocation<'_>) -> Result<(), CniError> {
        let config = config(call.plugin)?;
        if !self.0.daemon {
            let name = veth_for(call.container_id, call.ifname);
            self.0.route(|socket| unplug(socket, &name))?;
        }
        call.delegate.del(&config.ipam.kind, call)
    }

    fn check(&self, call: &Invocation<'_>) -> Result<(), CniError> {
        let config = config(call.plugin)?;
        call.delegate.check(&config.ipam.kind, call)?;
        let veth = veth_for(call.container_id, call.ifname);
        self.0
            .route(|socket| super::host::link(socket, &veth).map(drop))?;
        check_pod(&netns_of(call)?, call)
    }

    fn status(&self, _network: &str, plugin: &Map<String, Value>) -> Result<(), CniError> {
        config(plugin).map(drop)
    }

    fn gc(
        &self,
        network: &str,
        plugin: &Map<String, Value>,
        valid: &[Attachment],
    ) -> Result<(), CniError> {
        let _checked = config(plugin)?;
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
        let mut ends = Vec::new();
        for call in attached {
            ends.push(veth_for(call.container_id, call.ifname));
            if let Some(result) = call
                .prev_result
                .filter(|_| config(call.plugin).is_ok_and(|c| c.ip_masq))
            {
                elements.extend(masquerading(call.network, result));
            }
        }
        if !elements.is_empty() {
            // The plugin bridge, which comes first, has emptied the sets.
            self.0.filter(|table| table.add(elements))?;
        }
        self.0.route(|socket| sweep(socket, self.group(), &ends))
    }
}
