//! Mounts of a container: made detached, given their attributes, then attached to a descriptor.
//!
//! Nothing is remounted in place and no destination is resolved twice, so there is no moment at which
//! a mount has too few flags, and no second look-up that could lead elsewhere.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};
use wharf_sys::mount::{Change, NODEV, NOEXEC, NOSUID, RDONLY, set_attributes};

use super::copy_up::copy_up;
use super::path::{Make, Place, RootFd};
use super::status::{Fault, On as _};

/// `MS_REC` of mount(2), as plans have it beside a propagation.
const MS_REC: u64 = 0x4000;
/// `MS_PRIVATE` of mount(2).
const MS_PRIVATE: u64 = 1 << 18;

/// One mount, ready.
#[derive(Debug)]
pub(super) struct Mount {
    pub(super) place: Place,
    pub(super) source: Source,
    /// `MOUNT_ATTR_*`.
    pub(super) attributes: u32,
    /// `MS_PRIVATE`… with `MS_REC`; 0 is none.
    pub(super) propagation: u64,
    pub(super) is_file: bool,
    pub(super) copy_up: bool,
}

/// What it is made from.
#[derive(Debug)]
pub(super) enum Source {
    FileSystem(FileSystem),
    /// A detached mount with its attributes.
    Bind(OwnedFd),
}

/// A new instance of a file system.
#[derive(Debug)]
pub(super) struct FileSystem {
    pub(super) kind: CString,
    pub(super) parameters: Vec<(CString, Option<CString>)>,
    pub(super) source: Option<CString>,
    /// The destination must be a real directory, reached without a symbolic link.
    pub(super) plain_directory: bool,
}

impl FileSystem {
    /// Makes the instance and a detached mount of it.
    fn mount(&self, attributes: u32) -> Result<OwnedFd, Fault> {
        let kind = self.kind.as_c_str();
        let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).on(kind)?;
        self.configure(fs.as_fd())
            .map_err(|(errno, key)| explain(fs.as_fd(), errno, key))?;
        let attributes = MountAttrFlags::from_bits_retain(attributes);
        rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).on(kind)
    }

    fn configure(&self, fs: BorrowedFd<'_>) -> Result<(), (Errno, &CStr)> {
        if let Some(source) = &self.source {
            let done = rustix::mount::fsconfig_set_string(fs, c"source", source.as_c_str());
            done.map_err(|e| (e, c"source"))?;
        }
        for (key, value) in &self.parameters {
            let key = key.as_c_str();
            match value {
                Some(value) => rustix::mount::fsconfig_set_string(fs, key, value.as_c_str()),
                None => rustix::mount::fsconfig_set_flag(fs, key),
            }
            .map_err(|e| (e, key))?;
        }
        rustix::mount::fsconfig_create(fs).map_err(|e| (e, self.kind.as_c_str()))
    }
}

/// The kernel often says in words what it did not like: they are read from the context itself, behind
/// `e ` for an error. Else the parameter is named.
fn explain(fs: BorrowedFd<'_>, errno: Errno, key: &CStr) -> Fault {
    let mut words = [0; 100];
    match rustix::io::read(fs, &mut words) {
        Ok(n) if n > 2 && words.starts_with(b"e ") => {
            Fault::new(errno, words[2..n].trim_ascii_end())
        }
        _ => Fault::new(errno, key.to_bytes()),
    }
}

impl Mount {
    /// Makes the mount (a bind is made already); `None` for a bind.
    pub(super) fn make(&self, image: RootFd<'_>) -> Result<Option<OwnedFd>, Fault> {
        let Source::FileSystem(fs) = &self.source else {
            return Ok(None);
        };
        let late = if self.is_late() { attribute(RDONLY) } else { 0 };
        let made = fs.mount(self.attributes & !late)?;
        if self.copy_up {
            match self.place.read_dir(image) {
                Ok(below) => copy_up(below.as_fd(), made.as_fd())?,
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Some(made))
    }

    /// Whether it is made writable and becomes read-only by [`seal`], when all that belongs into it is
    /// there: it is empty at first, and later mounts, nodes and links need their places in it.
    pub(super) fn is_late(&self) -> bool {
        let is_tmpfs =
            matches!(&self.source, Source::FileSystem(fs) if fs.kind.as_c_str() == c"tmpfs");
        is_tmpfs && self.attributes & attribute(RDONLY) != 0
    }

    /// Attaches `made` (or the bind) to its destination, which is made when it is missing.
    pub(super) fn attach(&self, made: Option<&OwnedFd>, image: RootFd<'_>) -> Result<(), Fault> {
        let (mount, root) = match &self.source {
            Source::Bind(fd) => (fd.as_fd(), image),
            Source::FileSystem(fs) => {
                let mount = made.ok_or(Errno::BADF)?.as_fd();
                let plain = fs.plain_directory;
                (mount, if plain { image.without_links() } else { image })
            }
        };
        let make = if self.is_file {
            Make::File
        } else {
            Make::Directory
        };
        let target = self.place.open_or_make(root, make)?;
        attach(mount, target.as_fd())?;
        if self.propagation != 0 {
            let change = Change {
                propagation: self.propagation & !MS_REC,
                ..Change::default()
            };
            set_attributes(mount, &change, self.propagation & MS_REC != 0)?;
        }
        Ok(())
    }
}

/// Makes a mount read-only.
pub(super) fn seal(mount: impl AsFd) -> Result<(), Errno> {
    let change = Change {
        set: RDONLY,
        ..Change::default()
    };
    set_attributes(mount, &change, false)
}

fn attribute(bits: u64) -> u32 {
    u32::try_from(bits).unwrap_or(0)
}

/// Attaches a detached mount to what `target` names.
pub(super) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", target, c"", flags)
}

/// A detached copy of the mount that `file` names the root (or a part) of; it must be attached in our
/// mount namespace.
pub(super) fn clone(file: BorrowedFd<'_>, path: &CStr, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    rustix::mount::open_tree(file, path, flags)
}

/// A small file system of our own over the root of our mount namespace, where nobody else can look:
/// the place that the container's root is attached to, and what paths are masked with.
#[derive(Debug)]
pub(super) struct Scratch(OwnedFd);

impl Scratch {
    /// Covers `/` (for those who will look it up: this process still has the one below).
    pub(super) fn mount() -> Result<Self, Fault> {
        let fs = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in [(c"mode", c"0700"), (c"nr_inodes", c"16"), (c"size", c"64k")] {
            rustix::mount::fsconfig_set_string(fs.as_fd(), key, value).on(key)?;
        }
        rustix::mount::fsconfig_create(fs.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let mount = rustix::mount::fsmount(fs.as_fd(), flags, attributes)?;
        rustix::fs::mkdirat(&mount, c"root", Mode::from_raw_mode(0o700)).on(c"root")?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(mount.as_fd(), c"", CWD, c"/", flags).on(c"/")?;
        Ok(Self(mount))
    }

    /// Attaches the container's root, private: what is mounted below it is seen by nobody else.
    pub(super) fn attach_root(&self, rootfs: BorrowedFd<'_>) -> Result<(), Fault> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(rootfs, c"", self.0.as_fd(), c"root", flags)?;
        let private = Change {
            propagation: MS_PRIVATE,
            ..Change::default()
        };
        set_attributes(rootfs, &private, true).map_err(Fault::from)
    }

    /// What masked paths are covered with: an empty directory and a null device. Both are made here,
    /// so they are what they seem: one of the image could be something else.
    pub(super) fn masks(&self) -> Result<Masks<'_>, Fault> {
        rustix::fs::mkdirat(&self.0, c"empty", Mode::from_raw_mode(0o755)).on(c"empty")?;
        let mode = Mode::from_raw_mode(0o666);
        let null = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(&self.0, c"null", FileType::CharacterDevice, mode, null).on(c"null")?;
        Ok(Masks(self.0.as_fd()))
    }
}

/// Covers for masked paths.
#[derive(Debug, Clone, Copy)]
pub(super) struct Masks<'fd>(BorrowedFd<'fd>);

impl Masks<'_> {
    /// Covers `place`; one that does not exist needs no cover.
    pub(super) fn cover(self, place: &Place, image: RootFd<'_>) -> Result<(), Fault> {
        let target = match place.open(image) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            other => other?,
        };
        let stat = rustix::fs::fstat(&target)?;
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let cover = if directory {
            let cover = clone(self.0, c"empty", false)?;
            let change = Change {
                set: RDONLY | NOSUID | NODEV | NOEXEC,
                ..Change::default()
            };
            set_attributes(&cover, &change, false)?;
            cover
        } else {
            clone(self.0, c"null", false)?
        };
        attach(cover.as_fd(), target.as_fd()).map_err(Fault::from)
    }
}

/// Makes `place` and all mounts below it read-only; one that does not exist is left out.
pub(super) fn make_readonly(place: &Place, image: RootFd<'_>) -> Result<(), Fault> {
    let target = match place.open(image) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        other => other?,
    };
    let copy = clone(target.as_fd(), c"", true)?;
    let change = Change {
        set: RDONLY,
        ..Change::default()
    };
    set_attributes(&copy, &change, true)?;
    attach(copy.as_fd(), target.as_fd()).map_err(Fault::from)
}

/// Nothing that is mounted or unmounted from here on is seen outside of our mount namespace.
pub(super) fn make_private() -> Result<(), Errno> {
    rustix::mount::mount_change(
        c"/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
}

/// Leaves every mount for an empty file system that nothing can be written to: the root of a process
/// that needs no file. The mount namespace must be private, and no other process's.
pub(super) fn leave_all() -> Result<(), Fault> {
    let fs = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [(c"mode", c"0555"), (c"nr_inodes", c"1"), (c"size", c"4k")] {
        rustix::mount::fsconfig_set_string(fs.as_fd(), key, value).on(key)?;
    }
    rustix::mount::fsconfig_create(fs.as_fd())?;
    let attributes = MountAttrFlags::from_bits_retain(attribute(RDONLY | NOSUID | NODEV | NOEXEC));
    let root = rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(root.as_fd(), c"", CWD, c"/", flags).on(c"/")?;
    // The old root alone.
    enter(root.as_fd(), 1).map_err(Fault::from)
}

/// The container's root becomes ours, and everything else goes away.
pub(super) fn pivot(rootfs: BorrowedFd<'_>) -> Result<(), Errno> {
    // The scratch, which lies on the old root, then the old root.
    enter(rootfs, 2)
}

/// The mount `rootfs` becomes the root; then the `above` mounts go away that lie on it.
fn enter(rootfs: BorrowedFd<'_>, above: u32) -> Result<(), Errno> {
    rustix::process::fchdir(rootfs)?;
    // pivot_root(2): with both names the same, the old root lies on top of the new one, and no
    // directory for it is needed in the image.
    rustix::process::pivot_root(c".", c".")?;
    for _mount in 0..above {
        rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    }
    rustix::process::chdir(c"/")?;
    // Above the root there is the root again: with whatever is mounted on it. If that is not what we
    // put there, the host is still within reach, and no container may start.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(c"/..", flags, Mode::empty())?;
    if wharf_sys::mount::id(&top)? == wharf_sys::mount::id(rootfs)? {
        Ok(())
    } else {
        Err(Errno::XDEV)
    }
}

/// Propagation of the root alone: the mounts below have theirs.
pub(super) fn set_root_propagation(propagation: u64) -> Result<(), Errno> {
    let root = open_root()?;
    let change = Change {
        propagation: propagation & !MS_REC,
        ..Change::default()
    };
    set_attributes(&root, &change, false)
}

/// The root of this process.
pub(super) fn open_root() -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(c"/", flags, Mode::empty())
}
