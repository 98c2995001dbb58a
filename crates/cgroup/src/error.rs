//! What can go wrong with a cgroup.

use std::path::PathBuf;

use wharf_types::Kind;

/// A failed operation on a cgroup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// The machine's mounts cannot be read.
    #[error("cannot read {}", path.display())]
    Mounts {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No cgroup file system is mounted.
    #[error("no cgroup hierarchy is mounted: mount cgroup2 at /sys/fs/cgroup")]
    NoHierarchy,
    /// The path cannot be one of a cgroup.
    #[error("cgroup path {path:?}: {problem}")]
    Path {
        /// What was asked for.
        path: String,
        /// What is wrong, and what is allowed.
        problem: &'static str,
    },
    /// The specification allows it, but it is not here yet.
    #[error("{0} is not supported yet")]
    Unsupported(String),
    /// A limit is out of range or contradicts another.
    #[error("{limit}: {problem}")]
    Limit {
        /// Which one: `memory.swap`.
        limit: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A limit needs a controller that no hierarchy of this machine has.
    #[error("{file} cannot be set to {value:?}: this machine has no {controller} controller")]
    NoController {
        /// `memory`, `cpu`…
        controller: String,
        /// The file that would have been written.
        file: String,
        /// What would have been written.
        value: String,
    },
    /// The kernel refused a limit.
    #[error("cannot write {value:?} to {} ({controller} controller)", file.display())]
    Write {
        /// `memory`, `cpu`…
        controller: String,
        /// Which file.
        file: PathBuf,
        /// What was written.
        value: String,
        /// Why.
        source: std::io::Error,
    },
    /// The processes use more memory than they would be allowed.
    #[error("cannot limit memory to {limit} bytes: {usage} bytes are in use ({})", file.display())]
    BelowUsage {
        /// Bytes asked for.
        limit: i64,
        /// Bytes in use.
        usage: u64,
        /// The limit's file.
        file: PathBuf,
    },
    /// There are processes in a cgroup that should be new.
    #[error("cgroup {} exists and has {count} processes", path.display())]
    Occupied {
        /// Which directory.
        path: PathBuf,
        /// How many.
        count: usize,
    },
    /// There is no such cgroup in any hierarchy.
    #[error("there is no cgroup {0}")]
    NotFound(String),
    /// Processes did not end or freeze within the bound.
    #[error("cgroup {}: {what}", path.display())]
    Stuck {
        /// Which directory.
        path: PathBuf,
        /// What did not happen.
        what: &'static str,
    },
    /// Another operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// `create`, `read`…
        action: &'static str,
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl CgroupError {
    /// The class of the failure.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Path { .. } | Self::Limit { .. } | Self::BelowUsage { .. } => Kind::Invalid,
            Self::Write { source, .. } => match source.raw_os_error() {
                // EINVAL, ERANGE, EBUSY: the value, not the machine.
                Some(22 | 34 | 16) => Kind::Invalid,
                _ => Kind::Internal,
            },
            Self::Unsupported(_) | Self::NoController { .. } | Self::NoHierarchy => {
                Kind::Unsupported
            }
            Self::Occupied { .. } => Kind::AlreadyExists,
            Self::NotFound(_) => Kind::NotFound,
            // ENOSPC, EMFILE, ENFILE, ENOMEM, EAGAIN: the machine has no more of something.
            Self::Io { source, .. }
                if matches!(source.raw_os_error(), Some(28 | 24 | 23 | 12 | 11)) =>
            {
                Kind::Exhausted
            }
            Self::Mounts { .. } | Self::Stuck { .. } | Self::Io { .. } => Kind::Internal,
        }
    }
}
