//! From a config.json to a plan: everything that can be decided without touching the machine.
//!
//! Pure: the same document and options give the same plan. What only the machine knows (whether a
//! bind source is a file, whether it exists) is left to who opens the sources; what this runtime
//! cannot fulfil is refused by name, never left out.

mod options; // words of a mount
mod mounts; // mounts and bind sources
mod devices; // nodes and links below /dev
mod namespaces; // which are new, joined, inherited
mod sysctl; // kernel parameters
mod process; // what is executed
mod resources; // limits of the cgroup

use std::path::PathBuf;

use wharf_plan::container::{ContainerPlan, Namespace};

use crate::seccomp::{self, Program, SeccompError};
use crate::spec::{self, NamespaceKind, Spec, SpecError};

pub use mounts::BindSource;
pub use namespaces::NamespacePath;
pub use process::{ProcessOptions, process_plan};
pub use resources::{CgroupRequest, limits};
pub use sysctl::refuse_in_host;

/// What the caller knows beside the document.
#[derive(Debug, Clone, Default)]
pub struct CompileOptions<'a> {
    /// The container's id.
    pub id: String,
    /// The bundle's directory: relative paths of the root and of bind sources begin here.
    pub bundle: PathBuf,
    /// Skip the session keyring.
    pub no_new_keyring: bool,
    /// Descriptors from 3 on that the init inherits.
    pub preserve_fds: u32,
    /// The compiled filter of the document, when the caller has it already (a cache); else it is
    /// compiled here.
    pub seccomp: Option<&'a Program>,
    /// What a mount of type `cgroup` shows; such a mount is refused when absent.
    pub cgroup: Option<wharf_cgroup::View>,
    /// Namespaces that the document joins by path, and that the maker has anyhow: a shim's own
    /// ([`Namespace::Inherit`]), or the pod's PID namespace ([`Namespace::Pod`]).
    pub shared: Vec<(NamespaceKind, Namespace)>,
}

/// A plan, and what the caller has to get for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Compiled {
    /// The plan. For each bind source that is not a directory the caller sets `is_file` of its mount.
    pub plan: ContainerPlan,
    /// The root, absolute.
    pub rootfs: PathBuf,
    /// What has to be opened for the plan's `bind` descriptors, in this order.
    pub binds: Vec<BindSource>,
    /// The cgroup, with its limits.
    pub cgroup: CgroupRequest,
    /// Namespaces to open for the plan's `ns.*` descriptors.
    pub namespaces: Vec<NamespacePath>,
}

/// Why a document cannot be made into a plan.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The document is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Allowed by the specification, but not here yet.
    #[error("config.json: {0} is not supported yet")]
    Unsupported(String),
    /// The filter cannot be compiled.
    #[error("config.json: linux.seccomp")]
    Seccomp(#[from] SeccompError),
}

impl CompileError {
    /// The class of the failure.
    pub fn kind(&self) -> wharf_types::Kind {
        match self {
            Self::Spec(error) => error.kind(),
            Self::Unsupported(_) => wharf_types::Kind::Unsupported,
            Self::Seccomp(error) => error.kind(),
        }
    }

    fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Spec(SpecError::Invalid {
            field: field.into(),
            problem: problem.into(),
        })
    }
}

/// Translates a document.
///
/// # Errors
/// [`CompileError`], naming the field.
pub fn compile(spec: &Spec, options: &CompileOptions<'_>) -> Result<Compiled, CompileError> {
    spec::check(spec)?;
    refuse_unsupported(spec)?;
    // All three are there: `check` said so.
    let (Some(linux), Some(root), Some(process)) = (&spec.linux, &spec.root, &spec.process) else {
        return Err(CompileError::invalid("linux, root, process", "are missing"));
    };
    let compiled_here;
    let filter = match (options.seccomp, &linux.seccomp) {
        (Some(given), _) => Some(given),
        (None, Some(profile)) => {
            compiled_here = seccomp::compile(profile)?;
            Some(&compiled_here)
        }
        (None, None) => None,
    };
    let process = process_plan(
        process,
        &ProcessOptions {
            seccomp: filter,
            preserve_fds: options.preserve_fds,
        },
    )?;
    let names = namespaces::compile(linux, &options.shared)?;
    namespaces::check_names(spec, &names)?;
    let mounts = mounts::compile(spec, options)?;
    let (device_plans, mut links) = devices::compile(spec)?;
    links.extend(mounts.links);
    let mut readonly_paths = mounts.readonly_paths;
    readonly_paths.extend(linux.readonly_paths.iter().map(|p| p.clone().into_bytes()));
    let hostname_is_ours = matches!(names.uts, Namespace::New | Namespace::Join);
    let name = |name: &String| {
        if hostname_is_ours {
            name.clone()
        } else {
            String::new()
        }
    };
    let plan = ContainerPlan {
        version: wharf_plan::PROTOCOL,
        id: options.id.clone(),
        process: Some(process),
        namespaces: Some(names.plan()),
        rootfs_readonly: root.readonly,
        rootfs_propagation: options::propagation(&linux.rootfs_propagation)?,
        mounts: mounts.plans,
        devices: device_plans,
        links,
        masked_paths: linux
            .masked_paths
            .iter()
            .map(|p| p.clone().into_bytes())
            .collect(),
        readonly_paths,
        hostname: name(&spec.hostname),
        domainname: name(&spec.domainname),
        sysctls: sysctl::compile(linux)?,
        personality: personality(linux.personality.as_ref())?,
        no_new_keyring: options.no_new_keyring,
        loopback_up: names.network == Namespace::New,
    };
    Ok(Compiled {
        plan,
        rootfs: options.bundle.join(&root.path),
        binds: mounts.binds,
        cgroup: CgroupRequest {
            path: linux.cgroups_path.clone(),
            limits: limits(linux.resources.as_ref())?,
        },
        namespaces: names.paths,
    })
}

/// What the specification has and this runtime not: asking for it must not go unnoticed.
fn refuse_unsupported(spec: &Spec) -> Result<(), CompileError> {
    let asked = |value: &Option<serde_json::Value>| {
        value.as_ref().is_some_and(|value| match value {
            serde_json::Value::Array(items) => !items.is_empty(),
            serde_json::Value::Object(fields) => !fields.is_empty(),
            _ => true,
        })
    };
    let mut fields = vec![("hooks", &spec.hooks)];
    if let Some(linux) = &spec.linux {
        fields.extend([
            ("linux.uidMappings", &linux.uid_mappings),
            ("linux.gidMappings", &linux.gid_mappings),
            ("linux.netDevices", &linux.net_devices),
            ("linux.intelRdt", &linux.intel_rdt),
            ("linux.memoryPolicy", &linux.memory_policy),
            ("linux.timeOffsets", &linux.time_offsets),
        ]);
        if !linux.mount_label.is_empty() {
            return Err(CompileError::Unsupported("linux.mountLabel".to_owned()));
        }
    }
    match fields.into_iter().find(|(_, value)| asked(value)) {
        Some((field, _)) => Err(CompileError::Unsupported(field.to_owned())),
        None => Ok(()),
    }
}

/// `PER_LINUX` and `PER_LINUX32` of linux/personality.h.
fn personality(wanted: Option<&spec::Personality>) -> Result<Option<u64>, CompileError> {
    let Some(personality) = wanted else {
        return Ok(None);
    };
    if !personality.flags.is_empty() {
        return Err(CompileError::Unsupported(
            "linux.personality.flags".to_owned(),
        ));
    }
    match personality.domain.as_str() {
        "LINUX" => Ok(Some(0)),
        "LINUX32" => Ok(Some(8)),
        other => Err(CompileError::invalid(
            "linux.personality.domain",
            format!("{other:?} is neither LINUX nor LINUX32"),
        )),
    }
}

#[cfg(test)]
mod tests;
