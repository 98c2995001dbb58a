//! Owners, modes, times and extended attributes of what was made.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use rustix::fs::{self, AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::tar::{Entry, Time};
use crate::unpack::error::{UnpackError, io};

/// Bits that chown and writes clear.
const SET_ID: u32 = 0o6000;
/// An attribute that files created in a directory inherit.
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
/// Where the umask is read without setting it.
const STATUS: &str = "/proc/thread-self/status";

/// What is set on a directory when everything in it is written: what its children would inherit,
/// and times.
#[derive(Debug, Default, Clone)]
pub(crate) struct Late {
    mode: Option<u32>,
    default_acl: Option<Vec<u8>>,
    times: (Time, Time),
}

impl Late {
    /// What it takes in memory beside its own size.
    pub(crate) fn bytes(&self) -> usize {
        self.default_acl.as_ref().map_or(0, Vec::len)
    }
}

/// What this process may set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rights {
    /// Owners and devices.
    pub(crate) privileged: bool,
    umask: u32,
}

impl Rights {
    pub(crate) fn of_process() -> Self {
        let status = std::fs::read_to_string(STATUS).unwrap_or_default();
        let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        let umask = umask.and_then(|text| u32::from_str_radix(text.trim(), 8).ok());
        Self {
            privileged: rustix::process::geteuid().is_root(),
            // Unknown: every mode is set explicitly.
            umask: umask.unwrap_or(0o777),
        }
    }

    /// Whether creating with this mode is not enough.
    fn needs_chmod(self, mode: u32) -> bool {
        mode & (SET_ID | self.umask) != 0
    }

    /// The name of the mark of opaque directories that this process may write.
    pub(crate) fn opaque_mark(self) -> &'static str {
        if self.privileged {
            "trusted.overlay.opaque"
        } else {
            "user.overlay.opaque"
        }
    }
}

/// Sets everything on an open file that was just created with `entry.mode`. Returns how many
/// attributes were left out.
pub(crate) fn set_on_file(
    file: impl AsFd,
    entry: &Entry,
    rights: Rights,
    fresh: bool,
) -> Result<u64, UnpackError> {
    let file = file.as_fd();
    let chowned = chown(file, entry, rights, fresh)?;
    let skipped = set_xattrs(entry, |name, value| {
        fs::fsetxattr(file, name, value, XattrFlags::empty())
    })?;
    if !fresh || rights.needs_chmod(entry.mode) || (chowned && entry.mode & SET_ID != 0) {
        let mode = Mode::from_raw_mode(entry.mode);
        fs::fchmod(file, mode).map_err(io("chmod", &entry.path))?;
    }
    fs::futimens(file, &timestamps(entry)).map_err(io("set times of", &entry.path))?;
    Ok(skipped)
}

/// Sets what can be set now on an open directory, and returns the rest.
pub(crate) fn set_on_directory(
    dir: BorrowedFd<'_>,
    entry: &Entry,
    rights: Rights,
    fresh: bool,
) -> Result<(Late, u64), UnpackError> {
    chown(dir, entry, rights, fresh)?;
    let mut default_acl = None;
    let skipped = set_xattrs(entry, |name, value| {
        if name == DEFAULT_ACL {
            default_acl = Some(value.to_vec());
            return Ok(());
        }
        fs::fsetxattr(dir, name, value, XattrFlags::empty())
    })?;
    // Children would inherit the group; and an owner without rights could not write there.
    let late = entry.mode & SET_ID != 0 || (!rights.privileged && entry.mode & 0o700 != 0o700);
    let now = if late {
        entry.mode & !SET_ID | 0o700
    } else {
        entry.mode
    };
    if !fresh || late || rights.needs_chmod(now) {
        fs::fchmod(dir, Mode::from_raw_mode(now)).map_err(io("chmod", &entry.path))?;
    }
    let times = (access(entry), modification(entry));
    Ok((
        Late {
            mode: late.then_some(entry.mode),
            default_acl,
            times,
        },
        skipped,
    ))
}

/// Sets what was left for the end.
pub(crate) fn set_late(dir: BorrowedFd<'_>, path: &[u8], late: &Late) -> Result<u64, UnpackError> {
    let mut skipped = 0;
    if let Some(acl) = &late.default_acl {
        match fs::fsetxattr(dir, DEFAULT_ACL, acl, XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::PERM) => skipped = 1,
            Err(e) => return Err(io("set extended attribute of", path)(e)),
        }
    }
    if let Some(mode) = late.mode {
        fs::fchmod(dir, Mode::from_raw_mode(mode)).map_err(io("chmod", path))?;
    }
    let (access, modification) = late.times;
    let times = Timestamps {
        last_access: timespec(access),
        last_modification: timespec(modification),
    };
    fs::futimens(dir, &times).map_err(io("set times of", path))?;
    Ok(skipped)
}

/// Sets everything on what cannot be opened: links, devices, pipes. `name` was made by us a moment
/// ago in a directory that nobody else can reach.
pub(crate) fn set_by_name(
    dir: BorrowedFd<'_>,
    name: &[u8],
    entry: &Entry,
    rights: Rights,
    is_link: bool,
) -> Result<u64, UnpackError> {
    if rights.privileged {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(io("chown", &entry.path))?;
    }
    let mut by_fd = format!("/proc/thread-self/fd/{}/", dir.as_raw_fd()).into_bytes();
    by_fd.extend_from_slice(name);
    let skipped = set_xattrs(entry, |name, value| {
        fs::lsetxattr(&by_fd[..], name, value, XattrFlags::empty())
    })?;
    if !is_link {
        fs::chmodat(dir, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
            .map_err(io("chmod", &entry.path))?;
    }
    fs::utimensat(dir, name, &timestamps(entry), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(io("set times of", &entry.path))?;
    Ok(skipped)
}

/// A fresh file is ours: no call when that is what the entry wants.
fn chown(
    file: BorrowedFd<'_>,
    entry: &Entry,
    rights: Rights,
    fresh: bool,
) -> Result<bool, UnpackError> {
    if !rights.privileged || (fresh && entry.uid == 0 && entry.gid == 0) {
        return Ok(false);
    }
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    fs::fchown(file, Some(uid), Some(gid)).map_err(io("chown", &entry.path))?;
    Ok(true)
}

fn set_xattrs(
    entry: &Entry,
    mut set: impl FnMut(&[u8], &[u8]) -> Result<(), Errno>,
) -> Result<u64, UnpackError> {
    let mut skipped = 0;
    for (name, value) in &entry.xattrs {
        if !is_allowed(name) {
            continue;
        }
        match set(name, value) {
            Ok(()) => {}
            // The file system has none of this kind, or not on this kind of file.
            Err(Errno::OPNOTSUPP | Errno::PERM) => skipped += 1,
            Err(e) => return Err(io("set extended attribute of", &entry.path)(e)),
        }
    }
    Ok(skipped)
}

/// Which extended attributes an image may bring: none that overlayfs obeys, none that the host's
/// security modules obey.
fn is_allowed(name: &[u8]) -> bool {
    const REFUSED: [&[u8]; 3] = [b"trusted.", b"user.overlay.", b"security."];
    // Capabilities of files are meant for the container; labels and hashes for the host.
    name == b"security.capability" || !REFUSED.iter().any(|refused| name.starts_with(refused))
}

fn modification(entry: &Entry) -> Time {
    representable(entry.mtime)
}

/// The later of access and modification.
fn access(entry: &Entry) -> Time {
    let modified = modification(entry);
    entry
        .atime
        .map_or(modified, |t| representable(t).max(modified))
}

fn timestamps(entry: &Entry) -> Timestamps {
    Timestamps {
        last_access: timespec(access(entry)),
        last_modification: timespec(modification(entry)),
    }
}

fn timespec(time: Time) -> Timespec {
    Timespec {
        tv_sec: time.seconds,
        tv_nsec: i64::from(time.nanos),
    }
}

/// Times before 1970, and after what 63 bits of nanoseconds hold, are 1970, as in containerd.
fn representable(time: Time) -> Time {
    const LAST: i64 = i64::MAX / 1_000_000_000;
    if (0..LAST).contains(&time.seconds) {
        time
    } else {
        Time::default()
    }
}
