//! What a configuration of `bridge` says. Pure.

use serde::Deserialize;
use serde_json::{Map, Value};
use wharf_sys::netlink::{Mac, is_link_name};

use crate::builtin::Invocation;
use crate::error::CniError;
use crate::plugin::config::{argument, decode, runtime};
use crate::result::Dns;

/// Fields beside those that every plugin may have.
const KNOWN: [&str; 16] = [
    "bridge",
    "isGateway",
    "isDefaultGateway",
    "forceAddress",
    "ipMasq",
    "ipMasqBackend",
    "mtu",
    "hairpinMode",
    "promiscMode",
    "vlan",
    "vlanTrunk",
    "preserveDefaultVlan",
    "macspoofchk",
    "enabledad",
    "disableContainerInterface",
    "portIsolation",
];

const MAX_VLAN: u16 = 4094;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(default = "default_bridge")]
    bridge: String,
    #[serde(default)]
    is_gateway: bool,
    #[serde(default)]
    is_default_gateway: bool,
    #[serde(default)]
    force_address: bool,
    #[serde(default)]
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    hairpin_mode: bool,
    #[serde(default)]
    promisc_mode: bool,
    #[serde(default)]
    vlan: u16,
    vlan_trunk: Option<Vec<WrittenTrunk>>,
    #[serde(default)]
    preserve_default_vlan: bool,
    #[serde(default)]
    macspoofchk: bool,
    #[serde(default)]
    enabledad: bool,
    #[serde(default)]
    disable_container_interface: bool,
    #[serde(default)]
    port_isolation: bool,
    #[serde(default)]
    ipam: WrittenIpam,
    #[serde(default)]
    dns: Dns,
}

#[derive(Debug, Default, Deserialize)]
struct WrittenIpam {
    #[serde(rename = "type", default)]
    kind: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenTrunk {
    #[serde(rename = "minID")]
    first: Option<u16>,
    #[serde(rename = "maxID")]
    last: Option<u16>,
    id: Option<u16>,
}

fn default_bridge() -> String {
    "cni0".to_owned()
}

/// What is to be done.
#[derive(Debug)]
pub(crate) struct Config {
    /// Name of the bridge.
    pub(crate) bridge: String,
    /// Whether the bridge has the gateway's addresses.
    pub(crate) gateway: bool,
    /// Whether pods get a default route through it.
    pub(crate) default_gateway: bool,
    /// Whether the bridge may lose other addresses for that.
    pub(crate) force_address: bool,
    /// Whether the pods' packets get the node's address when they leave the network.
    pub(crate) masquerade: bool,
    /// The largest packet; `None`: as the node's way to the world has it.
    pub(crate) mtu: Option<u32>,
    /// Whether a pod can reach itself through the bridge.
    pub(crate) hairpin: bool,
    /// Whether the bridge takes every packet.
    pub(crate) promiscuous: bool,
    /// The pod's own VLAN.
    pub(crate) vlan: Option<u16>,
    /// VLANs that the pod gets with their tags.
    pub(crate) trunk: Vec<u16>,
    /// Whether the port stays in the bridge's default VLAN.
    pub(crate) keep_default_vlan: bool,
    /// Whether frames with another Ethernet address than the pod's are dropped.
    pub(crate) check_mac: bool,
    /// Whether IPv6 addresses are tried on the wire first.
    pub(crate) detect_duplicates: bool,
    /// Whether the pod's interface stays down.
    pub(crate) leave_down: bool,
    /// Whether the port cannot reach other isolated ones.
    pub(crate) isolated: bool,
    /// The plugin that gives addresses; empty: none.
    pub(crate) ipam: String,
    /// Names that go before those of address management.
    pub(crate) dns: Dns,
}

impl Config {
    /// Of a plugin's object.
    pub(crate) fn of(plugin: &Map<String, Value>) -> Result<Self, CniError> {
        let written: Written = decode(plugin, &KNOWN)?;
        if !is_link_name(&written.bridge) {
            let text = format!("{:?} cannot name an interface", written.bridge);
            return Err(CniError::config("bridge", text));
        }
        if written.hairpin_mode && written.promisc_mode {
            let text = "cannot be on together with promiscMode";
            return Err(CniError::config("hairpinMode", text));
        }
        if !written.ipam.kind.is_empty() && written.disable_container_interface {
            let text = "an interface that stays down cannot have addresses: leave ipam out";
            return Err(CniError::config("disableContainerInterface", text));
        }
        if let Some(other) = written.ip_masq_backend.as_deref()
            && other != "nftables"
            && other != "iptables"
        {
            let text = format!("{other:?} is neither nftables nor iptables");
            return Err(CniError::config("ipMasqBackend", text));
        }
        if written.vlan > MAX_VLAN {
            let text = format!("{} is no VLAN: 0 to {MAX_VLAN}", written.vlan);
            return Err(CniError::config("vlan", text));
        }
        let gateway = written.is_gateway || written.is_default_gateway;
        if gateway && written.vlan != 0 {
            let text = "a gateway inside a VLAN is not supported yet: leave isGateway out";
            return Err(CniError::unsupported("vlan", text));
        }
        Ok(Self {
            bridge: written.bridge,
            gateway,
            default_gateway: written.is_default_gateway,
            force_address: written.force_address,
            masquerade: written.ip_masq,
            mtu: (written.mtu != 0).then_some(written.mtu),
            hairpin: written.hairpin_mode,
            promiscuous: written.promisc_mode,
            vlan: (written.vlan != 0).then_some(written.vlan),
            trunk: trunk(&written.vlan_trunk.unwrap_or_default())?,
            keep_default_vlan: written.preserve_default_vlan,
            check_mac: written.macspoofchk,
            detect_duplicates: written.enabledad,
            leave_down: written.disable_container_interface,
            isolated: written.port_isolation,
            ipam: written.ipam.kind,
            dns: written.dns,
        })
    }

    /// Whether the bridge filters by VLAN.
    pub(crate) fn filters(&self) -> bool {
        self.vlan.is_some() || !self.trunk.is_empty()
    }
}

fn trunk(written: &[WrittenTrunk]) -> Result<Vec<u16>, CniError> {
    let wrong = |text: String| CniError::config("vlanTrunk", text);
    let mut all = std::collections::BTreeSet::new();
    for part in written {
        match (part.first, part.last) {
            (Some(first), Some(last)) if first <= last => all.extend(first..=last),
            (None, None) => {}
            (first, last) => {
                return Err(wrong(format!(
                    "minID {first:?} and maxID {last:?} are no range"
                )));
            }
        }
        all.extend(part.id);
    }
    match all.iter().find(|id| **id == 0 || **id > MAX_VLAN) {
        Some(bad) => Err(wrong(format!("{bad} is no VLAN: 1 to {MAX_VLAN}"))),
        None => Ok(all.into_iter().collect()),
    }
}

/// The Ethernet address that someone asks for: the runtime before the configuration before
/// `CNI_ARGS`.
pub(crate) fn wished_mac(call: &Invocation<'_>) -> Result<Option<Mac>, CniError> {
    let wish: Option<String> = runtime(call.runtime_config, "mac")?
        .filter(|m: &String| !m.is_empty())
        .or(argument(call.plugin, "mac")?)
        .or_else(|| call.arg("MAC").map(ToOwned::to_owned))
        .filter(|m| !m.is_empty());
    wish.map(|text| {
        text.parse()
            .map_err(|e| CniError::config("mac", format!("{text:?}: {e}")))
    })
    .transpose()
}
