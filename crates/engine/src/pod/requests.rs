//! The driver's part that concerns requests about containers: accepted, joined, already so, refused.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use wharf_types::{ContainerId, Digest, Kind};

use super::containers::update;
use super::driver::Driver;
use super::request::{ContainerOutcome, Outcome, Verb};
use super::state::State as PodState;
use crate::container::slot::{Reply, Slot, answer_one, step_error};
use crate::container::state::{Event, State};
use crate::error::RequestError;
use crate::limits::{CONTAINERS_PER_POD_MAX, EXECS_PER_POD_MAX};
use crate::record::{ContainerRecord, VERSION};
use crate::spec::{ContainerSpec, ExecSyncOutput, NamespaceMode};
use crate::world::{ContainerRef, CreateJob, ExecEnd, ExecJob, Step, StepFailure};

/// The longest grace that is counted; a longer one means "never" to any human.
const GRACE_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl Driver {
    pub(super) fn on_create(
        &mut self,
        spec: ContainerSpec,
        digest: Digest,
        reply: Reply<ContainerId>,
    ) {
        let same = self
            .containers
            .values_mut()
            .find(|s| s.record.spec.metadata == spec.metadata);
        if let Some(slot) = same {
            if slot.is_undone() {
                return slot.repeaters.push((spec, reply));
            }
            return repeat_create(slot, digest, reply);
        }
        match self.admit(spec) {
            Ok((record, target_pid)) => {
                let id = record.id.clone();
                let mut slot = Slot::new(record.clone(), digest, State::Creating);
                slot.creators.push(reply);
                self.containers.insert(id.clone(), slot);
                self.board.put_stage(id.as_str(), "create container");
                let job = CreateJob {
                    pod: self.record.clone(),
                    record,
                    target_pid,
                };
                let step = self.world.create_container(job);
                self.spawn_container(&id, step, ContainerOutcome::Made);
            }
            Err(refused) => answer_one(reply, Err(refused)),
        }
    }

    /// Whether a new container may be made now.
    fn admit(
        &self,
        spec: ContainerSpec,
    ) -> Result<(Arc<ContainerRecord>, Option<u32>), RequestError> {
        if self.state != PodState::Ready || self.remove_wish {
            return Err(self.refusal("create a container in"));
        }
        if self.containers.len() >= CONTAINERS_PER_POD_MAX {
            let what = "the number of containers in the pod";
            return Err(RequestError::Limit {
                what,
                limit: CONTAINERS_PER_POD_MAX,
            });
        }
        let target_pid = self.target(&spec)?;
        let random = self.world.random().map_err(|f| self.pod_error(&f))?;
        let record = ContainerRecord {
            version: VERSION,
            id: ContainerId::from_random(random),
            pod: self.record.id.clone(),
            created_at_ns: self.world.now_ns(),
            facts: None,
            resources: spec.resources.clone(),
            spec: Arc::new(spec),
            started_at_ns: 0,
            exit: None,
        };
        Ok((Arc::new(record), target_pid))
    }

    fn pod_error(&self, failure: &StepFailure) -> RequestError {
        step_error(failure, format!("pod {}", self.record.spec.metadata))
    }

    /// The process whose PID namespace the container joins.
    fn target(&self, spec: &ContainerSpec) -> Result<Option<u32>, RequestError> {
        let namespaces = &spec.security.namespaces;
        if namespaces.pid != NamespaceMode::Target {
            return Ok(None);
        }
        let refused = |reason: String| RequestError::Invalid {
            field: "linux.security_context.namespace_options.target_id",
            reason,
        };
        let target = &namespaces.target_id;
        let found = self
            .containers
            .values()
            .find(|s| s.record.id.as_str() == target);
        let slot = found.ok_or_else(|| refused(format!("no container {target:?} in this pod")))?;
        match (slot.state, slot.pid) {
            (State::Running, Some(pid)) => Ok(Some(pid)),
            _ => Err(refused(format!(
                "container {target} is {}, not running",
                slot.state.word()
            ))),
        }
    }

    pub(super) fn on_verb(&mut self, id: &ContainerId, verb: Verb) {
        let Some(slot) = self.containers.get_mut(id) else {
            return refuse_unknown(id, verb);
        };
        match verb {
            Verb::Start(reply) => match slot.state {
                // After a restart: what its shim may not have must not be written down as started.
                State::Created if slot.pid.is_none() => {
                    let text = "the pod's shim has not answered yet: try again";
                    let silent = StepFailure::new("start container", Kind::Unavailable, text);
                    answer_one(reply, Err(slot.error(&silent)));
                }
                State::Created if self.state == PodState::Ready && slot.exit.is_none() => {
                    slot.starters.push(reply);
                    let now = self.world.now_ns();
                    slot.edit(|record| record.started_at_ns = now);
                    self.feed_container(id, Event::Start);
                }
                State::Starting => slot.starters.push(reply),
                State::Running => answer_one(reply, Ok(())),
                _ => answer_one(reply, Err(slot.refusal("start"))),
            },
            Verb::Stop(grace, reply) => self.on_stop(id, grace, reply),
            Verb::Remove(reply) => {
                slot.removers.push(reply);
                slot.wish.remove = true;
                self.pursue(id);
            }
            Verb::Update(resources, reply) => match slot.state {
                State::Created | State::Starting | State::Running => {
                    slot.updates.push_back((*resources, reply));
                    self.update_next(id);
                }
                _ => answer_one(reply, Err(slot.refusal("update"))),
            },
            Verb::ReopenLog(reply) => match slot.state {
                State::Running | State::Stopping => {
                    let container = ContainerRef {
                        pod: self.record.clone(),
                        record: slot.record.clone(),
                    };
                    let subject = format!("container {}", slot.record.spec.metadata);
                    let step = self.world.reopen_log(container);
                    self.serve(subject, step, reply);
                }
                _ => answer_one(reply, Err(slot.refusal("reopen the log of"))),
            },
            Verb::Exec {
                cmd,
                timeout,
                reply,
            } => self.on_exec(id, cmd, timeout, reply),
        }
    }

    fn on_stop(&mut self, id: &ContainerId, grace: Duration, reply: Reply<()>) {
        let Some(slot) = self.containers.get_mut(id) else {
            return answer_one(reply, Ok(()));
        };
        if !slot.state.is_live() || slot.state == State::Created {
            return answer_one(reply, Ok(()));
        }
        slot.stoppers.push(reply);
        let deadline = Instant::now() + grace.min(GRACE_MAX);
        if grace.is_zero() {
            slot.wish.kill = true;
        } else if slot.wish.stop.is_none_or(|earlier| deadline < earlier) {
            slot.wish.stop = Some(deadline);
            self.container_later(id, deadline, ContainerOutcome::GraceOver(deadline));
        }
        self.pursue(id);
    }

    fn on_exec(
        &mut self,
        id: &ContainerId,
        cmd: Vec<String>,
        timeout: Option<Duration>,
        reply: Reply<ExecSyncOutput>,
    ) {
        let Some(slot) = self.containers.get(id) else {
            return;
        };
        if !matches!(slot.state, State::Running | State::Stopping) || slot.exit.is_some() {
            return answer_one(reply, Err(slot.refusal("exec in")));
        }
        if self.execs >= EXECS_PER_POD_MAX {
            let what = "the number of execs that run in the pod";
            return answer_one(
                reply,
                Err(RequestError::Limit {
                    what,
                    limit: EXECS_PER_POD_MAX,
                }),
            );
        }
        self.execs += 1;
        self.exec_count += 1;
        let container = ContainerRef {
            pod: self.record.clone(),
            record: slot.record.clone(),
        };
        // Unique also over restarts of the daemon: the shim may still run one of the last life.
        let exec_id = format!("{:x}-{}", self.world.now_ns(), self.exec_count);
        let step = self.world.exec_sync(ExecJob {
            container,
            exec_id,
            cmd,
            timeout,
        });
        let subject = format!("container {}", slot.record.spec.metadata);
        let id = id.to_string();
        self.tasks.spawn(async move {
            let mut reply = reply;
            let answer = match until_left(step, &mut reply).await {
                Ok(ExecEnd::Output(output)) => Ok(output),
                Ok(ExecEnd::TimedOut) => {
                    let seconds = timeout.map_or(0, |t| t.as_secs());
                    Err(RequestError::ExecTimeout { id, seconds })
                }
                Err(failure) => Err(step_error(&failure, subject)),
            };
            answer_one(reply, answer);
            Outcome::Served { exec: true }
        });
    }

    /// Runs a step whose only effect is an answer.
    fn serve(&mut self, subject: String, step: Step<()>, reply: Reply<()>) {
        self.tasks.spawn(async move {
            let done = step.await;
            answer_one(reply, done.map_err(|f| step_error(&f, subject)));
            Outcome::Served { exec: false }
        });
    }

    /// One update after the other: each is all or none.
    pub(super) fn update_next(&mut self, id: &ContainerId) {
        let Some(slot) = self.containers.get_mut(id).filter(|s| !s.updating) else {
            return;
        };
        let Some((change, reply)) = slot.updates.pop_front() else {
            return;
        };
        slot.updating = true;
        let resources = slot.record.resources.merged(&change);
        let container = ContainerRef {
            pod: self.record.clone(),
            record: slot.record.clone(),
        };
        let (world, keeper) = (self.world.clone(), slot.keeper.clone());
        let step = update(world, keeper, container, resources.clone());
        self.spawn_container(id, step, move |done| {
            ContainerOutcome::Updated(Box::new(resources), done, reply)
        });
    }
}

/// Runs an exec to its end, or until nobody waits for its output any more: given up, it is killed.
async fn until_left<T>(step: Step<ExecEnd>, reply: &mut Reply<T>) -> Result<ExecEnd, StepFailure> {
    // Given up with whoever runs this: it is killed then, too.
    let mut step = tokio::task::JoinSet::from_iter([step]);
    let done = tokio::select! {
        biased;
        done = step.join_next() => done,
        () = reply.closed() => {
            step.abort_all();
            step.join_next().await
        }
    };
    // Given up: nobody hears of it.
    match done {
        Some(Ok(done)) => done,
        Some(Err(_)) | None => Err(StepFailure::panicked()),
    }
}

/// The same name again: the same request joins or gets the id, another one is refused.
fn repeat_create(slot: &mut Slot, digest: Digest, reply: Reply<ContainerId>) {
    let difference = match (slot.digest == digest, slot.state) {
        (true, State::Creating) => return slot.creators.push(reply),
        // After a restart its shim has not yet said that it knows it: nothing is promised before.
        (true, State::Created) if slot.pid.is_none() => return slot.creators.push(reply),
        (true, State::Created) => return answer_one(reply, Ok(slot.record.id.clone())),
        (true, _) => "the same configuration, but has gone further",
        (false, _) => "another configuration",
    };
    let refused = RequestError::Exists {
        what: "container",
        name: slot.record.spec.metadata.to_string(),
        id: slot.record.id.to_string(),
        difference,
    };
    answer_one(reply, Err(refused));
}

/// CRI: stopping and removing what is not there succeeds, everything else is refused.
fn refuse_unknown(id: &ContainerId, verb: Verb) {
    let unknown = RequestError::NotFound {
        what: "container",
        id: id.to_string(),
    };
    match verb {
        Verb::Stop(_, reply) | Verb::Remove(reply) => answer_one(reply, Ok(())),
        Verb::Start(reply) | Verb::Update(_, reply) | Verb::ReopenLog(reply) => {
            answer_one(reply, Err(unknown));
        }
        Verb::Exec { reply, .. } => answer_one(reply, Err(unknown)),
    }
}
