//! The kernel's side: limits that are read back, processes that are stopped, killed, counted.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use wharf_cgroup::{Cgroup, CgroupError, Cgroups, DeviceAccess, DeviceKind, DeviceRule, Limits};

/// A name of our own in each hierarchy; whatever happened in the test, it is empty and gone after it.
struct Place {
    cgroups: Cgroups,
    name: String,
}

impl Place {
    fn new(narrow: impl FnOnce(Cgroups) -> Cgroups) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return None;
        }
        let Ok(cgroups) = Cgroups::probe() else {
            println!("skipped: no cgroups are mounted");
            return None;
        };
        let cgroups = narrow(cgroups);
        if cgroups.v1().is_empty() && cgroups.v2().is_none() {
            println!("skipped: this machine does not have that version of cgroups");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("wharf-test-{}-{number}", std::process::id());
        Some(Self { cgroups, name })
    }

    fn path(&self) -> String {
        format!("/{}/c", self.name)
    }

    fn create(&self, limits: &Limits) -> Result<Cgroup, CgroupError> {
        self.cgroups.create(&self.path(), limits)
    }

    /// The directories that exist below our name.
    fn left(&self) -> Vec<PathBuf> {
        let hierarchies = self.cgroups.v1().iter().chain(self.cgroups.v2());
        let directories = hierarchies.map(|h| h.mountpoint.join(&self.name));
        directories.filter(|directory| directory.exists()).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Ok(all) = self.cgroups.open(&self.name) else {
            return;
        };
        all.kill().unwrap();
        all.remove().unwrap();
    }
}

/// A shell in the cgroup that runs `script`, whose first line of output was awaited.
struct Shell {
    child: Child,
    first: String,
}

impl Shell {
    fn start(place: &Place, script: &str) -> Self {
        Self::start_in(place, &place.path(), script)
    }

    fn start_in(place: &Place, path: &str, script: &str) -> Self {
        let mut join = String::new();
        for hierarchy in place.cgroups.v1().iter().chain(place.cgroups.v2()) {
            let procs = hierarchy
                .mountpoint
                .join(path.trim_matches('/'))
                .join("cgroup.procs");
            if procs.exists() {
                write!(join, "echo 0 > '{}'; ", procs.display()).unwrap();
            }
        }
        let mut child = Command::new("sh")
            .args(["-c", &format!("{join} {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut first)
            .unwrap();
        Self {
            child,
            first: first.trim().to_owned(),
        }
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn value(place: &Place, controller: &str, file: &str) -> Option<String> {
    let hierarchy = place
        .cgroups
        .v1()
        .iter()
        .find(|h| h.controllers.iter().any(|c| c == controller))?;
    let path = hierarchy.mountpoint.join(&place.name).join("c").join(file);
    Some(std::fs::read_to_string(path).unwrap().trim().to_owned())
}

/// A machine that has these controllers on v1 (this one).
fn has(place: &Place, controllers: &[&str]) -> bool {
    let all = controllers.iter().all(|name| {
        place
            .cgroups
            .v1()
            .iter()
            .any(|h| h.controllers.iter().any(|c| c == name))
    });
    if !all {
        println!("skipped: needs {controllers:?} on cgroup v1");
    }
    all
}

#[test]
fn limits_are_what_the_kernel_says_afterwards() {
    let Some(place) = Place::new(|c| c) else {
        return;
    };
    if !has(&place, &["memory", "cpu", "pids", "cpuset"]) {
        return;
    }
    let limits = Limits {
        memory: Some(64 << 20),
        memory_reservation: Some(32 << 20),
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        cpu_period: Some(200_000),
        cpuset_cpus: "0".to_owned(),
        pids: Some(33),
        ..Limits::default()
    };
    let cgroup = place.create(&limits).unwrap();
    let expected = [
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("memory", "memory.soft_limit_in_bytes", "33554432"),
        ("cpu", "cpu.shares", "512"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpu", "cpu.cfs_period_us", "200000"),
        ("cpuset", "cpuset.cpus", "0"),
        ("pids", "pids.max", "33"),
    ];
    for (controller, file, wanted) in expected {
        assert_eq!(value(&place, controller, file).unwrap(), wanted, "{file}");
    }
    let mems = value(&place, "cpuset", "cpuset.mems").unwrap();
    assert!(!mems.is_empty(), "inherited, or no process could come in");

    cgroup
        .update(&Limits {
            memory: Some(128 << 20),
            cpu_period: Some(100_000),
            cpu_quota: Some(-1),
            ..Limits::default()
        })
        .unwrap();
    assert_eq!(
        value(&place, "memory", "memory.limit_in_bytes").unwrap(),
        "134217728"
    );
    assert_eq!(value(&place, "cpu", "cpu.cfs_quota_us").unwrap(), "-1");
    assert_eq!(
        value(&place, "pids", "pids.max").unwrap(),
        "33",
        "unset stays"
    );
    cgroup.remove().unwrap();
    cgroup.remove().unwrap();
    assert!(matches!(
        place.cgroups.open(&place.path()),
        Err(CgroupError::NotFound(_))
    ));
}

#[test]
fn a_refused_limit_names_file_and_value_and_leaves_nothing() {
    let Some(place) = Place::new(|c| c) else {
        return;
    };
    if !has(&place, &["cpuset", "pids"]) {
        return;
    }
    let limits = Limits {
        pids: Some(7),
        cpuset_cpus: "4000".to_owned(),
        ..Limits::default()
    };
    let error = place.create(&limits).unwrap_err().to_string();
    for part in ["\"4000\"", "cpuset.cpus", "cpuset controller"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(place.left(), Vec::<PathBuf>::new());

    let cgroup = place.create(&Limits::default()).unwrap();
    cgroup.update(&limits).unwrap_err();
    assert_eq!(
        value(&place, "pids", "pids.max").unwrap(),
        "max",
        "taken back"
    );
}

#[test]
fn memory_cannot_be_limited_below_what_is_in_use() {
    let Some(place) = Place::new(|c| c) else {
        return;
    };
    if !has(&place, &["memory"]) {
        return;
    }
    let cgroup = place.create(&Limits::default()).unwrap();
    let _shell = Shell::start(
        &place,
        "x=$(head -c 30000000 /dev/zero | tr '\\0' x); echo ready; read line",
    );
    let error = cgroup
        .update(&Limits {
            memory: Some(4 << 20),
            ..Limits::default()
        })
        .unwrap_err();
    let CgroupError::BelowUsage { limit, usage, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(*limit, 4 << 20);
    assert!(*usage > 30_000_000);
    assert_eq!(error.kind(), wharf_types::Kind::Invalid);
}

/// A tree of processes that forks as long as it lives.
const FORKING: &str = "(while :; do (read x < /dev/zero) & wait $!; done) & echo ready; wait";

fn kill_ends_everything(narrow: impl FnOnce(Cgroups) -> Cgroups) {
    let Some(place) = Place::new(narrow) else {
        return;
    };
    let cgroup = place.create(&Limits::default()).unwrap();
    let mut shell = Shell::start(
        &place,
        "(sleep 100 & sleep 100) & sleep 100 & echo ready; wait",
    );
    assert!(cgroup.processes().unwrap().len() >= 3);
    assert!(cgroup.stats().unwrap().pids.unwrap() >= 3);
    assert!(matches!(
        place.create(&Limits::default()),
        Err(CgroupError::Occupied { .. })
    ));
    cgroup.kill().unwrap();
    assert!(!shell.child.wait().unwrap().success());
    cgroup.remove().unwrap();
    assert_eq!(cgroup.processes().unwrap(), []);
    cgroup.kill().unwrap();
}

#[test]
fn kill_ends_all_processes_by_whatever_the_machine_has() {
    kill_ends_everything(|cgroups| cgroups);
}

#[test]
fn kill_ends_all_processes_on_v1_alone() {
    kill_ends_everything(|cgroups| Cgroups::legacy(cgroups.v1().to_vec()));
}

#[test]
fn kill_ends_all_processes_on_v2_alone() {
    kill_ends_everything(Cgroups::without_v1);
}

#[test]
fn kill_on_v1_gets_those_who_fork_meanwhile() {
    let Some(place) = Place::new(|c| Cgroups::legacy(c.v1().to_vec())) else {
        return;
    };
    let cgroup = place
        .create(&Limits {
            pids: Some(50),
            ..Limits::default()
        })
        .unwrap();
    let _shell = Shell::start(&place, FORKING);
    cgroup.kill().unwrap();
    assert_eq!(cgroup.processes().unwrap(), []);
}

fn freezing_stops_and_thawing_continues(narrow: impl FnOnce(Cgroups) -> Cgroups) {
    let Some(place) = Place::new(narrow) else {
        return;
    };
    let cgroup = place.create(&Limits::default()).unwrap();
    let mut shell = Shell::start(&place, "echo ready; read line; echo $line");
    cgroup.freeze().unwrap();
    shell
        .child
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"go\n")
        .unwrap();
    assert!(shell.is_running());
    cgroup.thaw().unwrap();
    let mut line = String::new();
    BufReader::new(shell.child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "go\n");
    // A frozen cgroup can be killed too.
    let _second = Shell::start(&place, "echo ready; read line");
    cgroup.freeze().unwrap();
    cgroup.kill().unwrap();
    cgroup.remove().unwrap();
}

#[test]
fn freezing_stops_and_thawing_continues_on_v1() {
    freezing_stops_and_thawing_continues(|c| Cgroups::legacy(c.v1().to_vec()));
}

#[test]
fn freezing_stops_and_thawing_continues_on_v2() {
    freezing_stops_and_thawing_continues(Cgroups::without_v1);
}

#[test]
fn a_process_killed_for_want_of_memory_is_counted() {
    let Some(place) = Place::new(|c| c) else {
        return;
    };
    if !has(&place, &["memory"]) {
        return;
    }
    let limits = Limits {
        memory: Some(8 << 20),
        memory_swap: Some(8 << 20),
        ..Limits::default()
    };
    let cgroup = place.create(&limits).unwrap();
    assert_eq!(cgroup.oom_kills().unwrap(), Some(0));
    let mut shell = Shell::start(
        &place,
        "echo ready; x=$(head -c 60000000 /dev/zero | tr '\\0' x); echo ${#x}",
    );
    shell.child.wait().unwrap();
    assert!(cgroup.oom_kills().unwrap() >= Some(1));
    let stats = cgroup.stats().unwrap();
    assert!(stats.memory_working_set <= stats.memory_usage);
    assert!(stats.cpu_nanoseconds > Some(0));
    assert!(stats.memory_limit.is_some() && stats.page_faults > Some(0));
    let details = cgroup.details();
    assert!(details.oom_kills >= Some(1) && details.memory_limit_hits.is_some());
    assert!(details.cpu_user.is_some() && details.memory_max_usage > Some(0));
}

#[test]
fn figures_of_a_removed_cgroup_are_an_error_and_not_old_ones() {
    let Some(place) = Place::new(|c| c) else {
        return;
    };
    let cgroup = place.create(&Limits::default()).unwrap();
    let reader = cgroup.stats_reader().unwrap();
    let mut buffer = Vec::new();
    reader.read(&mut buffer).unwrap();
    assert!(reader.files() >= 1);
    cgroup.remove().unwrap();
    reader.read(&mut buffer).unwrap_err();
}

#[test]
fn the_number_of_tasks_is_limited() {
    let Some(place) = Place::new(|c| c) else {
        return;
    };
    if !has(&place, &["pids"]) {
        return;
    }
    let limits = Limits {
        pids: Some(1),
        ..Limits::default()
    };
    let _cgroup = place.create(&limits).unwrap();
    let mut shell = Shell::start(&place, "(echo forked)");
    assert_eq!(shell.first, "");
    assert!(!shell.child.wait().unwrap().success());
}

fn rule(allow: bool, kind: DeviceKind, major: u32, minor: u32) -> DeviceRule {
    DeviceRule {
        allow,
        kind,
        major: Some(major),
        minor: Some(minor),
        access: DeviceAccess::ALL,
    }
}

fn only_listed_devices_can_be_opened(narrow: impl FnOnce(Cgroups) -> Cgroups) {
    let Some(place) = Place::new(narrow) else {
        return;
    };
    let null = rule(true, DeviceKind::Char, 1, 3);
    let zero = rule(true, DeviceKind::Char, 1, 5);
    let devices = |rules: &[DeviceRule]| Limits {
        devices: Some(rules.to_vec()),
        ..Limits::default()
    };
    let cgroup = place.create(&devices(&[null])).unwrap();
    let try_both = || {
        let shell = Shell::start(
            &place,
            "o=; (: < /dev/null) && o=null; (: < /dev/zero) 2>/dev/null && o=$o,zero; echo $o; exit 0",
        );
        shell.first.clone()
    };
    assert_eq!(try_both(), "null");
    cgroup.update(&devices(&[null, zero])).unwrap();
    assert_eq!(try_both(), "null,zero");
    cgroup.update(&devices(&[null])).unwrap();
    assert_eq!(try_both(), "null");
    cgroup.update(&Limits::default()).unwrap();
    assert_eq!(try_both(), "null", "unset stays");
}

#[test]
fn only_listed_devices_can_be_opened_on_v1() {
    only_listed_devices_can_be_opened(|c| Cgroups::legacy(c.v1().to_vec()));
}

#[test]
fn only_listed_devices_can_be_opened_on_v2() {
    only_listed_devices_can_be_opened(Cgroups::without_v1);
}

#[test]
fn devices_that_are_refused_take_the_memory_limits_of_v1_back() {
    let Some(place) = Place::new(|c| Cgroups::legacy(c.v1().to_vec())) else {
        return;
    };
    let null = rule(true, DeviceKind::Char, 1, 3);
    let zero = rule(true, DeviceKind::Char, 1, 5);
    let mut limits = Limits {
        devices: Some(vec![null]),
        ..Limits::default()
    };
    let _parent = place.cgroups.create(&place.name, &limits).unwrap();
    let cgroup = place.create(&Limits::default()).unwrap();
    limits.oom_kill_disable = true;
    limits.devices = Some(vec![null, zero]); // more than the parent has
    let error = cgroup.update(&limits).unwrap_err();
    assert!(error.to_string().contains("devices"), "{error}");
    let memory = place.cgroups.v1().iter();
    let memory = memory
        .filter(|h| h.controllers.iter().any(|c| c == "memory"))
        .map(|h| h.mountpoint.join(&place.name).join("c/memory.oom_control"));
    for file in memory {
        let text = std::fs::read_to_string(file).unwrap();
        assert!(text.starts_with("oom_kill_disable 0\n"), "{text}");
    }
}

#[test]
fn a_process_in_a_deeply_nested_cgroup_of_v1_is_killed() {
    let Some(place) = Place::new(|c| Cgroups::legacy(c.v1().to_vec())) else {
        return;
    };
    let cgroup = place.create(&Limits::default()).unwrap();
    let deep = format!("{}{}", place.path(), "/nested".repeat(40));
    let freezer = place.cgroups.v1().iter();
    for hierarchy in freezer.filter(|h| h.controllers.iter().any(|c| c == "freezer")) {
        std::fs::create_dir_all(hierarchy.mountpoint.join(deep.trim_matches('/'))).unwrap();
    }
    let mut shell = Shell::start_in(&place, &deep, "echo ready; read line");
    cgroup.kill().unwrap();
    assert!(!shell.child.wait().unwrap().success());
    cgroup.remove().unwrap();
}

fn a_leaf_is_killed_alone(narrow: impl FnOnce(Cgroups) -> Cgroups) {
    let Some(place) = Place::new(narrow) else {
        return;
    };
    let cgroup = place.create(&Limits::default()).unwrap();
    let mut init = Shell::start(&place, "echo ready; read line");
    let leaf = cgroup.leaf("exec1").unwrap();
    let hierarchies = place.cgroups.v1().len() + usize::from(place.cgroups.v2().is_some());
    let fds = leaf.member_fds().unwrap();
    assert_eq!(fds.v1.len() + usize::from(fds.v2.is_some()), hierarchies);
    let mut exec = Shell::start_in(
        &place,
        &format!("{}/exec1", place.path()),
        "sleep 100 & echo ready; wait",
    );
    assert_eq!(leaf.processes().unwrap().len(), 2);
    leaf.kill().unwrap();
    assert!(!exec.child.wait().unwrap().success());
    leaf.remove().unwrap();
    assert!(init.is_running());
    assert_eq!(cgroup.processes().unwrap(), [init.child.id()]);
}

#[test]
fn a_leaf_is_killed_alone_on_v1() {
    a_leaf_is_killed_alone(|c| Cgroups::legacy(c.v1().to_vec()));
}

#[test]
fn a_leaf_is_killed_alone_on_v2() {
    a_leaf_is_killed_alone(Cgroups::without_v1);
}

#[test]
fn a_process_comes_in_by_the_descriptors() {
    let Some(place) = Place::new(|c| c) else {
        return;
    };
    let cgroup = place.create(&Limits::default()).unwrap();
    let fds = cgroup.member_fds().unwrap();
    let mut child = Command::new("sleep").arg("100").spawn().unwrap();
    for file in &fds.v1 {
        rustix::io::write(file, child.id().to_string().as_bytes()).unwrap();
    }
    let listed = std::fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
    let ours = listed
        .lines()
        .filter(|line| line.ends_with(&place.path()))
        .count();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(ours, place.cgroups.v1().len());
    if let Some(directory) = &fds.v2 {
        let stat = rustix::fs::fstat(directory).unwrap();
        let there = rustix::fs::stat(cgroup.v2_directory().unwrap()).unwrap();
        assert_eq!(stat.st_ino, there.st_ino);
    }
}

#[test]
fn a_tree_without_controllers_serves_pods_without_limits() {
    let Some(place) = Place::new(|c| {
        let v2 = c.without_v1();
        match v2.v2() {
            Some(hierarchy) => Cgroups::unified(&hierarchy.mountpoint, &[]),
            None => v2,
        }
    }) else {
        return;
    };
    place.create(&Limits::default()).unwrap();
    let error = place
        .create(&Limits {
            memory: Some(1 << 20),
            ..Limits::default()
        })
        .unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("memory.max") && message.contains("no memory controller"),
        "{message}"
    );
    let unlimited = Limits {
        cpu_shares: Some(0),
        ..Limits::default()
    };
    place.create(&unlimited).unwrap();
}

#[test]
fn a_cgroup_is_found_again_after_a_restart() {
    let Some(place) = Place::new(|c| c) else {
        return;
    };
    place.create(&Limits::default()).unwrap();
    let mut shell = Shell::start(&place, "echo ready; read line");
    let found = place.cgroups.open(&place.path()).unwrap();
    assert_eq!(found.processes().unwrap(), [shell.child.id()]);
    found.kill().unwrap();
    shell.child.wait().unwrap();
    found.remove().unwrap();
}
