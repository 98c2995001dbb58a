//! What a caller can do about an error: the one table behind gRPC codes, HTTP codes and exit codes.

use std::fmt::Write as _;

/// The class of a failure, chosen where it happens and translated once at each door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The request itself is wrong: sending it again will not help.
    Invalid,
    /// The thing asked for does not exist.
    NotFound,
    /// A thing of that name exists with another configuration.
    AlreadyExists,
    /// The thing is not in a state that allows the request.
    Conflict,
    /// Credentials or policy do not allow it.
    Denied,
    /// A disk, quota or named limit is full.
    Exhausted,
    /// A peer (registry, shim, daemon) does not answer now; it may later.
    Unavailable,
    /// The deadline passed.
    Timeout,
    /// The caller went away.
    Cancelled,
    /// Bytes do not match their digest or their format.
    Corrupt,
    /// This machine or this version cannot do it.
    Unsupported,
    /// A fault of ours or of the machine.
    Internal,
}

/// Prints an error and its causes on one line, each once: `a: b: c`.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        // Writing to a String cannot fail.
        let _infallible = write!(out, ": {c}");
        cause = c.source();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("fsync /x")]
    struct Fsync {
        source: std::io::Error,
    }

    #[test]
    fn the_cause_is_said_once() {
        let e = Fsync {
            source: std::io::Error::from_raw_os_error(28),
        };
        assert_eq!(chain(&e), "fsync /x: No space left on device (os error 28)");
    }
}
