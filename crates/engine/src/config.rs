//! What the engine is told once, at its start.

use std::path::PathBuf;

/// Directories, programs and choices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// What survives a reboot: records of pods and containers, and the pods' own files (hosts, hostname,
    /// resolv.conf), which containers may fill, go to `pods` below it.
    pub root: PathBuf,
    /// What ends with the boot, in memory: sockets and what is told of processes.
    pub state: PathBuf,
    /// Our sub-cgroup in every hierarchy: shims live in `shims` below it, pods without a cgroup of their
    /// own in `pods`.
    pub cgroup_parent: String,
    /// The program `wharf-shim`.
    pub shim: PathBuf,
    /// The soft limit of open files of shims and of containers that set none; `None` is ours. For a caller
    /// that has raised its own: over 1024 it breaks programs that use select(2).
    pub shim_open_files: Option<u64>,
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
