//! What is told of use. Times are nanoseconds since 1970; what nobody counts is absent.

use std::path::PathBuf;
use std::sync::Arc;

use wharf_cgroup::{Details, Stats};

use crate::view::{ContainerView, PodView};

/// What a container uses.
#[derive(Debug, Clone)]
pub struct ContainerUsage {
    /// The container, as it was when it was measured.
    pub view: Arc<ContainerView>,
    /// What its processes use; absent when it has ended.
    pub cgroup: Option<CgroupUsage>,
    /// What it has written; absent until it was measured once.
    pub layer: Option<LayerUsage>,
    /// The directory below which its writable layer lies.
    pub place: Arc<PathBuf>,
}

/// What the processes of a cgroup use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CgroupUsage {
    /// When.
    pub at_ns: i64,
    /// Processor time in nanoseconds per second, over the time since an earlier look; absent at the
    /// first.
    pub nano_cores: Option<u64>,
    /// The counters.
    pub stats: Stats,
}

/// What a writable layer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerUsage {
    /// When it was measured.
    pub at_ns: i64,
    /// Bytes of allocated blocks.
    pub bytes: u64,
    /// Files, directories and everything else that has an inode.
    pub inodes: u64,
}

/// What a pod uses.
#[derive(Debug, Clone)]
pub struct PodUsage {
    /// The pod, as it was when it was measured.
    pub view: Arc<PodView>,
    /// What all of its processes use; absent before its first container.
    pub cgroup: Option<CgroupUsage>,
    /// Its own network; absent with the host's.
    pub network: Option<NetworkUsage>,
    /// Its containers that have not ended.
    pub containers: Vec<ContainerUsage>,
}

/// Traffic of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkUsage {
    /// When.
    pub at_ns: i64,
    /// All interfaces but loopback.
    pub interfaces: Vec<Interface>,
}

/// Counters of an interface, as the pod sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name in the pod.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets that were received wrong.
    pub rx_errors: u64,
    /// Packets that were received and dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Packets that were dropped instead of being sent.
    pub tx_dropped: u64,
}

/// What monitoring asks of a pod.
#[derive(Debug, Clone)]
pub struct PodMetrics {
    /// What the statistics say.
    pub usage: PodUsage,
    /// More about its containers, in the same order.
    pub containers: Vec<ContainerMetrics>,
    /// The file system of all writable layers.
    pub space: Option<Space>,
}

/// What monitoring asks of a container.
#[derive(Debug, Clone, Default)]
pub struct ContainerMetrics {
    /// More counters of the cgroup.
    pub details: Details,
    /// Processes.
    pub processes: Option<u64>,
    /// Their descriptors.
    pub files: OpenFiles,
    /// How many descriptors its first process may have.
    pub files_limit: Option<u64>,
}

/// Descriptors of processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenFiles {
    /// All.
    pub files: u64,
    /// Sockets among them.
    pub sockets: u64,
}

/// Space of a file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes in all.
    pub bytes: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
}
