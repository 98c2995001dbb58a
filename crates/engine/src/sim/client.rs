//! A client that asks for anything at any time, and remembers what it was answered.

use std::time::Duration;

use wharf_types::{ContainerId, Kind, PodId};

use super::dice::Fault;
use super::machine::Machine;
use super::steps::SimWorld;
use super::told::{ToldContainer, ToldPod};
use crate::engine::Engine;
use crate::error::RequestError;
use crate::fake::{container_spec, pod_spec};
use crate::spec::{ExecSyncRequest, ResourceSpec};
use crate::view::ContainerState;

/// Longer than any request may take, with all its steps slow and all pauses at their longest.
const NEVER: Duration = Duration::from_secs(2 * 3600);

/// A request.
#[derive(Debug)]
enum Ask {
    Run(usize, bool),
    StopPod(PodId),
    RemovePod(PodId),
    Create(PodId, usize, bool),
    Start(ContainerId),
    Stop(ContainerId, u64),
    Remove(ContainerId),
    Update(ContainerId, i64),
    Reopen(ContainerId),
    Exec(ContainerId, u64, Option<u64>),
}

/// One of the client's callers.
pub(super) struct Caller {
    pub(super) world: SimWorld,
    pub(super) engine: Engine,
    pub(super) life: u64,
}

impl Caller {
    /// Asks `times` times, or until everything is to become quiet.
    pub(super) async fn go(self, times: usize) {
        for _ in 0..times {
            let pause = self.world.lock().dice.millis(80);
            tokio::time::sleep(pause).await;
            self.world.alive(self.life).await;
            let (ask, patience) = {
                let mut machine = self.world.lock();
                if machine.calm {
                    return;
                }
                let Some(ask) = draw(&mut machine) else {
                    continue;
                };
                machine.tick("is asked:", &format!("{ask:?}"));
                let short = machine.dice.per_mille(250);
                (ask, short.then(|| machine.dice.millis(3000)))
            };
            let words = format!("{ask:?}");
            let asked = self.ask(ask);
            match patience {
                Some(patience) => {
                    if tokio::time::timeout(patience, asked).await.is_err() {
                        let mut machine = self.world.lock();
                        machine.tally.count(Fault::CallerLeft);
                        machine.tick("caller left:", &words);
                    }
                }
                None => {
                    if tokio::time::timeout(NEVER, asked).await.is_err() {
                        let text = format!("{words} was never answered");
                        self.world.lock().violate(text);
                    }
                }
            }
        }
    }

    async fn ask(&self, ask: Ask) {
        match ask {
            Ask::Run(name, other) => self.run(name, other).await,
            Ask::Create(pod, name, other) => self.create(pod, name, other).await,
            Ask::StopPod(id) => {
                let done = self.engine.stop_pod(id.as_str()).await;
                let mut machine = self.answered("stop pod", done.is_ok()).await;
                if let Some(pod) = machine.told.pods.get_mut(&id).filter(|_| done.is_ok()) {
                    pod.stopped = true;
                }
            }
            Ask::RemovePod(id) => {
                self.world.lock().told.leaving_pods.insert(id.clone());
                let done = self.engine.remove_pod(id.as_str()).await;
                let mut machine = self.answered("remove pod", done.is_ok()).await;
                if done.is_ok() {
                    machine.told.pod_is_gone(&id);
                    if machine.held.has(&id) {
                        machine.violate(format!(
                            "the removal of the pod {id} was answered too early"
                        ));
                    }
                }
            }
            Ask::Start(id) => {
                let done = self.engine.start_container(id.as_str()).await;
                let mut machine = self.checked("start", &id, &done).await;
                if let Some(container) = machine.told.containers.get_mut(&id)
                    && done.is_ok()
                {
                    container.started = true;
                }
            }
            Ask::Stop(id, grace) => {
                let grace = Duration::from_secs(grace);
                let done = self.engine.stop_container(id.as_str(), grace).await;
                let mut machine = self.answered("stop", done.is_ok()).await;
                if let Some(container) = machine.told.containers.get_mut(&id)
                    && done.is_ok()
                {
                    container.stopped |= container.started;
                }
            }
            Ask::Remove(id) => {
                self.world.lock().told.leaving_containers.insert(id.clone());
                let done = self.engine.remove_container(id.as_str()).await;
                let mut machine = self.answered("remove", done.is_ok()).await;
                if done.is_ok() {
                    machine.told.container_is_gone(&id);
                    if machine.held.container_records.contains_key(&id) {
                        machine.violate(format!("the removal of {id} was answered too early"));
                    }
                }
            }
            Ask::Update(id, memory_limit) => {
                let resources = ResourceSpec {
                    memory_limit,
                    ..ResourceSpec::default()
                };
                let done = self.engine.update_container(id.as_str(), resources).await;
                drop(self.checked("update", &id, &done).await);
            }
            Ask::Reopen(id) => {
                let done = self.engine.reopen_container_log(id.as_str()).await;
                drop(self.checked("reopen log", &id, &done).await);
            }
            Ask::Exec(id, token, timeout) => self.exec(id, token, timeout).await,
        }
    }

    /// An answer has come. A daemon that has died has not answered.
    async fn answered(&self, verb: &'static str, well: bool) -> std::sync::MutexGuard<'_, Machine> {
        self.world.alive(self.life).await;
        let mut machine = self.world.lock();
        *machine.tally.answers.entry((verb, well)).or_default() += 1;
        machine.note("answered:", verb);
        machine
    }

    /// An answer about a container that has to be there.
    async fn checked<T>(
        &self,
        verb: &'static str,
        id: &ContainerId,
        done: &Result<T, RequestError>,
    ) -> std::sync::MutexGuard<'_, Machine> {
        let mut machine = self.answered(verb, done.is_ok()).await;
        let unknown = done.as_ref().is_err_and(|e| e.kind() == Kind::NotFound);
        if unknown && machine.told.keeps_container(id) {
            machine.violate(format!(
                "{verb}: the container {id} was told of, and is unknown"
            ));
        }
        machine
    }

    async fn run(&self, name: usize, other: bool) {
        let mut spec = pod_spec(&format!("p{name}"));
        if other {
            spec.hostname = "other".to_owned();
        }
        let key = spec.metadata.clone();
        let done = self.engine.run_pod(spec.clone()).await;
        let mut machine = self.answered("run", done.is_ok()).await;
        let Ok(id) = done else {
            return;
        };
        if let Some(record) = machine.held.pod_records.get(&id)
            && *record.spec != spec
        {
            machine.violate(format!("another configuration was given the pod {id}"));
        }
        let told = &machine.told;
        let twin = told
            .pods
            .iter()
            .find(|(other, pod)| **other != id && pod.key == key && told.keeps_pod(other));
        if let Some((twin, _)) = twin {
            let text = format!("{key} is the pod {id}, and was the pod {twin}");
            return machine.violate(text);
        }
        if !machine.told.gone_pods.contains(&id) {
            let stopped = false;
            machine
                .told
                .pods
                .entry(id)
                .or_insert(ToldPod { key, stopped });
        }
        super::check::check(&mut machine);
    }

    async fn create(&self, pod: PodId, name: usize, other: bool) {
        let mut spec = container_spec(&format!("c{name}"));
        spec.tty = other;
        let key = spec.metadata.clone();
        let asked = self.engine.create_container(pod.as_str(), spec.clone());
        let done = asked.await;
        let mut machine = self.answered("create", done.is_ok()).await;
        let Ok(id) = done else {
            return;
        };
        if let Some(record) = machine.held.container_records.get(&id)
            && (*record.spec != spec || record.pod != pod)
        {
            machine.violate(format!(
                "another configuration was given the container {id}"
            ));
        }
        let told = &machine.told;
        let twin = told.containers.iter().find(|(other, container)| {
            **other != id
                && container.key == key
                && container.pod == pod
                && told.keeps_container(other)
        });
        if let Some((twin, _)) = twin {
            let text = format!("{key} is the container {id}, and was {twin}");
            return machine.violate(text);
        }
        if !machine.told.gone_containers.contains(&id) {
            let container = ToldContainer {
                pod,
                key,
                started: false,
                stopped: false,
            };
            machine.told.containers.entry(id).or_insert(container);
        }
        super::check::check(&mut machine);
    }

    async fn exec(&self, id: ContainerId, token: u64, timeout: Option<u64>) {
        let cmd = format!("echo {token}");
        let request = ExecSyncRequest {
            container: id.to_string(),
            cmd: vec![cmd.clone()],
            timeout: timeout.map(Duration::from_secs),
        };
        let done = self.engine.exec_sync(request).await;
        let mut machine = self.checked("exec", &id, &done).await;
        if let Ok(output) = done
            && output.stdout != cmd.as_bytes()
        {
            machine.violate(format!(
                "an exec in {id} was given the output of another one"
            ));
        }
    }
}

/// A request about what there is, or was, or never was.
fn draw(machine: &mut Machine) -> Option<Ask> {
    let board = machine.board.clone()?;
    let mut pods: Vec<_> = board.pods().iter().map(|view| view.id.clone()).collect();
    if machine.dice.per_mille(100) {
        // One that is being started is known by its whole id.
        pods.extend(machine.held.pod_records.keys().cloned());
        pods.extend(machine.told.gone_pods.last().cloned());
    }
    let dice = &mut machine.dice;
    let kind = dice.below(100);
    // Mostly what makes sense.
    let state = match kind {
        42..60 => ContainerState::Created,
        60..69 | 80.. => ContainerState::Running,
        _ => ContainerState::Exited,
    };
    let any = dice.per_mille(300);
    let views = board.containers();
    let apt = views.iter().filter(|view| any || view.state == state);
    let containers: Vec<_> = apt.map(|view| view.id.clone()).collect();
    let (name, other) = (dice.below(4), dice.per_mille(120));
    let number = dice.next() >> 8;
    let pod = dice.pick(&pods).cloned();
    let container = dice.pick(&containers).cloned();
    let grace = *dice.pick(&[0, 0, 1, 10, 30])?;
    let timeout = *dice.pick(&[None, Some(1), Some(3)])?;
    let memory = i64::try_from(dice.below(1000)).ok()?;
    Some(match kind {
        0..16 => Ask::Run(name, other),
        16..18 => Ask::StopPod(pod?),
        18..21 => Ask::RemovePod(pod?),
        21..42 => Ask::Create(pod?, name % 3, other),
        42..60 => Ask::Start(container?),
        60..69 => Ask::Stop(container?, grace),
        69..80 => Ask::Remove(container?),
        80..86 => Ask::Update(container?, memory),
        86..89 => Ask::Reopen(container?),
        _ => Ask::Exec(container?, number, timeout),
    })
}
