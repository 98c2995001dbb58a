//! Addresses of interfaces, and what is known of neighbours (`rtnetlink(7)`, `linux/if_addr.h`).

use std::net::IpAddr;

use super::message::{Batch, find, flag, text_of, u32_of};
use super::socket::{NetlinkError, Socket};

const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const GETADDR: u16 = 22;
const DELNEIGH: u16 = 29;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x02;
const IFA_F_TENTATIVE: u32 = 0x40;
const NDA_DST: u16 = 1;

/// Length of `struct ifaddrmsg`.
const FIXED: usize = 8;

/// The number of an address family.
pub(crate) fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

/// The bytes of an address in the order in which they travel.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// An address from its bytes.
pub(crate) fn from_octets(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// An address that is to be given to an interface.
#[derive(Debug, Clone, Copy)]
pub struct NewAddress {
    /// The address.
    pub address: IpAddr,
    /// Bits of its network.
    pub prefix: u8,
    /// Whether an IPv6 address is tried on the wire first (duplicate address detection, about
    /// 1.5 s during which it cannot be used). Nothing for IPv4.
    pub detect_duplicates: bool,
}

/// Gives an address to an interface. `EEXIST` when it has it.
pub fn add_address(batch: &mut Batch, index: u32, new: NewAddress) {
    let flags = flag::CREATE | flag::EXCLUSIVE;
    batch.push(
        NEWADDR,
        flags,
        &fixed(new.address, new.prefix, index),
        |w| {
            let bytes = octets(new.address);
            w.raw(IFA_LOCAL, &bytes);
            w.raw(IFA_ADDRESS, &bytes);
            match new.address {
                IpAddr::V4(v4) if new.prefix < 31 => {
                    let host = u32::MAX.checked_shr(new.prefix.into()).unwrap_or(0);
                    w.be32(IFA_BROADCAST, u32::from(v4) | host);
                }
                IpAddr::V6(_) if !new.detect_duplicates => w.u32(IFA_FLAGS, IFA_F_NODAD),
                _ => {}
            }
        },
    );
}

/// Takes an address from an interface. `EADDRNOTAVAIL` when it does not have it.
pub fn delete_address(batch: &mut Batch, index: u32, address: IpAddr, prefix: u8) {
    batch.push(DELADDR, 0, &fixed(address, prefix, index), |w| {
        w.raw(IFA_LOCAL, &octets(address));
    });
}

/// Forgets which Ethernet address belongs to an address. `ENOENT` when nothing is known.
pub fn flush_neighbour(batch: &mut Batch, index: u32, address: IpAddr) {
    let mut bytes = [0; 12]; // struct ndmsg
    bytes[0] = family(address);
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    batch.push(DELNEIGH, 0, &bytes, |w| w.raw(NDA_DST, &octets(address)));
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Bits of its network.
    pub prefix: u8,
    /// Whether it is still being tried on the wire.
    pub tentative: bool,
    /// The label of an IPv4 address: most often the interface's name.
    pub label: String,
}

/// All addresses of the namespace.
///
/// # Errors
/// What the kernel refused.
pub fn addresses(socket: &mut Socket) -> Result<Vec<Address>, NetlinkError> {
    let all = socket.dump(GETADDR, &[0; FIXED], |_| {})?;
    Ok(all
        .iter()
        .filter_map(|message| {
            let attributes = message.attributes(FIXED);
            let address = find(attributes, IFA_LOCAL).or_else(|| find(attributes, IFA_ADDRESS))?;
            let flags = find(attributes, IFA_FLAGS).map_or(0, u32_of);
            Some(Address {
                index: message.u32_at(4),
                address: from_octets(address)?,
                prefix: message.u8_at(1),
                tentative: flags & IFA_F_TENTATIVE != 0,
                label: find(attributes, IFA_LABEL).map(text_of).unwrap_or_default(),
            })
        })
        .collect())
}

/// `struct ifaddrmsg`.
fn fixed(address: IpAddr, prefix: u8, index: u32) -> [u8; FIXED] {
    let mut bytes = [0; FIXED];
    bytes[0] = family(address);
    bytes[1] = prefix;
    bytes[4..].copy_from_slice(&index.to_ne_bytes());
    bytes
}
