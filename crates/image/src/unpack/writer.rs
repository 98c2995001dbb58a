//! Writes one entry after the other. For each: create, data, owner, extended attributes, mode, times.
//!
//! ```text
//! .wh.x                     whiteout of x; a file x of the same layer wins, a directory becomes opaque
//! .wh.d, then d/ or d/x     d is opaque: nothing of a lower d shines through
//! .wh..wh..opq              its directory is opaque, wherever the mark stands in the tar
//! .wh..wh.*                 other marks of AUFS: skipped
//! whiteout in an opaque     removed at the end: there is nothing to hide
//! ```

use std::collections::BTreeSet;
use std::io::BufRead;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use wharf_store::{Access, Contents, Extents, LayerFacts, LayerPath};

use crate::limits::CORRECTIONS_MAX;
use crate::tar::{Entry, EntryKind, Reader};
use crate::unpack::attributes::{self, Late, Rights};
use crate::unpack::error::{UnpackError, io, show};
use crate::unpack::path::{components, join};
use crate::unpack::place::{Place, Places, Purpose, is_whiteout};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";
/// The unit in which common file systems give space.
const SPACE_UNIT: u64 = 4096;

/// Writes a layer.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    tree: BorrowedFd<'a>,
    places: Places<'a>,
    rights: Rights,
    facts: LayerFacts,
    contents: Contents,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(
        tree: BorrowedFd<'a>,
        discard: BorrowedFd<'a>,
        contents: Contents,
    ) -> Result<Self, UnpackError> {
        let rights = Rights::of_process();
        Ok(Self {
            tree,
            places: Places::new(tree, discard, rights.opaque_mark())?,
            rights,
            facts: LayerFacts::default(),
            contents,
        })
    }

    /// Writes one entry, with its data from `reader`.
    pub(crate) fn entry<R: BufRead>(
        &mut self,
        entry: &Entry,
        reader: &mut Reader<R>,
    ) -> Result<(), UnpackError> {
        let parts = components(&entry.path)?;
        let wrong = |why| UnpackError::Name {
            path: show(&entry.path),
            why,
        };
        let Some((name, parents)) = parts.split_last() else {
            return match entry.kind {
                // The root's attributes are the runtime's business.
                EntryKind::Directory => Ok(()),
                _ => Err(wrong("the root of a layer is a directory")),
            };
        };
        if *name == OPAQUE {
            return self.opaque(parents);
        }
        if parts.iter().any(|part| part.starts_with(AUFS)) {
            return Ok(());
        }
        if parents.iter().any(|part| part.starts_with(WHITEOUT)) {
            return Err(wrong("a whiteout has no children"));
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(wrong("a whiteout of nothing"));
            }
            return self.whiteout(parents, hidden, entry);
        }
        if matches!(entry.kind, EntryKind::Char { major: 0, minor: 0 }) {
            tracing::debug!(
                path = show(&entry.path),
                "a device 0:0 is taken for a whiteout"
            );
            return self.whiteout(parents, name, entry);
        }
        let Some(place) = self.places.directory(parents, Purpose::Write)? else {
            return Err(wrong("its directory cannot be made"));
        };
        match &entry.kind {
            EntryKind::File { size } => self.file(&place, name, entry, *size, reader)?,
            EntryKind::Directory => self.directory(&place, name, entry)?,
            EntryKind::HardLink(target) => self.hard_link(&place, name, entry, target)?,
            _ => self.special(&place, name, entry)?,
        }
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        place: &Place,
        name: &[u8],
        entry: &Entry,
        size: u64,
        reader: &mut Reader<R>,
    ) -> Result<(), UnpackError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let file = self.create(place, name, || fs::openat(&place.fd, name, flags, mode))?;
        let mut end = 0;
        let mut extents = Extents::default();
        while let Some(piece) = reader.next_piece()? {
            write_all(&file, piece.data, piece.offset).map_err(io("write", &entry.path))?;
            extents.add(piece.offset, piece.data);
            let length = u64::try_from(piece.data.len()).unwrap_or(u64::MAX);
            end = piece.offset.saturating_add(length);
            self.facts.content = self.facts.content.saturating_add(length);
            self.facts.usage.bytes = self.facts.usage.bytes.saturating_add(length);
        }
        if end < size {
            fs::ftruncate(&file, size).map_err(io("extend", &entry.path))?;
        }
        // The tail of the last block.
        let tail = end.next_multiple_of(SPACE_UNIT) - end;
        self.facts.usage.bytes = self.facts.usage.bytes.saturating_add(tail);
        self.count();
        self.facts.skipped += attributes::set_on_file(&file, entry, self.rights, true)?;
        let access = self.access(entry, || fs::fstat(&file))?;
        let path = join(&place.path, name);
        let noted = self.contents.file(&path, access, end.max(size), &extents);
        noted.map_err(note(&entry.path))
    }

    /// What `entry` made of a file that was created a moment ago; asked only where it is not what the
    /// entry says.
    fn access(
        &self,
        entry: &Entry,
        stat: impl FnOnce() -> Result<Stat, Errno>,
    ) -> Result<Access, UnpackError> {
        if self.rights.privileged && entry.xattrs.is_empty() {
            return Ok(Access {
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
            });
        }
        Ok(of(&stat().map_err(io("look at", &entry.path))?))
    }

    fn directory(&mut self, place: &Place, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let path = join(&place.path, name);
        let mode = Mode::from_raw_mode(entry.mode & 0o1777);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || fs::openat(&place.fd, name, flags, Mode::empty());
        let mut hides = false;
        let mut fresh = true;
        let dir = match fs::mkdirat(&place.fd, name, mode) {
            Ok(()) => open().map_err(io("open", &entry.path))?,
            Err(Errno::EXIST) => match open() {
                Ok(dir) => {
                    fresh = false;
                    dir
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    hides = self.places.clear(place, name)?;
                    fs::mkdirat(&place.fd, name, mode).map_err(io("create", &entry.path))?;
                    open().map_err(io("open", &entry.path))?
                }
                Err(e) => return Err(io("open", &entry.path)(e)),
            },
            Err(e) => return Err(io("create", &entry.path)(e)),
        };
        if fresh {
            self.count();
            self.facts.usage.bytes += SPACE_UNIT;
        } else {
            // It merges with what was there, and is described now.
            self.facts.entries += 1;
        }
        let (late, skipped) = attributes::set_on_directory(dir.as_fd(), entry, self.rights, fresh)?;
        self.facts.skipped += skipped;
        self.places.remember(&path, false, late)?;
        if hides {
            self.places.make_opaque(&path, dir.as_fd())?;
        }
        Ok(())
    }

    fn hard_link(
        &mut self,
        place: &Place,
        name: &[u8],
        entry: &Entry,
        target: &[u8],
    ) -> Result<(), UnpackError> {
        let missing = || UnpackError::Link {
            path: show(&entry.path),
            target: show(target),
        };
        let parts = components(target)?;
        let (last, parents) = parts.split_last().ok_or_else(missing)?;
        let home = self
            .places
            .directory(parents, Purpose::Find)?
            .ok_or_else(missing)?;
        let stat = match fs::statat(&home.fd, *last, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Err(missing()),
            stat => stat.map_err(io("look at", target))?,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if is_whiteout(&stat) || kind == FileType::Directory {
            return Err(missing());
        }
        let link = || fs::linkat(&home.fd, *last, &place.fd, name, AtFlags::empty());
        match link() {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let old = fs::statat(&place.fd, name, AtFlags::SYMLINK_NOFOLLOW);
                // A link to itself, or written twice, is there already.
                if !old.is_ok_and(|old| (old.st_dev, old.st_ino) == (stat.st_dev, stat.st_ino)) {
                    self.places.clear(place, name)?;
                    link().map_err(io("link", &entry.path))?;
                }
            }
            Err(e) => return Err(io("link", &entry.path)(e)),
        }
        self.facts.entries += 1;
        // The last header about a file decides, also when it comes with another name.
        self.facts.skipped += if kind == FileType::RegularFile {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            match fs::openat(&place.fd, name, flags, Mode::empty()) {
                Ok(file) => attributes::set_on_file(&file, entry, self.rights, false)?,
                // Without privileges a file can be ours and yet unreadable.
                Err(Errno::ACCESS) if !self.rights.privileged => 1,
                Err(e) => return Err(io("open", &entry.path)(e)),
            }
        } else {
            let is_link = kind == FileType::Symlink;
            attributes::set_by_name(place.fd.as_fd(), name, entry, self.rights, is_link)?
        };
        let now = fs::statat(&place.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        let access = of(&now.map_err(io("look at", &entry.path))?);
        let (path, real) = (join(&place.path, name), join(&home.path, last));
        let noted = self.contents.link(&path, &real, access);
        noted.map_err(note(&entry.path))
    }

    /// Symbolic links, devices and pipes.
    fn special(&mut self, place: &Place, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let node = |kind, device| {
            let mode = Mode::from_raw_mode(entry.mode);
            fs::mknodat(&place.fd, name, kind, mode, device)
        };
        let device = matches!(entry.kind, EntryKind::Char { .. } | EntryKind::Block { .. });
        if device && !self.rights.privileged {
            self.facts.skipped += 1;
            return Ok(());
        }
        self.create(place, name, || match &entry.kind {
            EntryKind::Symlink(target) => fs::symlinkat(&target[..], &place.fd, name),
            EntryKind::Char { major, minor } => {
                node(FileType::CharacterDevice, fs::makedev(*major, *minor))
            }
            EntryKind::Block { major, minor } => {
                node(FileType::BlockDevice, fs::makedev(*major, *minor))
            }
            _ => node(FileType::Fifo, 0),
        })?;
        self.count();
        let is_link = matches!(entry.kind, EntryKind::Symlink(_));
        let dir = place.fd.as_fd();
        self.facts.skipped += attributes::set_by_name(dir, name, entry, self.rights, is_link)?;
        let stat = || fs::statat(&place.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        let path = join(&place.path, name);
        let noted = if let EntryKind::Symlink(target) = &entry.kind {
            let access = self.access(entry, stat)?;
            self.contents.symlink(&path, access, target)
        } else {
            let stat = stat().map_err(io("look at", &entry.path))?;
            self.note_special(&path, &stat)
        };
        noted.map_err(note(&entry.path))
    }

    fn note_special(&mut self, path: &[u8], stat: &Stat) -> std::io::Result<()> {
        let kind = FileType::from_raw_mode(stat.st_mode).as_raw_mode();
        self.contents.special(path, of(stat), kind, stat.st_rdev)
    }

    fn whiteout(
        &mut self,
        parents: &[&[u8]],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let Some(place) = self.places.directory(parents, Purpose::Hide)? else {
            return Ok(());
        };
        let path = join(&place.path, name);
        match fs::statat(&place.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Err(e) => return Err(io("look at", &path)(e)),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                self.facts.entries += 1;
                let dir = self.places.open_real(&path)?;
                return self.places.make_opaque(&path, dir.as_fd());
            }
            // What the layer brings wins over what it hides.
            Ok(_) => return Ok(()),
        }
        fs::mknodat(&place.fd, name, FileType::CharacterDevice, Mode::empty(), 0)
            .map_err(io("hide", &path))?;
        if self.rights.privileged && (entry.uid, entry.gid) != (0, 0) {
            let (uid, gid) = (fs::Uid::from_raw(entry.uid), fs::Gid::from_raw(entry.gid));
            fs::chownat(
                &place.fd,
                name,
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .map_err(io("chown", &path))?;
        }
        self.places.hold_whiteouts(&place.path)?;
        self.count();
        let stat = fs::statat(&place.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(io("look at", &path))?;
        self.note_special(&path, &stat).map_err(note(&path))
    }

    fn opaque(&mut self, parts: &[&[u8]]) -> Result<(), UnpackError> {
        let Some(place) = self.places.directory(parts, Purpose::Hide)? else {
            return Ok(());
        };
        self.facts.entries += 1;
        if place.path.is_empty() {
            self.facts.opaque_root = true;
        }
        self.places.make_opaque(&place.path, place.fd.as_fd())
    }

    /// Creates something; what is in its place goes.
    fn create<T>(
        &mut self,
        place: &Place,
        name: &[u8],
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        match make() {
            Err(Errno::EXIST) => {
                self.places.clear(place, name)?;
                make().map_err(io("create", name))
            }
            made => made.map_err(io("create", name)),
        }
    }

    fn count(&mut self) {
        self.facts.entries += 1;
        self.facts.usage.inodes += 1;
    }

    /// Sets what had to wait for the end, and tells what was found out.
    pub(crate) fn finish(mut self) -> Result<LayerFacts, UnpackError> {
        self.places.forget_open();
        self.prune_whiteouts()?;
        let states = std::mem::take(&mut self.places.states);
        let mut implied = BTreeSet::new();
        let mut whiteouts = BTreeSet::new();
        let mut opaque_root = false;
        for (path, state) in states {
            if state.whiteouts {
                whiteouts.insert(LayerPath(path.clone()));
            }
            if path.is_empty() {
                opaque_root = state.opaque;
                continue;
            }
            let dir = self.places.open_real(&path)?;
            self.facts.skipped += attributes::set_late(dir.as_fd(), &path, &state.late)?;
            self.note_directory(dir.as_fd(), &path, state.opaque)?;
            if state.implied {
                self.facts.usage.inodes += 1;
                self.facts.usage.bytes += SPACE_UNIT;
                implied.insert(LayerPath(path));
            }
        }
        if whiteouts.len() > CORRECTIONS_MAX {
            let limit = CORRECTIONS_MAX;
            return Err(UnpackError::Limit {
                what: "directories with whiteouts",
                limit,
            });
        }
        fs::fchmod(self.tree, Mode::from_raw_mode(0o755)).map_err(io("chmod", b"."))?;
        attributes::set_late(self.tree, b".", &Late::default())?;
        self.note_directory(self.tree, b"", opaque_root)?;
        self.facts.usage.inodes += 1;
        self.facts.usage.bytes += SPACE_UNIT;
        self.facts.implied = implied.into_iter().collect();
        self.facts.whiteouts_in = whiteouts.into_iter().collect();
        self.facts.contents = self.contents.finish().map_err(note(b"."))?;
        Ok(self.facts)
    }

    fn note_directory(
        &mut self,
        dir: BorrowedFd<'_>,
        path: &[u8],
        opaque: bool,
    ) -> Result<(), UnpackError> {
        let stat = fs::fstat(dir).map_err(io("look at", path))?;
        let noted = self.contents.directory(path, of(&stat), opaque);
        noted.map_err(note(path))
    }

    /// Removes whiteouts that an opaque mark made pointless: they would be seen.
    fn prune_whiteouts(&mut self) -> Result<(), UnpackError> {
        let states = self.places.states.iter();
        let concerned: Vec<_> = states
            .filter(|(path, state)| state.whiteouts && self.places.is_covered(path))
            .map(|(path, _)| path.clone())
            .collect();
        for path in concerned {
            let dir: Rc<OwnedFd> = Rc::new(self.places.open_real(&path)?);
            let mut entries = fs::Dir::read_from(&*dir).map_err(io("list", &path))?;
            let mut names = Vec::new();
            while let Some(entry) = entries.read() {
                let entry = entry.map_err(io("list", &path))?;
                if entry.file_type() == FileType::CharacterDevice {
                    names.push(entry.file_name().to_owned());
                }
            }
            for name in names {
                let stat = fs::statat(&*dir, &name, AtFlags::SYMLINK_NOFOLLOW);
                if stat.is_ok_and(|stat| is_whiteout(&stat)) {
                    fs::unlinkat(&*dir, &name, AtFlags::empty()).map_err(io("remove", &path))?;
                    let gone = self.contents.gone(&join(&path, name.to_bytes()));
                    gone.map_err(note(&path))?;
                }
            }
            if let Some(state) = self.places.states.get_mut(&path) {
                state.whiteouts = false;
            }
        }
        Ok(())
    }
}

fn of(stat: &Stat) -> Access {
    Access {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
    }
}

/// Wraps a failure to note an entry.
fn note(path: &[u8]) -> impl FnOnce(std::io::Error) -> UnpackError + use<'_> {
    move |source| UnpackError::Io {
        action: "note",
        path: show(path),
        source,
    }
}

fn write_all(file: &OwnedFd, mut data: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !data.is_empty() {
        match rustix::io::pwrite(file, data, offset) {
            Ok(n) => {
                data = data.get(n..).unwrap_or_default();
                offset = offset.saturating_add(u64::try_from(n).unwrap_or(0));
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
