//! What callers ask for: pods, containers and execs, in the engine's own words.
//!
//! Plain data, checked for form by the door it came through. Everything here is written to records
//! and goes into the configuration's digest, so maps are ordered.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wharf_types::Digest;

/// Names a pod; all four together are its key. CRI `PodSandboxMetadata`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodMetadata {
    /// The pod's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
    /// How often it was tried before.
    pub attempt: u32,
}

impl fmt::Display for PodMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{} (uid {}, attempt {})",
            self.namespace, self.name, self.uid, self.attempt
        )
    }
}

/// Names a container in its pod. CRI `ContainerMetadata`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerMetadata {
    /// The container's name.
    pub name: String,
    /// How often it was tried before.
    pub attempt: u32,
}

impl fmt::Display for ContainerMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (attempt {})", self.name, self.attempt)
    }
}

/// A pod sandbox. CRI `PodSandboxConfig`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSpec {
    /// Its key.
    pub metadata: PodMetadata,
    /// Host name of its UTS namespace; the node's with the host's network.
    pub hostname: String,
    /// Absolute directory below which containers' log paths lie; empty for none.
    pub log_directory: String,
    /// `/etc/resolv.conf`; a copy of the host's when absent.
    pub dns: Option<DnsSpec>,
    /// Ports of the node that lead to the pod.
    pub port_mappings: Vec<PortMapping>,
    /// Given back unaltered.
    pub labels: BTreeMap<String, String>,
    /// Given back unaltered.
    pub annotations: BTreeMap<String, String>,
    /// The cgroup to use; never deleted by us. The engine makes one of its own when empty.
    pub cgroup_parent: String,
    /// Kernel parameters of the pod's namespaces, with dots or slashes.
    pub sysctls: BTreeMap<String, String>,
    /// Overhead of the sandbox itself.
    pub overhead: Option<ResourceSpec>,
    /// Sum of the containers' resources.
    pub resources: Option<ResourceSpec>,
    /// Namespaces, and what a sandbox process would run as.
    pub security: PodSecurity,
    /// Name of the runtime handler; empty for the default.
    pub runtime_handler: String,
}

impl PodSpec {
    /// Two requests with the same key and the same digest are the same request.
    pub fn digest(&self) -> Digest {
        digest(self)
    }
}

/// `/etc/resolv.conf` of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsSpec {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// One port of the node that leads to the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port in the pod.
    pub container_port: u16,
    /// Port of the node; 0 for none.
    pub host_port: u16,
    /// Address of the node; all when empty.
    pub host_ip: String,
}

/// Transport protocols of port mappings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Whose namespace is used. CRI `NamespaceMode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// The pod's, shared by its containers.
    #[default]
    Pod,
    /// The container's own.
    Container,
    /// The host's.
    Node,
    /// That of the container named as target.
    Target,
}

/// CRI `NamespaceOption`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NamespaceSpec {
    /// Network: pod or node.
    pub network: NamespaceMode,
    /// PID: pod, container, node or target.
    pub pid: NamespaceMode,
    /// IPC: pod or node.
    pub ipc: NamespaceMode,
    /// The container meant by [`NamespaceMode::Target`].
    pub target_id: String,
    /// A user namespace of its own; `None` is the host's.
    pub user: Option<UserNamespaceSpec>,
}

/// Id mappings of a user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserNamespaceSpec {
    /// User ids.
    pub uids: Vec<IdMapping>,
    /// Group ids.
    pub gids: Vec<IdMapping>,
}

/// A range of ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id on the host.
    pub host_id: u32,
    /// First id in the container.
    pub container_id: u32,
    /// How many.
    pub length: u32,
}

/// CRI `LinuxSandboxSecurityContext`: what concerns us, for there is no sandbox process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSecurity {
    /// Which namespaces the pod has of its own.
    pub namespaces: NamespaceSpec,
    /// Privileged containers may be created in it.
    pub privileged: bool,
    /// Kept for the digest and status; nothing runs as it.
    pub run_as_user: Option<i64>,
    /// Refused without a user.
    pub run_as_group: Option<i64>,
    /// Kept for the digest and status.
    pub supplemental_groups: Vec<i64>,
    /// Kept for the digest and status.
    pub supplemental_groups_policy: GroupsPolicy,
    /// Kept for the digest and status.
    pub readonly_rootfs: bool,
    /// SELinux labels.
    pub selinux: Option<SelinuxSpec>,
    /// Kept for the digest and status.
    pub seccomp: Option<ProfileSpec>,
    /// Kept for the digest and status.
    pub apparmor: Option<ProfileSpec>,
    /// The deprecated string form, kept for the digest and status.
    pub seccomp_profile_path: String,
}

/// A container. CRI `ContainerConfig`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    /// Its key in the pod.
    pub metadata: ContainerMetadata,
    /// Its image.
    pub image: ImageSpec,
    /// Replaces the image's entry point, and drops its command.
    pub command: Vec<String>,
    /// Replaces the image's command.
    pub args: Vec<String>,
    /// Replaces the image's working directory.
    pub working_dir: String,
    /// Environment, added to the image's.
    pub envs: Vec<EnvVar>,
    /// Mounts asked for.
    pub mounts: Vec<MountSpec>,
    /// Device nodes asked for.
    pub devices: Vec<DeviceSpec>,
    /// Fully qualified CDI device names.
    pub cdi_devices: Vec<String>,
    /// Given back unaltered.
    pub labels: BTreeMap<String, String>,
    /// Given back unaltered.
    pub annotations: BTreeMap<String, String>,
    /// Log file, relative to the pod's log directory; empty for none.
    pub log_path: String,
    /// stdin is kept open.
    pub stdin: bool,
    /// stdin is closed after the first attach ends.
    pub stdin_once: bool,
    /// A terminal is wanted.
    pub tty: bool,
    /// Signal number that stops it; `None` is the image's, else SIGTERM.
    pub stop_signal: Option<i32>,
    /// Its limits.
    pub resources: ResourceSpec,
    /// Who it runs as and what it may do.
    pub security: SecuritySpec,
}

impl ContainerSpec {
    /// Two requests with the same key and the same digest are the same request.
    pub fn digest(&self) -> Digest {
        digest(self)
    }
}

/// Which image. CRI `ImageSpec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageSpec {
    /// What to look up: an image id, or a reference.
    pub image: String,
    /// What the user wrote; for status.
    pub user_specified_image: String,
    /// Given back unaltered.
    pub annotations: BTreeMap<String, String>,
    /// Runtime handler of the image; empty for the default.
    pub runtime_handler: String,
}

/// An environment variable; the value need not be UTF-8, and is not shown in debug output.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Its name.
    pub name: String,
    /// Its value.
    #[serde(with = "text_or_bytes")]
    pub value: Vec<u8>,
}

impl fmt::Debug for EnvVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=<{} bytes>", self.name, self.value.len())
    }
}

/// A mount. CRI `Mount`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountSpec {
    /// Absolute path in the container.
    pub container_path: String,
    /// Path on the host; empty for an image mount.
    pub host_path: String,
    /// Read-only.
    pub readonly: bool,
    /// Read-only with everything mounted below.
    pub recursive_read_only: bool,
    /// Relabel for SELinux.
    pub selinux_relabel: bool,
    /// How mounts travel.
    pub propagation: Propagation,
    /// Id mapping of the mount.
    pub uid_mappings: Vec<IdMapping>,
    /// Id mapping of the mount.
    pub gid_mappings: Vec<IdMapping>,
    /// An image instead of a host path.
    pub image: Option<ImageSpec>,
    /// Directory of that image.
    pub image_sub_path: String,
    /// `noexec`, `nodev`, `nosuid`.
    pub mount_options: Vec<String>,
}

/// How mounts travel between host and container. CRI `MountPropagation`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Not at all.
    #[default]
    Private,
    /// From the host to the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// A device. CRI `Device`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceSpec {
    /// Path in the container; the host's when empty.
    pub container_path: String,
    /// Path on the host: a device, or a directory with devices.
    pub host_path: String,
    /// Of `r`, `w`, `m`.
    pub permissions: String,
}

/// Limits. CRI `LinuxContainerResources`: 0 and empty mean "not set".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceSpec {
    /// Microseconds.
    pub cpu_period: i64,
    /// Microseconds in each period; -1 is unlimited.
    pub cpu_quota: i64,
    /// Relative weight, 2 to 262144.
    pub cpu_shares: i64,
    /// Bytes; -1 is unlimited.
    pub memory_limit: i64,
    /// Bytes of memory and swap together; -1 is unlimited.
    pub memory_swap_limit: i64,
    /// -1000 to 1000.
    pub oom_score_adj: i64,
    /// CPU list.
    pub cpuset_cpus: String,
    /// Memory node list.
    pub cpuset_mems: String,
    /// Limits of huge pages.
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Raw cgroup v2 files.
    pub unified: BTreeMap<String, String>,
}

impl ResourceSpec {
    /// These limits with `change` on top: what `change` does not set stays.
    pub fn merged(&self, change: &Self) -> Self {
        let number = |old: i64, new: i64| if new == 0 { old } else { new };
        let text = |old: &String, new: &String| {
            if new.is_empty() {
                old.clone()
            } else {
                new.clone()
            }
        };
        let mut unified = self.unified.clone();
        unified.extend(change.unified.clone());
        let mut hugepage_limits = self.hugepage_limits.clone();
        hugepage_limits.retain(|h| {
            change
                .hugepage_limits
                .iter()
                .all(|c| c.page_size != h.page_size)
        });
        hugepage_limits.extend(change.hugepage_limits.iter().cloned());
        Self {
            cpu_period: number(self.cpu_period, change.cpu_period),
            cpu_quota: number(self.cpu_quota, change.cpu_quota),
            cpu_shares: number(self.cpu_shares, change.cpu_shares),
            memory_limit: number(self.memory_limit, change.memory_limit),
            memory_swap_limit: number(self.memory_swap_limit, change.memory_swap_limit),
            oom_score_adj: number(self.oom_score_adj, change.oom_score_adj),
            cpuset_cpus: text(&self.cpuset_cpus, &change.cpuset_cpus),
            cpuset_mems: text(&self.cpuset_mems, &change.cpuset_mems),
            hugepage_limits,
            unified,
        }
    }
}

/// A limit of huge pages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugepageLimit {
    /// `2MB`, `1GB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// CRI `LinuxContainerSecurityContext`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SecuritySpec {
    /// Changes to the default capabilities.
    pub capabilities: CapabilitySpec,
    /// Everything is allowed.
    pub privileged: bool,
    /// Namespaces.
    pub namespaces: NamespaceSpec,
    /// SELinux labels.
    pub selinux: Option<SelinuxSpec>,
    /// User id.
    pub run_as_user: Option<i64>,
    /// User name, looked up in the image.
    pub run_as_username: String,
    /// Group id; refused without a user.
    pub run_as_group: Option<i64>,
    /// More groups.
    pub supplemental_groups: Vec<i64>,
    /// Whether the image's groups of the user count.
    pub supplemental_groups_policy: GroupsPolicy,
    /// The root is read-only.
    pub readonly_rootfs: bool,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
    /// Hidden paths: exactly these.
    pub masked_paths: Vec<String>,
    /// Read-only paths: exactly these.
    pub readonly_paths: Vec<String>,
    /// seccomp; `None` is unconfined, unless the deprecated string says otherwise.
    pub seccomp: Option<ProfileSpec>,
    /// AppArmor; `None` is unconfined, unless the deprecated string says otherwise.
    pub apparmor: Option<ProfileSpec>,
    /// The deprecated string form: counts when `seccomp` is `None`.
    pub seccomp_profile_path: String,
    /// The deprecated string form: counts when `apparmor` is `None`.
    pub apparmor_profile: String,
}

/// Changes to the default capabilities: names in any case, with or without `CAP_`, or `ALL`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CapabilitySpec {
    /// Added.
    pub add: Vec<String>,
    /// Dropped.
    pub drop: Vec<String>,
    /// Added to the ambient set too.
    pub add_ambient: Vec<String>,
}

/// Whether groups that the image gives to the user count. CRI `SupplementalGroupsPolicy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupsPolicy {
    /// They are added to the list.
    #[default]
    Merge,
    /// The list alone counts.
    Strict,
}

/// CRI `SELinuxOption`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SelinuxSpec {
    /// User.
    pub user: String,
    /// Role.
    pub role: String,
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Level.
    pub level: String,
}

/// CRI `SecurityProfile`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProfileSpec {
    /// The runtime's own.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A file or loaded profile of the node.
    Localhost(String),
}

/// An exec whose output is collected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecSyncRequest {
    /// Container id, or a unique prefix.
    pub container: String,
    /// What to run; never empty.
    pub cmd: Vec<String>,
    /// When everything that it started is killed; `None` is never.
    pub timeout: Option<Duration>,
}

/// What an exec said.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ExecSyncOutput {
    /// Standard output, at most [`crate::limits::EXEC_OUTPUT_MAX`] bytes.
    pub stdout: Vec<u8>,
    /// Standard error, at most [`crate::limits::EXEC_OUTPUT_MAX`] bytes.
    pub stderr: Vec<u8>,
    /// Exit status, or 128 + signal.
    pub exit_code: i32,
}

impl fmt::Debug for ExecSyncOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Output may hold secrets.
        f.debug_struct("ExecSyncOutput")
            .field("stdout_bytes", &self.stdout.len())
            .field("stderr_bytes", &self.stderr.len())
            .field("exit_code", &self.exit_code)
            .finish()
    }
}

fn digest<T: Serialize>(spec: &T) -> Digest {
    // A specification is maps with text keys, lists and text: it always serialises.
    Digest::of(&serde_json::to_vec(spec).unwrap_or_default())
}

/// Text where it is UTF-8, which it nearly always is; a list of numbers otherwise.
mod text_or_bytes {
    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &[u8], s: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(value) {
            Ok(text) => s.serialize_str(text),
            Err(_not_text) => value.serialize(s),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Text(String),
            Bytes(Vec<u8>),
        }
        Ok(match Either::deserialize(d)? {
            Either::Text(text) => text.into_bytes(),
            Either::Bytes(bytes) => bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_values_survive_a_record_byte_for_byte() {
        for value in [&b""[..], b"plain", b"\xff\xfe not text", "ü".as_bytes()] {
            let env = EnvVar {
                name: "A".to_owned(),
                value: value.to_vec(),
            };
            let json = serde_json::to_string(&env).unwrap();
            assert_eq!(serde_json::from_str::<EnvVar>(&json).unwrap(), env);
        }
    }

    #[test]
    fn the_digest_tells_configurations_apart_and_forgets_the_order_of_labels() {
        let mut a = PodSpec::default();
        let mut b = PodSpec::default();
        for (k, v) in [("x", "1"), ("y", "2")] {
            a.labels.insert(k.to_owned(), v.to_owned());
        }
        for (k, v) in [("y", "2"), ("x", "1")] {
            b.labels.insert(k.to_owned(), v.to_owned());
        }
        assert_eq!(a.digest(), b.digest());
        b.hostname = "other".to_owned();
        assert_ne!(a.digest(), b.digest());
    }

    #[test]
    fn debug_output_shows_no_environment_values() {
        let env = EnvVar {
            name: "TOKEN".to_owned(),
            value: b"hunter2".to_vec(),
        };
        assert!(!format!("{env:?}").contains("hunter2"));
    }
}
