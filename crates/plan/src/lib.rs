//! The versioned plan of a container, and the messages between daemon, zygote and shim.
//!
//! Plain data in protobuf's wire format: a field that one side does not know is skipped, one that
//! the other did not send has its default. So daemon and shim of neighbouring releases understand
//! each other. Field numbers are never reused; `PROTOCOL` grows when a meaning changes.
//!
//! Descriptors travel beside a message; the message says by name which is which ([`Fds`]).

pub mod limits; // named limits of messages
pub mod process; // what is executed: init or exec
pub mod container; // what is built around init
pub mod message; // requests, replies, events
pub mod fds; // descriptors by name
pub mod channel; // one message with its descriptors over SOCK_SEQPACKET

pub use channel::{Channel, ChannelError, Encoded};
pub use fds::Fds;

/// The version of plan and messages that this build speaks.
pub const PROTOCOL: u32 = 1;
/// The oldest version that this build still understands.
pub const PROTOCOL_OLDEST: u32 = 1;
