//! Snapshots: a writable layer over the layers of an image.
//!
//! A snapshot's record is a small file in its own directory, written before the directories that it
//! announces. It is not synced: creating a container does not wait for the disk, and after a power
//! cut its writable layer could not be trusted anyway. In memory it pins its layers from the first
//! moment.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{self, AtFlags, Mode};
use rustix::io::Errno;
use wharf_sys::fault::point;
use wharf_types::{ChainId, DiffId};

use crate::error::StoreError;
use crate::image::mount_order;
use crate::layout::{DIRECTORY, SNAPSHOT_RECORD, TREE, UPPER, WORK, io, passed};
use crate::overlay::{LOWERS_MAX, Stack};
use crate::record::{LayerKey, LayerKind, SnapshotRecord, encode};
use crate::state::{Inner, SnapshotEntry, State, Store, lock};
use crate::tree::{self, Usage};

/// How long a measurement of a writable layer is good for: kubelet's own period.
const MEASURED_FOR: Duration = Duration::from_secs(10);
/// The longest key.
const KEY_MAX: usize = 128;

/// A writable layer over layers of an image. A handle: dropping it removes nothing.
#[derive(Debug, Clone)]
pub struct Snapshot {
    store: Arc<Inner>,
    entry: Arc<SnapshotEntry>,
}

impl Store {
    /// Makes the writable layer of `key` over `layers` (base first); the same call again returns the
    /// same snapshot. It is never synced to the disk (`volatile`): after a reboot it is to be made
    /// anew.
    ///
    /// # Errors
    ///
    /// A layer is missing, the key belongs to other layers, or the disk refuses.
    pub fn prepare(&self, key: &str, layers: &[DiffId]) -> Result<Snapshot, StoreError> {
        check_key(key)?;
        loop {
            let entry = self.entry(key, layers)?;
            let mut made = lock(&entry.made);
            // Removed by another caller between the two locks: begin again.
            if !is_held(&self.0.state(), &entry) {
                continue;
            }
            if !*made {
                if let Err(error) = make(&self.0, &entry.record) {
                    forget(&mut self.0.state(), &entry);
                    return Err(error);
                }
                *made = true;
            }
            drop(made);
            let store = Arc::clone(&self.0);
            return Ok(Snapshot { store, entry });
        }
    }

    /// The entry of a key, made when there is none. From here on it pins its layers.
    fn entry(&self, key: &str, layers: &[DiffId]) -> Result<Arc<SnapshotEntry>, StoreError> {
        let mut state = self.0.state();
        check_read(&state, key)?;
        match state.snapshots.get(key) {
            Some(entry) if entry.record.layers == layers => return Ok(Arc::clone(entry)),
            Some(_) => return Err(StoreError::SnapshotExists(key.to_owned())),
            None => {}
        }
        let record = SnapshotRecord {
            key: key.to_owned(),
            layers: layers.to_vec(),
            stack: stack_of(&state, layers)?,
            boot: self.0.boot.clone(),
        };
        let entry = Arc::new(SnapshotEntry {
            record,
            made: Mutex::new(false),
            measured: Mutex::new(None),
        });
        state.snapshots.insert(key.to_owned(), Arc::clone(&entry));
        Ok(entry)
    }

    /// The snapshot of `key`.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn snapshot(&self, key: &str) -> Result<Snapshot, StoreError> {
        let entry = {
            let state = self.0.state();
            check_read(&state, key)?;
            state.snapshots.get(key).cloned()
        };
        let entry = entry.ok_or_else(|| StoreError::NoSnapshot(key.to_owned()))?;
        Ok(Snapshot {
            store: Arc::clone(&self.0),
            entry,
        })
    }

    /// The keys of all snapshots, also of those that could not be read.
    pub fn snapshots(&self) -> Vec<String> {
        let state = self.0.state();
        let all = state.snapshots.keys().chain(state.unread.keys());
        let mut keys: Vec<_> = all.cloned().collect();
        drop(state);
        keys.sort();
        keys
    }

    /// Removes a snapshot; one that does not exist is fine. The space comes back in the background.
    /// Unmount it before.
    ///
    /// # Errors
    ///
    /// Its directory cannot be moved, or layers that nobody needs any more cannot be unrecorded.
    pub fn remove(&self, key: &str) -> Result<(), StoreError> {
        check_key(key)?;
        let (entry, unread) = {
            let state = self.0.state();
            let unread = state.unread.contains_key(key);
            (state.snapshots.get(key).cloned(), unread)
        };
        if unread {
            self.0.layout.discard(&self.0.layout.snapshots, key)?;
            self.0.state().unread.remove(key);
            self.collect()?;
        }
        if let Some(entry) = entry {
            let mut made = lock(&entry.made);
            if !is_held(&self.0.state(), &entry) {
                return Ok(());
            }
            self.0.layout.discard(&self.0.layout.snapshots, key)?;
            passed(point("remove container: snapshot discarded"), self.root())?;
            *made = false;
            let orphans = {
                let mut state = self.0.state();
                forget(&mut state, &entry);
                let used = |id| state.images.values().any(|image| image.layers.contains(id));
                !state.retired.is_empty() || !entry.record.layers.iter().all(used)
            };
            drop(made);
            self.0.trash.wake();
            if orphans {
                self.collect()?;
            }
        }
        Ok(())
    }

    /// Space that a snapshot's writable layer takes, at most ten seconds old.
    ///
    /// # Errors
    ///
    /// There is no such snapshot, or it cannot be read.
    pub fn usage_of(&self, key: &str) -> Result<Usage, StoreError> {
        self.snapshot(key)?.usage()
    }

    /// Space that images take: layers and documents. From records, without looking at the disk.
    pub fn image_usage(&self) -> Usage {
        let mut total = Usage::default();
        let state = self.0.state();
        for layer in state.layers.values() {
            total += layer.facts.usage;
        }
        let blobs: std::collections::HashMap<_, _> = state
            .images
            .values()
            .flat_map(|image| image.blobs.iter().map(|b| (b.digest, b.size)))
            .collect();
        for size in blobs.values() {
            total += Usage {
                bytes: size.next_multiple_of(4096),
                inodes: 1,
            };
        }
        total
    }

    /// Space that writable layers take, as last measured; each at most ten seconds old.
    pub fn snapshot_usage(&self) -> Usage {
        let mut total = Usage::default();
        for key in self.snapshots() {
            // One that is removed meanwhile takes no space.
            if let Ok(usage) = self.usage_of(&key) {
                total += usage;
            }
        }
        total
    }

    /// All space: images and writable layers.
    pub fn usage(&self) -> Usage {
        let mut total = self.image_usage();
        total += self.snapshot_usage();
        total
    }
}

impl Snapshot {
    /// Its key.
    pub fn key(&self) -> &str {
        &self.entry.record.key
    }

    /// The layers that it was prepared over, base first.
    pub fn layers(&self) -> &[DiffId] {
        &self.entry.record.layers
    }

    /// A mount of it that is attached nowhere yet. A writable one belongs to one user at a time; a
    /// read-only one shows layers and what was written, and may exist beside it.
    ///
    /// # Errors
    ///
    /// The kernel cannot or will not, the snapshot is older than this boot, or a layer is damaged.
    pub fn mount(&self, readonly: bool) -> Result<OwnedFd, StoreError> {
        let layout = &self.store.layout;
        let record = &self.entry.record;
        let key = self.key();
        let mut lowers = Vec::with_capacity(record.stack.len() + 1);
        let upper = layout.snapshots.open_dir(&format!("{key}/{UPPER}"))?;
        for layer in &record.stack {
            lowers.push(layout.layers.open_dir(&format!("{layer}/{TREE}"))?);
        }
        let empty = || tree::open_below(&layout.empty, ".").map_err(io("open", layout.root()));
        let mounted = if readonly {
            lowers.insert(0, upper);
            if lowers.len() < 2 {
                lowers.push(empty()?);
            }
            let stack = Stack {
                lowers: &lowers,
                upper: None,
                volatile: false,
                readonly,
            };
            self.store.overlay.mount(&stack, layout.empty.as_fd())?
        } else {
            if lowers.is_empty() {
                lowers.push(empty()?);
            }
            let work = self.work()?;
            let upper = Some((upper.as_fd(), work.as_fd()));
            let stack = Stack {
                lowers: &lowers,
                upper,
                volatile: true,
                readonly,
            };
            self.store.overlay.mount(&stack, layout.empty.as_fd())?
        };
        mounted.map_err(|refused| StoreError::Mount {
            key: key.to_owned(),
            step: refused.step,
            log: refused.log,
            source: refused.errno.into(),
        })
    }

    /// A work directory that overlayfs accepts. It marks one that was mounted without syncs; within
    /// the same boot nothing was lost, so the mark goes.
    fn work(&self) -> Result<OwnedFd, StoreError> {
        let layout = &self.store.layout;
        let name = format!("{}/{WORK}", self.key());
        let dir = layout.snapshots.open_dir(&name)?;
        if fs::statat(&dir, "work", AtFlags::SYMLINK_NOFOLLOW).is_err() {
            return Ok(dir);
        }
        if self.entry.record.boot != self.store.boot {
            return Err(StoreError::Volatile(self.key().to_owned()));
        }
        layout.discard(&layout.snapshots, &name)?;
        self.store.trash.wake();
        layout.snapshots.make(&name, 0o700)?;
        layout.snapshots.open_dir(&name)
    }

    /// Space that the writable layer takes, at most ten seconds old.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        if let Some((at, usage)) = *lock(&self.entry.measured)
            && at.elapsed() < MEASURED_FOR
        {
            return Ok(usage);
        }
        self.measure()
    }

    /// Space that the writable layer takes now: walks it, which takes as long as it has files.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn measure(&self) -> Result<Usage, StoreError> {
        let room = &self.store.layout.snapshots;
        let name = format!("{}/{UPPER}", self.key());
        let upper = room.open_dir(&name)?;
        let usage = tree::measure(upper.as_fd()).map_err(io("measure", &room.path(&name)))?;
        // Nobody waits for this lock while somebody walks.
        *lock(&self.entry.measured) = Some((Instant::now(), usage));
        Ok(usage)
    }
}

/// What is mounted for `layers`, top first: corrections, then each layer once, empty ones left out.
fn stack_of(state: &State, layers: &[DiffId]) -> Result<Vec<LayerKey>, StoreError> {
    let mut stack = Vec::new();
    let fix = ChainId::of(layers).map(LayerKey::Fix);
    stack.extend(fix.filter(|key| state.layers.contains_key(key)));
    for id in mount_order(layers) {
        let key = LayerKey::Diff(id);
        let record = state.layers.get(&key).ok_or(StoreError::NoLayer(id))?;
        if record.kind != LayerKind::Dir {
            return Err(StoreError::LayerKind(id.to_string(), record.kind.as_str()));
        }
        if record.facts.entries > 0 {
            stack.push(key);
        }
        if record.facts.opaque_root {
            break;
        }
    }
    // One place is left for the writable layer of a read-only mount.
    if stack.len() >= LOWERS_MAX {
        return Err(StoreError::Overlay(format!(
            "the image has {} layers, the kernel stacks at most {LOWERS_MAX}: squash it",
            stack.len()
        )));
    }
    Ok(stack)
}

/// Makes the directories of a snapshot, its record first.
fn make(inner: &Inner, record: &SnapshotRecord) -> Result<(), StoreError> {
    let room = &inner.layout.snapshots;
    let key = &record.key;
    // What an earlier daemon left half-made is not ours.
    inner.layout.discard(room, key)?;
    room.make(key, 0o700)?;
    let whole = room.path(key);
    let made = passed(point("create container: snapshot's directory made"), &whole)
        .and_then(|()| room.write(&format!("{key}/{SNAPSHOT_RECORD}"), &encode(record)?))
        .and_then(|()| passed(point("create container: snapshot recorded"), &whole))
        .and_then(|()| room.make(&format!("{key}/{UPPER}"), 0o755))
        .and_then(|()| passed(point("create container: snapshot's upper made"), &whole))
        .and_then(|()| room.make(&format!("{key}/{WORK}"), 0o700));
    if made.is_err() {
        inner.layout.discard(room, key)?;
        inner.trash.wake();
    }
    made
}

/// Whether a recovered snapshot has its directories.
pub(crate) fn is_complete(snapshot: &OwnedFd) -> Result<bool, Errno> {
    for name in [UPPER, WORK] {
        match fs::openat(snapshot, name, DIRECTORY, Mode::empty()) {
            Ok(_) => {}
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// A snapshot that could not be read is not made anew: that would throw it away.
fn check_read(state: &State, key: &str) -> Result<(), StoreError> {
    match state.unread.get(key) {
        Some(why) => Err(StoreError::Unread {
            key: key.to_owned(),
            why: why.clone(),
        }),
        None => Ok(()),
    }
}

fn is_held(state: &State, entry: &Arc<SnapshotEntry>) -> bool {
    let held = state.snapshots.get(&entry.record.key);
    held.is_some_and(|held| Arc::ptr_eq(held, entry))
}

/// Takes an entry out of the map, unless another took its place.
fn forget(state: &mut State, entry: &Arc<SnapshotEntry>) {
    if is_held(state, entry) {
        state.snapshots.remove(&entry.record.key);
    }
}

fn check_key(key: &str) -> Result<(), StoreError> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if key.is_empty() || key.len() > KEY_MAX || key.starts_with('.') || !key.bytes().all(fine) {
        return Err(StoreError::BadKey(key.to_owned()));
    }
    Ok(())
}
