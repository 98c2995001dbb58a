//! What is executed: the same for a container's init and for an exec.

use wharf_plan::process::{CapabilitySets, ConsoleSize, ProcessPlan, Rlimit};

use super::CompileError;
use crate::seccomp::Program;
use crate::spec::{Capabilities, IoPriority, Process, capability, check};

/// What the caller knows beside the document.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessOptions<'a> {
    /// The filter; for an exec that of its container.
    pub seccomp: Option<&'a Program>,
    /// Descriptors from 3 on that the process inherits.
    pub preserve_fds: u32,
}

/// Names of resource limits and their numbers on all architectures but alpha, mips and sparc.
const RLIMITS: [(&str, u32); 16] = [
    ("RLIMIT_CPU", 0),
    ("RLIMIT_FSIZE", 1),
    ("RLIMIT_DATA", 2),
    ("RLIMIT_STACK", 3),
    ("RLIMIT_CORE", 4),
    ("RLIMIT_RSS", 5),
    ("RLIMIT_NPROC", 6),
    ("RLIMIT_NOFILE", 7),
    ("RLIMIT_MEMLOCK", 8),
    ("RLIMIT_AS", 9),
    ("RLIMIT_LOCKS", 10),
    ("RLIMIT_SIGPENDING", 11),
    ("RLIMIT_MSGQUEUE", 12),
    ("RLIMIT_NICE", 13),
    ("RLIMIT_RTPRIO", 14),
    ("RLIMIT_RTTIME", 15),
];

/// Translates a process.
///
/// # Errors
/// A value is not allowed, or not supported yet.
pub fn process_plan(
    process: &Process,
    options: &ProcessOptions<'_>,
) -> Result<ProcessPlan, CompileError> {
    check::check_process(process)?;
    for (field, asked) in [
        ("process.scheduler", process.scheduler.is_some()),
        (
            "process.execCPUAffinity",
            process.exec_cpu_affinity.is_some(),
        ),
    ] {
        if asked {
            return Err(CompileError::Unsupported(field.to_owned()));
        }
    }
    Ok(ProcessPlan {
        args: process
            .args
            .iter()
            .map(|arg| arg.clone().into_bytes())
            .collect(),
        env: environment(&process.env),
        cwd: process.cwd.clone().into_bytes(),
        uid: process.user.uid,
        gid: process.user.gid,
        groups: process.user.additional_gids.clone(),
        umask: process.user.umask,
        capabilities: process
            .capabilities
            .as_ref()
            .map(capabilities)
            .transpose()?,
        no_new_privileges: process.no_new_privileges,
        rlimits: rlimits(process)?,
        oom_score_adj: process.oom_score_adj,
        terminal: process.terminal,
        console: process.console_size.map(|size| ConsoleSize {
            height: size.height,
            width: size.width,
        }),
        seccomp: options
            .seccomp
            .map(|program| program.code.clone())
            .unwrap_or_default(),
        seccomp_flags: options.seccomp.map_or(0, |program| program.flags),
        apparmor_profile: process.apparmor_profile.clone(),
        selinux_label: process.selinux_label.clone(),
        io_priority: process.io_priority.as_ref().map(io_priority).transpose()?,
        preserve_fds: options.preserve_fds,
    })
}

/// Each variable once: the last value, at the place of the last one.
fn environment(variables: &[String]) -> Vec<Vec<u8>> {
    let name = |variable: &String| variable.split('=').next().unwrap_or_default().to_owned();
    let mut seen = std::collections::HashSet::new();
    let mut kept: Vec<_> = variables
        .iter()
        .rev()
        .filter(|variable| seen.insert(name(variable)))
        .map(|variable| variable.clone().into_bytes())
        .collect();
    kept.reverse();
    kept
}

fn capabilities(sets: &Capabilities) -> Result<CapabilitySets, CompileError> {
    let mask = |field: &str, names: &[String]| {
        names.iter().try_fold(0, |mask, name| {
            capability::bit(name).map(|bit| mask | bit).ok_or_else(|| {
                CompileError::invalid(
                    format!("process.capabilities.{field}"),
                    format!("unknown capability {name:?}"),
                )
            })
        })
    };
    Ok(CapabilitySets {
        bounding: mask("bounding", &sets.bounding)?,
        effective: mask("effective", &sets.effective)?,
        permitted: mask("permitted", &sets.permitted)?,
        inheritable: mask("inheritable", &sets.inheritable)?,
        ambient: mask("ambient", &sets.ambient)?,
    })
}

fn rlimits(process: &Process) -> Result<Vec<Rlimit>, CompileError> {
    let mut limits: Vec<Rlimit> = Vec::new();
    for limit in &process.rlimits {
        let invalid = |problem: &str| {
            CompileError::invalid("process.rlimits", format!("{} {problem}", limit.kind))
        };
        let known = RLIMITS.iter().find(|(name, _)| *name == limit.kind);
        let Some((_, resource)) = known else {
            return Err(invalid("is not a resource limit such as RLIMIT_NOFILE"));
        };
        if limits.iter().any(|other| other.resource == *resource) {
            return Err(invalid("is listed twice"));
        }
        if limit.soft > limit.hard {
            return Err(invalid("has a soft limit above the hard one"));
        }
        limits.push(Rlimit {
            resource: *resource,
            soft: limit.soft,
            hard: limit.hard,
        });
    }
    Ok(limits)
}

/// `IOPRIO_PRIO_VALUE` of linux/ioprio.h.
fn io_priority(wanted: &IoPriority) -> Result<i32, CompileError> {
    let class = match wanted.class.as_str() {
        "IOPRIO_CLASS_RT" => 1,
        "IOPRIO_CLASS_BE" => 2,
        "IOPRIO_CLASS_IDLE" => 3,
        other => {
            return Err(CompileError::invalid(
                "process.ioPriority.class",
                format!("{other:?} is not one of IOPRIO_CLASS_RT, _BE, _IDLE"),
            ));
        }
    };
    if !(0..8).contains(&wanted.priority) {
        return Err(CompileError::invalid(
            "process.ioPriority.priority",
            format!("{} is not between 0 and 7", wanted.priority),
        ));
    }
    Ok(class << 13 | wanted.priority)
}
