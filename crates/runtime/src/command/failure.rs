//! Why a command failed. Callers look for certain words in the text: containerd for `container not
//! running`, `process already finished` and `does not exist`.

use std::error::Error;
use std::io;

/// A failed command, in words.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// `what`, and the error with its causes.
    pub(crate) fn because(what: &str, error: &dyn Error) -> Self {
        Self(format!("{what}: {}", wharf_types::chain(error)))
    }

    pub(crate) fn io(what: impl Into<String>, error: impl Into<io::Error>) -> Self {
        Self::because(&what.into(), &error.into())
    }

    pub(crate) fn does_not_exist(id: &str) -> Self {
        Self(format!("container {id:?} does not exist"))
    }

    pub(crate) fn not_running() -> Self {
        Self("container not running".to_owned())
    }
}
