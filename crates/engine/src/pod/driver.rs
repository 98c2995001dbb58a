//! The task that owns a pod and its containers. It never waits inside a step: effects run as child
//! tasks and report back, and everybody else sends requests.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use wharf_types::{ContainerId, Kind, PodId};

use super::request::{Outcome, PodOutcome, Request};
use super::state::{Effect, Event, State};
use crate::board::Board;
use crate::container::slot::{RawExit, Reply, Slot, answer_all, answer_one, step_error};
use crate::error::RequestError;
use crate::limits::{RETRY_FIRST, RETRY_LAST, SHIM_EVENTS_MAX};
use crate::record::{Exit, PodPhase, PodRecord};
use crate::view::{PodState, PodView};
use crate::world::{Adoption, ShimEvent, ShimEvents, ShimFacts, Step, StepFailure, World};

/// Frees the pod's name; called once, when nothing of the pod is left, before anybody is told.
pub(crate) type Release = Box<dyn FnOnce(&PodId) + Send>;

/// What a driver works with.
pub(crate) struct Surroundings {
    pub(crate) world: Arc<dyn World>,
    pub(crate) board: Arc<Board>,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) release: Release,
    /// Nothing is ever sent: closed when the driver and the last of its steps have ended.
    pub(crate) steps: mpsc::Sender<()>,
}

/// The owner of a pod's state.
pub(crate) struct Driver {
    pub(super) world: Arc<dyn World>,
    pub(super) board: Arc<Board>,
    requests: mpsc::Receiver<Request>,
    release: Option<Release>,
    pub(super) steps: mpsc::Sender<()>,
    pub(super) told: mpsc::Receiver<ShimEvent>,
    pub(super) events: ShimEvents,
    pub(super) tasks: JoinSet<Outcome>,
    pub(super) record: Arc<PodRecord>,
    pub(super) state: State,
    pub(super) shim: Option<ShimFacts>,
    /// The shim answers, as far as is known.
    pub(super) reachable: bool,
    /// A connection ended while the shim was being started: that step alone knows whether there is another.
    lost_early: bool,
    /// It was ready once, or was found: readers see it.
    pub(super) published: bool,
    /// An effect of the pod is under way; the next one waits.
    busy: bool,
    due: Option<Effect>,
    retry: Duration,
    /// Why its start failed.
    failure: Option<RequestError>,
    pub(super) remove_wish: bool,
    runners: Vec<Reply<PodId>>,
    /// Who repeats a start that was cut off: dropped with the driver, which means "begin anew".
    repeaters: Vec<Reply<PodId>>,
    pub(super) stoppers: Vec<Reply<()>>,
    removers: Vec<Reply<()>>,
    pub(super) containers: BTreeMap<ContainerId, Slot>,
    pub(super) execs: usize,
    pub(super) exec_count: u64,
}

impl Driver {
    /// A driver for a pod in `state`; nothing begins before [`Driver::run`].
    pub(super) fn new(around: Surroundings, record: PodRecord, state: State) -> Self {
        let (events, told) = mpsc::channel(SHIM_EVENTS_MAX);
        Self {
            world: around.world,
            board: around.board,
            requests: around.requests,
            release: Some(around.release),
            steps: around.steps,
            told,
            events,
            tasks: JoinSet::new(),
            record: Arc::new(record),
            state,
            shim: None,
            reachable: true,
            lost_early: false,
            published: false,
            busy: false,
            due: None,
            retry: RETRY_FIRST,
            failure: None,
            remove_wish: false,
            runners: Vec::new(),
            repeaters: Vec::new(),
            stoppers: Vec::new(),
            removers: Vec::new(),
            containers: BTreeMap::new(),
            execs: 0,
            exec_count: 0,
        }
    }

    /// A new pod: its start begins at once.
    pub(crate) fn start(around: Surroundings, record: PodRecord) -> Self {
        let mut driver = Self::new(around, record, State::Preparing);
        driver.busy = true;
        driver
            .board
            .put_stage(driver.record.id.as_str(), driver.state.stage());
        let step = driver.world.prepare_pod(driver.record.clone());
        driver.spawn_step(step, PodOutcome::Prepared);
        driver
    }

    /// Drives until nothing is left of the pod, or the engine has gone.
    pub(crate) async fn run(mut self) {
        while self.state != State::Gone {
            // Order matters: what has happened is taken before what is asked for.
            tokio::select! {
                biased;
                Some(event) = self.told.recv() => self.on_shim(event),
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => match done {
                    Ok(outcome) => self.on_outcome(outcome),
                    // Steps run in tasks of their own, so that this is a fault in the few lines between.
                    Err(broken) => tracing::error!(pod = %self.record.id, error = %broken, "task"),
                },
                request = self.requests.recv() => match request {
                    Some(request) => self.on_request(request),
                    None => return,
                },
            }
        }
        self.finish();
    }

    fn finish(&mut self) {
        let id = self.record.id.clone();
        self.board.take_pod(&id);
        self.board.take_stage(id.as_str());
        if let Some(release) = self.release.take() {
            release(&id);
        }
        let failed = self.failure.take().unwrap_or_else(|| self.refusal("start"));
        answer_all(&mut self.runners, &Err(failed));
        answer_all(&mut self.stoppers, &Ok(()));
        answer_all(&mut self.removers, &Ok(()));
        tracing::info!(pod = %id, "pod removed");
    }

    fn on_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Pod(outcome) => self.on_pod(outcome),
            Outcome::Container(id, outcome) => self.on_container(&id, outcome),
            Outcome::Served { exec } => self.execs -= usize::from(exec),
        }
    }

    fn on_request(&mut self, request: Request) {
        match request {
            Request::Run(reply) => self.on_run(reply),
            Request::Stop(reply) => match self.state {
                State::Stopped | State::Removing | State::Gone => answer_one(reply, Ok(())),
                _ => {
                    self.stoppers.push(reply);
                    self.feed(Event::Stop);
                }
            },
            Request::Remove(reply) => {
                self.removers.push(reply);
                self.remove_wish = true;
                self.feed(Event::Stop);
                self.settle();
            }
            Request::Create {
                spec,
                digest,
                reply,
            } => self.on_create(*spec, digest, reply),
            Request::Container(id, verb) => self.on_verb(&id, verb),
        }
    }

    fn on_run(&mut self, reply: Reply<PodId>) {
        if self.state.is_starting() && !self.remove_wish {
            self.runners.push(reply);
        } else if self.state == State::Ready {
            answer_one(reply, Ok(self.record.id.clone()));
        } else if let (Some(failure), false) = (&self.failure, self.published) {
            // Its start failed, and is being undone: the repetition learns why.
            answer_one(reply, Err(failure.clone()));
        } else if !self.published {
            // Its start was cut off, and is being undone: when the name is free, the repetition begins anew.
            self.repeaters.push(reply);
        } else {
            answer_one(reply, Err(self.gone_further()));
        }
    }

    fn gone_further(&self) -> RequestError {
        RequestError::Exists {
            what: "pod",
            name: self.record.spec.metadata.to_string(),
            id: self.record.id.to_string(),
            difference: "the same configuration, but has gone on to be stopped",
        }
    }

    /// Feeds the state machine, begins what follows, publishes.
    pub(super) fn feed(&mut self, event: Event) {
        let before = self.state;
        let effect = self.state.on(event);
        if self.state != before {
            tracing::debug!(pod = %self.record.id, stage = self.state.stage(), "pod stage");
            self.board
                .put_stage(self.record.id.as_str(), self.state.stage());
            self.published |= self.state == State::Ready;
        }
        if let Some(effect) = effect {
            self.begin_or_wait(effect);
        }
        if self.state != before {
            self.publish();
            self.settle();
        }
    }

    fn begin_or_wait(&mut self, effect: Effect) {
        // Killing containers is done by the containers' own effects, which wait for nobody.
        if effect == Effect::KillContainers {
            self.kill_containers();
        } else if self.busy {
            self.due = Some(effect);
        } else {
            self.busy = true;
            self.begin(effect);
        }
    }

    fn begin(&mut self, effect: Effect) {
        if effect == Effect::DetachNetwork {
            // A start that nobody was answered may be written down as ready by now.
            let phase = match self.published {
                true => PodPhase::Stopped,
                false => PodPhase::Starting,
            };
            Arc::make_mut(&mut self.record).phase = phase;
        }
        let (world, pod) = (self.world.clone(), self.record.clone());
        match effect {
            Effect::StartShim => {
                let step = world.start_shim(pod, self.events.clone());
                self.spawn_step(step, PodOutcome::ShimUp);
            }
            Effect::AttachNetwork => {
                let netns = self.shim.as_ref().and_then(|s| s.netns.clone());
                self.spawn_step(attach(world, pod, netns), PodOutcome::NetworkUp);
            }
            Effect::KillContainers => {}
            Effect::DetachNetwork => self.spawn_step(detach(world, pod), PodOutcome::Detached),
            Effect::EndShim => self.spawn_step(world.end_shim(pod), PodOutcome::Ended),
            Effect::Forget => self.spawn_step(world.forget_pod(pod), PodOutcome::Forgotten),
        }
    }

    pub(super) fn spawn_step<T, F>(&mut self, step: Step<T>, outcome: F)
    where
        T: Send + 'static,
        F: FnOnce(Result<T, StepFailure>) -> PodOutcome + Send + 'static,
    {
        let step = self.own_task(step);
        self.tasks
            .spawn(async move { Outcome::Pod(outcome(step.await)) });
    }

    /// A step in a task of its own: it goes on when the driver ends over a fault, and its panic is its
    /// failure.
    pub(super) fn own_task<T: Send + 'static>(&self, step: Step<T>) -> Step<T> {
        let under_way = self.steps.clone();
        let step = tokio::spawn(async move {
            let done = step.await;
            drop(under_way);
            done
        });
        Box::pin(async move {
            step.await
                .unwrap_or_else(|_panicked| Err(StepFailure::panicked()))
        })
    }

    fn later(&mut self, pause: Duration, outcome: PodOutcome) {
        self.tasks.spawn(async move {
            tokio::time::sleep(pause).await;
            Outcome::Pod(outcome)
        });
    }

    pub(super) fn on_pod(&mut self, outcome: PodOutcome) {
        let event = match outcome {
            PodOutcome::Again => return self.feed(Event::Again),
            PodOutcome::AskAgain => return self.ask(),
            PodOutcome::Adopted(answer) => return self.on_adopted(answer),
            PodOutcome::Prepared(done) => self.started(done.map(|()| Event::Prepared)),
            PodOutcome::ShimUp(done) => {
                let done = done.map(|facts| self.shim = Some(facts));
                self.started(done.map(|()| Event::ShimUp))
            }
            PodOutcome::NetworkUp(done) => {
                let done = done.map(|record| self.record = record);
                self.started(done.map(|()| Event::NetworkUp))
            }
            PodOutcome::Detached(done) => self.taken_down(done, Event::Detached),
            PodOutcome::Ended(done) => self.taken_down(done, Event::Ended),
            PodOutcome::Forgotten(done) => self.taken_down(done, Event::Removed),
        };
        self.busy = false;
        if let Some(due) = self.due.take() {
            // Something else was decided meanwhile; the outcome changes nothing any more.
            self.busy = true;
            self.begin(due);
        } else if let Some(event) = event {
            self.feed(event);
        }
        if self.lost_early && self.state == State::Ready {
            self.lost_early = false;
            self.look_after_shim();
        }
    }

    fn started(&mut self, done: Result<Event, StepFailure>) -> Option<Event> {
        match done {
            Ok(event) => Some(event),
            Err(failure) => {
                let subject = format!("pod {}", self.record.spec.metadata);
                self.failure.get_or_insert(step_error(&failure, subject));
                self.remove_wish = true;
                Some(Event::Failed)
            }
        }
    }

    fn taken_down(&mut self, done: Result<(), StepFailure>, event: Event) -> Option<Event> {
        match done {
            Ok(()) => {
                self.retry = RETRY_FIRST;
                if event == Event::Ended {
                    self.shim = None;
                }
                Some(event)
            }
            Err(failure) => {
                let pause = self.retry;
                self.retry = (pause * 2).min(RETRY_LAST);
                tracing::warn!(pod = %self.record.id, error = %failure, again_in = ?pause,
                    "a step of the teardown failed");
                self.give_up_waiters(&failure);
                self.later(pause, PodOutcome::Again);
                None
            }
        }
    }

    /// Those who wait are told why it takes longer; the work goes on without them.
    pub(super) fn give_up_waiters(&mut self, failure: &StepFailure) {
        let error = step_error(failure, format!("pod {}", self.record.spec.metadata));
        answer_all(&mut self.stoppers, &Err(error.clone()));
        answer_all(&mut self.removers, &Err(error.clone()));
        let started = self.failure.clone().unwrap_or(error);
        answer_all(&mut self.repeaters, &Err(started.clone()));
        answer_all(&mut self.runners, &Err(started));
    }

    /// Takes the steps that follow from containers having gone and from what is wished, and answers
    /// those whose wish has come true.
    pub(super) fn settle(&mut self) {
        let live = self.containers.values().any(|slot| slot.state.is_live());
        match self.state {
            State::Ready => answer_all(&mut self.runners, &Ok(self.record.id.clone())),
            State::Killing if !live => self.feed(Event::ContainersGone),
            State::Stopped => {
                if self.published {
                    answer_all(&mut self.stoppers, &Ok(()));
                }
                // A start that nobody was answered leaves nothing, whatever cut it off.
                if self.remove_wish || !self.published {
                    self.remove_containers();
                    if self.containers.is_empty() {
                        self.feed(Event::Remove);
                    }
                }
            }
            _ => {}
        }
    }

    pub(super) fn on_shim(&mut self, event: ShimEvent) {
        match event {
            ShimEvent::Exited {
                container,
                code,
                signal,
                at_ns,
            } => {
                self.on_exit(
                    &container,
                    RawExit::Seen {
                        code,
                        signal,
                        at_ns,
                    },
                );
            }
            ShimEvent::Warning { container, text } => {
                let container = container.as_ref().map(ContainerId::as_str);
                tracing::warn!(pod = %self.record.id, container, text, "warning of the shim");
            }
            ShimEvent::SandboxEnded => {
                if self.state == State::Ready {
                    tracing::warn!(pod = %self.record.id, "the pod's PID namespace has ended");
                }
                self.start_lost();
                self.feed(Event::Lost);
            }
            ShimEvent::Silent if self.reachable => {
                tracing::warn!(pod = %self.record.id, "the shim does not answer");
                self.reachable = false;
                if self.state == State::Ready {
                    self.ask_later();
                }
            }
            ShimEvent::Silent => {}
            ShimEvent::Lost if self.state == State::Starting => self.lost_early = true,
            ShimEvent::Lost if self.state == State::Ready => self.look_after_shim(),
            ShimEvent::Lost => self.on_lost(),
        }
    }

    pub(super) fn on_lost(&mut self) {
        if self.shim.take().is_some() && !matches!(self.state, State::Ending | State::Stopped) {
            tracing::warn!(pod = %self.record.id, "the shim has ended");
        }
        self.reachable = true;
        self.start_lost();
        let at_ns = self.world.now_ns();
        let exit = match self.record.boot == self.world.boot() {
            true => RawExit::Lost { at_ns },
            false => {
                let why = "the machine restarted; nobody saw the exit code";
                RawExit::Decided(Exit::unseen(at_ns, why))
            }
        };
        let live: Vec<_> = self.containers.keys().cloned().collect();
        for id in live {
            self.on_exit(&id, exit.clone());
        }
        self.feed(Event::Lost);
        self.publish();
    }

    /// Those who wait for the start learn why there will be none.
    fn start_lost(&mut self) {
        if self.state.is_starting() && self.failure.is_none() {
            let text = "the pod's shim ended while the pod was being started";
            let lost = StepFailure::new(self.state.stage(), Kind::Unavailable, text);
            let subject = format!("pod {}", self.record.spec.metadata);
            self.failure = Some(step_error(&lost, subject));
        }
    }

    /// The connection is gone. Usually the shim is; but one that had too much to tell cuts us off, and
    /// goes on.
    fn look_after_shim(&mut self) {
        self.reachable = false;
        self.ask();
    }

    /// Asks a silent shim again.
    pub(super) fn ask(&mut self) {
        if self.state == State::Ready && !self.reachable {
            let step = self
                .world
                .adopt_shim(self.record.clone(), self.events.clone());
            self.spawn_step(step, PodOutcome::Adopted);
        }
    }

    fn on_adopted(&mut self, answer: Result<Adoption, StepFailure>) {
        match answer {
            Ok(Adoption::Living(facts, found)) => {
                tracing::info!(pod = %self.record.id, "the shim answers again");
                self.adopt(facts, &found);
                self.publish();
            }
            Ok(Adoption::Gone) => self.on_lost(),
            Ok(Adoption::Silent) | Err(_) => self.ask_later(),
        }
    }

    pub(super) fn ask_later(&mut self) {
        self.reachable = false;
        self.publish();
        let pause = self.retry;
        self.retry = (pause * 2).min(RETRY_LAST);
        self.later(pause, PodOutcome::AskAgain);
    }

    pub(super) fn refusal(&self, verb: &'static str) -> RequestError {
        RequestError::State {
            verb,
            what: "pod",
            id: self.record.id.to_string(),
            state: self.state.word().to_owned(),
        }
    }

    /// Publishes the pod and all its containers.
    pub(super) fn publish(&self) {
        if !self.published || self.state == State::Gone {
            return;
        }
        let state = match (self.state, self.reachable) {
            (State::Ready, true) => PodState::Ready,
            (State::Ready, false) => PodState::Unknown,
            _ => PodState::NotReady,
        };
        let record = &self.record;
        let shim = self.shim.as_ref();
        self.board.put_pod(PodView {
            id: record.id.clone(),
            spec: record.spec.clone(),
            state,
            stage: self.state.stage(),
            created_at_ns: record.created_at_ns,
            network: record.network.clone(),
            shim_pid: shim.map(|s| s.pid),
            sandbox_pid: shim.and_then(|s| s.sandbox_pid),
            netns: shim.and_then(|s| s.netns.clone()),
            cgroup: record.cgroup.clone(),
            hostname: record.hostname.clone(),
        });
        for id in self.containers.keys() {
            self.publish_container(id);
        }
    }
}

impl Drop for Driver {
    /// Nobody is at these stages any more; the next driver of this pod begins with others.
    fn drop(&mut self) {
        self.board.take_stage(self.record.id.as_str());
        for id in self.containers.keys() {
            self.board.take_stage(id.as_str());
        }
    }
}

/// Attaches the network and writes down that the pod is ready: a restart from here on keeps it.
fn attach(
    world: Arc<dyn World>,
    pod: Arc<PodRecord>,
    netns: Option<PathBuf>,
) -> Step<Arc<PodRecord>> {
    Box::pin(async move {
        let network = world.attach_network(pod.clone()).await?;
        let phase = PodPhase::Ready;
        let ready = Arc::new(PodRecord {
            network,
            netns,
            phase,
            ..(*pod).clone()
        });
        world.save_pod(ready.clone()).await?;
        Ok(ready)
    })
}

/// Writes down that the pod is not ready any more, then detaches its network. A record that cannot be
/// written (a full disk) does not keep the network attached.
fn detach(world: Arc<dyn World>, pod: Arc<PodRecord>) -> Step<()> {
    Box::pin(async move {
        if let Err(failure) = world.save_pod(pod.clone()).await {
            tracing::warn!(pod = %pod.id, error = %failure, "the pod's record is not up to date");
        }
        world.detach_network(pod).await
    })
}
