//! `static`: the addresses that the configuration or the runtime names, and no others.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{argument, runtime, value};
use super::host::previous_of;
use crate::builtin::{Attachment, Builtin, Invocation};
use crate::error::CniError;
use crate::ip::IpNet;
use crate::result::{CniResult, Dns, IpConfig, Route};
use crate::version::CniVersion;

/// Addresses of one configuration.
const MAX_ADDRESSES: usize = 256;

/// The plugin. It keeps nothing: who writes addresses down sees to it that they are free.
#[derive(Debug)]
pub(crate) struct StaticAddresses;

/// The object `ipam`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(rename = "type")]
    _kind: String,
    #[serde(default)]
    addresses: Vec<WrittenAddress>,
    #[serde(default)]
    routes: Vec<Route>,
    #[serde(default)]
    dns: Dns,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenAddress {
    address: IpNet,
    gateway: Option<IpAddr>,
}

fn written(plugin: &Map<String, Value>) -> Result<Written, CniError> {
    let ipam = plugin
        .get("ipam")
        .ok_or_else(|| CniError::config("ipam", "is missing; static needs its addresses"))?;
    value(ipam.clone(), "ipam")
}

fn addresses(call: &Invocation<'_>, written: &Written) -> Result<Vec<IpConfig>, CniError> {
    let one = |address: IpNet, gateway| IpConfig {
        address,
        gateway,
        interface: None,
    };
    let parse = |text: &str| -> Result<IpNet, CniError> {
        text.trim().parse().map_err(|e| CniError::config("ips", e))
    };
    let all = written.addresses.iter();
    let mut all: Vec<IpConfig> = all.map(|w| one(w.address, w.gateway)).collect();
    for text in call.arg("IP").into_iter().flat_map(|t| t.split(',')) {
        all.push(one(parse(text)?, None));
    }
    for text in call.arg("GATEWAY").into_iter().flat_map(|t| t.split(',')) {
        let gateway: IpAddr = text
            .trim()
            .parse()
            .map_err(|e| CniError::config("GATEWAY", format!("{text:?}: {e}")))?;
        let inside = all.iter_mut().filter(|ip| ip.address.contains(gateway));
        inside.for_each(|ip| ip.gateway = Some(gateway));
    }
    // The runtime's come instead of the configuration's.
    let asked: [Option<Vec<String>>; 2] = [
        argument(call.plugin, "ips")?,
        runtime(call.runtime_config, "ips")?,
    ];
    for texts in asked.into_iter().flatten().filter(|t| !t.is_empty()) {
        let nets: Result<Vec<IpNet>, CniError> = texts.iter().map(|t| parse(t)).collect();
        all = nets?.into_iter().map(|net| one(net, None)).collect();
    }
    if all.len() > MAX_ADDRESSES {
        let text = format!("more than {MAX_ADDRESSES}");
        return Err(CniError::config("ipam.addresses", text));
    }
    let v4 = all.iter().filter(|ip| ip.address.addr.is_ipv4()).count();
    if v4.max(all.len() - v4) > 1 && call.version < CniVersion::V0_3_0 {
        let text = format!(
            "version {} of CNI has one for each family only",
            call.version
        );
        return Err(CniError::config("ipam.addresses", text));
    }
    Ok(all)
}

impl Builtin for StaticAddresses {
    fn name(&self) -> &'static str {
        "static"
    }

    fn add(&self, call: &Invocation<'_>) -> Result<CniResult, CniError> {
        let written = written(call.plugin)?;
        Ok(CniResult {
            interfaces: Vec::new(),
            ips: addresses(call, &written)?,
            routes: written.routes,
            dns: written.dns,
        })
    }

    fn del(&self, _call: &Invocation<'_>) -> Result<(), CniError> {
        Ok(())
    }

    fn check(&self, call: &Invocation<'_>) -> Result<(), CniError> {
        let result = previous_of(call, "static")?;
        for ip in addresses(call, &written(call.plugin)?)? {
            let there = result
                .ips
                .iter()
                .find(|r| r.address.addr == ip.address.addr);
            let same = there.is_some_and(|r| ip.gateway.is_none() || r.gateway == ip.gateway);
            if !same {
                let text = format!("{} is not among the pod's addresses", ip.address);
                return Err(CniError::internal(text));
            }
        }
        Ok(())
    }

    fn status(&self, _network: &str, plugin: &Map<String, Value>) -> Result<(), CniError> {
        written(plugin).map(drop)
    }

    fn gc(&self, _: &str, _: &Map<String, Value>, _: &[Attachment]) -> Result<(), CniError> {
        Ok(())
    }
}
