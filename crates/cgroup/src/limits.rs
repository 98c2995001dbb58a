//! What a cgroup's processes may use, in the runtime specification's units.

use std::collections::BTreeMap;

/// The most device rules of one cgroup: each costs about six instructions of a device program.
pub const DEVICE_RULES_MAX: usize = 512;
/// The most files of cgroup v2 that are written by name.
pub const UNIFIED_MAX: usize = 256;

/// Limits; what is `None`, empty or (for numbers) 0 is left as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory; -1 is unlimited.
    pub memory: Option<i64>,
    /// Bytes of memory that are protected (v2) or aimed at (v1); -1 is unlimited.
    pub memory_reservation: Option<i64>,
    /// Bytes of memory and swap together; -1 is unlimited.
    pub memory_swap: Option<i64>,
    /// 0 to 100; v1 only, without effect on v2.
    pub memory_swappiness: Option<u64>,
    /// Processes wait for memory instead of being killed; v1 only, without effect on v2.
    pub oom_kill_disable: bool,
    /// An update below what is in use is refused even if the kernel could reclaim it.
    pub check_before_update: bool,
    /// Relative weight, 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// Microseconds of processor time per period; -1 is unlimited.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// Microseconds that may be saved up; 0 takes it away.
    pub cpu_burst: Option<u64>,
    /// 1: run only when nobody else wants to; 0: not.
    pub cpu_idle: Option<i64>,
    /// Processors: `0-3,5`.
    pub cpuset_cpus: String,
    /// NUMA nodes.
    pub cpuset_mems: String,
    /// Number of tasks; negative is unlimited, 0 counts as 1 (the container's own).
    pub pids: Option<i64>,
    /// Huge pages.
    pub hugepages: Vec<HugepageLimit>,
    /// Files of cgroup v2 and what is written to them, after everything else.
    pub unified: BTreeMap<String, String>,
    /// Access to devices, in order, on top of "nothing is allowed"; `None` leaves it as it is.
    pub devices: Option<Vec<DeviceRule>>,
}

/// A limit of huge pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugepageLimit {
    /// As in the kernel's file names: `2MB`, `1GB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// Allows or denies access to devices; a later rule wins over an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRule {
    /// Allowed or denied.
    pub allow: bool,
    /// Which kind.
    pub kind: DeviceKind,
    /// Major number; all when absent.
    pub major: Option<u32>,
    /// Minor number; all when absent.
    pub minor: Option<u32>,
    /// To do what.
    pub access: DeviceAccess,
}

/// Kinds of device nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeviceKind {
    /// Both.
    All,
    /// Character devices.
    Char,
    /// Block devices.
    Block,
}

/// What is done with a device: a set of read, write, make a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceAccess(u8);

impl DeviceAccess {
    /// `mknod(2)`; the kernel's `BPF_DEVCG_ACC_MKNOD`.
    pub const MAKE: Self = Self(1);
    /// Open for reading.
    pub const READ: Self = Self(2);
    /// Open for writing.
    pub const WRITE: Self = Self(4);
    /// Everything.
    pub const ALL: Self = Self(7);

    /// From letters: `r`, `w`, `m`; everything when empty, `None` for another letter.
    pub fn parse(letters: &str) -> Option<Self> {
        if letters.is_empty() {
            return Some(Self::ALL);
        }
        letters.chars().try_fold(Self(0), |set, letter| {
            let one = match letter {
                'r' => Self::READ,
                'w' => Self::WRITE,
                'm' => Self::MAKE,
                _ => return None,
            };
            Some(Self(set.0 | one.0))
        })
    }

    /// The kernel's bits.
    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    /// From the kernel's bits; others are dropped.
    pub(crate) const fn from_bits(bits: u8) -> Self {
        Self(bits & 7)
    }

    /// The letters, in the order of the kernel's lists.
    pub(crate) fn letters(self) -> String {
        [(Self::READ, 'r'), (Self::WRITE, 'w'), (Self::MAKE, 'm')]
            .iter()
            .filter(|(one, _)| self.0 & one.0 != 0)
            .map(|(_, letter)| *letter)
            .collect()
    }
}
