//! Limits: from CRI's numbers, where 0 is "not set", to the runtime-spec's.

use wharf_runtime::spec::{Cpu, Hugepage, Memory, Resources};

use crate::error::RequestError;
use crate::oci::Host;
use crate::spec::ResourceSpec;

/// The runtime-spec's resources, without devices.
pub(crate) fn resources(asked: &ResourceSpec, host: &Host) -> Result<Resources, RequestError> {
    Ok(Resources {
        memory: memory(asked, host)?,
        cpu: cpu(asked)?,
        hugepage_limits: hugepages(asked, host),
        unified: asked.unified.clone(),
        ..Resources::default()
    })
}

/// `oom_score_adj` of the container's processes.
pub(crate) fn oom_score_adj(asked: &ResourceSpec) -> Option<i32> {
    i32::try_from(asked.oom_score_adj.clamp(-1000, 1000)).ok()
}

fn set(value: i64) -> Option<i64> {
    (value != 0).then_some(value)
}

fn memory(asked: &ResourceSpec, host: &Host) -> Result<Option<Memory>, RequestError> {
    for (field, value) in [
        ("linux.resources.memory_limit_in_bytes", asked.memory_limit),
        (
            "linux.resources.memory_swap_limit_in_bytes",
            asked.memory_swap_limit,
        ),
    ] {
        if value < -1 {
            let reason = format!("{value} is below -1 (unlimited)");
            return Err(RequestError::Invalid { field, reason });
        }
    }
    let limit = set(asked.memory_limit);
    let swap = match (set(asked.memory_swap_limit), host.swap_limits) {
        (Some(swap), true) => Some(swap),
        // Without a word about swap there is none: memory and swap together are what memory is.
        (None, true) => limit,
        (_, false) => None,
    };
    if let (Some(memory), Some(swap)) = (limit, swap)
        && swap != -1
        && (memory == -1 || swap < memory)
    {
        let field = "linux.resources.memory_swap_limit_in_bytes";
        let reason =
            format!("{swap} is less than the memory limit, {memory}: it counts both together");
        return Err(RequestError::Invalid { field, reason });
    }
    Ok((limit.is_some() || swap.is_some()).then(|| Memory {
        limit,
        swap,
        ..Memory::default()
    }))
}

fn cpu(asked: &ResourceSpec) -> Result<Option<Cpu>, RequestError> {
    let positive = |field: &'static str, value: i64| match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_negative) => {
            let reason = format!("{value} is below 0");
            Err(RequestError::Invalid { field, reason })
        }
    };
    let cpu = Cpu {
        shares: positive("linux.resources.cpu_shares", asked.cpu_shares)?,
        period: positive("linux.resources.cpu_period", asked.cpu_period)?,
        quota: set(asked.cpu_quota),
        cpus: asked.cpuset_cpus.clone(),
        mems: asked.cpuset_mems.clone(),
        ..Cpu::default()
    };
    Ok((cpu != Cpu::default()).then_some(cpu))
}

/// kubelet names every page size with a limit of 0; where the kernel cannot limit huge pages, that
/// asks for nothing that could be missed.
fn hugepages(asked: &ResourceSpec, host: &Host) -> Vec<Hugepage> {
    let wanted = asked
        .hugepage_limits
        .iter()
        .filter(|h| host.hugetlb || h.limit > 0);
    wanted
        .map(|h| Hugepage {
            page_size: h.page_size.clone(),
            limit: h.limit,
        })
        .collect()
}
