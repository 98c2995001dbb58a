//! Decides about pods and containers; no protobuf, no HTTP.
//!
//! ```text
//! door ──request──► Pods (names) ──► driver of the pod ──effects──► World (the machine)
//!      ◄──answer────────────────────  │ ▲ outcomes, events of the shim
//! door ◄──pictures── Board ◄──publish─┘
//! ```

pub mod limits; // named limits
pub mod spec; // what callers ask for
pub mod view; // what readers see
pub mod error; // why not
pub mod config; // what the engine is told once
mod reserve; // space on a full disk
mod amendment; // changes of a record where there is no space
pub mod record; // what the disk knows
pub mod sockets; // sockets inside pods
pub mod world; // what drivers do to the machine
pub mod board; // where pictures are published
pub mod stats; // what pods and containers use
mod accounts; // who a container runs as
mod propagation; // whether a host path can propagate mounts
mod oci; // from what was asked for to a runtime-spec document
mod files; // the pod's own files
mod shim; // talking to shims and their zygote
mod machine; // the machine as a world
mod container; // the life of a container
mod pod; // the life of a pod, and its driver
mod pods; // all pods: names and drivers
pub mod engine; // the doors
mod connect; // connections into pods
mod names; // networks that people make
mod open; // the start: records and living shims
#[cfg(test)]
mod fake; // a world for tests
#[cfg(test)]
mod lifecycle; // what callers see
#[cfg(test)]
mod together; // what callers see when things happen beside each other
#[cfg(test)]
mod restart; // what callers see after a restart of the daemon
#[cfg(test)]
mod sim; // what callers see whatever happens

pub use config::{CniConfig, EngineConfig, NetworkMode};
pub use engine::Engine;
pub use error::{OpenError, RequestError};
pub use wharf_network::NetworkState;
