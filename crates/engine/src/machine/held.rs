//! What the daemon holds of a living shim and of its containers.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message as _;
use wharf_cgroup::{Cgroup, CgroupError, Cgroups, Membership};
use wharf_network::dns::Serving;
use wharf_plan::Fds;
use wharf_plan::process::ProcessPlan;
use wharf_types::ContainerId;

use crate::shim::link::Link;
use crate::shim::release::Release;
use crate::world::ShimFacts;

/// A living shim.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) link: Link,
    pub(crate) facts: ShimFacts,
    /// It may be of another release than we are.
    pub(crate) release: Release,
    /// Names the shim for ever; `None` for one that an earlier daemon started.
    pub(crate) pidfd: Option<OwnedFd>,
    /// Descriptors of the pod's namespaces, and of the route socket opened inside: they keep the
    /// namespaces of a shim that dies.
    namespaces: Fds,
    /// The pod's questions for names are answered: sockets inside, which go with the shim.
    pub(crate) names: tokio::sync::Mutex<Option<Serving>>,
    containers: Mutex<HashMap<ContainerId, Arc<HeldContainer>>>,
}

/// A living container: what an exec needs.
#[derive(Debug)]
pub(crate) struct HeldContainer {
    /// Its init, whose user, capabilities, filter and environment an exec has too.
    pub(crate) init: ProcessPlan,
    pub(crate) cgroup: Cgroup,
    /// Names its init for ever: tells how it ended when the shim cannot any more.
    pub(crate) pidfd: Option<Arc<OwnedFd>>,
    free: Mutex<Vec<Leaf>>,
    /// Leaves that have to go and did not.
    stuck: Mutex<Vec<Cgroup>>,
}

/// Numbers leaves. Not each container its own: one that is found again is held anew, while execs of
/// before may still run in leaves of theirs.
static LEAVES: AtomicU64 = AtomicU64::new(1);

/// How the names of leaves begin.
const LEAF: &str = "exec-";

/// Distinguishes the leaves that this daemon makes from those of an earlier one; its process id would
/// not: a daemon in a container has the same in every life.
fn life() -> u64 {
    static LIFE: LazyLock<u64> = LazyLock::new(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let nanoseconds = now.unwrap_or_default().as_nanos();
        let drawn = wharf_sys::random::bytes::<8>().map(u64::from_le_bytes);
        drawn.unwrap_or_else(|_| u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    });
    *LIFE
}

/// Kills and removes what execs of an earlier daemon left below a container's cgroup: whoever waited
/// for them has gone with it. May block.
///
/// # Errors
///
/// The first that could not be removed; the others are tried.
pub(crate) fn end_old_execs(cgroups: &Cgroups, container: &Cgroup) -> Result<(), CgroupError> {
    let ours = format!("{LEAF}{:x}-", life());
    let mut all = Ok(());
    for name in container.leaves()? {
        if name.starts_with(LEAF) && !name.starts_with(&ours) {
            let ended = cgroups.open(&format!("{}/{name}", container.path()));
            let ended = ended.and_then(|leaf| retire(&leaf));
            all = all.and(ended);
        }
    }
    all
}

/// Rounds of killing and removing: an exec may begin between the two.
const RETIRE_ROUNDS: u32 = 2;

/// Kills and removes a leaf.
pub(crate) fn retire(leaf: &Cgroup) -> Result<(), CgroupError> {
    let mut round = 1;
    loop {
        leaf.kill()?;
        match leaf.remove() {
            Err(CgroupError::Stuck { .. }) if round < RETIRE_ROUNDS => round += 1,
            done => return done,
        }
    }
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
        release: Release,
        pidfd: Option<OwnedFd>,
        namespaces: Fds,
    ) -> Self {
        Self {
            link,
            facts,
            release,
            pidfd,
            namespaces,
            names: tokio::sync::Mutex::default(),
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
    pub(crate) fn new(init: ProcessPlan, cgroup: Cgroup, pidfd: Option<Arc<OwnedFd>>) -> Self {
        Self {
            init,
            cgroup,
            pidfd,
            free: Mutex::default(),
            stuck: Mutex::default(),
        }
    }

    fn free(&self) -> MutexGuard<'_, Vec<Leaf>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A leaf that nobody uses: a used one that is empty again, else a new one; never one that was
    /// killed. May block.
    pub(crate) fn leaf(&self) -> Result<Leaf, CgroupError> {
        if let Some(leaf) = self.free_leaf() {
            return Ok(leaf);
        }
        let number = LEAVES.fetch_add(1, Ordering::Relaxed);
        let cgroup = self.cgroup.leaf(&format!("{LEAF}{:x}-{number}", life()))?;
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

/// Where it is kept which process an init is.
pub(crate) fn init_path(pod_dir: &Path, id: &ContainerId) -> std::path::PathBuf {
    pod_dir.join(format!("{id}.pid"))
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

/// Forgets an init and its plan.
pub(crate) fn forget_plan(pod_dir: &Path, id: &ContainerId) -> std::io::Result<()> {
    for path in [plan_path(pod_dir, id), init_path(pod_dir, id)] {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}
