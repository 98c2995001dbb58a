//! From what was asked for to a runtime-spec document: pure, no I/O. What the machine has is in [`Host`].

pub(crate) mod process; // argv, environment, working directory
pub(crate) mod caps; // capability sets
pub(crate) mod mounts; // mounts: defaults, the pod's files, those asked for
pub(crate) mod devices; // device nodes and who may use them
pub(crate) mod resources; // limits
pub(crate) mod profiles; // seccomp, AppArmor and SELinux: what is asked for
pub(crate) mod namespaces; // whose namespaces
pub(crate) mod annotations; // what tools look for
pub(crate) mod compose; // all of it together
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use wharf_image::ImageConfig;

use crate::record::PodRecord;
use crate::spec::ContainerSpec;
use crate::view::UserView;
use crate::world::ShimFacts;

/// What the machine has, found out once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Host {
    /// The node's own host name.
    pub(crate) hostname: String,
    /// Capabilities that the daemon itself can give.
    pub(crate) capabilities: u64,
    /// Memory and swap can be limited together.
    pub(crate) swap_limits: bool,
    /// Huge pages can be limited.
    pub(crate) hugetlb: bool,
    /// AppArmor is there.
    pub(crate) apparmor: bool,
    /// SELinux is there.
    pub(crate) selinux: bool,
}

/// A device found on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostDevice {
    /// Path in the container.
    pub(crate) path: String,
    /// `c` or `b`.
    pub(crate) kind: &'static str,
    /// Major number.
    pub(crate) major: u32,
    /// Minor number.
    pub(crate) minor: u32,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Of `r`, `w`, `m`.
    pub(crate) access: String,
}

/// The pod's own files on the host that its containers see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodFiles {
    /// `/etc/hosts`.
    pub(crate) hosts: PathBuf,
    /// `/etc/hostname`.
    pub(crate) hostname: PathBuf,
    /// `/etc/resolv.conf`.
    pub(crate) resolv_conf: PathBuf,
}

/// Everything that a document is composed from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input<'a> {
    pub(crate) host: &'a Host,
    pub(crate) pod: &'a PodRecord,
    pub(crate) files: &'a PodFiles,
    pub(crate) spec: &'a ContainerSpec,
    pub(crate) image: &'a ImageConfig,
    pub(crate) user: &'a UserView,
    /// The user's home, from the image.
    pub(crate) home: &'a str,
    /// Devices asked for; for a privileged container all of the host's.
    pub(crate) devices: &'a [HostDevice],
    /// The container's cgroup.
    pub(crate) cgroup: &'a str,
    /// The pod's shim, whose namespaces are the pod's.
    pub(crate) shim: &'a ShimFacts,
    /// The process whose PID namespace is joined.
    pub(crate) target_pid: Option<u32>,
}
