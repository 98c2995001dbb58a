//! A machine that lacks something: room, a disk that answers, descriptors, processes, memory, a steady
//! clock. Clear errors while it lasts, recovery afterwards, nothing left behind.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tonic::{Code, Status};
use wharf_api::v1::{ContainerState, ReopenContainerLogRequest};
use wharf_testkit::cri::Cri;
use wharf_testkit::machine::Machine;
use wharf_testkit::place::Place;
use wharf_testkit::{debian, wait};

use crate::scene::{
    BUSYBOX, Pod, SOON, Scene, busybox, cgroup_file, idle, refused, said, shell, with,
};

/// A file system of its own, in the daemon's mount namespace alone. It is unmounted when dropped, also
/// after a failed test.
struct Disk {
    place: Arc<Place>,
    dir: PathBuf,
    /// The loop device's name, where it has one.
    device: String,
}

impl Disk {
    fn run(place: &Place, program: &str, args: &[&str]) {
        debian::run(place.command(program).args(args)).unwrap();
    }

    /// tmpfs of this size.
    fn memory(scene: &Scene, dir: PathBuf, size: &str) -> Self {
        let place = scene.node.place().clone();
        fs::create_dir_all(&dir).unwrap();
        let options = format!("size={size},mode=755");
        let at = dir.to_str().unwrap();
        Self::run(
            &place,
            "/bin/mount",
            &["-t", "tmpfs", "-o", &options, "wharf-test", at],
        );
        let device = String::new();
        Self { place, dir, device }
    }

    /// ext4 on a loop device: it can be frozen, and becomes read-only on an error.
    fn loop_device(scene: &Scene, dir: PathBuf) -> Self {
        let place = scene.node.place().clone();
        fs::create_dir_all(&dir).unwrap();
        let image = scene.node.dir().join("disk.img");
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let (image, at) = (image.to_str().unwrap(), dir.to_str().unwrap());
        Self::run(&place, "/usr/sbin/mkfs.ext4", &["-q", image]);
        Self::run(
            &place,
            "/bin/mount",
            &["-o", "loop,errors=remount-ro", image, at],
        );
        let table = place
            .command("/bin/findmnt")
            .args(["-n", "-o", "SOURCE", at])
            .output();
        let device = String::from_utf8(table.unwrap().stdout).unwrap();
        let device = device.trim().trim_start_matches("/dev/").to_owned();
        assert!(device.starts_with("loop"), "{device:?}");
        Self { place, dir, device }
    }

    /// A path on it, as this process sees it.
    fn path(&self, name: &str) -> PathBuf {
        self.place.path(&self.dir.join(name))
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(name)).unwrap()).into_owned()
    }

    /// Takes all room but so many bytes; gives the file that has it.
    fn fill(&self, left: u64) -> PathBuf {
        let path = self.path("ballast");
        let mut file = fs::File::create(&path).unwrap();
        let block = [0_u8; 4096];
        while file.write_all(&block).is_ok() {}
        let size = file.metadata().unwrap().len();
        file.set_len(size.saturating_sub(left)).unwrap();
        path
    }

    /// Until the guard is dropped nobody can write. It must be dropped before the node: whatever hangs
    /// in the kernel cannot be killed, and a mount that went away cannot be thawed by its path.
    fn freeze(&self) -> Frozen<'_> {
        let dir = self.dir.to_str().unwrap();
        Self::run(&self.place, "/usr/sbin/fsfreeze", &["-f", dir]);
        Frozen(self)
    }

    /// The kernel meets an error on it, and makes it read-only; `false`: this kernel has no such test.
    fn break_it(&self) -> bool {
        let trigger = format!("/sys/fs/ext4/{}/trigger_fs_error", self.device);
        if !Path::new(&trigger).exists() {
            println!("skipped: a disk that becomes read-only: no {trigger}");
            return false;
        }
        fs::write(&trigger, "1").unwrap();
        assert!(fs::write(self.path("probe"), "").is_err());
        true
    }
}

/// A file system that is frozen.
struct Frozen<'a>(&'a Disk);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let dir = self.0.dir.to_str().unwrap();
        Disk::run(&self.0.place, "/usr/sbin/fsfreeze", &["-u", dir]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let dir = self.dir.to_str().unwrap();
        drop(self.place.command("/bin/umount").args(["-l", dir]).output());
    }
}

/// The text of an error that names the resource; anything else fails.
fn lack<T: std::fmt::Debug>(answer: Result<T, Status>, codes: &[Code], words: &[&str]) -> String {
    let status = answer.expect_err("something lacks");
    let text = status.message().to_owned();
    assert!(codes.contains(&status.code()), "{status:?}");
    assert!(
        words.iter().any(|w| text.contains(w)),
        "none of {words:?} in {status:?}"
    );
    text
}

/// A file that the containers of `gated` see.
fn gate(scene: &Scene) -> PathBuf {
    let gate = scene.node.dir().join("gate");
    fs::create_dir_all(&gate).unwrap();
    gate
}

fn gated(scene: &Scene, name: &str, script: &str) -> wharf_api::v1::ContainerConfig {
    let host_path = gate(scene).display().to_string();
    with(shell(name, script), |c| {
        c.mounts.push(wharf_api::v1::Mount {
            host_path,
            container_path: "/gate".into(),
            ..Default::default()
        });
    })
}

#[test]
fn a_full_log_disk_loses_whole_lines_and_says_how_much() {
    let Some(scene) = Scene::begin("a_full_log_disk_loses_whole_lines") else {
        return;
    };
    let disk = Disk::memory(&scene, scene.node.dir().join("disk"), "1m");
    let scene = scene.settled();
    let ballast = disk.fill(200 << 10);
    let pod = scene.pod_with("full", |p| p.log_directory = disk.dir.display().to_string());
    let script =
        "seq 1 30000; touch /gate/wrote; until [ -e /gate/go ]; do sleep 0.01; done; echo after";
    let container = pod.run(&gated(&scene, "c", script));
    assert!(wait::until(SOON, || Ok(gate(&scene).join("wrote").exists())).unwrap());
    // A second container of the pod cannot log either, and runs all the same.
    let other = pod.run(&shell("other", "echo lost; exit 3"));
    assert_eq!(scene.exit_of(&other).exit_code, 3);
    assert_eq!(
        scene
            .cri()
            .exec(&container, &["true"], 10)
            .unwrap()
            .exit_code,
        0
    );
    fs::remove_file(&ballast).unwrap();
    fs::write(gate(&scene).join("go"), "").unwrap();
    assert_eq!(scene.exit_of(&container).exit_code, 0);
    let log = said(&disk.read("c.log"));
    let lines: Vec<&str> = log.lines().collect();
    let (kept, end) = lines.split_at(lines.len() - 2);
    let expected: Vec<String> = (1..=kept.len()).map(|n| n.to_string()).collect();
    assert!(kept == expected && !kept.is_empty(), "whole lines in order");
    let lost: usize = (kept.len() + 1..=30_000)
        .map(|n| n.to_string().len() + 1)
        .sum();
    let note = format!("wharf: {lost} bytes of output lost: no space left on device");
    assert_eq!(end, [note.as_str(), "after"]);
    pod.end();
    scene.leaves_nothing();
}

#[test]
fn a_frozen_log_disk_holds_back_only_its_container_and_a_read_only_one_nothing() {
    let Some(scene) = Scene::begin("a_frozen_log_disk_holds_back_only") else {
        return;
    };
    let disk = Disk::loop_device(&scene, scene.node.logs().join("pod/slow"));
    let scene = scene.settled();
    let logs = scene.node.logs().join("pod");
    let pod = scene.pod_with("frozen", |p| p.log_directory = logs.display().to_string());
    let slow = |name: &str, script: &str| {
        with(gated(&scene, name, script), |c| {
            c.log_path = format!("slow/{name}.log");
        })
    };
    let counts = "until [ -e /gate/go ]; do sleep 0.01; done; seq 1 200000";
    let (whole, removed) = (slow("whole", counts), slow("removed", counts));
    let (whole, removed) = (pod.run(&whole), pod.run(&removed));
    let beside = pod.run(&shell("beside", "while :; do echo line; sleep 0.02; done"));
    let frozen = disk.freeze();
    fs::write(gate(&scene).join("go"), "").unwrap();
    // The one beside logs on, once the thread that is stuck was given up.
    let length = || fs::metadata(logs.join("beside.log")).map_or(0, |m| m.len());
    for _ in 0..3 {
        let before = length();
        assert!(wait::until(SOON, || Ok(length() > before)).unwrap());
    }
    let (status, text) = pod.finish(&shell("new", "echo new"));
    assert_eq!((status.exit_code, text.as_str()), (0, "new\n"));
    // It is held back: its output has not ended.
    let state = |id: &str| scene.cri().container_status(id).unwrap().state();
    assert_eq!(state(&whole), ContainerState::ContainerRunning);
    for container in [&whole, &removed, &beside] {
        let answer = scene.cri().exec(container, &["echo", "x"], 10).unwrap();
        assert_eq!(
            (answer.exit_code, answer.stdout.as_slice()),
            (0, &b"x\n"[..])
        );
    }
    scene.cri().stop(&removed, 0).unwrap();
    assert_eq!(state(&removed), ContainerState::ContainerExited);
    scene.cri().remove(&removed).unwrap();
    drop(frozen);
    assert_eq!(scene.exit_of(&whole).exit_code, 0);
    let log = said(&disk.read("whole.log"));
    let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    assert!(log == expected, "{} lines", log.lines().count());

    removal_meets_a_frozen_disk(&scene, &disk);
    read_only(&scene, &disk, &pod);
    pod.end();
    scene.leaves_nothing();
}

/// The pod goes although its log thread hangs in the kernel.
fn removal_meets_a_frozen_disk(scene: &Scene, disk: &Disk) {
    let pod = scene.pod_with("held", |p| p.log_directory = disk.dir.display().to_string());
    let writer = pod.run(&shell("c", "while :; do echo line; done"));
    let length = || fs::metadata(disk.path("c.log")).map_or(0, |m| m.len());
    assert!(wait::until(SOON, || Ok(length() > 0)).unwrap());
    let frozen = disk.freeze();
    scene.cri().stop(&writer, 0).unwrap();
    scene.cri().stop_pod(&pod.id).unwrap();
    scene.cri().remove_pod(&pod.id).unwrap();
    let another = scene.pod("another");
    another.end();
    drop(frozen);
}

fn read_only(scene: &Scene, disk: &Disk, pod: &Pod<'_>) {
    let config = with(
        shell("ro", "while :; do echo line; sleep 0.01; done"),
        |c| {
            c.log_path = "slow/ro.log".into();
        },
    );
    let container = pod.run(&config);
    let length = || fs::metadata(disk.path("ro.log")).map_or(0, |m| m.len());
    assert!(wait::until(SOON, || Ok(length() > 0)).unwrap());
    if !disk.break_it() {
        return;
    }
    assert_eq!(
        scene
            .cri()
            .exec(&container, &["true"], 10)
            .unwrap()
            .exit_code,
        0
    );
    let next = with(idle("next"), |c| c.log_path = "slow/next.log".into());
    let text = lack(
        pod.create(&next),
        &[Code::Internal, Code::FailedPrecondition],
        &["ead-only"],
    );
    assert!(text.contains("next.log"), "{text}");
    let request = ReopenContainerLogRequest {
        container_id: container.clone(),
    };
    let path = scene.cri().container_status(&container).unwrap().log_path;
    let reopened = scene
        .cri()
        .wait(scene.cri().runtime().reopen_container_log(request));
    // The file is there, but not for writing.
    lack(
        reopened,
        &[Code::Internal, Code::FailedPrecondition],
        &[path.as_str()],
    );
    scene.cri().stop(&container, 0).unwrap();
    assert_eq!(
        scene.cri().container_status(&container).unwrap().exit_code,
        137
    );
    scene.cri().remove(&container).unwrap();
}

#[test]
fn without_room_for_records_and_snapshots_requests_fail_clearly_and_removals_work() {
    let Some(mut scene) = Scene::built("without_room_for_records", |n| n) else {
        return;
    };
    scene.registry.add("it/busybox", "1", &busybox());
    scene.node.terminate().unwrap();
    let disk = Disk::memory(&scene, scene.node.root(), "64m");
    scene.node.run().unwrap();
    scene.cri().pull(BUSYBOX).unwrap();
    let first = scene.pod("first");
    first.finish(&shell("first", "true"));
    first.end();
    let scene = scene.settled();
    let look = || Machine::look(scene.node.name(), &[&disk.path("")]);
    let before = look();
    let full = [Code::ResourceExhausted];
    let words = ["No space left", "no space left"];
    let lives = scene.pod("lives");
    let running = lives.run(&idle("c"));
    let mut refusals = 0;
    for left in [0, 4, 8, 12, 16, 20, 24, 32, 40, 48, 64, 96] {
        let ballast = disk.fill(left << 10);
        let config = scene.pod_config(&format!("left-{left}"), |_| {});
        let pod = scene.cri().run_pod(&config, "");
        if let Ok(id) = &pod {
            match scene.cri().create(id, &idle("c"), &config) {
                Ok(container) => drop(scene.cri().start(&container)),
                refused => {
                    lack(refused, &full, &words);
                    refusals += 1;
                }
            }
            // Removals need no room.
            scene.cri().stop_pod(id).unwrap();
            scene.cri().remove_pod(id).unwrap();
        } else {
            lack(pod, &full, &words);
            refusals += 1;
        }
        assert_eq!(
            scene.cri().exec(&running, &["true"], 10).unwrap().exit_code,
            0
        );
        assert_eq!(scene.cri().pods().unwrap(), [lives.id.as_str()]);
        fs::remove_file(ballast).unwrap();
        let id = scene.cri().run_pod(&config, "").unwrap();
        let container = scene.cri().create(&id, &idle("c"), &config).unwrap();
        scene.cri().start(&container).unwrap();
        scene.cri().stop_pod(&id).unwrap();
        scene.cri().remove_pod(&id).unwrap();
    }
    assert!(refusals >= 3, "{refusals}");
    // The end of a container and of its pod, with no room at all.
    let _ballast = disk.fill(0);
    scene.cri().stop(&running, 0).unwrap();
    assert_eq!(
        scene.cri().container_status(&running).unwrap().exit_code,
        137
    );
    lives.end();
    fs::remove_file(disk.path("ballast")).unwrap();
    // With the next record the space that is put by for such days is taken again.
    scene.pod("again").end();
    let same = || Ok(before.changes(&look()).is_empty());
    let _it_may_take_a_moment = wait::until(SOON, same).unwrap();
    assert_eq!(before.changes(&look()), Vec::<String>::new());
}

#[test]
fn on_a_disk_that_became_read_only_containers_go_on_and_can_be_ended() {
    let Some(mut scene) = Scene::built("on_a_disk_that_became_read_only", |n| n) else {
        return;
    };
    scene.registry.add("it/busybox", "1", &busybox());
    scene.node.terminate().unwrap();
    let disk = Disk::loop_device(&scene, scene.node.root());
    scene.node.run().unwrap();
    scene.cri().pull(BUSYBOX).unwrap();
    let pod = scene.pod("lives");
    let (running, ending) = (pod.run(&idle("c")), pod.run(&idle("d")));
    if !disk.break_it() {
        return;
    }
    let codes = [Code::Internal, Code::FailedPrecondition];
    let words = ["ead-only"];
    let config = scene.pod_config("new", |_| {});
    lack(scene.cri().run_pod(&config, ""), &codes, &words);
    lack(pod.create(&idle("e")), &codes, &words);
    assert_eq!(scene.cri().pods().unwrap(), [pod.id.as_str()]);
    for container in [&running, &ending] {
        let answer = scene.cri().exec(container, &["true"], 10).unwrap();
        assert_eq!(answer.exit_code, 0);
    }
    // Its end cannot be written down, which is said; it has ended all the same.
    lack(scene.cri().stop(&ending, 0), &codes, &words);
    assert_eq!(scene.exit_of(&ending).exit_code, 137);
    let status = scene.cri().container_status(&running).unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    // A daemon that comes back says why it cannot work; the container does not notice.
    let procs = cgroup_file(&scene, &running, "memory", "cgroup.procs");
    let before = fs::read_to_string(&procs).unwrap();
    let refused = scene.node.restart().unwrap_err().to_string();
    assert!(refused.contains("ead-only"), "{refused}");
    assert_eq!(fs::read_to_string(&procs).unwrap(), before);
}

fn pid(scene: &Scene) -> Option<Pid> {
    Pid::from_raw(scene.node.pid())
}

fn descriptors(scene: &Scene) -> u64 {
    let open = fs::read_dir(format!("/proc/{}/fd", scene.node.pid()));
    open.unwrap().count() as u64
}

#[test]
fn without_descriptors_requests_fail_clearly_and_leave_nothing() {
    let Some(scene) = Scene::begin("without_descriptors_requests_fail") else {
        return;
    };
    let lives = scene.pod("lives");
    let running = lives.run(&idle("c"));
    // Until things are as they stay: an exec's cgroup is kept for the next.
    scene.cri().exec(&running, &["true"], 10).unwrap();
    let before = scene.node.look();
    let limits = fs::read_to_string(format!("/proc/{}/limits", scene.node.pid())).unwrap();
    let line = limits.lines().find(|l| l.starts_with("Max open files"));
    let hard: u64 = line
        .unwrap()
        .split_whitespace()
        .nth(4)
        .unwrap()
        .parse()
        .unwrap();
    let limited = |current: u64| {
        let limit = Rlimit {
            current: Some(current),
            maximum: Some(hard),
        };
        prlimit(pid(&scene), Resource::Nofile, limit).unwrap();
    };
    let mut refusals = Vec::new();
    for more in [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 17, 20, 24, 30] {
        let config = scene.pod_config(&format!("more-{more}"), |_| {});
        limited(descriptors(&scene) + more);
        let mut refusal = |what, status: Status| {
            let text = status.message();
            // glibc's and musl's words for it.
            let words = ["open files", "file descriptors"];
            assert!(words.iter().any(|w| text.contains(w)), "{what}: {status:?}");
            assert_ne!(status.code(), Code::Internal, "{what}: {status:?}");
            refusals.push(what);
        };
        match scene.cri().run_pod(&config, "") {
            Err(status) => refusal("run", status),
            Ok(id) => match scene.cri().create(&id, &idle("c"), &config) {
                Err(status) => refusal("create", status),
                Ok(container) => {
                    if let Err(status) = scene.cri().start(&container) {
                        refusal("start", status);
                    }
                }
            },
        }
        if let Err(status) = scene.cri().exec(&running, &["true"], 10) {
            refusal("exec", status);
        }
        let status = scene.cri().container_status(&running).unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning);
        limited(hard);
        for id in scene.cri().pods().unwrap() {
            if id != lives.id {
                scene.cri().stop_pod(&id).unwrap();
                scene.cri().remove_pod(&id).unwrap();
            }
        }
        assert_eq!(
            scene.cri().exec(&running, &["true"], 10).unwrap().exit_code,
            0
        );
    }
    for what in ["run", "create", "exec"] {
        assert!(
            refusals.contains(&what),
            "{what} was never refused: {refusals:?}"
        );
    }
    // The cgroup that is kept for the next exec may be another one.
    let more = || {
        let changes = before.changes(&scene.node.look());
        let (leaves, mut more): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(|c| c.contains("/exec-"));
        let come = leaves.iter().filter(|l| l.starts_with('+')).count();
        if 2 * come > leaves.len() {
            more.extend(leaves);
        }
        more
    };
    let _it_may_take_a_moment = wait::until(SOON, || Ok(more().is_empty())).unwrap();
    assert_eq!(more(), Vec::<String>::new());
    lives.end();
    scene.leaves_nothing();
}

#[test]
fn a_client_that_opens_connections_and_says_nothing_does_not_keep_the_others_out() {
    let Some(scene) = Scene::begin("a_client_that_opens_connections") else {
        return;
    };
    let socket = scene.node.socket();
    let mut silent = Vec::new();
    for _ in 0..400 {
        silent.extend(UnixStream::connect(&socket));
    }
    // 256 may be there, further ones are closed at once.
    let closed = || {
        let ended = silent.iter().filter(|stream: &&UnixStream| {
            stream.set_nonblocking(true).unwrap();
            (&**stream).read(&mut [0]).is_ok_and(|n| n == 0)
        });
        Ok(ended.count() >= 400 - 256)
    };
    assert!(wait::until(SOON, closed).unwrap());
    // Who is connected is served, and after a while whoever comes.
    let pod = scene.pod("meanwhile");
    let connects = || Ok(Cri::connect(&socket).is_ok_and(|cri| cri.version().is_ok()));
    assert!(wait::until(3 * SOON, connects).unwrap());
    pod.end();
    drop(silent);
    scene.leaves_nothing();
}

/// A v1 cgroup of this node that can be limited; none where there is no such hierarchy.
fn group(scene: &Scene, controller: &str, below: &str) -> Option<PathBuf> {
    let root = Path::new("/sys/fs/cgroup").join(controller);
    if !root.join("cgroup.procs").exists() {
        println!("skipped: no cgroup v1 controller {controller}");
        return None;
    }
    Some(root.join(scene.node.name()).join(below))
}

#[test]
fn without_process_numbers_requests_fail_clearly_and_leave_nothing() {
    let Some(scene) = Scene::begin("without_process_numbers") else {
        return;
    };
    let Some(home) = group(&scene, "pids", "shims") else {
        return;
    };
    let lives = scene.pod("lives");
    let running = lives.run(&idle("c"));
    scene.cri().exec(&running, &["true"], 10).unwrap();
    let limit = home.join("pids.max");
    let current = fs::read_to_string(home.join("pids.current")).unwrap();
    fs::write(&limit, &current).unwrap();
    let codes = [Code::ResourceExhausted, Code::Unavailable];
    let words = ["temporarily unavailable", "process"];
    let config = scene.pod_config("none", |_| {});
    lack(scene.cri().run_pod(&config, ""), &codes, &words);
    lack(lives.create(&idle("d")), &codes, &words);
    lack(scene.cri().exec(&running, &["true"], 10), &codes, &words);
    assert_eq!(scene.cri().pods().unwrap(), [lives.id.as_str()]);
    fs::write(&limit, "max").unwrap();
    assert_eq!(
        scene.cri().exec(&running, &["true"], 10).unwrap().exit_code,
        0
    );
    assert_eq!(lives.finish(&shell("d", "exit 4")).0.exit_code, 4);
    let id = scene.cri().run_pod(&config, "").unwrap();
    scene.cri().stop_pod(&id).unwrap();
    scene.cri().remove_pod(&id).unwrap();
    lives.end();
    scene.leaves_nothing();
}

#[test]
fn a_daemon_that_reaches_its_memory_limit_loses_nothing() {
    let Some(mut scene) = Scene::begin("a_daemon_that_reaches_its_memory_limit") else {
        return;
    };
    let Some(own) = group(&scene, "memory", "daemon") else {
        return;
    };
    let pod = scene.pod("lives");
    let running = pod.run(&gated(
        &scene,
        "c",
        "i=0; until [ -e /gate/go ]; do i=$((i+1)); echo $i; sleep 0.01; done; sleep 1000",
    ));
    let (pod_id, config) = (pod.id.clone(), pod.config.clone());
    let before = scene.cri().container_status(&running).unwrap();
    fs::create_dir(&own).unwrap();
    let enter = |scene: &Scene| {
        fs::write(own.join("cgroup.procs"), scene.node.pid().to_string()).unwrap();
    };
    enter(&scene);
    // What it has is charged elsewhere: this is all that it may have more.
    fs::write(own.join("memory.limit_in_bytes"), "24M").unwrap();
    let socket = scene.node.socket();
    let requests: Vec<_> = (0..8)
        .map(|_| {
            let (socket, running) = (socket.clone(), running.clone());
            std::thread::spawn(move || {
                let cri = Cri::connect(&socket).unwrap();
                let cmd = ["head", "-c", "16000000", "/dev/zero"];
                cri.exec(&running, &cmd, 60)
                    .map(|answer| answer.stdout.len())
            })
        })
        .collect();
    let answers: Vec<_> = requests.into_iter().map(|r| r.join().unwrap()).collect();
    let killed = scene.cri().pods().is_err();
    println!("killed: {killed}, answers: {answers:?}");
    for answer in &answers {
        match answer {
            Ok(length) => assert_eq!(*length, 16_000_000),
            Err(status) => {
                let known = [Code::ResourceExhausted, Code::Unavailable, Code::Unknown];
                assert!(known.contains(&status.code()), "{status:?}");
            }
        }
    }
    assert!(
        killed || answers.iter().any(Result::is_err),
        "the limit was not reached"
    );
    scene.node.restart().unwrap();
    assert_eq!(scene.cri().pods().unwrap(), [pod_id.as_str()]);
    assert_eq!(scene.cri().container_status(&running).unwrap(), before);
    assert_eq!(scene.cri().run_pod(&config, "").unwrap(), pod_id);
    fs::write(gate(&scene).join("go"), "").unwrap();
    assert_eq!(
        scene.cri().exec(&running, &["true"], 10).unwrap().exit_code,
        0
    );
    scene.cri().stop(&running, 0).unwrap();
    let log = said(&fs::read_to_string(&before.log_path).unwrap());
    let lines = log.lines().count();
    let expected: String = (1..=lines).map(|n| format!("{n}\n")).collect();
    assert_eq!(log, expected);
    scene.cri().stop_pod(&pod_id).unwrap();
    scene.cri().remove_pod(&pod_id).unwrap();
    fs::remove_dir(&own).unwrap();
    scene.leaves_nothing();
}

#[test]
fn no_container_ends_before_it_began_whatever_the_clock_does() {
    const HOUR: i64 = 3_600_000_000_000;
    let Some(scene) = Scene::with_faults("no_container_ends_before_it_began") else {
        return;
    };
    let clock = |ns| scene.node.faults().shift_clock(ns).unwrap();
    for (name, created, started, ended) in [
        ("back-after-start", HOUR, HOUR, 0),
        ("back-before-start", HOUR, 0, 0),
        ("forth", 0, HOUR, 0),
        ("always-back", 2 * HOUR, HOUR, -HOUR),
    ] {
        clock(created);
        let pod = scene.pod(name);
        let id = pod.create(&idle("c")).unwrap();
        clock(started);
        scene.cri().start(&id).unwrap();
        let running = scene.cri().container_status(&id).unwrap();
        assert!(
            running.created_at <= running.started_at,
            "{name}: {running:?}"
        );
        clock(ended);
        scene.cri().exec(&id, &["true"], 10).unwrap();
        scene.cri().stop(&id, 10).unwrap();
        let status = scene.cri().container_status(&id).unwrap();
        assert_eq!(
            (status.exit_code, status.started_at),
            (0, running.started_at)
        );
        assert!(
            status.started_at <= status.finished_at,
            "{name}: {status:?}"
        );
        pod.end();
    }
    clock(0);
    refused(
        scene.cri().exec("none", &["true"], 1),
        Code::NotFound,
        &["none"],
    );
    scene.leaves_nothing();
}
