//! What the drivers do to the machine, as a seam: the machine itself, and in tests a world that can
//! delay, fail and reorder.
//!
//! Every step may be given up (its future dropped) or repeated. Steps that take down (`kill`,
//! `collect`, `remove`, `detach`, `end`, `forget`) are idempotent, find for themselves what there is,
//! and do not stop at the first error.

use std::error::Error;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use wharf_network::named::Endpoint;
use wharf_types::{ContainerId, Kind, PodId};

use crate::record::{ContainerRecord, Exit, LoadedPod, PodRecord};
use crate::sockets::{JoinNetwork, PodSocket};
use crate::spec::{ExecSyncOutput, ResourceSpec};
use crate::view::{ContainerFacts, NetworkView};

/// A step under way.
pub type Step<T> = Pin<Box<dyn Future<Output = Result<T, StepFailure>> + Send>>;

/// Which step failed, and why.
#[derive(Debug, Clone)]
pub struct StepFailure {
    /// The step's name, in the log's words.
    pub stage: &'static str,
    /// The class of the failure.
    pub kind: Kind,
    /// What failed.
    pub source: Arc<dyn Error + Send + Sync>,
}

impl StepFailure {
    /// At `stage`, because of `source`. What would be unexpected is not, where the machine has no more
    /// descriptors, room or memory, however deep in `source` that stands.
    pub fn new(
        stage: &'static str,
        kind: Kind,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        let kind = match kind {
            Kind::Internal if is_short(&*source) => Kind::Exhausted,
            kind => kind,
        };
        Self {
            stage,
            kind,
            source: Arc::from(source),
        }
    }
}

impl StepFailure {
    /// A step of ours panicked.
    pub fn panicked() -> Self {
        let text = "a fault of wharf: the step panicked; its backtrace is in the log";
        Self::new("run a step", Kind::Internal, text)
    }
}

fn is_short(error: &(dyn Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |e: &&(dyn Error + 'static)| (*e).source());
    causes.any(|e| {
        let errno = e.downcast_ref::<rustix::io::Errno>();
        let errno = errno.map(|errno| std::io::Error::from(*errno));
        let io = e.downcast_ref::<std::io::Error>().or(errno.as_ref());
        io.is_some_and(wharf_store::is_short)
    })
}

impl fmt::Display for StepFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.stage, wharf_types::chain(&*self.source))
    }
}

/// What a started shim gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShimFacts {
    /// The shim's process id.
    pub pid: u32,
    /// PID 1 of the shared PID namespace.
    pub sandbox_pid: Option<u32>,
    /// Where the network namespace is bound.
    pub netns: Option<PathBuf>,
}

/// What a pod's shim tells without being asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShimEvent {
    /// A container's init has ended.
    Exited {
        /// Which.
        container: ContainerId,
        /// Exit status, or 128 + signal.
        code: i32,
        /// The signal, or 0.
        signal: i32,
        /// When, in nanoseconds since 1970.
        at_ns: i64,
    },
    /// Something a person should know.
    Warning {
        /// The container, if it concerns one.
        container: Option<ContainerId>,
        /// In words.
        text: String,
    },
    /// The shared PID namespace has ended.
    SandboxEnded,
    /// The shim did not answer in time; it may later.
    Silent,
    /// The shim is gone: nothing more will come.
    Lost,
}

/// Where a pod's shim tells what happens.
pub type ShimEvents = mpsc::Sender<ShimEvent>;

/// A container found in a living shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundContainer {
    /// Its id.
    pub id: ContainerId,
    /// Its init.
    pub pid: u32,
    /// Its program was started.
    pub started: bool,
    /// How it ended: code, signal, time.
    pub exited: Option<(i32, i32, i64)>,
}

/// What became of a pod's shim while nobody looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Adoption {
    /// It lives and has answered.
    Living(ShimFacts, Vec<FoundContainer>),
    /// It lives, and does not answer.
    Silent,
    /// It is gone.
    Gone,
}

/// What a created container is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Made {
    /// Process id of its init.
    pub pid: u32,
    /// The rest.
    pub facts: Arc<ContainerFacts>,
}

/// A container and the processes that its namespaces may come from.
#[derive(Debug, Clone)]
pub struct CreateJob {
    /// The pod.
    pub pod: Arc<PodRecord>,
    /// The container, as it was recorded before anything was done.
    pub record: Arc<ContainerRecord>,
    /// The process whose PID namespace is joined (`NamespaceMode::Target`).
    pub target_pid: Option<u32>,
}

/// A container, to steps that need only to find it.
#[derive(Debug, Clone)]
pub struct ContainerRef {
    /// The pod.
    pub pod: Arc<PodRecord>,
    /// The container as recorded.
    pub record: Arc<ContainerRecord>,
}

/// An exec whose output is collected.
#[derive(Debug, Clone)]
pub struct ExecJob {
    /// The container.
    pub container: ContainerRef,
    /// Unique in the container.
    pub exec_id: String,
    /// What to run.
    pub cmd: Vec<String>,
    /// When it is killed.
    pub timeout: Option<Duration>,
}

/// How an exec ended.
#[derive(Debug, Clone)]
pub enum ExecEnd {
    /// By itself.
    Output(ExecSyncOutput),
    /// At its deadline, killed with everything that it started.
    TimedOut,
}

/// What is known of a container's end beyond its exit code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Remains {
    /// The kernel killed a process of it for want of memory.
    pub oom_killed: bool,
    /// How its init ended, of one whose shim is gone.
    pub ended: Option<SeenEnd>,
}

/// How a process ended, as the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenEnd {
    /// Exit status, or 128 + signal.
    pub code: i32,
    /// The signal, or 0.
    pub signal: i32,
    /// When, in nanoseconds since 1970, if that is known.
    pub at_ns: Option<i64>,
}

/// What the drivers do to the machine.
pub trait World: Send + Sync + 'static {
    /// Nanoseconds since 1970.
    fn now_ns(&self) -> i64;

    /// 32 random bytes for an id.
    ///
    /// # Errors
    ///
    /// The kernel has no randomness to give.
    fn random(&self) -> Result<[u8; 32], StepFailure>;

    /// The running boot, as it is written to records.
    fn boot(&self) -> String;

    /// Completes what the specification leaves open: cgroup and host name.
    ///
    /// # Errors
    ///
    /// What is asked for cannot be had here.
    fn plan_pod(&self, record: &mut PodRecord) -> Result<(), StepFailure>;

    /// The cgroup of a pod that was given none.
    fn own_cgroup(&self, pod: &PodId) -> String;

    /// What the disk knows of a pod; `None` when nothing. Nothing else may be under way for it.
    fn load_pod(&self, id: PodId) -> Step<Option<LoadedPod>>;

    /// Writes the record.
    fn save_pod(&self, pod: Arc<PodRecord>) -> Step<()>;

    /// Writes the record, then makes the pod's directories, files and listening socket. A cgroup comes with
    /// the first container.
    fn prepare_pod(&self, pod: Arc<PodRecord>) -> Step<()>;

    /// Starts the shim, which makes the namespaces; from now on it tells `events` what happens.
    fn start_shim(&self, pod: Arc<PodRecord>, events: ShimEvents) -> Step<ShimFacts>;

    /// Finds a shim after a restart of the daemon.
    fn adopt_shim(&self, pod: Arc<PodRecord>, events: ShimEvents) -> Step<Adoption>;

    /// Attaches the pod's network.
    fn attach_network(&self, pod: Arc<PodRecord>) -> Step<NetworkView>;

    /// Detaches the pod's network.
    fn detach_network(&self, pod: Arc<PodRecord>) -> Step<()>;

    /// Ends the shim, releases the namespaces, removes the pod's own cgroup.
    fn end_shim(&self, pod: Arc<PodRecord>) -> Step<()>;

    /// Removes the pod's directory and its record, in this order.
    fn forget_pod(&self, pod: Arc<PodRecord>) -> Step<()>;

    /// Makes a container up to the point where its program only needs to be started.
    fn create_container(&self, job: CreateJob) -> Step<Made>;

    /// Writes the record.
    fn save_container(&self, record: Arc<ContainerRecord>) -> Step<()>;

    /// Lets the container's program start.
    fn start_container(&self, container: ContainerRef) -> Step<()>;

    /// Sends a signal to the container's init.
    fn signal_container(&self, container: ContainerRef, signal: i32) -> Step<()>;

    /// Kills every process of the container.
    fn kill_container(&self, container: ContainerRef) -> Step<()>;

    /// After its end: makes sure that no process is left, says how it ended, gives back what only a
    /// living container needs.
    fn collect_container(&self, container: ContainerRef) -> Step<Remains>;

    /// Removes everything of the container, its record last.
    fn remove_container(&self, container: ContainerRef) -> Step<()>;

    /// Changes limits: all or none. None when the record with them could not be written.
    fn update_container(&self, container: ContainerRef, resources: ResourceSpec) -> Step<()>;

    /// Continues the log in a new file.
    fn reopen_log(&self, container: ContainerRef) -> Step<()>;

    /// Runs another process in the container and collects its output. Given up, it kills what it has
    /// started.
    fn exec_sync(&self, job: ExecJob) -> Step<ExecEnd>;

    /// Connects the pod to a network that people made. A world that is not a machine has none.
    fn connect_network(&self, pod: PodId, asked: JoinNetwork) -> Step<Endpoint> {
        let text = format!(
            "{pod} to {:?}: there are no networks in this world",
            asked.network
        );
        let failure = StepFailure::new("connect network", Kind::Unsupported, text);
        Box::pin(std::future::ready(Err(failure)))
    }

    /// Disconnects the pod from such a network.
    fn disconnect_network(&self, pod: PodId, network: String) -> Step<()> {
        let text = format!("{pod} from {network:?}: there are no networks in this world");
        let failure = StepFailure::new("disconnect network", Kind::Unsupported, text);
        Box::pin(std::future::ready(Err(failure)))
    }

    /// Opens a socket in the pod's network namespace. Changes no state. A world that is not a machine has none.
    fn open_in_pod(&self, pod: PodId, socket: PodSocket) -> Step<OwnedFd> {
        let text = format!("{socket:?} in {pod}: there are no sockets in this world");
        let failure = StepFailure::new("open socket", Kind::Unsupported, text);
        Box::pin(std::future::ready(Err(failure)))
    }
}

/// What an exit code and the remains say, in CRI's words.
pub fn exit_of(code: i32, signal: i32, at_ns: i64, remains: Remains) -> Exit {
    let (reason, message) = match (remains.oom_killed, code) {
        (true, 0) | (false, 0) => ("Completed", String::new()),
        (true, _) => (
            "OOMKilled",
            "killed by the kernel: its memory limit was reached".to_owned(),
        ),
        (false, _) if signal > 0 => ("Error", format!("ended by signal {signal}")),
        (false, _) => ("Error", String::new()),
    };
    Exit {
        code,
        at_ns,
        reason: reason.to_owned(),
        message,
    }
}

/// The end of a container whose shim is gone, found out at `at_ns`: what had not ended was killed then.
pub fn lost_exit(at_ns: i64, remains: Remains) -> Exit {
    const SIGKILL: i32 = 9;
    let Some(end) = remains.ended else {
        return Exit::unseen(at_ns, "the shim was lost; nobody saw the exit code");
    };
    let at_ns = end.at_ns.unwrap_or(at_ns);
    let exit = exit_of(end.code, end.signal, at_ns, remains);
    if end.signal == SIGKILL && !remains.oom_killed {
        return Exit {
            reason: "ShimLost".to_owned(),
            message: "the shim was lost, so its container was killed".to_owned(),
            ..exit
        };
    }
    let message = match exit.message.as_str() {
        "" => "the shim was lost after it had ended".to_owned(),
        told => format!("{told}; the shim was lost after that"),
    };
    Exit { message, ..exit }
}
