//! An address with the length of its prefix: `10.1.2.3/24`, `fd00::5/64`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An address with the length of its prefix. The bits of the host may be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpNet {
    /// The address.
    pub addr: IpAddr,
    /// Bits of the prefix: at most 32 or 128.
    pub prefix: u8,
}

/// Not an address with a prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address with a prefix, like 10.1.2.0/24 or fd00::/64")]
pub struct IpNetError(String);

impl IpNet {
    /// `addr/prefix`; `None` when the prefix is longer than the address.
    pub fn new(addr: IpAddr, prefix: u8) -> Option<Self> {
        (prefix <= width(addr)).then_some(Self { addr, prefix })
    }

    /// The address alone: a prefix of all its bits.
    pub fn host(addr: IpAddr) -> Self {
        Self {
            addr,
            prefix: width(addr),
        }
    }

    /// The network: the same prefix, the host's bits zero.
    #[must_use]
    pub fn network(self) -> Self {
        let bits = self.bits() & self.mask();
        Self {
            addr: self.addr_of(bits),
            prefix: self.prefix,
        }
    }

    /// The last address of the network: IPv4's broadcast address.
    pub fn last(self) -> IpAddr {
        let host = !self.mask() & ones(width(self.addr));
        self.addr_of(self.bits() | host)
    }

    /// The address `n` after the network's first; `None` beyond its last.
    pub fn nth(self, n: u128) -> Option<IpAddr> {
        let host = !self.mask() & ones(width(self.addr));
        (n <= host).then(|| self.addr_of((self.bits() & self.mask()) | n))
    }

    /// Whether `addr` is of this network and of its family.
    pub fn contains(self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.addr.is_ipv4()
            && Self::new(addr, self.prefix).is_some_and(|a| a.network() == self.network())
    }

    /// Whether the two have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        let wider = if self.prefix <= other.prefix {
            (self, other.addr)
        } else {
            (other, self.addr)
        };
        wider.0.contains(wider.1)
    }

    fn bits(self) -> u128 {
        match self.addr {
            IpAddr::V4(a) => u128::from(a.to_bits()),
            IpAddr::V6(a) => a.to_bits(),
        }
    }

    fn mask(self) -> u128 {
        let host = width(self.addr) - self.prefix;
        let all = ones(width(self.addr));
        all ^ ones(host)
    }

    fn addr_of(self, bits: u128) -> IpAddr {
        match self.addr {
            // The bits come from a v4 address and masks of its width.
            IpAddr::V4(_) => IpAddr::V4(u32::try_from(bits).unwrap_or(u32::MAX).into()),
            IpAddr::V6(_) => IpAddr::V6(bits.into()),
        }
    }
}

/// Bits of an address of this family.
fn width(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

/// The lowest `n` bits set.
fn ones(n: u8) -> u128 {
    match n {
        0 => 0,
        n => u128::MAX >> (128 - u32::from(n)),
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl FromStr for IpNet {
    type Err = IpNetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (addr, prefix) = text.split_once('/')?;
            // "+8" is a number to Rust and a prefix to nobody.
            if !prefix.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            Self::new(addr.parse().ok()?, prefix.parse().ok()?)
        };
        parse().ok_or_else(|| IpNetError(text.to_owned()))
    }
}

impl Serialize for IpNet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IpNet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_knows_its_ends_and_members() {
        let n = net("10.1.2.3/24");
        assert_eq!(n.network(), net("10.1.2.0/24"));
        assert_eq!(n.last().to_string(), "10.1.2.255");
        assert_eq!(n.nth(5).unwrap().to_string(), "10.1.2.5");
        assert_eq!(n.nth(256), None);
        assert!(n.contains("10.1.2.77".parse().unwrap()));
        assert!(!n.contains("10.1.3.1".parse().unwrap()));
        assert!(!net("0.0.0.0/0").contains("::1".parse().unwrap()));
        let six = net("fd00::5/64");
        assert_eq!(six.network(), net("fd00::/64"));
        assert_eq!(six.last().to_string(), "fd00::ffff:ffff:ffff:ffff");
        assert_eq!(
            net("::/0").last().to_string(),
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
        );
    }

    #[test]
    fn overlap_is_seen_from_both_sides() {
        for (a, b, yes) in [
            ("10.0.0.0/8", "10.88.0.0/16", true),
            ("10.87.0.0/16", "10.88.0.0/16", false),
            ("0.0.0.0/0", "fd00::/8", false),
            ("fd00::/8", "fd12::/64", true),
        ] {
            assert_eq!(net(a).overlaps(net(b)), yes, "{a} {b}");
            assert_eq!(net(b).overlaps(net(a)), yes, "{b} {a}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "",
            "10.0.0.1",
            "10.0.0.1/33",
            "::1/129",
            "10.0.0/8",
            "10.0.0.1/+8",
            "10.0.0.1/",
        ] {
            assert!(text.parse::<IpNet>().is_err(), "{text}");
        }
    }
}
