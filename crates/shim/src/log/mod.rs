//! The containers' output: read from pipes and terminals, written as log lines, away from the
//! control thread.
//!
//! ```text
//! control thread                     log thread (one, as long as no disk stalls)
//!  Logs ──inbox + eventfd──────────►  poll(streams) → read → lines → write
//!       ◄──events + eventfd─────────  ended, reopened, gap
//!       ◄──timer (armed when a container is served)
//! ```
//!
//! When the timer rings and the container that is being served has held its thread for `STUCK_AFTER`,
//! most likely its disk stalls. A second thread takes over all others, and new ones; the stuck
//! thread keeps that one container.

mod entry; // one container's output: who serves it, where it goes
pub(crate) mod line; // the format of log lines
pub(crate) mod sink; // the log file
mod worker; // the log thread

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use crate::limits::{LOG_THREADS_MAX, REOPENS_MAX};
use entry::{Entry, locked};
pub(crate) use line::Stream;
use worker::{Reports, Worker};

/// What a log thread says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// All of a container's output was read to the end and written.
    Ended(String),
    /// The next line goes to the new file.
    Reopened(u64),
    /// Output begins to be lost.
    Gap {
        /// Whose.
        container: String,
        /// The reason in words.
        reason: String,
    },
}

/// The control thread's side.
#[derive(Debug)]
pub(crate) struct Logs {
    reports: Arc<Reports>,
    workers: Vec<Arc<Worker>>,
    containers: BTreeMap<String, Arc<Entry>>,
    own: Option<Arc<Entry>>,
    serial: u64,
}

impl Logs {
    /// Starts the log thread. `own` is where the shim's own lines go.
    ///
    /// # Errors
    ///
    /// When the kernel gives no thread or descriptor.
    pub(crate) fn start(own: Option<OwnedFd>) -> Result<Self, Errno> {
        let mut logs = Self {
            reports: Arc::new(Reports::new()?),
            workers: Vec::new(),
            containers: BTreeMap::new(),
            own: None,
            serial: 0,
        };
        logs.add_worker()?;
        if let Some(file) = own {
            let entry = logs.entry(String::new(), Some(file), Vec::new());
            logs.own = Some(entry);
        }
        Ok(logs)
    }

    /// Descriptors that become readable when [`Self::events`] or [`Self::relieve`] has work: the
    /// events' first, then the timers.
    pub(crate) fn wakers(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let timers = self.workers.iter().map(|worker| worker.timer());
        std::iter::once(self.reports.waker()).chain(timers)
    }

    /// What the log threads have said since the last call.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.reports.take()
    }

    /// Takes over a container's streams. `file` is opened for appending; without one the output is
    /// read and dropped.
    pub(crate) fn add(
        &mut self,
        name: &str,
        file: Option<OwnedFd>,
        streams: Vec<(Stream, OwnedFd)>,
    ) {
        let entry = self.entry(name.to_owned(), file, streams);
        self.containers.insert(name.to_owned(), entry);
    }

    fn entry(
        &mut self,
        name: String,
        file: Option<OwnedFd>,
        streams: Vec<(Stream, OwnedFd)>,
    ) -> Arc<Entry> {
        self.serial += 1;
        let entry = Arc::new(Entry::new(self.serial, name, file, streams));
        if let Some(worker) = self.workers.last() {
            worker.give(vec![Arc::clone(&entry)]);
        }
        entry
    }

    /// Switches a container's log to `file`; [`Event::Reopened`] with `token` says when.
    ///
    /// # Errors
    ///
    /// Gives the descriptor back when the container has no log here, or too many switches wait.
    pub(crate) fn reopen(&self, name: &str, file: OwnedFd, token: u64) -> Result<(), OwnedFd> {
        let Some(entry) = self.containers.get(name) else {
            return Err(file);
        };
        {
            let mut inbox = locked(&entry.inbox);
            if inbox.reopen.len() >= REOPENS_MAX {
                return Err(file);
            }
            inbox.reopen.push_back((token, file));
        }
        self.wake(entry);
        Ok(())
    }

    /// Closes a container's streams and log.
    pub(crate) fn remove(&mut self, name: &str) {
        let Some(entry) = self.containers.remove(name) else {
            return;
        };
        if let Some(worker) = self.owner(&entry) {
            worker.retire(entry);
        }
        self.drop_idle();
    }

    /// Writes one line into the shim's own log, if it has one and it can keep up.
    pub(crate) fn say(&self, line: &str) {
        if let Some(own) = &self.own
            && own.add_line(line)
        {
            self.wake(own);
        }
    }

    /// Gives every container but the stuck one a new thread, where a timer has rung.
    pub(crate) fn relieve(&mut self) {
        let rung: Vec<_> = self.workers.iter().filter(|w| w.rang()).cloned().collect();
        for stuck in rung {
            let Some(serial) = stuck.stuck() else {
                continue;
            };
            if stuck.count() <= 1 && self.workers.last().is_some_and(|w| !Arc::ptr_eq(w, &stuck)) {
                continue; // it has nothing else to give away
            }
            if self.workers.len() >= LOG_THREADS_MAX || self.add_worker().is_err() {
                continue;
            }
            if let Some(fresh) = self.workers.last() {
                fresh.give(stuck.give_up_all_but(serial));
            }
        }
        self.drop_idle();
    }

    fn add_worker(&mut self) -> Result<(), Errno> {
        let number = self.workers.iter().map(|w| w.number).max().unwrap_or(0) + 1;
        let worker = Worker::start(number, Arc::clone(&self.reports))?;
        self.workers.push(worker);
        Ok(())
    }

    /// Ends the threads that were stuck and have nothing left; the last in the row is the one for
    /// new containers.
    fn drop_idle(&mut self) {
        let newest = self.workers.len().saturating_sub(1);
        let mut at = 0;
        self.workers.retain(|worker| {
            let keep = at == newest || worker.count() > 0;
            at += 1;
            if !keep {
                worker.end();
            }
            keep
        });
    }

    fn owner(&self, entry: &Entry) -> Option<&Arc<Worker>> {
        self.workers.iter().find(|w| w.number == entry.owner())
    }

    fn wake(&self, entry: &Entry) {
        if let Some(worker) = self.owner(entry) {
            worker.wake();
        }
    }
}

impl Reports {
    fn waker(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
