//! Writable layers, measured in the background: one walk at a time, each layer at most every ten
//! seconds, and never for more than a small part of the time. Nobody measures what nobody asks for.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use wharf_store::Store;

use super::usage::LayerUsage;
use crate::limits::{LAYER_MEASURED_FOR, LAYER_REST};

/// What writable layers take, as last measured.
#[derive(Debug)]
pub(super) struct Layers {
    store: Store,
    state: Mutex<State>,
    idle: Notify,
}

#[derive(Debug, Default)]
struct State {
    by_key: HashMap<String, Entry>,
    /// Each layer is in it once at most.
    queue: VecDeque<String>,
    walking: bool,
}

#[derive(Debug)]
struct Entry {
    usage: Option<LayerUsage>,
    due: Instant,
    queued: bool,
}

impl Layers {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            state: Mutex::default(),
            idle: Notify::new(),
        }
    }

    // Held for map operations only.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory below which all writable layers lie.
    pub(super) fn place(&self) -> &std::path::Path {
        self.store.root()
    }

    /// What a layer took when it was measured last.
    pub(super) fn latest(&self, key: &str) -> Option<LayerUsage> {
        self.state().by_key.get(key)?.usage
    }

    /// The layer is gone.
    pub(super) fn forget(&self, key: &str) {
        self.state().by_key.remove(key);
    }

    /// Has those measured again whose measurement is too old; waits for at most `patience`, and only
    /// when there are some that were never measured.
    pub(super) async fn refresh<'a>(
        self: &Arc<Self>,
        keys: impl Iterator<Item = &'a str>,
        patience: Duration,
    ) {
        let idle = self.idle.notified();
        let (new, start) = self.enqueue(keys);
        if start {
            tokio::spawn(self.clone().walk());
        }
        if new {
            // Late is no error: the next answer has them.
            let _late = tokio::time::timeout(patience, idle).await;
        }
    }

    /// Whether there are new ones, and whether nobody walks yet.
    fn enqueue<'a>(&self, keys: impl Iterator<Item = &'a str>) -> (bool, bool) {
        let now = Instant::now();
        let mut new = false;
        let mut state = self.state();
        for key in keys.filter(|key| !key.is_empty()) {
            let entry = state.by_key.entry(key.to_owned()).or_insert_with(|| {
                new = true;
                Entry {
                    usage: None,
                    due: now,
                    queued: false,
                }
            });
            if entry.queued || entry.due > now {
                continue;
            }
            entry.queued = true;
            state.queue.push_back(key.to_owned());
        }
        let start = !state.queue.is_empty() && !state.walking;
        state.walking |= start;
        (new, start)
    }

    /// Measures until the queue is empty.
    async fn walk(self: Arc<Self>) {
        loop {
            let key = {
                let mut state = self.state();
                let Some(key) = state.queue.pop_front() else {
                    state.walking = false;
                    break;
                };
                key
            };
            let (store, name) = (self.store.clone(), key.clone());
            let began = Instant::now();
            let walk = move || store.snapshot(&name).and_then(|layer| layer.measure());
            let measured = tokio::task::spawn_blocking(walk).await;
            let took = began.elapsed();
            let usage = match measured {
                Ok(Ok(usage)) => Some(LayerUsage {
                    at_ns: super::collect::now_ns(),
                    bytes: usage.bytes,
                    inodes: usage.inodes,
                }),
                // Removed meanwhile, or not readable now: what was known stays.
                Ok(Err(e)) => {
                    tracing::debug!(key, error = %wharf_types::chain(&e), "not measured");
                    None
                }
                Err(e) => {
                    tracing::warn!(key, error = %e, "measuring a writable layer failed");
                    None
                }
            };
            if let Some(entry) = self.state().by_key.get_mut(&key) {
                entry.usage = usage.or(entry.usage);
                entry.queued = false;
                entry.due =
                    Instant::now() + LAYER_MEASURED_FOR.max(took.saturating_mul(LAYER_REST));
            }
        }
        self.idle.notify_waiters();
    }
}
