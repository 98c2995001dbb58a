//! A pod's network on the machine: what the pod's specification says, in the words of CNI.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use wharf_network::{AttachRequest, CniResult, NetworkError, PodNetns};
use wharf_types::Kind;

use super::Parts;
use super::held::Held;
use crate::config::NetworkMode;
use crate::record::PodRecord;
use crate::spec::{NamespaceMode, PodSpec, Protocol};
use crate::view::NetworkView;
use crate::world::StepFailure;

const ATTACH: &str = "attach network";
const DETACH: &str = "detach network";
/// The interface that a pod gets, as kubelet and everybody else expect.
const INTERFACE: &str = "eth0";
/// Annotations of a pod that ask for a share of the line, and whose share they mean.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// What may pass at once, in bits: with a share that is meant as an average, as much as can be said.
const BURST: u64 = u32::MAX as u64;
/// Bits a second that a share may be (Kubernetes: 1k to 1P).
const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

fn failure(stage: &'static str) -> impl FnOnce(NetworkError) -> StepFailure {
    move |e| StepFailure::new(stage, e.kind(), e)
}

impl Parts {
    /// Attaches the pod, if it has a network of its own.
    pub(super) async fn attach_network(&self, pod: &PodRecord) -> Result<NetworkView, StepFailure> {
        let own = pod.spec.security.namespaces.network != NamespaceMode::Node;
        if !own || self.config.network == NetworkMode::None {
            // The host's network has no address of its own to tell; loopback is up already.
            return Ok(NetworkView::default());
        }
        let held = self.held(&pod.id);
        let netns = held.and_then(|held| pod_netns(&held)).transpose();
        let netns = netns.map_err(|e| StepFailure::new(ATTACH, Kind::Internal, e))?;
        let netns = netns.ok_or_else(|| {
            let text = "the pod's network namespace is not held, or not bound anywhere";
            StepFailure::new(ATTACH, Kind::Internal, text)
        })?;
        let request = AttachRequest {
            container_id: pod.id.to_string(),
            ifname: INTERFACE.to_owned(),
            netns,
            args: args(pod)?,
            capabilities: capabilities(pod)?,
        };
        let result = self.networks.attach(request).await;
        view(&result.map_err(failure(ATTACH))?)
    }

    /// Detaches the pod from whatever it was attached to, now or before a restart.
    pub(super) async fn detach_network(&self, pod: &PodRecord) -> Result<(), StepFailure> {
        self.forget_names(&pod.id);
        let held = self.held(&pod.id);
        // What cannot be had any more is gone, to the plugins.
        let netns = held.and_then(|held| pod_netns(&held)?.ok());
        let done = self.networks.detach(pod.id.as_str(), netns).await;
        done.map_err(failure(DETACH))
    }
}

/// The namespace that a shim gave us, for as long as an operation needs it.
fn pod_netns(held: &Arc<Held>) -> Option<std::io::Result<PodNetns>> {
    let path = held.facts.netns.clone()?;
    let (fd, route) = held.network()?;
    let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned();
    Some(own(fd).and_then(|fd| {
        let route = own(route)?;
        Ok(PodNetns { path, fd, route })
    }))
}

fn refused(field: &str, reason: &str) -> StepFailure {
    StepFailure::new(
        "check the request",
        Kind::Invalid,
        format!("{field}: {reason}"),
    )
}

/// `CNI_ARGS` of Kubernetes.
fn args(pod: &PodRecord) -> Result<Vec<(String, String)>, StepFailure> {
    let m = &pod.spec.metadata;
    let id = pod.id.to_string();
    let list = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", &m.namespace),
        ("K8S_POD_NAME", &m.name),
        ("K8S_POD_INFRA_CONTAINER_ID", &id),
        ("K8S_POD_UID", &m.uid),
    ];
    // A plugin would read something else than what was said.
    if list.iter().any(|(_, value)| value.contains(';')) {
        return Err(refused("config.metadata", "must not contain ;"));
    }
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    Ok(list.into_iter().map(owned).collect())
}

/// What the pod's specification says, by the capabilities of CNI's conventions. Each plugin gets those
/// that it asks for.
fn capabilities(pod: &PodRecord) -> Result<Map<String, Value>, StepFailure> {
    let spec = &pod.spec;
    let mut known = Map::new();
    let ports = port_mappings(spec)?;
    if !ports.is_empty() {
        known.insert("portMappings".to_owned(), ports.into());
    }
    if let Some(bandwidth) = bandwidth(&spec.annotations)? {
        known.insert("bandwidth".to_owned(), bandwidth);
    }
    if let Some(dns) = &spec.dns {
        let dns = json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options});
        known.insert("dns".to_owned(), dns);
    }
    known.insert("cgroupPath".to_owned(), format!("/{}", pod.cgroup).into());
    known.insert(
        "io.kubernetes.cri.pod-annotations".to_owned(),
        json!(spec.annotations),
    );
    Ok(known)
}

fn port_mappings(spec: &PodSpec) -> Result<Vec<Value>, StepFailure> {
    const FIELD: &str = "config.port_mappings";
    // Port 0 asks for no mapping.
    let asked = spec.port_mappings.iter().filter(|p| p.host_port != 0);
    let mapping = |p: &crate::spec::PortMapping| {
        if p.container_port == 0 {
            return Err(refused(FIELD, "a host port needs a container port"));
        }
        if !p.host_ip.is_empty() && p.host_ip.parse::<IpAddr>().is_err() {
            let reason = format!("{:?} is not an address of this host", p.host_ip);
            return Err(refused(FIELD, &reason));
        }
        let protocol = match p.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        Ok(
            json!({"hostPort": p.host_port, "containerPort": p.container_port, "protocol": protocol,
                  "hostIP": p.host_ip}),
        )
    };
    asked.map(mapping).collect()
}

fn bandwidth(annotations: &BTreeMap<String, String>) -> Result<Option<Value>, StepFailure> {
    let mut shares = Map::new();
    for (annotation, rate, burst) in [
        (INGRESS, "ingressRate", "ingressBurst"),
        (EGRESS, "egressRate", "egressBurst"),
    ] {
        let Some(text) = annotations.get(annotation) else {
            continue;
        };
        let bits = quantity(text).filter(|bits| RATES.contains(bits));
        let bits = bits.ok_or_else(|| {
            let reason =
                format!("{text:?} is not a share between 1k and 1P bits a second, like 10M");
            refused(annotation, &reason)
        })?;
        shares.insert(rate.to_owned(), bits.into());
        shares.insert(burst.to_owned(), BURST.into());
    }
    Ok((!shares.is_empty()).then_some(Value::Object(shares)))
}

/// A quantity as Kubernetes writes it, rounded up: digits, perhaps a fraction, and a suffix of ten or of
/// two, or an exponent.
fn quantity(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, suffix) = text.split_at(end.unwrap_or(text.len()));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let factor: u128 = match suffix {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            10_u128.checked_pow(digits.strip_prefix('+').unwrap_or(digits).parse().ok()?)?
        }
    };
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let value = digits.checked_mul(factor)?.div_ceil(scale);
    u64::try_from(value).ok()
}

/// The pod's addresses: those of its own interfaces, IPv4 first, as kubelet's default has it.
fn view(result: &CniResult) -> Result<NetworkView, StepFailure> {
    let inside = |index: Option<usize>| match index.map(|n| result.interfaces.get(n)) {
        // An address that says no interface is the pod's: plugins of old versions.
        None => true,
        Some(interface) => interface.is_some_and(|i| !i.sandbox.is_empty()),
    };
    let own = result.ips.iter().filter(|ip| inside(ip.interface));
    let (mut v4, v6): (Vec<_>, Vec<_>) = own
        .map(|ip| ip.address.addr)
        .partition(|addr| addr.is_ipv4());
    v4.extend(v6);
    let mut ips = v4.into_iter().map(|ip| ip.to_string());
    let Some(ip) = ips.next() else {
        let text =
            "the plugins gave the pod no address: look at \"ipam\" in the network's configuration";
        return Err(StepFailure::new(ATTACH, Kind::Internal, text));
    };
    Ok(NetworkView {
        ip,
        additional_ips: ips.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, value) in [
            ("10M", Some(10_000_000)),
            ("1.5k", Some(1_500)),
            ("1Mi", Some(1 << 20)),
            ("1e6", Some(1_000_000)),
            ("1E+3", Some(1_000)),
            ("0.0001", Some(1)),
            ("100", Some(100)),
            (".5G", Some(500_000_000)),
            ("", None),
            (".", None),
            ("1.2.3", None),
            ("10m", None),
            ("-1", None),
            ("1e99", None),
            ("10 M", None),
        ] {
            assert_eq!(quantity(text), value, "{text:?}");
        }
    }

    #[test]
    fn shares_out_of_range_are_refused_by_annotation() {
        let of = |key: &str, value: &str| {
            bandwidth(&BTreeMap::from([(key.to_owned(), value.to_owned())]))
        };
        assert_eq!(of("other", "x").unwrap(), None);
        let share = of(INGRESS, "10M").unwrap().unwrap();
        assert_eq!(
            share,
            json!({"ingressRate": 10_000_000, "ingressBurst": BURST})
        );
        for wrong in ["1", "2P", "x"] {
            let e = of(EGRESS, wrong).unwrap_err();
            assert!(e.to_string().contains(EGRESS), "{e}");
        }
    }

    #[test]
    fn a_pods_addresses_are_those_inside_and_ipv4_comes_first() {
        let result = json!({
            "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [
                {"address": "10.0.0.1/24", "interface": 0},
                {"address": "fd00::2/64", "interface": 1},
                {"address": "10.0.0.2/24", "interface": 1},
            ],
        });
        let result: CniResult = serde_json::from_value(result).unwrap();
        let view = view(&result).unwrap();
        assert_eq!(view.ip, "10.0.0.2");
        assert_eq!(view.additional_ips, ["fd00::2"]);
        super::view(&CniResult::default()).unwrap_err();
    }
}
