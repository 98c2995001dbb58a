//! The runtime specification's config.json, version 1.3: its types for Linux, reading, checking.
//!
//! Fields that this runtime does not know are ignored, as the specification asks. Fields that it
//! knows but cannot fulfil yet are kept as they came ([`serde_json::Value`]); [`crate::compile`]
//! refuses them by name, so that nothing is silently left out.

pub mod capability;
pub mod check;
pub mod linux;
pub mod load;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use check::check;
pub use linux::{
    Cpu, DeviceCgroup, DeviceNode, Hugepage, Linux, Memory, NamespaceEntry, NamespaceKind,
    Personality, Pids, Resources, Seccomp, SeccompAction, SeccompArg, SeccompOperator,
    SeccompSyscall,
};
pub use load::load;

/// What is wrong with a config.json.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is longer than [`load::CONFIG_MAX`].
    #[error("{} is longer than {} bytes", path.display(), load::CONFIG_MAX)]
    TooLong {
        /// Which file.
        path: PathBuf,
    },
    /// It is not JSON, or a field has the wrong type.
    #[error("config.json: {field}")]
    Json {
        /// Where: `process.user.uid`; `.` is the document itself.
        field: String,
        /// What serde says.
        source: serde_json::Error,
    },
    /// A value is not allowed.
    #[error("config.json: {field}: {problem}")]
    Invalid {
        /// Where.
        field: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
}

impl SpecError {
    /// The class of the failure.
    pub fn kind(&self) -> wharf_types::Kind {
        match self {
            Self::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                wharf_types::Kind::NotFound
            }
            Self::Read { .. } => wharf_types::Kind::Internal,
            _ => wharf_types::Kind::Invalid,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A whole config.json.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Version of the specification that the document follows.
    pub oci_version: String,
    /// What is executed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The root file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// Host name of the container's UTS namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// NIS domain name of the container's UTS namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domainname: String,
    /// Mounts beside the root, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Programs run at the container's turns, as they came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<serde_json::Value>,
    /// Free text of the caller.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What only Linux has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linux: Option<Linux>,
}

/// The root file system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Root {
    /// Where it lies; relative to the bundle.
    pub path: String,
    /// It is mounted read-only.
    #[serde(skip_serializing_if = "is_default")]
    pub readonly: bool,
}

/// A mount beside the root.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mount {
    /// Path in the container.
    pub destination: String,
    /// File system type; meaningless for a bind mount.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Device, or for a bind mount the path on the host (relative to the bundle).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Words as in fstab(5), and the file system's own parameters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// User ids of an idmapped mount, as they came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid_mappings: Option<serde_json::Value>,
    /// Group ids of an idmapped mount, as they came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid_mappings: Option<serde_json::Value>,
}

/// What is executed: the container's init, or the document that exec takes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    /// Stdio is a new terminal.
    #[serde(skip_serializing_if = "is_default")]
    pub terminal: bool,
    /// Initial size of the terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_size: Option<ConsoleSize>,
    /// Who.
    pub user: User,
    /// argv.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// `KEY=value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// Capability sets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// Resource limits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<Rlimit>,
    /// `PR_SET_NO_NEW_PRIVS`.
    #[serde(skip_serializing_if = "is_default")]
    pub no_new_privileges: bool,
    /// AppArmor profile.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub apparmor_profile: String,
    /// `/proc/self/oom_score_adj`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// SELinux label.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub selinux_label: String,
    /// I/O priority.
    #[serde(rename = "ioPriority", skip_serializing_if = "Option::is_none")]
    pub io_priority: Option<IoPriority>,
    /// Scheduler attributes, as they came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<serde_json::Value>,
    /// CPU affinity of an exec, as it came.
    #[serde(rename = "execCPUAffinity", skip_serializing_if = "Option::is_none")]
    pub exec_cpu_affinity: Option<serde_json::Value>,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsoleSize {
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

/// Who executes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    /// User id in the container.
    pub uid: u32,
    /// Group id in the container.
    pub gid: u32,
    /// File mode creation mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// Supplementary groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
}

/// The five capability sets, by name (`CAP_CHOWN`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Bounding set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bounding: Vec<String>,
    /// Effective set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub effective: Vec<String>,
    /// Inheritable set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inheritable: Vec<String>,
    /// Permitted set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub permitted: Vec<String>,
    /// Ambient set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ambient: Vec<String>,
}

/// One resource limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE`…
    #[serde(rename = "type")]
    pub kind: String,
    /// The most that may be asked for.
    pub hard: u64,
    /// What counts.
    pub soft: u64,
}

/// I/O priority, see ioprio_set(2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IoPriority {
    /// `IOPRIO_CLASS_RT`, `IOPRIO_CLASS_BE` or `IOPRIO_CLASS_IDLE`.
    pub class: String,
    /// 0 (first) to 7 within the class.
    pub priority: i32,
}
