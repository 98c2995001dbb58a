//! What a pull can fail with. No variant ever holds a secret: addresses are shown without their query,
//! answers of servers with our secrets cut out.

use std::time::Duration;

use wharf_types::{Digest, Kind, chain};

use crate::hosts::HostsError;
use crate::transport::TransportError;

/// A client cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// It would not survive as a header.
    #[error("user agent {0:?} cannot be sent as a header")]
    UserAgent(String),
}

/// Content cannot be fetched. `Clone`: several may have waited for one pull.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The configuration of registry hosts is broken; nothing was asked.
    #[error("configuration of registry hosts")]
    Hosts {
        /// Where and why.
        #[from]
        source: HostsError,
    },
    /// The configuration leaves nobody to ask.
    #[error(
        "no host may be asked for {what}: give one in hosts.toml the capability {capability:?}"
    )]
    NoHost {
        /// What was to be fetched.
        what: String,
        /// The missing word in `hosts.toml`.
        capability: &'static str,
    },
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// No host has it.
    #[error("{what} not found (asked: {})", hosts.join(", "))]
    NotFound {
        /// What was asked for.
        what: String,
        /// Everybody who was asked.
        hosts: Vec<String>,
    },
    /// Credentials are missing, wrong, or not enough.
    #[error("{host} denied {what} ({status}){detail}: {remedy}")]
    Denied {
        /// Who refused: a registry or its token server.
        host: String,
        /// What was asked for.
        what: String,
        /// 401 or 403.
        status: u16,
        /// What the server says, with `: ` before; or nothing.
        detail: String,
        /// What to do.
        remedy: String,
    },
    /// No answer at all.
    #[error("cannot reach {host} for {what}")]
    Unreachable {
        /// Who was asked.
        host: String,
        /// What for.
        what: String,
        /// Why not.
        source: TransportError,
    },
    /// An answer that is neither the thing nor a plain no.
    #[error("{host} answered {status} for {what}{detail}")]
    Status {
        /// Who answered.
        host: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// What the server says, with `: ` before; or nothing.
        detail: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// The connection was lost in the middle.
    #[error("{host} cut {what} off after {got} bytes: {cause}")]
    Cut {
        /// Who was sending.
        host: String,
        /// What.
        what: String,
        /// How far it came, in bytes from its beginning.
        got: u64,
        /// Why, in words.
        cause: String,
    },
    /// The bytes come too slowly to be worth waiting for.
    #[error("{host} stalled sending {what} after {got} bytes: {window_bytes} bytes in {} s", window.as_secs())]
    Stalled {
        /// Who was sending.
        host: String,
        /// What.
        what: String,
        /// How far it came, in bytes from its beginning.
        got: u64,
        /// What came in the last window.
        window_bytes: u64,
        /// The length of that window.
        window: Duration,
    },
    /// The bytes are not what their name says.
    #[error("{host} sent {found} instead of {what}")]
    Digest {
        /// Who sent it.
        host: String,
        /// What was asked for.
        what: String,
        /// The digest of what came.
        found: Digest,
    },
    /// More or fewer bytes than the manifest promised.
    #[error("{host} has {what} with {found} bytes, {expected} were promised")]
    Size {
        /// Who has it.
        host: String,
        /// What.
        what: String,
        /// Promised.
        expected: u64,
        /// Offered; at least, when it is still growing.
        found: u64,
    },
    /// More than we are ready to read.
    #[error("{what} from {host} is longer than {limit} bytes")]
    TooLarge {
        /// Who sends it.
        host: String,
        /// What.
        what: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// The format that Docker gave up in 2017.
    #[error(
        "{what} from {host} is a manifest of schema version 1, which is not supported: pull it with an old docker and push it again, or rebuild it"
    )]
    SchemaOne {
        /// Who has it.
        host: String,
        /// What.
        what: String,
    },
    /// The document is not what it claims, or the answer does not follow the protocol.
    #[error("{what} from {host}: {problem}")]
    Malformed {
        /// Who sent it.
        host: String,
        /// What.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// Several hosts were asked, and each failed in its own way.
    #[error("{what} from none of {} hosts: {}", errors.len(), list(errors))]
    Several {
        /// What was asked for.
        what: String,
        /// One error a host, in the order in which they were asked; the registry itself is the last.
        errors: Vec<FetchError>,
    },
}

fn list(errors: &[FetchError]) -> String {
    let texts: Vec<String> = errors.iter().map(|e| chain(e)).collect();
    texts.join("; ")
}

impl FetchError {
    /// What the caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Hosts { .. } | Self::NoHost { .. } | Self::Invalid(_) => Kind::Invalid,
            Self::NotFound { .. } => Kind::NotFound,
            Self::Denied { .. } => Kind::Denied,
            Self::Unreachable { .. } | Self::Cut { .. } | Self::Stalled { .. } => Kind::Unavailable,
            Self::Status { status, .. } => match status {
                408 | 429 | 500..=599 => Kind::Unavailable,
                400..=499 => Kind::Invalid,
                _ => Kind::Corrupt,
            },
            Self::Digest { .. } | Self::Size { .. } | Self::Malformed { .. } => Kind::Corrupt,
            Self::TooLarge { .. } => Kind::Exhausted,
            Self::SchemaOne { .. } => Kind::Unsupported,
            // The registry itself is asked last: its word weighs most.
            Self::Several { errors, .. } => errors.last().map_or(Kind::Internal, Self::kind),
        }
    }

    /// Whether the same host may give another answer soon.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => source.is_transient(),
            Self::Cut { .. } | Self::Stalled { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// Whether the server asks us to slow down.
    pub(crate) fn is_throttled(&self) -> bool {
        matches!(
            self,
            Self::Status {
                status: 429 | 503,
                ..
            }
        )
    }

    /// When the server wants to be asked again.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The errors of all hosts as one.
    pub(crate) fn combine(what: &str, mut errors: Vec<FetchError>) -> FetchError {
        let mut asked = Vec::new();
        for error in &errors {
            if let Self::NotFound { hosts, .. } = error {
                asked.extend(hosts.iter().cloned());
            }
        }
        if asked.len() == errors.len() {
            return Self::NotFound {
                what: what.to_owned(),
                hosts: asked,
            };
        }
        match errors.len() {
            1 => errors.remove(0),
            _ => Self::Several {
                what: what.to_owned(),
                errors,
            },
        }
    }
}
