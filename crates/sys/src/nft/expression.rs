//! Expressions of rules, written as attributes.

use crate::netlink::Writer;

const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
pub(super) const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

/// Whose packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// Frames that pass a bridge.
    Bridge,
}

impl Family {
    /// The kernel's number (`NFPROTO_…`).
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ipv4 => 2,
            Self::Ipv6 => 10,
            Self::Bridge => 7,
        }
    }
}

/// One of sixteen registers of four bytes. A longer value goes on into the next ones; the fields of
/// a concatenation begin at a register each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(u8);

impl Register {
    /// The register with this number, 0 to 15 (greater ones are taken as 15).
    #[must_use]
    pub fn new(number: u8) -> Self {
        Self(number.min(15))
    }

    fn number(self) -> u32 {
        8 + u32::from(self.0) // NFT_REG32_00
    }
}

/// What of a packet's way is known beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    /// Name of the interface by which it came, 16 bytes.
    InputName,
    /// Name of the interface by which it goes, 16 bytes.
    OutputName,
    /// IPv4 or IPv6, 1 byte.
    NetworkProtocol,
    /// TCP, UDP and so on, 1 byte.
    TransportProtocol,
}

/// What connection tracking knows of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conntrack {
    /// Bits: 2 established, 4 related, 8 new.
    State,
    /// Bits: 32 the destination was translated, 16 the source.
    Status,
}

/// How a register is compared with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// The same.
    Equal,
    /// Another.
    Different,
}

/// What becomes of the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It passes this base chain.
    Accept,
    /// It is gone.
    Drop,
    /// On with the rule behind the jump, or the chain's policy.
    Return,
    /// On in another chain, and back.
    Jump(&'a str),
    /// On in another chain.
    Goto(&'a str),
}

/// The destination that a packet gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nat {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Where the address is.
    pub address: Register,
    /// Where the port is; `None` leaves it.
    pub port: Option<Register>,
}

/// The expressions of one rule, in order: the next is looked at when the one before it matched.
#[derive(Debug)]
pub struct Expressions<'a, 'b>(pub(super) &'a mut Writer<'b>);

impl Expressions<'_, '_> {
    fn add(&mut self, name: &str, write: impl FnOnce(&mut Writer<'_>)) -> &mut Self {
        self.0.nest(LIST_ELEMENT, |w| {
            w.text(EXPRESSION_NAME, name);
            w.nest(EXPRESSION_DATA, write);
        });
        self
    }

    /// Loads what is known of the packet's way.
    pub fn meta(&mut self, key: Meta, to: Register) -> &mut Self {
        let key = match key {
            Meta::InputName => 6,
            Meta::OutputName => 7,
            Meta::NetworkProtocol => 15,
            Meta::TransportProtocol => 16,
        };
        self.add("meta", |w| {
            w.be32(1, to.number());
            w.be32(2, key);
        })
    }

    /// Loads bytes of the network header.
    pub fn network_header(&mut self, offset: u32, length: u32, to: Register) -> &mut Self {
        self.payload(1, offset, length, to)
    }

    /// Loads bytes of the transport header.
    pub fn transport_header(&mut self, offset: u32, length: u32, to: Register) -> &mut Self {
        self.payload(2, offset, length, to)
    }

    /// Loads bytes of the Ethernet header.
    pub fn link_header(&mut self, offset: u32, length: u32, to: Register) -> &mut Self {
        self.payload(0, offset, length, to)
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, to: Register) -> &mut Self {
        self.add("payload", |w| {
            w.be32(1, to.number());
            w.be32(2, base);
            w.be32(3, offset);
            w.be32(4, length);
        })
    }

    /// Goes on when a register has, or has not, a value.
    pub fn compare(&mut self, from: Register, how: Compare, value: &[u8]) -> &mut Self {
        self.add("cmp", |w| {
            w.be32(1, from.number());
            w.be32(2, if how == Compare::Equal { 0 } else { 1 });
            w.nest(3, |w| w.raw(DATA_VALUE, value));
        })
    }

    /// Puts a value into a register.
    pub fn put(&mut self, to: Register, value: &[u8]) -> &mut Self {
        self.add("immediate", |w| {
            w.be32(1, to.number());
            w.nest(2, |w| w.raw(DATA_VALUE, value));
        })
    }

    /// Goes on when a packet is of this network protocol.
    pub fn only(&mut self, family: Family) -> &mut Self {
        self.meta(Meta::NetworkProtocol, Register::new(0)).compare(
            Register::new(0),
            Compare::Equal,
            &[family.number()],
        )
    }

    /// Keeps only some bits of a register.
    pub fn mask(&mut self, register: Register, mask: &[u8]) -> &mut Self {
        let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        self.add("bitwise", |w| {
            w.be32(1, register.number());
            w.be32(2, register.number());
            w.be32(3, length);
            w.nest(4, |w| w.raw(DATA_VALUE, mask));
            w.nest(5, |w| w.raw(DATA_VALUE, &vec![0; mask.len()]));
        })
    }

    /// Goes on when the registers from `from` on are in a set.
    pub fn in_set(&mut self, set: &str, id: u32, from: Register) -> &mut Self {
        self.lookup(set, id, from, None)
    }

    /// Goes on when they are in a map, with what it says in the registers from `to` on.
    pub fn in_map(&mut self, map: &str, id: u32, from: Register, to: Register) -> &mut Self {
        self.lookup(map, id, from, Some(to))
    }

    fn lookup(&mut self, set: &str, id: u32, from: Register, to: Option<Register>) -> &mut Self {
        self.add("lookup", |w| {
            w.text(1, set);
            w.be32(2, from.number());
            to.into_iter().for_each(|to| w.be32(3, to.number()));
            w.be32(4, id);
        })
    }

    /// Loads the type of the destination address as the routing table knows it; local is 2.
    pub fn destination_type(&mut self, to: Register) -> &mut Self {
        self.add("fib", |w| {
            w.be32(1, to.number());
            w.be32(2, 3); // NFT_FIB_RESULT_ADDRTYPE
            w.be32(3, 2); // NFTA_FIB_F_DADDR
        })
    }

    /// Loads what connection tracking knows: four bytes in the machine's order.
    pub fn conntrack(&mut self, key: Conntrack, to: Register) -> &mut Self {
        let key = match key {
            Conntrack::State => 0,
            Conntrack::Status => 2,
        };
        self.add("ct", |w| {
            w.be32(1, to.number());
            w.be32(2, key);
        })
    }

    /// Goes on when connection tracking knows one of these bits.
    pub fn conntrack_has(&mut self, key: Conntrack, bits: u32) -> &mut Self {
        let register = Register::new(0);
        self.conntrack(key, register)
            .mask(register, &bits.to_ne_bytes())
            .compare(register, Compare::Different, &[0; 4])
    }

    /// Counts packets and bytes.
    pub fn counter(&mut self) -> &mut Self {
        self.add("counter", |_| {})
    }

    /// Goes on for so many packets a second, with a burst of as many as `burst` more.
    pub fn limit(&mut self, per_second: u64, burst: u32) -> &mut Self {
        self.add("limit", |w| {
            w.be64(1, per_second);
            w.be64(2, 1);
            w.be32(3, burst);
            w.be32(4, 0); // NFT_LIMIT_PKTS
        })
    }

    /// Gives the packet another destination; ends the rule.
    pub fn destination(&mut self, nat: Nat) -> &mut Self {
        self.add("nat", |w| {
            w.be32(1, 1); // NFT_NAT_DNAT
            w.be32(2, nat.family.number().into());
            w.be32(3, nat.address.number());
            if let Some(port) = nat.port {
                w.be32(5, port.number());
                w.be32(7, 2); // NF_NAT_RANGE_PROTO_SPECIFIED
            }
        })
    }

    /// Gives the packet the address of the interface by which it leaves; ends the rule.
    pub fn masquerade(&mut self) -> &mut Self {
        self.add("masq", |_| {})
    }

    /// Says what becomes of the packet.
    pub fn verdict(&mut self, verdict: Verdict<'_>) -> &mut Self {
        let (code, chain): (i32, _) = match verdict {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Goto(chain) => (-4, Some(chain)),
            Verdict::Return => (-5, None),
        };
        self.add("immediate", |w| {
            w.be32(1, 0); // NFT_REG_VERDICT
            w.nest(2, |w| {
                w.nest(DATA_VERDICT, |w| {
                    w.be32(1, code.cast_unsigned());
                    chain.into_iter().for_each(|chain| w.text(2, chain));
                });
            });
        })
    }
}
