//! From limits to files: which value goes into which file of v1 and v2, in which order. Pure.

use crate::error::CgroupError;
use crate::limits::{Limits, UNIFIED_MAX};

/// The period that v2 takes when none is given, in microseconds (the kernel's default).
const PERIOD_DEFAULT: u64 = 100_000;
/// The kernel's range of shares on v1.
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

/// One file and what is written to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The controller that the file belongs to.
    pub controller: String,
    /// The file's name.
    pub file: String,
    /// What is written.
    pub value: String,
    /// The value only says what holds without the file as well: it may be missing.
    pub optional: bool,
    /// The value depends on a later one: when the kernel calls it invalid, it is tried again after
    /// the rest of its controller.
    pub retry: bool,
}

impl Write {
    fn new(controller: &str, file: &str, value: impl std::fmt::Display) -> Self {
        Self {
            controller: controller.to_owned(),
            file: file.to_owned(),
            value: format!("{value}"),
            optional: false,
            retry: false,
        }
    }

    fn optional(mut self, optional: bool) -> Self {
        self.optional = optional;
        self
    }

    fn retry(mut self) -> Self {
        self.retry = true;
        self
    }
}

fn limit(limit: &'static str, problem: impl Into<String>) -> CgroupError {
    CgroupError::Limit {
        limit,
        problem: problem.into(),
    }
}

/// 0 is unset, as absent is.
fn set<T: Default + PartialEq + Copy>(value: Option<T>) -> Option<T> {
    value.filter(|value| *value != T::default())
}

/// What must hold for both versions.
pub(crate) fn check(limits: &Limits) -> Result<(), CgroupError> {
    for (name, value) in [
        ("memory.limit", limits.memory),
        ("memory.reservation", limits.memory_reservation),
        ("memory.swap", limits.memory_swap),
        ("cpu.quota", limits.cpu_quota),
    ] {
        if value.is_some_and(|value| value < -1) {
            return Err(limit(name, "must be positive, or -1 for unlimited"));
        }
    }
    if let (Some(memory), Some(swap)) = (set(limits.memory), set(limits.memory_swap))
        && swap != -1
        && (memory == -1 || swap < memory)
    {
        return Err(limit(
            "memory.swap",
            format!("memory and swap together ({swap}) must not be less than memory ({memory})"),
        ));
    }
    if limits.memory_swappiness.is_some_and(|value| value > 100) {
        return Err(limit("memory.swappiness", "must be between 0 and 100"));
    }
    if let Some(period) = set(limits.cpu_period)
        && !(1_000..=1_000_000).contains(&period)
    {
        return Err(limit(
            "cpu.period",
            format!("{period} is not between 1000 and 1000000 microseconds"),
        ));
    }
    if let Some(quota) = set(limits.cpu_quota)
        && (0..1_000).contains(&quota)
    {
        return Err(limit(
            "cpu.quota",
            format!("{quota} is less than 1000 microseconds"),
        ));
    }
    if let Some(shares) = set(limits.cpu_shares)
        && !SHARES.contains(&shares)
    {
        return Err(limit(
            "cpu.shares",
            format!("{shares} is not between 2 and 262144"),
        ));
    }
    if limits.cpu_idle.is_some_and(|idle| !(0..=1).contains(&idle)) {
        return Err(limit("cpu.idle", "must be 0 or 1"));
    }
    for (name, list) in [
        ("cpu.cpus", &limits.cpuset_cpus),
        ("cpu.mems", &limits.cpuset_mems),
    ] {
        if !list
            .bytes()
            .all(|b| b.is_ascii_digit() || b"-,".contains(&b))
        {
            return Err(limit(name, format!("{list:?} is not a list such as 0-3,5")));
        }
    }
    for page in &limits.hugepages {
        let size = &page.page_size;
        if size.is_empty() || !size.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(limit(
                "hugepageLimits",
                format!("{size:?} is not a page size such as 2MB"),
            ));
        }
    }
    check_unified(limits)
}

fn check_unified(limits: &Limits) -> Result<(), CgroupError> {
    if limits.unified.len() > UNIFIED_MAX {
        return Err(limit("unified", format!("more than {UNIFIED_MAX} files")));
    }
    for file in limits.unified.keys() {
        let controller = file.split_once('.').map(|(controller, _)| controller);
        if file.contains(['/', '\0']) || controller.is_none_or(str::is_empty) {
            return Err(limit(
                "unified",
                format!("{file:?} is not a file of a cgroup such as memory.high"),
            ));
        }
        if controller == Some("cgroup") {
            return Err(limit(
                "unified",
                format!("{file:?} is not a limit: files of cgroup itself are the runtime's"),
            ));
        }
    }
    Ok(())
}

/// The writes for v1. `memory_now` is the cgroup's present limit in bytes: the kernel keeps memory
/// at or below memory and swap together at every moment, so the order depends on it.
///
/// # Errors
/// A limit is out of range or contradicts another, or v1 does not have it.
pub fn v1(limits: &Limits, memory_now: Option<u64>) -> Result<Vec<Write>, CgroupError> {
    check(limits)?;
    let mut writes = Vec::new();
    memory_v1(limits, memory_now, &mut writes);
    cpu_v1(limits, &mut writes);
    cpuset(limits, &mut writes);
    pids(limits, &mut writes);
    for page in &limits.hugepages {
        let size = &page.page_size;
        let file = format!("hugetlb.{size}.limit_in_bytes");
        writes.push(Write::new("hugetlb", &file, page.limit));
        let file = format!("hugetlb.{size}.rsvd.limit_in_bytes");
        writes.push(Write::new("hugetlb", &file, page.limit).optional(true));
    }
    Ok(writes)
}

fn memory_v1(limits: &Limits, memory_now: Option<u64>, writes: &mut Vec<Write>) {
    let memory = set(limits.memory);
    // Unlimited memory means unlimited swap as well, unless something else was said.
    let together = match (memory, set(limits.memory_swap)) {
        (Some(-1), None) => Some(-1),
        (_, swap) => swap,
    };
    let memory_write = memory.map(|value| Write::new("memory", "memory.limit_in_bytes", value));
    let together_write = together.map(|value| {
        // Without swap accounting nothing is swapped beyond the limit anyway.
        let same = value == -1 || Some(value) == memory;
        Write::new("memory", "memory.memsw.limit_in_bytes", value).optional(same)
    });
    let swap_first = together.is_some_and(|value| {
        u64::try_from(value).map_or(true, |value| memory_now.is_some_and(|now| now < value))
    });
    if swap_first {
        writes.extend(together_write);
        writes.extend(memory_write);
    } else {
        writes.extend(memory_write);
        writes.extend(together_write);
    }
    if let Some(value) = set(limits.memory_reservation) {
        writes.push(Write::new("memory", "memory.soft_limit_in_bytes", value));
    }
    if limits.oom_kill_disable {
        writes.push(Write::new("memory", "memory.oom_control", 1));
    }
    if let Some(value) = limits.memory_swappiness {
        writes.push(Write::new("memory", "memory.swappiness", value));
    }
}

fn cpu_v1(limits: &Limits, writes: &mut Vec<Write>) {
    if let Some(shares) = set(limits.cpu_shares) {
        writes.push(Write::new("cpu", "cpu.shares", shares));
    }
    if let Some(period) = set(limits.cpu_period) {
        writes.push(Write::new("cpu", "cpu.cfs_period_us", period).retry());
    }
    if let Some(burst) = limits.cpu_burst {
        writes.push(
            Write::new("cpu", "cpu.cfs_burst_us", burst)
                .optional(burst == 0)
                .retry(),
        );
    }
    if let Some(quota) = set(limits.cpu_quota) {
        writes.push(Write::new("cpu", "cpu.cfs_quota_us", quota));
    }
    if let Some(idle) = limits.cpu_idle {
        writes.push(Write::new("cpu", "cpu.idle", idle).optional(idle == 0));
    }
}

fn cpuset(limits: &Limits, writes: &mut Vec<Write>) {
    if !limits.cpuset_cpus.is_empty() {
        writes.push(Write::new("cpuset", "cpuset.cpus", &limits.cpuset_cpus));
    }
    if !limits.cpuset_mems.is_empty() {
        writes.push(Write::new("cpuset", "cpuset.mems", &limits.cpuset_mems));
    }
}

fn pids(limits: &Limits, writes: &mut Vec<Write>) {
    if let Some(count) = limits.pids {
        let value = match count {
            0 => "1".to_owned(),
            count if count < 0 => "max".to_owned(),
            count => count.to_string(),
        };
        writes.push(Write::new("pids", "pids.max", value));
    }
}

/// The writes for v2.
///
/// # Errors
/// A limit is out of range or contradicts another.
pub fn v2(limits: &Limits) -> Result<Vec<Write>, CgroupError> {
    check(limits)?;
    let mut writes = Vec::new();
    memory_v2(limits, &mut writes)?;
    cpu_v2(limits, &mut writes);
    cpuset(limits, &mut writes);
    pids(limits, &mut writes);
    for page in &limits.hugepages {
        let size = &page.page_size;
        let file = format!("hugetlb.{size}.max");
        writes.push(Write::new("hugetlb", &file, page.limit));
        let file = format!("hugetlb.{size}.rsvd.max");
        writes.push(Write::new("hugetlb", &file, page.limit).optional(true));
    }
    for (file, value) in &limits.unified {
        let controller = file
            .split_once('.')
            .map_or("", |(controller, _)| controller);
        writes.push(Write::new(controller, file, value));
    }
    Ok(writes)
}

/// -1 is `max`.
fn bytes(value: i64) -> String {
    if value == -1 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

fn memory_v2(limits: &Limits, writes: &mut Vec<Write>) -> Result<(), CgroupError> {
    let memory = set(limits.memory);
    // The specification counts memory and swap together, v2 counts swap alone.
    let swap = match (memory, set(limits.memory_swap)) {
        (Some(-1), None) | (_, Some(-1)) => Some(-1),
        (_, None) => None,
        (Some(memory), Some(together)) => Some(together - memory),
        (None, Some(_)) => {
            return Err(limit(
                "memory.swap",
                "needs memory.limit: cgroup v2 limits swap alone",
            ));
        }
    };
    if let Some(swap) = swap {
        // The file is missing when the kernel has no swap: then none is used.
        let optional = swap == -1 || swap == 0;
        writes.push(Write::new("memory", "memory.swap.max", bytes(swap)).optional(optional));
    }
    if let Some(memory) = memory {
        writes.push(Write::new("memory", "memory.max", bytes(memory)));
    }
    if let Some(low) = set(limits.memory_reservation) {
        writes.push(Write::new("memory", "memory.low", bytes(low)));
    }
    Ok(())
}

fn cpu_v2(limits: &Limits, writes: &mut Vec<Write>) {
    if let Some(idle) = limits.cpu_idle {
        writes.push(Write::new("cpu", "cpu.idle", idle).optional(idle == 0));
    }
    // An idle group has no weight: the kernel refuses one.
    if let Some(shares) = set(limits.cpu_shares)
        && limits.cpu_idle != Some(1)
    {
        writes.push(Write::new("cpu", "cpu.weight", weight(shares)));
    }
    if let Some(burst) = limits.cpu_burst {
        writes.push(
            Write::new("cpu", "cpu.max.burst", burst)
                .optional(burst == 0)
                .retry(),
        );
    }
    let (quota, period) = (set(limits.cpu_quota), set(limits.cpu_period));
    if quota.is_some() || period.is_some() {
        let quota = bytes(quota.unwrap_or(-1));
        let period = period.unwrap_or(PERIOD_DEFAULT);
        writes.push(Write::new("cpu", "cpu.max", format!("{quota} {period}")));
    }
}

/// v2's weight for v1's shares: the quadratic curve through (2, 1), (1024, 100), (262144, 10000)
/// that runc uses since 1.3 (<https://github.com/opencontainers/cgroups/pull/20>).
fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        shares => {
            // Below 2^18: exact in 32 bits, hence in a double.
            let log = f64::from(u32::try_from(shares).unwrap_or(u32::MAX)).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            let exact = 10f64.powf(exponent).ceil();
            // Between 1 and 10000: the search finds the integer without a cast.
            let (mut low, mut high) = (1, 10_000);
            while low < high {
                let middle = u32::midpoint(low, high);
                if f64::from(middle) < exact {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            u64::from(low)
        }
    }
}

/// The controllers that the writes need.
pub(crate) fn controllers(writes: &[Write]) -> Vec<&str> {
    let mut needed: Vec<&str> = Vec::new();
    for write in writes.iter().filter(|write| !write.optional) {
        if !needed.contains(&write.controller.as_str()) {
            needed.push(&write.controller);
        }
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::HugepageLimit;

    fn lines(writes: &[Write]) -> Vec<String> {
        writes
            .iter()
            .map(|w| {
                format!(
                    "{}={}{}",
                    w.file,
                    w.value,
                    if w.optional { " ?" } else { "" }
                )
            })
            .collect()
    }

    fn full() -> Limits {
        Limits {
            memory: Some(100 << 20),
            memory_swap: Some(150 << 20),
            memory_reservation: Some(50 << 20),
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            cpuset_cpus: "0-1".to_owned(),
            cpuset_mems: "0".to_owned(),
            pids: Some(64),
            hugepages: vec![HugepageLimit {
                page_size: "2MB".to_owned(),
                limit: 4 << 20,
            }],
            ..Limits::default()
        }
    }

    #[test]
    fn nothing_asked_is_nothing_written() {
        let unset = Limits {
            memory: Some(0),
            cpu_shares: Some(0),
            cpu_quota: Some(0),
            ..Limits::default()
        };
        assert_eq!(v1(&unset, None).unwrap(), []);
        assert_eq!(v2(&unset).unwrap(), []);
    }

    #[test]
    fn all_limits_of_v1() {
        assert_eq!(
            lines(&v1(&full(), None).unwrap()),
            [
                "memory.limit_in_bytes=104857600",
                "memory.memsw.limit_in_bytes=157286400",
                "memory.soft_limit_in_bytes=52428800",
                "cpu.shares=1024",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "cpuset.cpus=0-1",
                "cpuset.mems=0",
                "pids.max=64",
                "hugetlb.2MB.limit_in_bytes=4194304",
                "hugetlb.2MB.rsvd.limit_in_bytes=4194304 ?",
            ]
        );
    }

    #[test]
    fn all_limits_of_v2() {
        let mut limits = full();
        limits
            .unified
            .insert("memory.high".to_owned(), "1".to_owned());
        assert_eq!(
            lines(&v2(&limits).unwrap()),
            [
                "memory.swap.max=52428800",
                "memory.max=104857600",
                "memory.low=52428800",
                "cpu.weight=100",
                "cpu.max=50000 100000",
                "cpuset.cpus=0-1",
                "cpuset.mems=0",
                "pids.max=64",
                "hugetlb.2MB.max=4194304",
                "hugetlb.2MB.rsvd.max=4194304 ?",
                "memory.high=1",
            ]
        );
    }

    #[test]
    fn swap_is_written_first_when_both_grow() {
        let limits = full();
        let grow = v1(&limits, Some(10 << 20)).unwrap();
        assert_eq!(grow[0].file, "memory.memsw.limit_in_bytes");
        let shrink = v1(&limits, Some(500 << 20)).unwrap();
        assert_eq!(shrink[0].file, "memory.limit_in_bytes");
        let unlimited = Limits {
            memory: Some(-1),
            ..Limits::default()
        };
        assert_eq!(
            lines(&v1(&unlimited, Some(1)).unwrap()),
            [
                "memory.memsw.limit_in_bytes=-1 ?",
                "memory.limit_in_bytes=-1"
            ]
        );
        assert_eq!(
            lines(&v2(&unlimited).unwrap()),
            ["memory.swap.max=max ?", "memory.max=max"]
        );
    }

    #[test]
    fn no_swap_is_said_as_zero_on_v2() {
        let limits = Limits {
            memory: Some(1 << 20),
            memory_swap: Some(1 << 20),
            pids: Some(-1),
            cpu_quota: Some(-1),
            ..Limits::default()
        };
        assert_eq!(
            lines(&v2(&limits).unwrap()),
            [
                "memory.swap.max=0 ?",
                "memory.max=1048576",
                "cpu.max=max 100000",
                "pids.max=max"
            ]
        );
    }

    #[test]
    fn weights_are_runcs() {
        // From the curve of opencontainers/cgroups.
        for (shares, expected) in [
            (2, 1),
            (3, 2),
            (100, 17),
            (1024, 100),
            (2048, 174),
            (262_144, 10_000),
        ] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    type Change = fn(&mut Limits);

    #[test]
    fn limits_out_of_range_are_refused_by_name() {
        let cases: [(&str, Change); 9] = [
            ("memory.limit", |l| l.memory = Some(-2)),
            ("memory.swap", |l| {
                (l.memory, l.memory_swap) = (Some(9), Some(8));
            }),
            ("memory.swappiness", |l| l.memory_swappiness = Some(101)),
            ("cpu.period", |l| l.cpu_period = Some(10)),
            ("cpu.quota", |l| l.cpu_quota = Some(999)),
            ("cpu.shares", |l| l.cpu_shares = Some(1)),
            ("cpu.cpus", |l| l.cpuset_cpus = "all".to_owned()),
            ("hugepageLimits", |l| {
                l.hugepages = vec![HugepageLimit {
                    page_size: "../x".to_owned(),
                    limit: 1,
                }];
            }),
            ("unified", |l| {
                l.unified.insert("../memory.max".to_owned(), "1".to_owned());
            }),
        ];
        for (name, change) in cases {
            let mut limits = Limits::default();
            change(&mut limits);
            let message = check(&limits).unwrap_err().to_string();
            assert!(message.starts_with(name), "{message}");
        }
        let swap_alone = Limits {
            memory_swap: Some(5),
            ..Limits::default()
        };
        v2(&swap_alone).unwrap_err();
    }
}
