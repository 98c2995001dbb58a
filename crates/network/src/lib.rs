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
pub mod convert; // results in the forms of older versions
pub mod builtin; // a plugin that runs in-process, and a call of one
pub mod rules; // the node's tables of nftables
pub mod ports; // ports of the node that lead to pods
pub mod plugin; // the built-in plugins
pub mod config; // one network's configuration
pub mod directory; // the directory of configurations
mod request; // what a plugin reads
mod exec; // one run of an executable plugin
pub mod chain; // a chain of plugins, run
pub mod inside; // what can only be done inside a namespace
pub mod record; // attachments on disk
pub mod attachments; // what is attached
pub mod readiness; // whether pods can get a network
pub mod watch; // notices changed configurations
pub mod dns; // names for pods on networks of people's own
mod default_network; // a bridge of our own
pub mod networks; // the door
pub mod named; // networks that people make
pub mod command; // our binary as a plugin

pub use attachments::{AttachRequest, NetworkError, PodNetns};
pub use builtin::{Attachment, Builtin, Delegate, Inside, Invocation, Netns};
pub use error::CniError;
pub use ip::IpNet;
pub use networks::{NetworkState, Networks, NetworksConfig};
pub use result::CniResult;
pub use version::CniVersion;
