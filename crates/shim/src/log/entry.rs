//! One container's output: who serves it, where it goes, what it is asked to do.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limits::OWN_LOG_BYTES;
use crate::log::line::{Splitter, Stream};
use crate::log::sink::Sink;

/// One container.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Unique in the shim's life.
    pub(crate) serial: u64,
    /// The container's id; empty for the shim's own log.
    pub(crate) name: String,
    /// The number of the log thread that serves it.
    owner: AtomicU32,
    /// Held for moments only.
    pub(crate) inbox: Mutex<Inbox>,
    /// Held by a log thread while it reads and writes, so as long as a disk stalls: never locked by
    /// the control thread.
    pub(crate) output: Mutex<Output>,
}

/// What the control thread asks for.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    /// Log files to switch to, in order, with the token of the answer.
    pub(crate) reopen: VecDeque<(u64, OwnedFd)>,
    /// Lines of the shim's own log.
    pub(crate) lines: Vec<u8>,
}

/// Streams and file.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) sink: Sink,
    pub(crate) sources: Vec<Source>,
}

/// One stream that has not ended.
#[derive(Debug)]
pub(crate) struct Source {
    /// Shared with the log thread's list for `poll`.
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) splitter: Splitter,
}

impl Entry {
    /// Served by nobody yet.
    pub(crate) fn new(
        serial: u64,
        name: String,
        file: Option<OwnedFd>,
        streams: Vec<(Stream, OwnedFd)>,
    ) -> Self {
        let sources = streams
            .into_iter()
            .map(|(stream, fd)| Source {
                fd: Arc::new(fd),
                splitter: Splitter::new(stream),
            })
            .collect();
        Self {
            serial,
            name,
            owner: AtomicU32::new(0),
            inbox: Mutex::default(),
            output: Mutex::new(Output {
                sink: Sink::new(file),
                sources,
            }),
        }
    }

    /// The number of the thread that serves it.
    pub(crate) fn owner(&self) -> u32 {
        self.owner.load(Ordering::Acquire)
    }

    /// Thread `number` serves it from now on.
    pub(crate) fn set_owner(&self, number: u32) {
        self.owner.store(number, Ordering::Release);
    }

    /// Adds a line to be written as it is; false when too many wait.
    pub(crate) fn add_line(&self, line: &str) -> bool {
        let mut inbox = locked(&self.inbox);
        if inbox.lines.len() + line.len() >= OWN_LOG_BYTES {
            return false;
        }
        inbox.lines.extend_from_slice(line.as_bytes());
        inbox.lines.push(b'\n');
        true
    }
}

/// Locks; what a thread that panicked left behind is whole between calls, so it is used on.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
