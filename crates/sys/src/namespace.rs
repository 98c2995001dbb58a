//! Kinds of namespaces, as `clone(2)`, `unshare(2)` and `setns(2)` number them. Man: namespaces(7).

/// New mount namespace.
pub const NEWNS: u64 = 0x0002_0000;
/// New cgroup namespace.
pub const NEWCGROUP: u64 = 0x0200_0000;
/// New UTS namespace.
pub const NEWUTS: u64 = 0x0400_0000;
/// New IPC namespace.
pub const NEWIPC: u64 = 0x0800_0000;
/// New user namespace.
pub const NEWUSER: u64 = 0x1000_0000;
/// New PID namespace.
pub const NEWPID: u64 = 0x2000_0000;
/// New network namespace.
pub const NEWNET: u64 = 0x4000_0000;
/// All of them.
pub const NAMESPACES: u64 = NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET;
