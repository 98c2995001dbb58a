//! The bytes of every message as release 1 of the protocol wrote them: daemon and shim of neighbouring
//! releases talk to each other, so these must be read, and written, by every release after it.
//!
//! A new field with its default changes none of them. A line that has to change means that a number
//! was used again or a meaning changed: then [`wharf_plan::PROTOCOL`] grows, and this file stays.

use std::collections::BTreeMap;

use prost::Message as _;
use wharf_plan::container::{
    ContainerPlan, DevicePlan, LinkPlan, MountPlan, Namespaces, SysctlPlan,
};
use wharf_plan::message::{
    Body, ContainerRef, ContainerState, Create, Created, Done, Exec, ExecState, Exited, Failure,
    GetState, Hello, MakeShim, Message, Orphan, Orphans, Resize, ShimMade, ShimState, Shutdown,
    Signal, Warning, Welcome,
};
use wharf_plan::process::{CapabilitySets, ConsoleSize, ProcessPlan, Rlimit};

fn process() -> ProcessPlan {
    ProcessPlan {
        args: vec![b"sh".to_vec(), b"-c".to_vec()],
        env: vec![b"A=1".to_vec()],
        cwd: b"/tmp".to_vec(),
        uid: 1,
        gid: 2,
        groups: vec![3, 400],
        umask: Some(0o27),
        capabilities: Some(CapabilitySets {
            bounding: 1,
            effective: 2,
            permitted: 4,
            inheritable: 8,
            ambient: 1 << 40,
        }),
        no_new_privileges: true,
        rlimits: vec![Rlimit {
            resource: 7,
            soft: 1024,
            hard: u64::MAX,
        }],
        oom_score_adj: Some(-5),
        terminal: true,
        console: Some(ConsoleSize {
            height: 24,
            width: 80,
        }),
        seccomp: vec![0, 1, 2, 255],
        seccomp_flags: 4,
        apparmor_profile: "profile".into(),
        selinux_label: "label".into(),
        io_priority: Some(3),
        preserve_fds: 2,
    }
}

fn plan() -> ContainerPlan {
    ContainerPlan {
        version: 1,
        id: "c".into(),
        process: Some(process()),
        namespaces: Some(Namespaces {
            pid: 3,
            network: 2,
            ipc: 2,
            uts: 2,
            cgroup: 1,
            user: 0,
        }),
        rootfs_readonly: true,
        rootfs_propagation: 1 << 19,
        mounts: vec![MountPlan {
            destination: b"/data".to_vec(),
            source: 1,
            fs_type: "bind".into(),
            options: vec!["size=1m".into()],
            attributes: 1,
            propagation: 1 << 18,
            is_file: true,
            copy_up: true,
            source_name: "source".into(),
        }],
        devices: vec![DevicePlan {
            path: b"/dev/null".to_vec(),
            mode: 0o020_666,
            major: 1,
            minor: 3,
            uid: 4,
            gid: 5,
        }],
        links: vec![LinkPlan {
            path: b"/dev/fd".to_vec(),
            target: b"/proc/self/fd".to_vec(),
        }],
        masked_paths: vec![b"/proc/keys".to_vec()],
        readonly_paths: vec![b"/proc/sys".to_vec()],
        hostname: "host".into(),
        domainname: "domain".into(),
        sysctls: vec![sysctl()],
        personality: Some(8),
        no_new_keyring: true,
        loopback_up: true,
    }
}

fn sysctl() -> SysctlPlan {
    SysctlPlan {
        path: "net/core/somaxconn".into(),
        value: "7".into(),
    }
}

fn exited() -> Exited {
    Exited {
        container_id: "c".into(),
        exec_id: "e".into(),
        code: 137,
        signal: 9,
        at_ns: 1_700_000_000_000_000_001,
    }
}

fn failure() -> Failure {
    Failure {
        step: "mount".into(),
        object: "/data".into(),
        errno: 2,
        kind: 3,
    }
}

fn container() -> ContainerRef {
    ContainerRef {
        container_id: "c".into(),
    }
}

fn requests() -> Vec<(&'static str, Body)> {
    vec![
        ("Hello", Body::Hello(Hello { protocol: 1 })),
        (
            "MakeShim",
            Body::MakeShim(MakeShim {
                pod_id: "p".into(),
                namespaces: plan().namespaces,
                hostname: "host".into(),
                sysctls: vec![sysctl()],
                oom_score_adj: Some(-999),
            }),
        ),
        (
            "Create",
            Body::Create(Create {
                plan: Some(plan()),
                stdin: true,
                stdin_once: true,
            }),
        ),
        ("Start", Body::Start(container())),
        (
            "Signal",
            Body::Signal(Signal {
                container_id: "c".into(),
                exec_id: "e".into(),
                signal: 15,
            }),
        ),
        (
            "Exec",
            Body::Exec(Exec {
                container_id: "c".into(),
                exec_id: "e".into(),
                process: Some(process()),
            }),
        ),
        ("Delete", Body::Delete(container())),
        ("ReopenLog", Body::ReopenLog(container())),
        (
            "Resize",
            Body::Resize(Resize {
                container_id: "c".into(),
                exec_id: "e".into(),
                size: process().console,
            }),
        ),
        ("GetState", Body::GetState(GetState {})),
        ("Shutdown", Body::Shutdown(Shutdown {})),
        ("CloseStdin", Body::CloseStdin(container())),
        ("Attach", Body::Attach(container())),
        ("GetOrphans", Body::GetOrphans(GetState {})),
    ]
}

fn answers() -> Vec<(&'static str, Body)> {
    vec![
        ("Done", Body::Done(Done {})),
        ("Failed", Body::Failed(failure())),
        (
            "Welcome",
            Body::Welcome(Welcome {
                protocol: 1,
                version: "0.1.0".into(),
                pid: 4711,
                pod_id: "p".into(),
                sandbox_pid: 4712,
                failure: Some(failure()),
            }),
        ),
        ("ShimMade", Body::ShimMade(ShimMade { pid: 4711 })),
        ("Created", Body::Created(Created { pid: 4713 })),
        (
            "ShimState",
            Body::ShimState(ShimState {
                containers: vec![ContainerState {
                    container_id: "c".into(),
                    pid: 4713,
                    started: true,
                    exited: Some(exited()),
                }],
                execs: vec![ExecState {
                    container_id: "c".into(),
                    exec_id: "e".into(),
                    pid: 4714,
                    exited: Some(exited()),
                }],
            }),
        ),
        (
            "Orphans",
            Body::Orphans(Orphans {
                processes: vec![Orphan {
                    pid: 4713,
                    started: 99_999,
                    code: 3,
                    signal: 0,
                    at_ns: 1_700_000_000_000_000_001,
                }],
            }),
        ),
        ("Exited", Body::Exited(exited())),
        (
            "Warning",
            Body::Warning(Warning {
                container_id: "c".into(),
                text: "words".into(),
            }),
        ),
        ("SandboxEnded", Body::SandboxEnded(Done {})),
    ]
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_bytes_of_release_1_are_read_and_written_as_they_were() {
    let recorded: BTreeMap<&str, &str> = include_str!("protocol-1.txt")
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    let mut missing = Vec::new();
    let all = [requests(), answers()].concat();
    for (name, body) in &all {
        let message = Message {
            id: 300,
            fds: vec!["bind".into(), "log".into()],
            body: Some(body.clone()),
        };
        let now = hexadecimal(&message.encode_to_vec());
        match recorded.get(name) {
            Some(then) => {
                let digits = then.as_bytes().chunks(2);
                let byte = |pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
                let bytes: Vec<u8> = digits.map(byte).collect();
                let read = Message::decode(&*bytes).unwrap();
                assert_eq!(read, message, "{name} is read as it was meant");
                assert_eq!(*then, now, "{name} is written as it was");
            }
            None => missing.push(format!("{name} {now}")),
        }
    }
    assert_eq!(
        missing,
        Vec::<String>::new(),
        "new messages, to be recorded"
    );
    assert_eq!(
        recorded.len(),
        all.len(),
        "no recorded message is forgotten"
    );
}

#[test]
fn what_a_later_release_adds_is_passed_over() {
    // Field 500 with 2 bytes, in the message and in what it carries.
    let added = [0xa2, 0x1f, 0x02, 0x01, 0x02];
    let mut body = Vec::new();
    Hello { protocol: 9 }.encode(&mut body).unwrap();
    body.extend(added);
    let mut message = vec![0x08, 0x05, 0x52, u8::try_from(body.len()).unwrap()];
    message.extend(body);
    message.extend(added);
    let read = Message::decode(&*message).unwrap();
    assert_eq!(read.id, 5);
    assert_eq!(read.body, Some(Body::Hello(Hello { protocol: 9 })));
}
