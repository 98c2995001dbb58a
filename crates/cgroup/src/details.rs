//! Figures that only monitoring asks for: read once, with nothing left open.

use crate::apply::field;
use crate::cgroup::Cgroup;
use crate::group::{Group, Version};

/// Disks of one cgroup that are told.
const DISKS_MAX: usize = 256;

/// More about use; what cannot be read is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// Processor time outside the kernel, in nanoseconds.
    pub cpu_user: Option<u64>,
    /// Processor time in the kernel, in nanoseconds.
    pub cpu_system: Option<u64>,
    /// Periods of the quota that have passed.
    pub cpu_periods: Option<u64>,
    /// Periods in which the quota was used up.
    pub cpu_throttled_periods: Option<u64>,
    /// Time that tasks were held back, in nanoseconds.
    pub cpu_throttled: Option<u64>,
    /// The most bytes that were ever used.
    pub memory_max_usage: Option<u64>,
    /// How often the limit was met.
    pub memory_limit_hits: Option<u64>,
    /// Bytes that the kernel uses for the processes.
    pub memory_kernel: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Tasks that are allowed; absent without a limit.
    pub pids_limit: Option<u64>,
    /// Traffic with disks.
    pub disks: Vec<DiskTraffic>,
}

/// Traffic with one disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskTraffic {
    /// Its major and minor number.
    pub device: (u32, u32),
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests to read.
    pub reads: u64,
    /// Requests to write.
    pub writes: u64,
}

impl Cgroup {
    /// Reads what [`Cgroup::stats`] leaves out.
    pub fn details(&self) -> Details {
        let mut details = Details {
            oom_kills: self.oom_kills().ok().flatten(),
            ..Details::default()
        };
        self.cpu_details(&mut details);
        if let Some(memory) = self.with("memory") {
            memory_details(memory, &mut details);
        }
        if let Some(pids) = self.with("pids") {
            details.pids_limit = pids.number("pids.max").ok();
        }
        let blkio = self.with("blkio").filter(|g| g.version == Version::V1);
        details.disks = match (blkio, self.with("io")) {
            (Some(group), _) => disks_v1(group),
            (None, Some(group)) => disks_v2(&group.read("io.stat").unwrap_or_default()),
            (None, None) => Vec::new(),
        };
        details
    }

    fn cpu_details(&self, details: &mut Details) {
        if let Some(cpuacct) = self.with("cpuacct").filter(|g| g.version == Version::V1) {
            details.cpu_user = cpuacct.number("cpuacct.usage_user").ok();
            details.cpu_system = cpuacct.number("cpuacct.usage_sys").ok();
        }
        let group = self.with("cpu").or_else(|| self.v2());
        let Some(group) = group else {
            return;
        };
        let text = group.read("cpu.stat").unwrap_or_default();
        details.cpu_periods = field(&text, "nr_periods");
        details.cpu_throttled_periods = field(&text, "nr_throttled");
        if group.version == Version::V1 {
            details.cpu_throttled = field(&text, "throttled_time");
            return;
        }
        let nanoseconds = |name| field(&text, name).map(|micro: u64| micro.saturating_mul(1000));
        details.cpu_throttled = nanoseconds("throttled_usec");
        details.cpu_user = details.cpu_user.or_else(|| nanoseconds("user_usec"));
        details.cpu_system = details.cpu_system.or_else(|| nanoseconds("system_usec"));
    }
}

fn memory_details(group: &Group, details: &mut Details) {
    match group.version {
        Version::V1 => {
            details.memory_max_usage = group.number("memory.max_usage_in_bytes").ok();
            details.memory_limit_hits = group.number("memory.failcnt").ok();
            details.memory_kernel = group.number("memory.kmem.usage_in_bytes").ok();
        }
        Version::V2 => {
            // Since 5.19 and 6.1.
            details.memory_max_usage = group.number("memory.peak").ok();
            let events = group.read("memory.events").unwrap_or_default();
            details.memory_limit_hits = field(&events, "max");
            let stat = group.read("memory.stat").unwrap_or_default();
            details.memory_kernel = field(&stat, "kernel").or_else(|| field(&stat, "kernel_stack"));
        }
    }
}

fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The entry of a disk; none when there are too many.
fn entry(disks: &mut Vec<DiskTraffic>, device: (u32, u32)) -> Option<&mut DiskTraffic> {
    let at = match disks.iter().position(|disk| disk.device == device) {
        Some(at) => at,
        None if disks.len() >= DISKS_MAX => return None,
        None => {
            disks.push(DiskTraffic {
                device,
                ..DiskTraffic::default()
            });
            disks.len() - 1
        }
    };
    disks.get_mut(at)
}

/// Lines `8:0 Read 4096`; the last one, `Total`, has no disk.
fn disks_v1(group: &Group) -> Vec<DiskTraffic> {
    let mut disks = Vec::new();
    for (file, bytes) in [
        ("blkio.throttle.io_service_bytes_recursive", true),
        ("blkio.throttle.io_serviced_recursive", false),
    ] {
        for line in group.read(file).unwrap_or_default().lines() {
            let mut words = line.split(' ');
            let (Some(device), Some(operation), Some(Ok(value))) = (
                words.next().and_then(device),
                words.next(),
                words.next().map(str::parse),
            ) else {
                continue;
            };
            let Some(disk) = entry(&mut disks, device) else {
                break;
            };
            match (operation, bytes) {
                ("Read", true) => disk.read_bytes = value,
                ("Write", true) => disk.written_bytes = value,
                ("Read", false) => disk.reads = value,
                ("Write", false) => disk.writes = value,
                _ => {}
            }
        }
    }
    disks
}

/// Lines `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 …`.
fn disks_v2(text: &str) -> Vec<DiskTraffic> {
    let mut disks = Vec::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let Some(device) = words.next().and_then(device) else {
            continue;
        };
        let Some(disk) = entry(&mut disks, device) else {
            break;
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match key {
                "rbytes" => disk.read_bytes = value,
                "wbytes" => disk.written_bytes = value,
                "rios" => disk.reads = value,
                "wios" => disk.writes = value,
                _ => {}
            }
        }
    }
    disks
}
