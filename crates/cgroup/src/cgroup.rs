//! A cgroup across all hierarchies: made, opened, limited, joined, removed.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::apply;
use crate::devices::DeviceList;
use crate::error::CgroupError;
use crate::files::controllers;
use crate::group::{Group, Version, io_error};
use crate::hierarchy::{Cgroups, Hierarchy, relative};
use crate::limits::Limits;

/// A cgroup: one directory in each hierarchy of the machine, all at the same path.
#[derive(Debug)]
pub struct Cgroup {
    pub(crate) path: String,
    pub(crate) groups: Vec<Group>,
}

/// Descriptors by which a new process comes into a cgroup.
#[derive(Debug, Default)]
pub struct Membership {
    /// The v2 directory, for `CLONE_INTO_CGROUP`.
    pub v2: Option<OwnedFd>,
    /// `tasks` of each v1 hierarchy, open for writing: a process without threads writes `0`.
    ///
    /// Not `cgroup.procs`: a thread that moves itself needs no stable thread group, so the kernel
    /// (5.5 and newer) leaves out the global lock, whose grace period costs 5 to 17 ms.
    pub v1: Vec<OwnedFd>,
}

impl Cgroups {
    /// Makes the cgroup `path` in every hierarchy, and the groups above it where they are missing,
    /// and limits it. On failure nothing that was made is left.
    ///
    /// # Errors
    /// The path is not allowed, a limit is out of range or needs a controller that is not there, the
    /// cgroup exists and has processes, or the kernel refuses.
    pub fn create(&self, path: &str, limits: &Limits) -> Result<Cgroup, CgroupError> {
        let path = relative(path)?;
        let list = limits.devices.as_deref().map(DeviceList::new).transpose()?;
        let mut made = Vec::new();
        let result = self.build(&path, limits, list.as_ref(), &mut made);
        if result.is_err() {
            for directory in made.iter().rev() {
                // The error that is told is the one that made this necessary.
                let _best_effort = rustix::fs::rmdir(directory);
            }
        }
        result
    }

    fn build(
        &self,
        path: &str,
        limits: &Limits,
        devices: Option<&DeviceList>,
        made: &mut Vec<PathBuf>,
    ) -> Result<Cgroup, CgroupError> {
        let legacy = |name: &str| {
            let mut v1 = self.v1.iter();
            v1.any(|hierarchy| hierarchy.controllers.iter().any(|c| c == name))
        };
        let on_v2 = apply::plan_v2(limits, legacy)?;
        let mut groups = Vec::new();
        for hierarchy in &self.v1 {
            let directory = make(hierarchy, path, made, |parent, child| {
                if hierarchy.controllers.iter().any(|c| c == "cpuset") {
                    inherit_cpuset(parent, child)?;
                }
                Ok(())
            })?;
            groups.extend(Group::open(Version::V1, &hierarchy.controllers, directory)?);
        }
        if let Some(v2) = &self.v2 {
            let mut needed = controllers(&on_v2);
            needed.retain(|name| !legacy(name));
            let directory = make(v2, path, made, |parent, _| {
                enable(parent, v2, &needed, self.v1.is_empty())
            })?;
            groups.extend(Group::open(Version::V2, &v2.controllers, directory)?);
        }
        for group in groups.iter().filter(|group| !made.contains(&group.path)) {
            let count = group.processes()?.len();
            if count > 0 {
                return Err(CgroupError::Occupied {
                    path: group.path.clone(),
                    count,
                });
            }
        }
        let writes = apply::plan(&groups, limits, on_v2)?;
        apply::write_new(&groups, &writes)?;
        if let Some(list) = devices {
            apply::devices(&groups, list)?;
        }
        Ok(Cgroup {
            path: path.to_owned(),
            groups,
        })
    }

    /// Opens an existing cgroup, after a restart; hierarchies where it is gone are left out.
    ///
    /// # Errors
    /// The path is not allowed, or the cgroup exists in no hierarchy.
    pub fn open(&self, path: &str) -> Result<Cgroup, CgroupError> {
        let path = relative(path)?;
        let mut groups = Vec::new();
        for hierarchy in &self.v1 {
            let directory = hierarchy.mountpoint.join(&path);
            groups.extend(Group::open(Version::V1, &hierarchy.controllers, directory)?);
        }
        if let Some(v2) = &self.v2 {
            let directory = v2.mountpoint.join(&path);
            groups.extend(Group::open(Version::V2, &v2.controllers, directory)?);
        }
        if groups.is_empty() {
            return Err(CgroupError::NotFound(path));
        }
        Ok(Cgroup { path, groups })
    }
}

/// Makes the directories of `path` one after the other; `prepare` gets each parent and child
/// before the next one is made.
fn make(
    hierarchy: &Hierarchy,
    path: &str,
    made: &mut Vec<PathBuf>,
    prepare: impl Fn(&Path, &Path) -> Result<(), CgroupError>,
) -> Result<PathBuf, CgroupError> {
    let mut directory = hierarchy.mountpoint.clone();
    for name in path.split('/') {
        let parent = directory.clone();
        directory.push(name);
        match rustix::fs::mkdir(&directory, Mode::from_raw_mode(0o755)) {
            Ok(()) => made.push(directory.clone()),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(io_error("create", &directory, error)),
        }
        prepare(&parent, &directory)?;
    }
    Ok(directory)
}

/// A new v1 cpuset has no processors and takes no process until it has.
fn inherit_cpuset(parent: &Path, child: &Path) -> Result<(), CgroupError> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = child.join(name);
        let now = std::fs::read_to_string(&file).map_err(|e| io_error("read", &file, e))?;
        if !now.trim().is_empty() {
            continue;
        }
        let from = parent.join(name);
        let value = std::fs::read_to_string(&from).map_err(|e| io_error("read", &from, e))?;
        std::fs::write(&file, value.trim()).map_err(|source| CgroupError::Write {
            controller: "cpuset".to_owned(),
            file,
            value: value.trim().to_owned(),
            source,
        })?;
    }
    Ok(())
}

/// Hands controllers down from a v2 group to its children: those that are needed, and on a machine
/// with nothing but v2 all that it offers (statistics come from them).
fn enable(parent: &Path, v2: &Hierarchy, needed: &[&str], all: bool) -> Result<(), CgroupError> {
    let file = parent.join("cgroup.subtree_control");
    let enabled = std::fs::read_to_string(&file).unwrap_or_default();
    for controller in &v2.controllers {
        let is_needed = needed.contains(&controller.as_str());
        if !(all || is_needed) || enabled.split_whitespace().any(|c| c == controller) {
            continue;
        }
        let value = format!("+{controller}");
        let written = std::fs::OpenOptions::new()
            .write(true)
            .open(&file)
            .and_then(|open| rustix::io::write(open, value.as_bytes()).map_err(Into::into));
        match written {
            Err(source) if is_needed => {
                return Err(CgroupError::Write {
                    controller: controller.clone(),
                    file,
                    value,
                    source,
                });
            }
            // What nobody asked for may stay away.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

impl Cgroup {
    /// Its path below the root of each hierarchy, without a leading slash.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its v2 directory on this machine.
    pub fn v2_directory(&self) -> Option<&Path> {
        self.v2().map(|group| group.path.as_path())
    }

    pub(crate) fn v2(&self) -> Option<&Group> {
        self.groups
            .iter()
            .find(|group| group.version == Version::V2)
    }

    pub(crate) fn with(&self, controller: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.has(controller))
    }

    /// Changes limits; those that are unset stay. On failure all are as they were before.
    ///
    /// # Errors
    /// A limit is out of range, needs a controller that is not there, is below what is in use, or the
    /// kernel refuses it.
    pub fn update(&self, limits: &Limits) -> Result<(), CgroupError> {
        let list = limits.devices.as_deref().map(DeviceList::new).transpose()?;
        let legacy = |name: &str| {
            self.with(name)
                .is_some_and(|group| group.version == Version::V1)
        };
        let on_v2 = apply::plan_v2(limits, legacy)?;
        let writes = apply::plan(&self.groups, limits, on_v2)?;
        apply::check_usage(&self.groups, limits)?;
        apply::write_all(&self.groups, &writes, list.as_ref())
    }

    /// Descriptors by which a new process comes in.
    ///
    /// # Errors
    /// The cgroup was removed, or writing to it is not allowed.
    pub fn member_fds(&self) -> Result<Membership, CgroupError> {
        let mut membership = Membership::default();
        for group in &self.groups {
            match group.version {
                Version::V2 => {
                    let directory = group
                        .directory()
                        .try_clone_to_owned()
                        .map_err(|error| io_error("open", &group.path, error))?;
                    membership.v2 = Some(directory);
                }
                Version::V1 => {
                    let file = group
                        .file("tasks", OFlags::WRONLY)
                        .map_err(|e| io_error("open", &group.path.join("tasks"), e))?;
                    membership.v1.push(file);
                }
            }
        }
        Ok(membership)
    }

    /// A cgroup below this one for a process that must be killed with all its descendants (an exec
    /// with a deadline): no limits of its own, and in one hierarchy only (v2, else v1's freezer,
    /// else pids); in the others its processes are in this cgroup.
    ///
    /// # Errors
    /// The name is not allowed, it exists and has processes, or the kernel refuses.
    pub fn leaf(&self, name: &str) -> Result<Cgroup, CgroupError> {
        let path = relative(&format!("{}/{name}", self.path))?;
        if name.contains('/') {
            return Err(CgroupError::Path {
                path,
                problem: "a leaf's name has no slash",
            });
        }
        let chosen = self.place_of_leaves().ok_or_else(|| {
            CgroupError::Unsupported("a leaf without cgroup v2 or freezer".into())
        })?;
        let mut groups = Vec::new();
        for (at, group) in self.groups.iter().enumerate() {
            if at != chosen {
                groups.push(group.lend()?);
                continue;
            }
            let directory = group.child(name);
            match rustix::fs::mkdir(&directory, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(io_error("create", &directory, error)),
            }
            let leaf = Group::open(group.version, &group.controllers, directory)?;
            let leaf = leaf.ok_or_else(|| CgroupError::NotFound(path.clone()))?;
            let count = leaf.processes()?.len();
            if count > 0 {
                return Err(CgroupError::Occupied {
                    path: leaf.path,
                    count,
                });
            }
            groups.push(leaf);
        }
        Ok(Cgroup { path, groups })
    }

    /// Which of its groups has leaves.
    fn place_of_leaves(&self) -> Option<usize> {
        let groups = || self.groups.iter();
        groups()
            .position(|group| group.version == Version::V2)
            .or_else(|| groups().position(|group| group.has("freezer")))
            .or_else(|| groups().position(|group| group.has("pids")))
    }

    /// The names of the leaves that it has, also of those that another process of ours made. Cgroups
    /// that its own processes made there are among them.
    ///
    /// # Errors
    /// The directory cannot be read; a removed cgroup has none.
    pub fn leaves(&self) -> Result<Vec<String>, CgroupError> {
        let Some(group) = self.place_of_leaves().and_then(|at| self.groups.get(at)) else {
            return Ok(Vec::new());
        };
        let failed = |error: std::io::Error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            io_error("list", &group.path, errno)
        };
        let entries = match std::fs::read_dir(&group.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }

    /// The group by which its processes are found, frozen and killed.
    pub(crate) fn primary(&self) -> Option<&Group> {
        let own = || self.groups.iter().filter(|group| group.own);
        own()
            .find(|group| group.version == Version::V2)
            .or_else(|| own().find(|group| group.has("freezer")))
            .or_else(|| own().find(|group| group.has("pids")))
            .or_else(|| own().next())
    }

    /// The ids of its processes and of those in cgroups below it.
    ///
    /// # Errors
    /// They cannot be read; a removed cgroup has none.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        self.primary().map_or(Ok(Vec::new()), Group::processes)
    }
}
