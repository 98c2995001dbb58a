//! `firewall`: lets the pods' packets through, and keeps bridges apart where it is asked for.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Map, Value};
use wharf_sys::netlink::{Batch, PortChange, Socket, change_port, link_by_name};
use wharf_sys::nft::{Element, Hook, base_chains, value};

use super::bridge::{name_bytes, network_owner};
use super::config::decode;
use super::host::{Host, failed, lock, octets, owner, previous_of, send, veth_for};
use crate::builtin::{Attachment, Builtin, Invocation};
use crate::error::CniError;
use crate::result::CniResult;
use crate::rules::Filter;

const KNOWN: [&str; 4] = [
    "backend",
    "iptablesAdminChainName",
    "firewalldZone",
    "ingressPolicy",
];
const ACCEPT: [Filter; 2] = [Filter::Accept4, Filter::Accept6];
const BRIDGES: [Filter; 3] = [Filter::Apart, Filter::ApartPairs, Filter::IsolatedPairs];

/// How often it is looked for chains of others: where Services have chains of their own there are
/// thousands to be read, which no pod needs to wait for.
const LOOK_PERIOD: Duration = Duration::from_secs(60);

/// The plugin.
#[derive(Debug)]
pub(crate) struct Firewall {
    host: Arc<Host>,
    /// Chains of others that were warned of.
    warned: Mutex<Vec<String>>,
    /// When it was looked for them last.
    looked: Mutex<Option<Instant>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(default)]
    backend: String,
    #[serde(default)]
    iptables_admin_chain_name: String,
    #[serde(default)]
    ingress_policy: String,
}

/// From where packets come to pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Open,
    SameBridge,
    Isolated,
}

fn config(plugin: &Map<String, Value>) -> Result<Policy, CniError> {
    let written: Written = decode(plugin, &KNOWN)?;
    match written.backend.as_str() {
        "" | "iptables" | "nftables" => {}
        "firewalld" => {
            let text = "firewalld is not supported yet by the built-in plugin: leave it out";
            return Err(CniError::unsupported("backend", text));
        }
        other => {
            let text = format!("{other:?} is neither nftables nor iptables nor firewalld");
            return Err(CniError::config("backend", text));
        }
    }
    if !written.iptables_admin_chain_name.is_empty() {
        let text = "there is no chain of iptables: put your rules in a table of your own";
        return Err(CniError::unsupported("iptablesAdminChainName", text));
    }
    match written.ingress_policy.as_str() {
        "" | "open" => Ok(Policy::Open),
        "same-bridge" => Ok(Policy::SameBridge),
        "isolated" => Ok(Policy::Isolated),
        other => {
            let text = format!("{other:?} is neither open nor same-bridge nor isolated");
            Err(CniError::config("ingressPolicy", text))
        }
    }
}

impl Firewall {
    pub(crate) fn new(host: Arc<Host>) -> Self {
        Self {
            host,
            warned: Mutex::default(),
            looked: Mutex::default(),
        }
    }

    /// An accept in our table is not the last word: a chain of someone else may drop the packet.
    fn warn_of_others(&self) {
        {
            let mut looked = lock(&self.looked);
            if looked.is_some_and(|then| then.elapsed() < LOOK_PERIOD) {
                return;
            }
            *looked = Some(Instant::now());
        }
        let chains = Socket::netfilter().and_then(|mut socket| base_chains(&mut socket));
        let Ok(chains) = chains else { return };
        let mut warned = lock(&self.warned);
        for chain in chains.iter().filter(|c| c.is_at(Hook::Forward) && c.drops) {
            let name = format!("{} {}", chain.table, chain.name);
            if !warned.contains(&name) {
                tracing::warn!(
                    table = chain.table,
                    chain = chain.name,
                    "this chain drops what it does not accept: packets of pods need rules in it"
                );
                warned.push(name);
            }
        }
    }
}

fn elements(
    call: &Invocation<'_>,
    policy: Policy,
    result: &CniResult,
) -> Result<Vec<(Filter, Element)>, CniError> {
    let element = |parts: &[&[u8]], comment: String| Element {
        key: value(parts),
        comment,
        ..Element::default()
    };
    let mut all = Vec::new();
    for address in result.ips.iter().map(|ip| ip.address.addr) {
        let set = if address.is_ipv4() {
            Filter::Accept4
        } else {
            Filter::Accept6
        };
        let owner = owner(call.container_id, call.ifname);
        all.push((set, element(&[&octets(address)], owner)));
    }
    if policy == Policy::Open {
        return Ok(all);
    }
    let bridge = result.interfaces.first().filter(|i| i.sandbox.is_empty());
    let bridge = bridge.ok_or_else(|| {
        CniError::config(
            "ingressPolicy",
            "needs the plugin bridge before it in the chain",
        )
    })?;
    let name = name_bytes(&bridge.name);
    let owner = || network_owner(call.network);
    all.push((Filter::Apart, element(&[&name], owner())));
    all.push((Filter::ApartPairs, element(&[&name, &name], owner())));
    if policy == Policy::Isolated {
        all.push((Filter::IsolatedPairs, element(&[&name, &name], owner())));
    }
    Ok(all)
}

impl Builtin for Firewall {
    fn name(&self) -> &'static str {
        "firewall"
    }

    fn add(&self, call: &Invocation<'_>) -> Result<CniResult, CniError> {
        let policy = config(call.plugin)?;
        let previous = previous_of(call, "firewall")?;
        let elements = elements(call, policy, previous)?;
        self.host.filter(|table| table.add(elements))?;
        if policy == Policy::Isolated {
            // What stays on the bridge never meets the chain forward: the port itself keeps apart.
            let veth = veth_for(call.container_id, call.ifname);
            self.host.route(|socket| isolate(socket, &veth))?;
        }
        self.warn_of_others();
        Ok(previous.clone())
    }

    fn del(&self, call: &Invocation<'_>) -> Result<(), CniError> {
        let owner = owner(call.container_id, call.ifname);
        self.host.filter(|table| {
            table
                .remove(&ACCEPT, |_set, e| e.comment == owner)
                .map(drop)
        })
    }

    fn check(&self, call: &Invocation<'_>) -> Result<(), CniError> {
        let policy = config(call.plugin)?;
        let previous = previous_of(call, "firewall")?;
        for (set, element) in elements(call, policy, previous)? {
            if !self.host.filter(|table| table.has(set, &element))? {
                let text = format!("rules for {} are not there", call.container_id);
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
            self.host.filter(|table| {
                table
                    .remove(&BRIDGES, |_set, e| e.comment == owner)
                    .map(drop)
            })?;
        }
        Ok(())
    }

    fn restore(&self, attached: &[Invocation<'_>]) -> Result<(), CniError> {
        let mut all = Vec::new();
        for call in attached {
            if let Some(result) = call.prev_result {
                all.extend(elements(call, config(call.plugin)?, result)?);
            }
        }
        let sets: Vec<Filter> = ACCEPT.into_iter().chain(BRIDGES).collect();
        self.host.filter(|table| table.replace(&sets, all))
    }
}

fn isolate(socket: &mut Socket, veth: &str) -> Result<(), CniError> {
    let found = link_by_name(socket, veth).map_err(|e| failed(veth, e))?;
    // The port of another plugin's bridge has another name; its rules are all that there is.
    let Some(port) = found.filter(|l| l.master.is_some()) else {
        return Ok(());
    };
    let mut batch = Batch::new();
    let change = PortChange {
        isolated: Some(true),
        ..PortChange::default()
    };
    change_port(&mut batch, port.index, change);
    send(socket, &mut batch, format!("port {veth}")).map(drop)
}
