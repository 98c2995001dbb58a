//! The launch library and the command against the kernel, and against runc and crun as oracles.
//!
//! They need root: without it each says so in a line and passes.
#![cfg(test)]
#![expect(clippy::disallowed_types, reason = "the tests start programs")]

mod rig; // root file systems, bundles, peers
mod launch; // the library: create, exec, sandbox
mod oracle; // the same bundle by ours, runc and crun
mod commands; // the command's verbs
mod own_program; // what a container can do with our program
