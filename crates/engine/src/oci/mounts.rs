//! Mounts of a container: the defaults, the pod's files, those asked for; parents before children.

use wharf_runtime::spec::Mount;

use crate::error::RequestError;
use crate::limits::MOUNTS_MAX;
use crate::oci::Input;
use crate::spec::{MountSpec, NamespaceMode, Propagation};

/// The file system type by which a plan asks the shim for the pod's own /dev/shm.
const POD_SHM: &str = "wharf.shm";

/// All mounts, in the order in which they are made.
pub(crate) fn mounts(input: &Input<'_>) -> Result<Vec<Mount>, RequestError> {
    if input.spec.mounts.len() > MOUNTS_MAX {
        return Err(RequestError::Limit {
            what: "the number of mounts",
            limit: MOUNTS_MAX,
        });
    }
    let asked = input
        .spec
        .mounts
        .iter()
        .map(asked)
        .collect::<Result<Vec<_>, _>>()?;
    let replaced = |path: &str| {
        asked.iter().any(|m| {
            let over = m.destination.as_str();
            // Who brings his own /dev or /sys means all of it.
            path == over
                || (["/dev", "/sys"].contains(&over) && path.starts_with(&format!("{over}/")))
        })
    };
    let mut mounts = defaults(input);
    mounts.extend(pod_files(input));
    mounts.retain(|m| !replaced(&m.destination));
    mounts.extend(asked);
    // Stable: of the same depth, ours come first and theirs keep their order.
    mounts.sort_by_key(|m| depth(&m.destination));
    Ok(mounts)
}

/// Propagation of the container's root that the mounts asked for need.
pub(crate) fn rootfs_propagation(mounts: &[MountSpec]) -> &'static str {
    let widest = mounts.iter().map(|m| m.propagation);
    let has = |p| widest.clone().any(|m| m == p);
    if has(Propagation::Bidirectional) {
        "rshared"
    } else if has(Propagation::HostToContainer) {
        "rslave"
    } else {
        ""
    }
}

fn depth(path: &str) -> usize {
    path.split('/').filter(|part| !part.is_empty()).count()
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        kind: kind.to_owned(),
        source: source.to_owned(),
        options: options.iter().map(|o| (*o).to_owned()).collect(),
        ..Mount::default()
    }
}

fn defaults(input: &Input<'_>) -> Vec<Mount> {
    let privileged = input.spec.security.privileged;
    let access = if privileged { "rw" } else { "ro" };
    let shm_options = ["nosuid", "noexec", "nodev"];
    let shm = match input.pod.spec.security.namespaces.ipc {
        NamespaceMode::Node => mount("/dev/shm", "bind", "/dev/shm", &["rbind", "rprivate"]),
        _ => mount("/dev/shm", POD_SHM, "shm", &shm_options),
    };
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        shm,
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", access],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        ),
    ]
}

/// The pod's /etc/hostname, /etc/hosts and /etc/resolv.conf.
fn pod_files(input: &Input<'_>) -> Vec<Mount> {
    let access = if input.spec.security.readonly_rootfs {
        "ro"
    } else {
        "rw"
    };
    let files = input.files;
    [
        ("/etc/hostname", &files.hostname),
        ("/etc/hosts", &files.hosts),
        ("/etc/resolv.conf", &files.resolv_conf),
    ]
    .into_iter()
    .map(|(path, file)| {
        mount(
            path,
            "bind",
            &file.to_string_lossy(),
            &["rbind", "rprivate", access],
        )
    })
    .collect()
}

/// A mount as it was asked for.
fn asked(spec: &MountSpec) -> Result<Mount, RequestError> {
    let invalid = |reason: String| {
        Err(RequestError::Invalid {
            field: "mounts",
            reason,
        })
    };
    let path = &spec.container_path;
    if !path.starts_with('/') || path.contains('\0') {
        return invalid(format!("container_path {path:?} is not an absolute path"));
    }
    if spec.image.is_some() || !spec.image_sub_path.is_empty() {
        let text = format!("{path}: image volumes are not supported yet");
        return Err(RequestError::Unsupported(text));
    }
    if !spec.uid_mappings.is_empty() || !spec.gid_mappings.is_empty() {
        let text = format!("{path}: mounts with id mappings are not supported yet");
        return Err(RequestError::Unsupported(text));
    }
    if !spec.host_path.starts_with('/') || spec.host_path.contains('\0') {
        return invalid(format!(
            "{path}: host_path {:?} is not an absolute path",
            spec.host_path
        ));
    }
    let propagation = match spec.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = match (spec.recursive_read_only, spec.readonly, spec.propagation) {
        (true, true, Propagation::Private) => "rro",
        (true, false, _) => {
            return invalid(format!("{path}: recursive_read_only needs readonly"));
        }
        (true, true, _) => {
            return invalid(format!(
                "{path}: recursive_read_only needs propagation PRIVATE"
            ));
        }
        (false, true, _) => "ro",
        (false, false, _) => "rw",
    };
    let mut options = vec!["rbind", propagation, access];
    for word in &spec.mount_options {
        match word.as_str() {
            known @ ("noexec" | "nodev" | "nosuid") => options.push(known),
            other => {
                return invalid(format!(
                    "{path}: mount option {other:?} is not one of noexec, nodev, nosuid"
                ));
            }
        }
    }
    Ok(mount(&clean(path), "bind", &spec.host_path, &options))
}

/// The path without `.`, `..`, doubled and trailing slashes: one form for every comparison.
fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}
