//! What the engine is told once, at its start.

use std::path::PathBuf;
use std::time::Duration;

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
    /// How CNI is used.
    pub cni: CniConfig,
    /// Where network namespaces are bound for other tools (`/run/netns`); `None` binds them nowhere.
    pub netns_dir: Option<PathBuf>,
}

/// What pods with a network namespace of their own get in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkMode {
    /// Loopback, and nothing else.
    None,
    /// What CNI plugins make.
    Cni,
}

/// How CNI is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniConfig {
    /// Directory of configurations: `/etc/cni/net.d`.
    pub config_dir: PathBuf,
    /// Directories of executables: `/opt/cni/bin`.
    pub bin_dirs: Vec<PathBuf>,
    /// Plugins that are built in run in-process.
    pub builtin: bool,
    /// Without a configuration, pods get our own default network.
    pub default_network: bool,
    /// How long a network that was ready stays so when its configuration goes or its plugins say no.
    pub grace: Duration,
    /// Our binary, which enters namespaces for a daemon that never does.
    pub helper: PathBuf,
}
