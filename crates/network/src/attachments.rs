//! What is attached: recorded before the act, taken down from the record. Everything here blocks; calls
//! for one container come one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use serde_json::{Map, Value};
use wharf_sys::fault;
use wharf_sys::netlink::{Batch, NetlinkError, Socket, delete_link_by_name, link_by_name};
use wharf_types::Kind;

use crate::builtin::{Attachment, Invocation, Netns};
use crate::chain::{ChainError, Runner, Subject};
use crate::config::Network;
use crate::error::CniError;
use crate::inside::ByHelper;
use crate::record::{Record, RecordError, Records, VERSION};
use crate::result::CniResult;

/// A pod's network namespace, held.
pub struct PodNetns {
    /// Where it is bound.
    pub path: PathBuf,
    /// The namespace.
    pub fd: OwnedFd,
    /// A socket of `NETLINK_ROUTE` that was opened inside.
    pub route: OwnedFd,
}

impl fmt::Debug for PodNetns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

/// Who is to be attached.
#[derive(Debug)]
pub struct AttachRequest {
    /// The container (of Kubernetes: the pod).
    pub container_id: String,
    /// Name of the interface that it gets.
    pub ifname: String,
    /// Its namespace.
    pub netns: PodNetns,
    /// `CNI_ARGS`, in order.
    pub args: Vec<(String, String)>,
    /// What is known of it, by capability (`portMappings`, `bandwidth`, `dns`…).
    pub capabilities: Map<String, Value>,
}

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// There is no network.
    #[error("the pod network is not ready: {0}")]
    NotReady(String),
    /// A plugin failed.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The attachment's record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A fault of ours.
    #[error("{0}")]
    Internal(String),
}

impl NetworkError {
    /// The class of the failure.
    pub fn kind(&self) -> Kind {
        match self {
            Self::NotReady(_) => Kind::Unavailable,
            Self::Chain(e) => e.kind(),
            Self::Record(_) | Self::Internal(_) => Kind::Internal,
        }
    }
}

/// An attachment's key: container and interface.
type Key = (String, String);

/// All attachments.
#[derive(Debug)]
pub struct Attachments {
    runner: Runner,
    records: Records,
    boot: String,
    helper: PathBuf,
    known: Mutex<BTreeMap<Key, Arc<Record>>>,
}

impl Attachments {
    /// Reads the records, and lets the built-in plugins restore what they keep of this boot's.
    ///
    /// # Errors
    ///
    /// The directory of records cannot be made or read.
    pub fn open(
        runner: Runner,
        records: Records,
        boot: String,
        helper: PathBuf,
    ) -> Result<Self, RecordError> {
        let mut known = BTreeMap::new();
        for record in records.all()? {
            match record {
                Ok(record) => {
                    let key = (record.container_id.clone(), record.ifname.clone());
                    known.insert(key, Arc::new(record));
                }
                Err(e) => tracing::error!(error = %wharf_types::chain(&e),
                    "what this attachment holds cannot be given back"),
            }
        }
        let this = Self {
            runner,
            records,
            boot,
            helper,
            known: Mutex::new(known),
        };
        this.restore();
        Ok(this)
    }

    fn restore(&self) {
        let records: Vec<_> = self.known().values().cloned().collect();
        let living = records.iter().filter(|r| r.boot == self.boot);
        let living: Vec<_> = living.collect();
        for plugin in self.runner.plugins.iter() {
            let mut calls = Vec::new();
            for record in &living {
                let mine = record.network.plugins.iter();
                let mine = mine.filter(|p| p.builtin && uses(&p.object, &p.kind, plugin.name()));
                calls.extend(mine.map(|p| Invocation {
                    network: &record.network.name,
                    version: record.network.version,
                    plugin: &p.object,
                    prev_result: record.result.as_ref(),
                    runtime_config: &record.capabilities,
                    container_id: &record.container_id,
                    ifname: &record.ifname,
                    netns: None,
                    args: &record.args,
                    delegate: &self.runner,
                }));
            }
            if let Err(error) = plugin.restore(&calls) {
                tracing::error!(plugin = plugin.name(), %error, "attachments are not whole");
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Record>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What runs the plugins.
    pub fn runner(&self) -> &Runner {
        &self.runner
    }

    /// Names of all networks that something is attached to.
    pub fn networks(&self) -> Vec<Network> {
        let mut networks = BTreeMap::new();
        for record in self.known().values() {
            networks.insert(record.network.name.clone(), record.network.clone());
        }
        networks.into_values().collect()
    }

    /// Names of the networks that this container is attached to.
    pub fn networks_of(&self, container_id: &str) -> BTreeSet<String> {
        let records = self.of(container_id).into_iter();
        records.map(|r| r.network.name.clone()).collect()
    }

    /// Containers of which something is recorded.
    pub fn containers(&self) -> BTreeSet<String> {
        self.known().keys().map(|(id, _)| id.clone()).collect()
    }

    fn of(&self, container_id: &str) -> Vec<Arc<Record>> {
        let known = self.known();
        let mine = known.iter().filter(|((id, _), _)| id == container_id);
        mine.map(|(_, record)| record.clone()).collect()
    }

    fn save(&self, record: &Record) -> Result<(), RecordError> {
        let key = (record.container_id.clone(), record.ifname.clone());
        self.known().insert(key, Arc::new(record.clone()));
        self.records.save(record)
    }

    /// Attaches. Repeated after it was done, it gives the same. After a failure [`Attachments::detach`]
    /// takes down what was done.
    ///
    /// # Errors
    ///
    /// The plugin that failed, or the record could not be written.
    pub fn attach(
        &self,
        network: &Network,
        request: &AttachRequest,
    ) -> Result<CniResult, NetworkError> {
        let before = self.of(&request.container_id);
        if let Some(record) = before.iter().find(|r| r.ifname == request.ifname) {
            match &record.result {
                Some(result) if record.complete && record.boot == self.boot => {
                    return Ok(result.clone());
                }
                // It was begun and not finished.
                _ => self.take_down(record, Some(&request.netns))?,
            }
        }
        let mut record = Record {
            version: VERSION,
            container_id: request.container_id.clone(),
            ifname: request.ifname.clone(),
            boot: self.boot.clone(),
            netns: request.netns.path.clone(),
            network: network.clone(),
            args: request.args.clone(),
            capabilities: request.capabilities.clone(),
            result: None,
            complete: false,
        };
        self.save(&record)?;
        passed(fault::point("attach network: the intent was recorded"))?;
        let inside = self.inside(&request.netns);
        let subject = subject(&record.clone(), &request.netns, &inside, |subject| {
            self.runner.add(network, subject, &mut |plugin, result| {
                record.result = Some(result.clone());
                // A built-in plugin finds what it made without being told.
                if !plugin.builtin {
                    let saved = self.save(&record);
                    saved.map_err(|e| CniError::internal(wharf_types::chain(&e)))?;
                }
                let point = fault::point("attach network: a plugin has run");
                point.map_err(|e| CniError::internal(e.to_string()))
            })
        });
        let result = match subject {
            Ok(result) => result,
            Err(e) => {
                // What is known now helps the DEL that follows, also after a restart.
                if let Err(unsaved) = self.save(&record) {
                    tracing::warn!(error = %wharf_types::chain(&unsaved), "record of an attachment");
                }
                return Err(e.into());
            }
        };
        record.result = Some(result.clone());
        record.complete = true;
        self.save(&record)?;
        passed(fault::point("attach network: the result was recorded"))?;
        Ok(result)
    }

    /// Detaches a container from every network; nothing to do is fine. `netns` is its namespace, if there
    /// still is one.
    ///
    /// # Errors
    ///
    /// The first plugin that failed; the record stays, and the next call tries again.
    pub fn detach(&self, container_id: &str, netns: Option<&PodNetns>) -> Result<(), NetworkError> {
        let mut first = Ok(());
        for record in self.of(container_id) {
            first = first.and(self.take_down(&record, netns));
        }
        first
    }

    /// Detaches one interface of a container that goes on; nothing to do is fine. The interface goes
    /// first: plugins may leave it to the end of the namespace.
    ///
    /// # Errors
    ///
    /// As [`Attachments::detach`].
    pub fn detach_one(
        &self,
        container_id: &str,
        ifname: &str,
        netns: Option<&PodNetns>,
    ) -> Result<(), NetworkError> {
        let mine = self.of(container_id);
        let Some(record) = mine.iter().find(|r| r.ifname == ifname) else {
            return Ok(());
        };
        if let Some(netns) = netns {
            let unplugged = unplug(netns, ifname);
            unplugged.map_err(|e| NetworkError::Internal(format!("remove {ifname}: {e}")))?;
        }
        self.take_down(record, netns)
    }

    /// Everything that is recorded.
    pub fn all(&self) -> Vec<Arc<Record>> {
        self.known().values().cloned().collect()
    }

    fn take_down(&self, record: &Record, netns: Option<&PodNetns>) -> Result<(), NetworkError> {
        // Whose plugin is gone cannot be asked: that matters only where something is left to be cleaned.
        let forgiving = record.boot != self.boot || !record.complete;
        let result = record.result.as_ref();
        match netns.filter(|_| record.boot == self.boot) {
            Some(netns) => {
                let inside = self.inside(netns);
                subject(record, netns, &inside, |subject| {
                    self.runner.del(&record.network, subject, result, forgiving)
                })
            }
            None => {
                let subject = Subject {
                    container_id: &record.container_id,
                    ifname: &record.ifname,
                    netns: None,
                    args: &record.args,
                    capabilities: &record.capabilities,
                };
                let network = &record.network;
                self.runner.del(network, &subject, result, forgiving)
            }
        }?;
        passed(fault::point("detach network: the plugins have run"))?;
        self.records.remove(record)?;
        let key = (record.container_id.clone(), record.ifname.clone());
        self.known().remove(&key);
        Ok(())
    }

    /// Asks the plugins whether a container's network is as it was made.
    ///
    /// # Errors
    ///
    /// The first plugin that misses something.
    pub fn check(&self, container_id: &str, netns: &PodNetns) -> Result<(), NetworkError> {
        for record in self.of(container_id) {
            let Some(result) = &record.result else {
                continue;
            };
            let inside = self.inside(netns);
            subject(&record, netns, &inside, |subject| {
                self.runner.check(&record.network, subject, result)
            })?;
        }
        Ok(())
    }

    /// Lets a network's plugins take down what belongs to none of its attachments. Nothing may be attached
    /// to it or detached from it meanwhile.
    ///
    /// # Errors
    ///
    /// The first plugin that failed.
    pub fn collect(&self, network: &Network) -> Result<(), NetworkError> {
        let valid: Vec<Attachment> = {
            let known = self.known();
            let mine = known.values().filter(|r| r.network.name == network.name);
            // What an earlier boot attached is gone; its DEL is still to come.
            let mine = mine.map(|record| Attachment {
                container_id: record.container_id.clone(),
                ifname: record.ifname.clone(),
            });
            mine.collect()
        };
        Ok(self.runner.gc(network, &valid)?)
    }

    fn inside<'a>(&'a self, netns: &'a PodNetns) -> ByHelper<'a> {
        ByHelper {
            program: &self.helper,
            netns: netns.fd.as_fd(),
        }
    }
}

/// Removes an interface inside a namespace; one that is not there is fine.
fn unplug(netns: &PodNetns, ifname: &str) -> Result<(), NetlinkError> {
    let mut socket = Socket::from_fd(netns.route.try_clone().map_err(|_full| Errno::MFILE)?)?;
    if link_by_name(&mut socket, ifname)?.is_none() {
        return Ok(());
    }
    let mut batch = Batch::new();
    delete_link_by_name(&mut batch, ifname);
    socket.execute(&mut batch).map(drop)
}

/// Calls `work` with what a record says of its container.
fn subject<T>(
    record: &Record,
    netns: &PodNetns,
    inside: &ByHelper<'_>,
    work: impl FnOnce(&Subject<'_>) -> T,
) -> T {
    work(&Subject {
        container_id: &record.container_id,
        ifname: &record.ifname,
        netns: Some(Netns {
            path: &netns.path,
            fd: netns.fd.as_fd(),
            route: netns.route.as_fd(),
            inside,
        }),
        args: &record.args,
        capabilities: &record.capabilities,
    })
}

/// A fault point.
fn passed(point: std::io::Result<()>) -> Result<(), NetworkError> {
    point.map_err(|e| NetworkError::Internal(e.to_string()))
}

/// Whether a plugin's configuration uses the plugin called `name`: itself, or for addresses.
fn uses(object: &Map<String, Value>, kind: &str, name: &str) -> bool {
    let ipam = object.get("ipam").and_then(|ipam| ipam.get("type"));
    kind == name || ipam.and_then(Value::as_str) == Some(name)
}
