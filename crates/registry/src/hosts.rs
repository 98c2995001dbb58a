//! `hosts.toml`: from text to values, without touching a disk.
//!
//! Source: containerd docs/hosts.md and core/remotes/docker/config/hosts.go. One difference on purpose: a
//! file that cannot be read as written is an error naming its line, never a silent way to the public registry.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::limits::{CERTIFICATE_FILES_MAX, HOSTS_MAX};
use crate::tls::TlsFiles;

/// The configuration of registry hosts cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum HostsError {
    /// The file is not what containerd's documentation describes.
    #[error("{} line {line}: {what}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        what: String,
    },
    /// Longer than a configuration file can sensibly be.
    #[error("{} is longer than {limit} bytes", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// A file operation failed.
    #[error("{op} {}", path.display())]
    Io {
        /// "read", "look for".
        op: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: Arc<io::Error>,
    },
}

impl HostsError {
    /// A file operation on `path` failed; `op` is the operation in words.
    pub(crate) fn io(op: &'static str, path: &Path, error: io::Error) -> Self {
        Self::Io {
            op,
            path: path.to_owned(),
            source: Arc::new(error),
        }
    }
}

/// How a host is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Where a host listens: `scheme://authority/path`, with `/v2` in the path unless overridden.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostUrl {
    pub(crate) scheme: Scheme,
    pub(crate) authority: String,
    pub(crate) path: String,
}

/// What a host may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// Content by digest.
    pub(crate) pull: bool,
    /// Manifests by tag: the host is trusted to say what a tag means.
    pub(crate) resolve: bool,
}

impl Capabilities {
    pub(crate) const ALL: Self = Self {
        pull: true,
        resolve: true,
    };
}

/// One `[host]` table, or the root level of the file.
#[derive(Debug, Clone)]
pub(crate) struct HostEntry {
    /// `None`: the registry that the reference names.
    pub(crate) url: Option<HostUrl>,
    pub(crate) capabilities: Capabilities,
    pub(crate) tls: TlsFiles,
    pub(crate) header: HeaderMap,
    pub(crate) dial_timeout: Option<Duration>,
}

impl Default for HostEntry {
    fn default() -> Self {
        Self {
            url: None,
            capabilities: Capabilities::ALL,
            tls: TlsFiles::default(),
            header: HeaderMap::new(),
            dial_timeout: None,
        }
    }
}

/// Reads the text of `file`. The hosts in the order of the file, the server last.
pub(crate) fn parse(text: &str, file: &Path) -> Result<Vec<HostEntry>, HostsError> {
    let reader = Reader { text, file };
    let root = DeTable::parse(text).map_err(|error| {
        let at = error.span().unwrap_or(0..0);
        reader.error(&at, error.message())
    })?;
    let root = root.get_ref();
    let mut entries = Vec::new();
    if let Some(hosts) = root.get("host") {
        let DeValue::Table(table) = hosts.get_ref() else {
            return Err(reader.error(&hosts.span(), "host must be tables: [host.\"https://…\"]"));
        };
        if table.len() > HOSTS_MAX {
            return Err(reader.error(&hosts.span(), &format!("more than {HOSTS_MAX} hosts")));
        }
        for (url, value) in table {
            let DeValue::Table(table) = value.get_ref() else {
                return Err(reader.error(
                    &value.span(),
                    "a host must be a table: [host.\"https://…\"]",
                ));
            };
            entries.push(reader.entry(Some((url.get_ref(), url.span())), table)?);
        }
    }
    let server = match root.get("server") {
        None => None,
        Some(value) => Some((reader.string(value, "server")?, value.span())),
    };
    let server = server.filter(|(text, _)| !text.is_empty());
    entries.push(reader.entry(server, root)?);
    Ok(entries)
}

/// The text beside its file name, so that an error can say the line.
struct Reader<'a> {
    text: &'a str,
    file: &'a Path,
}

impl Reader<'_> {
    fn error(&self, at: &Range<usize>, what: &str) -> HostsError {
        let before = self.text.as_bytes().get(..at.start).unwrap_or_default();
        HostsError::Malformed {
            file: self.file.to_owned(),
            line: 1 + before.iter().filter(|b| **b == b'\n').count(),
            what: what.to_owned(),
        }
    }

    fn entry(
        &self,
        url: Option<(&str, Range<usize>)>,
        table: &DeTable<'_>,
    ) -> Result<HostEntry, HostsError> {
        let mut entry = HostEntry::default();
        let override_path = match table.get("override_path") {
            Some(value) => self.boolean(value, "override_path")?,
            None => false,
        };
        if let Some((text, at)) = url {
            let url = parse_url(text, override_path).map_err(|what| {
                self.error(
                    &at,
                    &format!("{text:?} is not the address of a host: {what}"),
                )
            })?;
            entry.url = Some(url);
        }
        if let Some(value) = table.get("capabilities") {
            entry.capabilities = self.capabilities(value)?;
        }
        if let Some(value) = table.get("ca") {
            entry.tls.ca = self
                .strings(value, "ca")?
                .iter()
                .map(|p| self.path(p))
                .collect();
        }
        if let Some(value) = table.get("client") {
            entry.tls.client = self.client_pairs(value)?;
        }
        if let Some(value) = table.get("skip_verify") {
            entry.tls.skip_verify = Some(self.boolean(value, "skip_verify")?);
        }
        if let Some(value) = table.get("header") {
            entry.header = self.header(value)?;
        }
        if let Some(value) = table.get("dial_timeout") {
            let text = self.string(value, "dial_timeout")?;
            if !text.is_empty() {
                let parsed = parse_duration(text).ok_or_else(|| {
                    let what = format!("dial_timeout {text:?} is not a duration such as \"5s\"");
                    self.error(&value.span(), &what)
                })?;
                // Zero means "no limit of its own" in containerd's dialer.
                entry.dial_timeout = Some(parsed).filter(|d| !d.is_zero());
            }
        }
        Ok(entry)
    }

    fn string<'v>(
        &self,
        value: &'v Spanned<DeValue<'_>>,
        key: &str,
    ) -> Result<&'v str, HostsError> {
        value
            .get_ref()
            .as_str()
            .ok_or_else(|| self.error(&value.span(), &format!("{key} must be a string")))
    }

    fn boolean(&self, value: &Spanned<DeValue<'_>>, key: &str) -> Result<bool, HostsError> {
        value
            .get_ref()
            .as_bool()
            .ok_or_else(|| self.error(&value.span(), &format!("{key} must be true or false")))
    }

    /// A string, or an array of strings.
    fn strings<'v>(
        &self,
        value: &'v Spanned<DeValue<'_>>,
        key: &str,
    ) -> Result<Vec<&'v str>, HostsError> {
        match value.get_ref() {
            DeValue::String(text) => Ok(vec![text]),
            DeValue::Array(items) if items.len() <= CERTIFICATE_FILES_MAX => {
                items.iter().map(|item| self.string(item, key)).collect()
            }
            _ => {
                let what = format!(
                    "{key} must be a string or an array of at most {CERTIFICATE_FILES_MAX} strings"
                );
                Err(self.error(&value.span(), &what))
            }
        }
    }

    fn capabilities(&self, value: &Spanned<DeValue<'_>>) -> Result<Capabilities, HostsError> {
        let DeValue::Array(items) = value.get_ref() else {
            return Err(self.error(&value.span(), "capabilities must be an array of strings"));
        };
        if items.is_empty() {
            return Ok(Capabilities::ALL);
        }
        let mut found = Capabilities {
            pull: false,
            resolve: false,
        };
        for item in items {
            match self.string(item, "a capability")?.to_lowercase().as_str() {
                "pull" => found.pull = true,
                "resolve" => found.resolve = true,
                "push" | "referrers" => {}
                other => {
                    let what = format!(
                        "unknown capability {other:?}: pull, resolve, push, referrers are known"
                    );
                    return Err(self.error(&item.span(), &what));
                }
            }
        }
        Ok(found)
    }

    /// A string, an array of strings (certificate and key in one file), or an array of pairs.
    fn client_pairs(
        &self,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Vec<(PathBuf, Option<PathBuf>)>, HostsError> {
        let wrong = "client must be a file, an array of files, or an array of [certificate, key]";
        let items = match value.get_ref() {
            DeValue::String(text) => return Ok(vec![(self.path(text), None)]),
            DeValue::Array(items) if items.len() <= CERTIFICATE_FILES_MAX => items,
            _ => return Err(self.error(&value.span(), wrong)),
        };
        let mut pairs = Vec::new();
        for item in items {
            match item.get_ref() {
                DeValue::String(text) => pairs.push((self.path(text), None)),
                DeValue::Array(_) => {
                    let [certificate, key] = self.strings(item, "client")?[..] else {
                        return Err(self.error(&item.span(), wrong));
                    };
                    let key = (!key.is_empty()).then(|| self.path(key));
                    pairs.push((self.path(certificate), key));
                }
                _ => return Err(self.error(&item.span(), wrong)),
            }
        }
        Ok(pairs)
    }

    fn header(&self, value: &Spanned<DeValue<'_>>) -> Result<HeaderMap, HostsError> {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.error(&value.span(), "header must be a table"));
        };
        let mut headers = HeaderMap::new();
        for (name, value) in table {
            let text = name.get_ref();
            let parsed: HeaderName = text.parse().map_err(|_invalid| {
                self.error(
                    &name.span(),
                    &format!("{text:?} cannot be the name of a header"),
                )
            })?;
            for value_text in self.strings(value, text)? {
                // The value is not shown: it may be a secret.
                let mut parsed_value = HeaderValue::from_str(value_text).map_err(|_invalid| {
                    let what = format!("header {text:?} has a value with control characters");
                    self.error(&value.span(), &what)
                })?;
                parsed_value.set_sensitive(true);
                headers.append(parsed.clone(), parsed_value);
            }
        }
        Ok(headers)
    }

    /// Paths are relative to the file.
    fn path(&self, text: &str) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("")).join(text)
    }
}

/// `[scheme://]authority[/path]`; without a scheme it is https.
fn parse_url(text: &str, override_path: bool) -> Result<HostUrl, &'static str> {
    let (scheme, rest) = match text.split_once("://") {
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(("https", rest)) => (Scheme::Https, rest),
        Some(_) => return Err("only http:// and https:// are spoken"),
        None => (Scheme::Https, text),
    };
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    if authority.contains('@') {
        return Err("a user name in it is not supported: give credentials with the pull");
    }
    if path.contains(['?', '#']) {
        return Err("it must not have a query");
    }
    if authority.is_empty() || authority.parse::<http::uri::Authority>().is_err() {
        return Err("host[:port] is missing or malformed");
    }
    if path.parse::<http::uri::PathAndQuery>().is_err() && !path.is_empty() {
        return Err("its path is malformed");
    }
    let mut path = clean_path(path);
    if !override_path && !path.ends_with("/v2") {
        path.push_str("/v2");
    }
    Ok(HostUrl {
        scheme,
        authority: authority.to_owned(),
        path,
    })
}

/// `/a//b/../c/` is `/a/c`; the root is empty.
fn clean_path(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts
        .iter()
        .fold(String::new(), |path, part| path + "/" + part)
}

/// Go's duration notation: `1h30m`, `1.5s`, `300ms`.
fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = tail;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Vec<HostEntry> {
        parse(text, Path::new("/c/hosts.toml")).unwrap()
    }

    fn error(text: &str) -> String {
        parse(text, Path::new("/c/hosts.toml"))
            .unwrap_err()
            .to_string()
    }

    fn url(entry: &HostEntry) -> String {
        let url = entry.url.as_ref().unwrap();
        format!("{}://{}{}", url.scheme.as_str(), url.authority, url.path)
    }

    #[test]
    fn hosts_come_in_the_order_of_the_file_and_the_server_last() {
        let found = entries(
            r#"
            server = "registry.example.com"
            [host."https://z.example"]
            [host."https://z.example".header]
              x-a = ["1", "2"]
            [host."http://a.example:5000/cache"]
              capabilities = ["pull"]
              dial_timeout = "1m1.5s"
            [host."https://m.example/raw"]
              override_path = true
            "#,
        );
        let urls: Vec<String> = found.iter().map(url).collect();
        assert_eq!(
            urls,
            [
                "https://z.example/v2",
                "http://a.example:5000/cache/v2",
                "https://m.example/raw",
                "https://registry.example.com/v2"
            ]
        );
        assert_eq!(found[0].header.get_all("x-a").iter().count(), 2);
        assert_eq!(
            found[1].capabilities,
            Capabilities {
                pull: true,
                resolve: false
            }
        );
        assert_eq!(found[1].dial_timeout, Some(Duration::from_millis(61_500)));
        assert_eq!(found[3].capabilities, Capabilities::ALL);
    }

    #[test]
    fn certificates_are_files_beside_the_file() {
        let found =
            entries("ca = \"a.crt\"\nclient = [[\"c.cert\", \"\"], [\"/d.cert\", \"d.key\"]]");
        let tls = &found[0].tls;
        assert_eq!(tls.ca, [PathBuf::from("/c/a.crt")]);
        assert_eq!(
            tls.client,
            [
                (PathBuf::from("/c/c.cert"), None),
                (PathBuf::from("/d.cert"), Some(PathBuf::from("/c/d.key")))
            ]
        );
        let found = entries("ca = [\"a\", \"b\"]\nclient = [\"x\", \"y\"]\nskip_verify = true");
        assert_eq!((found[0].tls.ca.len(), found[0].tls.client.len()), (2, 2));
        assert_eq!(found[0].tls.skip_verify, Some(true));
    }

    #[test]
    fn what_is_wrong_is_named_with_file_and_line() {
        let syntax = error("server = \"a\"\n[host.\"https://b\"\n");
        assert!(syntax.starts_with("/c/hosts.toml line 2: "), "{syntax}");
        let word = error("[host.\"https://b\"]\ncapabilities = [\"pull\", \"pul\"]");
        assert!(
            word.starts_with("/c/hosts.toml line 2: unknown capability \"pul\""),
            "{word}"
        );
        for (text, part) in [
            ("server = 1", "server must be a string"),
            ("[host.\"ftp://b\"]", "only http:// and https://"),
            ("[host.\"https://u:p@b\"]", "user name"),
            ("[host.\"https://\"]", "missing or malformed"),
            ("dial_timeout = \"fast\"", "not a duration"),
            ("dial_timeout = 5", "must be a string"),
            ("skip_verify = \"yes\"", "true or false"),
            ("client = [[\"a\"]]", "client must be"),
            ("[header]\n\"a b\" = \"x\"", "name of a header"),
            ("host = 3", "host must be tables"),
        ] {
            assert!(error(text).contains(part), "{text}: {}", error(text));
        }
    }

    proptest::proptest! {
        /// Whatever stands in a host's address: no panic, and what is accepted can be asked.
        #[test]
        fn an_accepted_address_can_be_asked(text in "(https?://)?[a-z0-9.:/@?#\\[\\] %é-]{0,40}") {
            if let Ok(url) = parse_url(&text, false) {
                let HostUrl { authority, path, .. } = url;
                let address = format!("http://{authority}{path}/x/manifests/y?ns=z");
                proptest::prop_assert!(address.parse::<http::Uri>().is_ok(), "{}", address);
            }
        }

        /// Whatever stands in a duration: no panic.
        #[test]
        fn any_duration_is_read_or_refused(text in "[+0-9.nusmhµe-]{0,30}") {
            let _read = parse_duration(&text);
        }
    }

    #[test]
    fn a_header_is_never_printed() {
        let found = entries("[header]\nauthorization = \"Bearer hunter2\"");
        assert!(!format!("{found:?}").contains("hunter2"));
        assert!(!error("[header]\nauthorization = \"hunter2\\u0001\"").contains("hunter2"));
    }

    #[test]
    fn a_path_is_cleaned_as_containerd_does() {
        for (path, clean) in [
            ("", ""),
            ("/", ""),
            ("/a//b/../c/", "/a/c"),
            ("/../x/.", "/x"),
        ] {
            assert_eq!(clean_path(path), clean);
        }
    }
}
