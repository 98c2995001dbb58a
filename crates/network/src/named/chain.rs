//! The plugins of a network: a bridge of its own, ports, and apart from other networks.

use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::record::NamedNetwork;
use crate::config::{Network, PluginConf};
use crate::version::CniVersion;

/// Options of Docker's bridge driver that mean something here.
const MTU: &str = "com.docker.network.driver.mtu";
const NEIGHBOURS: &str = "com.docker.network.bridge.enable_icc";
const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";

/// The largest packet that the options ask for.
pub(super) fn mtu(network: &NamedNetwork) -> Option<Result<u32, String>> {
    let text = network.options.get(MTU)?;
    let parsed = text.parse().ok().filter(|mtu| (68..=65_535).contains(mtu));
    Some(parsed.ok_or_else(|| format!("{MTU}: {text:?} is no size of packets: 68 to 65535")))
}

fn off(network: &NamedNetwork, option: &str) -> bool {
    network.options.get(option).is_some_and(|v| v == "false")
}

/// The chain for one pod; `default_route`: this network is the pod's way to the world.
pub(super) fn chain(network: &NamedNetwork, default_route: bool) -> Network {
    let ranges: Value = network
        .subnets
        .iter()
        .map(|s| {
            let mut range = json!({"subnet": s.subnet, "gateway": s.gateway});
            if let Some(part) = s.range {
                // The network's own address and that of everybody belong to nobody.
                let first = if part.addr == s.subnet.addr {
                    part.nth(1)
                } else {
                    Some(part.addr)
                };
                range["rangeStart"] = json!(first);
                let last = part.last();
                if last != s.subnet.last() || last.is_ipv6() {
                    range["rangeEnd"] = json!(last);
                }
            }
            json!([range])
        })
        .collect();
    let leads_out = default_route && !network.internal;
    let routes: Vec<Value> = network
        .subnets
        .iter()
        .filter(|_| leads_out)
        .map(|s| match s.subnet.addr {
            IpAddr::V4(_) => json!({"dst": "0.0.0.0/0"}),
            IpAddr::V6(_) => json!({"dst": "::/0"}),
        })
        .collect();
    let mut bridge = json!({
        "type": "bridge", "bridge": network.bridge(), "isGateway": true, "hairpinMode": true,
        "ipMasq": !network.internal && !off(network, MASQUERADE), "ipMasqBackend": "nftables",
        "portIsolation": off(network, NEIGHBOURS),
        "capabilities": {"ips": true, "mac": true},
        "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
    });
    if let Some(Ok(mtu)) = mtu(network) {
        bridge["mtu"] = mtu.into();
    }
    let plugins = [
        bridge,
        json!({"type": "portmap", "capabilities": {"portMappings": true}}),
        json!({"type": "firewall", "ingressPolicy": "same-bridge"}),
    ];
    let plugins = plugins.into_iter().filter_map(|value| match value {
        Value::Object(object) => Some(PluginConf {
            kind: object.get("type")?.as_str()?.to_owned(),
            object,
            builtin: true,
        }),
        _ => None,
    });
    Network {
        name: network.bridge(),
        version: CniVersion::V1_1_0,
        versions: vec![CniVersion::V1_1_0],
        disable_check: false,
        disable_gc: false,
        plugins: plugins.collect(),
        file: PathBuf::new(),
    }
}
