//! Control groups: made, limited, read, frozen, killed, removed; v2 and v1, and both together.
//!
//! [`Cgroups`] knows the machine's hierarchies; [`Cgroup`] is one group in all of them. All calls
//! are synchronous and short; those that wait have a bound.

mod error; // CgroupError
mod limits; // what may be used
mod hierarchy; // where cgroups are on this machine
mod devices; // device rules to v1's lists and v2's programs
pub mod files; // limits to files, pure
mod group; // one directory of one hierarchy
mod apply; // limits into groups, all or none
mod cgroup; // made, opened, updated, joined
mod end; // frozen, killed, removed
mod stats; // what is used
mod details; // what only monitoring asks for

pub use cgroup::{Cgroup, Membership};
pub use details::{Details, DiskTraffic};
pub use error::CgroupError;
pub use hierarchy::{Cgroups, Hierarchy, HierarchyView, View};
pub use limits::{
    DEVICE_RULES_MAX, DeviceAccess, DeviceKind, DeviceRule, HugepageLimit, Limits, UNIFIED_MAX,
};
pub use stats::{Pressure, Stall, Stats, StatsReader};
