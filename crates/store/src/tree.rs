//! Walks over whole directory trees by descriptor: measuring, and removing without recursion.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, Dir, FileType, Mode};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::layout::DIRECTORY;

/// How deep a tree is measured: each level holds a descriptor while it is walked.
const MEASURE_DEPTH: usize = 256;

/// Space on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes of allocated blocks.
    pub bytes: u64,
    /// Files, directories and everything else that has an inode.
    pub inodes: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.inodes = self.inodes.saturating_add(other.inodes);
    }
}

/// Measures what lies below `dir`, itself included. Deeper than 256 levels nothing is counted.
pub(crate) fn measure(dir: BorrowedFd<'_>) -> Result<Usage, Errno> {
    let mut total = Usage::default();
    let mut seen_links = std::collections::HashSet::new();
    let top = fs::fstat(dir)?;
    add(&mut total, &top);
    let mut stack: Vec<Dir> = vec![Dir::read_from(dir)?];
    loop {
        let depth = stack.len();
        let Some(current) = stack.last_mut() else {
            return Ok(total);
        };
        let Some(entry) = current.read() else {
            stack.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        // What vanishes while a container works in it is not an error.
        let parent = current.fd()?;
        let Ok(stat) = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !is_dir && stat.st_nlink > 1 && !seen_links.insert(stat.st_ino) {
            continue;
        }
        add(&mut total, &stat);
        if is_dir
            && depth < MEASURE_DEPTH
            && let Ok(fd) = fs::openat(parent, name, DIRECTORY, Mode::empty())
        {
            stack.push(Dir::new(fd)?);
        }
    }
}

fn add(total: &mut Usage, stat: &fs::Stat) {
    let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
    *total += Usage {
        bytes: blocks.saturating_mul(512),
        inodes: 1,
    };
}

/// Removes an entry of `room` and everything below it.
///
/// A directory found inside is first moved up into `room` under a fresh name, so that the depth of
/// the tree costs neither stack nor descriptors. `pace` is asked after each removed entry; `false`
/// stops, and what is left is found again in `room` later.
///
/// # Errors
///
/// The first refusal of the kernel; entries that vanish meanwhile are fine.
pub(crate) fn remove(
    room: BorrowedFd<'_>,
    name: &str,
    fresh: &mut dyn FnMut() -> String,
    pace: &mut dyn FnMut() -> bool,
) -> Result<(), Errno> {
    let mut work = vec![name.to_owned()];
    while let Some(name) = work.pop() {
        match fs::unlinkat(room, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(e) => return Err(e),
        }
        let dir = fs::openat(room, &name, DIRECTORY, Mode::empty())?;
        if !empty(room, &dir, fresh, pace, &mut work)? {
            return Ok(());
        }
        match fs::unlinkat(room, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Unlinks the files of `dir` and moves its directories into `room`; `false` when told to stop.
fn empty(
    room: BorrowedFd<'_>,
    dir: &OwnedFd,
    fresh: &mut dyn FnMut() -> String,
    pace: &mut dyn FnMut() -> bool,
    work: &mut Vec<String>,
) -> Result<bool, Errno> {
    // A directory changed while it is read may skip entries: repeat until a pass finds none.
    loop {
        let mut found = false;
        let mut entries = Dir::read_from(dir)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            found = true;
            match fs::unlinkat(dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    let moved = fresh();
                    fs::renameat(dir, name, room, &moved)?;
                    work.push(moved);
                }
                Err(e) => return Err(e),
            }
            if !pace() {
                return Ok(false);
            }
        }
        if !found {
            return Ok(true);
        }
    }
}

/// Opens a directory below `dir`.
pub(crate) fn open_below(dir: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    fs::openat(dir, name, DIRECTORY, Mode::empty())
}
