//! The real `wharf-shim` as a daemon sees it: a zygote, shims of pods, containers from a busybox root.
#![cfg(test)]
#![expect(clippy::disallowed_types, reason = "tests start programs")]

mod rig; // a zygote in a directory of its own, pods, containers

mod containers; // create, start, signal, delete, state
mod execs; // further processes in a container
mod logs; // what is written where
mod pods; // namespaces, the shim itself
mod sockets; // sockets in the pod's network namespace
mod protocol; // bad messages, several clients
