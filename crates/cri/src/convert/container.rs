//! Containers: from requests to the engine's words.

use std::time::Duration;

use wharf_api::v1;
use wharf_engine::spec::{
    CapabilitySpec, ContainerMetadata, ContainerSpec, DeviceSpec, EnvVar, ExecSyncRequest,
    ImageSpec, MountSpec, Propagation, SecuritySpec,
};

use super::field::{
    Checked, absolute, absolute_or_empty, climbs, name, path, plain, required, word, wrong,
};
use super::{namespace, resources, signal};

/// What CreateContainer asks for.
pub(crate) fn spec(config: Option<v1::ContainerConfig>) -> Checked<ContainerSpec> {
    let config = required("config", config)?;
    let linux = config.linux.unwrap_or_default();
    let image = image(required("config.image", config.image)?);
    if image.image.is_empty() {
        return Err(wrong("config.image.image", "must not be empty"));
    }
    if climbs(&config.log_path) {
        return Err(wrong("config.log_path", "must not contain .."));
    }
    for (field, list) in [
        ("config.command", &config.command),
        ("config.args", &config.args),
    ] {
        if list.iter().any(|word| word.contains('\0')) {
            return Err(wrong(field, "contains a zero byte"));
        }
    }
    let stop_signal = signal::to_kernel(word("config.stop_signal", config.stop_signal)?);
    let resources = linux
        .resources
        .as_ref()
        .map(resources::checked)
        .transpose()?;
    Ok(ContainerSpec {
        metadata: metadata(config.metadata)?,
        image,
        command: config.command,
        args: config.args,
        working_dir: path("config.working_dir", &config.working_dir)?,
        envs: config.envs.into_iter().map(env).collect::<Checked<_>>()?,
        mounts: config
            .mounts
            .into_iter()
            .map(mount)
            .collect::<Checked<_>>()?,
        devices: config
            .devices
            .into_iter()
            .map(device)
            .collect::<Checked<_>>()?,
        cdi_devices: config.cdi_devices.into_iter().map(|d| d.name).collect(),
        labels: config.labels.into_iter().collect(),
        annotations: config.annotations.into_iter().collect(),
        log_path: plain("config.log_path", config.log_path.trim_start_matches('/'))?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        stop_signal,
        resources: resources.unwrap_or_default(),
        security: security(linux.security_context.unwrap_or_default())?,
    })
}

fn metadata(metadata: Option<v1::ContainerMetadata>) -> Checked<ContainerMetadata> {
    let m = required("config.metadata", metadata)?;
    Ok(ContainerMetadata {
        name: name("config.metadata.name", &m.name)?,
        attempt: m.attempt,
    })
}

/// An image by id or reference.
pub(crate) fn image(image: v1::ImageSpec) -> ImageSpec {
    ImageSpec {
        image: image.image,
        user_specified_image: image.user_specified_image,
        annotations: image.annotations.into_iter().collect(),
        runtime_handler: image.runtime_handler,
    }
}

/// An environment variable. Zero bytes at the end are what C programs leave; elsewhere one would cut
/// the value (execve(2)).
fn env(mut env: v1::KeyValue) -> Checked<EnvVar> {
    if env.key.is_empty() || env.key.contains(['=', '\0']) {
        let reason = format!("{:?} is not the name of an environment variable", env.key);
        return Err(wrong("config.envs", reason));
    }
    while env.value.last() == Some(&0) {
        env.value.pop();
    }
    if env.value.contains(&0) {
        let reason = format!("the value of {:?} contains a zero byte", env.key);
        return Err(wrong("config.envs", reason));
    }
    Ok(EnvVar {
        name: env.key,
        value: env.value,
    })
}

fn mount(mount: v1::Mount) -> Checked<MountSpec> {
    const FIELD: &str = "config.mounts";
    let propagation = match word("config.mounts.propagation", mount.propagation)? {
        v1::MountPropagation::PropagationPrivate => Propagation::Private,
        v1::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        v1::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    };
    // An image message without a name is no image: kubelet sends none otherwise.
    let image_mount = mount.image.map(image).filter(|i| !i.image.is_empty());
    if image_mount.is_none() {
        absolute("config.mounts.host_path", &mount.host_path)?;
    } else if !mount.host_path.is_empty() {
        return Err(wrong(FIELD, "image and host_path exclude each other"));
    } else if !mount.readonly {
        return Err(wrong(FIELD, "a mount of an image needs readonly"));
    }
    let recursive = mount.recursive_read_only;
    if recursive && !(mount.readonly && propagation == Propagation::Private) {
        let reason = "needs readonly and PROPAGATION_PRIVATE";
        return Err(wrong("config.mounts.recursive_read_only", reason));
    }
    Ok(MountSpec {
        container_path: absolute("config.mounts.container_path", &mount.container_path)?,
        host_path: path("config.mounts.host_path", &mount.host_path)?,
        readonly: mount.readonly,
        recursive_read_only: recursive,
        selinux_relabel: mount.selinux_relabel,
        propagation,
        uid_mappings: namespace::mappings(&mount.uid_mappings),
        gid_mappings: namespace::mappings(&mount.gid_mappings),
        image: image_mount,
        image_sub_path: path("config.mounts.image_sub_path", &mount.image_sub_path)?,
        mount_options: mount.mount_options,
    })
}

fn device(device: v1::Device) -> Checked<DeviceSpec> {
    let permissions = device.permissions;
    if permissions.len() > 3 || !permissions.chars().all(|c| "rwm".contains(c)) {
        let reason = format!("{permissions:?}: only the letters r, w and m are possible");
        return Err(wrong("config.devices.permissions", reason));
    }
    Ok(DeviceSpec {
        container_path: absolute_or_empty("config.devices.container_path", &device.container_path)?,
        host_path: absolute("config.devices.host_path", &device.host_path)?,
        permissions,
    })
}

fn security(c: v1::LinuxContainerSecurityContext) -> Checked<SecuritySpec> {
    let user = namespace::maybe_id("security_context.run_as_user", c.run_as_user.as_ref())?;
    let group = namespace::maybe_id("security_context.run_as_group", c.run_as_group.as_ref())?;
    if user.is_some() && !c.run_as_username.is_empty() {
        let reason = "run_as_user and run_as_username exclude each other";
        return Err(wrong("security_context.run_as_username", reason));
    }
    if group.is_some() && user.is_none() && c.run_as_username.is_empty() {
        let reason = "needs run_as_user or run_as_username";
        return Err(wrong("security_context.run_as_group", reason));
    }
    let capabilities = c.capabilities.unwrap_or_default();
    let paths = |field, list: Vec<String>| -> Checked<Vec<String>> {
        list.iter().map(|p| absolute(field, p)).collect()
    };
    Ok(SecuritySpec {
        capabilities: CapabilitySpec {
            add: capabilities.add_capabilities,
            drop: capabilities.drop_capabilities,
            add_ambient: capabilities.add_ambient_capabilities,
        },
        privileged: c.privileged,
        namespaces: namespace::namespaces(c.namespace_options.as_ref(), false)?,
        selinux: namespace::selinux(c.selinux_options.as_ref())?,
        run_as_user: user,
        run_as_username: plain("security_context.run_as_username", &c.run_as_username)?,
        run_as_group: group,
        supplemental_groups: namespace::groups(&c.supplemental_groups)?,
        supplemental_groups_policy: namespace::groups_policy(c.supplemental_groups_policy)?,
        readonly_rootfs: c.readonly_rootfs,
        no_new_privs: c.no_new_privs,
        masked_paths: paths("security_context.masked_paths", c.masked_paths)?,
        readonly_paths: paths("security_context.readonly_paths", c.readonly_paths)?,
        seccomp: namespace::profile("security_context.seccomp", c.seccomp.as_ref())?,
        apparmor: namespace::profile("security_context.apparmor", c.apparmor.as_ref())?,
        seccomp_profile_path: c.seccomp_profile_path,
        apparmor_profile: c.apparmor_profile,
    })
}

/// What ExecSync asks for.
pub(crate) fn exec_sync(request: v1::ExecSyncRequest) -> Checked<ExecSyncRequest> {
    if request.cmd.is_empty() {
        return Err(wrong("cmd", "must not be empty"));
    }
    if request.cmd.iter().any(|word| word.contains('\0')) {
        return Err(wrong("cmd", "contains a zero byte"));
    }
    let timeout = seconds("timeout", request.timeout)?;
    Ok(ExecSyncRequest {
        container: request.container_id,
        cmd: request.cmd,
        timeout: (!timeout.is_zero()).then_some(timeout),
    })
}

/// The longest time that can be asked for, in seconds: a century. Timers cannot take any number.
const SECONDS_MAX: u64 = 100 * 366 * 24 * 3600;

/// A time in seconds.
pub(crate) fn seconds(field: &'static str, seconds: i64) -> Checked<Duration> {
    match u64::try_from(seconds) {
        Ok(seconds) => Ok(Duration::from_secs(seconds.min(SECONDS_MAX))),
        Err(_negative) => Err(wrong(field, format!("{seconds} must not be negative"))),
    }
}
