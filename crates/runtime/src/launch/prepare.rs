//! From the plan to memory that the child can use as it is: strings, arrays, programs, descriptors.
//!
//! Runs in the caller, may allocate and refuse. What is refused here never reaches the kernel.

use std::ffi::{CString, NulError};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::LinkNameSpaceType;
use wharf_plan::Fds;
use wharf_plan::container::{
    ContainerPlan, LinkPlan, MountPlan, MountSource, Namespace, Namespaces,
};
use wharf_plan::process::ProcessPlan;
use wharf_sys::clone;
use wharf_sys::exec::Image;
use wharf_sys::seccomp::Filter;

use super::devices::{Device, Link};
use super::mounts::{Mount, Source};
use super::path::Place;
use super::process::Process;
use super::status::{Step, StepError};
use super::{Park, Stdio};

/// Mounts, devices, links and paths of one container; one more is refused.
const ENTRIES_MAX: usize = 4096;

/// Where the search for a program without a slash goes when the environment has no PATH.
const PATH_DEFAULT: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A container's init, ready.
#[derive(Debug)]
pub(super) struct Init {
    pub(super) process: Process,
    pub(super) park: Park,
    /// `CLONE_NEW*` for the clone.
    pub(super) new: u64,
    pub(super) pid_namespace: Option<OwnedFd>,
    pub(super) joins: Vec<(OwnedFd, LinkNameSpaceType)>,
    pub(super) new_cgroup_namespace: bool,
    pub(super) loopback_up: bool,
    pub(super) hostname: Vec<u8>,
    pub(super) domainname: Vec<u8>,
    pub(super) sysctls: Vec<(CString, Vec<u8>)>,
    pub(super) rootfs: OwnedFd,
    pub(super) rootfs_readonly: bool,
    pub(super) rootfs_propagation: u64,
    pub(super) mounts: Vec<Mount>,
    /// Which of the mounts is a /dev of our own.
    pub(super) own_dev: Option<usize>,
    /// /dev is one of the host's directories: nothing is made in it.
    pub(super) foreign_dev: bool,
    pub(super) devices: Vec<Device>,
    pub(super) links: Vec<Link>,
    pub(super) readonly_paths: Vec<Place>,
    pub(super) masked_paths: Vec<Place>,
}

fn nul(what: &str) -> impl Fn(NulError) -> StepError {
    move |_nul| StepError::plan(format!("{what}: has a NUL byte"))
}

/// Prepares a container's init.
pub(super) fn init(
    plan: &ContainerPlan,
    mut fds: Fds,
    stdio: Stdio,
    park: Park,
) -> Result<Init, StepError> {
    let entries = [
        plan.mounts.len(),
        plan.devices.len(),
        plan.links.len(),
        plan.masked_paths.len() + plan.readonly_paths.len(),
    ];
    if entries.iter().any(|n| *n > ENTRIES_MAX) {
        return Err(StepError::plan(format!(
            "over {ENTRIES_MAX} mounts, devices, links or paths"
        )));
    }
    let wanted = plan.process.as_ref();
    let wanted = wanted.ok_or_else(|| StepError::plan("no process"))?;
    let names = plan
        .namespaces
        .ok_or_else(|| StepError::plan("no namespaces"))?;
    let namespaces = namespaces(names, &mut fds)?;
    let rootfs = take(&mut fds, "rootfs")?;
    let mounts = mounts(&plan.mounts, &mut fds)?;
    let mut process = process(wanted, &mut fds, stdio)?;
    process.new_keyring = !plan.no_new_keyring;
    process.personality = plan.personality;
    process.needs_proc |= !plan.sysctls.is_empty();
    let own_dev = plan.mounts.iter().position(|m| is_dev(m) && !is_bind(m));
    let sysctls = plan.sysctls.iter().map(|s| {
        let path = CString::new(format!("sys/{}", s.path)).map_err(nul("sysctl"))?;
        Ok((path, s.value.clone().into_bytes()))
    });
    let places = |paths: &[Vec<u8>]| -> Result<Vec<_>, StepError> {
        let places = paths.iter().map(|p| Place::new(p).map_err(nul("path")));
        places.collect()
    };
    Ok(Init {
        process,
        park,
        new: namespaces.new,
        pid_namespace: namespaces.pid,
        joins: namespaces.joins,
        new_cgroup_namespace: namespaces.new_cgroup,
        loopback_up: plan.loopback_up,
        hostname: plan.hostname.clone().into_bytes(),
        domainname: plan.domainname.clone().into_bytes(),
        sysctls: sysctls.collect::<Result<_, StepError>>()?,
        rootfs,
        rootfs_readonly: plan.rootfs_readonly,
        rootfs_propagation: plan.rootfs_propagation,
        mounts,
        own_dev,
        foreign_dev: plan.mounts.iter().any(|m| is_dev(m) && is_bind(m)),
        devices: devices(plan, own_dev.is_some())?,
        links: links(&plan.links, own_dev.is_some())?,
        readonly_paths: places(&plan.readonly_paths)?,
        masked_paths: places(&plan.masked_paths)?,
    })
}

fn is_dev(mount: &MountPlan) -> bool {
    let path = &mount.destination;
    path.strip_suffix(b"/").unwrap_or(path) == b"/dev"
}

fn is_bind(mount: &MountPlan) -> bool {
    MountSource::try_from(mount.source) == Ok(MountSource::Bind)
}

fn take(fds: &mut Fds, name: &str) -> Result<OwnedFd, StepError> {
    fds.take(name)
        .ok_or_else(|| StepError::plan(format!("descriptor {name} is missing")))
}

struct Prepared {
    new: u64,
    new_cgroup: bool,
    pid: Option<OwnedFd>,
    joins: Vec<(OwnedFd, LinkNameSpaceType)>,
}

fn namespaces(names: Namespaces, fds: &mut Fds) -> Result<Prepared, StepError> {
    let kind = |number| {
        Namespace::try_from(number)
            .map_err(|_unknown| StepError::plan(format!("namespace kind {number} is unknown")))
    };
    if kind(names.user)? != Namespace::Inherit {
        return Err(StepError::plan("user namespaces are not supported yet"));
    }
    let mut prepared = Prepared {
        // Always: what is mounted for the container must be seen by nobody else.
        new: clone::NEWNS,
        new_cgroup: kind(names.cgroup)? == Namespace::New,
        pid: None,
        joins: Vec::new(),
    };
    match kind(names.pid)? {
        Namespace::Inherit => {}
        Namespace::New => prepared.new |= clone::NEWPID,
        Namespace::Join | Namespace::Pod => prepared.pid = Some(take(fds, "ns.pid")?),
    }
    if kind(names.cgroup)? == Namespace::Join {
        let join = (take(fds, "ns.cgroup")?, LinkNameSpaceType::ControlGroup);
        prepared.joins.push(join);
    }
    let others = [
        (
            names.network,
            "ns.net",
            clone::NEWNET,
            LinkNameSpaceType::Network,
        ),
        (
            names.ipc,
            "ns.ipc",
            clone::NEWIPC,
            LinkNameSpaceType::InterProcessCommunication,
        ),
        (
            names.uts,
            "ns.uts",
            clone::NEWUTS,
            LinkNameSpaceType::HostNameAndNISDomainName,
        ),
    ];
    for (number, name, flag, link) in others {
        match kind(number)? {
            Namespace::Inherit => {}
            Namespace::New => prepared.new |= flag,
            Namespace::Join => prepared.joins.push((take(fds, name)?, link)),
            Namespace::Pod => {
                return Err(StepError::plan(format!(
                    "{name}: only a PID namespace is the pod's"
                )));
            }
        }
    }
    Ok(prepared)
}

fn mounts(plans: &[MountPlan], fds: &mut Fds) -> Result<Vec<Mount>, StepError> {
    let mut binds = fds.take_all("bind").into_iter();
    let mut mounts = Vec::with_capacity(plans.len());
    for plan in plans {
        let shown = String::from_utf8_lossy(&plan.destination);
        let mut is_file = plan.is_file;
        let source = if is_bind(plan) {
            let missing = || StepError::plan(format!("descriptor bind for {shown} is missing"));
            let fd = binds.next().ok_or_else(missing)?;
            // Only who has opened the source knows what it is.
            is_file =
                !is_directory(&fd).map_err(|e| StepError::new(Step::Prepare, shown.as_ref(), e))?;
            Source::Bind(fd)
        } else {
            Source::FileSystem(file_system(plan)?)
        };
        mounts.push(Mount {
            place: Place::new(&plan.destination).map_err(nul("mount destination"))?,
            source,
            attributes: u32::try_from(plan.attributes).map_err(|_unknown| {
                StepError::plan(format!("{shown}: unknown mount attributes"))
            })?,
            propagation: plan.propagation,
            is_file,
            copy_up: plan.copy_up,
        });
    }
    Ok(mounts)
}

fn is_directory(fd: &OwnedFd) -> Result<bool, Errno> {
    let stat = rustix::fs::fstat(fd)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn file_system(plan: &MountPlan) -> Result<super::mounts::FileSystem, StepError> {
    let mut parameters = Vec::new();
    for option in &plan.options {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option.as_str(), None),
        };
        let value = value.map(CString::new).transpose();
        parameters.push((
            CString::new(key).map_err(nul("mount option"))?,
            value.map_err(nul("mount option"))?,
        ));
    }
    let source = (!plan.source_name.is_empty()).then(|| CString::new(plan.source_name.as_str()));
    Ok(super::mounts::FileSystem {
        kind: CString::new(plan.fs_type.as_str()).map_err(nul("file system type"))?,
        parameters,
        source: source.transpose().map_err(nul("mount source"))?,
        // What is written through these later decides over confinement: no link may stand there.
        plain_directory: matches!(plan.fs_type.as_str(), "proc" | "sysfs"),
    })
}

/// The part of `path` below /dev when that is ours.
fn below_dev(path: &[u8], own_dev: bool) -> (bool, &[u8]) {
    match path.strip_prefix(b"/dev/") {
        Some(rest) if own_dev => (true, rest),
        _ => (false, path),
    }
}

fn devices(plan: &ContainerPlan, own_dev: bool) -> Result<Vec<Device>, StepError> {
    let mut devices = Vec::with_capacity(plan.devices.len());
    for device in &plan.devices {
        let (in_dev, path) = below_dev(&device.path, own_dev);
        devices.push(Device {
            in_dev,
            place: Place::shown_as(path, &device.path).map_err(nul("device"))?,
            mode: device.mode,
            device: rustix::fs::makedev(device.major, device.minor),
            uid: id(device.uid).map(Uid::from_raw)?,
            gid: id(device.gid).map(Gid::from_raw)?,
        });
    }
    Ok(devices)
}

fn links(plans: &[LinkPlan], own_dev: bool) -> Result<Vec<Link>, StepError> {
    let mut links = Vec::with_capacity(plans.len());
    for link in plans {
        let (in_dev, path) = below_dev(&link.path, own_dev);
        links.push(Link {
            in_dev,
            place: Place::shown_as(path, &link.path).map_err(nul("link"))?,
            target: CString::new(link.target.as_slice()).map_err(nul("link"))?,
        });
    }
    Ok(links)
}

/// The kernel takes the highest number for "unchanged".
fn id(number: u32) -> Result<u32, StepError> {
    if number == u32::MAX {
        return Err(StepError::plan(
            "user or group id 4294967295 does not exist",
        ));
    }
    Ok(number)
}

/// Prepares what init and exec have in common.
pub(super) fn process(
    plan: &ProcessPlan,
    fds: &mut Fds,
    stdio: Stdio,
) -> Result<Process, StepError> {
    let name = plan.args.first().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| StepError::plan("no program: args is empty"))?;
    if !plan.cwd.starts_with(b"/") {
        return Err(StepError::plan("cwd is not absolute"));
    }
    let filter = match plan.seccomp.as_slice() {
        [] => None,
        bytes => Some(
            Filter::from_bytes(bytes)
                .ok_or_else(|| StepError::plan("the seccomp filter is no BPF program"))?,
        ),
    };
    let groups = plan.groups.iter().map(|g| id(*g).map(Gid::from_raw));
    let size = plan.console.map(|size| rustix::termios::Winsize {
        ws_row: u16::try_from(size.height).unwrap_or(u16::MAX),
        ws_col: u16::try_from(size.width).unwrap_or(u16::MAX),
        ws_xpixel: 0,
        ws_ypixel: 0,
    });
    Ok(Process {
        image: Image::new(&plan.args, &plan.env).map_err(nul("args or env"))?,
        candidates: candidates(name, &plan.env)?,
        name: CString::new(name.as_slice()).map_err(nul("args"))?,
        cwd: CString::new(plan.cwd.as_slice()).map_err(nul("cwd"))?,
        cwd_place: Place::new(&plan.cwd).map_err(nul("cwd"))?,
        uid: Uid::from_raw(id(plan.uid)?),
        gid: Gid::from_raw(id(plan.gid)?),
        groups: groups.collect::<Result<_, _>>()?,
        umask: Mode::from_raw_mode(plan.umask.unwrap_or(0o022) & 0o777),
        capabilities: plan.capabilities.unwrap_or_default(),
        no_new_privileges: plan.no_new_privileges,
        rlimits: plan.rlimits.clone(),
        oom_score_adj: plan.oom_score_adj,
        terminal: plan.terminal.then_some(size),
        filter,
        filter_flags: plan.seccomp_flags,
        labels: labels(plan)?,
        io_priority: plan.io_priority,
        personality: None,
        new_keyring: true,
        needs_proc: plan.oom_score_adj.is_some()
            || !plan.apparmor_profile.is_empty()
            || !plan.selinux_label.is_empty(),
        inherited: 3_u32.saturating_add(plan.preserve_fds),
        stdio: streams(if plan.terminal {
            Stdio::default()
        } else {
            stdio
        })?,
        cgroup2: fds.take("cgroup2").map(movable).transpose()?,
        cgroup1: fds
            .take_all("cgroup1")
            .into_iter()
            .map(movable)
            .collect::<Result<_, _>>()?,
    })
}

/// Files of the private procfs, and what is written there.
fn labels(plan: &ProcessPlan) -> Result<Vec<(CString, Vec<u8>)>, StepError> {
    let mut labels = Vec::new();
    if !plan.apparmor_profile.is_empty() {
        let value = format!("exec {}", plan.apparmor_profile);
        labels.push((c"self/attr/apparmor/exec".to_owned(), value.into_bytes()));
    }
    if !plan.selinux_label.is_empty() {
        let value = plan.selinux_label.clone().into_bytes();
        labels.push((c"self/attr/exec".to_owned(), value));
    }
    if labels.iter().any(|(_, value)| value.contains(&0)) {
        return Err(StepError::plan("a security label has a NUL byte"));
    }
    Ok(labels)
}

/// The paths that the program may have.
fn candidates(name: &[u8], env: &[Vec<u8>]) -> Result<Vec<CString>, StepError> {
    if name.contains(&b'/') {
        return Ok(vec![CString::new(name).map_err(nul("args"))?]);
    }
    let path = env.iter().rev().find_map(|v| v.strip_prefix(b"PATH="));
    let dirs = path.unwrap_or(PATH_DEFAULT).split(|b| *b == b':');
    dirs.map(|dir| {
        // An empty entry is the working directory, as for a shell.
        let dir = if dir.is_empty() { b"." } else { dir };
        CString::new([dir, b"/", name].concat()).map_err(nul("PATH"))
    })
    .collect()
}

fn streams(stdio: Stdio) -> Result<[OwnedFd; 3], StepError> {
    let open = |fd: Option<OwnedFd>| match fd {
        Some(fd) => movable(fd),
        None => {
            let flags = OFlags::RDWR | OFlags::CLOEXEC;
            let null = rustix::fs::open(c"/dev/null", flags, Mode::empty());
            movable(null.map_err(|e| StepError::new(Step::Prepare, "/dev/null", e))?)
        }
    };
    Ok([open(stdio.stdin)?, open(stdio.stdout)?, open(stdio.stderr)?])
}

/// A descriptor above stdio's, so that none is covered while the child puts stdio in place.
fn movable(fd: OwnedFd) -> Result<OwnedFd, StepError> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    rustix::io::fcntl_dupfd_cloexec(&fd, 3)
        .map_err(|e| StepError::new(Step::Prepare, "descriptor", e))
}

/// Every descriptor that the child needs, sorted by number; all others are closed first of all.
pub(super) fn keep<'fd>(
    process: &'fd Process,
    more: impl IntoIterator<Item = BorrowedFd<'fd>>,
) -> Vec<BorrowedFd<'fd>> {
    let mut keep: Vec<BorrowedFd<'fd>> = more.into_iter().collect();
    keep.extend(process.stdio.iter().map(|fd| fd.as_fd()));
    keep.extend(process.cgroup1.iter().map(|fd| fd.as_fd()));
    keep.sort_by_key(|fd| fd.as_raw_fd());
    keep.dedup_by_key(|fd| fd.as_raw_fd());
    keep
}

impl Init {
    /// All that the child needs beside the process's own.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let binds = self.mounts.iter().filter_map(|m| match &m.source {
            Source::Bind(fd) => Some(fd.as_fd()),
            Source::FileSystem(_) => None,
        });
        let listener = match &self.park {
            Park::Listener(fd) => Some(fd.as_fd()),
            Park::Socket => None,
        };
        let joins = self.joins.iter().map(|(fd, _)| fd.as_fd());
        let root = std::iter::once(self.rootfs.as_fd());
        root.chain(binds).chain(joins).chain(listener)
    }
}
