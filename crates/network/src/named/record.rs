//! A network as it was made: one small file, written whole or not at all.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ip::IpNet;
use crate::limits::RECORD_MAX;
use crate::record::RecordError;

/// The form that this build writes.
const VERSION: u32 = 1;
const ENDING: &str = "json";
const DRAFT: &str = "new";

/// Addresses of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedSubnet {
    /// All of them.
    pub subnet: IpNet,
    /// The bridge's own.
    pub gateway: IpAddr,
    /// Pods get theirs from here; from the whole subnet when absent.
    #[serde(default)]
    pub range: Option<IpNet>,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedNetwork {
    version: u32,
    /// 64 hexadecimal digits.
    pub id: String,
    /// What people call it; no other network has the same.
    pub name: String,
    /// One for each family at most, IPv4 first.
    pub subnets: Vec<NamedSubnet>,
    /// Nothing leads out.
    pub internal: bool,
    /// For people and their tools.
    pub labels: BTreeMap<String, String>,
    /// Of the driver, as they were given.
    pub options: BTreeMap<String, String>,
    /// When it was made, in nanoseconds since 1970.
    pub created_ns: i64,
}

impl NamedNetwork {
    /// A new one. `id` is random.
    pub(super) fn new(id: [u8; 32], name: String, created_ns: i64) -> Self {
        let id = id.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            version: VERSION,
            id,
            name,
            subnets: Vec::new(),
            internal: false,
            labels: BTreeMap::new(),
            options: BTreeMap::new(),
            created_ns,
        }
    }

    /// The name of its bridge, and of the network to plugins: an id's beginning fits in an interface's name.
    pub fn bridge(&self) -> String {
        let short = self.id.get(..12).unwrap_or(&self.id);
        format!("wh-{short}")
    }
}

/// The directory of networks.
#[derive(Debug)]
pub(super) struct Records(PathBuf);

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecordError + use<> {
    let path = path.to_owned();
    move |source| RecordError::Io {
        action,
        path,
        source,
    }
}

impl Records {
    /// At `dir`, which is made; drafts of a daemon that died are removed.
    pub(super) fn open(dir: PathBuf) -> Result<(Self, Vec<NamedNetwork>), RecordError> {
        std::fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
        let mut networks = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(failed("list", &dir))? {
            let path = entry.map_err(failed("list", &dir))?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some(DRAFT) => std::fs::remove_file(&path).map_err(failed("remove", &path))?,
                Some(ENDING) => match read(&path) {
                    Ok(network) => networks.push(network),
                    Err(error) => tracing::error!(error = %wharf_types::chain(&error),
                        "this network is not known: its bridge and its name stay taken on disk"),
                },
                _ => {}
            }
        }
        Ok((Self(dir), networks))
    }

    fn path(&self, network: &NamedNetwork) -> PathBuf {
        self.0.join(format!("{}.{ENDING}", network.id))
    }

    /// Writes a network durably: people expect what they made to be there after a power cut.
    pub(super) fn save(&self, network: &NamedNetwork) -> Result<(), RecordError> {
        let path = self.path(network);
        let bytes = serde_json::to_vec(network).map_err(|e| RecordError::Malformed {
            path: path.clone(),
            reason: e.to_string(),
        })?;
        let draft = path.with_extension(DRAFT);
        let written = std::fs::File::create(&draft)
            .and_then(|mut file| {
                file.write_all(&bytes)?;
                file.sync_all()
            })
            .map_err(failed("write", &draft))
            .and_then(|()| std::fs::rename(&draft, &path).map_err(failed("rename", &path)));
        if written.is_err() {
            // What stays all the same is removed at the next start.
            std::fs::remove_file(&draft).ok();
        }
        written
    }

    /// Removes a network's record; one that is gone is fine.
    pub(super) fn remove(&self, network: &NamedNetwork) -> Result<(), RecordError> {
        let path = self.path(network);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(e)),
            _ => Ok(()),
        }
    }
}

fn read(path: &Path) -> Result<NamedNetwork, RecordError> {
    let malformed = |reason: String| RecordError::Malformed {
        path: path.to_owned(),
        reason,
    };
    let file = std::fs::File::open(path).map_err(failed("open", path))?;
    let mut bytes = Vec::new();
    let mut file = file.take(RECORD_MAX);
    file.read_to_end(&mut bytes).map_err(failed("read", path))?;
    let network: NamedNetwork =
        serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
    let id = &network.id;
    if id.len() != 64 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(malformed("its id has not 64 hexadecimal digits".to_owned()));
    }
    match network.version > VERSION {
        true => Err(malformed(format!(
            "version {} is of a newer wharf",
            network.version
        ))),
        false => Ok(network),
    }
}
