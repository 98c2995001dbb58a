//! Named limits: how much of anything may come from outside.

use std::time::Duration;

/// Bytes of one configuration file.
pub const CONFIG_FILE_MAX: u64 = 1024 * 1024;
/// Configuration files that are looked at.
pub const CONFIG_FILES_MAX: usize = 256;
/// Plugins of one network.
pub const PLUGINS_MAX: usize = 32;
/// Bytes that a plugin may write to its standard output.
pub const OUTPUT_MAX: usize = 1024 * 1024;
/// Bytes of a plugin's standard error that are kept for the log.
pub const STDERR_MAX: usize = 16 * 1024;
/// Interfaces, addresses or routes of one result.
pub const RESULT_ITEMS_MAX: usize = 1024;
/// Bytes of one record of an attachment.
pub const RECORD_MAX: u64 = 4 * 1024 * 1024;
/// How long one plugin may take to attach.
pub const ADD_DEADLINE: Duration = Duration::from_secs(120);
/// How long one plugin may take to detach.
pub const DEL_DEADLINE: Duration = Duration::from_secs(60);
/// How long one plugin may take to check, or to collect garbage.
pub const CHECK_DEADLINE: Duration = Duration::from_secs(30);
/// How long one plugin may take to say whether it is ready, or which versions it knows.
pub const STATUS_DEADLINE: Duration = Duration::from_secs(10);
/// How often plugins are asked whether they are ready.
pub const STATUS_PERIOD: Duration = Duration::from_secs(5);
/// How long a network that was ready stays so while its configuration is gone or its plugins say that
/// they are not: kubelet evicts pods from a node whose network is not ready.
pub const READY_GRACE: Duration = Duration::from_secs(30);
/// Chains that run at the same time.
pub const CHAINS_MAX: usize = 256;
/// How often a program that is being written is tried, and the pause before the next time.
pub const BUSY_TRIES: u32 = 20;
/// See [`BUSY_TRIES`].
pub const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// Networks, problems and attachments that are told of in Status.
pub const STATUS_ITEMS_MAX: usize = 64;
/// How long the helper that enters a namespace may take.
pub const HELPER_DEADLINE: Duration = Duration::from_secs(10);
/// How often garbage is collected while nothing else asks for it.
pub const GC_PERIOD: Duration = Duration::from_secs(1800);
/// How often it is tried to detach what is nobody's and could not be detached.
pub const ORPHANS_PERIOD: Duration = Duration::from_secs(60);
/// Questions for names that one pod may have under way at the host's servers; those beyond are answered
/// at once with a failure.
pub const DNS_FORWARDS_PER_POD: usize = 128;
/// The same of all pods.
pub const DNS_FORWARDS_MAX: usize = 1024;
/// Connections for names that one pod may have.
pub const DNS_CONNECTIONS_PER_POD: usize = 16;
/// How long such a connection may be silent, or not take its answer.
pub const DNS_IDLE: Duration = Duration::from_secs(10);
/// How long one of the host's servers may take.
pub const DNS_SERVER: Duration = Duration::from_secs(2);
/// How long all of them together may take: less than a client waits.
pub const DNS_QUERY: Duration = Duration::from_millis(4500);
/// How long a pod is not served after the kernel had no memory for it.
pub const DNS_PAUSE: Duration = Duration::from_millis(100);
/// Networks that people make.
pub const NAMED_NETWORKS_MAX: usize = 1024;
/// Letters of such a network's name.
pub const NETWORK_NAME_MAX: usize = 128;
/// Names of one pod in one network.
pub const NAMES_PER_POD: usize = 64;
/// Interfaces of one pod.
pub const INTERFACES_PER_POD: usize = 64;
