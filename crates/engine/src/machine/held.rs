//! What the daemon holds of a living shim and of its containers.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message as _;
use wharf_cgroup::{Cgroup, Membership};
use wharf_plan::Fds;
use wharf_plan::process::ProcessPlan;
use wharf_types::ContainerId;

use crate::shim::link::Link;
use crate::world::ShimFacts;

/// A living shim.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) link: Link,
    pub(crate) facts: ShimFacts,
    /// Names the shim for ever; `None` for one that an earlier daemon started.
    pub(crate) pidfd: Option<OwnedFd>,
    /// Descriptors of the pod's namespaces, and of the route socket opened inside: they keep the
    /// namespaces of a shim that dies.
    namespaces: Fds,
    containers: Mutex<HashMap<ContainerId, Arc<HeldContainer>>>,
}

/// A living container: what an exec needs.
#[derive(Debug)]
pub(crate) struct HeldContainer {
    /// Its init, whose user, capabilities, filter and environment an exec has too.
    pub(crate) init: ProcessPlan,
    pub(crate) cgroup: Cgroup,
    free: Mutex<Vec<Leaf>>,
    /// Leaves that have to go and did not.
    stuck: Mutex<Vec<Cgroup>>,
}

/// Numbers leaves. Not each container its own: one that is found again is held anew, while execs of
/// before may still run in leaves of theirs.
static LEAVES: AtomicU64 = AtomicU64::new(1);

/// Distinguishes the leaves that this daemon makes from those of an earlier one.
fn life() -> u32 {
    std::process::id()
}

/// A cgroup below a container's for one exec at a time.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) cgroup: Cgroup,
    pub(crate) member: Membership,
}

impl Held {
    pub(crate) fn new(
        link: Link,
        facts: ShimFacts,
        pidfd: Option<OwnedFd>,
        namespaces: Fds,
    ) -> Self {
        Self {
            link,
            facts,
            pidfd,
            namespaces,
            containers: Mutex::default(),
        }
    }

    /// The pod's network namespace, and a route socket that was opened inside, if it has one of its own.
    pub(crate) fn network(&self) -> Option<(BorrowedFd<'_>, BorrowedFd<'_>)> {
        Some((
            self.namespaces.get("ns.net")?,
            self.namespaces.get("netlink")?,
        ))
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<ContainerId, Arc<HeldContainer>>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn container(&self, id: &ContainerId) -> Option<Arc<HeldContainer>> {
        self.containers().get(id).cloned()
    }

    pub(crate) fn hold(&self, id: &ContainerId, container: HeldContainer) -> Arc<HeldContainer> {
        let container = Arc::new(container);
        self.containers().insert(id.clone(), container.clone());
        container
    }

    pub(crate) fn let_go(&self, id: &ContainerId) -> Option<Arc<HeldContainer>> {
        self.containers().remove(id)
    }
}

impl HeldContainer {
    pub(crate) fn new(init: ProcessPlan, cgroup: Cgroup) -> Self {
        Self {
            init,
            cgroup,
            free: Mutex::default(),
            stuck: Mutex::default(),
        }
    }

    fn free(&self) -> MutexGuard<'_, Vec<Leaf>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A leaf that nobody uses: a used one that is empty again, else a new one; never one that was
    /// killed. May block.
    pub(crate) fn leaf(&self) -> Result<Leaf, wharf_cgroup::CgroupError> {
        if let Some(leaf) = self.free_leaf() {
            return Ok(leaf);
        }
        let number = LEAVES.fetch_add(1, Ordering::Relaxed);
        let cgroup = self.cgroup.leaf(&format!("exec-{:x}-{number}", life()))?;
        match cgroup.member_fds() {
            Ok(member) => Ok(Leaf { cgroup, member }),
            Err(e) => {
                if cgroup.remove().is_err() {
                    self.retire_later(cgroup);
                }
                Err(e)
            }
        }
    }

    /// A leaf that was used before and is empty again, at no cost.
    pub(crate) fn free_leaf(&self) -> Option<Leaf> {
        self.free().pop()
    }

    /// Gives a leaf back; one that still has processes (they outlive their exec) is not used again,
    /// and goes with the container. Not for one that was killed: the kernel kills whatever is cloned
    /// into a cgroup whose count of kills differs from that of the cloner's own (seen with 6.18).
    pub(crate) fn give_back(&self, leaf: Leaf) {
        match leaf.cgroup.processes() {
            Ok(pids) if pids.is_empty() => self.free().push(leaf),
            Ok(_outlive_their_exec) => {}
            Err(_) => self.retire_later(leaf.cgroup),
        }
        let stuck = std::mem::take(&mut *self.stuck());
        for cgroup in stuck {
            if cgroup.kill().and_then(|()| cgroup.remove()).is_err() {
                self.retire_later(cgroup);
            }
        }
    }

    /// A leaf that could not be killed and removed (no descriptor was left for it): tried again after
    /// the next exec.
    pub(crate) fn retire_later(&self, cgroup: Cgroup) {
        self.stuck().push(cgroup);
    }

    fn stuck(&self) -> MutexGuard<'_, Vec<Cgroup>> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where an init's plan is kept for execs after a restart of the daemon.
fn plan_path(pod_dir: &Path, id: &ContainerId) -> std::path::PathBuf {
    pod_dir.join(format!("{id}.plan"))
}

/// Keeps an init's plan; it ends with the boot, as the container does.
pub(crate) fn save_plan(
    pod_dir: &Path,
    id: &ContainerId,
    plan: &ProcessPlan,
) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    // Environments may hold secrets.
    options.write(true).create(true).truncate(true).mode(0o600);
    options
        .open(plan_path(pod_dir, id))?
        .write_all(&plan.encode_to_vec())
}

/// Reads an init's plan.
pub(crate) fn load_plan(pod_dir: &Path, id: &ContainerId) -> std::io::Result<ProcessPlan> {
    let bytes = std::fs::read(plan_path(pod_dir, id))?;
    ProcessPlan::decode(&*bytes).map_err(std::io::Error::other)
}

/// Forgets an init's plan.
pub(crate) fn forget_plan(pod_dir: &Path, id: &ContainerId) -> std::io::Result<()> {
    match std::fs::remove_file(plan_path(pod_dir, id)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
