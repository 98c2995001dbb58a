//! One pass over all that was asked for, on a thread that may block. No driver and no shim is asked,
//! so one that hangs keeps nobody waiting.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::Semaphore;
use wharf_cgroup::Cgroups;
use wharf_store::Store;

use super::layers::Layers;
use super::readers::Readers;
use super::usage::{
    CgroupUsage, ContainerMetrics, ContainerUsage, NetworkUsage, PodMetrics, PodUsage, Space,
};
use super::{network, process};
use crate::board::{Board, Keeper};
use crate::limits::{LAYER_FIRST_WAIT, STATS_PASSES_MAX};
use crate::spec::NamespaceMode;
use crate::view::{ContainerState, ContainerView, PodView};

/// Measures pods and containers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Statistics(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    board: Arc<Board>,
    kept: Arc<Kept>,
    place: Arc<PathBuf>,
    passes: Semaphore,
}

/// What is kept for each container and pod while it lives.
#[derive(Debug)]
struct Kept {
    readers: Readers,
    layers: Arc<Layers>,
}

impl Keeper for Kept {
    fn ended(&self, cgroup: &str) {
        self.readers.forget(cgroup);
    }

    fn removed(&self, container: &ContainerView) {
        self.layers.forget(&container.facts.snapshot_key);
    }
}

/// Nanoseconds since 1970.
pub(super) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

impl Statistics {
    /// Of the pods and containers of `board`, which tells when something can be let go.
    pub(crate) fn new(board: Arc<Board>, cgroups: Cgroups, store: Store) -> Self {
        let layers = Arc::new(Layers::new(store));
        let place = Arc::new(layers.place().to_owned());
        let kept = Arc::new(Kept {
            readers: Readers::new(cgroups),
            layers,
        });
        board.tell(kept.clone());
        Self(Arc::new(Parts {
            board,
            kept,
            place,
            passes: Semaphore::new(STATS_PASSES_MAX),
        }))
    }

    /// What these containers use, in their order.
    pub(crate) async fn containers(&self, views: Vec<Arc<ContainerView>>) -> Vec<ContainerUsage> {
        self.refresh(&views).await;
        self.pass(move |parts| {
            let mut buffer = Vec::new();
            let one = |view| parts.container(view, &mut buffer);
            views.into_iter().map(one).collect()
        })
        .await
    }

    /// What these pods use, in their order.
    pub(crate) async fn pods(&self, views: Vec<Arc<PodView>>) -> Vec<PodUsage> {
        let containers = self.living(&views);
        self.refresh(containers.values().flatten()).await;
        self.pass(move |parts| parts.all_pods(views, containers))
            .await
    }

    /// The same with what only monitoring asks for.
    pub(crate) async fn metrics(&self, views: Vec<Arc<PodView>>) -> Vec<PodMetrics> {
        let containers = self.living(&views);
        self.refresh(containers.values().flatten()).await;
        self.pass(move |parts| {
            let space = space(&parts.place);
            let all = parts.all_pods(views, containers).into_iter();
            all.map(|usage| PodMetrics {
                containers: usage.containers.iter().map(|c| parts.more(c)).collect(),
                usage,
                space,
            })
            .collect()
        })
        .await
    }

    /// The containers of these pods that have not ended.
    fn living(&self, pods: &[Arc<PodView>]) -> HashMap<String, Vec<Arc<ContainerView>>> {
        let mut by_pod: HashMap<String, Vec<_>> = pods
            .iter()
            .map(|pod| (pod.id.to_string(), Vec::new()))
            .collect();
        for container in self.0.board.containers() {
            if container.state != ContainerState::Exited
                && let Some(of_pod) = by_pod.get_mut(container.pod.as_str())
            {
                of_pod.push(container);
            }
        }
        by_pod
    }

    async fn refresh(&self, views: impl IntoIterator<Item = &Arc<ContainerView>>) {
        let keys = views.into_iter().map(|v| v.facts.snapshot_key.as_str());
        self.0.kept.layers.refresh(keys, LAYER_FIRST_WAIT).await;
    }

    async fn pass<T, F>(&self, work: F) -> Vec<T>
    where
        T: Send + 'static,
        F: FnOnce(&Parts) -> Vec<T> + Send + 'static,
    {
        let parts = self.0.clone();
        // Never closed; without a turn it would be only slower.
        let _turn = self.0.passes.acquire().await;
        let done = tokio::task::spawn_blocking(move || work(&parts)).await;
        done.unwrap_or_else(|e| {
            tracing::warn!(error = %e, "measuring pods and containers failed");
            Vec::new()
        })
    }
}

impl Parts {
    fn container(&self, view: Arc<ContainerView>, buffer: &mut Vec<u8>) -> ContainerUsage {
        let cgroup = match view.state {
            ContainerState::Exited => None,
            _ => self.cgroup(&view.facts.cgroup, buffer, || {
                let now = self.board.container(view.id.as_str());
                now.is_ok_and(|now| now.state != ContainerState::Exited)
            }),
        };
        ContainerUsage {
            cgroup,
            layer: self.kept.layers.latest(&view.facts.snapshot_key),
            place: self.place.clone(),
            view,
        }
    }

    fn cgroup(
        &self,
        cgroup: &str,
        buffer: &mut Vec<u8>,
        alive: impl Fn() -> bool,
    ) -> Option<CgroupUsage> {
        if cgroup.is_empty() {
            return None;
        }
        self.kept.readers.read(cgroup, now_ns(), buffer, alive)
    }

    fn all_pods(
        &self,
        views: Vec<Arc<PodView>>,
        mut containers: HashMap<String, Vec<Arc<ContainerView>>>,
    ) -> Vec<PodUsage> {
        let mut buffer = Vec::new();
        let one = |view: Arc<PodView>| {
            let of_pod = containers.remove(view.id.as_str()).unwrap_or_default();
            PodUsage {
                cgroup: self.cgroup(&view.cgroup, &mut buffer, || {
                    self.board.pod(view.id.as_str()).is_ok()
                }),
                network: network_of(&view),
                containers: of_pod
                    .into_iter()
                    .map(|container| self.container(container, &mut buffer))
                    .collect(),
                view,
            }
        };
        views.into_iter().map(one).collect()
    }

    fn more(&self, usage: &ContainerUsage) -> ContainerMetrics {
        let view = &usage.view;
        // Gone meanwhile: what is known is told.
        let Ok(cgroup) = self.kept.readers.cgroups().open(&view.facts.cgroup) else {
            return ContainerMetrics::default();
        };
        let processes = cgroup.processes().unwrap_or_default();
        ContainerMetrics {
            details: cgroup.details(),
            processes: u64::try_from(processes.len()).ok(),
            files: process::open_files(&processes),
            files_limit: view.pid.and_then(process::files_limit),
        }
    }
}

/// The host's network is not the pod's.
fn network_of(pod: &PodView) -> Option<NetworkUsage> {
    if pod.spec.security.namespaces.network == NamespaceMode::Node {
        return None;
    }
    Some(NetworkUsage {
        at_ns: now_ns(),
        interfaces: network::interfaces(pod.shim_pid?)?,
    })
}

fn space(place: &std::path::Path) -> Option<Space> {
    let stat = rustix::fs::statvfs(place).ok()?;
    Some(Space {
        bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        inodes: stat.f_files,
        inodes_free: stat.f_favail,
    })
}
