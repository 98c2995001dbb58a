//! A batch of changes to the rules: all of it or nothing.

use std::fmt;

use super::expression::{Expressions, Family};
use super::set::{Element, Set, comment};
use crate::netlink::{Batch, NetlinkError, Socket, Writer};

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const EXCLUSIVE: u16 = 0x200;

/// Bytes of elements in one message; an attribute ends at 64 KiB.
const ELEMENTS: usize = 48 << 10;

/// Where in a packet's way a base chain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// When it has come in.
    Prerouting,
    /// Before it goes to a process.
    Input,
    /// Between interfaces.
    Forward,
    /// When a process has sent it.
    Output,
    /// Before it goes out.
    Postrouting,
}

impl Hook {
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

/// What a base chain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookKind {
    /// Letting through or not.
    Filter,
    /// Translating addresses: sees the first packet of a connection.
    Nat,
}

/// A chain of rules; with a hook a base chain, which accepts what its rules let through.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its kind, its place and its priority there: lower comes first.
    pub hook: Option<(HookKind, Hook, i32)>,
}

/// Why a transaction did not become true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What it was about, as `element of map hostports4`.
    pub what: String,
    /// What the kernel said.
    pub error: NetlinkError,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nftables: {}: {}", self.what, self.error)
    }
}

impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// Changes to one table.
#[derive(Debug)]
pub struct Transaction<'a> {
    table: &'a str,
    family: Family,
    batch: Batch,
    what: Vec<String>,
}

impl<'a> Transaction<'a> {
    /// No changes yet.
    #[must_use]
    pub fn new(family: Family, table: &'a str) -> Self {
        let mut batch = Batch::new();
        batch.push(BATCH_BEGIN, 0, &generic(0), |_| {});
        Self {
            table,
            family,
            batch,
            what: vec!["batch".to_owned()],
        }
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.batch.len() == 1
    }

    fn push(&mut self, kind: u16, flags: u16, what: String, write: impl FnOnce(&mut Writer<'_>)) {
        let table = self.table;
        let fixed = generic_of(self.family);
        self.batch.push(SUBSYSTEM | kind, flags, &fixed, |w| {
            w.text(1, table);
            write(w);
        });
        self.what.push(what);
    }

    /// The table is there, as it is or new.
    pub fn table(&mut self, says: &str) -> &mut Self {
        self.push(0, CREATE, format!("table {}", self.table), |w| {
            w.be32(2, 0);
            w.raw(6, &comment(says));
        });
        self
    }

    /// The table goes, with all in it. To be certain that it is there, [`Transaction::table`] first.
    pub fn delete_table(&mut self) -> &mut Self {
        self.push(2, 0, format!("table {}", self.table), |_| {});
        self
    }

    /// The chain is there, as it is or new.
    pub fn chain(&mut self, chain: Chain<'_>) -> &mut Self {
        self.push(3, CREATE, format!("chain {}", chain.name), |w| {
            w.text(3, chain.name);
            if let Some((kind, hook, priority)) = chain.hook {
                w.nest(4, |w| {
                    w.be32(1, hook.number());
                    w.be32(2, priority.cast_unsigned());
                });
                w.be32(5, 1); // policy: accept
                w.text(
                    7,
                    match kind {
                        HookKind::Filter => "filter",
                        HookKind::Nat => "nat",
                    },
                );
            }
        });
        self
    }

    /// The chain has no rules from here on.
    pub fn flush_chain(&mut self, chain: &str) -> &mut Self {
        self.push(8, 0, format!("rules of chain {chain}"), |w| {
            w.text(2, chain);
        });
        self
    }

    /// The chain goes; it has no rules and nothing leads to it.
    pub fn delete_chain(&mut self, chain: &str) -> &mut Self {
        self.push(5, 0, format!("chain {chain}"), |w| w.text(3, chain));
        self
    }

    /// A rule behind those that the chain has.
    pub fn rule(
        &mut self,
        chain: &str,
        says: &str,
        write: impl FnOnce(&mut Expressions<'_, '_>),
    ) -> &mut Self {
        let what = format!("rule of chain {chain}");
        self.push(6, CREATE | APPEND, what, |w| {
            w.text(2, chain);
            w.nest(4, |w| write(&mut Expressions(w)));
            if !says.is_empty() {
                w.raw(7, &comment(says));
            }
        });
        self
    }

    /// The set or map is there, as it is or new.
    pub fn set(&mut self, set: &Set<'_>) -> &mut Self {
        self.push(9, CREATE, format!("set {}", set.name), |w| set.write(w));
        self
    }

    /// These elements are in the set; the same ones may be there already, but not with other values.
    pub fn add(&mut self, set: &Set<'_>, elements: &[Element]) -> &mut Self {
        self.elements(12, CREATE, set, elements)
    }

    /// The same, but none of them may be there (`EEXIST`).
    pub fn add_new(&mut self, set: &Set<'_>, elements: &[Element]) -> &mut Self {
        self.elements(12, CREATE | EXCLUSIVE, set, elements)
    }

    /// These elements go; all of them are there (else `ENOENT`).
    pub fn remove(&mut self, set: &Set<'_>, elements: &[Element]) -> &mut Self {
        self.elements(14, 0, set, elements)
    }

    fn elements(&mut self, kind: u16, flags: u16, set: &Set<'_>, all: &[Element]) -> &mut Self {
        let mut rest = all;
        while !rest.is_empty() {
            let mut size = 0;
            let fit = rest
                .iter()
                .take_while(|e| {
                    size += e.size();
                    size < ELEMENTS
                })
                .count()
                .max(1);
            let (now, later) = rest.split_at(fit);
            let what = format!("element of {}", set.name);
            self.push(kind, flags, what, |w| {
                w.text(2, set.name);
                w.be32(4, set.id);
                w.nest(3, |w| now.iter().for_each(|e| e.write(w)));
            });
            rest = later;
        }
        self
    }

    /// Makes all of it true.
    ///
    /// # Errors
    /// What the kernel refused; then nothing has changed.
    pub fn commit(mut self, socket: &mut Socket) -> Result<(), Refused> {
        if self.is_empty() {
            return Ok(());
        }
        self.batch.acknowledge_last();
        self.batch.push(BATCH_END, 0, &generic(0), |_| {});
        let refused = |what: &str, error| Refused {
            what: what.to_owned(),
            error,
        };
        let sent = socket.execute_batch(&mut self.batch);
        sent.map_err(|error| {
            let what = self.what.get(error.at).map_or("batch", String::as_str);
            refused(what, error)
        })
    }
}

/// `struct nfgenmsg` of a batch's ends.
fn generic(family: u8) -> [u8; 4] {
    let [high, low] = 10_u16.to_be_bytes();
    [family, 0, high, low]
}

/// `struct nfgenmsg` of a message about nftables.
fn generic_of(family: Family) -> [u8; 4] {
    [family.number(), 0, 0, 0]
}
