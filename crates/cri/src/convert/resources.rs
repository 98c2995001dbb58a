//! Limits, there and back.

use std::collections::HashMap;

use wharf_api::v1;
use wharf_engine::spec::{HugepageLimit, ResourceSpec};

use super::field::{Checked, limit, plain, wrong};

/// Microseconds of `cpu.cfs_period_us`: the kernel's own bounds (sched_cfs_bandwidth).
const PERIOD: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;
/// The smallest quota that the kernel takes, in microseconds.
const QUOTA_MIN: i64 = 1_000;
/// Bounds of `cpu.shares`.
const SHARES: std::ops::RangeInclusive<i64> = 2..=262_144;
/// Bounds of `oom_score_adj` (proc(5)).
const OOM_SCORE: std::ops::RangeInclusive<i64> = -1000..=1000;

/// The limits of a container; what the kernel would refuse is refused here, by field.
pub(crate) fn checked(r: &v1::LinuxContainerResources) -> Checked<ResourceSpec> {
    limit("resources.cpu_period", r.cpu_period, PERIOD)?;
    if r.cpu_quota != -1 {
        limit("resources.cpu_quota", r.cpu_quota, QUOTA_MIN..=i64::MAX)?;
    }
    limit("resources.cpu_shares", r.cpu_shares, SHARES)?;
    limit(
        "resources.memory_limit_in_bytes",
        r.memory_limit_in_bytes,
        -1..=i64::MAX,
    )?;
    let swap = r.memory_swap_limit_in_bytes;
    limit("resources.memory_swap_limit_in_bytes", swap, -1..=i64::MAX)?;
    if swap > 0 && swap < r.memory_limit_in_bytes {
        let reason = "counts memory and swap together: it must not be below memory_limit_in_bytes";
        return Err(wrong("resources.memory_swap_limit_in_bytes", reason));
    }
    limit("resources.oom_score_adj", r.oom_score_adj, OOM_SCORE)?;
    list("resources.cpuset_cpus", &r.cpuset_cpus)?;
    list("resources.cpuset_mems", &r.cpuset_mems)?;
    for page in &r.hugepage_limits {
        plain("resources.hugepage_limits", &page.page_size)?;
    }
    for (file, value) in &r.unified {
        if file.is_empty() || file.contains('/') || !file.contains('.') || value.contains('\0') {
            let reason = format!("{file:?} is not a file of a cgroup, such as memory.high");
            return Err(wrong("resources.unified", reason));
        }
        plain("resources.unified", file)?;
    }
    Ok(plainly(r))
}

/// The limits of a whole pod: told, not set by us, so nothing is refused.
pub(crate) fn plainly(r: &v1::LinuxContainerResources) -> ResourceSpec {
    let page = |p: &v1::HugepageLimit| HugepageLimit {
        page_size: p.page_size.clone(),
        limit: p.limit,
    };
    ResourceSpec {
        cpu_period: r.cpu_period,
        cpu_quota: r.cpu_quota,
        cpu_shares: r.cpu_shares,
        memory_limit: r.memory_limit_in_bytes,
        memory_swap_limit: r.memory_swap_limit_in_bytes,
        oom_score_adj: r.oom_score_adj,
        cpuset_cpus: r.cpuset_cpus.clone(),
        cpuset_mems: r.cpuset_mems.clone(),
        hugepage_limits: r.hugepage_limits.iter().map(page).collect(),
        unified: r.unified.clone().into_iter().collect(),
    }
}

/// Limits, back.
pub(crate) fn back(spec: &ResourceSpec) -> v1::LinuxContainerResources {
    let page = |p: &HugepageLimit| v1::HugepageLimit {
        page_size: p.page_size.clone(),
        limit: p.limit,
    };
    v1::LinuxContainerResources {
        cpu_period: spec.cpu_period,
        cpu_quota: spec.cpu_quota,
        cpu_shares: spec.cpu_shares,
        memory_limit_in_bytes: spec.memory_limit,
        memory_swap_limit_in_bytes: spec.memory_swap_limit,
        oom_score_adj: spec.oom_score_adj,
        cpuset_cpus: spec.cpuset_cpus.clone(),
        cpuset_mems: spec.cpuset_mems.clone(),
        hugepage_limits: spec.hugepage_limits.iter().map(page).collect(),
        unified: spec.unified.clone().into_iter().collect::<HashMap<_, _>>(),
    }
}

/// `0-3,7`, as cpuset(7) has it.
fn list(field: &'static str, text: &str) -> Checked<()> {
    let number = |t: &str| !t.is_empty() && t.len() <= 9 && t.bytes().all(|b| b.is_ascii_digit());
    let part = |p: &str| match p.split_once('-') {
        Some((from, to)) => number(from) && number(to),
        None => number(p),
    };
    if text.is_empty() || text.split(',').all(part) {
        return Ok(());
    }
    Err(wrong(
        field,
        format!("{text:?} is not a list such as 0-3,7"),
    ))
}
