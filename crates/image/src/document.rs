//! Indexes, manifests and configurations: parsed beside their bytes, never instead of them.
//!
//! Spec: image-spec `image-index.md`, `manifest.md`, `config.md`; Docker's "Image Manifest Version 2,
//! Schema 2". Unknown fields are ignored and every optional field may be `null`.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use wharf_types::{DiffId, Digest, Platform};

use crate::limits::{
    CONFIG_LIST_BYTES_MAX, CONFIG_LIST_MAX, CONFIG_TEXT_MAX, INDEX_ENTRIES_MAX, LAYERS_MAX,
};

/// A document that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DocumentError(pub String);

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    input: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

/// What a list of a configuration may still hold.
struct Room {
    entries: usize,
    bytes: usize,
}

impl Room {
    const FULL: Self = Self {
        entries: CONFIG_LIST_MAX,
        bytes: CONFIG_LIST_BYTES_MAX,
    };

    fn take<E: serde::de::Error>(&mut self, bytes: usize) -> Result<(), E> {
        let too_much = || {
            E::custom(format_args!(
                "a list (Env, Cmd, Labels…) has more than {CONFIG_LIST_MAX} entries or \
                 {CONFIG_LIST_BYTES_MAX} bytes"
            ))
        };
        self.entries = self.entries.checked_sub(1).ok_or_else(too_much)?;
        self.bytes = self.bytes.checked_sub(bytes).ok_or_else(too_much)?;
        Ok(())
    }
}

/// A list within the limits: it ends where they are reached, not after it was read.
#[derive(Default)]
struct List(Vec<String>);

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = List;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of texts")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<List, A::Error> {
                let (mut room, mut all) = (Room::FULL, Vec::new());
                while let Some(text) = seq.next_element::<String>()? {
                    room.take(text.len())?;
                    all.push(text);
                }
                Ok(List(all))
            }
        }
        input.deserialize_seq(Visit)
    }
}

/// The same for a map.
struct Map<V>(BTreeMap<String, V>);

impl<V> Default for Map<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, V: Deserialize<'de> + Weigh> Deserialize<'de> for Map<V> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Visit<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de> + Weigh> Visitor<'de> for Visit<V> {
            type Value = Map<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Map<V>, A::Error> {
                let (mut room, mut all) = (Room::FULL, BTreeMap::new());
                while let Some((key, value)) = map.next_entry::<String, V>()? {
                    room.take(key.len().saturating_add(value.weight()))?;
                    all.insert(key, value);
                }
                Ok(Map(all))
            }
        }
        input.deserialize_map(Visit(PhantomData))
    }
}

/// What a value of a map takes of its room.
trait Weigh {
    fn weight(&self) -> usize;
}

impl Weigh for String {
    fn weight(&self) -> usize {
        self.len()
    }
}

impl Weigh for IgnoredAny {
    fn weight(&self) -> usize {
        0
    }
}

fn list<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    or_default(input).map(|List(all)| all)
}

fn labels<'de, D: Deserializer<'de>>(input: D) -> Result<BTreeMap<String, String>, D::Error> {
    or_default(input).map(|Map(all)| all)
}

fn keys<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    or_default(input).map(|Map::<IgnoredAny>(all)| all.into_keys().collect())
}

fn text<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    let text: String = or_default(input)?;
    if text.len() > CONFIG_TEXT_MAX {
        return Err(D::Error::custom(format_args!(
            "a text (User, WorkingDir…) has more than {CONFIG_TEXT_MAX} bytes"
        )));
    }
    Ok(text)
}

/// A reference from one document to another, or to a layer.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

impl Descriptor {
    /// The digest, when it is one that we can verify.
    pub(crate) fn digest(&self) -> Result<Digest, DocumentError> {
        self.digest
            .parse()
            .map_err(|e: wharf_types::digest::DigestError| DocumentError(e.to_string()))
    }

    fn is_index(&self) -> bool {
        self.media_type.ends_with("image.index.v1+json")
            || self.media_type.ends_with("manifest.list.v2+json")
    }

    fn is_manifest(&self) -> bool {
        self.media_type.is_empty()
            || self.media_type.ends_with("image.manifest.v1+json")
            || self.media_type.ends_with("distribution.manifest.v2+json")
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

/// What a registry has under a name.
#[derive(Debug)]
pub(crate) enum Document {
    /// One image for each of several platforms.
    Index(Vec<Descriptor>),
    /// One image.
    Manifest(Manifest),
}

/// The parts of one image.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    /// Base first.
    pub(crate) layers: Vec<Descriptor>,
}

impl Document {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let raw: Raw = serde_json::from_slice(bytes)
            .map_err(|e| DocumentError(format!("not an image manifest: {e}")))?;
        let bad = |why: &str| Err(DocumentError(why.to_owned()));
        if raw.schema_version == Some(1) {
            return bad(
                "schema 1 manifests are obsolete and cannot be verified: push the image again with a current tool",
            );
        }
        match (raw.manifests, raw.config, raw.layers) {
            // Two readers would see two images (CVE-2021-41190).
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
                bad("the document is an index and a manifest at once")
            }
            (Some(entries), None, None) if entries.len() > INDEX_ENTRIES_MAX => {
                bad("the index has more than 1024 entries")
            }
            (Some(entries), None, None) => Ok(Self::Index(entries)),
            (None, Some(_), Some(layers)) if layers.len() > LAYERS_MAX => {
                bad("the image has more than 500 layers: squash it")
            }
            (None, Some(config), layers) => Ok(Self::Manifest(Manifest {
                config,
                layers: layers.unwrap_or_default(),
            })),
            (None, None, _) => bad("not an image: neither an index nor a manifest"),
        }
    }
}

/// The entry of an index for the first platform of `accepted` that has one; within a platform the
/// first entry wins. Entries that say nothing come last: their configuration decides later.
pub(crate) fn choose<'a>(
    entries: &'a [Descriptor],
    accepted: &[Platform],
) -> Option<&'a Descriptor> {
    let usable = || entries.iter().filter(|d| d.is_manifest() || d.is_index());
    for wanted in accepted {
        let found = usable().find(|entry| {
            entry.platform.as_ref().is_some_and(|p| {
                let p = p.clone().normalised();
                // A feature is something that this host would have to know; it knows none.
                p.os_features.is_empty()
                    && (&p.os, &p.architecture, &p.variant)
                        == (&wanted.os, &wanted.architecture, &wanted.variant)
            })
        });
        if found.is_some() {
            return found;
        }
    }
    usable().find(|entry| entry.platform.is_none())
}

/// The platforms of an index, for a message. Attestations are none.
pub(crate) fn platforms(entries: &[Descriptor]) -> String {
    let all = entries.iter().filter_map(|entry| entry.platform.as_ref());
    let known = all.filter(|p| p.os != "unknown");
    let names: Vec<_> = known.map(|p| p.clone().normalised().to_string()).collect();
    if names.is_empty() {
        "nothing".to_owned()
    } else {
        names.join(", ")
    }
}

/// What an image says about how to run it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageConfig {
    /// `user[:group]`, names or numbers.
    #[serde(default, deserialize_with = "text")]
    pub user: String,
    /// `port/protocol`.
    #[serde(default, deserialize_with = "keys")]
    pub exposed_ports: Vec<String>,
    /// `NAME=value`.
    #[serde(default, deserialize_with = "list")]
    pub env: Vec<String>,
    /// The program and its first arguments.
    #[serde(default, deserialize_with = "list")]
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program when there is no entrypoint.
    #[serde(default, deserialize_with = "list")]
    pub cmd: Vec<String>,
    /// Directories that want a volume.
    #[serde(default, deserialize_with = "keys")]
    pub volumes: Vec<String>,
    /// Where the program starts.
    #[serde(default, deserialize_with = "text")]
    pub working_dir: String,
    /// The author's labels.
    #[serde(default, deserialize_with = "labels")]
    pub labels: BTreeMap<String, String>,
    /// `SIGTERM`, `15`…
    #[serde(default, deserialize_with = "text")]
    pub stop_signal: String,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default, rename = "type", deserialize_with = "text")]
    kind: String,
    #[serde(default, deserialize_with = "list")]
    diff_ids: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct RawConfig {
    #[serde(default, deserialize_with = "text")]
    created: String,
    #[serde(default, deserialize_with = "text")]
    architecture: String,
    #[serde(default, deserialize_with = "text")]
    os: String,
    #[serde(default, deserialize_with = "text")]
    variant: String,
    #[serde(default, deserialize_with = "or_default")]
    config: ImageConfig,
    #[serde(default, deserialize_with = "or_default")]
    rootfs: RootFs,
}

/// A parsed configuration document.
#[derive(Debug, Clone)]
pub(crate) struct Configuration {
    pub(crate) created: String,
    pub(crate) platform: Platform,
    pub(crate) config: ImageConfig,
    pub(crate) layers: Vec<DiffId>,
}

impl Configuration {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let raw: RawConfig = serde_json::from_slice(bytes)
            .map_err(|e| DocumentError(format!("not an image configuration: {e}")))?;
        if !matches!(raw.rootfs.kind.as_str(), "layers" | "") {
            return Err(DocumentError(format!(
                "root file systems of type {:?} are not supported, only \"layers\"",
                raw.rootfs.kind
            )));
        }
        if raw.rootfs.diff_ids.len() > LAYERS_MAX {
            return Err(DocumentError(format!(
                "the configuration names more than {LAYERS_MAX} layers: squash the image"
            )));
        }
        let layers = raw.rootfs.diff_ids.iter().map(|id| id.parse().map(DiffId));
        Ok(Self {
            layers: layers
                .collect::<Result<_, _>>()
                .map_err(|e| DocumentError(e.to_string()))?,
            platform: Platform::new(&raw.os, &raw.architecture, &raw.variant),
            created: raw.created,
            config: raw.config,
        })
    }
}

/// The platform of this machine, with the level of its processor.
pub fn host_platform() -> Platform {
    Platform::new("linux", std::env::consts::ARCH, level())
}

/// The x86-64 micro-architecture level (System V psABI, "Micro-Architecture Levels").
#[cfg(target_arch = "x86_64")]
fn level() -> &'static str {
    macro_rules! has {
        ($($feature:tt),*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
    }
    if !has!("sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cmpxchg16b") {
        ""
    } else if !has!(
        "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe"
    ) {
        "v2"
    } else if !has!("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl") {
        "v3"
    } else {
        "v4"
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn level() -> &'static str {
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(entries: &str) -> Vec<Descriptor> {
        match Document::parse(
            format!("{{\"schemaVersion\":2,\"manifests\":[{entries}]}}").as_bytes(),
        ) {
            Ok(Document::Index(entries)) => entries,
            other => panic!("{other:?}"),
        }
    }

    fn entry(digest: &str, kind: &str, platform: &str) -> String {
        let kind = format!("application/vnd.oci.image.{kind}.v1+json");
        let platform = match platform.split_once('/') {
            Some((os, arch)) => {
                format!(",\"platform\":{{\"os\":\"{os}\",\"architecture\":\"{arch}\"}}")
            }
            None => String::new(),
        };
        format!("{{\"mediaType\":\"{kind}\",\"digest\":\"{digest}\",\"size\":1{platform}}}")
    }

    fn chosen(entries: &[String], host: &str) -> Option<String> {
        let index = index(&entries.join(","));
        let accepted = Platform::new("linux", host, "").accepted();
        choose(&index, &accepted).map(|d| d.digest.clone())
    }

    #[test]
    fn the_hosts_platform_wins_before_order_and_attestations_never_do() {
        let entries = [
            entry("attestation", "manifest", "unknown/unknown"),
            entry("386", "manifest", "linux/386"),
            entry("odd", "something", "linux/amd64"),
            entry("first", "manifest", "linux/amd64"),
            entry("second", "manifest", "linux/amd64"),
            entry("arm", "manifest", "linux/arm64"),
        ];
        assert_eq!(chosen(&entries, "amd64").as_deref(), Some("first"));
        assert_eq!(chosen(&entries, "aarch64").as_deref(), Some("arm"));
        assert_eq!(chosen(&entries[..2], "amd64").as_deref(), Some("386"));
        assert_eq!(chosen(&entries[..1], "amd64"), None);
        assert_eq!(
            chosen(&[entry("nested", "index", "")], "amd64").as_deref(),
            Some("nested")
        );
        assert_eq!(platforms(&index(&entries[..2].join(","))), "linux/386");
    }

    #[test]
    fn a_document_of_two_kinds_or_of_schema_1_is_refused() {
        let both = br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        assert!(Document::parse(both).unwrap_err().0.contains("at once"));
        let old = br#"{"schemaVersion":1,"fsLayers":[]}"#;
        assert!(
            Document::parse(old)
                .unwrap_err()
                .0
                .contains("push the image again")
        );
        assert!(Document::parse(b"[]").is_err() && Document::parse(b"{}").is_err());
    }

    #[test]
    fn null_is_absent_and_unknown_fields_do_not_matter() {
        let config = br#"{"architecture":"amd64","os":"linux","new":[1],"created":null,
            "config":{"Env":null,"Cmd":["sh"],"Labels":null,"ExposedPorts":{"80/tcp":{}},
            "Volumes":null,"Entrypoint":null,"Healthcheck":{"Test":[]}},
            "rootfs":{"type":"layers","diff_ids":null},"history":null}"#;
        let config = Configuration::parse(config).unwrap();
        assert_eq!(config.config.cmd, ["sh"]);
        assert_eq!(config.config.exposed_ports, ["80/tcp"]);
        assert!(config.layers.is_empty() && config.config.env.is_empty());
        Configuration::parse(br#"{"rootfs":{"type":"other"}}"#).unwrap_err();
    }

    #[test]
    fn what_a_configuration_lists_is_limited() {
        let config = |key: &str, value: String| {
            Configuration::parse(format!("{{\"config\":{{\"{key}\":{value}}}}}").as_bytes())
        };
        let list = |n: usize, text: &str| format!("[{}]", vec![format!("\"{text}\""); n].join(","));
        let map = |n: usize, value: &str| {
            let entries: Vec<_> = (0..n).map(|i| format!("\"{i}\":{value}")).collect();
            format!("{{{}}}", entries.join(","))
        };
        config("Env", list(CONFIG_LIST_MAX, "a=b")).unwrap();
        config("Labels", map(CONFIG_LIST_MAX, "\"v\"")).unwrap();
        let long = "x".repeat(1 << 20);
        for (key, value) in [
            ("Env", list(CONFIG_LIST_MAX + 1, "")),
            ("Env", list(3, &long)),
            ("Cmd", list(CONFIG_LIST_MAX + 1, "")),
            ("Entrypoint", list(CONFIG_LIST_MAX + 1, "")),
            ("Labels", map(CONFIG_LIST_MAX + 1, "\"\"")),
            ("Labels", map(3, &format!("\"{long}\""))),
            ("Volumes", map(CONFIG_LIST_MAX + 1, "{}")),
            ("ExposedPorts", map(CONFIG_LIST_MAX + 1, "{}")),
        ] {
            let error = config(key, value).unwrap_err();
            assert!(error.0.contains("more than 4096 entries"), "{key}: {error}");
        }
        let error = config("User", format!("\"{long}\"")).unwrap_err();
        assert!(error.0.contains("4096 bytes"), "{error}");
    }
}
