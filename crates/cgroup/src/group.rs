//! One directory of one hierarchy: reading and writing its files, making and removing it.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::CgroupError;

/// The longest file that is read; `memory.stat` has about 2 KiB, `cgroup.procs` 8 bytes a process.
const FILE_MAX: usize = 4 << 20;
/// How deep a tree of cgroups is searched.
const DEPTH_MAX: usize = 32;

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
        for directory in tree(&self.path)? {
            let file = directory.join("cgroup.procs");
            match std::fs::read_to_string(&file) {
                Ok(text) => found.extend(text.lines().filter_map(|pid| pid.parse::<u32>().ok())),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(io_error("read", &file, error)),
            }
        }
        Ok(found)
    }

    /// Removes the directory and those below it; `false` when one is still in use.
    pub(crate) fn remove(&self) -> Result<bool, CgroupError> {
        let mut directories = tree(&self.path)?;
        directories.reverse();
        for directory in directories {
            match rustix::fs::rmdir(&directory) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::BUSY) => return Ok(false),
                Err(error) => return Err(io_error("remove", &directory, error)),
            }
        }
        Ok(true)
    }
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

/// The directory and all below it, parents first; empty when it is gone.
fn tree(top: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let mut found = vec![top.to_owned()];
    let mut next = 0;
    let depth = top.components().count() + DEPTH_MAX;
    while let Some(directory) = found.get(next).cloned() {
        next += 1;
        if directory.components().count() > depth {
            continue;
        }
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(io_error("read", &directory, error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| io_error("read", &directory, error))?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}
