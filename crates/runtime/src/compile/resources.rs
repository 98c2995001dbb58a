//! Limits of the container's cgroup.

use wharf_cgroup::{DeviceAccess, DeviceKind, DeviceRule, HugepageLimit, Limits};

use super::CompileError;
use crate::spec::{Cpu, DeviceCgroup, Resources};

/// The cgroup that a container wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupRequest {
    /// `linux.cgroupsPath`; empty leaves the choice to the caller.
    pub path: String,
    /// Its limits.
    pub limits: Limits,
}

/// Devices that every container may use, whatever its rules say: kind, major, minor, access (`*` is
/// all). Nodes of any kind may be made: without another rule they cannot be opened.
const ALWAYS: [(DeviceKind, Option<u32>, Option<u32>, DeviceAccess); 11] = [
    (DeviceKind::Char, None, None, DeviceAccess::MAKE),
    (DeviceKind::Block, None, None, DeviceAccess::MAKE),
    (DeviceKind::Char, Some(1), Some(3), DeviceAccess::ALL), // null
    (DeviceKind::Char, Some(1), Some(5), DeviceAccess::ALL), // zero
    (DeviceKind::Char, Some(1), Some(7), DeviceAccess::ALL), // full
    (DeviceKind::Char, Some(1), Some(8), DeviceAccess::ALL), // random
    (DeviceKind::Char, Some(1), Some(9), DeviceAccess::ALL), // urandom
    (DeviceKind::Char, Some(5), Some(0), DeviceAccess::ALL), // tty
    (DeviceKind::Char, Some(5), Some(2), DeviceAccess::ALL), // ptmx
    (DeviceKind::Char, Some(136), None, DeviceAccess::ALL),  // pts
    (DeviceKind::Char, Some(10), Some(200), DeviceAccess::ALL), // tun, as runc
];

/// Translates limits. Devices are always limited: without rules a container has the default ones.
///
/// # Errors
/// A value is not allowed, or not supported yet.
pub fn limits(resources: Option<&Resources>) -> Result<Limits, CompileError> {
    let mut limits = Limits::default();
    let mut rules = Vec::new();
    if let Some(resources) = resources {
        refuse_unsupported(resources)?;
        if let Some(memory) = &resources.memory {
            limits.memory = memory.limit;
            limits.memory_reservation = memory.reservation;
            limits.memory_swap = memory.swap;
            // -1 was the kernel's "as the parent has it" in old documents.
            limits.memory_swappiness = memory.swappiness.filter(|value| *value != u64::MAX);
            limits.oom_kill_disable = memory.disable_oom_killer == Some(true);
            limits.check_before_update = memory.check_before_update == Some(true);
        }
        if let Some(cpu) = &resources.cpu {
            processors(cpu, &mut limits)?;
        }
        limits.pids = resources.pids.as_ref().and_then(|pids| pids.limit);
        limits.hugepages = resources
            .hugepage_limits
            .iter()
            .map(|page| HugepageLimit {
                page_size: page.page_size.clone(),
                limit: page.limit,
            })
            .collect();
        limits.unified.clone_from(&resources.unified);
        for rule in &resources.devices {
            rules.push(device(rule)?);
        }
    }
    rules.extend(ALWAYS.map(|(kind, major, minor, access)| DeviceRule {
        allow: true,
        kind,
        major,
        minor,
        access,
    }));
    limits.devices = Some(rules);
    Ok(limits)
}

fn processors(cpu: &Cpu, limits: &mut Limits) -> Result<(), CompileError> {
    let realtime = cpu.realtime_runtime.is_some_and(|value| value != 0)
        || cpu.realtime_period.is_some_and(|value| value != 0);
    if realtime {
        return Err(CompileError::Unsupported(
            "linux.resources.cpu: real-time limits".to_owned(),
        ));
    }
    limits.cpu_shares = cpu.shares;
    limits.cpu_quota = cpu.quota;
    limits.cpu_period = cpu.period;
    limits.cpu_burst = cpu.burst;
    limits.cpu_idle = cpu.idle;
    limits.cpuset_cpus.clone_from(&cpu.cpus);
    limits.cpuset_mems.clone_from(&cpu.mems);
    Ok(())
}

fn refuse_unsupported(resources: &Resources) -> Result<(), CompileError> {
    let asked = |value: &Option<serde_json::Value>| {
        let fields = value.as_ref().and_then(serde_json::Value::as_object);
        fields.is_some_and(|fields| !fields.is_empty())
    };
    for (field, value) in [
        ("blockIO", &resources.block_io),
        ("network", &resources.network),
        ("rdma", &resources.rdma),
    ] {
        if asked(value) {
            return Err(CompileError::Unsupported(format!(
                "linux.resources.{field}"
            )));
        }
    }
    Ok(())
}

fn device(rule: &DeviceCgroup) -> Result<DeviceRule, CompileError> {
    let invalid = |problem: String| CompileError::invalid("linux.resources.devices", problem);
    let kind = match rule.kind.as_str() {
        "" | "a" => DeviceKind::All,
        "c" | "u" => DeviceKind::Char,
        "b" => DeviceKind::Block,
        other => return Err(invalid(format!("{other:?} is not one of a, b, c"))),
    };
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value)
            .map(Some)
            .map_err(|_range| invalid(format!("{value} is not a device number"))),
    };
    Ok(DeviceRule {
        allow: rule.allow,
        kind,
        major: number(rule.major)?,
        minor: number(rule.minor)?,
        access: DeviceAccess::parse(&rule.access)
            .ok_or_else(|| invalid(format!("{:?} is not made of r, w, m", rule.access)))?,
    })
}
