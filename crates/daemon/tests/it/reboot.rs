//! The machine restarts; somebody empties the state directory; the records are lost.

use std::fs;
use std::path::Path;

use wharf_api::v1::{ContainerState, PodSandboxConfig, PodSandboxState};
use wharf_testkit::{debian, machine, wait};

use crate::scene::{SOON, Scene, idle, shell};

/// Removes all that lies in a directory that ends with the boot.
fn empty(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What a reboot is for a daemon: no process is left, what lies below /run is gone, cgroups too, and
/// the boot has another name.
fn reboot(scene: &mut Scene) {
    scene.node.kill().unwrap();
    machine::end_processes(scene.node.name()).unwrap();
    machine::remove_cgroups(scene.node.name()).unwrap();
    empty(&scene.node.state());
    let boot = scene.node.dir().join("boot_id");
    fs::write(&boot, "11111111-2222-3333-4444-555555555555\n").unwrap();
    let mut mount = scene.node.place().command("/bin/mount");
    mount.arg("--bind").arg(boot).arg(BOOT_ID);
    debian::run(&mut mount).unwrap();
    scene.node.run().unwrap();
    // It was read; the look at the machine is not to find it.
    let mut unmount = scene.node.place().command("/bin/umount");
    debian::run(unmount.arg(BOOT_ID)).unwrap();
}

fn state_of(scene: &Scene, pod: &str) -> PodSandboxState {
    let request = wharf_api::v1::PodSandboxStatusRequest {
        pod_sandbox_id: pod.into(),
        verbose: false,
    };
    let mut client = scene.cri().runtime();
    let answer = scene.cri().wait(client.pod_sandbox_status(request));
    answer.unwrap().status.unwrap().state()
}

#[test]
fn after_a_reboot_pods_are_not_ready_and_what_is_known_of_containers_is_kept() {
    let Some(mut scene) = Scene::begin("after_a_reboot") else {
        return;
    };
    let busy = scene.pod("busy");
    let ran = busy.run(&idle("ran"));
    let made = busy.create(&idle("made")).unwrap();
    let (ended, _) = busy.finish(&shell("ended", "exit 3"));
    let (busy_id, config) = (busy.id.clone(), busy.config.clone());
    let stopped = scene.pod("stopped");
    let (stopped_id, other) = (stopped.id.clone(), stopped.config.clone());
    let (known, _) = stopped.finish(&shell("known", "exit 4"));
    scene.cri().stop_pod(&stopped_id).unwrap();
    scene.registry.forget_requests();

    reboot(&mut scene);

    let mut pods = scene.cri().pods().unwrap();
    pods.sort();
    let mut expected = vec![busy_id.clone(), stopped_id.clone()];
    expected.sort();
    assert_eq!(pods, expected);
    for pod in &pods {
        assert_eq!(state_of(&scene, pod), PodSandboxState::SandboxNotready);
    }
    for container in [&ran, &made] {
        let status = scene.exit_of(container);
        assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
        assert!(
            status.message.contains("the machine restarted"),
            "{status:?}"
        );
    }
    // As it was, byte for byte.
    for before in [ended, known] {
        let status = scene.cri().container_status(&before.id).unwrap();
        assert_eq!(status, before);
    }
    // As kubelet goes on: it makes a new sandbox beside the old one, then removes that.
    let next = |config: &PodSandboxConfig| {
        let mut config = config.clone();
        config.metadata.as_mut().unwrap().attempt = 1;
        config
    };
    let fresh = scene.cri().run_pod(&next(&config), "").unwrap();
    let again = scene
        .cri()
        .create(&fresh, &shell("again", "echo up"), &next(&config))
        .unwrap();
    scene.cri().start(&again).unwrap();
    assert_eq!(scene.exit_of(&again).exit_code, 0);
    assert!(
        scene.registry.requests().is_empty(),
        "the image is still there"
    );
    scene.cri().stop_pod(&busy_id).unwrap();
    for pod in [&busy_id, &stopped_id, &fresh] {
        scene.cri().remove_pod(pod).unwrap();
    }
    // The names are free.
    for config in [config, other] {
        let id = scene.cri().run_pod(&config, "").unwrap();
        scene.cri().remove_pod(&id).unwrap();
    }
    scene.leaves_nothing();
}

/// Zygote and shims.
fn ours(scene: &Scene) -> Vec<machine::Process> {
    let mut all = scene.node.shims();
    all.retain(|p| p.name == "wharf-shim" || p.name == "wharf-zygote");
    all
}

#[test]
fn what_nobody_can_reach_when_the_state_directory_was_emptied_does_not_run_on() {
    let Some(mut scene) = Scene::begin("what_nobody_can_reach") else {
        return;
    };
    let pod = scene.pod("cut-off");
    let (id, config) = (pod.id.clone(), pod.config.clone());
    let container = pod.run(&idle("c"));
    let pid = scene.info(&container)["pid"].as_i64().unwrap();
    empty(&scene.node.state());
    // The daemon that runs needs none of it.
    let said = scene.cri().exec(&container, &["echo", "on"], 10);
    assert_eq!(said.unwrap().stdout, b"on\n");
    let other = scene.pod("later");
    other.finish(&shell("d", "true"));
    other.end();
    let before: Vec<i32> = ours(&scene).iter().map(|p| p.pid).collect();

    scene.node.restart().unwrap();

    let status = scene.exit_of(&container);
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    assert_eq!(state_of(&scene, &id), PodSandboxState::SandboxNotready);
    let gone = || {
        let now = ours(&scene);
        Ok(!now.iter().any(|p| before.contains(&p.pid))
            && !Path::new(&format!("/proc/{pid}")).exists())
    };
    assert!(wait::until(SOON, gone).unwrap(), "{:?}", ours(&scene));
    scene.cri().remove_pod(&id).unwrap();
    let again = scene.cri().run_pod(&config, "").unwrap();
    scene.cri().remove_pod(&again).unwrap();
    scene.leaves_nothing();
}

#[test]
fn pods_whose_records_are_lost_do_not_run_on() {
    let Some(mut scene) = Scene::begin("pods_whose_records_are_lost") else {
        return;
    };
    let kept = scene.pod("kept");
    let stays = kept.run(&idle("stays"));
    // As kubelet asks for it: with a cgroup that is given to the pod.
    let parent = scene.node.cgroup_parent("pods");
    let given = scene.pod_with("given", |p| {
        crate::scene::pod_linux(p).cgroup_parent = parent.clone();
    });
    let lost = [scene.pod("lost"), given];
    let pids: Vec<_> = lost
        .iter()
        .map(|pod| scene.info(&pod.run(&idle("c")))["pid"].as_i64().unwrap())
        .collect();
    let kept_id = kept.id.clone();
    let lost = lost.map(|pod| pod.id.clone());
    scene.node.kill().unwrap();
    for id in &lost {
        fs::remove_dir_all(scene.node.root().join("pods").join(id)).unwrap();
    }
    scene.node.run().unwrap();
    assert_eq!(scene.cri().pods().unwrap(), [&*kept_id]);
    let gone = || {
        let is_lost = |p: &machine::Process| lost.iter().any(|id| p.command.contains(id));
        let lives = |pid: &i64| Path::new(&format!("/proc/{pid}")).exists();
        Ok(!ours(&scene).iter().any(is_lost) && !pids.iter().any(lives))
    };
    assert!(wait::until(SOON, gone).unwrap());
    let status = scene.cri().container_status(&stays).unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    scene.cri().remove_pod(&kept_id).unwrap();
    scene.leaves_nothing();
}
