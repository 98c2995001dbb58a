//! Maps of sparse files: which pieces of a file the archive holds.

use crate::limits::SPARSE_MAX;
use crate::tar::header::number;
use crate::tar::pax::decimal;
use crate::tar::reader::TarError;

/// A piece of data within a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
}

/// A checked map: pieces in order, none beyond the file, together exactly what the archive holds.
pub fn checked(extents: Vec<Extent>, size: u64, stored: u64) -> Result<Vec<Extent>, &'static str> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for extent in &extents {
        if extent.offset < end {
            return Err("pieces of a sparse file overlap");
        }
        end = extent
            .offset
            .checked_add(extent.length)
            .ok_or("a sparse file is too large")?;
        sum = sum.saturating_add(extent.length);
    }
    if end > size {
        return Err("a piece of a sparse file lies beyond its end");
    }
    if sum != stored {
        return Err("the pieces of a sparse file are not what the archive holds");
    }
    Ok(extents)
}

/// Numbers in pairs.
pub fn from_numbers(numbers: &[u64]) -> Result<Vec<Extent>, &'static str> {
    if !numbers.len().is_multiple_of(2) {
        return Err("a sparse offset has no length");
    }
    let pairs = numbers.chunks_exact(2);
    Ok(pairs
        .map(|pair| Extent {
            offset: pair[0],
            length: pair[1],
        })
        .collect())
}

/// The number of pieces: the first line of a map in text.
pub fn count(text: &[u8]) -> Result<usize, TarError> {
    let line = text.split(|b| *b == b'\n').next().unwrap_or_default();
    let count = decimal(line).map_err(|e| TarError::Sparse(e.0))?;
    match usize::try_from(count) {
        Ok(count) if count <= SPARSE_MAX => Ok(count),
        _ => Err(TarError::Limit {
            what: "pieces of a sparse file",
            limit: 65_536,
        }),
    }
}

/// A whole map in text: the number of pieces, then offset and length of each, a line each.
pub fn from_text(text: &[u8]) -> Result<Vec<Extent>, &'static str> {
    let mut numbers = text.split(|b| *b == b'\n').map(decimal);
    let mut next = || match numbers.next() {
        Some(Ok(number)) => Ok(number),
        _ => Err("its map is malformed"),
    };
    let count = next()?;
    (0..count)
        .map(|_| {
            Ok(Extent {
                offset: next()?,
                length: next()?,
            })
        })
        .collect()
}

/// Adds the pairs of an old GNU header or extension block to `extents`; an empty pair ends them.
pub fn take_gnu(fields: &[u8], extents: &mut Vec<Extent>) -> Result<(), TarError> {
    for pair in fields.chunks_exact(24) {
        if pair[0] == 0 || pair[12] == 0 {
            break;
        }
        let number = |field: &[u8]| number(field).and_then(|n| u64::try_from(n).ok());
        let (Some(offset), Some(length)) = (number(&pair[..12]), number(&pair[12..])) else {
            return Err(TarError::Sparse("a number is malformed"));
        };
        if extents.len() >= SPARSE_MAX {
            return Err(TarError::Limit {
                what: "pieces of a sparse file",
                limit: 65_536,
            });
        }
        extents.push(Extent { offset, length });
    }
    Ok(())
}
