//! CNI: configuration, chains, plugins by exec and in-process, host ports.
//!
//! A network is a chain of plugins. Each is ours and runs in-process ([`Builtin`]) or is any
//! executable of the Container Network Interface; a chain may mix them. What was attached is
//! recorded before the act and taken down from the record.

pub mod limits; // how much of anything may come from outside
pub mod ip; // an address with the length of its prefix
pub mod error; // errors as the specification has them
pub mod version; // versions of the specification
pub mod result; // what a chain made
pub mod builtin; // a plugin that runs in-process, and a call of one
pub mod plugin; // the built-in plugins
pub mod ports; // ports of the node that lead to pods

pub use builtin::{Attachment, Builtin, Delegate, Inside, Invocation, Netns};
pub use error::CniError;
pub use ip::IpNet;
pub use result::CniResult;
pub use version::CniVersion;
