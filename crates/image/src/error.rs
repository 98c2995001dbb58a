//! Why a pull failed. Clonable, because everybody who waited for it is told.

use std::path::PathBuf;
use std::sync::Arc;

use wharf_registry::FetchError;
use wharf_store::StoreError;
use wharf_types::{Kind, Reference};

use crate::document::DocumentError;
use crate::flight::Lost;
use crate::unpack::UnpackError;

/// Why a pull failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// The registry.
    #[error("pull {reference}")]
    Fetch {
        /// What was pulled.
        reference: Box<Reference>,
        /// The client's word.
        source: Arc<FetchError>,
    },
    /// No image for this machine.
    #[error(
        "{reference} is there for {found}, but this node is {node}: build it for this platform, or choose another tag"
    )]
    Platform {
        /// What was pulled.
        reference: Box<Reference>,
        /// What exists.
        found: String,
        /// What would run here.
        node: String,
    },
    /// An index, manifest or configuration that cannot be used.
    #[error("{what}")]
    Document {
        /// Which.
        what: String,
        /// Why.
        source: DocumentError,
    },
    /// Bytes are not those that were announced.
    #[error(
        "{what} is wrong: {expected} was announced, {found} came: the registry or something on the way is broken"
    )]
    Mismatch {
        /// Which.
        what: String,
        /// Digest or size.
        expected: String,
        /// Digest or size.
        found: String,
    },
    /// More than anybody needs.
    #[error("{what} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// Which.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// The layer's content.
    #[error("unpack layer {layer}")]
    Unpack {
        /// Its digest.
        layer: String,
        /// What is wrong.
        source: Arc<UnpackError>,
    },
    /// The disk or a quota is full.
    #[error(
        "no space left in {directory}: remove unused images or containers, or enlarge the file system"
    )]
    Full {
        /// The state directory.
        directory: PathBuf,
        /// Where it happened.
        source: Arc<UnpackError>,
    },
    /// The store.
    #[error("store {reference}")]
    Store {
        /// What was pulled.
        reference: Box<Reference>,
        /// The store's word.
        source: Arc<StoreError>,
    },
    /// A thread could not be started.
    #[error("start a thread to unpack a layer")]
    Thread {
        /// The kernel's answer.
        source: Arc<std::io::Error>,
    },
    /// Everybody who waited left.
    #[error("pull was cancelled: nobody waited for it any more")]
    Cancelled,
    /// The image was removed as soon as it was there, again and again.
    #[error("{reference} was removed while it was pulled, several times: pull it again")]
    Removed {
        /// What was pulled.
        reference: Box<Reference>,
    },
    /// The work died; the log says why.
    #[error("pull ended without a result: see the daemon's log")]
    Died,
}

impl PullError {
    /// What a caller can do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Fetch { source, .. } => source.kind(),
            Self::Platform { .. } => Kind::NotFound,
            Self::Document { .. } => Kind::Invalid,
            Self::Mismatch { .. } => Kind::Corrupt,
            Self::TooLarge { .. } | Self::Full { .. } => Kind::Exhausted,
            Self::Unpack { source, .. } => source.kind(),
            Self::Store { source, .. } => source.kind(),
            Self::Cancelled => Kind::Cancelled,
            Self::Removed { .. } => Kind::Conflict,
            Self::Thread { .. } | Self::Died => Kind::Internal,
        }
    }
}

impl From<Lost> for PullError {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Abandoned => Self::Cancelled,
            Lost::Died => Self::Died,
        }
    }
}
