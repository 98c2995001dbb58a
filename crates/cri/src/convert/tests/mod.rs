//! Conversions: what a client says is what the engine is asked, and what is wrong is named.

use std::collections::HashMap;

use wharf_api::v1;
use wharf_engine::spec::{ContainerSpec, PodSpec};

use super::{container, pod};

mod answers; // pictures to messages, filters
mod any; // whatever comes
mod requests; // messages to specifications
mod usage; // statistics and metrics

pub(super) fn pod_request() -> v1::RunPodSandboxRequest {
    v1::RunPodSandboxRequest {
        config: Some(v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "web".to_owned(),
                uid: "u-1".to_owned(),
                namespace: "shop".to_owned(),
                attempt: 2,
            }),
            log_directory: "/var/log/pods/web".to_owned(),
            labels: HashMap::from([("app".to_owned(), "web".to_owned())]),
            annotations: HashMap::from([("odd key/é".to_owned(), " kept\n".to_owned())]),
            linux: Some(v1::LinuxPodSandboxConfig::default()),
            ..Default::default()
        }),
        runtime_handler: String::new(),
    }
}

pub(super) fn pod_of(change: impl FnOnce(&mut v1::PodSandboxConfig)) -> Result<PodSpec, String> {
    let mut request = pod_request();
    change(request.config.as_mut().unwrap());
    pod::spec(request).map_err(|e| e.to_string())
}

pub(super) fn pod_linux(
    change: impl FnOnce(&mut v1::LinuxSandboxSecurityContext),
) -> Result<PodSpec, String> {
    pod_of(|config| {
        let mut security = v1::LinuxSandboxSecurityContext::default();
        change(&mut security);
        config.linux.as_mut().unwrap().security_context = Some(security);
    })
}

pub(super) fn config() -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: "main".to_owned(),
            attempt: 1,
        }),
        image: Some(v1::ImageSpec {
            image: "busybox".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(super) fn container_of(
    change: impl FnOnce(&mut v1::ContainerConfig),
) -> Result<ContainerSpec, String> {
    let mut config = config();
    change(&mut config);
    container::spec(Some(config)).map_err(|e| e.to_string())
}

pub(super) fn container_linux(
    change: impl FnOnce(&mut v1::LinuxContainerSecurityContext),
) -> Result<ContainerSpec, String> {
    container_of(|config| {
        let mut security = v1::LinuxContainerSecurityContext::default();
        change(&mut security);
        config.linux = Some(v1::LinuxContainerConfig {
            resources: None,
            security_context: Some(security),
        });
    })
}

pub(super) fn with_mount(change: impl FnOnce(&mut v1::Mount)) -> Result<ContainerSpec, String> {
    let mut mount = v1::Mount {
        container_path: "/data".to_owned(),
        host_path: "/srv".to_owned(),
        ..Default::default()
    };
    change(&mut mount);
    container_of(|config| config.mounts.push(mount))
}

pub(super) fn some(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}

/// The refusal begins with the field's name.
#[track_caller]
pub(super) fn names<T: std::fmt::Debug>(result: Result<T, String>, field: &str) {
    let error = result.expect_err(field);
    assert!(error.starts_with(&format!("{field}: ")), "{error}");
}
