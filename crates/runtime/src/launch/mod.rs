//! From a plan to a process: a container's init, an exec in it, and a pod's PID 1.
//!
//! ```text
//! caller (shim, command)                          child
//! prepare: every string, array, program
//! clone3 ───────────────────────────────────────► init.rs or exec.rs: the numbered story
//! status socket ◄── warning, terminal, parked ──  (no allocation, no lock, no log)
//!               ─── go ─────────────────────────►
//!               ◄── error  or  end of file ─────  execve: the socket is closed by it
//! ```
//!
//! The caller may have threads: between `clone3` and `execve` the child makes system calls on memory
//! that was prepared before, nothing else. What fails is told as step, object and errno.

mod status; // records on the status socket: both ends
mod path; // paths in the container, opened beneath a descriptor
mod prepare; // plan to prepared memory
mod proc; // the child's private procfs
mod copy_up; // a tmpfs that begins with what the image has there
mod mounts; // file systems and binds, by descriptor
mod devices; // nodes and links below /dev
mod terminal; // the container's pseudo-terminal
mod process; // what init and exec have in common, up to execve
mod init; // the story of a container's first process
mod exec; // the story of another process in a container
mod sandbox; // PID 1 of a pod's shared PID namespace
pub mod own_copy; // our own program, out of a container's reach
pub mod sources; // roots and bind sources, opened by the planner

use std::os::fd::{BorrowedFd, OwnedFd};

use wharf_plan::Fds;
use wharf_plan::container::{ContainerPlan, Namespaces};
use wharf_plan::process::ProcessPlan;

pub use sandbox::sandbox_init;
pub use status::{Pending, Progress, StepError, release_parked};

/// Where stdio goes; `None` is /dev/null. Ignored for a process with a terminal.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Descriptor 0.
    pub stdin: Option<OwnedFd>,
    /// Descriptor 1.
    pub stdout: Option<OwnedFd>,
    /// Descriptor 2.
    pub stderr: Option<OwnedFd>,
}

/// How a made init waits for its start.
#[derive(Debug)]
pub enum Park {
    /// By the status socket of [`Pending`]: it ends when its maker does. Whether the program exists
    /// is found out at the start.
    Socket,
    /// By this listening `SOCK_SEQPACKET` socket (see [`release_parked`]), for a maker that ends before.
    /// Whether the program exists is checked before it parks, as `runc create` does.
    Listener(OwnedFd),
}

/// The container that an exec joins.
#[derive(Debug, Clone, Copy)]
pub struct Target<'fd> {
    /// Its init: names all its namespaces at once.
    pub pidfd: BorrowedFd<'fd>,
    /// Those of its plan.
    pub namespaces: Namespaces,
}

/// Makes a container's init. Returns right after the clone; [`Pending`] tells how it goes on.
///
/// `fds` as documented at [`ContainerPlan`]; `ns.pid` also for [`wharf_plan::container::Namespace::Pod`].
///
/// # Errors
///
/// A plan that cannot be carried out (a descriptor is missing, a string holds a NUL, user
/// namespaces), or the kernel's answer to `clone3`.
pub fn create(
    plan: &ContainerPlan,
    fds: Fds,
    stdio: Stdio,
    park: Park,
) -> Result<Pending, StepError> {
    init::create(plan, fds, stdio, park)
}

/// Makes another process in the container of `target`; it executes at once. Of `fds` are used:
/// `cgroup2` and `cgroup1`.
///
/// # Errors
///
/// As [`create`]; `ESRCH` when the container's init has ended.
pub fn exec(
    target: Target<'_>,
    process: &ProcessPlan,
    fds: Fds,
    stdio: Stdio,
) -> Result<Pending, StepError> {
    exec::exec(target, process, fds, stdio)
}
