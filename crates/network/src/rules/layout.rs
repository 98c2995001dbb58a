//! The tables: chains, rules and sets. What a node's packets meet is on this page.
//!
//! ```text
//! table inet wharf
//!   prerouting  nat -99   to an address of this node ─► hostports     behind kube-proxy's -100: a
//!   output      nat -99   not to loopback, else the same              Service wins
//!   hostports             ports4_at, ports4, ports6_at, ports6: protocol and port ─► pod and port
//!   postrouting nat 100   translated and between neighbours (hairpin) ─► masquerade
//!                         inside a network (local) ─► as it is; from it (masquerade) ─► masquerade
//!   forward     filter 0  isolated bridges ─► drop; between bridges that keep to themselves ─► drop
//!
//! table bridge wharf
//!   prerouting  -300      from a checked port with another Ethernet address ─► drop
//! ```

use wharf_sys::nft::{
    Chain, Compare, Conntrack, Expressions, Family, Field, Hook, HookKind, Meta, Nat, Register,
    Set, Transaction, Verdict,
};

/// Bit of `ct status`: the destination was translated (`IPS_DST_NAT`).
const DESTINATION_TRANSLATED: u32 = 32;
/// Bits of `ct state`: established or related.
const KNOWN: u32 = 2 | 4;
/// `RTN_LOCAL` of the routing table's address types.
const LOCAL: u32 = 2;
/// One after `dstnat`: kube-proxy's rules come first, whoever was there first.
const BEHIND_SERVICES: i32 = -99;
const SOURCE: i32 = 100;

/// The sets of one table, and its rules.
pub trait Layout: Copy + Ord + std::fmt::Debug + Send + 'static {
    /// Whose packets it sees.
    const FAMILY: Family;
    /// Its sets.
    const SETS: &'static [Self];

    /// How a set is made.
    fn set(self) -> Set<'static>;

    /// Adds the chains and their rules.
    fn rules(transaction: &mut Transaction<'_>);
}

/// The sets of the table for IPv4 and IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Which {
    /// Protocol and port to an IPv4 pod and its port.
    Ports4,
    /// The same for one address of the node.
    Ports4At,
    /// Protocol and port to an IPv6 pod and its port.
    Ports6,
    /// The same for one address of the node.
    Ports6At,
    /// From and to between which translated IPv4 packets need masquerading to come back.
    Hairpin4,
    /// The same for IPv6.
    Hairpin6,
    /// From and to between which IPv4 packets are not masqueraded.
    Local4,
    /// The same for IPv6.
    Local6,
    /// From and to between which other IPv4 packets are masqueraded.
    Masquerade4,
    /// The same for IPv6.
    Masquerade6,
    /// IPv4 addresses that the firewall plugin lets through.
    Accept4,
    /// IPv6 addresses that the firewall plugin lets through.
    Accept6,
    /// Bridges that do not speak with other such bridges.
    Apart,
    /// The same bridge twice: what stays inside.
    ApartPairs,
    /// The same bridge twice: bridges whose ports do not speak with each other.
    IsolatedPairs,
}

/// The table for IPv4 and IPv6, by its sets.
pub type Filter = Which;

impl Layout for Which {
    const FAMILY: Family = Family::Inet;
    const SETS: &'static [Self] = &[
        Self::Ports4,
        Self::Ports4At,
        Self::Ports6,
        Self::Ports6At,
        Self::Hairpin4,
        Self::Hairpin6,
        Self::Local4,
        Self::Local6,
        Self::Masquerade4,
        Self::Masquerade6,
        Self::Accept4,
        Self::Accept6,
        Self::Apart,
        Self::ApartPairs,
        Self::IsolatedPairs,
    ];

    fn set(self) -> Set<'static> {
        use Field::{InterfaceName as Name, Ipv4, Ipv6, Port, Protocol};
        let (name, key, value, ranges): (_, &'static [Field], &'static [Field], _) = match self {
            Self::Ports4 => ("ports4", &[Protocol, Port], &[Ipv4, Port], false),
            Self::Ports4At => ("ports4_at", &[Ipv4, Protocol, Port], &[Ipv4, Port], false),
            Self::Ports6 => ("ports6", &[Protocol, Port], &[Ipv6, Port], false),
            Self::Ports6At => ("ports6_at", &[Ipv6, Protocol, Port], &[Ipv6, Port], false),
            Self::Hairpin4 => ("hairpin4", &[Ipv4, Ipv4], &[], true),
            Self::Hairpin6 => ("hairpin6", &[Ipv6, Ipv6], &[], true),
            Self::Local4 => ("local4", &[Ipv4, Ipv4], &[], true),
            Self::Local6 => ("local6", &[Ipv6, Ipv6], &[], true),
            Self::Masquerade4 => ("masquerade4", &[Ipv4, Ipv4], &[], true),
            Self::Masquerade6 => ("masquerade6", &[Ipv6, Ipv6], &[], true),
            Self::Accept4 => ("accept4", &[Ipv4], &[], false),
            Self::Accept6 => ("accept6", &[Ipv6], &[], false),
            Self::Apart => ("apart", &[Name], &[], false),
            Self::ApartPairs => ("apart_pairs", &[Name, Name], &[], false),
            Self::IsolatedPairs => ("isolated_pairs", &[Name, Name], &[], false),
        };
        let id = Self::SETS.iter().position(|s| *s == self).unwrap_or(0);
        Set {
            name,
            id: u32::try_from(id).unwrap_or(0) + 1,
            key,
            value,
            ranges,
        }
    }

    fn rules(t: &mut Transaction<'_>) {
        t.chain(Chain {
            name: "hostports",
            hook: None,
        });
        for (name, kind, hook, priority) in [
            (
                "prerouting",
                HookKind::Nat,
                Hook::Prerouting,
                BEHIND_SERVICES,
            ),
            ("output", HookKind::Nat, Hook::Output, BEHIND_SERVICES),
            ("postrouting", HookKind::Nat, Hook::Postrouting, SOURCE),
            ("forward", HookKind::Filter, Hook::Forward, 0),
        ] {
            t.chain(Chain {
                name,
                hook: Some((kind, hook, priority)),
            });
        }
        translate_ports(t);
        masquerade(t);
        forward(t);
    }
}

fn reg(number: u8) -> Register {
    Register::new(number)
}

fn translate_ports(t: &mut Transaction<'_>) {
    t.rule("hostports", "", |e| ports4(e, Some(Which::Ports4At)));
    t.rule("hostports", "", |e| ports4(e, None));
    t.rule("hostports", "", |e| ports6(e, Some(Which::Ports6At)));
    t.rule("hostports", "", |e| ports6(e, None));
    t.rule("prerouting", "", to_this_node);
    // Loopback is served by listeners: translated packets to 127.0.0.1 could not come back.
    t.rule("output", "", |e| {
        e.only(Family::Ipv4)
            .network_header(16, 1, reg(0))
            .compare(reg(0), Compare::Equal, &[127])
            .verdict(Verdict::Return);
    });
    t.rule("output", "", |e| {
        let one = std::net::Ipv6Addr::LOCALHOST.octets();
        e.only(Family::Ipv6)
            .network_header(24, 16, reg(0))
            .compare(reg(0), Compare::Equal, &one)
            .verdict(Verdict::Return);
    });
    t.rule("output", "", to_this_node);
}

fn to_this_node(e: &mut Expressions<'_, '_>) {
    e.destination_type(reg(0))
        .compare(reg(0), Compare::Equal, &LOCAL.to_ne_bytes())
        .verdict(Verdict::Jump("hostports"));
}

fn ports4(e: &mut Expressions<'_, '_>, at: Option<Which>) {
    e.only(Family::Ipv4);
    let next = if at.is_some() {
        e.network_header(16, 4, reg(0));
        1
    } else {
        0
    };
    let map = at.unwrap_or(Which::Ports4).set();
    e.meta(Meta::TransportProtocol, reg(next))
        .transport_header(2, 2, reg(next + 1))
        .in_map(map.name, map.id, reg(0), reg(0))
        .destination(Nat {
            family: Family::Ipv4,
            address: reg(0),
            port: Some(reg(1)),
        });
}

fn ports6(e: &mut Expressions<'_, '_>, at: Option<Which>) {
    e.only(Family::Ipv6);
    let next = if at.is_some() {
        e.network_header(24, 16, reg(0));
        4
    } else {
        0
    };
    let map = at.unwrap_or(Which::Ports6).set();
    e.meta(Meta::TransportProtocol, reg(next))
        .transport_header(2, 2, reg(next + 1))
        .in_map(map.name, map.id, reg(0), reg(0))
        .destination(Nat {
            family: Family::Ipv6,
            address: reg(0),
            port: Some(reg(4)),
        });
}

/// Goes on when the packet's from and to are in a set of this family.
fn from_and_to(e: &mut Expressions<'_, '_>, set: Which, family: Family) {
    e.only(family);
    if family == Family::Ipv4 {
        e.network_header(12, 4, reg(0))
            .network_header(16, 4, reg(1));
    } else {
        e.network_header(8, 16, reg(0))
            .network_header(24, 16, reg(4));
    }
    let set = set.set();
    e.in_set(set.name, set.id, reg(0));
}

fn masquerade(t: &mut Transaction<'_>) {
    for (hairpin, local, others, family) in [
        (
            Which::Hairpin4,
            Which::Local4,
            Which::Masquerade4,
            Family::Ipv4,
        ),
        (
            Which::Hairpin6,
            Which::Local6,
            Which::Masquerade6,
            Family::Ipv6,
        ),
    ] {
        t.rule("postrouting", "", |e| {
            e.conntrack_has(Conntrack::Status, DESTINATION_TRANSLATED);
            from_and_to(e, hairpin, family);
            e.masquerade();
        });
        t.rule("postrouting", "", |e| {
            from_and_to(e, local, family);
            e.verdict(Verdict::Return);
        });
        t.rule("postrouting", "", |e| {
            from_and_to(e, others, family);
            e.masquerade();
        });
    }
}

fn forward(t: &mut Transaction<'_>) {
    let pair = |e: &mut Expressions<'_, '_>, set: Which, verdict| {
        let set = set.set();
        e.meta(Meta::InputName, reg(0))
            .meta(Meta::OutputName, reg(4))
            .in_set(set.name, set.id, reg(0))
            .verdict(verdict);
    };
    t.rule("forward", "", |e| {
        pair(e, Which::IsolatedPairs, Verdict::Drop);
    });
    t.rule("forward", "", |e| {
        pair(e, Which::ApartPairs, Verdict::Accept);
    });
    t.rule("forward", "", |e| {
        let apart = Which::Apart.set();
        e.meta(Meta::InputName, reg(0))
            .in_set(apart.name, apart.id, reg(0))
            .meta(Meta::OutputName, reg(0))
            .in_set(apart.name, apart.id, reg(0))
            .verdict(Verdict::Drop);
    });
    for (set, family, from, to, length) in [
        (Which::Accept4, Family::Ipv4, 12, 16, 4),
        (Which::Accept6, Family::Ipv6, 8, 24, 16),
    ] {
        let set = set.set();
        t.rule("forward", "", |e| {
            e.conntrack_has(Conntrack::State, KNOWN)
                .only(family)
                .network_header(to, length, reg(0))
                .in_set(set.name, set.id, reg(0))
                .verdict(Verdict::Accept);
        });
        t.rule("forward", "", |e| {
            e.only(family)
                .network_header(from, length, reg(0))
                .in_set(set.name, set.id, reg(0))
                .verdict(Verdict::Accept);
        });
    }
}

/// The sets of the table for frames on bridges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bridges {
    /// Ports whose frames must have the pod's Ethernet address.
    Checked,
    /// Port and address that belong together.
    Genuine,
}

impl Layout for Bridges {
    const FAMILY: Family = Family::Bridge;
    const SETS: &'static [Self] = &[Self::Checked, Self::Genuine];

    fn set(self) -> Set<'static> {
        let (name, id, key): (_, _, &'static [Field]) = match self {
            Self::Checked => ("checked", 1, &[Field::InterfaceName]),
            Self::Genuine => ("genuine", 2, &[Field::InterfaceName, Field::Ethernet]),
        };
        Set {
            name,
            id,
            key,
            value: &[],
            ranges: false,
        }
    }

    fn rules(t: &mut Transaction<'_>) {
        t.chain(Chain {
            name: "prerouting",
            hook: Some((HookKind::Filter, Hook::Prerouting, -300)),
        });
        let (checked, genuine) = (Self::Checked.set(), Self::Genuine.set());
        t.rule("prerouting", "", |e| {
            e.meta(Meta::InputName, reg(0))
                .link_header(6, 6, reg(4))
                .in_set(genuine.name, genuine.id, reg(0))
                .verdict(Verdict::Return);
        });
        t.rule("prerouting", "", |e| {
            e.meta(Meta::InputName, reg(0))
                .in_set(checked.name, checked.id, reg(0))
                .verdict(Verdict::Drop);
        });
    }
}
