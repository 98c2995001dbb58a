//! Puts back what others take away: a firewall that flushes all rules when it is reloaded, an
//! administrator's `nft flush ruleset`.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use wharf_sys::netlink::{Group, Message, Socket};
use wharf_sys::nft::change;

use super::layout::Layout;
use super::table::Table;

/// A thread that hears of every change to nftables. It ends with this value.
#[derive(Debug)]
pub struct Watch {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins to watch over a table, in the calling thread's network namespace.
    ///
    /// # Errors
    /// No netfilter socket, or no thread.
    pub fn over<L: Layout>(table: &Arc<Mutex<Table<L>>>) -> io::Result<Self> {
        let socket = Socket::netfilter().map_err(io::Error::other)?;
        socket.join(Group::Nftables).map_err(io::Error::other)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let stopped = stop.try_clone()?;
        let table = Arc::downgrade(table);
        let thread = std::thread::Builder::new()
            .name("nft-watch".to_owned())
            .spawn(move || watch(socket, &stopped, &table))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let woken = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let (Ok(_eight), Some(thread)) = (woken, self.thread.take()) {
            let _ended = thread.join();
        }
    }
}

fn watch<L: Layout>(mut socket: Socket, stop: &OwnedFd, table: &Weak<Mutex<Table<L>>>) {
    loop {
        let ready = {
            let mut fds = [
                PollFd::new(stop, PollFlags::IN),
                PollFd::new(&socket, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_n) => !fds[0].revents().contains(PollFlags::IN),
                Err(rustix::io::Errno::INTR) => continue,
                Err(_broken) => false,
            }
        };
        if !ready {
            return;
        }
        let Ok(events) = socket.events() else { return };
        let Some(table) = table.upgrade() else { return };
        let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.is_installed() && concerns(events.as_deref(), &table) {
            match table.install() {
                Ok(()) => {
                    tracing::warn!(table = table.name(), "others changed our rules: restored");
                }
                Err(error) => tracing::error!(%error, "others changed our rules; not restored"),
            }
        }
    }
}

/// Whether someone else changed the table; lost events may have said so.
fn concerns<L: Layout>(events: Option<&[Message]>, table: &Table<L>) -> bool {
    let Some(events) = events else { return true };
    events.iter().filter_map(change).any(|c| {
        c.family == L::FAMILY.number() && c.table == table.name() && c.port != table.port()
    })
}
