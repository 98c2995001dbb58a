//! The steps of a pod on the machine.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use wharf_plan::Fds;
use wharf_plan::container::{Namespace, Namespaces, SysctlPlan};
use wharf_plan::message::{Body, Failure, FailureKind, Hello, MakeShim, Shutdown, Welcome};
use wharf_runtime::spec::capability;
use wharf_sys::fault::point;
use wharf_types::{Kind, PodId};

use super::held::Held;
use super::{Parts, block, cgroup_failure, passed};
use crate::config::NetworkMode;
use crate::error::{RequestError, io_kind};
use crate::files;
use crate::limits::{HOSTNAME_MAX, SHIM_ANSWER};
use crate::oci::profiles;
use crate::record::PodRecord;
use crate::shim::identity;
use crate::shim::link::{Link, LinkError};
use crate::shim::release::{self, Release};
use crate::shim::socket;
use crate::shim::zygote::NewShim;
use crate::spec::{NamespaceMode, PodSpec};
use crate::world::{Adoption, ShimEvents, ShimFacts, StepFailure};

const START: &str = "start shim";
const END: &str = "end shim";
/// Where a pod's directory says which process its shim is.
const IDENTITY: &str = "shim.pid";
/// A shim is killed after everything else: with it goes its pod.
const SHIM_OOM_SCORE: i32 = -999;

fn refuse(e: RequestError) -> StepFailure {
    StepFailure::new("check the request", e.kind(), e)
}

fn io(stage: &'static str, what: String) -> impl FnOnce(std::io::Error) -> StepFailure {
    move |e| StepFailure::new(stage, io_kind(&e), format!("{what}: {e}"))
}

/// A pod whose namespaces could not be made. What the shim finds invalid there is the request's own:
/// its choice of namespaces, its sysctls, and the values that the kernel does not take for them.
fn unmade(failure: Failure) -> StepFailure {
    let invalid = failure.kind == i32::from(FailureKind::Invalid) || failure.step == "sysctl";
    let error = LinkError::Failed(failure);
    let kind = if invalid { Kind::Invalid } else { error.kind() };
    StepFailure::new("make namespaces", kind, error)
}

impl Parts {
    /// Completes what the specification leaves open, and refuses what cannot be had.
    pub(super) fn plan_pod(&self, record: &mut PodRecord) -> Result<(), StepFailure> {
        let spec = record.spec.clone();
        self.check_pod(&spec).map_err(refuse)?;
        let on_host = spec.security.namespaces.network == NamespaceMode::Node;
        record.hostname = match spec.hostname.is_empty() || on_host {
            true => self.host.hostname.clone(),
            false => spec.hostname.clone(),
        };
        record.cgroup = match spec.cgroup_parent.is_empty() {
            true => self.own_cgroup(&record.id),
            false => spec.cgroup_parent.trim_matches('/').to_owned(),
        };
        // Only the path matters here; wrong ones are refused before anything is made.
        self.cgroups
            .view(&record.cgroup)
            .map_err(|e| cgroup_failure("check the request", e))?;
        Ok(())
    }

    fn check_pod(&self, spec: &PodSpec) -> Result<(), RequestError> {
        let invalid = |field, reason: String| Err(RequestError::Invalid { field, reason });
        let own = spec.security.namespaces.network != NamespaceMode::Node;
        if !spec.runtime_handler.is_empty() {
            let reason = format!(
                "{:?} is not known: only the default, \"\", is",
                spec.runtime_handler
            );
            return invalid("runtime_handler", reason);
        }
        if spec.security.namespaces.user.is_some() {
            let text = "user namespaces are not supported yet".to_owned();
            return Err(RequestError::Unsupported(text));
        }
        profiles::refuse_labels(spec.security.selinux.as_ref(), self.host.selinux)?;
        if spec.security.run_as_group.is_some() && spec.security.run_as_user.is_none() {
            let reason = "a group without a user: set run_as_user too".to_owned();
            return invalid("linux.security_context.run_as_group", reason);
        }
        if spec.hostname.len() > HOSTNAME_MAX {
            let reason = format!("longer than {HOSTNAME_MAX} bytes");
            return invalid("hostname", reason);
        }
        let unconnected = own && self.config.network == NetworkMode::None;
        let port = spec.port_mappings.iter().find(|p| p.host_port != 0);
        if unconnected && let Some(port) = port {
            let text = format!(
                "host port {}: pods have no network here (cri.network = \"none\")",
                port.host_port
            );
            return Err(RequestError::Unsupported(text));
        }
        Ok(())
    }

    pub(super) fn save_pod(&self, pod: &PodRecord) -> Result<(), StepFailure> {
        let saved = self.records.save_pod(pod);
        saved.map_err(|e| StepFailure::new("write record", e.kind(), e))
    }

    /// Record, directories, files, socket: in this order, so that whatever is there is known of.
    pub(super) fn prepare_pod(&self, pod: &PodRecord) -> Result<(), StepFailure> {
        const STAGE: &str = "prepare pod";
        self.save_pod(pod)?;
        passed(STAGE, point("run pod: intent recorded"))?;
        let dir = self.pod_dir(&pod.id);
        // Somebody may have emptied the state directory.
        std::fs::create_dir_all(&dir).map_err(io(STAGE, format!("create {}", dir.display())))?;
        passed(STAGE, point("run pod: directory made"))?;
        files::write(&self.pod_disk(&pod.id), &pod.spec, &pod.hostname)
            .map_err(|(path, e)| io(STAGE, format!("write {}", path.display()))(e))?;
        passed(STAGE, point("run pod: files written"))?;
        let listener = socket::listen(&dir.join("shim.sock")).map_err(|e| e.at(STAGE))?;
        passed(STAGE, point("run pod: socket made"))?;
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        listeners.insert(pod.id.clone(), listener);
        Ok(())
    }

    fn take_listener(&self, pod: &PodId) -> Option<OwnedFd> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(pod)
    }

    pub(super) async fn start_shim(
        &self,
        pod: &PodRecord,
        events: ShimEvents,
    ) -> Result<ShimFacts, StepFailure> {
        let missing = || StepFailure::new(START, Kind::Internal, "the pod was not prepared");
        let listener = self.take_listener(&pod.id).ok_or_else(missing)?;
        let (mut made, socket) = self.make_shim(pod, listener).await?;
        passed(START, point("run pod: shim made"))?;
        let linked = |socket| Link::new("shim", socket, Some(events.clone()));
        let mut link = linked(socket).map_err(|e| e.at(START))?;
        let mut greeted = None;
        if made.is_none() {
            match hello(&link, SHIM_ANSWER).await {
                Ok(answer) => greeted = Some(answer),
                // The listener lay in the dead zygote's queue, and the kernel had not closed it yet.
                Err(LinkError::Lost(_)) => {
                    let (again, socket) = self.make_again(pod).await?;
                    made = again;
                    link = linked(socket).map_err(|e| e.at(START))?;
                }
                Err(e) => return Err(e.at(START)),
            }
        }
        let kept = self.pod_dir(&pod.id).join(IDENTITY);
        let identity = |pid: u32| {
            block(START, move || {
                identity::save(&kept, pid)
                    .map_err(io(START, format!("write {}", kept.display())))?;
                passed(START, point("run pod: identity of the shim written"))
            })
        };
        let (answer, made, identity) = match made {
            Some(made) => {
                // At once: it may never answer, and then it has to be found.
                let (answer, saved) = tokio::join!(hello(&link, SHIM_ANSWER), identity(made.pid));
                (answer.map_err(|e| e.at(START))?, made, saved)
            }
            None => {
                let answer = match greeted {
                    Some(answer) => answer,
                    None => hello(&link, SHIM_ANSWER).await.map_err(|e| e.at(START))?,
                };
                let pid = answer.0.pid;
                let pidfd = identity::open(pid);
                (answer, NewShim { pid, pidfd }, identity(pid).await)
            }
        };
        let (welcome, fds) = answer;
        if let Some(failure) = welcome.failure {
            return Err(unmade(failure));
        }
        identity?;
        passed(START, point("run pod: shim greeted"))?;
        let netns = self.bind_netns(pod, &fds).await?;
        let facts = facts(made.pid, welcome.sandbox_pid, netns);
        let release = Release::of(&welcome);
        let held = Held::new(link, facts.clone(), release, made.pidfd, fds);
        self.hold(&pod.id, Arc::new(held));
        Ok(facts)
    }

    /// A shim and a connection to it, once: a zygote that dies over the request may have made it.
    async fn make_shim(
        &self,
        pod: &PodRecord,
        listener: OwnedFd,
    ) -> Result<(Option<NewShim>, OwnedFd), StepFailure> {
        let path = self.pod_dir(&pod.id).join("shim.sock");
        let made = self.zygote.make_shim(self.request(pod), listener).await?;
        if made.is_none() {
            match socket::connect(&path) {
                Ok(socket) => {
                    tracing::info!(pod = %pod.id, "the zygote died over the shim; the shim lives");
                    return Ok((None, socket));
                }
                Err(LinkError::Connect { source, .. }) if nobody_listens(&source) => {}
                Err(e) => return Err(e.at(START)),
            }
            return self.make_again(pod).await;
        }
        let socket = socket::connect(&path).map_err(|e| e.at(START))?;
        Ok((made, socket))
    }

    /// The same by a new zygote, for a shim that the last one took with it.
    async fn make_again(&self, pod: &PodRecord) -> Result<(Option<NewShim>, OwnedFd), StepFailure> {
        tracing::info!(pod = %pod.id, "the zygote died; asking a new one for the shim");
        let path = self.pod_dir(&pod.id).join("shim.sock");
        let listener = socket::listen(&path).map_err(|e| e.at(START))?;
        let made = self.zygote.make_shim(self.request(pod), listener).await?;
        let socket = socket::connect(&path).map_err(|e| e.at(START))?;
        Ok((made, socket))
    }

    /// What the zygote is asked for.
    fn request(&self, pod: &PodRecord) -> MakeShim {
        let asked = &pod.spec.security.namespaces;
        let own = |mode: NamespaceMode| match mode {
            NamespaceMode::Node => i32::from(Namespace::Inherit),
            _ => i32::from(Namespace::New),
        };
        let pid = match asked.pid {
            NamespaceMode::Pod => Namespace::New,
            _ => Namespace::Inherit,
        };
        let namespaces = Namespaces {
            pid: i32::from(pid),
            network: own(asked.network),
            ipc: own(asked.ipc),
            // A host name of its own goes with a network of its own.
            uts: own(asked.network),
            cgroup: i32::from(Namespace::Inherit),
            user: i32::from(Namespace::Inherit),
        };
        let sysctls = pod.spec.sysctls.iter();
        MakeShim {
            pod_id: pod.id.to_string(),
            namespaces: Some(namespaces),
            hostname: pod.hostname.clone(),
            sysctls: sysctls
                .map(|(name, value)| SysctlPlan {
                    path: sysctl_path(name),
                    value: value.clone(),
                })
                .collect(),
            // Lowering needs the capability; without it the shim would only warn.
            oom_score_adj: capability::bit("CAP_SYS_RESOURCE")
                .filter(|bit| self.host.capabilities & bit != 0)
                .map(|_| SHIM_OOM_SCORE),
        }
    }

    /// Where the pod's network namespace is bound, when it is.
    pub(super) fn netns_path(&self, pod: &PodId) -> Option<PathBuf> {
        Some(self.config.netns_dir.as_ref()?.join(format!("wharf-{pod}")))
    }

    async fn bind_netns(&self, pod: &PodRecord, fds: &Fds) -> Result<Option<PathBuf>, StepFailure> {
        const STAGE: &str = "bind network namespace";
        let (Some(path), Some(netns)) = (self.netns_path(&pod.id), fds.get("ns.net")) else {
            return Ok(None);
        };
        let netns = netns
            .try_clone_to_owned()
            .map_err(io(STAGE, "dup".to_owned()))?;
        block(STAGE, move || {
            bind(&netns, &path).map_err(io(STAGE, format!("bind {}", path.display())))?;
            passed(STAGE, point("run pod: network namespace bound"))?;
            Ok(Some(path))
        })
        .await
    }

    /// Ends the shim: asked, then killed. Then what it held.
    pub(super) async fn end_shim(self: Arc<Self>, pod: Arc<PodRecord>) -> Result<(), StepFailure> {
        drop(self.take_listener(&pod.id));
        let held = match self.held(&pod.id) {
            Some(held) => Some(held),
            None => self.find_again(&pod).await?,
        };
        if let Some(held) = held {
            end(&held).await?;
            self.let_go(&pod.id);
        }
        passed(END, point("stop pod: shim ended"))?;
        block(END, move || {
            if let Some(path) = self.netns_path(&pod.id) {
                unbind(&path).map_err(io(END, format!("unbind {}", path.display())))?;
            }
            passed(END, point("stop pod: network namespace unbound"))?;
            // A cgroup that was given to us stays: it is somebody else's.
            if pod.spec.cgroup_parent.is_empty()
                && let Ok(cgroup) = self.cgroups.open(&pod.cgroup)
            {
                cgroup.kill().map_err(|e| cgroup_failure(END, e))?;
                cgroup.remove().map_err(|e| cgroup_failure(END, e))?;
            }
            passed(END, point("stop pod: cgroup removed"))
        })
        .await
    }

    /// A shim that we hold no connection to: it was never asked, or was silent.
    async fn find_again(
        self: &Arc<Self>,
        pod: &PodRecord,
    ) -> Result<Option<Arc<Held>>, StepFailure> {
        let (events, _told) = tokio::sync::mpsc::channel(crate::limits::SHIM_EVENTS_MAX);
        match self.adopt_shim(pod, events).await? {
            Adoption::Living(..) => Ok(self.held(&pod.id)),
            Adoption::Gone => Ok(None),
            Adoption::Silent => {
                let path = self.pod_dir(&pod.id).join(IDENTITY);
                let pidfd = block(END, move || Ok(identity::load(&path))).await?;
                kill_shim(pidfd).await.map(|()| None)
            }
        }
    }

    pub(super) fn forget_pod(&self, pod: &PodRecord) -> Result<(), StepFailure> {
        const STAGE: &str = "remove pod";
        let dir = self.pod_dir(&pod.id);
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(io(STAGE, format!("remove {}", dir.display()))(e));
            }
            _ => {}
        }
        passed(STAGE, point("remove pod: directory removed"))?;
        let forgotten = self.records.forget_pod(&pod.id);
        forgotten.map_err(|e| StepFailure::new(STAGE, Kind::Internal, e))
    }
}

/// Whether a refused connection means that the shim has ended: its socket stays, or went with its
/// directory (unix(7)).
pub(super) fn nobody_listens(refusal: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(refusal.kind(), ConnectionRefused | NotFound)
}

pub(super) fn facts(pid: u32, sandbox_pid: u32, netns: Option<PathBuf>) -> ShimFacts {
    ShimFacts {
        pid,
        sandbox_pid: (sandbox_pid != 0).then_some(sandbox_pid),
        netns,
    }
}

/// As sysctl(8) reads names: whichever of dot and slash comes first separates.
fn sysctl_path(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('.') => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}

pub(super) async fn hello(link: &Link, within: Duration) -> Result<(Welcome, Fds), LinkError> {
    match link
        .call(
            Body::Hello(Hello {
                protocol: release::protocol(),
            }),
            Fds::new(),
            within,
        )
        .await?
    {
        (Body::Welcome(welcome), fds) => Ok((welcome, fds)),
        _ => Err(LinkError::Unexpected("shim")),
    }
}

/// Asks the shim to end; one that does not answer is killed.
async fn end(held: &Held) -> Result<(), StepFailure> {
    let asked = held
        .link
        .done(Body::Shutdown(Shutdown {}), Fds::new(), SHIM_ANSWER)
        .await;
    let ended = match asked {
        // A shim may cut us off and go on.
        Err(LinkError::Lost(_)) => held.pidfd.is_none(),
        Ok(()) => tokio::time::timeout(SHIM_ANSWER, held.link.lost())
            .await
            .is_ok(),
        Err(_) => false,
    };
    if ended {
        return Ok(());
    }
    if !held.link.is_lost() {
        tracing::warn!(
            pid = held.facts.pid,
            "the shim does not end by itself: killing it"
        );
    }
    let pidfd = held.pidfd.as_ref().and_then(|fd| fd.try_clone().ok());
    kill_shim(pidfd).await
}

/// A shim that does not answer is killed; its containers are ended by their cgroups.
async fn kill_shim(pidfd: Option<OwnedFd>) -> Result<(), StepFailure> {
    let failed = |text: &str| StepFailure::new(END, Kind::Unavailable, text.to_owned());
    let pidfd =
        pidfd.ok_or_else(|| failed("the shim does not answer, and its process is not known"))?;
    match identity::kill(pidfd, SHIM_ANSWER).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(failed("the shim was killed and is still there")),
        Err(e) => Err(StepFailure::new(END, Kind::Internal, e)),
    }
}

/// Binds a namespace to a path, where other tools expect it.
fn bind(namespace: &OwnedFd, path: &Path) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::File::create(path)?;
    point("run pod: place of the network namespace made")?;
    let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    Ok(rustix::mount::mount_bind(source, path)?)
}

pub(super) fn unbind(path: &Path) -> std::io::Result<()> {
    use rustix::io::Errno;
    match rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH) {
        // Not there, or not mounted.
        Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
        Err(e) => return Err(e.into()),
    }
    point("stop pod: network namespace unmounted")?;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn only_a_socket_without_a_listener_says_that_a_shim_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shim.sock");
        let gone = || match socket::connect(&path) {
            Err(LinkError::Connect { source, .. }) => nobody_listens(&source),
            other => panic!("{other:?}"),
        };
        assert!(gone(), "no socket");
        drop(socket::listen(&path).unwrap());
        assert!(gone(), "a socket that nobody listens on");
        for errno in [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOMEM,
            Errno::NOBUFS,
            Errno::ACCESS,
        ] {
            assert!(!nobody_listens(&errno.into()), "{errno}");
        }
    }

    #[test]
    fn sysctl_names_are_read_as_sysctl_reads_them() {
        for (name, path) in [
            ("net.core.somaxconn", "net/core/somaxconn"),
            ("net/core/somaxconn", "net/core/somaxconn"),
            (
                "net.ipv4.conf.eth0/1.forwarding",
                "net/ipv4/conf/eth0.1/forwarding",
            ),
            (
                "net/ipv4/conf/eth0.1/forwarding",
                "net/ipv4/conf/eth0.1/forwarding",
            ),
            ("kernel", "kernel"),
        ] {
            assert_eq!(sysctl_path(name), path);
        }
    }
}
