//! A run: daemons live on one machine, one after the other; in the end everything is removed.

use std::sync::Arc;
use std::time::Duration;

use super::client::Caller;
use super::dice::{Fault, Tally};
use super::machine::Machine;
use super::steps::SimWorld;
use crate::board::Board;
use crate::engine::Engine;
use crate::pod::recovered::Recovered;
use crate::pods::Pods;
use crate::record::{ContainerRecord, PodRecord};
use crate::view::{ContainerState, PodState};

/// Callers at the same time.
const CALLERS: usize = 5;
/// Requests of each in one life of the daemon.
const REQUESTS: usize = 60;
/// Longer than every pause before something is tried again.
const SETTLED: Duration = Duration::from_secs(1800);

/// How a run went.
pub(super) struct Report {
    pub(super) tally: Tally,
    pub(super) digest: u64,
    /// What was wrong, with the last things that had happened.
    pub(super) failure: Option<String>,
}

/// What lists say, without what may differ after a restart.
type Picture = (Vec<PodPicture>, Vec<ContainerPicture>);
type PodPicture = (String, PodState, &'static str);
type ContainerPicture = (String, ContainerState, bool, i32, i64, String);

fn picture(board: &Board) -> Picture {
    let pods = board.pods();
    let pods = pods.iter().map(|v| (v.id.to_string(), v.state, v.stage));
    let containers = board.containers();
    let containers = containers.iter().map(|v| {
        let (started, reason) = (v.started_at_ns > 0, v.reason.clone());
        let end = (v.exit_code, v.finished_at_ns);
        (v.id.to_string(), v.state, started, end.0, end.1, reason)
    });
    (pods.collect(), containers.collect())
}

/// Runs the seed's story of at least `steps` steps.
pub(super) fn run(seed: u64, steps: u64) -> Report {
    let world = SimWorld::new(Machine::new(seed));
    let mut before = None;
    while world.lock().tally.steps < steps && world.lock().violation.is_none() {
        before = life(&world, before, false);
        if before.is_none() {
            away(&world);
        }
    }
    if world.lock().violation.is_none() {
        life(&world, before, true);
    }
    let mut machine = world.lock();
    let failure = machine.violation.take().map(|what| {
        let trace: Vec<_> = machine.trace.iter().map(String::as_str).collect();
        format!("{}\n{what}", trace.join("\n"))
    });
    Report {
        tally: std::mem::take(&mut machine.tally),
        digest: machine.digest,
        failure,
    }
}

/// A daemon's life. `before` is the picture that it has to reach again; the picture is given when it
/// ended in quiet.
fn life(world: &SimWorld, before: Option<Picture>, last: bool) -> Option<Picture> {
    let killed = {
        let mut machine = world.lock();
        machine.life += 1;
        machine.dead = false;
        machine.calm = before.is_some() || last;
        machine.board = None;
        machine.told.forget_stages();
        machine.forget_the_gone();
        machine.kill_in = match (last, machine.dice.per_mille(800)) {
            (false, true) => 1 + machine.dice.below(600) as u64,
            _ => 0,
        };
        // A dead one's may still have a word waiting.
        machine.killed = Arc::default();
        machine.note("a daemon starts", "");
        machine.killed.clone()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let quiet = runtime.block_on(async {
        tokio::select! {
            biased;
            () = killed.notified() => None,
            picture = live(world, before, last) => Some(picture),
        }
    });
    world.lock().dead = true;
    drop(runtime);
    let mut machine = world.lock();
    machine.board = None;
    if machine.violation.is_some() {
        return None;
    }
    machine.last_effects();
    quiet
}

async fn live(world: &SimWorld, before: Option<Picture>, last: bool) -> Picture {
    let life = world.lock().life;
    let board = Arc::new(Board::default());
    let pods = Pods::new(Arc::new(world.clone()), board.clone());
    pods.recover(found(world)).await;
    {
        let mut machine = world.lock();
        machine.board = Some(board.clone());
        machine.tick("the daemon serves", "");
    }
    if let Some(before) = before {
        // Two that were both asked to begin at the end of their stories.
        tokio::time::sleep(SETTLED).await;
        let now = picture(&board);
        if now != before {
            let text = format!("after a restart: {now:?}\nbefore it: {before:?}");
            world.lock().violate(text);
        }
    }
    let engine = Engine::new(pods.clone(), board.clone());
    if last {
        end(world, &engine, &pods).await;
        return picture(&board);
    }
    world.lock().calm = false;
    let nature = tokio::spawn(nature(world.clone(), life));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..CALLERS {
        let caller = Caller {
            world: world.clone(),
            engine: engine.clone(),
            life,
        };
        callers.spawn(caller.go(REQUESTS));
    }
    callers.join_all().await;
    nature.abort();
    calm(world);
    tokio::time::sleep(SETTLED).await;
    picture(&board)
}

fn calm(world: &SimWorld) {
    let mut machine = world.lock();
    machine.calm = true;
    machine.kill_in = 0;
    let shims: Vec<_> = machine.held.shims.keys().cloned().collect();
    for pod in shims {
        machine.shim_wakes(&pod);
    }
}

/// Everything is removed, and nothing is left.
async fn end(world: &SimWorld, engine: &Engine, pods: &Pods) {
    calm(world);
    tokio::time::sleep(SETTLED).await;
    for pod in engine.pods() {
        let id = &pod.id;
        world.lock().told.leaving_pods.insert(id.clone());
        if let Err(e) = engine.remove_pod(id.as_str()).await {
            let text = format!("the pod {id} cannot be removed: {}", wharf_types::chain(&e));
            world.lock().violate(text);
        }
    }
    tokio::time::sleep(SETTLED).await;
    let mut machine = world.lock();
    let left = machine.held.words();
    if !left.is_empty() {
        machine.violate(format!("left in the end: {left}"));
    }
    let stages = machine.board.as_ref().map(|board| board.stages());
    let stages = stages.unwrap_or_default();
    if !engine.pods().is_empty() || !engine.containers().is_empty() || !stages.is_empty() {
        machine.violate(format!("still listed in the end: {engine:?}"));
    }
    if format!("{pods:?}") != "Pods { pods: 0 }" {
        machine.violate(format!("names are still taken in the end: {pods:?}"));
    }
    let tasks = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    if tasks > 0 {
        machine.violate(format!("{tasks} tasks still run in the end"));
    }
}

/// What a new daemon reads.
fn found(world: &SimWorld) -> Vec<Recovered> {
    let mut machine = world.lock();
    let records: Vec<PodRecord> = machine.held.pod_records.values().cloned().collect();
    let mut found = Vec::new();
    for record in records {
        let all = machine.held.container_records.values();
        let mut containers: Vec<_> = all.filter(|c| c.pod == record.id).cloned().collect();
        let pod = match !machine.calm && machine.dice.per_mille(15) {
            true => {
                machine.tally.count(Fault::RecordBroken);
                machine.told.leaving_pods.insert(record.id.clone());
                let (boot, own) = (machine.boot.to_string(), record.cgroup.clone());
                let broken = PodRecord::unreadable(record.id, boot, own, None);
                let records = &mut machine.held.pod_records;
                records.insert(broken.id.clone(), broken.clone());
                broken
            }
            false => record,
        };
        for container in &mut containers {
            if !machine.calm && machine.dice.per_mille(15) {
                machine.tally.count(Fault::RecordBroken);
                let id = container.id.clone();
                machine.told.leaving_containers.insert(id.clone());
                *container = ContainerRecord::unreadable(id.clone(), pod.id.clone());
                let records = &mut machine.held.container_records;
                records.insert(id, container.clone());
            }
        }
        found.push(Recovered {
            record: pod,
            containers,
            newer: None,
        });
    }
    found
}

/// What happens while no daemon is there.
fn away(world: &SimWorld) {
    let mut machine = world.lock();
    if machine.violation.is_some() {
        return;
    }
    let shims: Vec<_> = machine.held.shims.keys().cloned().collect();
    for pod in shims {
        match machine.dice.below(10) {
            0 => {
                machine.tally.count(Fault::ShimDiedAway);
                machine.note("shim dies meanwhile", pod.as_str());
                machine.shim_dies(&pod);
            }
            1 => {
                machine.tally.count(Fault::SilentAtStart);
                if let Some(shim) = machine.held.shims.get_mut(&pod) {
                    shim.silent = true;
                }
            }
            _ => machine.shim_wakes(&pod),
        }
    }
    let ids: Vec<_> = machine.held.processes.keys().cloned().collect();
    for id in ids {
        if machine.dice.per_mille(200) {
            machine.tally.count(Fault::ExitAway);
            let code = *machine.dice.pick(&[0, 1, 3]).unwrap();
            machine.end(&id, code, 0);
        }
    }
    if machine.dice.per_mille(120) {
        machine.tally.count(Fault::Reboot);
        machine.note("the machine is rebooted", "");
        machine.reboot();
    }
}

/// What happens by itself while a daemon lives.
async fn nature(world: SimWorld, life: u64) {
    loop {
        let pause = Duration::from_millis(1) + world.lock().dice.millis(500);
        tokio::time::sleep(pause).await;
        world.alive(life).await;
        let mut machine = world.lock();
        let shims: Vec<_> = machine.held.shims.keys().cloned().collect();
        let shim = machine.dice.pick(&shims).cloned();
        match (machine.dice.below(100), shim) {
            (0..14, _) => exits(&mut machine),
            (14..15, Some(pod)) => {
                machine.tally.count(Fault::ShimDied);
                machine.tick("shim dies", pod.as_str());
                machine.shim_dies(&pod);
            }
            (15..18, Some(pod)) => {
                machine.tally.count(Fault::ShimSilent);
                machine.tick("shim falls silent", pod.as_str());
                if let Some(shim) = machine.held.shims.get_mut(&pod) {
                    shim.silent = true;
                }
            }
            (18..30, Some(pod)) => {
                machine.tick("shim goes on", pod.as_str());
                machine.shim_wakes(&pod);
            }
            _ => {}
        }
    }
}

/// A container ends by itself.
fn exits(machine: &mut Machine) {
    let live = machine.held.processes.iter();
    let live = live.filter(|(_, process)| process.exit.is_none());
    let ids: Vec<_> = live.map(|(id, _)| id.clone()).collect();
    let Some(id) = machine.dice.pick(&ids).cloned() else {
        return;
    };
    let stage = machine.board.as_ref().and_then(|b| b.stage(id.as_str()));
    machine.tally.count(match stage.map(|stage| stage.name) {
        Some("created" | "create container") => Fault::ExitCreated,
        Some("being started") => Fault::ExitStarting,
        Some("being stopped" | "being killed") => Fault::ExitStopping,
        _ => Fault::ExitRunning,
    });
    let code = *machine.dice.pick(&[0, 1, 3, 42]).unwrap();
    machine.tick("ends by itself", id.as_str());
    machine.end(&id, code, 0);
}

/// Whether two runs of the same seed are the same run.
pub(super) fn repeats(seed: u64, steps: u64) -> bool {
    let (one, two) = (run(seed, steps), run(seed, steps));
    one.digest == two.digest && one.tally.steps == two.tally.steps
}
