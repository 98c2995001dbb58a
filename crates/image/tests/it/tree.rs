//! What lies below a directory, as text that can be compared.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use wharf_image::unpack::{UnpackError, unpack};
use wharf_store::{Contents, LayerFacts};

/// A fresh layer directory between things that must not change.
pub(crate) struct Layer {
    dir: tempfile::TempDir,
}

impl Layer {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["tree", "discard", "outside"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("outside/secret"), "untouched").unwrap();
        fs::write(dir.path().join("passwd"), "untouched").unwrap();
        Self { dir }
    }

    pub(crate) fn tree(&self) -> std::path::PathBuf {
        self.dir.path().join("tree")
    }

    pub(crate) fn unpack(&self, tar: &[u8]) -> Result<LayerFacts, UnpackError> {
        let open = |name| fs::File::open(self.dir.path().join(name)).unwrap();
        let (tree, discard) = (open("tree"), open("discard"));
        use std::os::fd::AsFd as _;
        unpack(tar, tree.as_fd(), discard.as_fd(), Contents::unkept())
    }

    /// What lies beside the layer.
    pub(crate) fn outside(&self) -> BTreeMap<String, String> {
        let mut all = listing(self.dir.path(), What::All);
        all.retain(|path, _| {
            !path.starts_with("tree") && !path.starts_with("discard") && !path.is_empty()
        });
        all
    }
}

/// Unpacks into a fresh directory.
pub(crate) fn unpacked(tar: &[u8]) -> (Layer, Result<LayerFacts, UnpackError>) {
    let layer = Layer::new();
    let result = layer.unpack(tar);
    (layer, result)
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// Everything: type, mode, owner, time, content, links, extended attributes.
    All,
    /// Type and content only.
    Shape,
}

/// Every path below `root` and what it is.
pub(crate) fn listing(root: &Path, what: What) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    walk(root, "", what, &mut all, &mut inodes);
    all
}

fn walk(
    at: &Path,
    name: &str,
    what: What,
    all: &mut BTreeMap<String, String>,
    inodes: &mut BTreeMap<u64, String>,
) {
    let meta = fs::symlink_metadata(at).unwrap();
    let kind = meta.file_type();
    let mut text = if kind.is_dir() {
        "dir".to_owned()
    } else if kind.is_symlink() {
        format!("-> {}", fs::read_link(at).unwrap().display())
    } else if kind.is_file() {
        let bytes = fs::read(at).unwrap();
        format!("file {} {}", bytes.len(), wharf_types::Digest::of(&bytes))
    } else if kind.is_char_device() && meta.rdev() == 0 {
        "whiteout".to_owned()
    } else if kind.is_fifo() {
        "fifo".to_owned()
    } else {
        format!("device {:x}", meta.rdev())
    };
    let xattrs = xattrs(at);
    if xattrs.iter().any(|x| x.contains("overlay.opaque")) {
        text.push_str(" opaque");
    }
    if what == What::All {
        let mode = meta.mode() & 0o7777;
        write!(text, " {mode:o} {}:{}", meta.uid(), meta.gid()).unwrap();
        write!(text, " @{}.{:09}", meta.mtime(), meta.mtime_nsec()).unwrap();
        for xattr in xattrs {
            write!(text, " {xattr}").unwrap();
        }
        if !kind.is_dir() && meta.nlink() > 1 {
            let first = inodes.entry(meta.ino()).or_insert_with(|| name.to_owned());
            write!(text, " ={first}").unwrap();
        }
    }
    all.insert(name.to_owned(), text);
    if kind.is_dir() {
        let mut names: Vec<_> = fs::read_dir(at)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        for child in names {
            let shown = String::from_utf8_lossy(child.as_bytes()).into_owned();
            let path = if name.is_empty() {
                shown
            } else {
                format!("{name}/{shown}")
            };
            walk(&at.join(child), &path, what, all, inodes);
        }
    }
}

fn xattrs(at: &Path) -> Vec<String> {
    let mut names = vec![0_u8; 65536];
    let Ok(n) = rustix::fs::llistxattr(at, names.as_mut_slice()) else {
        return Vec::new();
    };
    let names = names[..n].split(|b| *b == 0).filter(|n| !n.is_empty());
    let mut all: Vec<_> = names
        .map(|name| {
            let mut value = vec![0_u8; 65536];
            let n = rustix::fs::lgetxattr(at, name, value.as_mut_slice()).unwrap();
            format!("{}={:?}", String::from_utf8_lossy(name), &value[..n])
        })
        .collect();
    all.sort();
    all
}
