//! Entries of a tar stream, one after the other, and their data.

use std::io::{self, BufRead};

use crate::limits::{ENTRIES_MAX, LINK_MAX, PATH_MAX, PAX_MAX, SPARSE_MAX};
use crate::tar::header::{BLOCK, Format, Header};
use crate::tar::pax::{Pax, PaxError};
use crate::tar::sparse::{self, Extent};

/// [`BLOCK`] as a stream length.
const BLOCK_LEN: u64 = 512;
/// Bytes of a map of the most pieces, two numbers of up to 20 digits each.
const SPARSE_TEXT_MAX: usize = 42 * SPARSE_MAX + BLOCK;

/// The stream is not a tar that can be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// The input failed.
    #[error("read layer")]
    Read(#[source] io::Error),
    /// The stream ends within an entry.
    #[error("layer is cut off at byte {0}")]
    Truncated(u64),
    /// A header block makes no sense.
    #[error("tar header at byte {offset}: {what}")]
    Header {
        /// Where it begins.
        offset: u64,
        /// The part that is wrong.
        what: &'static str,
    },
    /// An extended header makes no sense.
    #[error("PAX header before byte {offset}")]
    Pax {
        /// Where it ends.
        offset: u64,
        /// What is wrong.
        source: PaxError,
    },
    /// A map of holes makes no sense.
    #[error("sparse file: {0}")]
    Sparse(&'static str),
    /// More than anybody needs.
    #[error("layer has more than {limit} {what}")]
    Limit {
        /// What is counted.
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
    /// A kind of entry that has no meaning in a layer.
    #[error("entry {name:?} is of tar type {flag:?}, which is not supported")]
    Type {
        /// Its name.
        name: String,
        /// The type flag.
        flag: char,
    },
}

/// A point in time, before or after 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time {
    /// Whole seconds.
    pub seconds: i64,
    /// Added to them, below a second.
    pub nanos: u32,
}

/// What an entry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file of this many bytes.
    File {
        /// With its holes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link to this text.
    Symlink(Vec<u8>),
    /// Another name of the entry of this path.
    HardLink(Vec<u8>),
    /// A character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As it stands in the archive.
    pub path: Vec<u8>,
    /// What it makes.
    pub kind: EntryKind,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Time,
    /// Last access, where the archive tells.
    pub atime: Option<Time>,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A piece of a file's data. What lies between pieces is a hole.
#[derive(Debug)]
pub struct Piece<'a> {
    /// Where it belongs in the file.
    pub offset: u64,
    /// Its bytes, never empty.
    pub data: &'a [u8],
}

/// What is left of the current entry's data.
#[derive(Debug, Default)]
struct Body {
    /// Bytes in the archive.
    stored: u64,
    /// Zeros behind them, up to a full block.
    padding: u64,
    /// Pieces to come, last first.
    extents: Vec<Extent>,
}

/// The parser. After an error it is of no more use.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    /// Bytes taken from the input so far.
    offset: u64,
    /// Bytes handed out that the input still holds.
    lent: usize,
    body: Body,
    entries: u64,
    ended: bool,
}

/// Headers in front of an entry that change it.
#[derive(Default)]
struct Extras {
    pax: Pax,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: BufRead> Reader<R> {
    /// A parser at the beginning of an archive.
    pub fn new(input: R) -> Self {
        Self {
            input,
            offset: 0,
            lent: 0,
            body: Body::default(),
            entries: 0,
            ended: false,
        }
    }

    /// The next entry, `None` behind the last. Data of the current one that was not read is skipped.
    ///
    /// # Errors
    ///
    /// The archive is malformed, cut off or beyond a limit.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        if self.ended {
            return Ok(None);
        }
        self.skip_body()?;
        let mut extras = Extras::default();
        let mut block = [0; BLOCK];
        loop {
            let at = self.offset;
            if !self.read_block(&mut block)? || Header(&block).is_zero() {
                return self.end(at, &mut block);
            }
            let header = Header(&block);
            let wrong = |what| TarError::Header { offset: at, what };
            if !header.checksum_matches() {
                return Err(wrong("the checksum does not match"));
            }
            let size = header.number(124, 136).and_then(|n| u64::try_from(n).ok());
            let size = size.ok_or(wrong("the size is malformed"))?;
            match header.typeflag() {
                b'x' => extras.pax = self.pax(size)?,
                // Global headers carry comments such as a commit; a layer has no use for defaults.
                b'g' => drop(self.pax(size)?),
                b'L' => extras.name = Some(self.long_text(size)?),
                b'K' => extras.link = Some(self.long_text(size)?),
                _ => return self.entry(&block, at, size, extras).map(Some),
            }
        }
    }

    /// The next piece of the current entry's data, `None` behind the last.
    ///
    /// # Errors
    ///
    /// The archive is cut off.
    pub fn next_piece(&mut self) -> Result<Option<Piece<'_>>, TarError> {
        self.give_back();
        while self
            .body
            .extents
            .last()
            .is_some_and(|extent| extent.length == 0)
        {
            self.body.extents.pop();
        }
        let Some(extent) = self.body.extents.last_mut() else {
            return Ok(None);
        };
        let data = self.input.fill_buf().map_err(TarError::Read)?;
        if data.is_empty() {
            return Err(TarError::Truncated(self.offset));
        }
        let n = usize::try_from(extent.length)
            .unwrap_or(usize::MAX)
            .min(data.len());
        let taken = u64::try_from(n).unwrap_or(u64::MAX);
        let offset = extent.offset;
        extent.offset += taken;
        extent.length -= taken;
        self.body.stored -= taken;
        self.lent = n;
        Ok(Some(Piece {
            offset,
            data: &data[..n],
        }))
    }

    /// Reads to the end of the input: the layer's digest covers what stands behind the last entry.
    ///
    /// # Errors
    ///
    /// The input fails.
    pub fn drain(&mut self) -> Result<(), TarError> {
        loop {
            self.give_back();
            let n = self.input.fill_buf().map_err(TarError::Read)?.len();
            if n == 0 {
                return Ok(());
            }
            self.lent = n;
        }
    }

    /// The input.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// One zero block must be followed by another, or by the end of the stream.
    fn end(&mut self, at: u64, block: &mut [u8; BLOCK]) -> Result<Option<Entry>, TarError> {
        self.ended = true;
        if self.offset > at && self.read_block(block)? && !Header(block).is_zero() {
            return Err(TarError::Header {
                offset: at,
                what: "a lone zero block",
            });
        }
        Ok(None)
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK],
        at: u64,
        header_size: u64,
        extras: Extras,
    ) -> Result<Entry, TarError> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(TarError::Limit {
                what: "entries",
                limit: ENTRIES_MAX,
            });
        }
        let header = Header(block);
        let wrong = |what| TarError::Header { offset: at, what };
        let Extras { pax, name, link } = extras;
        let path = pax.path.clone().or(name).unwrap_or_else(|| header.name());
        let link = pax
            .link
            .clone()
            .or(link)
            .unwrap_or_else(|| header.text(157, 257).to_vec());
        let id = |from, to| header.number(from, to).and_then(|n| u32::try_from(n).ok());
        let id = |from, to| id(from, to).filter(|n| *n != u32::MAX);
        let mode = header
            .number(100, 108)
            .ok_or(wrong("the mode is malformed"))?
            & 0o7777;
        let mtime = header
            .number(136, 148)
            .ok_or(wrong("the time is malformed"))?;
        // Where the header and the PAX records disagree, PAX decides: for the data, and so for the
        // position of the next header.
        let size = pax.size.unwrap_or(header_size);
        let mut entry = Entry {
            kind: self.kind(block, at, &path, link)?,
            path,
            mode: u32::try_from(mode).unwrap_or(0),
            uid: pax
                .uid
                .or(id(108, 116))
                .ok_or(wrong("the owner is malformed"))?,
            gid: pax
                .gid
                .or(id(116, 124))
                .ok_or(wrong("the group is malformed"))?,
            mtime: pax.mtime.unwrap_or(Time {
                seconds: mtime,
                nanos: 0,
            }),
            atime: pax.atime,
            xattrs: Vec::new(),
        };
        if let EntryKind::File { size: whole } = &mut entry.kind {
            *whole = self.open_body(block, size, &pax)?;
            if let Some(name) = pax.sparse.name.clone() {
                entry.path = name;
            }
            if entry.path.ends_with(b"/") {
                entry.kind = EntryKind::Directory;
            }
        }
        entry.xattrs = pax.xattrs;
        if entry.path.len() > PATH_MAX {
            return Err(wrong("the path is longer than 32 KiB"));
        }
        Ok(entry)
    }

    fn kind(
        &self,
        block: &[u8; BLOCK],
        at: u64,
        path: &[u8],
        link: Vec<u8>,
    ) -> Result<EntryKind, TarError> {
        let header = Header(block);
        let wrong = |what| TarError::Header { offset: at, what };
        let number = |from, to| {
            let n = header.number(from, to).and_then(|n| u32::try_from(n).ok());
            n.ok_or(wrong("a device number is malformed or over 32 bits"))
        };
        Ok(match header.typeflag() {
            b'0' | 0 | b'7' | b'S' => EntryKind::File { size: 0 },
            b'1' => EntryKind::HardLink(link),
            b'2' if link.len() > LINK_MAX => return Err(wrong("a link is longer than 4095 bytes")),
            b'2' if link.is_empty() => return Err(wrong("a link leads nowhere")),
            b'2' => EntryKind::Symlink(link),
            b'3' => EntryKind::Char {
                major: number(329, 337)?,
                minor: number(337, 345)?,
            },
            b'4' => EntryKind::Block {
                major: number(329, 337)?,
                minor: number(337, 345)?,
            },
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            flag => {
                return Err(TarError::Type {
                    name: String::from_utf8_lossy(path).into_owned(),
                    flag: char::from(flag),
                });
            }
        })
    }

    /// Prepares the data of a regular file; returns its size with holes.
    fn open_body(&mut self, block: &[u8; BLOCK], stored: u64, pax: &Pax) -> Result<u64, TarError> {
        self.body.stored = stored;
        self.body.padding = padding(stored);
        let (size, extents) = if Header(block).typeflag() == b'S' {
            self.gnu_sparse(block)?
        } else if pax.sparse.version == (Some(1), Some(0)) {
            let size = pax
                .sparse
                .size
                .ok_or(TarError::Sparse("its size is missing"))?;
            (size, self.sparse_1_0()?)
        } else if let Some(map) = &pax.sparse.map {
            let size = pax
                .sparse
                .size
                .ok_or(TarError::Sparse("its size is missing"))?;
            (size, sparse::from_numbers(map).map_err(TarError::Sparse)?)
        } else {
            (
                stored,
                vec![Extent {
                    offset: 0,
                    length: stored,
                }],
            )
        };
        let mut extents =
            sparse::checked(extents, size, self.body.stored).map_err(TarError::Sparse)?;
        extents.reverse();
        self.body.extents = extents;
        Ok(size)
    }

    /// Old GNU: the map begins in the header and goes on in blocks behind it, which the size does
    /// not count.
    fn gnu_sparse(&mut self, block: &[u8; BLOCK]) -> Result<(u64, Vec<Extent>), TarError> {
        let header = Header(block);
        if header.format() != Format::Gnu {
            return Err(TarError::Sparse("its header is not GNU's"));
        }
        let size = header.number(483, 495).and_then(|n| u64::try_from(n).ok());
        let size = size.ok_or(TarError::Sparse("its size is malformed"))?;
        let mut extents = Vec::new();
        sparse::take_gnu(&block[386..482], &mut extents)?;
        let mut more = block[482] != 0;
        let mut next = [0; BLOCK];
        while more {
            if !self.read_block(&mut next)? {
                return Err(TarError::Truncated(self.offset));
            }
            sparse::take_gnu(&next[..504], &mut extents)?;
            more = next[504] != 0;
        }
        Ok((size, extents))
    }

    /// PAX 1.0: the map is text in front of the data, in full blocks, which the size counts.
    fn sparse_1_0(&mut self) -> Result<Vec<Extent>, TarError> {
        let mut text: Vec<u8> = Vec::new();
        let mut block = [0; BLOCK];
        let mut lines = 0;
        // The count of pieces, then two lines for each.
        let mut wanted = None;
        while wanted.is_none_or(|wanted| lines < wanted) {
            if self.body.stored < BLOCK_LEN {
                return Err(TarError::Sparse("its map does not end"));
            }
            if !self.read_block(&mut block)? {
                return Err(TarError::Truncated(self.offset));
            }
            self.body.stored -= BLOCK_LEN;
            lines += block.iter().filter(|b| **b == b'\n').count();
            text.extend_from_slice(&block);
            if wanted.is_none() && (lines > 0 || text.len() > BLOCK) {
                wanted = Some(1 + 2 * sparse::count(&text)?);
            }
            if text.len() > SPARSE_TEXT_MAX {
                return Err(TarError::Sparse("its map is longer than its pieces can be"));
            }
        }
        sparse::from_text(&text).map_err(TarError::Sparse)
    }

    fn pax(&mut self, size: u64) -> Result<Pax, TarError> {
        let block = self.special(size)?;
        Pax::parse(&block).map_err(|source| TarError::Pax {
            offset: self.offset,
            source,
        })
    }

    /// A GNU long name: up to the first NUL.
    fn long_text(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let mut text = self.special(size)?;
        let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
        text.truncate(end);
        Ok(text)
    }

    /// The data of a header that describes the next one.
    fn special(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > PAX_MAX {
            return Err(TarError::Limit {
                what: "bytes in one extended header",
                limit: PAX_MAX,
            });
        }
        self.body.stored = size;
        self.body.padding = padding(size);
        self.body.extents = vec![Extent {
            offset: 0,
            length: size,
        }];
        let mut bytes = Vec::new();
        while let Some(piece) = self.next_piece()? {
            bytes.extend_from_slice(piece.data);
        }
        self.skip_body()?;
        Ok(bytes)
    }

    fn skip_body(&mut self) -> Result<(), TarError> {
        self.give_back();
        let mut left = self.body.stored.saturating_add(self.body.padding);
        // The last entry's padding may be missing when the stream ends there.
        let data = self.body.stored;
        self.body = Body::default();
        let begin = self.offset;
        while left > 0 {
            let n = self.input.fill_buf().map_err(TarError::Read)?.len();
            if n == 0 {
                if self.offset - begin >= data {
                    return Ok(());
                }
                return Err(TarError::Truncated(self.offset));
            }
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(n);
            self.lent = n;
            left -= u64::try_from(n).unwrap_or(left);
            self.give_back();
        }
        Ok(())
    }

    /// Reads a block; `false` at the end of the stream.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, TarError> {
        self.give_back();
        let mut filled = 0;
        while filled < BLOCK {
            let data = self.input.fill_buf().map_err(TarError::Read)?;
            if data.is_empty() {
                if filled == 0 {
                    return Ok(false);
                }
                return Err(TarError::Truncated(self.offset));
            }
            let n = data.len().min(BLOCK - filled);
            block[filled..filled + n].copy_from_slice(&data[..n]);
            filled += n;
            self.lent = n;
            self.give_back();
        }
        Ok(true)
    }

    /// Tells the input what was used up.
    fn give_back(&mut self) {
        let n = std::mem::take(&mut self.lent);
        self.input.consume(n);
        self.offset += u64::try_from(n).unwrap_or(0);
    }
}

/// Zeros behind data of this length.
fn padding(stored: u64) -> u64 {
    (BLOCK_LEN - stored % BLOCK_LEN) % BLOCK_LEN
}
