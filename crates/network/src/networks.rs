//! The door: the default network as it is now, whether it is ready, attaching and detaching.
//!
//! Status never waits: a task looks at the directory when it changes, asks the plugins every now and
//! then, and publishes. A plugin that hangs keeps its own pod waiting, nobody else.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as AsyncMutex, RwLock, Semaphore};
use tokio::task::JoinSet;

use crate::attachments::{AttachRequest, Attachments, NetworkError, PodNetns};
use crate::chain::{Deadlines, Runner};
use crate::config::Network;
use crate::default_network::{self, Subnets};
use crate::directory::{Directory, Found};
use crate::ip::{IpNet, IpNetError};
use crate::limits::{CHAINS_MAX, GC_PERIOD, ORPHANS_PERIOD, STATUS_ITEMS_MAX, STATUS_PERIOD};
use crate::plugin::Plugins;
use crate::readiness::{Finding, Readiness};
use crate::record::{Record, RecordError, Records};
use crate::result::CniResult;
use crate::watch::Watch;

/// What networks are told once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworksConfig {
    /// Directory of configurations.
    pub config_dir: PathBuf,
    /// Where executables are: `CNI_PATH`.
    pub bin_dirs: Vec<PathBuf>,
    /// What survives a reboot is kept below it.
    pub root: PathBuf,
    /// What ends with the boot is kept below it.
    pub state: PathBuf,
    /// The running boot.
    pub boot: String,
    /// Built-in plugins are used where a configuration names them.
    pub builtin: bool,
    /// Without a configuration, pods get our own default network.
    pub default_network: bool,
    /// How long a network that was ready stays so.
    pub grace: Duration,
    /// Soft limit of open files of executables; ours when absent.
    pub open_files: Option<u64>,
    /// Our binary, which is also the helper that enters namespaces.
    pub helper: PathBuf,
}

/// What is told of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkState {
    /// Whether pods can get a network; else why not, and what to do.
    pub ready: Result<(), String>,
    /// The default network's name.
    pub network: Option<String>,
    /// Where it was read; empty for our own.
    pub file: PathBuf,
    /// Its plugins, each with `built-in` or `executable`.
    pub plugins: Vec<(String, &'static str)>,
    /// Files that cannot be used, and why.
    pub problems: Vec<String>,
}

/// The networks of this machine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Networks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: NetworksConfig,
    attachments: Attachments,
    shown: Mutex<Shown>,
    chains: Arc<Semaphore>,
    /// One at a time for each container; forgotten when nobody works at it.
    containers: Mutex<HashMap<String, Weak<AsyncMutex<()>>>>,
    /// Containers of nobody whose DEL failed.
    orphans: Mutex<BTreeSet<String>>,
    /// Attaching and detaching share a network, collecting has it alone.
    networks: Mutex<HashMap<String, Arc<RwLock<()>>>>,
}

#[derive(Debug)]
struct Shown {
    /// As the directory has it, and as it was settled.
    source: Option<Arc<Network>>,
    network: Option<Arc<Network>>,
    problems: Vec<String>,
    readiness: Readiness,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Held for moments, and nothing half-done can be left.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Networks {
    /// Reads the records and looks at the directory. Blocks.
    ///
    /// # Errors
    ///
    /// The directory of records cannot be made or read.
    pub fn open(config: NetworksConfig, plugins: Plugins) -> Result<Self, RecordError> {
        let records = Records::open(config.root.join("attachments"))?;
        let runner = Runner {
            plugins: match config.builtin {
                true => plugins,
                false => Plugins::default(),
            },
            bin_dirs: config.bin_dirs.clone(),
            open_files: config.open_files,
            deadlines: Deadlines::default(),
        };
        let (boot, helper) = (config.boot.clone(), config.helper.clone());
        let inner = Inner {
            attachments: Attachments::open(runner, records, boot, helper)?,
            shown: Mutex::new(Shown {
                source: None,
                network: None,
                problems: Vec::new(),
                readiness: Readiness::new(config.grace),
            }),
            chains: Arc::new(Semaphore::new(CHAINS_MAX)),
            containers: Mutex::default(),
            orphans: Mutex::default(),
            networks: Mutex::default(),
            config,
        };
        inner.look(&mut Directory::new(inner.config.config_dir.clone()));
        Ok(Self(Arc::new(inner)))
    }

    /// What is to be told. Never waits.
    pub fn state(&self) -> NetworkState {
        self.0.state()
    }

    /// Attaches to the default network. After a failure [`Networks::detach`] takes down what was done.
    ///
    /// # Errors
    ///
    /// There is no network, or the plugin that failed.
    pub async fn attach(&self, request: AttachRequest) -> Result<CniResult, NetworkError> {
        let network = self.0.current()?;
        let id = request.container_id.clone();
        let names = BTreeSet::from([network.name.clone()]);
        self.with(id, Some(names), move |inner| {
            inner.attachments.attach(&network, &request)
        })
        .await
    }

    /// Attaches to a network that is not the default one. After a failure [`Networks::detach_one`] takes
    /// down what was done.
    ///
    /// # Errors
    ///
    /// The plugin that failed.
    pub async fn attach_to(
        &self,
        network: Network,
        request: AttachRequest,
    ) -> Result<CniResult, NetworkError> {
        let id = request.container_id.clone();
        let names = BTreeSet::from([network.name.clone()]);
        self.with(id, Some(names), move |inner| {
            inner.attachments.attach(&network, &request)
        })
        .await
    }

    /// Detaches one interface; nothing to do is fine.
    ///
    /// # Errors
    ///
    /// The plugin that failed; the next call tries again.
    pub async fn detach_one(
        &self,
        container_id: &str,
        ifname: &str,
        netns: Option<PodNetns>,
    ) -> Result<(), NetworkError> {
        let (id, ifname) = (container_id.to_owned(), ifname.to_owned());
        self.with(id.clone(), None, move |inner| {
            inner.attachments.detach_one(&id, &ifname, netns.as_ref())
        })
        .await
    }

    /// Everything that is attached, or was begun to be.
    pub fn attached(&self) -> Vec<Arc<Record>> {
        self.0.attachments.all()
    }

    /// Takes down what a network that nothing is attached to still has: its rules, and what is noted of
    /// its addresses.
    ///
    /// # Errors
    ///
    /// The plugin that failed.
    pub async fn forget(&self, network: Network) -> Result<(), NetworkError> {
        let lock = self.0.network_lock(&network.name);
        let alone = lock.write_owned().await;
        let inner = self.0.clone();
        let done = tokio::task::spawn_blocking(move || {
            inner.attachments.collect(&network)?;
            let noted = inner.config.state.join("networks").join(&network.name);
            if let Err(e) = std::fs::remove_dir_all(&noted)
                && e.kind() != std::io::ErrorKind::NotFound
            {
                let text = format!("remove {}: {e}", noted.display());
                return Err(NetworkError::Internal(text));
            }
            // Its name never comes again.
            self::lock(&inner.networks).remove(&network.name);
            drop(alone);
            Ok(())
        });
        done.await
            .unwrap_or_else(|e| Err(NetworkError::Internal(format!("a fault of wharf: {e}"))))
    }

    /// Detaches from every network; nothing to do is fine. `netns` is the namespace if there still is one.
    ///
    /// # Errors
    ///
    /// The plugin that failed; the next call tries again.
    pub async fn detach(
        &self,
        container_id: &str,
        netns: Option<PodNetns>,
    ) -> Result<(), NetworkError> {
        let id = container_id.to_owned();
        self.with(id.clone(), None, move |inner| {
            inner.attachments.detach(&id, netns.as_ref())
        })
        .await
    }

    /// Asks the plugins whether a container's network is as it was made.
    ///
    /// # Errors
    ///
    /// The first plugin that misses something.
    pub async fn check(&self, container_id: &str, netns: PodNetns) -> Result<(), NetworkError> {
        let id = container_id.to_owned();
        self.with(id.clone(), None, move |inner| {
            inner.attachments.check(&id, &netns)
        })
        .await
    }

    /// Containers that something is recorded of and that are not `known`. For the start, when everything
    /// that lives is known and nothing new can be.
    pub fn orphans(&self, known: &BTreeSet<String>) -> BTreeSet<String> {
        let mut all = self.0.attachments.containers();
        all.retain(|id| !known.contains(id));
        all
    }

    /// Takes down what `orphans` have, then collects the networks' garbage.
    pub async fn collect(&self, orphans: BTreeSet<String>) {
        for id in orphans {
            tracing::info!(container = id, "attached, and nobody's: it is detached");
            self.detach_orphan(id).await;
        }
        self.collect_garbage().await;
    }

    async fn detach_orphan(&self, id: String) {
        match self.detach(&id, None).await {
            Ok(()) => drop(lock(&self.0.orphans).remove(&id)),
            Err(error) => {
                tracing::warn!(container = id, error = %wharf_types::chain(&error),
                    "an orphan's network: it is tried again");
                lock(&self.0.orphans).insert(id);
            }
        }
    }

    /// Orphans whose DEL failed, and where it is time for it the networks' garbage.
    async fn collect_again(self, garbage: bool) {
        let orphans = lock(&self.0.orphans).clone();
        for id in orphans {
            self.detach_orphan(id).await;
        }
        if garbage {
            self.collect_garbage().await;
        }
    }

    /// GC of every network that something is, or would be, attached to.
    async fn collect_garbage(&self) {
        let mut networks = self.0.attachments.networks();
        if let Ok(current) = self.0.current() {
            networks.retain(|n| n.name != current.name);
            networks.push((*current).clone());
        }
        for network in networks {
            // Waiting for it would keep those out who come later: a plugin may hang.
            let Ok(alone) = self.0.network_lock(&network.name).try_write_owned() else {
                continue;
            };
            let inner = self.0.clone();
            let done = tokio::task::spawn_blocking(move || {
                let done = inner.attachments.collect(&network);
                drop(alone);
                done.map_err(|e| wharf_types::chain(&e))
            });
            if let Ok(Err(error)) = done.await {
                tracing::warn!(error, "garbage of a network");
            }
        }
    }

    /// The addresses that pods of this node shall have, separated by commas (CRI `UpdateRuntimeConfig`):
    /// what our default network uses from then on.
    ///
    /// # Errors
    ///
    /// Not addresses with a prefix.
    pub fn set_pod_cidr(&self, text: &str) -> Result<(), IpNetError> {
        let parts = text.split(',').map(str::trim).filter(|t| !t.is_empty());
        let subnets: Vec<IpNet> = parts.map(str::parse).collect::<Result<_, _>>()?;
        if subnets.is_empty() || !self.0.config.default_network {
            return Ok(());
        }
        let given = Subnets {
            subnets,
            given: true,
        };
        if let Err(error) = default_network::remember(&self.0.config.root, &given) {
            tracing::warn!(%error, "the pods' addresses are not remembered");
            return Ok(());
        }
        let mut shown = lock(&self.0.shown);
        if shown.source.is_none() && shown.network.is_some() {
            shown.network = Some(Arc::new(self.0.own(&given)));
        }
        Ok(())
    }

    /// Looks and asks for as long as it is polled.
    pub async fn watch(self) {
        let inner = &self.0;
        let watch = match Watch::new(&inner.config.config_dir) {
            Ok(watch) => Some(watch),
            Err(error) => {
                tracing::warn!(%error, "changed configurations are seen late");
                None
            }
        };
        let mut directory = Directory::new(inner.config.config_dir.clone());
        let (mut asked, mut collecting) = (JoinSet::new(), JoinSet::new());
        let mut about = None;
        let mut ticks = tokio::time::interval(STATUS_PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut due, mut collected, mut tried) = (true, Instant::now(), Instant::now());
        loop {
            if let Some(watch) = &watch {
                watch.renew();
            }
            let (this, mut lent) = (self.0.clone(), directory);
            let looked = tokio::task::spawn_blocking(move || {
                this.look(&mut lent);
                lent
            });
            let Ok(back) = looked.await else {
                return tracing::error!(
                    "a fault of wharf: the network's directory is not looked at"
                );
            };
            directory = back;
            let network = lock(&inner.shown).network.clone();
            // One question at a time: a plugin may hang.
            if asked.is_empty() && (due || about != network) {
                (due, about) = (false, network);
                let this = self.0.clone();
                asked.spawn_blocking(move || this.ask());
            }
            // Beside: a plugin that hangs would keep changed configurations unseen.
            let garbage = collected.elapsed() > GC_PERIOD;
            let orphans = tried.elapsed() > ORPHANS_PERIOD && !lock(&inner.orphans).is_empty();
            if collecting.is_empty() && (garbage || orphans) {
                tried = Instant::now();
                collected = if garbage { tried } else { collected };
                collecting.spawn(self.clone().collect_again(garbage));
            }
            tokio::select! {
                Ok(()) = changed(watch.as_ref()) => {}
                Some(_answered) = asked.join_next() => {}
                Some(_done) = collecting.join_next() => {}
                _ = ticks.tick() => due = true,
            }
        }
    }

    /// Runs what blocks: one at a time for a container, beside others in its networks. `None`: those that
    /// it is attached to when its turn comes; an attachment whose caller has gone away may be on its way.
    async fn with<T: Send + 'static>(
        &self,
        container_id: String,
        networks: Option<BTreeSet<String>>,
        work: impl FnOnce(&Inner) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let inner = self.0.clone();
        // In a task of its own: a caller that goes away leaves nothing half-done.
        let task = tokio::spawn(async move {
            let container = inner.container_lock(&container_id).lock_owned().await;
            let networks = networks.unwrap_or_else(|| inner.attachments.networks_of(&container_id));
            let mut shared = Vec::new();
            for name in &networks {
                shared.push(inner.network_lock(name).read_owned().await);
            }
            let permit = inner.chains.clone().acquire_owned().await;
            let done = tokio::task::spawn_blocking(move || work(&inner)).await;
            drop((permit, shared, container));
            done
        });
        let done = task.await.and_then(|done| done);
        done.unwrap_or_else(|e| Err(NetworkError::Internal(format!("a fault of wharf: {e}"))))
    }
}

async fn changed(watch: Option<&Watch>) -> std::io::Result<()> {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

impl Inner {
    fn container_lock(&self, id: &str) -> Arc<AsyncMutex<()>> {
        let mut locks = lock(&self.containers);
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(id).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(AsyncMutex::new(()));
        locks.insert(id.to_owned(), Arc::downgrade(&lock));
        lock
    }

    fn network_lock(&self, name: &str) -> Arc<RwLock<()>> {
        lock(&self.networks)
            .entry(name.to_owned())
            .or_default()
            .clone()
    }

    fn state(&self) -> NetworkState {
        let shown = lock(&self.shown);
        let network = shown.network.as_ref();
        let engine = |builtin| match builtin {
            true => "built-in",
            false => "executable",
        };
        let plugins = network.map(|n| {
            n.plugins
                .iter()
                .map(|p| (p.kind.clone(), engine(p.builtin)))
        });
        NetworkState {
            ready: shown.readiness.at(Instant::now()),
            network: network.map(|n| n.name.clone()),
            file: network.map(|n| n.file.clone()).unwrap_or_default(),
            plugins: plugins.into_iter().flatten().collect(),
            problems: shown.problems.clone(),
        }
    }

    /// The default network.
    fn current(&self) -> Result<Arc<Network>, NetworkError> {
        let shown = lock(&self.shown);
        let none = || match shown.readiness.at(Instant::now()) {
            Err(why) => NetworkError::NotReady(why),
            Ok(()) => NetworkError::NotReady("its configuration is being replaced".to_owned()),
        };
        shown.network.clone().ok_or_else(none)
    }

    fn own(&self, subnets: &Subnets) -> Network {
        default_network::network(subnets, |name| {
            self.attachments.runner().plugins.get(name).is_some()
        })
    }

    /// Looks at the directory, takes what is there into use.
    fn look(&self, directory: &mut Directory) {
        let found = directory.look();
        let problems = found.problems.iter().map(ToString::to_string);
        let problems: Vec<String> = problems.take(STATUS_ITEMS_MAX).collect();
        let settled = match &found.network {
            Some(source) => match self.unchanged(source) {
                // Programs are not asked for their versions again and again.
                Some(network) => Ok(network),
                None => Ok(self.attachments.runner().settle(source)),
            },
            None if self.config.default_network => default_network::remembered(&self.config.root)
                .map(|subnets| self.own(&subnets))
                .map_err(|e| format!("no addresses for the default network: {e}")),
            None => Err(self.nothing(&found)),
        };
        let mut shown = lock(&self.shown);
        for problem in problems.iter().filter(|p| !shown.problems.contains(p)) {
            tracing::warn!(problem, "a network configuration cannot be used");
        }
        shown.problems = problems;
        match settled {
            Ok(network) => {
                shown.source.clone_from(&found.network);
                if shown.network.as_deref() != Some(&network) {
                    let file = network.file.display();
                    tracing::info!(network = network.name, %file, "the pods' network");
                    shown.network = Some(Arc::new(network));
                }
            }
            Err(why) => {
                let now = Instant::now();
                shown.readiness.on(Finding::NotReady(why), now);
                if !shown.readiness.in_grace(now) && shown.network.take().is_some() {
                    tracing::warn!("pods have no network any more");
                }
            }
        }
    }

    /// The network that was settled from this very source, if it is ready.
    fn unchanged(&self, source: &Arc<Network>) -> Option<Network> {
        let shown = lock(&self.shown);
        let same = shown
            .source
            .as_ref()
            .is_some_and(|s| Arc::ptr_eq(s, source));
        let network = shown.network.as_deref()?;
        (same && shown.readiness.is_ready()).then(|| network.clone())
    }

    fn nothing(&self, found: &Found) -> String {
        let dir = self.config.config_dir.display();
        let remedy = "install a network add-on, or set cri.default_network = true; pods on the host's \
                      network run without one";
        match found.problems.first() {
            None => format!("no network configuration in {dir}: {remedy}"),
            Some(problem) => {
                format!("no usable network configuration in {dir}: {problem}; {remedy}")
            }
        }
    }

    /// Asks the plugins whether they can attach.
    fn ask(&self) {
        let Some(network) = lock(&self.shown).network.clone() else {
            return;
        };
        let said = self.attachments.runner().status(&network);
        let mut shown = lock(&self.shown);
        // Meanwhile another came, or this one's configuration went.
        let same = shown
            .network
            .as_ref()
            .is_some_and(|n| Arc::ptr_eq(n, &network));
        let own = self.config.default_network && network.file.as_os_str().is_empty();
        if !same || (shown.source.is_none() && !own) {
            return;
        }
        let finding = match said {
            Ok(()) => Finding::Ready,
            Err(e) => Finding::NotReady(wharf_types::chain(&e)),
        };
        shown.readiness.on(finding, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::{Attachment, Builtin, Invocation};
    use crate::error::CniError;
    use serde_json::{Map, Value};

    /// A plugin that writes down what it is called for, and refuses as many DELs as it is told.
    #[derive(Debug, Default)]
    struct Fake {
        calls: Mutex<Vec<&'static str>>,
        refusals: Mutex<u32>,
    }

    impl Builtin for Fake {
        fn name(&self) -> &'static str {
            "fake"
        }

        fn add(&self, _: &Invocation<'_>) -> Result<CniResult, CniError> {
            lock(&self.calls).push("ADD");
            Ok(CniResult::default())
        }

        fn del(&self, _: &Invocation<'_>) -> Result<(), CniError> {
            lock(&self.calls).push("DEL");
            let mut refusals = lock(&self.refusals);
            match refusals.checked_sub(1) {
                None => Ok(()),
                Some(left) => {
                    *refusals = left;
                    Err(CniError::internal("not now"))
                }
            }
        }

        fn check(&self, _: &Invocation<'_>) -> Result<(), CniError> {
            Ok(())
        }

        fn status(&self, _: &str, _: &Map<String, Value>) -> Result<(), CniError> {
            Ok(())
        }

        fn gc(&self, _: &str, _: &Map<String, Value>, _: &[Attachment]) -> Result<(), CniError> {
            Ok(())
        }
    }

    fn networks(dir: &std::path::Path, fake: &Arc<Fake>) -> Networks {
        let conf = r#"{"cniVersion": "1.0.0", "name": "net", "type": "fake"}"#;
        std::fs::write(dir.join("10-net.conf"), conf).unwrap();
        let config = NetworksConfig {
            config_dir: dir.to_owned(),
            bin_dirs: Vec::new(),
            root: dir.join("root"),
            state: dir.join("state"),
            boot: "this".to_owned(),
            builtin: true,
            default_network: false,
            grace: Duration::ZERO,
            open_files: None,
            helper: PathBuf::from("/bin/true"),
        };
        Networks::open(config, Plugins::of(vec![fake.clone()])).unwrap()
    }

    fn request(id: &str) -> AttachRequest {
        let null = || std::fs::File::open("/dev/null").unwrap().into();
        AttachRequest {
            container_id: id.to_owned(),
            ifname: "eth0".to_owned(),
            netns: PodNetns {
                path: "/run/netns/x".into(),
                fd: null(),
                route: null(),
            },
            args: Vec::new(),
            capabilities: Map::new(),
        }
    }

    fn block_on(work: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build();
        runtime.unwrap().block_on(work);
    }

    #[test]
    fn a_detachment_waits_for_an_attachment_whose_caller_has_gone_away() {
        let (dir, fake) = (tempfile::tempdir().unwrap(), Arc::new(Fake::default()));
        let networks = networks(dir.path(), &fake);
        block_on(async {
            let collecting = networks.0.network_lock("net").write_owned().await;
            let this = networks.clone();
            let attach = tokio::spawn(async move { this.attach(request("pod")).await });
            while lock(&networks.0.containers).is_empty() {
                tokio::task::yield_now().await;
            }
            attach.abort();
            attach.await.unwrap_err();
            let this = networks.clone();
            let detach = tokio::spawn(async move { this.detach("pod", None).await });
            for _long_enough_to_return in 0..100 {
                tokio::task::yield_now().await;
            }
            drop(collecting);
            detach.await.unwrap().unwrap();
            drop(networks.0.container_lock("pod").lock().await);
        });
        assert_eq!(*lock(&fake.calls), ["ADD", "DEL"]);
        assert!(networks.orphans(&BTreeSet::new()).is_empty());
    }

    #[test]
    fn an_orphan_whose_del_failed_is_tried_again_without_a_restart() {
        let (dir, fake) = (tempfile::tempdir().unwrap(), Arc::new(Fake::default()));
        let networks = networks(dir.path(), &fake);
        block_on(async {
            networks.attach(request("pod")).await.unwrap();
            *lock(&fake.refusals) = 1;
            let orphans = networks.orphans(&BTreeSet::new());
            networks.collect(orphans).await;
            assert!(!networks.orphans(&BTreeSet::new()).is_empty());
            networks.clone().collect_again(false).await;
        });
        assert!(networks.orphans(&BTreeSet::new()).is_empty());
        assert_eq!(*lock(&fake.calls), ["ADD", "DEL", "DEL"]);
    }
}
