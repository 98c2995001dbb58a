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
    if path == "kernel/hostname" {
        return Err(invalid(name, "is set by the field hostname"));
    }
    let Some(kind) = namespace(path) else {
        return Err(invalid(
            name,
            "is not in a namespace: it would change the host",
        ));
    };
    if linux.namespaces.iter().any(|entry| entry.kind == kind) {
        return Ok(());
    }
    Err(invalid(
        name,
        &format!(
            "would change the host: it needs a {} namespace of the container's own",
            kind.name()
        ),
    ))
}

/// The kind of namespace that a parameter belongs to.
fn namespace(path: &str) -> Option<NamespaceKind> {
    if IPC.contains(&path) || path.starts_with("fs/mqueue/") {
        return Some(NamespaceKind::Ipc);
    }
    if path.starts_with("net/") {
        return Some(NamespaceKind::Network);
    }
    (path == "kernel/domainname").then_some(NamespaceKind::Uts)
}

/// For whoever has opened a namespace of kind `kind` that the document joins, and found that it is the
/// host's: refuses the kernel parameters that the document would set in it.
///
/// # Errors
/// [`CompileError`], naming the parameter.
pub fn refuse_in_host(sysctls: &[SysctlPlan], kind: NamespaceKind) -> Result<(), CompileError> {
    let first = sysctls.iter().find(|s| namespace(&s.path) == Some(kind));
    first.map_or(Ok(()), |sysctl| {
        Err(invalid(
            &sysctl.path,
            &format!("is not allowed in the host's {} namespace", kind.name()),
        ))
    })
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
