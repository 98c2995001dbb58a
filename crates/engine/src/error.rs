//! Why the engine could not do what was asked. Cheap to clone: several callers may wait for one answer.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use wharf_types::Kind;

/// The class of a failed system call: want of room, descriptors, memory or processes is the machine's
/// state, everything else is unexpected.
pub fn io_kind(e: &std::io::Error) -> Kind {
    match wharf_store::is_short(e) {
        true => Kind::Exhausted,
        false => Kind::Internal,
    }
}

/// A request was refused or failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// There is no such pod or container.
    #[error("no {what} with id {id:?}")]
    NotFound {
        /// `pod` or `container`.
        what: &'static str,
        /// What was asked for.
        id: String,
    },
    /// Several ids begin like that.
    #[error("{id:?} is the beginning of the ids of several {what}s: give more of it")]
    Ambiguous {
        /// `pod` or `container`.
        what: &'static str,
        /// What was asked for.
        id: String,
    },
    /// The name belongs to another one.
    #[error(
        "{what} {name} exists already with {difference}, as {id}: remove it, or use another attempt"
    )]
    Exists {
        /// `pod` or `container`.
        what: &'static str,
        /// Its name.
        name: String,
        /// Who has the name.
        id: String,
        /// `another configuration`, or the state that it has gone on to.
        difference: &'static str,
    },
    /// It is not in a state that allows the request.
    #[error("cannot {verb} {what} {id}: it is {state}")]
    State {
        /// `create a container in`, `start`.
        verb: &'static str,
        /// `pod` or `container`.
        what: &'static str,
        /// Its id.
        id: String,
        /// The state, in words.
        state: String,
    },
    /// The configuration asks for something wrong.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field, as CRI calls it.
        field: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// This version or this machine cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// A named limit is reached.
    #[error("{what} is over the limit of {limit}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A step failed.
    #[error("{stage} for {subject}")]
    Step {
        /// The step's name.
        stage: &'static str,
        /// What it was done for: `pod ns/name`, `container name`.
        subject: String,
        /// The class of the failure.
        kind: Kind,
        /// What failed.
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The exec did not end in time; everything that it started was killed.
    #[error(
        "exec in container {id} did not end within {seconds} s and was killed: timeout exceeded"
    )]
    ExecTimeout {
        /// The container.
        id: String,
        /// Its time.
        seconds: u64,
    },
    /// The engine is shutting down.
    #[error("the daemon is shutting down")]
    ShuttingDown,
}

impl RequestError {
    /// What a caller can do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::NotFound { .. } => Kind::NotFound,
            Self::Ambiguous { .. } | Self::Invalid { .. } => Kind::Invalid,
            Self::Exists { .. } => Kind::AlreadyExists,
            Self::State { .. } => Kind::Conflict,
            Self::Unsupported(_) => Kind::Unsupported,
            Self::Limit { .. } => Kind::Exhausted,
            Self::Step { kind, .. } => *kind,
            Self::ExecTimeout { .. } => Kind::Timeout,
            Self::ShuttingDown => Kind::Unavailable,
        }
    }

    /// The step that failed, if one did.
    pub fn stage(&self) -> Option<&'static str> {
        match self {
            Self::Step { stage, .. } => Some(stage),
            _ => None,
        }
    }
}

/// The engine could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A directory of the engine cannot be made or read.
    #[error("{action} {path}")]
    Directory {
        /// What was attempted.
        action: &'static str,
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The machine's control groups cannot be used.
    #[error("control groups: {what}")]
    Cgroups {
        /// What was attempted.
        what: String,
        /// Why not.
        source: Box<dyn Error + Send + Sync>,
    },
}
