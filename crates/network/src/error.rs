//! Errors as the specification has them: a code, a message, details. Source: CNI 1.1, section 5,
//! "Error".

use std::fmt;

use serde::{Deserialize, Serialize};
use wharf_types::Kind;

/// The plugin does not know this version of the specification.
pub const VERSION: u32 = 1;
/// The configuration has a field that is not supported.
pub const UNSUPPORTED_FIELD: u32 = 2;
/// The container is unknown or gone: nothing needs to be cleaned up.
pub const UNKNOWN_CONTAINER: u32 = 3;
/// A needed environment variable is missing or wrong.
pub const ENVIRONMENT: u32 = 4;
/// Input or output failed.
pub const IO: u32 = 5;
/// What was given cannot be decoded.
pub const DECODE: u32 = 6;
/// The network's configuration is wrong.
pub const CONFIG: u32 = 7;
/// Something passes: the caller should try again later.
pub const TRY_AGAIN: u32 = 11;
/// STATUS: the plugin cannot attach now.
pub const NOT_AVAILABLE: u32 = 50;
/// STATUS: the plugin cannot attach now, and what is attached may have no or a limited network.
pub const LIMITED: u32 = 51;
/// Everything else that a plugin of ours meets; from 100 on plugins choose.
pub const INTERNAL: u32 = 999;

/// A plugin's error. Its text is shown to people as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CniError {
    /// What it is, by number.
    pub code: u32,
    /// In short.
    pub msg: String,
    /// At length; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// The network's configuration is wrong: which field, and why.
    pub fn config(field: &str, reason: impl fmt::Display) -> Self {
        Self::new(CONFIG, format!("{field}: {reason}"))
    }

    /// A field or value that is not supported.
    pub fn unsupported(field: &str, reason: impl fmt::Display) -> Self {
        Self::new(UNSUPPORTED_FIELD, format!("{field}: {reason}"))
    }

    /// Something of the machine failed.
    pub fn internal(msg: impl Into<String>) -> Self {
        Self::new(INTERNAL, msg)
    }

    /// The same, with details.
    #[must_use]
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The same, saying first where it happened.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.msg = format!("{place}: {}", self.msg);
        self
    }

    /// The class of the failure.
    pub fn kind(&self) -> Kind {
        match self.code {
            TRY_AGAIN | NOT_AVAILABLE | LIMITED => Kind::Unavailable,
            UNKNOWN_CONTAINER => Kind::NotFound,
            _ => Kind::Internal,
        }
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.msg.is_empty() {
            true => write!(f, "error without a message")?,
            false => f.write_str(&self.msg)?,
        }
        if !self.details.is_empty() {
            write!(f, "; {}", self.details)?;
        }
        match self.code {
            0 | INTERNAL => Ok(()),
            code => write!(f, " (code {code})"),
        }
    }
}

impl std::error::Error for CniError {}
