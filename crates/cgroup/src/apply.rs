//! Writing limits into the groups of a cgroup: all of them, or none.

use std::collections::BTreeSet;

use rustix::io::Errno;

use crate::devices::DeviceList;
use crate::error::CgroupError;
use crate::files::{self, Write};
use crate::group::{Group, Version, io_error};
use crate::limits::Limits;

/// What v2 would be given for the limits, on a machine where `legacy` controllers are in v1.
pub(crate) fn plan_v2(
    limits: &Limits,
    legacy: impl Fn(&str) -> bool,
) -> Result<Vec<Write>, CgroupError> {
    if !legacy("memory") {
        return files::v2(limits);
    }
    // v2's conversion of swap is not asked for: memory is v1's.
    files::v2(&Limits {
        memory: None,
        memory_swap: None,
        ..limits.clone()
    })
}

/// The writes that a cgroup of these groups needs, with those of v2 from [`plan_v2`].
///
/// A controller is where it was found: in a v1 hierarchy, else in v2.
pub(crate) fn plan(
    groups: &[Group],
    limits: &Limits,
    on_v2: Vec<Write>,
) -> Result<Vec<Write>, CgroupError> {
    let version = |controller: &str| {
        groups
            .iter()
            .find(|group| group.has(controller))
            .map(|group| group.version)
    };
    if !groups.iter().any(|group| group.version == Version::V1) {
        return available(on_v2, version);
    }
    let memory_now = groups
        .iter()
        .find(|group| group.has("memory"))
        .and_then(|group| group.number("memory.limit_in_bytes").ok());
    let mut writes = files::v1(limits, memory_now)?;
    writes.retain(|write| version(&write.controller) != Some(Version::V2));
    writes.extend(only_v2(on_v2, limits, version)?);
    available(writes, version)
}

fn only_v2(
    mut writes: Vec<Write>,
    limits: &Limits,
    version: impl Fn(&str) -> Option<Version>,
) -> Result<Vec<Write>, CgroupError> {
    for write in &writes {
        if limits.unified.contains_key(&write.file)
            && version(&write.controller) != Some(Version::V2)
        {
            return Err(CgroupError::NoController {
                controller: format!("cgroup v2 {}", write.controller),
                file: write.file.clone(),
                value: write.value.clone(),
            });
        }
    }
    writes.retain(|write| version(&write.controller) == Some(Version::V2));
    Ok(writes)
}

fn available(
    mut writes: Vec<Write>,
    version: impl Fn(&str) -> Option<Version>,
) -> Result<Vec<Write>, CgroupError> {
    writes.retain(|write| !write.optional || version(&write.controller).is_some());
    if let Some(write) = writes
        .iter()
        .find(|write| version(&write.controller).is_none())
    {
        return Err(CgroupError::NoController {
            controller: write.controller.clone(),
            file: write.file.clone(),
            value: write.value.clone(),
        });
    }
    Ok(writes)
}

/// Writes limits that were planned into new groups, which are removed when one fails.
pub(crate) fn write_new(groups: &[Group], writes: &[Write]) -> Result<(), CgroupError> {
    write_each(groups, writes, |_, _| {})
}

/// Writes limits that were planned, then the devices; when one fails, those before it are taken back.
pub(crate) fn write_all(
    groups: &[Group],
    writes: &[Write],
    list: Option<&DeviceList>,
) -> Result<(), CgroupError> {
    let mut before = Vec::new();
    let result = write_each(groups, writes, |group, file| {
        // What cannot be read could not be put back either.
        if let Ok(text) = group.read(file) {
            before.push((group, file, previous(file, &text)));
        }
    });
    // Devices take themselves back.
    let result = result.and_then(|()| list.map_or(Ok(()), |list| devices(groups, list)));
    if result.is_err() {
        // The first error is the one that is told; a value that cannot be put back is no worse
        // than it would be without trying.
        for (group, file, old) in before.iter().rev() {
            let _best_effort = group.write(file, old);
        }
    }
    result
}

fn write_each<'a>(
    groups: &'a [Group],
    writes: &'a [Write],
    mut remember: impl FnMut(&'a Group, &'a str),
) -> Result<(), CgroupError> {
    let mut again = Vec::new();
    for write in writes {
        let Some(group) = groups.iter().find(|group| group.has(&write.controller)) else {
            continue;
        };
        remember(group, &write.file);
        match group.write(&write.file, &write.value) {
            Ok(()) => {}
            Err(Errno::INVAL) if write.retry => again.push((group, write)),
            Err(Errno::NOENT) if write.optional => {}
            Err(error) => return Err(refused(group, write, error)),
        }
    }
    for (group, write) in again {
        group
            .write(&write.file, &write.value)
            .map_err(|error| refused(group, write, error))?;
    }
    Ok(())
}

/// What has to be written to have again what was read.
fn previous(file: &str, text: &str) -> String {
    let text = text.trim();
    if file == "memory.oom_control" {
        let first = text.lines().next().unwrap_or_default();
        return first.rsplit(' ').next().unwrap_or_default().to_owned();
    }
    text.to_owned()
}

fn refused(group: &Group, write: &Write, error: Errno) -> CgroupError {
    let path = group.path.join(&write.file);
    if let (Errno::BUSY, "memory.limit_in_bytes", Ok(usage), Ok(limit)) = (
        error,
        write.file.as_str(),
        group.number("memory.usage_in_bytes"),
        write.value.parse(),
    ) {
        return CgroupError::BelowUsage {
            limit,
            usage,
            file: path,
        };
    }
    if error == Errno::NOENT {
        return CgroupError::NoController {
            controller: write.controller.clone(),
            file: path.display().to_string(),
            value: write.value.clone(),
        };
    }
    CgroupError::Write {
        controller: write.controller.clone(),
        file: path,
        value: write.value.clone(),
        source: error.into(),
    }
}

/// Refuses a memory limit that would kill: v2 takes any value and calls the OOM killer.
pub(crate) fn check_usage(groups: &[Group], limits: &Limits) -> Result<(), CgroupError> {
    let Some(limit) = limits.memory.filter(|limit| *limit > 0) else {
        return Ok(());
    };
    let Some(group) = groups.iter().find(|group| group.has("memory")) else {
        return Ok(());
    };
    let (usage, file, limit_file) = match group.version {
        Version::V1 => ("memory.usage_in_bytes", "total_", "memory.limit_in_bytes"),
        Version::V2 => ("memory.current", "", "memory.max"),
    };
    // A cgroup whose usage cannot be read has none.
    let Ok(mut usage) = group.number(usage) else {
        return Ok(());
    };
    if !limits.check_before_update {
        // Cached files can be dropped; what is left cannot.
        let stat = group.read("memory.stat").unwrap_or_default();
        for name in ["inactive_file", "active_file"] {
            usage = usage.saturating_sub(field(&stat, &format!("{file}{name}")).unwrap_or(0));
        }
    }
    if u64::try_from(limit).is_ok_and(|limit| usage > limit) {
        return Err(CgroupError::BelowUsage {
            limit,
            usage,
            file: group.path.join(limit_file),
        });
    }
    Ok(())
}

/// The number after `name` in a file of lines `name number`.
pub(crate) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| value.trim().parse().ok())?
    })
}

/// Gives access to devices, and takes all other access.
pub(crate) fn devices(groups: &[Group], list: &DeviceList) -> Result<(), CgroupError> {
    if let Some(group) = groups.iter().find(|group| group.has("devices")) {
        return devices_v1(group, list);
    }
    match groups.iter().find(|group| group.version == Version::V2) {
        Some(group) => devices_v2(group, list),
        None if list.allows_everything() => Ok(()),
        None => Err(CgroupError::NoController {
            controller: "devices".to_owned(),
            file: "devices.allow".to_owned(),
            value: "a list of devices".to_owned(),
        }),
    }
}

fn devices_v1(group: &Group, list: &DeviceList) -> Result<(), CgroupError> {
    let now = group
        .read("devices.list")
        .map_err(|error| io_error("read", &group.path.join("devices.list"), error))?;
    if list.allows_everything() && now.trim() == "a *:* rwm" {
        return Ok(());
    }
    for (file, value) in list.v1() {
        let Err(error) = group.write(file, &value) else {
            continue;
        };
        restore_v1(group, &now);
        return Err(CgroupError::Write {
            controller: "devices".to_owned(),
            file: group.path.join(file),
            value,
            source: error.into(),
        });
    }
    Ok(())
}

/// As good as it goes: the error before it is the one that is told.
fn restore_v1(group: &Group, list: &str) {
    if list.trim() == "a *:* rwm" {
        let _best_effort = group.write("devices.allow", "a");
        return;
    }
    let _best_effort = group.write("devices.deny", "a");
    for line in list.lines() {
        let _best_effort = group.write("devices.allow", line);
    }
}

fn devices_v2(group: &Group, list: &DeviceList) -> Result<(), CgroupError> {
    let failed = |source: Errno| CgroupError::Write {
        controller: "devices".to_owned(),
        file: group.path.clone(),
        value: "a device program".to_owned(),
        source: source.into(),
    };
    let directory = group
        .file(
            ".",
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY,
        )
        .map_err(failed)?;
    use std::os::fd::AsFd as _;
    let directory = directory.as_fd();
    let before: BTreeSet<u32> = wharf_sys::bpf::device_programs(directory)
        .map_err(failed)?
        .into_iter()
        .collect();
    if !list.allows_everything() {
        let program = wharf_sys::bpf::load_device_program(&list.v2()).map_err(failed)?;
        wharf_sys::bpf::attach_device_program(directory, program.as_fd()).map_err(failed)?;
    }
    // All attached programs must consent, so the old ones may go after the new one came.
    for id in before {
        wharf_sys::bpf::detach_device_program(directory, id).map_err(failed)?;
    }
    Ok(())
}
