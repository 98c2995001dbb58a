//! What could not be done with a network.

use wharf_types::Kind;

use super::subnet::SubnetError;
use crate::attachments::NetworkError;
use crate::record::RecordError;

/// What could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NamedError {
    /// There is none.
    #[error("no network called {0:?}")]
    NotFound(String),
    /// The beginning of several ids.
    #[error("{0:?} is the beginning of the ids of several networks: give more of it")]
    Ambiguous(String),
    /// The name is taken.
    #[error("network {0:?} exists already: remove it, or choose another name")]
    Exists(String),
    /// A request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Of the subnet.
    #[error(transparent)]
    Subnet(#[from] SubnetError),
    /// Pods use it.
    #[error("network {network:?} is used by {}: disconnect or remove them first", .users.join(", "))]
    InUse {
        /// The network.
        network: String,
        /// Who, by name.
        users: Vec<String>,
    },
    /// The pod is in it already, or is not.
    #[error("pod {pod} is {state} network {network:?}")]
    State {
        /// The pod.
        pod: String,
        /// `already connected to`, `not connected to`.
        state: &'static str,
        /// The network.
        network: String,
    },
    /// A named limit.
    #[error("{what} is over the limit of {limit}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A plugin failed.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The kernel.
    #[error("{action}: {reason}")]
    Kernel {
        /// What was attempted.
        action: &'static str,
        /// What it said.
        reason: String,
    },
}

impl NamedError {
    /// The class of the failure.
    pub fn kind(&self) -> Kind {
        match self {
            Self::NotFound(_) => Kind::NotFound,
            Self::Exists(_) => Kind::AlreadyExists,
            Self::Ambiguous(_) | Self::Invalid(_) => Kind::Invalid,
            Self::Subnet(SubnetError::NoneLeft) | Self::Limit { .. } => Kind::Exhausted,
            Self::Subnet(SubnetError::Overlap { .. }) | Self::InUse { .. } | Self::State { .. } => {
                Kind::Conflict
            }
            Self::Subnet(_) => Kind::Invalid,
            Self::Network(e) => e.kind(),
            Self::Record(_) | Self::Kernel { .. } => Kind::Internal,
        }
    }
}

pub(super) fn kernel(
    action: &'static str,
) -> impl FnOnce(wharf_sys::netlink::NetlinkError) -> NamedError {
    move |e| NamedError::Kernel {
        action,
        reason: e.to_string(),
    }
}
