//! What a client meets at the socket before and without an engine: readiness, refusals, deadlines.
#![cfg(test)]

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use wharf_api::v1;
use wharf_api::v1::image_service_client::ImageServiceClient;
use wharf_api::v1::runtime_service_client::RuntimeServiceClient;
use wharf_cri::{ImageDoor, NodeFacts, RuntimeDoor, serve};
use wharf_image::{Images, ImagesConfig};
use wharf_registry::{Client, ClientConfig};
use wharf_store::{Durability, Store};

/// A served pair of doors in a directory that goes with it.
struct Node {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<Result<(), wharf_cri::ServeError>>,
    path: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

async fn node() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("root"), Durability::None).unwrap();
    let client = Client::new(ClientConfig {
        certs_d: Some(certs_d(dir.path())),
        user_agent: "wharf-test".to_owned(),
    })
    .unwrap();
    let images = Images::new(store.clone(), client, ImagesConfig::default());
    let runtime = RuntimeDoor::new(NodeFacts {
        version: "1.2.3",
        config: serde_json::json!({"stateDir": "/run/wharf"}),
    });
    let path = dir.path().join("sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (stop, stopped) = oneshot::channel();
    let served = tokio::spawn(serve(
        listener,
        runtime,
        ImageDoor::new(images, store),
        async {
            drop(stopped.await);
        },
    ));
    let uri = format!("unix://{}", path.display());
    let channel = Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
    Node {
        runtime: RuntimeServiceClient::new(channel.clone()),
        images: ImageServiceClient::new(channel),
        stop,
        served,
        path,
        _dir: dir,
    }
}

/// Every registry is one that accepts connections and says nothing.
fn certs_d(dir: &Path) -> std::path::PathBuf {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    // Connections wait in the backlog of a listener that nobody serves until the test ends.
    drop(std::thread::spawn(move || {
        let held: Vec<_> = silent.incoming().collect();
        drop(held);
    }));
    let certs = dir.join("certs.d");
    std::fs::create_dir_all(certs.join("_default")).unwrap();
    let text =
        format!("server = \"http://127.0.0.1:{port}\"\n[host.\"http://127.0.0.1:{port}\"]\n");
    std::fs::write(certs.join("_default/hosts.toml"), text).unwrap();
    certs
}

fn image(name: &str) -> Option<v1::ImageSpec> {
    Some(v1::ImageSpec {
        image: name.to_owned(),
        ..Default::default()
    })
}

#[track_caller]
fn is<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.expect_err(text);
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(text), "{status}");
}

#[tokio::test]
async fn until_the_engine_is_there_version_answers_and_the_rest_is_unavailable() {
    let mut node = node().await;
    let version = node.runtime.version(v1::VersionRequest::default()).await;
    let version = version.unwrap().into_inner();
    assert_eq!(version.runtime_name, "wharf");
    assert_eq!(version.runtime_version, "1.2.3");
    assert!(!version.version.is_empty() && !version.runtime_api_version.is_empty());
    let list = node
        .runtime
        .list_containers(v1::ListContainersRequest::default())
        .await;
    is(list, Code::Unavailable, "starting");
    let status = node.runtime.status(v1::StatusRequest::default()).await;
    is(status, Code::Unavailable, "starting");
}

/// Calls each method with an empty request.
macro_rules! not_built {
    ($client:expr; $($method:ident($request:ident)),* $(,)?) => {$(
        let answer = $client.$method(v1::$request::default()).await;
        is(answer, Code::Unimplemented, "not supported yet");
    )*};
}

#[tokio::test]
async fn what_is_not_built_says_so() {
    let mut node = node().await;
    not_built!(node.runtime;
        exec(ExecRequest),
        attach(AttachRequest),
        port_forward(PortForwardRequest),
        get_container_events(GetEventsRequest),
        update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest),
        checkpoint_container(CheckpointContainerRequest),
        checkpoint_pod(CheckpointPodRequest),
        restore_pod(RestorePodRequest),
    );
}

#[tokio::test]
async fn an_absent_image_is_an_answer_and_a_bad_name_an_invalid_argument() {
    let mut node = node().await;
    let ask = |image| v1::ImageStatusRequest {
        image,
        verbose: true,
    };
    let status = node
        .images
        .image_status(ask(image("busybox")))
        .await
        .unwrap();
    assert_eq!(status.into_inner().image, None);
    is(
        node.images.image_status(ask(None)).await,
        Code::InvalidArgument,
        "image: is missing",
    );
    let remove = v1::RemoveImageRequest {
        image: image("busybox"),
    };
    node.images.remove_image(remove).await.unwrap();
    let pull = |name: &str| v1::PullImageRequest {
        image: image(name),
        ..Default::default()
    };
    is(
        node.images.pull_image(pull("Bad Name")).await,
        Code::InvalidArgument,
        "image.image: ",
    );
    let long = "a b".repeat(1 << 18);
    is(
        node.images.pull_image(pull(&long)).await,
        Code::InvalidArgument,
        "…",
    );
    let list = node
        .images
        .list_images(v1::ListImagesRequest::default())
        .await
        .unwrap();
    assert!(list.into_inner().images.is_empty());
    let mut stream = node
        .images
        .stream_images(v1::StreamImagesRequest::default())
        .await
        .unwrap();
    assert_eq!(stream.get_mut().message().await.unwrap(), None);
    let space = node
        .images
        .image_fs_info(v1::ImageFsInfoRequest::default())
        .await
        .unwrap();
    let space = space.into_inner();
    let place = |used: &v1::FilesystemUsage| used.fs_id.clone().unwrap().mountpoint;
    assert_eq!(
        place(&space.image_filesystems[0]),
        place(&space.container_filesystems[0])
    );
    assert!(Path::new(&place(&space.image_filesystems[0])).is_dir());
}

/// The bare protocol. tonic's channel would watch the clock as well and answer CANCELLED by itself.
#[derive(Clone)]
struct Patient(hyper::client::conn::http2::SendRequest<tonic::body::Body>);

impl tower::Service<http::Request<tonic::body::Body>> for Patient {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

async fn patient(path: &Path) -> ImageServiceClient<Patient> {
    let stream = tokio::net::UnixStream::connect(path).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .unwrap();
    drop(tokio::spawn(connection));
    ImageServiceClient::with_origin(Patient(sender), "http://wharf".parse().unwrap())
}

#[tokio::test]
async fn a_passed_deadline_is_answered_with_the_stage_and_never_as_cancelled() {
    let node = node().await;
    let mut images = patient(&node.path).await;
    for limit in ["1m", "5m", "40m", "400000u"] {
        let mut pull = Request::new(v1::PullImageRequest {
            image: image("registry.test/slow:1"),
            ..Default::default()
        });
        pull.metadata_mut()
            .insert("grpc-timeout", limit.parse().unwrap());
        let answer = images.pull_image(pull).await;
        is(
            answer,
            Code::DeadlineExceeded,
            "pulling registry.test/slow:1",
        );
    }
}

#[tokio::test]
async fn a_stop_lets_the_request_in_flight_finish() {
    let node = node().await;
    let mut pull = Request::new(v1::PullImageRequest {
        image: image("registry.test/slow:1"),
        ..Default::default()
    });
    pull.metadata_mut()
        .insert("grpc-timeout", "300m".parse().unwrap());
    let mut images = patient(&node.path).await;
    let mut again = images.clone();
    let pulling = tokio::spawn(async move { images.pull_image(pull).await });
    // The server has the pull when it answers what was sent after it on the same connection.
    tokio::task::yield_now().await;
    again
        .image_fs_info(v1::ImageFsInfoRequest::default())
        .await
        .unwrap();
    node.stop.send(()).unwrap();
    is(pulling.await.unwrap(), Code::DeadlineExceeded, "pulling");
    drop((node.runtime, node.images, again));
    let served = tokio::time::timeout(Duration::from_secs(30), node.served).await;
    served.expect("serve returns").unwrap().unwrap();
}
