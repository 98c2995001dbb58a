//! Shims that a daemon finds: after a restart, or after a silence.

use std::sync::Arc;

use wharf_plan::Fds;
use wharf_plan::message::{Body, ExecState, GetState, ShimState, Signal, Welcome};
use wharf_types::ContainerId;

use super::held::{self, Held, HeldContainer};
use super::pods::{facts, hello, nobody_listens};
use super::{Parts, create, exec};
use crate::limits::{SHIM_ADOPTION, SHIM_ANSWER};
use crate::record::PodRecord;
use crate::shim::identity;
use crate::shim::link::{Link, LinkError};
use crate::shim::release::Release;
use crate::shim::socket;
use crate::world::{Adoption, FoundContainer, ShimEvents, StepFailure};

const SIGKILL: i32 = 9;

impl Parts {
    pub(super) async fn adopt_shim(
        self: &Arc<Self>,
        pod: &PodRecord,
        events: ShimEvents,
    ) -> Result<Adoption, StepFailure> {
        if pod.boot != self.boot {
            return Ok(Adoption::Gone);
        }
        let path = self.pod_dir(&pod.id).join("shim.sock");
        let socket = match socket::connect(&path) {
            Ok(socket) => socket,
            Err(LinkError::Connect { source, .. }) if nobody_listens(&source) => {
                return Ok(Adoption::Gone);
            }
            // Its queue is full.
            Err(LinkError::Connect { source, .. })
                if source.kind() == std::io::ErrorKind::WouldBlock =>
            {
                return Ok(Adoption::Silent);
            }
            // Ours, such as too many open files: says nothing about the shim, so nobody may act on it.
            Err(e) => return Err(e.at("adopt shim")),
        };
        // Until it has answered, its end is not the pod's end: we may ask again.
        let (quiet, mut told) = tokio::sync::mpsc::channel(crate::limits::SHIM_EVENTS_MAX);
        let link = Link::new("shim", socket, Some(quiet)).map_err(|e| e.at("adopt shim"))?;
        let answer = match ask(&link).await {
            Ok(answer) => answer,
            // That connection may be ours to blame; whether the shim is gone is what the next one tells.
            Err(LinkError::Lost(_)) => {
                return match socket::connect(&path) {
                    Err(LinkError::Connect { source, .. }) if nobody_listens(&source) => {
                        Ok(Adoption::Gone)
                    }
                    _ => Ok(Adoption::Silent),
                };
            }
            Err(e) => {
                tracing::warn!(pod = %pod.id, error = %wharf_types::chain(&e), "the shim gives no answer that is understood");
                return Ok(Adoption::Silent);
            }
        };
        tokio::spawn(async move {
            while let Some(event) = told.recv().await {
                if events.send(event).await.is_err() {
                    return;
                }
            }
        });
        Ok(self.take_over(pod, link, answer))
    }

    /// Holds what an answering shim has.
    fn take_over(self: &Arc<Self>, pod: &PodRecord, link: Link, answer: Found) -> Adoption {
        let Found {
            welcome,
            fds,
            state,
        } = answer;
        let netns = self
            .netns_path(&pod.id)
            .filter(|_| fds.get("ns.net").is_some());
        let facts = facts(welcome.pid, welcome.sandbox_pid, netns);
        let execs = state.execs.iter().filter(|e| e.exited.is_none());
        let living: Vec<_> = execs.cloned().collect();
        let held = Arc::new(Held::new(
            link,
            facts.clone(),
            Release::of(&welcome),
            identity::open(welcome.pid),
            fds,
        ));
        // Execs that we have begun are among them only when it was held before.
        let first = self.held(&pod.id).is_none();
        self.hold(&pod.id, held.clone());
        let found = found(state);
        self.hold_containers(pod, &held, &found);
        self.restore_names(&pod.id);
        if first {
            tokio::spawn(end_execs(held, living));
        }
        Adoption::Living(facts, found)
    }

    /// Takes over what execs and ends need of living containers; nobody waits for it.
    fn hold_containers(
        self: &Arc<Self>,
        pod: &PodRecord,
        held: &Arc<Held>,
        found: &[FoundContainer],
    ) {
        for container in found.iter().filter(|c| c.exited.is_none()) {
            let (parts, held, pod) = (self.clone(), held.clone(), pod.clone());
            let (id, pid) = (container.id.clone(), container.pid);
            tokio::spawn(async move {
                // The shim has not waited for it, so its number is its own.
                let Some(pidfd) = identity::open(pid).map(Arc::new) else {
                    return;
                };
                let shared = Some(pidfd.clone());
                let found = exec::find(parts.clone(), held, &pod, id, shared).await;
                if let Ok(container) = found {
                    end_leaves(parts, container.clone()).await;
                    create::kill_rest(pidfd, Arc::downgrade(&container)).await;
                }
            });
        }
    }
}

/// What a shim answered that was found.
struct Found {
    welcome: Welcome,
    fds: Fds,
    state: ShimState,
}

async fn ask(link: &Link) -> Result<Found, LinkError> {
    let (welcome, fds) = hello(link, SHIM_ADOPTION).await?;
    let body = Body::GetState(GetState {});
    match link.call(body, Fds::new(), SHIM_ADOPTION).await? {
        (Body::ShimState(state), _) => Ok(Found {
            welcome,
            fds,
            state,
        }),
        _ => Err(LinkError::Unexpected("shim")),
    }
}

/// Ends what execs of an earlier daemon left in their cgroups.
async fn end_leaves(parts: Arc<Parts>, container: Arc<HeldContainer>) {
    let work = move || held::end_old_execs(&parts.cgroups, &container.cgroup);
    if let Ok(Err(e)) = tokio::task::spawn_blocking(work).await {
        let error = wharf_types::chain(&e);
        tracing::warn!(error, "an exec of an earlier daemon stays");
    }
}

/// Ends execs whose daemon has gone: nobody waits for them, and nobody would count their time.
async fn end_execs(held: Arc<Held>, execs: Vec<ExecState>) {
    for exec in execs {
        let body = Body::Signal(Signal {
            container_id: exec.container_id,
            exec_id: exec.exec_id,
            signal: SIGKILL,
        });
        match held.link.done(body, Fds::new(), SHIM_ANSWER).await {
            Ok(()) => tracing::info!(pid = exec.pid, "ended an exec of an earlier daemon"),
            // It has ended.
            Err(e) if e.is_not_found() => {}
            Err(e) => {
                let error = wharf_types::chain(&e);
                tracing::warn!(pid = exec.pid, error, "an exec of an earlier daemon stays");
            }
        }
    }
}

fn found(state: ShimState) -> Vec<FoundContainer> {
    let known = state.containers.into_iter().filter_map(|c| {
        let id = c.container_id.parse::<ContainerId>().ok()?;
        let exited = c.exited.map(|e| (e.code, e.signal, e.at_ns));
        Some(FoundContainer {
            id,
            pid: c.pid,
            started: c.started,
            exited,
        })
    });
    known.collect()
}
