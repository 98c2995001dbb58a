//! Statistics and metrics: units, what is absent, labels, filters.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use wharf_api::v1;
use wharf_engine::stats::{
    CgroupUsage, ContainerMetrics, ContainerUsage, Details, DiskTraffic, Interface, LayerUsage,
    NetworkUsage, OpenFiles, PodMetrics, PodUsage, Pressure, Space, Stats,
};
use wharf_engine::view::{ContainerState, ContainerView, PodState};

use super::super::{metrics, stats};
use super::answers::{container_view, pod_view};

const SOME: Option<u64> = Some(5_000_000_000);

fn everything() -> CgroupUsage {
    let pressure = Some(Pressure::default());
    CgroupUsage {
        at_ns: 7,
        nano_cores: Some(4),
        stats: Stats {
            memory_usage: Some(900),
            memory_limit: Some(1000),
            memory_working_set: Some(600),
            memory_rss: SOME,
            memory_cache: SOME,
            memory_mapped: SOME,
            memory_active_file: SOME,
            memory_inactive_file: SOME,
            page_faults: SOME,
            major_page_faults: SOME,
            swap_usage: Some(3),
            swap_limit: Some(10),
            cpu_nanoseconds: SOME,
            pids: Some(2),
            cpu_pressure: pressure,
            memory_pressure: pressure,
            io_pressure: pressure,
        },
    }
}

fn container_usage(cgroup: Option<CgroupUsage>) -> ContainerUsage {
    let mut view = container_view();
    view.resources.cpu_period = 100_000;
    view.resources.cpu_quota = 50_000;
    ContainerUsage {
        view: Arc::new(view),
        cgroup,
        layer: cgroup.map(|_| LayerUsage {
            at_ns: 6,
            bytes: 4096,
            inodes: 1,
        }),
        place: Arc::new(PathBuf::from("/var/lib/wharf")),
    }
}

fn pod_usage(cgroup: Option<CgroupUsage>) -> PodUsage {
    let interface = |name: &str| Interface {
        name: name.to_owned(),
        rx_bytes: 1,
        tx_bytes: 2,
        ..Interface::default()
    };
    PodUsage {
        view: pod_view("a", PodState::Ready, &[]),
        cgroup,
        network: cgroup.map(|_| NetworkUsage {
            at_ns: 8,
            interfaces: vec![interface("net1"), interface("eth0")],
        }),
        containers: vec![container_usage(cgroup)],
    }
}

fn value(value: Option<v1::UInt64Value>) -> Option<u64> {
    value.map(|v| v.value)
}

#[test]
fn statistics_have_the_units_and_times_that_kubelet_reads() {
    let answer = stats::container(&container_usage(Some(everything())));
    let (cpu, memory) = (answer.cpu.unwrap(), answer.memory.unwrap());
    assert_eq!((cpu.timestamp, memory.timestamp), (7, 7));
    assert_eq!(value(cpu.usage_core_nano_seconds), SOME);
    assert_eq!(value(cpu.usage_nano_cores), Some(4));
    assert!(cpu.psi.is_some() && memory.psi.is_some() && answer.io.is_some());
    assert_eq!(value(memory.working_set_bytes), Some(600));
    assert_eq!(value(memory.available_bytes), Some(400), "up to the limit");
    let swap = answer.swap.unwrap();
    assert_eq!(value(swap.swap_available_bytes), Some(7));
    let layer = answer.writable_layer.unwrap();
    assert_eq!(layer.timestamp, 6, "when it was measured, not now");
    assert_eq!(layer.fs_id.unwrap().mountpoint, "/var/lib/wharf");
    assert_eq!(answer.attributes.unwrap().metadata.unwrap().name, "main");
}

#[test]
fn what_nobody_counts_is_absent_and_not_zero() {
    let answer = stats::container(&container_usage(None));
    assert!(answer.attributes.is_some());
    assert!(answer.cpu.is_none() && answer.memory.is_none() && answer.swap.is_none());
    assert!(answer.writable_layer.is_none() && answer.io.is_none());
    let mut unlimited = everything();
    unlimited.stats.memory_limit = None;
    let answer = stats::container(&container_usage(Some(unlimited)));
    assert_eq!(value(answer.memory.unwrap().available_bytes), None);
    let pod = stats::pod(&pod_usage(None)).linux.unwrap();
    assert!(pod.network.is_none() && pod.cpu.is_none() && pod.process.is_none());
}

#[test]
fn the_default_interface_is_apart_from_the_others() {
    let pod = stats::pod(&pod_usage(Some(everything()))).linux.unwrap();
    let network = pod.network.unwrap();
    assert_eq!(network.default_interface.unwrap().name, "eth0");
    let others: Vec<_> = network.interfaces.iter().map(|i| &*i.name).collect();
    assert_eq!(others, ["net1"], "kubelet adds them up");
    assert_eq!(value(pod.process.unwrap().process_count), Some(2));
    assert_eq!(pod.containers.len(), 1);
}

#[test]
fn every_metric_is_described_and_has_a_value_for_each_label() {
    let descriptors = metrics::descriptors();
    let labels: HashMap<_, _> = descriptors
        .iter()
        .map(|d| (d.name.clone(), d.label_keys.len()))
        .collect();
    assert_eq!(labels.len(), descriptors.len(), "each name once");
    assert!(descriptors.iter().all(|d| !d.help.is_empty()));
    let pod = metrics::pod(&PodMetrics {
        usage: pod_usage(Some(everything())),
        containers: vec![ContainerMetrics {
            details: Details {
                cpu_user: SOME,
                cpu_system: SOME,
                cpu_periods: SOME,
                cpu_throttled_periods: SOME,
                cpu_throttled: SOME,
                memory_max_usage: SOME,
                memory_limit_hits: SOME,
                memory_kernel: SOME,
                oom_kills: SOME,
                pids_limit: None,
                disks: vec![DiskTraffic::default()],
            },
            processes: Some(2),
            files: OpenFiles::default(),
            files_limit: SOME,
        }],
        space: Some(Space::default()),
    });
    let container = &pod.container_metrics[0];
    let all = || pod.metrics.iter().chain(&container.metrics);
    let mut told = HashSet::new();
    for metric in all() {
        let expected = labels.get(&metric.name);
        assert_eq!(expected, Some(&metric.label_values.len()), "{metric:?}");
        assert_eq!(metric.label_values[0], "web");
        told.insert(metric.name.clone());
    }
    let silent: Vec<_> = labels.keys().filter(|name| !told.contains(*name)).collect();
    assert_eq!(silent, Vec::<&String>::new(), "described, and never told");
    let cpu = all().find(|m| m.name == "container_cpu_usage_seconds_total");
    assert_eq!(value(cpu.unwrap().value), Some(5), "seconds");
}

#[test]
fn filters_of_statistics_are_joined_and_leave_out_what_has_ended() {
    let one = |state, label: &str| {
        let mut view = container_view();
        view.state = state;
        let spec = Arc::make_mut(&mut view.spec);
        spec.labels.insert("app".to_owned(), label.to_owned());
        Arc::new(ContainerView {
            id: wharf_types::ContainerId::from_random([u8::try_from(label.len()).unwrap(); 32]),
            ..view
        })
    };
    let all = || {
        vec![
            one(ContainerState::Running, "a"),
            one(ContainerState::Created, "bb"),
            one(ContainerState::Exited, "ccc"),
            one(ContainerState::Unknown, "dddd"),
        ]
    };
    assert_eq!(stats::containers(None, all()).len(), 3);
    let filter = |id: &str, pod: &str, label: &str| v1::ContainerStatsFilter {
        id: id.to_owned(),
        pod_sandbox_id: pod.to_owned(),
        label_selector: match label {
            "" => HashMap::new(),
            label => HashMap::from([("app".to_owned(), label.to_owned())]),
        },
    };
    let count = |filter| stats::containers(Some(&filter), all()).len();
    let (id, pod) = (all()[0].id.to_string(), all()[0].pod.to_string());
    assert_eq!(count(filter("", "", "")), 3);
    assert_eq!(count(filter(&id, "", "")), 1);
    assert_eq!(count(filter(&id, &pod, "a")), 1);
    assert_eq!(count(filter(&id, &pod, "bb")), 0);
    assert_eq!(count(filter("", "none", "")), 0);
    assert_eq!(count(filter("", "", "ccc")), 0, "it has ended");

    let pods = || {
        vec![
            pod_view("a", PodState::Ready, &[("app", "web")]),
            pod_view("b", PodState::NotReady, &[]),
            pod_view("c", PodState::Unknown, &[]),
        ]
    };
    assert_eq!(
        stats::pods(None, pods()).len(),
        2,
        "a stopped one has ended"
    );
    let asked = v1::PodSandboxStatsFilter {
        id: String::new(),
        label_selector: HashMap::from([("app".to_owned(), "web".to_owned())]),
    };
    assert_eq!(stats::pods(Some(&asked), pods()).len(), 1);
}
