//! Containers: from the engine's pictures to answers.

use std::sync::Arc;

use wharf_api::v1;
use wharf_engine::spec::{ImageSpec, MountSpec, Propagation};
use wharf_engine::view::{ContainerState, ContainerView};

use super::field::{Checked, word};
use super::{filter, namespace, resources, signal};

fn state(view: &ContainerView) -> v1::ContainerState {
    match view.state {
        ContainerState::Created => v1::ContainerState::ContainerCreated,
        ContainerState::Running => v1::ContainerState::ContainerRunning,
        ContainerState::Exited => v1::ContainerState::ContainerExited,
        ContainerState::Unknown => v1::ContainerState::ContainerUnknown,
    }
}

/// An image, by a name that people know.
fn image(view: &ContainerView) -> v1::ImageSpec {
    v1::ImageSpec {
        image: view.facts.image_name.clone(),
        ..image_back(&view.spec.image)
    }
}

fn image_back(spec: &ImageSpec) -> v1::ImageSpec {
    v1::ImageSpec {
        image: spec.image.clone(),
        annotations: spec.annotations.clone().into_iter().collect(),
        user_specified_image: spec.user_specified_image.clone(),
        runtime_handler: spec.runtime_handler.clone(),
        image_ref: String::new(),
    }
}

/// A container in a list.
pub(crate) fn item(view: &ContainerView) -> v1::Container {
    v1::Container {
        id: view.id.to_string(),
        pod_sandbox_id: view.pod.to_string(),
        metadata: Some(v1::ContainerMetadata {
            name: view.spec.metadata.name.clone(),
            attempt: view.spec.metadata.attempt,
        }),
        image: Some(image(view)),
        image_ref: view.facts.image_id.clone(),
        state: state(view).into(),
        created_at: view.created_at_ns,
        labels: view.spec.labels.clone().into_iter().collect(),
        annotations: view.spec.annotations.clone().into_iter().collect(),
        image_id: view.facts.image_id.clone(),
    }
}

/// A container's whole status.
pub(crate) fn status(view: &ContainerView) -> v1::ContainerStatus {
    let item = item(view);
    let user = &view.facts.user;
    let log = view.facts.log_path.as_deref();
    v1::ContainerStatus {
        id: item.id,
        metadata: item.metadata,
        state: item.state,
        created_at: item.created_at,
        started_at: view.started_at_ns,
        finished_at: view.finished_at_ns,
        exit_code: view.exit_code,
        image: item.image,
        image_ref: item.image_ref,
        reason: view.reason.clone(),
        message: view.message.clone(),
        labels: item.labels,
        annotations: item.annotations,
        mounts: view.spec.mounts.iter().map(mount).collect(),
        log_path: log
            .map(|p| p.to_string_lossy().into_owned())
            .unwrap_or_default(),
        resources: Some(v1::ContainerResources {
            linux: Some(resources::back(&view.resources)),
            windows: None,
        }),
        image_id: item.image_id,
        user: Some(v1::ContainerUser {
            linux: Some(v1::LinuxContainerUser {
                uid: user.uid.into(),
                gid: user.gid.into(),
                supplemental_groups: user.groups.iter().map(|g| i64::from(*g)).collect(),
            }),
        }),
        stop_signal: signal::from_kernel(view.facts.stop_signal).into(),
    }
}

fn mount(spec: &MountSpec) -> v1::Mount {
    let propagation = match spec.propagation {
        Propagation::Private => v1::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
    };
    v1::Mount {
        container_path: spec.container_path.clone(),
        host_path: spec.host_path.clone(),
        readonly: spec.readonly,
        selinux_relabel: spec.selinux_relabel,
        propagation: propagation.into(),
        uid_mappings: namespace::mappings_back(&spec.uid_mappings),
        gid_mappings: namespace::mappings_back(&spec.gid_mappings),
        recursive_read_only: spec.recursive_read_only,
        image: spec.image.as_ref().map(image_back),
        image_sub_path: spec.image_sub_path.clone(),
        mount_options: spec.mount_options.clone(),
    }
}

/// The containers that pass a filter.
pub(crate) fn filtered<'a>(
    filter: Option<&v1::ContainerFilter>,
    containers: &'a [Arc<ContainerView>],
) -> Checked<Vec<&'a ContainerView>> {
    let all = containers.iter().map(AsRef::as_ref);
    let Some(filter) = filter else {
        return Ok(all.collect());
    };
    let wanted = match &filter.state {
        Some(value) => Some(word::<v1::ContainerState>("filter.state", value.state)?),
        None => None,
    };
    let passes = |c: &&ContainerView| {
        wanted.is_none_or(|wanted| state(c) == wanted)
            && c.pod.as_str().starts_with(&filter.pod_sandbox_id)
            && filter::has_labels(&filter.label_selector, &c.spec.labels)
    };
    let by_id = filter::by_id(&filter.id, all, |c| c.id.as_str());
    Ok(by_id.into_iter().filter(passes).collect())
}
