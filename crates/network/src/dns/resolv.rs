//! The host's servers, from its resolv.conf. Read again when the file has changed: it is looked at for
//! every question, which costs a microsecond and never misses anything. Source: resolv.conf(5).

use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::PORT;

/// Servers that are asked, one after the other: `MAXNS`.
const SERVERS_MAX: usize = 3;
/// Bytes of the file that are read.
const FILE_MAX: u64 = 64 * 1024;

/// When the file was what it was.
type Stamp = (u64, u64, i64, i64, i64, i64);

#[derive(Debug, Default)]
struct Seen {
    stamp: Option<Stamp>,
    servers: Arc<[SocketAddr]>,
}

/// The servers of the host.
#[derive(Debug)]
pub struct Upstream {
    file: PathBuf,
    seen: Mutex<Seen>,
}

impl Upstream {
    /// Those that `file` names: `/etc/resolv.conf`.
    pub fn new(file: PathBuf) -> Self {
        Self {
            file,
            seen: Mutex::default(),
        }
    }

    /// The servers as they are now. Without any, a server on this machine, as resolvers do.
    pub fn servers(&self) -> Arc<[SocketAddr]> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = std::fs::metadata(&self.file).ok().map(|m| {
            let (changed, status) = (m.mtime(), m.ctime());
            (
                m.ino(),
                m.len(),
                changed,
                m.mtime_nsec(),
                status,
                m.ctime_nsec(),
            )
        });
        if seen.stamp != stamp || stamp.is_none() {
            match read(&self.file) {
                Ok(text) => {
                    *seen = Seen {
                        stamp,
                        servers: servers(&text).into(),
                    }
                }
                // While it is being replaced the old servers are good.
                Err(error) => {
                    tracing::debug!(%error, file = %self.file.display(), "not read");
                    if seen.servers.is_empty() {
                        seen.servers = servers("").into();
                    }
                }
            }
        }
        seen.servers.clone()
    }
}

fn read(file: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(file)?;
    file.take(FILE_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn servers(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == "nameserver").then(|| address(words.next()?))?
    });
    let mut servers: Vec<SocketAddr> = named.take(SERVERS_MAX).collect();
    if servers.is_empty() {
        servers.push(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)));
    }
    servers
}

fn address(word: &str) -> Option<SocketAddr> {
    if let Ok(ip) = word.parse::<IpAddr>() {
        return Some(SocketAddr::new(ip, PORT));
    }
    // fe80::1%eth0
    let (ip, scope) = word.split_once('%')?;
    let ip: Ipv6Addr = ip.parse().ok()?;
    let index = scope.parse().ok().or_else(|| index_of(scope))?;
    Some(SocketAddrV6::new(ip, PORT, 0, index).into())
}

fn index_of(interface: &str) -> Option<u32> {
    if !wharf_sys::netlink::is_link_name(interface) {
        return None;
    }
    let file = Path::new("/sys/class/net").join(interface).join("ifindex");
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_resolvers_read_them() {
        let text = "# made by hand\nsearch a.test\nnameserver 127.0.0.53\n nameserver\t::1 # mine\n\
                    nameserver nonsense\nnameserver fe80::1%3\nnameserver 1.1.1.1\n";
        let found: Vec<String> = servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.53:53", "[::1]:53", "[fe80::1%3]:53"]);
        assert_eq!(servers(""), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn a_changed_file_counts_at_once_and_a_missing_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let upstream = Upstream::new(file.clone());
        assert_eq!(upstream.servers()[0], "127.0.0.1:53".parse().unwrap());
        std::fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(upstream.servers()[0], "192.0.2.1:53".parse().unwrap());
        let draft = dir.path().join("new");
        std::fs::write(&draft, "nameserver 192.0.2.2\n").unwrap();
        std::fs::rename(&draft, &file).unwrap();
        assert_eq!(upstream.servers()[0], "192.0.2.2:53".parse().unwrap());
        std::fs::remove_file(&file).unwrap();
        assert_eq!(upstream.servers()[0], "192.0.2.2:53".parse().unwrap());
    }
}
