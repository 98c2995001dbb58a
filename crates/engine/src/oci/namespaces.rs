//! Whose namespaces a container is in. Its mount and cgroup namespaces are its own; network, IPC and
//! UTS are its maker's, which is the pod's shim; PID is chosen.

use wharf_plan::container::Namespace;
use wharf_runtime::spec::{NamespaceEntry, NamespaceKind};

use crate::error::RequestError;
use crate::oci::Input;
use crate::spec::{ContainerSpec, NamespaceMode, PodSpec};

/// Where a container's PID namespace comes from.
pub(crate) fn pid(pod: &PodSpec, spec: &ContainerSpec) -> Result<Namespace, RequestError> {
    match spec.security.namespaces.pid {
        NamespaceMode::Container => Ok(Namespace::New),
        NamespaceMode::Node => Ok(Namespace::Inherit),
        NamespaceMode::Target => Ok(Namespace::Join),
        NamespaceMode::Pod if pod.security.namespaces.pid == NamespaceMode::Pod => {
            Ok(Namespace::Pod)
        }
        NamespaceMode::Pod => Err(RequestError::Invalid {
            field: "linux.security_context.namespace_options.pid",
            reason: "the pod has no shared PID namespace: ask for POD in the pod's own options too"
                .to_owned(),
        }),
    }
}

/// The namespaces, with the paths by which people and scripts enter the pod's; absent ones are the
/// host's. Those of the pod are the shim's own, so that making the container joins nothing:
/// [`shared`] says so to the compiler.
pub(crate) fn entries(input: &Input<'_>, pid: Namespace) -> Vec<NamespaceEntry> {
    let own = &input.pod.spec.security.namespaces;
    let new = |kind| NamespaceEntry {
        kind,
        path: String::new(),
    };
    let of = |kind, pid: u32, file: &str| NamespaceEntry {
        kind,
        path: format!("/proc/{pid}/ns/{file}"),
    };
    let shim = input.shim.pid;
    let mut entries = vec![new(NamespaceKind::Mount), new(NamespaceKind::Cgroup)];
    if own.network != NamespaceMode::Node {
        entries.push(of(NamespaceKind::Network, shim, "net"));
        entries.push(of(NamespaceKind::Uts, shim, "uts"));
    }
    if own.ipc != NamespaceMode::Node {
        entries.push(of(NamespaceKind::Ipc, shim, "ipc"));
    }
    match (pid, input.shim.sandbox_pid, input.target_pid) {
        (Namespace::New, ..) => entries.push(new(NamespaceKind::Pid)),
        (Namespace::Pod, Some(first), _) => entries.push(of(NamespaceKind::Pid, first, "pid")),
        (Namespace::Join, _, Some(target)) => entries.push(of(NamespaceKind::Pid, target, "pid")),
        _ => {}
    }
    entries
}

/// Which of them the maker has anyhow.
pub(crate) fn shared(pid: Namespace) -> Vec<(NamespaceKind, Namespace)> {
    let mut shared = vec![
        (NamespaceKind::Network, Namespace::Inherit),
        (NamespaceKind::Uts, Namespace::Inherit),
        (NamespaceKind::Ipc, Namespace::Inherit),
    ];
    if pid == Namespace::Pod {
        shared.push((NamespaceKind::Pid, Namespace::Pod));
    }
    shared
}
