//! The steps of a container's creation: everything that blocks in one go, then the shim.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use rustix::fs::{FileType, Mode, OFlags};
use tokio::io::Interest;
use wharf_cgroup::{Cgroup, Membership};
use wharf_image::Image;
use wharf_plan::message::{Body, Create};
use wharf_plan::process::ProcessPlan;
use wharf_plan::{Fds, limits::FDS_MAX};
use wharf_runtime::compile::{BindSource, CompileOptions, Compiled, compile};
use wharf_runtime::launch::sources;
use wharf_sys::fault::point;
use wharf_types::Kind;

use super::held::{self, Held, HeldContainer};
use super::{Parts, block, cgroup_failure, devices, log_file, passed};
use crate::accounts;
use crate::error::RequestError;
use crate::files;
use crate::limits::SHIM_WORK;
use crate::oci::compose::{Composed, compose};
use crate::oci::{Input, namespaces, process, profiles};
use crate::propagation;
use crate::record::{ContainerRecord, PodRecord};
use crate::shim::identity;
use crate::shim::link::LinkError;
use crate::shim::watch::watch;
use crate::spec::{ContainerSpec, MountSpec, NamespaceMode, Propagation};
use crate::view::{ContainerFacts, UserView};
use crate::world::{CreateJob, Made, StepFailure};

const STAGE: &str = "create container";

fn refused(e: RequestError) -> StepFailure {
    StepFailure::new("check the request", e.kind(), e)
}

/// What the shim needs, ready to be sent.
struct Prepared {
    plan: wharf_plan::container::ContainerPlan,
    fds: Fds,
    cgroup: Cgroup,
    facts: Arc<ContainerFacts>,
}

/// Makes a container up to the point where only its program has to be started. On failure what was
/// made is found and removed by `remove_container`.
pub(super) async fn create(parts: Arc<Parts>, job: CreateJob) -> Result<Made, StepFailure> {
    let lost = || LinkError::Lost("shim").at(STAGE);
    let held = parts.held(&job.pod.id).ok_or_else(lost)?;
    let (id, spec) = (job.record.id.clone(), job.record.spec.clone());
    let shim = held.clone();
    let version = held.release.common().map_err(|e| e.at(STAGE))?;
    let kept = held::init_path(&parts.pod_dir(&job.pod.id), &id);
    let prepared = block(STAGE, move || prepare(&parts, &job, &shim)).await?;
    let Prepared {
        mut plan,
        fds,
        cgroup,
        facts,
    } = prepared;
    plan.version = version;
    let init = plan.process.clone().unwrap_or_default();
    let create = Create {
        plan: Some(plan),
        stdin: spec.stdin,
        stdin_once: spec.stdin_once,
    };
    let made = held.link.call(Body::Create(create), fds, SHIM_WORK).await;
    let made = match made {
        Ok(made) => made,
        Err(e) => return Err(starved(cgroup, &spec).await.unwrap_or_else(|| e.at(STAGE))),
    };
    let (pid, pidfd) = match made {
        (Body::Created(created), mut fds) => (created.pid, fds.take("pidfd").map(Arc::new)),
        _ => return Err(LinkError::Unexpected("shim").at(STAGE)),
    };
    passed(STAGE, point("create container: made by the shim"))?;
    let container = held.hold(&id, HeldContainer::new(init, cgroup, pidfd.clone()));
    // It may have ended; without it less is known of its end when its shim is lost.
    let saved = block(STAGE, move || Ok(identity::save(&kept, pid))).await?;
    if let Err(e) = saved {
        tracing::debug!(container = %id, error = %e, "its init is not written down");
    }
    if let Some(pidfd) = pidfd.filter(|_| shares_pids(&spec)) {
        tokio::spawn(kill_rest(pidfd, Arc::downgrade(&container)));
    }
    Ok(Made { pid, facts })
}

/// Says so when the reason of a failure is a memory limit in which not even its init fits.
async fn starved(cgroup: Cgroup, spec: &ContainerSpec) -> Option<StepFailure> {
    let limit = spec.resources.memory_limit;
    if limit <= 0 {
        return None;
    }
    let kills = tokio::task::spawn_blocking(move || cgroup.oom_kills().ok().flatten());
    let killed = kills.await.ok().flatten().is_some_and(|count| count > 0);
    killed.then(|| {
        refused(RequestError::Invalid {
            field: "resources.memory_limit_in_bytes",
            reason: format!("{limit} bytes are too few to start a program: give it more"),
        })
    })
}

/// Whether processes of it outlive its init: the kernel ends them only with a PID namespace's own.
pub(super) fn shares_pids(spec: &ContainerSpec) -> bool {
    spec.security.namespaces.pid != NamespaceMode::Container
}

/// When the init has ended, kills what it left: a child that holds the log's pipe would delay the end.
pub(super) async fn kill_rest(pidfd: Arc<OwnedFd>, container: Weak<HeldContainer>) {
    let Ok(ended) = watch(pidfd, Interest::READABLE) else {
        return;
    };
    if ended.readable().await.is_err() {
        return;
    }
    // Collected already: done.
    let Some(container) = container.upgrade() else {
        return;
    };
    let killed = tokio::task::spawn_blocking(move || match container.cgroup.processes() {
        Ok(left) if left.is_empty() => Ok(()),
        _ => container.cgroup.kill(),
    });
    if let Ok(Err(e)) = killed.await {
        tracing::debug!(error = %wharf_types::chain(&e), "what an init left is killed later");
    }
}

/// Everything that blocks, in an order in which whatever is there is known of.
fn prepare(parts: &Parts, job: &CreateJob, held: &Held) -> Result<Prepared, StepFailure> {
    let (pod, record) = (&*job.pod, &*job.record);
    // 1. Intent comes before the act.
    parts.save_container(record)?;
    passed(STAGE, point("create container: intent recorded"))?;
    // 2. The image's layers, and a writable one of its own; named by the container's id.
    let image = find_image(parts, record)?;
    let rootfs = mount_rootfs(parts, record, &image)?;
    passed(STAGE, point("create container: snapshot mounted"))?;
    // 3. Who it runs as: what the image itself says, read in what it will see.
    let accounts = accounts::read(rootfs.as_fd()).map_err(refused)?;
    let account = accounts
        .resolve(&record.spec.security, &image.config.user)
        .map_err(refused)?;
    // 4. What it will be: pure from here…
    let devices = devices::collect(&record.spec).map_err(refused)?;
    let input = Input {
        host: &parts.host,
        pod,
        files: &files::places(&parts.pod_disk(&pod.id)),
        spec: &record.spec,
        image: &image.config,
        user: &account.user,
        home: &account.home,
        devices: &devices,
        cgroup: &format!("{}/{}", pod.cgroup, record.id),
        shim: &held.facts,
        target_pid: job.target_pid,
    };
    let composed = compose(&input).map_err(refused)?;
    let mut compiled = compile_plan(parts, record, &input, &composed)?;
    // 5. …to here. The cgroup before the mounts: some of them show it.
    let mut fds = Fds::new();
    fds.push("rootfs", rootfs);
    let cgroup = join_cgroup(parts, &compiled, &mut fds)?;
    passed(STAGE, point("create container: cgroup made"))?;
    // 6. What the container gets of the host.
    open_binds(&record.spec.mounts, &mut compiled, &mut fds)?;
    passed(STAGE, point("create container: mount sources opened"))?;
    for namespace in &compiled.namespaces {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&*namespace.path, flags, Mode::empty());
        let fd = fd.map_err(|e| failed(format!("open {}: {e}", namespace.path)))?;
        fds.push(namespace.descriptor, fd);
    }
    let log = log_file::Place::of(pod, record);
    if let Some(place) = &log {
        fds.push("log", place.open()?);
    }
    passed(STAGE, point("create container: log opened"))?;
    let log_path = log.map(|place| place.whole());
    if fds.len() >= FDS_MAX {
        let what = "the number of descriptors that the container's mounts and devices need";
        return Err(refused(RequestError::Limit {
            what,
            limit: FDS_MAX,
        }));
    }
    // 7. What a later daemon has to know.
    let user = account.user.clone();
    let facts = facts(record, &image, &composed, user, (log_path, input.cgroup));
    let init = compiled.plan.process.clone().unwrap_or_default();
    keep(parts, pod, record, (&facts, &init))?;
    passed(STAGE, point("create container: facts recorded"))?;
    Ok(Prepared {
        plan: compiled.plan,
        fds,
        cgroup,
        facts,
    })
}

fn failed(text: String) -> StepFailure {
    StepFailure::new(STAGE, Kind::Internal, text)
}

fn find_image(parts: &Parts, record: &ContainerRecord) -> Result<Arc<Image>, StepFailure> {
    let asked = &record.spec.image.image;
    let missing = || {
        let text = format!("image {asked:?} is not here: pull it first");
        StepFailure::new("find image", Kind::NotFound, text)
    };
    parts.images.find(asked).ok_or_else(missing)
}

fn mount_rootfs(
    parts: &Parts,
    record: &ContainerRecord,
    image: &Image,
) -> Result<OwnedFd, StepFailure> {
    let store = |stage| move |e: wharf_store::StoreError| StepFailure::new(stage, e.kind(), e);
    let snapshot = parts.store.prepare(record.id.as_str(), &image.layers);
    let snapshot = snapshot.map_err(store("prepare snapshot"))?;
    passed(
        "prepare snapshot",
        point("create container: snapshot prepared"),
    )?;
    // Read-only is a property of the container's root mount, not of its layer.
    snapshot.mount(false).map_err(store("mount snapshot"))
}

fn compile_plan(
    parts: &Parts,
    record: &ContainerRecord,
    input: &Input<'_>,
    composed: &Composed,
) -> Result<Compiled, StepFailure> {
    let choice = profiles::seccomp(&record.spec.security).map_err(refused)?;
    let filter = parts
        .filters
        .get(&choice, composed.bounding)
        .map_err(refused)?;
    let view = parts
        .cgroups
        .view(input.cgroup)
        .map_err(|e| cgroup_failure(STAGE, e))?;
    let options = CompileOptions {
        id: record.id.to_string(),
        bundle: PathBuf::from("/"),
        seccomp: filter.as_deref(),
        cgroup: Some(view),
        shared: namespaces::shared(composed.pid),
        ..CompileOptions::default()
    };
    let compiled = compile(&composed.spec, &options);
    let mut compiled = compiled.map_err(|e| StepFailure::new("compile plan", e.kind(), e))?;
    if let Some(process) = &mut compiled.plan.process {
        // Byte for byte: the document has text only.
        process.env.clone_from(&composed.env);
    }
    Ok(compiled)
}

/// Opens the sources of all bind mounts. Those asked for are looked at first: missing directories of the
/// host are made, as both incumbents do and workloads rely on.
fn open_binds(
    asked: &[MountSpec],
    compiled: &mut Compiled,
    fds: &mut Fds,
) -> Result<(), StepFailure> {
    let mountinfo = match asked.iter().any(|m| m.propagation != Propagation::Private) {
        true => std::fs::read_to_string("/proc/self/mountinfo")
            .map_err(|e| failed(format!("read /proc/self/mountinfo: {e}")))?,
        false => String::new(),
    };
    // Every one of them is a bind mount, so none has to be found again among those of the plan.
    for mount in asked {
        make_missing(mount)?;
        check_propagation(mount, &mountinfo)?;
    }
    for bind in &compiled.binds {
        let plan = compiled.plan.mounts.get_mut(bind.mount);
        let plan = plan.ok_or_else(|| failed("a bind mount without a plan".to_owned()))?;
        let fd = open_bind(bind)?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| failed(format!("fstat: {e}")))?;
        plan.is_file = FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
        fds.push("bind", fd);
    }
    Ok(())
}

fn open_bind(bind: &BindSource) -> Result<OwnedFd, StepFailure> {
    sources::open(bind).map_err(|e| {
        let kind = match e.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::InvalidInput => Kind::Invalid,
            _ => crate::error::io_kind(&e),
        };
        let text = format!("mount source {}: {e}", bind.source.display());
        StepFailure::new("open mount source", kind, text)
    })
}

fn make_missing(mount: &MountSpec) -> Result<(), StepFailure> {
    match std::fs::exists(&mount.host_path) {
        Ok(true) => Ok(()),
        _ => std::fs::create_dir_all(&mount.host_path).map_err(|e| {
            let text = format!("make missing directory {}: {e}", mount.host_path);
            StepFailure::new("open mount source", Kind::Invalid, text)
        }),
    }
}

fn check_propagation(mount: &MountSpec, mountinfo: &str) -> Result<(), StepFailure> {
    use std::os::fd::AsRawFd as _;
    if mount.propagation == Propagation::Private {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolved = rustix::fs::open(&*mount.host_path, flags, Mode::empty())
        .and_then(|fd| {
            let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
            rustix::fs::readlink(link, Vec::new())
        })
        .map_err(|e| failed(format!("resolve {}: {e}", mount.host_path)))?;
    let resolved = PathBuf::from(resolved.to_string_lossy().into_owned());
    propagation::check(mount, &resolved, mountinfo).map_err(refused)
}

fn join_cgroup(parts: &Parts, compiled: &Compiled, fds: &mut Fds) -> Result<Cgroup, StepFailure> {
    const STAGE: &str = "make cgroup";
    let request = &compiled.cgroup;
    let cgroup = parts.cgroups.create(&request.path, &request.limits);
    let cgroup = cgroup.map_err(|e| cgroup_failure(STAGE, e))?;
    let member = cgroup.member_fds().map_err(|e| cgroup_failure(STAGE, e))?;
    push_membership(member, fds);
    Ok(cgroup)
}

/// The descriptors by which a new process comes into a cgroup, by their names in a plan.
pub(super) fn push_membership(member: Membership, fds: &mut Fds) {
    for procs in member.v1 {
        fds.push("cgroup1", procs);
    }
    if let Some(directory) = member.v2 {
        fds.push("cgroup2", directory);
    }
}

fn facts(
    record: &ContainerRecord,
    image: &Image,
    composed: &Composed,
    user: UserView,
    (log_path, cgroup): (Option<PathBuf>, &str),
) -> Arc<ContainerFacts> {
    let spec = &record.spec.image;
    let asked_by_id = image
        .id
        .to_string()
        .contains(spec.image.trim_start_matches("sha256:"));
    // A name that people can read, also when the image was asked for by its id.
    let image_name = match (spec.user_specified_image.as_str(), asked_by_id) {
        ("", false) => spec.image.clone(),
        ("", true) => {
            let named = image.repo_tags.first().or(image.repo_digests.first());
            named.unwrap_or(&spec.image).clone()
        }
        (name, _) => name.to_owned(),
    };
    Arc::new(ContainerFacts {
        image_id: image.id.to_string(),
        image_name,
        log_path,
        user,
        stop_signal: process::stop_signal(&record.spec, &image.config),
        snapshot_key: record.id.to_string(),
        cgroup: cgroup.to_owned(),
        // The document always serialises.
        runtime_spec: serde_json::to_string(&composed.spec)
            .unwrap_or_default()
            .into(),
    })
}

/// Writes down what execs and a later daemon have to know.
fn keep(
    parts: &Parts,
    pod: &PodRecord,
    record: &ContainerRecord,
    (facts, init): (&Arc<ContainerFacts>, &ProcessPlan),
) -> Result<(), StepFailure> {
    let dir = parts.pod_dir(&pod.id);
    held::save_plan(&dir, &record.id, init)
        .map_err(|e| StepFailure::new("write record", Kind::Internal, e))?;
    passed("write record", point("create container: plan saved"))?;
    let facts = Some(facts.clone());
    parts.save_container(&ContainerRecord {
        facts,
        ..record.clone()
    })
}
