//! A CRI client for tests and benchmarks: calls wait for their answer, messages are those of CRI.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use wharf_api::v1::image_service_client::ImageServiceClient;
use wharf_api::v1::runtime_service_client::RuntimeServiceClient;
use wharf_api::v1::{
    ContainerConfig, ContainerMetadata, ContainerStats, ContainerStatus, CreateContainerRequest,
    ExecSyncRequest, ExecSyncResponse, ImageSpec, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    ListContainerStatsRequest, ListPodSandboxMetricsRequest, ListPodSandboxRequest,
    ListPodSandboxStatsRequest, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, PodSandboxMetrics, PodSandboxStats, PullImageRequest,
    RemoveContainerRequest, RemoveImageRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    SecurityProfile, StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
    VersionRequest, VersionResponse, security_profile,
};

/// What a call may take unless the caller sets another deadline.
const CALL_LIMIT: Duration = Duration::from_secs(120);

/// A connection to a CRI socket.
pub struct Cri {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
}

impl std::fmt::Debug for Cri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cri")
    }
}

impl Cri {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let path = path.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move {
                tokio::net::UnixStream::connect(path)
                    .await
                    .map(TokioIo::new)
            }
        });
        let endpoint = Endpoint::from_static("http://localhost").timeout(CALL_LIMIT);
        let channel = runtime
            .block_on(endpoint.connect_with_connector(connector))
            .map_err(io::Error::other)?;
        Ok(Self { runtime, channel })
    }

    /// The runtime service, for calls that have no method here; see [`Cri::wait`].
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
            .max_decoding_message_size(wharf_api::MESSAGE_MAX)
    }

    /// The image service.
    pub fn image(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
    }

    /// Waits for a call: `cri.wait(cri.runtime().version(VersionRequest::default()))`.
    ///
    /// # Errors
    /// The answer's status.
    pub fn wait<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        self.runtime.block_on(call).map(Response::into_inner)
    }

    /// Waits for several calls at once and gives the answers in the order of the calls.
    pub fn wait_all<T: Send + 'static>(
        &self,
        calls: Vec<impl Future<Output = Result<Response<T>, Status>> + Send + 'static>,
    ) -> Vec<Result<T, Status>> {
        self.runtime.block_on(async {
            let tasks: Vec<_> = calls.into_iter().map(tokio::spawn).collect();
            let mut answers = Vec::new();
            for task in tasks {
                let answer = task
                    .await
                    .unwrap_or_else(|e| Err(Status::internal(e.to_string())));
                answers.push(answer.map(Response::into_inner));
            }
            answers
        })
    }

    /// `Version`.
    ///
    /// # Errors
    /// The answer's status.
    pub fn version(&self) -> Result<VersionResponse, Status> {
        self.wait(self.runtime().version(VersionRequest::default()))
    }

    /// `PullImage`; gives the image's reference.
    ///
    /// # Errors
    /// The answer's status.
    pub fn pull(&self, image: &str) -> Result<String, Status> {
        let request = PullImageRequest {
            image: Some(spec(image)),
            ..Default::default()
        };
        self.wait(self.image().pull_image(request))
            .map(|r| r.image_ref)
    }

    /// `RemoveImage`.
    ///
    /// # Errors
    /// The answer's status.
    pub fn remove_image(&self, image: &str) -> Result<(), Status> {
        let request = RemoveImageRequest {
            image: Some(spec(image)),
        };
        self.wait(self.image().remove_image(request)).map(drop)
    }

    /// `RunPodSandbox` with this runtime handler (empty: the default); gives the id.
    ///
    /// # Errors
    /// The answer's status.
    pub fn run_pod(&self, config: &PodSandboxConfig, handler: &str) -> Result<String, Status> {
        let (config, runtime_handler) = (Some(config.clone()), handler.into());
        let request = RunPodSandboxRequest {
            config,
            runtime_handler,
        };
        self.wait(self.runtime().run_pod_sandbox(request))
            .map(|r| r.pod_sandbox_id)
    }

    /// `CreateContainer`; gives the id.
    ///
    /// # Errors
    /// The answer's status.
    pub fn create(
        &self,
        pod: &str,
        config: &ContainerConfig,
        pod_config: &PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config.clone()),
            sandbox_config: Some(pod_config.clone()),
        };
        self.wait(self.runtime().create_container(request))
            .map(|r| r.container_id)
    }

    /// `StartContainer`.
    ///
    /// # Errors
    /// The answer's status.
    pub fn start(&self, container: &str) -> Result<(), Status> {
        let request = StartContainerRequest {
            container_id: container.into(),
        };
        self.wait(self.runtime().start_container(request)).map(drop)
    }

    /// `ExecSync`; `timeout` in seconds, 0 for none.
    ///
    /// # Errors
    /// The answer's status.
    pub fn exec(
        &self,
        container: &str,
        cmd: &[&str],
        timeout: i64,
    ) -> Result<ExecSyncResponse, Status> {
        let cmd = cmd.iter().map(|w| String::from(*w)).collect();
        let request = ExecSyncRequest {
            container_id: container.into(),
            cmd,
            timeout,
        };
        self.wait(self.runtime().exec_sync(request))
    }

    /// `ContainerStatus` without verbose information.
    ///
    /// # Errors
    /// The answer's status, or one of ours where the answer has no status.
    pub fn container_status(&self, container: &str) -> Result<ContainerStatus, Status> {
        let container_id = container.into();
        let request = wharf_api::v1::ContainerStatusRequest {
            container_id,
            verbose: false,
        };
        let answer = self.wait(self.runtime().container_status(request))?;
        answer
            .status
            .ok_or_else(|| Status::internal("an answer without a status"))
    }

    /// `ListContainerStats` of all.
    ///
    /// # Errors
    /// The answer's status.
    pub fn container_stats(&self) -> Result<Vec<ContainerStats>, Status> {
        let request = ListContainerStatsRequest::default();
        self.wait(self.runtime().list_container_stats(request))
            .map(|r| r.stats)
    }

    /// `ListPodSandboxStats` of all.
    ///
    /// # Errors
    /// The answer's status.
    pub fn pod_stats(&self) -> Result<Vec<PodSandboxStats>, Status> {
        let request = ListPodSandboxStatsRequest::default();
        self.wait(self.runtime().list_pod_sandbox_stats(request))
            .map(|r| r.stats)
    }

    /// `ListPodSandboxMetrics`.
    ///
    /// # Errors
    /// The answer's status.
    pub fn pod_metrics(&self) -> Result<Vec<PodSandboxMetrics>, Status> {
        let request = ListPodSandboxMetricsRequest::default();
        self.wait(self.runtime().list_pod_sandbox_metrics(request))
            .map(|r| r.pod_metrics)
    }

    /// `StopContainer` with this grace in seconds.
    ///
    /// # Errors
    /// The answer's status.
    pub fn stop(&self, container: &str, timeout: i64) -> Result<(), Status> {
        let request = StopContainerRequest {
            container_id: container.into(),
            timeout,
        };
        self.wait(self.runtime().stop_container(request)).map(drop)
    }

    /// `RemoveContainer`.
    ///
    /// # Errors
    /// The answer's status.
    pub fn remove(&self, container: &str) -> Result<(), Status> {
        let request = RemoveContainerRequest {
            container_id: container.into(),
        };
        self.wait(self.runtime().remove_container(request))
            .map(drop)
    }

    /// `StopPodSandbox`.
    ///
    /// # Errors
    /// The answer's status.
    pub fn stop_pod(&self, pod: &str) -> Result<(), Status> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: pod.into(),
        };
        self.wait(self.runtime().stop_pod_sandbox(request))
            .map(drop)
    }

    /// `RemovePodSandbox`.
    ///
    /// # Errors
    /// The answer's status.
    pub fn remove_pod(&self, pod: &str) -> Result<(), Status> {
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: pod.into(),
        };
        self.wait(self.runtime().remove_pod_sandbox(request))
            .map(drop)
    }

    /// Ids of all pods.
    ///
    /// # Errors
    /// The answer's status.
    pub fn pods(&self) -> Result<Vec<String>, Status> {
        let answer = self.wait(
            self.runtime()
                .list_pod_sandbox(ListPodSandboxRequest::default()),
        )?;
        Ok(answer.items.into_iter().map(|p| p.id).collect())
    }

    /// Ids of all containers.
    ///
    /// # Errors
    /// The answer's status.
    pub fn containers(&self) -> Result<Vec<String>, Status> {
        let request = wharf_api::v1::ListContainersRequest::default();
        let answer = self.wait(self.runtime().list_containers(request))?;
        Ok(answer.containers.into_iter().map(|c| c.id).collect())
    }

    /// Stops and removes every pod. A pod that does not go does not keep the others.
    ///
    /// # Errors
    /// The last status that was not OK.
    pub fn remove_all_pods(&self) -> Result<(), Status> {
        let mut result = Ok(());
        for pod in self.pods()? {
            let stopped = self.limited(self.runtime().stop_pod_sandbox(limit(
                StopPodSandboxRequest {
                    pod_sandbox_id: pod.clone(),
                },
            )));
            let removed = self.limited(self.runtime().remove_pod_sandbox(limit(
                RemovePodSandboxRequest {
                    pod_sandbox_id: pod,
                },
            )));
            result = result.and(stopped).and(removed);
        }
        result
    }

    fn limited<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<(), Status> {
        self.wait(call).map(drop)
    }
}

/// What the removal of one pod may take at the end of a test.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(20);

fn limit<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CLEAN_UP_LIMIT);
    request
}

/// The image `name`.
pub fn spec(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.into(),
        ..Default::default()
    }
}

/// What kubelet sends for `procMount: Default` (kubernetes pkg/securitycontext).
const MASKED: [&str; 8] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|w| String::from(*w)).collect()
}

fn runtime_default() -> SecurityProfile {
    let profile_type = security_profile::ProfileType::RuntimeDefault.into();
    SecurityProfile {
        profile_type,
        localhost_ref: String::new(),
    }
}

/// PID namespaces as kubelet asks for them: one for each container.
fn namespaces(network: NamespaceMode) -> NamespaceOption {
    NamespaceOption {
        network: network.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

/// A pod called `name` (its uid too) in the namespace `test`, with its own network namespace.
pub fn pod(name: &str, log_directory: &Path) -> PodSandboxConfig {
    let context = LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(NamespaceMode::Pod)),
        seccomp: Some(runtime_default()),
        ..Default::default()
    };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid: name.into(),
            namespace: "test".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        log_directory: log_directory.display().to_string(),
        labels: HashMap::from([("made-by".into(), "testkit".into())]),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(context),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The same pod in the daemon's network namespace; its cgroup below `cgroup_parent`.
pub fn host_network_pod(name: &str, log_directory: &Path, cgroup_parent: &str) -> PodSandboxConfig {
    let mut config = pod(name, log_directory);
    config.hostname.clear();
    if let Some(linux) = &mut config.linux {
        linux.cgroup_parent = cgroup_parent.into();
        if let Some(context) = &mut linux.security_context {
            context.namespace_options = Some(namespaces(NamespaceMode::Node));
        }
    }
    config
}

/// A container called `name` of `image` for a pod of [`pod`], its log in `NAME.log`.
pub fn container(name: &str, image: &str, command: &[&str]) -> ContainerConfig {
    let context = LinuxContainerSecurityContext {
        namespace_options: Some(namespaces(NamespaceMode::Pod)),
        seccomp: Some(runtime_default()),
        masked_paths: words(&MASKED),
        readonly_paths: words(&READ_ONLY),
        ..Default::default()
    };
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name.into(),
            attempt: 0,
        }),
        image: Some(spec(image)),
        command: words(command),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            security_context: Some(context),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The same for a pod of [`host_network_pod`].
pub fn host_network_container(name: &str, image: &str, command: &[&str]) -> ContainerConfig {
    let mut config = container(name, image, command);
    let context = config
        .linux
        .as_mut()
        .and_then(|l| l.security_context.as_mut());
    if let Some(context) = context {
        context.namespace_options = Some(namespaces(NamespaceMode::Node));
    }
    config
}
