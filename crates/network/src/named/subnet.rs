//! Addresses for a network that nobody else has: chosen from the pools that Docker has by default, or given
//! and checked. Pure, but for what the kernel routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wharf_sys::netlink::{NetlinkError, Socket, routes};

use super::record::NamedSubnet;
use crate::ip::IpNet;

/// Where networks are chosen, and the length of their prefixes.
const POOLS: [(Ipv4Addr, u8, u8); 6] = [
    (Ipv4Addr::new(172, 18, 0, 0), 16, 16),
    (Ipv4Addr::new(172, 19, 0, 0), 16, 16),
    (Ipv4Addr::new(172, 20, 0, 0), 14, 16),
    (Ipv4Addr::new(172, 24, 0, 0), 14, 16),
    (Ipv4Addr::new(172, 28, 0, 0), 14, 16),
    (Ipv4Addr::new(192, 168, 0, 0), 16, 20),
];

/// What a subnet cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubnetError {
    /// Somebody has some of these addresses.
    #[error("subnet {subnet} overlaps {other} of {owner}: choose another")]
    Overlap {
        /// What was asked for.
        subnet: IpNet,
        /// What is there.
        other: IpNet,
        /// Whose it is.
        owner: String,
    },
    /// Not a subnet with room for a gateway and a pod.
    #[error(
        "subnet {0} is too small or not the first address of a network: give one like 10.1.0.0/24"
    )]
    NoNetwork(IpNet),
    /// Gateway or range are not inside.
    #[error("{what} {value} is not inside subnet {subnet}")]
    Outside {
        /// `gateway` or `ip range`.
        what: &'static str,
        /// What was given.
        value: String,
        /// The subnet.
        subnet: IpNet,
    },
    /// All are taken.
    #[error("every subnet that a network may get by itself is taken or routed elsewhere: give one")]
    NoneLeft,
}

/// Networks that this thread's network namespace routes somewhere, except everywhere.
///
/// # Errors
///
/// The kernel does not tell.
pub fn routed() -> Result<Vec<IpNet>, NetlinkError> {
    let mut socket = Socket::route()?;
    let mut all = Vec::new();
    for ipv6 in [false, true] {
        let own = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.is_loopback() || ip.is_multicast() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_loopback() || ip.is_multicast() || ip.is_unicast_link_local(),
        };
        let found = routes(&mut socket, ipv6)?.into_iter();
        let found = found.filter(|route| route.prefix > 0 && !own(route.to));
        all.extend(found.filter_map(|route| IpNet::new(route.to, route.prefix)));
    }
    Ok(all)
}

/// The first subnet of the pools that overlaps nothing of `taken`.
///
/// # Errors
///
/// None is left.
pub fn choose(taken: &[IpNet]) -> Result<IpNet, SubnetError> {
    let free = |net: &IpNet| !taken.iter().any(|t| t.overlaps(*net));
    let all = POOLS.into_iter().flat_map(|(first, prefix, length)| {
        let count = 1_u32 << (length - prefix);
        let step = 1_u32 << (32 - length);
        (0..count).filter_map(move |n| {
            let address = u32::from(first).checked_add(n.checked_mul(step)?)?;
            IpNet::new(IpAddr::V4(address.into()), length)
        })
    });
    all.into_iter().find(free).ok_or(SubnetError::NoneLeft)
}

/// A prefix of RFC 4193, from random bytes: nobody has the same.
pub fn unique_local(random: [u8; 5]) -> Option<IpNet> {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&random);
    IpNet::new(Ipv6Addr::from(octets).into(), 64)
}

/// A subnet that was given, with what belongs to it; the gateway is its first address if none was given.
///
/// # Errors
///
/// It cannot be one.
pub fn given(
    subnet: IpNet,
    gateway: Option<IpAddr>,
    range: Option<IpNet>,
) -> Result<NamedSubnet, SubnetError> {
    // Room for the network's own address, the gateway, a pod and the broadcast address.
    let room = match subnet.addr {
        IpAddr::V4(_) => 30,
        IpAddr::V6(_) => 126,
    };
    if subnet.network() != subnet || subnet.prefix > room || subnet.prefix == 0 {
        return Err(SubnetError::NoNetwork(subnet));
    }
    let outside = |what, value: String| SubnetError::Outside {
        what,
        value,
        subnet,
    };
    let gateway = match gateway {
        Some(given) if subnet.contains(given) && given != subnet.addr => given,
        Some(given) => return Err(outside("gateway", given.to_string())),
        None => subnet.nth(1).ok_or(SubnetError::NoNetwork(subnet))?,
    };
    if let Some(range) = range
        && (!subnet.contains(range.addr) || range.prefix < subnet.prefix)
    {
        return Err(outside("ip range", range.to_string()));
    }
    Ok(NamedSubnet {
        subnet,
        gateway,
        range,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn networks_are_chosen_where_nobody_is() {
        assert_eq!(choose(&[]).unwrap(), net("172.18.0.0/16"));
        let taken = [net("172.18.3.0/24"), net("172.16.0.0/13")];
        assert_eq!(choose(&taken).unwrap(), net("172.24.0.0/16"));
        assert_eq!(
            choose(&[net("172.16.0.0/12")]).unwrap(),
            net("192.168.0.0/20")
        );
        let mut taken = vec![net("172.16.0.0/12")];
        for _ in 0..16 {
            taken.push(choose(&taken).unwrap());
        }
        assert_eq!(choose(&taken), Err(SubnetError::NoneLeft));
    }

    #[test]
    fn what_is_given_must_fit_together() {
        let ok = given(net("10.1.0.0/24"), None, Some(net("10.1.0.128/25"))).unwrap();
        assert_eq!(ok.gateway, "10.1.0.1".parse::<IpAddr>().unwrap());
        given(net("fd00::/64"), Some("fd00::9".parse().unwrap()), None).unwrap();
        for (subnet, gateway, range) in [
            ("10.1.0.5/24", None, None),
            ("10.1.0.0/31", None, None),
            ("0.0.0.0/0", None, None),
            ("10.1.0.0/24", Some("10.2.0.1"), None),
            ("10.1.0.0/24", Some("10.1.0.0"), None),
            ("10.1.0.0/24", Some("fd00::1"), None),
            ("10.1.0.0/24", None, Some("10.1.0.0/16")),
            ("10.1.0.0/24", None, Some("10.2.0.0/25")),
        ] {
            let gateway = gateway.map(|g: &str| g.parse().unwrap());
            given(net(subnet), gateway, range.map(net)).unwrap_err();
        }
    }
}
