//! What the client knows: what it was answered, and what it asked to be removed.

use std::collections::{BTreeMap, BTreeSet};

use wharf_types::{ContainerId, PodId};

use crate::spec::{ContainerMetadata, PodMetadata};

/// A pod whose start was answered.
#[derive(Debug)]
pub(super) struct ToldPod {
    pub(super) key: PodMetadata,
    /// Its stop was answered.
    pub(super) stopped: bool,
}

/// A container whose creation was answered.
#[derive(Debug)]
pub(super) struct ToldContainer {
    pub(super) pod: PodId,
    pub(super) key: ContainerMetadata,
    /// Its start was answered.
    pub(super) started: bool,
    /// Its stop was answered, after its start.
    pub(super) stopped: bool,
}

/// What the client knows.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) pods: BTreeMap<PodId, ToldPod>,
    pub(super) containers: BTreeMap<ContainerId, ToldContainer>,
    /// Their removal was asked for: nothing is promised of them.
    pub(super) leaving_pods: BTreeSet<PodId>,
    pub(super) leaving_containers: BTreeSet<ContainerId>,
    /// Their removal was answered: they never come back.
    pub(super) gone_pods: BTreeSet<PodId>,
    pub(super) gone_containers: BTreeSet<ContainerId>,
    /// Ends that were seen once they were recorded: code and time.
    pub(super) ends: BTreeMap<ContainerId, (i32, i64)>,
    /// The stage that each object was last seen at in this life of the daemon.
    pub(super) stages: BTreeMap<String, &'static str>,
}

impl Told {
    pub(super) fn was_removed(&self, id: &ContainerId) -> bool {
        self.gone_containers.contains(id)
    }

    /// A driver begins anew, from the records.
    pub(super) fn forget_stages(&mut self) {
        self.stages.clear();
    }

    /// Whether this pod has to be there.
    pub(super) fn keeps_pod(&self, id: &PodId) -> bool {
        self.pods.contains_key(id) && !self.leaving_pods.contains(id)
    }

    /// Whether this container has to be there.
    pub(super) fn keeps_container(&self, id: &ContainerId) -> bool {
        let pod = self.containers.get(id).map(|c| &c.pod);
        pod.is_some_and(|pod| !self.leaving_pods.contains(pod))
            && !self.leaving_containers.contains(id)
    }

    /// The removal of a pod was answered.
    pub(super) fn pod_is_gone(&mut self, id: &PodId) {
        self.pods.remove(id);
        let gone = self.containers.iter().filter(|(_, c)| c.pod == *id);
        let gone: Vec<_> = gone.map(|(id, _)| id.clone()).collect();
        for container in gone {
            self.container_is_gone(&container);
        }
        self.gone_pods.insert(id.clone());
    }

    /// The removal of a container was answered.
    pub(super) fn container_is_gone(&mut self, id: &ContainerId) {
        self.containers.remove(id);
        self.ends.remove(id);
        self.gone_containers.insert(id.clone());
    }
}
