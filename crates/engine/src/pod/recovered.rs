//! A driver for what a restart of the daemon found: records, and what became of the shim meanwhile.

use std::sync::Arc;

use wharf_types::ContainerId;

use super::driver::{Driver, Surroundings};
use super::state::{Event, State};
use crate::container::slot::{RawExit, Slot};
use crate::container::state::{Event as ContainerEvent, State as ContainerState};
use crate::record::{ContainerRecord, LoadedPod, PodPhase, PodRecord, RecordError};
use crate::world::{Adoption, FoundContainer, ShimFacts};

/// A pod as a restart found it.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) record: PodRecord,
    pub(crate) containers: Vec<ContainerRecord>,
    /// The form of a record that a later release wrote: the pod is left as it is.
    pub(crate) newer: Option<u32>,
}

impl Recovered {
    /// From what the disk knows. What cannot be read is taken down like a start or a creation that nobody
    /// was answered: left alone it would run on, and nobody could list or stop it. `own_cgroup` is the
    /// pod's if it was given none.
    pub(crate) fn of(loaded: LoadedPod, boot: String, own_cgroup: String) -> Self {
        let LoadedPod {
            id,
            pod,
            mut containers,
            broken,
        } = loaded;
        let mut newer = None;
        for (container, e) in broken {
            newer = newer.max(form(&e));
            tracing::error!(pod = %id, %container, error = %wharf_types::chain(&e),
                "unreadable record: its container is removed, or left as it is if it is of a later wharf");
            containers.push(ContainerRecord::unreadable(container, id.clone()));
        }
        let record = pod.unwrap_or_else(|e| {
            newer = newer.max(form(&e));
            tracing::error!(pod = %id, error = %wharf_types::chain(&e),
                "unreadable record: its pod is removed, or left as it is if it is of a later wharf");
            let given = containers.iter().find_map(given_cgroup);
            let given = given.filter(|given| *given != own_cgroup);
            let mut record = PodRecord::unreadable(id, boot, own_cgroup, given);
            if let RecordError::Newer { metadata, .. } = e
                && !metadata.name.is_empty()
            {
                Arc::make_mut(&mut record.spec).metadata = *metadata;
            }
            record
        });
        Self {
            record,
            containers,
            newer,
        }
    }
}

/// The form of a record that only a later release can read.
fn form(e: &RecordError) -> Option<u32> {
    match e {
        RecordError::Newer { version, .. } => Some(*version),
        _ => None,
    }
}

/// The cgroup of its pod, from what a container knows of its own.
fn given_cgroup(container: &ContainerRecord) -> Option<String> {
    let own = &container.facts.as_ref()?.cgroup;
    Some(own.rsplit_once('/')?.0.to_owned())
}

impl Driver {
    /// A driver that continues where the last daemon left off. The shim is asked by
    /// [`Driver::adopt_now`], before the driver runs.
    pub(crate) fn recover(around: Surroundings, found: Recovered) -> Self {
        let phase = found.record.phase;
        let mut driver = Self::new(around, found.record, State::Ready);
        // A start that nobody was answered is undone, unseen; its caller repeats it.
        driver.published = phase != PodPhase::Starting;
        for record in found.containers {
            let state = match &record.exit {
                Some(_) => ContainerState::Exited,
                None if record.facts.is_none() => ContainerState::Creating,
                None if record.started_at_ns > 0 => ContainerState::Running,
                None => ContainerState::Created,
            };
            let (id, digest) = (record.id.clone(), record.spec.digest());
            let slot = Slot::new(Arc::new(record), digest, state);
            driver.containers.insert(id, slot);
        }
        driver
    }

    /// Asks the shim what became of its containers, and takes what the record says to be done.
    pub(crate) async fn adopt_now(&mut self) {
        let step = self
            .world
            .adopt_shim(self.record.clone(), self.events.clone());
        let answer = self.own_task(step).await;
        let unfinished: Vec<_> = self
            .containers
            .iter()
            .filter(|(_, slot)| slot.state == ContainerState::Creating)
            .map(|(id, _)| id.clone())
            .collect();
        match answer {
            Ok(Adoption::Living(facts, found)) => self.adopt(facts, &found),
            Ok(Adoption::Gone) => self.on_lost(),
            Ok(Adoption::Silent) | Err(_) => self.ask_later(),
        }
        for id in unfinished {
            self.undo(&id);
        }
        match self.record.phase {
            PodPhase::Starting => {
                self.remove_wish = true;
                self.feed(Event::Stop);
            }
            PodPhase::Stopped => self.feed(Event::Stop),
            PodPhase::Ready => {}
        }
        // What the last driver of this pod had published, if it ended over a fault.
        let containers = &self.containers;
        self.board
            .keep(&self.record.id, |id| containers.contains_key(id));
        self.publish();
        self.settle();
    }

    /// Takes over what a living shim holds.
    pub(super) fn adopt(&mut self, facts: ShimFacts, found: &[FoundContainer]) {
        self.shim = Some(facts);
        self.reachable = true;
        let ids: Vec<_> = self.containers.keys().cloned().collect();
        for id in ids {
            match found.iter().find(|f| f.id == id) {
                Some(container) => self.adopt_container(container),
                // It is being made at this moment, and the shim has not heard of it yet: its own outcome
                // comes. (After a restart nothing makes it any more; `adopt_now` undoes it.)
                None if self.is_in(&id, ContainerState::Creating) => {}
                // Its record was written before the shim made it. Nobody was told of it, and whoever asks
                // for it again gets a new one.
                None if self.was_never_made(&id) => self.undo(&id),
                None => {
                    let text = "the shim does not know it; nobody saw the exit code";
                    let exit = crate::record::Exit::unseen(self.world.now_ns(), text);
                    self.on_exit(&id, RawExit::Decided(exit));
                }
            }
        }
    }

    fn is_in(&self, id: &ContainerId, state: ContainerState) -> bool {
        self.containers
            .get(id)
            .is_some_and(|slot| slot.state == state)
    }

    /// Whether a container is recorded as made, and no shim has ever said so.
    fn was_never_made(&self, id: &ContainerId) -> bool {
        use ContainerState::{Created, Killing};
        self.containers.get(id).is_some_and(|slot| {
            slot.pid.is_none()
                && slot.record.started_at_ns == 0
                && matches!(slot.state, Created | Killing)
        })
    }

    /// A container that never ran is removed; a caller who wants it creates it again.
    fn undo(&mut self, id: &ContainerId) {
        if let Some(slot) = self.containers.get_mut(id) {
            slot.state = ContainerState::Creating;
            slot.wish.remove = true;
        }
        self.feed_container(id, ContainerEvent::Failed);
    }

    fn adopt_container(&mut self, found: &FoundContainer) {
        let Some(slot) = self.containers.get_mut(&found.id) else {
            return;
        };
        slot.pid = Some(found.pid);
        if slot.state == ContainerState::Running && !found.started && found.exited.is_none() {
            // Its start was recorded and never begun.
            slot.state = ContainerState::Created;
            slot.edit(|record| record.started_at_ns = 0);
        } else if slot.state == ContainerState::Created && found.started {
            // It was started, and the record could not be written: when, nobody knows, but not after its end.
            let now = self.world.now_ns();
            let at = found.exited.map_or(now, |(_, _, end_ns)| end_ns.min(now));
            slot.state = ContainerState::Running;
            slot.edit(|record| record.started_at_ns = at);
        }
        self.answer(&found.id);
        if let Some((code, signal, at_ns)) = found.exited {
            self.on_exit(
                &found.id,
                RawExit::Seen {
                    code,
                    signal,
                    at_ns,
                },
            );
        }
    }
}
