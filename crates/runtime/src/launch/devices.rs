//! Device nodes and links: on our own /dev before it is attached, else beneath the image's root.
//!
//! On our own file system nothing of the image can be in the way; in the image's, links are not
//! followed to the node that is made.

use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::path::{Place, RootFd};
use super::status::{Fault, On as _};

/// A node, ready.
#[derive(Debug)]
pub(super) struct Device {
    /// `place` is relative to our own /dev.
    pub(super) in_dev: bool,
    pub(super) place: Place,
    /// Type and permissions.
    pub(super) mode: u32,
    pub(super) device: u64,
    pub(super) uid: Uid,
    pub(super) gid: Gid,
}

/// A symbolic link, ready.
#[derive(Debug)]
pub(super) struct Link {
    /// `place` is relative to our own /dev.
    pub(super) in_dev: bool,
    pub(super) place: Place,
    pub(super) target: CString,
}

/// Makes those of `devices` and `links` that belong on our own /dev (`dev`, not attached yet).
pub(super) fn fill_dev(
    dev: BorrowedFd<'_>,
    devices: &[Device],
    links: &[Link],
) -> Result<(), Fault> {
    let root = RootFd::own(dev);
    for device in devices.iter().filter(|d| d.in_dev) {
        device.make(root).on(&device.place.shown)?;
    }
    for link in links.iter().filter(|l| l.in_dev) {
        link.make(root).on(&link.place.shown)?;
    }
    Ok(())
}

impl Device {
    /// Makes the node; one that is there already must be the same.
    pub(super) fn make(&self, root: RootFd<'_>) -> Result<(), Errno> {
        let (dir, name) = self.place.parent(root)?;
        let kind = FileType::from_raw_mode(self.mode);
        let mode = Mode::from_raw_mode(self.mode & 0o7777);
        match rustix::fs::mknodat(&dir, name, kind, mode, self.device) {
            Err(Errno::EXIST) => self.is_there(dir.as_fd()),
            Err(e) => Err(e),
            Ok(()) => rustix::fs::chownat(
                &dir,
                name,
                Some(self.uid),
                Some(self.gid),
                AtFlags::SYMLINK_NOFOLLOW,
            ),
        }
    }

    fn is_there(&self, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        let name = self.place.name().ok_or(Errno::ISDIR)?;
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let same_kind = FileType::from_raw_mode(stat.st_mode) == FileType::from_raw_mode(self.mode);
        let is_fifo = FileType::from_raw_mode(self.mode) == FileType::Fifo;
        if same_kind && (is_fifo || stat.st_rdev == self.device) {
            Ok(())
        } else {
            Err(Errno::EXIST)
        }
    }
}

impl Link {
    /// Makes the link; what is there already stays.
    pub(super) fn make(&self, root: RootFd<'_>) -> Result<(), Errno> {
        let (dir, name) = self.place.parent(root)?;
        match rustix::fs::symlinkat(self.target.as_c_str(), &dir, name) {
            Err(Errno::EXIST) => Ok(()),
            other => other,
        }
    }
}
