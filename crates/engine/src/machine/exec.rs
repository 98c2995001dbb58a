//! An exec whose output is collected here: pipes of ours, a cgroup leaf of its own, everything in it
//! killed at the deadline.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use wharf_plan::Fds;
use wharf_plan::message::{Body, Exec};
use wharf_plan::process::ProcessPlan;
use wharf_types::{ContainerId, Kind};

use super::create::push_membership;
use super::held::{self, Held, HeldContainer, Leaf};
use super::{Parts, block, cgroup_failure};
use crate::limits::{EXEC_DRAIN, KILL_GRACE, SHIM_WORK};
use crate::record::PodRecord;
use crate::shim::link::{ExecEnded, LinkError};
use crate::shim::output::Collector;
use crate::spec::ExecSyncOutput;
use crate::world::{ExecEnd, ExecJob, StepFailure};

const STAGE: &str = "exec";

fn io(e: std::io::Error) -> StepFailure {
    let kind = if wharf_store::is_full(&e) {
        Kind::Exhausted
    } else {
        Kind::Internal
    };
    StepFailure::new(STAGE, kind, e)
}

/// Runs it to its end or its deadline.
pub(super) async fn exec_sync(parts: Arc<Parts>, job: ExecJob) -> Result<ExecEnd, StepFailure> {
    let deadline = job.timeout.map(|timeout| Instant::now() + timeout);
    let lost = || LinkError::Lost("shim").at(STAGE);
    let held = parts.held(&job.container.pod.id).ok_or_else(lost)?;
    let container = match held.container(&job.container.record.id) {
        Some(container) => container,
        None => {
            let (pod, id) = (&job.container.pod, job.container.record.id.clone());
            find(parts, held.clone(), pod, id).await?
        }
    };
    let leaf = match container.free_leaf() {
        Some(leaf) => leaf,
        None => {
            let container = container.clone();
            block(STAGE, move || {
                container.leaf().map_err(|e| cgroup_failure(STAGE, e))
            })
            .await?
        }
    };
    let mut fds = membership(&leaf)?;
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
    match held.link.call(body, fds, within).await {
        Ok(_) => {}
        Err(LinkError::Silent { .. }) if deadline.is_some_and(|d| Instant::now() >= d) => {
            // It may have begun, or may yet begin in a leaf that is never used again.
            kill(leaf, ended).await?;
            return Ok(ExecEnd::TimedOut);
        }
        Err(e) => {
            give_back(container, leaf);
            return Err(e.at(STAGE));
        }
    }
    let exited = match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, ended.wait()).await.ok(),
        None => Some(ended.wait().await),
    };
    let Some(exited) = exited else {
        kill(leaf, ended).await?;
        return Ok(ExecEnd::TimedOut);
    };
    let exited = exited.map_err(|e| e.at(STAGE))?;
    let both = async { tokio::join!(out.end_of_file(), err.end_of_file()) };
    let drain = deadline.map_or(EXEC_DRAIN, |d| EXEC_DRAIN.min(d - Instant::now()));
    // A grandchild may hold the pipes for ever: what it writes later is not this exec's.
    let _held = tokio::time::timeout(drain.max(Duration::from_millis(1)), both).await;
    give_back(container, leaf);
    let output = ExecSyncOutput {
        stdout: out.take(),
        stderr: err.take(),
        exit_code: exited.code,
    };
    Ok(ExecEnd::Output(output))
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

fn membership(leaf: &Leaf) -> Result<Fds, StepFailure> {
    let mut fds = Fds::new();
    let copy = |fd: &std::os::fd::OwnedFd| fd.try_clone().map_err(io);
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

/// Looking whether it is empty reads files, and nobody waits for it.
fn give_back(container: Arc<HeldContainer>, leaf: Leaf) {
    tokio::task::spawn_blocking(move || container.give_back(leaf));
}

/// A container of an earlier daemon: its init's plan was kept.
pub(super) async fn find(
    parts: Arc<Parts>,
    held: Arc<Held>,
    pod: &PodRecord,
    id: ContainerId,
) -> Result<Arc<HeldContainer>, StepFailure> {
    let (dir, path) = (parts.pod_dir(&pod.id), format!("{}/{id}", pod.cgroup));
    block(STAGE, move || {
        let init = held::load_plan(&dir, &id).map_err(io)?;
        let cgroup = parts
            .cgroups
            .open(&path)
            .map_err(|e| cgroup_failure(STAGE, e))?;
        Ok(held.hold(&id, HeldContainer::new(init, cgroup)))
    })
    .await
}

/// Kills everything that the exec started; its end is waited for, so that nothing is left behind.
async fn kill(leaf: Leaf, mut ended: ExecEnded) -> Result<(), StepFailure> {
    const STAGE: &str = "kill exec";
    let leaf = block(STAGE, move || {
        leaf.cgroup.kill().map_err(|e| cgroup_failure(STAGE, e))?;
        Ok(leaf)
    })
    .await?;
    // An error is a shim that has gone, and the exec with it.
    let waited = tokio::time::timeout(KILL_GRACE, ended.wait()).await;
    waited.map(drop).map_err(|_elapsed| {
        let text = "the exec was killed and is still there";
        StepFailure::new(STAGE, Kind::Unavailable, text)
    })?;
    // Nobody waits for this; what cannot be removed now goes with the container.
    tokio::task::spawn_blocking(move || {
        if let Err(e) = leaf.cgroup.remove() {
            tracing::debug!(error = %wharf_types::chain(&e), "a leaf stays");
        }
    });
    Ok(())
}
