//! Named limits: every queue, buffer, map and wait of zygote and shim.

use std::time::Duration;

/// Connections that a zygote or a shim serves at the same time; a further one is closed at once.
pub(crate) const CONNECTIONS_MAX: usize = 32;
/// Messages that wait for a client which does not read; one more, and the client is cut off (it can
/// come back and ask for the state).
pub(crate) const QUEUE_MAX: usize = 1024;
/// Requests taken from one connection before the others have their turn.
pub(crate) const REQUESTS_PER_TURN: usize = 32;
/// Ends that a zygote remembers; it forgets the oldest.
pub(crate) const ORPHANS_MAX: usize = 1024;
/// Containers of one pod, exited ones that were not deleted included.
pub(crate) const CONTAINERS_MAX: usize = 1024;
/// Execs that live in one pod at the same time.
pub(crate) const EXECS_MAX: usize = 1024;
/// Ends of execs that a shim remembers for a daemon that was away; it forgets the oldest.
pub(crate) const EXEC_ENDS_MAX: usize = 256;
/// Bytes of an id.
pub(crate) const ID_MAX: usize = 256;
/// Bytes of a kernel parameter's path, and of its value.
pub(crate) const SYSCTL_MAX: usize = 4096;
/// Kernel parameters of one pod.
pub(crate) const SYSCTLS_MAX: usize = 256;

/// Content bytes of one log line; a longer line is split (containerd's
/// `max_container_log_line_size`).
pub(crate) const LINE_MAX: usize = 16 * 1024;
/// Bytes that are read from a container's output at once.
pub(crate) const READ_BYTES: usize = 32 * 1024;
/// Reads from one container's stream before the others have their turn.
pub(crate) const READS_PER_TURN: usize = 8;
/// Formatted bytes that are collected before they are written.
pub(crate) const BATCH_BYTES: usize = 64 * 1024;
/// Size that a container's output pipes are given: what a container can write while its log's disk
/// stalls. The kernel's default is 64 KiB; without `CAP_SYS_RESOURCE` it allows 1 MiB.
pub(crate) const PIPE_BYTES: usize = 256 * 1024;
/// How long one container may hold its log thread before the others get a thread of their own.
pub(crate) const STUCK_AFTER: Duration = Duration::from_secs(1);
/// Log threads of a shim; reached when as many disks stall at the same time.
pub(crate) const LOG_THREADS_MAX: usize = 64;
/// Stack of a log thread.
pub(crate) const LOG_STACK_BYTES: usize = 64 * 1024;
/// Switches of log files that wait for one container's log thread.
pub(crate) const REOPENS_MAX: usize = 16;
/// What log threads have to say and the control thread has not heard yet.
pub(crate) const LOG_EVENTS_MAX: usize = 4096;
/// Bytes of the shim's own log that wait to be written; further lines are dropped.
pub(crate) const OWN_LOG_BYTES: usize = 64 * 1024;

/// How long the end of a process waits for its output to end, when another process holds its pipe.
pub(crate) const DRAIN: Duration = Duration::from_secs(2);
/// How long a shim that was just made waits for somebody to say hello; then whoever wanted it has gone.
pub(crate) const UNHEARD: Duration = Duration::from_secs(30);
/// How long `Shutdown` waits for killed processes to be gone.
pub(crate) const STOPPING: Duration = Duration::from_secs(10);
/// Processes that the answer to `Shutdown` names when they are left.
pub(crate) const LEFT_NAMED_MAX: usize = 8;

/// Size of a pod's /dev/shm, in the words of tmpfs.
pub(crate) const SHM_SIZE: &str = "67108864";
/// Connections that wait for a listening socket opened for a client: the kernel's own `SOMAXCONN`.
pub(crate) const BACKLOG_MAX: u32 = 4096;
