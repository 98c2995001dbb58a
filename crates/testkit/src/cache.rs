//! Where the testkit keeps what takes long to make, and where the programs under test are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The folder of the workspace.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .expect("testkit lies in crates/testkit")
        .into()
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), Into::into)
}

/// `$WHARF_TESTKIT_CACHE`, or `testkit` in the target folder. Its content is made again when gone.
///
/// # Errors
/// It cannot be made.
pub fn dir() -> io::Result<PathBuf> {
    let dir = std::env::var_os("WHARF_TESTKIT_CACHE")
        .map_or_else(|| target().join("testkit"), PathBuf::from);
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// The folder `key` of the cache, made by `make` unless it is there whole.
///
/// Processes that ask at the same time wait for each other; what a killed one left is made again.
///
/// # Errors
/// What `make` says, or the disk.
pub fn folder(key: &str, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<PathBuf> {
    let cache = dir()?;
    let lock = fs::File::create(cache.join(format!("{key}.lock")))?;
    lock.lock()?;
    let done = cache.join(key);
    if !done.exists() {
        let new = cache.join(format!("{key}.new"));
        if new.exists() {
            fs::remove_dir_all(&new)?;
        }
        fs::create_dir_all(&new)?;
        make(&new)?;
        fs::rename(&new, &done)?;
    }
    Ok(done)
}

/// The program `name` as this build of the workspace made it, for a test that runs in the target
/// folder itself; `$WHARF_BIN_DIR` names another folder.
pub fn program_under_test(name: &str) -> PathBuf {
    if let Some(dir) = std::env::var_os("WHARF_BIN_DIR") {
        return Path::new(&dir).join(name);
    }
    let profile = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    target()
        .join("x86_64-unknown-linux-musl")
        .join(profile)
        .join(name)
}

/// A program of a peer or of the machine: in `$RIG/bin`, then in `PATH`, then in the `sbin`s.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let rig = std::env::var_os("RIG").map(|r| Path::new(&r).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/go/bin"];
    rig.into_iter()
        .chain(std::env::split_paths(&path).collect::<Vec<_>>())
        .chain(sbin.iter().map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}
