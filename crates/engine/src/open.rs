//! The start of the engine: what the disk knows × which shims live.

use std::collections::BTreeSet;
use std::sync::Arc;

use wharf_image::Images;
use wharf_store::Store;

use crate::board::Board;
use crate::config::{EngineConfig, NetworkMode};
use crate::engine::Engine;
use crate::error::OpenError;
use crate::machine::Machine;
use crate::pod::recovered::Recovered;
use crate::pods::Pods;
use crate::world::World as _;

impl Engine {
    /// Takes over the pods of the last daemon and is ready for new ones. Every living shim is asked
    /// once, all at the same time; a silent one makes its own pod unknown and is asked again later.
    ///
    /// # Errors
    ///
    /// A directory cannot be made or read, or there are no control groups. A record that cannot be read
    /// is logged, and what it stood for is taken down: nothing may run that nobody can list or stop.
    pub async fn open(
        config: EngineConfig,
        images: Images,
        store: Store,
    ) -> Result<Self, OpenError> {
        let mode = config.network;
        let opened = tokio::task::spawn_blocking(move || {
            let machine = Machine::open(config, images, store)?;
            let found = found(&machine)?;
            Ok::<_, OpenError>((machine, found))
        });
        let (machine, found) = opened.await.map_err(|e| OpenError::Cgroups {
            what: "opening the engine".to_owned(),
            source: Box::new(e),
        })??;
        let known = found.iter().map(|pod| pod.record.id.to_string()).collect();
        let board = Arc::new(Board::default());
        let pods = Pods::new(Arc::new(machine.clone()), board.clone());
        pods.recover(found).await;
        // Ahead of the first pod; no reason to refuse what runs already.
        if let Err(failure) = machine.warm().await {
            tracing::warn!(error = %failure, "the zygote could not be started ahead");
        }
        let networks = machine.networks().clone();
        let engine = match mode {
            NetworkMode::Cni => {
                tokio::spawn(networks.clone().watch());
                Self::new(pods, board.clone()).with_networks(networks.clone())
            }
            NetworkMode::None => Self::new(pods, board.clone()),
        };
        // Told before a new pod can be; nobody waits for what an earlier daemon left.
        let orphans = networks.orphans(&known);
        tokio::spawn(async move { networks.collect(orphans).await });
        let engine = engine.with_named(machine.named().clone());
        Ok(engine.measured(machine.statistics(board)))
    }
}

/// Reads all records; snapshots that belong to no record are what a creation left that was cut off
/// before it could be recorded, or a removal after its record was gone.
fn found(machine: &Machine) -> Result<Vec<Recovered>, OpenError> {
    let failed = |e| OpenError::Directory {
        action: "read records in",
        path: "pods".into(),
        source: std::io::Error::other(e),
    };
    let mut found = Vec::new();
    let mut known = BTreeSet::new();
    for pod in machine.records().load().map_err(failed)? {
        let own = machine.own_cgroup(&pod.id);
        let pod = Recovered::of(pod, machine.boot(), own);
        known.extend(pod.containers.iter().map(|c| c.id.to_string()));
        found.push(pod);
    }
    let pods = found.iter().map(|pod| pod.record.id.clone()).collect();
    machine.end_strays(&pods);
    let orphans = machine
        .store()
        .snapshots()
        .into_iter()
        .filter(|key| !known.contains(key));
    for key in orphans.filter(|key| key.len() == 64) {
        if let Err(e) = machine.store().remove(&key) {
            tracing::warn!(key, error = %wharf_types::chain(&e), "a snapshot without a container");
        }
    }
    Ok(found)
}
