//! Interfaces: making, changing, removing and looking at them (`rtnetlink(7)`, `linux/if_link.h`).

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;

use super::mac::Mac;
use super::message::{Attributes, Batch, Message, Writer, find, flag, text_of, u32_of};
use super::socket::{NetlinkError, Socket};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const SETLINK: u16 = 19;

const AF_BRIDGE: u8 = 7;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Length of `struct ifinfomsg`.
const FIXED: usize = 16;

const IFF_UP: u32 = 0x1;
const IFF_PROMISC: u32 = 0x100;
const IFF_ALLMULTI: u32 = 0x200;
/// Asks a dump to leave out the statistics (`RTEXT_FILTER_SKIP_STATS`).
const SKIP_STATS: u32 = 8;

/// Attributes of interfaces (`IFLA_…`).
mod ifla {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const IFNAME: u16 = 3;
    pub(super) const MTU: u16 = 4;
    pub(super) const LINK: u16 = 5;
    pub(super) const MASTER: u16 = 10;
    pub(super) const PROTINFO: u16 = 12;
    pub(super) const TXQLEN: u16 = 13;
    pub(super) const OPERSTATE: u16 = 16;
    pub(super) const LINKINFO: u16 = 18;
    pub(super) const IFALIAS: u16 = 20;
    pub(super) const STATS64: u16 = 23;
    pub(super) const AF_SPEC: u16 = 26;
    pub(super) const GROUP: u16 = 27;
    pub(super) const NET_NS_FD: u16 = 28;
    pub(super) const EXT_MASK: u16 = 29;
    pub(super) const PROMISCUITY: u16 = 30;
    pub(super) const INFO_KIND: u16 = 1;
    pub(super) const INFO_DATA: u16 = 2;
    pub(super) const VETH_PEER: u16 = 1;
    pub(super) const BRIDGE_VLAN_FILTERING: u16 = 7;
    pub(super) const SLAVE_MODE: u16 = 1;
    pub(super) const BRPORT_HAIRPIN: u16 = 4;
    pub(super) const BRPORT_ISOLATED: u16 = 33;
    pub(super) const BRIDGE_FLAGS: u16 = 0;
    pub(super) const BRIDGE_VLAN_INFO: u16 = 2;
    pub(super) const INET_CONF: u16 = 1;
    pub(super) const INET6_ADDR_GEN_MODE: u16 = 8;
}

/// The other end of a veth.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it is to be; `None`: beside the first end.
    pub netns: Option<BorrowedFd<'a>>,
    /// Its address; `None`: the kernel draws one.
    pub mac: Option<Mac>,
}

/// How a macvlan or an ipvlan speaks with its neighbours on the same parent, as the kernel numbers
/// it (`MACVLAN_MODE_…`, `IPVLAN_MODE_…`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlaveMode {
    /// A macvlan: 1 private, 2 vepa, 4 bridge, 8 passthru.
    Macvlan(u32),
    /// An ipvlan: 0 l2, 1 l3, 2 l3s.
    Ipvlan(u16),
}

/// What an interface is.
#[derive(Debug, Clone, Copy)]
pub enum Placed<'a> {
    /// A pair of interfaces: what goes into one comes out of the other.
    Veth(Peer<'a>),
    /// A switch; `true`: with VLAN filtering.
    Bridge(bool),
    /// On a parent, and perhaps in another network namespace.
    On {
        /// Index of the parent.
        parent: u32,
        /// The kind and its mode.
        mode: SlaveMode,
        /// Where it is to be.
        netns: Option<BorrowedFd<'a>>,
    },
    /// An intermediate functional block, for shaping what comes in.
    Ifb,
    /// An interface that swallows everything.
    Dummy,
}

/// An interface that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewLink<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is.
    pub kind: Placed<'a>,
    /// The largest packet; of a veth both ends'. `None`: the kernel's default.
    pub mtu: Option<u32>,
    /// Its address; `None`: the kernel draws one.
    pub mac: Option<Mac>,
    /// The bridge that it becomes a port of.
    pub master: Option<u32>,
    /// Its group: a number by which many can be removed at once; 0 is everyone's.
    pub group: u32,
}

/// Makes an interface. `EEXIST` when the name is taken.
pub fn add_link(batch: &mut Batch, link: &NewLink<'_>) {
    batch.push(
        NEWLINK,
        flag::CREATE | flag::EXCLUSIVE,
        &fixed(0, 0, 0, 0),
        |w| {
            w.text(ifla::IFNAME, link.name);
            link.mtu.into_iter().for_each(|mtu| w.u32(ifla::MTU, mtu));
            mac(w, link.mac);
            link.master.into_iter().for_each(|m| w.u32(ifla::MASTER, m));
            if link.group != 0 {
                w.u32(ifla::GROUP, link.group);
            }
            if let Placed::On { parent, netns, .. } = link.kind {
                w.u32(ifla::LINK, parent);
                netns_fd(w, netns);
            }
            w.nest(ifla::LINKINFO, |w| info(w, link));
        },
    );
}

fn info(w: &mut Writer<'_>, link: &NewLink<'_>) {
    match link.kind {
        Placed::Veth(peer) => {
            w.text(ifla::INFO_KIND, "veth");
            w.nest(ifla::INFO_DATA, |w| {
                w.nest_after(ifla::VETH_PEER, &fixed(0, 0, 0, 0), |w| {
                    w.text(ifla::IFNAME, peer.name);
                    link.mtu.into_iter().for_each(|mtu| w.u32(ifla::MTU, mtu));
                    mac(w, peer.mac);
                    netns_fd(w, peer.netns);
                });
            });
        }
        Placed::Bridge(filtering) => {
            w.text(ifla::INFO_KIND, "bridge");
            if filtering {
                w.nest(ifla::INFO_DATA, |w| w.u8(ifla::BRIDGE_VLAN_FILTERING, 1));
            }
        }
        Placed::On {
            mode: SlaveMode::Macvlan(mode),
            ..
        } => {
            w.text(ifla::INFO_KIND, "macvlan");
            w.nest(ifla::INFO_DATA, |w| w.u32(ifla::SLAVE_MODE, mode));
        }
        Placed::On {
            mode: SlaveMode::Ipvlan(mode),
            ..
        } => {
            w.text(ifla::INFO_KIND, "ipvlan");
            w.nest(ifla::INFO_DATA, |w| w.u16(ifla::SLAVE_MODE, mode));
        }
        Placed::Ifb => w.text(ifla::INFO_KIND, "ifb"),
        Placed::Dummy => w.text(ifla::INFO_KIND, "dummy"),
    }
}

fn mac(w: &mut Writer<'_>, mac: Option<Mac>) {
    mac.into_iter().for_each(|mac| w.raw(ifla::ADDRESS, &mac.0));
}

fn netns_fd(w: &mut Writer<'_>, netns: Option<BorrowedFd<'_>>) {
    if let Some(netns) = netns {
        w.u32(ifla::NET_NS_FD, netns.as_raw_fd().cast_unsigned());
    }
}

/// What is to change about an interface; `None` leaves it.
#[derive(Debug, Clone, Default)]
pub struct LinkChange<'a> {
    /// A new name; the interface must be down.
    pub name: Option<&'a str>,
    /// Up or down.
    pub up: Option<bool>,
    /// The largest packet.
    pub mtu: Option<u32>,
    /// The address.
    pub mac: Option<Mac>,
    /// The bridge that it is a port of; 0: none.
    pub master: Option<u32>,
    /// A text for people and for us.
    pub alias: Option<&'a str>,
    /// Whether it gives itself an IPv6 link-local address when it comes up.
    pub link_local: Option<bool>,
    /// Whether it takes every packet on the wire.
    pub promiscuous: Option<bool>,
    /// Whether it takes every multicast packet.
    pub all_multicast: Option<bool>,
    /// Packets that may wait for sending.
    pub queue_length: Option<u32>,
    /// The group.
    pub group: Option<u32>,
    /// IPv4 settings by number (`IPV4_DEVCONF_…`, `linux/ip.h`): what is below
    /// /proc/sys/net/ipv4/conf in the interface's namespace.
    pub ipv4: &'a [(u16, u32)],
}

/// Number of /proc/sys/net/ipv4/conf/…/arp\_notify among IPv4 settings.
pub const ARP_NOTIFY: u16 = 22;

/// Changes an interface: by its index, or where that is 0 by its name.
pub fn change_link(batch: &mut Batch, index: u32, name: &str, change: &LinkChange<'_>) {
    let mut flags = (0, 0);
    for (bit, wanted) in [
        (IFF_UP, change.up),
        (IFF_PROMISC, change.promiscuous),
        (IFF_ALLMULTI, change.all_multicast),
    ] {
        if let Some(on) = wanted {
            flags.1 |= bit;
            flags.0 |= if on { bit } else { 0 };
        }
    }
    batch.push(SETLINK, 0, &fixed(0, index, flags.0, flags.1), |w| {
        if index == 0 {
            w.text(ifla::IFNAME, name);
        } else if let Some(new) = change.name {
            w.text(ifla::IFNAME, new);
        }
        change.mtu.into_iter().for_each(|mtu| w.u32(ifla::MTU, mtu));
        mac(w, change.mac);
        change
            .master
            .into_iter()
            .for_each(|m| w.u32(ifla::MASTER, m));
        change.group.into_iter().for_each(|g| w.u32(ifla::GROUP, g));
        change
            .alias
            .into_iter()
            .for_each(|a| w.text(ifla::IFALIAS, a));
        change
            .queue_length
            .into_iter()
            .for_each(|n| w.u32(ifla::TXQLEN, n));
        if change.link_local.is_some() || !change.ipv4.is_empty() {
            w.nest(ifla::AF_SPEC, |w| families(w, change));
        }
    });
}

fn families(w: &mut Writer<'_>, change: &LinkChange<'_>) {
    if let Some(own) = change.link_local {
        // IN6_ADDR_GEN_MODE_EUI64 is 0, NONE is 1.
        w.nest(AF_INET6, |w| {
            w.u8(ifla::INET6_ADDR_GEN_MODE, u8::from(!own));
        });
    }
    if !change.ipv4.is_empty() {
        w.nest(AF_INET, |w| {
            w.nest(ifla::INET_CONF, |w| {
                for (number, value) in change.ipv4 {
                    w.u32(*number, *value);
                }
            });
        });
    }
}

/// What is to change about a port of a bridge; `None` leaves it.
#[derive(Debug, Clone, Copy, Default)]
pub struct PortChange {
    /// Whether a packet may go out where it came in.
    pub hairpin: Option<bool>,
    /// Whether it cannot reach other isolated ports.
    pub isolated: Option<bool>,
}

/// Changes a port of a bridge.
pub fn change_port(batch: &mut Batch, index: u32, change: PortChange) {
    batch.push(SETLINK, 0, &fixed(AF_BRIDGE, index, 0, 0), |w| {
        w.nest(ifla::PROTINFO, |w| {
            for (kind, wanted) in [
                (ifla::BRPORT_HAIRPIN, change.hairpin),
                (ifla::BRPORT_ISOLATED, change.isolated),
            ] {
                wanted.into_iter().for_each(|on| w.u8(kind, u8::from(on)));
            }
        });
    });
}

/// A VLAN on a port of a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgeVlan {
    /// Its number.
    pub id: u16,
    /// Whether untagged packets that come in belong to it.
    pub native: bool,
    /// Whether it goes out without a tag.
    pub untagged: bool,
}

/// Lets a VLAN through a port of a bridge.
pub fn add_bridge_vlan(batch: &mut Batch, index: u32, vlan: BridgeVlan) {
    bridge_vlan(batch, SETLINK, index, vlan);
}

/// Takes a VLAN from a port of a bridge.
pub fn delete_bridge_vlan(batch: &mut Batch, index: u32, id: u16) {
    let vlan = BridgeVlan {
        id,
        native: false,
        untagged: false,
    };
    bridge_vlan(batch, DELLINK, index, vlan);
}

fn bridge_vlan(batch: &mut Batch, kind: u16, index: u32, vlan: BridgeVlan) {
    const MASTER: u16 = 1;
    let flags = u16::from(vlan.native) << 1 | u16::from(vlan.untagged) << 2;
    let mut value = [0; 4]; // struct bridge_vlan_info
    value[..2].copy_from_slice(&flags.to_ne_bytes());
    value[2..].copy_from_slice(&vlan.id.to_ne_bytes());
    batch.push(kind, 0, &fixed(AF_BRIDGE, index, 0, 0), |w| {
        w.nest(ifla::AF_SPEC, |w| {
            w.u16(ifla::BRIDGE_FLAGS, MASTER);
            w.raw(ifla::BRIDGE_VLAN_INFO, &value);
        });
    });
}

/// Removes an interface. The kernel waits for all readers of its lists (about 20 ms).
pub fn delete_link(batch: &mut Batch, index: u32) {
    batch.push(DELLINK, 0, &fixed(0, index, 0, 0), |_| {});
}

/// The same, by its name.
pub fn delete_link_by_name(batch: &mut Batch, name: &str) {
    batch.push(DELLINK, 0, &fixed(0, 0, 0, 0), |w| {
        w.text(ifla::IFNAME, name);
    });
}

/// Removes all interfaces of a group at once: many cost what one costs. `ENODEV` when it has none.
pub fn delete_group(batch: &mut Batch, group: u32) {
    batch.push(DELLINK, 0, &fixed(0, 0, 0, 0), |w| {
        w.u32(ifla::GROUP, group);
    });
}

/// Asks for an interface by its name; the answer is a message for [`Link::read`].
pub fn query_link(batch: &mut Batch, name: &str) {
    batch.push(GETLINK, 0, &fixed(0, 0, 0, 0), |w| {
        w.text(ifla::IFNAME, name);
    });
}

/// Counters of an interface since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that came in.
    pub received_bytes: u64,
    /// Packets that came in.
    pub received_packets: u64,
    /// Errors at receiving.
    pub received_errors: u64,
    /// Packets that came in and were dropped.
    pub received_dropped: u64,
    /// Bytes that went out.
    pub sent_bytes: u64,
    /// Packets that went out.
    pub sent_packets: u64,
    /// Errors at sending.
    pub sent_errors: u64,
    /// Packets that were to go out and were dropped.
    pub sent_dropped: u64,
}

impl Counters {
    /// From `struct rtnl_link_stats64`.
    fn read(bytes: &[u8]) -> Self {
        let at = |i: usize| {
            bytes
                .get(i * 8..i * 8 + 8)
                .and_then(|b| b.try_into().ok())
                .map_or(0, u64::from_ne_bytes)
        };
        Self {
            received_packets: at(0),
            sent_packets: at(1),
            received_bytes: at(2),
            sent_bytes: at(3),
            received_errors: at(4),
            sent_errors: at(5),
            received_dropped: at(6),
            sent_dropped: at(7),
        }
    }
}

/// An interface as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its kind, as `veth` or `bridge`; empty for hardware and loopback.
    pub kind: String,
    /// Its address, when it has one of six bytes.
    pub mac: Option<Mac>,
    /// The largest packet.
    pub mtu: u32,
    /// The bridge that it is a port of.
    pub master: Option<u32>,
    /// Index of its parent, or of the other end of a veth in that end's namespace.
    pub parent: Option<u32>,
    /// Its group.
    pub group: u32,
    /// Its alias; empty without one.
    pub alias: String,
    /// Whether it is up by will of the administrator.
    pub up: bool,
    /// Whether it works (`IF_OPER_UP`).
    pub running: bool,
    /// Whether someone wants every packet.
    pub promiscuous: bool,
    /// Whether all multicast is taken by will of the administrator.
    pub all_multicast: bool,
    /// Packets that may wait for sending.
    pub queue_length: u32,
    /// What went through it.
    pub counters: Counters,
}

impl Link {
    /// From a message of the kernel; `None` when it is not about an interface.
    #[must_use]
    pub fn read(message: &Message) -> Option<Self> {
        if message.kind != NEWLINK && message.kind != DELLINK || message.u8_at(0) == AF_BRIDGE {
            return None;
        }
        let all = message.attributes(FIXED);
        let number = |kind| find(all, kind).map(u32_of);
        let text = |kind| find(all, kind).map(text_of).unwrap_or_default();
        let flags = message.u32_at(8);
        let info = find(all, ifla::LINKINFO).map(Attributes::of);
        Some(Self {
            index: message.u32_at(4),
            name: text(ifla::IFNAME),
            kind: info
                .and_then(|i| find(i, ifla::INFO_KIND))
                .map(text_of)
                .unwrap_or_default(),
            mac: find(all, ifla::ADDRESS)
                .and_then(|b| b.try_into().ok())
                .map(Mac),
            mtu: number(ifla::MTU).unwrap_or(0),
            master: number(ifla::MASTER),
            parent: number(ifla::LINK),
            group: number(ifla::GROUP).unwrap_or(0),
            alias: text(ifla::IFALIAS),
            up: flags & IFF_UP != 0,
            running: find(all, ifla::OPERSTATE) == Some(&[6]),
            promiscuous: number(ifla::PROMISCUITY).is_some_and(|n| n > 0),
            all_multicast: flags & IFF_ALLMULTI != 0,
            queue_length: number(ifla::TXQLEN).unwrap_or(0),
            counters: find(all, ifla::STATS64)
                .map(Counters::read)
                .unwrap_or_default(),
        })
    }

    /// Whether a message says that an interface has gone.
    #[must_use]
    pub fn is_removal(message: &Message) -> bool {
        message.kind == DELLINK && message.u8_at(0) != AF_BRIDGE
    }
}

/// The interface of this name, if there is one.
///
/// # Errors
/// What the kernel refused.
pub fn link_by_name(socket: &mut Socket, name: &str) -> Result<Option<Link>, NetlinkError> {
    let mut batch = Batch::new();
    query_link(&mut batch, name);
    one(socket, &mut batch)
}

/// The interface of this index, if there is one.
///
/// # Errors
/// What the kernel refused.
pub fn link_by_index(socket: &mut Socket, index: u32) -> Result<Option<Link>, NetlinkError> {
    let mut batch = Batch::new();
    batch.push(GETLINK, 0, &fixed(0, index, 0, 0), |_| {});
    one(socket, &mut batch)
}

fn one(socket: &mut Socket, batch: &mut Batch) -> Result<Option<Link>, NetlinkError> {
    match socket.execute(batch) {
        Ok(answers) => Ok(answers.iter().find_map(Link::read)),
        Err(e) if e.errno == Errno::NODEV => Ok(None),
        Err(e) => Err(e),
    }
}

/// All interfaces of the namespace, without their counters.
///
/// # Errors
/// What the kernel refused.
pub fn links(socket: &mut Socket) -> Result<Vec<Link>, NetlinkError> {
    let all = socket.dump(GETLINK, &fixed(0, 0, 0, 0), |w| {
        w.u32(ifla::EXT_MASK, SKIP_STATS);
    })?;
    Ok(all.iter().filter_map(Link::read).collect())
}

/// `struct ifinfomsg`.
fn fixed(family: u8, index: u32, flags: u32, change: u32) -> [u8; FIXED] {
    let mut bytes = [0; FIXED];
    bytes[0] = family;
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..].copy_from_slice(&change.to_ne_bytes());
    bytes
}
