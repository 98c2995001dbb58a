//! What the built-in plugins share of the node: sockets, tables of rules, names.

use std::fmt::Display;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};
use wharf_sys::netlink::{self, Batch, Link, Socket};

use crate::error::{self, CniError};
use crate::ports::Ports;
use crate::rules::{Bridges, Filter, Layout, RulesError, Table, Watch};

/// Sockets that are kept for the next call.
const IDLE_SOCKETS: usize = 8;

/// Groups of our interfaces on the host, so that those whose pod is gone can be removed at once.
/// Those of the daemon and those of the program that other runtimes call are told apart.
const GROUP_DAEMON: u32 = 0x7768_0001;
const GROUP_PROGRAM: u32 = 0x7768_0002;

/// The node, as the plugins see it.
#[derive(Debug)]
pub(crate) struct Host {
    /// Whether this is the daemon, which alone changes its tables and drops the pods' namespaces
    /// after it has detached them; or a program that other runtimes call.
    pub(crate) daemon: bool,
    /// Where addresses are reserved unless the configuration says it; ends with the boot.
    pub(crate) addresses: PathBuf,
    /// Where programs of others reserve addresses of networks that have the same name.
    pub(crate) others_addresses: PathBuf,
    /// Where the plugins keep what they need to take something back.
    pub(crate) memory: PathBuf,
    /// Locked by the program that changes the rules.
    rules_lock: PathBuf,
    sockets: Mutex<Vec<Socket>>,
    filter: Arc<Mutex<Table<Filter>>>,
    bridges: Arc<Mutex<Table<Bridges>>>,
    watches: Mutex<(Option<Watch>, Option<Watch>)>,
    /// Ports of the node that are held.
    pub(crate) ports: Ports,
}

/// The value of a mutex, also after a panic of another thread: what it protects is put right by
/// the next call.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    pub(crate) fn new(state: &Path, daemon: bool) -> Self {
        let table = if daemon { "wharf" } else { "wharf_cni" };
        Self {
            daemon,
            addresses: state.join("networks"),
            others_addresses: PathBuf::from("/var/lib/cni/networks"),
            memory: state.join("plugins"),
            rules_lock: state.join("rules.lock"),
            sockets: Mutex::default(),
            filter: Arc::new(Mutex::new(Table::new(table))),
            bridges: Arc::new(Mutex::new(Table::new(table))),
            watches: Mutex::default(),
            ports: Ports::default(),
        }
    }

    /// The group of our interfaces.
    pub(crate) fn group(&self) -> u32 {
        if self.daemon {
            GROUP_DAEMON
        } else {
            GROUP_PROGRAM
        }
    }

    /// Does something with a route socket of the node.
    pub(crate) fn route<T>(
        &self,
        work: impl FnOnce(&mut Socket) -> Result<T, CniError>,
    ) -> Result<T, CniError> {
        let kept = lock(&self.sockets).pop();
        let mut socket = match kept {
            Some(socket) => socket,
            None => Socket::route().map_err(|e| failed("no route socket", e))?,
        };
        let answer = work(&mut socket);
        let mut idle = lock(&self.sockets);
        if idle.len() < IDLE_SOCKETS {
            idle.push(socket);
        }
        answer
    }

    /// Does something with the rules for IPv4 and IPv6.
    pub(crate) fn filter<T>(
        &self,
        work: impl FnOnce(&mut Table<Filter>) -> Result<T, RulesError>,
    ) -> Result<T, CniError> {
        let answer = self.change(&self.filter, work);
        self.watch(&self.filter, |watches| &mut watches.0);
        answer
    }

    /// Does something with the rules for frames on bridges.
    pub(crate) fn bridges<T>(
        &self,
        work: impl FnOnce(&mut Table<Bridges>) -> Result<T, RulesError>,
    ) -> Result<T, CniError> {
        let answer = self.change(&self.bridges, work);
        self.watch(&self.bridges, |watches| &mut watches.1);
        answer
    }

    /// The daemon knows what its tables hold; programs change theirs one after the other, and each
    /// looks first at what the one before it has left.
    fn change<L: Layout, T>(
        &self,
        table: &Mutex<Table<L>>,
        work: impl FnOnce(&mut Table<L>) -> Result<T, RulesError>,
    ) -> Result<T, CniError> {
        let alone = match self.daemon {
            true => None,
            false => Some(self.alone()?),
        };
        let mut table = lock(table);
        if alone.is_some() {
            table.forget();
        }
        work(&mut table).map_err(|e| rules_failed(&e))
    }

    /// Keeps other programs from the rules until it is dropped.
    fn alone(&self) -> Result<File, CniError> {
        let path = &self.rules_lock;
        let opened = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let opened = opened.and_then(|()| {
            let mut options = File::options();
            options.create(true).truncate(false).write(true).open(path)
        });
        let file = opened.map_err(|e| failed(path.display(), e))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(failed(path.display(), e)),
            }
        }
    }

    /// From the first rule on the daemon watches over them.
    fn watch<L: Layout>(
        &self,
        table: &Arc<Mutex<Table<L>>>,
        which: impl FnOnce(&mut (Option<Watch>, Option<Watch>)) -> &mut Option<Watch>,
    ) {
        if !self.daemon || !lock(table).is_installed() {
            return;
        }
        let mut watches = lock(&self.watches);
        let watch = which(&mut watches);
        if watch.is_none() {
            match Watch::over(table) {
                Ok(begun) => *watch = Some(begun),
                Err(error) => tracing::warn!(%error, "rules that others flush are not put back"),
            }
        }
    }
}

fn rules_failed(e: &RulesError) -> CniError {
    CniError::internal(e.to_string())
}

/// An error of the machine, saying what was tried.
pub(crate) fn failed(what: impl Display, error: impl Display) -> CniError {
    CniError::internal(format!("{what}: {error}"))
}

/// A route socket inside a pod.
pub(crate) fn socket_of(route: BorrowedFd<'_>) -> Result<Socket, CniError> {
    let own = route
        .try_clone_to_owned()
        .map_err(|e| failed("the pod's route socket", e))?;
    Socket::from_fd(own).map_err(|e| failed("the pod's route socket", e))
}

/// The namespace of a call that cannot do without.
pub(crate) fn netns_of<'a>(
    call: &crate::builtin::Invocation<'a>,
) -> Result<crate::builtin::Netns<'a>, CniError> {
    call.netns.ok_or_else(|| {
        CniError::new(
            error::UNKNOWN_CONTAINER,
            format!(
                "container {} has no network namespace any more",
                call.container_id
            ),
        )
    })
}

/// The previous result of a call that cannot do without.
pub(crate) fn previous_of<'a>(
    call: &crate::builtin::Invocation<'a>,
    plugin: &str,
) -> Result<&'a crate::result::CniResult, CniError> {
    call.prev_result.ok_or_else(|| {
        CniError::config(
            "plugins",
            format!("{plugin} changes what another plugin made: it cannot be the first of a chain"),
        )
    })
}

/// An interface of the node that has to be there.
pub(crate) fn link(socket: &mut Socket, name: &str) -> Result<Link, CniError> {
    netlink::link_by_name(socket, name)
        .map_err(|e| failed(format!("interface {name}"), e))?
        .ok_or_else(|| CniError::internal(format!("interface {name} is not there (any more)")))
}

/// Sends a batch, saying what it is about when it fails.
pub(crate) fn send(
    socket: &mut Socket,
    batch: &mut Batch,
    what: impl Display,
) -> Result<Vec<netlink::Message>, CniError> {
    socket.execute(batch).map_err(|e| failed(what, e))
}

/// Name of an interface that belongs to a container's interface: the same each time, so that it can
/// be found without a record. 15 bytes, of which the hash has 44 bits or more.
pub(crate) fn name_for(prefix: &str, container: &str, ifname: &str) -> String {
    // FNV-1a: spread, not secrecy.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in container.bytes().chain([0]).chain(ifname.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let hex = format!("{hash:016x}");
    let room = 15 - prefix.len().min(15);
    format!("{prefix}{}", &hex[..room.min(hex.len())])
}

/// The name of the host's end of a container's veth.
pub(crate) fn veth_for(container: &str, ifname: &str) -> String {
    name_for("veth", container, ifname)
}

/// Who an element of the rules belongs to.
pub(crate) fn owner(container: &str, ifname: &str) -> String {
    format!("{container} {ifname}")
}

/// Bytes of an address.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
