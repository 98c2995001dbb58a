//! Which addresses a configuration of `host-local` offers. Pure.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use crate::builtin::Invocation;
use crate::error::CniError;
use crate::ip::IpNet;
use crate::plugin::config::{argument, runtime, value};
use crate::result::Route;
use crate::version::CniVersion;

/// Sets of ranges, and ranges of one set.
const MAX_RANGES: usize = 256;

/// The object `ipam`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    #[serde(rename = "type")]
    _kind: String,
    #[serde(default)]
    routes: Vec<Route>,
    data_dir: Option<String>,
    resolv_conf: Option<String>,
    #[serde(default)]
    ranges: Vec<Vec<WrittenRange>>,
    subnet: Option<IpNet>,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenRange {
    subnet: IpNet,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

/// Addresses from `start` to `end`, both included, but the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    /// Their network.
    pub(crate) subnet: IpNet,
    /// The first.
    pub(crate) start: IpAddr,
    /// The last.
    pub(crate) end: IpAddr,
    /// The network's router.
    pub(crate) gateway: IpAddr,
}

impl Range {
    /// Whether it has this address.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.start.is_ipv4() && (self.start..=self.end).contains(&address)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.start) || other.contains(self.start)
    }
}

/// What a configuration says, with all that it leaves out.
#[derive(Debug)]
pub(crate) struct Ranges {
    /// From each set one address is given.
    pub(crate) sets: Vec<Vec<Range>>,
    /// Routes of the result.
    pub(crate) routes: Vec<Route>,
    /// Where reservations are kept, when it is said.
    pub(crate) data_dir: Option<String>,
    /// File of which the names of the result are read.
    pub(crate) resolv_conf: Option<String>,
    /// Addresses that were asked for.
    pub(crate) requested: Vec<IpAddr>,
}

impl Ranges {
    /// Of a plugin's object alone.
    pub(crate) fn of(plugin: &serde_json::Map<String, Value>) -> Result<Self, CniError> {
        let ipam = plugin
            .get("ipam")
            .ok_or_else(|| CniError::config("ipam", "is missing; host-local needs its ranges"))?;
        let written: Written = value(ipam.clone(), "ipam")?;
        let mut sets = written.ranges;
        if let Some(subnet) = written.subnet {
            let alone = WrittenRange {
                subnet,
                range_start: written.range_start,
                range_end: written.range_end,
                gateway: written.gateway,
            };
            sets.insert(0, vec![alone]);
        }
        Ok(Self {
            sets: checked(&sets, "ipam.ranges")?,
            routes: written.routes,
            data_dir: written.data_dir.filter(|d| !d.is_empty()),
            resolv_conf: written.resolv_conf.filter(|f| !f.is_empty()),
            requested: Vec::new(),
        })
    }

    /// Of a call: with ranges and addresses that the runtime asks for.
    pub(crate) fn of_call(call: &Invocation<'_>) -> Result<Self, CniError> {
        let mut all = Self::of(call.plugin)?;
        let given: Option<Vec<Vec<WrittenRange>>> = runtime(call.runtime_config, "ipRanges")?;
        if let Some(given) = given {
            let mut sets = checked(&given, "runtimeConfig.ipRanges")?;
            sets.append(&mut all.sets);
            all.sets = sets;
        }
        if all.sets.is_empty() {
            return Err(CniError::config(
                "ipam.ranges",
                "no range of addresses is given",
            ));
        }
        all.overlaps(call.version)?;
        let mut asked: Vec<String> = Vec::new();
        asked.extend(call.arg("IP").map(ToOwned::to_owned));
        asked.extend(argument::<Vec<String>>(call.plugin, "ips")?.unwrap_or_default());
        asked.extend(runtime::<Vec<String>>(call.runtime_config, "ips")?.unwrap_or_default());
        for text in asked {
            let address = text.split('/').next().unwrap_or_default();
            let address = address.parse().map_err(|_no_address| {
                CniError::config("ips", format!("{text:?} is not an address"))
            })?;
            if !all.requested.contains(&address) {
                all.requested.push(address);
            }
        }
        Ok(all)
    }

    fn overlaps(&self, version: CniVersion) -> Result<(), CniError> {
        for (i, set) in self.sets.iter().enumerate() {
            for (j, other) in self.sets.iter().enumerate().skip(i + 1) {
                if set.iter().any(|r| other.iter().any(|o| r.overlaps(o))) {
                    let text = format!("range set {i} overlaps with range set {j}");
                    return Err(CniError::config("ipam.ranges", text));
                }
            }
        }
        let v4 = self.sets.iter().filter(|s| s[0].start.is_ipv4()).count();
        let most = v4.max(self.sets.len() - v4);
        if most > 1 && version < CniVersion::V0_3_0 {
            let text = format!("version {version} of CNI has one address for each family only");
            return Err(CniError::config("ipam.ranges", text));
        }
        Ok(())
    }
}

fn checked(sets: &[Vec<WrittenRange>], place: &str) -> Result<Vec<Vec<Range>>, CniError> {
    if sets.len() > MAX_RANGES || sets.iter().any(|s| s.len() > MAX_RANGES) {
        let text = format!("more than {MAX_RANGES} ranges");
        return Err(CniError::config(place, text));
    }
    let mut all = Vec::new();
    for (i, set) in sets.iter().enumerate() {
        let mut ranges: Vec<Range> = Vec::new();
        for (j, written) in set.iter().enumerate() {
            let range = completed(written, &format!("{place}[{i}][{j}]"))?;
            if ranges
                .iter()
                .any(|r| r.start.is_ipv4() != range.start.is_ipv4())
            {
                let text = "IPv4 and IPv6 in one set: one address is given from each set";
                return Err(CniError::config(&format!("{place}[{i}]"), text));
            }
            if ranges.iter().any(|r| r.overlaps(&range)) {
                let text = format!("range {j} overlaps with another one of its set");
                return Err(CniError::config(&format!("{place}[{i}]"), text));
            }
            ranges.push(range);
        }
        if ranges.is_empty() {
            return Err(CniError::config(
                &format!("{place}[{i}]"),
                "the set has no range",
            ));
        }
        all.push(ranges);
    }
    Ok(all)
}

fn completed(written: &WrittenRange, place: &str) -> Result<Range, CniError> {
    let subnet = written.subnet;
    let wrong =
        |field: &str, text: String| Err(CniError::config(&format!("{place}.{field}"), text));
    let width = if subnet.addr.is_ipv4() { 32 } else { 128 };
    if subnet.prefix + 2 > width {
        return wrong(
            "subnet",
            format!("{subnet} is too small to give addresses from"),
        );
    }
    if subnet.network() != subnet {
        let text = format!(
            "{subnet} has bits of a host set: the network is {}",
            subnet.network()
        );
        return wrong("subnet", text);
    }
    let first = subnet.nth(1).unwrap_or(subnet.addr);
    for (field, given) in [
        ("rangeStart", written.range_start),
        ("rangeEnd", written.range_end),
    ] {
        if let Some(outside) = given.filter(|a| !subnet.contains(*a)) {
            return wrong(field, format!("{outside} is not in {subnet}"));
        }
    }
    let last = match subnet.last() {
        IpAddr::V4(broadcast) => IpAddr::from(std::net::Ipv4Addr::from(u32::from(broadcast) - 1)),
        last @ IpAddr::V6(_) => last,
    };
    let range = Range {
        subnet,
        start: written.range_start.unwrap_or(first),
        end: written.range_end.unwrap_or(last),
        gateway: written.gateway.unwrap_or(first),
    };
    if range.gateway.is_ipv4() != subnet.addr.is_ipv4() {
        return wrong(
            "gateway",
            format!("{} is of another family than {subnet}", range.gateway),
        );
    }
    if range.start > range.end {
        return wrong(
            "rangeStart",
            format!("{} is behind rangeEnd, {}", range.start, range.end),
        );
    }
    Ok(range)
}

/// The next address; the first of all behind the last.
pub(crate) fn next(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => std::net::Ipv4Addr::from(u32::from(v4).wrapping_add(1)).into(),
        IpAddr::V6(v6) => std::net::Ipv6Addr::from(u128::from(v6).wrapping_add(1)).into(),
    }
}
