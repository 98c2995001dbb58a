//! The pod's own files that its containers see: hosts, hostname, resolv.conf. A container may write to
//! them as much as it likes, so they lie on disk beside the pod's record, never in memory, and go with it.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::oci::PodFiles;
use crate::spec::{DnsSpec, PodSpec};

/// Where they are, below the pod's directory.
pub(crate) fn places(dir: &Path) -> PodFiles {
    PodFiles {
        hosts: dir.join("hosts"),
        hostname: dir.join("hostname"),
        resolv_conf: dir.join("resolv.conf"),
    }
}

/// Writes them.
///
/// # Errors
///
/// The path that could not be written, and why.
pub(crate) fn write(
    dir: &Path,
    spec: &PodSpec,
    hostname: &str,
) -> Result<(), (PathBuf, io::Error)> {
    let places = places(dir);
    let resolv_conf = match &spec.dns {
        Some(dns) if *dns != DnsSpec::default() => resolv_conf(dns).into_bytes(),
        _ => host_file("/etc/resolv.conf"),
    };
    let hosts = host_file("/etc/hosts");
    for (path, bytes) in [
        (places.hosts, &hosts),
        (places.hostname, &format!("{hostname}\n").into_bytes()),
        (places.resolv_conf, &resolv_conf),
    ] {
        let written = fs::write(&path, bytes)
            // The umask must not hide it from the containers' users.
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)));
        written.map_err(|source| (path, source))?;
    }
    Ok(())
}

/// A host without the file has nothing to say.
fn host_file(path: &str) -> Vec<u8> {
    fs::read(path).unwrap_or_default()
}

fn resolv_conf(dns: &DnsSpec) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    if !dns.searches.is_empty() {
        writeln!(text, "search {}", dns.searches.join(" ")).ok();
    }
    for server in &dns.servers {
        writeln!(text, "nameserver {server}").ok();
    }
    if !dns.options.is_empty() {
        writeln!(text, "options {}", dns.options.join(" ")).ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_says_what_was_asked_for() {
        let list = |items: &[&str]| items.iter().map(|i| (*i).to_owned()).collect();
        let dns = DnsSpec {
            servers: list(&["10.0.0.10", "fd00::a"]),
            searches: list(&["a.svc", "svc"]),
            options: list(&["ndots:5"]),
        };
        let dir = tempfile::tempdir().unwrap();
        let spec = PodSpec {
            dns: Some(dns),
            ..PodSpec::default()
        };
        write(dir.path(), &spec, "pod-1").unwrap();
        let places = places(dir.path());
        assert_eq!(
            fs::read_to_string(places.resolv_conf).unwrap(),
            "search a.svc svc\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5\n"
        );
        assert_eq!(fs::read_to_string(&places.hostname).unwrap(), "pod-1\n");
        let mode = fs::metadata(places.hostname).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
    }

    #[test]
    fn without_a_word_about_dns_the_hosts_own_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &PodSpec::default(), "h").unwrap();
        let copy = fs::read(places(dir.path()).resolv_conf).unwrap();
        assert_eq!(copy, host_file("/etc/resolv.conf"));
    }
}
