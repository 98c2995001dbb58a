//! The built-in plugins.

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
    /// All that there are. `config` says where they keep what they know.
    pub fn new(config: &PluginsConfig) -> Self {
        let _for_those_that_keep_state = config;
        Self(Vec::new())
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
