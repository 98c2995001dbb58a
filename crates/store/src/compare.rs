//! The tree of a layer beside the list of what it must hold.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{self, Advice, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::contents::{Access, Extent, Model, What, crc};
use crate::layout::DIRECTORY;

/// Differences that are told of one layer.
const FOUND_MAX: usize = 100;
/// Bytes of a path that the kernel takes at once.
const PATH_MAX: usize = 4095;
/// Bytes that are read at once.
const BUFFER: usize = 256 << 10;
/// The marks of a directory that hides its namesakes, as root and inside user namespaces.
const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

/// What is wrong with something in a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Within the layer.
    pub(crate) path: Vec<u8>,
    /// What is wrong.
    pub(crate) what: String,
}

/// Looks at everything below `tree`: every name, its kind, owner, mode, and all data, read from the disk.
///
/// At most [`FOUND_MAX`] differences; the last one says that there are more. And whether the machine was short
/// of something meanwhile, such as descriptors: what could not be read then says nothing of the layer.
pub(crate) fn compare(tree: BorrowedFd<'_>, model: &Model) -> (Vec<Difference>, bool) {
    let mut look = Look {
        model,
        seen: HashSet::new(),
        inodes: HashMap::new(),
        found: Vec::new(),
        short: false,
        buffer: vec![0; BUFFER],
    };
    look.all(tree);
    (look.found, look.short)
}

struct Look<'a> {
    model: &'a Model,
    /// Names that are there.
    seen: HashSet<&'a [u8]>,
    /// The inodes of what was looked at.
    inodes: HashMap<usize, u64>,
    found: Vec<Difference>,
    /// The machine's fault, not the layer's.
    short: bool,
    buffer: Vec<u8>,
}

impl<'a> Look<'a> {
    fn all(&mut self, tree: BorrowedFd<'_>) {
        let model = self.model;
        self.seen.insert(b"");
        for (path, at) in &model.names {
            let directory = matches!(
                model.nodes.get(*at).map(|n| &n.what),
                Some(What::Directory { .. })
            );
            if !directory || !self.seen.contains(&path[..]) {
                continue;
            }
            match open_below(tree, path) {
                Ok(dir) => self.directory(&dir, path),
                Err(e) => {
                    // That it is none was told already; what was in it is not told at all.
                    self.seen.remove(&path[..]);
                    if !matches!(e, Errno::NOTDIR | Errno::LOOP) {
                        self.fail(path, "opened", e);
                    }
                }
            }
            if self.found.len() > FOUND_MAX {
                return;
            }
        }
        for path in model.names.keys() {
            // Below what is missing itself, nothing else is told.
            let parent = path.iter().rposition(|b| *b == b'/');
            let parent = parent.map_or(&b""[..], |at| &path[..at]);
            if !self.seen.contains(&path[..]) && self.seen.contains(parent) {
                self.tell(path, "is missing".to_owned());
            }
        }
    }

    /// What is told of something that the kernel did not let us do.
    fn cannot(&mut self, action: &str, e: Errno) -> String {
        self.short |= crate::error::is_short(&e.into());
        format!("cannot be {action}: {e}")
    }

    fn fail(&mut self, path: &[u8], action: &str, e: Errno) {
        let what = self.cannot(action, e);
        self.tell(path, what);
    }

    fn tell(&mut self, path: &[u8], what: String) {
        let what = match self.found.len() {
            0..FOUND_MAX => what,
            FOUND_MAX => "and more".to_owned(),
            _ => return,
        };
        let path = path.to_vec();
        self.found.push(Difference { path, what });
    }

    /// Everything in a directory; the directory itself where it is the root.
    fn directory(&mut self, dir: &OwnedFd, path: &'a [u8]) {
        if path.is_empty()
            && let Some((_, at)) = self.model.names.get_key_value(path)
        {
            match fs::fstat(dir) {
                Ok(stat) => self.node(dir, (path, b"."), *at, &stat),
                Err(e) => self.fail(path, "looked at", e),
            }
        }
        let entries = match Dir::read_from(dir) {
            Ok(entries) => entries,
            Err(e) => return self.fail(path, "listed", e),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) => return self.fail(path, "listed", e),
            };
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let whole = match path {
                b"" => name.to_vec(),
                path => [path, b"/", name].concat(),
            };
            let Some((known, at)) = self.model.names.get_key_value(&whole) else {
                self.tell(&whole, "is not of this layer".to_owned());
                continue;
            };
            self.seen.insert(known);
            match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => self.node(dir, (known, name), *at, &stat),
                Err(e) => self.fail(&whole, "looked at", e),
            }
        }
    }

    /// One name, and what it means when that was not yet looked at.
    fn node(&mut self, dir: &OwnedFd, (path, name): (&[u8], &[u8]), at: usize, stat: &Stat) {
        let Some(node) = self.model.nodes.get(at) else {
            return;
        };
        if let Some(inode) = self.inodes.insert(at, stat.st_ino) {
            if inode != stat.st_ino {
                self.tell(
                    path,
                    "is no longer a hard link of its other names".to_owned(),
                );
            }
            return;
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        let expected = match &node.what {
            What::File(..) => FileType::RegularFile,
            What::Directory { .. } => FileType::Directory,
            What::Symlink(_) => FileType::Symlink,
            What::Special(kind, _) => FileType::from_raw_mode(*kind),
        };
        if kind != expected {
            let what = format!("is a {}, not a {}", word(kind), word(expected));
            return self.tell(path, what);
        }
        if let Some(what) = access(node.access, stat, kind) {
            self.tell(path, what);
        }
        let wrong = match &node.what {
            What::File(size, data) => self.file(dir, name, (*size, data), stat),
            What::Directory { opaque } => self.directory_mark(dir, name, *opaque),
            What::Symlink(target) => self.link(dir, name, target),
            What::Special(_, device) => (stat.st_rdev != *device)
                .then(|| format!("is device {:#x}, not {device:#x}", stat.st_rdev)),
        };
        if let Some(what) = wrong {
            self.tell(path, what);
        }
    }

    fn file(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        (size, data): (u64, &[Extent]),
        stat: &Stat,
    ) -> Option<String> {
        let found = u64::try_from(stat.st_size).unwrap_or(0);
        if found != size {
            return Some(format!("has {found} bytes, not {size}"));
        }
        if data.is_empty() {
            return None;
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match fs::openat(dir, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(e) => return Some(self.cannot("opened", e)),
        };
        // Memory may be right where the disk is wrong; pages that somebody uses stay.
        fs::fadvise(&file, 0, None, Advice::DontNeed).ok();
        for extent in data {
            match self.crc_of(&file, extent) {
                Ok(found) if found == extent.2 => {}
                Ok(_) => return Some("has other content".to_owned()),
                Err(e) => return Some(self.cannot("read", e)),
            }
        }
        None
    }

    fn crc_of(&mut self, file: &OwnedFd, extent: &Extent) -> Result<u32, Errno> {
        let (mut at, end) = (extent.0, extent.0.saturating_add(extent.1));
        let mut sum = 0;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(BUFFER).min(BUFFER);
            let buffer = self.buffer.get_mut(..want).unwrap_or_default();
            let n = match rustix::io::pread(file, &mut *buffer, at) {
                Err(Errno::INTR) => continue,
                n => n?,
            };
            if n == 0 {
                break;
            }
            sum = crc(sum, buffer.get(..n).unwrap_or_default());
            at = at.saturating_add(u64::try_from(n).unwrap_or(0));
        }
        Ok(sum)
    }

    fn directory_mark(&mut self, dir: &OwnedFd, name: &[u8], expected: bool) -> Option<String> {
        let opened = match fs::openat(dir, name, DIRECTORY, Mode::empty()) {
            Ok(opened) => opened,
            Err(e) => return Some(self.cannot("opened", e)),
        };
        let marked = OPAQUE.iter().any(|mark| {
            let mut value = [0_u8; 1];
            fs::fgetxattr(&opened, *mark, value.as_mut_slice()).is_ok_and(|n| n == 1)
                && value == *b"y"
        });
        match (marked, expected) {
            (true, false) => Some("hides what lower layers have there, and must not".to_owned()),
            (false, true) => Some("does not hide what lower layers have there".to_owned()),
            _ => None,
        }
    }

    fn link(&mut self, dir: &OwnedFd, name: &[u8], expected: &[u8]) -> Option<String> {
        match fs::readlinkat(dir, name, Vec::new()) {
            Ok(target) if target.to_bytes() == expected => None,
            Ok(target) => Some(format!(
                "leads to {:?}, not {:?}",
                target.to_string_lossy(),
                String::from_utf8_lossy(expected)
            )),
            Err(e) => Some(self.cannot("read", e)),
        }
    }
}

fn access(expected: Access, stat: &Stat, kind: FileType) -> Option<String> {
    let mode = stat.st_mode & 0o7777;
    if kind != FileType::Symlink && mode != expected.mode {
        return Some(format!("has mode {mode:04o}, not {:04o}", expected.mode));
    }
    let (uid, gid) = (stat.st_uid, stat.st_gid);
    ((uid, gid) != (expected.uid, expected.gid)).then(|| {
        let Access { uid: u, gid: g, .. } = expected;
        format!("belongs to {uid}:{gid}, not {u}:{g}")
    })
}

fn word(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Fifo => "pipe",
        _ => "thing of another kind",
    }
}

/// Opens a directory by its path below `tree`, without links and in as few calls as its length allows.
fn open_below(tree: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let beneath = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let mut at = fs::openat(tree, ".", DIRECTORY, Mode::empty())?;
    let mut rest = path;
    while !rest.is_empty() {
        let (piece, after) = match rest.get(..PATH_MAX) {
            None => (rest, &rest[rest.len()..]),
            Some(most) => {
                let end = most.iter().rposition(|b| *b == b'/').unwrap_or(PATH_MAX);
                (&rest[..end], rest.get(end + 1..).unwrap_or_default())
            }
        };
        at = fs::openat2(at.as_fd(), piece, DIRECTORY, Mode::empty(), beneath)?;
        rest = after;
    }
    Ok(at)
}
