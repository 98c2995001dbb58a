//! For tests: a node of its own, a registry that can misbehave, images made on the spot.
//!
//! Nothing here is shipped. What needs root says so by `needs_root`; what is started here ends,
//! and what is mounted or made here goes, when its value is dropped, after a failed test too.

pub mod wait;
pub mod cache;
pub mod tar;
pub mod image;
pub mod debian;
pub mod samples;
pub mod place;
mod body;
pub mod forgetful;
pub mod registry;
pub mod push;
pub mod real_registry;
pub mod cri;
pub mod machine;
pub mod faults;
pub mod containerd;
pub mod node;
pub mod soak;

/// Whether this process is root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A new directory in `$TMPDIR` or /var/tmp (on a disk, where /tmp may be memory); it goes with
/// the value.
///
/// # Errors
/// The disk is full or read-only.
pub fn temporary() -> std::io::Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("wharf-test-")
        .tempdir_in(temporary_base())
}

pub(crate) fn temporary_base() -> std::path::PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), Into::into)
}

/// Whether this process is root. Where it is not, prints that the test is left out;
/// `cargo xtask test` counts these lines.
#[must_use]
pub fn needs_root(test: &str) -> bool {
    if !is_root() {
        println!("skipped: {test}: needs root");
    }
    is_root()
}
