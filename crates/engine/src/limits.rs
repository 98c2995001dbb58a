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
