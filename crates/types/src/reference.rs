//! Names of images: `[domain/]path[:tag][@digest]`.
//!
//! Spec: github.com/distribution/reference; docker.io short names as docker and containerd read them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError};
use crate::id::is_lower_hex;

/// The domain that a name without one belongs to.
const DEFAULT_DOMAIN: &str = "docker.io";
/// The longest name, without tag and digest.
const NAME_MAX: usize = 255;
/// The longest tag.
const TAG_MAX: usize = 128;

/// The text is not a reference.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// Nothing at all.
    #[error("image reference is empty")]
    Empty,
    /// 64 hex characters are an image id.
    #[error("{0:?} is an image id, not a name: give repository:tag or repository@sha256:…")]
    IsId(String),
    /// Registries refuse upper case.
    #[error("repository name in {0:?} must be lowercase")]
    UpperCase(String),
    /// Over 255 characters.
    #[error("repository name is {0} characters long, at most {NAME_MAX} are allowed")]
    TooLong(usize),
    /// Does not follow the grammar.
    #[error("{text:?} is not an image reference: {what}")]
    Malformed {
        /// What was given.
        text: String,
        /// The part that is wrong.
        what: &'static str,
    },
    /// The part behind `@`.
    #[error("image reference {text:?}")]
    Digest {
        /// What was given.
        text: String,
        /// Why its digest is none.
        source: DigestError,
    },
}

/// A full reference: domain and path, and a tag or a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry's name, with its port: `docker.io`, `127.0.0.1:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry: `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag; `None` when only a digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which decides when it is there.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// `domain/path`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The same repository by digest alone, as CRI's `repo_digests` shows it.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// The name under which the image is recorded: by digest when one was given, else by tag.
    #[must_use]
    pub fn canonical(&self) -> Self {
        match self.digest {
            Some(digest) => self.with_digest(digest),
            None => self.clone(),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() == 64 && is_lower_hex(text) {
            return Err(ReferenceError::IsId(text.to_owned()));
        }
        let malformed = |what| ReferenceError::Malformed {
            text: text.to_owned(),
            what,
        };
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => match digest.parse() {
                Ok(digest) => (rest, Some(digest)),
                Err(source) => {
                    return Err(ReferenceError::Digest {
                        text: text.to_owned(),
                        source,
                    });
                }
            },
        };
        let (name, tag) = match rest.rsplit_once(':') {
            // A colon before the last slash belongs to a port.
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(malformed(
                "the tag is up to 128 letters, digits, '_', '.', '-'",
            ));
        }
        let (domain, path) = split_domain(name);
        if !is_domain(&domain) {
            return Err(malformed("the registry is host[:port]"));
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ReferenceError::UpperCase(text.to_owned()));
        }
        if !path.split('/').all(is_path_component) {
            return Err(malformed(
                "a repository is lower-case letters and digits, separated by . _ - /",
            ));
        }
        if domain.len() + 1 + path.len() > NAME_MAX {
            return Err(ReferenceError::TooLong(domain.len() + 1 + path.len()));
        }
        let tag = match (tag, digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(ToOwned::to_owned),
        };
        Ok(Self {
            domain,
            path,
            tag,
            digest,
        })
    }
}

/// Splits and completes a name: `busybox` is `docker.io` and `library/busybox`.
fn split_domain(name: &str) -> (String, String) {
    let domain_of = |first: &str| {
        first.contains(['.', ':'])
            || first == "localhost"
            || first.bytes().any(|b| b.is_ascii_uppercase())
    };
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if domain_of(first) => (first, rest),
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == "index.docker.io" {
        DEFAULT_DOMAIN
    } else {
        domain
    };
    if domain == DEFAULT_DOMAIN && !path.contains('/') {
        return (domain.to_owned(), format!("library/{path}"));
    }
    (domain.to_owned(), path.to_owned())
}

/// `host[:port]` or `[ipv6][:port]`.
fn is_domain(domain: &str) -> bool {
    let (host, port) = if let Some(rest) = domain.strip_prefix('[') {
        let Some((v6, port)) = rest.split_once(']') else {
            return false;
        };
        if v6.is_empty() || !v6.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
            return false;
        }
        (
            None,
            port.strip_prefix(':').or((!port.is_empty()).then_some("-")),
        )
    } else {
        match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        }
    };
    let is_label = |label: &str| {
        label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.is_none_or(|h| h.split('.').all(is_label))
        && port.is_none_or(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_path_component(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().zip(bytes.last());
    if !ends.is_some_and(|(a, z)| is_word(*a) && is_word(*z)) {
        return false;
    }
    bytes.split(|b| is_word(*b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

/// `[\w][\w.-]{0,127}`.
fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= TAG_MAX
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full(text: &str) -> String {
        text.parse::<Reference>()
            .map_or_else(|e| format!("error: {e}"), |r| r.to_string())
    }

    #[test]
    fn short_names_are_docker_hubs() {
        assert_eq!(full("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(
            full("index.docker.io/busybox:1"),
            "docker.io/library/busybox:1"
        );
        assert_eq!(full("team/app"), "docker.io/team/app:latest");
        assert_eq!(full("localhost/app"), "localhost/app:latest");
        assert_eq!(full("127.0.0.1:5000/a/b:v1"), "127.0.0.1:5000/a/b:v1");
        assert_eq!(full("[::1]:5000/a"), "[::1]:5000/a:latest");
    }

    #[test]
    fn a_digest_decides_and_the_tag_stays_for_the_eye() {
        let hex = "a".repeat(64);
        let r: Reference = format!("k8s.gcr.io/pause:3.9@sha256:{hex}")
            .parse()
            .unwrap();
        assert_eq!(r.tag(), Some("3.9"));
        assert_eq!(
            r.canonical().to_string(),
            format!("k8s.gcr.io/pause@sha256:{hex}")
        );
        assert_eq!(
            full(&format!("a@sha256:{hex}")),
            format!("docker.io/library/a@sha256:{hex}")
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(full("docker.io/App").contains("must be lowercase"));
        assert!(full(&"a".repeat(64)).contains("image id"));
        assert!(full("").contains("empty"));
        assert!(full("a:b:c").contains("not an image reference"));
        assert!(full("a@sha256:xyz").contains("image reference"));
        for bad in [
            "a//b",
            "-a",
            "a-",
            "a/../b",
            "a b",
            "a:",
            "a:-x",
            "x.y:port/a",
            "a...b",
            "a___b",
        ] {
            assert!(
                full(bad).starts_with("error: "),
                "{bad} became {}",
                full(bad)
            );
        }
    }

    proptest! {
        /// Whatever comes in: no panic, and what is accepted reads back as itself.
        #[test]
        fn an_accepted_reference_reads_back(text in "[a-zA-Z0-9./:@_-]{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
