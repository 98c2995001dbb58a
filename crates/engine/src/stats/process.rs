//! Descriptors of processes, as `/proc` tells them.

use super::usage::OpenFiles;
use crate::limits::OPEN_FILES_COUNTED_MAX;

/// Descriptors of `processes`; those that end meanwhile count as far as they were seen.
pub(super) fn open_files(processes: &[u32]) -> OpenFiles {
    let mut found = OpenFiles::default();
    for pid in processes {
        let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for descriptor in descriptors.flatten() {
            if found.files >= OPEN_FILES_COUNTED_MAX {
                return found;
            }
            found.files += 1;
            let target = std::fs::read_link(descriptor.path());
            if target.is_ok_and(|target| target.to_string_lossy().starts_with("socket:[")) {
                found.sockets += 1;
            }
        }
    }
    found
}

/// How many descriptors a process may have: its soft limit; none when it is gone or unlimited.
pub(super) fn files_limit(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_and_their_limit_are_those_of_the_process() {
        let one = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        let files = open_files(&[std::process::id(), u32::MAX]);
        assert!(files.sockets >= 1 && files.files > files.sockets);
        assert!(files_limit(std::process::id()).is_some());
        assert_eq!(files_limit(u32::MAX), None);
        drop(one);
    }
}
