//! Metrics through CRI: names and labels as cAdvisor has them and containerd tells them, so that
//! dashboards find what they look for.
//!
//! One table has all names. A metric takes its labels' number from there: kubelet drops those that
//! have another number.

use wharf_api::v1;
use wharf_engine::stats::{
    ContainerMetrics, ContainerUsage, DiskTraffic, Interface, PodMetrics, Space,
};

use v1::MetricType::{Counter, Gauge};

/// Labels of every metric.
const BASE: [&str; 5] = ["pod", "namespace", "container", "id", "image"];
const NANO: u64 = 1_000_000_000;

/// What there is: name, labels behind those of every metric, what it says.
const TABLE: &[(&str, &[&str], &str)] = &[
    (
        "container_blkio_device_usage_total",
        DEVICE_OPERATION,
        "Bytes of traffic with a disk",
    ),
    (
        "container_cpu_cfs_periods_total",
        &[],
        "Periods of the processor quota that have passed",
    ),
    (
        "container_cpu_cfs_throttled_periods_total",
        &[],
        "Periods in which the quota was used up",
    ),
    (
        "container_cpu_cfs_throttled_seconds_total",
        &[],
        "Seconds that tasks were held back by the quota",
    ),
    (
        "container_cpu_system_seconds_total",
        &[],
        "Processor seconds in the kernel",
    ),
    (
        "container_cpu_usage_seconds_total",
        &[],
        "Processor seconds",
    ),
    (
        "container_cpu_user_seconds_total",
        &[],
        "Processor seconds outside the kernel",
    ),
    (
        "container_file_descriptors",
        &[],
        "Open descriptors of all processes",
    ),
    (
        "container_fs_inodes_free",
        DEVICE,
        "Free inodes of the file system of the writable layer",
    ),
    (
        "container_fs_inodes_total",
        DEVICE,
        "Inodes of the file system of the writable layer",
    ),
    (
        "container_fs_limit_bytes",
        DEVICE,
        "Bytes that the file system of the writable layer can hold",
    ),
    (
        "container_fs_reads_bytes_total",
        DEVICE,
        "Bytes read from a disk",
    ),
    (
        "container_fs_reads_total",
        DEVICE,
        "Requests to read from a disk",
    ),
    (
        "container_fs_usage_bytes",
        DEVICE,
        "Bytes of the writable layer, as last measured",
    ),
    (
        "container_fs_writes_bytes_total",
        DEVICE,
        "Bytes written to a disk",
    ),
    (
        "container_fs_writes_total",
        DEVICE,
        "Requests to write to a disk",
    ),
    (
        "container_last_seen",
        &[],
        "When it was measured, in seconds since 1970",
    ),
    ("container_memory_cache", &[], "Bytes of cached files"),
    (
        "container_memory_failcnt",
        &[],
        "How often the memory limit was met",
    ),
    (
        "container_memory_failures_total",
        &["failure_type", "scope"],
        "Page faults",
    ),
    (
        "container_memory_kernel_usage",
        &[],
        "Bytes that the kernel uses for the processes",
    ),
    (
        "container_memory_mapped_file",
        &[],
        "Bytes of files that are mapped",
    ),
    (
        "container_memory_max_usage_bytes",
        &[],
        "The most bytes of memory that were ever used",
    ),
    (
        "container_memory_rss",
        &[],
        "Bytes of memory that belong to no file",
    ),
    ("container_memory_swap", &[], "Bytes in swap"),
    (
        "container_memory_total_active_file_bytes",
        &[],
        "Bytes of cached files that were used lately",
    ),
    (
        "container_memory_total_inactive_file_bytes",
        &[],
        "Bytes of cached files that were not used lately",
    ),
    (
        "container_memory_usage_bytes",
        &[],
        "Bytes of memory, cached files included",
    ),
    (
        "container_memory_working_set_bytes",
        &[],
        "Bytes of memory that cannot be dropped at once",
    ),
    (
        "container_network_receive_bytes_total",
        INTERFACE,
        "Bytes received",
    ),
    (
        "container_network_receive_errors_total",
        INTERFACE,
        "Packets that were received wrong",
    ),
    (
        "container_network_receive_packets_dropped_total",
        INTERFACE,
        "Packets that were received and dropped",
    ),
    (
        "container_network_receive_packets_total",
        INTERFACE,
        "Packets received",
    ),
    (
        "container_network_transmit_bytes_total",
        INTERFACE,
        "Bytes sent",
    ),
    (
        "container_network_transmit_errors_total",
        INTERFACE,
        "Packets that could not be sent",
    ),
    (
        "container_network_transmit_packets_dropped_total",
        INTERFACE,
        "Packets that were dropped instead of being sent",
    ),
    (
        "container_network_transmit_packets_total",
        INTERFACE,
        "Packets sent",
    ),
    (
        "container_oom_events_total",
        &[],
        "Processes that the kernel killed for want of memory",
    ),
    (
        "container_pressure_cpu_stalled_seconds_total",
        &[],
        "Seconds in which all tasks waited for a processor",
    ),
    (
        "container_pressure_cpu_waiting_seconds_total",
        &[],
        "Seconds in which some tasks waited for a processor",
    ),
    (
        "container_pressure_io_stalled_seconds_total",
        &[],
        "Seconds in which all tasks waited for disks",
    ),
    (
        "container_pressure_io_waiting_seconds_total",
        &[],
        "Seconds in which some tasks waited for disks",
    ),
    (
        "container_pressure_memory_stalled_seconds_total",
        &[],
        "Seconds in which all tasks waited for memory",
    ),
    (
        "container_pressure_memory_waiting_seconds_total",
        &[],
        "Seconds in which some tasks waited for memory",
    ),
    ("container_processes", &[], "Processes"),
    ("container_sockets", &[], "Open sockets of all processes"),
    (
        "container_spec_cpu_period",
        &[],
        "Period of the processor quota, in microseconds",
    ),
    (
        "container_spec_cpu_quota",
        &[],
        "Processor quota in a period, in microseconds",
    ),
    ("container_spec_cpu_shares", &[], "Processor shares"),
    (
        "container_spec_memory_limit_bytes",
        &[],
        "Memory limit; 0 is none",
    ),
    (
        "container_spec_memory_reservation_limit_bytes",
        &[],
        "Memory reservation; 0 is none",
    ),
    (
        "container_spec_memory_swap_limit_bytes",
        &[],
        "Limit of memory and swap together; 0 is none",
    ),
    (
        "container_start_time_seconds",
        &[],
        "When it was started, in seconds since 1970",
    ),
    ("container_threads", &[], "Tasks"),
    (
        "container_threads_max",
        &[],
        "Tasks that are allowed; 0 is any number",
    ),
    (
        "container_ulimits_soft",
        &["ulimit"],
        "Soft limits of the first process",
    ),
];
const INTERFACE: &[&str] = &["interface"];
const DEVICE: &[&str] = &["device"];
const DEVICE_OPERATION: &[&str] = &["device", "major", "minor", "operation"];

/// All names; they do not change while we run.
pub(crate) fn descriptors() -> Vec<v1::MetricDescriptor> {
    let labels = |more: &[&str]| BASE.iter().chain(more).map(|l| (*l).to_owned()).collect();
    let describe = |(name, more, help): &(&str, &[&str], &str)| v1::MetricDescriptor {
        name: (*name).to_owned(),
        help: (*help).to_owned(),
        label_keys: labels(more),
    };
    TABLE.iter().map(describe).collect()
}

/// The metrics of one object, which share their first labels.
struct Sheet {
    labels: [String; 5],
    at_ns: i64,
    metrics: Vec<v1::Metric>,
}

impl Sheet {
    fn put(&mut self, kind: v1::MetricType, name: &str, more: &[&str], value: Option<u64>) {
        let Some(value) = value else {
            return;
        };
        let more = more.iter().map(|label| (*label).to_owned());
        self.metrics.push(v1::Metric {
            name: format!("container_{name}"),
            timestamp: self.at_ns,
            metric_type: kind.into(),
            label_values: self.labels.iter().cloned().chain(more).collect(),
            value: Some(v1::UInt64Value { value }),
        });
    }

    fn counter(&mut self, name: &str, value: Option<u64>) {
        self.put(Counter, name, &[], value);
    }

    fn gauge(&mut self, name: &str, value: Option<u64>) {
        self.put(Gauge, name, &[], value);
    }
}

/// All metrics of a pod and its containers.
pub(crate) fn pod(pod: &PodMetrics) -> v1::PodSandboxMetrics {
    let view = &pod.usage.view;
    let name = &view.spec.metadata;
    let sheet = |container: &str, id: &str, image: &str, at_ns| Sheet {
        labels: [&name.name, &name.namespace, container, id, image].map(str::to_owned),
        at_ns,
        metrics: Vec::new(),
    };
    let mut own = sheet("", view.id.as_str(), "", 0);
    if let Some(network) = &pod.usage.network {
        own.at_ns = network.at_ns;
        network.interfaces.iter().for_each(|i| traffic(&mut own, i));
    }
    let both = pod.usage.containers.iter().zip(&pod.containers);
    let of_containers = both.map(|(usage, more)| {
        let view = &usage.view;
        let (container, id) = (&view.spec.metadata.name, view.id.as_str());
        let at_ns = usage.cgroup.map_or(0, |cgroup| cgroup.at_ns);
        let mut sheet = sheet(container, id, &view.facts.image_name, at_ns);
        of_container(&mut sheet, usage, more, pod.space);
        v1::ContainerMetrics {
            container_id: id.to_owned(),
            metrics: sheet.metrics,
        }
    });
    v1::PodSandboxMetrics {
        pod_sandbox_id: view.id.to_string(),
        container_metrics: of_containers.collect(),
        metrics: own.metrics,
    }
}

fn traffic(sheet: &mut Sheet, i: &Interface) {
    for (name, value) in [
        ("receive_bytes", i.rx_bytes),
        ("receive_packets", i.rx_packets),
        ("receive_packets_dropped", i.rx_dropped),
        ("receive_errors", i.rx_errors),
        ("transmit_bytes", i.tx_bytes),
        ("transmit_packets", i.tx_packets),
        ("transmit_packets_dropped", i.tx_dropped),
        ("transmit_errors", i.tx_errors),
    ] {
        let name = format!("network_{name}_total");
        sheet.put(Counter, &name, &[&i.name], Some(value));
    }
}

fn of_container(
    sheet: &mut Sheet,
    usage: &ContainerUsage,
    more: &ContainerMetrics,
    space: Option<Space>,
) {
    let seconds = |at_ns: i64| u64::try_from(at_ns).ok().map(|ns| ns / NANO);
    if let Some(cgroup) = &usage.cgroup {
        sheet.gauge("last_seen", seconds(cgroup.at_ns));
    }
    let started = Some(usage.view.started_at_ns).filter(|at_ns| *at_ns > 0);
    sheet.gauge("start_time_seconds", started.and_then(seconds));
    processor(sheet, usage, more);
    memory(sheet, usage, more);
    pressure(sheet, usage);
    more.details.disks.iter().for_each(|d| disk(sheet, d));
    let place = usage.place.to_string_lossy().into_owned();
    for (name, value) in [
        ("fs_usage_bytes", usage.layer.map(|layer| layer.bytes)),
        ("fs_limit_bytes", space.map(|s| s.bytes)),
        ("fs_inodes_total", space.map(|s| s.inodes)),
        ("fs_inodes_free", space.map(|s| s.inodes_free)),
    ] {
        sheet.put(Gauge, name, &[&place], value);
    }
    processes(sheet, usage, more);
    specification(sheet, usage);
}

fn processor(sheet: &mut Sheet, usage: &ContainerUsage, more: &ContainerMetrics) {
    let total = usage.cgroup.and_then(|c| c.stats.cpu_nanoseconds);
    let details = &more.details;
    for (name, nanoseconds) in [
        ("cpu_usage_seconds_total", total),
        ("cpu_user_seconds_total", details.cpu_user),
        ("cpu_system_seconds_total", details.cpu_system),
        ("cpu_cfs_throttled_seconds_total", details.cpu_throttled),
    ] {
        // The API has whole numbers only.
        sheet.counter(name, nanoseconds.map(|ns| ns / NANO));
    }
    sheet.counter("cpu_cfs_periods_total", details.cpu_periods);
    let throttled = details.cpu_throttled_periods;
    sheet.counter("cpu_cfs_throttled_periods_total", throttled);
}

fn memory(sheet: &mut Sheet, usage: &ContainerUsage, more: &ContainerMetrics) {
    let details = &more.details;
    if let Some(cgroup) = &usage.cgroup {
        let stats = &cgroup.stats;
        for (name, value) in [
            ("memory_usage_bytes", stats.memory_usage),
            ("memory_working_set_bytes", stats.memory_working_set),
            ("memory_rss", stats.memory_rss),
            ("memory_cache", stats.memory_cache),
            ("memory_mapped_file", stats.memory_mapped),
            ("memory_swap", stats.swap_usage),
            ("memory_total_active_file_bytes", stats.memory_active_file),
            (
                "memory_total_inactive_file_bytes",
                stats.memory_inactive_file,
            ),
        ] {
            sheet.gauge(name, value);
        }
        for (kind, value) in [
            ("pgfault", stats.page_faults),
            ("pgmajfault", stats.major_page_faults),
        ] {
            let labels = [kind, "container"];
            sheet.put(Counter, "memory_failures_total", &labels, value);
        }
    }
    sheet.gauge("memory_max_usage_bytes", details.memory_max_usage);
    sheet.gauge("memory_kernel_usage", details.memory_kernel);
    sheet.counter("memory_failcnt", details.memory_limit_hits);
    sheet.counter("oom_events_total", details.oom_kills);
}

fn pressure(sheet: &mut Sheet, usage: &ContainerUsage) {
    let stats = usage.cgroup.map(|c| c.stats).unwrap_or_default();
    for (what, pressure) in [
        ("cpu", stats.cpu_pressure),
        ("memory", stats.memory_pressure),
        ("io", stats.io_pressure),
    ] {
        let seconds = |microseconds: u64| microseconds / 1_000_000;
        let (some, full) = (pressure.map(|p| p.some), pressure.map(|p| p.full));
        let waiting = format!("pressure_{what}_waiting_seconds_total");
        sheet.counter(&waiting, some.map(|s| seconds(s.total)));
        let stalled = format!("pressure_{what}_stalled_seconds_total");
        sheet.counter(&stalled, full.map(|s| seconds(s.total)));
    }
}

fn disk(sheet: &mut Sheet, disk: &DiskTraffic) {
    let (major, minor) = (disk.device.0.to_string(), disk.device.1.to_string());
    let name = format!("{major}:{minor}");
    for (metric, value) in [
        ("fs_reads_bytes_total", disk.read_bytes),
        ("fs_reads_total", disk.reads),
        ("fs_writes_bytes_total", disk.written_bytes),
        ("fs_writes_total", disk.writes),
    ] {
        sheet.put(Counter, metric, &[&name], Some(value));
    }
    for (operation, value) in [("Read", disk.read_bytes), ("Write", disk.written_bytes)] {
        let labels = [name.as_str(), &major, &minor, operation];
        sheet.put(Counter, "blkio_device_usage_total", &labels, Some(value));
    }
}

fn processes(sheet: &mut Sheet, usage: &ContainerUsage, more: &ContainerMetrics) {
    let Some(processes) = more.processes else {
        return;
    };
    sheet.gauge("processes", Some(processes));
    sheet.gauge("threads", usage.cgroup.and_then(|c| c.stats.pids));
    sheet.gauge("threads_max", Some(more.details.pids_limit.unwrap_or(0)));
    sheet.gauge("file_descriptors", Some(more.files.files));
    sheet.gauge("sockets", Some(more.files.sockets));
    let limit = more.files_limit;
    sheet.put(Gauge, "ulimits_soft", &["max_open_files"], limit);
}

/// What was asked for; negative values are CRI's way to say "none".
fn specification(sheet: &mut Sheet, usage: &ContainerUsage) {
    let resources = &usage.view.resources;
    let limit = |value: i64| Some(u64::try_from(value).unwrap_or(0));
    let set = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    sheet.gauge("spec_cpu_period", set(resources.cpu_period));
    sheet.gauge("spec_cpu_quota", set(resources.cpu_quota));
    sheet.gauge("spec_cpu_shares", set(resources.cpu_shares));
    sheet.gauge("spec_memory_limit_bytes", limit(resources.memory_limit));
    // CRI has no reservation.
    sheet.gauge("spec_memory_reservation_limit_bytes", Some(0));
    let swap = limit(resources.memory_swap_limit);
    sheet.gauge("spec_memory_swap_limit_bytes", swap);
}
