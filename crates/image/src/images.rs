//! The images of this node: pulled, listed, found, removed. Lists come from memory; no pull and no
//! removal keeps a reader waiting.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use wharf_registry::Client;
use wharf_store::{Checked, ImageRecord, Name, NameRecord, Store, StoreError, Usage};
use wharf_types::{DiffId, Digest, Platform, Reference};

use crate::document::{Configuration, ImageConfig, host_platform};
use crate::error::PullError;
use crate::flight::Flights;
use crate::pull::{PullRequest, Puller};

/// How often a pull begins anew when its image is removed in the moment in which it is complete.
const ATTEMPTS: usize = 3;
/// Where names are looked for first.
const NAMESPACES: [&str; 2] = ["k8s.io", "default"];

/// How images are pulled.
#[derive(Debug, Clone)]
pub struct ImagesConfig {
    /// What this node is.
    pub platform: Platform,
    /// Layers of one registry that are fetched and unpacked at the same time, over all pulls; four
    /// times as many of all registries. Each takes two threads and up to about 8 MiB, zstd with large
    /// windows more.
    pub max_parallel_layers: usize,
    /// How long a pull goes on when everybody who waited for it left: a client that retries joins it.
    pub linger: Duration,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            platform: host_platform(),
            max_parallel_layers: (cores + 1).min(8),
            linger: Duration::from_secs(10),
        }
    }
}

/// An image that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The digest of the configuration.
    pub id: Digest,
    /// `repository:tag`, full names, sorted; of all namespaces.
    pub repo_tags: Vec<String>,
    /// `repository@digest`, sorted; of all namespaces.
    pub repo_digests: Vec<String>,
    /// The names by namespace.
    pub names: Vec<(String, Reference)>,
    /// Unpacked content and configuration, in bytes; never 0.
    pub size: u64,
    /// What it says about how to run it.
    pub config: ImageConfig,
    /// The configuration as it came.
    pub config_json: Bytes,
    /// Base first.
    pub layers: Vec<DiffId>,
    /// When it was built, as its author wrote it (RFC 3339), or nothing.
    pub created: String,
    /// When it came here first, seconds since 1970.
    pub pulled: u64,
    /// What it is for.
    pub platform: Platform,
}

/// All images of this node. Clones share them.
#[derive(Debug, Clone)]
pub struct Images(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    puller: Arc<Puller>,
    pulls: Flights<PullRequest, Arc<Image>, PullError>,
    list: RwLock<Arc<Vec<Arc<Image>>>>,
    /// Held while the list is made anew, so that the newest one stays.
    rebuilding: Mutex<()>,
}

impl Images {
    /// The images that `store` holds; `client` brings more. Reads every configuration: blocks.
    pub fn new(store: Store, client: Client, config: ImagesConfig) -> Self {
        let parallel = config.max_parallel_layers;
        let puller = Arc::new(Puller::new(
            client,
            store.clone(),
            config.platform,
            parallel,
        ));
        let inner = Inner {
            store,
            puller,
            pulls: Flights::new(config.linger),
            list: RwLock::default(),
            rebuilding: Mutex::new(()),
        };
        inner.rebuild();
        Self(Arc::new(inner))
    }

    /// Pulls an image. Equal requests share one pull; it goes on when a caller leaves, and is
    /// cancelled a while after the last one left. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// The registry, the image, or the disk; see [`PullError::kind`]. Nothing is left behind then.
    pub async fn pull(&self, request: PullRequest) -> Result<Arc<Image>, PullError> {
        let key = request.clone();
        let work = || Arc::clone(&self.0).pull(request);
        Box::pin(self.0.pulls.join(key, work)).await.1
    }

    /// The image that `text` means: an id, with or without `sha256:`, the unique beginning of one, or
    /// a name with tag, digest or both; short names are docker.io's. Names win over ids.
    pub fn find(&self, text: &str) -> Option<Arc<Image>> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if let Ok(id) = format!("sha256:{hex}").parse::<Digest>() {
            return self.0.by_id(&id);
        }
        let named = text
            .parse::<Reference>()
            .ok()
            .and_then(|r| self.by_reference(&r.canonical()));
        if named.is_some() {
            return named;
        }
        if hex.is_empty() {
            return None;
        }
        let list = self.list();
        let mut matches = list.iter().filter(|image| image.id.hex().starts_with(hex));
        let first = matches.next()?;
        matches.next().is_none().then(|| Arc::clone(first))
    }

    fn by_reference(&self, reference: &Reference) -> Option<Arc<Image>> {
        let list = self.list();
        let mut found: Option<(usize, &str, &Arc<Image>)> = None;
        for image in list.iter() {
            for (namespace, name) in &image.names {
                if name != reference {
                    continue;
                }
                let rank = NAMESPACES.iter().position(|n| n == namespace);
                let rank = rank.unwrap_or(NAMESPACES.len());
                if found.is_none_or(|(r, n, _)| (rank, namespace.as_str()) < (r, n)) {
                    found = Some((rank, namespace, image));
                }
            }
        }
        found.map(|(_, _, image)| Arc::clone(image))
    }

    /// All images, by id.
    pub fn list(&self) -> Arc<Vec<Arc<Image>>> {
        Arc::clone(&self.0.list.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Removes the image that `text` means, with all its names. `false`: there is none. Its space
    /// comes back in the background, and when no container needs it.
    ///
    /// # Errors
    ///
    /// The records cannot be written.
    pub async fn remove(&self, text: &str) -> Result<bool, StoreError> {
        let Some(image) = self.find(text) else {
            return Ok(false);
        };
        let inner = Arc::clone(&self.0);
        let removed = tokio::task::spawn_blocking(move || {
            let removed = inner.store.remove_image(&image.id);
            inner.rebuild();
            removed
        });
        // The task panics only where a bug is; then nothing was removed that is still listed.
        removed.await.unwrap_or(Ok(false))
    }

    /// Takes one name from its image; the last one takes the image with it. `false`: there is no such
    /// name.
    ///
    /// # Errors
    ///
    /// The records cannot be written.
    pub async fn untag(&self, namespace: &str, reference: &Reference) -> Result<bool, StoreError> {
        let name = Name {
            namespace: namespace.to_owned(),
            reference: reference.canonical(),
        };
        let inner = Arc::clone(&self.0);
        let removed = tokio::task::spawn_blocking(move || {
            let removed = inner.store.remove_name(&name);
            inner.rebuild();
            removed
        });
        removed.await.unwrap_or(Ok(false))
    }

    /// Reads these images from the disk and says what is not as it came (see [`Store::check`]). A pull
    /// of a damaged image repairs it.
    pub async fn check(&self, images: Vec<Digest>) -> Vec<Checked> {
        let store = self.0.store.clone();
        let checked = tokio::task::spawn_blocking(move || store.check(&images));
        // The task panics only where a bug is, which the log tells.
        checked.await.unwrap_or_default()
    }

    /// Space that all images take, from records.
    pub fn usage(&self) -> Usage {
        self.0.store.image_usage()
    }

    /// The directory that holds them.
    pub fn root(&self) -> &Path {
        self.0.store.root()
    }
}

impl Inner {
    async fn pull(self: Arc<Self>, request: PullRequest) -> Result<Arc<Image>, PullError> {
        for _ in 0..ATTEMPTS {
            let list = Arc::clone(&self);
            let puller = Arc::clone(&self.puller);
            let run = puller.run(request.clone(), move || list.rebuild());
            let id = Box::pin(run).await?;
            // Not listed: removed by somebody in the same moment.
            if let Some(image) = self.by_id(&id) {
                return Ok(image);
            }
        }
        Err(PullError::Removed {
            reference: Box::new(request.reference),
        })
    }

    fn by_id(&self, id: &Digest) -> Option<Arc<Image>> {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        list.iter().find(|image| image.id == *id).map(Arc::clone)
    }

    /// Makes the list anew from the records. Configurations that were read before are not read again.
    fn rebuild(&self) {
        let _guard = self
            .rebuilding
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let old = Arc::clone(&self.list.read().unwrap_or_else(PoisonError::into_inner));
        let old: HashMap<_, _> = old
            .iter()
            .map(|image| (image.id, Arc::clone(image)))
            .collect();
        let mut list = Vec::new();
        for record in self.store.images() {
            let Some((record, names)) = self.store.image(&record.id) else {
                continue;
            };
            match self.image(&record, names, old.get(&record.id)) {
                Ok(image) => list.push(image),
                Err(error) => {
                    let error = wharf_types::chain(&*error);
                    tracing::warn!(image = %record.id, error, "not listed: pull it again");
                }
            }
        }
        *self.list.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(list);
    }

    fn image(
        &self,
        record: &ImageRecord,
        names: Vec<(Name, NameRecord)>,
        old: Option<&Arc<Image>>,
    ) -> Result<Arc<Image>, Box<dyn std::error::Error>> {
        let names: Vec<_> = names
            .into_iter()
            .map(|(n, _)| (n.namespace, n.reference))
            .collect();
        if let Some(old) = old.filter(|old| old.names == names) {
            return Ok(Arc::clone(old));
        }
        let config_json = match old {
            Some(old) => old.config_json.clone(),
            None => Bytes::from(self.store.blob(&record.id)?),
        };
        let config = Configuration::parse(&config_json)?;
        let shown = |by_tag: bool| {
            let names = names.iter().map(|(_, reference)| reference);
            let names = names.filter(|r| r.digest().is_none() == by_tag);
            let mut texts: Vec<_> = names.map(ToString::to_string).collect();
            texts.sort();
            texts.dedup();
            texts
        };
        let layers = record.layers.iter().filter_map(|id| self.store.layer(*id));
        let content: u64 = layers.map(|layer| layer.facts.content).sum();
        let own = u64::try_from(config_json.len()).unwrap_or(0);
        Ok(Arc::new(Image {
            id: record.id,
            repo_tags: shown(true),
            repo_digests: shown(false),
            size: content.saturating_add(own),
            config: config.config,
            layers: record.layers.clone(),
            created: config.created,
            pulled: record.created,
            platform: config.platform,
            names,
            config_json,
        }))
    }
}
