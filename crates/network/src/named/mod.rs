//! Networks that people make: named, recorded, each with a bridge and addresses of its own.
//!
//! ```text
//! <root>/networks/<id>.json     one network: what was asked for, and which addresses it got
//! ```
//!
//! What is attached is in the records of attachments, as for any network; a pod's names go with them.

pub mod record; // a network, on disk
pub mod subnet; // addresses that nobody else has
pub mod error; // why not
mod chain; // the plugins of a network
pub mod door; // create, remove, connect, disconnect

pub use door::{Connect, CreateNetwork, Endpoint, NamedNetworks, WantedSubnet};
pub use error::NamedError;
pub use record::{NamedNetwork, NamedSubnet};
