//! `host-local`: addresses of this node's ranges.

mod ranges; // which addresses are offered
mod store; // which of them are taken

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value};
use wharf_sys::netlink::link_by_name;

use self::ranges::{Range, Ranges, next};
use self::store::{Holder, Known, Store, key};
use super::host::{Host, failed, lock, veth_for};
use crate::builtin::{Attachment, Builtin, Invocation};
use crate::error::{CniError, TRY_AGAIN};
use crate::ip::IpNet;
use crate::result::{CniResult, Dns, IpConfig};

/// How much of a resolv.conf is read.
const MAX_RESOLV_CONF: u64 = 64 << 10;

/// The plugin.
#[derive(Debug)]
pub(crate) struct HostLocal {
    host: Arc<Host>,
    known: Mutex<HashMap<PathBuf, Known>>,
}

impl HostLocal {
    pub(crate) fn new(host: Arc<Host>) -> Self {
        Self {
            host,
            known: Mutex::default(),
        }
    }

    /// Does something with the reservations of a network.
    fn with_store<T>(
        &self,
        network: &str,
        ranges: &Ranges,
        work: impl FnOnce(&mut Store<'_>) -> Result<T, CniError>,
    ) -> Result<T, CniError> {
        if network.is_empty() || network.starts_with('.') || network.contains('/') {
            return Err(CniError::config(
                "name",
                format!("{network:?} cannot name a directory"),
            ));
        }
        let base = ranges.data_dir.as_ref();
        let directory = base
            .map_or_else(|| self.host.addresses.clone(), PathBuf::from)
            .join(network);
        let mut known = lock(&self.known);
        let mut store = Store::open(directory.clone(), &mut known).map_err(|e| {
            failed(
                format!("reservations of addresses, {}", directory.display()),
                e,
            )
        })?;
        work(&mut store)
    }

    /// Whether the address is held by a plugin of another runtime since this boot.
    fn is_others(&self, network: &str, ranges: &Ranges, address: IpAddr) -> bool {
        if ranges.data_dir.is_some() {
            return false;
        }
        let path = self
            .host
            .others_addresses
            .join(network)
            .join(address.to_string());
        let Ok(changed) = fs::metadata(path).and_then(|m| m.modified()) else {
            return false;
        };
        let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let up = std::time::Duration::from_secs(u64::try_from(up.tv_sec).unwrap_or(0));
        changed.elapsed().is_ok_and(|age| age < up)
    }

    fn allocate(
        &self,
        call: &Invocation<'_>,
        ranges: &Ranges,
        store: &mut Store<'_>,
    ) -> Result<Vec<IpConfig>, CniError> {
        let mut asked = ranges.requested.clone();
        let mine = store.of(call.container_id, call.ifname);
        let mut given = Vec::new();
        for (number, set) in ranges.sets.iter().enumerate() {
            let in_set = |a: &IpAddr| set.iter().any(|r| r.contains(*a));
            let wish = asked.iter().position(&in_set).map(|i| asked.remove(i));
            let has = mine.iter().copied().find(|a| in_set(a));
            let address = match (has, wish) {
                // A program answers as the specification says: adding twice is an error.
                (Some(has), _) if !self.host.daemon => {
                    return Err(CniError::internal(format!(
                        "{has} has been given to {} already",
                        call.container_id
                    )));
                }
                (Some(has), wish) if wish.is_none_or(|w| w == has) => has,
                (_, Some(wish)) => self.take_wish(call, ranges, store, (number, wish))?,
                (_, None) => self.take_next(call, ranges, store, number)?,
            };
            let range = set.iter().find(|r| r.contains(address)).unwrap_or(&set[0]);
            given.push(IpConfig {
                address: IpNet {
                    addr: address,
                    prefix: range.subnet.prefix,
                },
                gateway: Some(range.gateway),
                interface: None,
            });
        }
        if let Some(left) = asked.first() {
            let text = format!(
                "{left} was asked for and is in no range of network {}",
                call.network
            );
            return Err(CniError::config("ips", text));
        }
        Ok(given)
    }

    fn take_wish(
        &self,
        call: &Invocation<'_>,
        ranges: &Ranges,
        store: &mut Store<'_>,
        (set, wish): (usize, IpAddr),
    ) -> Result<IpAddr, CniError> {
        if ranges.sets[set].iter().any(|r| r.gateway == wish) {
            return Err(CniError::config(
                "ips",
                format!("{wish} is the gateway of its network"),
            ));
        }
        if self.take(call, ranges, store, (set, wish))? {
            return Ok(wish);
        }
        let by = match store.holder(wish) {
            Some(Holder::Container(c)) => format!("container {}", c.replace("\r\n", " ")),
            Some(Holder::Released(veth)) => format!("interface {veth}, which is still going"),
            None => "a plugin of another runtime".to_owned(),
        };
        Err(CniError::internal(format!(
            "{wish} was asked for and is taken by {by}"
        )))
    }

    /// The next free one behind that which was given last, so that none is used again soon.
    fn take_next(
        &self,
        call: &Invocation<'_>,
        ranges: &Ranges,
        store: &mut Store<'_>,
        number: usize,
    ) -> Result<IpAddr, CniError> {
        let set = &ranges.sets[number];
        let begin = store
            .last(number)
            .and_then(|last| behind(set, last))
            .unwrap_or((0, set[0].start));
        let mut at = begin;
        loop {
            let range = &set[at.0];
            if at.1 != range.gateway && self.take(call, ranges, store, (number, at.1))? {
                return Ok(at.1);
            }
            at = if at.1 == range.end {
                let first = (at.0 + 1) % set.len();
                (first, set[first].start)
            } else {
                (at.0, next(at.1))
            };
            if at == begin {
                break;
            }
        }
        let from = set.iter().map(|r| format!("{}-{}", r.start, r.end));
        let from = from.collect::<Vec<_>>().join(", ");
        Err(CniError::new(
            TRY_AGAIN,
            format!(
                "no address is free in {from} of network {}: {} are reserved",
                call.network,
                store.held()
            ),
        ))
    }

    fn take(
        &self,
        call: &Invocation<'_>,
        ranges: &Ranges,
        store: &mut Store<'_>,
        (set, address): (usize, IpAddr),
    ) -> Result<bool, CniError> {
        let failed = |e| failed(format!("reservation of {address}"), e);
        match store.holder(address) {
            Some(Holder::Container(_)) => return Ok(false),
            Some(Holder::Released(veth)) => {
                let veth = veth.clone();
                if self.is_there(&veth)? {
                    return Ok(false);
                }
                store.free(address).map_err(failed)?;
            }
            None if self.is_others(call.network, ranges, address) => return Ok(false),
            None => {}
        }
        store
            .reserve(address, call.container_id, call.ifname, set)
            .map_err(failed)
    }

    fn is_there(&self, interface: &str) -> Result<bool, CniError> {
        self.host.route(|socket| {
            link_by_name(socket, interface)
                .map(|link| link.is_some())
                .map_err(|e| failed(interface, e))
        })
    }

    fn release(
        &self,
        store: &mut Store<'_>,
        addresses: &[IpAddr],
        veth: &str,
    ) -> Result<(), CniError> {
        if addresses.is_empty() {
            return Ok(());
        }
        let there = self.is_there(veth)?;
        for address in addresses {
            let done = if there {
                store.release_after(*address, veth)
            } else {
                store.free(*address)
            };
            done.map_err(|e| failed(format!("reservation of {address}"), e))?;
        }
        Ok(())
    }
}

/// The address behind one of a set, with the number of its range.
fn behind(set: &[Range], last: IpAddr) -> Option<(usize, IpAddr)> {
    let i = set.iter().position(|r| r.contains(last))?;
    if last == set[i].end {
        let first = (i + 1) % set.len();
        return Some((first, set[first].start));
    }
    Some((i, next(last)))
}

impl Builtin for HostLocal {
    fn name(&self) -> &'static str {
        "host-local"
    }

    fn add(&self, call: &Invocation<'_>) -> Result<CniResult, CniError> {
        let ranges = Ranges::of_call(call)?;
        let dns = match &ranges.resolv_conf {
            Some(path) => resolv_conf(path)?,
            None => Dns::default(),
        };
        let ips = self.with_store(call.network, &ranges, |store| {
            let before = store.of(call.container_id, call.ifname);
            let given = self.allocate(call, &ranges, store);
            if given.is_err() {
                take_back(call, store, &before);
            }
            given
        })?;
        Ok(CniResult {
            interfaces: Vec::new(),
            ips,
            routes: ranges.routes,
            dns,
        })
    }

    fn del(&self, call: &Invocation<'_>) -> Result<(), CniError> {
        let ranges = Ranges::of(call.plugin)?;
        self.with_store(call.network, &ranges, |store| {
            let mine = store.of(call.container_id, call.ifname);
            let veth = veth_for(call.container_id, call.ifname);
            self.release(store, &mine, &veth)
        })
    }

    fn check(&self, call: &Invocation<'_>) -> Result<(), CniError> {
        let ranges = Ranges::of_call(call)?;
        self.with_store(call.network, &ranges, |store| {
            if store.of(call.container_id, call.ifname).is_empty() {
                let text = format!("no address is reserved for {}", call.container_id);
                return Err(CniError::internal(text));
            }
            Ok(())
        })
    }

    fn status(&self, _network: &str, plugin: &Map<String, Value>) -> Result<(), CniError> {
        Ranges::of(plugin).map(drop)
    }

    fn gc(
        &self,
        network: &str,
        plugin: &Map<String, Value>,
        valid: &[Attachment],
    ) -> Result<(), CniError> {
        let ranges = Ranges::of(plugin)?;
        let new = valid.iter().map(|a| key(&a.container_id, &a.ifname));
        // As an old version of the reference plugin wrote them.
        let old = valid.iter().map(|a| a.container_id.clone());
        let keys: Vec<String> = new.chain(old).collect();
        self.with_store(network, &ranges, |store| {
            for (address, holder) in store.all() {
                let veth = match holder {
                    Holder::Released(veth) => veth,
                    Holder::Container(text) if keys.contains(&text) => continue,
                    Holder::Container(text) => {
                        let (id, ifname) = text.split_once("\r\n").unwrap_or((&text, ""));
                        veth_for(id, ifname)
                    }
                };
                self.release(store, &[address], &veth)?;
            }
            Ok(())
        })
    }
}

/// Frees what a call has reserved before it failed.
fn take_back(call: &Invocation<'_>, store: &mut Store<'_>, before: &[IpAddr]) {
    for new in store.of(call.container_id, call.ifname) {
        if before.contains(&new) {
            continue;
        }
        if let Err(error) = store.free(new) {
            tracing::warn!(%error, address = %new, "stays reserved until the next DEL");
        }
    }
}

/// Names of a resolv.conf, as resolv.conf(5) says.
fn resolv_conf(path: &str) -> Result<Dns, CniError> {
    use std::io::Read as _;
    let wrong = |e| CniError::config("ipam.resolvConf", format!("{path}: {e}"));
    let mut text = String::new();
    let file = fs::File::open(path).map_err(wrong)?;
    file.take(MAX_RESOLV_CONF)
        .read_to_string(&mut text)
        .map_err(wrong)?;
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.nameservers.extend(words.next().map(ToOwned::to_owned)),
            Some("domain") => dns.domain = words.next().unwrap_or_default().to_owned(),
            Some("search") => dns.search.extend(words.map(ToOwned::to_owned)),
            Some("options") => dns.options.extend(words.map(ToOwned::to_owned)),
            _ => {}
        }
    }
    Ok(dns)
}
