//! Detached overlay mounts by the descriptor-based mount calls.
//!
//! Layers go in one by one (`lowerdir+`): by descriptor on kernel 6.13 and later, as
//! `/proc/self/fd` strings from 6.8. The old single `lowerdir=` option holds 255 bytes at most.

use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::error::StoreError;

/// The kernel's limit of lower layers.
pub(crate) const LOWERS_MAX: usize = 500;
/// How much of the kernel's words goes into an error.
const LOG_MAX: usize = 1024;

/// Options without a value of ours that never change. `index`, `redirect_dir` and `metacopy` give
/// meaning to extended attributes that untrusted layers could carry.
const OPTIONS: [(&str, &str); 4] = [
    ("index", "off"),
    ("redirect_dir", "nofollow"),
    ("metacopy", "off"),
    ("xino", "auto"),
];

/// How this kernel takes layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strategy {
    Descriptor,
    Text,
}

/// What to mount.
#[derive(Debug)]
pub(crate) struct Stack<'a> {
    /// Top first; at least one with an upper layer, at least two without.
    pub(crate) lowers: &'a [OwnedFd],
    /// The writable layer and its work directory.
    pub(crate) upper: Option<(BorrowedFd<'a>, BorrowedFd<'a>)>,
    /// No sync of the writable layer, ever.
    pub(crate) volatile: bool,
    /// Nothing can be written through this mount.
    pub(crate) readonly: bool,
}

/// A step of a mount that the kernel refused.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) step: String,
    pub(crate) log: String,
    pub(crate) errno: Errno,
}

/// Mounts overlays; finds out once how this kernel wants it.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    strategy: OnceLock<Strategy>,
}

impl Overlay {
    /// A mount that is attached nowhere.
    pub(crate) fn mount(
        &self,
        stack: &Stack<'_>,
        probe: BorrowedFd<'_>,
    ) -> Result<Result<OwnedFd, Refused>, StoreError> {
        let strategy = match self.strategy.get() {
            Some(strategy) => *strategy,
            None => {
                let found = find(probe)?;
                *self.strategy.get_or_init(|| found)
            }
        };
        Ok(assemble(strategy, stack))
    }
}

fn find(probe: BorrowedFd<'_>) -> Result<Strategy, StoreError> {
    let open = || {
        mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| {
            StoreError::Overlay(match e {
                Errno::NODEV => {
                    "this kernel has no overlay file system: load the module \"overlay\"".to_owned()
                }
                Errno::PERM => "mounting needs root (CAP_SYS_ADMIN)".to_owned(),
                e => format!("fsopen: {e}"),
            })
        })
    };
    let fs = open()?;
    if mount::fsconfig_set_fd(&fs, "lowerdir+", probe).is_ok() {
        return Ok(Strategy::Descriptor);
    }
    let fs = open()?;
    if mount::fsconfig_set_string(&fs, "lowerdir+", path_of(probe)).is_ok() {
        return Ok(Strategy::Text);
    }
    Err(StoreError::Overlay(
        "this kernel does not take the option lowerdir+: Linux 6.8 or later is needed".to_owned(),
    ))
}

fn assemble(strategy: Strategy, stack: &Stack<'_>) -> Result<OwnedFd, Refused> {
    let refused = |step: &str, errno| Refused {
        step: step.to_owned(),
        log: String::new(),
        errno,
    };
    let fs = mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|e| refused("fsopen overlay", e))?;
    let with_log = |step: &str| {
        let step = step.to_owned();
        let fs = fs.as_fd();
        move |errno| Refused {
            step: step.clone(),
            log: log_of(fs),
            errno,
        }
    };
    let directory = |option: &str, dir: BorrowedFd<'_>| {
        match strategy {
            Strategy::Descriptor => mount::fsconfig_set_fd(&fs, option, dir),
            Strategy::Text => mount::fsconfig_set_string(&fs, option, path_of(dir)),
        }
        .map_err(with_log(option))
    };
    for lower in stack.lowers {
        directory("lowerdir+", lower.as_fd())?;
    }
    if let Some((upper, work)) = stack.upper {
        directory("upperdir", upper)?;
        directory("workdir", work)?;
        if stack.volatile {
            mount::fsconfig_set_flag(&fs, "volatile").map_err(with_log("volatile"))?;
        }
    }
    for (option, value) in OPTIONS {
        mount::fsconfig_set_string(&fs, option, value).map_err(with_log(option))?;
    }
    mount::fsconfig_set_string(&fs, "source", "wharf").map_err(with_log("source"))?;
    mount::fsconfig_create(&fs).map_err(with_log("create"))?;
    let attributes = if stack.readonly {
        MountAttrFlags::MOUNT_ATTR_RDONLY
    } else {
        MountAttrFlags::empty()
    };
    mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(with_log("fsmount"))
}

fn path_of(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// What the kernel wrote about this mount: one message a read.
fn log_of(fs: BorrowedFd<'_>) -> String {
    let Ok(copy) = fs.try_clone_to_owned() else {
        return String::new();
    };
    let mut file = std::fs::File::from(copy);
    let mut log = String::new();
    let mut line = [0; 512];
    while let Ok(n) = file.read(&mut line) {
        if n == 0 || log.len() > LOG_MAX {
            break;
        }
        log.push_str(String::from_utf8_lossy(&line[..n]).trim());
        log.push(' ');
    }
    log
}
