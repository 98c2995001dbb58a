//! Paths in a container: prepared as component strings, opened beneath a directory descriptor.
//!
//! A symbolic link in the image can lead anywhere in the image and nowhere else: every look-up is an
//! `openat2(2)` that takes the descriptor for its root. Nothing is created through a link that leads
//! nowhere, and what was opened is never named by a string again.

use std::ffi::{CStr, CString, NulError};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The root of a container's files: what paths are resolved beneath.
#[derive(Debug, Clone, Copy)]
pub(super) struct RootFd<'fd> {
    dir: BorrowedFd<'fd>,
    resolve: ResolveFlags,
}

impl<'fd> RootFd<'fd> {
    /// The root of an image: links are followed as if it were `/`.
    pub(super) fn image(dir: BorrowedFd<'fd>) -> Self {
        Self {
            dir,
            resolve: ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS),
        }
    }

    /// A file system that we have just made: it has no links and no mounts that we would follow.
    pub(super) fn own(dir: BorrowedFd<'fd>) -> Self {
        Self {
            dir,
            resolve: ResolveFlags::BENEATH
                .union(ResolveFlags::NO_SYMLINKS)
                .union(ResolveFlags::NO_XDEV),
        }
    }

    /// The same root, but no link is followed.
    pub(super) fn without_links(self) -> Self {
        Self {
            resolve: self.resolve.union(ResolveFlags::NO_SYMLINKS),
            ..self
        }
    }

    /// Opens `path` as it is.
    pub(super) fn open(self, path: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
        // EAGAIN: something below was renamed meanwhile, and the kernel could not be sure of `..`.
        for _attempt in 0..16 {
            let opened = rustix::fs::openat2(
                self.dir,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                self.resolve,
            );
            match opened {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }
}

/// What lies between the root and a place, ready to be walked without memory of its own.
#[derive(Debug)]
pub(super) struct Place {
    /// As the plan has it, for messages.
    pub(super) shown: CString,
    /// Relative to the root: `dev`, then `dev/pts`; empty for the root itself.
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    /// The path down to here.
    path: CString,
    /// The last component alone.
    name: CString,
}

/// What is to be made where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Make {
    Directory,
    File,
}

impl Place {
    /// Splits `path`; `.` and empty components are left out, `..` takes the component before it away
    /// (as runc cleans destinations), so nothing above the root can be named.
    pub(super) fn new(path: &[u8]) -> Result<Self, NulError> {
        let mut parts: Vec<Part> = Vec::new();
        for name in path.split(|b| *b == b'/') {
            if name.is_empty() || name == b"." {
                continue;
            }
            if name == b".." {
                parts.pop();
                continue;
            }
            let mut down = parts
                .last()
                .map_or(Vec::new(), |p| p.path.as_bytes().to_vec());
            if !down.is_empty() {
                down.push(b'/');
            }
            down.extend_from_slice(name);
            parts.push(Part {
                path: CString::new(down)?,
                name: CString::new(name)?,
            });
        }
        Ok(Self {
            shown: CString::new(path)?,
            parts,
        })
    }

    /// As [`Self::new`], but called `shown` in messages.
    pub(super) fn shown_as(path: &[u8], shown: &[u8]) -> Result<Self, NulError> {
        Ok(Self {
            shown: CString::new(shown)?,
            ..Self::new(path)?
        })
    }

    /// The last component; `None` for the root.
    pub(super) fn name(&self) -> Option<&CStr> {
        self.parts.last().map(|p| p.name.as_c_str())
    }

    fn path(&self) -> &CStr {
        self.parts.last().map_or(c".", |p| p.path.as_c_str())
    }

    /// Opens the place as a handle (`O_PATH`).
    pub(super) fn open(&self, root: RootFd<'_>) -> Result<OwnedFd, Errno> {
        root.open(self.path(), OFlags::PATH)
    }

    /// Opens the place as a directory to be read.
    pub(super) fn read_dir(&self, root: RootFd<'_>) -> Result<OwnedFd, Errno> {
        root.open(self.path(), OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Opens the place; makes it, and the directories above it, when it is missing.
    pub(super) fn open_or_make(&self, root: RootFd<'_>, make: Make) -> Result<OwnedFd, Errno> {
        match self.open(root) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let (parent, name) = self.parent(root)?;
        match make {
            Make::Directory => make_directory(parent.as_fd(), name)?,
            Make::File => make_file(parent.as_fd(), name)?,
        }
        RootFd::own(parent.as_fd()).open(name, OFlags::PATH)
    }

    /// The directory above the place, made when it is missing, and the place's name in it.
    pub(super) fn parent<'fd>(&self, root: RootFd<'fd>) -> Result<(Dir<'fd>, &CStr), Errno> {
        let (last, above) = self.parts.split_last().ok_or(Errno::ISDIR)?;
        let mut dir = Dir::Root(root.dir);
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        // Usually all is there: one call.
        if let Some(direct) = above.last() {
            match root.open(&direct.path, flags) {
                Ok(dir) => return Ok((Dir::Below(dir), &last.name)),
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
        for part in above {
            let below = match root.open(&part.path, flags) {
                Err(Errno::NOENT) => {
                    make_directory(dir.as_fd(), &part.name)?;
                    RootFd::own(dir.as_fd()).open(&part.name, flags)?
                }
                other => other?,
            };
            dir = Dir::Below(below);
        }
        Ok((dir, &last.name))
    }
}

/// A directory beneath a root, or the root itself.
#[derive(Debug)]
pub(super) enum Dir<'fd> {
    Root(BorrowedFd<'fd>),
    Below(OwnedFd),
}

impl AsFd for Dir<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => *fd,
            Self::Below(fd) => fd.as_fd(),
        }
    }
}

fn make_directory(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
        // Someone else was quicker, or it is a link that leads nowhere: opening it will tell.
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

fn make_file(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
    match rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644)) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn open(dir: &Path) -> OwnedFd {
        rustix::fs::open(dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    fn place(path: &str) -> Place {
        Place::new(path.as_bytes()).unwrap()
    }

    #[test]
    fn missing_directories_are_made_beneath_links_of_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        std::fs::create_dir_all(root.join("real")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        symlink("/real", root.join("link")).unwrap();
        let fd = open(&root);
        let image = RootFd::image(fd.as_fd());
        place("/link/a/b/c")
            .open_or_make(image, Make::Directory)
            .unwrap();
        place("/link/f").open_or_make(image, Make::File).unwrap();
        assert!(root.join("real/a/b/c").is_dir());
        assert!(root.join("real/f").is_file());
        // A link that leads out leads to the same path in the image: there it is made.
        symlink(&outside, root.join("out")).unwrap();
        place("/out/x")
            .open_or_make(image, Make::Directory)
            .unwrap_err();
        assert!(!outside.join("x").exists());
        symlink("../../../../outside", root.join("up")).unwrap();
        place("/up/x")
            .open_or_make(image, Make::Directory)
            .unwrap_err();
        assert!(!outside.join("x").exists());
        place("/none/../../up2")
            .open_or_make(image, Make::Directory)
            .unwrap();
        assert!(root.join("up2").is_dir() && !root.join("none").exists());
    }

    #[test]
    fn nothing_is_made_through_a_link_that_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/missing", dir.path().join("dangling")).unwrap();
        let fd = open(dir.path());
        let image = RootFd::image(fd.as_fd());
        for make in [Make::File, Make::Directory] {
            place("/dangling").open_or_make(image, make).unwrap_err();
        }
        assert!(!dir.path().join("missing").exists());
    }
}
