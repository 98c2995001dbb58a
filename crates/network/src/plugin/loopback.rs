//! `loopback`: the pod's own interface is up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use serde_json::{Map, Value};
use wharf_sys::netlink::{Batch, LinkChange, addresses, change_link};

use super::config::decode;
use super::host::{Host, failed, link, netns_of, send, socket_of};
use crate::builtin::{Attachment, Builtin, Invocation};
use crate::error::CniError;
use crate::ip::IpNet;
use crate::result::{CniResult, Interface, IpConfig};

/// The plugin.
#[derive(Debug)]
pub(crate) struct Loopback(pub(crate) Arc<Host>);

#[derive(serde::Deserialize)]
struct Nothing {}

impl Builtin for Loopback {
    fn name(&self) -> &'static str {
        "loopback"
    }

    fn add(&self, call: &Invocation<'_>) -> Result<CniResult, CniError> {
        let Nothing {} = decode(call.plugin, &[])?;
        let netns = netns_of(call)?;
        let mut socket = socket_of(netns.route)?;
        let mut batch = Batch::new();
        let up = LinkChange {
            up: Some(true),
            ..LinkChange::default()
        };
        change_link(&mut batch, 0, "lo", &up);
        send(&mut socket, &mut batch, "interface lo")?;
        if let Some(before) = call.prev_result {
            return Ok(before.clone());
        }
        let mut result = CniResult {
            interfaces: vec![Interface {
                name: "lo".to_owned(),
                mac: "00:00:00:00:00:00".to_owned(),
                sandbox: netns.path.display().to_string(),
                ..Interface::default()
            }],
            ..CniResult::default()
        };
        let there = addresses(&mut socket).map_err(|e| failed("addresses of lo", e))?;
        for (own, prefix) in [
            (IpAddr::from(Ipv4Addr::LOCALHOST), 8),
            (IpAddr::from(Ipv6Addr::LOCALHOST), 128),
        ] {
            if there.iter().any(|a| a.address == own) {
                result.ips.push(IpConfig {
                    address: IpNet { addr: own, prefix },
                    gateway: None,
                    interface: Some(0),
                });
            }
        }
        Ok(result)
    }

    fn del(&self, call: &Invocation<'_>) -> Result<(), CniError> {
        let Some(netns) = call.netns.filter(|_| !self.0.daemon) else {
            return Ok(()); // it goes with the namespace
        };
        let mut batch = Batch::new();
        let down = LinkChange {
            up: Some(false),
            ..LinkChange::default()
        };
        change_link(&mut batch, 0, "lo", &down);
        send(&mut socket_of(netns.route)?, &mut batch, "interface lo").map(drop)
    }

    fn check(&self, call: &Invocation<'_>) -> Result<(), CniError> {
        let mut socket = socket_of(netns_of(call)?.route)?;
        if link(&mut socket, "lo")?.up {
            Ok(())
        } else {
            Err(CniError::internal("interface lo is down"))
        }
    }

    fn status(&self, _network: &str, plugin: &Map<String, Value>) -> Result<(), CniError> {
        let Nothing {} = decode(plugin, &[])?;
        Ok(())
    }

    fn gc(&self, _: &str, _: &Map<String, Value>, _: &[Attachment]) -> Result<(), CniError> {
        Ok(())
    }
}
