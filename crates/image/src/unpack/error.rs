//! Why a layer cannot be unpacked.

use std::io;

use rustix::io::Errno;
use wharf_types::Kind;

use crate::tar::TarError;

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The stream is no proper tar.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A name leads out of the layer, or is none.
    #[error("entry {path:?}: {why}")]
    Name {
        /// As it stands in the archive.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A hard link to something that this layer does not hold.
    #[error("entry {path:?} is a hard link to {target:?}, which is not in this layer")]
    Link {
        /// The link.
        path: String,
        /// What it names.
        target: String,
    },
    /// More than anybody needs.
    #[error("layer has more than {limit} {what}")]
    Limit {
        /// What is counted.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
    /// The kernel refused.
    #[error("{action} {path:?}{}", wharf_store::remedy(source))]
    Io {
        /// The verb.
        action: &'static str,
        /// The entry.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl UnpackError {
    /// What a caller can do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Tar(TarError::Limit { .. }) | Self::Limit { .. } => Kind::Exhausted,
            Self::Io { source, .. } if wharf_store::is_full(source) => Kind::Exhausted,
            Self::Io { .. } => Kind::Internal,
            Self::Tar(_) | Self::Name { .. } | Self::Link { .. } => Kind::Corrupt,
        }
    }
}

/// A name for a message.
pub(crate) fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Wraps a failed system call on an entry.
pub(crate) fn io<'a>(
    action: &'static str,
    path: &'a [u8],
) -> impl Fn(Errno) -> UnpackError + use<'a> {
    move |e| UnpackError::Io {
        action,
        path: show(path),
        source: e.into(),
    }
}
