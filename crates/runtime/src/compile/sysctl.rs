//! Kernel parameters: only those that belong to a namespace of the container.

use wharf_plan::container::SysctlPlan;

use super::CompileError;
use crate::spec::{Linux, NamespaceKind};

/// Parameters of an IPC namespace beside `fs.mqueue.`.
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// Translates all parameters.
pub(super) fn compile(linux: &Linux) -> Result<Vec<SysctlPlan>, CompileError> {
    linux
        .sysctl
        .iter()
        .map(|(name, value)| {
            let path = path(name)?;
            allowed(linux, name, &path)?;
            if value.contains('\0') {
                return Err(invalid(name, "the value contains a NUL byte"));
            }
            Ok(SysctlPlan {
                path,
                value: value.clone(),
            })
        })
        .collect()
}

fn invalid(name: &str, problem: &str) -> CompileError {
    CompileError::invalid("linux.sysctl", format!("{name}: {problem}"))
}

/// The path below /proc/sys. The first separator tells how the name is written: `net.ipv4.x` with
/// dots (a slash then stands for a dot in a name), or `net/ipv4/x`.
fn path(name: &str) -> Result<String, CompileError> {
    let dots = matches!(name.find(['.', '/']), Some(at) if name.as_bytes().get(at) == Some(&b'.'));
    let path: String = if dots {
        name.chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect()
    } else {
        name.to_owned()
    };
    let fine = path.contains('/')
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains('\0'));
    if fine {
        Ok(path)
    } else {
        Err(invalid(name, "is not the name of a kernel parameter"))
    }
}

fn allowed(linux: &Linux, name: &str, path: &str) -> Result<(), CompileError> {
    let has = |kind| linux.namespaces.iter().any(|entry| entry.kind == kind);
    let needs = |kind: NamespaceKind| {
        if has(kind) {
            Ok(())
        } else {
            Err(invalid(
                name,
                &format!(
                    "would change the host: it needs a {} namespace of the container's own",
                    kind.name()
                ),
            ))
        }
    };
    if IPC.contains(&path) || path.starts_with("fs/mqueue/") {
        return needs(NamespaceKind::Ipc);
    }
    if path.starts_with("net/") {
        return needs(NamespaceKind::Network);
    }
    match path {
        "kernel/domainname" => needs(NamespaceKind::Uts),
        "kernel/hostname" => Err(invalid(name, "is set by the field hostname")),
        _ => Err(invalid(
            name,
            "is not in a namespace: it would change the host",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_name_the_same_file() {
        assert_eq!(path("net.ipv4.ip_forward").unwrap(), "net/ipv4/ip_forward");
        assert_eq!(path("net/ipv4/ip_forward").unwrap(), "net/ipv4/ip_forward");
        assert_eq!(
            path("net.ipv4.conf.eno2/100.rp_filter").unwrap(),
            "net/ipv4/conf/eno2.100/rp_filter"
        );
        for bad in ["", "x", "net..x", "net/../kernel/x", "/net/x"] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
    }
}
