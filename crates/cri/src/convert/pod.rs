//! Pods: from requests to the engine's words, and from its pictures to answers.

use wharf_api::v1;
use wharf_engine::spec::{DnsSpec, PodMetadata, PodSecurity, PodSpec, PortMapping, Protocol};
use wharf_engine::view::{PodState, PodView};

use super::field::{Checked, absolute_or_empty, climbs, name, path, required, token, word, wrong};
use super::{namespace, resources};

/// `HOST_NAME_MAX` of Linux.
const HOSTNAME_MAX: usize = 64;

/// What RunPodSandbox asks for.
pub(crate) fn spec(request: v1::RunPodSandboxRequest) -> Checked<PodSpec> {
    let config = required("config", request.config)?;
    let linux = config.linux.unwrap_or_default();
    if climbs(&linux.cgroup_parent) {
        return Err(wrong("config.linux.cgroup_parent", "must not contain .."));
    }
    if config.hostname.len() > HOSTNAME_MAX || config.hostname.contains(['/', '\0', '\n', ' ']) {
        let reason = format!("must be a host name of at most {HOSTNAME_MAX} bytes");
        return Err(wrong("config.hostname", reason));
    }
    Ok(PodSpec {
        metadata: metadata(config.metadata)?,
        hostname: config.hostname,
        log_directory: absolute_or_empty("config.log_directory", &config.log_directory)?,
        dns: config.dns_config.as_ref().map(dns).transpose()?,
        port_mappings: config
            .port_mappings
            .into_iter()
            .map(port)
            .collect::<Checked<_>>()?,
        labels: config.labels.into_iter().collect(),
        annotations: config.annotations.into_iter().collect(),
        cgroup_parent: path("config.linux.cgroup_parent", &linux.cgroup_parent)?,
        sysctls: linux.sysctls.into_iter().collect(),
        overhead: linux.overhead.as_ref().map(resources::plainly),
        resources: linux.resources.as_ref().map(resources::plainly),
        security: security(linux.security_context.unwrap_or_default())?,
        runtime_handler: request.runtime_handler,
    })
}

fn metadata(metadata: Option<v1::PodSandboxMetadata>) -> Checked<PodMetadata> {
    let m = required("config.metadata", metadata)?;
    Ok(PodMetadata {
        name: name("config.metadata.name", &m.name)?,
        namespace: name("config.metadata.namespace", &m.namespace)?,
        uid: name("config.metadata.uid", &m.uid)?,
        attempt: m.attempt,
    })
}

fn dns(config: &v1::DnsConfig) -> Checked<DnsSpec> {
    let words = |field, list: &[String]| -> Checked<Vec<String>> {
        list.iter().map(|t| token(field, t)).collect()
    };
    Ok(DnsSpec {
        servers: words("config.dns_config.servers", &config.servers)?,
        searches: words("config.dns_config.searches", &config.searches)?,
        options: words("config.dns_config.options", &config.options)?,
    })
}

fn port(mapping: v1::PortMapping) -> Checked<PortMapping> {
    const FIELD: &str = "config.port_mappings";
    let number =
        |n: i32| u16::try_from(n).map_err(|_range| wrong(FIELD, format!("{n} is not a port")));
    Ok(PortMapping {
        protocol: match word(FIELD, mapping.protocol)? {
            v1::Protocol::Tcp => Protocol::Tcp,
            v1::Protocol::Udp => Protocol::Udp,
            v1::Protocol::Sctp => Protocol::Sctp,
        },
        container_port: number(mapping.container_port)?,
        host_port: number(mapping.host_port)?,
        host_ip: mapping.host_ip,
    })
}

fn security(c: v1::LinuxSandboxSecurityContext) -> Checked<PodSecurity> {
    let run_as_user = namespace::maybe_id("security_context.run_as_user", c.run_as_user.as_ref())?;
    if c.run_as_group.is_some() && run_as_user.is_none() {
        return Err(wrong("security_context.run_as_group", "needs run_as_user"));
    }
    Ok(PodSecurity {
        namespaces: namespace::namespaces(c.namespace_options.as_ref(), true)?,
        privileged: c.privileged,
        run_as_user,
        run_as_group: namespace::maybe_id(
            "security_context.run_as_group",
            c.run_as_group.as_ref(),
        )?,
        supplemental_groups: namespace::groups(&c.supplemental_groups)?,
        supplemental_groups_policy: namespace::groups_policy(c.supplemental_groups_policy)?,
        readonly_rootfs: c.readonly_rootfs,
        selinux: namespace::selinux(c.selinux_options.as_ref())?,
        seccomp: namespace::profile("security_context.seccomp", c.seccomp.as_ref())?,
        apparmor: namespace::profile("security_context.apparmor", c.apparmor.as_ref())?,
        seccomp_profile_path: c.seccomp_profile_path,
    })
}

/// CRI has no third state: what cannot be reached is not ready.
fn state(view: &PodView) -> i32 {
    match view.state {
        PodState::Ready => v1::PodSandboxState::SandboxReady.into(),
        PodState::NotReady | PodState::Unknown => v1::PodSandboxState::SandboxNotready.into(),
    }
}

fn metadata_back(metadata: &PodMetadata) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        namespace: metadata.namespace.clone(),
        attempt: metadata.attempt,
    }
}

/// A pod in a list.
pub(crate) fn item(view: &PodView) -> v1::PodSandbox {
    v1::PodSandbox {
        id: view.id.to_string(),
        metadata: Some(metadata_back(&view.spec.metadata)),
        state: state(view),
        created_at: view.created_at_ns,
        labels: view.spec.labels.clone().into_iter().collect(),
        annotations: view.spec.annotations.clone().into_iter().collect(),
        runtime_handler: view.spec.runtime_handler.clone(),
    }
}

/// A pod's whole status.
pub(crate) fn status(view: &PodView) -> v1::PodSandboxStatus {
    let item = item(view);
    let options = namespace::namespaces_back(&view.spec.security.namespaces);
    let ip = |ip: &String| v1::PodIp { ip: ip.clone() };
    v1::PodSandboxStatus {
        id: item.id,
        metadata: item.metadata,
        state: item.state,
        created_at: item.created_at,
        network: Some(v1::PodSandboxNetworkStatus {
            ip: view.network.ip.clone(),
            additional_ips: view.network.additional_ips.iter().map(ip).collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace {
                options: Some(options),
            }),
        }),
        labels: item.labels,
        annotations: item.annotations,
        runtime_handler: item.runtime_handler,
    }
}

/// The pods that pass a filter.
pub(crate) fn filtered<'a>(
    filter: Option<&v1::PodSandboxFilter>,
    pods: &'a [std::sync::Arc<PodView>],
) -> Checked<Vec<&'a PodView>> {
    let all = pods.iter().map(AsRef::as_ref);
    let Some(filter) = filter else {
        return Ok(all.collect());
    };
    let wanted = match &filter.state {
        Some(value) => Some(word::<v1::PodSandboxState>("filter.state", value.state)?),
        None => None,
    };
    let by_id = super::filter::by_id(&filter.id, all, |pod| pod.id.as_str());
    let passes = |pod: &&PodView| {
        wanted.is_none_or(|wanted| state(pod) == i32::from(wanted))
            && super::filter::has_labels(&filter.label_selector, &pod.spec.labels)
    };
    Ok(by_id.into_iter().filter(passes).collect())
}
