//! The way of a container from pull to removal, and repetitions of every step.

use std::collections::HashMap;
use std::fs;

use tonic::Code;
use wharf_api::v1::{
    ContainerState, ImageStatusRequest, KeyValue, ListContainersRequest, Mount, NamespaceMode,
    PodSandboxState, RunPodSandboxRequest, Signal,
};
use wharf_testkit::{cri, wait};

use crate::scene::{BUSYBOX, SOON, Scene, idle, linux, refused, said, security, shell, with};

/// Two turns with the same names: what the first left would be in the second's way.
#[test]
fn a_container_lives_from_pull_to_removal_and_leaves_nothing_twice() {
    let Some(scene) = Scene::begin("a_container_lives_from_pull_to_removal") else {
        return;
    };
    for _turn in 0..2 {
        let id = scene.cri().pull(BUSYBOX).unwrap();
        let pod = scene.pod("life");
        assert_eq!(pod.status().state(), PodSandboxState::SandboxReady);
        let config = with(idle("c"), |c| {
            c.command[2].insert_str(0, "echo begin; echo end >&2; ");
            c.labels = HashMap::from([("k".into(), "v".into())]);
            c.annotations = HashMap::from([("an.example/x".into(), " y\n".into())]);
            let host_path = scene.node.dir().join("volume").display().to_string();
            c.mounts.push(Mount {
                host_path,
                container_path: "/volume".into(),
                ..Mount::default()
            });
        });
        let container = pod.create(&config).unwrap();
        let status = scene.cri().container_status(&container).unwrap();
        assert_eq!(status.state(), ContainerState::ContainerCreated);
        assert!(
            status.created_at > 1_700_000_000_000_000_000,
            "nanoseconds: {status:?}"
        );
        assert_eq!((status.started_at, status.finished_at), (0, 0));

        scene.cri().start(&container).unwrap();
        let status = scene.cri().container_status(&container).unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning);
        assert!(status.started_at >= status.created_at && status.finished_at == 0);
        assert_eq!(
            (status.image_id.as_str(), status.image_ref.as_str()),
            (&*id, &*id)
        );
        assert_eq!(status.image.unwrap().image, BUSYBOX);
        assert_eq!(
            status.mounts, config.mounts,
            "those of the configuration, no others"
        );
        assert_eq!(
            (status.labels, status.annotations),
            (config.labels, config.annotations)
        );
        assert_eq!(
            status.log_path,
            scene.node.logs().join("c.log").display().to_string()
        );
        let user = status.user.unwrap().linux.unwrap();
        assert_eq!(
            (user.uid, user.gid, user.supplemental_groups),
            (0, 0, vec![0])
        );
        assert_eq!(Signal::try_from(status.stop_signal), Ok(Signal::Sigterm));

        let log = || fs::read_to_string(&status.log_path).unwrap();
        wait::until(SOON, || Ok(log().lines().count() == 2)).unwrap();
        assert_eq!(said(&log()).lines().count(), 2, "{}", log());
        assert!(log().contains(" stdout F begin\n") && log().contains(" stderr F end\n"));
        let answer = scene
            .cri()
            .exec(&container, &["sh", "-c", "echo x; echo y >&2; exit 7"], 10);
        let answer = answer.unwrap();
        assert_eq!(
            (answer.exit_code, &*answer.stdout, &*answer.stderr),
            (7, &b"x\n"[..], &b"y\n"[..])
        );

        scene.cri().stop(&container, 30).unwrap();
        let status = scene.cri().container_status(&container).unwrap();
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
        assert!(status.finished_at >= status.started_at);
        assert_eq!(said(&log()), said(&log()), "the log stays readable");
        scene.cri().remove(&container).unwrap();
        refused(
            scene.cri().container_status(&container),
            Code::NotFound,
            &[&container],
        );
        scene.cri().stop_pod(&pod.id).unwrap();
        assert_eq!(pod.status().state(), PodSandboxState::SandboxNotready);
        scene.cri().remove_pod(&pod.id).unwrap();
        assert!(log().contains("begin"), "logs are the kubelet's to delete");
        fs::remove_file(&status.log_path).unwrap();
        scene.leaves_nothing();
    }
}

#[test]
fn the_reason_of_an_end_is_told() {
    let Some(scene) = Scene::begin("the_reason_of_an_end_is_told") else {
        return;
    };
    let pod = scene.pod("ends");
    // A PID 1 cannot kill itself: where a signal ends it, it lives in the host's PID namespace.
    for (name, script, pid, code, reason) in [
        ("good", "exit 0", NamespaceMode::Container, 0, "Completed"),
        ("bad", "exit 3", NamespaceMode::Container, 3, "Error"),
        ("killed", "kill -KILL $$", NamespaceMode::Node, 137, "Error"),
        (
            "aborted",
            "kill -ABRT $$",
            NamespaceMode::Node,
            134,
            "Error",
        ),
    ] {
        let config = with(shell(name, script), |c| {
            let options = &mut security(c).namespace_options;
            options.get_or_insert_default().pid = pid.into();
        });
        let (status, _) = pod.finish(&config);
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (code, reason),
            "{status:?}"
        );
    }
    let (status, _) = pod.finish(&with(
        shell("hungry", "x=0123456789abcdef; while :; do x=$x$x; done"),
        |c| {
            linux(c)
                .resources
                .get_or_insert_default()
                .memory_limit_in_bytes = 16 << 20;
        },
    ));
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled"),
        "{status:?}"
    );
    pod.end();
    scene.leaves_nothing();
}

#[test]
fn stopping_and_removing_what_is_unknown_or_stopped_succeeds() {
    let Some(scene) = Scene::begin("stopping_and_removing_what_is_unknown_or_stopped") else {
        return;
    };
    let cri = scene.cri();
    let pod = scene.pod("again");
    let container = pod.run(&idle("c"));
    for _ in 0..3 {
        cri.stop(&container, 10).unwrap();
    }
    for _ in 0..3 {
        cri.remove(&container).unwrap();
        cri.stop(&container, 10).unwrap();
    }
    for _ in 0..3 {
        cri.stop_pod(&pod.id).unwrap();
    }
    for _ in 0..3 {
        cri.remove_pod(&pod.id).unwrap();
        cri.stop_pod(&pod.id).unwrap();
    }
    let zeros = "0".repeat(64);
    for id in ["nosuch", &zeros] {
        cri.stop(id, 10).unwrap();
        cri.remove(id).unwrap();
        cri.stop_pod(id).unwrap();
        cri.remove_pod(id).unwrap();
        refused(cri.start(id), Code::NotFound, &[id]);
        refused(cri.exec(id, &["true"], 10), Code::NotFound, &[id]);
        refused(cri.container_status(id), Code::NotFound, &[id]);
    }
    for _ in 0..2 {
        cri.remove_image(BUSYBOX).unwrap();
    }
    cri.remove_image("registry.test/nosuch:1").unwrap();
}

#[test]
fn removing_a_pod_kills_and_removes_what_runs_in_it() {
    let Some(scene) = Scene::begin("removing_a_pod_kills_and_removes_what_runs_in_it") else {
        return;
    };
    let pod = scene.pod("whole");
    // Deaf to SIGTERM, with children that are too.
    pod.run(&shell(
        "deaf",
        "trap '' TERM; (trap '' TERM; sleep 1000) & sleep 1000",
    ));
    pod.run(&idle("idle"));
    pod.create(&shell("created", "true")).unwrap();
    pod.finish(&shell("ended", "true"));
    scene.cri().remove_pod(&pod.id).unwrap();
    let mut client = scene.cri().runtime();
    let list = client.list_containers(ListContainersRequest::default());
    assert!(scene.cri().wait(list).unwrap().containers.is_empty());
    scene.leaves_nothing();
}

#[test]
fn ten_pods_at_once_live_side_by_side() {
    let Some(scene) = Scene::begin("ten_pods_at_once_live_side_by_side") else {
        return;
    };
    let cri = scene.cri();
    let configs: Vec<_> = (0..10)
        .map(|i| scene.pod_config(&format!("many-{i}"), |_| {}))
        .collect();
    let calls = configs.iter().map(|config| {
        let (mut client, config) = (cri.runtime(), Some(config.clone()));
        async move {
            let runtime_handler = String::new();
            client
                .run_pod_sandbox(RunPodSandboxRequest {
                    config,
                    runtime_handler,
                })
                .await
        }
    });
    let answers = cri.wait_all(calls.collect());
    let pods: Vec<String> = answers
        .into_iter()
        .map(|a| a.unwrap().pod_sandbox_id)
        .collect();
    let mut containers = Vec::new();
    for (i, (pod, config)) in pods.iter().zip(&configs).enumerate() {
        let container = cri::container(&format!("c{i}"), BUSYBOX, &["sleep", "1000"]);
        let id = cri.create(pod, &container, config).unwrap();
        cri.start(&id).unwrap();
        containers.push(id);
    }
    for (i, id) in containers.iter().enumerate() {
        let answer = cri.exec(id, &["hostname"], 10).unwrap();
        assert_eq!(
            String::from_utf8(answer.stdout).unwrap(),
            format!("many-{i}\n")
        );
    }
    let calls = pods.iter().map(|pod| {
        let (mut client, pod_sandbox_id) = (cri.runtime(), pod.clone());
        async move {
            let request = wharf_api::v1::RemovePodSandboxRequest { pod_sandbox_id };
            client.remove_pod_sandbox(request).await
        }
    });
    for answer in cri.wait_all(calls.collect()) {
        answer.unwrap();
    }
    scene.leaves_nothing();
}

/// kubelet asks by name before it pulls; what it gets must be the id that containers report.
#[test]
fn an_image_is_found_by_each_of_its_names_and_removed_by_one() {
    let Some(scene) = Scene::begin("an_image_is_found_by_each_of_its_names") else {
        return;
    };
    let cri = scene.cri();
    let id = cri.pull(BUSYBOX).unwrap();
    scene
        .registry
        .add("it/other", "2", &crate::scene::busybox());
    assert_eq!(cri.pull("registry.test/it/other:2").unwrap(), id);
    let digest = crate::scene::busybox().digest().to_owned();
    let by_digest = format!("registry.test/it/busybox@{digest}");
    for name in [
        &id,
        &id["sha256:".len()..][..12],
        BUSYBOX,
        "registry.test/it/other:2",
        &by_digest,
    ] {
        let request = ImageStatusRequest {
            image: Some(cri::spec(name)),
            verbose: false,
        };
        let image = cri.wait(cri.image().image_status(request)).unwrap().image;
        let image = image.unwrap_or_else(|| panic!("{name} is not found"));
        assert_eq!(image.id, id);
        assert!(image.size > 0 && image.repo_tags.len() == 2, "{image:?}");
    }
    cri.remove_image("registry.test/it/other:2").unwrap();
    let request = ImageStatusRequest {
        image: Some(cri::spec(BUSYBOX)),
        verbose: false,
    };
    let gone = cri.wait(cri.image().image_status(request)).unwrap();
    assert_eq!(gone.image, None, "absent is an answer, not an error");
    let files = || {
        let layers = scene.node.look();
        let empty = wharf_testkit::machine::Machine::default();
        let found = empty.changes(&layers);
        found
            .into_iter()
            .filter(|l| l.contains("bin/busybox"))
            .collect::<Vec<_>>()
    };
    wait::until(SOON, || Ok(files().is_empty())).unwrap();
    assert_eq!(files(), Vec::<String>::new(), "nobody needs its layers");
}

#[test]
fn a_container_outlives_the_removal_of_its_image() {
    let Some(scene) = Scene::begin("a_container_outlives_the_removal_of_its_image") else {
        return;
    };
    let pod = scene.pod("orphan");
    let container = pod.run(&idle("c"));
    let before = scene.cri().container_status(&container).unwrap();
    scene.cri().remove_image(BUSYBOX).unwrap();
    let answer = scene
        .cri()
        .exec(&container, &["cat", "/etc/passwd"], 10)
        .unwrap();
    assert_eq!(answer.exit_code, 0);
    let after = scene.cri().container_status(&container).unwrap();
    assert_eq!(
        (after.image, after.image_id),
        (before.image, before.image_id)
    );
    pod.end();
}

/// `crictl inspect` and scripts that enter namespaces read these.
#[test]
fn verbose_status_says_pid_specification_and_namespaces() {
    let Some(scene) = Scene::begin("verbose_status_says_pid") else {
        return;
    };
    let pod = scene.pod("verbose");
    let config = with(idle("c"), |c| {
        c.envs.push(KeyValue {
            key: "SHOWN".into(),
            value: b"yes".to_vec(),
        });
    });
    let container = pod.run(&config);
    let info = scene.info(&container);
    let pid = info["pid"].as_i64().unwrap();
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(
        environ.windows(9).any(|w| w == b"SHOWN=yes"),
        "{pid} is its first process"
    );
    assert_eq!(info["runtimeSpec"]["process"]["args"][0], "sh");
    assert_eq!(info["sandboxID"], *pod.id);
    let request = wharf_api::v1::PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: true,
    };
    let answer = scene
        .cri()
        .wait(scene.cri().runtime().pod_sandbox_status(request))
        .unwrap();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    let namespaces = info["runtimeSpec"]["linux"]["namespaces"]
        .as_array()
        .unwrap();
    let network = namespaces.iter().find(|n| n["type"] == "network").unwrap();
    let path = network["path"].as_str().unwrap();
    // Bound below /run of the daemon's mount namespace.
    let path = format!("/proc/{}/root{path}", scene.node.pid());
    use std::os::unix::fs::MetadataExt as _;
    let inode = |path: &str| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&path), inode(&format!("/proc/{pid}/ns/net")));
    pod.end();
    scene.leaves_nothing();
}
