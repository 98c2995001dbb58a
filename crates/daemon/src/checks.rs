//! What the machine must offer, asked before anything is made. Each refusal says what to do.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};

use crate::config::Config;

/// The shim's program name, beside our own.
const SHIM: &str = "wharf-shim";
/// File systems that the kernel knows (proc(5)).
const FILE_SYSTEMS: &str = "/proc/filesystems";
/// Where every control group hierarchy is.
const CGROUPS: &str = "/sys/fs/cgroup";

/// What is missing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum CheckError {
    #[error("the daemon must run as root: use sudo")]
    NotRoot,
    #[error("this kernel has no overlayfs: modprobe overlay, or build it with CONFIG_OVERLAY_FS")]
    NoOverlay,
    #[error("no control groups at {CGROUPS}: mount -t cgroup2 cgroup2 {CGROUPS}")]
    NoCgroups,
    #[error("{path} is missing: install it there, or set shim.path")]
    NoShim { path: PathBuf, source: io::Error },
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
}

/// Root, overlayfs and cgroups are there.
pub(crate) fn machine() -> Result<(), CheckError> {
    if !geteuid().is_root() {
        return Err(CheckError::NotRoot);
    }
    let known = fs::read_to_string(FILE_SYSTEMS).map_err(|source| CheckError::Read {
        path: FILE_SYSTEMS.into(),
        source,
    })?;
    if !known
        .lines()
        .any(|line| line.trim_start_matches("nodev").trim() == "overlay")
    {
        return Err(CheckError::NoOverlay);
    }
    let mut groups = fs::read_dir(CGROUPS).into_iter().flatten();
    if groups.next().is_none() {
        return Err(CheckError::NoCgroups);
    }
    Ok(())
}

/// The program that holds pods.
pub(crate) fn shim(config: &Config) -> Result<PathBuf, CheckError> {
    let path = match &config.shim.path {
        Some(path) => path.clone(),
        None => std::env::current_exe()
            .unwrap_or_default()
            .parent()
            .unwrap_or(Path::new("/"))
            .join(SHIM),
    };
    match fs::metadata(&path) {
        Ok(_) => Ok(path),
        Err(source) => Err(CheckError::NoShim { path, source }),
    }
}

/// Raises our own soft limit of open files: every container holds some. Gives the one we got, for our
/// children: a soft limit over 1024 breaks programs that use select(2).
pub(crate) fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "open file limit stays");
    }
    limit.current
}
