//! What a cgroup's processes use, from files that stay open.

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::apply::field;
use crate::cgroup::Cgroup;
use crate::error::CgroupError;
use crate::group::{Version, io_error, read_at_start};

/// Use at a moment; what no controller counts is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of memory, cached files included.
    pub memory_usage: Option<u64>,
    /// Bytes that cannot be dropped at once: usage without files that were not used lately.
    pub memory_working_set: Option<u64>,
    /// Processor time in nanoseconds since the cgroup was made.
    pub cpu_nanoseconds: Option<u64>,
    /// Tasks; processes where nobody counts tasks.
    pub pids: Option<u64>,
}

/// Reads a cgroup's use again and again without opening anything.
#[derive(Debug)]
pub struct StatsReader {
    memory_usage: Option<OwnedFd>,
    memory_stat: Option<OwnedFd>,
    cpu: Option<OwnedFd>,
    pids: Option<OwnedFd>,
    names: Names,
    buffer: Vec<u8>,
}

/// Where versions differ.
#[derive(Debug)]
struct Names {
    inactive: &'static str,
    cpu_v2: bool,
    pids_listed: bool,
}

impl Cgroup {
    /// Opens the files that say what is used.
    ///
    /// # Errors
    /// A file that should be there cannot be opened.
    pub fn stats_reader(&self) -> Result<StatsReader, CgroupError> {
        let open = |controller: &str, v1: &str, v2: &str| {
            let Some(group) = self.with(controller) else {
                return Ok(None);
            };
            let name = if group.version == Version::V1 { v1 } else { v2 };
            match group.file(name, OFlags::RDONLY) {
                Ok(file) => Ok(Some(file)),
                // A v2 controller that is not handed down to here.
                Err(Errno::NOENT) => Ok(None),
                Err(error) => Err(io_error("open", &group.path.join(name), error)),
            }
        };
        let memory_v2 = self
            .with("memory")
            .is_some_and(|group| group.version == Version::V2);
        let mut cpu = open("cpuacct", "cpuacct.usage", "cpu.stat")?;
        let cpu_v2 = cpu.is_none();
        if cpu_v2 {
            // There on v2 without any controller.
            cpu = self
                .v2()
                .and_then(|group| group.file("cpu.stat", OFlags::RDONLY).ok());
        }
        let mut pids = open("pids", "pids.current", "pids.current")?;
        let pids_listed = pids.is_none();
        if pids_listed {
            pids = self
                .primary()
                .and_then(|group| group.file("cgroup.procs", OFlags::RDONLY).ok());
        }
        Ok(StatsReader {
            memory_usage: open("memory", "memory.usage_in_bytes", "memory.current")?,
            memory_stat: open("memory", "memory.stat", "memory.stat")?,
            cpu,
            pids,
            names: Names {
                inactive: if memory_v2 {
                    "inactive_file"
                } else {
                    "total_inactive_file"
                },
                cpu_v2,
                pids_listed,
            },
            buffer: Vec::new(),
        })
    }

    /// What is used now. For more than one look: [`Cgroup::stats_reader`].
    ///
    /// # Errors
    /// A file cannot be opened or read.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        self.stats_reader()?
            .read()
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
    /// What is used now.
    ///
    /// # Errors
    /// `ENODEV` when the cgroup was removed.
    pub fn read(&mut self) -> std::io::Result<Stats> {
        let memory_usage = number(self.memory_usage.as_ref(), &mut self.buffer)?;
        let inactive = match text(self.memory_stat.as_ref(), &mut self.buffer)? {
            Some(text) => field(text, self.names.inactive),
            None => None,
        };
        let cpu_nanoseconds = if self.names.cpu_v2 {
            text(self.cpu.as_ref(), &mut self.buffer)?
                .and_then(|text| field(text, "usage_usec"))
                .map(|microseconds| microseconds.saturating_mul(1000))
        } else {
            number(self.cpu.as_ref(), &mut self.buffer)?
        };
        let pids = if self.names.pids_listed {
            text(self.pids.as_ref(), &mut self.buffer)?
                .and_then(|text| u64::try_from(text.lines().count()).ok())
        } else {
            number(self.pids.as_ref(), &mut self.buffer)?
        };
        Ok(Stats {
            memory_usage,
            memory_working_set: memory_usage
                .map(|usage| usage.saturating_sub(inactive.unwrap_or(0))),
            cpu_nanoseconds,
            pids,
        })
    }
}

fn text<'a>(file: Option<&OwnedFd>, buffer: &'a mut Vec<u8>) -> std::io::Result<Option<&'a str>> {
    let Some(file) = file else {
        return Ok(None);
    };
    read_at_start(file, buffer)?;
    Ok(std::str::from_utf8(buffer).ok())
}

fn number(file: Option<&OwnedFd>, buffer: &mut Vec<u8>) -> std::io::Result<Option<u64>> {
    Ok(text(file, buffer)?.and_then(|text| text.trim().parse().ok()))
}
