//! From decisions to instructions: the ABI, then a binary search over ranges of numbers.

use super::assembler::{
    AND, Assembler, IF_EQUAL, IF_GREATER, IF_GREATER_OR_EQUAL, Instruction, LOAD, Label,
};
use super::resolve::{Calls, Decision, ENOSYS, Resolved, Rule, ret};
use super::{Abi, Architecture};
use crate::spec::{SeccompArg, SeccompOperator};

/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Set in the numbers of x32 calls: `__X32_SYSCALL_BIT`.
const X32: u32 = 0x4000_0000;
/// What a tracer writes to skip a call; not an x32 call.
const SKIPPED: u32 = u32::MAX;

/// Numbers from `start` to the next range's start, and what is decided about them.
#[derive(Debug)]
struct Range<'a> {
    start: u32,
    decision: Choice<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice<'a> {
    Return(u32),
    First(&'a [Rule]),
}

/// The whole program.
pub(super) fn program(resolved: &Resolved, architecture: Architecture) -> Vec<Instruction> {
    let mut assembler = Assembler::default();
    // Another ABI than those listed: libseccomp's default for a bad architecture.
    let mut entry = assembler.ret(ret::KILL_THREAD);
    // The native ABI is asked for first, so it is laid down last.
    for calls in resolved.abis.iter().rev() {
        // Returns that are shared within an ABI keep conditional jumps short.
        let search = abi(&mut assembler, resolved, calls, architecture);
        entry = assembler.jump(IF_EQUAL, calls.abi.audit(), search, entry);
    }
    assembler.then(LOAD, ARCHITECTURE, entry);
    assembler.finish()
}

fn abi(
    assembler: &mut Assembler,
    resolved: &Resolved,
    calls: &Calls,
    architecture: Architecture,
) -> Label {
    let ranges = ranges(resolved, calls, architecture);
    let search = search(assembler, &ranges, resolved.default);
    assembler.then(LOAD, NUMBER, search)
}

/// Cuts all numbers into ranges; neighbours of equal decision are one.
fn ranges<'a>(
    resolved: &'a Resolved,
    calls: &'a Calls,
    architecture: Architecture,
) -> Vec<Range<'a>> {
    let default = Choice::Return(resolved.default);
    let nosys = Choice::Return(ret::ERRNO | ENOSYS);
    let mut ranges: Vec<Range<'a>> = Vec::new();
    let mut add = |start: u32, decision: Choice<'a>| {
        if ranges.last().is_none_or(|last| last.decision != decision) {
            ranges.push(Range { start, decision });
        }
    };
    let mut next = 0;
    for (number, decision) in &calls.decisions {
        if *number > next {
            add(next, default);
        }
        add(
            *number,
            match decision {
                Decision::Always(action) => Choice::Return(*action),
                Decision::First(rules) => Choice::First(rules),
            },
        );
        next = number + 1;
    }
    // Numbers above the last decision, up to the highest one that the profile names.
    let above = match calls.highest {
        Some(highest) => {
            if highest >= next {
                add(next, default);
            }
            next = next.max(highest + 1);
            nosys
        }
        None => default,
    };
    add(next, above);
    if calls.abi == Abi::X86_64 && architecture == Architecture::X86_64 {
        if resolved.x32 {
            add(X32, nosys);
        } else {
            add(X32, Choice::Return(ret::KILL_THREAD));
            add(SKIPPED, default);
        }
    }
    ranges
}

/// The ranges are never empty: there is one for the numbers above all.
fn search(assembler: &mut Assembler, ranges: &[Range<'_>], default: u32) -> Label {
    let middle = ranges.len() / 2;
    if middle == 0 {
        return match ranges.first().map(|range| range.decision) {
            Some(Choice::Return(action)) => assembler.ret(action),
            Some(Choice::First(rules)) => first(assembler, rules, default),
            None => assembler.ret(default),
        };
    }
    let (left, right) = ranges.split_at(middle);
    let start = right.first().map_or(0, |range| range.start);
    let right = search(assembler, right, default);
    let left = search(assembler, left, default);
    assembler.jump(IF_GREATER_OR_EQUAL, start, right, left)
}

/// The first rule whose conditions all hold.
fn first(assembler: &mut Assembler, rules: &[Rule], default: u32) -> Label {
    let mut otherwise = assembler.ret(default);
    for rule in rules.iter().rev() {
        let mut entry = assembler.ret(rule.action);
        for condition in rule.conditions.iter().rev() {
            entry = compare(assembler, condition, entry, otherwise);
        }
        otherwise = entry;
    }
    otherwise
}

/// One condition: the high word decides unless it is equal, then the low word does.
fn compare(assembler: &mut Assembler, arg: &SeccompArg, yes: Label, no: Label) -> Label {
    let base = ARGUMENTS + 8 * arg.index;
    let (low_at, high_at) = if cfg!(target_endian = "little") {
        (base, base + 4)
    } else {
        (base + 4, base)
    };
    let (low, high) = words(arg.value);
    let two_words = |assembler: &mut Assembler, code, greater, equal_no, (yes, no)| {
        let at = assembler.jump(code, low, yes, no);
        let at = assembler.then(LOAD, low_at, at);
        let at = assembler.jump(IF_EQUAL, high, at, equal_no);
        let at = match greater {
            Some(label) => assembler.jump(IF_GREATER, high, label, at),
            None => at,
        };
        assembler.then(LOAD, high_at, at)
    };
    match arg.op {
        SeccompOperator::Equal => two_words(assembler, IF_EQUAL, None, no, (yes, no)),
        SeccompOperator::NotEqual => two_words(assembler, IF_EQUAL, None, yes, (no, yes)),
        SeccompOperator::Greater => two_words(assembler, IF_GREATER, Some(yes), no, (yes, no)),
        SeccompOperator::GreaterOrEqual => {
            two_words(assembler, IF_GREATER_OR_EQUAL, Some(yes), no, (yes, no))
        }
        SeccompOperator::LessOrEqual => two_words(assembler, IF_GREATER, Some(no), yes, (no, yes)),
        SeccompOperator::Less => {
            two_words(assembler, IF_GREATER_OR_EQUAL, Some(no), yes, (no, yes))
        }
        SeccompOperator::MaskedEqual => {
            // Here `value` is the mask; bits beyond it do not count, as in libseccomp.
            let (want_low, want_high) = words(arg.value_two & arg.value);
            let at = assembler.jump(IF_EQUAL, want_low, yes, no);
            let at = assembler.then(AND, low, at);
            let at = assembler.then(LOAD, low_at, at);
            let at = assembler.jump(IF_EQUAL, want_high, at, no);
            let at = assembler.then(AND, high, at);
            assembler.then(LOAD, high_at, at)
        }
    }
}

/// Low and high word.
fn words(value: u64) -> (u32, u32) {
    let b = value.to_le_bytes();
    (
        u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
    )
}
