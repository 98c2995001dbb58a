//! Attributes of mounts that are named by a descriptor: `mount_setattr(2)`, and ids of mounts.
//!
//! Kernel: Linux 5.12. Man: <https://man7.org/linux/man-pages/man2/mount_setattr.2.html>

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use crate::call::answer;

/// Read-only.
pub const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
/// Set-user-ID bits and file capabilities have no effect.
pub const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
/// Device nodes cannot be opened.
pub const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
/// Programs cannot be executed.
pub const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
/// The bits in which the access-time mode is kept; to change the mode, clear all of them.
pub const ATIME: u64 = libc::MOUNT_ATTR__ATIME;
/// Symbolic links are not followed (5.14).
pub const NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;

/// What to change on a mount: `struct mount_attr`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change<'fd> {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED` or `MS_UNBINDABLE` without `MS_REC`; 0 is no change.
    pub propagation: u64,
    /// The user namespace whose id mapping the mount gets; `MOUNT_ATTR_IDMAP` is then set too.
    pub user_namespace: Option<BorrowedFd<'fd>>,
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Applies `change` to the mount whose root (or any directory of which) `mount` names; with
/// `recursive` to all mounts below it too, or to none.
///
/// # Errors
///
/// `EINVAL` when `mount` is not the root of a mount or the change makes no sense, `EPERM` for locked
/// flags and want of `CAP_SYS_ADMIN`.
pub fn set_attributes(mount: impl AsFd, change: &Change<'_>, recursive: bool) -> Result<(), Errno> {
    const EMPTY: &CStr = c"";
    let idmap = change.user_namespace;
    let attr = MountAttr {
        attr_set: change.set | idmap.map_or(0, |_| libc::MOUNT_ATTR_IDMAP),
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: idmap.map_or(0, |fd| u64::try_from(fd.as_raw_fd()).unwrap_or(0)),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated constant and `attr` lives during the call, its size is
    // the one that is passed; the kernel only reads both.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            EMPTY.as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    answer(rc).map(drop)
}

/// The id of the mount that `file` lies on, as mountinfo's first column shows it (Linux 5.8).
///
/// # Errors
///
/// Those of `statx(2)`; `ENOSYS` when the kernel gives no mount id.
pub fn id(file: impl AsFd) -> Result<u64, Errno> {
    let stat = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    if stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(Errno::NOSYS);
    }
    Ok(stat.stx_mnt_id)
}
