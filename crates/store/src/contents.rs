//! What a layer holds, noted while it is written, so that its tree can be looked at again later.
//!
//! A file of lines beside the tree, each a JSON object, in the order in which things were made. A later
//! line about a path wins, and whatever is no directory takes away what was below its path. Data are
//! remembered as CRC-32: that betrays disks and mistakes; who can write here as an attacker could write
//! the list as well. Length and CRC-32 of the list itself stand in the layer's record.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};

use serde::{Deserialize, Serialize, Serializer};

/// Bytes of a list: some ten million names. What has more is not noted, and cannot be checked.
pub(crate) const LIST_MAX: u64 = 1 << 30;
/// Bytes that are written at once.
const BUFFER: usize = 64 << 10;

/// A path within a layer, without leading slash: bytes, because that is what file names are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "PathForm", into = "PathForm")]
pub struct LayerPath(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum PathForm {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<PathForm> for LayerPath {
    fn from(form: PathForm) -> Self {
        match form {
            PathForm::Text(text) => Self(text.into_bytes()),
            PathForm::Bytes(bytes) => Self(bytes),
        }
    }
}

impl From<LayerPath> for PathForm {
    fn from(path: LayerPath) -> Self {
        String::from_utf8(path.0).map_or_else(|e| Self::Bytes(e.into_bytes()), Self::Text)
    }
}

/// CRC-32 of bytes that come one after the other (ISO 3309, as gzip has it); it begins with 0.
pub(crate) fn crc(before: u32, bytes: &[u8]) -> u32 {
    zlib_rs::crc32::crc32(before, bytes)
}

/// What the list of a layer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentsRef {
    /// Its length in bytes.
    pub bytes: u64,
    /// Its CRC-32.
    pub crc: u32,
}

/// Data of a file: where they begin, how many bytes, their CRC-32. Between two extents is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extent(pub(crate) u64, pub(crate) u64, pub(crate) u32);

/// The data of one file, noted from its beginning to its end.
#[derive(Debug, Default)]
pub struct Extents(Vec<Extent>);

impl Extents {
    /// Notes `data` at `offset` bytes.
    pub fn add(&mut self, offset: u64, data: &[u8]) {
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        match self.0.last_mut() {
            Some(last) if last.0.saturating_add(last.1) == offset => {
                last.1 = last.1.saturating_add(length);
                last.2 = crc(last.2, data);
            }
            _ if length == 0 => {}
            _ => self.0.push(Extent(offset, length, crc(0, data))),
        }
    }
}

/// Who may do what with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// The lower twelve bits of `st_mode`; those of a symbolic link do not count.
    #[serde(rename = "m")]
    pub mode: u32,
    /// Owner.
    #[serde(rename = "u")]
    pub uid: u32,
    /// Group.
    #[serde(rename = "g")]
    pub gid: u32,
}

/// One line of the list.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line<P, E> {
    File(P, Access, u64, E),
    /// And whether it hides its namesakes in lower layers.
    Dir(P, Access, bool),
    Symlink(P, Access, P),
    /// Devices and pipes: the type's bits of `st_mode`, and `st_rdev`.
    Special(P, Access, u32, u64),
    /// One more name of what has the second name.
    Link(P, P, Access),
    Gone(P),
}

/// Bytes of a name; text where they are text.
#[derive(Debug)]
struct Bytes<'a>(&'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => serializer.collect_seq(self.0),
        }
    }
}

/// The list of a layer that is being written. Paths have no leading slash; the root is empty.
#[derive(Debug)]
pub struct Contents {
    /// `None`: nothing is noted.
    out: Option<File>,
    buffer: Vec<u8>,
    bytes: u64,
    crc: u32,
}

impl Contents {
    /// A list that is kept nowhere.
    pub fn unkept() -> Self {
        Self {
            out: None,
            buffer: Vec::new(),
            bytes: 0,
            crc: 0,
        }
    }

    pub(crate) fn to(out: File) -> Self {
        Self {
            out: Some(out),
            ..Self::unkept()
        }
    }

    /// Notes a regular file of `size` bytes.
    ///
    /// # Errors
    ///
    /// The list cannot be written; as with all of these.
    pub fn file(
        &mut self,
        path: &[u8],
        access: Access,
        size: u64,
        data: &Extents,
    ) -> io::Result<()> {
        self.add(&Line::File(Bytes(path), access, size, &data.0))
    }

    /// Notes a directory, and whether it hides its namesakes in lower layers.
    ///
    /// # Errors
    ///
    /// The list cannot be written.
    pub fn directory(&mut self, path: &[u8], access: Access, opaque: bool) -> io::Result<()> {
        self.add::<()>(&Line::Dir(Bytes(path), access, opaque))
    }

    /// Notes a symbolic link.
    ///
    /// # Errors
    ///
    /// The list cannot be written.
    pub fn symlink(&mut self, path: &[u8], access: Access, target: &[u8]) -> io::Result<()> {
        self.add::<()>(&Line::Symlink(Bytes(path), access, Bytes(target)))
    }

    /// Notes a device or pipe: the type's bits of `st_mode` (inode(7)), and its `st_rdev`.
    ///
    /// # Errors
    ///
    /// The list cannot be written.
    pub fn special(
        &mut self,
        path: &[u8],
        access: Access,
        kind: u32,
        device: u64,
    ) -> io::Result<()> {
        self.add::<()>(&Line::Special(Bytes(path), access, kind, device))
    }

    /// Notes one more name of what `target` names, and what access to both is like from now on.
    ///
    /// # Errors
    ///
    /// The list cannot be written.
    pub fn link(&mut self, path: &[u8], target: &[u8], access: Access) -> io::Result<()> {
        self.add::<()>(&Line::Link(Bytes(path), Bytes(target), access))
    }

    /// Notes that nothing is there any more.
    ///
    /// # Errors
    ///
    /// The list cannot be written.
    pub fn gone(&mut self, path: &[u8]) -> io::Result<()> {
        self.add::<()>(&Line::Gone(Bytes(path)))
    }

    fn add<E: Serialize>(&mut self, line: &Line<Bytes<'_>, E>) -> io::Result<()> {
        if self.out.is_none() {
            return Ok(());
        }
        serde_json::to_writer(&mut self.buffer, line)?;
        self.buffer.push(b'\n');
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some(out) = &mut self.out else {
            return Ok(());
        };
        out.write_all(&self.buffer)?;
        let length = u64::try_from(self.buffer.len()).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(length);
        self.crc = crc(self.crc, &self.buffer);
        self.buffer.clear();
        if self.bytes > LIST_MAX {
            out.set_len(0)?;
            self.out = None;
        }
        Ok(())
    }

    /// Brings the list to its end. `None`: nothing was noted.
    ///
    /// # Errors
    ///
    /// The list cannot be written.
    pub fn finish(mut self) -> io::Result<Option<ContentsRef>> {
        self.flush()?;
        Ok(self.out.is_some().then_some(ContentsRef {
            bytes: self.bytes,
            crc: self.crc,
        }))
    }
}

/// What the list says in the end.
#[derive(Debug, Default)]
pub(crate) struct Model {
    /// Each name, and which of `nodes` it means.
    pub(crate) names: BTreeMap<Vec<u8>, usize>,
    pub(crate) nodes: Vec<Node>,
}

/// Something with one or more names.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) access: Access,
    pub(crate) what: What,
}

/// What it is.
#[derive(Debug)]
pub(crate) enum What {
    File(u64, Vec<Extent>),
    Directory { opaque: bool },
    Symlink(Vec<u8>),
    Special(u32, u64),
}

impl Model {
    /// Reads a list that was verified.
    pub(crate) fn read(list: &[u8]) -> Result<Self, String> {
        let mut model = Self::default();
        for (number, line) in list.split(|b| *b == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let read = serde_json::from_slice::<Line<LayerPath, Vec<Extent>>>(line)
                .map_err(|e| format!("line {}: {e}", number + 1))?;
            model.apply(read)?;
        }
        Ok(model)
    }

    fn apply(&mut self, line: Line<LayerPath, Vec<Extent>>) -> Result<(), String> {
        let (path, access, what) = match line {
            Line::File(path, access, size, data) => (path, access, What::File(size, data)),
            Line::Dir(path, access, opaque) => (path, access, What::Directory { opaque }),
            Line::Symlink(path, access, target) => (path, access, What::Symlink(target.0)),
            Line::Special(path, access, kind, rdev) => (path, access, What::Special(kind, rdev)),
            Line::Link(path, target, access) => {
                let found = self.names.get(&target.0).copied();
                let node = found.and_then(|at| Some((at, self.nodes.get_mut(at)?)));
                let (at, node) = node.ok_or_else(|| format!("a link to nothing: {target:?}"))?;
                node.access = access;
                self.clear_below(&path.0);
                self.names.insert(path.0, at);
                return Ok(());
            }
            Line::Gone(path) => {
                self.clear_below(&path.0);
                self.names.remove(&path.0);
                return Ok(());
            }
        };
        if !matches!(what, What::Directory { .. }) {
            self.clear_below(&path.0);
        }
        self.names.insert(path.0, self.nodes.len());
        self.nodes.push(Node { access, what });
        Ok(())
    }

    fn clear_below(&mut self, path: &[u8]) {
        // '0' is the next byte after '/'.
        let (first, end) = ([path, b"/"].concat(), [path, b"0"].concat());
        let below = self.names.range(first..end).map(|(name, _)| name.clone());
        for name in below.collect::<Vec<_>>() {
            self.names.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCESS: Access = Access {
        mode: 0o644,
        uid: 0,
        gid: 0,
    };

    #[test]
    fn the_last_line_about_a_path_wins_and_a_file_hides_what_was_below() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        let mut list = Contents::to(File::create(&path).unwrap());
        let mut data = Extents::default();
        data.add(0, b"ab");
        data.add(2, b"c");
        data.add(4096, b"d");
        list.file(b"d/x/f", ACCESS, 5000, &data).unwrap();
        list.file(b"d/x0", ACCESS, 0, &Extents::default()).unwrap();
        list.symlink(b"d/x", ACCESS, b"to\xff").unwrap();
        list.file(b"e", ACCESS, 5000, &data).unwrap();
        let later = Access {
            mode: 0o600,
            ..ACCESS
        };
        list.link(b"e2", b"e", later).unwrap();
        list.symlink(b"e", ACCESS, b"other").unwrap();
        list.directory(b"d", ACCESS, true).unwrap();
        list.special(b"w", ACCESS, 0o020_000, 0).unwrap();
        list.gone(b"w").unwrap();
        let reference = list.finish().unwrap().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(reference.bytes, u64::try_from(bytes.len()).unwrap());
        assert_eq!(reference.crc, crc(0, &bytes));
        let model = Model::read(&bytes).unwrap();
        let names: Vec<_> = model.names.keys().map(|n| &n[..]).collect();
        assert_eq!(names, [&b"d"[..], b"d/x", b"d/x0", b"e", b"e2"]);
        let e2 = &model.nodes[model.names[&b"e2"[..]]];
        assert_eq!(e2.access, later);
        let expected = vec![Extent(0, 3, crc(0, b"abc")), Extent(4096, 1, crc(0, b"d"))];
        assert!(matches!(&e2.what, What::File(5000, data) if *data == expected));
        let link = &model.nodes[model.names[&b"d/x"[..]]];
        assert!(matches!(&link.what, What::Symlink(to) if to == b"to\xff"));
        assert_eq!(
            crc(0, b"123456789"),
            0xcbf4_3926,
            "the check value of CRC-32"
        );
    }

    #[test]
    fn a_list_that_is_kept_nowhere_says_so() {
        let mut list = Contents::unkept();
        list.gone(b"x").unwrap();
        assert_eq!(list.finish().unwrap(), None);
    }
}
