//! Every size, count and time that a registry, a mirror or a configuration file could stretch.

use std::time::Duration;

/// Longest manifest or index, in bytes. Registries must take 4 MiB; some indexes are larger.
pub const MANIFEST_BYTES_MAX: usize = 8 << 20;
/// Longest answer of a token server, in bytes.
pub const TOKEN_BYTES_MAX: usize = 1 << 20;
/// What is read of an error's body, in bytes.
pub const ERROR_BYTES_MAX: usize = 1 << 20;
/// What is shown of an error's body, in characters.
pub const ERROR_SHOWN_CHARS: usize = 512;
/// Longest `hosts.toml`, certificate or key file, in bytes.
pub const CONFIG_FILE_BYTES_MAX: u64 = 1 << 20;
/// Most `[host]` tables in one `hosts.toml`.
pub const HOSTS_MAX: usize = 64;
/// Most certificate or key files of one host.
pub const CERTIFICATE_FILES_MAX: usize = 64;
/// Most challenges read from one answer.
pub const CHALLENGES_MAX: usize = 16;
/// Most parameters read of one challenge.
pub const CHALLENGE_PARAMETERS_MAX: usize = 32;
/// Most redirects followed for one request.
pub const REDIRECTS_MAX: usize = 10;

/// How often a host is asked that cannot be reached or answers 408, 500, 502 or 504.
pub const TRIES_MAX: u32 = 3;
/// How often a host is asked that answers 429 or 503.
pub const THROTTLED_TRIES_MAX: u32 = 5;
/// Longest wait that a `Retry-After` can ask for.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// Shortest wait before a second try; doubled for each further one.
pub const RETRY_DELAY: Duration = Duration::from_millis(500);
/// How long a host that could not be reached is asked after the others.
pub const DOWN_FOR: Duration = Duration::from_secs(30);
/// Most hosts remembered as down.
pub const DOWN_MAX: usize = 256;

/// Longest wait for a connection without `dial_timeout` (TCP and TLS together).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for the head of an answer. Pull-through caches ask their upstream first.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// A stream that brings less than [`STALL_BYTES`] in this time has stalled.
pub const STALL_WINDOW: Duration = Duration::from_secs(30);
/// See [`STALL_WINDOW`].
pub const STALL_BYTES: u64 = 64 << 10;
/// Bytes after which a connection counts as good again, and its failures as forgotten.
pub const PROGRESS_BYTES: u64 = 1 << 20;
/// Most reconnections of one blob, however much progress each made.
pub const RECONNECTS_MAX: u32 = 64;

/// Largest read from a connection, in bytes.
pub const READ_BUFFER_MAX: usize = 1 << 20;
/// Most idle connections kept to one host.
pub const IDLE_CONNECTIONS_MAX: usize = 16;
/// How long an idle connection is kept.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Most connection pools (one per distinct TLS configuration).
pub const TRANSPORTS_MAX: usize = 64;

/// Most remembered authorisations (host, repository, credentials).
pub const TOKENS_MAX: usize = 1024;
/// How long a token lives when its server does not say: distribution's token specification.
pub const TOKEN_LIFE_DEFAULT: Duration = Duration::from_secs(60);
/// How long a token is believed to live at most.
pub const TOKEN_LIFE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// A token is renewed this long before its end.
pub const TOKEN_RENEW_EARLY: Duration = Duration::from_secs(10);
