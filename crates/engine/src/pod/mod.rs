//! Pods: their life as a value, and the task that drives it.

pub(crate) mod state; // the life of a pod, as a value
pub(crate) mod request; // what a driver is asked for, and what its tasks report
pub(crate) mod driver; // the task that owns a pod and its containers
pub(crate) mod containers; // the driver's part that concerns containers
pub(crate) mod requests; // the driver's part that concerns requests about containers
pub(crate) mod recovered; // a driver for what a restart of the daemon found
pub(crate) mod foreign; // pods of a later release, left as they are
