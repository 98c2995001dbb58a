//! The daemon's log: stderr, constant messages with fields.

use std::io::{self, IsTerminal as _};

use crate::config::{Format, Log};

/// What libraries below us say is of interest only from a warning on.
const QUIET: &str = ",h2=warn,hyper=warn,hyper_util=warn,rustls=warn,tonic=warn,tower=warn";

/// Begins logging.
pub(crate) fn start(config: &Log) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let terminal = io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(config.filter(QUIET)?)
        .with_writer(io::stderr)
        .with_ansi(terminal);
    if config.format == Format::Json && !terminal {
        lines.json().flatten_event(true).try_init()
    } else {
        lines.try_init()
    }
}
