//! Which manifest of an index runs on a machine.
//!
//! Spec: image-spec `image-index.md` "platform"; normalisation as containerd's platforms library does.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An operating system and processor, as an index names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
pub struct Platform {
    /// `amd64`, `arm64`…
    #[serde(default)]
    pub architecture: String,
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `v2`, `v8`…
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// Features that the host must have.
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
}

impl Platform {
    /// A normalised platform: `x86_64` is `amd64`, `aarch64` is `arm64`, default variants are empty.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        Self {
            architecture: architecture.to_owned(),
            os: os.to_owned(),
            variant: variant.to_owned(),
            os_features: Vec::new(),
        }
        .normalised()
    }

    /// The same platform in the words of the image specification.
    #[must_use]
    pub fn normalised(mut self) -> Self {
        self.os = self.os.to_lowercase();
        let (architecture, variant) = (
            self.architecture.to_lowercase(),
            self.variant.to_lowercase(),
        );
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "v1" | "") => ("amd64", ""),
            ("x86_64" | "x86-64", v) => ("amd64", v),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0" | "") => ("arm64", ""),
            ("aarch64" | "arm64", "9" | "v9" | "v9.0") => ("arm64", "v9"),
            ("aarch64", v) => ("arm64", v),
            ("i386" | "i686", _) => ("386", ""),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "") => ("arm", "v7"),
            (a, v) => (a, v),
        };
        (self.architecture, self.variant) = (architecture.to_owned(), variant.to_owned());
        self
    }

    /// The platforms that `self`, a host, can run: best first.
    ///
    /// An amd64 host without a stated level runs only the base level: newer levels would die of an
    /// illegal instruction.
    pub fn accepted(&self) -> Vec<Self> {
        let with = |architecture: &str, variant: &str| Self::new(&self.os, architecture, variant);
        let host = self.clone().normalised();
        let level = host
            .variant
            .strip_prefix('v')
            .and_then(|v| v.parse::<u8>().ok());
        match host.architecture.as_str() {
            "amd64" => (2..=level.unwrap_or(1))
                .rev()
                .map(|v| with("amd64", &format!("v{v}")))
                .chain([with("amd64", ""), with("386", "")])
                .collect(),
            "arm" => (5..=level.unwrap_or(7))
                .rev()
                .map(|v| with("arm", &format!("v{v}")))
                .collect(),
            "arm64" if level == Some(9) => vec![host, with("arm64", "")],
            _ => vec![host],
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() {
            Ok(())
        } else {
            write!(f, "/{}", self.variant)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(architecture: &str, variant: &str) -> Vec<String> {
        let host = Platform::new("linux", architecture, variant);
        host.accepted().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_host_prefers_its_own_level_and_never_takes_a_higher_one() {
        assert_eq!(accepted("x86_64", ""), ["linux/amd64", "linux/386"]);
        assert_eq!(
            accepted("amd64", "v3"),
            [
                "linux/amd64/v3",
                "linux/amd64/v2",
                "linux/amd64",
                "linux/386"
            ]
        );
        assert_eq!(accepted("arm", "v6"), ["linux/arm/v6", "linux/arm/v5"]);
        assert_eq!(accepted("aarch64", "v8"), ["linux/arm64"]);
    }
}
