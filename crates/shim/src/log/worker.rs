//! The log thread.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::clock::Stamp;
use crate::limits::{
    BATCH_BYTES, LOG_EVENTS_MAX, LOG_STACK_BYTES, READ_BYTES, READS_PER_TURN, STUCK_AFTER,
};
use crate::log::Event;
use crate::log::entry::{Entry, Output, locked};

/// What all log threads of a shim say to its control thread.
#[derive(Debug)]
pub(crate) struct Reports {
    events: Mutex<Vec<Event>>,
    pub(crate) wake: OwnedFd,
}

impl Reports {
    /// None yet.
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self {
            events: Mutex::default(),
            wake: waker()?,
        })
    }

    fn say(&self, event: Event) {
        {
            let mut events = locked(&self.events);
            // Ends and switches are bounded by the containers and their inboxes; gaps are not.
            if matches!(event, Event::Gap { .. }) && events.len() >= LOG_EVENTS_MAX {
                return;
            }
            events.push(event);
        }
        ring(&self.wake);
    }

    /// Everything said since the last call.
    pub(crate) fn take(&self) -> Vec<Event> {
        hush(&self.wake);
        std::mem::take(&mut *locked(&self.events))
    }
}

/// A log thread as the control thread sees it.
#[derive(Debug)]
pub(crate) struct Worker {
    /// From 1 on, unique in the shim's life.
    pub(crate) number: u32,
    entries: Mutex<Vec<Arc<Entry>>>,
    /// Entries that are closed by the thread: closing a file can take as long as writing to it.
    retired: Mutex<Vec<Arc<Entry>>>,
    /// `entries` was changed.
    changed: AtomicBool,
    ended: AtomicBool,
    wake: OwnedFd,
    /// Armed when a container is served, and left so: it rings within `STUCK_AFTER` of the last one.
    timer: OwnedFd,
    /// Serial of the container that is being served; 0 between two.
    serving: AtomicU64,
    /// Since when, by [`Worker::age`]; written before `serving`.
    since: AtomicU64,
    born: Instant,
    reports: Arc<Reports>,
}

impl Worker {
    /// Starts a thread that serves nobody yet.
    pub(crate) fn start(number: u32, reports: Arc<Reports>) -> Result<Arc<Self>, Errno> {
        let worker = Arc::new(Self {
            number,
            entries: Mutex::default(),
            retired: Mutex::default(),
            changed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            wake: waker()?,
            timer: timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
            )?,
            serving: AtomicU64::new(0),
            since: AtomicU64::new(0),
            born: Instant::now(),
            reports,
        });
        let of_thread = Arc::clone(&worker);
        thread::Builder::new()
            .name("wharf-shim-log".to_owned())
            .stack_size(LOG_STACK_BYTES)
            .spawn(move || Thread::new(&of_thread).run())
            .map_err(|e| {
                e.raw_os_error()
                    .map_or(Errno::AGAIN, Errno::from_raw_os_error)
            })?;
        Ok(worker)
    }

    /// Readable when one container has held the thread for too long.
    pub(crate) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Whether the timer has rung since the last call.
    pub(crate) fn rang(&self) -> bool {
        let mut count = [0; 8];
        rustix::io::read(&self.timer, &mut count).is_ok()
    }

    /// The container that has held the thread for `STUCK_AFTER`, asked when the timer has rung: for
    /// one that has held it for less, the timer will ring again.
    pub(crate) fn stuck(&self) -> Option<u64> {
        let serial = self.serving.load(Ordering::Acquire);
        if serial == 0 {
            // It may wait for a container that another thread still holds.
            if self.changed.load(Ordering::Acquire) {
                ring(&self.wake);
            }
            return None;
        }
        let held = self
            .age()
            .saturating_sub(self.since.load(Ordering::Relaxed));
        let left = STUCK_AFTER.saturating_sub(Duration::from_millis(held));
        if !left.is_zero() {
            self.set_timer(left);
            return None;
        }
        Some(serial)
    }

    /// Milliseconds since its start.
    fn age(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// How many containers it has.
    pub(crate) fn count(&self) -> usize {
        locked(&self.entries).len()
    }

    /// Serves `entries` too.
    pub(crate) fn give(&self, mut entries: Vec<Arc<Entry>>) {
        for entry in &entries {
            entry.set_owner(self.number);
        }
        locked(&self.entries).append(&mut entries);
        self.change();
    }

    /// Stops serving all but one, which are returned.
    pub(crate) fn give_up_all_but(&self, serial: u64) -> Vec<Arc<Entry>> {
        let mut entries = locked(&self.entries);
        let (kept, given) = entries.drain(..).partition(|entry| entry.serial == serial);
        *entries = kept;
        drop(entries);
        self.change();
        given
    }

    /// Stops serving `entry` and closes what it holds.
    pub(crate) fn retire(&self, entry: Arc<Entry>) {
        locked(&self.entries).retain(|other| other.serial != entry.serial);
        locked(&self.retired).push(entry);
        self.change();
    }

    /// The thread ends when it is free.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        ring(&self.wake);
    }

    /// Makes the thread look at the inboxes.
    pub(crate) fn wake(&self) {
        ring(&self.wake);
    }

    fn change(&self) {
        self.changed.store(true, Ordering::Release);
        ring(&self.wake);
    }

    fn set_timer(&self, after: Duration) {
        let value = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: i64::try_from(after.as_secs()).unwrap_or(1),
                tv_nsec: after.subsec_nanos().into(),
            },
        };
        // It cannot fail for a timer of ours; without it a stall would merely last longer.
        drop(timerfd_settime(
            &self.timer,
            TimerfdTimerFlags::empty(),
            &value,
        ));
    }
}

/// What only the thread itself has.
struct Thread<'a> {
    worker: &'a Arc<Worker>,
    /// The containers, and of each the streams that have not ended.
    served: Vec<(Arc<Entry>, Vec<Arc<OwnedFd>>)>,
    read: Vec<u8>,
    lines: Vec<u8>,
    /// Until when the timer is armed at least, by [`Worker::age`].
    armed: u64,
}

impl<'a> Thread<'a> {
    fn new(worker: &'a Arc<Worker>) -> Self {
        Self {
            worker,
            served: Vec::new(),
            read: vec![0; READ_BYTES],
            lines: Vec::new(),
            armed: 0,
        }
    }

    fn arm(&mut self) {
        let age = self.worker.age();
        let after = u64::try_from(STUCK_AFTER.as_millis()).unwrap_or(u64::MAX);
        self.armed = age.saturating_add(after);
        self.worker.set_timer(STUCK_AFTER);
    }

    fn run(mut self) {
        while !self.worker.ended.load(Ordering::Acquire) {
            if self.worker.changed.swap(false, Ordering::AcqRel) {
                self.look_again();
            }
            let Some(ready) = self.wait() else {
                continue;
            };
            for (at, streams) in ready {
                self.serve(at, &streams);
            }
            self.worker.serving.store(0, Ordering::Release);
        }
    }

    /// Takes over the worker's list, and closes what was retired.
    fn look_again(&mut self) {
        let entries = locked(&self.worker.entries).clone();
        self.served = entries
            .into_iter()
            .map(|entry| (entry, Vec::new()))
            .collect();
        let mut is_held = false;
        for (entry, streams) in &mut self.served {
            match entry.output.try_lock() {
                Ok(output) => streams.extend(output.sources.iter().map(|s| Arc::clone(&s.fd))),
                // The thread that had it is just writing, perhaps for long: the timer's ring makes
                // the control thread wake this one, to look again.
                Err(_) => is_held = true,
            }
        }
        if is_held {
            self.worker.changed.store(true, Ordering::Release);
            self.arm();
        }
        let retired = std::mem::take(&mut *locked(&self.worker.retired));
        drop(retired);
    }

    /// Waits, and gives which containers have work, with the streams that are ready. `None`: look
    /// at the worker's list again.
    fn wait(&self) -> Option<Vec<(usize, Vec<Arc<OwnedFd>>)>> {
        let mut polled = vec![PollFd::new(&self.worker.wake, PollFlags::IN)];
        for (_, streams) in &self.served {
            polled.extend(streams.iter().map(|fd| PollFd::new(&**fd, PollFlags::IN)));
        }
        if poll(&mut polled, None).is_err() {
            return None; // interrupted
        }
        let mut results = polled.iter().map(|fd| !fd.revents().is_empty());
        let woken = results.next().unwrap_or(false);
        if woken {
            hush(&self.worker.wake);
        }
        let mut ready = Vec::new();
        for (at, (_, streams)) in self.served.iter().enumerate() {
            let of_entry: Vec<_> = streams
                .iter()
                .filter(|_| results.next().unwrap_or(false))
                .cloned()
                .collect();
            if woken || !of_entry.is_empty() {
                ready.push((at, of_entry));
            }
        }
        Some(ready)
    }

    /// Does what one container's inbox says and reads its ready streams.
    fn serve(&mut self, at: usize, ready: &[Arc<OwnedFd>]) {
        let age = self.worker.age();
        if age >= self.armed {
            self.arm();
        }
        let Some((entry, streams)) = self.served.get_mut(at) else {
            return;
        };
        self.worker.since.store(age, Ordering::Relaxed);
        self.worker.serving.store(entry.serial, Ordering::Release);
        if entry.owner() != self.worker.number {
            return; // taken over while this thread was stuck with another
        }
        let mut output = locked(&entry.output);
        let reports = &self.worker.reports;
        follow_inbox(entry, &mut output, reports);
        let before = output.sources.len();
        for fd in ready {
            let gap = read_stream(&mut output, fd, &mut self.read, &mut self.lines);
            if let Some(reason) = gap {
                let container = entry.name.clone();
                reports.say(Event::Gap { container, reason });
            }
        }
        if self.lines.capacity() > 2 * BATCH_BYTES {
            self.lines = Vec::new();
        }
        if output.sources.len() == before {
            return;
        }
        streams.clear();
        streams.extend(output.sources.iter().map(|source| Arc::clone(&source.fd)));
        if output.sources.is_empty() {
            reports.say(Event::Ended(entry.name.clone()));
        }
    }
}

fn follow_inbox(entry: &Entry, output: &mut Output, reports: &Reports) {
    let (reopen, lines) = {
        let mut inbox = locked(&entry.inbox);
        (
            std::mem::take(&mut inbox.reopen),
            std::mem::take(&mut inbox.lines),
        )
    };
    if !lines.is_empty() {
        output.sink.write_raw(&lines);
    }
    for (token, file) in reopen {
        output.sink.reopen(file);
        reports.say(Event::Reopened(token));
    }
}

/// Reads what `fd` has, to a limit, and writes it. A stream that has ended is taken out. Gives the
/// reason when output begins to be lost.
fn read_stream(
    output: &mut Output,
    fd: &Arc<OwnedFd>,
    buffer: &mut [u8],
    lines: &mut Vec<u8>,
) -> Option<String> {
    let at = output.sources.iter().position(|s| Arc::ptr_eq(&s.fd, fd))?;
    let (sources, sink) = (&mut output.sources, &mut output.sink);
    let splitter = &mut sources.get_mut(at)?.splitter;
    let mut gap = None;
    let mut ended = false;
    lines.clear();
    for _ in 0..READS_PER_TURN {
        match rustix::io::read(fd, &mut *buffer) {
            Ok(0) => ended = true,
            Ok(n) => splitter.feed(buffer.get(..n).unwrap_or_default(), &Stamp::now(), lines),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => break,
            // A terminal says EIO when its other side was closed: by the control thread, after the
            // init's end, and by all others.
            Err(_) => ended = true,
        }
        if ended {
            splitter.finish(&Stamp::now(), lines);
            break;
        }
        if lines.len() >= BATCH_BYTES {
            gap = sink.write(lines).or(gap);
            lines.clear();
        }
    }
    gap = sink.write(lines).or(gap);
    lines.clear();
    if ended {
        sources.remove(at);
    }
    gap
}

fn waker() -> Result<OwnedFd, Errno> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
}

fn ring(waker: &OwnedFd) {
    // EAGAIN means that it is ringing already.
    let _ringing = rustix::io::write(waker, &1_u64.to_ne_bytes());
}

fn hush(waker: &OwnedFd) {
    let mut count = [0; 8];
    let _was_ringing = rustix::io::read(waker, &mut count);
}
