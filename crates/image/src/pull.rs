//! The story of a pull: resolve, choose, configuration, layers in parallel, commit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use wharf_registry::{BlobRequest, Client, Credentials};
use wharf_store::{CORRECTION_BYTES_MAX, ImageCommit, Lease, Name, Sealed, Store, StoreError};
use wharf_sys::fault::point;
use wharf_types::{DiffId, Digest, Platform, Reference};

use crate::document::{
    Configuration, Descriptor, Document, DocumentError, Manifest, choose, platforms,
};
use crate::error::PullError;
use crate::flight::Flights;
use crate::layer::{self, LayerSource, Slots};
use crate::limits::{CONFIG_MAX, INDEX_DEPTH_MAX, MANIFEST_MAX};

/// Bytes that are hashed without leaving the async worker.
const HASHED_AT_ONCE: usize = 64 << 10;

/// What is wanted.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PullRequest {
    /// What to pull.
    pub reference: Reference,
    /// Who pulls.
    pub credentials: Credentials,
    /// Where the name is recorded: `k8s.io`, `default`…
    pub namespace: String,
    /// Exactly this platform; `None`: whatever this node runs best.
    pub platform: Option<Platform>,
}

impl std::fmt::Debug for PullRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PullRequest({} in {})", self.reference, self.namespace)
    }
}

/// What all pulls share.
#[derive(Debug)]
pub(crate) struct Puller {
    client: Client,
    store: Store,
    node: Platform,
    /// By registry too: what one is slow to send another may have.
    layers: Flights<(String, Digest, DiffId), Arc<Sealed>, PullError>,
    /// Finished layers that a pull in flight will commit.
    ready: Mutex<HashMap<DiffId, Weak<Sealed>>>,
    slots: Slots,
}

/// Verified documents of the chosen image.
struct Chosen {
    /// What the name stands for: index or manifest.
    target: Digest,
    /// From there to the manifest.
    documents: Vec<(Digest, Bytes)>,
    manifest: Manifest,
}

impl Puller {
    pub(crate) fn new(client: Client, store: Store, node: Platform, parallel: usize) -> Self {
        Self {
            client,
            store,
            node,
            // Pulls linger; layers end with their last pull.
            layers: Flights::new(Duration::ZERO),
            ready: Mutex::default(),
            slots: Slots::new(parallel),
        }
    }

    /// Pulls, and returns the image's id. A failed pull leaves nothing behind. `attempted` runs when
    /// the records may have changed, on a thread that may block, also when nobody waits any more.
    pub(crate) async fn run(
        self: Arc<Self>,
        request: PullRequest,
        attempted: impl FnOnce() + Send + 'static,
    ) -> Result<Digest, PullError> {
        let mut cleanup = Cleanup {
            store: self.store.clone(),
            armed: true,
        };
        let id = self.attempt(&request, attempted).await?;
        cleanup.armed = false;
        Ok(id)
    }

    async fn attempt(
        self: &Arc<Self>,
        request: &PullRequest,
        attempted: impl FnOnce() + Send + 'static,
    ) -> Result<Digest, PullError> {
        let chosen = self.choose(request).await?;
        passed(request, point("pull: manifest read"))?;
        let names = names_of(request, chosen.target);
        let lease = self.store.lease();
        if let Some(id) = self.already_there(request, &chosen, &names, &lease).await {
            // It may be missing in the list when its configuration was damaged then.
            let listed = tokio::task::spawn_blocking(attempted).await;
            return listed.map(|()| id).map_err(|_panicked| PullError::Died);
        }
        let (id, config_bytes) = self.configuration(request, &chosen.manifest.config).await?;
        let config = self.check(request, &chosen.manifest, &config_bytes)?;
        passed(request, point("pull: configuration read"))?;
        let sealed = self
            .layers(request, &chosen.manifest, &config, &lease)
            .await?;
        passed(request, point("pull: layers there"))?;
        let store = self.store.clone();
        let layers = config.layers;
        let committed = tokio::task::spawn_blocking(move || {
            let mut blobs: Vec<(Digest, &[u8])> = chosen
                .documents
                .iter()
                .map(|(digest, bytes)| (*digest, &bytes[..]))
                .collect();
            blobs.push((id, &config_bytes));
            let committed = store.commit_image(&ImageCommit {
                id,
                layers: &layers,
                sealed: &sealed,
                lease: &lease,
                blobs: &blobs,
                names: &names,
                target: chosen.target,
            });
            attempted();
            committed
        });
        match committed.await {
            Ok(Ok(_)) => Ok(id),
            Ok(Err(error)) => Err(stored(request, error)),
            Err(_) => Err(PullError::Died),
        }
    }

    /// The image, when the registry's answer is what the name stands for here already.
    async fn already_there(
        &self,
        request: &PullRequest,
        chosen: &Chosen,
        names: &[Name],
        lease: &Lease,
    ) -> Option<Digest> {
        let id = chosen.manifest.config.digest().ok()?;
        let (record, _) = self.store.image(&id)?;
        let named = names.iter().all(|name| {
            let held = self.store.name(name);
            held.is_some_and(|held| held.image == id && held.target == chosen.target)
        });
        let whole = lease.hold_all(&record.layers);
        // The configuration must be readable: a pull repairs what a power cut damaged.
        let there = named && whole && self.stored(id).await.is_some();
        tracing::debug!(reference = %request.reference, there, "image is known");
        there.then_some(id)
    }

    /// From the name to one manifest for this node.
    async fn choose(&self, request: &PullRequest) -> Result<Chosen, PullError> {
        let reference = &request.reference;
        let accepted = self.accepted(request);
        let top = self.client.resolve(reference, &request.credentials);
        let top = top.await.map_err(|e| fetched(request, e))?;
        passed(request, point("pull: resolved"))?;
        let (target, mut bytes) = (top.digest, top.bytes);
        let mut digest = target;
        let mut documents = Vec::new();
        for _ in 0..=INDEX_DEPTH_MAX {
            let what = || format!("manifest {digest} of {}", reference.repository());
            if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MANIFEST_MAX {
                return Err(PullError::TooLarge {
                    what: what(),
                    limit: MANIFEST_MAX,
                });
            }
            let unusable = |source| PullError::Document {
                what: what(),
                source,
            };
            let document = Document::parse(&bytes).map_err(unusable)?;
            documents.push((digest, bytes.clone()));
            let entries = match document {
                Document::Manifest(manifest) => {
                    return Ok(Chosen {
                        target,
                        documents,
                        manifest,
                    });
                }
                Document::Index(entries) => entries,
            };
            let entry = choose(&entries, &accepted);
            let entry = entry.ok_or_else(|| self.no_platform(request, platforms(&entries)))?;
            digest = entry.digest().map_err(unusable)?;
            bytes = match self.stored(digest).await {
                Some(bytes) => bytes,
                None => {
                    let got = self
                        .client
                        .manifest(reference, digest, &request.credentials);
                    got.await.map_err(|e| fetched(request, e))?.bytes
                }
            };
            let found = digest_of(&bytes).await?;
            if found != digest {
                let found = found.to_string();
                let what = format!("manifest of {}", reference.repository());
                return Err(PullError::Mismatch {
                    what,
                    expected: digest.to_string(),
                    found,
                });
            }
        }
        let source = DocumentError("indexes within indexes, more than 3 deep".to_owned());
        Err(PullError::Document {
            what: format!("index {target}"),
            source,
        })
    }

    fn accepted(&self, request: &PullRequest) -> Vec<Platform> {
        match &request.platform {
            Some(exact) => vec![exact.clone().normalised()],
            None => self.node.accepted(),
        }
    }

    fn no_platform(&self, request: &PullRequest, found: String) -> PullError {
        let node = request.platform.as_ref().unwrap_or(&self.node).to_string();
        PullError::Platform {
            reference: Box::new(request.reference.clone()),
            found,
            node,
        }
    }

    /// A document that is here already.
    async fn stored(&self, digest: Digest) -> Option<Bytes> {
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || store.blob(&digest).ok());
        read.await.ok().flatten().map(Bytes::from)
    }

    async fn configuration(
        &self,
        request: &PullRequest,
        descriptor: &Descriptor,
    ) -> Result<(Digest, Bytes), PullError> {
        let what = format!("configuration {}", descriptor.digest);
        let digest = descriptor.digest();
        let digest = digest.map_err(|source| PullError::Document {
            what: what.clone(),
            source,
        })?;
        if let Some(bytes) = self.stored(digest).await {
            return Ok((digest, bytes));
        }
        if descriptor.size > CONFIG_MAX {
            return Err(PullError::TooLarge {
                what,
                limit: CONFIG_MAX,
            });
        }
        let blob = BlobRequest {
            digest,
            size: descriptor.size,
            offset: 0,
        };
        let blob = self
            .client
            .blob(&request.reference, blob, &request.credentials);
        let mut stream = blob.await.map_err(|e| fetched(request, e))?;
        let mut bytes = Vec::new();
        while let Some(data) = stream.next().await {
            bytes.extend_from_slice(&data.map_err(|e| fetched(request, e))?);
            if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > descriptor.size {
                break;
            }
        }
        let bytes = Bytes::from(bytes);
        let found = digest_of(&bytes).await?;
        if found != digest {
            let (expected, found) = (digest.to_string(), found.to_string());
            return Err(PullError::Mismatch {
                what,
                expected,
                found,
            });
        }
        Ok((digest, bytes))
    }

    /// Whether manifest and configuration agree and are for this node.
    fn check(
        &self,
        request: &PullRequest,
        manifest: &Manifest,
        bytes: &[u8],
    ) -> Result<Configuration, PullError> {
        let what = format!("configuration {}", manifest.config.digest);
        let unusable = |source| PullError::Document {
            what: what.clone(),
            source,
        };
        let config = Configuration::parse(bytes).map_err(unusable)?;
        let (layers, ids) = (manifest.layers.len(), config.layers.len());
        if layers != ids {
            let why = format!("it names {ids} diff IDs, but the manifest has {layers} layers");
            return Err(unusable(DocumentError(why)));
        }
        let accepted = self.accepted(request);
        let platform = &config.platform;
        let fits = platform.architecture.is_empty()
            || accepted
                .iter()
                .any(|p| (&p.os, &p.architecture) == (&platform.os, &platform.architecture));
        if !fits {
            return Err(self.no_platform(request, platform.to_string()));
        }
        Ok(config)
    }

    /// The layers that are not in the store, all at once; held or sealed when it returns.
    async fn layers(
        self: &Arc<Self>,
        request: &PullRequest,
        manifest: &Manifest,
        config: &Configuration,
        lease: &Lease,
    ) -> Result<Vec<Arc<Sealed>>, PullError> {
        let mut wanted = HashMap::new();
        for (descriptor, diff_id) in manifest.layers.iter().zip(&config.layers) {
            if lease.hold(*diff_id) {
                continue;
            }
            let what = format!("layer {}", descriptor.digest);
            let unusable = |source| PullError::Document {
                what: what.clone(),
                source,
            };
            check_media_type(&descriptor.media_type).map_err(unusable)?;
            let source = LayerSource {
                reference: request.reference.clone(),
                credentials: request.credentials.clone(),
                digest: descriptor.digest().map_err(unusable)?,
                size: descriptor.size,
                diff_id: *diff_id,
            };
            wanted.insert(*diff_id, source);
        }
        let mut running = JoinSet::new();
        for source in wanted.into_values() {
            let puller = Arc::clone(self);
            running.spawn(async move { puller.layer(source).await });
        }
        let mut sealed = Vec::new();
        let mut bytes = 0_usize;
        // The first failure ends the others: dropping the set aborts them.
        while let Some(result) = running.join_next().await {
            let layer = result.map_err(|_panicked| PullError::Died)??;
            // The store would refuse them together; until then they would all be kept in memory.
            bytes = bytes.saturating_add(layer.facts().correction_bytes());
            if bytes > CORRECTION_BYTES_MAX {
                let limit = StoreError::Limit {
                    what: "bytes of names of directories that other layers describe",
                    limit: CORRECTION_BYTES_MAX,
                };
                return Err(stored(request, limit));
            }
            sealed.push(layer);
        }
        Ok(sealed)
    }

    async fn layer(self: Arc<Self>, source: LayerSource) -> Result<Arc<Sealed>, PullError> {
        let domain = source.reference.domain().to_owned();
        let key = (domain, source.digest, source.diff_id);
        loop {
            if let Some(sealed) = self.ready(source.diff_id) {
                return Ok(sealed);
            }
            let work = || {
                let (puller, source) = (Arc::clone(&self), source.clone());
                async move {
                    let slot = puller.slots.take(source.reference.domain()).await?;
                    let sealed = layer::fetch(&puller.client, &puller.store, &source, slot).await?;
                    let mut ready = puller.ready.lock().unwrap_or_else(PoisonError::into_inner);
                    ready.retain(|_, sealed| sealed.strong_count() > 0);
                    ready.insert(source.diff_id, Arc::downgrade(&sealed));
                    drop(ready);
                    Ok(sealed)
                }
            };
            match self.layers.join(key.clone(), work).await {
                // Another pull's failure may be its credentials': try with our own.
                (false, Err(_)) => {}
                (_, result) => return result,
            }
        }
    }

    fn ready(&self, diff_id: DiffId) -> Option<Arc<Sealed>> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let sealed = ready.get(&diff_id)?.upgrade()?;
        (sealed.is_pending() || self.store.has_layer(diff_id)).then_some(sealed)
    }
}

/// Collects what a failed or cancelled pull may leave: layers that only its lease held.
struct Cleanup {
    store: Store,
    armed: bool,
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        let store = self.store.clone();
        // Without a runtime the process ends, and the next start collects.
        if let (true, Ok(runtime)) = (self.armed, tokio::runtime::Handle::try_current()) {
            drop(runtime.spawn_blocking(move || {
                if let Err(error) = store.collect() {
                    tracing::warn!(
                        error = wharf_types::chain(&error),
                        "cleaning up after a pull"
                    );
                }
            }));
        }
    }
}

/// The digest of a document; one that takes milliseconds keeps no other task waiting.
async fn digest_of(bytes: &Bytes) -> Result<Digest, PullError> {
    if bytes.len() < HASHED_AT_ONCE {
        return Ok(Digest::of(bytes));
    }
    let bytes = bytes.clone();
    let digest = tokio::task::spawn_blocking(move || Digest::of(&bytes)).await;
    digest.map_err(|_panicked| PullError::Died)
}

fn names_of(request: &PullRequest, target: Digest) -> Vec<Name> {
    let name = |reference| Name {
        namespace: request.namespace.clone(),
        reference,
    };
    let named = request.reference.canonical();
    let by_digest = request.reference.with_digest(target);
    if named == by_digest {
        vec![name(named)]
    } else {
        vec![name(named), name(by_digest)]
    }
}

/// What needs more than unpacking a tar.
fn check_media_type(media_type: &str) -> Result<(), DocumentError> {
    if media_type.ends_with("+encrypted") {
        return Err(DocumentError(
            "encrypted layers are not supported yet".to_owned(),
        ));
    }
    if media_type.contains("erofs") {
        return Err(DocumentError(
            "EROFS layers from registries are not supported yet".to_owned(),
        ));
    }
    Ok(())
}

fn fetched(request: &PullRequest, error: wharf_registry::FetchError) -> PullError {
    PullError::Fetch {
        reference: Box::new(request.reference.clone()),
        source: Arc::new(error),
    }
}

/// A fault point that was passed.
fn passed(request: &PullRequest, point: std::io::Result<()>) -> Result<(), PullError> {
    point.map_err(|source| {
        let (action, path) = ("go on with", "the pull".into());
        stored(
            request,
            StoreError::Io {
                action,
                path,
                source,
            },
        )
    })
}

fn stored(request: &PullRequest, error: StoreError) -> PullError {
    PullError::Store {
        reference: Box::new(request.reference.clone()),
        source: Arc::new(error),
    }
}
