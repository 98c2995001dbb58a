//! `runtime.v1.RuntimeService`: each RPC is a conversion, one call of the engine, a conversion.
//!
//! No state changes here: the engine's drivers do the work, so a client may go away at any time.

use std::sync::{Arc, OnceLock};

use tonic::{Request, Response, Status};
use wharf_api::v1;
use wharf_api::v1::runtime_service_server::RuntimeService;
use wharf_engine::{Engine, RequestError};

use crate::code::{not_built, status};
use crate::convert::field::required;
use crate::convert::{container, metrics, pod, resources, stats, status as container_status};
use crate::node::NodeFacts;
use crate::portion::{Messages, portions};
use crate::stage::Stage;
use crate::{info, node};

/// What a client gets.
type Answer<T> = Result<Response<T>, Status>;

/// The door to the engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RuntimeDoor {
    engine: Arc<OnceLock<Engine>>,
    node: Arc<NodeFacts>,
}

impl RuntimeDoor {
    /// A door that answers UNAVAILABLE, but for Version, until [`RuntimeDoor::open`].
    pub fn new(node: NodeFacts) -> Self {
        Self {
            engine: Arc::default(),
            node: Arc::new(node),
        }
    }

    /// Begins to serve. Counts once.
    pub fn open(&self, engine: Engine) {
        drop(self.engine.set(engine));
    }

    fn engine(&self) -> Result<&Engine, Status> {
        self.engine.get().ok_or_else(|| {
            Status::unavailable("wharf is starting: it looks for the containers that still run")
        })
    }

    /// The engine for a request about a pod or container, which is told what it waits for: `what` it
    /// asked for, and where the pod or container is.
    fn engine_for<T>(
        &self,
        request: &Request<T>,
        what: &'static str,
        id: &str,
    ) -> Result<&Engine, Status> {
        let engine = self.engine()?;
        let (at, id) = (engine.clone(), id.to_owned());
        Stage::of(request).tell(move || {
            let state = waits_for(&at, &id);
            Some(state.map_or_else(|| what.to_owned(), |state| format!("{what}; {state}")))
        });
        Ok(engine)
    }
}

/// Lists that are answered whole or in portions.
impl RuntimeDoor {
    async fn containers_stats(
        &self,
        filter: Option<&v1::ContainerStatsFilter>,
    ) -> Result<Vec<v1::ContainerStats>, Status> {
        let engine = self.engine()?;
        let some = stats::containers(filter, engine.containers());
        let usage = engine.usage_of(some).await;
        Ok(usage.iter().map(stats::container).collect())
    }

    async fn pods_stats(
        &self,
        filter: Option<&v1::PodSandboxStatsFilter>,
    ) -> Result<Vec<v1::PodSandboxStats>, Status> {
        let engine = self.engine()?;
        let some = stats::pods(filter, engine.pods());
        let usage = engine.usage_of_pods(some).await;
        Ok(usage.iter().map(stats::pod).collect())
    }

    async fn pods_metrics(&self) -> Result<Vec<v1::PodSandboxMetrics>, Status> {
        let engine = self.engine()?;
        let some = stats::pods(None, engine.pods());
        let measured = engine.metrics_of_pods(some).await;
        Ok(measured.iter().map(metrics::pod).collect())
    }
}

/// What a pod or container is at: its own stage, or its pod's.
fn waits_for(engine: &Engine, id: &str) -> Option<String> {
    if let Ok(container) = engine.container(id) {
        let stage = engine.stage(container.id.as_str());
        let of_pod = || engine.stage(container.pod.as_str());
        return stage
            .map(|stage| format!("container {}", words(stage)))
            .or_else(|| of_pod().map(|stage| format!("pod {}", words(stage))));
    }
    let stage = engine.stage(engine.pod(id).ok()?.id.as_str());
    stage.map(|stage| format!("pod {}", words(stage)))
}

fn words(stage: wharf_engine::board::Stage) -> String {
    let seconds = stage.since.elapsed().as_secs();
    format!("{} for {seconds} s", stage.name)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: RequestError) -> Status {
    status(error.kind(), &error)
}

#[tonic::async_trait]
impl RuntimeService for RuntimeDoor {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Ok(Response::new(self.node.version()))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        let network = self.engine()?.network();
        let verbose = request.get_ref().verbose;
        Ok(Response::new(self.node.status(network.as_ref(), verbose)))
    }

    async fn runtime_config(
        &self,
        _: Request<v1::RuntimeConfigRequest>,
    ) -> Answer<v1::RuntimeConfigResponse> {
        Ok(Response::new(node::runtime_config()))
    }

    /// A pod CIDR is what our own default network uses, and nothing else.
    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        let config = request.into_inner().runtime_config.unwrap_or_default();
        if let Some(network) = config.network_config {
            let set = self.engine()?.set_pod_cidr(&network.pod_cidr);
            set.map_err(failed)?;
        }
        Ok(Response::new(v1::UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<v1::RunPodSandboxResponse> {
        let engine = self.engine()?;
        let stage = Stage::of(&request);
        let spec = pod::spec(request.into_inner())?;
        let (at, key) = (engine.clone(), spec.metadata.clone());
        stage.tell(move || at.pod_stage(&key).map(words));
        let id = engine.run_pod(spec).await.map_err(failed)?;
        let pod_sandbox_id = id.to_string();
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        let id = &request.get_ref().pod_sandbox_id;
        let engine = self.engine_for(&request, "stop pod", id)?;
        engine.stop_pod(id).await.map_err(failed)?;
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        let id = &request.get_ref().pod_sandbox_id;
        let engine = self.engine_for(&request, "remove pod", id)?;
        engine.remove_pod(id).await.map_err(failed)?;
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let view = self
            .engine()?
            .pod(&request.pod_sandbox_id)
            .map_err(failed)?;
        Ok(Response::new(v1::PodSandboxStatusResponse {
            status: Some(pod::status(&view)),
            info: if request.verbose {
                info::pod(&view)
            } else {
                Default::default()
            },
            // Only kubelets that live on events read these, and they need GetContainerEvents.
            containers_statuses: Vec::new(),
            timestamp: 0,
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        let pods = self.engine()?.pods();
        let pods = pod::filtered(request.get_ref().filter.as_ref(), &pods)?;
        let items = pods.into_iter().map(pod::item).collect();
        Ok(Response::new(v1::ListPodSandboxResponse { items }))
    }

    type StreamPodSandboxesStream = Messages<v1::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let pods = self.engine()?.pods();
        let pods = pod::filtered(request.get_ref().filter.as_ref(), &pods)?;
        let items: Vec<_> = pods.into_iter().map(pod::item).collect();
        let message = |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes };
        Ok(Response::new(portions(&items, message)))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        let pod = &request.get_ref().pod_sandbox_id;
        let engine = self.engine_for(&request, "create container", pod)?;
        let request = request.into_inner();
        let spec = container::spec(request.config)?;
        let made = engine.create_container(&request.pod_sandbox_id, spec).await;
        let container_id = made.map_err(failed)?.to_string();
        Ok(Response::new(v1::CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        let id = &request.get_ref().container_id;
        let engine = self.engine_for(&request, "start container", id)?;
        engine.start_container(id).await.map_err(failed)?;
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Answer<v1::StopContainerResponse> {
        let id = &request.get_ref().container_id;
        let engine = self.engine_for(&request, "stop container", id)?;
        let grace = container::seconds("timeout", request.get_ref().timeout)?;
        engine.stop_container(id, grace).await.map_err(failed)?;
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        let id = &request.get_ref().container_id;
        let engine = self.engine_for(&request, "remove container", id)?;
        engine.remove_container(id).await.map_err(failed)?;
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        let request = request.into_inner();
        let view = self
            .engine()?
            .container(&request.container_id)
            .map_err(failed)?;
        Ok(Response::new(v1::ContainerStatusResponse {
            status: Some(container_status::status(&view)),
            info: if request.verbose {
                info::container(&view)
            } else {
                Default::default()
            },
        }))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        let all = self.engine()?.containers();
        let some = container_status::filtered(request.get_ref().filter.as_ref(), &all)?;
        let containers = some.into_iter().map(container_status::item).collect();
        Ok(Response::new(v1::ListContainersResponse { containers }))
    }

    type StreamContainersStream = Messages<v1::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let all = self.engine()?.containers();
        let some = container_status::filtered(request.get_ref().filter.as_ref(), &all)?;
        let items: Vec<_> = some.into_iter().map(container_status::item).collect();
        let message = |containers| v1::StreamContainersResponse { containers };
        Ok(Response::new(portions(&items, message)))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        let id = &request.get_ref().container_id;
        let engine = self.engine_for(&request, "update limits", id)?;
        let request = request.into_inner();
        let limits = resources::checked(&required("linux", request.linux)?)?;
        let done = engine.update_container(&request.container_id, limits).await;
        done.map_err(failed)?;
        Ok(Response::new(v1::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        let id = &request.get_ref().container_id;
        let engine = self.engine_for(&request, "reopen log", id)?;
        engine.reopen_container_log(id).await.map_err(failed)?;
        Ok(Response::new(v1::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(
        &self,
        request: Request<v1::ExecSyncRequest>,
    ) -> Answer<v1::ExecSyncResponse> {
        let id = &request.get_ref().container_id;
        let engine = self.engine_for(&request, "exec", id)?;
        let exec = container::exec_sync(request.into_inner())?;
        let output = engine.exec_sync(exec).await.map_err(failed)?;
        Ok(Response::new(v1::ExecSyncResponse {
            stdout: output.stdout,
            stderr: output.stderr,
            exit_code: output.exit_code,
        }))
    }

    async fn exec(&self, _: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        Err(not_built("streaming exec"))
    }

    async fn attach(&self, _: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        Err(not_built("attach"))
    }

    async fn port_forward(
        &self,
        _: Request<v1::PortForwardRequest>,
    ) -> Answer<v1::PortForwardResponse> {
        Err(not_built("port forwarding"))
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Answer<v1::ContainerStatsResponse> {
        let engine = self.engine()?;
        let id = &request.get_ref().container_id;
        let view = engine.container(id).map_err(failed)?;
        let usage = engine.usage_of(vec![view]).await;
        let stats = usage.first().map(stats::container);
        Ok(Response::new(v1::ContainerStatsResponse { stats }))
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        let stats = self.containers_stats(request.get_ref().filter.as_ref());
        let stats = stats.await?;
        Ok(Response::new(v1::ListContainerStatsResponse { stats }))
    }

    type StreamContainerStatsStream = Messages<v1::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let stats = self.containers_stats(request.get_ref().filter.as_ref());
        let message = |container_stats| v1::StreamContainerStatsResponse { container_stats };
        Ok(Response::new(portions(&stats.await?, message)))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Answer<v1::PodSandboxStatsResponse> {
        let engine = self.engine()?;
        let id = &request.get_ref().pod_sandbox_id;
        let view = engine.pod(id).map_err(failed)?;
        let usage = engine.usage_of_pods(vec![view]).await;
        let stats = usage.first().map(stats::pod);
        Ok(Response::new(v1::PodSandboxStatsResponse { stats }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        let stats = self.pods_stats(request.get_ref().filter.as_ref()).await?;
        Ok(Response::new(v1::ListPodSandboxStatsResponse { stats }))
    }

    type StreamPodSandboxStatsStream = Messages<v1::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let stats = self.pods_stats(request.get_ref().filter.as_ref()).await?;
        let message = |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats };
        Ok(Response::new(portions(&stats, message)))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        let descriptors = metrics::descriptors();
        Ok(Response::new(v1::ListMetricDescriptorsResponse {
            descriptors,
        }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        let pod_metrics = self.pods_metrics().await?;
        Ok(Response::new(v1::ListPodSandboxMetricsResponse {
            pod_metrics,
        }))
    }

    type StreamPodSandboxMetricsStream = Messages<v1::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let metrics = self.pods_metrics().await?;
        let message = |pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics,
        };
        Ok(Response::new(portions(&metrics, message)))
    }

    type GetContainerEventsStream = Messages<v1::ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        Err(not_built("the stream of container events"))
    }

    async fn update_pod_sandbox_resources(
        &self,
        _: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        Err(not_built("changing the resources of a pod"))
    }

    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Answer<v1::CheckpointContainerResponse> {
        Err(not_built("checkpointing a container"))
    }

    async fn checkpoint_pod(
        &self,
        _: Request<v1::CheckpointPodRequest>,
    ) -> Answer<v1::CheckpointPodResponse> {
        Err(not_built("checkpointing a pod"))
    }

    async fn restore_pod(
        &self,
        _: Request<v1::RestorePodRequest>,
    ) -> Answer<v1::RestorePodResponse> {
        Err(not_built("restoring a pod"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_types::Kind;

    #[test]
    fn a_refusal_of_the_engine_keeps_its_class_and_words() {
        let error = RequestError::NotFound {
            what: "container",
            id: "abc".to_owned(),
        };
        assert_eq!(error.kind(), Kind::NotFound);
        let status = failed(error);
        assert_eq!(status.code(), tonic::Code::NotFound);
        assert!(status.message().contains("abc"));
    }
}
