//! What the store knows in memory, and the locks around it.
//!
//! Two locks: `writer` is held by whoever changes records on the disk (milliseconds); `state` is
//! held only to read or change maps, never across I/O. So lists are never blocked by slow work.
//! Order: `writer` before `state`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wharf_types::Digest;

use crate::database::{Change, Records};
use crate::error::StoreError;
use crate::layout::Layout;
use crate::overlay::Overlay;
use crate::record::{
    ImageRecord, ImageSidecar, LayerKey, LayerRecord, Name, NameRecord, SIDECAR_MAX,
    SnapshotRecord, encode,
};
use crate::trash::Trash;
use crate::tree::Usage;

/// A snapshot that exists or is being made.
#[derive(Debug)]
pub(crate) struct SnapshotEntry {
    pub(crate) record: SnapshotRecord,
    /// Whether its directories are complete. Whoever makes them holds the lock.
    pub(crate) made: Mutex<bool>,
    /// The last measurement of its writable layer.
    pub(crate) measured: Mutex<Option<(std::time::Instant, Usage)>>,
}

/// The maps.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) layers: HashMap<LayerKey, LayerRecord>,
    pub(crate) images: BTreeMap<Digest, ImageRecord>,
    pub(crate) names: BTreeMap<Name, NameRecord>,
    pub(crate) snapshots: HashMap<String, Arc<SnapshotEntry>>,
    /// Snapshots that could not be read at the start, and why. They are kept.
    pub(crate) unread: BTreeMap<String, String>,
    /// Layers that were found damaged: they are used as they are, and the next pull replaces them.
    pub(crate) damaged: HashSet<LayerKey>,
    /// Layers that were replaced, by their name in `retired`, and the snapshots that still show them.
    pub(crate) retired: BTreeMap<String, Vec<String>>,
    /// Layers that a pull in flight relies on, by lease.
    pub(crate) leases: HashMap<u64, HashSet<LayerKey>>,
    pub(crate) next_lease: u64,
}

impl State {
    /// Brings the maps to what was just written.
    pub(crate) fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::PutImage(record) => {
                    self.images.insert(record.id, record);
                }
                Change::DropImage(id) => {
                    self.images.remove(&id);
                }
                Change::PutName(name, record) => {
                    self.names.insert(name, record);
                }
                Change::DropName(name) => {
                    self.names.remove(&name);
                }
                Change::PutLayer(key, record) => {
                    self.layers.insert(key, record);
                }
                Change::DropLayer(key) => {
                    self.layers.remove(&key);
                    self.damaged.remove(&key);
                }
            }
        }
    }

    /// Whether a layer is there and whole, as far as is known.
    pub(crate) fn has(&self, key: &LayerKey) -> bool {
        self.layers.contains_key(key) && !self.damaged.contains(key)
    }

    /// All names of an image.
    pub(crate) fn names_of(&self, id: &Digest) -> Vec<(Name, NameRecord)> {
        let of = self.names.iter().filter(|(_, record)| record.image == *id);
        of.map(|(name, record)| (name.clone(), record.clone()))
            .collect()
    }
}

/// How careful the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// An image's files reach the disk before its record.
    #[default]
    Image,
    /// The kernel writes when it likes: for tests and throw-away machines.
    None,
}

/// All parts of an open store. The trash thread ends first, the lock goes last.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) trash: Trash,
    pub(crate) records: Records,
    pub(crate) state: Mutex<State>,
    pub(crate) writer: Mutex<()>,
    pub(crate) overlay: Overlay,
    pub(crate) durability: Durability,
    pub(crate) boot: String,
    pub(crate) layout: Arc<Layout>,
}

impl Inner {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Writes changes to the database, then to the maps. The caller holds `writer`.
    pub(crate) fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.records.apply(&changes)?;
        self.state().apply(changes);
        Ok(())
    }

    /// Writes the sidecar of an image from the maps, or removes it with the image.
    pub(crate) fn write_sidecar(&self, id: &Digest) -> Result<(), StoreError> {
        let name = sidecar_name(id);
        match self.sidecar(id) {
            Some(sidecar) => self.layout.images.write(&name, &encode(&sidecar)?),
            None => self.layout.images.unlink(&name),
        }
    }

    /// Writes the sidecar of an image if it is not as the records say.
    pub(crate) fn repair_sidecar(&self, id: &Digest) {
        let Some(sidecar) = self.sidecar(id) else {
            return;
        };
        let bytes = self.layout.images.read(&sidecar_name(id), SIDECAR_MAX).ok();
        let same = bytes.is_some_and(|old| encode(&sidecar).is_ok_and(|new| new == old));
        if same {
            return;
        }
        if let Err(error) = self.write_sidecar(id) {
            let error = wharf_types::chain(&error);
            tracing::warn!(image = %id, error, "the sidecar is not as the records say");
        }
    }

    fn sidecar(&self, id: &Digest) -> Option<ImageSidecar> {
        let state = self.state();
        Some(ImageSidecar {
            image: state.images.get(id)?.clone(),
            names: state.names_of(id),
        })
    }
}

fn sidecar_name(id: &Digest) -> String {
    format!("{}.json", id.hex())
}

/// A guard of a mutex; a panic elsewhere does not stop the node.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything on disk, below one directory. Clones share it. All calls block: from async code, call
/// them on a thread that may.
#[derive(Debug, Clone)]
pub struct Store(pub(crate) Arc<Inner>);
