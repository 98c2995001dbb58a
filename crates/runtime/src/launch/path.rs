//! Paths in a container: prepared as component strings, opened beneath a directory descriptor.
//!
//! A symbolic link in the image can lead anywhere in the image and nowhere else: every look-up is an
//! `openat2(2)` that takes the descriptor for its root. What a link leads to and is missing is made
//! there, in the image, as the link says; what was opened is never named by a string again.

use std::ffi::{CStr, CString, NulError};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Bytes of a path with its end (`PATH_MAX`).
const PATH_BYTES: usize = 4096;
/// Bytes of a name with its end (`NAME_MAX` + 1).
const NAME_BYTES: usize = 256;
/// Links on the way to one place, as the kernel counts (path_resolution(7)).
const LINKS_MAX: u32 = 40;

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

    /// Opens the place; makes it, and the directories above it, when it is missing: where the links on
    /// the way lead to.
    pub(super) fn open_or_make(&self, root: RootFd<'_>, make: Make) -> Result<OwnedFd, Errno> {
        match self.open(root) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let real = Real::follow(self.path(), root)?;
        let (above, name) = real.split_last().ok_or(Errno::ISDIR)?;
        let (dir, name) = (make_all(above, root)?, Name::new(name)?);
        match make {
            Make::Directory => make_directory(dir.as_fd(), name.as_c_str())?,
            Make::File => make_file(dir.as_fd(), name.as_c_str())?,
        }
        RootFd::own(dir.as_fd()).open(name.as_c_str(), OFlags::PATH)
    }

    /// The directory above the place, made when it is missing, and the place's name in it.
    pub(super) fn parent<'fd>(&self, root: RootFd<'fd>) -> Result<(Dir<'fd>, &CStr), Errno> {
        let (last, above) = self.parts.split_last().ok_or(Errno::ISDIR)?;
        let Some(above) = above.last() else {
            return Ok((Dir::Root(root.dir), &last.name));
        };
        // Usually all is there: one call.
        let dir = match root.open(&above.path, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => make_all(Real::follow(&above.path, root)?.as_bytes(), root)?,
            other => Dir::Below(other?),
        };
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

/// A path without links: what another path leads to, also where nothing is yet. In memory of its own,
/// because a process between clone and exec may not ask for any.
struct Real {
    /// No slash at either end, 0 behind the end.
    bytes: [u8; PATH_BYTES],
    length: usize,
}

impl Real {
    /// Follows the links of `path`. Where nothing is, names are taken as they are, and `..` takes the
    /// one before it away: so every runtime reads a link that leads nowhere.
    fn follow(path: &CStr, root: RootFd<'_>) -> Result<Self, Errno> {
        let mut real = Self {
            bytes: [0; PATH_BYTES],
            length: 0,
        };
        let mut rest = Rest::new(path.to_bytes())?;
        let mut links = 0;
        let mut target = [0; PATH_BYTES];
        while let Some(name) = rest.next() {
            match name {
                b"." => continue,
                b".." => {
                    real.pop();
                    continue;
                }
                name => real.push(name)?,
            }
            let found = match root.open(real.as_c_str()?, OFlags::PATH | OFlags::NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            let stat = rustix::fs::fstat(&found)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
                continue;
            }
            links += 1;
            if links > LINKS_MAX {
                return Err(Errno::LOOP);
            }
            let length = rustix::fs::readlinkat_raw(&found, c"", &mut target[..])?;
            let target = target.get(..length).ok_or(Errno::NAMETOOLONG)?;
            match target.first() {
                Some(b'/') => real.clear(),
                _ => real.pop(),
            }
            rest.prepend(target)?;
        }
        Ok(real)
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn as_c_str(&self) -> Result<&CStr, Errno> {
        CStr::from_bytes_until_nul(&self.bytes).map_err(|_no_end| Errno::NAMETOOLONG)
    }

    /// What lies above, and the last name; `None` for the root.
    fn split_last(&self) -> Option<(&[u8], &[u8])> {
        let path = self.as_bytes();
        match path.iter().rposition(|b| *b == b'/') {
            Some(at) => Some((&path[..at], &path[at + 1..])),
            None if path.is_empty() => None,
            None => Some((b"", path)),
        }
    }

    fn push(&mut self, name: &[u8]) -> Result<(), Errno> {
        let start = self.length + usize::from(self.length > 0);
        let end = start + name.len();
        // With room for the end of the string.
        if end >= PATH_BYTES {
            return Err(Errno::NAMETOOLONG);
        }
        self.bytes[self.length] = b'/';
        self.bytes[start..end].copy_from_slice(name);
        self.length = end;
        Ok(())
    }

    fn pop(&mut self) {
        self.shorten(self.split_last().map_or(0, |(above, _)| above.len()));
    }

    fn clear(&mut self) {
        self.shorten(0);
    }

    fn shorten(&mut self, length: usize) {
        self.bytes[length..self.length].fill(0);
        self.length = length;
    }
}

/// What is still to be walked of a path; links are put before it.
struct Rest {
    /// At the end of the buffer, so that there is room before it.
    bytes: [u8; PATH_BYTES],
    start: usize,
}

impl Rest {
    fn new(path: &[u8]) -> Result<Self, Errno> {
        let mut rest = Self {
            bytes: [0; PATH_BYTES],
            start: PATH_BYTES,
        };
        rest.prepend(path)?;
        Ok(rest)
    }

    fn prepend(&mut self, path: &[u8]) -> Result<(), Errno> {
        let start = self.start.checked_sub(path.len() + 1);
        let start = start.ok_or(Errno::NAMETOOLONG)?;
        let slash = start + path.len();
        self.bytes[start..slash].copy_from_slice(path);
        self.bytes[slash] = b'/';
        self.start = start;
        Ok(())
    }

    /// The next name.
    fn next(&mut self) -> Option<&[u8]> {
        let skipped = self.bytes[self.start..].iter().position(|b| *b != b'/')?;
        let start = self.start + skipped;
        let name = &self.bytes[start..];
        let length = name.iter().position(|b| *b == b'/').unwrap_or(name.len());
        self.start = start + length;
        Some(&self.bytes[start..self.start])
    }
}

/// One name, to be given to the kernel.
struct Name([u8; NAME_BYTES]);

impl Name {
    fn new(name: &[u8]) -> Result<Self, Errno> {
        let mut bytes = [0; NAME_BYTES];
        if name.len() >= NAME_BYTES {
            return Err(Errno::NAMETOOLONG);
        }
        bytes[..name.len()].copy_from_slice(name);
        Ok(Self(bytes))
    }

    fn as_c_str(&self) -> &CStr {
        // There is an end: a name is shorter than its buffer.
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

/// Opens the directory `path`, which has no links, and makes what is missing of it.
fn make_all<'fd>(path: &[u8], root: RootFd<'fd>) -> Result<Dir<'fd>, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let mut dir = Dir::Root(root.dir);
    for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
        let name = Name::new(name)?;
        let there = RootFd::image(dir.as_fd()).without_links();
        let below = match there.open(name.as_c_str(), flags) {
            Err(Errno::NOENT) => {
                make_directory(dir.as_fd(), name.as_c_str())?;
                RootFd::own(dir.as_fd()).open(name.as_c_str(), flags)?
            }
            other => other?,
        };
        dir = Dir::Below(below);
    }
    Ok(dir)
}

fn make_directory(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
        // Someone else was quicker: opening it will tell.
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
            .unwrap();
        assert!(!outside.join("x").exists());
        assert!(
            root.join(outside.strip_prefix("/").unwrap())
                .join("x")
                .is_dir()
        );
        symlink("../../../../outside", root.join("up")).unwrap();
        place("/up/x").open_or_make(image, Make::Directory).unwrap();
        assert!(!outside.join("x").exists());
        assert!(root.join("outside/x").is_dir());
        place("/none/../../up2")
            .open_or_make(image, Make::Directory)
            .unwrap();
        assert!(root.join("up2").is_dir() && !root.join("none").exists());
    }

    #[test]
    fn what_a_link_leads_to_is_made_where_it_leads_in_the_image() {
        for (link, target, asked, made) in [
            ("run", "/far/run", "/run", "far/run"),
            ("run", "/far/run", "/run/a/b", "far/run/a/b"),
            ("a/b/link", "../c/d", "/a/b/link", "a/c/d"),
            ("a/b/link", "c//./d/", "/a/b/link/e", "a/b/c/d/e"),
            ("link", "none/../real", "/link", "real"),
            ("link", "../../../../etc/x", "/link", "etc/x"),
            ("link", "/", "/link/x", "x"),
            ("link", "..", "/link/x", "x"),
        ] {
            for make in [Make::File, Make::Directory] {
                let dir = tempfile::tempdir().unwrap();
                let root = dir.path().join("root");
                std::fs::create_dir_all(root.join(link).parent().unwrap()).unwrap();
                symlink(target, root.join(link)).unwrap();
                let fd = open(&root);
                let image = RootFd::image(fd.as_fd());
                let opened = place(asked).open_or_make(image, make).unwrap();
                let stat = rustix::fs::fstat(&opened).unwrap();
                let found = rustix::fs::stat(root.join(made)).unwrap();
                assert_eq!(stat.st_ino, found.st_ino, "{link} -> {target}: {asked}");
                assert!(!root.join("none").exists());
                let beside: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
                assert_eq!(beside.len(), 1, "nothing outside of the root");
                // And again, when it is there.
                place(asked).open_or_make(image, make).unwrap();
            }
        }
    }

    #[test]
    fn links_that_lead_in_circles_or_too_far_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        symlink("b/x", root.join("a")).unwrap();
        symlink("a", root.join("b")).unwrap();
        // Each of 60 leads to the next one, and the last one to nothing.
        for n in 0..60 {
            symlink(format!("long{}", n + 1), root.join(format!("long{n}"))).unwrap();
        }
        let far = "d/".repeat(1000);
        std::fs::write(root.join("file"), "").unwrap();
        let fd = open(root);
        let image = RootFd::image(fd.as_fd());
        let refused = |asked: &str| {
            place(asked)
                .open_or_make(image, Make::Directory)
                .unwrap_err()
        };
        assert_eq!(refused("/a"), Errno::LOOP);
        assert_eq!(refused("/a/c"), Errno::LOOP);
        assert_eq!(refused("/long0"), Errno::LOOP);
        assert_eq!(refused("/long0/x"), Errno::LOOP);
        assert_eq!(refused("/file/x"), Errno::NOTDIR);
        assert_eq!(refused(&format!("/{far}{far}{far}")), Errno::NAMETOOLONG);
        assert_eq!(
            refused(&format!("/{}", "n".repeat(256))),
            Errno::NAMETOOLONG
        );
        // Where no link may be followed none is.
        let plain = place("/long59").open_or_make(image.without_links(), Make::Directory);
        assert_eq!(plain.unwrap_err(), Errno::LOOP);
        assert!(!root.join("long60").exists());
        place("/long59")
            .open_or_make(image, Make::Directory)
            .unwrap();
        assert!(root.join("long60").is_dir());
    }
}
