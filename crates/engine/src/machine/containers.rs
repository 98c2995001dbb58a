//! The steps of a container's life and end on the machine.

use std::sync::Arc;

use wharf_cgroup::Cgroup;
use wharf_plan::Fds;
use wharf_plan::message::{Body, ContainerRef as Named, Signal};
use wharf_runtime::compile;
use wharf_sys::fault::point;
use wharf_types::Kind;

use super::held::{self, Held};
use super::lost::LostInit;
use super::{Parts, block, cgroup_failure, log_file, passed};
use crate::limits::{SHIM_ANSWER, SHIM_WORK};
use crate::oci::resources;
use crate::record::{ContainerRecord, Records};
use crate::shim::link::LinkError;
use crate::spec::ResourceSpec;
use crate::world::{ContainerRef, Remains, StepFailure};

const SIGKILL: i32 = 9;

fn named(container: &ContainerRef) -> Named {
    Named {
        container_id: container.record.id.to_string(),
    }
}

impl Parts {
    pub(super) fn save_container(&self, record: &ContainerRecord) -> Result<(), StepFailure> {
        let saved = self.records.save_container(record);
        saved.map_err(|e| StepFailure::new("write record", e.kind(), e))
    }

    fn shim(
        &self,
        container: &ContainerRef,
        stage: &'static str,
    ) -> Result<Arc<Held>, StepFailure> {
        let held = self
            .held(&container.pod.id)
            .filter(|held| !held.link.is_lost());
        held.ok_or_else(|| LinkError::Lost("shim").at(stage))
    }

    pub(super) async fn start_container(
        self: Arc<Self>,
        container: ContainerRef,
    ) -> Result<(), StepFailure> {
        const STAGE: &str = "start container";
        let held = self.shim(&container, STAGE)?;
        let body = Body::Start(named(&container));
        let started = held.link.done(body, Fds::new(), SHIM_WORK);
        started.await.map_err(|e| e.at(STAGE))?;
        passed(STAGE, point("start container: started by the shim"))
    }

    pub(super) async fn signal_container(
        &self,
        container: &ContainerRef,
        signal: i32,
    ) -> Result<(), StepFailure> {
        const STAGE: &str = "signal container";
        let held = self.shim(container, STAGE)?;
        let Named { container_id } = named(container);
        let body = Body::Signal(Signal {
            container_id,
            exec_id: String::new(),
            signal,
        });
        match held.link.done(body, Fds::new(), SHIM_ANSWER).await {
            // It has ended: the exit is on its way.
            Err(e) if e.is_not_found() => {}
            done => done.map_err(|e| e.at(STAGE))?,
        }
        passed(STAGE, point("stop container: signalled"))
    }

    /// Kills everything: with the init of its own PID namespace the kernel kills the rest; otherwise,
    /// and when the shim does not answer, all processes of the cgroup are killed.
    pub(super) async fn kill_container(
        self: Arc<Self>,
        container: ContainerRef,
    ) -> Result<(), StepFailure> {
        let own = !super::create::shares_pids(&container.record.spec);
        let signalled = self.signal_container(&container, SIGKILL).await;
        if own && signalled.is_ok() {
            return Ok(());
        }
        block("kill container", move || {
            if let Some(cgroup) = self.find_cgroup(&container) {
                let killed = cgroup.kill();
                killed.map_err(|e| cgroup_failure("kill container", e))?;
            }
            passed("kill container", point("stop container: cgroup killed"))
        })
        .await
    }

    /// The container's cgroup, if it is there.
    fn find_cgroup(&self, container: &ContainerRef) -> Option<Cgroup> {
        let path = format!("{}/{}", container.pod.cgroup, container.record.id);
        self.cgroups.open(&path).ok()
    }

    pub(super) async fn collect_container(
        self: Arc<Self>,
        container: ContainerRef,
    ) -> Result<Remains, StepFailure> {
        const STAGE: &str = "collect container";
        let (parts, asked) = (self.clone(), container.clone());
        let collected = block(STAGE, move || {
            let lost = LostInit::find(&parts, &asked);
            let Some(cgroup) = parts.find_cgroup(&asked) else {
                return Ok((lost, None));
            };
            // Counted before the cgroup goes.
            let kills = cgroup.oom_kills().map_err(|e| cgroup_failure(STAGE, e))?;
            if !cgroup.processes().is_ok_and(|left| left.is_empty()) {
                cgroup.kill().map_err(|e| cgroup_failure(STAGE, e))?;
            }
            passed(STAGE, point("stop container: remains counted"))?;
            cgroup.remove().map_err(|e| cgroup_failure(STAGE, e))?;
            passed(STAGE, point("stop container: cgroup removed"))?;
            Ok((lost, kills))
        });
        let (lost, kills) = collected.await?;
        let ended = match lost {
            Some(init) => init.end(&self).await,
            None => None,
        };
        if let Some(held) = self.held(&container.pod.id) {
            drop(held.let_go(&container.record.id));
        }
        Ok(Remains {
            oom_killed: kills.is_some_and(|count| count > 0),
            ended,
        })
    }

    /// Newest first, the record last; no failure keeps the next step from being tried.
    pub(super) async fn remove_container(
        self: Arc<Self>,
        container: ContainerRef,
    ) -> Result<(), StepFailure> {
        let mut failures = Vec::new();
        let cgroup = {
            let (parts, container) = (self.clone(), container.clone());
            block("remove cgroup", move || {
                let failed = |e| cgroup_failure("remove cgroup", e);
                let Some(cgroup) = parts.find_cgroup(&container) else {
                    return Ok(());
                };
                cgroup.kill().map_err(failed)?;
                cgroup.remove().map_err(failed)?;
                passed("remove cgroup", point("remove container: cgroup removed"))
            })
        };
        failures.extend(cgroup.await.err());
        failures.extend(self.delete_in_shim(&container).await.err());
        passed(
            "delete in shim",
            point("remove container: deleted in the shim"),
        )?;
        let disk = block("remove snapshot", move || {
            let key = container.record.id.as_str();
            self.store
                .remove(key)
                .map_err(|e| StepFailure::new("remove snapshot", e.kind(), e))?;
            passed(
                "remove snapshot",
                point("remove container: snapshot removed"),
            )?;
            let dir = self.pod_dir(&container.pod.id);
            held::forget_plan(&dir, &container.record.id)
                .map_err(|e| StepFailure::new("remove record", Kind::Internal, e))?;
            passed("remove record", point("remove container: plan removed"))?;
            if failures.is_empty() {
                let (pod, id) = (&container.pod.id, &container.record.id);
                let forgotten = self.records.forget_container(pod, id);
                forgotten.map_err(|e| StepFailure::new("remove record", Kind::Internal, e))?;
            }
            Ok(failures)
        });
        let mut failures = disk.await?;
        for failure in failures.iter().skip(1) {
            tracing::warn!(error = %failure, "another step of the removal failed");
        }
        if failures.is_empty() {
            Ok(())
        } else {
            Err(failures.swap_remove(0))
        }
    }

    async fn delete_in_shim(&self, container: &ContainerRef) -> Result<(), StepFailure> {
        // Without a shim there is nothing in it.
        let Ok(held) = self.shim(container, "delete in shim") else {
            return Ok(());
        };
        drop(held.let_go(&container.record.id));
        let body = Body::Delete(named(container));
        match held.link.done(body, Fds::new(), SHIM_ANSWER).await {
            Err(e) if e.is_not_found() || matches!(e, LinkError::Lost(_)) => Ok(()),
            done => done.map_err(|e| e.at("delete in shim")),
        }
    }

    pub(super) fn update_container(
        &self,
        container: &ContainerRef,
        resources: ResourceSpec,
    ) -> Result<(), StepFailure> {
        const STAGE: &str = "update limits";
        let asked = resources::resources(&resources, &self.host)
            .map_err(|e| StepFailure::new(STAGE, e.kind(), e))?;
        let mut limits =
            compile::limits(Some(&asked)).map_err(|e| StepFailure::new(STAGE, e.kind(), e))?;
        // Devices stay as they are.
        limits.devices = None;
        let gone = || StepFailure::new(STAGE, Kind::Conflict, "the container's cgroup is gone");
        let cgroup = self.find_cgroup(container).ok_or_else(gone)?;
        let record = ContainerRecord {
            resources,
            ..(*container.record).clone()
        };
        // Now, while nothing is changed: it is written after that.
        Records::check_container(&record).map_err(|e| StepFailure::new(STAGE, e.kind(), e))?;
        cgroup.update(&limits).map_err(|e| cgroup_failure(STAGE, e))
    }

    pub(super) async fn reopen_log(
        self: Arc<Self>,
        container: ContainerRef,
    ) -> Result<(), StepFailure> {
        const STAGE: &str = "reopen log";
        let held = self.shim(&container, STAGE)?;
        let Some(place) = log_file::Place::of(&container.pod, &container.record) else {
            return Ok(());
        };
        let log = block(STAGE, move || place.open()).await?;
        let mut fds = Fds::new();
        fds.push("log", log);
        let body = Body::ReopenLog(named(&container));
        held.link
            .done(body, fds, SHIM_ANSWER)
            .await
            .map_err(|e| e.at(STAGE))
    }
}
