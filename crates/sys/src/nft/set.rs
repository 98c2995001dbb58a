//! Sets and maps: what their keys are made of, and their elements. Pure.

use super::expression::DATA_VALUE;
use crate::netlink::Writer;

/// What a part of a key or of a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// An IPv4 address.
    Ipv4,
    /// An IPv6 address.
    Ipv6,
    /// A transport protocol.
    Protocol,
    /// A port.
    Port,
    /// Name of an interface.
    InterfaceName,
    /// An Ethernet address.
    Ethernet,
}

impl Field {
    /// Its bytes.
    fn length(self) -> usize {
        match self {
            Self::Protocol => 1,
            Self::Port => 2,
            Self::Ipv4 => 4,
            Self::Ethernet => 6,
            Self::Ipv6 | Self::InterfaceName => 16,
        }
    }

    /// The number by which `nft list` knows how to show it (nftables' `enum datatypes`).
    fn datatype(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Ethernet => 9,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::InterfaceName => 41,
        }
    }
}

/// A key or value of these parts: alone as it is, together each padded to four bytes.
#[must_use]
pub fn value(parts: &[&[u8]]) -> Vec<u8> {
    if let [one] = parts {
        return one.to_vec();
    }
    let mut all = Vec::new();
    for part in parts {
        all.extend_from_slice(part);
        all.resize((all.len() + 3) & !3, 0);
    }
    all
}

/// First and last address of a network, as bytes.
#[must_use]
pub fn range(network: &[u8], prefix: u8) -> (Vec<u8>, Vec<u8>) {
    let mut first = network.to_vec();
    let mut last = network.to_vec();
    for (i, (low, high)) in first.iter_mut().zip(&mut last).enumerate() {
        let bits = usize::from(prefix).saturating_sub(i * 8).min(8);
        let host = u8::try_from(0xff_u32 >> bits).unwrap_or(0);
        *low &= !host;
        *high |= host;
    }
    (first, last)
}

/// A set, or with values a map.
#[derive(Debug, Clone, Copy)]
pub struct Set<'a> {
    /// Its name.
    pub name: &'a str,
    /// A number that rules of the same transaction call it by.
    pub id: u32,
    /// Parts of its keys.
    pub key: &'a [Field],
    /// Parts of its values; empty for a set.
    pub value: &'a [Field],
    /// Whether its elements are ranges.
    pub ranges: bool,
}

impl Set<'_> {
    pub(super) fn write(&self, w: &mut Writer<'_>) {
        const INTERVAL: u32 = 4;
        const MAP: u32 = 8;
        const CONCATENATION: u32 = 128;
        let together = self.key.len() > 1;
        let mut flags = 0;
        if self.ranges {
            flags |= INTERVAL;
        }
        if together {
            flags |= CONCATENATION;
        }
        if !self.value.is_empty() {
            flags |= MAP;
        }
        w.text(2, self.name);
        w.be32(3, flags);
        w.be32(4, datatype(self.key));
        w.be32(5, length(self.key));
        if !self.value.is_empty() {
            w.be32(6, datatype(self.value));
            w.be32(7, length(self.value));
        }
        w.be32(10, self.id);
        if together {
            w.nest(9, |w| w.nest(2, |w| lengths(w, self.key)));
        }
    }
}

/// The lengths of a concatenation's parts, as `NFTA_SET_DESC_CONCAT` has them.
fn lengths(w: &mut Writer<'_>, fields: &[Field]) {
    for field in fields {
        let length = u32::try_from(field.length()).unwrap_or(0);
        w.nest(1, |w| w.be32(1, length));
    }
}

fn datatype(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |all, f| all << 6 | f.datatype())
}

fn length(fields: &[Field]) -> u32 {
    let bytes = match fields {
        [one] => one.length(),
        many => many.iter().map(|f| (f.length() + 3) & !3).sum(),
    };
    u32::try_from(bytes).unwrap_or(0)
}

/// An element of a set or map. [`value`] and [`range`] make its parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Element {
    /// The key, or the first one of a range.
    pub key: Vec<u8>,
    /// The last key of a range; empty: it is not one.
    pub last: Vec<u8>,
    /// What a map says of it; empty in a set.
    pub value: Vec<u8>,
    /// Whose it is, shown by `nft list`: at most 127 bytes, more is cut.
    pub comment: String,
}

impl Element {
    pub(super) fn write(&self, w: &mut Writer<'_>) {
        w.nest(1, |w| {
            w.nest(1, |w| w.raw(DATA_VALUE, &self.key));
            if !self.last.is_empty() {
                w.nest(10, |w| w.raw(DATA_VALUE, &self.last));
            }
            if !self.value.is_empty() {
                w.nest(2, |w| w.raw(DATA_VALUE, &self.value));
            }
            if !self.comment.is_empty() {
                w.raw(6, &comment(&self.comment));
            }
        });
    }

    /// Bytes that it takes in a message, at most.
    pub(super) fn size(&self) -> usize {
        64 + self.key.len() + self.last.len() + self.value.len() + self.comment.len()
    }
}

/// The longest comment.
const MAX_COMMENT: usize = 127;

/// A comment as libnftnl stores it: type 0, length, text with its terminator.
pub(super) fn comment(text: &str) -> Vec<u8> {
    let mut end = text.len().min(MAX_COMMENT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = &text.as_bytes()[..end];
    let mut all = vec![0, u8::try_from(text.len() + 1).unwrap_or(u8::MAX)];
    all.extend_from_slice(text);
    all.push(0);
    all
}

/// The comment in user data; empty without one.
pub(super) fn comment_in(mut data: &[u8]) -> String {
    while let [kind, length, rest @ ..] = data {
        let length = usize::from(*length).min(rest.len());
        if *kind == 0 {
            let text = rest[..length].split(|b| *b == 0).next().unwrap_or_default();
            return String::from_utf8_lossy(text).into_owned();
        }
        data = &rest[length..];
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_a_range() {
        let both = |a: &[u8], p| range(a, p);
        assert_eq!(
            both(&[10, 88, 3, 4], 16),
            (vec![10, 88, 0, 0], vec![10, 88, 255, 255])
        );
        assert_eq!(both(&[10, 88, 3, 4], 0), (vec![0; 4], vec![255; 4]));
        assert_eq!(
            both(&[10, 88, 3, 4], 32),
            (vec![10, 88, 3, 4], vec![10, 88, 3, 4])
        );
        assert_eq!(
            both(&[10, 88, 3, 5], 31),
            (vec![10, 88, 3, 4], vec![10, 88, 3, 5])
        );
    }

    #[test]
    fn comments_survive_their_coding() {
        for text in ["", "a", &"ü".repeat(100)] {
            let back = comment_in(&comment(text));
            assert!(text.starts_with(&back) && back.len() <= MAX_COMMENT);
        }
        assert_eq!(comment_in(&[1, 2, 9, 9, 0, 3, b'x', b'y', 0]), "xy");
        assert_eq!(comment_in(&[0, 200, b'x']), "x");
        assert_eq!(comment_in(&[7]), "");
    }
}
