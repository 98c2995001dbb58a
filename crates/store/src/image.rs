//! Images and their names: committed whole, removed whole; and what nobody needs any more.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{getegid, geteuid};
use wharf_sys::fault::point;
use wharf_types::{ChainId, DiffId, Digest};

use crate::contents::Access;
use crate::database::Change;
use crate::error::StoreError;
use crate::fix::{self, FixError, Lower};
use crate::layer::{Ingest, Lease, Sealed};
use crate::layout::{Draft, TREE, blob_name, io, passed};
use crate::record::{
    BlobRef, CORRECTION_BYTES_MAX, ImageRecord, LayerFacts, LayerKey, LayerRecord, Name, NameRecord,
};
use crate::state::{Durability, Inner, State, Store, lock};
use crate::tree::Usage;

/// The largest document that is read back: the limit of a configuration.
const BLOB_MAX: u64 = 16 << 20;
/// Space that one directory without content takes on common file systems.
const DIRECTORY_BYTES: u64 = 4096;

/// An image that is complete but for its record.
#[derive(Debug)]
pub struct ImageCommit<'a> {
    /// The digest of the configuration.
    pub id: Digest,
    /// Base first. Each is either among `sealed` or held by `lease`.
    pub layers: &'a [DiffId],
    /// New layers.
    pub sealed: &'a [Arc<Sealed>],
    /// What holds the layers that were there.
    pub lease: &'a Lease,
    /// Manifests and the configuration: verified bytes, kept as they are.
    pub blobs: &'a [(Digest, &'a [u8])],
    /// The names that the image gets; whatever they stood for, they stand for this image now.
    pub names: &'a [Name],
    /// What the registry had under these names: index or manifest.
    pub target: Digest,
}

impl Store {
    /// Makes an image visible: data to the disk, files to their names, then one transaction for all
    /// records. A crash at any point leaves either the whole image or nothing.
    ///
    /// # Errors
    ///
    /// A layer is missing, the disk is full or fails. Nothing is visible then.
    pub fn commit_image(&self, commit: &ImageCommit<'_>) -> Result<ImageRecord, StoreError> {
        let inner = &*self.0;
        let fix = self.fix_layer(commit)?;
        let drafts = self.write_blobs(commit)?;
        passed(point("pull: documents drafted"), inner.layout.root())?;
        if inner.durability == Durability::Image && !(drafts.is_empty() && commit.sealed.is_empty())
        {
            inner.layout.sync_data()?;
            passed(point("pull: data synced"), inner.layout.root())?;
        }
        let guard = lock(&inner.writer);
        let mut changes = Vec::new();
        let mut settled = Settled {
            inner,
            layers: Vec::new(),
        };
        for sealed in commit.sealed.iter().map(AsRef::as_ref).chain(fix.as_ref()) {
            let (there, damaged) = {
                let state = inner.state();
                let there = state.layers.contains_key(&sealed.key);
                (there, state.damaged.contains(&sealed.key))
            };
            if there && !damaged {
                continue;
            }
            let home = sealed.take().ok_or_else(|| missing(&sealed.key))?;
            if there {
                home.replace(&sealed.key)?;
            } else {
                home.settle(&sealed.key)?;
                settled.layers.push(sealed.key);
            }
            passed(point("pull: layer renamed"), inner.layout.root())?;
            changes.push(Change::PutLayer(sealed.key, sealed.record.clone()));
        }
        self.settle_blobs(commit, drafts)?;
        passed(point("pull: documents renamed"), inner.layout.root())?;
        if inner.durability == Durability::Image {
            inner.layout.layers.sync()?;
            inner.layout.blobs.sync()?;
            passed(point("pull: names synced"), inner.layout.root())?;
        }
        let (record, moved) = self.record_changes(commit, &mut changes)?;
        if !changes.is_empty() {
            inner.commit(changes)?;
        }
        settled.layers.clear();
        passed(point("pull: record committed"), inner.layout.root())?;
        for id in moved.iter().chain([&commit.id]) {
            self.refresh_sidecar(id);
        }
        drop(settled);
        drop(guard);
        passed(point("pull: sidecars written"), inner.layout.root())?;
        Ok(record)
    }

    /// The record changes beside new layers, and the images that lose a name.
    fn record_changes(
        &self,
        commit: &ImageCommit<'_>,
        changes: &mut Vec<Change>,
    ) -> Result<(ImageRecord, HashSet<Digest>), StoreError> {
        let state = self.0.state();
        let known = |id: &DiffId| {
            let key = LayerKey::Diff(*id);
            state.layers.contains_key(&key)
                || changes
                    .iter()
                    .any(|c| matches!(c, Change::PutLayer(k, _) if *k == key))
        };
        if let Some(id) = commit.layers.iter().find(|id| !known(id)) {
            return Err(StoreError::NoLayer(*id));
        }
        let old = state.images.get(&commit.id);
        let mut record = old.cloned().unwrap_or_else(|| ImageRecord {
            id: commit.id,
            layers: commit.layers.to_vec(),
            blobs: Vec::new(),
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
        });
        for (digest, bytes) in commit.blobs {
            if !record.blobs.iter().any(|b| b.digest == *digest) {
                let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                record.blobs.push(BlobRef {
                    digest: *digest,
                    size,
                });
            }
        }
        if old != Some(&record) {
            changes.push(Change::PutImage(record.clone()));
        }
        let mut moved = HashSet::new();
        for name in commit.names {
            let new = NameRecord {
                image: commit.id,
                target: commit.target,
            };
            match state.names.get(name) {
                Some(old) if *old == new => continue,
                Some(old) => {
                    moved.insert(old.image);
                }
                None => {}
            }
            changes.push(Change::PutName(name.clone(), new));
        }
        // An image whose last name moved away is nobody's.
        for id in moved.iter().filter(|id| **id != commit.id) {
            let left = state
                .names_of(id)
                .into_iter()
                .any(|(n, _)| !commit.names.contains(&n));
            if !left {
                changes.push(Change::DropImage(*id));
            }
        }
        Ok((record, moved))
    }

    /// The transaction decides; a sidecar that could not be written is written at the next start.
    fn refresh_sidecar(&self, id: &Digest) {
        if let Err(error) = self.0.write_sidecar(id) {
            let error = wharf_types::chain(&error);
            tracing::warn!(image = %id, error, "the sidecar is written at the next start");
        }
    }

    /// Writes the documents that are not there yet.
    fn write_blobs(
        &self,
        commit: &ImageCommit<'_>,
    ) -> Result<HashMap<Digest, Draft<'_>>, StoreError> {
        let layout = &self.0.layout;
        let mut drafts = HashMap::new();
        for (digest, bytes) in commit.blobs {
            if self.blob(digest).is_ok() {
                continue;
            }
            let draft = layout.ingest.draft(layout.fresh(&layout.ingest));
            layout.ingest.write(draft.name(), bytes)?;
            drafts.insert(*digest, draft);
        }
        Ok(drafts)
    }

    /// Brings the documents to their names. The caller holds `writer`, so nothing is collected
    /// between the look at a document and the record that needs it.
    fn settle_blobs(
        &self,
        commit: &ImageCommit<'_>,
        mut drafts: HashMap<Digest, Draft<'_>>,
    ) -> Result<(), StoreError> {
        let layout = &self.0.layout;
        for (digest, bytes) in commit.blobs {
            if self.blob(digest).is_ok() {
                continue;
            }
            // One that a power cut left empty is repaired here.
            let name = blob_name(digest);
            layout.blobs.unlink(&name)?;
            if let Some(draft) = drafts.remove(digest) {
                draft.settle(&layout.blobs, &name)?;
                continue;
            }
            // It was there when the drafts were written, and has been collected since.
            layout.blobs.write(&name, bytes)?;
            if self.0.durability == Durability::Image {
                layout.sync_data()?;
            }
        }
        Ok(())
    }

    /// The directories that this stack of layers needs on top, if any and if not there yet.
    fn fix_layer(&self, commit: &ImageCommit<'_>) -> Result<Option<Sealed>, StoreError> {
        let Some(chain) = ChainId::of(commit.layers) else {
            return Ok(None);
        };
        let key = LayerKey::Fix(chain);
        let stack = {
            let mut state = self.0.state();
            state.leases.entry(commit.lease.id).or_default().insert(key);
            if state.has(&key) {
                return Ok(None);
            }
            self.lowers(&state, commit)?
        };
        if stack
            .iter()
            .all(|(_, f)| f.implied.is_empty() && f.whiteouts_in.is_empty())
        {
            return Ok(None);
        }
        let opened = stack
            .into_iter()
            .map(|(tree, facts)| Ok((tree.open(&self.0)?, facts)))
            .collect::<Result<Vec<_>, StoreError>>()?;
        let lowers: Vec<_> = opened
            .iter()
            .map(|(fd, facts)| Lower {
                tree: fd.as_fd(),
                facts,
            })
            .collect();
        let failed = io("correct directories of", self.0.layout.root());
        let plan = fix::plan(&lowers).map_err(|error| match error {
            FixError::Kernel(error) => failed(error),
            FixError::TooMuch { what, limit } => StoreError::Limit { what, limit },
        })?;
        if plan.is_empty() {
            return Ok(None);
        }
        let ingest = Ingest::new(&self.0)?;
        let write = |source| StoreError::Io {
            action: "correct directories of",
            path: self.0.layout.root().to_owned(),
            source,
        };
        let mut contents = ingest.contents()?;
        let root = Access {
            mode: 0o755,
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
        };
        contents.directory(b"", root, false).map_err(write)?;
        fix::write(ingest.tree(), &mut contents, &plan).map_err(write)?;
        let inodes = u64::try_from(plan.len()).unwrap_or(u64::MAX);
        let facts = LayerFacts {
            entries: inodes,
            usage: Usage {
                bytes: inodes.saturating_mul(DIRECTORY_BYTES),
                inodes,
            },
            contents: contents.finish().map_err(write)?,
            ..LayerFacts::default()
        };
        ingest.seal_as(key, facts).map(Some)
    }

    /// The layers of a commit, top first, each once.
    fn lowers(
        &self,
        state: &State,
        commit: &ImageCommit<'_>,
    ) -> Result<Vec<(Tree, LayerFacts)>, StoreError> {
        let sealed: HashMap<_, _> = commit.sealed.iter().map(|s| (s.key, s)).collect();
        let mut stack = Vec::new();
        let mut bytes = 0;
        for id in mount_order(commit.layers) {
            let key = LayerKey::Diff(id);
            // The sealed one first: it cannot be collected.
            let (tree, record) = match (sealed.get(&key), state.layers.get(&key)) {
                (None, Some(record)) => (Tree::Layer(key), record),
                (Some(sealed), _) => {
                    let copy = sealed.tree.try_clone();
                    let copy = copy.map_err(|source| StoreError::Io {
                        action: "open",
                        path: self.0.layout.root().to_owned(),
                        source,
                    })?;
                    (Tree::Sealed(copy), &sealed.record)
                }
                (None, None) => return Err(StoreError::NoLayer(id)),
            };
            bytes += record.facts.correction_bytes();
            if bytes > CORRECTION_BYTES_MAX {
                return Err(StoreError::Limit {
                    what: "bytes of names of directories that other layers describe",
                    limit: CORRECTION_BYTES_MAX,
                });
            }
            let hides_all = record.facts.opaque_root;
            stack.push((tree, record.facts.clone()));
            if hides_all {
                break;
            }
        }
        Ok(stack)
    }

    /// A stored document, verified.
    ///
    /// # Errors
    ///
    /// It is not there, or not what its digest says.
    pub fn blob(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let room = &self.0.layout.blobs;
        let bytes = match room.read(&blob_name(digest), BLOB_MAX) {
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::NoBlob(*digest));
            }
            bytes => bytes?,
        };
        if Digest::of(&bytes) == *digest {
            Ok(bytes)
        } else {
            Err(StoreError::CorruptBlob(*digest))
        }
    }

    /// All images.
    pub fn images(&self) -> Vec<ImageRecord> {
        self.0.state().images.values().cloned().collect()
    }

    /// One image with all its names.
    pub fn image(&self, id: &Digest) -> Option<(ImageRecord, Vec<(Name, NameRecord)>)> {
        let state = self.0.state();
        let record = state.images.get(id)?.clone();
        Some((record, state.names_of(id)))
    }

    /// What a name stands for.
    pub fn name(&self, name: &Name) -> Option<NameRecord> {
        self.0.state().names.get(name).cloned()
    }

    /// What is known about a layer.
    pub fn layer(&self, id: DiffId) -> Option<LayerRecord> {
        self.0.state().layers.get(&LayerKey::Diff(id)).cloned()
    }

    /// Removes an image with all its names, in one transaction. `false`: there was none. Layers that
    /// a snapshot or another image needs stay.
    ///
    /// # Errors
    ///
    /// The records cannot be written.
    pub fn remove_image(&self, id: &Digest) -> Result<bool, StoreError> {
        let guard = lock(&self.0.writer);
        let mut changes = {
            let state = self.0.state();
            if !state.images.contains_key(id) {
                return Ok(false);
            }
            let names = state.names_of(id).into_iter();
            names
                .map(|(name, _)| Change::DropName(name))
                .collect::<Vec<_>>()
        };
        changes.push(Change::DropImage(*id));
        self.0.commit(changes)?;
        passed(point("remove image: record removed"), self.root())?;
        self.refresh_sidecar(id);
        passed(point("remove image: sidecar removed"), self.root())?;
        drop(guard);
        self.collect()?;
        Ok(true)
    }

    /// Takes one name from its image; with its last name the image goes, as by [`Store::remove_image`].
    /// `false`: there was no such name.
    ///
    /// # Errors
    ///
    /// The records cannot be written.
    pub fn remove_name(&self, name: &Name) -> Result<bool, StoreError> {
        let guard = lock(&self.0.writer);
        let (image, last) = {
            let state = self.0.state();
            let Some(record) = state.names.get(name) else {
                return Ok(false);
            };
            (record.image, state.names_of(&record.image).len() == 1)
        };
        let mut changes = vec![Change::DropName(name.clone())];
        changes.extend(last.then_some(Change::DropImage(image)));
        self.0.commit(changes)?;
        self.refresh_sidecar(&image);
        drop(guard);
        if last {
            self.collect()?;
        }
        Ok(true)
    }

    /// Moves layers and documents that nobody needs to the trash: no image, no snapshot, no lease.
    /// Returns how many there were.
    ///
    /// # Errors
    ///
    /// The records cannot be written, or files cannot be moved.
    pub fn collect(&self) -> Result<usize, StoreError> {
        let inner = &*self.0;
        let _guard = lock(&inner.writer);
        // Taken out of the map at once: no new snapshot can begin to rely on them.
        let (dead, blobs) = {
            let mut state = inner.state();
            let needed = needed_layers(&state);
            // Nobody knows what a snapshot that cannot be read needs.
            let unknown = !state.unread.is_empty();
            let keys: Vec<_> = state
                .layers
                .keys()
                .filter(|k| !unknown && !needed.contains(*k))
                .copied()
                .collect();
            let dead: Vec<_> = keys
                .iter()
                .filter_map(|k| state.layers.remove_entry(k))
                .collect();
            let blobs: HashSet<_> = state
                .images
                .values()
                .flat_map(|image| image.blobs.iter().map(|b| blob_name(&b.digest)))
                .collect();
            (dead, blobs)
        };
        if !dead.is_empty() {
            let changes = dead
                .iter()
                .map(|(key, _)| Change::DropLayer(*key))
                .collect();
            if let Err(error) = inner.commit(changes) {
                inner.state().layers.extend(dead);
                return Err(error);
            }
            passed(point("collect: layers dropped"), self.root())?;
        }
        let mut count = dead.len();
        // Whatever fails with one, the others go; and what was moved is deleted.
        let mut failed = Vec::new();
        for (key, _) in dead {
            let moved = inner.layout.discard(&inner.layout.layers, &key.name());
            let moved = moved
                .and_then(|()| passed(point("collect: layer moved to the trash"), self.root()));
            failed.extend(moved.err());
        }
        match self.collect_documents(&blobs) {
            Ok(documents) => count += documents,
            Err(error) => failed.push(error),
        }
        failed.extend(inner.collect_retired().err());
        inner.trash.wake();
        failed.into_iter().next().map_or(Ok(count), Err)
    }

    /// Removes documents but those in `needed`.
    fn collect_documents(&self, needed: &HashSet<String>) -> Result<usize, StoreError> {
        let room = &self.0.layout.blobs;
        let mut count = 0;
        for name in room.names()? {
            if !needed.contains(&name) {
                room.unlink(&name)?;
                passed(point("collect: document removed"), self.root())?;
                count += 1;
            }
        }
        Ok(count)
    }
}

/// The layers that something needs.
fn needed_layers(state: &State) -> HashSet<LayerKey> {
    let mut needed = HashSet::new();
    for image in state.images.values() {
        needed.extend(image.layers.iter().map(|id| LayerKey::Diff(*id)));
        needed.extend(ChainId::of(&image.layers).map(LayerKey::Fix));
    }
    for snapshot in state.snapshots.values() {
        needed.extend(snapshot.record.stack.iter().copied());
    }
    needed.extend(state.leases.values().flatten().copied());
    needed
}

/// Top first, each layer once: a repeated one counts where it is highest. Overlayfs refuses the
/// same directory twice, and the lower copy could contribute nothing.
pub(crate) fn mount_order(layers: &[DiffId]) -> Vec<DiffId> {
    let mut seen = HashSet::new();
    layers
        .iter()
        .rev()
        .filter(|id| seen.insert(**id))
        .copied()
        .collect()
}

/// Where a layer of a stack can be opened.
enum Tree {
    Layer(LayerKey),
    Sealed(OwnedFd),
}

impl Tree {
    fn open(self, inner: &Inner) -> Result<OwnedFd, StoreError> {
        match self {
            Self::Sealed(fd) => Ok(fd),
            Self::Layer(key) => inner.layout.layers.open_dir(&format!("{key}/{TREE}")),
        }
    }
}

fn missing(key: &LayerKey) -> StoreError {
    match key {
        LayerKey::Diff(id) => StoreError::NoLayer(*id),
        LayerKey::Fix(id) => StoreError::NoLayer(DiffId(id.0)),
    }
}

/// Layers renamed into place that no record names yet: undone unless the commit succeeds.
struct Settled<'a> {
    inner: &'a Inner,
    layers: Vec<LayerKey>,
}

impl Drop for Settled<'_> {
    fn drop(&mut self) {
        for key in self.layers.drain(..) {
            let layout = &self.inner.layout;
            if let Err(error) = layout.discard(&layout.layers, &key.name()) {
                tracing::warn!(
                    error = wharf_types::chain(&error),
                    "left until the next start"
                );
            }
        }
        self.inner.trash.wake();
    }
}
