//! Layers on their way in, and leases that keep present ones.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use wharf_sys::fault::point;
use wharf_types::{ChainId, DiffId};

use crate::contents::Contents;
use crate::error::StoreError;
use crate::layout::{CONTENTS, DISCARD, LAYER_SIDECAR, TREE, passed};
use crate::record::{LayerFacts, LayerKey, LayerKind, LayerRecord, LayerSidecar, encode};
use crate::state::{Inner, Store, lock};

/// A directory in which a layer is written. Dropped before it is committed, it goes to the trash.
#[derive(Debug)]
pub struct Ingest {
    home: Home,
    tree: OwnedFd,
    discard: OwnedFd,
}

/// The directory below `ingest/`.
#[derive(Debug)]
pub(crate) struct Home {
    store: Arc<Inner>,
    name: Option<String>,
}

impl Home {
    /// Moves `tree/` and what is beside it to the name of `key` among the layers.
    pub(crate) fn settle(mut self, key: &LayerKey) -> Result<(), StoreError> {
        let layout = &self.store.layout;
        if let Some(name) = &self.name {
            // What a crash between rename and record left is in the way, and of no use.
            layout.discard(&layout.layers, &key.name())?;
            layout.discard(&layout.ingest, &format!("{name}/{DISCARD}"))?;
            layout.ingest.rename(name, &layout.layers, &key.name())?;
        }
        self.name = None;
        Ok(())
    }
}

impl Home {
    /// Moves `tree/` and what is beside it to the place of a damaged layer.
    pub(crate) fn replace(mut self, key: &LayerKey) -> Result<(), StoreError> {
        let layout = &self.store.layout;
        if let Some(name) = &self.name {
            layout.discard(&layout.ingest, &format!("{name}/{DISCARD}"))?;
            self.store.replace_layer(name, key)?;
        }
        self.name = None;
        Ok(())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            let layout = &self.store.layout;
            if let Err(error) = layout.discard(&layout.ingest, &name) {
                tracing::warn!(
                    error = wharf_types::chain(&error),
                    "left until the next start"
                );
            }
        }
        self.store.trash.wake();
    }
}

impl Ingest {
    pub(crate) fn new(store: &Arc<Inner>) -> Result<Self, StoreError> {
        let room = &store.layout.ingest;
        let name = store.layout.fresh(room);
        room.make(&name, 0o700)?;
        // From here on a failure leaves nothing: `home` cleans up.
        let home = Home {
            store: Arc::clone(store),
            name: Some(name.clone()),
        };
        passed(point("pull: ingest's directory made"), store.layout.root())?;
        let (tree, discard) = (format!("{name}/{TREE}"), format!("{name}/{DISCARD}"));
        room.make(&tree, 0o755)?;
        room.make(&discard, 0o700)?;
        passed(point("pull: ingest opened"), store.layout.root())?;
        Ok(Self {
            tree: room.open_dir(&tree)?,
            discard: room.open_dir(&discard)?,
            home,
        })
    }

    /// The layer's root directory: 0755, owned by this process.
    pub fn tree(&self) -> BorrowedFd<'_> {
        self.tree.as_fd()
    }

    /// An empty directory on the same file system: what a writer moves here is deleted later.
    pub fn discard(&self) -> BorrowedFd<'_> {
        self.discard.as_fd()
    }

    /// The list of what is written, to be noted there; its end goes into the layer's facts. A layer
    /// without one cannot be checked.
    ///
    /// # Errors
    ///
    /// It cannot be made, or was made before.
    pub fn contents(&self) -> Result<Contents, StoreError> {
        let name = self.home.name.as_deref().unwrap_or_default();
        let room = &self.home.store.layout.ingest;
        room.create(&format!("{name}/{CONTENTS}")).map(Contents::to)
    }

    /// Declares the tree complete. It becomes visible with the image that it is committed with.
    ///
    /// # Errors
    ///
    /// The sidecar cannot be written.
    pub fn seal(self, diff_id: DiffId, facts: LayerFacts) -> Result<Sealed, StoreError> {
        self.seal_as(LayerKey::Diff(diff_id), facts)
    }

    pub(crate) fn seal_as(self, key: LayerKey, facts: LayerFacts) -> Result<Sealed, StoreError> {
        let record = LayerRecord {
            kind: LayerKind::Dir,
            facts,
        };
        let sidecar = LayerSidecar {
            key,
            record: record.clone(),
        };
        if let Some(name) = &self.home.name {
            let room = &self.home.store.layout.ingest;
            room.write(&format!("{name}/{LAYER_SIDECAR}"), &encode(&sidecar)?)?;
            passed(
                point("pull: layer's sidecar written"),
                room.path(name).as_path(),
            )?;
        }
        Ok(Sealed {
            key,
            record,
            tree: self.tree,
            home: Mutex::new(Some(self.home)),
        })
    }
}

/// A complete layer that no record names yet. Several pulls may share it; the first that commits
/// brings it in, and without any it goes to the trash.
#[derive(Debug)]
pub struct Sealed {
    pub(crate) key: LayerKey,
    pub(crate) record: LayerRecord,
    pub(crate) tree: OwnedFd,
    pub(crate) home: Mutex<Option<Home>>,
}

impl Sealed {
    /// What is in the layer.
    pub fn facts(&self) -> &LayerFacts {
        &self.record.facts
    }

    /// Whether no pull has brought it in yet.
    pub fn is_pending(&self) -> bool {
        lock(&self.home).is_some()
    }

    pub(crate) fn take(&self) -> Option<Home> {
        lock(&self.home).take()
    }
}

/// Keeps layers from collection for as long as it lives. It dies with the daemon: a pull that was
/// cut has nothing to keep.
#[derive(Debug)]
pub struct Lease {
    store: Arc<Inner>,
    pub(crate) id: u64,
}

impl Lease {
    /// Whether the layer is in the store, and whole as far as is known. If it is there, or as soon as
    /// somebody brings it, it stays while the lease lives.
    pub fn hold(&self, layer: DiffId) -> bool {
        let key = LayerKey::Diff(layer);
        let mut state = self.store.state();
        state.leases.entry(self.id).or_default().insert(key);
        state.has(&key)
    }

    /// The same of all layers of an image, and of what belongs to them as a stack.
    pub fn hold_all(&self, layers: &[DiffId]) -> bool {
        let mut whole = true;
        for layer in layers {
            whole &= self.hold(*layer);
        }
        let Some(fix) = ChainId::of(layers).map(LayerKey::Fix) else {
            return whole;
        };
        let mut state = self.store.state();
        state.leases.entry(self.id).or_default().insert(fix);
        whole && !state.damaged.contains(&fix)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.store.state().leases.remove(&self.id);
    }
}

impl Store {
    /// A directory for a layer to be written.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn ingest(&self) -> Result<Ingest, StoreError> {
        Ingest::new(&self.0)
    }

    /// A new lease that holds nothing yet.
    pub fn lease(&self) -> Lease {
        let mut state = self.0.state();
        state.next_lease += 1;
        Lease {
            store: Arc::clone(&self.0),
            id: state.next_lease,
        }
    }

    /// Whether a layer is in the store, and whole as far as is known.
    pub fn has_layer(&self, layer: DiffId) -> bool {
        self.0.state().has(&LayerKey::Diff(layer))
    }
}
