//! A container's log file.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use wharf_types::Kind;

use crate::world::StepFailure;

/// Opens a log for appending, and makes its directories.
pub(super) fn open(path: &Path) -> Result<OwnedFd, StepFailure> {
    let failed = |e: std::io::Error| {
        let text = format!("{}: {e}", path.display());
        let kind = if wharf_store::is_full(&e) {
            Kind::Exhausted
        } else {
            Kind::Internal
        };
        StepFailure::new("open log", kind, text)
    };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
    let attempt = || rustix::fs::open(path, flags, Mode::from_raw_mode(0o640));
    match attempt() {
        Err(rustix::io::Errno::NOENT) => {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir).map_err(failed)?;
            }
            attempt().map_err(|e| failed(e.into()))
        }
        opened => opened.map_err(|e| failed(e.into())),
    }
}
