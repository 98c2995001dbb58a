//! Records of attachments: one small file each, written whole or not at all, before anything is done.
//!
//! ```text
//! <dir>/<container>.<interface>.json    what was asked for, by which configuration, what came of it
//! ```
//!
//! The record, not the directory of configurations, drives DEL, CHECK and GC: an attachment is taken
//! down the way it was made. After a power cut the kernel has nothing of it either, and what is built in
//! keeps nothing; what programs keep, on disk or in a cluster, may outlive it: their records are synced.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::Network;
use crate::limits::RECORD_MAX;
use crate::result::CniResult;

/// The form that this build writes.
pub const VERSION: u32 = 1;
/// How the name of a record ends, and that of a record that is being written.
const ENDING: &str = "json";
const DRAFT: &str = "new";

/// An attachment, from intent to end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// See [`VERSION`].
    pub version: u32,
    /// The container.
    pub container_id: String,
    /// Its interface.
    pub ifname: String,
    /// The boot in which it was made: `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
    /// Where the namespace was bound.
    pub netns: PathBuf,
    /// The configuration that it is made by.
    pub network: Network,
    /// `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// What the runtime said of it, by capability.
    pub capabilities: Map<String, Value>,
    /// What the plugins that have run made.
    pub result: Option<CniResult>,
    /// All have run.
    pub complete: bool,
}

/// A record could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The file system refused.
    #[error("{action} {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The file is no record, or of a newer wharf.
    #[error("{path} is not a record of an attachment: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The directory of all records.
#[derive(Debug, Clone)]
pub struct Records(PathBuf);

impl Records {
    /// At `dir`, which is made; what a daemon that died left half-written is removed.
    ///
    /// # Errors
    ///
    /// The directory cannot be made or read.
    pub fn open(dir: PathBuf) -> Result<Self, RecordError> {
        std::fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
        for entry in std::fs::read_dir(&dir).map_err(failed("list", &dir))? {
            let path = entry.map_err(failed("list", &dir))?.path();
            if path.extension().is_some_and(|e| e == DRAFT) {
                std::fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(Self(dir))
    }

    fn path(&self, container_id: &str, ifname: &str) -> PathBuf {
        self.0.join(format!("{container_id}.{ifname}.{ENDING}"))
    }

    /// Writes a record.
    ///
    /// # Errors
    ///
    /// The file system refuses, or the record is larger than one that is read.
    pub fn save(&self, record: &Record) -> Result<(), RecordError> {
        let path = self.path(&record.container_id, &record.ifname);
        let malformed = |reason| RecordError::Malformed {
            path: path.clone(),
            reason,
        };
        let bytes = serde_json::to_vec(record).map_err(|e| malformed(e.to_string()))?;
        if u64::try_from(bytes.len()).map_or(true, |n| n > RECORD_MAX) {
            return Err(malformed(format!("over the limit of {RECORD_MAX} bytes")));
        }
        let lasting = record.network.plugins.iter().any(|p| !p.builtin);
        // One writer for each attachment, so that its draft is nobody else's.
        let draft = path.with_extension(DRAFT);
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = options
            .open(&draft)
            .and_then(|mut file| {
                file.write_all(&bytes)?;
                if lasting { file.sync_data() } else { Ok(()) }
            })
            .map_err(failed("write", &draft))
            .and_then(|()| std::fs::rename(&draft, &path).map_err(failed("rename", &path)))
            .and_then(|()| match lasting {
                true => self.sync(),
                false => Ok(()),
            });
        if written.is_err() {
            // What stays all the same is removed at the next start.
            std::fs::remove_file(&draft).ok();
        }
        written
    }

    fn sync(&self) -> Result<(), RecordError> {
        let synced = std::fs::File::open(&self.0).and_then(|dir| dir.sync_all());
        synced.map_err(failed("sync", &self.0))
    }

    /// Removes a record; one that is gone is fine.
    ///
    /// # Errors
    ///
    /// The file system refuses.
    pub fn remove(&self, record: &Record) -> Result<(), RecordError> {
        let path = self.path(&record.container_id, &record.ifname);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// All records of one container, by interface.
    ///
    /// # Errors
    ///
    /// The directory or one of the records cannot be read.
    pub fn of(&self, container_id: &str) -> Result<Vec<Record>, RecordError> {
        let mine = format!("{container_id}.");
        let mut records = Vec::new();
        for path in self.list()? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(&mine) {
                records.extend(read(&path)?);
            }
        }
        Ok(records)
    }

    /// All records. One that cannot be read is given as its error.
    ///
    /// # Errors
    ///
    /// The directory cannot be read.
    pub fn all(&self) -> Result<Vec<Result<Record, RecordError>>, RecordError> {
        let paths = self.list()?;
        Ok(paths.iter().filter_map(|p| read(p).transpose()).collect())
    }

    fn list(&self) -> Result<Vec<PathBuf>, RecordError> {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(&self.0).map_err(failed("list", &self.0))? {
            let path = entry.map_err(failed("list", &self.0))?.path();
            if path.extension().is_some_and(|e| e == ENDING) {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }
}

/// `None` when it has gone meanwhile.
fn read(path: &Path) -> Result<Option<Record>, RecordError> {
    let malformed = |reason: String| RecordError::Malformed {
        path: path.to_owned(),
        reason,
    };
    let file = match std::fs::File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed("open", path))?,
    };
    let mut bytes = Vec::new();
    file.take(RECORD_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed("read", path))?;
    let record: Record = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
    if record.version > VERSION {
        let version = record.version;
        return Err(malformed(format!("version {version} is of a newer wharf")));
    }
    Ok(Some(record))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecordError + use<> {
    let path = path.to_owned();
    move |source| RecordError::Io {
        action,
        path,
        source,
    }
}
