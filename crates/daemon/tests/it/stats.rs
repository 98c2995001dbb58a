//! Statistics and metrics as kubelet and crictl ask for them, and ends for want of memory.

use std::collections::HashMap;
use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;
use wharf_api::v1::{
    ContainerConfig, ContainerState, ContainerStats, ContainerStatsFilter, ContainerStatsRequest,
    ContainerStatus, LinuxContainerResources, ListContainerStatsRequest,
    ListMetricDescriptorsRequest, Metric, NamespaceMode, PodSandboxConfig, PodSandboxStats,
    PodSandboxStatsRequest, PodSandboxStatusRequest, UInt64Value,
};
use wharf_testkit::node::{Node, Subject};
use wharf_testkit::{containerd, cri, wait};

use crate::oracle::peer;
use crate::scene::{
    BUSYBOX, SOON, Scene, idle, linux, pod_security, refused, security, shell, with,
};

fn number(value: Option<UInt64Value>) -> u64 {
    value.expect("a figure").value
}

fn listed(scene: &Scene, filter: Option<ContainerStatsFilter>) -> Vec<ContainerStats> {
    let request = ListContainerStatsRequest { filter };
    let answer = scene
        .cri()
        .wait(scene.cri().runtime().list_container_stats(request));
    answer.unwrap().stats
}

fn ids(stats: &[ContainerStats]) -> Vec<String> {
    let id = |s: &ContainerStats| s.attributes.clone().unwrap().id;
    stats.iter().map(id).collect()
}

fn one(scene: &Scene, container: &str) -> ContainerStats {
    let request = ContainerStatsRequest {
        container_id: container.into(),
    };
    let answer = scene
        .cri()
        .wait(scene.cri().runtime().container_stats(request));
    answer.unwrap().stats.unwrap()
}

fn of_pod(scene: &Scene, pod: &str) -> PodSandboxStats {
    let request = PodSandboxStatsRequest {
        pod_sandbox_id: pod.into(),
    };
    let answer = scene
        .cri()
        .wait(scene.cri().runtime().pod_sandbox_stats(request));
    answer.unwrap().stats.unwrap()
}

/// Metrics of a container, by name; with their labels' number as it was described.
fn metrics(scene: &Scene, container: &str) -> HashMap<String, Metric> {
    let mut client = scene.cri().runtime();
    let described = client.list_metric_descriptors(ListMetricDescriptorsRequest {});
    let described = scene.cri().wait(described).unwrap().descriptors;
    let keys: HashMap<_, _> = described
        .iter()
        .map(|d| (d.name.clone(), d.label_keys.len()))
        .collect();
    let all = scene.cri().pod_metrics().unwrap();
    let mut containers = all.into_iter().flat_map(|pod| pod.container_metrics);
    let found = containers.find(|c| c.container_id == container).unwrap();
    for metric in &found.metrics {
        assert_eq!(keys[&metric.name], metric.label_values.len(), "{metric:?}");
    }
    let named = found.metrics.into_iter().map(|m| (m.name.clone(), m));
    named.collect()
}

/// Files of a cgroup that the daemon has open.
fn open_files(node: &Node, cgroup: &str) -> usize {
    let all = fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap();
    let targets = all.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    let stat = |path: &std::path::PathBuf| {
        let path = path.to_string_lossy();
        path.contains(cgroup) && path.ends_with("memory.stat")
    };
    targets.filter(stat).count()
}

#[test]
fn statistics_tell_what_containers_and_their_pods_use() {
    let Some(mut scene) = Scene::begin("statistics_tell") else {
        return;
    };
    let pod = scene.pod("stats");
    let quiet = with(idle("quiet"), |c| {
        c.labels.insert("app".into(), "quiet".into());
        linux(c).resources = Some(LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            ..Default::default()
        });
    });
    let quiet = pod.create(&quiet).unwrap();
    assert_eq!(
        ids(&listed(&scene, None)),
        std::slice::from_ref(&quiet),
        "only created"
    );
    scene.cri().start(&quiet).unwrap();
    let script = "dd if=/dev/zero of=/big bs=1M count=3 2>&-; touch /done; while :; do :; done";
    let busy = pod.run(&shell("busy", script));
    let written = || {
        let answer = scene.cri().exec(&busy, &["test", "-e", "/done"], 10);
        Ok(answer.unwrap().exit_code == 0)
    };
    assert!(wait::until(SOON, written).unwrap());

    // Each figure that kubelet and crictl read.
    let stats = one(&scene, &busy);
    let attributes = stats.attributes.unwrap();
    assert_eq!(
        (attributes.id.as_str(), attributes.metadata.unwrap().name),
        (&*busy, "busy".into())
    );
    let layer = stats.writable_layer.expect("measured at the first look");
    assert!(
        number(layer.used_bytes) >= 3 << 20,
        "{:?}",
        layer.used_bytes
    );
    assert!(number(layer.inodes_used) >= 3 && layer.timestamp > 0);
    assert_eq!(
        layer.fs_id.unwrap().mountpoint,
        scene.node.root().display().to_string()
    );
    let (cpu, memory) = (stats.cpu.unwrap(), stats.memory.unwrap());
    assert!(cpu.timestamp > 0 && number(cpu.usage_core_nano_seconds) > 0);
    if std::path::Path::new("/sys/fs/cgroup/memory/memory.stat").exists() {
        let (usage, working) = (number(memory.usage_bytes), number(memory.working_set_bytes));
        assert!(usage >= working && working > 0, "{usage} {working}");
        assert!(number(memory.page_faults) > 0 && memory.rss_bytes.is_some());
        assert!(memory.available_bytes.is_none(), "it has no limit");
        let memory = one(&scene, &quiet).memory.unwrap();
        let working = number(memory.working_set_bytes);
        assert_eq!(number(memory.available_bytes), (64 << 20) - working);
    }

    // The rate comes with the second look; the busy one takes a processor as far as it gets one.
    let rate = |id: &str| {
        one(&scene, id)
            .cpu
            .unwrap()
            .usage_nano_cores
            .map(|v| v.value)
    };
    assert!(wait::until(SOON, || Ok(rate(&busy) > Some(10_000_000))).unwrap());
    assert!(wait::until(SOON, || Ok(rate(&quiet).is_some())).unwrap());
    assert!(rate(&quiet) < rate(&busy));

    // Filters.
    let filter = |set: &dyn Fn(&mut ContainerStatsFilter)| {
        let mut filter = ContainerStatsFilter::default();
        set(&mut filter);
        ids(&listed(&scene, Some(filter)))
    };
    assert_eq!(ids(&listed(&scene, None)).len(), 2);
    assert_eq!(
        filter(&|f| f.id = busy[..12].into()),
        std::slice::from_ref(&busy)
    );
    assert_eq!(filter(&|f| f.pod_sandbox_id = pod.id.clone()).len(), 2);
    assert_eq!(filter(&|f| f.pod_sandbox_id = busy.clone()).len(), 0);
    let quiet_only = filter(&|f| {
        f.label_selector.insert("app".into(), "quiet".into());
    });
    assert_eq!(quiet_only, std::slice::from_ref(&quiet));

    // The pod: at least what its containers use, its own network, its tasks.
    let whole = of_pod(&scene, &pod.id);
    assert_eq!(whole.attributes.unwrap().id, pod.id);
    let whole = whole.linux.unwrap();
    let used = one(&scene, &busy).cpu.unwrap().usage_core_nano_seconds;
    let later = of_pod(&scene, &pod.id).linux.unwrap();
    assert!(number(later.cpu.unwrap().usage_core_nano_seconds) >= number(used));
    assert!(number(whole.process.unwrap().process_count) >= 3);
    assert_eq!(ids(&whole.containers).len(), 2);
    let network = whole.network.expect("it has its own");
    assert!(network.default_interface.is_none(), "loopback is not told");
    let host = scene.pod_with("host", |p| {
        let namespaces = pod_security(p).namespace_options.get_or_insert_default();
        namespaces.network = NamespaceMode::Node.into();
    });
    assert!(of_pod(&scene, &host.id).linux.unwrap().network.is_none());
    assert_eq!(scene.cri().pod_stats().unwrap().len(), 2);
    host.end();

    // Metrics, by the names that dashboards know.
    let told = metrics(&scene, &busy);
    let value = |name: &str| number(told[name].value);
    assert!(value("container_processes") >= 1 && value("container_threads") >= 1);
    assert!(value("container_file_descriptors") >= 3);
    assert!(value("container_fs_usage_bytes") >= 3 << 20);
    assert!(value("container_fs_limit_bytes") > value("container_fs_usage_bytes"));
    assert!(value("container_start_time_seconds") > 1_700_000_000);
    assert!(told.contains_key("container_cpu_usage_seconds_total"));
    assert_eq!(
        told["container_last_seen"].label_values[..3],
        ["stats", "test", "busy"]
    );

    // Files stay open while it lives, and not longer.
    assert!(open_files(&scene.node, &busy) <= 1);
    scene.cri().stop(&busy, 0).unwrap();
    assert!(wait::until(SOON, || Ok(open_files(&scene.node, &busy) == 0)).unwrap());
    assert_eq!(ids(&listed(&scene, None)), std::slice::from_ref(&quiet));
    let ended = one(&scene, &busy);
    assert!(ended.attributes.is_some() && ended.cpu.is_none());
    let unknown = ContainerStatsRequest {
        container_id: "none".into(),
    };
    let answer = scene
        .cri()
        .wait(scene.cri().runtime().container_stats(unknown));
    refused(answer, Code::NotFound, &["none"]);

    // After a restart of the daemon too.
    let pod = pod.id.clone();
    scene.node.restart().unwrap();
    let again = one(&scene, &quiet);
    assert!(number(again.cpu.unwrap().usage_core_nano_seconds) > 0);
    scene.cri().stop_pod(&pod).unwrap();
    assert!(scene.cri().pod_stats().unwrap().is_empty() && listed(&scene, None).is_empty());
    assert_eq!(open_files(&scene.node, &quiet), 0);
    scene.cri().remove_pod(&pod).unwrap();
    scene.leaves_nothing();
}

#[test]
fn a_pod_whose_shim_hangs_or_whose_cgroup_is_gone_keeps_nobody_from_statistics() {
    let Some(scene) = Scene::begin("a_pod_whose_shim_hangs") else {
        return;
    };
    let (well, ill) = (scene.pod("well"), scene.pod("ill"));
    let (first, second) = (well.run(&idle("c")), ill.run(&idle("c")));
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: ill.id.clone(),
        verbose: true,
    };
    let status = scene
        .cri()
        .wait(scene.cri().runtime().pod_sandbox_status(request));
    let info: serde_json::Value = serde_json::from_str(&status.unwrap().info["info"]).unwrap();
    let shim = i32::try_from(info["pid"].as_i64().unwrap()).unwrap();
    let shim = Pid::from_raw(shim).unwrap();
    kill_process(shim, Signal::STOP).unwrap();
    let seen = listed(&scene, None);
    let measured = scene.cri().pod_stats().unwrap();
    kill_process(shim, Signal::CONT).unwrap();
    let mut expected = vec![first.clone(), second.clone()];
    let mut seen_ids = ids(&seen);
    expected.sort();
    seen_ids.sort();
    assert_eq!(seen_ids, expected);
    assert!(seen.iter().all(|s| s.cpu.is_some()));
    assert!(
        measured
            .iter()
            .all(|p| p.linux.as_ref().unwrap().cpu.is_some())
    );
    assert_eq!(measured.len(), 2);

    // Its processes are moved to the pod's cgroup and its own is removed, behind everybody's back.
    let cgroup = scene.info(&second)["cgroup"].as_str().unwrap().to_owned();
    let cgroup = cgroup.trim_start_matches('/');
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
    for hierarchy in hierarchies.filter(|h| h.path().join(cgroup).exists()) {
        let own = hierarchy.path().join(cgroup);
        let pods = own.parent().unwrap().join("cgroup.procs");
        for pid in fs::read_to_string(own.join("cgroup.procs"))
            .unwrap()
            .lines()
        {
            fs::write(&pods, pid).unwrap();
        }
        wait::until(SOON, || Ok(fs::remove_dir(&own).is_ok())).unwrap();
    }
    let seen = listed(&scene, None);
    let cpu = |id: &str| {
        let of = |s: &&ContainerStats| s.attributes.as_ref().unwrap().id == id;
        seen.iter().find(of).unwrap().cpu.is_some()
    };
    assert!(cpu(&first), "the others are whole");
    assert!(!cpu(&second), "what is not known is left out");
    well.end();
    ill.end();
    scene.leaves_nothing();
}

const LIMIT: i64 = 16 << 20;
/// Takes memory until it is killed.
const BLOW: &str = "tail /dev/zero";

fn limited(name: &str, script: &str) -> ContainerConfig {
    let config = cri::host_network_container(name, BUSYBOX, &["sh", "-c", script]);
    with(config, |c| {
        linux(c).resources = Some(LinuxContainerResources {
            memory_limit_in_bytes: LIMIT,
            memory_swap_limit_in_bytes: LIMIT,
            ..Default::default()
        });
    })
}

fn shared_pids(config: ContainerConfig) -> ContainerConfig {
    with(config, |c| {
        let options = security(c).namespace_options.get_or_insert_default();
        options.pid = NamespaceMode::Pod.into();
    })
}

fn end_of(node: &Node, container: &str) -> ContainerStatus {
    let exited = || {
        let status = node.cri().container_status(container).unwrap();
        Ok(status.state() == ContainerState::ContainerExited)
    };
    assert!(wait::until(SOON, exited).unwrap());
    node.cri().container_status(container).unwrap()
}

/// How containers end that met their limit, each as `name: code reason`.
fn ends(node: &Node, logs: &std::path::Path) -> Vec<String> {
    let pod = |name: &str, pids: NamespaceMode| -> (String, PodSandboxConfig) {
        let mut config = cri::host_network_pod(name, logs, &node.cgroup_parent("pods"));
        let options = pod_security(&mut config);
        options.namespace_options.get_or_insert_default().pid = pids.into();
        (node.cri().run_pod(&config, "").unwrap(), config)
    };
    let run = |pod: &(String, PodSandboxConfig), config: &ContainerConfig| {
        let id = node.cri().create(&pod.0, config, &pod.1).unwrap();
        node.cri().start(&id).unwrap();
        id
    };
    let (own, shared) = (
        pod("own", NamespaceMode::Container),
        pod("shared", NamespaceMode::Pod),
    );
    let mut said = Vec::new();
    for (pod, config) in [
        (&own, limited("init", &format!("exec {BLOW}"))),
        (&own, limited("child-told", &format!("{BLOW}; exit $?"))),
        (&own, limited("child-hidden", &format!("{BLOW}; exit 0"))),
        (
            &shared,
            shared_pids(limited("init-shared", &format!("exec {BLOW}"))),
        ),
        (
            &shared,
            shared_pids(limited("child-shared", &format!("{BLOW}; exit $?"))),
        ),
        // Nobody was killed for want of memory here.
        (
            &own,
            limited(
                "other-kill",
                "kill -9 $$; sleep 100 & kill -9 $!; wait $!; exit $?",
            ),
        ),
    ] {
        let name = config.metadata.clone().unwrap().name;
        let end = end_of(node, &run(pod, &config));
        said.push(format!("{name}: {} {}", end.exit_code, end.reason));
    }
    // An exec that is killed is no end of the container.
    let id = run(
        &own,
        &limited("exec", "trap 'exit 0' TERM; sleep 1000 & wait"),
    );
    let answer = node
        .cri()
        .exec(&id, &["sh", "-c", &format!("exec {BLOW}")], 10);
    said.push(format!("exec: answered {}", answer.unwrap().exit_code));
    let status = node.cri().container_status(&id).unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    node.cri().stop(&id, 10).unwrap();
    let end = end_of(node, &id);
    said.push(format!("exec: {} {}", end.exit_code, end.reason));
    node.cri().remove_all_pods().unwrap();
    said
}

#[test]
fn ends_for_want_of_memory_are_told_as_containerd_tells_them() {
    let test = "ends_for_want_of_memory";
    if !wharf_testkit::needs_root(test) {
        return;
    }
    let Some(scene) = Scene::begin(test) else {
        return;
    };
    let ours = ends(&scene.node, &scene.node.logs());
    let expected = [
        "init: 137 OOMKilled",
        "child-told: 137 OOMKilled",
        // It has done what it was asked for: a success has no reason but that.
        "child-hidden: 0 Completed",
        "init-shared: 137 OOMKilled",
        "child-shared: 137 OOMKilled",
        "other-kill: 137 Error",
        "exec: answered 137",
        "exec: 0 Completed",
    ];
    assert_eq!(ours, expected);
    drop(scene);
    if let Some(program) = containerd::missing() {
        println!("skipped: comparing with containerd: no {program} in $RIG/bin or PATH");
        return;
    }
    let theirs = peer(Subject::Containerd);
    let theirs = ends(&theirs.node, &theirs.node.logs());
    // containerd calls every container OOMKilled in which something was ever killed, when its event
    // comes in time: then also those that ended well.
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let well = ours.ends_with(": 0 Completed");
        assert!(
            ours == theirs || well,
            "wharf {ours:?}, containerd {theirs:?}"
        );
    }
    println!("containerd: {theirs:?}");
}
