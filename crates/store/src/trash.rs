//! Deletes in the background what other parts moved to the trash, slowly enough not to disturb.

use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::StoreError;
use crate::layout::Layout;
use crate::tree;

/// Entries removed between two pauses.
const BURST: u32 = 64;
/// How long the pause is: at most about 30,000 entries a second.
const PAUSE: Duration = Duration::from_millis(2);
/// The lowest CPU priority.
const NICE: i32 = 19;

#[derive(Debug, Default)]
struct Orders {
    pending: bool,
    working: bool,
    hurry: u32,
    stop: bool,
}

#[derive(Debug, Default)]
struct Desk {
    orders: Mutex<Orders>,
    changed: Condvar,
}

impl Desk {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits a moment unless someone is in a hurry; `false` when the store closes.
    fn pause(&self) -> bool {
        let orders = self.orders();
        if orders.stop || orders.hurry > 0 {
            return !orders.stop;
        }
        let waited = self.changed.wait_timeout(orders, PAUSE);
        let (orders, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !orders.stop
    }

    /// Waits for work; `false` when the store closes.
    fn next(&self) -> bool {
        let mut orders = self.orders();
        orders.working = false;
        self.changed.notify_all();
        while !orders.pending && !orders.stop {
            orders = self
                .changed
                .wait(orders)
                .unwrap_or_else(PoisonError::into_inner);
        }
        orders.pending = false;
        orders.working = !orders.stop;
        !orders.stop
    }
}

/// The thread that empties the trash.
#[derive(Debug)]
pub(crate) struct Trash {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

impl Trash {
    /// Starts the thread on what a former daemon left.
    pub(crate) fn start(layout: Arc<Layout>) -> Result<Self, StoreError> {
        let desk = Arc::new(Desk::default());
        let own = Arc::clone(&desk);
        let path = layout.root().to_owned();
        let thread = std::thread::Builder::new()
            .name("wharf-trash".to_owned())
            .spawn(move || run(&layout, &own))
            .map_err(|source| StoreError::Io {
                action: "start a thread for",
                path,
                source,
            })?;
        let trash = Self {
            desk,
            thread: Some(thread),
        };
        trash.wake();
        Ok(trash)
    }

    /// Says that something was moved to the trash.
    pub(crate) fn wake(&self) {
        self.desk.orders().pending = true;
        self.desk.changed.notify_all();
    }

    /// Waits until all that was in the trash is gone, without pauses meanwhile.
    pub(crate) fn drain(&self) {
        let mut orders = self.desk.orders();
        orders.hurry += 1;
        orders.pending = true;
        self.desk.changed.notify_all();
        while (orders.pending || orders.working) && !orders.stop {
            orders = self
                .desk
                .changed
                .wait(orders)
                .unwrap_or_else(PoisonError::into_inner);
        }
        orders.hurry -= 1;
    }
}

impl Drop for Trash {
    fn drop(&mut self) {
        self.desk.orders().stop = true;
        self.desk.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported there; the next daemon goes on with what is left.
            thread.join().ok();
        }
    }
}

fn run(layout: &Layout, desk: &Desk) {
    // Without the right to be nice we are merely less nice.
    rustix::process::setpriority_process(None, NICE).ok();
    while desk.next() {
        let names = match layout.trash.names() {
            Ok(names) => names,
            Err(error) => {
                tracing::warn!(error = wharf_types::chain(&error), "trash cannot be listed");
                continue;
            }
        };
        for name in names {
            if desk.orders().stop {
                return;
            }
            let mut left = BURST;
            let mut pace = || {
                left -= 1;
                if left > 0 {
                    return true;
                }
                left = BURST;
                desk.pause()
            };
            let mut fresh = || layout.fresh(&layout.trash);
            if let Err(error) = tree::remove(layout.trash.as_fd(), &name, &mut fresh, &mut pace) {
                tracing::warn!(path = %layout.trash.path(&name).display(), %error, "trash stays");
            }
        }
    }
}
