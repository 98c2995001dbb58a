//! The state directory: the only place that knows the names of its files.
//!
//! ```text
//! lock                     flock; the holder's pid
//! store.redb               images, names, layers
//! store.reserve            space that is given up when the disk is full
//! images/<hex>.json        sidecar of an image record, so that the database can be rebuilt
//! blobs/<hex>              manifests and configurations, byte for byte
//! layers/<hex>/            tree/ (overlay form), layer.json (sidecar of the record), contents (what
//!                          the tree must hold), damaged (it does not: a pull replaces it)
//! layers/fix-<hex>/        directory attributes that a stack of layers needs (see `fix`)
//! snapshots/<key>/         snapshot.json, upper/, work/
//! ingest/<n>/              tree/, discard/: a layer being written
//! retired/<n>/             a damaged layer that was replaced, users: snapshots that still show it
//! trash/<n>                on its way out
//! empty/                   an empty directory: a lower layer where overlayfs wants one more
//! ```

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{self, AtFlags, FlockOperation, IFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use wharf_types::Digest;

use crate::error::StoreError;

pub(crate) const TREE: &str = "tree";
pub(crate) const DISCARD: &str = "discard";
pub(crate) const LAYER_SIDECAR: &str = "layer.json";
pub(crate) const CONTENTS: &str = "contents";
pub(crate) const DAMAGED: &str = "damaged";
pub(crate) const USERS: &str = "users";
pub(crate) const SNAPSHOT_RECORD: &str = "snapshot.json";
pub(crate) const UPPER: &str = "upper";
pub(crate) const WORK: &str = "work";
const DATABASE: &str = "store.redb";
const LOCK: &str = "lock";

/// How to open a directory that is not to be walked through links.
pub(crate) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A subdirectory of the root.
#[derive(Debug)]
pub(crate) struct Room {
    path: PathBuf,
    fd: OwnedFd,
}

impl Room {
    fn open(root: &Path, name: &str) -> Result<Self, StoreError> {
        let path = root.join(name);
        make_directory(&path, Mode::from_raw_mode(0o700))?;
        let fd = fs::open(&path, DIRECTORY, Mode::empty()).map_err(io("open", &path))?;
        Ok(Self { path, fd })
    }

    /// The path of an entry, for messages.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a directory within.
    pub(crate) fn make(&self, name: &str, mode: u32) -> Result<(), StoreError> {
        make_directory(&self.path(name), Mode::from_raw_mode(mode))
    }

    /// Opens a directory within.
    pub(crate) fn open_dir(&self, name: &str) -> Result<OwnedFd, StoreError> {
        fs::openat(&self.fd, name, DIRECTORY, Mode::empty()).map_err(io("open", &self.path(name)))
    }

    /// Whether an entry is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// The names of all entries that are UTF-8; ours are.
    pub(crate) fn names(&self) -> Result<Vec<String>, StoreError> {
        list(self.fd.as_fd()).map_err(io("list", &self.path))
    }

    /// Reads a whole file of at most `limit` bytes.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, StoreError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = self.path(name);
        let file = fs::openat(&self.fd, name, flags, Mode::empty()).map_err(io("open", &path))?;
        let mut bytes = Vec::new();
        File::from(file)
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(|source| StoreError::Io {
                action: "read",
                path,
                source,
            })?;
        Ok(bytes)
    }

    /// Writes a file whole or not at all: a reader, also after our death, sees old or new.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let draft = match name.rsplit_once('/') {
            Some((dir, file)) => format!("{dir}/.{file}.new"),
            None => format!(".{name}.new"),
        };
        let path = self.path(name);
        let draft = self.draft(draft);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(&self.fd, &draft.name, flags, Mode::from_raw_mode(0o600))
            .map_err(io("create", &path))?;
        File::from(file)
            .write_all(bytes)
            .map_err(|source| StoreError::Io {
                action: "write",
                path: path.clone(),
                source,
            })?;
        fs::renameat(&self.fd, &draft.name, &self.fd, name).map_err(io("rename", &path))?;
        draft.keep();
        Ok(())
    }

    /// A file of that name goes again unless it is kept.
    pub(crate) fn draft(&self, name: String) -> Draft<'_> {
        Draft { room: self, name }
    }

    /// Whether an entry is provably not there: no other failure counts.
    pub(crate) fn is_missing(&self, name: &str) -> bool {
        let looked = fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        matches!(looked, Err(Errno::NOENT | Errno::NOTDIR))
    }

    /// Removes a file; one that is gone is fine.
    pub(crate) fn unlink(&self, name: &str) -> Result<(), StoreError> {
        match fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(io("remove", &self.path(name))(e)),
        }
    }

    /// Moves an entry into another room, where the name must be free.
    pub(crate) fn rename(&self, name: &str, to: &Self, new: &str) -> Result<(), StoreError> {
        fs::renameat_with(&self.fd, name, &to.fd, new, RenameFlags::NOREPLACE)
            .map_err(io("rename", &self.path(name)))
    }

    /// Lets two entries change places, at once.
    pub(crate) fn exchange(&self, name: &str, with: &Self, other: &str) -> Result<(), StoreError> {
        fs::renameat_with(&self.fd, name, &with.fd, other, RenameFlags::EXCHANGE)
            .map_err(io("exchange", &self.path(name)))
    }

    /// Creates a file within, to be written.
    pub(crate) fn create(&self, name: &str) -> Result<File, StoreError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o600));
        Ok(made.map_err(io("create", &self.path(name)))?.into())
    }

    /// Brings the names to the disk.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        fs::fsync(&self.fd).map_err(io("sync", &self.path))
    }
}

/// A file that is not yet what it is for: removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    room: &'a Room,
    name: String,
}

impl Draft<'_> {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Gives the file its place, which must be free.
    pub(crate) fn settle(self, to: &Room, new: &str) -> Result<(), StoreError> {
        self.room.rename(&self.name, to, new)?;
        self.keep();
        Ok(())
    }

    fn keep(mut self) {
        self.name.clear();
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            // What cannot be removed now is removed at the next start.
            self.room.unlink(&self.name).ok();
        }
    }
}

impl AsFd for Room {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The state directory, held by its lock for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    fd: OwnedFd,
    lock: File,
    pub(crate) images: Room,
    pub(crate) blobs: Room,
    pub(crate) layers: Room,
    pub(crate) snapshots: Room,
    pub(crate) ingest: Room,
    pub(crate) retired: Room,
    pub(crate) trash: Room,
    pub(crate) empty: Room,
    counter: AtomicU64,
}

impl Layout {
    /// Makes what is missing and takes the lock.
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(root).map_err(|source| StoreError::Io {
            action: "create",
            path: root.to_owned(),
            source,
        })?;
        let fd = fs::open(root, DIRECTORY, Mode::empty()).map_err(io("open", root))?;
        let lock = lock(root)?;
        let room = |name| Room::open(root, name);
        let layout = Self {
            images: room("images")?,
            blobs: room("blobs")?,
            layers: room("layers")?,
            snapshots: room("snapshots")?,
            ingest: room("ingest")?,
            retired: room("retired")?,
            trash: room("trash")?,
            empty: room("empty")?,
            root: root.to_owned(),
            fd,
            lock,
            counter: AtomicU64::new(0),
        };
        fs::fchmod(&layout.fd, Mode::from_raw_mode(0o700)).map_err(io("chmod", root))?;
        fs::fchmod(&layout.empty, Mode::from_raw_mode(0o755)).map_err(io("chmod", root))?;
        spread(&layout.ingest);
        Ok(layout)
    }

    /// The state directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The database's file.
    pub(crate) fn database(&self) -> PathBuf {
        self.root.join(DATABASE)
    }

    /// Brings all written data of the file system to the disk.
    pub(crate) fn sync_data(&self) -> Result<(), StoreError> {
        fs::syncfs(&self.fd).map_err(io("sync", &self.root))
    }

    /// A file name that no entry of `room` has.
    pub(crate) fn fresh(&self, room: &Room) -> String {
        loop {
            let n = self.counter.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}-{n}", std::process::id());
            if !room.has(&name) {
                return name;
            }
        }
    }

    /// Moves an entry to the trash; one that is gone is fine.
    pub(crate) fn discard(&self, room: &Room, name: &str) -> Result<(), StoreError> {
        match fs::renameat(&room.fd, name, &self.trash.fd, self.fresh(&self.trash)) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(io("rename", &room.path(name))(e)),
        }
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // The next daemon takes a stale pid for what it is: the lock is not held.
        self.lock.set_len(0).ok();
    }
}

/// Asks ext4 to spread layers over its block groups (`chattr +T`; ext2 and later). Else they crowd
/// into the emptiest one, which a removal has just emptied; and ext4 does not use an inode again
/// within 1 to 5 minutes of its deletion. Each new file then passes over thousands of fresh inodes
/// (`recently_deleted` in the kernel's fs/ext4/ialloc.c), with a lock held that all layers need.
fn spread(room: &Room) {
    // Other file systems know no such flag, and have no such trouble.
    if let Ok(flags) = fs::ioctl_getflags(room) {
        fs::ioctl_setflags(room, flags | IFlags::TOPDIR).ok();
    }
}

/// The file name of content.
pub(crate) fn blob_name(digest: &Digest) -> String {
    digest.hex()
}

/// A fault point that was passed over `path`.
pub(crate) fn passed(point: std::io::Result<()>, path: &Path) -> Result<(), StoreError> {
    point.map_err(|source| StoreError::Io {
        action: "go on with",
        path: path.to_owned(),
        source,
    })
}

/// Wraps a failed system call.
pub(crate) fn io(action: &'static str, path: &Path) -> impl Fn(Errno) -> StoreError + use<> {
    let path = path.to_owned();
    move |e| StoreError::Io {
        action,
        path: path.clone(),
        source: e.into(),
    }
}

/// The names in a directory, without `.` and `..`.
pub(crate) fn list(dir: BorrowedFd<'_>) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(dir)? {
        if let Ok(name) = entry?.file_name().to_str()
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn make_directory(path: &Path, mode: Mode) -> Result<(), StoreError> {
    match fs::mkdir(path, mode) {
        // The umask must not matter.
        Ok(()) => fs::chmod(path, mode).map_err(io("chmod", path)),
        Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(io("create", path)(e)),
    }
}

fn lock(root: &Path) -> Result<File, StoreError> {
    let path = root.join(LOCK);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = fs::open(&path, flags, Mode::from_raw_mode(0o600)).map_err(io("open", &path))?;
    let mut file = File::from(fd);
    match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            // A message without the pid still says what matters.
            file.read_to_string(&mut pid).ok();
            let pid = match pid.trim() {
                "" => "(unknown)".to_owned(),
                pid => pid.to_owned(),
            };
            return Err(StoreError::Locked {
                root: root.to_owned(),
                pid,
            });
        }
        Err(e) => return Err(io("lock", &path)(e)),
    }
    let written = file
        .set_len(0)
        .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
    written.map_err(|source| StoreError::Io {
        action: "write",
        path,
        source,
    })?;
    Ok(file)
}
