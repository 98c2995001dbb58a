//! Device nodes of a container, and which devices its cgroup allows.

use wharf_runtime::spec::{DeviceCgroup, DeviceNode};

use crate::oci::HostDevice;

/// The nodes to make.
pub(crate) fn nodes(devices: &[HostDevice]) -> Vec<DeviceNode> {
    devices
        .iter()
        .map(|d| DeviceNode {
            path: d.path.clone(),
            kind: d.kind.to_owned(),
            major: i64::from(d.major),
            minor: i64::from(d.minor),
            file_mode: Some(d.mode),
            uid: Some(d.uid),
            gid: Some(d.gid),
        })
        .collect()
}

/// Which devices may be used beside the default ones: nothing, then each that was asked for; a
/// privileged container may use all.
pub(crate) fn rules(devices: &[HostDevice], privileged: bool) -> Vec<DeviceCgroup> {
    let rule = |allow, kind: &str, access: &str| DeviceCgroup {
        allow,
        kind: kind.to_owned(),
        major: None,
        minor: None,
        access: access.to_owned(),
    };
    if privileged {
        return vec![rule(true, "a", "rwm")];
    }
    let mut rules = vec![rule(false, "a", "rwm")];
    rules.extend(devices.iter().map(|d| DeviceCgroup {
        major: Some(i64::from(d.major)),
        minor: Some(i64::from(d.minor)),
        ..rule(true, d.kind, &d.access)
    }));
    rules
}
