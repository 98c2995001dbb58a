//! One layer on its way from the registry to a finished tree.
//!
//! ```text
//! task                      inflate thread             write thread
//! body ─► sha256, size ─►  64 × 64 KiB ─► inflate ─►  4 × 512 KiB ─► sha256 (diff ID) ─► tar ─► files
//! ```
//!
//! The end of the stream is passed on only when digest and size are right, so a tree that was
//! finished is a tree that was verified. Dropping the task closes the first queue: both threads end.

use std::collections::HashMap;
use std::io::{self, BufRead, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as sync;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use wharf_registry::{BlobRequest, Client, Credentials};
use wharf_store::{Ingest, Sealed, Store, StoreError};
use wharf_sys::fault::point;
use wharf_types::{DiffId, Digest, Reference};

use crate::error::PullError;
use crate::inflate;
use crate::limits::{LAYER_MAX, RATIO_AFTER, RATIO_MAX, REGISTRY_SHARES};
use crate::tar::TarError;
use crate::unpack::{UnpackError, unpack};

/// Pieces of the compressed stream that wait to be inflated.
const PIECES_MAX: usize = 64;
/// Bytes of one such piece.
const PIECE_BYTES: usize = 64 << 10;
/// Plain buffers between inflating and writing.
const BUFFERS_MAX: usize = 4;
/// Bytes of one such buffer.
const BUFFER_BYTES: usize = 512 << 10;

/// A layer as a manifest announces it.
#[derive(Debug, Clone)]
pub(crate) struct LayerSource {
    pub(crate) reference: Reference,
    pub(crate) credentials: Credentials,
    /// Of the compressed bytes.
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Of the plain bytes, from the configuration.
    pub(crate) diff_id: DiffId,
}

/// A message to the inflate thread. Without `End` the stream was cut.
enum Feed {
    Data(Bytes),
    End,
}

/// A message to the write thread.
enum Plain {
    Data(Vec<u8>),
    End,
    Failed(io::Error),
}

/// How many layers are fetched and unpacked at the same time. Each registry has as many as the node
/// wants, and the node as many as some registries have: a slow one keeps nobody else waiting.
#[derive(Debug)]
pub(crate) struct Slots {
    each: usize,
    all: Arc<Semaphore>,
    registries: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// The right to work on one layer.
#[derive(Debug)]
pub(crate) struct Slot {
    _registry: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Slots {
    pub(crate) fn new(each: usize) -> Self {
        let each = each.clamp(1, Semaphore::MAX_PERMITS / REGISTRY_SHARES);
        Self {
            each,
            all: Arc::new(Semaphore::new(each * REGISTRY_SHARES)),
            registries: Mutex::default(),
        }
    }

    /// Waits for a slot for a layer of the registry `domain`.
    pub(crate) async fn take(&self, domain: &str) -> Result<Slot, PullError> {
        let closed = |_closed| PullError::Cancelled;
        let registry = self.registry(domain).acquire_owned().await;
        let registry = registry.map_err(closed)?;
        let all = Arc::clone(&self.all).acquire_owned().await;
        Ok(Slot {
            _registry: registry,
            _all: all.map_err(closed)?,
        })
    }

    fn registry(&self, domain: &str) -> Arc<Semaphore> {
        let mut registries = self
            .registries
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = registries.get(domain).and_then(Weak::upgrade) {
            return there;
        }
        // Those that nobody waits for or holds have all their slots: they need not be remembered.
        registries.retain(|_, registry| registry.strong_count() > 0);
        let new = Arc::new(Semaphore::new(self.each));
        registries.insert(domain.to_owned(), Arc::downgrade(&new));
        new
    }
}

/// Downloads, verifies and unpacks a layer.
pub(crate) async fn fetch(
    client: &Client,
    store: &Store,
    source: &LayerSource,
    slot: Slot,
) -> Result<Arc<Sealed>, PullError> {
    let (feed, pieces) = mpsc::channel(PIECES_MAX);
    let (done, finished) = oneshot::channel();
    let started = start_threads(store.clone(), source, pieces, done, slot);
    started.map_err(|source| PullError::Thread {
        source: Arc::new(source),
    })?;
    let downloaded = Box::pin(download(client, source, feed)).await;
    // When the download failed, the threads fail too: of a cut stream.
    let written = finished.await.unwrap_or(Err(Failure::Died));
    match (downloaded, written) {
        (Err(Stopped::Because(error)), _) => Err(error),
        (_, Err(failure)) => Err(failure.explain(source, store.root())),
        (Err(Stopped::ByUs), Ok(_)) => Err(PullError::Died),
        (Ok(()), Ok(sealed)) => Ok(Arc::new(sealed)),
    }
}

enum Stopped {
    /// The threads gave up; they know why.
    ByUs,
    Because(PullError),
}

async fn download(
    client: &Client,
    source: &LayerSource,
    feed: mpsc::Sender<Feed>,
) -> Result<(), Stopped> {
    let failed = |e| {
        let (reference, source) = (Box::new(source.reference.clone()), Arc::new(e));
        Stopped::Because(PullError::Fetch { reference, source })
    };
    let what = || format!("layer {}", source.digest);
    let mismatch = |expected: String, found: String| {
        Stopped::Because(PullError::Mismatch {
            what: what(),
            expected,
            found,
        })
    };
    if source.size > LAYER_MAX {
        return Err(Stopped::Because(PullError::TooLarge {
            what: what(),
            limit: LAYER_MAX,
        }));
    }
    let request = BlobRequest {
        digest: source.digest,
        size: source.size,
        offset: 0,
    };
    let blob = client.blob(&source.reference, request, &source.credentials);
    let mut stream = blob.await.map_err(failed)?;
    let mut hash = Sha256::new();
    let mut size = 0_u64;
    while let Some(data) = stream.next().await {
        let mut data = data.map_err(failed)?;
        size = size.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        if size > source.size {
            let found = format!("at least {size} bytes");
            return Err(mismatch(format!("{} bytes", source.size), found));
        }
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE_BYTES));
            hash.update(&piece);
            feed.send(Feed::Data(piece))
                .await
                .map_err(|_closed| Stopped::ByUs)?;
        }
    }
    if size != source.size {
        return Err(mismatch(
            format!("{} bytes", source.size),
            format!("{size} bytes"),
        ));
    }
    let found = Digest::from_hash(hash.finalize().into());
    if found != source.digest {
        return Err(mismatch(source.digest.to_string(), found.to_string()));
    }
    feed.send(Feed::End).await.map_err(|_closed| Stopped::ByUs)
}

/// Why the threads gave up.
enum Failure {
    Store(StoreError),
    Unpack(UnpackError),
    DiffId(Digest),
    Died,
}

impl Failure {
    fn explain(self, source: &LayerSource, directory: &Path) -> PullError {
        let layer = source.digest.to_string();
        match self {
            Self::Store(e) => PullError::Store {
                reference: Box::new(source.reference.clone()),
                source: Arc::new(e),
            },
            Self::Unpack(e) => match &e {
                UnpackError::Io { source, .. } if wharf_store::is_full(source) => PullError::Full {
                    directory: directory.to_owned(),
                    source: Arc::new(e),
                },
                _ => PullError::Unpack {
                    layer,
                    source: Arc::new(e),
                },
            },
            Self::DiffId(found) => PullError::Mismatch {
                what: format!("diff ID of layer {layer}"),
                expected: source.diff_id.to_string(),
                found: found.to_string(),
            },
            Self::Died => PullError::Died,
        }
    }
}

fn start_threads(
    store: Store,
    source: &LayerSource,
    pieces: mpsc::Receiver<Feed>,
    done: oneshot::Sender<Result<Sealed, Failure>>,
    slot: Slot,
) -> io::Result<()> {
    // A pull that is cancelled leaves its slot when its threads have ended, not before.
    let slot = Arc::new(slot);
    let other = Arc::clone(&slot);
    let (plain, buffers) = sync::sync_channel(BUFFERS_MAX);
    let (recycle, used) = sync::sync_channel(BUFFERS_MAX);
    let expected = source.diff_id;
    // The threads end by themselves: when the stream ends, or its other side goes.
    drop(
        std::thread::Builder::new()
            .name("wharf-unpack".to_owned())
            .spawn(move || {
                let result = store.ingest().map_err(Failure::Store);
                let result = result.and_then(|ingest| write(ingest, buffers, recycle, expected));
                // Nobody waits any more: the layer goes to the trash.
                drop(slot);
                drop(done.send(result));
            })?,
    );
    drop(
        std::thread::Builder::new()
            .name("wharf-inflate".to_owned())
            .spawn(move || {
                let end = match inflate(pieces, &plain, &used) {
                    Ok(()) => Plain::End,
                    Err(error) => Plain::Failed(error),
                };
                // The writer may have given up already.
                drop(plain.send(end));
                drop(other);
            })?,
    );
    Ok(())
}

fn inflate(
    pieces: mpsc::Receiver<Feed>,
    plain: &sync::SyncSender<Plain>,
    used: &sync::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let taken = Arc::new(AtomicU64::new(0));
    let input = Pieces {
        pieces,
        current: Bytes::new(),
        ended: false,
        taken: Arc::clone(&taken),
    };
    let mut decoder = inflate::decoder(input)?;
    let mut put_out = 0_u64;
    loop {
        let mut buffer = used.try_recv().unwrap_or_default();
        buffer.resize(BUFFER_BYTES, 0);
        let mut filled = 0;
        while filled < BUFFER_BYTES {
            match decoder.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if filled == 0 {
            return Ok(());
        }
        buffer.truncate(filled);
        put_out = put_out.saturating_add(u64::try_from(filled).unwrap_or(u64::MAX));
        check_ratio(put_out, taken.load(Ordering::Relaxed))?;
        if plain.send(Plain::Data(buffer)).is_err() {
            return Ok(());
        }
    }
}

/// Bombs end here.
fn check_ratio(put_out: u64, taken: u64) -> io::Result<()> {
    if put_out > LAYER_MAX {
        return Err(io::Error::other(
            "the layer is larger than 64 GiB when unpacked",
        ));
    }
    if put_out > RATIO_AFTER && put_out / RATIO_MAX > taken {
        return Err(io::Error::other(
            "the layer expands more than 200 times: a bomb",
        ));
    }
    Ok(())
}

fn write(
    ingest: Ingest,
    buffers: sync::Receiver<Plain>,
    recycle: sync::SyncSender<Vec<u8>>,
    expected: DiffId,
) -> Result<Sealed, Failure> {
    let mut input = Buffers {
        buffers,
        recycle,
        current: Vec::new(),
        at: 0,
        ended: false,
        hash: Sha256::new(),
    };
    let contents = ingest.contents().map_err(Failure::Store)?;
    let facts = unpack(&mut input, ingest.tree(), ingest.discard(), contents);
    let facts = facts.map_err(Failure::Unpack)?;
    // `unpack` reads to the end, so the hash covers everything.
    if !input.ended {
        return Err(Failure::Unpack(UnpackError::Tar(TarError::Truncated(0))));
    }
    let found = Digest::from_hash(input.hash.finalize().into());
    if found != expected.0 {
        return Err(Failure::DiffId(found));
    }
    point("pull: layer verified").map_err(|e| Failure::Unpack(TarError::Read(e).into()))?;
    ingest.seal(expected, facts).map_err(Failure::Store)
}

/// The compressed stream, as the inflate thread reads it.
struct Pieces {
    pieces: mpsc::Receiver<Feed>,
    current: Bytes,
    ended: bool,
    taken: Arc<AtomicU64>,
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Feed::Data(data)) => {
                    let n = u64::try_from(data.len()).unwrap_or(0);
                    self.taken.fetch_add(n, Ordering::Relaxed);
                    self.current = data;
                }
                Some(Feed::End) => self.ended = true,
                None => return Err(cut()),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, n: usize) {
        drop(self.current.split_to(n.min(self.current.len())));
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let data = self.fill_buf()?;
        let n = data.len().min(buffer.len());
        buffer[..n].copy_from_slice(&data[..n]);
        self.consume(n);
        Ok(n)
    }
}

/// The plain stream, as the write thread reads it: hashed on arrival.
struct Buffers {
    buffers: sync::Receiver<Plain>,
    recycle: sync::SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
    hash: Sha256,
}

impl BufRead for Buffers {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at >= self.current.len() && !self.ended {
            match self.buffers.recv() {
                Ok(Plain::Data(data)) => {
                    point("pull: piece of a layer taken")?;
                    self.hash.update(&data);
                    let old = std::mem::replace(&mut self.current, data);
                    self.at = 0;
                    // Full means that enough are on their way back.
                    drop(self.recycle.try_send(old));
                }
                Ok(Plain::End) => self.ended = true,
                Ok(Plain::Failed(error)) => return Err(error),
                Err(sync::RecvError) => return Err(cut()),
            }
        }
        Ok(self.current.get(self.at..).unwrap_or_default())
    }

    fn consume(&mut self, n: usize) {
        self.at = self.at.saturating_add(n).min(self.current.len());
    }
}

impl Read for Buffers {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let data = self.fill_buf()?;
        let n = data.len().min(buffer.len());
        buffer[..n].copy_from_slice(&data[..n]);
        self.consume(n);
        Ok(n)
    }
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the download ended early")
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_store::Durability;

    #[tokio::test]
    async fn a_slot_is_free_when_the_threads_have_ended_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Durability::None).unwrap();
        let source = LayerSource {
            reference: "example.com/a".parse().unwrap(),
            credentials: Credentials::Anonymous,
            digest: Digest::of(b""),
            size: 0,
            diff_id: DiffId(Digest::of(b"")),
        };
        let slots = Slots::new(1);
        let slot = slots.take("example.com").await.unwrap();
        let (feed, pieces) = mpsc::channel(PIECES_MAX);
        let (done, finished) = oneshot::channel();
        start_threads(store, &source, pieces, done, slot).unwrap();
        drop(finished);
        let again = slots.registry("example.com").try_acquire_owned();
        assert!(again.is_err(), "the threads still wait for data");
        drop(slots.take("other.example.com").await.unwrap());
        drop(feed);
        drop(slots.take("example.com").await.unwrap());
    }
}
