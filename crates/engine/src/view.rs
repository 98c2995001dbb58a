//! What readers see: immutable pictures of pods and containers, published by the drivers.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wharf_types::{ContainerId, PodId};

use crate::spec::{ContainerSpec, PodSpec, ResourceSpec};

/// CRI `PodSandboxState`, and "cannot be said".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PodState {
    /// Containers may be created in it.
    Ready,
    /// It was stopped, or has lost its shim or its namespaces.
    NotReady,
    /// Its shim does not answer; CRI has no word for it and is told "not ready".
    Unknown,
}

/// A pod as it was when this picture was published.
#[derive(Debug, Clone, PartialEq)]
pub struct PodView {
    /// Its id.
    pub id: PodId,
    /// What was asked for.
    pub spec: Arc<PodSpec>,
    /// Its state.
    pub state: PodState,
    /// Where it is in its life, in the log's words ("ready", "detach network").
    pub stage: &'static str,
    /// When it was asked for, in nanoseconds since 1970.
    pub created_at_ns: i64,
    /// Its network.
    pub network: NetworkView,
    /// The shim's process id while it lives.
    pub shim_pid: Option<u32>,
    /// PID 1 of the shared PID namespace, if the pod has one.
    pub sandbox_pid: Option<u32>,
    /// Where the network namespace is bound; `None` with the host's network or when it is not bound.
    pub netns: Option<PathBuf>,
    /// Its cgroup, relative to the hierarchies' roots.
    pub cgroup: String,
    /// The host name that its containers see.
    pub hostname: String,
}

impl PodView {
    /// A process whose namespaces are the pod's: the shared PID namespace's first process, else the shim.
    pub fn pid(&self) -> Option<u32> {
        self.sandbox_pid.or(self.shim_pid)
    }
}

/// A pod's addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    /// The first address; empty with the host's network or with loopback only.
    pub ip: String,
    /// The others.
    pub additional_ips: Vec<String>,
}

/// CRI `ContainerState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Its program runs.
    Running,
    /// Its program has ended.
    Exited,
    /// Its shim does not answer.
    Unknown,
}

/// A container as it was when this picture was published.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerView {
    /// Its id.
    pub id: ContainerId,
    /// Its pod.
    pub pod: PodId,
    /// What was asked for.
    pub spec: Arc<ContainerSpec>,
    /// Its state.
    pub state: ContainerState,
    /// When it was created, in nanoseconds since 1970.
    pub created_at_ns: i64,
    /// When it was started; 0 before.
    pub started_at_ns: i64,
    /// When it ended; 0 before.
    pub finished_at_ns: i64,
    /// Exit status, or 128 + signal; 0 before.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `Unknown`…; empty before the end.
    pub reason: String,
    /// For people; empty when there is nothing to say.
    pub message: String,
    /// What creating it found out.
    pub facts: Arc<ContainerFacts>,
    /// Limits as they are now.
    pub resources: ResourceSpec,
    /// Process id of its init while it lives.
    pub pid: Option<u32>,
}

/// What creating a container found out; does not change afterwards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerFacts {
    /// Id of the image: its configuration's digest, `sha256:…`.
    pub image_id: String,
    /// A reference that people can read: what was asked for, a tag or a digest of the image; never empty.
    pub image_name: String,
    /// Absolute path of the log; `None` for none.
    pub log_path: Option<PathBuf>,
    /// Who it runs as.
    pub user: UserView,
    /// Number of the signal that stops it.
    pub stop_signal: i32,
    /// Key of its snapshot in the store.
    pub snapshot_key: String,
    /// Its cgroup, relative to the hierarchies' roots.
    pub cgroup: String,
    /// The runtime-spec `config.json` that it was made from.
    pub runtime_spec: Arc<str>,
}

/// Who a container's first process runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserView {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, the primary one included.
    pub groups: Vec<u32>,
}
