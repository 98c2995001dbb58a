//! All pods: who has which name, and where each pod's driver is.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use wharf_network::named::Endpoint;
use wharf_types::{ContainerId, Digest, Kind, PodId};

use crate::board::{Board, Stage};
use crate::container::slot::{Reply, step_error};
use crate::error::RequestError;
use crate::limits::{LABELS_MAX, PODS_MAX, REQUESTS_PER_POD_MAX, RETRY_FIRST, RETRY_LAST};
use crate::pod::driver::{Driver, Surroundings};
use crate::pod::foreign;
use crate::pod::recovered::Recovered;
use crate::pod::request::{Request, Verb};
use crate::record::{PodPhase, PodRecord, VERSION};
use crate::sockets::{JoinNetwork, PodSocket};
use crate::spec::{
    ContainerSpec, ExecSyncOutput, ExecSyncRequest, PodMetadata, PodSpec, ResourceSpec,
};
use crate::view::{NetworkView, PodState, PodView};
use crate::world::{StepFailure, World};

/// All pods. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Pods(Arc<Inner>);

struct Inner {
    world: Arc<dyn World>,
    board: Arc<Board>,
    names: Mutex<Names>,
}

#[derive(Default)]
struct Names {
    by_key: HashMap<PodMetadata, PodId>,
    pods: HashMap<PodId, Handle>,
}

#[derive(Clone)]
struct Handle {
    key: PodMetadata,
    digest: Digest,
    requests: mpsc::Sender<Request>,
}

impl fmt::Debug for Pods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pods")
            .field("pods", &self.names().pods.len())
            .finish()
    }
}

impl Pods {
    pub(crate) fn new(world: Arc<dyn World>, board: Arc<Board>) -> Self {
        Self(Arc::new(Inner {
            world,
            board,
            names: Mutex::default(),
        }))
    }

    // Held for map operations only.
    fn names(&self) -> MutexGuard<'_, Names> {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what a restart found; returns when every shim was asked once.
    pub(crate) async fn recover(&self, found: Vec<Recovered>) {
        let mut asked = Vec::new();
        for pod in found {
            let (sender, was_asked) = oneshot::channel();
            self.enter(&mut self.names(), pod.record.spec.clone(), &pod.record.id)
                .begin(Origin::Found(Box::new(pod)), Some(sender));
            asked.push(was_asked);
        }
        for asked in asked {
            // A fault of ours in one pod's driver is no reason to make the others wait.
            asked.await.ok();
        }
    }

    pub(crate) async fn run(&self, spec: PodSpec) -> Result<PodId, RequestError> {
        check_labels(spec.labels.len() + spec.annotations.len())?;
        loop {
            let (reply, answer) = oneshot::channel();
            let requests = self.begin(&spec)?;
            if requests.send(Request::Run(reply)).await.is_ok()
                && let Ok(answer) = answer.await
            {
                return answer;
            }
            // That driver has just ended and the name is free again.
            tokio::task::yield_now().await;
        }
    }

    /// The driver of this name: the one there is, when it was asked for the same, or a new one.
    fn begin(&self, spec: &PodSpec) -> Result<mpsc::Sender<Request>, RequestError> {
        let digest = spec.digest();
        let mut names = self.names();
        if let Some(id) = names.by_key.get(&spec.metadata) {
            let handle = names.pods.get(id).filter(|handle| handle.digest == digest);
            return handle.map(|handle| handle.requests.clone()).ok_or_else(|| {
                RequestError::Exists {
                    what: "pod",
                    name: spec.metadata.to_string(),
                    id: id.to_string(),
                    difference: "another configuration",
                }
            });
        }
        if names.pods.len() >= PODS_MAX {
            return Err(RequestError::Limit {
                what: "the number of pods",
                limit: PODS_MAX,
            });
        }
        let record = self
            .plan(spec)
            .map_err(|f| step_error(&f, format!("pod {}", spec.metadata)))?;
        let supervisor = self.enter(&mut names, record.spec.clone(), &record.id);
        let requests = names
            .pods
            .get(&record.id)
            .map(|handle| handle.requests.clone());
        drop(names);
        tracing::info!(pod = %record.id, name = %record.spec.metadata, "pod starts");
        supervisor.begin(Origin::New(Box::new(record)), None);
        requests.ok_or(RequestError::ShuttingDown)
    }

    fn plan(&self, spec: &PodSpec) -> Result<PodRecord, StepFailure> {
        let world = &self.0.world;
        let mut record = PodRecord {
            version: VERSION,
            id: PodId::from_random(world.random()?),
            spec: Arc::new(spec.clone()),
            created_at_ns: world.now_ns(),
            phase: PodPhase::Starting,
            boot: world.boot(),
            cgroup: String::new(),
            hostname: String::new(),
            network: NetworkView::default(),
            netns: None,
        };
        world.plan_pod(&mut record)?;
        Ok(record)
    }

    /// Gives a pod its name and a channel; who asks from now on is answered by its next driver.
    fn enter(&self, names: &mut Names, spec: Arc<PodSpec>, id: &PodId) -> Supervisor {
        let (sender, requests) = mpsc::channel(REQUESTS_PER_POD_MAX);
        let key = spec.metadata.clone();
        names.by_key.insert(key.clone(), id.clone());
        let handle = Handle {
            key,
            digest: spec.digest(),
            requests: sender,
        };
        names.pods.insert(id.clone(), handle);
        Supervisor {
            world: self.0.world.clone(),
            board: self.0.board.clone(),
            pods: Arc::downgrade(&self.0),
            spec,
            id: id.clone(),
            requests,
        }
    }

    fn release(&self, id: &PodId) {
        let mut names = self.names();
        if let Some(handle) = names.pods.remove(id)
            && names.by_key.get(&handle.key) == Some(id)
        {
            names.by_key.remove(&handle.key);
        }
    }

    /// The stage of a pod's start.
    pub(crate) fn stage(&self, metadata: &PodMetadata) -> Option<Stage> {
        let id = self.names().by_key.get(metadata).cloned()?;
        self.0.board.stage(id.as_str())
    }

    /// Full id, or unique beginning of a published one.
    fn pod_id(&self, id: &str) -> Result<PodId, RequestError> {
        match self.0.board.pod(id) {
            Ok(view) => Ok(view.id.clone()),
            // One that is still being started is known by its whole id only.
            Err(e) => id.parse::<PodId>().ok().filter(|id| self.has(id)).ok_or(e),
        }
    }

    fn has(&self, id: &PodId) -> bool {
        self.names().pods.contains_key(id)
    }

    /// Asks a pod's driver; `None` when there is none any more.
    async fn ask<T>(
        &self,
        id: &PodId,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Option<Result<T, RequestError>> {
        let requests = self
            .names()
            .pods
            .get(id)
            .map(|handle| handle.requests.clone())?;
        let (reply, answer) = oneshot::channel();
        let accepted = requests.send(request(reply)).await.is_ok();
        let answered = if accepted { answer.await.ok() } else { None };
        // A driver that has ended in good order has given its name back before it let go of a request.
        answered.or_else(|| self.has(id).then(|| Err(fault(id))))
    }

    pub(crate) async fn stop(&self, id: &str) -> Result<(), RequestError> {
        match absent_is_fine(self.pod_id(id))? {
            Some(id) => self.ask(&id, Request::Stop).await.unwrap_or(Ok(())),
            None => Ok(()),
        }
    }

    pub(crate) async fn remove(&self, id: &str) -> Result<(), RequestError> {
        match absent_is_fine(self.pod_id(id))? {
            Some(id) => self.ask(&id, Request::Remove).await.unwrap_or(Ok(())),
            None => Ok(()),
        }
    }

    pub(crate) async fn create_container(
        &self,
        pod: &str,
        spec: ContainerSpec,
    ) -> Result<ContainerId, RequestError> {
        let id = self.pod_id(pod)?;
        let labels = spec.labels.len() + spec.annotations.len();
        check_labels(labels + spec.image.annotations.len())?;
        let digest = spec.digest();
        let spec = Box::new(spec);
        let answer = self
            .ask(&id, |reply| Request::Create {
                spec,
                digest,
                reply,
            })
            .await;
        answer.unwrap_or_else(|| {
            Err(RequestError::NotFound {
                what: "pod",
                id: pod.to_owned(),
            })
        })
    }

    /// Asks about a container; `None` when its pod has gone meanwhile.
    async fn ask_container<T>(
        &self,
        id: &str,
        verb: impl FnOnce(Reply<T>) -> Verb,
    ) -> Result<Option<T>, RequestError> {
        let view = self.0.board.container(id)?;
        let (pod, id): (PodId, ContainerId) = (view.pod.clone(), view.id.clone());
        self.ask(&pod, |reply| Request::Container(id, verb(reply)))
            .await
            .transpose()
    }

    pub(crate) async fn start_container(&self, id: &str) -> Result<(), RequestError> {
        self.ask_container(id, Verb::Start)
            .await?
            .ok_or_else(|| unknown(id))
    }

    pub(crate) async fn stop_container(
        &self,
        id: &str,
        grace: Duration,
    ) -> Result<(), RequestError> {
        let asked = self
            .ask_container(id, |reply| Verb::Stop(grace, reply))
            .await;
        absent_is_fine(asked).map(|_| ())
    }

    pub(crate) async fn remove_container(&self, id: &str) -> Result<(), RequestError> {
        absent_is_fine(self.ask_container(id, Verb::Remove).await).map(|_| ())
    }

    pub(crate) async fn update_container(
        &self,
        id: &str,
        resources: ResourceSpec,
    ) -> Result<(), RequestError> {
        let resources = Box::new(resources);
        let asked = self
            .ask_container(id, |reply| Verb::Update(resources, reply))
            .await;
        asked?.ok_or_else(|| unknown(id))
    }

    pub(crate) async fn reopen_log(&self, id: &str) -> Result<(), RequestError> {
        self.ask_container(id, Verb::ReopenLog)
            .await?
            .ok_or_else(|| unknown(id))
    }

    pub(crate) async fn exec_sync(
        &self,
        request: ExecSyncRequest,
    ) -> Result<ExecSyncOutput, RequestError> {
        let ExecSyncRequest {
            container,
            cmd,
            timeout,
        } = request;
        if cmd.is_empty() {
            let reason = "a command is needed".to_owned();
            return Err(RequestError::Invalid {
                field: "cmd",
                reason,
            });
        }
        let asked = self
            .ask_container(&container, |reply| Verb::Exec {
                cmd,
                timeout,
                reply,
            })
            .await;
        asked?.ok_or_else(|| unknown(&container))
    }

    /// Opens a socket in a ready pod, without its driver: nothing about the pod changes.
    pub(crate) async fn open_in_pod(
        &self,
        id: &str,
        socket: PodSocket,
    ) -> Result<OwnedFd, RequestError> {
        let pod = self.0.board.pod(id)?;
        ready(&pod, "open a socket in")?;
        let opened = self.0.world.open_in_pod(pod.id.clone(), socket).await;
        opened.map_err(|failure| step_error(&failure, subject(&pod)))
    }

    /// Connects a ready pod to a network that people made.
    pub(crate) async fn connect_network(
        &self,
        id: &str,
        asked: JoinNetwork,
    ) -> Result<Endpoint, RequestError> {
        const VERB: &str = "connect to a network";
        let (world, pod) = (&self.0.world, self.0.board.pod(id)?);
        ready(&pod, VERB)?;
        let network = asked.network.clone();
        // In a task of its own: a caller that goes away leaves nothing half-done.
        let made = tokio::spawn(world.connect_network(pod.id.clone(), asked)).await;
        let made = made.unwrap_or_else(|_panicked| Err(StepFailure::panicked()));
        let made = made.map_err(|failure| step_error(&failure, subject(&pod)))?;
        // A stop that began meanwhile may have looked before this was there.
        let after = self.0.board.pod(id).and_then(|pod| ready(&pod, VERB));
        if after.is_err() {
            let undone = world.disconnect_network(pod.id.clone(), network).await;
            if let Err(left) = undone {
                tracing::debug!(pod = %pod.id, error = %left, "the stop has done it");
            }
        }
        after.map(|()| made)
    }

    /// Disconnects a pod.
    pub(crate) async fn disconnect_network(
        &self,
        id: &str,
        network: &str,
    ) -> Result<(), RequestError> {
        let pod = self.0.board.pod(id)?;
        let step = self
            .0
            .world
            .disconnect_network(pod.id.clone(), network.to_owned());
        let done = tokio::spawn(step).await;
        let done = done.unwrap_or_else(|_panicked| Err(StepFailure::panicked()));
        done.map_err(|failure| step_error(&failure, subject(&pod)))
    }
}

fn ready(pod: &PodView, verb: &'static str) -> Result<(), RequestError> {
    if pod.state == PodState::Ready {
        return Ok(());
    }
    Err(RequestError::State {
        verb,
        what: "pod",
        id: pod.id.to_string(),
        state: pod.stage.to_owned(),
    })
}

fn subject(pod: &PodView) -> String {
    let metadata = &pod.spec.metadata;
    format!("pod {}/{}", metadata.namespace, metadata.name)
}

/// What a driver begins with.
enum Origin {
    New(Box<PodRecord>),
    Found(Box<Recovered>),
}

/// Sees to it that a pod has a driver until nothing is left of it.
struct Supervisor {
    world: Arc<dyn World>,
    board: Arc<Board>,
    pods: Weak<Inner>,
    spec: Arc<PodSpec>,
    id: PodId,
    requests: mpsc::Receiver<Request>,
}

impl Supervisor {
    /// Begins to drive; `asked` is told when the shim of a found pod was asked once.
    fn begin(self, origin: Origin, asked: Option<oneshot::Sender<()>>) {
        tokio::spawn(self.supervise(origin, asked));
    }

    /// A driver that ends over a fault of ours is replaced by one that begins with what the disk knows,
    /// as after a restart of the daemon. Its callers were told.
    async fn supervise(mut self, mut origin: Origin, mut asked: Option<oneshot::Sender<()>>) {
        let mut pause = RETRY_FIRST;
        loop {
            let (steps, mut under_way) = mpsc::channel(1);
            let around = self.surroundings(steps);
            let broken = match tokio::spawn(drive(around, origin, asked.take())).await {
                Err(broken) if broken.is_panic() => broken,
                _ => return,
            };
            tracing::error!(pod = %self.id, error = %broken, again_in = ?pause,
                "a fault of wharf: the pod's driver ended; another one takes over");
            // Requests from here on wait for the next driver.
            let Some(inner) = self.pods.upgrade() else {
                return;
            };
            let pods = Pods(inner);
            self = pods.enter(&mut pods.names(), self.spec, &self.id);
            drop(pods);
            // What that driver had begun ends first: nothing is done twice at the same time.
            while under_way.recv().await.is_some() {}
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_LAST);
            match self.load().await {
                Some(found) => origin = Origin::Found(Box::new(found)),
                None => return self.bury(),
            }
        }
    }

    fn surroundings(&mut self, steps: mpsc::Sender<()>) -> Surroundings {
        // The supervisor waits for its driver; nobody else sends anything in between.
        let (_, nobody) = mpsc::channel(1);
        let inner = self.pods.clone();
        let release = Box::new(move |id: &PodId| {
            if let Some(inner) = Weak::upgrade(&inner) {
                Pods(inner).release(id);
            }
        });
        Surroundings {
            world: self.world.clone(),
            board: self.board.clone(),
            requests: std::mem::replace(&mut self.requests, nobody),
            release,
            steps,
        }
    }

    /// What the disk knows; `None` when nothing of the pod is left.
    async fn load(&self) -> Option<Recovered> {
        let mut pause = RETRY_FIRST;
        loop {
            // In a task of its own: a panic of this step is its failure, too.
            let loaded = tokio::spawn(self.world.load_pod(self.id.clone())).await;
            match loaded.unwrap_or_else(|_panicked| Err(StepFailure::panicked())) {
                Ok(loaded) => {
                    let (boot, own) = (self.world.boot(), self.world.own_cgroup(&self.id));
                    return loaded.map(|loaded| Recovered::of(loaded, boot, own));
                }
                Err(failure) => {
                    tracing::warn!(pod = %self.id, error = %failure, again_in = ?pause,
                        "the pod's records cannot be read");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_LAST);
                }
            }
        }
    }

    /// Nothing is left of the pod: its name is free.
    fn bury(self) {
        self.board.keep(&self.id, |_| false);
        self.board.take_pod(&self.id);
        self.board.take_stage(self.id.as_str());
        if let Some(inner) = self.pods.upgrade() {
            Pods(inner).release(&self.id);
        }
    }
}

async fn drive(around: Surroundings, origin: Origin, asked: Option<oneshot::Sender<()>>) {
    let driver = match origin {
        Origin::New(record) => Driver::start(around, *record),
        Origin::Found(found) if found.newer.is_some() => {
            let refusals = foreign::hold(around, *found);
            drop(asked);
            return refusals.await;
        }
        Origin::Found(found) => {
            let mut driver = Driver::recover(around, *found);
            driver.adopt_now().await;
            driver
        }
    };
    if let Some(asked) = asked {
        asked.send(()).ok();
    }
    driver.run().await;
}

/// The request was lost with the driver.
fn fault(id: &PodId) -> RequestError {
    let text =
        "a fault of wharf: the pod's driver ended, see the log; another one takes over, try again";
    let failure = StepFailure::new("drive pod", Kind::Unavailable, text);
    step_error(&failure, format!("pod {id}"))
}

fn check_labels(count: usize) -> Result<(), RequestError> {
    if count <= LABELS_MAX {
        return Ok(());
    }
    Err(RequestError::Limit {
        what: "the number of labels and annotations",
        limit: LABELS_MAX,
    })
}

fn unknown(id: &str) -> RequestError {
    RequestError::NotFound {
        what: "container",
        id: id.to_owned(),
    }
}

/// CRI: stopping and removing what is not there succeeds.
fn absent_is_fine<T>(result: Result<T, RequestError>) -> Result<Option<T>, RequestError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == Kind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
