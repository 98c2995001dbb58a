//! Bad messages, several clients, those who may not talk.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Instant;

use rustix::net::SendFlags;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use wharf_plan::Fds;
use wharf_plan::message::{Body, Done, FailureKind, Hello, MakeShim, Shutdown};

use crate::rig::{Client, Zygote, create, exec, named, plan, pod, root};

#[test]
fn every_client_that_said_hello_gets_events() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    let mut second = Client::connect(&pod.socket);
    second.hello();
    let mut silent = Client::connect(&pod.socket);
    pod.run("c", "exit 2");
    assert_eq!(pod.client.exited("c", "").code, 2);
    assert_eq!(second.exited("c", "").code, 2);
    // Its first word is answered, and nothing came before.
    let early = silent.ask(Body::Shutdown(Shutdown {})).unwrap_err();
    assert_eq!(early.kind, i32::from(FailureKind::Conflict));
    assert!(early.object.contains("Hello"), "{early:?}");
    assert!(silent.events.is_empty());
    silent.hello();
    assert_eq!(silent.state().containers.len(), 1);
}

#[test]
fn a_request_whose_descriptors_find_no_room_is_answered() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    pod.client.state(); // what it sent with its welcome is closed by now
    let room = allow_no_more(pod.pid);
    let log = pod.log_file("c");
    let failure = pod
        .create(create(plan("c", "true")), Some(log))
        .unwrap_err();
    assert!(failure.object.contains("out of descriptors"), "{failure:?}");
    allow(pod.pid, room);
    pod.run("c", "exit 4");
    assert_eq!(pod.client.exited("c", "").code, 4);
}

/// Lets a process open no further file; gives what it was allowed before.
fn allow_no_more(pid: u32) -> Rlimit {
    let used: BTreeSet<u64> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    let none = Rlimit {
        current: (0..).find(|n| !used.contains(n)),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    allow(pid, none)
}

fn allow(pid: u32, limit: Rlimit) -> Rlimit {
    let pid = Pid::from_raw(pid.try_into().unwrap());
    prlimit(pid, Resource::Nofile, limit).unwrap()
}

#[test]
fn a_client_that_does_not_read_is_cut_off_and_can_come_back() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    let mut deaf = Client::connect(&pod.socket);
    deaf.hello();
    // It asks without reading the answers until the shim does not want it any more.
    let state = || Body::GetState(wharf_plan::message::GetState {});
    let mut id = 100;
    let cut_off = loop {
        let message = wharf_plan::message::Message {
            id,
            fds: Vec::new(),
            body: Some(state()),
        };
        if deaf.channel().send(message, &Fds::new()).is_err() {
            break true;
        }
        id += 1;
        // The shim goes on with others all the time.
        if id % 100 == 0 {
            pod.client.state();
        }
        if id > 100_000 {
            break false;
        }
    };
    assert!(cut_off);
    let mut back = Client::connect(&pod.socket);
    back.hello();
    assert_eq!(back.state().containers, []);
}

#[test]
fn what_is_malformed_is_refused_and_harms_nobody() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    let invalid = i32::from(FailureKind::Invalid);
    for (garbage, kind) in [
        (&b"\x00garbage"[..], FailureKind::Invalid),
        (b"\x07", FailureKind::Invalid),
        (
            b"\x01\xff\xff\xff\xff\xff\xff\xff\xff",
            FailureKind::Invalid,
        ),
        // What a later release may ask.
        (
            b"\x00\x08\x05\x9a\x06\x02\x08\x01",
            FailureKind::Unsupported,
        ),
    ] {
        rustix::net::send(pod.client.channel(), garbage, SendFlags::empty()).unwrap();
        let (message, _) = pod.client.receive().unwrap();
        match message.body {
            Some(Body::Failed(failure)) => assert_eq!(failure.kind, i32::from(kind), "{failure:?}"),
            other => panic!("{other:?}"),
        }
    }
    let mut no_process = plan("c", "");
    no_process.process = None;
    let mut old = plan("c", "");
    old.version = 0;
    let mut no_bind = plan("c", "true");
    no_bind.mounts[0].source = wharf_plan::container::MountSource::Bind.into();
    let bad = [
        Body::Create(wharf_plan::message::Create::default()),
        Body::Create(create(no_process)),
        Body::Create(create(old)),
        Body::Create(create(plan("", "true"))),
        Body::Create(create(plan(&"x".repeat(257), "true"))),
        Body::Exec(exec("c", "", "true")),
        Body::Attach(named("c")),
        Body::Done(Done {}),
        Body::MakeShim(MakeShim::default()),
        Body::Hello(Hello { protocol: 0 }),
        Body::Signal(wharf_plan::message::Signal::default()),
    ];
    for body in bad {
        let text = format!("{body:?}");
        let failure = pod.client.ask(body).unwrap_err();
        assert_eq!(failure.kind, invalid, "{text}");
    }
    pod.client.ask(Body::Create(create(no_bind))).unwrap_err();
    pod.client.ask(Body::ReopenLog(named("c"))).unwrap_err();
    assert_eq!(pod.client.state().containers, []);
    let mut zygotes = zygote.client();
    for body in [
        Body::MakeShim(MakeShim::default()),
        Body::MakeShim(crate::rig::pod("no-socket")),
        Body::Start(named("c")),
    ] {
        assert_eq!(zygotes.ask(body).unwrap_err().kind, invalid);
    }
    zygotes.hello();
}

#[test]
fn one_slow_create_does_not_hold_up_others() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    // Many creates in flight, answered in whatever order they are ready.
    let mut ids = Vec::new();
    for n in 0..20 {
        let mut fds = Fds::new();
        let root = pod.rootfs();
        fds.push("rootfs", root);
        let id = format!("c{n}");
        ids.push((
            pod.client
                .post(Body::Create(create(plan(&id, "exit 3"))), &fds),
            id,
        ));
    }
    let mut answered = 0;
    while answered < ids.len() {
        let (message, _) = pod.client.receive().unwrap();
        assert!(
            matches!(message.body, Some(Body::Created(_))),
            "{message:?}"
        );
        answered += 1;
    }
    for (_, id) in &ids {
        pod.start(id).unwrap();
    }
    for (_, id) in &ids {
        assert_eq!(pod.client.exited(id, "").code, 3);
    }
}

const SOCKET: &str = "WHARF_TEST_SOCKET";

#[test]
fn only_root_may_talk() {
    if let Some(socket) = std::env::var_os(SOCKET) {
        // The same test as nobody: the shim hangs up before it reads anything.
        let mut client = Client::connect(socket.as_ref());
        assert!(client.receive().is_none());
        return;
    }
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let pod = zygote.pod(pod("p"));
    let dir = pod.socket.parent().unwrap();
    fs::set_permissions(dir, Permissions::from_mode(0o711)).unwrap();
    fs::set_permissions(&pod.socket, Permissions::from_mode(0o666)).unwrap();
    // A program that nobody can reach: the build's folder may be root's.
    let program = dir.join("as-nobody");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let as_nobody = Command::new(program)
        .args(["--exact", "protocol::only_root_may_talk", "--nocapture"])
        .env(SOCKET, &pod.socket)
        .current_dir("/")
        .uid(65534)
        .output()
        .unwrap();
    assert!(as_nobody.status.success(), "{as_nobody:?}");
    // Nothing but that: it says so in its log, and goes on.
    let log = pod.dir.path().join("shim.log");
    let begin = Instant::now();
    while !fs::read_to_string(&log).unwrap().contains("not root") {
        assert!(begin.elapsed().as_secs() < 10);
    }
    Client::connect(&pod.socket).hello();
}
