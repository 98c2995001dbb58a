//! The machine of the simulation: what it holds, what happened to it, and what the client was told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use wharf_types::{ContainerId, PodId};

use super::dice::{Dice, Fault, Tally};
use super::told::Told;
use crate::board::Board;
use crate::record::{ContainerRecord, PodRecord};
use crate::world::{ShimEvent, ShimEvents, StepFailure};

/// How many of the last things that happened are shown with a violation.
const TRACE: usize = 120;

/// A part of an effect: done whole or not at all.
pub(super) type Act = Box<dyn FnOnce(&mut Machine) -> Result<(), StepFailure> + Send>;

/// A part of a step.
pub(super) struct Part {
    /// Whose shim has to answer, in which time.
    pub(super) shim: Option<(PodId, Duration)>,
    pub(super) act: Act,
}

/// A shim.
#[derive(Default)]
pub(super) struct Shim {
    /// Counts the connections; an older one carries nothing any more.
    pub(super) link: u64,
    pub(super) events: Option<ShimEvents>,
    pub(super) outbox: VecDeque<ShimEvent>,
    pub(super) moved: Arc<Notify>,
    pub(super) silent: bool,
    /// Requests that it has not read yet, and that nobody waits for.
    pub(super) late: Vec<Act>,
}

/// A container's init.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pod: PodId,
    pub(super) started: bool,
    /// Code, signal, time.
    pub(super) exit: Option<(i32, i32, i64)>,
}

/// How a container's end may be reported.
#[derive(Debug, Default)]
pub(super) struct Truth {
    /// The shim saw it: code, time.
    pub(super) seen: Option<(i32, i64)>,
    pub(super) start_failed: bool,
}

/// What the machine holds.
#[derive(Default)]
pub(super) struct Holdings {
    pub(super) pod_records: BTreeMap<PodId, PodRecord>,
    pub(super) container_records: BTreeMap<ContainerId, ContainerRecord>,
    pub(super) dirs: BTreeSet<PodId>,
    pub(super) shims: BTreeMap<PodId, Shim>,
    pub(super) networks: BTreeSet<PodId>,
    pub(super) pod_cgroups: BTreeSet<PodId>,
    pub(super) cgroups: BTreeMap<ContainerId, PodId>,
    pub(super) snapshots: BTreeSet<ContainerId>,
    pub(super) processes: BTreeMap<ContainerId, Process>,
    pub(super) execs: BTreeSet<(ContainerId, String)>,
}

impl Holdings {
    /// What there is, in words; empty when there is nothing.
    pub(super) fn words(&self) -> String {
        let counts = [
            ("pod records", self.pod_records.len()),
            ("container records", self.container_records.len()),
            ("directories", self.dirs.len()),
            ("shims", self.shims.len()),
            ("networks", self.networks.len()),
            ("pod cgroups", self.pod_cgroups.len()),
            ("cgroups", self.cgroups.len()),
            ("snapshots", self.snapshots.len()),
            ("processes", self.processes.len()),
            ("execs", self.execs.len()),
        ];
        let held = counts.iter().filter(|(_, n)| *n > 0);
        let words: Vec<_> = held.map(|(what, n)| format!("{n} {what}")).collect();
        words.join(", ")
    }

    /// Whether something of this pod is left.
    pub(super) fn has(&self, pod: &PodId) -> bool {
        self.pod_records.contains_key(pod)
            || self.dirs.contains(pod)
            || self.shims.contains_key(pod)
            || self.networks.contains(pod)
            || self.pod_cgroups.contains(pod)
            || self.cgroups.values().any(|p| p == pod)
            || self.processes.values().any(|p| p.pod == *pod)
            || self.container_records.values().any(|c| c.pod == *pod)
    }
}

/// The machine.
pub(super) struct Machine {
    pub(super) dice: Dice,
    pub(super) tally: Tally,
    pub(super) held: Holdings,
    pub(super) truth: BTreeMap<ContainerId, Truth>,
    /// Pods whose shim did not answer in time once.
    pub(super) unsure: BTreeSet<PodId>,
    /// Pods whose shim has died, and with it what it knew.
    pub(super) lost: BTreeSet<PodId>,
    /// Pods whose record could not be written once: a stop goes on all the same.
    pub(super) unwritten: BTreeSet<PodId>,
    pub(super) told: Told,
    /// What the daemon's steps have still to do, oldest first.
    pub(super) under_way: BTreeMap<u64, VecDeque<Part>>,
    /// Counts the daemons.
    pub(super) life: u64,
    /// The daemon was killed: whatever it still does has no effect.
    pub(super) dead: bool,
    pub(super) killed: Arc<Notify>,
    /// Steps until the daemon is killed; 0 for never.
    pub(super) kill_in: u64,
    /// Nothing goes wrong any more.
    pub(super) calm: bool,
    pub(super) clock_ns: i64,
    pub(super) boot: u64,
    pub(super) ids: u64,
    pub(super) board: Option<Arc<Board>>,
    pub(super) violation: Option<String>,
    pub(super) trace: VecDeque<String>,
    /// Over everything that happened: the same seed gives the same.
    pub(super) digest: u64,
}

impl Machine {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            dice: Dice::new(seed),
            tally: Tally::default(),
            held: Holdings::default(),
            truth: BTreeMap::new(),
            unsure: BTreeSet::new(),
            lost: BTreeSet::new(),
            unwritten: BTreeSet::new(),
            told: Told::default(),
            under_way: BTreeMap::new(),
            life: 0,
            dead: true,
            killed: Arc::default(),
            kill_in: 0,
            calm: false,
            clock_ns: 1,
            boot: 1,
            ids: 0,
            board: None,
            violation: None,
            trace: VecDeque::new(),
            digest: 0xcbf2_9ce4_8422_2325,
        }
    }

    /// A number that comes once.
    pub(super) fn now(&mut self) -> i64 {
        self.clock_ns += 1;
        self.clock_ns
    }

    /// One more step has happened: everything must be as it should be, and the daemon may die here.
    pub(super) fn tick(&mut self, what: &str, whom: &str) {
        self.tally.steps += 1;
        self.note(what, whom);
        super::check::check(self);
        if self.kill_in > 0 && !self.dead {
            self.kill_in -= 1;
            if self.kill_in == 0 {
                self.tally.count(Fault::DaemonKilled);
                self.note("the daemon is killed", "");
                self.dead = true;
                self.killed.notify_one();
            }
        }
    }

    /// For people who look for the fault.
    pub(super) fn note(&mut self, what: &str, whom: &str) {
        let line = format!("{} {what} {}", self.tally.steps, short(whom));
        for byte in line.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.trace.len() == TRACE {
            self.trace.pop_front();
        }
        self.trace.push_back(line);
    }

    /// Something is not as it should be: the run ends here.
    pub(super) fn violate(&mut self, what: String) {
        if self.violation.is_none() {
            self.note("VIOLATION", "");
            self.violation = Some(what);
            self.dead = true;
            self.killed.notify_one();
        }
    }

    /// A message of a shim to its daemon.
    pub(super) fn tell(&mut self, pod: &PodId, event: ShimEvent) {
        if let Some(shim) = self.held.shims.get_mut(pod) {
            shim.outbox.push_back(event);
            shim.moved.notify_one();
        }
    }

    /// The next message on a connection; `None` when that is over, nothing inside when there is none.
    pub(super) fn says(&mut self, pod: &PodId, link: u64) -> Option<Option<ShimEvent>> {
        let shim = self.held.shims.get_mut(pod).filter(|s| s.link == link)?;
        let event = match shim.silent {
            true => None,
            false => shim.outbox.pop_front(),
        };
        if event.is_some() {
            self.tally.count(Fault::EventDelayed);
            self.tick("tells", pod.as_str());
        }
        Some(event)
    }

    /// A container's init ends; whether anybody learns of it is another question.
    pub(super) fn end(&mut self, id: &ContainerId, code: i32, signal: i32) {
        let at_ns = self.now();
        let Some(process) = self.held.processes.get_mut(id) else {
            return;
        };
        if process.exit.is_some() {
            return;
        }
        process.exit = Some((code, signal, at_ns));
        let pod = process.pod.clone();
        self.held.execs.retain(|(container, _)| container != id);
        if self.held.shims.contains_key(&pod) {
            let truth = self.truth.entry(id.clone()).or_default();
            truth.seen = Some((code, at_ns));
            let container = id.clone();
            self.tell(
                &pod,
                ShimEvent::Exited {
                    container,
                    code,
                    signal,
                    at_ns,
                },
            );
        } else {
            // Nobody waits for it but the kernel.
            self.held.processes.remove(id);
        }
    }

    /// A shim dies; its containers' processes live on in their cgroups, and what it knew is lost.
    pub(super) fn shim_dies(&mut self, pod: &PodId) {
        let Some(shim) = self.held.shims.remove(pod) else {
            return;
        };
        if let Some(events) = shim.events {
            // What a silent shim had to say, it never said.
            for event in shim.outbox.into_iter().filter(|_| !shim.silent) {
                events.try_send(event).ok();
            }
            events.try_send(ShimEvent::Lost).ok();
        }
        shim.moved.notify_one();
        self.held
            .processes
            .retain(|_, p| p.pod != *pod || p.exit.is_none());
        self.lost.insert(pod.clone());
    }

    /// A silent shim goes on, with what was asked of it first.
    pub(super) fn shim_wakes(&mut self, pod: &PodId) {
        let Some(shim) = self.held.shims.get_mut(pod).filter(|s| s.silent) else {
            return;
        };
        shim.silent = false;
        let late = std::mem::take(&mut shim.late);
        shim.moved.notify_one();
        self.tally.count(Fault::ShimBack);
        for act in late {
            self.tally.count(Fault::LateEffect);
            act(self).ok();
        }
    }

    /// What was removed without an answer needs no more looks.
    fn is_over(&self, id: &ContainerId) -> bool {
        !self.told.keeps_container(id) && !self.held.container_records.contains_key(id)
    }

    /// Keeps the looks at everything short.
    pub(super) fn forget_the_gone(&mut self) {
        let ids = self.told.containers.keys();
        let over: Vec<_> = ids.filter(|id| self.is_over(id)).cloned().collect();
        for id in over {
            self.told.container_is_gone(&id);
        }
        let ids = self.told.pods.keys();
        let over = ids.filter(|id| !self.told.keeps_pod(id) && !self.held.has(id));
        let over: Vec<_> = over.cloned().collect();
        for id in over {
            self.told.pod_is_gone(&id);
        }
    }

    /// What was on its way as the daemon died may still happen.
    pub(super) fn last_effects(&mut self) {
        for (_, mut parts) in std::mem::take(&mut self.under_way) {
            while let Some(part) = parts.pop_front() {
                let shims = &self.held.shims;
                let deaf = part
                    .shim
                    .is_some_and(|(pod, _)| shims.get(&pod).is_none_or(|shim| shim.silent));
                if deaf || !self.dice.per_mille(400) || (part.act)(self).is_err() {
                    break;
                }
                self.tally.count(Fault::EffectAfterDeath);
                self.tick("took effect after the daemon's death", "");
            }
        }
    }

    /// Everything that ends with the boot.
    pub(super) fn reboot(&mut self) {
        self.boot += 1;
        self.lost.extend(self.held.pod_records.keys().cloned());
        self.held.shims.clear();
        self.held.processes.clear();
        self.held.cgroups.clear();
        self.held.pod_cgroups.clear();
        self.held.execs.clear();
    }
}

/// Ids begin alike here; their number is what tells them apart.
pub(super) fn short(id: &str) -> &str {
    if id.len() == 64 { &id[8..16] } else { id }
}
