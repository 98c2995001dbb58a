//! Reserved addresses on disk, as the reference plugin keeps them: a directory for each network, in
//! it one file for each address with the container's id and interface, `last_reserved_ip.N`, and
//! `lock`. So both can use the same directory at the same time.
//!
//! A released address whose interface is still there is kept back: its file says so.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};

/// The most bytes that a reservation may have.
const MAX_FILE: usize = 1024;
/// Begins a file of an address that is released while its interface is still there.
const RELEASED: &str = "released";

/// Whose an address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A container's interface.
    Container(String),
    /// Nobody's as soon as the interface of this name on the host is gone.
    Released(String),
}

/// What is known of a directory; right as long as nobody else has changed it.
#[derive(Debug)]
pub(crate) struct Known {
    changed: SystemTime,
    holders: HashMap<IpAddr, Holder>,
}

/// The directory of one network, locked against others.
#[derive(Debug)]
pub(crate) struct Store<'a> {
    directory: PathBuf,
    _lock: File,
    known: &'a mut HashMap<PathBuf, Known>,
}

/// What a container's file says.
pub(crate) fn key(container: &str, ifname: &str) -> String {
    format!("{}\r\n{ifname}", container.trim())
}

impl<'a> Store<'a> {
    pub(crate) fn open(
        directory: PathBuf,
        known: &'a mut HashMap<PathBuf, Known>,
    ) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&directory)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(directory.join("lock"))?;
        loop {
            match flock(&lock, FlockOperation::LockExclusive) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other?,
            }
        }
        let changed = fs::metadata(&directory)?.modified()?;
        if known.get(&directory).is_none_or(|k| k.changed != changed) {
            let holders = read(&directory)?;
            known.insert(directory.clone(), Known { changed, holders });
        }
        Ok(Self {
            directory,
            _lock: lock,
            known,
        })
    }

    fn holders(&mut self) -> &mut HashMap<IpAddr, Holder> {
        let entry = self.known.entry(self.directory.clone());
        let known = entry.or_insert_with(|| Known {
            changed: SystemTime::UNIX_EPOCH,
            holders: HashMap::new(),
        });
        &mut known.holders
    }

    /// Who has an address.
    pub(crate) fn holder(&mut self, address: IpAddr) -> Option<&Holder> {
        self.holders().get(&address)
    }

    /// How many addresses are held.
    pub(crate) fn held(&mut self) -> usize {
        self.holders().len()
    }

    /// The addresses of a container's interface, or of all of the container's when it was written
    /// by an old version without the interface.
    pub(crate) fn of(&mut self, container: &str, ifname: &str) -> Vec<IpAddr> {
        let (exact, old) = (key(container, ifname), container.trim().to_owned());
        let all = self.holders().iter();
        let mut found: Vec<IpAddr> = all
            .filter(|(_a, h)| matches!(h, Holder::Container(c) if *c == exact || *c == old))
            .map(|(a, _h)| *a)
            .collect();
        found.sort();
        found
    }

    /// All that are held, in order.
    pub(crate) fn all(&mut self) -> Vec<(IpAddr, Holder)> {
        let all = self.holders().iter();
        let mut all: Vec<_> = all.map(|(a, h)| (*a, h.clone())).collect();
        all.sort_by_key(|(a, _h)| *a);
        all
    }

    /// Reserves an address; `false`: it is taken.
    pub(crate) fn reserve(
        &mut self,
        address: IpAddr,
        container: &str,
        ifname: &str,
        set: usize,
    ) -> io::Result<bool> {
        let path = self.directory.join(address.to_string());
        let file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&path);
        let mut file = match file {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            other => other?,
        };
        let text = key(container, ifname);
        if let Err(e) = file.write_all(text.as_bytes()) {
            let _the_write_is_the_error = fs::remove_file(&path);
            return Err(e);
        }
        self.holders().insert(address, Holder::Container(text));
        fs::write(self.last_path(set), address.to_string())?;
        Ok(true)
    }

    /// The address that was given last from a set.
    pub(crate) fn last(&self, set: usize) -> Option<IpAddr> {
        fs::read_to_string(self.last_path(set))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    fn last_path(&self, set: usize) -> PathBuf {
        self.directory.join(format!("last_reserved_ip.{set}"))
    }

    /// Frees an address.
    pub(crate) fn free(&mut self, address: IpAddr) -> io::Result<()> {
        match fs::remove_file(self.directory.join(address.to_string())) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _gone => {
                self.holders().remove(&address);
                Ok(())
            }
        }
    }

    /// Keeps an address back until an interface is gone.
    pub(crate) fn release_after(&mut self, address: IpAddr, interface: &str) -> io::Result<()> {
        let path = self.directory.join(address.to_string());
        fs::write(path, format!("{RELEASED}\r\n{interface}"))?;
        self.holders()
            .insert(address, Holder::Released(interface.to_owned()));
        Ok(())
    }
}

impl Drop for Store<'_> {
    fn drop(&mut self) {
        // Our own changes are known; those of others show in the directory's time.
        let changed = fs::metadata(&self.directory).and_then(|m| m.modified());
        match (changed, self.known.get_mut(&self.directory)) {
            (Ok(changed), Some(known)) => known.changed = changed,
            _ => drop(self.known.remove(&self.directory)),
        }
    }
}

fn read(directory: &Path) -> io::Result<HashMap<IpAddr, Holder>> {
    let mut all = HashMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(address) = name.to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let text = fs::read(entry.path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[..text.len().min(MAX_FILE)]);
        let text = text.trim();
        let holder = match text.strip_prefix(RELEASED) {
            Some(rest) if rest.starts_with('\r') => Holder::Released(rest.trim().to_owned()),
            _ => Holder::Container(text.to_owned()),
        };
        all.insert(address, holder);
    }
    Ok(all)
}
