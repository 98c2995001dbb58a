//! The machine as a [`World`]: records, shims, cgroups, snapshots.

pub(crate) mod host; // what this machine has
pub(crate) mod devices; // devices of the host
pub(crate) mod seccomp; // compiled filters
pub(crate) mod held; // what is held of a living shim
pub(crate) mod lost; // containers whose shim is gone
pub(crate) mod log_file; // a container's log
pub(crate) mod create; // the steps of a container's creation
pub(crate) mod containers; // the steps of a container's life and end
pub(crate) mod exec; // execs
pub(crate) mod sockets; // sockets inside pods
pub(crate) mod named; // pods in networks that people make
pub(crate) mod network; // a pod's network
pub(crate) mod pods; // the steps of a pod
pub(crate) mod adoption; // shims that are found again
pub(crate) mod strays; // shims that nobody can reach

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use wharf_cgroup::{CgroupError, Cgroups, Limits};
use wharf_image::Images;
use wharf_network::dns::{Book, Resolver};
use wharf_network::named::{Endpoint, NamedNetworks};
use wharf_network::plugin::{Plugins, PluginsConfig};
use wharf_network::{Networks, NetworksConfig};
use wharf_store::Store;
use wharf_types::{Kind, PodId};

use crate::board::Board;
use crate::config::EngineConfig;
use crate::error::{OpenError, io_kind};
use crate::oci::Host;
use crate::record::{ContainerRecord, LoadedPod, PodRecord, Records};
use crate::shim::zygote::Zygote;
use crate::sockets::{JoinNetwork, PodSocket};
use crate::spec::ResourceSpec;
use crate::stats::Statistics;
use crate::view::NetworkView;
use crate::world::{
    Adoption, ContainerRef, CreateJob, ExecEnd, ExecJob, Made, Remains, ShimEvents, ShimFacts,
    Step, StepFailure, World,
};
use held::Held;

/// The machine. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Machine(Arc<Parts>);

pub(crate) struct Parts {
    pub(super) config: EngineConfig,
    pub(super) images: Images,
    pub(super) store: Store,
    pub(super) cgroups: Cgroups,
    pub(super) host: Host,
    pub(super) boot: String,
    pub(super) records: Records,
    pub(super) networks: Networks,
    /// Networks that people make.
    pub(super) named: NamedNetworks,
    /// Answers the questions for names of pods in them.
    pub(super) resolver: Resolver,
    pub(super) zygote: Zygote,
    pub(super) filters: seccomp::Filters,
    /// Listening sockets of shims that are about to be made.
    pub(super) listeners: Mutex<HashMap<PodId, OwnedFd>>,
    held: Mutex<HashMap<PodId, Arc<Held>>>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("config", &self.0.config)
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// Looks at the machine, makes the directories. Blocks.
    pub(crate) fn open(
        config: EngineConfig,
        images: Images,
        store: Store,
    ) -> Result<Self, OpenError> {
        let directory = |action, path: PathBuf| {
            move |source| OpenError::Directory {
                action,
                path: path.clone(),
                source,
            }
        };
        let pods = config.state.join("pods");
        std::fs::create_dir_all(&pods).map_err(directory("create", pods.clone()))?;
        let records = Records::open(&config.root)
            .map_err(|e| directory("create", config.root.clone())(std::io::Error::other(e)))?;
        let cgroups = Cgroups::probe().map_err(|e| OpenError::Cgroups {
            what: "looking for hierarchies".to_owned(),
            source: Box::new(e),
        })?;
        let home = home(cgroups.clone(), home_path(&config));
        let networks = networks(&config)?;
        let own = config.root.join("network");
        let named = NamedNetworks::open(networks.clone(), &own)
            .map_err(|e| directory("read networks in", own)(std::io::Error::other(e)))?;
        let parts = Parts {
            zygote: Zygote::new(
                config.shim.clone(),
                &config.state,
                home,
                config.shim_open_files,
            ),
            host: host::probe(&cgroups),
            boot: host::boot_id(),
            filters: seccomp::Filters::new(host::kernel()),
            listeners: Mutex::default(),
            held: Mutex::default(),
            networks,
            named,
            resolver: Resolver::new(Book::default(), PathBuf::from("/etc/resolv.conf")),
            config,
            images,
            store,
            cgroups,
            records,
        };
        Ok(Self(Arc::new(parts)))
    }

    /// What the disk knows.
    pub(crate) fn records(&self) -> &Records {
        &self.0.records
    }

    /// The pods' networks.
    pub(crate) fn networks(&self) -> &Networks {
        &self.0.networks
    }

    /// The networks that people made.
    pub(crate) fn named(&self) -> &NamedNetworks {
        &self.0.named
    }

    /// Keys of all snapshots that exist.
    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    /// Ends what runs for us and cannot be reached, or belongs to no pod of `known`. Blocks.
    pub(crate) fn end_strays(&self, known: &BTreeSet<PodId>) {
        self.0.end_strays(known);
    }

    /// What measures the pods and containers of `board`.
    pub(crate) fn statistics(&self, board: Arc<Board>) -> Statistics {
        Statistics::new(board, self.0.cgroups.clone(), self.0.store.clone())
    }

    /// Finds or starts the zygote ahead of the first pod.
    pub(crate) async fn warm(&self) -> Result<(), StepFailure> {
        self.0.zygote.warm().await
    }
}

/// The cgroup of zygote and shims.
fn home_path(config: &EngineConfig) -> String {
    format!("{}/shims", config.cgroup_parent)
}

/// Opens the networks: what an earlier daemon attached is known, also where pods get none now.
fn networks(config: &EngineConfig) -> Result<Networks, OpenError> {
    let root = config.root.join("network");
    let state = config.state.join("network");
    let plugins = Plugins::new(&PluginsConfig {
        root: root.clone(),
        state: state.clone(),
    });
    let cni = &config.cni;
    let networks = NetworksConfig {
        config_dir: cni.config_dir.clone(),
        bin_dirs: cni.bin_dirs.clone(),
        root: root.clone(),
        state,
        boot: host::boot_id(),
        builtin: cni.builtin,
        default_network: cni.default_network,
        grace: cni.grace,
        open_files: config.shim_open_files,
        helper: cni.helper.clone(),
    };
    Networks::open(networks, plugins).map_err(|e| OpenError::Directory {
        action: "read attachments in",
        path: root,
        source: std::io::Error::other(e),
    })
}

/// Opens the shims' home: never in the daemon's cgroup, never in a pod's.
fn home(cgroups: Cgroups, path: String) -> crate::shim::zygote::Home {
    Box::new(move || {
        let failed = |e: CgroupError| cgroup_failure("start shim", e);
        let home = match cgroups.create(&path, &Limits::default()) {
            // Old shims live there.
            Err(CgroupError::Occupied { .. }) => cgroups.open(&path),
            made => made,
        };
        let home = home.map_err(failed)?;
        let member = home.member_fds().map_err(failed)?;
        let mut procs = member.v1;
        if let Some(directory) = member.v2 {
            let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
            let mode = rustix::fs::Mode::empty();
            let file = rustix::fs::openat(&directory, "cgroup.procs", flags, mode);
            let failed = |e: std::io::Error| StepFailure::new("start shim", io_kind(&e), e);
            procs.push(file.map_err(|e| failed(e.into()))?);
        }
        Ok(procs)
    })
}

/// A fault point that was passed, as a part of a step.
pub(crate) fn passed(stage: &'static str, point: std::io::Result<()>) -> Result<(), StepFailure> {
    point.map_err(|e| StepFailure::new(stage, Kind::Internal, e))
}

/// A failed operation on a cgroup, as the failure of a step.
pub(crate) fn cgroup_failure(stage: &'static str, e: CgroupError) -> StepFailure {
    StepFailure::new(stage, e.kind(), e)
}

/// Runs what blocks where blocking is allowed.
pub(crate) async fn block<T, F>(stage: &'static str, work: F) -> Result<T, StepFailure>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, StepFailure> + Send + 'static,
{
    let done = tokio::task::spawn_blocking(move || {
        // Tests can hold a step by its name.
        wharf_sys::fault::gate(stage);
        work()
    });
    let done = done.await;
    done.unwrap_or_else(|e| Err(StepFailure::new(stage, Kind::Internal, e)))
}

impl Parts {
    /// The cgroup of a pod that was given none.
    pub(super) fn own_cgroup(&self, pod: &PodId) -> String {
        format!("{}/pods/{pod}", self.config.cgroup_parent)
    }

    pub(super) fn held(&self, pod: &PodId) -> Option<Arc<Held>> {
        self.all_held().get(pod).cloned()
    }

    pub(super) fn hold(&self, pod: &PodId, held: Arc<Held>) {
        self.all_held().insert(pod.clone(), held);
    }

    pub(super) fn let_go(&self, pod: &PodId) -> Option<Arc<Held>> {
        self.all_held().remove(pod)
    }

    // Held for map operations only.
    fn all_held(&self) -> MutexGuard<'_, HashMap<PodId, Arc<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod's directory on disk: its records, and the files that its containers see and may fill.
    pub(super) fn pod_disk(&self, pod: &PodId) -> PathBuf {
        self.config.root.join("pods").join(pod.as_str())
    }

    /// The pod's directory, which ends with the boot.
    pub(super) fn pod_dir(&self, pod: &PodId) -> PathBuf {
        self.config.state.join("pods").join(pod.as_str())
    }
}

impl World for Machine {
    fn now_ns(&self) -> i64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX);
        now.saturating_add(wharf_sys::fault::clock_shift_ns())
    }

    fn random(&self) -> Result<[u8; 32], StepFailure> {
        wharf_sys::random::bytes().map_err(|e| StepFailure::new("draw an id", Kind::Internal, e))
    }

    fn boot(&self) -> String {
        self.0.boot.clone()
    }

    fn plan_pod(&self, record: &mut PodRecord) -> Result<(), StepFailure> {
        self.0.plan_pod(record)
    }

    fn own_cgroup(&self, pod: &PodId) -> String {
        self.0.own_cgroup(pod)
    }

    fn load_pod(&self, id: PodId) -> Step<Option<LoadedPod>> {
        let parts = self.0.clone();
        Box::pin(block("read records", move || {
            let found = parts.records.find_pod(&id);
            found.map_err(|e| StepFailure::new("read records", e.kind(), e))
        }))
    }

    fn save_pod(&self, pod: Arc<PodRecord>) -> Step<()> {
        let parts = self.0.clone();
        Box::pin(block("write record", move || parts.save_pod(&pod)))
    }

    fn prepare_pod(&self, pod: Arc<PodRecord>) -> Step<()> {
        let parts = self.0.clone();
        Box::pin(block("prepare pod", move || parts.prepare_pod(&pod)))
    }

    fn start_shim(&self, pod: Arc<PodRecord>, events: ShimEvents) -> Step<ShimFacts> {
        let parts = self.0.clone();
        Box::pin(async move { parts.start_shim(&pod, events).await })
    }

    fn adopt_shim(&self, pod: Arc<PodRecord>, events: ShimEvents) -> Step<Adoption> {
        let parts = self.0.clone();
        Box::pin(async move { parts.adopt_shim(&pod, events).await })
    }

    fn attach_network(&self, pod: Arc<PodRecord>) -> Step<NetworkView> {
        let parts = self.0.clone();
        Box::pin(async move { parts.attach_network(&pod).await })
    }

    fn detach_network(&self, pod: Arc<PodRecord>) -> Step<()> {
        let parts = self.0.clone();
        Box::pin(async move { parts.detach_network(&pod).await })
    }

    fn end_shim(&self, pod: Arc<PodRecord>) -> Step<()> {
        let parts = self.0.clone();
        Box::pin(async move { parts.end_shim(pod).await })
    }

    fn forget_pod(&self, pod: Arc<PodRecord>) -> Step<()> {
        let parts = self.0.clone();
        Box::pin(block("remove pod", move || parts.forget_pod(&pod)))
    }

    fn create_container(&self, job: CreateJob) -> Step<Made> {
        let parts = self.0.clone();
        Box::pin(async move { create::create(parts, job).await })
    }

    fn save_container(&self, record: Arc<ContainerRecord>) -> Step<()> {
        let parts = self.0.clone();
        Box::pin(block("write record", move || parts.save_container(&record)))
    }

    fn start_container(&self, container: ContainerRef) -> Step<()> {
        let parts = self.0.clone();
        Box::pin(async move { parts.start_container(container).await })
    }

    fn signal_container(&self, container: ContainerRef, signal: i32) -> Step<()> {
        let parts = self.0.clone();
        Box::pin(async move { parts.signal_container(&container, signal).await })
    }

    fn kill_container(&self, container: ContainerRef) -> Step<()> {
        let parts = self.0.clone();
        Box::pin(async move { parts.kill_container(container).await })
    }

    fn collect_container(&self, container: ContainerRef) -> Step<Remains> {
        let parts = self.0.clone();
        Box::pin(async move { parts.collect_container(container).await })
    }

    fn remove_container(&self, container: ContainerRef) -> Step<()> {
        let parts = self.0.clone();
        Box::pin(async move { parts.remove_container(container).await })
    }

    fn update_container(&self, container: ContainerRef, resources: ResourceSpec) -> Step<()> {
        let parts = self.0.clone();
        Box::pin(block("update limits", move || {
            parts.update_container(&container, resources)
        }))
    }

    fn reopen_log(&self, container: ContainerRef) -> Step<()> {
        let parts = self.0.clone();
        Box::pin(async move { parts.reopen_log(container).await })
    }

    fn exec_sync(&self, job: ExecJob) -> Step<ExecEnd> {
        let parts = self.0.clone();
        Box::pin(async move { exec::exec_sync(parts, job).await })
    }

    fn connect_network(&self, pod: PodId, asked: JoinNetwork) -> Step<Endpoint> {
        let parts = self.0.clone();
        Box::pin(async move { parts.connect_network(&pod, asked).await })
    }

    fn disconnect_network(&self, pod: PodId, network: String) -> Step<()> {
        let parts = self.0.clone();
        Box::pin(async move { parts.disconnect_network(&pod, &network).await })
    }

    fn open_in_pod(&self, pod: PodId, socket: PodSocket) -> Step<OwnedFd> {
        let parts = self.0.clone();
        Box::pin(async move { parts.open_in_pod(&pod, socket).await })
    }
}
