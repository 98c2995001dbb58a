//! Access to devices: rules to a list of exceptions, and from there to v1's files or a v2 program.
//!
//! v1 keeps a behaviour (all or nothing) and exceptions from it; v2 asks an eBPF program. Both are
//! made from the same list here, so that they decide alike. The list starts at "nothing allowed".

use std::collections::BTreeMap;

use crate::error::CgroupError;
use crate::limits::{DEVICE_RULES_MAX, DeviceAccess, DeviceKind, DeviceRule};

/// A device, or all of a major number, or all of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Devices {
    kind: DeviceKind,
    major: Option<u32>,
    minor: Option<u32>,
}

impl Devices {
    /// Whether the two have a device in common.
    fn overlaps(self, other: Self) -> bool {
        let same = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.kind == other.kind && same(self.major, other.major) && same(self.minor, other.minor)
    }
}

/// The rules in normal form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceList {
    allow: bool,
    exceptions: BTreeMap<Devices, u8>,
}

impl DeviceList {
    /// Applies the rules one after the other.
    pub(crate) fn new(rules: &[DeviceRule]) -> Result<Self, CgroupError> {
        if rules.len() > DEVICE_RULES_MAX {
            return Err(CgroupError::Limit {
                limit: "devices",
                problem: format!("more than {DEVICE_RULES_MAX} rules"),
            });
        }
        let mut list = Self {
            allow: false,
            exceptions: BTreeMap::new(),
        };
        for rule in rules {
            list.apply(rule)?;
        }
        list.exceptions.retain(|_, access| *access != 0);
        Ok(list)
    }

    fn apply(&mut self, rule: &DeviceRule) -> Result<(), CgroupError> {
        let invalid = |problem: String| CgroupError::Limit {
            limit: "devices",
            problem,
        };
        if rule.kind == DeviceKind::All {
            if rule.major.is_some() || rule.minor.is_some() {
                return Err(invalid(
                    "a rule for all kinds cannot name major and minor: use c or b".to_owned(),
                ));
            }
            // As the kernel does: whatever the access is.
            self.allow = rule.allow;
            self.exceptions.clear();
            return Ok(());
        }
        let devices = Devices {
            kind: rule.kind,
            major: rule.major,
            minor: rule.minor,
        };
        if rule.allow != self.allow {
            *self.exceptions.entry(devices).or_default() |= rule.access.bits();
            return Ok(());
        }
        // Back to the behaviour: only what is an exception in the same form can be taken back. A
        // hole in a wider exception cannot be said to the kernel.
        for (other, access) in &self.exceptions {
            let narrower = *other != devices
                && other.overlaps(devices)
                && access & rule.access.bits() != 0
                && (other.major.is_none() && devices.major.is_some()
                    || other.minor.is_none() && devices.minor.is_some());
            if narrower {
                return Err(invalid(format!(
                    "the rule {} makes a hole in an earlier, wider one: order the rules from narrow to wide",
                    line(devices, rule.access)
                )));
            }
        }
        for (other, access) in &mut self.exceptions {
            let covered = other.overlaps(devices)
                && (devices.major.is_none() || devices.major == other.major)
                && (devices.minor.is_none() || devices.minor == other.minor);
            if covered {
                *access &= !rule.access.bits();
            }
        }
        Ok(())
    }

    /// Whether nothing is forbidden.
    pub(crate) fn allows_everything(&self) -> bool {
        self.allow && self.exceptions.is_empty()
    }

    /// What is written to v1's `devices.allow` and `devices.deny`, in order.
    pub(crate) fn v1(&self) -> Vec<(&'static str, String)> {
        let (behaviour, exception) = if self.allow {
            ("devices.allow", "devices.deny")
        } else {
            ("devices.deny", "devices.allow")
        };
        let mut writes = vec![(behaviour, "a".to_owned())];
        for (devices, access) in &self.exceptions {
            writes.push((exception, line(*devices, DeviceAccess::from_bits(*access))));
        }
        writes
    }

    /// The v2 program: each instruction a `struct bpf_insn`.
    pub(crate) fn v2(&self) -> Vec<u64> {
        use instruction::{
            AND, EXIT, IF_NOT_EQUAL, IF_NOT_EQUAL_REGISTER, LOAD, MOVE, MOVE_REGISTER, SHIFT_RIGHT,
            make,
        };
        // struct bpf_cgroup_dev_ctx { access_type (access << 16 | kind), major, minor } at r1.
        let mut program = vec![
            make(LOAD, 2, 1, 0, 0),
            make(AND, 2, 0, 0, 0xffff),
            make(LOAD, 3, 1, 0, 0),
            make(SHIFT_RIGHT, 3, 0, 0, 16),
            make(LOAD, 4, 1, 4, 0),
            make(LOAD, 5, 1, 8, 0),
        ];
        for (devices, access) in &self.exceptions {
            let mut block = Vec::new();
            // Register, operand; each comparison leaves the block when it does not hold.
            let kind = if devices.kind == DeviceKind::Block {
                1
            } else {
                2
            };
            block.push((IF_NOT_EQUAL, 2, kind));
            if *access != DeviceAccess::ALL.bits() {
                // An exception from "nothing" must cover all that is asked for; one from
                // "everything" applies when anything that is asked for is in it.
                block.push((MOVE_REGISTER, 1, 3));
                block.push((AND, 1, u32::from(*access)));
                if self.allow {
                    block.push((instruction::IF_EQUAL, 1, 0));
                } else {
                    block.push((IF_NOT_EQUAL_REGISTER, 1, 3));
                }
            }
            if let Some(major) = devices.major {
                block.push((IF_NOT_EQUAL, 4, major));
            }
            if let Some(minor) = devices.minor {
                block.push((IF_NOT_EQUAL, 5, minor));
            }
            let length = block.len();
            for (at, (code, register, operand)) in block.into_iter().enumerate() {
                // From after this instruction over the rest of the block and its two last ones.
                let skip = u16::try_from(length - at - 1 + 2).unwrap_or(0);
                program.push(match code {
                    IF_NOT_EQUAL | instruction::IF_EQUAL => make(code, register, 0, skip, operand),
                    IF_NOT_EQUAL_REGISTER => make(code, register, 3, skip, 0),
                    MOVE_REGISTER => make(code, register, 3, 0, 0),
                    _ => make(code, register, 0, 0, operand),
                });
            }
            program.push(make(MOVE, 0, 0, 0, u32::from(!self.allow)));
            program.push(make(EXIT, 0, 0, 0, 0));
        }
        program.push(make(MOVE, 0, 0, 0, u32::from(self.allow)));
        program.push(make(EXIT, 0, 0, 0, 0));
        program
    }
}

/// eBPF instructions, see the kernel's `Documentation/bpf/standardization/instruction-set.rst`.
mod instruction {
    /// `BPF_LDX | BPF_MEM | BPF_W`.
    pub(super) const LOAD: u8 = 0x61;
    /// `BPF_ALU | BPF_AND | BPF_K`.
    pub(super) const AND: u8 = 0x54;
    /// `BPF_ALU | BPF_RSH | BPF_K`.
    pub(super) const SHIFT_RIGHT: u8 = 0x74;
    /// `BPF_ALU | BPF_MOV | BPF_K`.
    pub(super) const MOVE: u8 = 0xb4;
    /// `BPF_ALU | BPF_MOV | BPF_X`.
    pub(super) const MOVE_REGISTER: u8 = 0xbc;
    /// `BPF_JMP32 | BPF_JEQ | BPF_K`.
    pub(super) const IF_EQUAL: u8 = 0x16;
    /// `BPF_JMP32 | BPF_JNE | BPF_K`.
    pub(super) const IF_NOT_EQUAL: u8 = 0x56;
    /// `BPF_JMP32 | BPF_JNE | BPF_X`.
    pub(super) const IF_NOT_EQUAL_REGISTER: u8 = 0x5e;
    /// `BPF_JMP | BPF_EXIT`.
    pub(super) const EXIT: u8 = 0x95;

    /// A `struct bpf_insn` as one native integer.
    pub(super) fn make(code: u8, to: u8, from: u8, offset: u16, immediate: u32) -> u64 {
        let registers = if cfg!(target_endian = "little") {
            from << 4 | to
        } else {
            to << 4 | from
        };
        let offset = offset.to_ne_bytes();
        let immediate = immediate.to_ne_bytes();
        u64::from_ne_bytes([
            code,
            registers,
            offset[0],
            offset[1],
            immediate[0],
            immediate[1],
            immediate[2],
            immediate[3],
        ])
    }
}

/// As v1's files have it: `c 1:* rwm`.
fn line(devices: Devices, access: DeviceAccess) -> String {
    let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
    let kind = if devices.kind == DeviceKind::Block {
        'b'
    } else {
        'c'
    };
    format!(
        "{kind} {}:{} {}",
        number(devices.major),
        number(devices.minor),
        access.letters()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(allow: bool, text: &str) -> DeviceRule {
        let mut words = text.split(' ');
        let kind = match words.next().unwrap() {
            "a" => DeviceKind::All,
            "b" => DeviceKind::Block,
            _ => DeviceKind::Char,
        };
        let (major, minor) = words.next().unwrap().split_once(':').unwrap();
        DeviceRule {
            allow,
            kind,
            major: major.parse().ok(),
            minor: minor.parse().ok(),
            access: DeviceAccess::parse(words.next().unwrap()).unwrap(),
        }
    }

    /// What the kernel would do with a program.
    fn run(program: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let mut r = [0u32; 11];
        let context = [access << 16 | kind, major, minor];
        let mut at = 0;
        loop {
            let b = program[at].to_ne_bytes();
            let (to, from) = (usize::from(b[1] & 15), usize::from(b[1] >> 4));
            let offset = usize::from(u16::from_ne_bytes([b[2], b[3]]));
            let immediate = u32::from_ne_bytes(b[4..].try_into().unwrap());
            at += 1;
            match b[0] {
                0x61 => r[to] = context[offset / 4],
                0x54 => r[to] &= immediate,
                0x74 => r[to] >>= immediate,
                0xb4 => r[to] = immediate,
                0xbc => r[to] = r[from],
                0x16 => at += if r[to] == immediate { offset } else { 0 },
                0x56 => at += if r[to] != immediate { offset } else { 0 },
                0x5e => at += if r[to] != r[from] { offset } else { 0 },
                0x95 => return r[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn a_container_without_rules_reaches_no_device() {
        let list = DeviceList::new(&[]).unwrap();
        assert_eq!(list.v1(), [("devices.deny", "a".to_owned())]);
        assert!(!run(&list.v2(), 2, 2, 1, 3));
    }

    #[test]
    fn an_allow_list_is_written_after_denying_all() {
        let list = DeviceList::new(&[
            rule(false, "a *:* rwm"),
            rule(true, "c 1:3 rwm"),
            rule(true, "c 136:* rw"),
            rule(true, "b *:* m"),
        ])
        .unwrap();
        assert_eq!(
            list.v1(),
            [
                ("devices.deny", "a".to_owned()),
                ("devices.allow", "c 1:3 rwm".to_owned()),
                ("devices.allow", "c 136:* rw".to_owned()),
                ("devices.allow", "b *:* m".to_owned()),
            ]
        );
        let program = list.v2();
        assert!(run(&program, 2, 6, 1, 3), "read and write /dev/null");
        assert!(!run(&program, 2, 2, 1, 5), "read /dev/zero");
        assert!(run(&program, 2, 6, 136, 7));
        assert!(!run(&program, 2, 1, 136, 7), "mknod of a pts");
        assert!(run(&program, 1, 1, 8, 0), "mknod of a disk");
        assert!(!run(&program, 1, 2, 8, 0), "read of a disk");
    }

    #[test]
    fn everything_but_some_devices_can_be_allowed() {
        let list = DeviceList::new(&[rule(true, "a *:* rwm"), rule(false, "b 8:0 w")]).unwrap();
        assert_eq!(
            list.v1(),
            [
                ("devices.allow", "a".to_owned()),
                ("devices.deny", "b 8:0 w".to_owned()),
            ]
        );
        let program = list.v2();
        assert!(run(&program, 1, 2, 8, 0));
        assert!(!run(&program, 1, 6, 8, 0));
        assert!(run(&program, 2, 7, 1, 3));
    }

    #[test]
    fn a_hole_in_a_wider_rule_is_refused() {
        let error =
            DeviceList::new(&[rule(true, "c *:* rwm"), rule(false, "c 1:3 rwm")]).unwrap_err();
        assert!(error.to_string().contains("c 1:3 rwm"), "{error}");
        DeviceList::new(&[rule(true, "a 1:3 rwm")]).unwrap_err();
    }

    proptest! {
        /// What v1's kernel code does with the written lines is what the v2 program does.
        #[test]
        fn both_versions_decide_alike(
            rules in prop::collection::vec(
                (any::<bool>(), 0..3usize, 0..4usize, 1..8u8), 0..8),
            kind in 1..3u32, access in 1..8u32, major in 0..3u32, minor in 0..3u32,
        ) {
            let shapes = [(Some(1), Some(1)), (Some(1), None), (None, None), (Some(2), Some(2))];
            let kinds = [DeviceKind::Char, DeviceKind::Block, DeviceKind::All];
            let rules: Vec<_> = rules.into_iter().map(|(allow, kind, shape, access)| {
                let kind = kinds[kind];
                let (major, minor) = if kind == DeviceKind::All { (None, None) } else { shapes[shape] };
                DeviceRule { allow, kind, major, minor, access: DeviceAccess::from_bits(access) }
            }).collect();
            let Ok(list) = DeviceList::new(&rules) else { return Ok(()) };
            let mut allow = true;
            let mut exceptions: Vec<DeviceRule> = Vec::new();
            for (file, line) in list.v1() {
                if line == "a" {
                    allow = file == "devices.allow";
                    continue;
                }
                exceptions.push(rule(true, &line));
            }
            let wanted = |e: &DeviceRule| {
                (e.kind == if kind == 1 { DeviceKind::Block } else { DeviceKind::Char })
                    && e.major.is_none_or(|m| m == major)
                    && e.minor.is_none_or(|m| m == minor)
            };
            let v1 = if allow {
                !exceptions.iter().any(|e| wanted(e) && u32::from(e.access.bits()) & access != 0)
            } else {
                exceptions.iter().any(|e| wanted(e) && access & !u32::from(e.access.bits()) == 0)
            };
            prop_assert_eq!(run(&list.v2(), kind, access, major, minor), v1);
        }
    }
}
