//! The daemon as its clients meet it: real binaries on a node of its own, a registry that can
//! misbehave, and a look at the machine before and after.
//!
//! Every test needs root and says so in a line where it is missing; the binaries are those that
//! `cargo build -p wharf-daemon -p wharf-shim` made. Names of tests say what is promised.
#![cfg(test)]
#![expect(clippy::disallowed_types, reason = "the tests start programs")]
#![expect(
    clippy::too_many_lines,
    reason = "tables of cases, and lives told from beginning to end"
)]

mod scene; // a node, images, and the look before
mod life; // from pull to removal
mod inside; // what a process in a container sees
mod mounts; // what of the host it gets
mod limits; // what it may use
mod program; // which program, and as whom
mod output; // its log
mod exec; // programs beside it
mod images; // pulls that must fail
mod network; // pod networks
mod refusals; // requests that must fail
mod collection; // images that go, are damaged, are mended
mod full_disk; // no space, no inodes, read-only
mod power_cut; // on a disk that forgets
mod restart; // the daemon goes and comes back
mod killed_operations; // what is asked for, cut anywhere
mod killed; // the daemon dies at every step
mod killed_many; // many pods at once
mod reboot; // the machine restarts
mod deadlines; // clients that lose patience
mod hardship; // a machine that lacks something
mod churn; // everything at once, for a while
mod shims; // shims and zygote are killed, stopped, come back
mod oracle; // the same container by containerd
mod sockets; // connections into pods
mod stats; // what containers use, and ends for want of memory
