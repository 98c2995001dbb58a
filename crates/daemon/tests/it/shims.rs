//! Shims and the zygote are killed, stopped and come back: each is the trouble of its own pod alone.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tonic::Code;
use wharf_api::v1::{
    ContainerConfig, ContainerState, Mount, NamespaceMode, PodSandboxState, StopPodSandboxRequest,
};
use wharf_testkit::cri::Cri;
use wharf_testkit::{debian, wait};

use crate::scene::{Pod, SOON, Scene, idle, pod_security, refused, security, shell, with};

fn signal(pid: i32, name: &str) {
    debian::run(Command::new("kill").args([&format!("-{name}"), &pid.to_string()])).unwrap();
}

/// The process whose command line names the pod.
fn shim_of(scene: &Scene, pod: &str) -> i32 {
    let shims = scene.node.shims();
    let shim = shims
        .iter()
        .find(|p| p.name == "wharf-shim" && p.command.contains(pod));
    shim.expect("the pod has a shim").pid
}

fn zygote_of(scene: &Scene) -> i32 {
    let shims = scene.node.shims();
    let zygote = shims.iter().find(|p| p.name == "wharf-zygote");
    zygote.expect("there is a zygote").pid
}

/// State and parent of a process; `None` when nothing is left of it.
fn stat(pid: i32) -> Option<(String, i32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    let words: Vec<_> = rest.split(' ').collect();
    Some((words[0].to_owned(), words[1].parse().ok()?))
}

/// Nothing is left of the process, not even the entry that a parent waits for.
fn is_reaped(pid: i32) -> bool {
    wait::until(SOON, || Ok(stat(pid).is_none())).unwrap()
}

fn pid_of(scene: &Scene, container: &str) -> i32 {
    let pid = &scene.info(container)["pid"];
    i32::try_from(pid.as_i64().expect("it runs")).unwrap()
}

/// A container that waits for the file `go` and then runs the rest.
fn gated(gate: &Path, name: &str, script: &str) -> ContainerConfig {
    let script = format!("until [ -e /gate/go ]; do sleep 0.01; done; {script}");
    with(shell(name, &script), |c| {
        c.mounts.push(Mount {
            host_path: gate.display().to_string(),
            container_path: "/gate".into(),
            ..Default::default()
        });
    })
}

fn pid_mode(mode: NamespaceMode) -> impl Fn(&mut ContainerConfig) {
    move |c| security(c).namespace_options.get_or_insert_default().pid = mode.into()
}

fn pod_of_mode<'a>(scene: &'a Scene, name: &str, mode: NamespaceMode) -> Pod<'a> {
    scene.pod_with(name, |p| {
        pod_security(p)
            .namespace_options
            .get_or_insert_default()
            .pid = mode.into();
    })
}

/// The daemon says what it waits for, unless the client itself looks at the clock first.
fn told_of_the_kill(late: &tonic::Status) {
    match late.code() {
        Code::DeadlineExceeded => assert!(late.message().contains("kill"), "{late:?}"),
        code => assert_eq!(code, Code::Cancelled, "{late:?}"),
    }
}

fn not_ready(pod: &Pod<'_>) {
    let gone = || Ok(pod.status().state() == PodSandboxState::SandboxNotready);
    assert!(wait::until(SOON, gone).unwrap());
}

#[test]
fn a_killed_shim_ends_its_containers_and_their_exit_codes_are_known() {
    let Some(scene) = Scene::begin("a_killed_shim") else {
        return;
    };
    let gate = scene.node.dir().join("gate");
    fs::create_dir(&gate).unwrap();
    let other = scene.pod("other");
    let bystander = other.run(&idle("bystander"));
    for mode in [
        NamespaceMode::Container,
        NamespaceMode::Pod,
        NamespaceMode::Node,
    ] {
        let pod = pod_of_mode(&scene, "killed", mode);
        let of_mode = |c| with(c, pid_mode(mode));
        let lives = pod.run(&of_mode(shell("lives", "(sleep 1000 &); sleep 1000")));
        let three = pod.run(&of_mode(gated(&gate, "three", "exit 3")));
        let fine = pod.run(&of_mode(gated(&gate, "fine", "exit 0")));
        let hurt = pod.run(&of_mode(gated(&gate, "hurt", "kill -SEGV $$; sleep 1000")));
        let (over, _) = pod.finish(&of_mode(shell("over", "exit 6")));
        let waits = pod.create(&of_mode(idle("waits"))).unwrap();
        let pids = [&lives, &three, &fine, &waits].map(|id| pid_of(&scene, id));
        let (shim, sandbox) = (shim_of(&scene, &pod.id), scene.node.shims());
        let sandbox = sandbox.iter().find(|p| p.name == "wharf-sandbox");
        assert_eq!(sandbox.is_some(), mode == NamespaceMode::Pod);

        // They end while the shim cannot tell of it.
        signal(shim, "STOP");
        fs::write(gate.join("go"), "").unwrap();
        for pid in [pids[1], pids[2]] {
            let ended = || Ok(stat(pid).is_none_or(|(state, _)| state == "Z"));
            assert!(wait::until(SOON, ended).unwrap());
        }
        signal(shim, "KILL");

        let end = |id: &str| {
            let status = scene.exit_of(id);
            (status.exit_code, status.reason.clone(), status.message)
        };
        let (code, reason, message) = end(&lives);
        assert_eq!((code, reason.as_str()), (137, "ShimLost"), "{mode:?}");
        assert!(message.contains("the shim was lost"), "{message}");
        let (code, reason, message) = end(&three);
        assert_eq!((code, reason.as_str()), (3, "Error"), "{mode:?}");
        assert!(message.contains("the shim was lost"), "{message}");
        assert_eq!(end(&fine).0, 0);
        // PID 1 of a namespace does not die of its own signals.
        let signal = if mode == NamespaceMode::Container {
            9
        } else {
            11
        };
        assert_eq!(end(&hurt).0, 128 + signal, "{mode:?}");
        assert_ne!(end(&waits).0, 0, "it was never started");
        let status = scene.cri().container_status(&over.id).unwrap();
        assert_eq!(status, over, "what had ended before is as it was");
        not_ready(&pod);
        for pid in pids.into_iter().chain([shim]).chain(sandbox.map(|p| p.pid)) {
            assert!(is_reaped(pid), "{mode:?}: {pid} is {:?}", stat(pid));
        }
        refused(
            scene.cri().exec(&lives, &["true"], 5),
            Code::FailedPrecondition,
            &[&lives],
        );
        pod.end();
        fs::remove_file(gate.join("go")).unwrap();
    }
    let answer = scene.cri().exec(&bystander, &["true"], 10).unwrap();
    assert_eq!(answer.exit_code, 0, "the other pod has noticed nothing");
    other.end();
    fs::remove_dir(&gate).unwrap();
    scene.leaves_nothing();
}

#[test]
fn what_a_shim_left_while_the_daemon_was_away_is_ended_and_told_of() {
    let Some(mut scene) = Scene::begin("what_a_shim_left") else {
        return;
    };
    let gate = scene.node.dir().join("gate");
    fs::create_dir(&gate).unwrap();
    let mut ids = Vec::new();
    for mode in [NamespaceMode::Container, NamespaceMode::Node] {
        let pod = pod_of_mode(&scene, &format!("left-{}", mode as i32), mode);
        let lives = pod.run(&with(shell("lives", "sleep 1000"), pid_mode(mode)));
        let four = pod.run(&with(gated(&gate, "four", "exit 4"), pid_mode(mode)));
        let pids = [&lives, &four].map(|id| pid_of(&scene, id));
        ids.push((pod.id.clone(), lives, four, pids));
    }
    let shims: Vec<_> = ids.iter().map(|(pod, ..)| shim_of(&scene, pod)).collect();
    scene.node.kill().unwrap();
    for shim in &shims {
        signal(*shim, "KILL");
        assert!(is_reaped(*shim), "the zygote waits for it");
    }
    // One ends by itself when no shim and no daemon is there any more.
    fs::write(gate.join("go"), "").unwrap();
    for (.., pids) in &ids {
        assert!(is_reaped(pids[1]), "the zygote waits for it");
    }
    scene.node.run().unwrap();
    for (pod, lives, four, pids) in &ids {
        let status = scene.exit_of(four);
        assert_eq!((status.exit_code, status.reason.as_str()), (4, "Error"));
        let status = scene.exit_of(lives);
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (137, "ShimLost")
        );
        assert!(is_reaped(pids[0]));
        scene.cri().stop_pod(pod).unwrap();
        scene.cri().remove_pod(pod).unwrap();
    }
    fs::remove_dir_all(&gate).unwrap();
    scene.leaves_nothing();
}

#[test]
fn a_new_zygote_serves_the_next_pod_and_old_shims_go_on() {
    let Some(scene) = Scene::begin("a_new_zygote") else {
        return;
    };
    let old = scene.pod("old");
    let container = old.run(&idle("c"));
    let shim = shim_of(&scene, &old.id);
    let first = zygote_of(&scene);
    signal(first, "KILL");
    let next = scene.pod("next");
    assert_eq!(next.script("c", "echo lives"), "lives\n");
    assert_ne!(zygote_of(&scene), first);
    let answer = scene.cri().exec(&container, &["echo", "on"], 10).unwrap();
    assert_eq!(answer.stdout, b"on\n");

    // It is killed with requests of several pods in its queue: none of them fails, each pod has one
    // shim.
    let second = zygote_of(&scene);
    signal(second, "STOP");
    let starts: Vec<_> = (0..4)
        .map(|n| {
            let cri = Cri::connect(&scene.node.socket()).unwrap();
            let config = scene.pod_config(&format!("during-{n}"), |_| {});
            std::thread::spawn(move || cri.run_pod(&config, ""))
        })
        .collect();
    let asked = || Ok(pods_dirs(&scene) >= 6);
    assert!(wait::until(SOON, asked).unwrap(), "{}", pods_dirs(&scene));
    signal(second, "KILL");
    for start in starts {
        let pod = start.join().unwrap().unwrap();
        let shims = scene.node.shims();
        let its = shims.iter().filter(|p| p.command.contains(&pod));
        assert_eq!(its.count(), 1);
        scene.cri().remove_pod(&pod).unwrap();
    }
    // An old shim's parent has gone: whoever is its parent now waits for it.
    old.end();
    assert!(is_reaped(shim), "{:?}", stat(shim));
    next.end();
    scene.leaves_nothing();
}

/// Pods whose directories are there.
fn pods_dirs(scene: &Scene) -> usize {
    fs::read_dir(scene.node.state().join("pods")).map_or(0, Iterator::count)
}

#[test]
fn a_stopped_shim_makes_its_own_pod_unknown_and_comes_back() {
    let Some(scene) = Scene::begin("a_stopped_shim") else {
        return;
    };
    let other = scene.pod("other");
    let bystander = other.run(&idle("c"));
    let pod = scene.pod("stopped");
    let container = pod.run(&idle("c"));
    let shim = shim_of(&scene, &pod.id);
    let state = || scene.cri().container_status(&container).unwrap().state();
    let is = |wanted| wait::until(SOON + SOON, || Ok(state() == wanted)).unwrap();
    signal(shim, "STOP");
    // Nobody has asked it anything: nobody knows. This one asks, and is told in time.
    let left = refused(
        scene.cri().exec(&container, &["true"], 11),
        Code::DeadlineExceeded,
        &[&container],
    );
    println!("{left}");
    assert!(is(ContainerState::ContainerUnknown));
    assert_eq!(pod.status().state(), PodSandboxState::SandboxNotready);
    // Everything else goes on.
    let answer = scene.cri().exec(&bystander, &["echo", "on"], 10).unwrap();
    assert_eq!(answer.stdout, b"on\n");
    let more = scene.pod("more");
    assert_eq!(more.script("c", "echo more"), "more\n");
    more.end();

    signal(shim, "CONT");
    assert!(is(ContainerState::ContainerRunning));
    assert_eq!(pod.status().state(), PodSandboxState::SandboxReady);
    let answer = scene.cri().exec(&container, &["echo", "back"], 10).unwrap();
    assert_eq!(answer.stdout, b"back\n");

    // It is stopped again, and killed by somebody: the end of its pod, not of ours.
    signal(shim, "STOP");
    signal(shim, "KILL");
    let status = scene.exit_of(&container);
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "ShimLost")
    );
    pod.end();
    other.end();
    scene.leaves_nothing();
}

#[test]
fn a_pod_whose_shim_is_stopped_can_be_removed() {
    let Some(scene) = Scene::begin("a_pod_whose_shim_is_stopped") else {
        return;
    };
    let pod = scene.pod("stuck");
    let container = pod.run(&idle("c"));
    let (shim, init) = (shim_of(&scene, &pod.id), pid_of(&scene, &container));
    signal(shim, "STOP");
    // kubelet has its own deadline, and is told what is under way; its next call finds it done.
    let mut request = tonic::Request::new(StopPodSandboxRequest {
        pod_sandbox_id: pod.id.clone(),
    });
    request.set_timeout(Duration::from_secs(1));
    let mut client = scene.cri().runtime();
    let late = scene.cri().wait(client.stop_pod_sandbox(request));
    told_of_the_kill(&late.unwrap_err());
    let done = wait::until(SOON * 6, || Ok(scene.cri().stop_pod(&pod.id).is_ok()));
    assert!(done.unwrap(), "{}", scene.node.log());
    scene.cri().remove_pod(&pod.id).unwrap();
    assert!(is_reaped(shim) && is_reaped(init));
    scene.leaves_nothing();
}

/// The processes of an exec, found by a word of its script.
fn with_word(scene: &Scene, word: &str) -> Vec<i32> {
    let all = wharf_testkit::machine::processes(scene.node.name()).into_iter();
    all.filter(|p| p.command.contains(word) && p.name != "wharf")
        .map(|p| p.pid)
        .collect()
}

#[test]
fn execs_of_a_daemon_that_was_killed_end_with_all_that_they_started() {
    let Some(mut scene) = Scene::begin("execs_of_a_daemon_that_was_killed") else {
        return;
    };
    let pod = scene.pod("p");
    let container = pod.run(&idle("c"));
    let init = pid_of(&scene, &container);
    // A used leaf, and one in use with a grandchild that its session does not bind.
    scene.cri().exec(&container, &["true"], 10).unwrap();
    let cri = Cri::connect(&scene.node.socket()).unwrap();
    let id = container.clone();
    let cut = std::thread::spawn(move || {
        let script = "setsid sleep 7654 & sleep 7654";
        cri.exec(&id, &["sh", "-c", script], 600)
    });
    let begun = || Ok(with_word(&scene, "sleep 7654").len() >= 2);
    assert!(wait::until(SOON, begun).unwrap());
    let processes = with_word(&scene, "sleep 7654");
    let pod_id = pod.id.clone();
    scene.node.kill().unwrap();
    cut.join().unwrap().unwrap_err();
    scene.node.run().unwrap();
    for process in processes {
        assert!(is_reaped(process), "{:?}", stat(process));
    }
    let path = scene.info(&container)["cgroup"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = path.trim_start_matches('/').to_owned();
    let leaves = || {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
        let below = hierarchies.flat_map(|h| fs::read_dir(h.path().join(&path)));
        let names = below.flatten().flatten().map(|e| e.file_name());
        let names = names.map(|name| name.to_string_lossy().into_owned());
        names
            .filter(|name| name.starts_with("exec-"))
            .collect::<Vec<_>>()
    };
    assert!(
        wait::until(SOON, || Ok(leaves().is_empty())).unwrap(),
        "{:?}",
        leaves()
    );
    assert_eq!(pid_of(&scene, &container), init, "the container goes on");
    let answer = scene.cri().exec(&container, &["echo", "new"], 10).unwrap();
    assert_eq!(answer.stdout, b"new\n");
    scene.cri().stop_pod(&pod_id).unwrap();
    scene.cri().remove_pod(&pod_id).unwrap();
    scene.leaves_nothing();
}

/// A folder with a daemon that reads its variables from the file `environment` there.
fn variable_daemon() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let real = env!("CARGO_BIN_EXE_wharf");
    let script = format!(
        "#!/bin/sh\nset -a; . {}/environment; exec {real} \"$@\"\n",
        dir.path().display()
    );
    fs::write(dir.path().join("environment"), "").unwrap();
    let wrapper = dir.path().join("wharf");
    fs::write(&wrapper, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&wrapper, mode).unwrap();
    let shim = wharf_testkit::cache::program_under_test("wharf-shim");
    std::os::unix::fs::symlink(shim, dir.path().join("wharf-shim")).unwrap();
    dir
}

#[test]
fn daemons_of_other_releases_get_on_with_shims_and_records_as_far_as_they_can() {
    let dir = variable_daemon();
    let say = |text: &str| fs::write(dir.path().join("environment"), text).unwrap();
    let Some(mut scene) = Scene::built("daemons_of_other_releases", |n| n.programs(dir.path()))
    else {
        return;
    };
    scene
        .registry
        .add("it/busybox", "1", &crate::scene::busybox());
    scene.cri().pull(crate::scene::BUSYBOX).unwrap();
    let first = scene.pod("first");
    first.finish(&shell("first", "true"));
    first.end();
    fs::remove_file(scene.node.logs().join("first.log")).unwrap();
    scene = scene.settled();
    let (id, config, stays, ends) = {
        let pod = scene.pod("p");
        let stays = pod.run(&idle("stays"));
        let ends = pod.run(&idle("ends"));
        (pod.id.clone(), pod.config.clone(), stays, ends)
    };
    let init = pid_of(&scene, &stays);
    let status = |scene: &Scene| {
        let request = wharf_api::v1::PodSandboxStatusRequest {
            pod_sandbox_id: id.clone(),
            verbose: false,
        };
        let mut client = scene.cri().runtime();
        let answer = scene.cri().wait(client.pod_sandbox_status(request));
        answer.unwrap().status.unwrap()
    };

    // The next release: the commonest upgrade.
    say("WHARF_FAULT_PROTOCOL=2");
    scene.node.restart().unwrap();
    assert_eq!(status(&scene).state(), PodSandboxState::SandboxReady);
    let answer = scene.cri().exec(&stays, &["echo", "next"], 10).unwrap();
    assert_eq!(answer.stdout, b"next\n");
    scene.cri().stop(&ends, 0).unwrap();
    scene.cri().remove(&ends).unwrap();
    let ends = scene.cri().create(&id, &idle("ends"), &config).unwrap();
    scene.cri().start(&ends).unwrap();
    let more = scene.pod("more");
    assert_eq!(more.script("c", "echo more"), "more\n");
    more.end();

    // A release that does not know so old a shim any more: it can stop what is there, and says what
    // to do.
    say("WHARF_FAULT_PROTOCOL=3; WHARF_FAULT_PROTOCOL_OLDEST=2");
    scene.node.restart().unwrap();
    assert_eq!(pid_of(&scene, &stays), init);
    let words = ["protocol 1", "remove the pod and run it again"];
    let exec = scene.cri().exec(&stays, &["true"], 10);
    refused(exec, Code::Unimplemented, &words);
    let create = scene.cri().create(&id, &idle("new"), &config);
    refused(create, Code::Unimplemented, &words);
    scene.cri().stop(&ends, 0).unwrap();
    scene.cri().remove(&ends).unwrap();

    // Back to a release that is too old for the shim: it does not understand it, and leaves it alone.
    say("WHARF_FAULT_PROTOCOL=0");
    scene.node.restart().unwrap();
    assert_eq!(status(&scene).state(), PodSandboxState::SandboxNotready);
    let unknown = scene.cri().container_status(&stays).unwrap();
    assert_eq!(unknown.state(), ContainerState::ContainerUnknown);
    assert_eq!(stat(init).map(|(state, _)| state).as_deref(), Some("S"));

    // Records of a later release.
    say("");
    scene.node.terminate().unwrap();
    let record = scene.node.root().join("pods").join(&id).join("pod.json");
    let (kept, text) = (
        fs::read(&record).unwrap(),
        fs::read_to_string(&record).unwrap(),
    );
    let later = text.replacen("\"version\":1", "\"version\":9,\"new\":[]", 1);
    assert_ne!(later, text);
    fs::write(&record, later.replace("\"phase\"", "\"phases\"")).unwrap();
    scene.node.run().unwrap();
    let shown = status(&scene);
    assert_eq!(shown.state(), PodSandboxState::SandboxNotready);
    assert_eq!(shown.metadata.unwrap().name, "p");
    let words = ["a later wharf", "form 9"];
    refused(scene.cri().stop_pod(&id), Code::FailedPrecondition, &words);
    refused(
        scene.cri().remove_pod(&id),
        Code::FailedPrecondition,
        &words,
    );
    refused(
        scene.cri().stop(&stays, 0),
        Code::FailedPrecondition,
        &words,
    );
    assert_eq!(stat(init).map(|(state, _)| state).as_deref(), Some("S"));
    scene.node.terminate().unwrap();
    fs::write(&record, kept).unwrap();
    scene.node.run().unwrap();
    assert_eq!(status(&scene).state(), PodSandboxState::SandboxReady);
    assert_eq!(pid_of(&scene, &stays), init, "all that time it has run");
    scene.cri().stop_pod(&id).unwrap();
    scene.cri().remove_pod(&id).unwrap();
    scene.leaves_nothing();
}

/// A small ext4 of its own, mounted where the daemon sees it.
struct Disk<'a> {
    scene: &'a Scene,
    at: std::path::PathBuf,
    image: std::path::PathBuf,
}

impl<'a> Disk<'a> {
    fn new(scene: &'a Scene) -> Self {
        let (at, image) = (
            scene.node.dir().join("disk"),
            scene.node.dir().join("image"),
        );
        fs::create_dir(&at).unwrap();
        fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
        let disk = Self { scene, at, image };
        disk.run("mkfs.ext4", &["-q", "-F", disk.image.to_str().unwrap()]);
        let [image, at] = [&disk.image, &disk.at].map(|p| p.to_str().unwrap());
        disk.run("mount", &["-o", "loop", image, at]);
        disk
    }

    fn run(&self, program: &str, args: &[&str]) {
        debian::run(self.scene.node.place().command(program).args(args)).unwrap();
    }

    fn freeze(&self, how: &str) {
        self.run("fsfreeze", &[how, self.at.to_str().unwrap()]);
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let at = self.at.to_str().unwrap();
        let place = self.scene.node.place();
        // It thaws nothing that is not frozen; a test that failed has left it frozen.
        drop(place.command("fsfreeze").args(["-u", at]).output());
        drop(place.command("umount").args(["-l", at]).output());
        drop(fs::remove_dir(&self.at));
        drop(fs::remove_file(&self.image));
    }
}

#[test]
fn a_container_that_no_signal_reaches_delays_its_own_pods_removal_alone() {
    let Some(scene) = Scene::begin("a_container_that_no_signal_reaches") else {
        return;
    };
    let disk = Disk::new(&scene);
    let pod = scene.pod("stuck");
    let writes = "while :; do echo x > /disk/f; done";
    let stuck = pod.run(&with(shell("stuck", writes), |c| {
        c.mounts.push(Mount {
            host_path: disk.at.display().to_string(),
            container_path: "/disk".into(),
            ..Default::default()
        });
    }));
    let beside = pod.run(&idle("beside"));
    let other = scene.pod("other");
    disk.freeze("-f");
    let writer = pid_of(&scene, &stuck);
    let waiting = || Ok(stat(writer).is_some_and(|(state, _)| state == "D"));
    assert!(wait::until(SOON, waiting).unwrap(), "{:?}", stat(writer));
    let answer = scene.cri().exec(&beside, &["echo", "on"], 10).unwrap();
    assert_eq!(answer.stdout, b"on\n");

    let mut request = tonic::Request::new(StopPodSandboxRequest {
        pod_sandbox_id: pod.id.clone(),
    });
    request.set_timeout(Duration::from_secs(1));
    let mut client = scene.cri().runtime();
    let late = scene.cri().wait(client.stop_pod_sandbox(request));
    told_of_the_kill(&late.unwrap_err());
    // Without a deadline of its own it is told after ours, and that it is tried again.
    refused(
        scene.cri().stop_pod(&pod.id),
        Code::Unavailable,
        &["kill container", "tried again"],
    );
    assert_eq!(scene.exit_of(&beside).exit_code, 137);
    let status = scene.cri().container_status(&stuck).unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert_eq!(other.script("c", "echo other"), "other\n");

    disk.freeze("-u");
    let stopped = || Ok(scene.cri().stop_pod(&pod.id).is_ok());
    assert!(wait::until(SOON * 3, stopped).unwrap());
    assert_eq!(scene.exit_of(&stuck).exit_code, 137);
    scene.cri().remove_pod(&pod.id).unwrap();
    other.end();
    drop(disk);
    scene.leaves_nothing();
}
