//! Ethernet addresses. Pure but for the random ones.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use rustix::io::Errno;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address that belongs to an IPv4 address for good, so that neighbours never remember a
    /// wrong one: locally administered, `0a:58` and the four bytes.
    #[must_use]
    pub fn of(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x0a, 0x58, a, b, c, d])
    }

    /// A random address: locally administered, not a group's.
    ///
    /// # Errors
    /// As [`crate::random::fill`].
    pub fn random() -> Result<Self, Errno> {
        let mut bytes: [u8; 6] = crate::random::bytes()?;
        bytes[0] = bytes[0] & 0xfc | 0x02;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not six bytes in hexadecimal with colons between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotMac;

impl fmt::Display for NotMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an Ethernet address: six bytes in hexadecimal, as in 0a:58:0a:58:00:02")
    }
}

impl std::error::Error for NotMac {}

impl FromStr for Mac {
    type Err = NotMac;

    fn from_str(text: &str) -> Result<Self, NotMac> {
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let digits = |p: &&str| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit());
            let part = parts.next().filter(digits).ok_or(NotMac)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_not_hex| NotMac)?;
        }
        parts.next().is_none().then_some(Self(bytes)).ok_or(NotMac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_as_people_do() {
        let mac: Mac = "0A:58:0a-58-00:02".parse().unwrap();
        assert_eq!(mac.to_string(), "0a:58:0a:58:00:02");
        assert_eq!(mac, Mac::of(Ipv4Addr::new(10, 88, 0, 2)));
        for bad in [
            "",
            "0a:58",
            "0a:58:0a:58:00:02:03",
            "0a:58:0a:58:00:0g",
            "a:58:0a:58:00:02",
            "+a:58:0a:58:00:02",
        ] {
            assert_eq!(bad.parse::<Mac>(), Err(NotMac), "{bad}");
        }
    }
}
