//! The OCI runtime: config.json to plan to running process; library and runc-compatible command.

pub mod spec; // config.json: types, reading, checking
pub mod seccomp; // a profile to a BPF program
pub mod compile; // config.json to a plan, pure
pub mod launch; // a plan to a process
