//! What must be true after every step.

use std::collections::BTreeSet;

use super::machine::{Holdings, Machine, Truth};
use super::told::Told;
use crate::board::Board;
use crate::record::PodPhase;
use crate::view::{ContainerState, ContainerView, PodState, PodView};

/// The arrows of `pod/state.rs` and `container/state.rs`, by the words that are published.
const ARROWS: [(&str, &str); 25] = [
    ("prepare pod", "start shim"),
    ("prepare pod", "end shim"),
    ("start shim", "attach network"),
    ("start shim", "end shim"),
    ("attach network", "ready"),
    ("attach network", "detach network"),
    ("ready", "kill containers"),
    ("kill containers", "detach network"),
    ("detach network", "end shim"),
    ("end shim", "stopped"),
    ("stopped", "remove pod"),
    ("create container", "created"),
    ("create container", "being removed"),
    ("created", "being started"),
    ("created", "being killed"),
    ("created", "exited"),
    ("being started", "running"),
    ("being started", "exited"),
    ("running", "being stopped"),
    ("running", "being killed"),
    ("running", "exited"),
    ("being stopped", "being killed"),
    ("being stopped", "exited"),
    ("being killed", "exited"),
    ("exited", "being removed"),
];

/// Whether arrows lead from one word to the other; several may be passed between two looks.
fn leads(from: &str, to: &str) -> bool {
    from == to || ARROWS.iter().any(|(a, b)| *a == from && leads(b, to))
}

/// Looks at everything; what is wrong ends the run.
pub(super) fn check(machine: &mut Machine) {
    if machine.dead {
        return;
    }
    let mut wrong = held(&machine.held);
    if let Some(board) = machine.board.clone() {
        let (pods, containers) = (board.pods(), board.containers());
        wrong = wrong.or_else(|| stages(&mut machine.told, &board));
        wrong = wrong.or_else(|| names(&pods, &containers));
        wrong = wrong.or_else(|| pods.iter().find_map(|view| pod(machine, view)));
        wrong = wrong.or_else(|| containers.iter().find_map(|view| container(machine, view)));
        wrong = wrong.or_else(|| absent(&machine.told, &board));
        for view in &containers {
            let recorded = machine.held.container_records.get(&view.id);
            let recorded = recorded.is_some_and(|record| record.exit.is_some());
            if view.state == ContainerState::Exited && recorded {
                let end = (view.exit_code, view.finished_at_ns);
                machine.told.ends.entry(view.id.clone()).or_insert(end);
            }
        }
    }
    if let Some(what) = wrong {
        machine.violate(what);
    }
}

/// Nothing is held for what no record names, and no name is given twice.
fn held(held: &Holdings) -> Option<String> {
    let records = &held.pod_records;
    let pods = held.dirs.iter().map(|pod| ("a directory", pod));
    let pods = pods
        .chain(held.shims.keys().map(|pod| ("a shim", pod)))
        .chain(held.networks.iter().map(|pod| ("a network", pod)))
        .chain(held.pod_cgroups.iter().map(|pod| ("a cgroup", pod)))
        .chain(
            held.container_records
                .values()
                .map(|c| ("a container", &c.pod)),
        );
    if let Some((what, pod)) = pods
        .into_iter()
        .find(|(_, pod)| !records.contains_key(*pod))
    {
        return Some(format!(
            "{what} is held for the pod {pod}, which no record names"
        ));
    }
    let containers = held.snapshots.iter().map(|id| ("a snapshot", id));
    let mut containers = containers
        .chain(held.cgroups.keys().map(|id| ("a cgroup", id)))
        .chain(held.processes.keys().map(|id| ("a process", id)));
    if let Some((what, id)) = containers.find(|(_, id)| !held.container_records.contains_key(*id)) {
        return Some(format!(
            "{what} is held for the container {id}, which no record names"
        ));
    }
    let mut keys = BTreeSet::new();
    if let Some(pod) = records
        .values()
        .find(|pod| !keys.insert(&pod.spec.metadata))
    {
        return Some(format!("two records have the name {}", pod.spec.metadata));
    }
    let mut keys = BTreeSet::new();
    let mut containers = held.container_records.values();
    let twice = containers.find(|c| !keys.insert((&c.pod, &c.spec.metadata)))?;
    Some(format!("two records have the name {}", twice.spec.metadata))
}

fn stages(told: &mut Told, board: &Board) -> Option<String> {
    let now = board.stages();
    told.stages.retain(|id, _| now.contains_key(id));
    for (id, stage) in now {
        let before = told.stages.insert(id.clone(), stage.name);
        if let Some(before) = before.filter(|before| !leads(before, stage.name)) {
            let to = stage.name;
            return Some(format!(
                "{id} went from {before:?} to {to:?}: no arrow leads there"
            ));
        }
    }
    None
}

fn names(
    pods: &[std::sync::Arc<PodView>],
    containers: &[std::sync::Arc<ContainerView>],
) -> Option<String> {
    let mut keys = BTreeSet::new();
    if let Some(view) = pods.iter().find(|view| !keys.insert(&view.spec.metadata)) {
        return Some(format!("two pods have the name {}", view.spec.metadata));
    }
    let mut keys = BTreeSet::new();
    let twice = containers
        .iter()
        .find(|view| !keys.insert((&view.pod, &view.spec.metadata)))?;
    Some(format!(
        "two containers have the name {}",
        twice.spec.metadata
    ))
}

fn pod(machine: &Machine, view: &PodView) -> Option<String> {
    let (id, told) = (&view.id, &machine.told);
    if told.gone_pods.contains(id) {
        return Some(format!(
            "the pod {id} is listed after its removal was answered"
        ));
    }
    let was = told.pods.get(id)?;
    if was.stopped && view.state != PodState::NotReady {
        return Some(format!(
            "the pod {id} is {:?} after its stop was answered",
            view.state
        ));
    }
    let record = machine.held.pod_records.get(id);
    let phase = record.map(|record| record.phase);
    if view.state == PodState::Ready && phase != Some(PodPhase::Ready) {
        return Some(format!("the pod {id} is ready, and recorded as {phase:?}"));
    }
    if view.state == PodState::Ready
        && !machine.held.networks.contains(id)
        && !machine.unwritten.contains(id)
    {
        return Some(format!("the pod {id} is ready and has no network"));
    }
    None
}

fn container(machine: &Machine, view: &ContainerView) -> Option<String> {
    let (id, told) = (&view.id, &machine.told);
    let state = view.state;
    if told.was_removed(id) {
        return Some(format!(
            "the container {id} is listed after its removal was answered"
        ));
    }
    if let Some((code, at_ns)) = told.ends.get(id)
        && (state != ContainerState::Exited
            || (*code, *at_ns) != (view.exit_code, view.finished_at_ns))
    {
        return Some(format!(
            "the container {id} had ended with {code} at {at_ns}, and is now {state:?} with {} at {}",
            view.exit_code, view.finished_at_ns
        ));
    }
    if let Some(was) = told.containers.get(id) {
        if was.started && state == ContainerState::Created {
            return Some(format!(
                "the container {id} is created after its start was answered"
            ));
        }
        if was.stopped && state != ContainerState::Exited {
            return Some(format!(
                "the container {id} is {state:?} after its stop was answered"
            ));
        }
    }
    let record = machine.held.container_records.get(id);
    let process = machine.held.processes.get(id);
    if record.is_some_and(|record| record.exit.is_some())
        && process.is_some_and(|process| process.exit.is_none())
    {
        return Some(format!(
            "the container {id} is recorded as ended, and its process lives"
        ));
    }
    if state == ContainerState::Exited {
        return end(machine, view);
    }
    None
}

/// The reported end is the one that the shim saw, unless nobody could know.
fn end(machine: &Machine, view: &ContainerView) -> Option<String> {
    let nothing = Truth::default();
    let truth = machine.truth.get(&view.id).unwrap_or(&nothing);
    // No end is shown before its start.
    let shown = |(code, at_ns): (i32, i64)| (code, at_ns.max(view.started_at_ns));
    let as_seen = truth.seen.map(shown) == Some((view.exit_code, view.finished_at_ns));
    let excused = match view.exit_code {
        255 => machine.lost.contains(&view.pod),
        // Its start is one step with the writing of its record.
        128 => truth.start_failed || view.message.contains("the step panicked"),
        137 => machine.unsure.contains(&view.pod),
        _ => false,
    };
    (!as_seen && !excused).then(|| {
        format!(
            "the container {} is reported to have ended with {} ({}) at {}; in truth: {truth:?}",
            view.id, view.exit_code, view.message, view.finished_at_ns
        )
    })
}

/// What the client was told of is there.
fn absent(told: &Told, board: &Board) -> Option<String> {
    let mut pods = told.pods.keys().filter(|id| told.keeps_pod(id));
    if let Some(id) = pods.find(|id| board.pod(id.as_str()).is_err()) {
        return Some(format!("the pod {id} was told of, and is not listed"));
    }
    let mut containers = told.containers.keys().filter(|id| told.keeps_container(id));
    let id = containers.find(|id| board.container(id.as_str()).is_err())?;
    Some(format!("the container {id} was told of, and is not listed"))
}
