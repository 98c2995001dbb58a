//! The mounts of a container: file systems, binds, and the view of its cgroup.

use std::path::{Path, PathBuf};

use wharf_cgroup::View;
use wharf_plan::container::{LinkPlan, MountPlan, MountSource};

use super::options::{self, Options};
use super::{CompileError, CompileOptions};
use crate::spec::{Mount, NamespaceKind, Spec};

const RDONLY: u64 = 0x1;
const NOSUID_NODEV_NOEXEC: u64 = 0xe;

/// A directory or file of the host that a container gets: what has to be opened, and how.
///
/// The copy of the mount is made (`open_tree(2)`), then `recursive_set` and `recursive_clear` are
/// applied to it with all below it, then `set` and `clear` to itself alone, then the propagation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindSource {
    /// Its place in the plan's mounts.
    pub mount: usize,
    /// Absolute path on the host.
    pub source: PathBuf,
    /// With the mounts below it.
    pub recursive: bool,
    /// `MOUNT_ATTR_*` to set on the mount itself.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear on the mount itself.
    pub clear: u64,
    /// `MOUNT_ATTR_*` to set on the mount and all below it.
    pub recursive_set: u64,
    /// `MOUNT_ATTR_*` to clear on the mount and all below it.
    pub recursive_clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED` or `MS_UNBINDABLE`, perhaps with `MS_REC`; never 0.
    pub propagation: u64,
    /// It comes to lie over /proc, so it must be the root of a procfs (`PROC_SUPER_MAGIC`).
    pub must_be_procfs: bool,
}

/// What the mounts of a document come to.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    pub(super) plans: Vec<MountPlan>,
    pub(super) binds: Vec<BindSource>,
    pub(super) links: Vec<LinkPlan>,
    /// Made read-only when everything is mounted.
    pub(super) readonly_paths: Vec<Vec<u8>>,
}

impl Mounts {
    fn bind(&mut self, destination: &str, options: &Options, mut source: BindSource) {
        source.mount = self.plans.len();
        source.set |= options.attributes.set;
        source.clear |= options.attributes.clear;
        self.plans.push(MountPlan {
            destination: destination.as_bytes().to_vec(),
            source: MountSource::Bind.into(),
            propagation: options.propagation.unwrap_or(0),
            ..MountPlan::default()
        });
        self.binds.push(source);
    }
}

/// Files below /proc over which something may be mounted: those that lxcfs and runc's users give.
const PROC_ALLOWED: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Translates all mounts, in order.
pub(super) fn compile(
    spec: &Spec,
    compile_options: &CompileOptions<'_>,
) -> Result<Mounts, CompileError> {
    let mut mounts = Mounts::default();
    let rootfs_propagation = match &spec.linux {
        Some(linux) => options::propagation(&linux.rootfs_propagation)?,
        None => 0,
    };
    for (index, mount) in spec.mounts.iter().enumerate() {
        let field = format!("mounts[{index}]");
        let destination = clean(&mount.destination);
        if destination == "/" {
            return Err(CompileError::invalid(
                format!("{field}.destination"),
                "is the root itself: set root.path instead",
            ));
        }
        if mount.uid_mappings.is_some() || mount.gid_mappings.is_some() {
            return Err(CompileError::Unsupported(format!(
                "{field}: idmapped mounts"
            )));
        }
        let mut options = options::parse(&mount.options, &field)?;
        options.bind |= mount.kind == "bind" || mount.kind == "rbind";
        options.recursive |= mount.kind == "rbind";
        check_proc(&field, &destination, mount, options.bind)?;
        if options.bind {
            let source = bind(
                &field,
                mount,
                &options,
                (&compile_options.bundle, rootfs_propagation),
            )?;
            let source = BindSource {
                must_be_procfs: destination == "/proc",
                ..source
            };
            mounts.bind(&destination, &options, source);
        } else if mount.kind == "cgroup" || mount.kind == "cgroup2" {
            cgroup(
                &mut mounts,
                &field,
                &destination,
                &options,
                (spec, compile_options),
            )?;
        } else {
            mounts
                .plans
                .push(file_system(&field, &destination, mount, options)?);
        }
    }
    Ok(mounts)
}

fn bind(
    field: &str,
    mount: &Mount,
    options: &Options,
    (bundle, rootfs_propagation): (&Path, u64),
) -> Result<BindSource, CompileError> {
    if mount.source.is_empty() {
        return Err(CompileError::invalid(
            format!("{field}.source"),
            "is empty: a bind mount needs a path on the host",
        ));
    }
    Ok(BindSource {
        mount: 0,
        source: bundle.join(&mount.source),
        recursive: options.recursive,
        set: 0,
        clear: 0,
        recursive_set: options.recursive_attributes.set,
        recursive_clear: options.recursive_attributes.clear,
        propagation: options
            .propagation
            .unwrap_or_else(|| options::bind_default(rootfs_propagation)),
        must_be_procfs: false,
    })
}

fn file_system(
    field: &str,
    destination: &str,
    mount: &Mount,
    options: Options,
) -> Result<MountPlan, CompileError> {
    if mount.kind.is_empty() {
        return Err(CompileError::invalid(
            format!("{field}.type"),
            "is empty: name a file system, or say bind or rbind among the options",
        ));
    }
    Ok(MountPlan {
        destination: destination.as_bytes().to_vec(),
        source: MountSource::FileSystem.into(),
        attributes: options.attributes.set | options.recursive_attributes.set,
        propagation: options.propagation.unwrap_or(0),
        is_file: false,
        copy_up: options.copy_up && mount.kind == "tmpfs",
        source_name: if mount.source.is_empty() {
            mount.kind.clone()
        } else {
            mount.source.clone()
        },
        fs_type: mount.kind.clone(),
        options: options.parameters,
    })
}

/// The container's own cgroup. On v2 with a namespace of its own a new cgroup2, whose root is the
/// namespace's; else binds of its directories, which exist before the container does.
fn cgroup(
    mounts: &mut Mounts,
    field: &str,
    destination: &str,
    options: &Options,
    (spec, compile_options): (&Spec, &CompileOptions<'_>),
) -> Result<(), CompileError> {
    let own_namespace = spec.linux.as_ref().is_some_and(|linux| {
        linux
            .namespaces
            .iter()
            .any(|entry| entry.kind == NamespaceKind::Cgroup && entry.path.is_empty())
    });
    let Some(view) = &compile_options.cgroup else {
        return Err(CompileError::invalid(
            format!("{field}.type"),
            "a cgroup mount needs a cgroup: set linux.cgroupsPath",
        ));
    };
    let source = |directory: &Path| BindSource {
        mount: 0,
        source: directory.to_owned(),
        recursive: false,
        set: NOSUID_NODEV_NOEXEC,
        clear: 0,
        recursive_set: 0,
        recursive_clear: 0,
        propagation: options
            .propagation
            .unwrap_or_else(|| options::bind_default(0)),
        must_be_procfs: false,
    };
    match view {
        View::Unified { .. } if own_namespace => {
            mounts.plans.push(MountPlan {
                destination: destination.as_bytes().to_vec(),
                source: MountSource::FileSystem.into(),
                fs_type: "cgroup2".to_owned(),
                attributes: options.attributes.set,
                propagation: options.propagation.unwrap_or(0),
                source_name: "cgroup".to_owned(),
                ..MountPlan::default()
            });
        }
        View::Unified { directory } => mounts.bind(destination, options, source(directory)),
        View::Hierarchies(hierarchies) => {
            // Mount points have to be made in it, so it becomes read-only afterwards.
            mounts.plans.push(MountPlan {
                destination: destination.as_bytes().to_vec(),
                source: MountSource::FileSystem.into(),
                fs_type: "tmpfs".to_owned(),
                options: vec!["mode=755".to_owned()],
                attributes: NOSUID_NODEV_NOEXEC,
                propagation: options.propagation.unwrap_or(0),
                source_name: "tmpfs".to_owned(),
                ..MountPlan::default()
            });
            for hierarchy in hierarchies {
                let place = format!("{destination}/{}", hierarchy.name);
                mounts.bind(&place, options, source(&hierarchy.directory));
                mounts
                    .links
                    .extend(hierarchy.links.iter().map(|link| LinkPlan {
                        path: format!("{destination}/{link}").into_bytes(),
                        target: hierarchy.name.clone().into_bytes(),
                    }));
            }
            if options.attributes.set & RDONLY != 0 {
                mounts.readonly_paths.push(destination.as_bytes().to_vec());
            }
        }
    }
    Ok(())
}

/// Security labels are set through /proc: nothing that the caller's volumes hold may lie there.
fn check_proc(
    field: &str,
    destination: &str,
    mount: &Mount,
    is_bind: bool,
) -> Result<(), CompileError> {
    let refused = destination == "/proc" && !is_bind && mount.kind != "proc"
        || destination.starts_with("/proc/") && !PROC_ALLOWED.contains(&destination);
    if refused {
        return Err(CompileError::invalid(
            format!("{field}.destination"),
            format!("{destination} must not be mounted over: it is part of /proc"),
        ));
    }
    Ok(())
}

/// The path without `.`, `..`, doubled and trailing slashes, absolute.
pub(super) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}
