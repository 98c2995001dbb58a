//! Wiring: everything is made in order, served until a signal, and taken down in the reverse order.
//! Containers do not notice.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinError;
use wharf_cri::{ImageDoor, NodeFacts, RuntimeDoor, ServeError};
use wharf_engine::Engine;
use wharf_engine::config::{CniConfig, EngineConfig, NetworkMode};
use wharf_image::{Images, ImagesConfig};
use wharf_registry::{Client, ClientConfig};
use wharf_store::{Durability, Store};

use crate::api;
use crate::checks::{self, CheckError};
use crate::config::{Config, Network};
use crate::lock::{Lock, LockError};
use crate::socket::{self, SocketError};

/// How long requests in flight may take to finish after a signal.
const DRAIN: Duration = Duration::from_secs(10);
/// Threads that run tasks; what blocks runs elsewhere, so more would only hold memory.
const WORKERS_MAX: usize = 8;

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum DaemonError {
    #[error("begin logging")]
    Log(#[source] Box<dyn Error + Send + Sync>),
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("open the store {root}")]
    Store {
        root: PathBuf,
        source: wharf_store::StoreError,
    },
    #[error("make a registry client")]
    Client(#[from] wharf_registry::ClientError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("open the engine")]
    Engine(#[from] wharf_engine::OpenError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("{what}")]
    Os {
        what: &'static str,
        source: io::Error,
    },
}

fn os(what: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |source| DaemonError::Os { what, source }
}

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(config: &Config) -> Result<(), DaemonError> {
    let begin = Instant::now();
    crate::log::start(&config.log).map_err(DaemonError::Log)?;
    checks::machine()?;
    let shim = checks::shim(config)?;
    let _lock = Lock::take(&config.state)?;
    // Before anything that runs is looked for: a pod must not be lost for want of a descriptor.
    let given = checks::raise_open_files();
    let store = Store::open(&config.root, Durability::default()).map_err(|source| {
        let root = config.root.clone();
        DaemonError::Store { root, source }
    })?;
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers.clamp(2, WORKERS_MAX))
        .enable_all()
        .build()
        .map_err(os("start threads"))?;
    let result = runtime.block_on(serve(config, (&shim, given), store, begin));
    // What still runs are pulls and waits; both begin anew with the next daemon.
    runtime.shutdown_background();
    result
}

async fn serve(
    config: &Config,
    shim: (&Path, Option<u64>),
    store: Store,
    begin: Instant,
) -> Result<(), DaemonError> {
    let mut signals = Signals::new()?;
    let client = Client::new(ClientConfig {
        certs_d: Some(config.registry.certs_d.clone()),
        user_agent: concat!("wharf/", env!("CARGO_PKG_VERSION")).to_owned(),
    })?;
    let images = Images::new(store.clone(), client, ImagesConfig::default());
    let listener = socket::listen(&config.cri.socket)?;
    let listener = UnixListener::from_std(listener).map_err(os("watch the socket"))?;
    let door = RuntimeDoor::new(facts(config));
    let own = config.state.join(api::SOCKET);
    let own_listener =
        UnixListener::from_std(socket::listen(&own)?).map_err(os("watch the socket"))?;
    drop(tokio::spawn(api::serve(own_listener, images.clone())));
    let (stop, stopped) = oneshot::channel::<()>();
    let image_door = ImageDoor::new(images.clone(), store.clone());
    let mut serving = tokio::spawn(wharf_cri::serve(
        listener,
        door.clone(),
        image_door,
        async {
            // Err: we are gone, which means the same.
            drop(stopped.await);
        },
    ));
    tokio::select! {
        failed = open(config, shim, images, store, &door, begin) => return Err(failed),
        ended = &mut serving => return finished(ended),
        name = signals.next() => tracing::info!(signal = name, "stopping; containers go on"),
    }
    // Err: the server ended in this moment.
    let _told = stop.send(());
    tokio::select! {
        ended = &mut serving => finished(ended)?,
        () = tokio::time::sleep(DRAIN) => tracing::warn!("requests in flight were given up"),
        _second = signals.next() => tracing::warn!("requests in flight were given up"),
    }
    for path in [&own, &config.cri.socket] {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(os("remove the socket")(e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Recovers, then opens the door. Returns only when that fails.
async fn open(
    config: &Config,
    (shim, shim_open_files): (&Path, Option<u64>),
    images: Images,
    store: Store,
    door: &RuntimeDoor,
    begin: Instant,
) -> DaemonError {
    let engine = EngineConfig {
        root: config.root.clone(),
        state: config.state.clone(),
        cgroup_parent: config.cgroup.parent.to_string_lossy().into_owned(),
        shim: shim.to_owned(),
        shim_open_files,
        network: match config.cri.network {
            Network::None => NetworkMode::None,
            Network::Cni => NetworkMode::Cni,
        },
        cni: CniConfig {
            config_dir: config.cni.config_dir.clone(),
            bin_dirs: config.cni.bin_dirs.clone(),
            builtin: config.cni.builtin,
            default_network: config.cri.default_network,
            grace: Duration::from_secs(config.cni.grace_seconds),
            helper: PathBuf::from("/proc/self/exe"),
        },
        netns_dir: match config.cri.network {
            Network::None => None,
            Network::Cni => Some(config.cni.netns_dir.clone()),
        },
    };
    let engine = match Engine::open(engine, images, store).await {
        Ok(engine) => engine,
        Err(failed) => return failed.into(),
    };
    door.open(engine);
    let socket = config.cri.socket.display();
    tracing::info!(%socket, ms = begin.elapsed().as_secs_f64() * 1000.0, "ready");
    std::future::pending().await
}

/// The server ended, by itself or because it panicked.
fn finished(ended: Result<Result<(), ServeError>, JoinError>) -> Result<(), DaemonError> {
    ended.map_err(|e| os("serve")(e.into()))??;
    Ok(())
}

/// What CRI's Status says of this node.
fn facts(config: &Config) -> NodeFacts {
    NodeFacts {
        version: env!("CARGO_PKG_VERSION"),
        config: serde_json::json!({
            "rootDir": config.root,
            "stateDir": config.state,
            "wharf": config,
        }),
    }
}

/// Signals that end us.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, DaemonError> {
        let watch = |kind| signal(kind).map_err(os("watch signals"));
        Ok(Self {
            terminate: watch(SignalKind::terminate())?,
            interrupt: watch(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
