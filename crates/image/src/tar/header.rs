//! One header block.

/// The size of every record of a tar.
pub const BLOCK: usize = 512;

/// A header block as read.
pub struct Header<'a>(pub &'a [u8; BLOCK]);

impl std::fmt::Debug for Header<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Header({:?})",
            String::from_utf8_lossy(self.text(0, 100))
        )
    }
}

/// Which writer's rules a header follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Before POSIX: no magic.
    V7,
    /// POSIX, also under PAX.
    Ustar,
    /// Schilling's star: a shorter prefix.
    Star,
    /// Old GNU.
    Gnu,
}

impl<'a> Header<'a> {
    /// All zeros: the end marker.
    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|b| *b == 0)
    }

    /// Whether the checksum field is the sum of the block, with unsigned or signed bytes.
    pub fn checksum_matches(&self) -> bool {
        let Some(stored) = octal(&self.0[148..156]) else {
            return false;
        };
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (at, byte) in self.0.iter().enumerate() {
            let byte = if (148..156).contains(&at) {
                b' '
            } else {
                *byte
            };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        i64::try_from(stored).is_ok_and(|stored| stored == unsigned || stored == signed)
    }

    /// The kind of entry, as a letter or digit.
    pub fn typeflag(&self) -> u8 {
        self.0[156]
    }

    /// Which rules apply.
    pub fn format(&self) -> Format {
        match (&self.0[257..263], &self.0[263..265]) {
            (b"ustar\0", _) if &self.0[508..512] == b"tar\0" => Format::Star,
            (b"ustar\0", _) => Format::Ustar,
            (b"ustar ", b" \0") => Format::Gnu,
            _ => Format::V7,
        }
    }

    /// Bytes of a text field up to its first NUL.
    pub fn text(&self, from: usize, to: usize) -> &'a [u8] {
        let field = &self.0[from..to];
        field.split(|b| *b == 0).next().unwrap_or(field)
    }

    /// The name, with the prefix where the format has one.
    pub fn name(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        let prefix = match self.format() {
            Format::Ustar => self.text(345, 500),
            Format::Star => self.text(345, 476),
            Format::V7 | Format::Gnu => b"",
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    /// A number field: octal text or base-256. `None` when it is neither or too large.
    pub fn number(&self, from: usize, to: usize) -> Option<i64> {
        number(&self.0[from..to])
    }
}

/// Octal text or base-256 (high bit of the first byte set; two's complement).
pub fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 == 0 {
        return octal(field).and_then(|n| i64::try_from(n).ok());
    }
    let negative = first & 0x40 != 0;
    let mut value: i128 = if negative { -1 } else { 0 };
    for (at, byte) in field.iter().enumerate() {
        // The marker bit takes the value of the sign bit.
        let byte = match (at, negative) {
            (0, true) => byte | 0x80,
            (0, false) => byte & 0x7f,
            _ => *byte,
        };
        if at == 0 {
            value = if negative {
                i128::from(byte) - 256
            } else {
                i128::from(byte)
            };
        } else {
            value = value.checked_mul(256)?.checked_add(i128::from(byte))?;
        }
    }
    i64::try_from(value).ok()
}

/// Octal digits between blanks and NULs; nothing is zero.
fn octal(field: &[u8]) -> Option<u64> {
    let blank = |b: &u8| *b == b' ' || *b == 0;
    let start = field.iter().position(|b| !blank(b));
    let Some(start) = start else {
        return Some(0);
    };
    let end = field.iter().rposition(|b| !blank(b))? + 1;
    field[start..end]
        .iter()
        .try_fold(0_u64, |sum, digit| match digit {
            b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"12x4"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0x80, 0, 0, 1]), Some(0x8000_0001));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(
            number(&[0x80, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            None,
            "too large"
        );
    }
}
