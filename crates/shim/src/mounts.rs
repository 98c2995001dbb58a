//! The minimal mount namespace that zygote and shims live in.
//!
//! ```text
//! /           tmpfs, read-only
//! ├─ proc     a full one: without it in sight, a user namespace could not mount its own
//! ├─ sys      likewise
//! └─ dev
//!    ├─ null
//!    └─ shm   the pod's, in a shim that has one (then the mount namespace is the pod's own too)
//! ```
//!
//! A container's mount namespace begins as a copy of this one, so its start does not depend on how
//! many mounts the host has, and no mount of the host is kept busy by a pod.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};
use wharf_plan::message::Failure;
use wharf_sys::clone::NEWNS;

use crate::failure;
use crate::limits::SHM_SIZE;

const SHM: &str = "/dev/shm";

/// Leaves the host's mount namespace for a minimal one of its own.
///
/// # Errors
///
/// The step that failed; the process should then end.
pub(crate) fn leave_the_host() -> Result<(), Failure> {
    wharf_sys::process::unshare(NEWNS).map_err(failure::errno("unshare", "mount namespace"))?;
    let recursive = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", recursive).map_err(failure::errno("mount private", "/"))?;
    let old_root = directory("/").map_err(failure::errno("open", "/"))?;
    let plain = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = new_mount(
        "tmpfs",
        &[("size", "64k"), ("nr_inodes", "64"), ("mode", "755")],
        plain,
    )
    .map_err(failure::errno("mount tmpfs", "/"))?;
    // On top of the old root: the one directory that exists everywhere. Nobody sees it there, the
    // process's own root stays the mount below.
    attach(&root, "/").map_err(failure::errno("move_mount", "/"))?;
    rustix::process::fchdir(&root).map_err(failure::errno("fchdir", "the new root"))?;
    furnish().map_err(|(what, e)| failure::step("furnish the new root", what, e.raw_os_error()))?;
    rustix::process::pivot_root(".", ".").map_err(failure::errno("pivot_root", "/"))?;
    // The old root now lies on top of the new one; it is reached through its own descriptor.
    rustix::process::fchdir(&old_root).map_err(failure::errno("fchdir", "the old root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)
        .map_err(failure::errno("umount", "the old root"))?;
    rustix::process::chdir("/").map_err(failure::errno("chdir", "/"))?;
    let fixed = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount_remount("/", fixed, c"").map_err(failure::errno("remount read-only", "/"))
}

/// Fills the new root, which is the working directory.
fn furnish() -> Result<(), (&'static str, Errno)> {
    for name in ["proc", "sys", "dev", "dev/shm"] {
        rustix::fs::mkdir(name, Mode::from_raw_mode(0o755)).map_err(|e| (name, e))?;
    }
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(
        CWD,
        "dev/null",
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        null,
    )
    .and_then(|()| rustix::fs::chmod("dev/null", Mode::from_raw_mode(0o666)))
    .map_err(|e| ("dev/null", e))?;
    let closed = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    for (kind, place) in [("proc", "proc"), ("sysfs", "sys")] {
        new_mount(kind, &[], closed)
            .and_then(|mount| attach(&mount, place))
            .map_err(|e| (place, e))?;
    }
    Ok(())
}

/// Attaches a new tmpfs as the /dev/shm of this pod. The caller is in a mount namespace of its own:
/// the tmpfs ends with the pod, however that ends.
///
/// # Errors
///
/// The step that failed.
pub(crate) fn make_shm() -> Result<(), Failure> {
    let closed = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    new_mount("tmpfs", &[("mode", "1777"), ("size", SHM_SIZE)], closed)
        .and_then(|mount| attach(&mount, SHM))
        .map_err(failure::errno("mount tmpfs", SHM))
}

/// A detached copy of the pod's /dev/shm, for one container.
///
/// # Errors
///
/// The kernel's.
pub(crate) fn clone_shm() -> Result<OwnedFd, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, SHM, flags).map_err(failure::errno("open_tree", SHM))
}

fn directory(path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// A new instance of a file system, not attached anywhere yet.
fn new_mount(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&context, *key, *value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn attach(mount: &OwnedFd, place: &str) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", CWD, place, flags)
}
