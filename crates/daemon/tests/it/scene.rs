//! What every test begins with: a node with a registry and busybox, and a look at the machine.

use std::fs;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tonic::{Code, Status};
use wharf_api::v1::{
    ContainerConfig, ContainerState, ContainerStatus, ContainerStatusRequest, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxSandboxSecurityContext, PodSandboxConfig, PodSandboxStatus,
    PodSandboxStatusRequest,
};
use wharf_testkit::image::{self, Flavour, Image, Layer};
use wharf_testkit::machine::Machine;
use wharf_testkit::node::{Builder, Node};
use wharf_testkit::place::Place;
use wharf_testkit::registry::Registry;
use wharf_testkit::{cache, cri, debian, wait};

/// Debian's busybox, as the node's mirror serves it.
pub(crate) const BUSYBOX: &str = "registry.test/it/busybox:1";

/// What a state of another process may take to come.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Nodes that live at the same time; a machine has two cores.
const NODES_MAX: usize = 3;

/// The right to a node.
#[derive(Debug)]
struct Turn;

static NODES: Mutex<usize> = Mutex::new(0);
static FREE: Condvar = Condvar::new();

impl Turn {
    fn take() -> Self {
        let mut nodes = lock(&NODES);
        while *nodes >= NODES_MAX {
            nodes = FREE.wait(nodes).unwrap_or_else(PoisonError::into_inner);
        }
        *nodes += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *lock(&NODES) -= 1;
        FREE.notify_one();
    }
}

fn lock(nodes: &Mutex<usize>) -> MutexGuard<'_, usize> {
    nodes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Its only layer, packed once for all tests of this process.
pub(crate) fn busybox_layer() -> Layer {
    static LAYER: OnceLock<Layer> = OnceLock::new();
    let pack = || Layer::of(&debian::busybox_root().unwrap());
    LAYER.get_or_init(pack).clone()
}

/// Busybox with further layers above.
pub(crate) fn above_busybox(layers: &[Layer]) -> image::Builder {
    let all = [&[busybox_layer()], layers].concat();
    image::Builder::new(Flavour::Oci, all)
}

/// The image behind [`BUSYBOX`].
pub(crate) fn busybox() -> Image {
    above_busybox(&[]).cmd(&["sh"]).build()
}

/// A node with busybox pulled, a registry, and the look of the machine at that moment.
///
/// Fields drop in this order: the node ends before its registry does.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) node: Node,
    pub(crate) registry: Registry,
    before: Machine,
    _turn: Turn,
}

impl Scene {
    /// A node for the test of this name; none where it cannot run, which a line says.
    pub(crate) fn begin(test: &str) -> Option<Self> {
        Self::empty(test).map(Self::used)
    }

    /// Busybox is there, and a pod was.
    fn used(self) -> Self {
        let scene = self;
        scene.registry.add("it/busybox", "1", &busybox());
        scene.node.cri().pull(BUSYBOX).unwrap();
        // The first container makes the cgroup that is the parent of all; it stays.
        let pod = scene.pod("first");
        pod.finish(&shell("first", "true"));
        pod.end();
        fs::remove_file(scene.node.logs().join("first.log")).unwrap();
        scene.settled()
    }

    /// The same, of a daemon whose fault points are on.
    pub(crate) fn with_faults(test: &str) -> Option<Self> {
        Self::built(test, Builder::faults).map(Self::used)
    }

    /// The same without an image.
    pub(crate) fn empty(test: &str) -> Option<Self> {
        Self::built(test, |node| node)
    }

    /// The same, of a node after `describe`.
    pub(crate) fn built(test: &str, describe: impl FnOnce(Builder) -> Builder) -> Option<Self> {
        if skips(test) {
            return None;
        }
        let turn = Turn::take();
        let place = Place::own().unwrap();
        let registry = Registry::start_in(&place).unwrap();
        let node = describe(Node::wharf().place(&place)).start().unwrap();
        serve(&node, "registry.test", &registry.url());
        let before = node.look();
        Some(Self {
            node,
            registry,
            before,
            _turn: turn,
        })
    }

    /// The look before is now.
    pub(crate) fn settled(mut self) -> Self {
        // A shim that ends, a tree that is being deleted are seen for a moment longer.
        let ended = || {
            let shims = self.node.shims();
            let trash = Machine::default().changes(&self.node.look());
            Ok(!shims.iter().any(|p| p.name == "wharf-shim")
                && !trash.iter().any(|l| l.contains("/root/trash/")))
        };
        assert!(
            wait::until(SOON, ended).unwrap(),
            "the node does not settle"
        );
        self.before = self.node.look();
        self
    }

    /// The look before is now, with what runs.
    pub(crate) fn remember(&mut self) {
        self.before = self.node.look();
    }

    pub(crate) fn cri(&self) -> &cri::Cri {
        self.node.cri()
    }

    /// What the machine has more or less than before; ids of processes are not compared, so a
    /// daemon that was started again counts as the same.
    pub(crate) fn changes(&self) -> Vec<String> {
        self.before.changes_of_things(&self.node.look())
    }

    /// Waits until the machine is as before. What is removed after the answer (deleted trees, an
    /// exec's cgroup) may take a moment.
    pub(crate) fn leaves_nothing(&self) {
        wait::until(SOON, || Ok(self.changes().is_empty())).unwrap();
        assert_eq!(self.changes(), Vec::<String>::new());
    }

    /// The same of everything but files, for tests that pull on the way.
    pub(crate) fn leaves_nothing_but_images(&self) {
        let more = || -> Vec<String> {
            let changes = self.changes().into_iter();
            changes
                .filter(|c| !c.starts_with("+ file") || c.contains("/pods/"))
                .collect()
        };
        wait::until(SOON, || Ok(more().is_empty())).unwrap();
        assert_eq!(more(), Vec::<String>::new());
    }

    /// A pod called `name` with a network namespace of its own.
    pub(crate) fn pod(&self, name: &str) -> Pod<'_> {
        self.pod_with(name, |_| {})
    }

    /// The same after `set`.
    pub(crate) fn pod_with(&self, name: &str, set: impl FnOnce(&mut PodSandboxConfig)) -> Pod<'_> {
        let config = self.pod_config(name, set);
        let id = self.cri().run_pod(&config, "").unwrap();
        Pod {
            scene: self,
            id,
            config,
        }
    }

    /// Serves `image` as `it/NAME:1` and pulls it.
    pub(crate) fn pull(&self, name: &str, image: &Image) -> String {
        let repository = format!("it/{name}");
        self.registry.add(&repository, "1", image);
        let reference = format!("registry.test/{repository}:1");
        self.cri().pull(&reference).unwrap();
        reference
    }

    /// What [`Scene::pod_with`] asks for.
    pub(crate) fn pod_config(
        &self,
        name: &str,
        set: impl FnOnce(&mut PodSandboxConfig),
    ) -> PodSandboxConfig {
        let mut config = cri::pod(name, &self.node.logs());
        set(&mut config);
        config
    }

    /// A container's verbose `info` as JSON.
    pub(crate) fn info(&self, container: &str) -> serde_json::Value {
        let request = ContainerStatusRequest {
            container_id: container.into(),
            verbose: true,
        };
        let answer = self
            .cri()
            .wait(self.cri().runtime().container_status(request));
        serde_json::from_str(&answer.unwrap().info["info"]).unwrap()
    }

    /// Waits for its end.
    pub(crate) fn exit_of(&self, container: &str) -> ContainerStatus {
        let exited = wait::until(SOON, || {
            let status = self.cri().container_status(container);
            Ok(status.unwrap().state() == ContainerState::ContainerExited)
        });
        let status = self.cri().container_status(container).unwrap();
        assert!(exited.unwrap(), "it goes on: {status:?}");
        status
    }
}

/// Whether the test cannot run here, which a line says.
pub(crate) fn skips(test: &str) -> bool {
    if !wharf_testkit::needs_root(test) {
        return true;
    }
    let missing = ["wharf", "wharf-shim"]
        .iter()
        .any(|program| !cache::program_under_test(program).exists());
    if missing {
        println!("skipped: {test}: run `cargo build --workspace` first");
    }
    missing
}

/// A pod of a scene.
#[derive(Debug)]
pub(crate) struct Pod<'a> {
    pub(crate) scene: &'a Scene,
    pub(crate) id: String,
    pub(crate) config: PodSandboxConfig,
}

impl Pod<'_> {
    pub(crate) fn cri(&self) -> &cri::Cri {
        self.scene.cri()
    }

    pub(crate) fn create(&self, config: &ContainerConfig) -> Result<String, Status> {
        self.cri().create(&self.id, config, &self.config)
    }

    /// Created and started.
    pub(crate) fn run(&self, config: &ContainerConfig) -> String {
        let id = self.create(config).unwrap();
        self.cri().start(&id).unwrap();
        id
    }

    /// Runs it to its end; gives its status and what it said on both streams, tags taken off.
    pub(crate) fn finish(&self, config: &ContainerConfig) -> (ContainerStatus, String) {
        let id = self.run(config);
        let status = self.scene.exit_of(&id);
        let log = fs::read(&status.log_path).unwrap();
        let said = said(&String::from_utf8_lossy(&log));
        (status, said)
    }

    /// What a shell script in busybox says.
    pub(crate) fn script(&self, name: &str, script: &str) -> String {
        self.finish(&shell(name, script)).1
    }

    pub(crate) fn status(&self) -> PodSandboxStatus {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
            verbose: false,
        };
        let answer = self
            .cri()
            .wait(self.cri().runtime().pod_sandbox_status(request));
        answer.unwrap().status.unwrap()
    }

    /// Stops and removes it with everything in it.
    pub(crate) fn end(&self) {
        self.cri().stop_pod(&self.id).unwrap();
        self.cri().remove_pod(&self.id).unwrap();
    }
}

/// What the node asks when `host` is meant: `url` and nobody else, so no name is looked up.
pub(crate) fn serve(node: &Node, host: &str, url: &str) {
    let dir = node.certs_d().join(host);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("hosts.toml"), format!("server = \"{url}\"\n")).unwrap();
}

/// A container of busybox that runs a script.
pub(crate) fn shell(name: &str, script: &str) -> ContainerConfig {
    cri::container(name, BUSYBOX, &["sh", "-c", script])
}

/// A container that does nothing until it is told to stop.
pub(crate) fn idle(name: &str) -> ContainerConfig {
    shell(name, "trap 'exit 0' TERM; sleep 1000 & wait")
}

pub(crate) fn pod_linux(
    config: &mut PodSandboxConfig,
) -> &mut wharf_api::v1::LinuxPodSandboxConfig {
    config.linux.get_or_insert_default()
}

pub(crate) fn pod_security(config: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    pod_linux(config).security_context.get_or_insert_default()
}

pub(crate) fn linux(config: &mut ContainerConfig) -> &mut LinuxContainerConfig {
    config.linux.get_or_insert_default()
}

pub(crate) fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    linux(config).security_context.get_or_insert_default()
}

/// A container that was changed a little.
pub(crate) fn with(
    mut config: ContainerConfig,
    set: impl FnOnce(&mut ContainerConfig),
) -> ContainerConfig {
    set(&mut config);
    config
}

/// The words of a log in CRI format; lines that were cut in parts are whole again.
pub(crate) fn said(log: &str) -> String {
    let mut said = String::new();
    for line in log.lines() {
        let mut parts = line.splitn(4, ' ');
        let (time, stream) = (parts.next().unwrap(), parts.next().unwrap());
        let (tag, text) = (parts.next().unwrap(), parts.next().unwrap());
        assert!(time.ends_with('Z') && time.contains('T'), "{line}");
        assert!(stream == "stdout" || stream == "stderr", "{line}");
        said.push_str(text);
        match tag {
            "F" => said.push('\n'),
            "P" => {}
            other => panic!("tag {other:?} in {line}"),
        }
    }
    said
}

/// The lines `key=value` of a script's output, by key.
pub(crate) fn value<'a>(said: &'a str, key: &str) -> &'a str {
    let line = said
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {key} in {said}"))
}

/// Asserts that a request was refused with this code, in words that name all of `words`.
pub(crate) fn refused<T: std::fmt::Debug>(
    answer: Result<T, Status>,
    code: Code,
    words: &[&str],
) -> String {
    let status = answer.expect_err("it is refused");
    assert_eq!(status.code(), code, "{status:?}");
    for word in words {
        assert!(
            status.message().contains(word),
            "no {word:?} in {:?}",
            status.message()
        );
    }
    status.message().to_owned()
}

/// A v1 hierarchy's file of a container's cgroup.
pub(crate) fn cgroup_file(scene: &Scene, container: &str, controller: &str, file: &str) -> PathBuf {
    let cgroup = scene.info(container)["cgroup"].as_str().unwrap().to_owned();
    let path = PathBuf::from("/sys/fs/cgroup").join(controller);
    path.join(cgroup.trim_start_matches('/')).join(file)
}
