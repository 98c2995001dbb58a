//! Which namespaces of a container are new, joined, or the maker's.

use wharf_plan::container::{Namespace, Namespaces};

use super::CompileError;
use crate::spec::{Linux, NamespaceKind, Spec};

/// A namespace that has to be opened for the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespacePath {
    /// Which kind.
    pub kind: NamespaceKind,
    /// The name of its descriptor beside the plan: `ns.net`.
    pub descriptor: &'static str,
    /// Where it is.
    pub path: String,
}

/// Where the namespaces come from.
#[derive(Debug)]
pub(super) struct Origins {
    pub(super) pid: Namespace,
    pub(super) network: Namespace,
    pub(super) ipc: Namespace,
    pub(super) uts: Namespace,
    pub(super) cgroup: Namespace,
    pub(super) paths: Vec<NamespacePath>,
}

impl Origins {
    pub(super) fn plan(&self) -> Namespaces {
        Namespaces {
            pid: self.pid.into(),
            network: self.network.into(),
            ipc: self.ipc.into(),
            uts: self.uts.into(),
            cgroup: self.cgroup.into(),
            user: Namespace::Inherit.into(),
        }
    }
}

/// Sorts the document's namespaces; `shared` overrules those that it joins by path.
pub(super) fn compile(
    linux: &Linux,
    shared: &[(NamespaceKind, Namespace)],
) -> Result<Origins, CompileError> {
    let mut origins = Origins {
        pid: Namespace::Inherit,
        network: Namespace::Inherit,
        ipc: Namespace::Inherit,
        uts: Namespace::Inherit,
        cgroup: Namespace::Inherit,
        paths: Vec::new(),
    };
    let mut own_mounts = false;
    for entry in &linux.namespaces {
        let (place, descriptor) = match entry.kind {
            NamespaceKind::Pid => (&mut origins.pid, "ns.pid"),
            NamespaceKind::Network => (&mut origins.network, "ns.net"),
            NamespaceKind::Ipc => (&mut origins.ipc, "ns.ipc"),
            NamespaceKind::Uts => (&mut origins.uts, "ns.uts"),
            NamespaceKind::Cgroup => (&mut origins.cgroup, "ns.cgroup"),
            NamespaceKind::Mount if entry.path.is_empty() => {
                own_mounts = true;
                continue;
            }
            NamespaceKind::Mount | NamespaceKind::User | NamespaceKind::Time => {
                let what = if entry.path.is_empty() {
                    "a"
                } else {
                    "joining a"
                };
                return Err(CompileError::Unsupported(format!(
                    "linux.namespaces: {what} {} namespace",
                    entry.kind.name()
                )));
            }
        };
        let overruled = shared.iter().find(|(kind, _)| *kind == entry.kind);
        *place = match overruled {
            _ if entry.path.is_empty() => Namespace::New,
            Some((_, origin)) => *origin,
            None => {
                origins.paths.push(NamespacePath {
                    kind: entry.kind,
                    descriptor,
                    path: entry.path.clone(),
                });
                Namespace::Join
            }
        };
    }
    if !own_mounts {
        return Err(CompileError::Unsupported(
            "linux.namespaces: a container without a mount namespace of its own".to_owned(),
        ));
    }
    Ok(origins)
}

/// Names belong to the UTS namespace: without one they would be the host's.
pub(super) fn check_names(spec: &Spec, origins: &Origins) -> Result<(), CompileError> {
    let listed = spec.linux.as_ref().is_some_and(|linux| {
        linux
            .namespaces
            .iter()
            .any(|entry| entry.kind == NamespaceKind::Uts)
    });
    for (field, name) in [
        ("hostname", &spec.hostname),
        ("domainname", &spec.domainname),
    ] {
        if name.is_empty() {
            continue;
        }
        if !listed && origins.uts == Namespace::Inherit {
            return Err(CompileError::invalid(
                field,
                "needs a UTS namespace: add {\"type\": \"uts\"} to linux.namespaces",
            ));
        }
        if name.len() > 64 {
            return Err(CompileError::invalid(field, "is longer than 64 bytes"));
        }
    }
    Ok(())
}
