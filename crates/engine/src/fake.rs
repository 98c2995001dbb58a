//! A world for tests: it keeps what the machine would hold, and steps can be held back or made to fail.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use wharf_types::{ContainerId, Kind, PodId};

use crate::board::Board;
use crate::engine::Engine;
use crate::pod::recovered::Recovered;
use crate::pods::Pods;
use crate::record::{ContainerRecord, LoadedPod, PodRecord};
use crate::spec::*;
use crate::view::{ContainerFacts, NetworkView};
use crate::world::*;

/// What the machine holds.
#[derive(Default)]
pub(crate) struct Holdings {
    pub(crate) pod_records: BTreeMap<PodId, PodRecord>,
    pub(crate) container_records: BTreeMap<ContainerId, ContainerRecord>,
    pub(crate) prepared: BTreeSet<PodId>,
    pub(crate) shims: HashMap<PodId, ShimEvents>,
    pub(crate) networks: BTreeSet<PodId>,
    /// Containers in shims: started, exit.
    pub(crate) processes: BTreeMap<ContainerId, (PodId, bool, Option<i32>)>,
    pub(crate) snapshots: BTreeSet<ContainerId>,
    /// What was done, in order.
    pub(crate) log: Vec<String>,
    /// Which signals end a process by themselves.
    pub(crate) obeys: bool,
    fails: BTreeMap<&'static str, usize>,
    held: BTreeSet<&'static str>,
}

/// A world for tests.
#[derive(Clone)]
pub(crate) struct Fake(Arc<Inner>);

struct Inner {
    holdings: Mutex<Holdings>,
    released: watch::Sender<u64>,
    arrived: Notify,
    counter: AtomicU64,
}

impl Fake {
    pub(crate) fn new() -> Self {
        let holdings = Mutex::new(Holdings {
            obeys: true,
            ..Holdings::default()
        });
        let (released, _) = watch::channel(0);
        let (arrived, counter) = (Notify::new(), AtomicU64::new(1));
        Self(Arc::new(Inner {
            holdings,
            released,
            arrived,
            counter,
        }))
    }

    pub(crate) fn engine(&self) -> Engine {
        let board = Arc::new(Board::default());
        Engine::new(Pods::new(Arc::new(self.clone()), board.clone()), board)
    }

    /// An engine after a restart of the daemon, which died in a step that never ends.
    pub(crate) async fn restarted_without(&self, step: &'static str) -> Engine {
        // Whoever waits there is not told, and so waits for ever.
        self.holdings().held.remove(step);
        self.restarted().await
    }

    /// An engine after a restart of the daemon.
    pub(crate) async fn restarted(&self) -> Engine {
        let found = {
            let h = self.holdings();
            let containers = |pod: &PodId| {
                let all = h.container_records.values();
                all.filter(|c| c.pod == *pod).cloned().collect()
            };
            let pods = h.pod_records.values().cloned();
            pods.map(|record| Recovered {
                containers: containers(&record.id),
                record,
                newer: None,
            })
            .collect()
        };
        self.restarted_with(found).await
    }

    /// An engine after a restart of the daemon that found this on the disk.
    pub(crate) async fn restarted_with(&self, found: Vec<Recovered>) -> Engine {
        let board = Arc::new(Board::default());
        let pods = Pods::new(Arc::new(self.clone()), board.clone());
        pods.recover(found).await;
        Engine::new(pods, board)
    }

    pub(crate) fn holdings(&self) -> MutexGuard<'_, Holdings> {
        self.0.holdings.lock().unwrap()
    }

    /// The next `times` steps called `step` fail.
    pub(crate) fn fail(&self, step: &'static str, times: usize) {
        self.holdings().fails.insert(step, times);
    }

    /// Steps called `step` wait until they are let go.
    pub(crate) fn hold(&self, step: &'static str) {
        self.holdings().held.insert(step);
    }

    pub(crate) fn let_go(&self, step: &'static str) {
        self.holdings().held.remove(step);
        self.0.released.send_modify(|n| *n += 1);
    }

    /// Waits until a step called `step` was begun.
    pub(crate) async fn reached(&self, step: &str) {
        loop {
            let arrived = self.0.arrived.notified();
            if self.holdings().log.iter().any(|s| s == step) {
                return;
            }
            arrived.await;
        }
    }

    pub(crate) fn count(&self, step: &str) -> usize {
        self.holdings().log.iter().filter(|s| *s == step).count()
    }

    /// A container's process ends.
    pub(crate) async fn exit(&self, id: &str, code: i32, signal: i32) {
        let (events, container) = {
            let mut h = self.holdings();
            let key = id.parse::<ContainerId>().unwrap();
            let Some(process) = h.processes.get_mut(&key) else {
                return;
            };
            if process.2.is_some() {
                return;
            }
            process.2 = Some(code);
            let pod = process.0.clone();
            (h.shims.get(&pod).cloned(), key)
        };
        if let Some(events) = events {
            let event = ShimEvent::Exited {
                container,
                code,
                signal,
                at_ns: 77,
            };
            events.send(event).await.ok();
        }
    }

    /// The shim of a pod dies, with everything in it.
    pub(crate) async fn kill_shim(&self, pod: &PodId) {
        let events = {
            let mut h = self.holdings();
            h.processes.retain(|_, process| process.0 != *pod);
            h.shims.remove(pod)
        };
        if let Some(events) = events {
            events.send(ShimEvent::Lost).await.ok();
        }
    }

    /// The shim of a pod stops answering.
    pub(crate) async fn silence_shim(&self, pod: &PodId) {
        self.hold("silent");
        let events = self.holdings().shims.get(pod).cloned();
        events.unwrap().send(ShimEvent::Silent).await.unwrap();
    }

    /// Nothing of any pod is left.
    pub(crate) fn is_clean(&self) -> bool {
        let h = self.holdings();
        h.pod_records.is_empty()
            && h.container_records.is_empty()
            && h.prepared.is_empty()
            && h.shims.is_empty()
            && h.networks.is_empty()
            && h.processes.is_empty()
            && h.snapshots.is_empty()
    }

    fn step<T: Send + 'static>(
        &self,
        name: &'static str,
        act: impl FnOnce(&mut Holdings) -> T + Send + 'static,
    ) -> Step<T> {
        let fake = self.clone();
        Box::pin(async move {
            fake.holdings().log.push(name.to_owned());
            fake.0.arrived.notify_waiters();
            let mut released = fake.0.released.subscribe();
            while fake.holdings().held.contains(name) {
                released.changed().await.ok();
            }
            let mut h = fake.holdings();
            if let Some(left) = h.fails.get_mut(name).filter(|left| **left > 0) {
                *left -= 1;
                return Err(StepFailure::new(name, Kind::Internal, "made to fail"));
            }
            Ok(act(&mut h))
        })
    }
}

/// An exec under way: when it is given up, that is seen.
struct GivenUp(Option<Fake>);

impl GivenUp {
    fn over(mut self) {
        self.0 = None;
    }
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        if let Some(fake) = &self.0 {
            fake.holdings().log.push("exec given up".to_owned());
            fake.0.arrived.notify_waiters();
        }
    }
}

pub(crate) fn pod_spec(name: &str) -> PodSpec {
    let metadata = PodMetadata {
        name: name.to_owned(),
        namespace: "ns".to_owned(),
        uid: "u".to_owned(),
        attempt: 0,
    };
    PodSpec {
        metadata,
        ..PodSpec::default()
    }
}

pub(crate) fn container_spec(name: &str) -> ContainerSpec {
    let metadata = ContainerMetadata {
        name: name.to_owned(),
        attempt: 0,
    };
    ContainerSpec {
        metadata,
        ..ContainerSpec::default()
    }
}

impl World for Fake {
    fn now_ns(&self) -> i64 {
        i64::try_from(self.0.counter.fetch_add(1, Ordering::Relaxed)).unwrap()
    }

    fn random(&self) -> Result<[u8; 32], StepFailure> {
        let mut bytes = [0; 32];
        let n = self.0.counter.fetch_add(1, Ordering::Relaxed);
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        Ok(bytes)
    }

    fn boot(&self) -> String {
        "boot".to_owned()
    }

    fn plan_pod(&self, record: &mut PodRecord) -> Result<(), StepFailure> {
        record.cgroup = format!("w/{}", record.id);
        Ok(())
    }

    fn own_cgroup(&self, pod: &PodId) -> String {
        format!("w/{pod}")
    }

    fn load_pod(&self, id: PodId) -> Step<Option<LoadedPod>> {
        self.step("load pod", move |h| {
            let pod = h.pod_records.get(&id)?.clone();
            let all = h.container_records.values();
            Some(LoadedPod {
                containers: all.filter(|c| c.pod == id).cloned().collect(),
                id,
                pod: Ok(pod),
                broken: Vec::new(),
            })
        })
    }

    fn save_pod(&self, pod: Arc<PodRecord>) -> Step<()> {
        self.step("save pod", move |h| {
            h.pod_records.insert(pod.id.clone(), (*pod).clone());
        })
    }

    fn prepare_pod(&self, pod: Arc<PodRecord>) -> Step<()> {
        // The record is there even when the rest fails.
        self.holdings()
            .pod_records
            .insert(pod.id.clone(), (*pod).clone());
        self.step("prepare pod", move |h| {
            h.prepared.insert(pod.id.clone());
        })
    }

    fn start_shim(&self, pod: Arc<PodRecord>, events: ShimEvents) -> Step<ShimFacts> {
        self.step("start shim", move |h| {
            h.shims.insert(pod.id.clone(), events);
            ShimFacts {
                pid: 7,
                sandbox_pid: None,
                netns: None,
            }
        })
    }

    fn adopt_shim(&self, pod: Arc<PodRecord>, events: ShimEvents) -> Step<Adoption> {
        self.step("adopt shim", move |h| {
            if h.held.contains("silent") {
                return Adoption::Silent;
            }
            match h.shims.get_mut(&pod.id) {
                Some(held) => *held = events,
                None => return Adoption::Gone,
            }
            let mine = h
                .processes
                .iter()
                .filter(|(_, process)| process.0 == pod.id);
            let found = mine.map(|(id, (_, started, exit))| FoundContainer {
                id: id.clone(),
                pid: 8,
                started: *started,
                exited: exit.map(|code| (code, 0, 66)),
            });
            Adoption::Living(
                ShimFacts {
                    pid: 7,
                    sandbox_pid: None,
                    netns: None,
                },
                found.collect(),
            )
        })
    }

    fn attach_network(&self, pod: Arc<PodRecord>) -> Step<NetworkView> {
        self.step("attach network", move |h| {
            h.networks.insert(pod.id.clone());
            NetworkView::default()
        })
    }

    fn detach_network(&self, pod: Arc<PodRecord>) -> Step<()> {
        self.step("detach network", move |h| {
            h.networks.remove(&pod.id);
        })
    }

    fn end_shim(&self, pod: Arc<PodRecord>) -> Step<()> {
        self.step("end shim", move |h| {
            h.shims.remove(&pod.id);
            h.processes.retain(|_, process| process.0 != pod.id);
        })
    }

    fn forget_pod(&self, pod: Arc<PodRecord>) -> Step<()> {
        self.step("forget pod", move |h| {
            h.prepared.remove(&pod.id);
            h.pod_records.remove(&pod.id);
        })
    }

    fn create_container(&self, job: CreateJob) -> Step<Made> {
        {
            let mut h = self.holdings();
            h.container_records
                .insert(job.record.id.clone(), (*job.record).clone());
            h.snapshots.insert(job.record.id.clone());
        }
        self.step("create container", move |h| {
            let facts = Arc::new(ContainerFacts {
                stop_signal: 15,
                ..ContainerFacts::default()
            });
            let id = job.record.id.clone();
            let facts_in_record = Some(facts.clone());
            let record = ContainerRecord {
                facts: facts_in_record,
                ..(*job.record).clone()
            };
            h.container_records.insert(id.clone(), record);
            h.processes.insert(id, (job.pod.id.clone(), false, None));
            Made { pid: 8, facts }
        })
    }

    fn save_container(&self, record: Arc<ContainerRecord>) -> Step<()> {
        self.step("save container", move |h| {
            h.container_records
                .insert(record.id.clone(), (*record).clone());
        })
    }

    fn start_container(&self, container: ContainerRef) -> Step<()> {
        self.step("start container", move |h| {
            if let Some(process) = h.processes.get_mut(&container.record.id) {
                process.1 = true;
            }
        })
    }

    fn signal_container(&self, container: ContainerRef, signal: i32) -> Step<()> {
        let fake = self.clone();
        let step = self.step("signal", |h| h.obeys);
        Box::pin(async move {
            if step.await? {
                fake.exit(container.record.id.as_str(), 128 + signal, signal)
                    .await;
            }
            Ok(())
        })
    }

    fn kill_container(&self, container: ContainerRef) -> Step<()> {
        let fake = self.clone();
        let step = self.step("kill", |_| ());
        Box::pin(async move {
            step.await?;
            if !fake.holdings().held.contains("silent") {
                fake.exit(container.record.id.as_str(), 137, 9).await;
            }
            Ok(())
        })
    }

    fn collect_container(&self, _container: ContainerRef) -> Step<Remains> {
        self.step("collect", |h| Remains {
            oom_killed: h.held.contains("oom"),
            ended: None,
        })
    }

    fn remove_container(&self, container: ContainerRef) -> Step<()> {
        self.step("remove container", move |h| {
            let id = &container.record.id;
            h.processes.remove(id);
            h.snapshots.remove(id);
            h.container_records.remove(id);
        })
    }

    fn update_container(&self, _container: ContainerRef, _resources: ResourceSpec) -> Step<()> {
        self.step("update", |_| ())
    }

    fn reopen_log(&self, _container: ContainerRef) -> Step<()> {
        // Called in the driver itself.
        let broken = self.holdings().held.contains("driver fault");
        if broken {
            std::panic::resume_unwind(Box::new("asked for"));
        }
        self.step("reopen log", |_| ())
    }

    fn exec_sync(&self, job: ExecJob) -> Step<ExecEnd> {
        let step = self.step("exec", |_| ());
        let under_way = GivenUp(Some(self.clone()));
        Box::pin(async move {
            assert_ne!(job.cmd, ["panic"], "asked for");
            let end = match job.timeout {
                Some(within) => tokio::time::timeout(within, step).await,
                None => Ok(step.await),
            };
            under_way.over();
            match end {
                Ok(done) => done.map(|()| ExecEnd::Output(ExecSyncOutput::default())),
                Err(_elapsed) => Ok(ExecEnd::TimedOut),
            }
        })
    }
}

/// Long enough for anything that needs no time.
pub(crate) const SOON: Duration = Duration::from_millis(1);
