//! Connections into pods: an engine in the place of the daemon takes the pods over, with their real shims,
//! and opens sockets inside them.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wharf_engine::config::{CniConfig, EngineConfig, NetworkMode};
use wharf_engine::sockets::{JoinNetwork, PodSocket, Transport};
use wharf_engine::spec::ExecSyncRequest;
use wharf_engine::{Engine, RequestError};
use wharf_image::{Images, ImagesConfig};
use wharf_network::named::{CreateNetwork, NamedError};
use wharf_registry::{Client, ClientConfig};
use wharf_store::{Durability, Store};
use wharf_testkit::node::Node;
use wharf_testkit::wait;
use wharf_types::Kind;

use crate::scene::{Pod, SOON, Scene, pod_security, shell};

async fn engine(node: &Node) -> Engine {
    let store = Store::open(&node.root(), Durability::default()).unwrap();
    let client = Client::new(ClientConfig {
        certs_d: None,
        user_agent: "test".to_owned(),
    });
    let images = Images::new(store.clone(), client.unwrap(), ImagesConfig::default());
    let config = EngineConfig {
        root: node.root(),
        state: node.state(),
        cgroup_parent: node.name().to_owned(),
        shim: PathBuf::from("/nonexistent"),
        shim_open_files: None,
        network: NetworkMode::None,
        cni: CniConfig {
            config_dir: node.net_d(),
            bin_dirs: vec![node.cni_bin()],
            builtin: true,
            default_network: false,
            grace: std::time::Duration::ZERO,
            helper: PathBuf::from(env!("CARGO_BIN_EXE_wharf")),
        },
        netns_dir: None,
    };
    Engine::open(config, images, store).await.unwrap()
}

/// A server of one file on port 8080 of one address, which tells when it is there.
fn server(name: &str, at: &str) -> wharf_api::v1::ContainerConfig {
    let line = format!(
        "mkdir /web; echo 'there and back' > /web/file; httpd -f -h /web -p '{at}:8080' &
         while ! netstat -ltn | grep -q :8080; do :; done; echo up; wait"
    );
    shell(name, &line)
}

async fn serves(mut stream: TcpStream) {
    stream
        .write_all(b"GET /file HTTP/1.0\r\n\r\n")
        .await
        .unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    assert!(said.ends_with("there and back\n"), "{said}");
}

/// The class of a failure, and all that it says.
trait Why: std::error::Error + Sized {
    fn class(&self) -> Kind;
}

impl Why for RequestError {
    fn class(&self) -> Kind {
        self.kind()
    }
}

impl Why for NamedError {
    fn class(&self) -> Kind {
        self.kind()
    }
}

fn why(refused: Result<impl std::fmt::Debug, impl Why>) -> (Kind, String) {
    let e = refused.unwrap_err();
    (e.class(), wharf_types::chain(&e))
}

/// Two pods in a network find each other by name, with busybox as the client.
async fn names(engine: &Engine, pods: [&str; 2], container: &str) {
    let asked = CreateNetwork {
        name: "front".to_owned(),
        ..CreateNetwork::default()
    };
    let networks = engine.named_networks().unwrap();
    networks.create(asked).await.unwrap();
    let join = |name: &str| JoinNetwork {
        network: "front".to_owned(),
        names: vec![name.to_owned()],
        addresses: Vec::new(),
    };
    engine.connect_network(pods[0], join("web")).await.unwrap();
    let other = engine.connect_network(pods[1], join("db")).await.unwrap();
    let (kind, text) = why(engine.connect_network(pods[1], join("db")).await);
    assert_eq!(kind, Kind::Conflict, "{text}");
    let look_up = async |name: &str| {
        let words = ["nslookup", name, "127.0.0.11"];
        let request = ExecSyncRequest {
            container: container.to_owned(),
            cmd: words.map(str::to_owned).into(),
            timeout: Some(SOON),
        };
        let said = engine.exec_sync(request).await.unwrap();
        String::from_utf8_lossy(&said.stdout).into_owned()
    };
    let address = other.addresses[0].addr.to_string();
    let said = look_up("db.front").await;
    assert!(said.contains(&address), "{address} is not in {said}");
    engine.disconnect_network(pods[1], "front").await.unwrap();
    let said = look_up("db.front").await;
    assert!(!said.contains(&address), "{said}");
    let (kind, text) = why(networks.remove("front").await);
    assert!(kind == Kind::Conflict && text.contains("web"), "{text}");
}

async fn story(node: &Node, [four, six, host]: [&str; 3], container: &str) {
    let engine = engine(node).await;
    serves(engine.connect_in_pod(four, 8080).await.unwrap()).await;
    serves(engine.connect_in_pod(six, 8080).await.unwrap()).await;
    let (kind, text) = why(engine.connect_in_pod(four, 8081).await);
    assert_eq!(kind, Kind::Unavailable);
    for part in [
        "port 8081",
        "/four",
        "127.0.0.1:8081: Connection refused",
        "[::1]:8081: ",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let (kind, _) = why(engine.connect_in_pod("nosuch", 8080).await);
    assert_eq!(kind, Kind::NotFound);
    names(&engine, [four, six], container).await;
    // On the host's network it is the host of the node: no server of a pod is there.
    why(engine.connect_in_pod(host, 8080).await);
    let at = PodSocket::Bind(Transport::Stream, "127.0.0.1:0".parse().unwrap());
    let socket: OwnedFd = engine.open_in_pod(host, at).await.unwrap();
    let listener = std::net::TcpListener::from(socket);
    let port = listener.local_addr().unwrap().port();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let (_near, far) = tokio::join!(engine.connect_in_pod(host, port), listener.accept());
    far.unwrap();
    engine.stop_pod(four).await.unwrap();
    let (kind, _) = why(engine.connect_in_pod(four, 8080).await);
    assert_eq!(kind, Kind::Conflict);
    // The stop has taken it out of its network.
    let networks = engine.named_networks().unwrap();
    networks.remove("front").await.unwrap();
}

#[test]
fn a_connection_goes_to_what_listens_inside_a_pod_on_either_loopback_address() {
    let Some(mut scene) = Scene::begin("connections_into_pods") else {
        return;
    };
    let ((four, six, host), container) = {
        let four = scene.pod("four");
        let six = scene.pod("six");
        let host = scene.pod_with("host", |config| {
            pod_security(config)
                .namespace_options
                .get_or_insert_default()
                .network = wharf_api::v1::NamespaceMode::Node.into();
        });
        let serve = |pod: &Pod<'_>, name: &str, at: &str| {
            let id = pod.run(&server(name, at));
            let log = scene.node.logs().join(format!("{name}.log"));
            let up = || Ok(fs::read_to_string(&log).unwrap_or_default().contains("up"));
            assert!(wait::until(SOON, up).unwrap(), "{name} does not listen");
            id
        };
        let container = serve(&four, "server-four", "127.0.0.1");
        serve(&six, "server-six", "[::1]");
        let pods = (four.id.clone(), six.id.clone(), host.id.clone());
        (pods, container)
    };
    scene.node.terminate().unwrap();
    // In the node's network, as the daemon was.
    let place = scene.node.place().clone();
    let told = place.in_net(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(story(&scene.node, [&four, &six, &host], &container));
        runtime.shutdown_timeout(SOON);
        Ok(())
    });
    told.unwrap();
    scene.node.run().unwrap();
    for id in [four, six, host] {
        scene.cri().stop_pod(&id).unwrap();
        scene.cri().remove_pod(&id).unwrap();
    }
    for name in ["server-four.log", "server-six.log"] {
        fs::remove_file(scene.node.logs().join(name)).unwrap();
    }
    // The first network makes the directory of networks; of the network itself nothing stays.
    scene.leaves_nothing_but_images();
    let left: Vec<String> = scene.changes();
    assert!(!left.iter().any(|l| l.contains("wh-")), "{left:?}");
}
