//! The engine's doors: one method a verb. Each hands the request to the pod's driver and waits; a caller
//! that goes away changes nothing, except that an exec whose output nobody waits for is killed.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use wharf_network::named::NamedNetworks;
use wharf_network::{NetworkState, Networks};
use wharf_types::{ContainerId, PodId};

use crate::board::{Board, Stage};
use crate::error::RequestError;
use crate::pods::Pods;
use crate::sockets::PodSocket;
use crate::spec::{
    ContainerSpec, ExecSyncOutput, ExecSyncRequest, PodMetadata, PodSpec, ResourceSpec,
};
use crate::stats::{ContainerUsage, PodMetrics, PodUsage, Statistics};
use crate::view::{ContainerView, PodView};

/// The engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) pods: Pods,
    board: Arc<Board>,
    pub(crate) named: Option<NamedNetworks>,
    /// `None` where pods get loopback only.
    networks: Option<Networks>,
    /// None over a world that is not a machine: nothing is measured there.
    statistics: Option<Statistics>,
}

impl Engine {
    /// Over pods that are already driven; see [`Engine::open`].
    pub(crate) fn new(pods: Pods, board: Arc<Board>) -> Self {
        Self {
            pods,
            board,
            named: None,
            networks: None,
            statistics: None,
        }
    }

    /// With networks that people make.
    pub(crate) fn with_named(self, named: NamedNetworks) -> Self {
        Self {
            named: Some(named),
            ..self
        }
    }

    /// With networks for pods.
    pub(crate) fn with_networks(self, networks: Networks) -> Self {
        Self {
            networks: Some(networks),
            ..self
        }
    }

    /// The pods' network and whether it is ready; `None` where pods get loopback only. Never waits.
    pub fn network(&self) -> Option<NetworkState> {
        self.networks.as_ref().map(Networks::state)
    }

    /// The addresses that pods of this node shall have, separated by commas; empty is fine.
    ///
    /// # Errors
    ///
    /// Not addresses with a prefix.
    pub fn set_pod_cidr(&self, cidr: &str) -> Result<(), RequestError> {
        let Some(networks) = &self.networks else {
            return Ok(());
        };
        networks
            .set_pod_cidr(cidr)
            .map_err(|e| RequestError::Invalid {
                field: "runtime_config.network_config.pod_cidr",
                reason: e.to_string(),
            })
    }

    /// The same, with what tells use.
    pub(crate) fn measured(self, statistics: Statistics) -> Self {
        Self {
            statistics: Some(statistics),
            ..self
        }
    }

    /// Starts a pod. The same key with the same configuration joins the start under way, or gets the
    /// id while the pod is ready.
    ///
    /// # Errors
    ///
    /// `Exists`, or the step that failed; then nothing is left.
    pub async fn run_pod(&self, spec: PodSpec) -> Result<PodId, RequestError> {
        self.pods.run(spec).await
    }

    /// Stops a pod and its containers; one that is unknown or stopped is fine.
    ///
    /// # Errors
    ///
    /// The step that failed; it is tried again in the background.
    pub async fn stop_pod(&self, id: &str) -> Result<(), RequestError> {
        self.pods.stop(id).await
    }

    /// Removes a pod with its containers, by force; one that is unknown is fine.
    ///
    /// # Errors
    ///
    /// The step that failed; it is tried again in the background.
    pub async fn remove_pod(&self, id: &str) -> Result<(), RequestError> {
        self.pods.remove(id).await
    }

    /// All pods, oldest first. Never waits.
    pub fn pods(&self) -> Vec<Arc<PodView>> {
        self.board.pods()
    }

    /// The pod with this id or unique beginning of one. Never waits.
    ///
    /// # Errors
    ///
    /// `NotFound`, `Ambiguous`.
    pub fn pod(&self, id: &str) -> Result<Arc<PodView>, RequestError> {
        self.board.pod(id)
    }

    /// Creates a container in a ready pod. The same key with the same configuration joins, or gets the
    /// id while the container was not started.
    ///
    /// # Errors
    ///
    /// `NotFound` for the pod, `Exists`, `State`, or the step that failed; then nothing is left.
    pub async fn create_container(
        &self,
        pod: &str,
        spec: ContainerSpec,
    ) -> Result<ContainerId, RequestError> {
        self.pods.create_container(pod, spec).await
    }

    /// Starts a created container; one that runs already is fine.
    ///
    /// # Errors
    ///
    /// `NotFound`, `State` when it has ended, or the step that failed: then it has ended.
    pub async fn start_container(&self, id: &str) -> Result<(), RequestError> {
        self.pods.start_container(id).await
    }

    /// Stops a container: its stop signal, then after `grace` SIGKILL to all its processes. Joins a stop
    /// under way, and the shorter grace counts. One that is unknown or does not run is fine.
    ///
    /// # Errors
    ///
    /// It could not be killed in bounded time.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), RequestError> {
        self.pods.stop_container(id, grace).await
    }

    /// Removes a container, by force; one that is unknown is fine.
    ///
    /// # Errors
    ///
    /// The step that failed; it is tried again in the background.
    pub async fn remove_container(&self, id: &str) -> Result<(), RequestError> {
        self.pods.remove_container(id).await
    }

    /// All containers, oldest first. Never waits.
    pub fn containers(&self) -> Vec<Arc<ContainerView>> {
        self.board.containers()
    }

    /// The container with this id or unique beginning of one. Never waits.
    ///
    /// # Errors
    ///
    /// `NotFound`, `Ambiguous`.
    pub fn container(&self, id: &str) -> Result<Arc<ContainerView>, RequestError> {
        self.board.container(id)
    }

    /// Runs a command in a running container and collects its output.
    ///
    /// # Errors
    ///
    /// `NotFound`, `State`, `ExecTimeout`, or the step that failed.
    pub async fn exec_sync(
        &self,
        request: ExecSyncRequest,
    ) -> Result<ExecSyncOutput, RequestError> {
        self.pods.exec_sync(request).await
    }

    /// Changes the limits of a created or running container: all or none. What is not set stays.
    ///
    /// # Errors
    ///
    /// `NotFound`, `State`, or the limit that cannot be set.
    pub async fn update_container(
        &self,
        id: &str,
        resources: ResourceSpec,
    ) -> Result<(), RequestError> {
        self.pods.update_container(id, resources).await
    }

    /// Continues a running container's log in a new file.
    ///
    /// # Errors
    ///
    /// `NotFound`, `State` when it does not run: then there is no new file.
    pub async fn reopen_container_log(&self, id: &str) -> Result<(), RequestError> {
        self.pods.reopen_log(id).await
    }

    /// What these containers use, in their order; one that is gone meanwhile is left out. Waits for no
    /// driver and no shim, and at most 20 ms for disks.
    pub async fn usage_of(&self, containers: Vec<Arc<ContainerView>>) -> Vec<ContainerUsage> {
        match &self.statistics {
            Some(statistics) => statistics.containers(containers).await,
            None => Vec::new(),
        }
    }

    /// What these pods and their containers use, as [`Engine::usage_of`] does.
    pub async fn usage_of_pods(&self, pods: Vec<Arc<PodView>>) -> Vec<PodUsage> {
        match &self.statistics {
            Some(statistics) => statistics.pods(pods).await,
            None => Vec::new(),
        }
    }

    /// What monitoring asks for, of these pods and their containers that have not ended.
    pub async fn metrics_of_pods(&self, pods: Vec<Arc<PodView>>) -> Vec<PodMetrics> {
        match &self.statistics {
            Some(statistics) => statistics.metrics(pods).await,
            None => Vec::new(),
        }
    }

    /// Opens a socket in a ready pod's network namespace; on the host's network that is the host's.
    ///
    /// # Errors
    ///
    /// `NotFound`, `State` when the pod is not ready, `Unsupported` when its shim is of a version that
    /// opens none, or a step: what the kernel said is its source.
    pub async fn open_in_pod(&self, pod: &str, socket: PodSocket) -> Result<OwnedFd, RequestError> {
        self.pods.open_in_pod(pod, socket).await
    }

    /// The stage of a pod's start that is under way, and since when; `None` when none is. Never waits.
    pub fn pod_stage(&self, metadata: &PodMetadata) -> Option<Stage> {
        self.pods.stage(metadata)
    }

    /// The stage that a pod or container is at, by full id. Never waits.
    pub fn stage(&self, id: &str) -> Option<Stage> {
        self.board.stage(id)
    }
}
