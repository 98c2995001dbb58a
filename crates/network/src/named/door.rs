//! Create, remove, list; connect and disconnect pods. Plain words, no HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use tokio::sync::RwLock;
use wharf_sys::netlink::{Batch, Socket, delete_link_by_name, link_by_name};

use super::chain;
use super::error::{NamedError, kernel};
use super::record::{NamedNetwork, NamedSubnet, Records};
use super::subnet::{self, SubnetError};
use crate::attachments::{AttachRequest, NetworkError, PodNetns};
use crate::dns::Membership;
use crate::ip::IpNet;
use crate::limits::{INTERFACES_PER_POD, NAMED_NETWORKS_MAX, NAMES_PER_POD, NETWORK_NAME_MAX};
use crate::networks::Networks;
use crate::record::{Record, RecordError};

/// Under this key a pod's names are kept with its attachment; no plugin asks for it.
const NAMES: &str = "wharf.names";
/// Names that mean something else to clients.
const RESERVED: [&str; 4] = ["bridge", "host", "none", "default"];

/// A subnet that somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedSubnet {
    /// All addresses.
    pub subnet: IpNet,
    /// The bridge's; the first when absent.
    pub gateway: Option<IpAddr>,
    /// Pods get theirs from here.
    pub range: Option<IpNet>,
}

/// A network that is to be.
#[derive(Debug, Clone, Default)]
pub struct CreateNetwork {
    /// Its name.
    pub name: String,
    /// Its subnets, one for each family at most; an IPv4 one is chosen when there is none.
    pub subnets: Vec<WantedSubnet>,
    /// IPv6 addresses are wanted: chosen when none were given.
    pub ipv6: bool,
    /// Nothing leads out.
    pub internal: bool,
    /// For people.
    pub labels: BTreeMap<String, String>,
    /// For the driver.
    pub options: BTreeMap<String, String>,
}

/// A pod that is to be in a network.
#[derive(Debug)]
pub struct Connect {
    /// The pod's id.
    pub pod: String,
    /// Its namespace.
    pub netns: PodNetns,
    /// What it is called there: its name, then aliases and host name.
    pub names: Vec<String>,
    /// Addresses that it shall have.
    pub addresses: Vec<IpAddr>,
    /// Ports of the host that lead to it, as the capability `portMappings` has them.
    pub ports: Vec<Value>,
}

/// A pod in a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod.
    pub pod: String,
    /// The network's id.
    pub network_id: String,
    /// The pod's interface.
    pub interface: String,
    /// Its Ethernet address.
    pub mac: String,
    /// Its addresses, with the lengths of their prefixes.
    pub addresses: Vec<IpNet>,
    /// What it is called.
    pub names: Vec<String>,
}

/// All networks that people made. Cheap to clone.
#[derive(Debug, Clone)]
pub struct NamedNetworks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    networks: Networks,
    records: Records,
    known: Mutex<BTreeMap<String, NamedNetwork>>,
    /// Connecting shares it, creating and removing have it alone.
    changing: RwLock<()>,
    /// Interfaces that are being made: pod and name.
    taken: Mutex<BTreeSet<(String, String)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Held for moments, and nothing half-done can be left.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An interface's name, until it is recorded.
struct Name<'a> {
    inner: &'a Inner,
    key: (String, String),
}

impl Drop for Name<'_> {
    fn drop(&mut self) {
        lock(&self.inner.taken).remove(&self.key);
    }
}

impl NamedNetworks {
    /// Reads what is recorded below `root`. Blocks.
    ///
    /// # Errors
    ///
    /// The directory cannot be made or read.
    pub fn open(networks: Networks, root: &Path) -> Result<Self, RecordError> {
        let (records, all) = Records::open(root.join("networks"))?;
        let known = all.into_iter().map(|n| (n.id.clone(), n)).collect();
        Ok(Self(Arc::new(Inner {
            networks,
            records,
            known: Mutex::new(known),
            changing: RwLock::default(),
            taken: Mutex::default(),
        })))
    }

    /// All of them, by name.
    pub fn list(&self) -> Vec<NamedNetwork> {
        let mut all: Vec<_> = lock(&self.0.known).values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The network of this name, id, or unique beginning of one.
    ///
    /// # Errors
    ///
    /// `NotFound`, `Ambiguous`.
    pub fn get(&self, name: &str) -> Result<NamedNetwork, NamedError> {
        let known = lock(&self.0.known);
        if let Some(network) = known.values().find(|n| n.name == name || n.id == name) {
            return Ok(network.clone());
        }
        let mut begins = known.values().filter(|n| n.id.starts_with(name));
        match (begins.next(), begins.next()) {
            (Some(one), None) if !name.is_empty() => Ok(one.clone()),
            (Some(_), Some(_)) if !name.is_empty() => Err(NamedError::Ambiguous(name.to_owned())),
            _ => Err(NamedError::NotFound(name.to_owned())),
        }
    }

    /// The pods in a network.
    pub fn endpoints(&self, network: &NamedNetwork) -> Vec<Endpoint> {
        let bridge = network.bridge();
        let records = self.0.networks.attached().into_iter();
        let mine = records.filter(|r| r.network.name == bridge);
        mine.map(|r| endpoint(network, &r)).collect()
    }

    /// The networks of a pod and its names in them, as its resolver needs them.
    pub fn memberships(&self, pod: &str) -> Vec<Membership> {
        let all = self.list();
        let records = self.0.networks.attached().into_iter();
        let mine = records.filter(|r| r.container_id == pod);
        mine.filter_map(|record| {
            let network = all.iter().find(|n| n.bridge() == record.network.name)?;
            let there = endpoint(network, &record);
            Some(Membership {
                network: network.name.clone(),
                internal: network.internal,
                addresses: there.addresses.iter().map(|net| net.addr).collect(),
                names: there.names,
            })
        })
        .collect()
    }

    /// Makes a network. Its bridge comes with the first pod.
    ///
    /// # Errors
    ///
    /// The name is taken or cannot be one, a subnet overlaps another's, or the record cannot be written.
    pub async fn create(&self, asked: CreateNetwork) -> Result<NamedNetwork, NamedError> {
        let this = self.clone();
        let alone = this.0.changing.write().await;
        let named = self.clone();
        let made = tokio::task::spawn_blocking(move || named.create_alone(asked)).await;
        drop(alone);
        made.unwrap_or_else(|e| Err(fault(&e)))
    }

    /// The same for a caller on a thread of his own; nobody else changes networks meanwhile.
    fn create_alone(&self, asked: CreateNetwork) -> Result<NamedNetwork, NamedError> {
        check_name(&asked.name)?;
        let known = lock(&self.0.known).clone();
        if known.values().any(|n| n.name == asked.name) {
            return Err(NamedError::Exists(asked.name));
        }
        if known.len() >= NAMED_NETWORKS_MAX {
            return Err(NamedError::Limit {
                what: "the number of networks",
                limit: NAMED_NETWORKS_MAX,
            });
        }
        let random = || {
            wharf_sys::random::bytes::<32>().map_err(|e| NamedError::Kernel {
                action: "draw an id",
                reason: e.to_string(),
            })
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = i64::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(i64::MAX);
        let mut network = NamedNetwork::new(random()?, asked.name.clone(), now);
        network.subnets = subnets(&asked, &known, random()?)?;
        network.internal = asked.internal;
        network.labels = asked.labels;
        network.options = asked.options;
        if let Some(Err(wrong)) = chain::mtu(&network) {
            return Err(NamedError::Invalid(wrong));
        }
        self.0.records.save(&network)?;
        lock(&self.0.known).insert(network.id.clone(), network.clone());
        Ok(network)
    }

    /// Removes a network that no pod is in, with its bridge and its rules.
    ///
    /// # Errors
    ///
    /// `NotFound`, `InUse`; or what is left could not be taken down: it is still there.
    pub async fn remove(&self, name: &str) -> Result<NamedNetwork, NamedError> {
        let _alone = self.0.changing.write().await;
        let network = self.get(name)?;
        let users = self.users(&network);
        if !users.is_empty() {
            let network = network.name;
            return Err(NamedError::InUse { network, users });
        }
        self.remove_alone(network).await
    }

    async fn remove_alone(&self, network: NamedNetwork) -> Result<NamedNetwork, NamedError> {
        self.0.networks.forget(chain::chain(&network, true)).await?;
        let (named, gone) = (self.clone(), network.clone());
        let done = tokio::task::spawn_blocking(move || {
            remove_bridge(&gone.bridge())?;
            named.0.records.remove(&gone)?;
            lock(&named.0.known).remove(&gone.id);
            Ok(())
        });
        done.await.unwrap_or_else(|e| Err(fault(&e)))?;
        Ok(network)
    }

    /// Removes every network that no pod is in and that `goes` names; gives their names. One that cannot be
    /// removed stays, and is told in the log.
    pub async fn prune(&self, goes: impl Fn(&NamedNetwork) -> bool) -> Vec<String> {
        let _alone = self.0.changing.write().await;
        let mut gone = Vec::new();
        for network in self.list() {
            if !goes(&network) || !self.users(&network).is_empty() {
                continue;
            }
            match self.remove_alone(network).await {
                Ok(network) => gone.push(network.name),
                Err(error) => {
                    tracing::warn!(error = %wharf_types::chain(&error), "a network stays");
                }
            }
        }
        gone
    }

    fn users(&self, network: &NamedNetwork) -> Vec<String> {
        let endpoints = self.endpoints(network).into_iter();
        let user = |e: Endpoint| e.names.first().cloned().unwrap_or(e.pod);
        endpoints.map(user).collect()
    }

    /// Connects a pod: an interface, addresses, and the default route if it has none yet.
    ///
    /// # Errors
    ///
    /// `NotFound`, `State` when it is in the network, or the plugin that failed; then nothing is left.
    pub async fn connect(&self, name: &str, asked: Connect) -> Result<Endpoint, NamedError> {
        let _shared = self.0.changing.read().await;
        let network = self.get(name)?;
        if asked.names.len() > NAMES_PER_POD {
            return Err(NamedError::Limit {
                what: "the number of names",
                limit: NAMES_PER_POD,
            });
        }
        let mine = self.of(&asked.pod);
        if mine.iter().any(|r| r.network.name == network.bridge()) {
            return Err(NamedError::State {
                pod: asked.pod,
                state: "already connected to",
                network: network.name,
            });
        }
        let first = !mine.iter().any(|r| leads_out(r));
        let free = self.free_name(&asked.pod)?;
        let again = PodNetns {
            path: asked.netns.path.clone(),
            fd: cloned(&asked.netns.fd)?,
            route: cloned(&asked.netns.route)?,
        };
        let request = AttachRequest {
            container_id: asked.pod.clone(),
            ifname: free.key.1.clone(),
            netns: asked.netns,
            args: Vec::new(),
            capabilities: capabilities(&asked.names, &asked.addresses, asked.ports),
        };
        let networks = &self.0.networks;
        let made = networks
            .attach_to(chain::chain(&network, first), request)
            .await;
        if let Err(error) = made {
            let undone = networks
                .detach_one(&asked.pod, &free.key.1, Some(again))
                .await;
            if let Err(left) = undone {
                tracing::warn!(error = %wharf_types::chain(&left), "what was begun is not undone");
            }
            return Err(error.into());
        }
        let mine = self.of(&asked.pod).into_iter();
        let record = mine.into_iter().find(|r| r.ifname == free.key.1);
        record
            .map(|r| endpoint(&network, &r))
            .ok_or_else(|| NamedError::Invalid("the pod went meanwhile".to_owned()))
    }

    /// Disconnects a pod; `netns` is its namespace if there still is one.
    ///
    /// # Errors
    ///
    /// `NotFound`, `State` when it is not in the network, or the plugin that failed: the next call tries again.
    pub async fn disconnect(
        &self,
        name: &str,
        pod: &str,
        netns: Option<PodNetns>,
    ) -> Result<(), NamedError> {
        let _shared = self.0.changing.read().await;
        let network = self.get(name)?;
        let mut mine = self.of(pod).into_iter();
        let Some(record) = mine.find(|r| r.network.name == network.bridge()) else {
            return Err(NamedError::State {
                pod: pod.to_owned(),
                state: "not connected to",
                network: network.name,
            });
        };
        let done = self.0.networks.detach_one(pod, &record.ifname, netns).await;
        Ok(done?)
    }

    fn of(&self, pod: &str) -> Vec<Arc<Record>> {
        let records = self.0.networks.attached().into_iter();
        records.filter(|r| r.container_id == pod).collect()
    }

    fn free_name(&self, pod: &str) -> Result<Name<'_>, NamedError> {
        let mut taken = lock(&self.0.taken);
        let there: BTreeSet<String> = self.of(pod).iter().map(|r| r.ifname.clone()).collect();
        for n in 0..INTERFACES_PER_POD {
            let key = (pod.to_owned(), format!("eth{n}"));
            if !there.contains(&key.1) && taken.insert(key.clone()) {
                return Ok(Name {
                    inner: &self.0,
                    key,
                });
            }
        }
        Err(NamedError::Limit {
            what: "the number of a pod's interfaces",
            limit: INTERFACES_PER_POD,
        })
    }
}

fn fault(e: &tokio::task::JoinError) -> NamedError {
    NetworkError::Internal(format!("a fault of wharf: {e}")).into()
}

fn cloned(fd: &std::os::fd::OwnedFd) -> Result<std::os::fd::OwnedFd, NamedError> {
    fd.try_clone().map_err(|e| NamedError::Kernel {
        action: "dup",
        reason: e.to_string(),
    })
}

/// Whether a pod has a default route by this attachment.
fn leads_out(record: &Record) -> bool {
    let routes = record.result.iter().flat_map(|r| &r.routes);
    routes.into_iter().any(|route| route.dst.prefix == 0)
}

fn endpoint(network: &NamedNetwork, record: &Record) -> Endpoint {
    let result = record.result.as_ref();
    let interfaces = result.map_or(&[][..], |r| &r.interfaces);
    let own = interfaces
        .iter()
        .position(|i| i.name == record.ifname && !i.sandbox.is_empty());
    let ips = result.map_or(&[][..], |r| &r.ips).iter();
    let names = record.capabilities.get(NAMES).and_then(Value::as_array);
    let names = names.into_iter().flatten().filter_map(Value::as_str);
    Endpoint {
        pod: record.container_id.clone(),
        network_id: network.id.clone(),
        interface: record.ifname.clone(),
        mac: own
            .and_then(|n| interfaces.get(n))
            .map(|i| i.mac.clone())
            .unwrap_or_default(),
        addresses: ips
            .filter(|ip| ip.interface == own)
            .map(|ip| ip.address)
            .collect(),
        names: names.map(str::to_owned).collect(),
    }
}

fn capabilities(names: &[String], addresses: &[IpAddr], ports: Vec<Value>) -> Map<String, Value> {
    let mut known = Map::new();
    known.insert(NAMES.to_owned(), json!(names));
    if !addresses.is_empty() {
        known.insert("ips".to_owned(), json!(addresses));
    }
    if !ports.is_empty() {
        known.insert("portMappings".to_owned(), ports.into());
    }
    known
}

fn check_name(name: &str) -> Result<(), NamedError> {
    let mut letters = name.chars();
    let first = letters.next().is_some_and(|c| c.is_ascii_alphanumeric());
    let rest = letters.all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if !first || !rest || name.len() > NETWORK_NAME_MAX {
        return Err(NamedError::Invalid(format!(
            "{name:?} cannot name a network: begin with a letter or digit, use letters, digits, _ . and -, \
             at most {NETWORK_NAME_MAX}"
        )));
    }
    if RESERVED.contains(&name) {
        let text =
            format!("{name:?} is the name of a network that is always there: choose another");
        return Err(NamedError::Invalid(text));
    }
    Ok(())
}

fn subnets(
    asked: &CreateNetwork,
    known: &BTreeMap<String, NamedNetwork>,
    random: [u8; 32],
) -> Result<Vec<NamedSubnet>, NamedError> {
    let routed = subnet::routed().map_err(kernel("list routes"))?;
    let mut all: Vec<NamedSubnet> = Vec::new();
    for wanted in &asked.subnets {
        let new = subnet::given(wanted.subnet, wanted.gateway, wanted.range)?;
        if all
            .iter()
            .any(|s| s.subnet.addr.is_ipv4() == new.subnet.addr.is_ipv4())
        {
            let text = "a network has one subnet of each family at most".to_owned();
            return Err(NamedError::Invalid(text));
        }
        let theirs = known.values().flat_map(|n| {
            let owner = format!("network {:?}", n.name);
            n.subnets.iter().map(move |s| (s.subnet, owner.clone()))
        });
        let routes = routed
            .iter()
            .map(|r| (*r, "a route of this machine".to_owned()));
        let mut others = theirs.chain(routes);
        if let Some((other, owner)) = others.find(|(net, _)| net.overlaps(new.subnet)) {
            let subnet = new.subnet;
            return Err(SubnetError::Overlap {
                subnet,
                other,
                owner,
            }
            .into());
        }
        all.push(new);
    }
    if !all.iter().any(|s| s.subnet.addr.is_ipv4()) {
        let theirs = known
            .values()
            .flat_map(|n| n.subnets.iter().map(|s| s.subnet));
        let taken: Vec<IpNet> = routed.iter().copied().chain(theirs).collect();
        all.push(subnet::given(subnet::choose(&taken)?, None, None)?);
    }
    if asked.ipv6 && !all.iter().any(|s| s.subnet.addr.is_ipv6()) {
        let [a, b, c, d, e, ..] = random;
        let chosen = subnet::unique_local([a, b, c, d, e]).ok_or(SubnetError::NoneLeft)?;
        all.push(subnet::given(chosen, None, None)?);
    }
    all.sort_by_key(|s| s.subnet.addr.is_ipv6());
    Ok(all)
}

/// Removes a bridge that nothing is attached to; one that was never made is fine.
fn remove_bridge(name: &str) -> Result<(), NamedError> {
    const REMOVE: &str = "remove the bridge";
    let mut socket = Socket::route().map_err(kernel(REMOVE))?;
    if link_by_name(&mut socket, name)
        .map_err(kernel(REMOVE))?
        .is_none()
    {
        return Ok(());
    }
    let mut batch = Batch::new();
    delete_link_by_name(&mut batch, name);
    socket.execute(&mut batch).map(drop).map_err(kernel(REMOVE))
}
