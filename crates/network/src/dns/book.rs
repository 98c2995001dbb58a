//! Who has which name in which network. Readers never wait for slow work: a change is a few entries.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::wire::{Query, Record};

/// A pod in a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    /// The network's name.
    pub network: String,
    /// The network has no way out: nothing else is looked up for its pods.
    pub internal: bool,
    /// The pod's addresses in it.
    pub addresses: Vec<IpAddr>,
    /// What it is called there: first its name, then aliases and host name.
    pub names: Vec<String>,
}

/// What is known about a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// The name is one of ours; there may be nothing of the type that is asked for.
    Ours(Vec<Record>),
    /// Not ours: others may know.
    Others,
    /// Not ours, and the pod's networks lead nowhere.
    Nobody,
}

#[derive(Debug, Default)]
struct Names {
    /// By name, in small letters, whose it is.
    by_name: BTreeMap<String, BTreeMap<String, Vec<IpAddr>>>,
    by_address: HashMap<IpAddr, String>,
}

#[derive(Debug, Default)]
struct Pages {
    pods: BTreeMap<String, Vec<Membership>>,
    networks: BTreeMap<String, Names>,
}

/// All names. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Book(Arc<RwLock<Pages>>);

impl Book {
    fn read(&self) -> RwLockReadGuard<'_, Pages> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Pages> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The networks of a pod, and its names in them; what was said before is forgotten.
    pub fn set(&self, pod: &str, memberships: Vec<Membership>) {
        let mut pages = self.write();
        pages.forget(pod);
        for member in &memberships {
            let network = pages.networks.entry(member.network.clone()).or_default();
            for name in &member.names {
                let owners = network.by_name.entry(name.to_lowercase()).or_default();
                owners.insert(pod.to_owned(), member.addresses.clone());
            }
            if let Some(name) = member.names.first() {
                let full = format!("{name}.{}", member.network);
                let addresses = member.addresses.iter();
                network
                    .by_address
                    .extend(addresses.map(|a| (*a, full.clone())));
            }
        }
        if !memberships.is_empty() {
            pages.pods.insert(pod.to_owned(), memberships);
        }
    }

    /// The pod has gone.
    pub fn remove(&self, pod: &str) {
        self.write().forget(pod);
    }

    /// What is known about a question of this pod's.
    pub fn look_up(&self, pod: &str, query: &Query) -> Known {
        let pages = self.read();
        let mine = pages.pods.get(pod).map_or(&[][..], Vec::as_slice);
        let of = |member: &Membership| pages.networks.get(&member.network);
        if query.is_internet() {
            if let Some(address) = query.reverse() {
                let name = mine
                    .iter()
                    .find_map(|member| of(member)?.by_address.get(&address));
                if let Some(name) = name {
                    return Known::Ours(vec![Record::Name(name.clone())]);
                }
            }
            let found = mine.iter().find_map(|member| {
                let names = &of(member)?.by_name;
                let full = || {
                    let network = member.network.to_lowercase();
                    let short = query.name.strip_suffix(&network)?.strip_suffix('.')?;
                    names.get(short)
                };
                names.get(&query.name).or_else(full)
            });
            if let Some(owners) = found {
                let all = owners.values().flatten().copied();
                let wanted = all.filter(|address| query.wants(*address));
                return Known::Ours(wanted.map(Record::Address).collect());
            }
        }
        match mine.iter().any(|member| !member.internal) {
            true => Known::Others,
            false => Known::Nobody,
        }
    }
}

impl Pages {
    fn forget(&mut self, pod: &str) {
        for member in self.pods.remove(pod).unwrap_or_default() {
            let Some(network) = self.networks.get_mut(&member.network) else {
                continue;
            };
            for name in &member.names {
                let name = name.to_lowercase();
                let Some(owners) = network.by_name.get_mut(&name) else {
                    continue;
                };
                owners.remove(pod);
                if owners.is_empty() {
                    network.by_name.remove(&name);
                }
            }
            for address in &member.addresses {
                network.by_address.remove(address);
            }
            if network.by_name.is_empty() && network.by_address.is_empty() {
                self.networks.remove(&member.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::{self, A, AAAA, PTR};
    use super::*;

    fn member(network: &str, address: &str, names: &[&str]) -> Membership {
        Membership {
            network: network.to_owned(),
            internal: network.starts_with("internal"),
            addresses: vec![address.parse().unwrap()],
            names: names.iter().map(|n| (*n).to_owned()).collect(),
        }
    }

    fn ask(book: &Book, pod: &str, name: &str, kind: u16) -> Known {
        let query = wire::read(&wire::ask(1, name, kind, None).unwrap()).unwrap();
        book.look_up(pod, &query)
    }

    fn addresses(all: &[&str]) -> Known {
        let address = |a: &&str| Record::Address(a.parse().unwrap());
        Known::Ours(all.iter().map(address).collect())
    }

    #[test]
    fn neighbours_are_known_by_each_name_and_others_are_not() {
        let book = Book::default();
        book.set("p1", vec![member("front", "10.0.0.1", &["Web", "shop"])]);
        book.set("p2", vec![member("front", "10.0.0.2", &["web2", "shop"])]);
        book.set("p3", vec![member("back", "10.1.0.1", &["db"])]);
        assert_eq!(ask(&book, "p2", "web", A), addresses(&["10.0.0.1"]));
        assert_eq!(ask(&book, "p2", "WEB.front", A), addresses(&["10.0.0.1"]));
        assert_eq!(
            ask(&book, "p1", "shop", A),
            addresses(&["10.0.0.1", "10.0.0.2"])
        );
        assert_eq!(ask(&book, "p1", "web", AAAA), addresses(&[]));
        assert_eq!(ask(&book, "p1", "db", A), Known::Others);
        assert_eq!(ask(&book, "p1", "db.back", A), Known::Others);
        let name = Known::Ours(vec![Record::Name("Web.front".to_owned())]);
        assert_eq!(ask(&book, "p2", "1.0.0.10.in-addr.arpa", PTR), name);
        assert_eq!(
            ask(&book, "p3", "1.0.0.10.in-addr.arpa", PTR),
            Known::Others
        );
        // In both networks from now on.
        let both = vec![
            member("front", "10.0.0.3", &["db"]),
            member("back", "10.1.0.1", &["db"]),
        ];
        book.set("p3", both);
        assert_eq!(ask(&book, "p1", "db", A), addresses(&["10.0.0.3"]));
        assert_eq!(ask(&book, "p3", "db.back", A), addresses(&["10.1.0.1"]));
        book.remove("p3");
        assert_eq!(ask(&book, "p1", "db", A), Known::Others);
        book.remove("p1");
        book.remove("p2");
        assert!(book.read().networks.is_empty() && book.read().pods.is_empty());
    }

    #[test]
    fn pods_of_internal_networks_alone_ask_nobody_else() {
        let book = Book::default();
        book.set("p1", vec![member("internal", "10.0.0.1", &["a"])]);
        assert_eq!(ask(&book, "p1", "a", A), addresses(&["10.0.0.1"]));
        assert_eq!(ask(&book, "p1", "example.com", A), Known::Nobody);
        assert_eq!(ask(&book, "stranger", "a", A), Known::Nobody);
        let both = vec![
            member("internal", "10.0.0.1", &["a"]),
            member("out", "10.0.1.1", &["a"]),
        ];
        book.set("p1", both);
        assert_eq!(ask(&book, "p1", "example.com", A), Known::Others);
    }
}
