//! Opening a state directory: lock, database, and making records and files agree again.

use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::database::{Change, Contents, Records};
use crate::error::StoreError;
use crate::layout::{DAMAGED, LAYER_SIDECAR, Layout, SNAPSHOT_RECORD, TREE, io};
use crate::overlay::Overlay;
use crate::record::{ImageSidecar, LayerKey, LayerSidecar, SIDECAR_MAX, SnapshotRecord, decode};
use crate::replace;
use crate::snapshot::is_complete;
use crate::state::{Durability, Inner, SnapshotEntry, State, Store};
use crate::trash::Trash;

/// Where the kernel tells which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Store {
    /// Opens the state directory `root`, which is made when it is missing. What a dead daemon left
    /// half-done goes to the trash; images whose layers are gone are forgotten, so that a pull
    /// brings them back.
    ///
    /// # Errors
    ///
    /// Another daemon holds it, or it cannot be used.
    pub fn open(root: &Path, durability: Durability) -> Result<Self, StoreError> {
        let layout = Arc::new(Layout::open(root)?);
        let (records, contents) = open_records(&layout)?;
        let changes = reconcile(&layout, &contents);
        let mut state = State::default();
        for (key, record) in contents.layers {
            if layout.layers.has(&format!("{key}/{DAMAGED}")) {
                state.damaged.insert(key);
            }
            state.layers.insert(key, record);
        }
        for image in contents.images {
            state.images.insert(image.id, image);
        }
        state.names.extend(contents.names);
        if !changes.is_empty() {
            records.apply(&changes)?;
            state.apply(changes);
        }
        sweep(&layout, &state)?;
        recover_snapshots(&layout, &mut state)?;
        let boot = boot_id();
        replace::recover(&layout, &mut state, &boot)?;
        let images: Vec<_> = state.images.keys().copied().collect();
        let store = Self(Arc::new(Inner {
            trash: Trash::start(Arc::clone(&layout))?,
            records,
            state: Mutex::new(state),
            writer: Mutex::new(()),
            overlay: Overlay::default(),
            durability,
            boot,
            layout,
        }));
        for id in images {
            store.0.repair_sidecar(&id);
        }
        store.collect()?;
        Ok(store)
    }

    /// The state directory.
    pub fn root(&self) -> &Path {
        self.0.layout.root()
    }

    /// Waits until everything in the trash is deleted.
    pub fn drain_trash(&self) {
        self.0.trash.drain();
    }
}

/// Opens the database. One that is missing or broken is made anew from the sidecars; the broken file
/// is kept as evidence.
fn open_records(layout: &Layout) -> Result<(Records, Contents), StoreError> {
    let path = layout.database();
    let existed = path.exists();
    match Records::open(&path) {
        Ok((records, contents)) if existed => return Ok((records, contents)),
        Ok((records, contents)) => return rebuild(layout, records, contents),
        Err(StoreError::Database { source, .. }) if is_broken(&source) => {
            let aside = path.with_extension(format!("redb.broken-{}", layout.fresh(&layout.trash)));
            tracing::warn!(kept = %aside.display(), error = %source, "database is broken, rebuilding it");
            std::fs::rename(&path, &aside).map_err(|source| StoreError::Io {
                action: "rename",
                path: path.clone(),
                source,
            })?;
        }
        Err(error) => return Err(error),
    }
    let (records, contents) = Records::open(&path)?;
    rebuild(layout, records, contents)
}

fn is_broken(error: &redb::Error) -> bool {
    match error {
        redb::Error::Corrupted(_) => true,
        redb::Error::Io(e) => {
            matches!(
                e.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
            )
        }
        _ => false,
    }
}

/// Fills an empty database from the sidecars.
fn rebuild(
    layout: &Layout,
    records: Records,
    mut contents: Contents,
) -> Result<(Records, Contents), StoreError> {
    let mut changes = Vec::new();
    for name in layout.layers.names()? {
        let read = layout
            .layers
            .read(&format!("{name}/{LAYER_SIDECAR}"), SIDECAR_MAX);
        match read.and_then(|bytes| decode::<LayerSidecar>(&name, &bytes)) {
            Ok(sidecar) if sidecar.key.name() == name => {
                changes.push(Change::PutLayer(sidecar.key, sidecar.record.clone()));
                contents.layers.push((sidecar.key, sidecar.record));
            }
            Ok(_) => tracing::warn!(layer = name, "sidecar is of another layer"),
            Err(error) => tracing::warn!(error = wharf_types::chain(&error), "layer is lost"),
        }
    }
    for name in layout.images.names()? {
        let read = layout.images.read(&name, SIDECAR_MAX);
        match read.and_then(|bytes| decode::<ImageSidecar>(&name, &bytes)) {
            Ok(sidecar) => {
                changes.push(Change::PutImage(sidecar.image.clone()));
                contents.images.push(sidecar.image);
                for (name, record) in sidecar.names {
                    changes.push(Change::PutName(name.clone(), record.clone()));
                    contents.names.push((name, record));
                }
            }
            Err(error) => tracing::warn!(error = wharf_types::chain(&error), "image is lost"),
        }
    }
    if !changes.is_empty() {
        let (images, layers) = (contents.images.len(), contents.layers.len());
        tracing::warn!(
            images,
            layers,
            "the database was made anew from what lies beside images and layers"
        );
        records.apply(&changes)?;
    }
    Ok((records, contents))
}

/// Records whose files are gone, and what hangs on them.
fn reconcile(layout: &Layout, contents: &Contents) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut gone = std::collections::HashSet::new();
    for (key, _) in &contents.layers {
        if layout.layers.is_missing(&format!("{key}/{TREE}")) {
            gone.insert(*key);
            changes.push(Change::DropLayer(*key));
        }
    }
    let known: std::collections::HashSet<_> = contents
        .layers
        .iter()
        .map(|(key, _)| *key)
        .filter(|k| !gone.contains(k))
        .collect();
    let mut lost = std::collections::HashSet::new();
    for image in &contents.images {
        let whole = image
            .layers
            .iter()
            .all(|id| known.contains(&LayerKey::Diff(*id)));
        let name = crate::layout::blob_name(&image.id);
        let config = !layout.blobs.is_missing(&name);
        // A missing correction cannot be seen from here: its layer record says that it existed.
        let fix = wharf_types::ChainId::of(&image.layers).map(LayerKey::Fix);
        let fixed = fix.is_none_or(|key| !gone.contains(&key));
        if !(whole && config && fixed) {
            tracing::warn!(image = %image.id, "files are missing: the image must be pulled again");
            lost.insert(image.id);
            changes.push(Change::DropImage(image.id));
        }
    }
    let images: std::collections::HashSet<_> = contents.images.iter().map(|i| i.id).collect();
    for (name, record) in &contents.names {
        if lost.contains(&record.image) || !images.contains(&record.image) {
            changes.push(Change::DropName(name.clone()));
        }
    }
    changes
}

/// Files without records, and what was being written when a daemon died.
fn sweep(layout: &Layout, state: &State) -> Result<(), StoreError> {
    for name in layout.ingest.names()? {
        layout.discard(&layout.ingest, &name)?;
    }
    let known: std::collections::HashSet<_> = state.layers.keys().map(LayerKey::name).collect();
    for name in layout.layers.names()? {
        if !known.contains(&name) {
            layout.discard(&layout.layers, &name)?;
        }
    }
    let images: std::collections::HashSet<_> = state
        .images
        .keys()
        .map(|id| format!("{}.json", id.hex()))
        .collect();
    for name in layout.images.names()? {
        if !images.contains(&name) {
            layout.images.unlink(&name)?;
        }
    }
    Ok(())
}

/// Reads the snapshots back. One that is incomplete goes to the trash: its daemon died while making
/// it. One that cannot be read is kept: its container may be running.
fn recover_snapshots(layout: &Layout, state: &mut State) -> Result<(), StoreError> {
    for name in layout.snapshots.names()? {
        match read_snapshot(layout, &name) {
            Ok(Some(record)) => {
                let whole = record.stack.iter().all(|k| state.layers.contains_key(k));
                if !whole {
                    tracing::warn!(
                        snapshot = name,
                        "its layers are gone: it is kept unmountable"
                    );
                }
                let entry = SnapshotEntry {
                    record,
                    made: Mutex::new(true),
                    measured: Mutex::new(None),
                };
                state.snapshots.insert(name, Arc::new(entry));
            }
            Ok(None) => layout.discard(&layout.snapshots, &name)?,
            Err(error) => {
                let error = wharf_types::chain(&error);
                tracing::warn!(
                    snapshot = name,
                    error,
                    "kept, but not readable: no layer is collected until it is removed"
                );
                state.unread.insert(name, error);
            }
        }
    }
    Ok(())
}

/// The record of a snapshot; `None`: it is provably not complete.
fn read_snapshot(layout: &Layout, name: &str) -> Result<Option<SnapshotRecord>, StoreError> {
    let room = &layout.snapshots;
    let bytes = match room.read(&format!("{name}/{SNAPSHOT_RECORD}"), SIDECAR_MAX) {
        Err(StoreError::Io { source, .. })
            if matches!(
                source.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        bytes => bytes?,
    };
    // What a power cut leaves of a file that was never synced.
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let record = decode::<SnapshotRecord>(name, &bytes)?;
    if record.key != name {
        return Err(StoreError::Record {
            name: name.to_owned(),
            why: format!("it is of snapshot {:?}", record.key),
        });
    }
    let dir = room.open_dir(name)?;
    let complete = is_complete(&dir).map_err(io("open", &room.path(name)))?;
    Ok(complete.then_some(record))
}

/// This boot's id. Without /proc every start counts as a new boot.
fn boot_id() -> String {
    std::fs::read_to_string(BOOT_ID).map_or_else(
        |_| format!("unknown-{}", std::process::id()),
        |text| text.trim().to_owned(),
    )
}
