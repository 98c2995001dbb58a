//! What the kernel offers and rustix does not: one safe function per operation. The only unsafe code.
//!
//! Every function is one system call (or one that musl wraps), takes prepared arguments, and
//! neither allocates nor locks unless it says so: most of them run in a forked child of a process
//! with threads, between `clone3(2)` and `execve(2)`.
#![expect(
    unsafe_code,
    reason = "the one crate that may: system calls that rustix lacks"
)]

pub mod fault; // places where a test can break the process; empty in what is shipped
mod call; // system calls by number, and their answers
pub mod random; // getrandom(2)
mod namespace; // kinds of namespaces, by number
pub mod mount; // mount_setattr(2), mount ids
pub mod signal; // dispositions and masks, as a new program expects them
pub mod end; // how processes end
pub mod process; // limits, labels and descriptors of the calling process
pub mod capability; // the five capability sets
pub mod seccomp; // filters of system calls
pub mod bpf; // device programs of cgroup v2
pub mod network; // interfaces
pub mod netlink; // interfaces, addresses, routes, queues, tracked connections
pub mod nft; // packet filter and address translation
pub mod clone; // a new process with the memory of this one: clone3(2)
pub mod fork; // a copy of this process that goes on by itself: fork(2)
pub mod exec; // a new program in this process: execve(2)
pub mod spawn; // a new program in a new process: posix_spawn(3)
