//! What is executed in a container: its init, or an exec.

/// A process of a container, ready to be executed: nothing in it needs to be looked up any more.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProcessPlan {
    /// argv; never empty.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub args: Vec<Vec<u8>>,
    /// `KEY=value`, in order.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub env: Vec<Vec<u8>>,
    /// Working directory: absolute, made with the user as owner when it is missing.
    #[prost(bytes = "vec", tag = "3")]
    pub cwd: Vec<u8>,
    /// User id, in the container's user namespace.
    #[prost(uint32, tag = "4")]
    pub uid: u32,
    /// Group id.
    #[prost(uint32, tag = "5")]
    pub gid: u32,
    /// Supplementary groups: exactly these.
    #[prost(uint32, repeated, tag = "6")]
    pub groups: Vec<u32>,
    /// File mode creation mask; 0o022 when absent.
    #[prost(uint32, optional, tag = "7")]
    pub umask: Option<u32>,
    /// Capability sets.
    #[prost(message, optional, tag = "8")]
    pub capabilities: Option<CapabilitySets>,
    /// `PR_SET_NO_NEW_PRIVS`.
    #[prost(bool, tag = "9")]
    pub no_new_privileges: bool,
    /// Resource limits, in order.
    #[prost(message, repeated, tag = "10")]
    pub rlimits: Vec<Rlimit>,
    /// `/proc/self/oom_score_adj`; unchanged when absent.
    #[prost(int32, optional, tag = "11")]
    pub oom_score_adj: Option<i32>,
    /// A terminal is wanted: stdio is a new pseudo-terminal of the container.
    #[prost(bool, tag = "12")]
    pub terminal: bool,
    /// Initial size of the terminal.
    #[prost(message, optional, tag = "13")]
    pub console: Option<ConsoleSize>,
    /// The filter, as an array of `struct sock_filter` (8 bytes each, native order); none when empty.
    /// When it is not empty, the process never runs without it.
    #[prost(bytes = "vec", tag = "14")]
    pub seccomp: Vec<u8>,
    /// Flags of `seccomp(2)`: `SECCOMP_FILTER_FLAG_*`.
    #[prost(uint32, tag = "15")]
    pub seccomp_flags: u32,
    /// Written to `/proc/self/attr/apparmor/exec` (or `attr/exec`) as `exec NAME`; none when empty.
    #[prost(string, tag = "16")]
    pub apparmor_profile: String,
    /// SELinux label of the process; none when empty.
    #[prost(string, tag = "17")]
    pub selinux_label: String,
    /// I/O priority as `ioprio_set(2)` takes it.
    #[prost(int32, optional, tag = "18")]
    pub io_priority: Option<i32>,
    /// Descriptors from 3 on that the process inherits (`--preserve-fds`).
    #[prost(uint32, tag = "19")]
    pub preserve_fds: u32,
}

/// The five sets as bit masks (bit n: capability n of capabilities(7)).
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct CapabilitySets {
    /// Bounding set.
    #[prost(uint64, tag = "1")]
    pub bounding: u64,
    /// Effective set.
    #[prost(uint64, tag = "2")]
    pub effective: u64,
    /// Permitted set.
    #[prost(uint64, tag = "3")]
    pub permitted: u64,
    /// Inheritable set: only what the specification asks for.
    #[prost(uint64, tag = "4")]
    pub inheritable: u64,
    /// Ambient set.
    #[prost(uint64, tag = "5")]
    pub ambient: u64,
}

/// One `setrlimit(2)`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Rlimit {
    /// `RLIMIT_*` of this architecture.
    #[prost(uint32, tag = "1")]
    pub resource: u32,
    /// Soft limit.
    #[prost(uint64, tag = "2")]
    pub soft: u64,
    /// Hard limit; what the kernel refuses for want of `CAP_SYS_RESOURCE` is clamped, with a warning.
    #[prost(uint64, tag = "3")]
    pub hard: u64,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ConsoleSize {
    /// Rows.
    #[prost(uint32, tag = "1")]
    pub height: u32,
    /// Columns.
    #[prost(uint32, tag = "2")]
    pub width: u32,
}
