//! Classic BPF instructions, laid down from the last to the first.
//!
//! Jumps only go forwards, so from behind every target is known when its jump is written. A
//! conditional jump reaches 255 instructions; farther targets get an unconditional one in between.

use std::collections::HashMap;

/// `BPF_LD | BPF_W | BPF_ABS`: loads a word of `struct seccomp_data`.
pub(super) const LOAD: u16 = 0x20;
/// `BPF_ALU | BPF_AND | BPF_K`.
pub(super) const AND: u16 = 0x54;
/// `BPF_JMP | BPF_JA`.
pub(super) const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
pub(super) const IF_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`.
pub(super) const IF_GREATER: u16 = 0x25;
/// `BPF_JMP | BPF_JGE | BPF_K`.
pub(super) const IF_GREATER_OR_EQUAL: u16 = 0x35;
/// `BPF_RET | BPF_K`.
pub(super) const RETURN: u16 = 0x06;

/// What a conditional jump may reach, with room for the two jumps that may come in between.
const REACH: usize = 250;

/// `struct sock_filter` of linux/filter.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) if_true: u8,
    pub(super) if_false: u8,
    pub(super) k: u32,
}

/// An instruction's place, counted from the end of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Label(usize);

/// A program that grows at its beginning.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    reversed: Vec<Instruction>,
    returns: HashMap<u32, Label>,
}

impl Assembler {
    fn push(&mut self, instruction: Instruction) -> Label {
        self.reversed.push(instruction);
        Label(self.reversed.len())
    }

    /// How many instructions lie between an instruction laid down now and `target`.
    fn distance(&self, target: Label) -> usize {
        self.reversed.len() - target.0
    }

    /// An instruction that goes on to `next`, which must be the one laid down last or is jumped to.
    pub(super) fn then(&mut self, code: u16, k: u32, next: Label) -> Label {
        self.near(next, 0);
        self.push(Instruction {
            code,
            if_true: 0,
            if_false: 0,
            k,
        })
    }

    /// A conditional jump.
    pub(super) fn jump(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        if yes == no {
            return yes;
        }
        let yes = self.near(yes, REACH);
        let no = self.near(no, REACH);
        let (if_true, if_false) = (self.distance(yes), self.distance(no));
        self.push(Instruction {
            code,
            if_true: u8::try_from(if_true).unwrap_or(u8::MAX),
            if_false: u8::try_from(if_false).unwrap_or(u8::MAX),
            k,
        })
    }

    /// A label for `target` that is at most `reach` away.
    fn near(&mut self, target: Label, reach: usize) -> Label {
        let distance = self.distance(target);
        if distance <= reach {
            return target;
        }
        self.push(Instruction {
            code: JUMP,
            if_true: 0,
            if_false: 0,
            k: u32::try_from(distance).unwrap_or(u32::MAX),
        })
    }

    /// Ends with `value`. One instruction serves all jumps that reach it.
    pub(super) fn ret(&mut self, value: u32) -> Label {
        if let Some(label) = self.returns.get(&value)
            && self.distance(*label) <= REACH / 2
        {
            return *label;
        }
        let label = self.push(Instruction {
            code: RETURN,
            if_true: 0,
            if_false: 0,
            k: value,
        });
        self.returns.insert(value, label);
        label
    }

    /// The program in the order of execution; its first instruction is the one laid down last.
    pub(super) fn finish(mut self) -> Vec<Instruction> {
        self.reversed.reverse();
        self.reversed
    }
}

/// As the kernel takes it: an array of `struct sock_filter`.
pub(super) fn bytes(program: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for instruction in program {
        bytes.extend_from_slice(&instruction.code.to_ne_bytes());
        bytes.push(instruction.if_true);
        bytes.push(instruction.if_false);
        bytes.extend_from_slice(&instruction.k.to_ne_bytes());
    }
    bytes
}
