//! Corrections that only a whole stack of layers can know.
//!
//! Overlayfs shows the attributes of the top-most layer that has a directory. A layer whose tar
//! holds `tmp/x` but no `tmp/` would therefore turn 1777 into 0755; and a whiteout in a directory
//! that no other layer has is visible as a broken entry, because overlayfs filters whiteouts only
//! where it merges. Both are cured by one more layer on top that holds nothing but the directories
//! concerned, with the right attributes. So layers stay shared by their diff ID, whatever is below.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::contents::{Access, Contents, LayerPath};
use crate::layout::DIRECTORY;
use crate::record::LayerFacts;

/// Names of extended attributes of one directory.
const NAMES_MAX: usize = 64 * 1024;
/// One extended attribute's value; the kernel's limit.
const VALUE_MAX: usize = 64 * 1024;
/// An attribute that files created in a directory inherit.
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
/// Directories entered to look at one stack: about a minute.
const STEPS_MAX: usize = 20_000_000;
/// Directories that one stack may need on top.
const WANTED_MAX: usize = 100_000;
/// Bytes of their names and attributes.
const WANTED_BYTES_MAX: usize = 64 << 20;
/// Where overlayfs keeps its own marks, as root and inside user namespaces.
const MARKS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Why a stack cannot be corrected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FixError {
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] Errno),
    /// The stack is made to cost.
    #[error("more than {limit} {what}")]
    TooMuch {
        /// What is counted.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
}

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

    fn access(&self) -> Access {
        Access {
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
        }
    }

    fn bytes(&self) -> usize {
        self.xattrs.iter().map(|(k, v)| k.len() + v.len()).sum()
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
pub(crate) fn plan(stack: &[Lower<'_>]) -> Result<BTreeMap<Vec<u8>, Attributes>, FixError> {
    plan_within(stack, STEPS_MAX)
}

fn plan_within(
    stack: &[Lower<'_>],
    steps_max: usize,
) -> Result<BTreeMap<Vec<u8>, Attributes>, FixError> {
    let mut wanted = Wanted::default();
    let mut steps = Steps {
        left: steps_max,
        max: steps_max,
    };
    let candidates: BTreeSet<&LayerPath> = stack
        .iter()
        .flat_map(|lower| lower.facts.implied.iter().chain(&lower.facts.whiteouts_in))
        .collect();
    if candidates.is_empty() {
        return Ok(wanted.all);
    }
    let implied: Vec<HashSet<&[u8]>> = stack
        .iter()
        .map(|lower| lower.facts.implied.iter().map(|p| &p.0[..]).collect())
        .collect();
    let marked: Vec<HashSet<&[u8]>> = stack
        .iter()
        .map(|lower| lower.facts.whiteouts_in.iter().map(|p| &p.0[..]).collect())
        .collect();
    for path in candidates {
        // The root is always merged, and the runtime fixes its attributes.
        if path.0.is_empty() {
            continue;
        }
        let path = &path.0[..];
        let holders = holders(stack, path, &mut steps)?;
        let Some((top, _)) = holders.first() else {
            continue;
        };
        let truth = attributes(&holders, &implied, path)?;
        let faked = implied[*top].contains(path) && truth.differ_from_implied();
        let ghosts = holders.len() == 1 && marked[*top].contains(path);
        if !faked && !ghosts {
            continue;
        }
        for (at, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/') {
            let parent = &path[..at];
            if !wanted.all.contains_key(parent) {
                let held = self::holders(stack, parent, &mut steps)?;
                wanted.add(parent, attributes(&held, &implied, parent)?)?;
            }
        }
        wanted.add(path, truth)?;
    }
    Ok(wanted.all)
}

/// The work that may still be done.
struct Steps {
    left: usize,
    max: usize,
}

impl Steps {
    fn take(&mut self) -> Result<(), FixError> {
        self.left = self.left.checked_sub(1).ok_or(FixError::TooMuch {
            what: "look-ups of directories",
            limit: self.max,
        })?;
        Ok(())
    }
}

/// What was found to be needed.
#[derive(Default)]
struct Wanted {
    all: BTreeMap<Vec<u8>, Attributes>,
    bytes: usize,
}

impl Wanted {
    fn add(&mut self, path: &[u8], attributes: Attributes) -> Result<(), FixError> {
        let too_much = |what, limit| Err(FixError::TooMuch { what, limit });
        self.bytes = self
            .bytes
            .saturating_add(path.len().saturating_add(attributes.bytes()));
        self.all.insert(path.to_vec(), attributes);
        if self.all.len() > WANTED_MAX {
            return too_much("corrected directories", WANTED_MAX);
        }
        if self.bytes > WANTED_BYTES_MAX {
            let what = "bytes of names and attributes of corrected directories";
            return too_much(what, WANTED_BYTES_MAX);
        }
        Ok(())
    }
}

/// Writes the planned directories below `tree`, and the list of them.
pub(crate) fn write(
    tree: BorrowedFd<'_>,
    contents: &mut Contents,
    plan: &BTreeMap<Vec<u8>, Attributes>,
) -> std::io::Result<()> {
    let mut made = Vec::new();
    for (path, attributes) in plan {
        contents.directory(path, attributes.access(), false)?;
        let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => (open(tree, &path[..at])?, &path[at + 1..]),
            None => (Some(reopen(tree)?), &path[..]),
        };
        let parent = parent.ok_or(Errno::NOENT)?;
        fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700))?;
        let dir = fs::openat(&parent, name, DIRECTORY, Mode::empty())?;
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        fs::fchown(&dir, Some(uid), Some(gid))?;
        // What children inherit waits until they are made.
        let own = |name: &&Vec<u8>| name.as_slice() != DEFAULT_ACL;
        for (name, value) in attributes.xattrs.iter().filter(|(name, _)| own(name)) {
            fs::fsetxattr(&dir, name.as_slice(), value, XattrFlags::empty())?;
        }
        fs::fchmod(&dir, Mode::from_raw_mode(attributes.mode))?;
        made.push((path, attributes));
    }
    for (path, attributes) in made {
        let (tv_sec, tv_nsec) = attributes.mtime;
        let time = Timespec { tv_sec, tv_nsec };
        if let Some(dir) = open(tree, path)? {
            if let Some(acl) = attributes.xattrs.get(DEFAULT_ACL) {
                fs::fsetxattr(&dir, DEFAULT_ACL, acl, XattrFlags::empty())?;
            }
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
fn holders(stack: &[Lower<'_>], path: &[u8], steps: &mut Steps) -> Result<Vec<Holder>, FixError> {
    let mut found = Vec::new();
    for (at, lower) in stack.iter().enumerate() {
        let mut opaque = false;
        let mut dir = reopen(lower.tree)?;
        let mut here = true;
        for name in path.split(|b| *b == b'/') {
            steps.take()?;
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
                Err(e) => return Err(e.into()),
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
    implied: &[HashSet<&[u8]>],
    path: &[u8],
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_that_is_made_to_cost_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        let tree = std::fs::File::open(dir.path()).unwrap();
        let facts = LayerFacts {
            implied: vec![LayerPath(b"a/b/c".to_vec()), LayerPath(b"a/b".to_vec())],
            ..LayerFacts::default()
        };
        let lower = || Lower {
            tree: tree.as_fd(),
            facts: &facts,
        };
        let stack = [lower(), lower()];
        plan_within(&stack, 10).unwrap();
        let error = plan_within(&stack, 9).unwrap_err();
        assert!(error.to_string().contains("more than 9"), "{error}");
    }
}
