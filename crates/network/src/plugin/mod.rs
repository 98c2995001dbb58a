//! The built-in plugins.

mod config; // a plugin's object, field by field
mod host; // what they share of the node
mod loopback; // the pod's own interface
mod host_local; // addresses
mod static_addresses; // addresses that are written down
mod bridge; // a veth to a bridge
mod ptp; // a veth to the node alone
mod portmap; // ports of the node
mod firewall; // what is let through
mod tuning; // settings of an interface
mod bandwidth; // how much goes through

use std::path::PathBuf;
use std::sync::Arc;

use crate::builtin::Builtin;

/// What the built-in plugins are told once.
#[derive(Debug, Clone)]
pub struct PluginsConfig {
    /// Directory of what survives a reboot.
    pub root: PathBuf,
    /// Directory of what ends with the boot.
    pub state: PathBuf,
}

/// The built-in plugins, by the names that configurations use.
#[derive(Debug, Clone, Default)]
pub struct Plugins(Vec<Arc<dyn Builtin>>);

impl Plugins {
    /// All that there are, for the daemon: it alone changes its tables of rules, and drops the pods'
    /// namespaces after it has detached them. `config` says where they keep what they know.
    pub fn new(config: &PluginsConfig) -> Self {
        Self::with(config, true)
    }

    /// All that there are, for a program that any runtime calls.
    pub fn for_program(config: &PluginsConfig) -> Self {
        Self::with(config, false)
    }

    fn with(config: &PluginsConfig, daemon: bool) -> Self {
        let host = Arc::new(host::Host::new(&config.state, daemon));
        Self(vec![
            Arc::new(loopback::Loopback(host.clone())),
            Arc::new(host_local::HostLocal::new(host.clone())),
            Arc::new(bridge::Bridge(host.clone())),
            Arc::new(ptp::PointToPoint(host.clone())),
            Arc::new(static_addresses::StaticAddresses),
            Arc::new(portmap::Portmap(host.clone())),
            Arc::new(firewall::Firewall::new(host.clone())),
            Arc::new(tuning::Tuning(host.clone())),
            Arc::new(bandwidth::Bandwidth(host)),
        ])
    }

    /// These, and no others.
    pub fn of(list: Vec<Arc<dyn Builtin>>) -> Self {
        Self(list)
    }

    /// The plugin of this `type`, if it is built in.
    pub fn get(&self, name: &str) -> Option<&dyn Builtin> {
        let found = self.0.iter().find(|p| p.name() == name);
        found.map(AsRef::as_ref)
    }

    /// Every one, in the order in which they are restored.
    pub fn iter(&self) -> impl Iterator<Item = &dyn Builtin> {
        self.0.iter().map(AsRef::as_ref)
    }
}
