//! A registry's name to the hosts to ask, in order: containerd's rules for `certs.d`.
//!
//! Source: containerd core/remotes/docker/config/hosts.go (`hostPaths`, `loadHostDir`, `ConfigureHosts`).

use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::uri::{InvalidUri, Uri};
use wharf_types::Digest;

use crate::hosts::{Capabilities, HostEntry, HostUrl, HostsError, Scheme, parse};
use crate::limits::{CERTIFICATE_FILES_MAX, CONFIG_FILE_BYTES_MAX, CONNECT_TIMEOUT};
use crate::tls::{TlsError, TlsFiles, TlsMaterial};

/// Where Docker Hub's API lives.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// One host that may be asked for content of one registry.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) url: HostUrl,
    pub(crate) capabilities: Capabilities,
    pub(crate) tls: Arc<TlsFiles>,
    /// What was in these files at the time of the look-up, with its identity.
    pub(crate) material: Result<(Digest, Arc<TlsMaterial>), TlsError>,
    /// Headers from the configuration, values marked sensitive.
    pub(crate) header: HeaderMap,
    pub(crate) dial_timeout: Duration,
    /// The registry's name for a mirror to know whose content is meant.
    pub(crate) namespace: Option<String>,
}

impl Endpoint {
    /// The host as errors name it.
    pub(crate) fn host(&self) -> &str {
        &self.url.authority
    }

    /// Configured as plain http, and yet with certificates: containerd then tries https first.
    pub(crate) fn https_first(&self) -> bool {
        self.url.scheme == Scheme::Http
            && self.tls.is_explicit()
            && split_port(&self.url.authority).1 != Some("80")
    }

    /// The address of `path` (behind `/v2/`) spoken to by `scheme`.
    pub(crate) fn uri(&self, scheme: Scheme, path: &str) -> Result<Uri, InvalidUri> {
        let HostUrl {
            authority,
            path: base,
            ..
        } = &self.url;
        let query = match &self.namespace {
            Some(namespace) => format!("?ns={}", encode_query(namespace)),
            None => String::new(),
        };
        format!("{}://{authority}{base}/{path}{query}", scheme.as_str()).parse()
    }
}

/// Percent-encodes everything but unreserved characters (RFC 3986).
pub(crate) fn encode_query(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for nibble in [byte >> 4, byte & 15] {
                out.extend(char::from_digit(nibble.into(), 16).map(|c| c.to_ascii_uppercase()));
            }
        }
    }
    out
}

/// The hosts to ask for content of the registry `domain`. Reads files: it blocks.
pub(crate) fn look_up(certs_d: Option<&Path>, domain: &str) -> Result<Vec<Endpoint>, HostsError> {
    let entries = match certs_d {
        None => None,
        Some(root) => match directory(root, domain)? {
            None => None,
            Some(directory) => Some(load(&directory)?),
        },
    };
    let entries = entries.unwrap_or_else(|| vec![HostEntry::default()]);
    Ok(entries
        .into_iter()
        .map(|entry| endpoint(entry, domain))
        .collect())
}

fn endpoint(mut entry: HostEntry, domain: &str) -> Endpoint {
    let url = match entry.url.take() {
        Some(url) => url,
        None => {
            // Without `server` the registry itself is meant, and may be asked everything.
            entry.capabilities = Capabilities::ALL;
            let url = registry_url(domain);
            if is_local(domain) && url.scheme == Scheme::Https {
                entry.tls.skip_verify = Some(true);
            }
            url
        }
    };
    let tls = entry.tls;
    let is_registry = url.authority == domain || (domain, &*url.authority) == DOCKER_HUB;
    Endpoint {
        url,
        capabilities: entry.capabilities,
        // Once here, not for every request of every blob; a host that is not asked may lack files.
        material: tls.load().map(|m| (m.identity(), Arc::new(m))),
        tls: Arc::new(tls),
        header: entry.header,
        dial_timeout: entry.dial_timeout.unwrap_or(CONNECT_TIMEOUT),
        namespace: (!is_registry).then(|| domain.to_owned()),
    }
}

/// The registry's own address.
fn registry_url(domain: &str) -> HostUrl {
    let authority = if domain == DOCKER_HUB.0 {
        DOCKER_HUB.1
    } else {
        domain
    };
    let port = split_port(domain).1;
    let scheme = match port {
        Some("443") | None => Scheme::Https,
        Some(_) if is_local(domain) => Scheme::Http,
        Some(_) => Scheme::Https,
    };
    HostUrl {
        scheme,
        authority: authority.to_owned(),
        path: "/v2".to_owned(),
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

/// Whether the registry is on this machine.
fn is_local(domain: &str) -> bool {
    let host = split_port(domain)
        .0
        .trim_start_matches('[')
        .trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The first directory that is there: `host_port_`, `host:port`, `_default`.
fn directory(root: &Path, domain: &str) -> Result<Option<PathBuf>, HostsError> {
    let underscored = match domain.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() => Some(format!("{host}_{port}_")),
        _ => None,
    };
    let names = underscored
        .iter()
        .map(String::as_str)
        .chain([domain, "_default"]);
    for name in names {
        let path = root.join(name);
        match std::fs::metadata(&path) {
            Ok(_) => return Ok(Some(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(HostsError::io("look for", &path, error)),
        }
    }
    Ok(None)
}

fn load(directory: &Path) -> Result<Vec<HostEntry>, HostsError> {
    let path = directory.join("hosts.toml");
    match read(&path)? {
        Some(text) if !text.is_empty() => parse(&text, &path),
        _ => Ok(vec![certificate_files(directory)?]),
    }
}

fn read(path: &Path) -> Result<Option<String>, HostsError> {
    let failed = |error| HostsError::io("read", path, error);
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let mut text = String::new();
    file.take(CONFIG_FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > CONFIG_FILE_BYTES_MAX {
        return Err(HostsError::TooLarge {
            file: path.to_owned(),
            limit: CONFIG_FILE_BYTES_MAX,
        });
    }
    Ok(Some(text))
}

/// Docker's layout, for a directory without `hosts.toml`: `*.crt` are authorities, `*.cert` with `*.key` ours.
fn certificate_files(directory: &Path) -> Result<HostEntry, HostsError> {
    let failed = |error| HostsError::io("list", directory, error);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory)
        .map_err(failed)?
        .take(4 * CERTIFICATE_FILES_MAX)
    {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    let mut found = HostEntry::default();
    for path in paths {
        let extension = path.extension().and_then(|e| e.to_str());
        match extension {
            Some("crt") => found.tls.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                let key = key.exists().then_some(key);
                found.tls.client.push((path, key));
            }
            _ => {}
        }
    }
    found.tls.ca.truncate(CERTIFICATE_FILES_MAX);
    found.tls.client.truncate(CERTIFICATE_FILES_MAX);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(certs_d: Option<&Path>, domain: &str) -> Vec<String> {
        look_up(certs_d, domain)
            .unwrap()
            .iter()
            .map(|e| e.uri(e.url.scheme, "x").unwrap().to_string())
            .collect()
    }

    fn write(root: &Path, directory: &str, text: &str) {
        let directory = root.join(directory);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("hosts.toml"), text).unwrap();
    }

    #[test]
    fn without_a_file_the_registry_itself_is_asked() {
        for (domain, address) in [
            ("docker.io", "https://registry-1.docker.io/v2/x"),
            ("quay.io", "https://quay.io/v2/x"),
            ("quay.io:80", "https://quay.io:80/v2/x"),
            ("localhost:5000", "http://localhost:5000/v2/x"),
            ("127.9.9.9:80", "http://127.9.9.9:80/v2/x"),
            ("[::1]:5000", "http://[::1]:5000/v2/x"),
            ("localhost:443", "https://localhost:443/v2/x"),
            ("128.0.0.1:5000", "https://128.0.0.1:5000/v2/x"),
        ] {
            assert_eq!(addresses(None, domain), [address]);
        }
    }

    #[test]
    fn the_most_special_directory_decides() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(root, "_default", "server = \"https://c\"");
        assert_eq!(
            addresses(Some(root), "a.b:1"),
            ["https://c/v2/x?ns=a.b%3A1"]
        );
        write(root, "a.b:1", "server = \"https://b\"");
        assert_eq!(
            addresses(Some(root), "a.b:1"),
            ["https://b/v2/x?ns=a.b%3A1"]
        );
        write(root, "a.b_1_", "server = \"https://a\"");
        assert_eq!(
            addresses(Some(root), "a.b:1"),
            ["https://a/v2/x?ns=a.b%3A1"]
        );
    }

    #[test]
    fn the_namespace_goes_to_mirrors_and_not_to_the_registry_itself() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(
            root,
            "docker.io",
            "[host.\"http://m:1\"]\n[host.\"https://registry-1.docker.io\"]",
        );
        assert_eq!(
            addresses(Some(root), "docker.io"),
            [
                "http://m:1/v2/x?ns=docker.io",
                "https://registry-1.docker.io/v2/x",
                "https://registry-1.docker.io/v2/x"
            ]
        );
    }

    #[test]
    fn a_directory_with_certificates_alone_is_dockers_layout() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("a.b");
        std::fs::create_dir(&directory).unwrap();
        for name in ["x.crt", "y.cert", "y.key", "z.txt"] {
            std::fs::write(directory.join(name), "").unwrap();
        }
        let found = look_up(Some(root.path()), "a.b").unwrap();
        assert_eq!(found[0].tls.ca, [directory.join("x.crt")]);
        assert_eq!(
            found[0].tls.client,
            [(directory.join("y.cert"), Some(directory.join("y.key")))]
        );
        assert_eq!(found[0].host(), "a.b");
    }
}
