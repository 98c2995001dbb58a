//! The node's tables of nftables: rules that never change, and sets whose elements are the pods.
//!
//! What pods need costs one element each, so that thousands of host ports are one lookup. A table is
//! made whole in one transaction; where an element cannot be added or removed because someone else
//! has changed the table, the whole of it is made again.

mod layout; // the tables: chains, rules and sets
mod table; // one table, and what we want in it
mod watch; // puts back what others take away

pub use layout::{Bridges, Filter, Layout, Which};
pub use table::{RulesError, Table};
pub use watch::Watch;
