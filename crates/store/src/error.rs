//! What can go wrong in the store, with the path or id that it concerns.

use std::io;
use std::path::PathBuf;

use wharf_types::{DiffId, Digest, Kind};

/// A failed operation of the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process holds the lock file.
    #[error(
        "state directory {root} is in use by process {pid}: stop it, or give this daemon another directory"
    )]
    Locked {
        /// The directory.
        root: PathBuf,
        /// What the lock file says.
        pid: String,
    },
    /// A system call failed.
    #[error("{action} {path}{}", remedy(source))]
    Io {
        /// The verb: `create`, `rename`…
        action: &'static str,
        /// Its object.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The database refused.
    #[error("database {path}: {action}{}", match &**source { redb::Error::Io(e) => remedy(e), _ => "" })]
    Database {
        /// What was attempted.
        action: &'static str,
        /// The database's file.
        path: PathBuf,
        /// Its answer.
        source: Box<redb::Error>,
    },
    /// A record that this version cannot read.
    #[error("record {name}: {why}")]
    Record {
        /// Table and key, or the file.
        name: String,
        /// What is wrong and what helps.
        why: String,
    },
    /// A layer that a snapshot needs is not there.
    #[error("layer {0} is not in the store: pull the image again")]
    NoLayer(DiffId),
    /// No snapshot of that key.
    #[error("snapshot {0:?} does not exist")]
    NoSnapshot(String),
    /// The key is used by a snapshot of other layers.
    #[error("snapshot {0:?} exists with other layers: remove it first, or use another key")]
    SnapshotExists(String),
    /// The key cannot be a file name.
    #[error("snapshot key {0:?}: 1 to 128 letters, digits, '.', '_', '-', not starting with '.'")]
    BadKey(String),
    /// Blob bytes are not those of their digest.
    #[error("blob {0} in the store does not match its digest: pull the image again")]
    CorruptBlob(Digest),
    /// No blob of that digest.
    #[error("blob {0} is not in the store")]
    NoBlob(Digest),
    /// The kernel cannot mount a stack of layers.
    #[error("overlayfs: {0}")]
    Overlay(String),
    /// The kernel refused this mount.
    #[error("mount layers of snapshot {key:?}: {step}: {log}")]
    Mount {
        /// Which snapshot.
        key: String,
        /// The option or call.
        step: String,
        /// The kernel's own words, if it had any.
        log: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The writable layer was made without syncs before a reboot.
    #[error(
        "snapshot {0:?} was written without syncs before this boot and may be damaged: recreate the container"
    )]
    Volatile(String),
    /// A snapshot whose directory is there, but not what it says.
    #[error(
        "snapshot {key:?} is kept, but was not readable at the last start ({why}): mend that and restart wharf, or remove its container"
    )]
    Unread {
        /// Its key.
        key: String,
        /// Why it could not be read.
        why: String,
    },
    /// More than anybody needs.
    #[error("the layers of the image need more than {limit} {what} to be put together")]
    Limit {
        /// What is counted.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
    /// A kind of layer that this version cannot use.
    #[error("layer {0}: layers of kind {1} are not supported yet")]
    LayerKind(String, &'static str),
}

impl StoreError {
    /// What a caller can do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Locked { .. } | Self::Volatile(_) => Kind::Conflict,
            Self::Io { source, .. } if is_short(source) => Kind::Exhausted,
            Self::Limit { .. } => Kind::Exhausted,
            Self::Database { source, .. } => match &**source {
                redb::Error::Io(e) if is_full(e) => Kind::Exhausted,
                _ => Kind::Internal,
            },
            Self::Io { .. } | Self::Record { .. } | Self::Mount { .. } | Self::Unread { .. } => {
                Kind::Internal
            }
            Self::NoLayer(_) | Self::NoSnapshot(_) | Self::NoBlob(_) => Kind::NotFound,
            Self::SnapshotExists(_) => Kind::AlreadyExists,
            Self::BadKey(_) => Kind::Invalid,
            Self::CorruptBlob(_) => Kind::Corrupt,
            Self::Overlay(_) | Self::LayerKind(..) => Kind::Unsupported,
        }
    }
}

/// Whether the machine has no more of something: room, descriptors, memory (EMFILE, ENFILE, ENOMEM, EAGAIN).
pub fn is_short(error: &io::Error) -> bool {
    is_full(error) || matches!(error.raw_os_error(), Some(24 | 23 | 12 | 11))
}

/// What helps where a disk is full or cannot be written, to be put behind what failed; else nothing.
pub fn remedy(error: &io::Error) -> &'static str {
    if is_full(error) {
        " (no space or no inodes left there: remove unused images or containers, or enlarge the file system)"
    } else if error.kind() == io::ErrorKind::ReadOnlyFilesystem {
        " (the file system is read-only, often after an error of its disk: see the kernel's log, mend it, remount it)"
    } else {
        ""
    }
}

/// Whether a disk or a quota is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
