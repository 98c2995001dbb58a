//! Images from entries in memory: layers, configuration, manifest and index, OCI or Docker.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::tar::{self, Entry};

/// A name for these bytes, `sha256:…`.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, b| {
        fmt::Write::write_fmt(&mut out, format_args!("{b:02x}")).expect("a String takes it");
        out
    })
}

/// Where the bytes of a blob are.
#[derive(Clone)]
pub enum Data {
    /// In memory.
    Memory(bytes::Bytes),
    /// In this file, which nobody changes.
    File(PathBuf),
}

/// Bytes with their digest.
#[derive(Clone)]
pub struct Blob {
    /// `sha256:…`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// The bytes.
    pub data: Data,
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({}, {} bytes)", self.digest, self.size)
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(b) => write!(f, "{} bytes", b.len()),
            Self::File(p) => p.fmt(f),
        }
    }
}

impl Blob {
    /// A blob of these bytes.
    pub fn new(bytes: impl Into<bytes::Bytes>) -> Self {
        let bytes = bytes.into();
        let (digest, size) = (digest(&bytes), bytes.len() as u64);
        Self {
            digest,
            size,
            data: Data::Memory(bytes),
        }
    }

    /// All its bytes.
    ///
    /// # Errors
    /// The file behind it cannot be read.
    pub fn bytes(&self) -> io::Result<bytes::Bytes> {
        match &self.data {
            Data::Memory(b) => Ok(b.clone()),
            Data::File(p) => fs::read(p).map(Into::into),
        }
    }
}

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// A plain tar.
    Plain,
    /// gzip at its default level.
    Gzip,
    /// zstd at level 3.
    Zstd,
}

/// One layer of an image.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Digest of the plain tar.
    pub diff_id: String,
    /// What a registry serves.
    pub blob: Blob,
    /// How the blob is packed.
    pub packing: Packing,
}

impl Layer {
    /// A gzip layer of `entries`.
    pub fn of(entries: &[Entry]) -> Self {
        Self::packed(entries, Packing::Gzip)
    }

    /// A layer of `entries`, packed as told.
    pub fn packed(entries: &[Entry], packing: Packing) -> Self {
        Self::of_tar(&tar::archive(entries), packing)
    }

    /// A layer of any bytes that claim to be a tar.
    pub fn of_tar(plain: &[u8], packing: Packing) -> Self {
        let blob = Blob::new(pack(plain, packing));
        Self {
            diff_id: digest(plain),
            blob,
            packing,
        }
    }
}

fn pack(plain: &[u8], packing: Packing) -> Vec<u8> {
    match packing {
        Packing::Plain => plain.to_vec(),
        Packing::Gzip => {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            gz.write_all(plain).expect("a Vec takes every write");
            gz.finish().expect("a Vec takes every write")
        }
        Packing::Zstd => zstd::encode_all(plain, 3).expect("a Vec takes every write"),
    }
}

/// Streams a large layer into a file.
pub struct LayerFile {
    tar: tar::Writer<Hashing<flate2::write::GzEncoder<Hashing<io::BufWriter<fs::File>>>>>,
}

impl fmt::Debug for LayerFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LayerFile")
    }
}

struct Hashing<W> {
    out: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.out.write(buf)?;
        self.hash.update(&buf[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<W> Hashing<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            hash: Sha256::new(),
            size: 0,
        }
    }

    fn end(self) -> (W, String, u64) {
        (
            self.out,
            format!("sha256:{}", hex(&self.hash.finalize())),
            self.size,
        )
    }
}

impl LayerFile {
    /// A gzip layer that goes to `path`.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &std::path::Path) -> io::Result<Self> {
        let packed = Hashing::new(io::BufWriter::new(fs::File::create(path)?));
        let gz = flate2::write::GzEncoder::new(packed, flate2::Compression::default());
        Ok(Self {
            tar: tar::Writer::new(Hashing::new(gz)),
        })
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// The disk is full, or the file of a [`tar::Kind::Copy`] cannot be read.
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.tar.entry(entry)
    }

    /// Ends the layer: diff ID, digest and size of the packed file.
    ///
    /// # Errors
    /// The disk is full.
    pub fn finish(self) -> io::Result<(String, String, u64)> {
        let (gz, diff_id, _) = self.tar.finish()?.end();
        let (mut file, digest, size) = gz.finish()?.end();
        file.flush()?;
        Ok((diff_id, digest, size))
    }
}

/// Whose media types an image carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// OCI image-spec 1.1.
    Oci,
    /// Docker, schema 2.
    Docker,
}

impl Flavour {
    fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    fn index(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer(self, packing: Packing) -> &'static str {
        match (self, packing) {
            (Self::Oci, Packing::Plain) => "application/vnd.oci.image.layer.v1.tar",
            (Self::Oci, Packing::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Self::Oci, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Self::Docker, Packing::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
            (Self::Docker, Packing::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Self::Docker, Packing::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
        }
    }
}

/// A manifest or an index, with its media type.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The `Content-Type` under which it is served.
    pub media_type: String,
    /// Its bytes.
    pub blob: Blob,
}

/// A whole image: what a reference leads to, and everything below it.
#[derive(Clone, Debug)]
pub struct Image {
    /// What the tag names: a manifest or an index.
    pub top: Manifest,
    /// The manifests of an index; empty where `top` is a manifest itself.
    pub children: Vec<Manifest>,
    /// Configurations and layers.
    pub blobs: Vec<Blob>,
}

impl Image {
    /// Digest of what the tag names.
    pub fn digest(&self) -> &str {
        &self.top.blob.digest
    }
}

/// What makes an image.
#[derive(Clone, Debug)]
pub struct Builder {
    flavour: Flavour,
    layers: Vec<Layer>,
    config: Map<String, Value>,
    platforms: Vec<(String, String, Option<String>)>,
    index: bool,
}

impl Builder {
    /// An image of these layers, the lowest first, for linux/amd64.
    pub fn new(flavour: Flavour, layers: impl Into<Vec<Layer>>) -> Self {
        let platforms = vec![("linux".into(), "amd64".into(), None)];
        let (layers, config) = (layers.into(), Map::new());
        Self {
            flavour,
            layers,
            config,
            platforms,
            index: false,
        }
        .set(
            "Env",
            json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]),
        )
    }

    /// Sets one field of the configuration's `config` object (image-spec, config.md).
    #[must_use]
    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.into(), value);
        self
    }

    /// Command without an entry point.
    #[must_use]
    pub fn cmd(self, words: &[&str]) -> Self {
        self.set("Cmd", json!(words))
    }

    /// Entry point.
    #[must_use]
    pub fn entrypoint(self, words: &[&str]) -> Self {
        self.set("Entrypoint", json!(words))
    }

    /// User, by name or number, with or without a group.
    #[must_use]
    pub fn user(self, user: &str) -> Self {
        self.set("User", json!(user))
    }

    /// Labels.
    #[must_use]
    pub fn label(self, key: &str, value: &str) -> Self {
        self.set("Labels", json!({ key: value }))
    }

    /// Puts an index above: one manifest for each platform (`os/arch` or `os/arch/variant`), all
    /// of the same layers.
    #[must_use]
    pub fn index(mut self, platforms: &[&str]) -> Self {
        self.index = true;
        self.platform_list(platforms)
    }

    /// A plain manifest for another platform than linux/amd64.
    #[must_use]
    pub fn platform(self, platform: &str) -> Self {
        self.platform_list(&[platform])
    }

    fn platform_list(mut self, platforms: &[&str]) -> Self {
        let part = |p: &str, i| p.split('/').nth(i).map(String::from);
        self.platforms = platforms
            .iter()
            .map(|p| {
                (
                    part(p, 0).unwrap_or_default(),
                    part(p, 1).unwrap_or_default(),
                    part(p, 2),
                )
            })
            .collect();
        self
    }

    /// Makes the image.
    pub fn build(self) -> Image {
        let mut blobs: Vec<Blob> = self.layers.iter().map(|l| l.blob.clone()).collect();
        let mut children = Vec::new();
        let mut entries = Vec::new();
        for (os, arch, variant) in &self.platforms {
            let mut platform = json!({ "os": os, "architecture": arch });
            if let Some(v) = variant {
                platform["variant"] = json!(v);
            }
            let config = Blob::new(self.config_json(&platform).to_string());
            let manifest = self.manifest(&config);
            let mut entry = descriptor(&manifest.media_type, &manifest.blob);
            entry["platform"] = platform;
            entries.push(entry);
            blobs.push(config);
            children.push(manifest);
        }
        if !self.index {
            let top = children.swap_remove(0);
            return Image {
                top,
                children: Vec::new(),
                blobs,
            };
        }
        let media_type = self.flavour.index();
        let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries });
        let top = Manifest {
            media_type: media_type.into(),
            blob: Blob::new(index.to_string()),
        };
        Image {
            top,
            children,
            blobs,
        }
    }

    fn config_json(&self, platform: &Value) -> Value {
        let mut config = platform.clone();
        config["created"] = json!("1970-01-01T00:00:00Z");
        config["config"] = Value::Object(self.config.clone());
        let diff_ids: Vec<&str> = self.layers.iter().map(|l| l.diff_id.as_str()).collect();
        config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
        let step = json!({ "created": "1970-01-01T00:00:00Z", "created_by": "testkit" });
        config["history"] = json!(vec![step; self.layers.len()]);
        config
    }

    fn manifest(&self, config: &Blob) -> Manifest {
        let layer = |l: &Layer| descriptor(self.flavour.layer(l.packing), &l.blob);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": self.flavour.manifest(),
            "config": descriptor(self.flavour.config(), config),
            "layers": self.layers.iter().map(layer).collect::<Vec<_>>(),
        });
        let media_type = self.flavour.manifest().into();
        Manifest {
            media_type,
            blob: Blob::new(manifest.to_string()),
        }
    }
}

fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size })
}
