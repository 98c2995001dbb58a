//! What is there of nftables, and what someone changed.

use rustix::io::Errno;

use super::expression::{DATA_VALUE, Family};
use super::set::{Element, comment_in};
use super::transaction::Hook;
use crate::netlink::{Attributes, Batch, Message, NetlinkError, Socket, find};

const SUBSYSTEM: u16 = 10 << 8;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const GETTABLE: u16 = SUBSYSTEM | 1;
const GETCHAIN: u16 = SUBSYSTEM | 4;
const NEWELEMENT: u16 = SUBSYSTEM | 12;
const GETELEMENT: u16 = SUBSYSTEM | 13;
const NEWGENERATION: u16 = SUBSYSTEM | 15;
/// Length of `struct nfgenmsg`.
const FIXED: usize = 4;

fn text(bytes: &[u8]) -> String {
    let bytes = bytes.split(|b| *b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_be_bytes)
}

/// A base chain of any table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseChain {
    /// Number of the family of its table (`NFPROTO_…`).
    pub family: u8,
    /// Name of its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// Number of its hook in that family.
    hook: u32,
    /// Its priority.
    pub priority: i32,
    /// Whether what no rule accepts is dropped.
    pub drops: bool,
}

impl BaseChain {
    /// Whether it is at this hook of IPv4 or IPv6 packets.
    #[must_use]
    pub fn is_at(&self, hook: Hook) -> bool {
        matches!(self.family, 1 | 2 | 10) && self.hook == hook.number()
    }
}

/// The base chains of all tables.
///
/// # Errors
/// What the kernel refused.
pub fn base_chains(socket: &mut Socket) -> Result<Vec<BaseChain>, NetlinkError> {
    let all = socket.dump(GETCHAIN, &[0; FIXED], |_| {})?;
    Ok(all.iter().filter_map(base_chain).collect())
}

fn base_chain(message: &Message) -> Option<BaseChain> {
    if message.kind != NEWCHAIN {
        return None;
    }
    let all = message.attributes(FIXED);
    let hook = Attributes::of(find(all, 4)?);
    Some(BaseChain {
        family: message.payload.first().copied()?,
        table: text(find(all, 1)?),
        name: text(find(all, 3)?),
        kind: find(all, 7).map(text).unwrap_or_default(),
        hook: be32(find(hook, 1)?),
        priority: be32(find(hook, 2)?).cast_signed(),
        drops: find(all, 5).map(be32) == Some(0),
    })
}

/// Whether there is a table of this name.
///
/// # Errors
/// What the kernel refused.
pub fn has_table(socket: &mut Socket, family: Family, table: &str) -> Result<bool, NetlinkError> {
    let mut batch = Batch::new();
    batch.push(GETTABLE, 0, &[family.number(), 0, 0, 0], |w| {
        w.text(1, table);
    });
    match socket.execute(&mut batch) {
        Ok(_table) => Ok(true),
        Err(e) if e.errno == Errno::NOENT => Ok(false),
        Err(e) => Err(e),
    }
}

/// The elements of a set or map. `ENOENT` without such a set.
///
/// # Errors
/// What the kernel refused.
pub fn elements(
    socket: &mut Socket,
    family: Family,
    table: &str,
    set: &str,
) -> Result<Vec<Element>, NetlinkError> {
    let all = socket.dump(GETELEMENT, &[family.number(), 0, 0, 0], |w| {
        w.text(1, table);
        w.text(2, set);
    })?;
    let mut found = Vec::new();
    for message in all.iter().filter(|m| m.kind == NEWELEMENT) {
        let list = find(message.attributes(FIXED), 3).unwrap_or_default();
        found.extend(Attributes::of(list).map(|(_element, bytes)| element(bytes)));
    }
    Ok(found)
}

fn element(bytes: &[u8]) -> Element {
    let all = Attributes::of(bytes);
    let value = |kind| {
        find(all, kind)
            .and_then(|data| find(Attributes::of(data), DATA_VALUE))
            .unwrap_or_default()
            .to_vec()
    };
    Element {
        key: value(1),
        last: value(10),
        value: value(2),
        comment: find(all, 6).map(comment_in).unwrap_or_default(),
    }
}

/// A change that a socket in [`crate::netlink::Group::Nftables`] heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Number of the family (`NFPROTO_…`).
    pub family: u8,
    /// The table.
    pub table: String,
    /// Whether something went.
    pub removal: bool,
    /// Port of the socket that did it.
    pub port: u32,
}

/// The change that a message tells of; `None` for the end of a transaction.
#[must_use]
pub fn change(message: &Message) -> Option<Change> {
    if message.kind & 0xff00 != SUBSYSTEM || message.kind == NEWGENERATION {
        return None;
    }
    Some(Change {
        family: message.payload.first().copied()?,
        table: text(find(message.attributes(FIXED), 1)?),
        // NFT_MSG_DELTABLE, DELCHAIN, DELRULE, DELSET, DELSETELEM, DELOBJ, DELFLOWTABLE
        removal: matches!(message.kind & 0xff, 2 | 5 | 8 | 11 | 14 | 20 | 24),
        port: message.port,
    })
}
