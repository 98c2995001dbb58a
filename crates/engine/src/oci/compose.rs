//! A whole runtime-spec document.

use wharf_plan::container::Namespace;
use wharf_runtime::spec::{Linux, Process, Root, Spec, User};

use crate::error::RequestError;
use crate::oci::{
    Input, annotations, caps, devices, mounts, namespaces, process, profiles, resources,
};

/// The version of the runtime-spec that the documents follow.
const OCI_VERSION: &str = "1.3.0";

/// The document, and what it cannot say: environment values that are not UTF-8.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Composed {
    pub(crate) spec: Spec,
    /// `KEY=value` byte for byte.
    pub(crate) env: Vec<Vec<u8>>,
    /// The capabilities that the container may have.
    pub(crate) bounding: u64,
    /// Where its PID namespace comes from.
    pub(crate) pid: Namespace,
}

/// Composes the document.
pub(crate) fn compose(input: &Input<'_>) -> Result<Composed, RequestError> {
    refuse_unsupported(input)?;
    let security = &input.spec.security;
    let sets = caps::sets(security, input.host.capabilities)?;
    let env = process::env(input)?;
    let process = Process {
        terminal: input.spec.tty,
        user: User {
            uid: input.user.uid,
            gid: input.user.gid,
            umask: None,
            additional_gids: input.user.groups.clone(),
        },
        args: process::args(input.spec, input.image)?,
        env: env
            .iter()
            .map(|line| String::from_utf8_lossy(line).into_owned())
            .collect(),
        cwd: process::cwd(input.spec, input.image),
        capabilities: Some(caps::named(sets)),
        no_new_privileges: security.no_new_privs,
        apparmor_profile: profiles::apparmor(security, input.host.apparmor)?,
        oom_score_adj: resources::oom_score_adj(&input.spec.resources),
        ..Process::default()
    };
    let pid = namespaces::pid(&input.pod.spec, input.spec)?;
    let mut limits = resources::resources(&input.spec.resources, input.host)?;
    limits.devices = devices::rules(input.devices, security.privileged);
    let hidden = |paths: &[String]| {
        if security.privileged {
            Vec::new()
        } else {
            paths.to_vec()
        }
    };
    let linux = Linux {
        resources: Some(limits),
        cgroups_path: input.cgroup.to_owned(),
        namespaces: namespaces::entries(input, pid),
        devices: devices::nodes(input.devices),
        rootfs_propagation: mounts::rootfs_propagation(&input.spec.mounts).to_owned(),
        masked_paths: hidden(&security.masked_paths),
        readonly_paths: hidden(&security.readonly_paths),
        ..Linux::default()
    };
    let spec = Spec {
        oci_version: OCI_VERSION.to_owned(),
        process: Some(process),
        root: Some(Root {
            path: "rootfs".to_owned(),
            readonly: security.readonly_rootfs,
        }),
        mounts: mounts::mounts(input)?,
        annotations: annotations::annotations(input),
        linux: Some(linux),
        ..Spec::default()
    };
    Ok(Composed {
        spec,
        env,
        bounding: sets.bounding,
        pid,
    })
}

fn refuse_unsupported(input: &Input<'_>) -> Result<(), RequestError> {
    let security = &input.spec.security;
    if security.namespaces.user.is_some() {
        let text = "user namespaces are not supported yet".to_owned();
        return Err(RequestError::Unsupported(text));
    }
    profiles::refuse_labels(security.selinux.as_ref(), input.host.selinux)?;
    if let Some(device) = input.spec.cdi_devices.first() {
        let text = format!("CDI device {device:?}: CDI devices are not supported yet");
        return Err(RequestError::Unsupported(text));
    }
    if security.privileged && !input.pod.spec.security.privileged {
        return Err(RequestError::Invalid {
            field: "linux.security_context.privileged",
            reason: "the pod is not privileged: set it in the pod's security context too"
                .to_owned(),
        });
    }
    Ok(())
}
