//! What is built around a container's init: namespaces, mounts, devices, limits of sight.

use crate::process::ProcessPlan;

/// A whole container, ready to be made. Nothing in it is parsed by the child.
///
/// Descriptors beside it, by name (see [`crate::fds`]): `rootfs` (a detached mount), `bind` (one for
/// each [`MountPlan`] with a `bind` source, in order), `cgroup2` (directory for `CLONE_INTO_CGROUP`),
/// `cgroup1` (any number: v1's `tasks` files that the child writes itself into, one after the
/// other), `ns.pid`, `ns.net`, `ns.ipc`, `ns.uts`, `ns.cgroup`, `ns.user` for [`Namespace::Join`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerPlan {
    /// [`crate::PROTOCOL`] of the writer.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The container's id, for messages.
    #[prost(string, tag = "2")]
    pub id: String,
    /// The init process.
    #[prost(message, optional, tag = "3")]
    pub process: Option<ProcessPlan>,
    /// Which namespaces are new, inherited from the maker, or joined.
    #[prost(message, optional, tag = "4")]
    pub namespaces: Option<Namespaces>,
    /// The root is mounted read-only.
    #[prost(bool, tag = "5")]
    pub rootfs_readonly: bool,
    /// Propagation of the container's root: `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`,
    /// with `MS_REC`; 0 is private and recursive.
    #[prost(uint64, tag = "6")]
    pub rootfs_propagation: u64,
    /// Mounts below the root, in order.
    #[prost(message, repeated, tag = "7")]
    pub mounts: Vec<MountPlan>,
    /// Device nodes, made on the container's own /dev.
    #[prost(message, repeated, tag = "8")]
    pub devices: Vec<DevicePlan>,
    /// Symbolic links, made after the mounts: /dev/fd, /dev/stdin, /dev/ptmx…
    #[prost(message, repeated, tag = "9")]
    pub links: Vec<LinkPlan>,
    /// Hidden: files by a /dev/null, directories by an empty read-only tmpfs. Missing ones are skipped.
    #[prost(bytes = "vec", repeated, tag = "10")]
    pub masked_paths: Vec<Vec<u8>>,
    /// Made read-only. Missing ones are skipped.
    #[prost(bytes = "vec", repeated, tag = "11")]
    pub readonly_paths: Vec<Vec<u8>>,
    /// Host name; unchanged when empty.
    #[prost(string, tag = "12")]
    pub hostname: String,
    /// NIS domain name; unchanged when empty.
    #[prost(string, tag = "13")]
    pub domainname: String,
    /// Kernel parameters of the new namespaces: `net/core/somaxconn` (below /proc/sys) and value.
    #[prost(message, repeated, tag = "14")]
    pub sysctls: Vec<SysctlPlan>,
    /// Personality (`personality(2)`); unchanged when absent.
    #[prost(uint64, optional, tag = "15")]
    pub personality: Option<u64>,
    /// Skip `keyctl(KEYCTL_JOIN_SESSION_KEYRING)`.
    #[prost(bool, tag = "16")]
    pub no_new_keyring: bool,
    /// Bring `lo` up in the new network namespace.
    #[prost(bool, tag = "17")]
    pub loopback_up: bool,
}

/// Where a namespace of the container comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Namespace {
    /// The maker's own: for a shim, the pod's.
    Inherit = 0,
    /// A new one.
    New = 1,
    /// The one whose descriptor came along (`ns.pid`, …).
    Join = 2,
    /// The pod's shared PID namespace, whose init the shim forked (pid only).
    Pod = 3,
}

/// The namespaces of a container; its mount namespace is always new.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Namespaces {
    /// PID.
    #[prost(enumeration = "Namespace", tag = "1")]
    pub pid: i32,
    /// Network.
    #[prost(enumeration = "Namespace", tag = "2")]
    pub network: i32,
    /// System V IPC and POSIX message queues.
    #[prost(enumeration = "Namespace", tag = "3")]
    pub ipc: i32,
    /// Host and domain name.
    #[prost(enumeration = "Namespace", tag = "4")]
    pub uts: i32,
    /// Control groups: a new one is made after the process is in its cgroup.
    #[prost(enumeration = "Namespace", tag = "5")]
    pub cgroup: i32,
    /// User.
    #[prost(enumeration = "Namespace", tag = "6")]
    pub user: i32,
}

/// What a mount is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum MountSource {
    /// A new instance of file system `fs_type`.
    FileSystem = 0,
    /// The next `bind` descriptor: a detached mount, cloned by the planner, attributes already set.
    Bind = 1,
}

/// One mount below the container's root.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MountPlan {
    /// Absolute path in the container, resolved beneath its root; made when it is missing.
    #[prost(bytes = "vec", tag = "1")]
    pub destination: Vec<u8>,
    /// Where it comes from.
    #[prost(enumeration = "MountSource", tag = "2")]
    pub source: i32,
    /// `tmpfs`, `proc`, `sysfs`, `devpts`, `mqueue`, `cgroup2`, `cgroup`…
    #[prost(string, tag = "3")]
    pub fs_type: String,
    /// Parameters for `fsconfig(2)`: `size=65536k`, `mode=0755`, flags without `=`.
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
    /// `MOUNT_ATTR_*` to set on the mount (for a bind: already set by the planner; repeated here for
    /// mounts of file systems).
    #[prost(uint64, tag = "5")]
    pub attributes: u64,
    /// Propagation after attaching: `MS_PRIVATE`… with `MS_REC`; 0 is none.
    #[prost(uint64, tag = "6")]
    pub propagation: u64,
    /// The destination is a file (the source of a bind is not a directory).
    #[prost(bool, tag = "7")]
    pub is_file: bool,
    /// The mounted directory gets a copy of what the image has there (`tmpcopyup`).
    #[prost(bool, tag = "8")]
    pub copy_up: bool,
    /// What mount(8) calls the device; shown in mountinfo.
    #[prost(string, tag = "9")]
    pub source_name: String,
}

/// A device node.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DevicePlan {
    /// Absolute path in the container.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`, and the permission bits.
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    /// Major number.
    #[prost(uint32, tag = "3")]
    pub major: u32,
    /// Minor number.
    #[prost(uint32, tag = "4")]
    pub minor: u32,
    /// Owner.
    #[prost(uint32, tag = "5")]
    pub uid: u32,
    /// Group.
    #[prost(uint32, tag = "6")]
    pub gid: u32,
}

/// A symbolic link.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinkPlan {
    /// Absolute path in the container; an existing file stays.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// What it says.
    #[prost(bytes = "vec", tag = "2")]
    pub target: Vec<u8>,
}

/// A kernel parameter.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SysctlPlan {
    /// Path below /proc/sys, with slashes.
    #[prost(string, tag = "1")]
    pub path: String,
    /// What is written.
    #[prost(string, tag = "2")]
    pub value: String,
}
