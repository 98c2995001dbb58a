//! The default network: a bridge of our own for nodes that nobody gave a network, in addresses that
//! nobody here uses. It is never written to the directory of configurations.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::{Network, PluginConf};
use crate::ip::IpNet;
use crate::version::CniVersion;

/// Its name, and what its bridge is called.
const NAME: &str = "wharf";
const BRIDGE: &str = "wharf0";
/// Routes of this network namespace (proc(5)).
const ROUTES: [&str; 2] = ["/proc/self/net/route", "/proc/self/net/ipv6_route"];
/// There, if the kernel has IPv6.
const IPV6: &str = "/proc/self/net/if_inet6";

/// The addresses of pods, as they were chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subnets {
    pub(crate) subnets: Vec<IpNet>,
    /// They were given by UpdateRuntimeConfig, not chosen here.
    pub(crate) given: bool,
}

/// What was chosen before, else a choice that is remembered: pods keep their addresses.
pub(crate) fn remembered(dir: &Path) -> io::Result<Subnets> {
    let file = file(dir);
    match std::fs::read(&file) {
        Ok(bytes) => {
            if let Ok(subnets) = serde_json::from_slice(&bytes) {
                return Ok(subnets);
            }
            tracing::warn!(path = %file.display(), "unreadable: addresses are chosen anew");
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let chosen = choose()?;
    remember(dir, &chosen)?;
    Ok(chosen)
}

/// Remembers a choice.
pub(crate) fn remember(dir: &Path, subnets: &Subnets) -> io::Result<()> {
    let (file, bytes) = (file(dir), serde_json::to_vec(subnets)?);
    let draft = file.with_extension("new");
    std::fs::create_dir_all(dir)?;
    std::fs::write(&draft, bytes)?;
    std::fs::rename(draft, file)
}

fn file(dir: &Path) -> PathBuf {
    dir.join("default-network.json")
}

/// Subnets that no route of this machine leads to.
fn choose() -> io::Result<Subnets> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let taken = [routes4(&read(ROUTES[0])), routes6(&read(ROUTES[1]))].concat();
    let mut candidates = (97..=127).chain(200..=254).filter_map(|n| {
        let addr = IpAddr::V4(Ipv4Addr::new(10, n, 0, 0));
        IpNet::new(addr, 20)
    });
    let free = candidates.find(|c| !taken.iter().any(|t| t.overlaps(*c)));
    let v4 = free.ok_or_else(|| {
        io::Error::other("every subnet that the default network may use is routed elsewhere")
    })?;
    let mut subnets = vec![v4];
    if Path::new(IPV6).exists() {
        subnets.push(unique_local()?);
    }
    Ok(Subnets {
        subnets,
        given: false,
    })
}

/// A random prefix of RFC 4193: nobody has the same.
fn unique_local() -> io::Result<IpNet> {
    let random = wharf_sys::random::bytes::<5>().map_err(io::Error::from)?;
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&random);
    let net = IpNet::new(IpAddr::V6(Ipv6Addr::from(octets)), 64);
    net.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// `/proc/net/route`: destination and mask are the third last and second words, in the machine's byte
/// order. Default routes lead everywhere and take nothing.
fn routes4(text: &str) -> Vec<IpNet> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |n: usize| {
            let word = words.get(n)?;
            Some(u32::from_str_radix(word, 16).ok()?.to_be())
        };
        let (addr, mask) = (number(1)?, number(7)?);
        // Our own bridge is there after a restart.
        if words.first() == Some(&BRIDGE) || mask == 0 {
            return None;
        }
        let prefix = u8::try_from(mask.leading_ones()).ok()?;
        IpNet::new(IpAddr::V4(addr.into()), prefix)
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// `/proc/net/ipv6_route`: destination and length of its prefix are the first words, in hexadecimal.
fn routes6(text: &str) -> Vec<IpNet> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let addr = u128::from_str_radix(words.first()?, 16).ok()?;
        let prefix = u8::from_str_radix(words.get(1)?, 16).ok()?;
        if prefix == 0 || words.last() == Some(&BRIDGE) {
            return None;
        }
        IpNet::new(IpAddr::V6(addr.into()), prefix)
    };
    text.lines().filter_map(line).collect()
}

/// The network in these subnets; `has` says which plugins are built in.
pub(crate) fn network(subnets: &Subnets, has: impl Fn(&str) -> bool) -> Network {
    let subnets = &subnets.subnets;
    let ranges: Value = subnets
        .iter()
        .map(|net| json!([{"subnet": net.network()}]))
        .collect();
    let routes: Value = subnets
        .iter()
        .map(|net| match net.addr {
            IpAddr::V4(_) => json!({"dst": "0.0.0.0/0"}),
            IpAddr::V6(_) => json!({"dst": "::/0"}),
        })
        .collect();
    let bridge = json!({
        "type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipMasq": true, "hairpinMode": true,
        "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
    });
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    let mut plugins = vec![bridge, portmap, json!({"type": "firewall"})];
    if has("bandwidth") {
        plugins.push(json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}));
    }
    let plugins = plugins.into_iter().filter_map(|value| match value {
        Value::Object(object) => Some(PluginConf {
            kind: object.get("type")?.as_str()?.to_owned(),
            object,
            builtin: true,
        }),
        _ => None,
    });
    Network {
        name: NAME.to_owned(),
        version: CniVersion::V1_1_0,
        versions: vec![CniVersion::V1_1_0],
        disable_check: false,
        disable_gc: false,
        plugins: plugins.collect(),
        file: PathBuf::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_as_the_kernel_writes_them() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    eth0\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                    wharf0\t0000610A\t00000000\t0001\t0\t0\t0\t00F0FFFF\t0\t0\t0\n";
        let routes = routes4(text);
        assert_eq!(routes, ["192.168.2.0/24".parse().unwrap()]);
        let text = "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 \
                    00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0\n";
        assert_eq!(routes6(text), ["fd00::/64".parse().unwrap()]);
    }

    #[test]
    fn a_choice_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = remembered(dir.path()).unwrap();
        assert_eq!(remembered(dir.path()).unwrap(), first);
        assert!(first.subnets[0].addr.is_ipv4());
        let network = network(&first, |_| true);
        let ipam = &network.plugins[0].object["ipam"];
        let subnet = first.subnets[0].to_string();
        assert_eq!(ipam["ranges"][0][0]["subnet"], Value::from(subnet));
    }
}
