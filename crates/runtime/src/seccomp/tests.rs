//! The compiled filter against a naive reading of the profile and against libseccomp.

#![expect(
    clippy::disallowed_types,
    reason = "builds and runs the oracle, a C program linked with libseccomp"
)]

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::resolve::ret;
use super::simulator::{Call, naive, run};
use super::*;
use crate::spec::{
    Seccomp, SeccompAction, SeccompArg, SeccompOperator, SeccompSyscall, capability, load,
};

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const DOCKER: u64 = 0xa804_25fb;

fn call(audit: u32, number: u32, first: u64) -> Call {
    Call {
        number,
        audit,
        args: [first, 0, 0, 0, 0, 0],
    }
}

fn default(bounding: u64) -> Seccomp {
    default_profile(bounding, Architecture::X86_64, (6, 18))
}

fn profile(text: &str) -> Seccomp {
    load::parse(text.as_bytes()).unwrap()
}

#[test]
fn the_default_profile_is_small_and_its_paths_are_short() {
    let program = compile(&default(DOCKER)).unwrap();
    println!("{} instructions", program.instructions());
    assert!(program.instructions() < 400);
    assert!(program.unknown.is_empty() || program.unknown.iter().all(|n| !table::known(n)));
    let steps: usize = (0..512)
        .map(|number| run(&program.code, &call(X86_64, number, 0)).1)
        .sum();
    println!("{} steps on average", steps / 512);
    assert!(steps / 512 <= 16);
}

#[test]
fn containers_may_not_make_namespaces_without_the_capability() {
    let code = compile(&default(DOCKER)).unwrap().code;
    let get = |number, first| run(&code, &call(X86_64, number, first)).0;
    assert_eq!(get(56, 0x11), ret::ALLOW, "fork by clone");
    assert_eq!(get(56, 0x1000_0011), ret::ERRNO | 1, "clone(CLONE_NEWUSER)");
    assert_eq!(get(435, 0), ret::ERRNO | 38, "clone3");
    assert_eq!(get(272, 0), ret::ERRNO | 1, "unshare");
    assert_eq!(get(41, 40), ret::ERRNO | 1, "socket(AF_VSOCK)");
    assert_eq!(get(41, 2), ret::ALLOW, "socket(AF_INET)");
    assert_eq!(get(135, 0xffff_ffff), ret::ALLOW, "personality(query)");
    assert_eq!(get(135, 1), ret::ERRNO | 1, "personality(1)");
    assert_eq!(get(9999, 0), ret::ERRNO | 38, "a call of the future");
    let admin = capability::bit("CAP_SYS_ADMIN").unwrap();
    let code = compile(&default(DOCKER | admin)).unwrap().code;
    let get = |number, first| run(&code, &call(X86_64, number, first)).0;
    assert_eq!(get(272, 0), ret::ALLOW, "unshare");
    assert_eq!(get(435, 0), ret::ALLOW, "clone3");
}

#[test]
fn other_abis_never_get_through() {
    let code = compile(&default(DOCKER)).unwrap().code;
    assert_eq!(run(&code, &call(I386, 4, 0)).0, ret::ALLOW, "i386 write");
    assert_eq!(
        run(&code, &call(X86_64, 0x4000_0001, 0)).0,
        ret::ERRNO | 38,
        "x32 write"
    );
    assert_eq!(
        run(&code, &call(0xc000_00b7, 64, 0)).0,
        ret::KILL_THREAD,
        "aarch64 write"
    );
    let deny_list = profile(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X32"],"syscalls":[{"names":["mount"],"action":"SCMP_ACT_ERRNO"}]}"#,
    );
    let listed = compile(&deny_list).unwrap().code;
    assert_eq!(
        run(&listed, &call(X86_64, 0x4000_00a5, 0)).0,
        ret::ERRNO | 38,
        "x32 mount gets around no list"
    );
    let only = profile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["write"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    let code = compile(&only).unwrap().code;
    assert_eq!(run(&code, &call(I386, 4, 0)).0, ret::KILL_THREAD);
    assert_eq!(
        run(&code, &call(X86_64, 0x4000_0001, 0)).0,
        ret::KILL_THREAD
    );
}

#[test]
fn a_bad_profile_is_refused_by_name() {
    let cases = [
        (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY"),
        (
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":70000}"#,
            "defaultErrnoRet",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_Z80"]}"#,
            "SCMP_ARCH_Z80",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["FAST"]}"#,
            "FAST",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_TRAP","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
            "index",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_KILL","defaultErrnoRet":1}"#,
            "defaultErrnoRet",
        ),
    ];
    for (text, named) in cases {
        let error = compile(&profile(text)).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn a_profile_too_long_for_the_kernel_is_refused() {
    let args: Vec<_> = (0..2000u64)
        .map(|value| {
            format!(r#"{{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{{"index":0,"value":{value},"op":"SCMP_CMP_EQ"}}]}}"#)
        })
        .collect();
    let text = format!(
        r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{}]}}"#,
        args.join(",")
    );
    assert!(matches!(
        compile(&profile(&text)),
        Err(SeccompError::TooLong(_))
    ));
}

/// All values around a compared one, where an answer may change.
fn boundaries(profile: &Seccomp) -> Vec<u64> {
    let mut values = vec![0, 1, u64::from(u32::MAX), 1 << 32, u64::MAX];
    for arg in profile.syscalls.iter().flat_map(|entry| &entry.args) {
        for value in [arg.value, arg.value_two, arg.value | arg.value_two] {
            values.extend([value, value.wrapping_add(1), value.wrapping_sub(1)]);
            values.extend([value ^ (1 << 32), !value]);
        }
    }
    values.sort_unstable();
    values.dedup();
    values
}

fn operators() -> impl Strategy<Value = SeccompOperator> {
    prop::sample::select(vec![
        SeccompOperator::NotEqual,
        SeccompOperator::Less,
        SeccompOperator::LessOrEqual,
        SeccompOperator::Equal,
        SeccompOperator::GreaterOrEqual,
        SeccompOperator::Greater,
        SeccompOperator::MaskedEqual,
    ])
}

fn values() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..4u64,
        Just(u64::from(u32::MAX)),
        Just(1 << 32),
        Just(u64::MAX),
        any::<u64>(),
    ]
}

fn arguments() -> impl Strategy<Value = SeccompArg> {
    (0..3u32, values(), values(), operators()).prop_map(|(index, value, value_two, op)| {
        SeccompArg {
            index,
            value,
            value_two,
            op,
        }
    })
}

fn equalities() -> impl Strategy<Value = SeccompArg> {
    (arguments(), any::<bool>()).prop_map(|(arg, masked)| SeccompArg {
        op: if masked {
            SeccompOperator::MaskedEqual
        } else {
            SeccompOperator::Equal
        },
        ..arg
    })
}

fn actions() -> impl Strategy<Value = (SeccompAction, Option<u32>)> {
    prop_oneof![
        Just((SeccompAction::Allow, None)),
        Just((SeccompAction::KillProcess, None)),
        Just((SeccompAction::Trap, None)),
        Just((SeccompAction::Log, None)),
        (0..5u32).prop_map(|errno| (SeccompAction::Errno, Some(errno))),
    ]
}

fn profiles() -> impl Strategy<Value = Seccomp> {
    let names = prop::sample::select(vec![
        "read",
        "write",
        "open",
        "close",
        "stat",
        "mmap",
        "clone",
        "personality",
        "statx",
        "clone3",
        "openat2",
        "mseal",
        "nothing",
    ]);
    let entry = (
        prop::collection::vec(names.prop_map(str::to_owned), 1..5),
        actions(),
        prop::collection::vec(arguments(), 0..4),
    )
        .prop_map(|(names, (action, errno_ret), args)| SeccompSyscall {
            names,
            action,
            errno_ret,
            args,
        });
    (actions(), prop::collection::vec(entry, 0..12)).prop_map(
        |((default_action, default_errno_ret), syscalls)| Seccomp {
            default_action,
            default_errno_ret,
            syscalls,
            ..Seccomp::default()
        },
    )
}

proptest! {
    #[test]
    fn the_program_decides_as_a_naive_reading_of_the_profile(profile in profiles()) {
        let code = compile(&profile).unwrap().code;
        let values = boundaries(&profile);
        for number in [0, 1, 2, 3, 4, 9, 56, 135, 332, 333, 435, 437, 462, 463, 1000] {
            for (at, value) in values.iter().enumerate() {
                let second = values[(at * 7 + 3) % values.len()];
                let third = values[(at * 11 + 5) % values.len()];
                let call = Call { number, audit: X86_64, args: [*value, second, third, 0, 0, 0] };
                prop_assert_eq!(run(&code, &call).0, naive(&profile, &call), "{:?}", call);
            }
        }
    }
}

/// Reads a profile in lines of words, writes "names that are unknown", an empty line, the program.
const ORACLE: &str = r#"
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static uint32_t act(const char *s, int e) {
    if (!strcmp(s, "ALLOW")) return SCMP_ACT_ALLOW;
    if (!strcmp(s, "TRAP")) return SCMP_ACT_TRAP;
    if (!strcmp(s, "LOG")) return SCMP_ACT_LOG;
    if (!strcmp(s, "KILL_PROCESS")) return SCMP_ACT_KILL_PROCESS;
    return SCMP_ACT_ERRNO(e);
}
int main(void) {
    char word[64], name[64]; int e, n; scmp_filter_ctx c = 0;
    while (scanf("%63s", word) == 1) {
        if (!strcmp(word, "default")) {
            if (scanf("%63s %d", name, &e) != 2) return 2;
            c = seccomp_init(act(name, e));
        } else if (!strcmp(word, "i386")) {
            if (seccomp_arch_add(c, SCMP_ARCH_X86)) return 3;
        } else {
            char call[64]; struct scmp_arg_cmp a[6];
            if (scanf("%63s %63s %d %d", call, name, &e, &n) != 4) return 4;
            for (int i = 0; i < n; i++) {
                unsigned x, o; unsigned long long v, w;
                if (scanf("%u %u %llu %llu", &x, &o, &v, &w) != 4) return 5;
                a[i] = (struct scmp_arg_cmp){x, o, v, w};
            }
            int nr = seccomp_syscall_resolve_name(call);
            if (nr == __NR_SCMP_ERROR) { printf("%s\n", call); continue; }
            int rc = seccomp_rule_add_array(c, act(name, e), nr, n, a);
            if (rc) { fprintf(stderr, "%s: %d\n", call, rc); return 6; }
        }
    }
    printf("\n"); fflush(stdout);
    return seccomp_export_bpf(c, 1) ? 7 : 0;
}
"#;

struct Oracle {
    directory: tempfile::TempDir,
}

impl Oracle {
    /// Builds it; none, with a line, where gcc or libseccomp is missing.
    fn build() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("oracle.c"), ORACLE).unwrap();
        let built = Command::new("gcc")
            .current_dir(directory.path())
            .args(["-o", "oracle", "oracle.c", "-lseccomp"])
            .stderr(Stdio::null())
            .status();
        if built.is_ok_and(|status| status.success()) {
            return Some(Self { directory });
        }
        println!("skipped: needs gcc and libseccomp-dev");
        None
    }

    fn words(profile: &Seccomp) -> String {
        let word = |action: SeccompAction, errno: Option<u32>| {
            let name = match action {
                SeccompAction::Allow => "ALLOW",
                SeccompAction::Trap => "TRAP",
                SeccompAction::Log => "LOG",
                SeccompAction::KillProcess => "KILL_PROCESS",
                _ => "ERRNO",
            };
            format!("{name} {}", errno.unwrap_or(1))
        };
        let default = word(profile.default_action, profile.default_errno_ret);
        let mut text = format!("default {default}\n");
        if profile.architectures.iter().any(|a| a == "SCMP_ARCH_X86") {
            text.push_str("i386\n");
        }
        for entry in &profile.syscalls {
            let action = word(entry.action, entry.errno_ret);
            if action == default {
                continue;
            }
            for name in &entry.names {
                writeln!(text, "rule {name} {action} {}", entry.args.len()).unwrap();
                for arg in &entry.args {
                    let op = match arg.op {
                        SeccompOperator::NotEqual => 1,
                        SeccompOperator::Less => 2,
                        SeccompOperator::LessOrEqual => 3,
                        SeccompOperator::Equal => 4,
                        SeccompOperator::GreaterOrEqual => 5,
                        SeccompOperator::Greater => 6,
                        SeccompOperator::MaskedEqual => 7,
                    };
                    writeln!(text, "{} {op} {} {}", arg.index, arg.value, arg.value_two).unwrap();
                }
            }
        }
        text
    }

    /// libseccomp's program, and the names that this libseccomp is too old for.
    fn compile(&self, profile: &Seccomp) -> (Vec<u8>, Vec<String>) {
        let mut child = Command::new(self.directory.path().join("oracle"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let text = Self::words(profile);
        child
            .stdin
            .take()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{:?}\n{text}", output.status);
        let end = if output.stdout.starts_with(b"\n") {
            0
        } else {
            let found = output.stdout.windows(2).position(|w| w == b"\n\n");
            found.unwrap() + 1
        };
        let unknown = String::from_utf8(output.stdout[..end].to_vec()).unwrap();
        (
            output.stdout[end + 1..].to_vec(),
            unknown.lines().map(str::to_owned).collect(),
        )
    }

    /// Compares the decisions about all numbers and boundary values of both ABIs.
    fn compare(&self, profile: &Seccomp) -> usize {
        let (theirs, too_old) = self.compile(profile);
        let mut known = profile.clone();
        for entry in &mut known.syscalls {
            entry.names.retain(|name| !too_old.contains(name));
        }
        known.syscalls.retain(|entry| !entry.names.is_empty());
        let ours = compile(&known).unwrap();
        println!(
            "{} instructions, libseccomp {}, too old for {}",
            ours.instructions(),
            theirs.len() / 8,
            too_old.len()
        );
        let both = known.architectures.len() > 1;
        [(Abi::X86_64, true), (Abi::I386, both)]
            .iter()
            .map(|(abi, listed)| {
                let stub = listed.then(|| stub(&known, *abi)).flatten();
                let expected = |call: &Call| match stub {
                    Some(highest) if call.number > highest && !is_x32(call) => ret::ERRNO | 38,
                    _ => run(&theirs, call).0,
                };
                compare_abi(&known, &ours.code, *abi, expected)
            })
            .sum()
    }
}

/// The highest number that a profile names, when runc puts its stub before libseccomp's program.
fn stub(known: &Seccomp, abi: Abi) -> Option<u32> {
    if known.default_action == SeccompAction::Allow {
        return None;
    }
    let named = known.syscalls.iter().flat_map(|entry| &entry.names);
    named.filter_map(|name| table::number(abi, name)).max()
}

/// An x32 or a skipped call, which the stub leaves to libseccomp.
fn is_x32(call: &Call) -> bool {
    call.audit == X86_64 && call.number >= 0x4000_0000
}

/// All numbers with all boundary values; gives how many decisions were compared.
fn compare_abi(known: &Seccomp, ours: &[u8], abi: Abi, expected: impl Fn(&Call) -> u32) -> usize {
    let values = boundaries(known);
    let mut compared = 0;
    for number in (0..1024).chain([0x3fff_ffff, 0x4000_0000, 0x7fff_ffff, u32::MAX]) {
        for (at, value) in values.iter().enumerate() {
            let mut args = [*value, values[(at * 7 + 3) % values.len()], 3, 0, 0, *value];
            if abi == Abi::I386 {
                args = args.map(|arg| arg & 0xffff_ffff);
            }
            let call = Call {
                number,
                audit: abi.audit(),
                args,
            };
            assert_eq!(run(ours, &call).0, expected(&call), "{call:x?}");
            compared += 1;
        }
    }
    compared
}

/// x32 is denied on purpose, so the comparison leaves it out.
fn without_x32(mut profile: Seccomp) -> Seccomp {
    profile.architectures.retain(|name| name != "SCMP_ARCH_X32");
    profile
}

#[test]
fn the_default_profile_decides_as_libseccomp_compiles_it() {
    let Some(oracle) = Oracle::build() else {
        return;
    };
    for bounding in [0, DOCKER, capability::ALL] {
        let compared = oracle.compare(&without_x32(default(bounding)));
        println!("{compared} decisions compared");
    }
}

#[test]
fn conditions_and_multiplexed_calls_decide_as_libseccomp_compiles_them() {
    let Some(oracle) = Oracle::build() else {
        return;
    };
    let both = r#""architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"]"#;
    let mut texts = vec![
        format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO",{both},"syscalls":[
            {{"names":["read","write","socket","accept","recvmmsg","sendmmsg","connect","send","semop","shmctl","semtimedop","msgget","mseal","process_mrelease"],"action":"SCMP_ACT_ALLOW"}}]}}"#
        ),
        format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW",{both},"syscalls":[
            {{"names":["ptrace","bind","add_key","shmget"],"action":"SCMP_ACT_ERRNO","errnoRet":13}},
            {{"names":["mount"],"action":"SCMP_ACT_KILL_PROCESS"}}]}}"#
        ),
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#.to_owned(),
    ];
    for op in ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"] {
        for value in ["0", "7", "4294967295", "4294967296", "81985529216486895"] {
            texts.push(format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["read","process_mrelease"],"action":"SCMP_ACT_ALLOW",
                "args":[{{"index":0,"op":"SCMP_CMP_{op}","value":{value},"valueTwo":5}},{{"index":5,"op":"SCMP_CMP_GT","value":2}}]}}]}}"#
            ));
        }
    }
    for text in texts {
        oracle.compare(&profile(&text));
    }
}

/// Alternatives on one call. Only equalities: libseccomp 2.5.4 loses alternatives when it merges
/// orders (`a < 0` or `a < 1 << 32` denies 5; the naive reading and this compiler allow it).
#[test]
fn alternatives_decide_as_libseccomp_compiles_them() {
    let Some(oracle) = Oracle::build() else {
        return;
    };
    let rules = prop::collection::vec(prop::collection::vec(equalities(), 1..3), 1..4);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(12));
    let run = |rules: Vec<Vec<SeccompArg>>| {
        let syscalls = rules.into_iter().map(|mut args| {
            args.sort_by_key(|arg| arg.index);
            args.dedup_by_key(|arg| arg.index);
            SeccompSyscall {
                names: ["read", "mount", "process_mrelease"]
                    .map(str::to_owned)
                    .to_vec(),
                action: SeccompAction::Allow,
                errno_ret: None,
                args,
            }
        });
        oracle.compare(&Seccomp {
            default_action: SeccompAction::Errno,
            syscalls: syscalls.collect(),
            ..Seccomp::default()
        });
        Ok(())
    };
    runner.run(&rules, run).unwrap();
}

#[test]
fn the_kernel_takes_the_program_and_decides_by_it() {
    let program = compile(&default(DOCKER)).unwrap();
    let filter = wharf_sys::seccomp::Filter::from_bytes(&program.code).unwrap();
    // A filter belongs to a thread: this one ends with the test.
    let thread = std::thread::spawn(move || {
        rustix::thread::set_no_new_privs(true).unwrap();
        filter.load(program.flags).unwrap();
        let socket = |family| {
            let family = rustix::net::AddressFamily::from_raw(family);
            rustix::net::socket(family, rustix::net::SocketType::STREAM, None).map(drop)
        };
        (socket(1), socket(38), socket(40))
    });
    let (unix, alg, vsock) = thread.join().unwrap();
    unix.unwrap();
    assert_eq!(alg, Err(rustix::io::Errno::PERM));
    assert_eq!(vsock, Err(rustix::io::Errno::PERM));
}
