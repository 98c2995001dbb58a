//! The daemon is killed at every named step of every operation and comes back; or the step fails.
//!
//! What happens to everybody else meanwhile is seen by a witness: a container that writes numbered lines
//! without end, and one that ends while no daemon is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::{Code, Status};
use wharf_api::v1::{ContainerConfig, Mount};
use wharf_testkit::faults::{self, Fault};
use wharf_testkit::wait;

use crate::killed_operations::{
    Create, CreateInvalid, Exec, ExecOverdue, Operation, Pull, Remove, RemoveImage, RemovePod,
    RunPod, Start, Stop, StopPod,
};
use crate::scene::{SOON, Scene, shell, with};

/// What a daemon that was answered without passing the point may still take to pass it.
const LATE: Duration = Duration::from_millis(500);
const EIO: i32 = 5;

/// A pod whose containers nothing may happen to.
struct Witness {
    pod: String,
    config: wharf_api::v1::PodSandboxConfig,
    gate: PathBuf,
    writer: String,
    process: (i64, u64),
    log: PathBuf,
    read: u64,
    last: u64,
    turns: u32,
}

/// One more that ends while no daemon is there.
struct Seven {
    id: String,
    pid: i64,
    gate: PathBuf,
}

/// Waits without a process of its own: the machine looks the same at any moment.
const NAP: &str = "nap() { read -t 0.005 x <&3; }; mkfifo /nap; exec 3<>/nap;";

fn started_at(pid: i64) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').nth(19).unwrap().parse().unwrap()
}

impl Witness {
    fn begin(scene: &Scene) -> Self {
        let gate = scene.node.dir().join("gate");
        fs::create_dir(&gate).unwrap();
        let pod = scene.pod("witness");
        let script = format!("{NAP} i=0; while :; do i=$((i+1)); echo $i; nap; done");
        let writer = pod.run(&shell("writer", &script));
        let pid = scene.info(&writer)["pid"].as_i64().unwrap();
        let log = scene.node.logs().join("writer.log");
        let mut witness = Self {
            pod: pod.id.clone(),
            config: pod.config.clone(),
            gate,
            process: (pid, started_at(pid)),
            writer,
            log,
            read: 0,
            last: 0,
            turns: 0,
        };
        // From its first line on it has no other process.
        witness.check(scene);
        witness
    }

    fn gated(&self, name: &str) -> ContainerConfig {
        let script = format!("{NAP} until [ -e /gate/{name} ]; do nap; done; exit 7");
        with(shell(name, &script), |c| {
            c.mounts.push(Mount {
                host_path: self.gate.display().to_string(),
                container_path: "/gate".into(),
                ..Default::default()
            });
        })
    }

    fn seven(&mut self, scene: &Scene) -> Seven {
        self.turns += 1;
        let name = format!("seven-{}", self.turns);
        let id = scene
            .cri()
            .create(&self.pod, &self.gated(&name), &self.config)
            .unwrap();
        scene.cri().start(&id).unwrap();
        let pid = scene.info(&id)["pid"].as_i64().unwrap();
        let gate = self.gate.join(name);
        Seven { id, pid, gate }
    }

    /// The lines since the last look: every number once, in order.
    fn check(&mut self, scene: &Scene) {
        let pid = scene.info(&self.writer)["pid"].as_i64().unwrap();
        assert_eq!(
            (pid, started_at(pid)),
            self.process,
            "it is the same process"
        );
        let before = self.last;
        let goes_on = wait::closely(SOON, || {
            self.read_on();
            Ok(self.last > before)
        });
        assert!(goes_on.unwrap(), "its log goes on");
    }

    fn read_on(&mut self) {
        let mut file = File::open(&self.log).unwrap();
        file.seek(SeekFrom::Start(self.read)).unwrap();
        let mut lines = BufReader::new(file);
        let mut line = String::new();
        while lines.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
            let number = line.trim_end().rsplit(' ').next().unwrap();
            assert_eq!(number, (self.last + 1).to_string(), "{line:?}");
            self.last += 1;
            self.read += u64::try_from(line.len()).unwrap();
            line.clear();
        }
    }

    fn end(mut self, scene: &Scene) {
        self.check(scene);
        scene.cri().stop_pod(&self.pod).unwrap();
        self.read_on();
        scene.cri().remove_pod(&self.pod).unwrap();
        fs::remove_dir_all(&self.gate).unwrap();
    }
}

impl Seven {
    /// It ends now, and is reaped.
    fn go(&self) {
        fs::write(&self.gate, "").unwrap();
        let proc = PathBuf::from(format!("/proc/{}", self.pid));
        assert!(wait::closely(SOON, || Ok(!proc.exists())).unwrap());
    }

    fn check(self, scene: &Scene) {
        let status = scene.exit_of(&self.id);
        assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
        scene.cri().remove(&self.id).unwrap();
        fs::remove_file(&self.gate).unwrap();
        fs::remove_file(&status.log_path).unwrap();
    }
}

/// Asks as kubelet does: again while the daemon says that it cannot yet.
fn until_done(scene: &Scene, operation: &mut dyn Operation) {
    let mut last = None;
    let done = wait::closely(SOON, || match operation.request(scene) {
        Ok(()) => Ok(true),
        Err(status) => {
            last = Some(status);
            Ok(false)
        }
    });
    assert!(done.unwrap(), "its repetition fails: {last:?}");
}

/// What the operation passes: each point, how often.
fn passed_by(scene: &Scene, operation: &mut dyn Operation) -> BTreeMap<String, u64> {
    operation.prepare(scene);
    let faults = scene.node.faults();
    let before = faults.hits().unwrap();
    operation.request(scene).unwrap();
    let mut hits = faults.hits().unwrap();
    operation.finish(scene);
    scene.leaves_nothing();
    for (point, count) in before {
        *hits.get_mut(&point).unwrap() -= count;
    }
    hits.retain(|_, count| *count > 0);
    hits
}

/// The first and the last passing of each point.
fn turns(passed: &BTreeMap<String, u64>, operation: &dyn Operation) -> Vec<(String, u64)> {
    let wanted = |point: &str| operation.only().is_none_or(|only| only.contains(&point));
    let passed = passed.iter().filter(|(point, _)| wanted(point));
    let both = passed.flat_map(|(point, count)| {
        let turns = BTreeSet::from([1, *count]);
        turns.into_iter().map(|turn| (point.clone(), turn))
    });
    both.collect()
}

fn descriptors(scene: &Scene) -> Vec<(String, usize)> {
    let mut all: Vec<_> = scene
        .node
        .shims()
        .into_iter()
        .filter(|p| p.name == "wharf-zygote" || p.name == "wharf-shim")
        .map(|p| {
            let fds = fs::read_dir(format!("/proc/{}/fd", p.pid)).map_or(0, Iterator::count);
            (p.name, fds)
        })
        .collect();
    all.sort();
    all
}

fn begin(test: &str) -> Option<Scene> {
    // What cargo built for this test has fault points; another build may have none.
    let ours = env!("CARGO_BIN_EXE_wharf");
    if wharf_testkit::cache::program_under_test("wharf") != Path::new(ours) {
        println!("skipped: {test}: the daemon under test is not the one of this build");
        return None;
    }
    Scene::with_faults(test)
}

/// The whole story for one operation.
fn cut_at_every_step(test: &str, operation: &mut dyn Operation) {
    let Some(mut scene) = begin(test) else {
        return;
    };
    let mut witness = Witness::begin(&scene);
    scene.remember();
    let before = descriptors(&scene);
    let passed = passed_by(&scene, operation);
    let own = operation.own_points();
    for point in faults::points_in(&["engine", "store", "image"]).unwrap() {
        let later = LATER.contains(&point.as_str());
        if !later && own.iter().any(|own| point.starts_with(own)) {
            assert!(
                passed.contains_key(&point),
                "{point:?} is never passed here"
            );
        }
    }
    let mut missed = Vec::new();
    for (point, turn) in turns(&passed, operation) {
        println!("killed at {point:?}, passing {turn}");
        if !kill_at(&mut scene, &mut witness, operation, &point, turn) {
            missed.push((point, turn));
        }
    }
    // Background work may pass a point once less; the first passing is the operation's own.
    missed.retain(|(_, turn)| *turn == 1);
    assert_eq!(missed, [], "no daemon was killed there");
    let mut tolerated = BTreeSet::new();
    let mut failing = turns(&passed, operation);
    failing.retain(|(point, turn)| operation.may_fail(point, *turn));
    for (point, turn) in failing {
        println!("an error at {point:?}, passing {turn}");
        if !fail_at(&scene, operation, &point, turn) {
            tolerated.insert(point);
        }
        witness.check(&scene);
    }
    tolerated.retain(|point| !operation.tolerates().iter().any(|t| point.starts_with(t)));
    assert_eq!(tolerated, BTreeSet::new(), "an error that nobody is told");
    let same = wait::closely(SOON, || Ok(descriptors(&scene) == before));
    assert!(same.unwrap(), "{before:?} became {:?}", descriptors(&scene));
    println!("{} lines without a gap", witness.last);
    witness.end(&scene);
}

/// A record that was being written, beside those that count.
fn has_drafts(scene: &Scene) -> bool {
    let pods = fs::read_dir(scene.node.root().join("pods")).unwrap();
    let mut files = pods
        .flatten()
        .filter_map(|pod| fs::read_dir(pod.path()).ok())
        .flatten();
    files.any(|file| file.is_ok_and(|f| f.file_name().to_string_lossy().ends_with(".new")))
}

/// `false`: the point was not passed.
fn kill_at(
    scene: &mut Scene,
    witness: &mut Witness,
    operation: &mut dyn Operation,
    point: &str,
    turn: u64,
) -> bool {
    operation.prepare(scene);
    let seven = witness.seven(scene);
    let faults = scene.node.faults();
    faults.plan(point, turn, Fault::Kill).unwrap();
    let answer = operation.request(scene);
    let limit = if answer.is_ok() { LATE } else { SOON };
    let end = scene.node.ended(limit).unwrap();
    faults.clear().unwrap();
    seven.go();
    if let Some(end) = end {
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&end),
            Some(9),
            "{end}"
        );
        faults.forget().unwrap();
        scene.node.run().unwrap();
        assert!(wait::closely(SOON, || Ok(!has_drafts(scene))).unwrap());
        operation.meanwhile(scene);
        until_done(scene, operation);
    } else {
        answer.unwrap();
    }
    witness.check(scene);
    seven.check(scene);
    operation.finish(scene);
    scene.leaves_nothing();
    end.is_some()
}

/// `false`: nobody was told of the error.
fn fail_at(scene: &Scene, operation: &mut dyn Operation, point: &str, turn: u64) -> bool {
    operation.prepare(scene);
    let faults = scene.node.faults();
    faults.plan(point, turn, Fault::Error(EIO)).unwrap();
    let answer = operation.request(scene);
    faults.clear().unwrap();
    if let Err(status) = &answer {
        tells(status);
        operation.meanwhile(scene);
        until_done(scene, operation);
    }
    operation.finish(scene);
    scene.leaves_nothing();
    answer.is_err()
}

/// It names what failed, and why.
fn tells(status: &Status) {
    println!("  {:?}: {}", status.code(), status.message());
    let text = status.message();
    assert!(
        text.contains("os error 5") && text.contains(": "),
        "{status:?}"
    );
    // What cannot be read of a layer is as good as damaged.
    let codes = [Code::Internal, Code::Unavailable, Code::DataLoss];
    assert!(codes.contains(&status.code()), "{status:?}");
}

#[test]
fn a_daemon_killed_at_any_step_of_run_pod_leaves_one_pod() {
    cut_at_every_step("killed_run_pod", &mut RunPod::default());
}

#[test]
fn a_daemon_killed_at_any_step_of_create_leaves_one_container() {
    cut_at_every_step("killed_create", &mut Create::default());
}

#[test]
fn a_daemon_killed_while_it_undoes_a_create_leaves_nothing_of_it() {
    cut_at_every_step("killed_create_invalid", &mut CreateInvalid::default());
}

#[test]
fn a_daemon_killed_at_any_step_of_start_leaves_it_started_once() {
    cut_at_every_step("killed_start", &mut Start::default());
}

#[test]
fn a_daemon_killed_at_any_step_of_an_exec_leaves_nothing_of_it() {
    cut_at_every_step("killed_exec", &mut Exec::default());
}

#[test]
fn a_daemon_killed_after_an_exec_was_killed_leaves_nothing_of_it() {
    cut_at_every_step("killed_exec_overdue", &mut ExecOverdue::default());
}

#[test]
fn a_daemon_killed_at_any_step_of_stop_knows_how_containers_ended() {
    cut_at_every_step("killed_stop", &mut Stop::default());
}

#[test]
fn a_daemon_killed_at_any_step_of_remove_leaves_no_container() {
    cut_at_every_step("killed_remove", &mut Remove::default());
}

#[test]
fn a_daemon_killed_at_any_step_of_stop_pod_knows_how_containers_ended() {
    cut_at_every_step("killed_stop_pod", &mut StopPod::default());
}

#[test]
fn a_daemon_killed_at_any_step_of_remove_pod_leaves_no_pod() {
    cut_at_every_step("killed_remove_pod", &mut RemovePod::default());
}

#[test]
fn a_daemon_killed_at_any_step_of_a_pull_leaves_the_old_image_or_the_new_one() {
    cut_at_every_step("killed_pull", &mut Pull::default());
}

#[test]
fn a_daemon_killed_at_any_step_of_remove_image_leaves_all_its_names_or_none() {
    cut_at_every_step("killed_remove_image", &mut RemoveImage);
}

/// A fault point that no operation of these tests owns would never be tried.
#[test]
fn every_fault_point_belongs_to_an_operation() {
    let operations: [&dyn Operation; 12] = [
        &RunPod::default(),
        &Create::default(),
        &CreateInvalid::default(),
        &Start::default(),
        &Exec::default(),
        &ExecOverdue::default(),
        &Stop::default(),
        &Remove::default(),
        &StopPod::default(),
        &RemovePod::default(),
        &Pull::default(),
        &RemoveImage,
    ];
    let owned = |point: &str| {
        let mut own = operations.iter().flat_map(|o| o.own_points());
        own.any(|own| point.starts_with(own))
    };
    let mut points = faults::points_in(&["engine", "store", "image"]).unwrap();
    points.retain(|point| !owned(point) && !ELSEWHERE.iter().any(|e| point.starts_with(e)));
    assert_eq!(points, BTreeSet::new(), "add them to an operation here");
}

/// Points that are tried as soon as they are passed: namespaces are bound with pod networks only.
const LATER: [&str; 3] = [
    "run pod: place of the network namespace made",
    "run pod: network namespace bound",
    "stop pod: network namespace unmounted",
];

/// Points that other tests try.
const ELSEWHERE: [&str; 0] = [];
