//! Packet filter and address translation by nftables: `nft(8)`, `linux/netfilter/nf_tables.h`.
//!
//! A [`Transaction`] is sent as one batch: all of it becomes true at once, or nothing. Rules are
//! lists of expressions that load values into registers and compare, look up or act on them.

mod expression; // what a rule does: pure
mod set; // sets and maps, and their elements: pure
mod transaction; // a batch of changes
mod look; // what is there, and who changed it

pub use expression::{Compare, Conntrack, Expressions, Family, Meta, Nat, Register, Verdict};
pub use look::{BaseChain, Change, base_chains, change, elements, has_table};
pub use set::{Element, Field, Set, range, value};
pub use transaction::{Chain, Hook, HookKind, Refused, Transaction};
