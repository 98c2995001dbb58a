//! A client that behaves like kubelet: it repeats what failed while something was wrong, and remembers
//! what it was told.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tonic::{Code, Request, Status};
use wharf_api::v1::{
    ContainerConfig, ContainerState, LinuxContainerResources, NamespaceMode, PodSandboxConfig,
    PullImageRequest, ReopenContainerLogRequest, RunPodSandboxRequest,
    UpdateContainerResourcesRequest,
};

use super::random::Random;
use super::tally::Report;
use crate::cri::{self, Cri};

/// Pods of one client at the same time.
const PODS: usize = 3;
/// Containers of one pod.
const CONTAINERS: usize = 4;
/// How long a request is repeated until the client loses hope.
const HOPE: Duration = Duration::from_secs(100);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);
/// Lines of a container that counts.
const LINES: usize = 1500;

/// What all clients and the faults share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) socket: PathBuf,
    pub(super) logs: PathBuf,
    /// The first one stays.
    pub(super) images: Vec<String>,
    pub(super) end: AtomicBool,
    pub(super) report: Mutex<Report>,
}

impl Shared {
    pub(super) fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_harmed(&self, pod: &str) -> bool {
        self.report().harmed.contains(pod)
    }
}

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Waits to be stopped.
    Idles,
    /// Says numbers and ends with 3.
    Counts,
}

#[derive(Debug)]
struct Container {
    id: String,
    name: String,
    work: Work,
}

#[derive(Debug)]
struct Pod {
    id: String,
    config: PodSandboxConfig,
    containers: Vec<Container>,
}

/// How a request went in the end.
enum Outcome<T> {
    Done(T),
    /// A fault has taken the pod.
    Harmed,
    Refused(Status),
}

/// One client.
pub(super) struct Worker {
    number: usize,
    random: Random,
    shared: Arc<Shared>,
    cri: Option<Cri>,
    pods: Vec<Pod>,
    serial: usize,
}

impl Worker {
    pub(super) fn new(number: usize, seed: u64, shared: Arc<Shared>) -> Self {
        Self {
            number,
            random: Random::new(seed),
            shared,
            cri: None,
            pods: Vec::new(),
            serial: 0,
        }
    }

    /// Works until the end is called.
    pub(super) fn run(mut self) {
        while !self.shared.end.load(Ordering::SeqCst) {
            if self.pods.len() < PODS && self.random.below(4) == 0 || self.pods.is_empty() {
                self.run_pod();
                continue;
            }
            let at = self.random.below(self.pods.len());
            match self.random.below(24) {
                0..6 => self.create(at),
                6..13 => self.exec(at),
                13..15 => self.stop_container(at),
                15 => self.update(at),
                16 => self.reopen(at),
                17 => self.look(at),
                18..20 => self.pull(),
                20 => self.remove_image(),
                _ => self.end_pod(at),
            }
        }
    }

    /// Repeats a request until it has an answer that repeating would not change.
    fn call<T>(
        &mut self,
        what: &'static str,
        pod: &str,
        ask: impl Fn(&Cri) -> Result<T, Status>,
    ) -> Outcome<T> {
        let begin = Instant::now();
        let mut last = String::from("no connection");
        while begin.elapsed() < HOPE {
            let Some(cri) = &self.cri else {
                self.cri = Cri::connect(&self.shared.socket).ok();
                std::thread::park_timeout(PAUSE);
                continue;
            };
            let status = match ask(cri) {
                Ok(answer) => {
                    self.shared.report().operation(what);
                    return Outcome::Done(answer);
                }
                Err(status) => status,
            };
            self.shared.report().failure(what, status.code());
            last = format!("{:?}: {}", status.code(), status.message());
            match status.code() {
                _ if self.shared.is_harmed(pod) && !what.starts_with("end") => {
                    return Outcome::Harmed;
                }
                Code::Unknown | Code::Cancelled => self.cri = None,
                Code::Unavailable | Code::DeadlineExceeded => {}
                // Bytes that were spoilt on the way.
                Code::DataLoss if what == "pull image" => {}
                _ if self.shared.is_harmed(pod) => {}
                _ => return Outcome::Refused(status),
            }
            std::thread::park_timeout(PAUSE);
        }
        let text = format!("{what} of {pod:?} got no answer in {HOPE:?}: {last}");
        self.shared.report().unexpected(text);
        Outcome::Harmed
    }

    /// The same, when no refusal is expected.
    fn must<T>(
        &mut self,
        what: &'static str,
        pod: &str,
        ask: impl Fn(&Cri) -> Result<T, Status>,
    ) -> Option<T> {
        match self.call(what, pod, ask) {
            Outcome::Done(answer) => Some(answer),
            Outcome::Harmed => None,
            Outcome::Refused(status) => {
                self.complain(what, pod, &status);
                None
            }
        }
    }

    fn complain(&self, what: &str, pod: &str, status: &Status) {
        let text = format!(
            "{what} of {pod:?}: {:?}: {}",
            status.code(),
            status.message()
        );
        self.shared.report().unexpected(text);
    }

    fn run_pod(&mut self) {
        self.serial += 1;
        let name = format!("w{}-{}", self.number, self.serial);
        let mut config = cri::pod(&name, &self.shared.logs.join(&name));
        if self.random.below(4) == 0
            && let Some(options) = config
                .linux
                .as_mut()
                .and_then(|l| l.security_context.as_mut())
                .and_then(|s| s.namespace_options.as_mut())
        {
            options.pid = NamespaceMode::Pod.into();
        }
        // Some lose patience in the middle, and ask again.
        if self.random.below(3) == 0
            && let Some(cri) = &self.cri
        {
            let mut request = Request::new(RunPodSandboxRequest {
                config: Some(config.clone()),
                ..Default::default()
            });
            request.set_timeout(self.random.pause(1, 30));
            let cut = cri.wait(cri.runtime().run_pod_sandbox(request));
            self.shared.report().fault(match cut {
                Ok(_) => "deadline that held",
                Err(_) => "deadline that passed",
            });
        }
        if let Some(id) = self.must("run pod", "", |cri| cri.run_pod(&config, "")) {
            self.pods.push(Pod {
                id,
                config,
                containers: Vec::new(),
            });
        }
    }

    fn create(&mut self, at: usize) {
        if self.pods[at].containers.len() >= CONTAINERS {
            return self.remove_container(at);
        }
        self.serial += 1;
        let name = format!("c{}", self.serial);
        let work = *self
            .random
            .one(&[Work::Idles, Work::Counts])
            .unwrap_or(&Work::Idles);
        let script = match work {
            Work::Idles => "trap 'exit 0' TERM; sleep 100000 & wait".to_owned(),
            Work::Counts => format!("seq 1 {LINES}; exit 3"),
        };
        let images = self.shared.images.clone();
        let image = self.random.one(&images).cloned().unwrap_or_default();
        let config = cri::container(&name, &image, &["sh", "-c", &script]);
        let (pod, of) = (self.pods[at].id.clone(), self.pods[at].config.clone());
        let Some(id) = self.create_with_image(&pod, &config, &of, &image) else {
            return;
        };
        self.pods[at].containers.push(Container {
            id: id.clone(),
            name,
            work,
        });
        if !self.start(&pod, &id, work) {
            return;
        }
        if work == Work::Counts && self.random.below(3) > 0 {
            self.check_count(at);
        }
    }

    /// Who repeats a start, because the daemon went before it answered, may find that it was quick.
    fn start(&mut self, pod: &str, id: &str, work: Work) -> bool {
        match self.call("start container", pod, |cri| cri.start(id)) {
            Outcome::Done(()) => true,
            Outcome::Harmed => false,
            Outcome::Refused(s)
                if s.code() == Code::FailedPrecondition
                    && work == Work::Counts
                    && s.message().contains("exited") =>
            {
                true
            }
            Outcome::Refused(status) => {
                self.complain("start container", pod, &status);
                false
            }
        }
    }

    /// Another client may remove the image at any moment.
    fn create_with_image(
        &mut self,
        pod: &str,
        config: &ContainerConfig,
        of: &PodSandboxConfig,
        image: &str,
    ) -> Option<String> {
        loop {
            match self.call("create container", pod, |cri| cri.create(pod, config, of)) {
                Outcome::Done(id) => return Some(id),
                Outcome::Harmed => return None,
                Outcome::Refused(s)
                    if s.code() == Code::NotFound && is_image(s.message(), image) =>
                {
                    self.must("pull image", "", |cri| cri.pull(image))?;
                }
                Outcome::Refused(status) => {
                    self.complain("create container", pod, &status);
                    return None;
                }
            }
        }
    }

    /// The newest container has said every number once, and ended with its code.
    fn check_count(&mut self, at: usize) {
        let (pod, logs) = (
            self.pods[at].id.clone(),
            self.pods[at].config.log_directory.clone(),
        );
        let Some((id, name)) = self.pods[at]
            .containers
            .last()
            .map(|c| (c.id.clone(), c.name.clone()))
        else {
            return;
        };
        let begin = Instant::now();
        let code = loop {
            let look = self.must("container status", &pod, |cri| cri.container_status(&id));
            let Some(status) = look else { return };
            if status.state() == ContainerState::ContainerExited {
                break status.exit_code;
            }
            if begin.elapsed() > HOPE {
                let text = format!("container {id} does not end: {status:?}");
                return self.shared.report().unexpected(text);
            }
            std::thread::park_timeout(PAUSE);
        };
        let text = fs::read_to_string(PathBuf::from(logs).join(format!("{name}.log")));
        let text = text.unwrap_or_default();
        let said = text.lines().filter_map(|l| l.splitn(4, ' ').nth(3));
        let whole = said.eq((1..=LINES).map(|n| n.to_string()));
        if (code != 3 || !whole) && !self.shared.is_harmed(&pod) {
            let lines = text.lines().count();
            let text = format!("container {id} of {pod} ended with {code} and {lines} lines");
            self.shared.report().unexpected(text);
        }
    }

    fn container(&mut self, at: usize, work: Work) -> Option<String> {
        let of: Vec<_> = self.pods[at]
            .containers
            .iter()
            .filter(|c| c.work == work)
            .collect();
        self.random.one(&of).map(|c| c.id.clone())
    }

    fn exec(&mut self, at: usize) {
        let Some(id) = self.container(at, Work::Idles) else {
            return self.create(at);
        };
        let pod = self.pods[at].id.clone();
        if self.random.below(12) == 0 {
            // Killed at its deadline.
            let cmd = ["sleep", "100000"];
            match self.call("exec with a deadline", &pod, |cri| {
                match cri.exec(&id, &cmd, 1) {
                    Err(s) if s.code() == Code::DeadlineExceeded => Ok(()),
                    other => other.map(drop),
                }
            }) {
                Outcome::Refused(status) => self.complain("exec", &pod, &status),
                Outcome::Done(()) | Outcome::Harmed => {}
            }
            return;
        }
        let answer = self.must("exec", &pod, |cri| cri.exec(&id, &["echo", "hello"], 20));
        if let Some(answer) = answer
            && (answer.exit_code, answer.stdout.as_slice()) != (0, b"hello\n")
            && !self.shared.is_harmed(&pod)
        {
            let text = format!("exec in {id}: {answer:?}");
            self.shared.report().unexpected(text);
        }
    }

    fn stop_container(&mut self, at: usize) {
        let Some(id) = self.container(at, Work::Idles) else {
            return;
        };
        let (pod, grace) = (
            self.pods[at].id.clone(),
            i64::from(self.random.below(2) == 0),
        );
        if self
            .must("stop container", &pod, |cri| cri.stop(&id, grace))
            .is_none()
        {
            return;
        }
        let look = self.must("container status", &pod, |cri| cri.container_status(&id));
        if let Some(status) = look
            && status.state() != ContainerState::ContainerExited
            && !self.shared.is_harmed(&pod)
        {
            let text = format!("container {id} was stopped and is {:?}", status.state());
            self.shared.report().unexpected(text);
        }
        self.forget(at, &id);
        self.must("remove container", &pod, |cri| cri.remove(&id));
    }

    fn forget(&mut self, at: usize, id: &str) {
        self.pods[at].containers.retain(|c| c.id != id);
    }

    fn remove_container(&mut self, at: usize) {
        let containers = &self.pods[at].containers;
        let Some(id) = self.random.one(containers).map(|c| c.id.clone()) else {
            return;
        };
        let pod = self.pods[at].id.clone();
        self.forget(at, &id);
        self.must("remove container", &pod, |cri| cri.remove(&id));
    }

    fn update(&mut self, at: usize) {
        let Some(id) = self.container(at, Work::Idles) else {
            return;
        };
        let request = UpdateContainerResourcesRequest {
            container_id: id,
            linux: Some(LinuxContainerResources {
                cpu_shares: 100 + self.random.below(900) as i64,
                ..Default::default()
            }),
            ..Default::default()
        };
        let pod = self.pods[at].id.clone();
        self.must("update limits", &pod, |cri| {
            cri.wait(cri.runtime().update_container_resources(request.clone()))
        });
    }

    fn reopen(&mut self, at: usize) {
        let Some(container_id) = self.container(at, Work::Idles) else {
            return;
        };
        let pod = self.pods[at].id.clone();
        self.must("reopen log", &pod, |cri| {
            let container_id = container_id.clone();
            let request = ReopenContainerLogRequest { container_id };
            cri.wait(cri.runtime().reopen_container_log(request))
        });
    }

    /// The pod is listed, and its containers are known.
    fn look(&mut self, at: usize) {
        let pod = self.pods[at].id.clone();
        let listed = self.must("list pods", &pod, Cri::pods);
        if listed.is_some_and(|pods| !pods.contains(&pod)) {
            let text = format!("pod {pod} is not listed");
            self.shared.report().unexpected(text);
        }
        for id in self.pods[at]
            .containers
            .iter()
            .map(|c| c.id.clone())
            .collect::<Vec<_>>()
        {
            self.must("container status", &pod, |cri| cri.container_status(&id));
        }
    }

    fn pull(&mut self) {
        let images = self.shared.images.clone();
        let Some(image) = self.random.one(&images) else {
            return;
        };
        if self.random.below(3) == 0
            && let Some(cri) = &self.cri
        {
            let mut request = Request::new(PullImageRequest {
                image: Some(cri::spec(image)),
                ..Default::default()
            });
            request.set_timeout(self.random.pause(1, 60));
            let cut = cri.wait(cri.image().pull_image(request));
            self.shared.report().fault(match cut {
                Ok(_) => "deadline that held",
                Err(_) => "deadline that passed",
            });
            return;
        }
        self.must("pull image", "", |cri| cri.pull(image));
    }

    fn remove_image(&mut self) {
        let images = self.shared.images.clone();
        if let Some(image) = images.get(1..).and_then(|i| self.random.one(i)) {
            self.must("remove image", "", |cri| cri.remove_image(image));
        }
    }

    /// Some are stopped first, as kubelet does; some are removed as they are.
    fn end_pod(&mut self, at: usize) {
        let pod = self.pods.swap_remove(at);
        let id = &pod.id;
        if self.random.below(3) > 0 {
            self.must("end: stop pod", id, |cri| cri.stop_pod(id));
        }
        self.must("end: remove pod", id, |cri| cri.remove_pod(id));
    }
}

/// Whether it is said that the image, or a layer of it, was removed.
fn is_image(text: &str, image: &str) -> bool {
    text.contains(image) || text.contains("pull the image again")
}
