//! Nodes and links below /dev.

use wharf_plan::container::{DevicePlan, LinkPlan};

use super::CompileError;
use super::mounts::clean;
use crate::spec::{DeviceNode, Spec};

const S_IFIFO: u32 = 0o010_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFBLK: u32 = 0o060_000;
const MODE_DEFAULT: u32 = 0o666;

/// The devices that the specification gives to every container: path, major, minor.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The links of the specification, /dev/ptmx for the container's own devpts, and /dev/core.
const LINKS: [(&str, &str); 6] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// Nodes and links; none where the caller's own /dev is bound.
pub(super) fn compile(spec: &Spec) -> Result<(Vec<DevicePlan>, Vec<LinkPlan>), CompileError> {
    let bound = spec.mounts.iter().any(|mount| {
        clean(&mount.destination) == "/dev"
            && (mount.kind == "bind" || mount.options.iter().any(|o| o == "bind" || o == "rbind"))
    });
    if bound {
        return Ok((Vec::new(), Vec::new()));
    }
    let asked = spec.linux.as_ref().map_or(&[][..], |linux| &linux.devices);
    let mut plans = Vec::new();
    for (path, major, minor) in DEFAULT {
        if !asked.iter().any(|device| clean(&device.path) == path) {
            plans.push(DevicePlan {
                path: path.as_bytes().to_vec(),
                mode: S_IFCHR | MODE_DEFAULT,
                major,
                minor,
                uid: 0,
                gid: 0,
            });
        }
    }
    for device in asked {
        plans.push(node(device)?);
    }
    let links = LINKS.iter().map(|(path, target)| LinkPlan {
        path: path.as_bytes().to_vec(),
        target: target.as_bytes().to_vec(),
    });
    Ok((plans, links.collect()))
}

fn node(device: &DeviceNode) -> Result<DevicePlan, CompileError> {
    let invalid = |problem: &str| {
        CompileError::invalid("linux.devices", format!("{}: {problem}", device.path))
    };
    let kind = match device.kind.as_str() {
        "c" | "u" => S_IFCHR,
        "b" => S_IFBLK,
        "p" => S_IFIFO,
        _ => return Err(invalid("the type must be c, b, u or p")),
    };
    let number = |value: i64, name: &str| {
        if kind == S_IFIFO {
            return Ok(0);
        }
        u32::try_from(value).map_err(|_negative| invalid(&format!("{name} must not be negative")))
    };
    let mode = device.file_mode.unwrap_or(MODE_DEFAULT);
    if mode & !0o7777 & !kind != 0 {
        return Err(invalid("fileMode has more than permission bits"));
    }
    Ok(DevicePlan {
        path: clean(&device.path).into_bytes(),
        mode: kind | mode & 0o7777,
        major: number(device.major, "major")?,
        minor: number(device.minor, "minor")?,
        uid: device.uid.unwrap_or(0),
        gid: device.gid.unwrap_or(0),
    })
}
