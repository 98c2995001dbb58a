//! What this machine has, found out once.

use std::fs;

use wharf_cgroup::Cgroups;
use wharf_runtime::spec::capability;

use crate::oci::Host;

/// Looks.
pub(crate) fn probe(cgroups: &Cgroups) -> Host {
    let uname = rustix::system::uname();
    Host {
        hostname: uname.nodename().to_string_lossy().into_owned(),
        capabilities: capabilities(),
        swap_limits: swap_limits(cgroups),
        hugetlb: cgroups.has("hugetlb"),
        apparmor: fs::read_to_string("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|text| text.trim() == "Y"),
        // Its file system is mounted only where it is enabled.
        selinux: fs::exists("/sys/fs/selinux/enforce").unwrap_or(false),
    }
}

/// The running boot.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// The kernel's version: major, minor.
pub(crate) fn kernel() -> (u32, u32) {
    let uname = rustix::system::uname();
    let text = uname.release().to_string_lossy();
    let mut numbers = text.split(['.', '-', '+']).map_while(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Capabilities that we can give: those of our bounding set.
fn capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let mask = bounding.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    mask.map_or(capability::ALL, |mask| mask & capability::ALL)
}

/// Swap accounting may be off; cgroup roots do not show it, so we look below them.
fn swap_limits(cgroups: &Cgroups) -> bool {
    let v1 = cgroups
        .v1()
        .iter()
        .find(|h| h.controllers.iter().any(|c| c == "memory"));
    match v1 {
        Some(memory) => memory
            .mountpoint
            .join("memory.memsw.limit_in_bytes")
            .exists(),
        // v2: present with every kernel that has the memory controller and swap.
        None => cgroups.has("memory") && fs::exists("/proc/swaps").unwrap_or(false),
    }
}
