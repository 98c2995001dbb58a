//! `portmap`: ports of the node that lead to the pod. One element of a map each.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};
use wharf_sys::netlink::{Socket, forget_udp_to_ports};
use wharf_sys::nft::{Element, value};

use super::bridge::{from_to, network_owner};
use super::config::{decode, runtime};
use super::host::{Host, failed, octets, owner, previous_of};
use crate::builtin::{Attachment, Builtin, Invocation};
use crate::error::CniError;
use crate::ip::IpNet;
use crate::ports::{Mapping, Protocol};
use crate::result::CniResult;
use crate::rules::Filter;

const KNOWN: [&str; 7] = [
    "backend",
    "snat",
    "conditionsV4",
    "conditionsV6",
    "masqAll",
    "markMasqBit",
    "externalSetMarkChain",
];

/// Ports of one pod.
const MAX_MAPPINGS: usize = 4096;

const MAPS: [Filter; 4] = [
    Filter::Ports4,
    Filter::Ports4At,
    Filter::Ports6,
    Filter::Ports6At,
];
const HAIRPINS: [Filter; 2] = [Filter::Hairpin4, Filter::Hairpin6];
const ALL: [Filter; 6] = [
    Filter::Ports4,
    Filter::Ports4At,
    Filter::Ports6,
    Filter::Ports6At,
    Filter::Hairpin4,
    Filter::Hairpin6,
];

/// The plugin.
#[derive(Debug)]
pub(crate) struct Portmap(pub(crate) Arc<Host>);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default = "yes")]
    snat: bool,
    backend: Option<String>,
    #[serde(default, rename = "conditionsV4")]
    conditions_v4: Vec<String>,
    #[serde(default, rename = "conditionsV6")]
    conditions_v6: Vec<String>,
    #[serde(default)]
    masq_all: bool,
}

fn yes() -> bool {
    true
}

fn config(plugin: &Map<String, Value>) -> Result<Config, CniError> {
    let config: Config = decode(plugin, &KNOWN)?;
    if let Some(other) = config.backend.as_deref()
        && other != "nftables"
        && other != "iptables"
    {
        let text = format!("{other:?} is neither nftables nor iptables");
        return Err(CniError::config("backend", text));
    }
    for (field, there) in [
        ("conditionsV4", !config.conditions_v4.is_empty()),
        ("conditionsV6", !config.conditions_v6.is_empty()),
        ("masqAll", config.masq_all),
    ] {
        if there {
            let text = "not supported yet by the built-in plugin: leave it out";
            return Err(CniError::unsupported(field, text));
        }
    }
    Ok(config)
}

/// An entry of the capability `portMappings`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(default)]
    host_port: u32,
    #[serde(default)]
    container_port: u32,
    protocol: Protocol,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

/// The pod's addresses with their networks, the first of each family.
fn pod_addresses(call: &Invocation<'_>, result: &CniResult) -> Vec<IpNet> {
    let mut found: Vec<IpNet> = Vec::new();
    for ip in &result.ips {
        let on = ip.interface.and_then(|i| result.interfaces.get(i));
        if on.is_some_and(|i| i.name != call.ifname || i.sandbox.is_empty()) {
            continue;
        }
        if !found
            .iter()
            .any(|f| f.addr.is_ipv4() == ip.address.addr.is_ipv4())
        {
            found.push(ip.address);
        }
    }
    found
}

fn mappings(call: &Invocation<'_>, pod: &[IpNet]) -> Result<Vec<Mapping>, CniError> {
    let written: Vec<Written> = runtime(call.runtime_config, "portMappings")?.unwrap_or_default();
    if written.len() > MAX_MAPPINGS {
        let text = format!("more than {MAX_MAPPINGS} ports");
        return Err(CniError::config("runtimeConfig.portMappings", text));
    }
    let mut all: Vec<Mapping> = Vec::new();
    for (i, entry) in written.iter().enumerate() {
        let wrong = |field: &str, what: String| {
            CniError::config(&format!("runtimeConfig.portMappings[{i}].{field}"), what)
        };
        let port = |field, number: u32| match u16::try_from(number) {
            Ok(port) if port != 0 => Ok(port),
            _ => Err(wrong(field, format!("{number} is no port: 1 to 65535"))),
        };
        let at: Option<IpAddr> =
            match entry.host_ip.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_no_address| {
                    wrong("hostIP", format!("{text:?} is not an address"))
                })?),
            };
        // None: of both families, where the pod has both.
        let family = at.map(|a| a.is_ipv4());
        let host = port("hostPort", entry.host_port)?;
        let inside = port("containerPort", entry.container_port)?;
        let to: Vec<SocketAddr> = pod
            .iter()
            .filter(|net| family.is_none_or(|v4| v4 == net.addr.is_ipv4()))
            .map(|net| SocketAddr::new(net.addr, inside))
            .collect();
        let mapping = Mapping {
            protocol: entry.protocol,
            port: host,
            at,
            to,
        };
        if !mapping.to.is_empty() && !all.contains(&mapping) {
            all.push(mapping);
        }
    }
    Ok(all)
}

fn elements(
    call: &Invocation<'_>,
    config: &Config,
    pod: &[IpNet],
    mappings: &[Mapping],
) -> Vec<(Filter, Element)> {
    let comment = owner(call.container_id, call.ifname);
    let mut all = Vec::new();
    for mapping in mappings {
        // Over loopback a port is reached through a listener alone, never from outside.
        if mapping.at.is_some_and(|a| a.is_loopback()) {
            continue;
        }
        let protocol = [mapping.protocol.number()];
        let port = mapping.port.to_be_bytes();
        for to in &mapping.to {
            let address = octets(to.ip());
            let at = mapping.at.filter(|a| !a.is_unspecified());
            let (set, key) = match (at.map(octets), to.is_ipv4()) {
                (None, true) => (Filter::Ports4, value(&[&protocol, &port])),
                (None, false) => (Filter::Ports6, value(&[&protocol, &port])),
                (Some(at), true) => (Filter::Ports4At, value(&[&at, &protocol, &port])),
                (Some(at), false) => (Filter::Ports6At, value(&[&at, &protocol, &port])),
            };
            let element = Element {
                key,
                last: Vec::new(),
                value: value(&[&address, &to.port().to_be_bytes()]),
                comment: comment.clone(),
            };
            all.push((set, element));
        }
    }
    if config.snat && !mappings.is_empty() {
        for net in pod {
            let set = if net.addr.is_ipv4() {
                Filter::Hairpin4
            } else {
                Filter::Hairpin6
            };
            // Neighbours come back over the node; a pod alone in its network belongs to itself.
            let alone = IpNet::host(net.addr) == *net;
            let comment = if alone {
                comment.clone()
            } else {
                network_owner(call.network)
            };
            all.push((set, from_to(net.network(), net.network(), comment)));
        }
    }
    all
}

/// UDP that began before goes past a new mapping, and after it to a pod that is gone.
fn forget(mappings: impl Iterator<Item = (Protocol, u16)>) {
    let ports: Vec<u16> = mappings
        .filter(|(protocol, _port)| *protocol == Protocol::Udp)
        .map(|(_udp, port)| port)
        .collect();
    if ports.is_empty() {
        return;
    }
    let forgotten = Socket::netfilter().and_then(|mut socket| {
        let v4 = forget_udp_to_ports(&mut socket, false, &ports)?;
        Ok(v4 + forget_udp_to_ports(&mut socket, true, &ports)?)
    });
    match forgotten {
        Ok(flows) => tracing::debug!(flows, ?ports, "UDP flows of before are forgotten"),
        Err(error) => tracing::warn!(%error, ?ports, "UDP flows of before may go astray"),
    }
}

impl Builtin for Portmap {
    fn name(&self) -> &'static str {
        "portmap"
    }

    fn add(&self, call: &Invocation<'_>) -> Result<CniResult, CniError> {
        let config = config(call.plugin)?;
        let previous = previous_of(call, "portmap")?;
        let pod = pod_addresses(call, previous);
        let mappings = mappings(call, &pod)?;
        if mappings.is_empty() {
            return Ok(previous.clone());
        }
        let on_loopback = |m: &Mapping| m.at.is_some_and(|a| a.is_loopback());
        if !self.0.daemon && mappings.iter().any(on_loopback) {
            let text = "a loopback address is served by a process that stays, which a plugin program is \
                        not: leave hostIP out, or let wharf run the plugin in-process";
            return Err(CniError::unsupported(
                "runtimeConfig.portMappings.hostIP",
                text,
            ));
        }
        let owner = owner(call.container_id, call.ifname);
        if self.0.daemon {
            let held = self.0.ports.hold(&owner, &mappings);
            held.map_err(|e| CniError::internal(e.to_string()))?;
        }
        let elements = elements(call, &config, &pod, &mappings);
        if let Err(error) = self.0.filter(|table| table.add(elements)) {
            self.0.ports.release(&owner);
            return Err(error);
        }
        forget(mappings.iter().map(|m| (m.protocol, m.port)));
        Ok(previous.clone())
    }

    fn del(&self, call: &Invocation<'_>) -> Result<(), CniError> {
        let owner = owner(call.container_id, call.ifname);
        self.0.ports.release(&owner);
        let gone = self
            .0
            .filter(|table| table.remove(&ALL, |_set, e| e.comment == owner))?;
        forget(
            gone.iter()
                .filter(|(set, _e)| MAPS.contains(set))
                .filter_map(udp_port),
        );
        Ok(())
    }

    fn check(&self, call: &Invocation<'_>) -> Result<(), CniError> {
        let config = config(call.plugin)?;
        let pod = pod_addresses(call, previous_of(call, "portmap")?);
        let mappings = mappings(call, &pod)?;
        for (set, element) in elements(call, &config, &pod, &mappings) {
            if !self.0.filter(|table| table.has(set, &element))? {
                let text = format!("a host port of {} is not in the rules", call.container_id);
                return Err(CniError::internal(text));
            }
        }
        Ok(())
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
                    .remove(&HAIRPINS, |_set, e| e.comment == owner)
                    .map(drop)
            })?;
        }
        Ok(())
    }

    fn restore(&self, attached: &[Invocation<'_>]) -> Result<(), CniError> {
        let mut all = Vec::new();
        let mut lost = None;
        for call in attached {
            let Some(result) = call.prev_result else {
                continue;
            };
            let config = config(call.plugin)?;
            let pod = pod_addresses(call, result);
            let mappings = mappings(call, &pod)?;
            all.extend(elements(call, &config, &pod, &mappings));
            let owner = owner(call.container_id, call.ifname);
            if self.0.daemon
                && let Err(error) = self.0.ports.hold(&owner, &mappings)
            {
                tracing::error!(%error, owner, "not reachable on loopback until it is free");
                lost = Some(failed(owner, error));
            }
        }
        self.0.filter(|table| table.replace(&ALL, all))?;
        lost.map_or(Ok(()), Err)
    }
}

/// Protocol and port of an element of a map: the last two fields of its key.
fn udp_port((_set, element): &(Filter, Element)) -> Option<(Protocol, u16)> {
    let [protocol, _, _, _, high, low, _, _] = element.key.last_chunk::<8>()?;
    let udp = *protocol == Protocol::Udp.number();
    udp.then(|| (Protocol::Udp, u16::from_be_bytes([*high, *low])))
}
