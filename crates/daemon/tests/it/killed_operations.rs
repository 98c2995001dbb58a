//! What kubelet asks for, as operations that can be cut at any step and repeated.

use tonic::{Code, Status};
use wharf_api::v1::{
    ContainerConfig, ContainerState, ImageStatusRequest, ListContainersRequest, ListImagesRequest,
    ListPodSandboxRequest, NamespaceMode, PodSandboxConfig, PodSandboxState,
    PodSandboxStatusRequest,
};
use wharf_testkit::image::{Image, Layer};
use wharf_testkit::tar::Entry;
use wharf_testkit::wait;

use crate::scene::{
    BUSYBOX, SOON, Scene, above_busybox, idle, pod_security, security, shell, with,
};

/// An operation that is cut and repeated.
pub(crate) trait Operation {
    /// How the names of its own fault points begin.
    fn own_points(&self) -> &'static [&'static str];
    /// Only these points are of interest; by default all that it passes.
    fn only(&self) -> Option<&'static [&'static str]> {
        None
    }
    /// How the names of points begin at which a failure is none of the whole: it is logged, or made good
    /// in the background.
    fn tolerates(&self) -> &'static [&'static str] {
        &[]
    }
    /// Whether an error is tried there. What takes down is tried again after a pause: only its own.
    fn may_fail(&self, point: &str, turn: u64) -> bool {
        let own = self.own_points().iter().any(|own| point.starts_with(own));
        self.tolerates() != ALL || (own && turn == 1)
    }
    /// Makes what has to be there before.
    fn prepare(&mut self, scene: &Scene);
    /// Asks for it; the same again after a cut.
    fn request(&mut self, scene: &Scene) -> Result<(), Status>;
    /// What is true between the cut and the repetition.
    fn meanwhile(&mut self, _scene: &Scene) {}
    /// What is true when it was answered; then everything of it goes.
    fn finish(&mut self, scene: &Scene);
}

/// The pod that an operation works in or on, with what it needs to be asked for again.
#[derive(Debug, Default)]
struct Own {
    config: PodSandboxConfig,
    pod: String,
    containers: Vec<String>,
}

const POD: &str = "cut";

impl Own {
    fn pod(scene: &Scene) -> Self {
        let config = scene.pod_config(POD, |config| {
            // Containers that share PIDs with the node are killed by their cgroups.
            let options = &mut pod_security(config).namespace_options;
            options.get_or_insert_default().pid = NamespaceMode::Node.into();
        });
        let pod = scene.cri().run_pod(&config, "").unwrap();
        let containers = Vec::new();
        Self {
            config,
            pod,
            containers,
        }
    }

    fn with_running(scene: &Scene, containers: &[ContainerConfig]) -> Self {
        let mut own = Self::pod(scene);
        for config in containers {
            let id = scene.cri().create(&own.pod, config, &own.config).unwrap();
            scene.cri().start(&id).unwrap();
            own.containers.push(id);
        }
        own
    }

    fn end(&self, scene: &Scene) {
        scene.cri().stop_pod(&self.pod).unwrap();
        scene.cri().remove_pod(&self.pod).unwrap();
    }
}

/// What takes down is tried again.
const ALL: &[&str] = &[""];

/// Does not end when it is asked to, and shares the node's PIDs.
fn stubborn(name: &str) -> ContainerConfig {
    with(shell(name, "trap '' TERM; sleep 1000 & wait; wait"), |c| {
        let options = &mut security(c).namespace_options;
        options.get_or_insert_default().pid = NamespaceMode::Node.into();
    })
}

fn pods_called(scene: &Scene, name: &str) -> Vec<String> {
    let mut client = scene.cri().runtime();
    let all = scene
        .cri()
        .wait(client.list_pod_sandbox(ListPodSandboxRequest::default()));
    let mine = all.unwrap().items.into_iter();
    mine.filter(|p| p.metadata.as_ref().is_some_and(|m| m.name == name))
        .map(|p| p.id)
        .collect()
}

fn containers_of(scene: &Scene, pod: &str) -> Vec<String> {
    let mut request = ListContainersRequest::default();
    request.filter.get_or_insert_default().pod_sandbox_id = pod.into();
    let mut client = scene.cri().runtime();
    let all = scene.cri().wait(client.list_containers(request));
    all.unwrap().containers.into_iter().map(|c| c.id).collect()
}

fn state_of(scene: &Scene, pod: &str) -> PodSandboxState {
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: pod.into(),
        verbose: false,
    };
    let mut client = scene.cri().runtime();
    let answer = scene.cri().wait(client.pod_sandbox_status(request));
    answer.unwrap().status.unwrap().state()
}

fn exit(scene: &Scene, container: &str) -> (i32, String) {
    let status = scene.exit_of(container);
    (status.exit_code, status.reason)
}

/// `RunPodSandbox`.
#[derive(Debug, Default)]
pub(crate) struct RunPod(Own);

impl Operation for RunPod {
    fn own_points(&self) -> &'static [&'static str] {
        &["run pod: ", "save record: "]
    }

    fn prepare(&mut self, scene: &Scene) {
        self.0.config = scene.pod_config(POD, |_| {});
    }

    fn request(&mut self, scene: &Scene) -> Result<(), Status> {
        self.0.pod = scene.cri().run_pod(&self.0.config, "")?;
        Ok(())
    }

    fn finish(&mut self, scene: &Scene) {
        assert_eq!(pods_called(scene, POD), [&*self.0.pod]);
        assert_eq!(state_of(scene, &self.0.pod), PodSandboxState::SandboxReady);
        let again = scene.cri().run_pod(&self.0.config, "").unwrap();
        assert_eq!(again, self.0.pod);
        let id = scene
            .cri()
            .create(&self.0.pod, &idle("c"), &self.0.config)
            .unwrap();
        scene.cri().start(&id).unwrap();
        self.0.end(scene);
    }
}

/// `CreateContainer`.
#[derive(Debug, Default)]
pub(crate) struct Create {
    own: Own,
    id: String,
}

impl Operation for Create {
    fn own_points(&self) -> &'static [&'static str] {
        &["create container: ", "ask shim: "]
    }

    fn prepare(&mut self, scene: &Scene) {
        self.own = Own::pod(scene);
    }

    fn request(&mut self, scene: &Scene) -> Result<(), Status> {
        let (pod, config) = (&self.own.pod, &self.own.config);
        self.id = scene.cri().create(pod, &idle("c"), config)?;
        Ok(())
    }

    fn finish(&mut self, scene: &Scene) {
        assert_eq!(containers_of(scene, &self.own.pod), [&*self.id]);
        scene.cri().start(&self.id).unwrap();
        let said = scene.cri().exec(&self.id, &["echo", "in"], 10).unwrap();
        assert_eq!(said.stdout, b"in\n");
        self.own.end(scene);
    }
}

/// `CreateContainer` with a volume that there cannot be, which is found out late.
#[derive(Debug, Default)]
pub(crate) struct CreateInvalid(Own);

impl Operation for CreateInvalid {
    fn own_points(&self) -> &'static [&'static str] {
        &["remove container: cgroup removed"]
    }

    fn tolerates(&self) -> &'static [&'static str] {
        ALL
    }

    fn prepare(&mut self, scene: &Scene) {
        self.0 = Own::pod(scene);
    }

    fn request(&mut self, scene: &Scene) -> Result<(), Status> {
        let config = with(idle("c"), |c| {
            c.mounts.push(wharf_api::v1::Mount {
                host_path: "/dev/null/there".into(),
                container_path: "/volume".into(),
                ..Default::default()
            });
        });
        match scene.cri().create(&self.0.pod, &config, &self.0.config) {
            Err(status) if status.message().contains("/dev/null/there") => Ok(()),
            answer => answer.map(|id| panic!("{id} has a volume below a file")),
        }
    }

    fn finish(&mut self, scene: &Scene) {
        assert_eq!(containers_of(scene, &self.0.pod), [""; 0]);
        // With another name: an undoing that failed is tried again, and keeps the name until then.
        let (pod, config) = (&self.0.pod, &self.0.config);
        let id = scene.cri().create(pod, &idle("d"), config).unwrap();
        scene.cri().start(&id).unwrap();
        self.0.end(scene);
    }
}

/// `StartContainer`.
#[derive(Debug, Default)]
pub(crate) struct Start {
    own: Own,
    id: String,
}

impl Operation for Start {
    fn own_points(&self) -> &'static [&'static str] {
        &["start container: "]
    }

    fn tolerates(&self) -> &'static [&'static str] {
        // The shim knows what was started.
        &["save record: draft written", "save record: written"]
    }

    fn prepare(&mut self, scene: &Scene) {
        self.own = Own::pod(scene);
        let (pod, config) = (&self.own.pod, &self.own.config);
        self.id = scene.cri().create(pod, &idle("c"), config).unwrap();
    }

    fn request(&mut self, scene: &Scene) -> Result<(), Status> {
        match scene.cri().start(&self.id) {
            // A start that failed is final: kubelet removes the container and makes another one.
            Err(status) if status.code() == Code::FailedPrecondition => {
                scene.cri().remove(&self.id)?;
                let (pod, config) = (&self.own.pod, &self.own.config);
                self.id = scene.cri().create(pod, &idle("c"), config)?;
                scene.cri().start(&self.id)
            }
            answer => answer,
        }
    }

    fn finish(&mut self, scene: &Scene) {
        assert_eq!(containers_of(scene, &self.own.pod), [&*self.id]);
        let status = scene.cri().container_status(&self.id).unwrap();
        assert_eq!(
            status.state(),
            ContainerState::ContainerRunning,
            "{status:?}"
        );
        assert!(status.started_at >= status.created_at, "{status:?}");
        let pid = scene.info(&self.id)["pid"].as_i64().unwrap();
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(line.starts_with(b"sh\0-c\0"), "its program runs");
        self.own.end(scene);
    }
}

/// `ExecSync`.
#[derive(Debug, Default)]
pub(crate) struct Exec {
    own: Own,
    said: Vec<u8>,
}

impl Operation for Exec {
    fn own_points(&self) -> &'static [&'static str] {
        &[
            "exec: cgroup made",
            "exec: begun",
            "exec: ended",
            "exec: output collected",
        ]
    }

    fn prepare(&mut self, scene: &Scene) {
        self.own = Own::with_running(scene, &[idle("c")]);
    }

    fn request(&mut self, scene: &Scene) -> Result<(), Status> {
        let said = scene
            .cri()
            .exec(&self.own.containers[0], &["echo", "hi"], 10)?;
        self.said = said.stdout;
        Ok(())
    }

    fn finish(&mut self, scene: &Scene) {
        assert_eq!(self.said, b"hi\n");
        self.own.end(scene);
    }
}

/// `ExecSync` over its deadline.
#[derive(Debug, Default)]
pub(crate) struct ExecOverdue(Own);

impl Operation for ExecOverdue {
    fn own_points(&self) -> &'static [&'static str] {
        &["exec: killed"]
    }

    fn only(&self) -> Option<&'static [&'static str]> {
        Some(self.own_points())
    }

    fn prepare(&mut self, scene: &Scene) {
        self.0 = Own::with_running(scene, &[idle("c")]);
    }

    fn request(&mut self, scene: &Scene) -> Result<(), Status> {
        match scene.cri().exec(&self.0.containers[0], &["sleep", "99"], 1) {
            Err(status) if status.code() == Code::DeadlineExceeded => Ok(()),
            answer => answer.map(|answer| panic!("it goes on for 99 seconds: {answer:?}")),
        }
    }

    fn finish(&mut self, scene: &Scene) {
        let sleeps = || {
            let all = wharf_testkit::machine::processes(scene.node.name());
            all.into_iter().any(|p| p.command == "sleep 99")
        };
        assert!(wait::until(SOON, || Ok(!sleeps())).unwrap());
        self.0.end(scene);
    }
}

/// `StopContainer`: one that ends when it is asked to, one that has to be killed.
#[derive(Debug, Default)]
pub(crate) struct Stop(Own);

impl Operation for Stop {
    fn own_points(&self) -> &'static [&'static str] {
        &["stop container: "]
    }

    fn tolerates(&self) -> &'static [&'static str] {
        ALL
    }

    fn prepare(&mut self, scene: &Scene) {
        self.0 = Own::with_running(scene, &[idle("obeys"), stubborn("stubborn")]);
        // Its trap is set when it has a child.
        let pid = scene.info(&self.0.containers[0])["pid"].as_i64().unwrap();
        let children = || std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let ready = wait::until(SOON, || Ok(!children()?.is_empty()));
        assert!(ready.unwrap());
    }

    fn request(&mut self, scene: &Scene) -> Result<(), Status> {
        scene.cri().stop(&self.0.containers[0], 30)?;
        scene.cri().stop(&self.0.containers[1], 0)
    }

    fn finish(&mut self, scene: &Scene) {
        let ends = [
            exit(scene, &self.0.containers[0]),
            exit(scene, &self.0.containers[1]),
        ];
        assert_eq!(ends, [(0, "Completed".into()), (137, "Error".into())]);
        assert_eq!(state_of(scene, &self.0.pod), PodSandboxState::SandboxReady);
        self.0.end(scene);
    }
}

/// `RemoveContainer` of one that runs.
#[derive(Debug, Default)]
pub(crate) struct Remove(Own);

impl Operation for Remove {
    fn own_points(&self) -> &'static [&'static str] {
        &[
            "remove container: deleted in the shim",
            "remove container: snapshot ",
            "remove container: plan removed",
            "remove container: record removed",
        ]
    }

    fn tolerates(&self) -> &'static [&'static str] {
        ALL
    }

    fn prepare(&mut self, scene: &Scene) {
        self.0 = Own::with_running(scene, &[idle("c")]);
    }

    fn request(&mut self, scene: &Scene) -> Result<(), Status> {
        scene.cri().remove(&self.0.containers[0])
    }

    fn finish(&mut self, scene: &Scene) {
        assert_eq!(containers_of(scene, &self.0.pod), [""; 0]);
        let (pod, config) = (&self.0.pod, &self.0.config);
        let again = scene.cri().create(pod, &idle("c"), config).unwrap();
        scene.cri().start(&again).unwrap();
        self.0.end(scene);
    }
}

/// `StopPodSandbox` of a pod with containers.
#[derive(Debug, Default)]
pub(crate) struct StopPod(Own);

impl Operation for StopPod {
    fn own_points(&self) -> &'static [&'static str] {
        &["stop pod: "]
    }

    fn tolerates(&self) -> &'static [&'static str] {
        ALL
    }

    fn prepare(&mut self, scene: &Scene) {
        self.0 = Own::with_running(scene, &[idle("c"), stubborn("stubborn")]);
    }

    fn request(&mut self, scene: &Scene) -> Result<(), Status> {
        scene.cri().stop_pod(&self.0.pod)
    }

    fn finish(&mut self, scene: &Scene) {
        assert_eq!(
            state_of(scene, &self.0.pod),
            PodSandboxState::SandboxNotready
        );
        for container in &self.0.containers {
            assert_eq!(exit(scene, container), (137, "Error".into()));
        }
        self.0.end(scene);
        assert_eq!(pods_called(scene, POD), [""; 0]);
    }
}

/// `RemovePodSandbox` of a pod with a container that runs.
#[derive(Debug, Default)]
pub(crate) struct RemovePod(Own);

impl Operation for RemovePod {
    fn own_points(&self) -> &'static [&'static str] {
        &["remove pod: "]
    }

    fn tolerates(&self) -> &'static [&'static str] {
        ALL
    }

    fn prepare(&mut self, scene: &Scene) {
        self.0 = Own::with_running(scene, &[idle("c")]);
    }

    fn request(&mut self, scene: &Scene) -> Result<(), Status> {
        scene.cri().remove_pod(&self.0.pod)
    }

    fn finish(&mut self, scene: &Scene) {
        assert_eq!(pods_called(scene, POD), [""; 0]);
        let again = scene.cri().run_pod(&self.0.config, "").unwrap();
        scene.cri().remove_pod(&again).unwrap();
    }
}

/// An image with one layer of its own, of several pieces, and one that others have too.
fn image_saying(text: &str) -> Image {
    let filler: Vec<u8> = (0_u32..400_000)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let entries = [
        Entry::dir("data"),
        Entry::file("data/text", text),
        Entry::file("data/filler", filler),
    ];
    above_busybox(&[Layer::of(&entries)])
        .cmd(&["cat", "/data/text"])
        .build()
}

const MOVING: &str = "registry.test/it/moving:1";

fn id_of(scene: &Scene, name: &str) -> Option<String> {
    let request = ImageStatusRequest {
        image: Some(wharf_testkit::cri::spec(name)),
        verbose: false,
    };
    let mut client = scene.cri().image();
    let answer = scene.cri().wait(client.image_status(request));
    answer.unwrap().image.map(|image| image.id)
}

fn images(scene: &Scene) -> usize {
    let mut client = scene.cri().image();
    let list = scene
        .cri()
        .wait(client.list_images(ListImagesRequest::default()));
    list.unwrap().images.len()
}

/// `PullImage` of a name that means another image than last time.
pub(crate) struct Pull {
    old: Image,
    new: Image,
    had: String,
    got: String,
}

impl Default for Pull {
    fn default() -> Self {
        let (old, new) = (image_saying("old"), image_saying("new"));
        let (had, got) = (String::new(), String::new());
        Self { old, new, had, got }
    }
}

impl Operation for Pull {
    fn own_points(&self) -> &'static [&'static str] {
        &["pull: "]
    }

    fn prepare(&mut self, scene: &Scene) {
        scene.registry.add("it/moving", "1", &self.old);
        self.had = scene.cri().pull(MOVING).unwrap();
        scene.registry.add("it/moving", "1", &self.new);
        self.got.clear();
    }

    fn request(&mut self, scene: &Scene) -> Result<(), Status> {
        self.got = scene.cri().pull(MOVING)?;
        Ok(())
    }

    fn meanwhile(&mut self, scene: &Scene) {
        // The name is never lost on the way, and what it means is whole.
        let pod = scene.pod("between");
        let id = id_of(scene, MOVING).expect("the name is there");
        let config = wharf_testkit::cri::container("c", MOVING, &[]);
        let (_, said) = pod.finish(&config);
        let expected = if id == self.had { "old" } else { "new" };
        assert_eq!(said, expected);
        pod.end();
        std::fs::remove_file(scene.node.logs().join("c.log")).unwrap();
    }

    fn finish(&mut self, scene: &Scene) {
        assert_ne!(self.got, self.had);
        assert_eq!(id_of(scene, MOVING).as_ref(), Some(&self.got));
        // The old one is still known by its digest.
        assert_eq!(images(scene), 3);
        scene.cri().remove_image(MOVING).unwrap();
        scene.cri().remove_image(&self.had).unwrap();
        assert_eq!(images(scene), 1);
    }
}

/// `RemoveImage` of an image with two names.
#[derive(Debug, Default)]
pub(crate) struct RemoveImage;

const OTHER: &str = "registry.test/it/other:1";

impl Operation for RemoveImage {
    fn own_points(&self) -> &'static [&'static str] {
        &["remove image: ", "collect: "]
    }

    // Space that could not be given back then is given back with the next image, or at the next start.
    fn may_fail(&self, _point: &str, _turn: u64) -> bool {
        false
    }

    fn prepare(&mut self, scene: &Scene) {
        let image = above_busybox(&[Layer::of(&[Entry::file("f", "x")])]).build();
        scene.registry.add("it/moving", "1", &image);
        scene.registry.add("it/other", "1", &image);
        scene.cri().pull(MOVING).unwrap();
        scene.cri().pull(OTHER).unwrap();
    }

    fn request(&mut self, scene: &Scene) -> Result<(), Status> {
        scene.cri().remove_image(MOVING)
    }

    fn meanwhile(&mut self, scene: &Scene) {
        let names = [id_of(scene, MOVING), id_of(scene, OTHER)];
        assert_eq!(names[0], names[1], "all its names or none");
    }

    fn finish(&mut self, scene: &Scene) {
        assert_eq!(
            [id_of(scene, MOVING), id_of(scene, OTHER)],
            [None, None],
            "all its names are gone"
        );
        assert!(id_of(scene, BUSYBOX).is_some());
    }
}
