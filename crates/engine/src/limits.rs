//! Named limits of the engine.

use std::time::Duration;

/// Pods that one daemon holds.
pub const PODS_MAX: usize = 4096;
/// Containers of one pod, exited ones included.
pub const CONTAINERS_PER_POD_MAX: usize = 512;
/// Requests that wait for one pod's driver.
pub const REQUESTS_PER_POD_MAX: usize = 256;
/// Messages of a shim that wait for the pod's driver.
pub const SHIM_EVENTS_MAX: usize = 1024;
/// Execs that run in one pod at the same time.
pub const EXECS_PER_POD_MAX: usize = 128;
/// Bytes kept of each output stream of an ExecSync (CVE-2022-1708); what comes after is read and dropped.
pub const EXEC_OUTPUT_MAX: usize = 16 * 1024 * 1024;
/// How long the output of an exec that has ended is still read: a grandchild may hold the pipe.
pub const EXEC_DRAIN: Duration = Duration::from_millis(500);
/// Labels and annotations of one object, together.
pub const LABELS_MAX: usize = 4096;
/// Mounts that one container asks for.
pub const MOUNTS_MAX: usize = 200;
/// Bytes of `/etc/passwd` or `/etc/group` of an image that are read.
pub const ACCOUNTS_FILE_MAX: u64 = 1024 * 1024;
/// Groups of one process: `NGROUPS_MAX` (credentials(7)).
pub const GROUPS_MAX: usize = 65_536;
/// Environment variables of one container, the image's among them.
pub const ENV_MAX: usize = 65_536;
/// Bytes of all environment variables of one container: more than this, with the arguments, no `execve(2)`
/// takes whatever the stack's limit is.
pub const ENV_BYTES_MAX: usize = 6 * 1024 * 1024;
/// Bytes of a seccomp profile file.
pub const SECCOMP_FILE_MAX: u64 = 1024 * 1024;
/// Compiled seccomp programs that are kept.
pub const SECCOMP_CACHE_MAX: usize = 256;
/// Device nodes found below one device directory.
pub const DEVICES_MAX: usize = 512;
/// Bytes of one record, before its end is written into it.
pub const RECORD_MAX: u64 = 8 * 1024 * 1024;
/// Bytes of one record file: how something ended must always have room.
pub const RECORD_FILE_MAX: u64 = RECORD_MAX + 1024 * 1024;
/// How long a shim may take to answer a request that does no work.
pub const SHIM_ANSWER: Duration = Duration::from_secs(10);
/// How long a connection into a pod may take: it never leaves the machine.
pub const POD_CONNECT: Duration = Duration::from_secs(10);
/// Connections that wait for a socket that listens inside a pod for us.
pub const POD_BACKLOG: u32 = 128;
/// How long a shim may take to make or start a process.
pub const SHIM_WORK: Duration = Duration::from_secs(60);
/// How long each shim is asked after a restart of the daemon, all in parallel.
pub const SHIM_ADOPTION: Duration = Duration::from_secs(1);
/// How long the zygote may take to answer.
pub const ZYGOTE_ANSWER: Duration = Duration::from_secs(10);
/// How long a killed container may take to be gone.
pub const KILL_GRACE: Duration = Duration::from_secs(10);
/// First pause before a failed step of a teardown is tried again.
pub const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest pause before a failed step of a teardown is tried again.
pub const RETRY_LAST: Duration = Duration::from_secs(60);
/// Host names: `HOST_NAME_MAX`.
pub const HOSTNAME_MAX: usize = 64;
/// Files of cgroups that stay open for statistics; never more than a quarter of what the daemon may open.
pub const STATS_FILES_MAX: usize = 16_384;
/// Requests for statistics that are answered at the same time.
pub const STATS_PASSES_MAX: usize = 2;
/// The shortest time over which a processor rate is told again: several clients must not make it noise.
pub const CPU_RATE_MIN: Duration = Duration::from_secs(1);
/// How long a measurement of a writable layer is good for: kubelet's own period.
pub const LAYER_MEASURED_FOR: Duration = Duration::from_secs(10);
/// How many times as long as a measurement of a writable layer took, nobody measures it again.
pub const LAYER_REST: u32 = 20;
/// How long a request for statistics waits for writable layers that were never measured.
pub const LAYER_FIRST_WAIT: Duration = Duration::from_millis(20);
/// Bytes read of a process's file with its network's counters: 120 bytes an interface.
pub const NET_DEV_MAX: u64 = 256 * 1024;
/// Descriptors of one container's processes that are looked at to count sockets.
pub const OPEN_FILES_COUNTED_MAX: u64 = 65_536;
