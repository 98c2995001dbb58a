//! The child's own procfs: a file system instance that is attached nowhere, so nothing of the image
//! and no volume can stand in its way.
//!
//! What is written to /proc (labels, kernel parameters, scores) decides over the container's
//! confinement; by path it could be redirected to another file.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// A private procfs of the caller's PID namespace.
#[derive(Debug)]
pub(super) struct Proc(OwnedFd);

impl Proc {
    pub(super) fn open() -> Result<Self, Errno> {
        let fs = rustix::mount::fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(fs.as_fd())?;
        let mount = rustix::mount::fsmount(
            fs.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC,
        )?;
        Ok(Self(mount))
    }

    /// Writes `value` to the file `path` in one write, as the kernel wants it.
    pub(super) fn write(&self, path: &CStr, value: &[u8]) -> Result<(), Errno> {
        let file = self.file(path, OFlags::WRONLY)?;
        match rustix::io::write(&file, value) {
            Ok(n) if n == value.len() => Ok(()),
            Ok(_) => Err(Errno::IO),
            Err(e) => Err(e),
        }
    }

    /// Reads a number from the file `path`.
    pub(super) fn read_number(&self, path: &CStr) -> Result<i64, Errno> {
        let mut buffer = [0; 32];
        let n = rustix::io::read(self.file(path, OFlags::RDONLY)?, &mut buffer)?;
        let text = std::str::from_utf8(&buffer[..n]).map_err(|_no_text| Errno::INVAL)?;
        text.trim().parse().map_err(|_no_number| Errno::INVAL)
    }

    fn file(&self, path: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
        // `self` is a link to a number, which stays beneath; magic links would not.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(
            &self.0,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
    }
}
