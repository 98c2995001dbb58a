//! `bandwidth`: how much goes to and from a pod. To the pod: a token bucket where the node sends to
//! it. From the pod: what the node receives is sent through an interface of its own, which has one.

use std::fs;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};
use wharf_sys::netlink::{
    Batch, Link, LinkChange, NewLink, Placed, Socket, Tbf, TickRate, add_ingress, add_link,
    add_redirect, add_tbf, change_link, link_by_index, link_by_name, query_link, queues,
};

use super::bridge::unplug;
use super::config::{decode, runtime};
use super::host::{Host, failed, link, name_for, netns_of, previous_of, send, socket_of};
use crate::builtin::{Attachment, Builtin, Invocation};
use crate::error::CniError;
use crate::result::{CniResult, Interface};

const KNOWN: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];

/// How long a packet may wait for its turn.
const LATENCY_MILLISECONDS: u64 = 25;

/// The plugin.
#[derive(Debug)]
pub(crate) struct Bandwidth(pub(crate) Arc<Host>);

/// Bits a second and bits; 0: no limit.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Limits {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

impl Limits {
    fn of(plugin: &Map<String, Value>) -> Result<Self, CniError> {
        let limits: Self = decode(plugin, &KNOWN)?;
        limits.checked("")
    }

    /// What the configuration says, or where it says nothing the pod.
    fn of_call(call: &Invocation<'_>) -> Result<Self, CniError> {
        let own = Self::of(call.plugin)?;
        if KNOWN.iter().any(|key| call.plugin.contains_key(*key)) {
            return Ok(own);
        }
        let pods: Option<Self> = runtime(call.runtime_config, "bandwidth")?;
        pods.unwrap_or_default().checked("runtimeConfig.bandwidth.")
    }

    fn checked(self, place: &str) -> Result<Self, CniError> {
        for (name, rate, burst) in [
            ("ingress", self.ingress_rate, self.ingress_burst),
            ("egress", self.egress_rate, self.egress_burst),
        ] {
            let wrong = |field: &str, text: &str| {
                Err(CniError::config(&format!("{place}{name}{field}"), text))
            };
            match (rate, burst) {
                (0, 0) => {}
                (0, _) => return wrong("Rate", "is needed together with the burst"),
                (_, 0) => return wrong("Burst", "is needed together with the rate"),
                (_, burst) if burst / 8 >= u64::from(u32::MAX) => {
                    return wrong("Burst", "is 4 GiB or more");
                }
                (rate, _) if rate < 8 => return wrong("Rate", "is less than one byte a second"),
                _ => {}
            }
        }
        Ok(self)
    }
}

/// A bucket of so many bits a second and bits.
fn bucket(rate: u64, burst: u64, ticks: TickRate) -> Tbf {
    let (rate, burst) = (rate / 8, burst / 8);
    let time = u128::from(burst) * 1_000_000 / u128::from(rate.max(1));
    let waiting = u128::from(rate) * u128::from(LATENCY_MILLISECONDS) / 1000 + u128::from(burst);
    Tbf {
        rate,
        limit: u32::try_from(waiting).unwrap_or(u32::MAX),
        buffer: ticks.ticks(u64::try_from(time).unwrap_or(u64::MAX)),
    }
}

fn tick_rate() -> Result<TickRate, CniError> {
    let path = "/proc/net/psched";
    let text = fs::read_to_string(path).map_err(|e| failed(path, e))?;
    TickRate::read(&text).ok_or_else(|| failed(path, format!("not understood: {text:?}")))
}

/// The name of the interface through which what comes from a pod is sent.
fn ifb_for(call: &Invocation<'_>) -> String {
    name_for("bwp", call.container_id, call.ifname)
}

/// The host's end of the pod's interface.
fn host_end(socket: &mut Socket, call: &Invocation<'_>) -> Result<Link, CniError> {
    let pods = link(&mut socket_of(netns_of(call)?.route)?, call.ifname)?;
    let index = pods.parent.filter(|_| pods.kind == "veth").ok_or_else(|| {
        let text = format!(
            "interface {} of the pod is no veth: nothing to limit",
            call.ifname
        );
        CniError::config("plugins", text)
    })?;
    let found = link_by_index(socket, index).map_err(|e| failed("the host's end", e))?;
    let previous = previous_of(call, "bandwidth")?;
    found
        .filter(|l| {
            previous
                .interfaces
                .iter()
                .any(|i| i.sandbox.is_empty() && i.name == l.name)
        })
        .ok_or_else(|| {
            let text = format!("the other end of {} is not on this host", call.ifname);
            CniError::internal(text)
        })
}

impl Bandwidth {
    fn limit(&self, call: &Invocation<'_>, limits: Limits) -> Result<CniResult, CniError> {
        let mut result = previous_of(call, "bandwidth")?.clone();
        let ticks = tick_rate()?;
        self.0.route(|socket| {
            let host = host_end(socket, call)?;
            if limits.ingress_rate > 0 {
                let mut batch = Batch::new();
                let tbf = bucket(limits.ingress_rate, limits.ingress_burst, ticks);
                add_tbf(&mut batch, host.index, tbf);
                send(socket, &mut batch, format!("token bucket of {}", host.name))?;
            }
            if limits.egress_rate > 0 {
                let tbf = bucket(limits.egress_rate, limits.egress_burst, ticks);
                let ifb = self.through(socket, call, &host, tbf)?;
                result.interfaces.push(Interface {
                    name: ifb.name,
                    mac: ifb.mac.map(|m| m.to_string()).unwrap_or_default(),
                    ..Interface::default()
                });
            }
            Ok(())
        })?;
        Ok(result)
    }

    fn through(
        &self,
        socket: &mut Socket,
        call: &Invocation<'_>,
        host: &Link,
        tbf: Tbf,
    ) -> Result<Link, CniError> {
        let name = ifb_for(call);
        let there = link_by_name(socket, &name).map_err(|e| failed(&name, e))?;
        if there.is_some() {
            unplug(socket, &name)?; // of an attempt before
        }
        let mut batch = Batch::new();
        let new = NewLink {
            name: &name,
            kind: Placed::Ifb,
            mtu: Some(host.mtu),
            mac: None,
            master: None,
            // It does not go with the pod's namespace: it has no group by which it could be swept
            // while its pod lives.
            group: 0,
        };
        add_link(&mut batch, &new);
        query_link(&mut batch, &name);
        let answers = send(socket, &mut batch, format!("interface {name}"))?;
        let ifb = answers.iter().find_map(Link::read);
        let ifb = ifb.ok_or_else(|| failed(&name, "made and not there"))?;
        let mut batch = Batch::new();
        let up = LinkChange {
            up: Some(true),
            alias: Some(call.container_id),
            ..LinkChange::default()
        };
        change_link(&mut batch, ifb.index, "", &up);
        add_ingress(&mut batch, host.index);
        add_redirect(&mut batch, host.index, ifb.index);
        add_tbf(&mut batch, ifb.index, tbf);
        send(
            socket,
            &mut batch,
            format!("queues of {} and {name}", host.name),
        )?;
        Ok(ifb)
    }
}

impl Builtin for Bandwidth {
    fn name(&self) -> &'static str {
        "bandwidth"
    }

    fn add(&self, call: &Invocation<'_>) -> Result<CniResult, CniError> {
        let limits = Limits::of_call(call)?;
        if limits == Limits::default() {
            return Ok(call.prev_result.cloned().unwrap_or_default());
        }
        self.limit(call, limits)
    }

    fn del(&self, call: &Invocation<'_>) -> Result<(), CniError> {
        let name = ifb_for(call);
        self.0.route(|socket| {
            let there = link_by_name(socket, &name).map_err(|e| failed(&name, e))?;
            there.map_or(Ok(()), |_link| unplug(socket, &name))
        })
    }

    fn check(&self, call: &Invocation<'_>) -> Result<(), CniError> {
        let limits = Limits::of_call(call)?;
        if limits == Limits::default() {
            return Ok(());
        }
        let ticks = tick_rate()?;
        self.0.route(|socket| {
            let host = host_end(socket, call)?;
            let mut wanted = Vec::new();
            if limits.ingress_rate > 0 {
                wanted.push((
                    host,
                    bucket(limits.ingress_rate, limits.ingress_burst, ticks),
                ));
            }
            if limits.egress_rate > 0 {
                let ifb = link(socket, &ifb_for(call))?;
                wanted.push((ifb, bucket(limits.egress_rate, limits.egress_burst, ticks)));
            }
            for (link, tbf) in wanted {
                let there = queues(socket, link.index).map_err(|e| failed(&link.name, e))?;
                let has = there.iter().any(|(_kind, t)| {
                    t.is_some_and(|t| t.rate == tbf.rate && t.limit == tbf.limit)
                });
                if !has {
                    let text = format!("{} does not limit to {tbf:?}", link.name);
                    return Err(CniError::internal(text));
                }
            }
            Ok(())
        })
    }

    fn status(&self, _network: &str, plugin: &Map<String, Value>) -> Result<(), CniError> {
        Limits::of(plugin).map(drop)
    }

    fn gc(&self, _: &str, _: &Map<String, Value>, _: &[Attachment]) -> Result<(), CniError> {
        Ok(())
    }
}
