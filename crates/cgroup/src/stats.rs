//! What a cgroup's processes use, from files that stay open.

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::apply::field;
use crate::cgroup::Cgroup;
use crate::error::CgroupError;
use crate::group::{Version, io_error, read_at_start};

/// What the kernel says where nothing limits memory on v1: the largest number of pages, in bytes.
/// Limits from here on are none.
const UNLIMITED: u64 = 1 << 62;
/// The longest file of one record: `memory.stat` has about 2 KiB.
const RECORD_MAX: usize = 16 * 1024;

/// Use at a moment; what no controller counts is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Bytes of memory, cached files included.
    pub memory_usage: Option<u64>,
    /// The cgroup's own limit in bytes; absent without one.
    pub memory_limit: Option<u64>,
    /// Bytes that cannot be dropped at once: usage without files that were not used lately.
    pub memory_working_set: Option<u64>,
    /// Bytes that belong to no file.
    pub memory_rss: Option<u64>,
    /// Bytes of cached files.
    pub memory_cache: Option<u64>,
    /// Bytes of files that are mapped.
    pub memory_mapped: Option<u64>,
    /// Bytes of cached files that were used lately.
    pub memory_active_file: Option<u64>,
    /// Bytes of cached files that were not.
    pub memory_inactive_file: Option<u64>,
    /// Page faults since the cgroup was made.
    pub page_faults: Option<u64>,
    /// Those that had to read from a disk.
    pub major_page_faults: Option<u64>,
    /// Bytes in swap.
    pub swap_usage: Option<u64>,
    /// Bytes of swap that are allowed; absent without a limit.
    pub swap_limit: Option<u64>,
    /// Processor time in nanoseconds since the cgroup was made.
    pub cpu_nanoseconds: Option<u64>,
    /// Tasks; processes where nobody counts tasks.
    pub pids: Option<u64>,
    /// Waiting for a processor; v2 only, as are the other two.
    pub cpu_pressure: Option<Pressure>,
    /// Waiting for memory.
    pub memory_pressure: Option<Pressure>,
    /// Waiting for disks.
    pub io_pressure: Option<Pressure>,
}

/// A pressure file (`Documentation/accounting/psi.rst`, kernel 4.20 and newer).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Some tasks waited.
    pub some: Stall,
    /// All tasks waited.
    pub full: Stall,
}

/// A line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Share of the last 10 seconds, in percent.
    pub avg10: f64,
    /// Share of the last 60 seconds, in percent.
    pub avg60: f64,
    /// Share of the last 300 seconds, in percent.
    pub avg300: f64,
    /// Microseconds since the cgroup was made.
    pub total: u64,
}

/// Reads a cgroup's use again and again without opening anything.
#[derive(Debug)]
pub struct StatsReader {
    memory: MemoryFiles,
    cpu: Option<OwnedFd>,
    cpu_v2: bool,
    pids: Option<OwnedFd>,
    pids_listed: bool,
    cpu_pressure: Option<OwnedFd>,
    io_pressure: Option<OwnedFd>,
}

#[derive(Debug)]
struct MemoryFiles {
    v2: bool,
    usage: Option<OwnedFd>,
    limit: Option<OwnedFd>,
    stat: Option<OwnedFd>,
    /// v2 only: on v1 all of it is in `memory.stat`.
    swap_usage: Option<OwnedFd>,
    swap_limit: Option<OwnedFd>,
    pressure: Option<OwnedFd>,
}

impl Cgroup {
    /// Opens the files that say what is used.
    ///
    /// # Errors
    /// A file that should be there cannot be opened.
    pub fn stats_reader(&self) -> Result<StatsReader, CgroupError> {
        let mut cpu = self.counter("cpuacct", Some("cpuacct.usage"), None)?;
        let cpu_v2 = cpu.is_none();
        if cpu_v2 {
            // There on v2 without any controller.
            cpu = self
                .v2()
                .and_then(|group| group.file("cpu.stat", OFlags::RDONLY).ok());
        }
        let mut pids = self.counter("pids", Some("pids.current"), Some("pids.current"))?;
        let pids_listed = pids.is_none();
        if pids_listed {
            pids = self
                .primary()
                .and_then(|group| group.file("cgroup.procs", OFlags::RDONLY).ok());
        }
        Ok(StatsReader {
            memory: MemoryFiles {
                v2: self
                    .with("memory")
                    .is_some_and(|group| group.version == Version::V2),
                usage: self.counter(
                    "memory",
                    Some("memory.usage_in_bytes"),
                    Some("memory.current"),
                )?,
                limit: self.counter("memory", Some("memory.limit_in_bytes"), Some("memory.max"))?,
                stat: self.counter("memory", Some("memory.stat"), Some("memory.stat"))?,
                swap_usage: self.counter("memory", None, Some("memory.swap.current"))?,
                swap_limit: self.counter("memory", None, Some("memory.swap.max"))?,
                pressure: self.counter("memory", None, Some("memory.pressure"))?,
            },
            cpu,
            cpu_v2,
            pids,
            pids_listed,
            cpu_pressure: self.counter("cpu", None, Some("cpu.pressure"))?,
            io_pressure: self.counter("io", None, Some("io.pressure"))?,
        })
    }

    /// Opens a controller's file by its name in the version where the controller is.
    fn counter(
        &self,
        controller: &str,
        v1: Option<&str>,
        v2: Option<&str>,
    ) -> Result<Option<OwnedFd>, CgroupError> {
        let Some(group) = self.with(controller) else {
            return Ok(None);
        };
        let name = if group.version == Version::V1 { v1 } else { v2 };
        let Some(name) = name else {
            return Ok(None);
        };
        match group.file(name, OFlags::RDONLY) {
            Ok(file) => Ok(Some(file)),
            // A v2 controller that is not handed down to here; pressure that is not counted.
            Err(Errno::NOENT | Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(io_error("open", &group.path.join(name), error)),
        }
    }

    /// What is used now. For more than one look: [`Cgroup::stats_reader`].
    ///
    /// # Errors
    /// A file cannot be opened, or the cgroup was removed.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        self.stats_reader()?
            .read(&mut Vec::new())
            .map_err(|error| CgroupError::Io {
                action: "read the statistics of",
                path: self.path.clone().into(),
                source: error,
            })
    }

    /// How often the kernel killed a process of it for want of memory; none without a memory
    /// controller.
    ///
    /// # Errors
    /// The count cannot be read.
    pub fn oom_kills(&self) -> Result<Option<u64>, CgroupError> {
        let Some(group) = self.with("memory") else {
            return Ok(None);
        };
        let file = match group.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        match group.read(file) {
            Ok(text) => Ok(field(&text, "oom_kill")),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(io_error("read", &group.path.join(file), error)),
        }
    }
}

impl StatsReader {
    /// Files that it holds open.
    pub fn files(&self) -> usize {
        let memory = &self.memory;
        [
            &memory.usage,
            &memory.limit,
            &memory.stat,
            &memory.swap_usage,
            &memory.swap_limit,
            &memory.pressure,
            &self.cpu,
            &self.pids,
            &self.cpu_pressure,
            &self.io_pressure,
        ]
        .iter()
        .filter(|file| file.is_some())
        .count()
    }

    /// What is used now, by way of `buffer`, which callers share between readers. A file that cannot
    /// be read makes its own figures absent.
    ///
    /// # Errors
    /// `ENODEV` when the cgroup was removed.
    pub fn read(&self, buffer: &mut Vec<u8>) -> std::io::Result<Stats> {
        let mut stats = Stats::default();
        self.memory.read(buffer, &mut stats)?;
        stats.cpu_nanoseconds = if self.cpu_v2 {
            text(self.cpu.as_ref(), buffer)?
                .and_then(|text| field(text, "usage_usec"))
                .map(|microseconds| microseconds.saturating_mul(1000))
        } else {
            number(self.cpu.as_ref(), buffer)?
        };
        stats.pids = match &self.pids {
            Some(file) if self.pids_listed => {
                read_at_start(file, buffer)?;
                let lines = buffer.iter().filter(|byte| **byte == b'\n').count();
                u64::try_from(lines).ok()
            }
            file => number(file.as_ref(), buffer)?,
        };
        stats.cpu_pressure = pressure(self.cpu_pressure.as_ref(), buffer)?;
        stats.io_pressure = pressure(self.io_pressure.as_ref(), buffer)?;
        Ok(stats)
    }
}

impl MemoryFiles {
    fn read(&self, buffer: &mut Vec<u8>, stats: &mut Stats) -> std::io::Result<()> {
        stats.memory_usage = number(self.usage.as_ref(), buffer)?;
        stats.memory_limit = limit(self.limit.as_ref(), buffer)?;
        stats.swap_usage = number(self.swap_usage.as_ref(), buffer)?;
        stats.swap_limit = limit(self.swap_limit.as_ref(), buffer)?;
        if let Some(text) = text(self.stat.as_ref(), buffer)? {
            let of_v1 = detail(text, self.v2, stats);
            if let (Some(both), Some(memory)) = (of_v1, stats.memory_limit) {
                stats.swap_limit = both.checked_sub(memory);
            }
        }
        let inactive = stats.memory_inactive_file.unwrap_or(0);
        stats.memory_working_set = stats
            .memory_usage
            .map(|usage| usage.saturating_sub(inactive));
        stats.memory_pressure = pressure(self.pressure.as_ref(), buffer)?;
        Ok(())
    }
}

/// Takes the figures of `memory.stat`; gives v1's limit of memory and swap together.
fn detail(text: &str, v2: bool, stats: &mut Stats) -> Option<u64> {
    let mut both = None;
    for line in text.lines() {
        let Some((key, value)) = line.split_once(' ') else {
            continue;
        };
        // v1 has each figure twice; with the prefix cgroups below this one are counted too.
        let key = if v2 {
            key
        } else {
            match key {
                "hierarchical_memsw_limit" => key,
                _ => key.strip_prefix("total_").unwrap_or_default(),
            }
        };
        let place = match key {
            "rss" | "anon" => &mut stats.memory_rss,
            "cache" | "file" => &mut stats.memory_cache,
            "mapped_file" | "file_mapped" => &mut stats.memory_mapped,
            "active_file" => &mut stats.memory_active_file,
            "inactive_file" => &mut stats.memory_inactive_file,
            "pgfault" => &mut stats.page_faults,
            "pgmajfault" => &mut stats.major_page_faults,
            "swap" => &mut stats.swap_usage,
            "hierarchical_memsw_limit" => &mut both,
            _ => continue,
        };
        *place = value.trim().parse().ok();
    }
    both.filter(|limit| *limit < UNLIMITED)
}

/// Reads a file of one record, which the kernel gives whole.
fn text<'a>(file: Option<&OwnedFd>, buffer: &'a mut Vec<u8>) -> std::io::Result<Option<&'a str>> {
    let Some(file) = file else {
        return Ok(None);
    };
    buffer.resize(RECORD_MAX, 0);
    match rustix::io::pread(file, &mut buffer[..], 0) {
        Ok(count) => Ok(buffer
            .get(..count)
            .and_then(|read| std::str::from_utf8(read).ok())),
        Err(Errno::NODEV) => Err(Errno::NODEV.into()),
        // This figure, not the others.
        Err(_unreadable) => Ok(None),
    }
}

fn number(file: Option<&OwnedFd>, buffer: &mut Vec<u8>) -> std::io::Result<Option<u64>> {
    Ok(text(file, buffer)?.and_then(|text| text.trim().parse().ok()))
}

/// A limit; v2 writes `max` for none.
fn limit(file: Option<&OwnedFd>, buffer: &mut Vec<u8>) -> std::io::Result<Option<u64>> {
    Ok(number(file, buffer)?.filter(|limit| *limit < UNLIMITED))
}

fn pressure(file: Option<&OwnedFd>, buffer: &mut Vec<u8>) -> std::io::Result<Option<Pressure>> {
    Ok(text(file, buffer)?.map(|text| {
        let mut pressure = Pressure::default();
        for line in text.lines() {
            match line.split_once(' ') {
                Some(("some", rest)) => pressure.some = stall(rest),
                Some(("full", rest)) => pressure.full = stall(rest),
                _ => {}
            }
        }
        pressure
    }))
}

fn stall(line: &str) -> Stall {
    let mut stall = Stall::default();
    for (key, value) in line.split(' ').filter_map(|word| word.split_once('=')) {
        let share = || value.parse().unwrap_or(0.0);
        match key {
            "avg10" => stall.avg10 = share(),
            "avg60" => stall.avg60 = share(),
            "avg300" => stall.avg300 = share(),
            "total" => stall.total = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    stall
}
