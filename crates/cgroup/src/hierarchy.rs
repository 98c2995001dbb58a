//! Which cgroup hierarchies this machine has, and where: v2, v1, or both (hybrid).

use std::path::{Path, PathBuf};

use crate::error::CgroupError;

/// The most hierarchies that are kept; the kernel has 14 controllers.
const HIERARCHIES_MAX: usize = 64;
/// The longest path of a cgroup.
const PATH_MAX: usize = 1024;

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Its controllers. v2: those that the root offers. v1: those that it was mounted with, and
    /// `name=systemd` for a hierarchy with a name.
    pub controllers: Vec<String>,
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|known| known == controller)
    }

    /// What its directory is called below /sys/fs/cgroup: `cpu,cpuacct`, `systemd`.
    fn label(&self) -> String {
        self.controllers.join(",").replace("name=", "")
    }
}

/// The hierarchies of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cgroups {
    pub(crate) v2: Option<Hierarchy>,
    pub(crate) v1: Vec<Hierarchy>,
}

/// What a container sees below /sys/fs/cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// cgroup v2 alone. The directory is the container's own.
    Unified {
        /// Path on the host.
        directory: PathBuf,
    },
    /// One directory per v1 hierarchy.
    Hierarchies(Vec<HierarchyView>),
}

/// A container's own directory in one v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HierarchyView {
    /// Its name below /sys/fs/cgroup: `cpu,cpuacct`.
    pub name: String,
    /// Names that are links to it: `cpu`, `cpuacct`; none for a hierarchy of one controller.
    pub links: Vec<String>,
    /// Path on the host.
    pub directory: PathBuf,
}

impl Cgroups {
    /// Looks at the mounts of this process.
    ///
    /// # Errors
    /// They cannot be read, or no hierarchy is mounted.
    pub fn probe() -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let text = std::fs::read_to_string(path).map_err(|source| CgroupError::Mounts {
            path: path.to_owned(),
            source,
        })?;
        let cgroups = Self::from_mountinfo(&text);
        if cgroups.v2.is_none() && cgroups.v1.is_empty() {
            return Err(CgroupError::NoHierarchy);
        }
        Ok(cgroups)
    }

    /// From the text of a mountinfo file, see proc_pid_mountinfo(5). v2's controllers are read at its
    /// mount point.
    pub fn from_mountinfo(text: &str) -> Self {
        let mut cgroups = Self::default();
        for line in text.lines() {
            let Some(mount) = Mount::parse(line) else {
                continue;
            };
            if mount.fs_type == "cgroup2" {
                if cgroups.v2.is_none() {
                    let offered = mount.point.join("cgroup.controllers");
                    let controllers = std::fs::read_to_string(offered).unwrap_or_default();
                    cgroups.v2 = Some(Hierarchy {
                        mountpoint: mount.point,
                        controllers: controllers.split_whitespace().map(str::to_owned).collect(),
                    });
                }
                continue;
            }
            let controllers: Vec<String> = mount
                .options
                .split(',')
                .filter(|option| CONTROLLERS_V1.contains(option) || option.starts_with("name="))
                .map(str::to_owned)
                .collect();
            let known = cgroups.v1.iter().any(|h| h.controllers == controllers);
            if !known && !controllers.is_empty() && cgroups.v1.len() < HIERARCHIES_MAX {
                cgroups.v1.push(Hierarchy {
                    mountpoint: mount.point,
                    controllers,
                });
            }
        }
        cgroups
    }

    /// cgroup v2 alone, mounted at `mountpoint` with these controllers.
    pub fn unified(mountpoint: &Path, controllers: &[&str]) -> Self {
        Self {
            v2: Some(Hierarchy {
                mountpoint: mountpoint.to_owned(),
                controllers: controllers.iter().map(|&c| c.to_owned()).collect(),
            }),
            v1: Vec::new(),
        }
    }

    /// v1 hierarchies: mount point and controllers of each.
    pub fn legacy(hierarchies: Vec<Hierarchy>) -> Self {
        Self {
            v2: None,
            v1: hierarchies,
        }
    }

    /// The same machine without its v1 hierarchies: only the v2 tree is used.
    #[must_use]
    pub fn without_v1(mut self) -> Self {
        self.v1.clear();
        self
    }

    /// Whether there is only cgroup v2.
    pub fn is_unified(&self) -> bool {
        self.v1.is_empty()
    }

    /// The v2 hierarchy.
    pub fn v2(&self) -> Option<&Hierarchy> {
        self.v2.as_ref()
    }

    /// The v1 hierarchies.
    pub fn v1(&self) -> &[Hierarchy] {
        &self.v1
    }

    /// Whether any hierarchy has the controller.
    pub fn has(&self, controller: &str) -> bool {
        self.v1.iter().chain(&self.v2).any(|h| h.has(controller))
    }

    /// What a container in the cgroup `path` sees; the directories need not exist yet.
    ///
    /// # Errors
    /// The path cannot be one of a cgroup.
    pub fn view(&self, path: &str) -> Result<View, CgroupError> {
        let path = relative(path)?;
        if let (true, Some(v2)) = (self.v1.is_empty(), &self.v2) {
            return Ok(View::Unified {
                directory: v2.mountpoint.join(&path),
            });
        }
        let view = |hierarchy: &Hierarchy| HierarchyView {
            name: hierarchy.label(),
            links: match hierarchy.controllers.as_slice() {
                [_] => Vec::new(),
                many => many.iter().map(|c| c.replace("name=", "")).collect(),
            },
            directory: hierarchy.mountpoint.join(&path),
        };
        Ok(View::Hierarchies(self.v1.iter().map(view).collect()))
    }
}

/// The controllers of cgroup v1; other mount options are none.
const CONTROLLERS_V1: [&str; 14] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "debug",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

struct Mount<'a> {
    point: PathBuf,
    fs_type: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    /// A mount of cgroups; a mount of a part of a hierarchy counts like its root.
    fn parse(line: &'a str) -> Option<Self> {
        let (front, back) = line.split_once(" - ")?;
        let mut back = back.split(' ');
        let fs_type = back.next()?;
        if fs_type != "cgroup" && fs_type != "cgroup2" {
            return None;
        }
        let options = back.nth(1)?;
        let point = front.split(' ').nth(4)?;
        Some(Self {
            point: PathBuf::from(unescape(point)),
            fs_type,
            options,
        })
    }
}

/// The kernel writes blanks and backslashes as `\040`.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after.get(..3).map(|digits| u8::from_str_radix(digits, 8)) {
            Some(Ok(byte)) => {
                out.push(char::from(byte));
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// A cgroup's path below the root of each hierarchy: `/a/b` and `a/b` are the same.
pub(crate) fn relative(path: &str) -> Result<String, CgroupError> {
    let invalid = |problem| CgroupError::Path {
        path: path.to_owned(),
        problem,
    };
    if path.len() > PATH_MAX {
        return Err(invalid("is longer than 1024 bytes"));
    }
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Err(invalid("is the root: name a cgroup below it"));
    }
    for part in &parts {
        if *part == "." || *part == ".." {
            return Err(invalid("must not contain . or .."));
        }
        if part.contains(['\0', '\n']) {
            return Err(invalid("contains a control character"));
        }
        if part.len() > 255 {
            return Err(invalid("a name is longer than 255 bytes"));
        }
        if part.starts_with("cgroup.") {
            return Err(invalid("names that begin with cgroup. are the kernel's"));
        }
        if part.ends_with(".slice") || part.ends_with(".scope") || part.contains(':') {
            return Err(CgroupError::Unsupported(format!(
                "the systemd cgroup driver (cgroup {path:?}; use the cgroupfs driver)"
            )));
        }
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_hierarchies_are_found_with_their_controllers() {
        let text = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset,noprefix
34 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
35 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime - cgroup2 cgroup2 rw
36 31 0:29 / /mnt/again rw,relatime - cgroup cgroup rw,cpu,cpuacct
";
        let cgroups = Cgroups::from_mountinfo(text);
        let named: Vec<_> = cgroups.v1.iter().map(Hierarchy::label).collect();
        assert_eq!(named, ["cpu,cpuacct", "cpuset", "systemd"]);
        assert_eq!(
            cgroups.v2.as_ref().unwrap().mountpoint,
            Path::new("/sys/fs/cgroup/uni fied")
        );
        assert!(cgroups.has("cpuacct") && !cgroups.has("memory"));
        let View::Hierarchies(views) = cgroups.view("/a/b").unwrap() else {
            panic!("not v1");
        };
        assert_eq!(views[0].links, ["cpu", "cpuacct"]);
        assert_eq!(
            views[0].directory,
            Path::new("/sys/fs/cgroup/cpu,cpuacct/a/b")
        );
    }

    #[test]
    fn paths_stay_below_the_root() {
        assert_eq!(relative("/a/b").unwrap(), "a/b");
        assert_eq!(relative("a//b/").unwrap(), "a/b");
        for bad in ["", "/", "/a/../b", "a/cgroup.procs", "a\nb"] {
            assert!(relative(bad).is_err(), "{bad:?}");
        }
        for systemd in ["system.slice:wharf:id", "/kubepods.slice/x"] {
            let error = relative(systemd).unwrap_err();
            assert_eq!(error.kind(), wharf_types::Kind::Unsupported);
        }
    }
}
