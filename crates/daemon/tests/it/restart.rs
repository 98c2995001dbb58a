//! The daemon goes, is killed, and comes back: containers do not notice.

use std::fs;
use std::path::Path;

use tonic::Code;
use wharf_api::v1::{ContainerState, LinuxContainerResources, PodSandboxState};
use wharf_testkit::{debian, machine, wait};

use crate::scene::{BUSYBOX, SOON, Scene, busybox, idle, linux, refused, said, shell, with};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Term,
    Kill,
}

fn stop(scene: &mut Scene, how: How) {
    match how {
        How::Term => scene.node.terminate().unwrap(),
        How::Kill => scene.node.kill().unwrap(),
    }
}

/// The zygote and the shims, without what belongs to containers that may end.
fn shims_of(scene: &Scene) -> Vec<machine::Process> {
    let mut shims = scene.node.shims();
    shims.retain(|p| p.name == "wharf-shim" || p.name == "wharf-zygote");
    shims
}

#[test]
fn containers_go_on_while_the_daemon_is_away_and_nothing_is_forgotten() {
    for how in [How::Term, How::Kill] {
        let Some(scene) = Scene::begin("containers_go_on_while_the_daemon_is_away") else {
            return;
        };
        survive(scene, how);
    }
}

fn survive(mut scene: Scene, how: How) {
    let gate = scene.node.dir().join("gate");
    fs::create_dir(&gate).unwrap();
    let gated = |name: &str, script: &str| {
        with(shell(name, script), |c| {
            c.mounts.push(wharf_api::v1::Mount {
                host_path: gate.display().to_string(),
                container_path: "/gate".into(),
                ..Default::default()
            });
            linux(c).resources = Some(LinuxContainerResources {
                cpu_shares: 77,
                ..Default::default()
            });
        })
    };
    let wait_for = |name: &str| format!("until [ -e /gate/{name} ]; do sleep 0.01; done");
    let pod = scene.pod("survivor");
    let stays = pod.run(&gated(
        "stays",
        &format!(
            "{}; seq 1 3000; touch /gate/wrote; sleep 1000",
            wait_for("go")
        ),
    ));
    let ends = pod.run(&gated(
        "ends",
        &format!("{}; echo bye; exit 9", wait_for("go")),
    ));
    let dies = pod.run(&gated(
        "dies",
        &format!(
            "{}; x=0123456789abcdef; while :; do x=$x$x; done",
            wait_for("go")
        ),
    ));
    let raise = wharf_api::v1::UpdateContainerResourcesRequest {
        container_id: dies.clone(),
        linux: Some(LinuxContainerResources {
            memory_limit_in_bytes: 16 << 20,
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut client = scene.cri().runtime();
    scene
        .cri()
        .wait(client.update_container_resources(raise))
        .unwrap();
    let waits = pod.create(&gated("waits", "echo late; exit 5")).unwrap();
    let (over, _) = pod.finish(&gated("over", "exit 6"));
    let (id, config) = (pod.id.clone(), pod.config.clone());
    let pid = scene.info(&stays)["pid"].clone();
    let before = scene.cri().container_status(&stays).unwrap();
    let shims = shims_of(&scene);

    stop(&mut scene, how);
    fs::write(gate.join("go"), "").unwrap();
    assert!(wait::until(SOON, || Ok(gate.join("wrote").exists())).unwrap());
    let process = |name: &str| {
        machine::processes(scene.node.name())
            .into_iter()
            .any(|p| p.command.contains(name))
    };
    assert!(wait::until(SOON, || Ok(!process("echo bye") && !process("x=$x$x"))).unwrap());
    scene.node.run().unwrap();

    assert_eq!(
        shims_of(&scene),
        shims,
        "{how:?}: not one of them was started again"
    );
    assert_eq!(scene.cri().pods().unwrap(), std::slice::from_ref(&id));
    let after = scene.cri().container_status(&stays).unwrap();
    assert_eq!(after, before, "{how:?}: its status is the same");
    assert_eq!(scene.info(&stays)["pid"], pid);
    let expected: String = (1..=3000).map(|n| format!("{n}\n")).collect();
    assert_eq!(
        said(&fs::read_to_string(&after.log_path).unwrap()),
        expected
    );
    let answer = scene
        .cri()
        .exec(&stays, &["cat", "/proc/1/cgroup"], 10)
        .unwrap();
    assert_eq!(answer.exit_code, 0, "{how:?}: {answer:?}");
    let status = scene.exit_of(&ends);
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (9, "Error"),
        "{how:?}"
    );
    assert!(status.finished_at > status.started_at && status.started_at > 0);
    assert_eq!(
        said(&fs::read_to_string(&status.log_path).unwrap()),
        "bye\n"
    );
    let status = scene.exit_of(&dies);
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled"),
        "{how:?}"
    );
    let status = scene.cri().container_status(&over.id).unwrap();
    assert_eq!(status, over, "what had ended before is as it was");
    let status = scene.cri().container_status(&waits).unwrap();
    assert_eq!(status.state(), ContainerState::ContainerCreated);
    scene.cri().start(&waits).unwrap();
    assert_eq!(scene.exit_of(&waits).exit_code, 5);
    // The name is still the pod's, and the same request still means it.
    assert_eq!(scene.cri().run_pod(&config, "").unwrap(), id);
    let fresh = scene
        .cri()
        .create(&id, &shell("fresh", "echo fresh"), &config)
        .unwrap();
    scene.cri().start(&fresh).unwrap();
    assert_eq!(scene.exit_of(&fresh).exit_code, 0);
    scene.cri().stop(&stays, 0).unwrap();
    scene.cri().stop_pod(&id).unwrap();
    scene.cri().remove_pod(&id).unwrap();
    scene.leaves_nothing();
}

#[test]
fn a_pod_that_lost_its_shim_while_the_daemon_was_away_is_not_ready_and_removable() {
    let Some(mut scene) = Scene::begin("a_pod_that_lost_its_shim") else {
        return;
    };
    let pod = scene.pod("lost");
    let container = pod.run(&idle("c"));
    let (id, config) = (pod.id.clone(), pod.config.clone());
    let before = shims_of(&scene);
    assert!(before.iter().any(|p| p.command.contains(&id)), "{before:?}");
    stop(&mut scene, How::Kill);
    // All that outlives the daemon, the zygote too.
    for process in before {
        debian::run(std::process::Command::new("kill").args(["-KILL", &process.pid.to_string()]))
            .unwrap();
    }
    scene.node.run().unwrap();
    let request = wharf_api::v1::PodSandboxStatusRequest {
        pod_sandbox_id: id.clone(),
        verbose: false,
    };
    let mut client = scene.cri().runtime();
    let status = scene
        .cri()
        .wait(client.pod_sandbox_status(request))
        .unwrap()
        .status
        .unwrap();
    assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    let status = scene.exit_of(&container);
    // It still ran when the daemon came back, and was killed then.
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "ShimLost")
    );
    refused(
        scene.cri().exec(&container, &["true"], 5),
        Code::FailedPrecondition,
        &[&container],
    );
    scene.cri().stop_pod(&id).unwrap();
    scene.cri().remove_pod(&id).unwrap();
    let again = scene.cri().run_pod(&config, "").unwrap();
    assert_ne!(again, id);
    scene.cri().remove_pod(&again).unwrap();
    scene.leaves_nothing();
}

#[test]
fn a_daemon_that_is_ended_in_the_middle_of_work_leaves_nothing_of_it() {
    let Some(mut scene) = Scene::begin("a_daemon_that_is_ended_in_the_middle") else {
        return;
    };
    for turn in 0..12 {
        let how = if turn % 2 == 0 { How::Kill } else { How::Term };
        let cri = wharf_testkit::cri::Cri::connect(&scene.node.socket()).unwrap();
        let config = scene.pod_config(&format!("cut-{turn}"), |_| {});
        let (first, container) = (config.clone(), idle("c"));
        let work = std::thread::spawn(move || {
            let pod = cri.run_pod(&first, "").ok()?;
            let container = cri.create(&pod, &container, &first).ok()?;
            cri.start(&container).ok()
        });
        let limit = std::time::Duration::from_micros(1 << (turn + 4));
        wait::until(limit, || Ok(false)).unwrap();
        stop(&mut scene, how);
        let _cut_or_done = work.join().unwrap();
        scene.node.run().unwrap();
        let again = scene.cri().run_pod(&config, "");
        match again {
            Ok(pod) => assert_eq!(scene.cri().pods().unwrap(), [pod]),
            Err(status) => panic!("turn {turn}, {how:?}: {status:?}"),
        }
        scene.cri().remove_all_pods().unwrap();
        scene.leaves_nothing();
    }
}

/// What an upgrade does: other programs in another place, a new daemon, a new zygote; old shims go on.
#[test]
fn containers_in_old_shims_are_served_when_the_programs_were_replaced() {
    let dirs = [
        wharf_testkit::temporary().unwrap(),
        wharf_testkit::temporary().unwrap(),
    ];
    for dir in &dirs {
        for name in ["wharf", "wharf-shim"] {
            let program = wharf_testkit::cache::program_under_test(name);
            if !program.exists() {
                return println!("skipped: run `cargo build --workspace` first");
            }
            fs::copy(program, dir.path().join(name)).unwrap();
        }
    }
    let [old, new] = dirs;
    let name = "containers_in_old_shims";
    let Some(mut scene) = Scene::built(name, |n| n.programs(old.path())) else {
        return;
    };
    scene.registry.add("it/busybox", "1", &busybox());
    scene.cri().pull(BUSYBOX).unwrap();
    let pod = scene.pod("old");
    let container = pod.run(&idle("stays"));
    let (id, config) = (pod.id.clone(), pod.config.clone());
    let before = shims_of(&scene);
    stop(&mut scene, How::Term);
    let settings = scene.node.dir().join("config.toml");
    let text = fs::read_to_string(&settings).unwrap();
    let (from, to) = (old.path().display(), new.path().display());
    let text = text.replace(&from.to_string(), &to.to_string());
    fs::write(settings, text).unwrap();
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let former = inode(&old.path().join("wharf-shim"));
    // The programs that run have no names any more.
    fs::remove_file(old.path().join("wharf-shim")).unwrap();
    for process in before.iter().filter(|p| p.name == "wharf-zygote") {
        debian::run(std::process::Command::new("kill").args(["-KILL", &process.pid.to_string()]))
            .unwrap();
    }
    scene.node.run().unwrap();
    let said = scene.cri().exec(&container, &["echo", "on"], 10).unwrap();
    assert_eq!(said.stdout, b"on\n");
    let second = scene.cri().create(&id, &idle("second"), &config).unwrap();
    scene.cri().start(&second).unwrap();
    for container in [&container, &second] {
        // Asked to end before its trap is set it has to be killed.
        scene.cri().stop(container, 1).unwrap();
    }
    let fresh = scene.pod("new");
    assert_eq!(fresh.script("c", "echo new"), "new\n");
    let program = |pod: &str| {
        let shims = shims_of(&scene);
        let shim = shims.iter().find(|p| p.command.contains(pod)).unwrap();
        // Its path cannot be seen from here.
        inode(Path::new(&format!("/proc/{}/exe", shim.pid)))
    };
    assert_eq!(program(&fresh.id), inode(&new.path().join("wharf-shim")));
    assert_eq!(program(&id), former);
    fresh.end();
    scene.cri().stop_pod(&id).unwrap();
    scene.cri().remove_pod(&id).unwrap();
    let trace = |p: &machine::Process| p.name == "wharf-shim";
    assert!(wait::until(SOON, || Ok(!shims_of(&scene).iter().any(trace))).unwrap());
}

#[test]
fn a_second_daemon_on_the_same_directories_is_refused_and_changes_nothing() {
    let Some(scene) = Scene::begin("a_second_daemon_on_the_same_directories") else {
        return;
    };
    let pod = scene.pod("first");
    let container = pod.run(&idle("c"));
    let look = scene.node.look();
    let program = wharf_testkit::cache::program_under_test("wharf");
    let mut second = scene.node.place().command(program);
    second
        .args(["daemon", "--config"])
        .arg(scene.node.dir().join("config.toml"));
    let out = second.output().unwrap();
    let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    assert!(!out.status.success(), "{text}");
    assert!(
        text.contains(&scene.node.pid().to_string()),
        "it names the first: {text}"
    );
    let mut changes = look.changes(&scene.node.look());
    // The container's own processes come and go.
    changes.retain(|c| !c.contains(" process ") && !c.contains(" seen by "));
    assert_eq!(changes, Vec::<String>::new());
    assert_eq!(
        scene
            .cri()
            .exec(&container, &["true"], 10)
            .unwrap()
            .exit_code,
        0
    );
    pod.end();
    scene.leaves_nothing();
}

#[test]
fn images_are_there_after_a_restart_and_collected_when_they_go() {
    let Some(mut scene) = Scene::begin("images_are_there_after_a_restart") else {
        return;
    };
    for how in [How::Term, How::Kill] {
        stop(&mut scene, how);
        scene.node.run().unwrap();
        scene.registry.forget_requests();
        let pod = scene.pod("after");
        assert_eq!(pod.script(&format!("{how:?}"), "echo same"), "same\n");
        assert!(
            scene.registry.requests().is_empty(),
            "nothing is fetched again"
        );
        pod.end();
        scene.leaves_nothing();
    }
}

/// Soft limits of open files of a process: what `/proc/PID/limits` says.
fn open_files(pid: i32) -> (String, String) {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text.lines().find(|l| l.starts_with("Max open files"));
    let words: Vec<_> = line.unwrap().split_whitespace().collect();
    (words[3].to_owned(), words[4].to_owned())
}

#[test]
fn a_daemon_with_a_low_limit_of_open_files_finds_all_pods_and_hands_the_limit_on() {
    const LIMIT: &str = "256";
    let dir = tempfile::tempdir().unwrap();
    let limit = dir.path().join("limit");
    fs::write(&limit, LIMIT).unwrap();
    let real = wharf_testkit::cache::program_under_test("wharf");
    let script = format!(
        "#!/bin/sh\nulimit -Sn $(cat {}) && exec {} \"$@\"\n",
        limit.display(),
        real.display()
    );
    let wrapper = dir.path().join("wharf");
    fs::write(&wrapper, script).unwrap();
    let shim = wharf_testkit::cache::program_under_test("wharf-shim");
    std::os::unix::fs::symlink(shim, dir.path().join("wharf-shim")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&wrapper, mode).unwrap();
    let Some(mut scene) = Scene::built("a_daemon_with_a_low_limit", |n| n.programs(dir.path()))
    else {
        return;
    };
    scene.registry.add("it/busybox", "1", &busybox());
    scene.cri().pull(BUSYBOX).unwrap();
    let own = |scene: &Scene| {
        let fds = fs::read_dir(format!("/proc/{}/fd", scene.node.pid()));
        fds.unwrap().count()
    };
    let without_pods = own(&scene);
    let pods: Vec<_> = (0..6)
        .map(|n| {
            let pod = scene.pod(&format!("p{n}"));
            let container = pod.run(&idle("c"));
            (pod.id.clone(), container)
        })
        .collect();
    stop(&mut scene, How::Kill);
    fs::write(&limit, (without_pods + 8).to_string()).unwrap();
    scene.node.run().unwrap();
    for (_, container) in &pods {
        let status = scene.cri().container_status(container).unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning);
    }
    let (soft, hard) = open_files(scene.node.pid());
    assert_eq!(soft, hard, "the daemon raises its own");
    // Without a zygote the next pod needs a new one, long after the limit was raised.
    fs::write(&limit, LIMIT).unwrap();
    scene.node.restart().unwrap();
    let ids: Vec<_> = pods.iter().map(|(id, _)| id).collect();
    for process in shims_of(&scene) {
        if !ids.iter().any(|id| process.command.contains(*id)) {
            debian::run(
                std::process::Command::new("kill").args(["-KILL", &process.pid.to_string()]),
            )
            .unwrap();
        }
    }
    let pod = scene.pod("later");
    let (_, text) = pod.finish(&shell("c", "ulimit -Sn; ulimit -Hn"));
    assert_eq!(text, format!("{LIMIT}\n{hard}\n"));
    pod.end();
    for (id, _) in &pods {
        scene.cri().remove_pod(id).unwrap();
    }
}
