//! Devices of the host that a container asks for, looked at where they are.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use crate::error::RequestError;
use crate::limits::DEVICES_MAX;
use crate::oci::HostDevice;
use crate::spec::{ContainerSpec, DeviceSpec};

/// Directories below /dev that hold no devices of the host's own, or are made anew in a container.
const NOT_THE_HOSTS: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];

/// The devices asked for; all of the host's for a privileged container.
pub(crate) fn collect(spec: &ContainerSpec) -> Result<Vec<HostDevice>, RequestError> {
    let mut found = Vec::new();
    if spec.security.privileged {
        walk(Path::new("/dev"), "/dev", "rwm", &mut found)
            .map_err(|e| invalid(format!("/dev: {e}")))?;
        // A container has a console of its own.
        found.retain(|d| d.path != "/dev/console");
    }
    for device in &spec.devices {
        for new in asked(device)? {
            found.retain(|known| known.path != new.path);
            found.push(new);
        }
    }
    if found.len() > DEVICES_MAX {
        return Err(RequestError::Limit {
            what: "the number of devices",
            limit: DEVICES_MAX,
        });
    }
    Ok(found)
}

fn invalid(reason: String) -> RequestError {
    RequestError::Invalid {
        field: "devices",
        reason,
    }
}

fn asked(device: &DeviceSpec) -> Result<Vec<HostDevice>, RequestError> {
    let access = match device.permissions.as_str() {
        "" => "rwm",
        known if known.chars().all(|c| "rwm".contains(c)) => known,
        other => {
            let reason = format!(
                "{}: permissions {other:?} are not of r, w, m",
                device.host_path
            );
            return Err(invalid(reason));
        }
    };
    let path = match device.container_path.is_empty() {
        true => device.host_path.as_str(),
        false => device.container_path.as_str(),
    };
    if !path.starts_with('/') || !device.host_path.starts_with('/') {
        return Err(invalid(format!(
            "{:?} is not an absolute path",
            device.host_path
        )));
    }
    let mut found = Vec::new();
    let host = Path::new(&device.host_path);
    // Follows links, as both incumbents do: /dev/disk/by-id.
    let meta = fs::metadata(host).map_err(|e| invalid(format!("{}: {e}", device.host_path)))?;
    if meta.is_dir() {
        walk(host, path, access, &mut found)
            .map_err(|e| invalid(format!("{}: {e}", device.host_path)))?;
    } else {
        let one = describe(&meta, path, access);
        found.push(one.ok_or_else(|| invalid(format!("{} is no device", device.host_path)))?);
    }
    Ok(found)
}

fn walk(dir: &Path, inside: &str, access: &str, found: &mut Vec<HostDevice>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Links are the container's own business; what they lead to is found by itself.
        let Ok(meta) = entry.metadata() else { continue };
        let path = format!("{}/{name}", inside.trim_end_matches('/'));
        if meta.is_dir() {
            if !NOT_THE_HOSTS.contains(&name.as_str()) {
                walk(&entry.path(), &path, access, found)?;
            }
        } else if let Some(device) = describe(&meta, &path, access) {
            if found.len() > DEVICES_MAX {
                return Err(io::Error::other(format!("more than {DEVICES_MAX} devices")));
            }
            found.push(device);
        }
    }
    Ok(())
}

fn describe(meta: &fs::Metadata, path: &str, access: &str) -> Option<HostDevice> {
    let kind = match meta.file_type() {
        t if t.is_char_device() => "c",
        t if t.is_block_device() => "b",
        _ => return None,
    };
    Some(HostDevice {
        path: path.to_owned(),
        kind,
        major: rustix::fs::major(meta.rdev()),
        minor: rustix::fs::minor(meta.rdev()),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        access: access.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(
        host: &str,
        container: &str,
        permissions: &str,
    ) -> Result<Vec<HostDevice>, RequestError> {
        let device = DeviceSpec {
            host_path: host.to_owned(),
            container_path: container.to_owned(),
            permissions: permissions.to_owned(),
        };
        collect(&ContainerSpec {
            devices: vec![device],
            ..ContainerSpec::default()
        })
    }

    #[test]
    fn a_device_is_found_by_its_path_and_through_a_link() {
        let null = &one("/dev/null", "/dev/x", "rw").unwrap()[0];
        assert_eq!(
            (null.path.as_str(), null.kind, null.major, null.minor),
            ("/dev/x", "c", 1, 3)
        );
        assert_eq!(null.access, "rw");
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        let zero = &one(link.to_str().unwrap(), "", "").unwrap()[0];
        assert_eq!(
            (zero.major, zero.minor, zero.access.as_str()),
            (1, 5, "rwm")
        );
    }

    #[test]
    fn what_is_no_device_is_named() {
        for (path, permissions) in [
            ("/etc/passwd", "r"),
            ("/does/not/exist", "r"),
            ("/dev/null", "x"),
            ("null", "r"),
        ] {
            let e = one(path, "", permissions).unwrap_err().to_string();
            assert!(e.contains(path), "{e}");
        }
    }
}
