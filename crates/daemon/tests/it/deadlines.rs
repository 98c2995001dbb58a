//! Clients that lose patience in the middle of a request: DEADLINE_EXCEEDED with the stage, then the
//! retry of kubelet ends in one pod, one container, one pull.

use std::fmt::Debug;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tonic::{Code, Request, Status};
use wharf_api::v1::{
    AuthConfig, ContainerState, CreateContainerRequest, ExecSyncRequest, LinuxContainerResources,
    ListContainersRequest, PullImageRequest, RemoveContainerRequest, RemovePodSandboxRequest,
    ReopenContainerLogRequest, RunPodSandboxRequest, StartContainerRequest, StopContainerRequest,
    StopPodSandboxRequest, UpdateContainerResourcesRequest,
};
use wharf_testkit::cri::{self, Cri};
use wharf_testkit::image::{Image, Layer};
use wharf_testkit::registry::{Act, Auth, On};
use wharf_testkit::tar::Entry;
use wharf_testkit::wait;

use crate::scene::{BUSYBOX, SOON, Scene, above_busybox, cgroup_file, idle, refused, said, shell};

/// How long these clients wait. Whatever is asked for is held longer, so that the time matters to no
/// test.
const PATIENCE: Duration = Duration::from_millis(600);

/// What tonic's client says when it did not even wait for the answer: on a machine that is very busy.
const OWN_CLOCK: &str = "Timeout expired";

/// A request of a client with little patience.
fn hasty<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    request
}

/// Asks until the answer names the stage: on a busy machine the first may come before it is reached.
/// Every answer says that the deadline has passed.
fn expires<T: Debug>(stage: &str, mut ask: impl FnMut() -> Result<T, Status>) {
    let mut last = String::new();
    let named = wait::until(SOON, || {
        let status = ask().expect_err("it is held");
        if status.message() == OWN_CLOCK {
            return Ok(false);
        }
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        status.message().clone_into(&mut last);
        Ok(last.contains(stage))
    });
    assert!(named.unwrap(), "no {stage:?} in {last:?}");
}

/// A step of the daemon that is held at its beginning, until this is dropped.
struct Held<'a>(&'a Scene);

impl<'a> Held<'a> {
    fn new(scene: &'a Scene, step: &str) -> Self {
        scene.node.faults().hold(Some(step)).unwrap();
        Self(scene)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.node.faults().hold(None).unwrap();
    }
}

/// A process that is stopped, until this is dropped.
struct Stopped(Pid);

impl Stopped {
    /// The shim of a pod, or the zygote.
    fn new(scene: &Scene, pod: Option<&str>) -> Self {
        let shims = scene.node.shims();
        let found = shims.iter().find(|p| match pod {
            Some(pod) => p.name == "wharf-shim" && p.command.contains(pod),
            None => p.name == "wharf-zygote",
        });
        let pid = found.unwrap_or_else(|| panic!("none of {pod:?} in {shims:?}"));
        let pid = Pid::from_raw(pid.pid).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).unwrap();
    }
}

fn containers(scene: &Scene) -> Vec<String> {
    let mut client = scene.cri().runtime();
    let list = client.list_containers(ListContainersRequest::default());
    let list = scene.cri().wait(list).unwrap().containers;
    list.into_iter().map(|c| c.id).collect()
}

#[test]
fn a_start_of_a_pod_that_takes_longer_than_its_client_waits_goes_on_and_the_retry_gets_it() {
    let Some(scene) = Scene::with_faults("a_start_of_a_pod_that_takes_longer") else {
        return;
    };
    for (name, step, stage) in [
        ("prepared", Some("prepare pod"), "prepare pod"),
        ("no-zygote", None, "start shim"),
        ("written", Some("write record"), "attach network"),
    ] {
        let config = scene.pod_config(name, |_| {});
        let hasty_run = || {
            let request = RunPodSandboxRequest {
                config: Some(config.clone()),
                ..Default::default()
            };
            scene
                .cri()
                .wait(scene.cri().runtime().run_pod_sandbox(hasty(request)))
        };
        let held = step.map(|step| Held::new(&scene, step));
        let stopped = step.is_none().then(|| Stopped::new(&scene, None));
        expires(stage, hasty_run);
        drop((held, stopped));
        let id = scene.cri().run_pod(&config, "").unwrap();
        assert_eq!(scene.cri().run_pod(&config, "").unwrap(), id, "{name}");
        assert_eq!(scene.cri().pods().unwrap(), [id.as_str()], "{name}");
        scene.cri().stop_pod(&id).unwrap();
        scene.cri().remove_pod(&id).unwrap();
        scene.leaves_nothing();
    }
}

#[test]
fn requests_about_a_container_that_take_longer_than_their_client_waits_go_on() {
    let Some(scene) = Scene::with_faults("requests_about_a_container_that_take_longer") else {
        return;
    };
    let pod = scene.pod("impatient");
    let cri = scene.cri();
    let config = shell(
        "c",
        "echo started; trap '' TERM; while :; do sleep 0.05; done",
    );
    let create = || {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(pod.config.clone()),
        };
        cri.wait(cri.runtime().create_container(hasty(request)))
    };
    // The same step held in the daemon, then in the shim.
    let held = Held::new(&scene, "create container");
    expires("create container", create);
    drop(held);
    let id = pod.create(&config).unwrap();
    assert_eq!(containers(&scene), [id.as_str()]);
    cri.remove(&id).unwrap();
    let stopped = Stopped::new(&scene, Some(&pod.id));
    expires("create container", create);
    drop(stopped);
    let id = pod.create(&config).unwrap();
    assert_eq!(containers(&scene), [id.as_str()]);
    let container_id = || id.clone();

    let stopped = Stopped::new(&scene, Some(&pod.id));
    expires("start container", || {
        let container_id = container_id();
        let request = StartContainerRequest { container_id };
        cri.wait(cri.runtime().start_container(hasty(request)))
    });
    drop(stopped);
    cri.start(&id).unwrap();
    let status = cri.container_status(&id).unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    let log = || said(&std::fs::read_to_string(&status.log_path).unwrap());
    assert!(wait::until(SOON, || Ok(!log().is_empty())).unwrap());
    assert_eq!(log(), "started\n", "it was started once");

    expires("exec", || {
        let request = ExecSyncRequest {
            container_id: container_id(),
            cmd: ["sleep", "76543"].map(String::from).to_vec(),
            timeout: 0,
        };
        cri.wait(cri.runtime().exec_sync(hasty(request)))
    });
    let procs = cgroup_file(&scene, &id, "memory", "cgroup.procs");
    let sleeps = || {
        wharf_testkit::machine::processes(scene.node.name())
            .iter()
            .any(|p| p.command.contains("sleep 76543"))
    };
    assert!(procs.exists());
    assert!(
        wait::until(SOON, || Ok(!sleeps())).unwrap(),
        "an exec that nobody waits for is killed"
    );
    assert_eq!(cri.exec(&id, &["true"], 10).unwrap().exit_code, 0);

    update_and_reopen(&scene, &id);
    stop_and_remove(&scene, &id);
    let pod_id = || pod.id.clone();
    pod.run(&idle("last"));
    let held = Held::new(&scene, "end shim");
    expires("end shim", || {
        let pod_sandbox_id = pod_id();
        let request = StopPodSandboxRequest { pod_sandbox_id };
        cri.wait(cri.runtime().stop_pod_sandbox(hasty(request)))
    });
    drop(held);
    cri.stop_pod(&pod.id).unwrap();
    let held = Held::new(&scene, "remove pod");
    expires("remove pod", || {
        let pod_sandbox_id = pod_id();
        let request = RemovePodSandboxRequest { pod_sandbox_id };
        cri.wait(cri.runtime().remove_pod_sandbox(hasty(request)))
    });
    drop(held);
    cri.remove_pod(&pod.id).unwrap();
    assert_eq!(cri.pods().unwrap(), Vec::<String>::new());
    scene.leaves_nothing();
}

fn update_and_reopen(scene: &Scene, id: &str) {
    let cri = scene.cri();
    let update = |patience: Option<Duration>| {
        let mut request = Request::new(UpdateContainerResourcesRequest {
            container_id: id.into(),
            linux: Some(LinuxContainerResources {
                cpu_shares: 321,
                ..Default::default()
            }),
            ..Default::default()
        });
        if let Some(patience) = patience {
            request.set_timeout(patience);
        }
        cri.wait(cri.runtime().update_container_resources(request))
    };
    let held = Held::new(scene, "update limits");
    expires("update limits", || update(Some(PATIENCE)));
    drop(held);
    update(None).unwrap();
    let shares = std::fs::read_to_string(cgroup_file(scene, id, "cpu", "cpu.shares")).unwrap();
    assert_eq!(shares.trim(), "321");

    let path = cri.container_status(id).unwrap().log_path;
    std::fs::rename(&path, format!("{path}.old")).unwrap();
    let reopen = |patience: Option<Duration>| {
        let mut request = Request::new(ReopenContainerLogRequest {
            container_id: id.into(),
        });
        if let Some(patience) = patience {
            request.set_timeout(patience);
        }
        cri.wait(cri.runtime().reopen_container_log(request))
    };
    let held = Held::new(scene, "reopen log");
    expires("reopen log", || reopen(Some(PATIENCE)));
    drop(held);
    reopen(None).unwrap();
    assert!(std::fs::exists(&path).unwrap());
}

fn stop_and_remove(scene: &Scene, id: &str) {
    let cri = scene.cri();
    let container_id = || id.to_owned();
    expires("stop container", || {
        let request = StopContainerRequest {
            container_id: container_id(),
            timeout: 3600,
        };
        cri.wait(cri.runtime().stop_container(hasty(request)))
    });
    let status = cri.container_status(id).unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    cri.stop(id, 0).unwrap();
    assert_eq!(cri.container_status(id).unwrap().exit_code, 137);
    let held = Held::new(scene, "remove snapshot");
    expires("remove container", || {
        let container_id = container_id();
        let request = RemoveContainerRequest { container_id };
        cri.wait(cri.runtime().remove_container(hasty(request)))
    });
    drop(held);
    cri.remove(id).unwrap();
    assert_eq!(containers(scene), Vec::<String>::new());
}

/// Busybox with a second layer that does not get smaller by packing.
fn heavy(bytes: usize) -> Image {
    let mut state = 1_u64;
    let noise: Vec<u8> = (0..bytes)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            u8::try_from(state >> 56).unwrap()
        })
        .collect();
    above_busybox(&[Layer::of(&[Entry::file("noise", noise)])]).build()
}

fn pull_request(image: &str, password: Option<&str>) -> PullImageRequest {
    PullImageRequest {
        image: Some(cri::spec(image)),
        auth: password.map(|password| AuthConfig {
            username: "user".into(),
            password: password.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn hasty_pull(scene: &Scene, image: &str, password: Option<&str>) -> Result<(), Status> {
    let request = hasty(pull_request(image, password));
    let pull = scene.cri().wait(scene.cri().image().pull_image(request));
    pull.map(drop)
}

#[test]
fn a_pull_is_shared_by_all_who_ask_for_it_and_goes_on_while_one_waits() {
    let Some(scene) = Scene::begin("a_pull_is_shared_by_all") else {
        return;
    };
    let image = heavy(3_000_000);
    scene.registry.add("it/heavy", "1", &image);
    scene.registry.forget_requests();
    // More than two seconds: each client leaves while the other waits, and nobody waits long.
    let slow = Act::Slow(64 << 10, Duration::from_millis(50));
    scene.registry.fail(On::Blobs, slow);
    let reference = "registry.test/it/heavy:1";
    let patient = Cri::connect(&scene.node.socket()).unwrap();
    let waits = std::thread::spawn(move || patient.pull(reference));
    expires("pulling registry.test/it/heavy:1", || {
        hasty_pull(&scene, reference, None)
    });
    let id = waits.join().unwrap().unwrap();
    assert_eq!(scene.cri().pull(reference).unwrap(), id);
    let requests = scene.registry.requests();
    let blobs = requests.iter().filter(|r| r.path.contains("/blobs/"));
    // The configuration and the second layer; busybox was there.
    assert_eq!(blobs.count(), 2, "{requests:?}");
    scene.cri().remove_image(&id).unwrap();
    scene.leaves_nothing();
}

#[test]
fn a_pull_that_nobody_waits_for_any_more_ends_a_while_later_and_leaves_nothing() {
    let Some(scene) = Scene::begin("a_pull_that_nobody_waits_for") else {
        return;
    };
    let image = heavy(300_000);
    scene.registry.add("it/heavy", "1", &image);
    let idle = scene.registry.connections();
    scene.registry.fail(On::Blobs, Act::Stall(1000));
    let reference = "registry.test/it/heavy:1";
    for _ in 0..2 {
        expires("pulling", || hasty_pull(&scene, reference, None));
    }
    assert!(scene.registry.connections() > 0);
    // A while is ten seconds.
    let closed = || Ok(scene.registry.connections() <= idle);
    assert!(wait::until(3 * SOON, closed).unwrap());
    scene.leaves_nothing();
    scene.registry.heal();
    scene.cri().pull(reference).unwrap();
    scene.cri().remove_image(reference).unwrap();
    scene.leaves_nothing();
}

#[test]
fn a_pull_with_other_credentials_is_another_pull() {
    let Some(scene) = Scene::begin("a_pull_with_other_credentials") else {
        return;
    };
    scene.registry.add("it/heavy", "1", &heavy(3_000_000));
    scene
        .registry
        .demand(Auth::Basic("user".into(), "right".into()));
    let slow = Act::Slow(64 << 10, Duration::from_millis(50));
    scene.registry.fail(On::Blobs, slow);
    let reference = "registry.test/it/heavy:1";
    let patient = Cri::connect(&scene.node.socket()).unwrap();
    let request = pull_request(reference, Some("right"));
    let waits = std::thread::spawn(move || {
        let mut client = patient.image();
        patient.wait(client.pull_image(request))
    });
    expires("pulling", || hasty_pull(&scene, reference, Some("right")));
    // Neither joins that one.
    for password in [Some("wrong"), None] {
        let request = pull_request(reference, password);
        let mut client = scene.cri().image();
        let answer = scene.cri().wait(client.pull_image(request));
        refused(answer, Code::PermissionDenied, &["registry.test"]);
    }
    waits.join().unwrap().unwrap();
    scene.cri().remove_image(reference).unwrap();
    scene.leaves_nothing();
    assert!(scene.cri().pull(BUSYBOX).is_err(), "it still wants a name");
}
