//! For tests: the kernel's side of a filter, and a naive reading of a profile.

use super::resolve::ret;
use super::{Abi, table};
use crate::spec::{Seccomp, SeccompAction, SeccompArg, SeccompOperator};

/// `struct seccomp_data`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Call {
    pub(super) number: u32,
    pub(super) audit: u32,
    pub(super) args: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.audit,
            16..=60 => {
                let index = usize::try_from((offset - 16) / 8).unwrap();
                let bytes = self.args[index].to_ne_bytes();
                let at = usize::try_from((offset - 16) % 8).unwrap();
                u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
            }
            _ => panic!("load of word {offset}"),
        }
    }
}

/// Runs a program as the kernel does; gives what it returned and how many steps it took.
pub(super) fn run(code: &[u8], call: &Call) -> (u32, usize) {
    let mut accumulator = 0u32;
    let mut at = 0;
    for step in 1.. {
        let raw = &code[at * 8..at * 8 + 8];
        let op = u16::from_ne_bytes([raw[0], raw[1]]);
        let (yes, no) = (usize::from(raw[2]), usize::from(raw[3]));
        let k = u32::from_ne_bytes(raw[4..8].try_into().unwrap());
        at += 1;
        let mut branch = |taken| at += if taken { yes } else { no };
        match op {
            0x20 => accumulator = call.word(k),
            0x54 => accumulator &= k,
            0x05 => at += usize::try_from(k).unwrap(),
            0x15 => branch(accumulator == k),
            0x25 => branch(accumulator > k),
            0x35 => branch(accumulator >= k),
            0x45 => branch(accumulator & k != 0),
            0x06 => return (k, step),
            _ => panic!("instruction {op:#x}"),
        }
    }
    unreachable!()
}

fn holds(arg: &SeccompArg, call: &Call) -> bool {
    let value = call.args[usize::try_from(arg.index).unwrap()];
    match arg.op {
        SeccompOperator::NotEqual => value != arg.value,
        SeccompOperator::Less => value < arg.value,
        SeccompOperator::LessOrEqual => value <= arg.value,
        SeccompOperator::Equal => value == arg.value,
        SeccompOperator::GreaterOrEqual => value >= arg.value,
        SeccompOperator::Greater => value > arg.value,
        SeccompOperator::MaskedEqual => value & arg.value == arg.value_two & arg.value,
    }
}

fn returned(action: SeccompAction, errno: Option<u32>) -> u32 {
    match action {
        SeccompAction::Kill | SeccompAction::KillThread => ret::KILL_THREAD,
        SeccompAction::KillProcess => ret::KILL_PROCESS,
        SeccompAction::Trap => ret::TRAP,
        SeccompAction::Errno => ret::ERRNO | errno.unwrap_or(1),
        SeccompAction::Trace => ret::TRACE | errno.unwrap_or(1),
        SeccompAction::Allow => ret::ALLOW,
        SeccompAction::Log => ret::LOG,
        SeccompAction::Notify => panic!("notify"),
    }
}

/// What the profile says about an x86-64 call, read rule by rule.
pub(super) fn naive(profile: &Seccomp, call: &Call) -> u32 {
    let default = returned(profile.default_action, profile.default_errno_ret);
    let mut conditional = None;
    let mut highest = 0;
    for entry in &profile.syscalls {
        let action = returned(entry.action, entry.errno_ret);
        for name in &entry.names {
            let Some(number) = table::number(Abi::X86_64, name) else {
                continue;
            };
            highest = highest.max(number);
            if number != call.number || action == default {
                continue;
            }
            if entry.args.is_empty() {
                return action;
            }
            let mut indices: Vec<_> = entry.args.iter().map(|arg| arg.index).collect();
            indices.sort_unstable();
            let repeated = indices.windows(2).any(|pair| pair[0] == pair[1]);
            let matches = if repeated {
                entry.args.iter().any(|arg| holds(arg, call))
            } else {
                entry.args.iter().all(|arg| holds(arg, call))
            };
            if matches && conditional.is_none() {
                conditional = Some(action);
            }
        }
    }
    let permissive = matches!(
        profile.default_action,
        SeccompAction::Allow | SeccompAction::Log | SeccompAction::Trace
    );
    if call.number > highest && highest > 0 && !permissive && profile.default_errno_ret != Some(38)
    {
        return ret::ERRNO | 38;
    }
    // An unconditional rule later in the list returned above; so what is left is conditional.
    conditional.unwrap_or(default)
}
