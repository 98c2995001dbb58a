//! Talking to shims and to the zygote that makes them.

pub(crate) mod watch; // descriptors that tokio watches
pub(crate) mod link; // a connection: requests, answers, events
pub(crate) mod socket; // sockets at paths of any length
pub(crate) mod release; // shims of other releases
pub(crate) mod zygote; // found, started, replaced
pub(crate) mod output; // what an exec writes
pub(crate) mod identity; // which process a shim is
