//! From a profile to the decision about each call number of each ABI.

use std::collections::BTreeMap;

use super::{Abi, Architecture, RULES_MAX, SeccompError, table};
use crate::spec::{Seccomp, SeccompAction, SeccompArg, SeccompOperator, SeccompSyscall};

const EPERM: u32 = 1;
/// `ENOSYS` on all architectures that have a table here.
pub(super) const ENOSYS: u32 = 38;
/// The kernel's `MAX_ERRNO`.
const ERRNO_MAX: u32 = 4095;

/// `SECCOMP_RET_*` of linux/seccomp.h.
pub(super) mod ret {
    pub(in super::super) const KILL_PROCESS: u32 = 0x8000_0000;
    pub(in super::super) const KILL_THREAD: u32 = 0;
    pub(in super::super) const TRAP: u32 = 0x0003_0000;
    pub(in super::super) const ERRNO: u32 = 0x0005_0000;
    pub(in super::super) const TRACE: u32 = 0x7ff0_0000;
    pub(in super::super) const LOG: u32 = 0x7ffc_0000;
    pub(in super::super) const ALLOW: u32 = 0x7fff_0000;
}

/// `SECCOMP_FILTER_FLAG_*` of linux/seccomp.h.
mod flag {
    pub(super) const LOG: u32 = 1 << 1;
    pub(super) const SPEC_ALLOW: u32 = 1 << 2;
}

/// Everything that the program decides.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) default: u32,
    pub(super) flags: u32,
    pub(super) unknown: Vec<String>,
    /// The ABIs that may be used.
    pub(super) abis: Vec<Calls>,
    /// x32 is listed: its calls answer ENOSYS instead of killing.
    pub(super) x32: bool,
}

/// The decisions about one ABI's calls.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) abi: Abi,
    pub(super) decisions: BTreeMap<u32, Decision>,
    /// Numbers above this one answer ENOSYS.
    pub(super) highest: Option<u32>,
}

/// What is decided about a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Always this.
    Always(u32),
    /// The first rule whose conditions all hold; else the default.
    First(Vec<Rule>),
}

/// Conditions, and what follows when all hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<SeccompArg>,
    pub(super) action: u32,
}

/// Resolves names, numbers, actions.
pub(super) fn resolve(
    profile: &Seccomp,
    architecture: Architecture,
) -> Result<Resolved, SeccompError> {
    let default = action(
        profile.default_action,
        profile.default_errno_ret,
        "defaultErrnoRet",
    )?;
    if !profile.listener_path.is_empty() {
        return Err(SeccompError::Unsupported("listenerPath".to_owned()));
    }
    let flags = filter_flags(&profile.flags)?;
    let (abis, x32) = listed_abis(&profile.architectures, architecture)?;
    let names: usize = profile.syscalls.iter().map(|rule| rule.names.len()).sum();
    if names > RULES_MAX {
        return Err(SeccompError::Invalid {
            field: "syscalls",
            problem: format!("more than {RULES_MAX} names"),
        });
    }
    let mut unknown = Vec::new();
    for entry in &profile.syscalls {
        check_entry(entry)?;
        for name in entry.names.iter().filter(|name| !table::known(name)) {
            unknown.push(name.clone());
        }
    }
    let abis = abis
        .into_iter()
        .map(|abi| calls(profile, abi, default))
        .collect::<Result<_, _>>()?;
    Ok(Resolved {
        default,
        flags,
        unknown,
        abis,
        x32,
    })
}

fn calls(profile: &Seccomp, abi: Abi, default: u32) -> Result<Calls, SeccompError> {
    let mut rules: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    let mut highest = 0;
    for entry in &profile.syscalls {
        let action = action(entry.action, entry.errno_ret, "errnoRet")?;
        for name in &entry.names {
            highest = highest.max(table::number(abi, name).unwrap_or(0));
            // As runc: a rule that says what the default says is none.
            if action == default {
                continue;
            }
            for (number, rule) in expand(abi, name, entry, action) {
                rules.entry(number).or_default().push(rule);
            }
        }
    }
    let decisions = rules
        .into_iter()
        .map(|(number, rules)| (number, decide(rules)))
        .collect();
    // As runc's stub: not for permissive defaults, nor where the default is ENOSYS anyway.
    let stub = !matches!(
        profile.default_action,
        SeccompAction::Allow | SeccompAction::Log | SeccompAction::Trace
    ) && profile.default_errno_ret != Some(ENOSYS)
        && highest > 0;
    Ok(Calls {
        abi,
        decisions,
        highest: stub.then_some(highest),
    })
}

fn decide(rules: Vec<Rule>) -> Decision {
    match rules.iter().find(|rule| rule.conditions.is_empty()) {
        Some(rule) => Decision::Always(rule.action),
        None => Decision::First(rules),
    }
}

/// The rules that one name of an entry makes in an ABI, with their call numbers.
fn expand(abi: Abi, name: &str, entry: &SeccompSyscall, action: u32) -> Vec<(u32, Rule)> {
    let mut alternatives: Vec<Vec<SeccompArg>> = Vec::new();
    let repeated = entry
        .args
        .iter()
        .enumerate()
        .any(|(at, arg)| entry.args.iter().skip(at + 1).any(|a| a.index == arg.index));
    if repeated {
        // As runc: two conditions on one argument make every condition an alternative.
        alternatives.extend(entry.args.iter().map(|arg| vec![arg.clone()]));
    } else {
        alternatives.push(entry.args.clone());
    }
    let mut expanded = Vec::new();
    for conditions in alternatives {
        if let Some((number, operation)) = multiplexer(abi, name) {
            // The real arguments lie behind a pointer: only the operation can be compared.
            let mut conditions = conditions.clone();
            conditions.retain(|condition| condition.index != 0);
            conditions.insert(
                0,
                SeccompArg {
                    index: 0,
                    value: operation,
                    value_two: 0,
                    op: SeccompOperator::Equal,
                },
            );
            expanded.push((number, Rule { conditions, action }));
        }
        if let Some(number) = table::number(abi, name) {
            expanded.push((number, Rule { conditions, action }));
        }
    }
    expanded
}

/// Calls that i386 makes through socketcall(2) and ipc(2): number of the multiplexer and operation
/// (linux/net.h, linux/ipc.h).
fn multiplexer(abi: Abi, name: &str) -> Option<(u32, u64)> {
    if abi != Abi::I386 {
        return None;
    }
    const SOCKET: [&str; 20] = [
        "socket",
        "bind",
        "connect",
        "listen",
        "accept",
        "getsockname",
        "getpeername",
        "socketpair",
        "send",
        "recv",
        "sendto",
        "recvfrom",
        "shutdown",
        "setsockopt",
        "getsockopt",
        "sendmsg",
        "recvmsg",
        "accept4",
        "recvmmsg",
        "sendmmsg",
    ];
    const IPC: [(&str, u64); 11] = [
        ("semop", 1),
        ("semget", 2),
        ("semctl", 3),
        ("semtimedop", 4),
        ("msgsnd", 11),
        ("msgrcv", 12),
        ("msgget", 13),
        ("msgctl", 14),
        ("shmat", 21),
        ("shmdt", 22),
        ("shmget", 23),
    ];
    if let Some(at) = SOCKET.iter().position(|known| *known == name) {
        return Some((102, u64::try_from(at).ok()? + 1));
    }
    if name == "shmctl" {
        return Some((117, 24));
    }
    let (_, operation) = IPC.iter().find(|(known, _)| *known == name)?;
    Some((117, *operation))
}

fn check_entry(entry: &SeccompSyscall) -> Result<(), SeccompError> {
    let invalid = |field, problem: String| Err(SeccompError::Invalid { field, problem });
    if entry.names.is_empty() || entry.names.iter().any(String::is_empty) {
        return invalid("syscalls.names", "a rule must name its calls".to_owned());
    }
    for arg in &entry.args {
        if arg.index > 5 {
            return invalid(
                "syscalls.args.index",
                format!("{} is not between 0 and 5", arg.index),
            );
        }
    }
    Ok(())
}

/// `SECCOMP_RET_*` of an action.
fn action(
    action: SeccompAction,
    errno: Option<u32>,
    field: &'static str,
) -> Result<u32, SeccompError> {
    let value = errno.unwrap_or(EPERM);
    if value > ERRNO_MAX {
        return Err(SeccompError::Invalid {
            field,
            problem: format!("{value} is not an errno (at most {ERRNO_MAX})"),
        });
    }
    let plain = match action {
        SeccompAction::Errno => return Ok(ret::ERRNO | value),
        SeccompAction::Trace => return Ok(ret::TRACE | value),
        SeccompAction::Notify => {
            return Err(SeccompError::Unsupported("SCMP_ACT_NOTIFY".to_owned()));
        }
        SeccompAction::Kill | SeccompAction::KillThread => ret::KILL_THREAD,
        SeccompAction::KillProcess => ret::KILL_PROCESS,
        SeccompAction::Trap => ret::TRAP,
        SeccompAction::Allow => ret::ALLOW,
        SeccompAction::Log => ret::LOG,
    };
    if errno.is_some() {
        return Err(SeccompError::Invalid {
            field,
            problem: format!("{action:?} has no errno"),
        });
    }
    Ok(plain)
}

fn filter_flags(names: &[String]) -> Result<u32, SeccompError> {
    let mut flags = 0;
    for name in names {
        flags |= match name.as_str() {
            // The filter is loaded by a process of one thread.
            "SECCOMP_FILTER_FLAG_TSYNC" => 0,
            "SECCOMP_FILTER_FLAG_LOG" => flag::LOG,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => flag::SPEC_ALLOW,
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => {
                return Err(SeccompError::Unsupported(name.clone()));
            }
            _ => {
                return Err(SeccompError::Invalid {
                    field: "flags",
                    problem: format!("unknown flag {name:?}"),
                });
            }
        };
    }
    Ok(flags)
}

/// The ABIs of `architecture` that the profile lists, the native one always; and whether x32 is.
fn listed_abis(
    names: &[String],
    architecture: Architecture,
) -> Result<(Vec<Abi>, bool), SeccompError> {
    let mut abis = vec![architecture.native_abi()];
    let mut x32 = false;
    for name in names {
        if let Some(abi) = architecture.abis().iter().find(|abi| abi.name() == name) {
            if !abis.contains(abi) {
                abis.push(*abi);
            }
        } else if name == "SCMP_ARCH_X32" {
            x32 = true;
        } else if !FOREIGN.contains(&name.as_str()) {
            return Err(SeccompError::Invalid {
                field: "architectures",
                problem: format!("unknown architecture {name:?}"),
            });
        }
    }
    Ok((abis, x32))
}

/// Architectures of the specification whose calls this machine's kernel never sees.
const FOREIGN: [&str; 21] = [
    "SCMP_ARCH_NATIVE",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
];
