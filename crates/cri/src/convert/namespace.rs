//! Namespaces, profiles and labels, which pods and containers have both.

use wharf_api::v1;
use wharf_engine::spec::{
    GroupsPolicy, IdMapping, NamespaceMode, NamespaceSpec, ProfileSpec, SelinuxSpec,
    UserNamespaceSpec,
};

use super::field::{Checked, id, plain, word, wrong};

/// The namespaces of a pod (`of_pod`) or a container.
pub(crate) fn namespaces(
    option: Option<&v1::NamespaceOption>,
    of_pod: bool,
) -> Checked<NamespaceSpec> {
    let Some(option) = option else {
        return Ok(NamespaceSpec::default());
    };
    let shared = "only POD and NODE are possible";
    let network = mode("namespace_options.network", option.network)?;
    let ipc = mode("namespace_options.ipc", option.ipc)?;
    for (field, mode) in [
        ("namespace_options.network", network),
        ("namespace_options.ipc", ipc),
    ] {
        if !matches!(mode, NamespaceMode::Pod | NamespaceMode::Node) {
            return Err(wrong(field, shared));
        }
    }
    let pid = mode("namespace_options.pid", option.pid)?;
    let target = pid == NamespaceMode::Target;
    if target && of_pod {
        return Err(wrong("namespace_options.pid", "TARGET is for containers"));
    }
    if target && option.target_id.is_empty() {
        return Err(wrong(
            "namespace_options.target_id",
            "is needed with TARGET",
        ));
    }
    Ok(NamespaceSpec {
        network,
        pid,
        ipc,
        target_id: if target {
            option.target_id.clone()
        } else {
            String::new()
        },
        user: user(option.userns_options.as_ref())?,
    })
}

fn mode(field: &'static str, number: i32) -> Checked<NamespaceMode> {
    Ok(match word(field, number)? {
        v1::NamespaceMode::Pod => NamespaceMode::Pod,
        v1::NamespaceMode::Container => NamespaceMode::Container,
        v1::NamespaceMode::Node => NamespaceMode::Node,
        v1::NamespaceMode::Target => NamespaceMode::Target,
    })
}

fn user(option: Option<&v1::UserNamespace>) -> Checked<Option<UserNamespaceSpec>> {
    const FIELD: &str = "namespace_options.userns_options";
    let Some(option) = option else {
        return Ok(None);
    };
    match mode(FIELD, option.mode)? {
        NamespaceMode::Node if option.uids.is_empty() && option.gids.is_empty() => Ok(None),
        NamespaceMode::Node => Err(wrong(FIELD, "mode NODE excludes uids and gids")),
        NamespaceMode::Pod => {
            let (uids, gids) = (mappings(&option.uids), mappings(&option.gids));
            match (uids.as_slice(), gids.as_slice()) {
                ([uid], [gid]) if uid.length == gid.length && uid.length > 0 => {
                    if uid.container_id != 0 || gid.container_id != 0 {
                        return Err(wrong(FIELD, "container_id of uids and gids must be 0"));
                    }
                    Ok(Some(UserNamespaceSpec { uids, gids }))
                }
                _ => {
                    let reason = "uids and gids need exactly one mapping each, of the same length";
                    Err(wrong(FIELD, reason))
                }
            }
        }
        NamespaceMode::Container | NamespaceMode::Target => {
            Err(wrong(FIELD, "mode must be POD or NODE"))
        }
    }
}

/// Ranges of ids, unchecked.
pub(crate) fn mappings(list: &[v1::IdMapping]) -> Vec<IdMapping> {
    let one = |m: &v1::IdMapping| IdMapping {
        host_id: m.host_id,
        container_id: m.container_id,
        length: m.length,
    };
    list.iter().map(one).collect()
}

/// Ranges of ids, back.
pub(crate) fn mappings_back(list: &[IdMapping]) -> Vec<v1::IdMapping> {
    let one = |m: &IdMapping| v1::IdMapping {
        host_id: m.host_id,
        container_id: m.container_id,
        length: m.length,
    };
    list.iter().map(one).collect()
}

/// Namespaces, back.
pub(crate) fn namespaces_back(spec: &NamespaceSpec) -> v1::NamespaceOption {
    let mode = |mode| match mode {
        NamespaceMode::Pod => v1::NamespaceMode::Pod.into(),
        NamespaceMode::Container => v1::NamespaceMode::Container.into(),
        NamespaceMode::Node => v1::NamespaceMode::Node.into(),
        NamespaceMode::Target => v1::NamespaceMode::Target.into(),
    };
    v1::NamespaceOption {
        network: mode(spec.network),
        pid: mode(spec.pid),
        ipc: mode(spec.ipc),
        target_id: spec.target_id.clone(),
        userns_options: spec.user.as_ref().map(|user| v1::UserNamespace {
            mode: v1::NamespaceMode::Pod.into(),
            uids: mappings_back(&user.uids),
            gids: mappings_back(&user.gids),
        }),
    }
}

/// A seccomp or AppArmor profile; absent is not the same as the default one.
pub(crate) fn profile(
    field: &'static str,
    profile: Option<&v1::SecurityProfile>,
) -> Checked<Option<ProfileSpec>> {
    use v1::security_profile::ProfileType;
    let Some(profile) = profile else {
        return Ok(None);
    };
    Ok(Some(match word(field, profile.profile_type)? {
        ProfileType::RuntimeDefault => ProfileSpec::RuntimeDefault,
        ProfileType::Unconfined => ProfileSpec::Unconfined,
        ProfileType::Localhost if profile.localhost_ref.is_empty() => {
            return Err(wrong(field, "localhost_ref is needed with Localhost"));
        }
        ProfileType::Localhost => ProfileSpec::Localhost(plain(field, &profile.localhost_ref)?),
    }))
}

/// SELinux labels; all empty is none.
pub(crate) fn selinux(option: Option<&v1::SeLinuxOption>) -> Checked<Option<SelinuxSpec>> {
    const FIELD: &str = "security_context.selinux_options";
    let Some(option) = option else {
        return Ok(None);
    };
    let spec = SelinuxSpec {
        user: plain(FIELD, &option.user)?,
        role: plain(FIELD, &option.role)?,
        kind: plain(FIELD, &option.r#type)?,
        level: plain(FIELD, &option.level)?,
    };
    Ok((spec != SelinuxSpec::default()).then_some(spec))
}

/// Where further groups come from.
pub(crate) fn groups_policy(number: i32) -> Checked<GroupsPolicy> {
    Ok(
        match word("security_context.supplemental_groups_policy", number)? {
            v1::SupplementalGroupsPolicy::Merge => GroupsPolicy::Merge,
            v1::SupplementalGroupsPolicy::Strict => GroupsPolicy::Strict,
        },
    )
}

/// Further groups.
pub(crate) fn groups(list: &[i64]) -> Checked<Vec<i64>> {
    list.iter()
        .map(|group| id("security_context.supplemental_groups", *group))
        .collect()
}

/// A user or group that may be absent.
pub(crate) fn maybe_id(
    field: &'static str,
    value: Option<&v1::Int64Value>,
) -> Checked<Option<i64>> {
    value.map(|v| id(field, v.value)).transpose()
}
