//! Writes tar archives that are the same bytes for the same entries, hostile ones too.
//!
//! Names go out exactly as given: `../x`, `/x` or an empty name are for the tests of a reader that
//! must refuse them. What does not fit a ustar header goes into a pax record before it.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;

const BLOCK: usize = 512;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file with these bytes.
    File(Vec<u8>),
    /// A regular file whose bytes are read from this path when the archive is written.
    Copy(PathBuf),
    /// A symbolic link to this target.
    Symlink(String),
    /// A hard link to an entry that was named earlier.
    Link(String),
    /// A character device, major and minor.
    Char(u32, u32),
    /// A block device, major and minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// One entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name as it is written; image layers use relative names without a leading `./`.
    pub path: String,
    /// File, directory, link or device.
    pub kind: Kind,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Extended attributes by full name, `security.capability` for instance.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Entry {
    fn new(path: &str, kind: Kind, mode: u32) -> Self {
        let (uid, gid, mtime) = (0, 0, 0);
        Self {
            path: path.into(),
            kind,
            mode,
            uid,
            gid,
            mtime,
            xattrs: BTreeMap::new(),
        }
    }

    /// A directory, mode 0755.
    pub fn dir(path: &str) -> Self {
        Self::new(path, Kind::Dir, 0o755)
    }

    /// A regular file, mode 0644.
    pub fn file(path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self::new(path, Kind::File(bytes.into()), 0o644)
    }

    /// A regular file with the bytes of `from`, mode 0644.
    pub fn copy(path: &str, from: impl Into<PathBuf>) -> Self {
        Self::new(path, Kind::Copy(from.into()), 0o644)
    }

    /// A program, mode 0755.
    pub fn program(path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self::new(path, Kind::File(bytes.into()), 0o755)
    }

    /// A symbolic link.
    pub fn symlink(path: &str, target: &str) -> Self {
        Self::new(path, Kind::Symlink(target.into()), 0o777)
    }

    /// A hard link to `target`, the name of an earlier entry.
    pub fn link(path: &str, target: &str) -> Self {
        Self::new(path, Kind::Link(target.into()), 0o644)
    }

    /// A named pipe, mode 0644.
    pub fn fifo(path: &str) -> Self {
        Self::new(path, Kind::Fifo, 0o644)
    }

    /// A character device, mode 0666.
    pub fn char_device(path: &str, major: u32, minor: u32) -> Self {
        Self::new(path, Kind::Char(major, minor), 0o666)
    }

    /// The whiteout that removes `path` from the layers below (image-spec, layer.md).
    pub fn whiteout(path: &str) -> Self {
        let (dir, name) = path.rsplit_once('/').map_or(("", path), |(d, n)| (d, n));
        let sep = if dir.is_empty() { "" } else { "/" };
        Self::file(&format!("{dir}{sep}.wh.{name}"), "")
    }

    /// The mark that hides what the layers below have in directory `dir` (image-spec, layer.md).
    pub fn opaque(dir: &str) -> Self {
        Self::file(&format!("{}/.wh..wh..opq", dir.trim_end_matches('/')), "")
    }

    /// The same with these permission bits.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// The same with this owner.
    #[must_use]
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// The same with this time.
    #[must_use]
    pub fn mtime(mut self, seconds: i64) -> Self {
        self.mtime = seconds;
        self
    }

    /// The same with one more extended attribute.
    #[must_use]
    pub fn xattr(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.xattrs.insert(name.into(), value.into());
        self
    }
}

/// The archive of `entries`, in their order.
pub fn archive<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Vec<u8> {
    let mut out = Writer::new(Vec::new());
    for entry in entries {
        out.entry(entry).expect("a Vec takes every write");
    }
    out.finish().expect("a Vec takes every write")
}

/// Writes entries to `W` one by one.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// An archive that begins here.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Writes one entry.
    ///
    /// # Errors
    /// What `W` or the file behind [`Kind::Copy`] says; that file must not change meanwhile.
    pub fn entry(&mut self, e: &Entry) -> io::Result<()> {
        let (flag, link, device) = match &e.kind {
            Kind::File(_) | Kind::Copy(_) => (b'0', "", None),
            Kind::Link(to) => (b'1', to.as_str(), None),
            Kind::Symlink(to) => (b'2', to.as_str(), None),
            Kind::Char(major, minor) => (b'3', "", Some((*major, *minor))),
            Kind::Block(major, minor) => (b'4', "", Some((*major, *minor))),
            Kind::Dir => (b'5', "", None),
            Kind::Fifo => (b'6', "", None),
        };
        let name = match e.kind {
            Kind::Dir if !e.path.ends_with('/') => format!("{}/", e.path),
            _ => e.path.clone(),
        };
        let size = match &e.kind {
            Kind::File(bytes) => bytes.len() as u64,
            Kind::Copy(from) => std::fs::metadata(from)?.len(),
            _ => 0,
        };
        let pax = pax_records(e, &name, link);
        if !pax.is_empty() {
            let head = Head {
                name: "pax",
                link: "",
                flag: b'x',
                size: pax.len() as u64,
            };
            self.out
                .write_all(&header(&head, &Entry::file("", ""), None))?;
            self.out.write_all(&pax)?;
            self.pad(pax.len() as u64)?;
        }
        let head = Head {
            name: &name,
            link,
            flag,
            size,
        };
        self.out.write_all(&header(&head, e, device))?;
        match &e.kind {
            Kind::File(bytes) => self.out.write_all(bytes)?,
            Kind::Copy(from) => {
                let n = io::copy(&mut std::fs::File::open(from)?.take(size), &mut self.out)?;
                if n != size {
                    return Err(io::Error::other(format!("{} shrank", from.display())));
                }
            }
            _ => {}
        }
        self.pad(size)
    }

    /// Ends the archive with its two empty blocks.
    ///
    /// # Errors
    /// What `W` says.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = (size % BLOCK as u64) as usize;
        if rest > 0 {
            self.out.write_all(&[0; BLOCK][rest..])
        } else {
            Ok(())
        }
    }
}

struct Head<'a> {
    name: &'a str,
    link: &'a str,
    flag: u8,
    size: u64,
}

fn header(head: &Head<'_>, e: &Entry, device: Option<(u32, u32)>) -> [u8; BLOCK] {
    let mut h = [0; BLOCK];
    let mut put = |at: usize, len: usize, bytes: &[u8]| {
        let n = bytes.len().min(len);
        h[at..at + n].copy_from_slice(&bytes[..n]);
    };
    put(0, 100, head.name.as_bytes());
    put(100, 8, &octal(u64::from(e.mode), 7));
    put(108, 8, &octal(e.uid, 7));
    put(116, 8, &octal(e.gid, 7));
    put(124, 12, &octal(head.size, 11));
    put(136, 12, &octal(u64::try_from(e.mtime).unwrap_or(0), 11));
    put(148, 8, b"        ");
    put(156, 1, &[head.flag]);
    put(157, 100, head.link.as_bytes());
    put(257, 8, b"ustar\x0000");
    if let Some((major, minor)) = device {
        put(329, 8, &octal(u64::from(major), 7));
        put(337, 8, &octal(u64::from(minor), 7));
    }
    let sum: u64 = h.iter().map(|b| u64::from(*b)).sum();
    h[148..154].copy_from_slice(&octal(sum, 6));
    h[154..156].copy_from_slice(b"\0 ");
    h
}

/// `value` in `width` octal digits; 0 where it does not fit (a pax record then has it).
fn octal(value: u64, width: usize) -> Vec<u8> {
    let text = format!("{value:0width$o}");
    if text.len() > width {
        vec![b'0'; width]
    } else {
        text.into_bytes()
    }
}

fn pax_records(e: &Entry, name: &str, link: &str) -> Vec<u8> {
    let mut out = Vec::new();
    if name.len() > 100 {
        record(&mut out, "path", name.as_bytes());
    }
    if link.len() > 100 {
        record(&mut out, "linkpath", link.as_bytes());
    }
    for (key, id) in [("uid", e.uid), ("gid", e.gid)] {
        if id > 0o7_777_777 {
            record(&mut out, key, id.to_string().as_bytes());
        }
    }
    if e.mtime < 0 || e.mtime > 0o77_777_777_777 {
        record(&mut out, "mtime", e.mtime.to_string().as_bytes());
    }
    for (name, value) in &e.xattrs {
        record(&mut out, &format!("SCHILY.xattr.{name}"), value);
    }
    out
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits (POSIX pax, "extended header").
fn record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    out.extend(format!("{len} {key}=").as_bytes());
    out.extend(value);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn gnu_tar(archive: &[u8], args: &[&str]) -> String {
        let mut tar = Command::new("tar")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        tar.stdin.take().unwrap().write_all(archive).unwrap();
        let out = tar.wait_with_output().unwrap();
        assert!(out.status.success());
        String::from_utf8(out.stdout).unwrap()
    }

    #[test]
    fn gnu_tar_reads_every_kind_of_entry() {
        let long = "d/".repeat(70) + "end";
        let list = gnu_tar(
            &archive(&[
                Entry::dir("etc"),
                Entry::file("etc/hello", "hi\n")
                    .owner(3_000_000, 7)
                    .mode(0o4755),
                Entry::link("etc/again", "etc/hello"),
                Entry::symlink("etc/sym", "hello"),
                Entry::char_device("null", 1, 3),
                Entry::fifo("pipe"),
                Entry::file(&long, "x".repeat(513)).xattr("user.k", *b"v\0w"),
            ]),
            &["--numeric-owner", "--utc", "-tvf", "-"],
        );
        let mut lines = list.lines();
        assert!(lines.next().unwrap().starts_with("drwxr-xr-x 0/0"));
        let hello = lines.next().unwrap();
        assert!(hello.starts_with("-rwsr-xr-x 3000000/7"), "{hello}");
        assert!(
            lines
                .next()
                .unwrap()
                .ends_with("etc/again link to etc/hello")
        );
        assert!(lines.next().unwrap().ends_with("etc/sym -> hello"));
        assert!(lines.next().unwrap().contains("1,3"));
        assert!(lines.next().unwrap().starts_with('p'));
        assert!(lines.next().unwrap().ends_with(&long));
        assert_eq!(lines.next(), None);
    }

    #[test]
    fn the_same_entries_give_the_same_bytes() {
        let entries = [
            Entry::dir("a"),
            Entry::file("a/b", "c").xattr("user.x", "y"),
        ];
        assert_eq!(archive(&entries), archive(&entries));
        assert_eq!(archive(&entries).len() % BLOCK, 0);
    }
}
