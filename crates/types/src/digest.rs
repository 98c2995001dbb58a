//! Digests of content. A digest that exists is safe as a file name: only the strict parser makes one.
//!
//! Spec: image-spec `descriptor.md` "Digests", `config.md` "Layer DiffID", "Layer ChainID".

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::id::{hex, is_lower_hex};

/// The text is not a digest that wharf can verify.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DigestError {
    /// Not `algorithm:hex` with lower-case hex of the right length.
    #[error("{0:?} is not a digest: sha256:<64 lower-case hexadecimal characters> is needed")]
    Malformed(String),
    /// Well-formed, but of an algorithm that we cannot compute.
    #[error("digest algorithm of {0:?} is not supported: only sha256 is")]
    Algorithm(String),
}

/// A sha256 digest, `sha256:<hex>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// From the raw hash that a streaming hasher gave.
    pub fn from_hash(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// The raw hash.
    pub fn hash(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hex characters without the algorithm: a file name.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let malformed = || DigestError::Malformed(text.to_owned());
        let (algorithm, encoded) = text.split_once(':').ok_or_else(malformed)?;
        if algorithm != "sha256" {
            let grammar =
                |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+._-".contains(&b);
            return Err(if !algorithm.is_empty() && algorithm.bytes().all(grammar) {
                DigestError::Algorithm(text.to_owned())
            } else {
                malformed()
            });
        }
        if encoded.len() != 64 || !is_lower_hex(encoded) {
            return Err(malformed());
        }
        let nibble = |b: u8| {
            if b.is_ascii_digit() {
                b - b'0'
            } else {
                b - b'a' + 10
            }
        };
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(encoded.as_bytes().chunks(2)) {
            *byte = nibble(pair[0]) << 4 | nibble(pair[1]);
        }
        Ok(Self(hash))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The digest of a layer's uncompressed tar stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(pub Digest);

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The identity of a stack of layers, from the base up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(pub Digest);

impl ChainId {
    /// The chain ID of `layer` put on top of `below` (`None`: it is the base).
    pub fn on(below: Option<ChainId>, layer: DiffId) -> Self {
        match below {
            None => Self(layer.0),
            Some(below) => Self(Digest::of(format!("{} {}", below.0, layer.0).as_bytes())),
        }
    }

    /// The chain ID of all `layers`, base first; `None` without layers.
    pub fn of(layers: &[DiffId]) -> Option<Self> {
        layers
            .iter()
            .fold(None, |below, layer| Some(Self::on(below, *layer)))
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_and_value_are_the_same_digest() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
    }

    #[test]
    fn what_could_leave_a_directory_is_no_digest() {
        for bad in [
            "",
            "sha256",
            "sha256:",
            "sha256:..",
            "sha256:../../x",
            &EMPTY.to_uppercase(),
            &EMPTY[..70],
        ] {
            assert!(
                matches!(bad.parse::<Digest>(), Err(DigestError::Malformed(_))),
                "{bad}"
            );
        }
        let other = format!("blake3:{}", "a".repeat(64));
        assert!(matches!(
            other.parse::<Digest>(),
            Err(DigestError::Algorithm(_))
        ));
    }

    /// image-spec config.md, "Layer ChainID".
    #[test]
    fn a_chain_id_is_folded_from_the_base() {
        let (a, b) = (DiffId(Digest::of(b"a")), DiffId(Digest::of(b"b")));
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(&[a]), Some(ChainId(a.0)));
        let both = Digest::of(format!("{a} {b}").as_bytes());
        assert_eq!(ChainId::of(&[a, b]), Some(ChainId(both)));
    }
}
