//! Decompression of layers: gzip, zstd, or none. What it is, its first bytes say: media types lie.

use std::io::{self, BufRead, Cursor, Read};

use flate2::bufread::GzDecoder;

use crate::limits::ZSTD_WINDOW_LOG_MAX;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Skippable frames have sixteen magic numbers: 0x184D2A50 to …5F, little-endian.
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// A reader of the plain bytes of `input`.
///
/// # Errors
///
/// The input fails. What is wrong with the compressed data, the reader says.
pub fn decoder<'a, R: BufRead + 'a>(mut input: R) -> io::Result<Box<dyn Read + 'a>> {
    let mut head = Vec::with_capacity(4);
    input.by_ref().take(4).read_to_end(&mut head)?;
    let is_gzip = head.starts_with(&GZIP);
    let is_zstd =
        head == ZSTD || (head.len() == 4 && head[0] & 0xf0 == 0x50 && head[1..] == ZSTD_SKIPPABLE);
    let whole = Cursor::new(head).chain(input);
    Ok(if is_gzip {
        Box::new(Gunzip {
            member: Some(GzDecoder::new(whole)),
            rest: None,
        })
    } else if is_zstd {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
        Box::new(decoder)
    } else {
        Box::new(whole)
    })
}

/// gzip members one after the other, as pigz and eStargz write them. Behind the last one only zeros
/// may follow.
struct Gunzip<R> {
    member: Option<GzDecoder<R>>,
    rest: Option<R>,
}

impl<R: BufRead> Gunzip<R> {
    /// Finds the next member; `false` when only zeros were left.
    fn next_member(&mut self) -> io::Result<bool> {
        let Some(mut rest) = self.rest.take() else {
            return Ok(false);
        };
        let mut padded = false;
        loop {
            let data = rest.fill_buf()?;
            if data.is_empty() {
                return Ok(false);
            }
            match data.iter().position(|b| *b != 0) {
                None => {
                    padded = true;
                    let n = data.len();
                    rest.consume(n);
                }
                Some(0) if data[0] == GZIP[0] && !padded => {
                    self.member = Some(GzDecoder::new(rest));
                    return Ok(true);
                }
                Some(_) => {
                    let why = "garbage behind the end of the gzip data";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
            }
        }
    }
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(member) = &mut self.member else {
                if !self.next_member()? {
                    return Ok(0);
                }
                continue;
            };
            let n = member.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            self.rest = self.member.take().map(GzDecoder::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;
    use std::io::Write as _;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn plain(data: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        // One byte at a time: no boundary may matter.
        let input = io::BufReader::with_capacity(1, data);
        decoder(input)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn members_are_joined_and_zeros_behind_them_ignored() {
        let two = [gzip(b"one "), gzip(b""), gzip(b"two")].concat();
        assert_eq!(plain(&two).unwrap(), b"one two");
        assert_eq!(plain(&[&two[..], &[0; 700]].concat()).unwrap(), b"one two");
        plain(&[&two[..], b"x"].concat()).unwrap_err();
        plain(&[&two[..], &[0; 8], &two[..]].concat()).unwrap_err();
    }

    #[test]
    fn zstd_frames_are_joined_and_skippable_ones_skipped() {
        let frame = |data: &[u8]| zstd::encode_all(data, 1).unwrap();
        let skip = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"toc"].concat();
        let all = [skip.clone(), frame(b"one "), frame(b"two"), skip].concat();
        assert_eq!(plain(&all).unwrap(), b"one two");
        assert!(plain(&all[..all.len() - 14]).is_err(), "cut within a frame");
    }

    #[test]
    fn what_is_not_compressed_passes() {
        for text in [&b""[..], b"a", b"abc", b"abcdef"] {
            assert_eq!(plain(text).unwrap(), text);
        }
    }

    #[test]
    fn a_cut_or_changed_member_is_an_error() {
        let data = gzip(&[7; 5000]);
        for end in 4..data.len() {
            assert!(plain(&data[..end]).is_err(), "{end}");
        }
        let mut wrong = data.clone();
        let at = wrong.len() - 5;
        wrong[at] ^= 1;
        assert!(plain(&wrong).is_err(), "checksum");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            for magic in [&GZIP[..], &ZSTD[..], b""] {
                // The property is that it returns.
                drop(plain(&[magic, &data].concat()));
            }
        }
    }
}
