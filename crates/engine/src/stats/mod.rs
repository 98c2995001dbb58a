//! What pods and containers use: cgroup files that stay open, read in one pass; writable layers,
//! measured in the background; networks, from their own namespaces.
//!
//! ```text
//! door ──pictures──► Statistics ──► Readers (open files of cgroups)      read now
//!                        │     └──► network (/proc of the shim)          read now
//!                        └────────► Layers ──► walker                    as last measured
//! board ──ended, removed──► Readers, Layers let go
//! ```

mod usage; // what is told
mod readers; // open files of cgroups
mod layers; // writable layers
mod network; // interfaces of a pod
mod process; // descriptors of processes
mod collect; // one pass over all

pub use collect::Statistics;
pub use usage::{
    CgroupUsage, ContainerMetrics, ContainerUsage, Interface, LayerUsage, NetworkUsage, OpenFiles,
    PodMetrics, PodUsage, Space,
};
pub use wharf_cgroup::{Details, DiskTraffic, Pressure, Stall, Stats};
