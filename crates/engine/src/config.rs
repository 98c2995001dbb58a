//! What the engine is told once, at its start.

use std::path::PathBuf;

/// Directories, programs and choices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// What survives a reboot: records of pods and containers go to `pods` below it.
    pub root: PathBuf,
    /// What ends with the boot: sockets and the pods' own files.
    pub state: PathBuf,
    /// Our sub-cgroup in every hierarchy: shims live in `shims` below it, pods without a cgroup of their
    /// own in `pods`.
    pub cgroup_parent: String,
    /// The program `wharf-shim`.
    pub shim: PathBuf,
    /// What pods with a network namespace of their own get in it.
    pub network: NetworkMode,
    /// Where network namespaces are bound for other tools (`/run/netns`); `None` binds them nowhere.
    pub netns_dir: Option<PathBuf>,
}

/// What pods with a network namespace of their own get in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkMode {
    /// Loopback, and nothing else.
    None,
    /// What CNI plugins make; not there yet, so that only pods on the host's network can run.
    Cni,
}
