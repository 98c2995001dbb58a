//! The simulated machine as a world.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use wharf_types::{ContainerId, Kind, PodId};

use super::dice::Fault;
use super::machine::{Machine, Part, Process, Shim};
use super::steps::{SimWorld, alone, asked, failure, lost};
use crate::record::{ContainerRecord, LoadedPod, PodPhase, PodRecord};
use crate::spec::{ExecSyncOutput, ResourceSpec};
use crate::view::{ContainerFacts, NetworkView};
use crate::world::*;

/// How long a request to a shim waits for one that is silent.
const SHIM_ANSWER: Duration = Duration::from_secs(10);
/// How long making or starting a process does.
const SHIM_WORK: Duration = Duration::from_secs(60);
/// How long a shim is asked after a restart.
const SHIM_ADOPTION: Duration = Duration::from_secs(1);
/// A start that ends otherwise than well.
struct Starting(Option<(SimWorld, ContainerId)>);

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some((world, id)) = &self.0 {
            let mut machine = world.lock();
            if !machine.dead {
                machine.truth.entry(id.clone()).or_default().start_failed = true;
            }
        }
    }
}

/// An exec: given up, its process is killed, unless nobody is left to do it.
struct Running(SimWorld, (ContainerId, String));

impl Drop for Running {
    fn drop(&mut self) {
        let mut machine = self.0.lock();
        if !machine.dead {
            machine.held.execs.remove(&self.1);
        }
    }
}

fn has_record(machine: &mut Machine, pod: &PodId, what: &str) {
    if !machine.held.pod_records.contains_key(pod) {
        machine.violate(format!("{what} without a record of pod {pod}"));
    }
}

fn write(machine: &mut Machine, record: ContainerRecord) -> Result<(), StepFailure> {
    has_record(machine, &record.pod, "a container's record was written");
    if machine.told.was_removed(&record.id) {
        machine.violate(format!("the record of {} came back", record.id));
    }
    machine
        .held
        .container_records
        .insert(record.id.clone(), record);
    Ok(())
}

/// Kills what is in a container's cgroup and removes it.
fn remove_cgroup(machine: &mut Machine, id: &ContainerId) {
    machine.end(id, 137, 9);
    machine.held.cgroups.remove(id);
    machine.held.execs.retain(|(container, _)| container != id);
}

fn shim_facts() -> ShimFacts {
    ShimFacts {
        pid: 7,
        ..ShimFacts::default()
    }
}

impl World for SimWorld {
    fn now_ns(&self) -> i64 {
        self.lock().now()
    }

    fn random(&self) -> Result<[u8; 32], StepFailure> {
        let mut machine = self.lock();
        machine.ids += 1;
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&machine.ids.to_be_bytes());
        Ok(bytes)
    }

    fn boot(&self) -> String {
        self.lock().boot.to_string()
    }

    fn plan_pod(&self, record: &mut PodRecord) -> Result<(), StepFailure> {
        record.cgroup = self.own_cgroup(&record.id);
        Ok(())
    }

    fn own_cgroup(&self, pod: &PodId) -> String {
        format!("sim/{pod}")
    }

    fn load_pod(&self, id: PodId) -> Step<Option<LoadedPod>> {
        let whom = id.to_string();
        self.step("load pod", &whom, Vec::new(), move |machine| {
            let pod = machine.held.pod_records.get(&id)?.clone();
            let all = machine.held.container_records.values();
            Some(LoadedPod {
                containers: all.filter(|c| c.pod == id).cloned().collect(),
                id,
                pod: Ok(pod),
                broken: Vec::new(),
            })
        })
    }

    fn save_pod(&self, pod: Arc<PodRecord>) -> Step<()> {
        let (id, whose) = (pod.id.to_string(), pod.id.clone());
        let save = alone(move |machine| {
            has_record(machine, &pod.id, "a record was written again");
            machine
                .held
                .pod_records
                .insert(pod.id.clone(), (*pod).clone());
            Ok(())
        });
        let (step, world) = (self.step("save pod", &id, vec![save], |_| ()), self.clone());
        Box::pin(async move {
            let saved = step.await;
            if saved.is_err() {
                world.lock().unwritten.insert(whose);
            }
            saved
        })
    }

    fn prepare_pod(&self, pod: Arc<PodRecord>) -> Step<()> {
        let whom = pod.id.to_string();
        let id = pod.id.clone();
        let save = alone(move |machine| {
            machine
                .held
                .pod_records
                .insert(pod.id.clone(), (*pod).clone());
            Ok(())
        });
        let make = alone(move |machine| {
            machine.held.dirs.insert(id);
            Ok(())
        });
        self.step("prepare pod", &whom, vec![save, make], |_| ())
    }

    fn start_shim(&self, pod: Arc<PodRecord>, events: ShimEvents) -> Step<ShimFacts> {
        self.driver_fault(pod.id.as_str());
        let (whom, id, world) = (pod.id.to_string(), pod.id.clone(), self.clone());
        let make = alone(move |machine| {
            has_record(machine, &pod.id, "a shim was started");
            machine.held.shims.insert(pod.id.clone(), Shim::default());
            Ok(())
        });
        let connect = alone(move |machine| {
            if !machine.held.shims.contains_key(&id) {
                return Err(lost("start shim"));
            }
            world.connect(machine, &id, events);
            Ok(())
        });
        self.step("start shim", &whom, vec![make, connect], |_| shim_facts())
    }

    fn adopt_shim(&self, pod: Arc<PodRecord>, events: ShimEvents) -> Step<Adoption> {
        let (whom, world, id) = (pod.id.to_string(), self.clone(), pod.id.clone());
        let gone = self.lock().boot.to_string() != pod.boot;
        let mine = id.clone();
        let connect = asked(&id, SHIM_ADOPTION, move |machine| {
            world.connect(machine, &mine, events);
            Ok(())
        });
        let asked = self.step("adopt shim", &whom, vec![connect], {
            let id = id.clone();
            move |machine| {
                let processes = &machine.held.processes;
                let found = processes.iter().filter(|(_, p)| p.pod == id);
                let found = found.map(|(id, process)| FoundContainer {
                    id: id.clone(),
                    pid: 8,
                    started: process.started,
                    exited: process.exit,
                });
                Adoption::Living(shim_facts(), found.collect())
            }
        });
        let world = self.clone();
        Box::pin(async move {
            if gone {
                return Ok(Adoption::Gone);
            }
            // Also when the step panics.
            let first = world.lock().unsure.insert(id.clone());
            let answer = asked.await;
            let mut machine = world.lock();
            if first && answer.is_ok() {
                machine.unsure.remove(&id);
            }
            let Some(silent) = machine.held.shims.get(&id).map(|shim| shim.silent) else {
                return Ok(Adoption::Gone);
            };
            match answer {
                Err(_) if silent => Ok(Adoption::Silent),
                answer => answer,
            }
        })
    }

    fn attach_network(&self, pod: Arc<PodRecord>) -> Step<NetworkView> {
        let whom = pod.id.to_string();
        let attach = alone(move |machine| {
            has_record(machine, &pod.id, "a network was attached");
            machine.held.networks.insert(pod.id.clone());
            Ok(())
        });
        self.step("attach network", &whom, vec![attach], |_| {
            NetworkView::default()
        })
    }

    fn detach_network(&self, pod: Arc<PodRecord>) -> Step<()> {
        let whom = pod.id.to_string();
        let detach = alone(move |machine| {
            machine.held.networks.remove(&pod.id);
            Ok(())
        });
        self.step("detach network", &whom, vec![detach], |_| ())
    }

    fn end_shim(&self, pod: Arc<PodRecord>) -> Step<()> {
        self.driver_fault(pod.id.as_str());
        let (whom, id) = (pod.id.to_string(), pod.id.clone());
        let end = alone(move |machine| {
            machine.shim_dies(&pod.id);
            Ok(())
        });
        let cgroup = alone(move |machine| {
            if machine.held.cgroups.values().any(|pod| *pod == id) {
                return Err(failure("end shim", Kind::Internal, "the cgroup is busy"));
            }
            machine.held.pod_cgroups.remove(&id);
            Ok(())
        });
        self.step("end shim", &whom, vec![end, cgroup], |_| ())
    }

    fn forget_pod(&self, pod: Arc<PodRecord>) -> Step<()> {
        self.driver_fault(pod.id.as_str());
        let (whom, id) = (pod.id.to_string(), pod.id.clone());
        let dir = alone(move |machine| {
            machine.held.dirs.remove(&pod.id);
            Ok(())
        });
        let record = alone(move |machine| {
            machine.held.pod_records.remove(&id);
            Ok(())
        });
        self.step("forget pod", &whom, vec![dir, record], |_| ())
    }

    fn create_container(&self, job: CreateJob) -> Step<Made> {
        self.driver_fault(job.pod.id.as_str());
        let whom = job.record.id.to_string();
        let facts = Arc::new(ContainerFacts {
            stop_signal: 15,
            ..ContainerFacts::default()
        });
        let made = facts.clone();
        self.step("create container", &whom, creation(job, facts), |_| Made {
            pid: 8,
            facts: made,
        })
    }

    fn save_container(&self, record: Arc<ContainerRecord>) -> Step<()> {
        let whom = record.id.to_string();
        let save = alone(move |machine| write(machine, (*record).clone()));
        self.step("save container", &whom, vec![save], |_| ())
    }

    fn start_container(&self, container: ContainerRef) -> Step<()> {
        let id = container.record.id.clone();
        let starting = Starting(Some((self.clone(), id.clone())));
        let whom = id.to_string();
        let start = asked(&container.pod.id, SHIM_WORK, move |machine| {
            match machine.held.processes.get_mut(&id) {
                Some(process) if process.exit.is_none() => process.started = true,
                _ => return Err(failure("start container", Kind::Conflict, "it has ended")),
            }
            Ok(())
        });
        let step = self.step("start container", &whom, vec![start], |_| ());
        Box::pin(async move {
            let mut starting = starting;
            let done = step.await;
            if done.is_ok() {
                starting.0 = None;
            }
            done
        })
    }

    fn signal_container(&self, container: ContainerRef, signal: i32) -> Step<()> {
        self.driver_fault(container.record.id.as_str());
        let id = container.record.id.clone();
        let whom = id.to_string();
        let send = asked(&container.pod.id, SHIM_ANSWER, move |machine| {
            if !machine.calm && machine.dice.per_mille(400) {
                machine.tally.count(Fault::SignalIgnored);
            } else {
                machine.end(&id, 128 + signal, signal);
            }
            Ok(())
        });
        self.step("signal", &whom, vec![send], |_| ())
    }

    fn kill_container(&self, container: ContainerRef) -> Step<()> {
        self.driver_fault(container.record.id.as_str());
        let (id, pod) = (container.record.id.clone(), container.pod.id.clone());
        let whom = id.to_string();
        let kill = alone(move |machine| {
            if !machine.calm && machine.dice.per_mille(30) {
                machine.tally.count(Fault::KilledInVain);
            } else {
                machine.end(&id, 137, 9);
            }
            Ok(())
        });
        let step = self.step("kill", &whom, vec![kill], |_| ());
        let world = self.clone();
        Box::pin(async move {
            // A silent shim is asked first; then its cgroup is killed.
            let silent = |shim: &Shim| shim.silent;
            if world.lock().held.shims.get(&pod).is_some_and(silent) {
                tokio::time::sleep(SHIM_ANSWER).await;
                let mut machine = world.lock();
                let shim = machine.held.shims.get(&pod).filter(|shim| shim.silent);
                if let Some(events) = shim.and_then(|shim| shim.events.clone()) {
                    events.try_send(ShimEvent::Silent).ok();
                    machine.unsure.insert(pod.clone());
                }
            }
            step.await
        })
    }

    fn collect_container(&self, container: ContainerRef) -> Step<Remains> {
        let id = container.record.id.clone();
        let whom = id.to_string();
        let clean = alone(move |machine| {
            remove_cgroup(machine, &id);
            Ok(())
        });
        self.step("collect", &whom, vec![clean], |_| Remains::default())
    }

    fn remove_container(&self, container: ContainerRef) -> Step<()> {
        let whom = container.record.id.to_string();
        self.step("remove container", &whom, self.removal(&container), |_| ())
    }

    fn update_container(&self, container: ContainerRef, _resources: ResourceSpec) -> Step<()> {
        let id = container.record.id.clone();
        let whom = id.to_string();
        let update = alone(move |machine| {
            let there = machine.held.cgroups.contains_key(&id);
            there
                .then_some(())
                .ok_or_else(|| failure("update", Kind::Conflict, "the cgroup is gone"))
        });
        self.step("update", &whom, vec![update], |_| ())
    }

    fn reopen_log(&self, container: ContainerRef) -> Step<()> {
        let whom = container.record.id.to_string();
        let reopen = asked(&container.pod.id, SHIM_ANSWER, |_| Ok(()));
        self.step("reopen log", &whom, vec![reopen], |_| ())
    }

    fn exec_sync(&self, job: ExecJob) -> Step<ExecEnd> {
        self.driver_fault(job.container.record.id.as_str());
        let id = job.container.record.id.clone();
        let (whom, key) = (id.to_string(), (id.clone(), job.exec_id));
        let begun = key.clone();
        let start = asked(&job.container.pod.id, SHIM_WORK, move |machine| {
            let processes = &machine.held.processes;
            let lives = processes.get(&id).is_some_and(|p| p.exit.is_none());
            if !lives {
                return Err(failure("exec", Kind::Conflict, "the container has ended"));
            }
            machine.held.execs.insert(begun);
            Ok(())
        });
        let step = self.step("exec", &whom, vec![start], |_| ());
        let (world, life) = (self.clone(), self.lock().life);
        Box::pin(async move {
            let running = Running(world.clone(), key.clone());
            let work = async {
                step.await?;
                let takes = world.lock().dice.millis(5000);
                let end = Instant::now() + takes;
                while Instant::now() < end && world.lock().held.execs.contains(&key) {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    world.alive(life).await;
                }
                Ok(ExecSyncOutput {
                    stdout: job.cmd.concat().into_bytes(),
                    ..ExecSyncOutput::default()
                })
            };
            let done = match job.timeout {
                Some(within) => tokio::time::timeout(within, work).await,
                None => Ok(work.await),
            };
            drop(running);
            match done {
                Ok(output) => output.map(ExecEnd::Output),
                Err(_elapsed) => Ok(ExecEnd::TimedOut),
            }
        })
    }
}

/// The parts of a creation: intent first, the process last.
fn creation(job: CreateJob, facts: Arc<ContainerFacts>) -> Vec<Part> {
    let (record, pod) = (job.record, job.pod.id.clone());
    let id = record.id.clone();
    let first = (*record).clone();
    let complete = ContainerRecord {
        facts: Some(facts),
        ..first.clone()
    };
    let intent = alone(move |machine| {
        let phase = machine.held.pod_records.get(&first.pod).map(|p| p.phase);
        if phase != Some(PodPhase::Ready) {
            let id = &first.id;
            machine.violate(format!(
                "{id} is made in a pod that is recorded as {phase:?}"
            ));
        }
        write(machine, first)
    });
    let snapshot = alone({
        let id = id.clone();
        move |machine| {
            machine.held.snapshots.insert(id);
            Ok(())
        }
    });
    let cgroup = alone({
        let (id, pod) = (id.clone(), pod.clone());
        move |machine| {
            machine.held.pod_cgroups.insert(pod.clone());
            machine.held.cgroups.insert(id, pod);
            Ok(())
        }
    });
    let known = alone(move |machine| write(machine, complete));
    let process = asked(&pod.clone(), SHIM_WORK, move |machine| {
        if !machine.held.cgroups.contains_key(&id) {
            return Err(failure("create container", Kind::Internal, "no cgroup"));
        }
        let process = Process {
            pod,
            started: false,
            exit: None,
        };
        machine.held.processes.insert(id, process);
        Ok(())
    });
    vec![intent, snapshot, cgroup, known, process]
}

impl SimWorld {
    /// The parts of a removal: the record last.
    fn removal(&self, container: &ContainerRef) -> Vec<Part> {
        let id = container.record.id.clone();
        let cgroup = alone({
            let id = id.clone();
            move |machine| {
                remove_cgroup(machine, &id);
                Ok(())
            }
        });
        let delete = {
            let id = id.clone();
            move |machine: &mut Machine| {
                machine.held.processes.remove(&id);
                Ok(())
            }
        };
        // Without a shim there is nothing in it.
        let pod = &container.pod.id;
        let delete = match self.lock().held.shims.contains_key(pod) {
            true => asked(pod, SHIM_ANSWER, delete),
            false => alone(delete),
        };
        let snapshot = alone({
            let id = id.clone();
            move |machine| {
                machine.held.snapshots.remove(&id);
                Ok(())
            }
        });
        let record = alone(move |machine| {
            machine.held.container_records.remove(&id);
            Ok(())
        });
        vec![cgroup, delete, snapshot, record]
    }
}
