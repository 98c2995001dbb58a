//! What is remembered about images and layers: plain data with a version, as JSON.

use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wharf_types::{ChainId, DiffId, Digest, Reference};

use crate::contents::{ContentsRef, LayerPath};
use crate::error::StoreError;
use crate::tree::Usage;

/// The version of all records that this code writes. A reader refuses newer ones.
pub(crate) const VERSION: u32 = 1;
/// The largest sidecar that is read.
pub(crate) const SIDECAR_MAX: u64 = 64 << 20;

/// How a layer lies on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LayerKind {
    /// A directory in overlay form.
    Dir,
    /// One EROFS file; not supported yet.
    Erofs,
    /// Fetched while it is read; not supported yet.
    Lazy,
}

impl LayerKind {
    /// The word for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dir => "dir",
            Self::Erofs => "erofs",
            Self::Lazy => "lazy",
        }
    }
}

/// What unpacking a layer found out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LayerFacts {
    /// Tar entries that had an effect. Without any the layer is left out of mounts.
    pub entries: u64,
    /// Bytes of file content.
    pub content: u64,
    /// Space that the tree takes.
    pub usage: Usage,
    /// Directories that the tar implies without naming them: their attributes are a guess.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub implied: Vec<LayerPath>,
    /// Directories that hold whiteouts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub whiteouts_in: Vec<LayerPath>,
    /// The layer's root hides everything below it: overlayfs ignores the mark on a root.
    #[serde(default)]
    pub opaque_root: bool,
    /// Device nodes and attributes left out because this process may not make them.
    #[serde(default)]
    pub skipped: u64,
    /// The list of everything in it; `None`: it cannot be checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contents: Option<ContentsRef>,
}

/// Bytes of names of directories whose attributes other layers decide, over all layers of an image.
pub const CORRECTION_BYTES_MAX: usize = 32 << 20;

impl LayerFacts {
    /// Bytes of the names of directories whose attributes other layers decide.
    pub fn correction_bytes(&self) -> usize {
        let paths = self.implied.iter().chain(&self.whiteouts_in);
        paths.map(|path| path.0.len()).sum()
    }
}

/// A layer that is in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Its form.
    pub kind: LayerKind,
    /// What is in it.
    pub facts: LayerFacts,
}

/// What identifies a layer: its content, or the stack that it corrects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum LayerKey {
    /// A layer of an image.
    Diff(DiffId),
    /// Directory attributes that go on top of a stack (see `fix`).
    Fix(ChainId),
}

impl LayerKey {
    /// The name of its directory.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Diff(id) => id.0.hex(),
            Self::Fix(id) => format!("fix-{}", id.0.hex()),
        }
    }
}

impl fmt::Display for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl FromStr for LayerKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digest = |hex: &str| {
            let digest = format!("sha256:{hex}").parse::<Digest>();
            digest.map_err(|e| e.to_string())
        };
        match text.strip_prefix("fix-") {
            Some(hex) => Ok(Self::Fix(ChainId(digest(hex)?))),
            None => Ok(Self::Diff(DiffId(digest(text)?))),
        }
    }
}

impl TryFrom<String> for LayerKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<LayerKey> for String {
    fn from(key: LayerKey) -> Self {
        key.name()
    }
}

/// A stored document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// An image: a configuration and its layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The digest of the configuration.
    pub id: Digest,
    /// Base first.
    pub layers: Vec<DiffId>,
    /// Manifests, indexes and the configuration.
    pub blobs: Vec<BlobRef>,
    /// When it came here first, seconds since 1970.
    pub created: u64,
}

/// A reference within a namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Name {
    /// `k8s.io`, `default`…
    pub namespace: String,
    /// The full reference.
    pub reference: Reference,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRecord {
    /// The image's id.
    pub image: Digest,
    /// The index or manifest that the registry had under this name.
    pub target: Digest,
}

/// The sidecar of an image: enough to record it again.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ImageSidecar {
    pub(crate) image: ImageRecord,
    pub(crate) names: Vec<(Name, NameRecord)>,
}

/// The sidecar of a layer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LayerSidecar {
    pub(crate) key: LayerKey,
    pub(crate) record: LayerRecord,
}

/// A snapshot, as its own directory tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    pub(crate) key: String,
    pub(crate) layers: Vec<DiffId>,
    /// What is mounted, top first.
    pub(crate) stack: Vec<LayerKey>,
    /// The boot in which it was made.
    pub(crate) boot: String,
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    v: u32,
    #[serde(flatten)]
    record: T,
}

#[derive(Deserialize)]
struct OnlyVersion {
    v: u32,
}

/// A record as stored bytes.
pub(crate) fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(&Versioned { v: VERSION, record }).map_err(|e| StoreError::Record {
        name: "new record".to_owned(),
        why: e.to_string(),
    })
}

/// A record from stored bytes; `name` is for the message.
pub(crate) fn decode<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, StoreError> {
    let wrong = |why: String| StoreError::Record {
        name: name.to_owned(),
        why,
    };
    let version = serde_json::from_slice::<OnlyVersion>(bytes).map_err(|e| wrong(e.to_string()))?;
    if version.v > VERSION {
        return Err(wrong(format!(
            "version {} was written by a newer wharf, this one reads up to {VERSION}: start the newer one",
            version.v
        )));
    }
    let versioned = serde_json::from_slice::<Versioned<T>>(bytes);
    Ok(versioned.map_err(|e| wrong(e.to_string()))?.record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_not_text_survives_the_record() {
        let facts = LayerFacts {
            implied: vec![
                LayerPath(b"a/\xff".to_vec()),
                LayerPath(b"usr/lib".to_vec()),
            ],
            ..LayerFacts::default()
        };
        let record = LayerRecord {
            kind: LayerKind::Dir,
            facts,
        };
        let bytes = encode(&record).unwrap();
        assert_eq!(decode::<LayerRecord>("x", &bytes).unwrap(), record);
    }

    #[test]
    fn a_record_of_a_newer_version_is_refused_with_the_remedy() {
        let error = decode::<NameRecord>("name x", br#"{"v":2,"other":1}"#).unwrap_err();
        assert!(error.to_string().contains("start the newer one"), "{error}");
    }
}
