//! One directory of one hierarchy: reading and writing its files, making and removing it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::CgroupError;

/// The longest file that is read; `memory.stat` has about 2 KiB, `cgroup.procs` 8 bytes a process.
const FILE_MAX: usize = 4 << 20;
/// The most cgroups below one of ours: what a container may make in a cgroup of its own.
const GROUPS_MAX: usize = 16 * 1024;

/// Which kind of hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// One directory of one hierarchy.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) version: Version,
    pub(crate) controllers: Vec<String>,
    pub(crate) path: PathBuf,
    /// Made for this cgroup, so removed and killed with it; false where a leaf lends its parent's.
    pub(crate) own: bool,
    directory: OwnedFd,
}

pub(crate) fn io_error(
    action: &'static str,
    path: &Path,
    source: impl Into<io::Error>,
) -> CgroupError {
    CgroupError::Io {
        action,
        path: path.to_owned(),
        source: source.into(),
    }
}

impl Group {
    /// Opens an existing directory; none when it does not exist.
    pub(crate) fn open(
        version: Version,
        controllers: &[String],
        path: PathBuf,
    ) -> Result<Option<Self>, CgroupError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(directory) => Ok(Some(Self {
                version,
                controllers: controllers.to_vec(),
                path,
                own: true,
                directory,
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(io_error("open", &path, error)),
        }
    }

    /// The same directory, lent to a leaf.
    pub(crate) fn lend(&self) -> Result<Self, CgroupError> {
        Ok(Self {
            version: self.version,
            controllers: self.controllers.clone(),
            path: self.path.clone(),
            own: false,
            directory: self
                .directory
                .try_clone()
                .map_err(|error| io_error("open", &self.path, error))?,
        })
    }

    pub(crate) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|known| known == controller)
    }

    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Opens a file of the directory.
    pub(crate) fn file(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.directory, name, flags, Mode::empty())
    }

    /// Reads a file as text.
    pub(crate) fn read(&self, name: &str) -> Result<String, Errno> {
        let file = self.file(name, OFlags::RDONLY)?;
        let mut text = Vec::new();
        read_at_start(&file, &mut text)?;
        String::from_utf8(text).map_err(|_not_text| Errno::ILSEQ)
    }

    /// Reads a file whose content is one number.
    pub(crate) fn number(&self, name: &str) -> Result<u64, Errno> {
        self.read(name)?
            .trim()
            .parse()
            .map_err(|_other| Errno::INVAL)
    }

    /// Writes a value by one `write(2)`, as the kernel wants it.
    pub(crate) fn write(&self, name: &str, value: &str) -> Result<(), Errno> {
        // A fake tree in tests has plain files: what is left of a longer value must go.
        let file = self.file(name, OFlags::WRONLY | OFlags::TRUNC)?;
        let value = if value.is_empty() { "\n" } else { value };
        rustix::io::write(&file, value.as_bytes()).map(drop)
    }

    /// The directory below this one.
    pub(crate) fn child(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The processes of this directory and those below it.
    pub(crate) fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        let mut found = Vec::new();
        let enter = |directory: BorrowedFd<'_>| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = rustix::fs::openat(directory, "cgroup.procs", flags, Mode::empty());
            let text = file.map_err(io::Error::from).and_then(|file| {
                let file = std::fs::File::from(file);
                io::read_to_string(file)
            });
            match text {
                Ok(text) => found.extend(text.lines().filter_map(|pid| pid.parse::<u32>().ok())),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        };
        self.walk("read the processes of", enter, |_, _| Ok(()))?;
        Ok(found)
    }

    /// Removes the directory and those below it; `false` when one is still in use.
    pub(crate) fn remove(&self) -> Result<bool, CgroupError> {
        let mut busy = false;
        let mut removed = |result| match result {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::BUSY) => {
                busy = true;
                Ok(())
            }
            Err(error) => Err(error),
        };
        let leave = |parent: BorrowedFd<'_>, name: &CStr| {
            let result = rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR);
            removed(result).map_err(io::Error::from)
        };
        self.walk("remove", |_| Ok(()), leave)?;
        removed(rustix::fs::rmdir(&self.path)).map_err(|e| io_error("remove", &self.path, e))?;
        Ok(!busy)
    }

    /// Visits the directory and all below it, each with `enter` before those below it, and all but
    /// the first with `leave`, by parent and name, after them. One that goes away meanwhile is none.
    ///
    /// Containers can nest cgroups deeper than a path is long, and than there are descriptors: it
    /// goes down by name and up by `..`. Cgroups are never moved, so that leads back.
    fn walk(
        &self,
        action: &'static str,
        mut enter: impl FnMut(BorrowedFd<'_>) -> io::Result<()>,
        mut leave: impl FnMut(BorrowedFd<'_>, &CStr) -> io::Result<()>,
    ) -> Result<(), CgroupError> {
        // The directories on the way down, and of each the siblings that are still to come.
        let mut above: Vec<(CString, Vec<CString>)> = Vec::new();
        let mut count = 1;
        let mut open = |parent: BorrowedFd<'_>, name: &CStr| -> io::Result<Option<_>> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(parent, name, flags, Mode::empty());
            let listed = opened.map_err(io::Error::from).and_then(|directory| {
                let below = children(&directory)?;
                Ok((directory, below))
            });
            match listed {
                Ok((directory, below)) => {
                    count += below.len();
                    if count > GROUPS_MAX {
                        return Err(io::Error::other(format!(
                            "it has more than {GROUPS_MAX} cgroups below it"
                        )));
                    }
                    enter(directory.as_fd())?;
                    Ok(Some((directory, below)))
                }
                Err(error) if is_gone(&error) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let walked = self.steps(&mut above, &mut open, &mut leave);
        walked.map_err(|error| {
            let below = above.iter().map(|(name, _)| name.to_string_lossy());
            let path = below.fold(self.path.clone(), |path, name| path.join(&*name));
            io_error(action, &path, error)
        })
    }
    /// The way of [`Self::walk`]; afterwards `above` says where it ended.
    fn steps(
        &self,
        above: &mut Vec<(CString, Vec<CString>)>,
        open: &mut Open<'_>,
        leave: &mut dyn FnMut(BorrowedFd<'_>, &CStr) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some((mut directory, mut below)) = open(self.directory.as_fd(), c".")? else {
            return Ok(());
        };
        loop {
            let Some(name) = below.pop() else {
                let Some((name, siblings)) = above.pop() else {
                    return Ok(());
                };
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                directory = rustix::fs::openat(&directory, c"..", flags, Mode::empty())?;
                leave(directory.as_fd(), &name)?;
                below = siblings;
                continue;
            };
            if let Some((child, of_child)) = open(directory.as_fd(), &name)? {
                above.push((name, std::mem::replace(&mut below, of_child)));
                directory = child;
            }
        }
    }
}

/// Opens a directory by parent and name and lists those in it; none when it is gone.
type Open<'a> =
    dyn FnMut(BorrowedFd<'_>, &CStr) -> io::Result<Option<(OwnedFd, Vec<CString>)>> + 'a;

/// The names of the directories in this one.
fn children(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Reads a file from its beginning; the buffer is emptied first.
pub(crate) fn read_at_start(file: &OwnedFd, text: &mut Vec<u8>) -> Result<(), Errno> {
    text.clear();
    let mut chunk = [0u8; 8192];
    while text.len() < FILE_MAX {
        let offset = u64::try_from(text.len()).map_err(|_never| Errno::OVERFLOW)?;
        let count = rustix::io::pread(file, &mut chunk[..], offset)?;
        let Some(read) = chunk.get(..count).filter(|read| !read.is_empty()) else {
            return Ok(());
        };
        text.extend_from_slice(read);
    }
    Err(Errno::FBIG)
}

fn is_gone(error: &io::Error) -> bool {
    // ENODEV: the directory was removed while its file was open.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(19)
}
