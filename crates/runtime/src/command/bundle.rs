//! A bundle: config.json to a plan, and the descriptors that the plan needs.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use wharf_cgroup::{Cgroup, CgroupError, Cgroups};
use wharf_plan::Fds;
use wharf_plan::container::ContainerPlan;
use wharf_runtime::compile::{CompileOptions, Compiled, compile, refuse_in_host};
use wharf_runtime::launch::sources;
use wharf_runtime::spec::{self, Spec};

use super::args::New;
use super::failure::Failure;
use super::record::Record;

/// Where cgroups lie of containers that name none.
const CGROUP_PARENT: &str = "/wharf-runtime";

/// A bundle that was read and understood; nothing of the machine was changed.
#[derive(Debug)]
pub(crate) struct Bundle {
    dir: PathBuf,
    spec: Spec,
    compiled: Compiled,
    cgroups: Cgroups,
    cgroup: String,
}

/// Reads `new.bundle`.
pub(crate) fn load(new: &New) -> Result<Bundle, Failure> {
    let dir = std::path::absolute(&new.bundle)
        .map_err(|e| Failure::io(format!("bundle {}", new.bundle.display()), e))?;
    let wrong =
        |e: &dyn std::error::Error| Failure::because(&format!("bundle {}", dir.display()), e);
    let spec = spec::load(&dir.join("config.json")).map_err(|e| wrong(&e))?;
    let cgroups = probe()?;
    let asked = spec
        .linux
        .as_ref()
        .map_or("", |linux| linux.cgroups_path.as_str());
    let cgroup = if asked.is_empty() {
        format!("{CGROUP_PARENT}/{}", new.id)
    } else {
        asked.to_owned()
    };
    let view = cgroups.view(&cgroup).map_err(|e| wrong(&e))?;
    let options = CompileOptions {
        id: new.id.clone(),
        bundle: dir.clone(),
        no_new_keyring: new.no_new_keyring,
        preserve_fds: new.preserve_fds,
        seccomp: None,
        cgroup: Some(view),
        shared: Vec::new(),
    };
    let compiled = compile(&spec, &options).map_err(|e| wrong(&e))?;
    Ok(Bundle {
        dir,
        spec,
        compiled,
        cgroups,
        cgroup,
    })
}

fn probe() -> Result<Cgroups, Failure> {
    Cgroups::probe().map_err(|e| Failure::because("find cgroups", &e))
}

/// The cgroup at `path`; `None` when it is gone.
pub(crate) fn open_cgroup(path: &str) -> Result<Option<Cgroup>, Failure> {
    if path.is_empty() {
        return Ok(None);
    }
    match probe()?.open(path) {
        Ok(cgroup) => Ok(Some(cgroup)),
        Err(CgroupError::NotFound(_)) => Ok(None),
        Err(e) => Err(Failure::because("open cgroup", &e)),
    }
}

impl Bundle {
    /// Its init has a terminal.
    pub(crate) fn terminal(&self) -> bool {
        let process = self.compiled.plan.process.as_ref();
        process.is_some_and(|process| process.terminal)
    }

    /// What is written before anything is made.
    pub(crate) fn record(&self, id: &str, created: String) -> Record {
        Record {
            oci_version: self.spec.oci_version.clone(),
            id: id.to_owned(),
            bundle: self.dir.clone(),
            rootfs: self.compiled.rootfs.clone(),
            created,
            annotations: self.spec.annotations.clone(),
            cgroup: self.cgroup.clone(),
            ..Record::default()
        }
    }

    /// Makes the cgroup.
    pub(crate) fn cgroup(&self) -> Result<Cgroup, Failure> {
        let limits = &self.compiled.cgroup.limits;
        let made = self.cgroups.create(&self.cgroup, limits);
        made.map_err(|e| Failure::because("create cgroup", &e))
    }

    /// The plan with its descriptors.
    pub(crate) fn prepare(&self, cgroup: &Cgroup) -> Result<(ContainerPlan, Fds), Failure> {
        let mut fds = Fds::new();
        let rootfs = &self.compiled.rootfs;
        let named = |path: &Path| format!("mount source {}", path.display());
        let root = sources::rootfs(rootfs);
        let root = root.map_err(|e| Failure::io(named(rootfs), e))?;
        let mut plan = self.compiled.plan.clone();
        if let Some(process) = &mut plan.process
            && !process.env.iter().any(|v| v.starts_with(b"HOME="))
        {
            let home = sources::home_directory(root.as_fd(), process.uid);
            process.env.push(format!("HOME={home}").into_bytes());
        }
        fds.push("rootfs", root);
        for bind in &self.compiled.binds {
            let fd = sources::open(bind).map_err(|e| Failure::io(named(&bind.source), e))?;
            fds.push("bind", fd);
        }
        for namespace in &self.compiled.namespaces {
            let fd = open_namespace(Path::new(&namespace.path))?;
            // By path one can join the host's too, which is then not the container's to change.
            if is_own(&fd, namespace.descriptor)? {
                refuse_in_host(&plan.sysctls, namespace.kind)
                    .map_err(|e| Failure::because(&format!("bundle {}", self.dir.display()), &e))?;
            }
            fds.push(namespace.descriptor, fd);
        }
        let members = cgroup.member_fds();
        let members = members.map_err(|e| Failure::because("join cgroup", &e))?;
        if let Some(directory) = members.v2 {
            fds.push("cgroup2", directory);
        }
        for procs in members.v1 {
            fds.push("cgroup1", procs);
        }
        Ok((plan, fds))
    }
}

/// Whether `joined`, called `ns.KIND`, is the namespace that we are in ourselves.
fn is_own(joined: &OwnedFd, descriptor: &str) -> Result<bool, Failure> {
    let kind = descriptor.trim_start_matches("ns.");
    let path = format!("/proc/self/ns/{kind}");
    let own = open_namespace(Path::new(&path))?;
    let stat = |fd: &OwnedFd| {
        let stat = rustix::fs::fstat(fd);
        stat.map_err(|e| Failure::io(format!("stat {path}"), e))
    };
    let (joined, own) = (stat(joined)?, stat(&own)?);
    Ok((joined.st_dev, joined.st_ino) == (own.st_dev, own.st_ino))
}

fn open_namespace(path: &Path) -> Result<OwnedFd, Failure> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Failure::io(format!("open namespace {}", path.display()), e))
}
