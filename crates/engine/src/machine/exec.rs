//! An exec whose output is collected here: pipes of ours, a cgroup leaf of its own, everything in it
//! killed at the deadline.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;
use wharf_plan::Fds;
use wharf_plan::message::{Body, Exec};
use wharf_plan::process::ProcessPlan;
use wharf_sys::fault::point;
use wharf_types::{ContainerId, Kind};

use super::create::push_membership;
use super::held::{self, Held, HeldContainer, Leaf};
use super::{Parts, block, cgroup_failure, passed};
use crate::error::io_kind;
use crate::limits::{EXEC_DRAIN, KILL_GRACE, SHIM_WORK};
use crate::record::PodRecord;
use crate::shim::link::LinkError;
use crate::shim::output::Collector;
use crate::spec::ExecSyncOutput;
use crate::world::{ExecEnd, ExecJob, StepFailure};

const STAGE: &str = "exec";
const KILL: &str = "kill exec";

fn io(e: std::io::Error) -> StepFailure {
    StepFailure::new(STAGE, io_kind(&e), e)
}

/// A leaf with an exec that has begun or may yet begin. Unless it is given back it is killed and
/// removed, on an error as when the exec is given up: what begins later finds no cgroup to come into.
struct InUse {
    container: Arc<HeldContainer>,
    leaf: Option<Leaf>,
}

impl InUse {
    async fn take(container: Arc<HeldContainer>) -> Result<Self, StepFailure> {
        if let Some(leaf) = container.free_leaf() {
            let leaf = Some(leaf);
            return Ok(Self { container, leaf });
        }
        // Made in use: it is not lost when nobody waits for it any more.
        block(STAGE, move || {
            let leaf = Some(container.leaf().map_err(|e| cgroup_failure(STAGE, e))?);
            let taken = Self { container, leaf };
            passed(STAGE, point("exec: cgroup made")).map(|()| taken)
        })
        .await
    }

    /// Nothing was begun in it, or it has ended by itself. Looking whether it is empty reads files, and
    /// nobody waits for it.
    fn give_back(mut self) {
        let container = self.container.clone();
        if let Some(leaf) = self.leaf.take() {
            tokio::task::spawn_blocking(move || container.give_back(leaf));
        }
    }

    /// Kills everything that the exec has started; returns when it is gone.
    async fn kill(mut self) -> Result<(), StepFailure> {
        let Some(leaf) = self.leaf.take() else {
            return Ok(());
        };
        block(KILL, move || {
            held::retire(&leaf.cgroup).map_err(|e| cgroup_failure(KILL, e))?;
            passed(KILL, point("exec: killed"))
        })
        .await
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        // Without a runtime the daemon ends; the leaf goes with the container.
        let (Some(leaf), Ok(runtime)) = (self.leaf.take(), Handle::try_current()) else {
            return;
        };
        let container = self.container.clone();
        runtime.spawn_blocking(move || {
            if let Err(e) = held::retire(&leaf.cgroup) {
                tracing::warn!(error = %wharf_types::chain(&e), "an exec that was given up stays");
                container.retire_later(leaf.cgroup);
            }
        });
    }
}

/// Runs it to its end or its deadline.
pub(super) async fn exec_sync(parts: Arc<Parts>, job: ExecJob) -> Result<ExecEnd, StepFailure> {
    let deadline = job.timeout.map(|timeout| Instant::now() + timeout);
    let lost = || LinkError::Lost("shim").at(STAGE);
    let held = parts.held(&job.container.pod.id).ok_or_else(lost)?;
    held.release.common().map_err(|e| e.at(STAGE))?;
    let container = match held.container(&job.container.record.id) {
        Some(container) => container,
        None => {
            let (pod, id) = (&job.container.pod, job.container.record.id.clone());
            find(parts, held.clone(), pod, id, None).await?
        }
    };
    let in_use = InUse::take(container.clone()).await?;
    let mut fds = membership(in_use.leaf.as_ref())?;
    let (stdout, mut out) = Collector::new().map_err(io)?;
    let (stderr, mut err) = Collector::new().map_err(io)?;
    fds.push("stdout", stdout);
    fds.push("stderr", stderr);
    let mut ended = held.link.expect_exec(&job.exec_id);
    let body = Body::Exec(Exec {
        container_id: job.container.record.id.to_string(),
        exec_id: job.exec_id,
        process: Some(process(&container.init, job.cmd)),
    });
    let within = deadline.map_or(SHIM_WORK, |d| SHIM_WORK.min(d - Instant::now()));
    if let Err(e) = held.link.call(body, fds, within).await {
        return refused(in_use, e, deadline).await;
    }
    passed(STAGE, point("exec: begun"))?;
    let exited = match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, ended.wait()).await.ok(),
        None => Some(ended.wait().await),
    };
    let Some(exited) = exited else {
        in_use.kill().await?;
        // Nothing of it is left in the shim either. An error is a shim that has gone.
        let waited = tokio::time::timeout(KILL_GRACE, ended.wait()).await;
        let text = "the exec was killed and is still there";
        let stays = |_elapsed| StepFailure::new(KILL, Kind::Unavailable, text);
        return waited.map(|_| ExecEnd::TimedOut).map_err(stays);
    };
    let exited = exited.map_err(|e| e.at(STAGE))?;
    passed(STAGE, point("exec: ended"))?;
    let both = async { tokio::join!(out.end_of_file(), err.end_of_file()) };
    let drain = deadline.map_or(EXEC_DRAIN, |d| EXEC_DRAIN.min(d - Instant::now()));
    // A grandchild may hold the pipes for ever: what it writes later is not this exec's.
    let _held = tokio::time::timeout(drain.max(Duration::from_millis(1)), both).await;
    in_use.give_back();
    passed(STAGE, point("exec: output collected"))?;
    let output = ExecSyncOutput {
        stdout: out.take(),
        stderr: err.take(),
        exit_code: exited.code,
    };
    Ok(ExecEnd::Output(output))
}

/// The shim did not say that the exec has begun.
async fn refused(
    in_use: InUse,
    e: LinkError,
    deadline: Option<Instant>,
) -> Result<ExecEnd, StepFailure> {
    match e {
        LinkError::Failed(_) => {
            in_use.give_back();
            Err(e.at(STAGE))
        }
        // It may have begun, or may yet begin.
        LinkError::Silent { .. } => {
            in_use.kill().await?;
            match deadline {
                Some(deadline) if Instant::now() >= deadline => Ok(ExecEnd::TimedOut),
                _ => Err(e.at(STAGE)),
            }
        }
        e => Err(e.at(STAGE)),
    }
}

/// The container's init with another program: user, capabilities, filter, environment are its.
fn process(init: &ProcessPlan, cmd: Vec<String>) -> ProcessPlan {
    ProcessPlan {
        args: cmd.into_iter().map(String::into_bytes).collect(),
        terminal: false,
        console: None,
        preserve_fds: 0,
        ..init.clone()
    }
}

fn membership(leaf: Option<&Leaf>) -> Result<Fds, StepFailure> {
    let mut fds = Fds::new();
    let none = || StepFailure::new(STAGE, Kind::Internal, "an exec without a cgroup");
    let leaf = leaf.ok_or_else(none)?;
    let copy = |fd: &OwnedFd| fd.try_clone().map_err(io);
    let v1 = leaf
        .member
        .v1
        .iter()
        .map(copy)
        .collect::<Result<Vec<_>, _>>()?;
    let v2 = leaf.member.v2.as_ref().map(copy).transpose()?;
    push_membership(wharf_cgroup::Membership { v2, v1 }, &mut fds);
    Ok(fds)
}

/// A container of an earlier daemon: its init's plan was kept.
pub(super) async fn find(
    parts: Arc<Parts>,
    held: Arc<Held>,
    pod: &PodRecord,
    id: ContainerId,
    pidfd: Option<Arc<OwnedFd>>,
) -> Result<Arc<HeldContainer>, StepFailure> {
    let (dir, path) = (parts.pod_dir(&pod.id), format!("{}/{id}", pod.cgroup));
    block(STAGE, move || {
        let init = held::load_plan(&dir, &id).map_err(io)?;
        let cgroup = parts
            .cgroups
            .open(&path)
            .map_err(|e| cgroup_failure(STAGE, e))?;
        Ok(held.hold(&id, HeldContainer::new(init, cgroup, pidfd)))
    })
    .await
}

#[cfg(test)]
#[expect(clippy::disallowed_types, reason = "a test has children of its own")]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;
    use std::path::Path;
    use std::process::{Child, Command};
    use wharf_cgroup::{Cgroup, Cgroups, Limits};

    /// A cgroup of our own, gone with the test.
    struct Group(Cgroup);

    impl Group {
        fn new(name: &str) -> Option<(Self, Arc<HeldContainer>)> {
            if !rustix::process::geteuid().is_root() {
                println!("skipped: needs root");
                return None;
            }
            let cgroups = Cgroups::probe().unwrap();
            let path = format!("wharf-exec-{name}-{}", std::process::id());
            let made = cgroups.create(&path, &Limits::default()).unwrap();
            let ours = cgroups.open(&path).unwrap();
            let container = HeldContainer::new(ProcessPlan::default(), ours, None);
            Some((Self(made), Arc::new(container)))
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.remove().unwrap();
        }
    }

    fn begin(leaf: &Leaf) -> Child {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let number = child.id().to_string();
        for file in &leaf.member.v1 {
            rustix::io::write(file, number.as_bytes()).unwrap();
        }
        if let Some(directory) = leaf.cgroup.v2_directory() {
            std::fs::write(directory.join("cgroup.procs"), number).unwrap();
        }
        child
    }

    async fn until_gone(path: &Path) {
        while path.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn an_exec_that_is_given_up_is_killed_and_its_leaf_never_used_again() {
        let Some((_group, container)) = Group::new("given-up") else {
            return;
        };
        let in_use = InUse::take(container.clone()).await.unwrap();
        let leaf = in_use.leaf.as_ref().unwrap();
        let (name, mut child) = (leaf.cgroup.path().to_owned(), begin(leaf));
        let directory = leaf.cgroup.v2_directory().map(Path::to_owned);
        drop(in_use);
        let status = tokio::task::spawn_blocking(move || child.wait().unwrap());
        assert_eq!(status.await.unwrap().signal(), Some(9));
        if let Some(directory) = directory {
            until_gone(&directory).await;
        }
        let next = InUse::take(container).await.unwrap();
        assert_ne!(next.leaf.as_ref().unwrap().cgroup.path(), name);
        next.kill().await.unwrap();
    }

    #[tokio::test]
    async fn a_container_that_is_found_again_does_not_use_the_leaves_of_before() {
        let Some((group, container)) = Group::new("found") else {
            return;
        };
        let in_use = InUse::take(container).await.unwrap();
        let mut child = begin(in_use.leaf.as_ref().unwrap());
        let ours = group.0.path().to_owned();
        let ours = Cgroups::probe().unwrap().open(&ours).unwrap();
        let again = Arc::new(HeldContainer::new(ProcessPlan::default(), ours, None));
        let next = InUse::take(again).await.unwrap();
        next.kill().await.unwrap();
        in_use.kill().await.unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_leaf_that_is_given_back_is_used_again() {
        let Some((_group, container)) = Group::new("given-back") else {
            return;
        };
        let in_use = InUse::take(container.clone()).await.unwrap();
        let name = in_use.leaf.as_ref().unwrap().cgroup.path().to_owned();
        in_use.give_back();
        let leaf = loop {
            if let Some(leaf) = container.free_leaf() {
                break leaf;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        assert_eq!(leaf.cgroup.path(), name);
    }
}
