//! The zygote and the shims.

fn main() {}
