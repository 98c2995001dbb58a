//! Make, limit, read and remove a cgroup: v2 and v1.
