//! The board: where drivers publish pictures and readers find them. Every lock here is held for a
//! look-up or an exchange of pointers, never for work.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::time::Instant;
use wharf_types::{ContainerId, PodId};

use crate::error::RequestError;
use crate::view::{ContainerState, ContainerView, PodView};

/// Where something is in its life, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// In the log's words.
    pub name: &'static str,
    /// Since when.
    pub since: Instant,
}

/// Who keeps something for each pod and container, and lets go of it when they end.
pub(crate) trait Keeper: std::fmt::Debug + Send + Sync {
    /// The processes of this cgroup have ended.
    fn ended(&self, cgroup: &str);
    /// The container was removed.
    fn removed(&self, container: &ContainerView);
}

/// Published pictures of all pods and containers.
#[derive(Debug, Default)]
pub struct Board {
    index: RwLock<Index>,
    keeper: OnceLock<Arc<dyn Keeper>>,
}

#[derive(Debug, Default)]
struct Index {
    pods: BTreeMap<String, Arc<PodView>>,
    containers: BTreeMap<String, Arc<ContainerView>>,
    stages: BTreeMap<String, Stage>,
}

impl Board {
    // A panic while the lock is held can leave nothing half-done: each write is one map operation.
    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells `keeper` from now on; counts once.
    pub(crate) fn tell(&self, keeper: Arc<dyn Keeper>) {
        drop(self.keeper.set(keeper));
    }

    /// All pods, oldest first.
    pub(crate) fn pods(&self) -> Vec<Arc<PodView>> {
        let mut pods: Vec<_> = self.read().pods.values().cloned().collect();
        pods.sort_by_key(|p| p.created_at_ns);
        pods
    }

    /// All containers, oldest first.
    pub(crate) fn containers(&self) -> Vec<Arc<ContainerView>> {
        let mut containers: Vec<_> = self.read().containers.values().cloned().collect();
        containers.sort_by_key(|c| c.created_at_ns);
        containers
    }

    /// The pod with this id or unique beginning of one.
    pub(crate) fn pod(&self, id: &str) -> Result<Arc<PodView>, RequestError> {
        find(&self.read().pods, "pod", id)
    }

    /// The container with this id or unique beginning of one.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<ContainerView>, RequestError> {
        find(&self.read().containers, "container", id)
    }

    /// The stage of what has this full id.
    pub(crate) fn stage(&self, id: &str) -> Option<Stage> {
        self.read().stages.get(id).copied()
    }

    /// The stages of everything.
    #[cfg(test)]
    pub(crate) fn stages(&self) -> BTreeMap<String, Stage> {
        self.read().stages.clone()
    }

    pub(crate) fn put_pod(&self, view: PodView) {
        self.write()
            .pods
            .insert(view.id.to_string(), Arc::new(view));
    }

    pub(crate) fn take_pod(&self, id: &PodId) {
        let gone = self.write().pods.remove(id.as_str());
        if let (Some(keeper), Some(view)) = (self.keeper.get(), gone) {
            keeper.ended(&view.cgroup);
        }
    }

    pub(crate) fn put_container(&self, view: ContainerView) {
        let view = Arc::new(view);
        self.write()
            .containers
            .insert(view.id.to_string(), view.clone());
        if let Some(keeper) = self.keeper.get()
            && view.state == ContainerState::Exited
        {
            keeper.ended(&view.facts.cgroup);
        }
    }

    pub(crate) fn take_container(&self, id: &ContainerId) {
        let gone = self.write().containers.remove(id.as_str());
        if let (Some(keeper), Some(view)) = (self.keeper.get(), gone) {
            keeper.ended(&view.facts.cgroup);
            keeper.removed(&view);
        }
    }

    /// Takes the containers of a pod away that are not `known`.
    pub(crate) fn keep(&self, pod: &PodId, known: impl Fn(&ContainerId) -> bool) {
        let mut index = self.write();
        let Index {
            containers, stages, ..
        } = &mut *index;
        containers.retain(|id, view| {
            let stays = view.pod != *pod || known(&view.id);
            if !stays {
                stages.remove(id);
            }
            stays
        });
    }

    pub(crate) fn put_stage(&self, id: &str, name: &'static str) {
        let stage = Stage {
            name,
            since: Instant::now(),
        };
        self.write().stages.insert(id.to_owned(), stage);
    }

    pub(crate) fn take_stage(&self, id: &str) {
        self.write().stages.remove(id);
    }
}

fn find<T>(
    map: &BTreeMap<String, Arc<T>>,
    what: &'static str,
    id: &str,
) -> Result<Arc<T>, RequestError> {
    let none = || RequestError::NotFound {
        what,
        id: id.to_owned(),
    };
    if id.is_empty() {
        return Err(none());
    }
    let from = (Bound::Included(id), Bound::Unbounded);
    let mut found = map
        .range::<str, _>(from)
        .take_while(|(key, _)| key.starts_with(id));
    let (key, first) = found.next().ok_or_else(none)?;
    if key != id && found.next().is_some() {
        return Err(RequestError::Ambiguous {
            what,
            id: id.to_owned(),
        });
    }
    Ok(first.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_found_by_id_and_by_unique_beginning() {
        let map: BTreeMap<String, Arc<u8>> = ["aa1", "aa2", "ab", "abc"]
            .iter()
            .map(|k| ((*k).to_owned(), Arc::new(0)))
            .collect();
        find(&map, "pod", "aa1").unwrap();
        find(&map, "pod", "abc").unwrap();
        // A whole id wins over being a beginning.
        find(&map, "pod", "ab").unwrap();
        assert!(matches!(
            find(&map, "pod", "aa"),
            Err(RequestError::Ambiguous { .. })
        ));
        for unknown in ["", "b", "aa11"] {
            assert!(matches!(
                find(&map, "pod", unknown),
                Err(RequestError::NotFound { .. })
            ));
        }
    }
}
