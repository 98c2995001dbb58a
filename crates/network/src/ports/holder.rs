//! Who has a port: by /proc/net and the descriptors of all processes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::Protocol;

/// Processes that are looked at; the search is for a message only.
const MAX_PROCESSES: usize = 20_000;

/// The process that holds a port in this network namespace, as `nginx (process 4711)`.
pub(super) fn of(protocol: Protocol, port: u16) -> Option<String> {
    let inode = socket(protocol, port)?;
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| {
        let id: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((id, entry.path()))
    });
    for (id, path) in processes.take(MAX_PROCESSES) {
        let descriptors = fs::read_dir(path.join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        for descriptor in descriptors {
            let is_it = fs::read_link(descriptor.path()).is_ok_and(|l| l.to_str() == Some(&wanted));
            if is_it {
                let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
                return Some(format!("{} (process {id})", name.trim()));
            }
        }
    }
    let user = fs::metadata("/proc/self").map_or(0, |m| m.uid());
    Some(format!("a process that user {user} cannot see"))
}

/// The socket at a port: of TCP one that listens.
fn socket(protocol: Protocol, port: u16) -> Option<u64> {
    let (files, listening): (&[&str], Option<&str>) = match protocol {
        Protocol::Tcp => (&["tcp", "tcp6"], Some("0A")),
        Protocol::Udp => (&["udp", "udp6"], None),
        Protocol::Sctp => return None,
    };
    let wanted = format!("{port:04X}");
    for file in files {
        // Of this thread: the network namespace is the thread's.
        let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(state), Some(inode)) =
                (words.get(1), words.get(3), words.get(9))
            else {
                continue;
            };
            let at_port = local.rsplit(':').next() == Some(&wanted);
            if at_port && listening.is_none_or(|l| *state == l) {
                return inode.parse().ok();
            }
        }
    }
    None
}
