//! Corrections that only a whole stack of layers can know.
//!
//! Overlayfs shows the attributes of the top-most layer that has a directory. A layer whose tar
//! holds `tmp/x` but no `tmp/` would therefore turn 1777 into 0755; and a whiteout in a directory
//! that no other layer has is visible as a broken entry, because overlayfs filters whiteouts only
//! where it merges. Both are cured by one more layer on top that holds nothing but the directories
//! concerned, with the right attributes. So layers stay shared by their diff ID, whatever is below.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::layout::DIRECTORY;
use crate::record::{LayerFacts, LayerPath};

/// Names of extended attributes of one directory.
const NAMES_MAX: usize = 64 * 1024;
/// One extended attribute's value; the kernel's limit.
const VALUE_MAX: usize = 64 * 1024;
/// Where overlayfs keeps its own marks, as root and inside user namespaces.
const MARKS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// One layer of a stack.
#[derive(Debug)]
pub(crate) struct Lower<'a> {
    pub(crate) tree: BorrowedFd<'a>,
    pub(crate) facts: &'a LayerFacts,
}

/// What a directory must look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, i64),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Attributes {
    /// What an implied directory gets without knowledge of other layers.
    fn implied() -> Self {
        Self {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            xattrs: BTreeMap::new(),
        }
    }

    fn differ_from_implied(&self) -> bool {
        (self.mode, self.uid, self.gid) != (0o755, 0, 0) || !self.xattrs.is_empty()
    }

    fn of(dir: &OwnedFd) -> Result<Self, Errno> {
        let stat = fs::fstat(dir)?;
        let mut xattrs = BTreeMap::new();
        let mut names = vec![0_u8; NAMES_MAX];
        let n = match fs::flistxattr(dir, names.as_mut_slice()) {
            Err(Errno::OPNOTSUPP) => 0,
            n => n?,
        };
        for name in names[..n].split(|b| *b == 0).filter(|n| !n.is_empty()) {
            if MARKS.iter().any(|mark| name.starts_with(mark)) {
                continue;
            }
            let mut value = vec![0_u8; VALUE_MAX];
            let n = fs::fgetxattr(dir, name, value.as_mut_slice())?;
            value.truncate(n);
            xattrs.insert(name.to_vec(), value);
        }
        let nanos = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
        Ok(Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, nanos),
            xattrs,
        })
    }
}

/// The directories that a stack, top first, needs on top; parents before children. Usually none.
pub(crate) fn plan(stack: &[Lower<'_>]) -> Result<BTreeMap<Vec<u8>, Attributes>, Errno> {
    let mut wanted = BTreeMap::new();
    let candidates: BTreeSet<&LayerPath> = stack
        .iter()
        .flat_map(|lower| lower.facts.implied.iter().chain(&lower.facts.whiteouts_in))
        .collect();
    if candidates.is_empty() {
        return Ok(wanted);
    }
    let set = |paths: &'_ [LayerPath]| paths.iter().cloned().collect::<HashSet<_>>();
    let implied: Vec<_> = stack
        .iter()
        .map(|lower| set(&lower.facts.implied))
        .collect();
    let marked: Vec<_> = stack
        .iter()
        .map(|lower| set(&lower.facts.whiteouts_in))
        .collect();
    for path in candidates {
        // The root is always merged, and the runtime fixes its attributes.
        if path.0.is_empty() {
            continue;
        }
        let holders = holders(stack, &path.0)?;
        let Some((top, _)) = holders.first() else {
            continue;
        };
        let truth = attributes(&holders, &implied, path)?;
        let faked = implied[*top].contains(path) && truth.differ_from_implied();
        let ghosts = holders.len() == 1 && marked[*top].contains(path);
        if !faked && !ghosts {
            continue;
        }
        for (at, _) in path.0.iter().enumerate().filter(|(_, b)| **b == b'/') {
            let parent = LayerPath(path.0[..at].to_vec());
            if let Entry::Vacant(entry) = wanted.entry(parent.0.clone()) {
                let held = self::holders(stack, &parent.0)?;
                entry.insert(attributes(&held, &implied, &parent)?);
            }
        }
        wanted.insert(path.0.clone(), truth);
    }
    Ok(wanted)
}

/// Writes the planned directories below `tree`.
pub(crate) fn write(
    tree: BorrowedFd<'_>,
    plan: &BTreeMap<Vec<u8>, Attributes>,
) -> Result<(), Errno> {
    let mut made = Vec::new();
    for (path, attributes) in plan {
        let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => (open(tree, &path[..at])?, &path[at + 1..]),
            None => (Some(reopen(tree)?), &path[..]),
        };
        let parent = parent.ok_or(Errno::NOENT)?;
        fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700))?;
        let dir = fs::openat(&parent, name, DIRECTORY, Mode::empty())?;
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        fs::fchown(&dir, Some(uid), Some(gid))?;
        for (name, value) in &attributes.xattrs {
            fs::fsetxattr(&dir, name.as_slice(), value, XattrFlags::empty())?;
        }
        fs::fchmod(&dir, Mode::from_raw_mode(attributes.mode))?;
        made.push((path, attributes.mtime));
    }
    for (path, (tv_sec, tv_nsec)) in made {
        let time = Timespec { tv_sec, tv_nsec };
        if let Some(dir) = open(tree, path)? {
            fs::futimens(
                &dir,
                &Timestamps {
                    last_access: time,
                    last_modification: time,
                },
            )?;
        }
    }
    Ok(())
}

type Holder = (usize, OwnedFd);

/// The layers, top first, in which `path` is a directory that can be seen.
fn holders(stack: &[Lower<'_>], path: &[u8]) -> Result<Vec<Holder>, Errno> {
    let mut found = Vec::new();
    for (at, lower) in stack.iter().enumerate() {
        let mut opaque = false;
        let mut dir = reopen(lower.tree)?;
        let mut here = true;
        for name in path.split(|b| *b == b'/') {
            match fs::openat(&dir, name, DIRECTORY, Mode::empty()) {
                Ok(next) => {
                    opaque |= is_opaque(&next);
                    dir = next;
                }
                Err(Errno::NOENT) => {
                    here = false;
                    break;
                }
                // A whiteout, a file, a link: it hides what is below.
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(found),
                Err(e) => return Err(e),
            }
        }
        if here {
            found.push((at, dir));
        }
        if opaque {
            break;
        }
    }
    Ok(found)
}

/// The attributes that a directory got from the top-most tar that names it.
fn attributes(
    holders: &[Holder],
    implied: &[HashSet<LayerPath>],
    path: &LayerPath,
) -> Result<Attributes, Errno> {
    let named = holders.iter().find(|(at, _)| !implied[*at].contains(path));
    named.map_or_else(|| Ok(Attributes::implied()), |(_, dir)| Attributes::of(dir))
}

fn is_opaque(dir: &OwnedFd) -> bool {
    MARKS.iter().any(|mark| {
        let name = [mark, b"opaque".as_slice()].concat();
        let mut value = [0_u8; 1];
        fs::fgetxattr(dir, name.as_slice(), value.as_mut_slice()).is_ok_and(|n| n == 1)
            && value == *b"y"
    })
}

fn reopen(tree: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    fs::openat(tree, ".", DIRECTORY, Mode::empty())
}

fn open(tree: BorrowedFd<'_>, path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    let mut dir = reopen(tree)?;
    for name in path.split(|b| *b == b'/') {
        match fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            other => other?,
        };
        dir = fs::openat(dir.as_fd(), name, DIRECTORY, Mode::empty())?;
    }
    Ok(Some(dir))
}
