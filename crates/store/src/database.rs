//! The database file: tables of records, written only in durable transactions.
//!
//! Removing an image must work on a full disk, and every write needs new pages first. So a reserve
//! lies beside the database: it is given up when the disk is full, and taken again afterwards.

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use redb::{Database, Durability, ReadableTable as _, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wharf_types::{Digest, Kind};

use crate::error::StoreError;
use crate::record::{self, ImageRecord, LayerKey, LayerRecord, Name, NameRecord};

const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");
const NAMES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("names");
const LAYERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("layers");
/// Between namespace and reference in a key; neither can contain it.
const SEPARATOR: char = '\0';
/// Space that is kept for removals on a full disk.
const RESERVE_BYTES: u64 = 4 << 20;

/// One change of the records.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    PutImage(ImageRecord),
    DropImage(Digest),
    PutName(Name, NameRecord),
    DropName(Name),
    PutLayer(LayerKey, LayerRecord),
    DropLayer(LayerKey),
}

impl Change {
    fn is_removal(&self) -> bool {
        matches!(
            self,
            Self::DropImage(_) | Self::DropName(_) | Self::DropLayer(_)
        )
    }
}

/// Everything that the database holds.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) images: Vec<ImageRecord>,
    pub(crate) names: Vec<(Name, NameRecord)>,
    pub(crate) layers: Vec<(LayerKey, LayerRecord)>,
}

/// The open database.
#[derive(Debug)]
pub(crate) struct Records {
    /// `None` after a failure: an I/O error makes the open file unusable, so it is opened anew.
    db: Mutex<Option<Database>>,
    path: PathBuf,
}

impl Records {
    /// Opens or makes the file; the second value is what is in it.
    ///
    /// What is damaged is told as corrupt, wherever the damage is: redb panics on some of it.
    pub(crate) fn open(path: &Path) -> Result<(Self, Contents), StoreError> {
        let opened = catch_unwind(|| Self::open_whole(path));
        opened.unwrap_or_else(|_panicked| Err(damaged(path)))
    }

    fn open_whole(path: &Path) -> Result<(Self, Contents), StoreError> {
        let mut db = Database::create(path).map_err(|e| failed("open", path, e))?;
        let whole = db.check_integrity().map_err(|e| failed("check", path, e))?;
        if !whole {
            return Err(damaged(path));
        }
        let records = Self {
            db: Mutex::new(Some(db)),
            path: path.to_owned(),
        };
        records.apply(&[])?;
        let contents = records.load()?;
        Ok((records, contents))
    }

    /// All `changes` or none of them; on the disk when it returns.
    pub(crate) fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        let frees = changes.iter().all(Change::is_removal);
        let written = match self.attempt(changes) {
            Err(error) if frees && error.kind() == Kind::Exhausted && self.release_reserve() => {
                self.attempt(changes)
            }
            written => written,
        };
        if written.is_ok() {
            self.take_reserve();
        }
        written
    }

    fn attempt(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut held = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        let db = match held.take() {
            Some(db) => db,
            None => Database::create(&self.path).map_err(|e| failed("open", &self.path, e))?,
        };
        self.write(&db, changes)?;
        *held = Some(db);
        Ok(())
    }

    fn reserve(&self) -> PathBuf {
        self.path.with_extension("reserve")
    }

    fn release_reserve(&self) -> bool {
        std::fs::remove_file(self.reserve()).is_ok()
    }

    /// Without space for it, there is none until there is space.
    fn take_reserve(&self) {
        let path = self.reserve();
        if path.exists() {
            return;
        }
        let Ok(file) = std::fs::File::create(&path) else {
            return;
        };
        let all = rustix::fs::FallocateFlags::empty();
        if rustix::fs::fallocate(&file, all, 0, RESERVE_BYTES).is_err() {
            self.release_reserve();
        }
    }

    fn write(&self, db: &Database, changes: &[Change]) -> Result<(), StoreError> {
        let write = |e: redb::Error| failed("write", &self.path, e);
        let mut txn = db.begin_write().map_err(|e| write(e.into()))?;
        txn.set_durability(Durability::Immediate)
            .map_err(|e| write(e.into()))?;
        txn.set_two_phase_commit(true);
        {
            let mut images = txn.open_table(IMAGES).map_err(|e| write(e.into()))?;
            let mut names = txn.open_table(NAMES).map_err(|e| write(e.into()))?;
            let mut layers = txn.open_table(LAYERS).map_err(|e| write(e.into()))?;
            for change in changes {
                let done = match change {
                    Change::PutImage(r) => put(&mut images, &r.id.hex(), r)?,
                    Change::DropImage(id) => images.remove(id.hex().as_str()).map(|_| ()),
                    Change::PutName(name, r) => put(&mut names, &name_key(name), r)?,
                    Change::DropName(name) => names.remove(name_key(name).as_str()).map(|_| ()),
                    Change::PutLayer(key, r) => put(&mut layers, &key.name(), r)?,
                    Change::DropLayer(key) => layers.remove(key.name().as_str()).map(|_| ()),
                };
                done.map_err(|e| write(e.into()))?;
            }
        }
        txn.commit().map_err(|e| write(e.into()))
    }

    fn load(&self) -> Result<Contents, StoreError> {
        let images = self.table(IMAGES)?;
        let names = self.table(NAMES)?;
        let layers = self.table(LAYERS)?;
        Ok(Contents {
            images: images.into_iter().map(|(_, record)| record).collect(),
            names: names
                .into_iter()
                .map(|(key, record)| Ok((parse_name(&key)?, record)))
                .collect::<Result<_, StoreError>>()?,
            layers: layers
                .into_iter()
                .map(|(key, record)| match key.parse() {
                    Ok(key) => Ok((key, record)),
                    Err(why) => Err(StoreError::Record {
                        name: format!("layer {key}"),
                        why,
                    }),
                })
                .collect::<Result<_, StoreError>>()?,
        })
    }

    fn table<T: DeserializeOwned>(
        &self,
        definition: TableDefinition<'_, &str, &[u8]>,
    ) -> Result<Vec<(String, T)>, StoreError> {
        let read = |e: redb::Error| failed("read", &self.path, e);
        use redb::ReadableDatabase as _;
        let held = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(db) = held.as_ref() else {
            return Ok(Vec::new());
        };
        let txn = db.begin_read().map_err(|e| read(e.into()))?;
        let table = txn.open_table(definition).map_err(|e| read(e.into()))?;
        let mut rows = Vec::new();
        for row in table.iter().map_err(|e| read(e.into()))? {
            let (key, value) = row.map_err(|e| read(e.into()))?;
            rows.push((
                key.value().to_owned(),
                record::decode(key.value(), value.value())?,
            ));
        }
        Ok(rows)
    }
}

type Table<'t> = redb::Table<'t, &'static str, &'static [u8]>;

fn put<T: Serialize>(
    table: &mut Table<'_>,
    key: &str,
    value: &T,
) -> Result<Result<(), redb::StorageError>, StoreError> {
    let bytes = record::encode(value)?;
    Ok(table.insert(key, bytes.as_slice()).map(|_| ()))
}

fn name_key(name: &Name) -> String {
    format!("{}{SEPARATOR}{}", name.namespace, name.reference)
}

fn parse_name(key: &str) -> Result<Name, StoreError> {
    let wrong = |why: String| StoreError::Record {
        name: format!("name {key:?}"),
        why,
    };
    let (namespace, reference) = key
        .split_once(SEPARATOR)
        .ok_or_else(|| wrong("no namespace".to_owned()))?;
    Ok(Name {
        namespace: namespace.to_owned(),
        reference: reference.parse().map_err(|e| wrong(format!("{e}")))?,
    })
}

fn damaged(path: &Path) -> StoreError {
    let what = "its checksums are not those of its pages".to_owned();
    failed("check", path, redb::Error::Corrupted(what))
}

fn failed(action: &'static str, path: &Path, error: impl Into<redb::Error>) -> StoreError {
    StoreError::Database {
        action,
        path: path.to_owned(),
        source: Box::new(error.into()),
    }
}
