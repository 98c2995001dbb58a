//! Many pods: found again after a kill, and listed while others are still being started or stopped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tonic::Status;
use wharf_api::v1::{
    ContainerState, ListContainersRequest, ListPodSandboxRequest, RunPodSandboxRequest,
    StatusRequest, StopPodSandboxRequest,
};
use wharf_testkit::cri::{self, Cri};

use crate::scene::{Scene, idle};

const MANY: usize = 100;
const AT_ONCE: usize = 50;

/// How long a client waits for a pod whose shim hangs.
const PATIENCE: Duration = Duration::from_secs(1);

fn run_all(scene: &Scene, count: usize) -> Vec<String> {
    let calls: Vec<_> = (0..count)
        .map(|n| {
            let config = cri::pod(&format!("many-{n}"), &scene.node.logs());
            let (mut client, config) = (scene.cri().runtime(), Some(config));
            async move {
                let request = RunPodSandboxRequest {
                    config,
                    ..Default::default()
                };
                client.run_pod_sandbox(request).await
            }
        })
        .collect();
    let answers = scene.cri().wait_all(calls);
    answers
        .into_iter()
        .map(|answer| answer.unwrap().pod_sandbox_id)
        .collect()
}

fn containers(cri: &Cri) -> Vec<wharf_api::v1::Container> {
    let mut client = cri.runtime();
    let list = cri.wait(client.list_containers(ListContainersRequest::default()));
    list.unwrap().containers
}

#[test]
fn a_hundred_running_pods_are_found_again() {
    let Some(mut scene) = Scene::begin("a_hundred_running_pods") else {
        return;
    };
    let pods = run_all(&scene, MANY);
    for (n, pod) in pods.iter().enumerate() {
        let config = cri::pod(&format!("many-{n}"), &scene.node.logs());
        let id = scene.cri().create(pod, &idle("c"), &config).unwrap();
        scene.cri().start(&id).unwrap();
    }
    let before = containers(scene.cri());
    let shims = scene.node.shims();
    scene.node.kill().unwrap();
    let start = Instant::now();
    scene.node.run().unwrap();
    let after = containers(scene.cri());
    println!(
        "{MANY} pods and containers listed {:?} after the start; {}",
        start.elapsed(),
        scene
            .node
            .log()
            .lines()
            .rfind(|l| l.contains("ready socket"))
            .unwrap_or_default()
    );
    assert_eq!(after.len(), MANY);
    assert_eq!(after, before);
    assert!(
        after
            .iter()
            .all(|c| c.state() == ContainerState::ContainerRunning)
    );
    assert_eq!(scene.node.shims(), shims, "none was started again");
    scene.cri().remove_all_pods().unwrap();
    scene.leaves_nothing();
}

/// Asks again and again until `over`; gives the longest time that an answer took, and how many came.
fn ask_until(cri: &Cri, over: &AtomicBool) -> Result<(Duration, u32), Status> {
    let (mut longest, mut answers) = (Duration::ZERO, 0);
    while !over.load(Ordering::Acquire) {
        let start = Instant::now();
        let mut client = cri.runtime();
        cri.wait(client.list_pod_sandbox(ListPodSandboxRequest::default()))?;
        cri.wait(client.list_containers(ListContainersRequest::default()))?;
        cri.wait(client.status(StatusRequest { verbose: false }))?;
        longest = longest.max(start.elapsed());
        answers += 3;
    }
    Ok((longest, answers))
}

#[test]
fn lists_answer_while_fifty_pods_start_and_while_a_shim_hangs() {
    let Some(scene) = Scene::begin("lists_answer_while_fifty_pods_start") else {
        return;
    };
    let over = AtomicBool::new(false);
    let asker = Cri::connect(&scene.node.socket()).unwrap();
    let asked = std::thread::scope(|s| {
        let asked = s.spawn(|| ask_until(&asker, &over));
        run_all(&scene, AT_ONCE);
        over.store(true, Ordering::Release);
        asked.join().unwrap()
    });
    let (longest, answers) = asked.unwrap();
    println!("while {AT_ONCE} pods start: {answers} answers, three in at most {longest:?}");
    assert!(answers > 0);
    assert_eq!(scene.cri().pods().unwrap().len(), AT_ONCE);
    scene.cri().remove_all_pods().unwrap();

    let pod = scene.pod("hangs");
    pod.run(&idle("c"));
    let shims = scene.node.shims();
    let shim = shims.iter().find(|p| p.command.contains(&pod.id)).unwrap();
    let pid = rustix::process::Pid::from_raw(shim.pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let over = AtomicBool::new(false);
    let (asked, stopped) = std::thread::scope(|s| {
        let asked = s.spawn(|| ask_until(&asker, &over));
        let mut request = tonic::Request::new(StopPodSandboxRequest {
            pod_sandbox_id: pod.id.clone(),
        });
        request.set_timeout(PATIENCE);
        let mut client = scene.cri().runtime();
        let stopped = scene.cri().wait(client.stop_pod_sandbox(request));
        over.store(true, Ordering::Release);
        (asked.join().unwrap(), stopped)
    });
    // Said by the daemon, or by the client itself: whoever looks at the clock first.
    stopped.unwrap_err();
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    let (longest, answers) = asked.unwrap();
    println!("while a shim hangs: {answers} answers, three in at most {longest:?}");
    assert!(answers > 0);
    scene.cri().remove_pod(&pod.id).unwrap();
    scene.leaves_nothing();
}
