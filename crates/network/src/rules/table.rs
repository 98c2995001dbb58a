//! One table, and what we want in it.

use std::collections::BTreeMap;

use rustix::io::Errno;
use wharf_sys::netlink::{NetlinkError, Socket};
use wharf_sys::nft::{Element, Refused, Transaction, elements};

use super::layout::Layout;

/// What the table is for, to people who list it.
const SAYS: &str = "wharf: made again whenever it is changed by others";

/// Why the rules are not as they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// The kernel refused them.
    #[error("{0}; the kernel needs nf_tables with nat, masquerading and fib")]
    Refused(#[from] Refused),
    /// The table could not be read.
    #[error("table {table} of nftables cannot be read: {error}")]
    Read {
        /// The table.
        table: String,
        /// What the kernel said.
        error: NetlinkError,
    },
    /// A netfilter socket could not be opened.
    #[error("no netlink socket for netfilter: {0}; load the kernel module nfnetlink")]
    Socket(NetlinkError),
    /// An element that is to be added is someone else's.
    #[error("{set} has this already, for {owner}")]
    Taken {
        /// Name of the set.
        set: &'static str,
        /// The comment of the element that is there: its owner.
        owner: String,
    },
}

type Key = (Vec<u8>, Vec<u8>);

/// One table. What it holds is what was asked for, whatever others do to it.
#[derive(Debug)]
pub struct Table<L: Layout> {
    name: String,
    socket: Option<Socket>,
    wanted: BTreeMap<L, BTreeMap<Key, Element>>,
    /// Whether the kernel has a whole table that this value made or found.
    installed: bool,
    loaded: bool,
}

impl<L: Layout> Table<L> {
    /// The table of this name, which is looked at when it is first needed.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            socket: None,
            wanted: BTreeMap::new(),
            installed: false,
            loaded: false,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is known of it may be wrong: others change it too. It is looked at when it is needed next.
    pub fn forget(&mut self) {
        self.wanted.clear();
        (self.installed, self.loaded) = (false, false);
    }

    /// Whether it was made or found by this value.
    pub fn is_installed(&self) -> bool {
        self.installed
    }

    /// Port of the socket that makes our changes; 0 while there is none.
    pub fn port(&self) -> u32 {
        self.socket.as_ref().map_or(0, Socket::port)
    }

    /// Adds elements. Those that are there already stay as they are.
    ///
    /// # Errors
    /// One of them is there with another owner or value, or the kernel refused; then none is added.
    pub fn add(&mut self, new: Vec<(L, Element)>) -> Result<(), RulesError> {
        self.load()?;
        let mut missing: Vec<(L, Element)> = Vec::new();
        for (set, element) in new {
            let key = (element.key.clone(), element.last.clone());
            match self.wanted.get(&set).and_then(|all| all.get(&key)) {
                Some(there) if there.value == element.value && there.comment == element.comment => {
                }
                // Without a value it says the same for everyone.
                Some(there) if there.value == element.value && element.value.is_empty() => {}
                Some(there) => {
                    return Err(RulesError::Taken {
                        set: set.set().name,
                        owner: there.comment.clone(),
                    });
                }
                None => missing.push((set, element)),
            }
        }
        if missing.is_empty() && self.installed {
            return Ok(());
        }
        for (set, element) in &missing {
            self.want(*set, element.clone());
        }
        let done = self.change(|t| {
            for (set, element) in &missing {
                t.add(&set.set(), std::slice::from_ref(element));
            }
        });
        if done.is_err() {
            for (set, element) in missing {
                self.unwant(set, &(element.key, element.last));
            }
        }
        done
    }

    /// Removes the elements of these sets that `doomed` names. Gives them.
    ///
    /// # Errors
    /// The kernel refused; they are no longer wanted all the same, and go with the next change.
    pub fn remove(
        &mut self,
        sets: &[L],
        mut doomed: impl FnMut(L, &Element) -> bool,
    ) -> Result<Vec<(L, Element)>, RulesError> {
        self.load()?;
        let mut gone = Vec::new();
        for set in sets {
            let Some(all) = self.wanted.get_mut(set) else {
                continue;
            };
            all.retain(|_key, element| {
                let goes = doomed(*set, element);
                if goes {
                    gone.push((*set, element.clone()));
                }
                !goes
            });
        }
        if !gone.is_empty() {
            self.change(|t| {
                for (set, element) in &gone {
                    t.remove(&set.set(), std::slice::from_ref(element));
                }
            })?;
        }
        Ok(gone)
    }

    /// These sets hold exactly these elements; the whole table is made anew in one step, so that no
    /// packet meets it half made.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn replace(&mut self, sets: &[L], new: Vec<(L, Element)>) -> Result<(), RulesError> {
        self.load()?;
        for set in sets {
            self.wanted.remove(set);
        }
        for (set, element) in new {
            self.want(set, element);
        }
        if self.is_empty() && !self.installed {
            return Ok(());
        }
        self.install()
    }

    /// Whether nothing is wanted in it.
    pub fn is_empty(&self) -> bool {
        self.wanted.values().all(BTreeMap::is_empty)
    }

    /// The elements that are wanted in a set.
    pub fn wanted(&self, set: L) -> impl Iterator<Item = &Element> {
        self.wanted.get(&set).into_iter().flat_map(BTreeMap::values)
    }

    /// Makes the whole table again.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn install(&mut self) -> Result<(), RulesError> {
        let name = self.name.clone();
        let mut t = Transaction::new(L::FAMILY, &name);
        t.table(SAYS).delete_table().table(SAYS);
        for set in L::SETS {
            t.set(&set.set());
        }
        L::rules(&mut t);
        for (set, all) in &self.wanted {
            let all: Vec<Element> = all.values().cloned().collect();
            t.add(&set.set(), &all);
        }
        t.commit(self.socket()?)?;
        self.installed = true;
        self.loaded = true;
        Ok(())
    }

    /// Removes the table.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn uninstall(&mut self) -> Result<(), RulesError> {
        let name = self.name.clone();
        let mut t = Transaction::new(L::FAMILY, &name);
        t.table(SAYS).delete_table();
        t.commit(self.socket()?)?;
        self.installed = false;
        self.wanted.clear();
        Ok(())
    }

    /// Whether the kernel has this element, as far as the key and the value go.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn has(&mut self, set: L, element: &Element) -> Result<bool, RulesError> {
        let there = self.read(set)?;
        Ok(there.is_some_and(|all| {
            all.iter()
                .any(|e| e.key == element.key && e.last == element.last && e.value == element.value)
        }))
    }

    fn want(&mut self, set: L, element: Element) {
        let key = (element.key.clone(), element.last.clone());
        self.wanted.entry(set).or_default().insert(key, element);
    }

    fn unwant(&mut self, set: L, key: &Key) {
        if let Some(all) = self.wanted.get_mut(&set) {
            all.remove(key);
        }
    }

    /// Some changes to a table that is there; the whole of it where that fails, for then someone
    /// else was at it.
    fn change(&mut self, write: impl FnOnce(&mut Transaction<'_>)) -> Result<(), RulesError> {
        if !self.installed {
            return self.install();
        }
        let name = self.name.clone();
        let mut t = Transaction::new(L::FAMILY, &name);
        write(&mut t);
        match t.commit(self.socket()?) {
            Ok(()) => Ok(()),
            Err(refused) => {
                tracing::debug!(table = name, %refused, "the table is made again");
                self.install()
            }
        }
    }

    /// What the kernel has from before this process is wanted until someone says otherwise.
    fn load(&mut self) -> Result<(), RulesError> {
        if self.loaded {
            return Ok(());
        }
        let mut whole = true;
        for set in L::SETS {
            match self.read(*set)? {
                Some(all) => all.into_iter().for_each(|e| self.want(*set, e)),
                None => whole = false,
            }
        }
        // A table with other sets is of another version of ours: it is made anew at the first change.
        self.installed = whole;
        self.loaded = true;
        Ok(())
    }

    fn read(&mut self, set: L) -> Result<Option<Vec<Element>>, RulesError> {
        let name = self.name.clone();
        match elements(self.socket()?, L::FAMILY, &name, set.set().name) {
            Ok(all) => Ok(Some(all)),
            Err(e) if e.errno == Errno::NOENT => Ok(None),
            Err(error) => Err(RulesError::Read { table: name, error }),
        }
    }

    fn socket(&mut self) -> Result<&mut Socket, RulesError> {
        match &mut self.socket {
            Some(socket) => Ok(socket),
            none => {
                let socket = Socket::netfilter().map_err(RulesError::Socket)?;
                Ok(none.insert(socket))
            }
        }
    }
}
