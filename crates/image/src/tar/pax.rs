//! PAX extended header records: `<length> <key>=<value>\n`.

use std::ops::Range;

use crate::limits::{SPARSE_MAX, XATTR_VALUE_MAX, XATTRS_MAX};
use crate::tar::reader::Time;

const XATTR: &[u8] = b"SCHILY.xattr.";

/// What is wrong with a block of records.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PaxError(pub &'static str);

/// The records that matter, of one block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pax {
    /// `path`.
    pub path: Option<Vec<u8>>,
    /// `linkpath`.
    pub link: Option<Vec<u8>>,
    /// `size`.
    pub size: Option<u64>,
    /// `uid`.
    pub uid: Option<u32>,
    /// `gid`.
    pub gid: Option<u32>,
    /// `mtime`.
    pub mtime: Option<Time>,
    /// `atime`.
    pub atime: Option<Time>,
    /// `SCHILY.xattr.*`, names without that prefix; the last value of a name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// `GNU.sparse.*`.
    pub sparse: SparseKeys,
}

/// The records of the three PAX forms of sparse files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SparseKeys {
    /// `GNU.sparse.major` and `.minor`.
    pub version: (Option<u64>, Option<u64>),
    /// `GNU.sparse.name`.
    pub name: Option<Vec<u8>>,
    /// `GNU.sparse.realsize` or `.size`.
    pub size: Option<u64>,
    /// `GNU.sparse.map`, or pairs of `.offset` and `.numbytes`: numbers in order.
    pub map: Option<Vec<u64>>,
}

impl Pax {
    /// Reads a block. A malformed record is an error, never skipped: two readers that skip
    /// differently see different files.
    pub fn parse(mut block: &[u8]) -> Result<Self, PaxError> {
        let mut pax = Self::default();
        // Some writers pad the last block with NULs within the stated size.
        while block.iter().any(|b| *b != 0) {
            let (key, value, rest) = record(block)?;
            pax.take(key, value)?;
            block = rest;
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), PaxError> {
        if let Some(name) = key.strip_prefix(XATTR) {
            return self.take_xattr(name, value);
        }
        let text = |value: &[u8]| {
            if value.contains(&0) {
                return Err(PaxError("a name contains NUL"));
            }
            // An empty value means: as in the header.
            Ok((!value.is_empty()).then(|| value.to_vec()))
        };
        let filled = !value.is_empty();
        match key {
            b"path" => self.path = text(value)?,
            b"linkpath" => self.link = text(value)?,
            b"size" if filled => self.size = Some(decimal(value)?),
            b"uid" if filled => self.uid = Some(id(value)?),
            b"gid" if filled => self.gid = Some(id(value)?),
            b"mtime" if filled => self.mtime = Some(time(value)?),
            b"atime" if filled => self.atime = Some(time(value)?),
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.take(key, value, text(value)?)?;
                }
            }
        }
        Ok(())
    }

    fn take_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), PaxError> {
        if name.is_empty() || name.contains(&0) {
            return Err(PaxError("an extended attribute has no proper name"));
        }
        if value.len() > XATTR_VALUE_MAX {
            return Err(PaxError("an extended attribute is longer than 64 KiB"));
        }
        self.xattrs.retain(|(n, _)| n != name);
        if self.xattrs.len() >= XATTRS_MAX {
            return Err(PaxError("more than 256 extended attributes"));
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }
}

impl SparseKeys {
    fn take(&mut self, key: &[u8], value: &[u8], text: Option<Vec<u8>>) -> Result<(), PaxError> {
        match key {
            b"major" => self.version.0 = Some(decimal(value)?),
            b"minor" => self.version.1 = Some(decimal(value)?),
            b"name" => self.name = text,
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"map" => {
                let numbers = value.split(|b| *b == b',').filter(|n| !n.is_empty());
                self.map = Some(numbers.map(decimal).collect::<Result<_, _>>()?);
            }
            b"offset" | b"numbytes" => {
                let expected = usize::from(key == b"numbytes");
                let numbers = self.map.get_or_insert_default();
                if numbers.len() % 2 != expected {
                    return Err(PaxError("sparse offsets and lengths do not alternate"));
                }
                numbers.push(decimal(value)?);
            }
            _ => {}
        }
        if self.map.as_ref().is_some_and(|m| m.len() > 2 * SPARSE_MAX) {
            return Err(PaxError("a sparse file of more than 65536 pieces"));
        }
        Ok(())
    }
}

/// Key, value, and what follows.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Splits the first record off.
fn record(block: &[u8]) -> Result<Record<'_>, PaxError> {
    const BAD: PaxError = PaxError("a record is not '<length> <key>=<value>'");
    let blank = block.iter().take(20).position(|b| *b == b' ').ok_or(BAD)?;
    let length = usize::try_from(decimal(&block[..blank])?).map_err(|_too_long| BAD)?;
    let body: Range<usize> = blank + 1..length.checked_sub(1).ok_or(BAD)?;
    if block.get(body.end) != Some(&b'\n') {
        return Err(BAD);
    }
    let body = block.get(body).ok_or(BAD)?;
    let equals = body.iter().position(|b| *b == b'=').ok_or(BAD)?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    if key.is_empty() || key.contains(&0) {
        return Err(BAD);
    }
    Ok((key, value, &block[length..]))
}

/// Decimal digits and nothing else.
pub fn decimal(text: &[u8]) -> Result<u64, PaxError> {
    const BAD: PaxError = PaxError("a number is malformed or too large");
    if text.is_empty() {
        return Err(BAD);
    }
    let number = text.iter().try_fold(0_u64, |sum, digit| match digit {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    });
    // Sizes are signed in every system call.
    number.filter(|n| i64::try_from(*n).is_ok()).ok_or(BAD)
}

fn id(text: &[u8]) -> Result<u32, PaxError> {
    // The last value means "unchanged" to chown(2).
    let id = u32::try_from(decimal(text)?)
        .ok()
        .filter(|id| *id != u32::MAX);
    id.ok_or(PaxError("an owner is larger than 4294967294"))
}

/// `[-]seconds[.fraction]`.
fn time(text: &[u8]) -> Result<Time, PaxError> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = match digits.iter().position(|b| *b == b'.') {
        Some(dot) => (&digits[..dot], &digits[dot + 1..]),
        None => (digits, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(PaxError("a time is malformed"));
    }
    let nanos = (0..9).fold(0_u32, |sum, at| {
        sum * 10 + fraction.get(at).map_or(0, |d| u32::from(d - b'0'))
    });
    let seconds = decimal(whole)?.cast_signed();
    Ok(match (negative, nanos) {
        (false, _) => Time { seconds, nanos },
        (true, 0) => Time {
            seconds: -seconds,
            nanos: 0,
        },
        (true, _) => Time {
            seconds: -seconds - 1,
            nanos: 1_000_000_000 - nanos,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_are_read_and_the_last_wins() {
        let pax = Pax::parse(b"9 path=a\n13 path=b=c\n\n19 mtime=-1.5000000\n");
        assert_eq!(
            pax,
            Err(PaxError("a record is not '<length> <key>=<value>'"))
        );
        let pax = Pax::parse(b"9 path=a\n12 path=b=c\n19 mtime=-1.500000\n9 uid=70\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"b=c"[..]));
        assert_eq!(
            pax.mtime,
            Some(Time {
                seconds: -2,
                nanos: 500_000_000
            })
        );
        assert_eq!(pax.uid, Some(70));
    }

    #[test]
    fn a_malformed_record_is_an_error_never_skipped() {
        for bad in [
            &b"9 path=a"[..],
            b"8 path=a\n",
            b"99 path=a\n",
            b"0 path=a\n",
            b"x path=a\n",
            b"7 path\n",
            b"6 =ab\n",
            b"10 path=a\0\n",
            b"14 uid=4294967295\n",
            b"18446744073709551616 path=a\n",
        ] {
            assert!(Pax::parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_records_or_an_error(block in proptest::collection::vec(any::<u8>(), 0..200)) {
            // The property is that it returns.
            drop(Pax::parse(&block));
        }
    }
}
