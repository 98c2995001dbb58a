//! The directories of the layer that is being written: found by descriptor, one component at a time.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::limits::{
    CORRECTION_BYTES_MAX, CORRECTIONS_MAX, DEPTH_MAX, DIRECTORY_BYTES_MAX, LINK_MAX, PATH_MAX,
    SYMLINKS_MAX,
};
use crate::unpack::attributes::Late;
use crate::unpack::error::{UnpackError, io, show};
use crate::unpack::path::join;

/// Directories kept open.
const OPEN_MAX: usize = 64;
/// Directories entered for one name, links and their `..` included.
const STEPS_MAX: usize = 16_384;
/// What a directory gets that no entry describes.
const IMPLIED_MODE: u32 = 0o755;
/// What a directory takes in memory beside its name, roughly.
const STATE_BYTES: usize = 128;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// A directory of the layer.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) fd: OwnedFd,
    /// Where it really is: no links in it.
    pub(crate) path: Vec<u8>,
}

/// What is remembered of a directory until the end of the layer.
#[derive(Debug, Default)]
pub(crate) struct DirState {
    /// No entry described it.
    pub(crate) implied: bool,
    /// It hides its namesakes in lower layers.
    pub(crate) opaque: bool,
    /// It holds whiteouts.
    pub(crate) whiteouts: bool,
    /// What is set when everything in it is written.
    pub(crate) late: Late,
}

/// Why a directory is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To put something there: missing directories are made.
    Write,
    /// To hide something there: under a whiteout nothing is left to hide.
    Hide,
    /// To find something that must be there.
    Find,
}

/// All directories of the layer.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    discard: BorrowedFd<'a>,
    discarded: u64,
    root: Rc<Place>,
    /// Open directories by the name under which an entry asked for them.
    open: HashMap<Vec<u8>, Rc<Place>>,
    /// Every directory by its real path.
    pub(crate) states: BTreeMap<Vec<u8>, DirState>,
    /// What `states` takes.
    bytes: usize,
    implied: usize,
    /// Bytes of the names that become facts of the layer.
    corrections: usize,
    opaque_mark: &'static str,
}

impl<'a> Places<'a> {
    pub(crate) fn new(
        tree: BorrowedFd<'_>,
        discard: BorrowedFd<'a>,
        opaque_mark: &'static str,
    ) -> Result<Self, UnpackError> {
        let fd = fs::openat(tree, ".", DIRECTORY, Mode::empty()).map_err(io("open", b"."))?;
        Ok(Self {
            discard,
            discarded: 0,
            root: Rc::new(Place {
                fd,
                path: Vec::new(),
            }),
            open: HashMap::new(),
            states: BTreeMap::new(),
            bytes: 0,
            implied: 0,
            corrections: 0,
            opaque_mark,
        })
    }

    /// The directory that `parts` name, links resolved within the layer. `None`: it is not there
    /// (only when looking), or a whiteout hides it (only when hiding).
    pub(crate) fn directory(
        &mut self,
        parts: &[&[u8]],
        purpose: Purpose,
    ) -> Result<Option<Rc<Place>>, UnpackError> {
        if parts.is_empty() {
            return Ok(Some(Rc::clone(&self.root)));
        }
        let name = parts.join(&b'/');
        if let Some(place) = self.open.get(&name) {
            return Ok(Some(Rc::clone(place)));
        }
        // Usually the parent of the wanted directory was the last one asked for.
        let cut = name.len() - parts.last().map_or(0, |p| p.len());
        let near = name[..cut]
            .strip_suffix(b"/")
            .and_then(|parent| self.open.get(parent));
        let (from, rest) = match near {
            Some(parent) => (Rc::clone(parent), &parts[parts.len() - 1..]),
            None => (Rc::clone(&self.root), parts),
        };
        let found = self.walk(from, rest, purpose, &name)?;
        if let Some(place) = &found {
            if self.open.len() >= OPEN_MAX {
                self.open.clear();
            }
            self.open.insert(name, Rc::clone(place));
        }
        Ok(found)
    }

    fn walk(
        &mut self,
        from: Rc<Place>,
        parts: &[&[u8]],
        purpose: Purpose,
        whole: &[u8],
    ) -> Result<Option<Rc<Place>>, UnpackError> {
        let mut pending: Vec<Vec<u8>> = parts.iter().rev().map(|p| p.to_vec()).collect();
        let mut at = from;
        let mut links = 0;
        let mut steps = 0;
        while let Some(part) = pending.pop() {
            steps += 1;
            if steps > STEPS_MAX {
                let why = "its directory is too many steps away";
                return Err(UnpackError::Name {
                    path: show(whole),
                    why,
                });
            }
            // Only targets of links hold these; above the root there is nothing.
            if part == b".." {
                let real = at.path.clone();
                let mut up: Vec<Vec<u8>> = real
                    .split(|b| *b == b'/')
                    .rev()
                    .skip(1)
                    .map(<[u8]>::to_vec)
                    .collect();
                up.retain(|p| !p.is_empty());
                pending.extend(up);
                at = Rc::clone(&self.root);
                continue;
            }
            match fs::openat2(&at.fd, &part[..], DIRECTORY, Mode::empty(), BENEATH) {
                Ok(fd) => at = Self::enter(&at, &part, fd)?,
                Err(Errno::NOENT) if purpose == Purpose::Find => return Ok(None),
                Err(Errno::NOENT) => at = self.imply(&at, &part, false)?,
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    let stat = fs::statat(&at.fd, &part[..], AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(io("look at", whole))?;
                    if is_whiteout(&stat) {
                        match purpose {
                            Purpose::Write => at = self.imply(&at, &part, true)?,
                            Purpose::Hide | Purpose::Find => return Ok(None),
                        }
                        continue;
                    }
                    let kind = FileType::from_raw_mode(stat.st_mode);
                    let why = match kind {
                        FileType::Symlink if links < SYMLINKS_MAX => {
                            links += 1;
                            at = self.follow(&at, &part, &mut pending)?;
                            continue;
                        }
                        FileType::Symlink => "too many symbolic links",
                        _ => "a parent is not a directory",
                    };
                    return Err(UnpackError::Name {
                        path: show(whole),
                        why,
                    });
                }
                Err(e) => return Err(io("open", whole)(e)),
            }
        }
        Ok(Some(at))
    }

    /// Puts the components of a link's target in front; returns where they begin.
    fn follow(
        &self,
        at: &Rc<Place>,
        part: &[u8],
        pending: &mut Vec<Vec<u8>>,
    ) -> Result<Rc<Place>, UnpackError> {
        let target = fs::readlinkat(&at.fd, part, Vec::new()).map_err(io("read link", part))?;
        let target = target.to_bytes();
        let parts = target
            .split(|b| *b == b'/')
            .filter(|p| !matches!(*p, b"" | b"."));
        let mut parts: Vec<_> = parts.map(<[u8]>::to_vec).collect();
        parts.reverse();
        pending.extend(parts);
        Ok(if target.starts_with(b"/") {
            Rc::clone(&self.root)
        } else {
            Rc::clone(at)
        })
    }

    fn enter(parent: &Place, name: &[u8], fd: OwnedFd) -> Result<Rc<Place>, UnpackError> {
        let path = join(&parent.path, name);
        check_real(&path)?;
        Ok(Rc::new(Place { fd, path }))
    }

    /// Makes a directory that no entry described (so far); in place of a whiteout an opaque one.
    fn imply(&mut self, at: &Place, name: &[u8], whiteout: bool) -> Result<Rc<Place>, UnpackError> {
        let path = join(&at.path, name);
        check_real(&path)?;
        self.charge_correction(&path)?;
        self.implied += 1;
        if self.implied > CORRECTIONS_MAX {
            let limit = CORRECTIONS_MAX;
            return Err(UnpackError::Limit {
                what: "implied directories",
                limit,
            });
        }
        if whiteout {
            fs::unlinkat(&at.fd, name, AtFlags::empty()).map_err(io("replace", &path))?;
        }
        let mode = Mode::from_raw_mode(IMPLIED_MODE);
        fs::mkdirat(&at.fd, name, mode).map_err(io("create", &path))?;
        let fd = fs::openat2(&at.fd, name, DIRECTORY, Mode::empty(), BENEATH)
            .map_err(io("open", &path))?;
        fs::fchmod(&fd, mode).map_err(io("chmod", &path))?;
        self.remember(&path, true, Late::default())?;
        if whiteout {
            self.make_opaque(&path, fd.as_fd())?;
        }
        Self::enter(at, name, fd)
    }

    /// Notes a directory that was made or described.
    pub(crate) fn remember(
        &mut self,
        path: &[u8],
        implied: bool,
        late: Late,
    ) -> Result<(), UnpackError> {
        check_real(path)?;
        self.bytes = self.bytes.saturating_add(late.bytes());
        let state = self.state(path)?;
        state.implied = implied;
        let old = std::mem::replace(&mut state.late, late);
        self.bytes = self.bytes.saturating_sub(old.bytes());
        Ok(())
    }

    /// What is remembered of a directory, within the budget.
    fn state(&mut self, path: &[u8]) -> Result<&mut DirState, UnpackError> {
        if !self.states.contains_key(path) {
            self.bytes = self.bytes.saturating_add(path.len() + STATE_BYTES);
        }
        if self.bytes > DIRECTORY_BYTES_MAX {
            return Err(UnpackError::Limit {
                what: "bytes of directory names",
                limit: DIRECTORY_BYTES_MAX,
            });
        }
        Ok(self.states.entry(path.to_vec()).or_default())
    }

    /// Notes that a directory holds whiteouts.
    pub(crate) fn hold_whiteouts(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        if !self.states.get(path).is_some_and(|state| state.whiteouts) {
            self.charge_correction(path)?;
            self.state(path)?.whiteouts = true;
        }
        Ok(())
    }

    fn charge_correction(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        self.corrections = self.corrections.saturating_add(path.len());
        if self.corrections > CORRECTION_BYTES_MAX {
            return Err(UnpackError::Limit {
                what: "bytes of names of implied directories and directories with whiteouts",
                limit: CORRECTION_BYTES_MAX,
            });
        }
        Ok(())
    }

    /// Marks a directory so that it hides its namesakes below.
    pub(crate) fn make_opaque(
        &mut self,
        path: &[u8],
        dir: BorrowedFd<'_>,
    ) -> Result<(), UnpackError> {
        fs::fsetxattr(dir, self.opaque_mark, b"y", fs::XattrFlags::empty())
            .map_err(io("mark as opaque", path))?;
        self.state(path)?.opaque = true;
        Ok(())
    }

    /// Takes away what an entry replaces. Returns whether it was a whiteout.
    pub(crate) fn clear(&mut self, place: &Place, name: &[u8]) -> Result<bool, UnpackError> {
        let path = join(&place.path, name);
        let stat = match fs::statat(&place.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            stat => stat.map_err(io("look at", &path))?,
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            self.discarded += 1;
            let new = self.discarded.to_string();
            fs::renameat(&place.fd, name, self.discard, new).map_err(io("replace", &path))?;
            self.forget_below(&path);
        } else {
            fs::unlinkat(&place.fd, name, AtFlags::empty()).map_err(io("replace", &path))?;
        }
        // A directory or link that was on the way to another is no more.
        self.forget_open();
        Ok(is_whiteout(&stat))
    }

    /// Opens a directory by its real path.
    pub(crate) fn open_real(&self, path: &[u8]) -> Result<OwnedFd, UnpackError> {
        // As few calls as the kernel's limit of a path allows.
        let mut at: Option<OwnedFd> = None;
        let mut rest = if path.is_empty() { b"." } else { path };
        while !rest.is_empty() {
            let (piece, after) = match rest.get(..LINK_MAX) {
                None => (rest, &rest[rest.len()..]),
                Some(most) => {
                    let end = most.iter().rposition(|b| *b == b'/').unwrap_or(LINK_MAX);
                    (&rest[..end], rest.get(end + 1..).unwrap_or_default())
                }
            };
            let from = at.as_ref().unwrap_or(&self.root.fd);
            let fd = fs::openat2(from, piece, DIRECTORY, Mode::empty(), BENEATH);
            at = Some(fd.map_err(io("open", path))?);
            rest = after;
        }
        at.ok_or_else(|| io("open", path)(Errno::NOENT))
    }

    /// Whether nothing of lower layers is seen in a directory.
    pub(crate) fn is_covered(&self, path: &[u8]) -> bool {
        let opaque = |dir: &[u8]| self.states.get(dir).is_some_and(|state| state.opaque);
        let mut above = path.iter().enumerate().filter(|(_, b)| **b == b'/');
        opaque(b"") || opaque(path) || above.any(|(at, _)| opaque(&path[..at]))
    }

    fn forget_below(&mut self, path: &[u8]) {
        // '0' is the next byte after '/'.
        let (first, end) = (join(path, b""), [path, b"0"].concat());
        let below = self.states.range(first..end).map(|(dir, _)| dir.clone());
        let gone: Vec<_> = std::iter::once(path.to_vec()).chain(below).collect();
        for dir in gone {
            if let Some(state) = self.states.remove(&dir) {
                let bytes = dir.len() + STATE_BYTES + state.late.bytes();
                self.bytes = self.bytes.saturating_sub(bytes);
            }
        }
    }

    pub(crate) fn forget_open(&mut self) {
        self.open.clear();
    }
}

/// Links lengthen what a name leads to: the real path has the limits of a name.
fn check_real(path: &[u8]) -> Result<(), UnpackError> {
    let deep = || path.iter().filter(|b| **b == b'/').count() >= DEPTH_MAX;
    if path.len() > PATH_MAX || deep() {
        return Err(UnpackError::Name {
            path: show(&path[..path.len().min(LINK_MAX)]),
            why: "the directory that links lead to is deeper than 2000 parts or 32 KiB",
        });
    }
    Ok(())
}

/// A character device 0:0.
pub(crate) fn is_whiteout(stat: &fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}
