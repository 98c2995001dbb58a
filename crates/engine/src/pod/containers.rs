//! The driver's part that concerns containers: effects, outcomes, answers.

use std::sync::Arc;

use tokio::time::Instant;
use wharf_types::ContainerId;

use super::driver::Driver;
use super::request::{ContainerOutcome, Outcome};
use crate::container::keeper::Keeper;
use crate::container::slot::{RawExit, Reply, Slot, answer_all, answer_one, overdue};
use crate::container::state::{Effect, Event, State};
use crate::limits::{KILL_GRACE, RETRY_FIRST, RETRY_LAST};
use crate::record::Exit;
use crate::spec::ResourceSpec;
use crate::world::{ContainerRef, Step, StepFailure, World};

/// Exit code of a container whose program could not be started.
const START_ERROR: i32 = 128;
/// Exit code of a container that was ended by SIGKILL.
const KILLED: i32 = 137;

impl Driver {
    /// A container's init has ended, or nobody can tell any more.
    pub(super) fn on_exit(&mut self, id: &ContainerId, exit: RawExit) {
        let Some(slot) = self.containers.get_mut(id) else {
            return tracing::warn!(container = %id, "an unknown container ended");
        };
        if slot.exit.is_none() && slot.state.is_live() && slot.state != State::Collecting {
            slot.exit = Some(exit);
            self.pursue(id);
        }
    }

    /// Feeds what follows from what has happened and what is wished, until nothing follows.
    pub(super) fn pursue(&mut self, id: &ContainerId) {
        while let Some(event) = self.containers.get(id).and_then(Slot::next_event) {
            self.feed_container(id, event);
        }
    }

    pub(super) fn feed_container(&mut self, id: &ContainerId, event: Event) {
        let Some(slot) = self.containers.get_mut(id) else {
            return;
        };
        let before = slot.state;
        let effect = slot.state.on(event);
        let after = slot.state;
        if let Some(effect) = effect {
            self.begin_container(id, effect);
        }
        if after != before {
            tracing::debug!(container = %id, state = after.word(), "container state");
            self.board.put_stage(id.as_str(), after.word());
            // Published before it is answered: who was answered finds it so.
            self.publish_container(id);
            self.answer(id);
            self.settle();
        }
    }

    fn begin_container(&mut self, id: &ContainerId, effect: Effect) {
        let world = self.world.clone();
        let Some(slot) = self.containers.get(id) else {
            return;
        };
        let container = ContainerRef {
            pod: self.record.clone(),
            record: slot.record.clone(),
        };
        match effect {
            Effect::Start => {
                let step = start(world, slot.keeper.clone(), container);
                self.spawn_container(id, step, ContainerOutcome::Started);
            }
            Effect::Signal => {
                let signal = container.record.facts.as_ref().map_or(0, |f| f.stop_signal);
                let step = world.signal_container(container, signal);
                self.spawn_container(id, step, ContainerOutcome::Signalled);
            }
            Effect::Kill => {
                let step = world.kill_container(container);
                self.spawn_container(id, step, ContainerOutcome::Killed);
                self.container_later(id, Instant::now() + KILL_GRACE, ContainerOutcome::KillCheck);
            }
            Effect::Collect => {
                let raw = slot.exit.clone();
                let step = collect(world, slot.keeper.clone(), container, raw);
                self.spawn_container(id, step, ContainerOutcome::Collected);
            }
            Effect::Remove => {
                let step = remove(world, slot.keeper.clone(), container);
                self.spawn_container(id, step, ContainerOutcome::Removed);
            }
        }
    }

    pub(super) fn spawn_container<T, F>(&mut self, id: &ContainerId, step: Step<T>, outcome: F)
    where
        T: Send + 'static,
        F: FnOnce(Result<T, StepFailure>) -> ContainerOutcome + Send + 'static,
    {
        let id = id.clone();
        let step = self.own_task(step);
        self.tasks
            .spawn(async move { Outcome::Container(id, outcome(step.await)) });
    }

    pub(super) fn container_later(
        &mut self,
        id: &ContainerId,
        at: Instant,
        outcome: ContainerOutcome,
    ) {
        let id = id.clone();
        self.tasks.spawn(async move {
            tokio::time::sleep_until(at).await;
            Outcome::Container(id, outcome)
        });
    }

    pub(super) fn on_container(&mut self, id: &ContainerId, outcome: ContainerOutcome) {
        let Some(slot) = self.containers.get_mut(id) else {
            return;
        };
        match outcome {
            ContainerOutcome::Made(Ok(made)) => {
                slot.pid = Some(made.pid);
                slot.edit(|record| record.facts = Some(made.facts));
                // Its making has written them.
                slot.keeper = Keeper::new(slot.record.clone());
                self.feed_container(id, Event::Made);
            }
            ContainerOutcome::Made(Err(failure)) => {
                slot.failure = Some(slot.error(&failure));
                slot.wish.remove = true;
                self.feed_container(id, Event::Failed);
            }
            ContainerOutcome::Started(Ok(())) => {
                self.feed_container(id, Event::Started);
            }
            ContainerOutcome::Started(Err(failure)) => self.start_failed(id, &failure),
            ContainerOutcome::Killed(Ok(())) if !self.reachable => {
                // Killed by its cgroup: the shim will not tell, and need not.
                let at_ns = self.world.now_ns();
                self.on_exit(id, RawExit::Decided(killed_unseen(at_ns)));
            }
            ContainerOutcome::Signalled(done) | ContainerOutcome::Killed(done) => {
                if let Err(failure) = done {
                    tracing::warn!(container = %id, error = %failure, "cannot signal");
                }
            }
            ContainerOutcome::Collected(done) => self.collected(id, done),
            ContainerOutcome::Removed(Ok(())) => return self.gone(id),
            ContainerOutcome::Removed(Err(failure)) => {
                self.again(id, &failure, ContainerOutcome::RemoveAgain);
            }
            ContainerOutcome::Updated(resources, done, reply) => {
                self.updated(id, *resources, done, reply);
            }
            ContainerOutcome::GraceOver(deadline) => {
                if slot.wish.stop == Some(deadline) && slot.state.is_live() {
                    slot.wish.kill = true;
                }
            }
            ContainerOutcome::KillCheck => self.kill_check(id),
            ContainerOutcome::CollectAgain => self.feed_container(id, Event::CollectAgain),
            ContainerOutcome::RemoveAgain => self.feed_container(id, Event::RemoveAgain),
        }
        self.pursue(id);
    }

    fn start_failed(&mut self, id: &ContainerId, failure: &StepFailure) {
        let now = self.world.now_ns();
        let Some(slot) = self.containers.get_mut(id) else {
            return;
        };
        let error = slot.error(failure);
        slot.exit = Some(RawExit::Decided(Exit {
            code: START_ERROR,
            at_ns: now,
            reason: "StartError".to_owned(),
            message: wharf_types::chain(&error),
        }));
        slot.failure = Some(error);
        self.feed_container(id, Event::Failed);
    }

    fn collected(&mut self, id: &ContainerId, done: Result<Exit, StepFailure>) {
        match done {
            Ok(exit) => {
                if let Some(slot) = self.containers.get_mut(id) {
                    slot.retry = RETRY_FIRST;
                    slot.edit(|record| record.exit = Some(exit));
                }
                self.feed_container(id, Event::Collected);
            }
            Err(failure) => self.again(id, &failure, ContainerOutcome::CollectAgain),
        }
    }

    fn updated(
        &mut self,
        id: &ContainerId,
        resources: ResourceSpec,
        done: Result<(), StepFailure>,
        reply: Reply<()>,
    ) {
        let Some(slot) = self.containers.get_mut(id) else {
            return;
        };
        slot.updating = false;
        let answer = done.map_err(|failure| slot.error(&failure));
        if answer.is_ok() {
            slot.edit(|record| record.resources = resources);
        }
        self.publish_container(id);
        answer_one(reply, answer);
        self.update_next(id);
    }

    fn kill_check(&mut self, id: &ContainerId) {
        let Some(slot) = self.containers.get_mut(id) else {
            return;
        };
        if slot.state == State::Killing {
            let failure = overdue("kill container", KILL_GRACE.as_secs());
            let error = slot.error(&failure);
            answer_all(&mut slot.stoppers, &Err(error.clone()));
            answer_all(&mut slot.removers, &Err(error));
            self.give_up_waiters(&failure);
            self.feed_container(id, Event::KillAgain);
        }
    }

    /// A step that takes down failed: those who wait are told, and it is tried again.
    fn again(&mut self, id: &ContainerId, failure: &StepFailure, outcome: ContainerOutcome) {
        let Some(slot) = self.containers.get_mut(id) else {
            return;
        };
        let pause = slot.retry;
        slot.retry = (pause * 2).min(RETRY_LAST);
        slot.overdue = true;
        tracing::warn!(container = %id, error = %failure, again_in = ?pause,
            "a step of the teardown failed");
        let error = slot.error(failure);
        let created = slot.failure.clone().unwrap_or_else(|| error.clone());
        for (_, reply) in slot.repeaters.drain(..) {
            answer_one(reply, Err(created.clone()));
        }
        answer_all(&mut slot.creators, &Err(created));
        answer_all(&mut slot.stoppers, &Err(error.clone()));
        answer_all(&mut slot.removers, &Err(error));
        self.give_up_waiters(failure);
        self.publish_container(id);
        self.container_later(id, Instant::now() + pause, outcome);
    }

    /// Answers those whose wish has come true, or cannot come true any more.
    pub(super) fn answer(&mut self, id: &ContainerId) {
        let Some(slot) = self.containers.get_mut(id) else {
            return;
        };
        match slot.state {
            State::Created => answer_all(&mut slot.creators, &Ok(id.clone())),
            State::Running => answer_all(&mut slot.starters, &Ok(())),
            State::Exited => {
                answer_all(&mut slot.stoppers, &Ok(()));
                let refused = slot.refusal("create");
                answer_all(&mut slot.creators, &Err(refused));
                let failed = slot
                    .failure
                    .clone()
                    .unwrap_or_else(|| slot.refusal("start"));
                answer_all(&mut slot.starters, &Err(failed));
                let refused = slot.refusal("update");
                for (_, reply) in slot.updates.drain(..) {
                    answer_one(reply, Err(refused.clone()));
                }
            }
            _ => {}
        }
    }

    fn gone(&mut self, id: &ContainerId) {
        self.feed_container(id, Event::Removed);
        let Some(mut slot) = self.containers.remove(id) else {
            return;
        };
        self.board.take_container(id);
        self.board.take_stage(id.as_str());
        let failed = slot
            .failure
            .clone()
            .unwrap_or_else(|| slot.refusal("create"));
        let refused = slot.refusal("start");
        answer_all(&mut slot.creators, &Err(failed));
        answer_all(&mut slot.starters, &Err(refused));
        answer_all(&mut slot.stoppers, &Ok(()));
        answer_all(&mut slot.removers, &Ok(()));
        self.settle();
        for (spec, reply) in slot.repeaters {
            let digest = spec.digest();
            self.on_create(spec, digest, reply);
        }
    }

    pub(super) fn kill_containers(&mut self) {
        self.wish_all(|slot| slot.wish.kill = true);
    }

    pub(super) fn remove_containers(&mut self) {
        self.wish_all(|slot| slot.wish.remove = true);
    }

    fn wish_all(&mut self, wish: impl Fn(&mut Slot)) {
        let ids: Vec<_> = self.containers.keys().cloned().collect();
        for slot in self.containers.values_mut() {
            wish(slot);
        }
        for id in ids {
            self.pursue(&id);
        }
    }

    pub(super) fn publish_container(&self, id: &ContainerId) {
        let view = self
            .containers
            .get(id)
            .and_then(|slot| slot.view(self.reachable));
        match view {
            Some(view) => self.board.put_container(view),
            None => self.board.take_container(id),
        }
    }
}

/// How a container ended that was killed while its shim did not answer.
fn killed_unseen(at_ns: i64) -> Exit {
    Exit {
        code: KILLED,
        at_ns,
        reason: "Error".to_owned(),
        message: "killed while its shim did not answer".to_owned(),
    }
}

/// Writes the start down beside it, not before it: the shim knows what was started.
fn start(world: Arc<dyn World>, keeper: Keeper, container: ContainerRef) -> Step<()> {
    Box::pin(async move {
        let record = container.record.clone();
        let saved = keeper.write(&*world, |kept| kept.started_at_ns = record.started_at_ns);
        let (started, saved) = tokio::join!(world.start_container(container), saved);
        if let Err(failure) = saved {
            tracing::warn!(container = %record.id, error = %failure, "the record is not up to date");
        }
        started
    })
}

/// Changes the limits, then writes them down.
pub(super) fn update(
    world: Arc<dyn World>,
    keeper: Keeper,
    container: ContainerRef,
    resources: ResourceSpec,
) -> Step<()> {
    Box::pin(async move {
        let changed = world.update_container(container, resources.clone());
        changed.await?;
        let saved = keeper.write(&*world, |kept| kept.resources = resources);
        saved.await
    })
}

/// Looks at the remains, writes down how it ended.
fn collect(
    world: Arc<dyn World>,
    keeper: Keeper,
    container: ContainerRef,
    raw: Option<RawExit>,
) -> Step<Exit> {
    Box::pin(async move {
        let remains = world.collect_container(container.clone()).await?;
        let raw = raw.unwrap_or_else(|| {
            RawExit::Decided(Exit::unseen(world.now_ns(), "nobody saw how it ended"))
        });
        let exit = raw.with(remains);
        let saved = keeper.write(&*world, |kept| {
            // Whether it was started may have been learnt of the shim only.
            kept.started_at_ns = container.record.started_at_ns;
            kept.exit = Some(exit.clone());
        });
        saved.await?;
        Ok(exit)
    })
}

/// Removes everything; no write that is still under way brings the record back. What never became a
/// container is one in no later life of the daemon either, should this one end before it is removed.
fn remove(world: Arc<dyn World>, keeper: Keeper, container: ContainerRef) -> Step<()> {
    Box::pin(async move {
        if container.record.exit.is_none()
            && let Err(failure) = keeper.write(&*world, |kept| kept.facts = None).await
        {
            let id = &container.record.id;
            tracing::warn!(container = %id, error = %failure, "the record is not up to date");
        }
        keeper.end().await;
        world.remove_container(container).await
    })
}
