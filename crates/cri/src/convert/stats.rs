//! Statistics: from the engine's measurements to answers.

use std::sync::Arc;

use wharf_api::v1;
use wharf_engine::stats::{
    CgroupUsage, ContainerUsage, Interface, LayerUsage, NetworkUsage, PodUsage, Pressure, Stall,
};
use wharf_engine::view::{ContainerState, ContainerView, PodState, PodView};

use super::{filter, pod, status};

/// The interface that a pod's address is on, as CNI runtimes name it.
const DEFAULT_INTERFACE: &str = "eth0";

#[expect(clippy::unnecessary_wraps, reason = "the API's fields are optional")]
fn number(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn maybe(value: Option<u64>) -> Option<v1::UInt64Value> {
    value.map(|value| v1::UInt64Value { value })
}

/// A container's statistics.
pub(crate) fn container(usage: &ContainerUsage) -> v1::ContainerStats {
    let item = status::item(&usage.view);
    let measured = usage.cgroup.as_ref();
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: item.id,
            metadata: item.metadata,
            labels: item.labels,
            annotations: item.annotations,
        }),
        cpu: measured.map(cpu),
        memory: measured.map(memory),
        writable_layer: usage.layer.map(|layer| writable(usage, layer)),
        swap: measured.and_then(swap),
        io: measured.and_then(io),
    }
}

fn writable(usage: &ContainerUsage, layer: LayerUsage) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: layer.at_ns,
        fs_id: Some(v1::FilesystemIdentifier {
            mountpoint: usage.place.to_string_lossy().into_owned(),
        }),
        used_bytes: number(layer.bytes),
        inodes_used: number(layer.inodes),
    }
}

fn cpu(usage: &CgroupUsage) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: usage.at_ns,
        usage_core_nano_seconds: maybe(usage.stats.cpu_nanoseconds),
        usage_nano_cores: maybe(usage.nano_cores),
        psi: usage.stats.cpu_pressure.map(pressure),
    }
}

fn memory(usage: &CgroupUsage) -> v1::MemoryUsage {
    let stats = &usage.stats;
    let available = stats
        .memory_limit
        .zip(stats.memory_working_set)
        .map(|(limit, used)| limit.saturating_sub(used));
    v1::MemoryUsage {
        timestamp: usage.at_ns,
        working_set_bytes: maybe(stats.memory_working_set),
        available_bytes: maybe(available),
        usage_bytes: maybe(stats.memory_usage),
        rss_bytes: maybe(stats.memory_rss),
        page_faults: maybe(stats.page_faults),
        major_page_faults: maybe(stats.major_page_faults),
        psi: stats.memory_pressure.map(pressure),
    }
}

/// Nothing on a machine that counts no swap.
fn swap(usage: &CgroupUsage) -> Option<v1::SwapUsage> {
    let used = usage.stats.swap_usage?;
    let available = usage.stats.swap_limit.map(|max| max.saturating_sub(used));
    Some(v1::SwapUsage {
        timestamp: usage.at_ns,
        swap_available_bytes: maybe(available),
        swap_usage_bytes: number(used),
    })
}

fn io(usage: &CgroupUsage) -> Option<v1::IoUsage> {
    Some(v1::IoUsage {
        timestamp: usage.at_ns,
        psi: Some(pressure(usage.stats.io_pressure?)),
    })
}

fn pressure(pressure: Pressure) -> v1::PsiStats {
    let data = |stall: Stall| v1::PsiData {
        total: stall.total,
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    v1::PsiStats {
        full: Some(data(pressure.full)),
        some: Some(data(pressure.some)),
    }
}

/// A pod's statistics.
pub(crate) fn pod(usage: &PodUsage) -> v1::PodSandboxStats {
    let item = pod::item(&usage.view);
    let measured = usage.cgroup.as_ref();
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: item.id,
            metadata: item.metadata,
            labels: item.labels,
            annotations: item.annotations,
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: measured.map(cpu),
            memory: measured.map(memory),
            network: usage.network.as_ref().map(network),
            process: measured.map(|usage| v1::ProcessUsage {
                timestamp: usage.at_ns,
                process_count: maybe(usage.stats.pids),
            }),
            containers: usage.containers.iter().map(container).collect(),
            io: measured.and_then(io),
        }),
        windows: None,
    }
}

/// The default interface apart from the others: kubelet adds them up.
fn network(usage: &NetworkUsage) -> v1::NetworkUsage {
    let counters = |i: &Interface| v1::NetworkInterfaceUsage {
        name: i.name.clone(),
        rx_bytes: number(i.rx_bytes),
        rx_errors: number(i.rx_errors),
        tx_bytes: number(i.tx_bytes),
        tx_errors: number(i.tx_errors),
    };
    let (default, others): (Vec<_>, Vec<_>) = usage
        .interfaces
        .iter()
        .partition(|i| i.name == DEFAULT_INTERFACE);
    v1::NetworkUsage {
        timestamp: usage.at_ns,
        default_interface: default.first().map(|i| counters(i)),
        interfaces: others.into_iter().map(counters).collect(),
    }
}

/// The containers that pass a filter and have not ended: those have no more use.
pub(crate) fn containers(
    asked: Option<&v1::ContainerStatsFilter>,
    all: Vec<Arc<ContainerView>>,
) -> Vec<Arc<ContainerView>> {
    let living = |c: &Arc<ContainerView>| c.state != ContainerState::Exited;
    let Some(asked) = asked else {
        return all.into_iter().filter(living).collect();
    };
    let passes = |c: &&Arc<ContainerView>| {
        living(c)
            && c.pod.as_str().starts_with(&asked.pod_sandbox_id)
            && filter::has_labels(&asked.label_selector, &c.spec.labels)
    };
    let by_id = filter::by_id(&asked.id, all.iter(), |c| c.id.as_str());
    by_id.into_iter().filter(passes).cloned().collect()
}

/// The pods that pass a filter and were not stopped. One whose shim does not answer is measured too.
pub(crate) fn pods(
    asked: Option<&v1::PodSandboxStatsFilter>,
    all: Vec<Arc<PodView>>,
) -> Vec<Arc<PodView>> {
    let living = |p: &Arc<PodView>| p.state != PodState::NotReady;
    let Some(asked) = asked else {
        return all.into_iter().filter(living).collect();
    };
    let passes =
        |p: &&Arc<PodView>| living(p) && filter::has_labels(&asked.label_selector, &p.spec.labels);
    let by_id = filter::by_id(&asked.id, all.iter(), |p| p.id.as_str());
    by_id.into_iter().filter(passes).cloned().collect()
}
