//! Further processes in a container.

use std::fs::{self, File};
use std::io::Write as _;

use rustix::pipe::{PipeFlags, pipe_with};
use wharf_plan::Fds;
use wharf_plan::message::{Body, FailureKind};

use crate::rig::{Zygote, exec, pod, root};

const IDLE: &str = "while :; do sleep 1000; done";

#[test]
fn an_exec_talks_through_the_callers_pipes_and_its_code_comes_back() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    pod.run("c", IDLE);
    let (their_in, our_in) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (our_out, their_out) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let mut fds = Fds::new();
    fds.push("stdin", their_in);
    fds.push("stdout", their_out);
    let request = Body::Exec(exec("c", "e", "hostname; cat; echo lost >&2; exit 7"));
    let (_, reply) = pod.client.request(request, &fds).unwrap();
    drop(fds);
    assert!(reply.get("pidfd").is_some());
    let mut our_in = File::from(our_in);
    our_in.write_all(b"through the pipe\n").unwrap();
    drop(our_in);
    let output = std::io::read_to_string(File::from(our_out)).unwrap();
    assert_eq!(output, "pod-under-test\nthrough the pipe\n");
    assert_eq!(pod.client.exited("c", "e").code, 7);
    assert_eq!(pod.log("c"), [""; 0]);
}

#[test]
fn a_missing_program_and_a_missing_container_are_told_apart() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    pod.run("c", IDLE);
    let mut missing = exec("c", "e", "");
    missing.process.as_mut().unwrap().args = vec![b"no-such-program".to_vec()];
    let failure = pod.client.ask(Body::Exec(missing)).unwrap_err();
    assert_eq!(
        (failure.errno, failure.kind),
        (2, i32::from(FailureKind::Step))
    );
    assert!(failure.object.contains("no-such-program"), "{failure:?}");
    let failure = pod
        .client
        .ask(Body::Exec(exec("x", "e", "true")))
        .unwrap_err();
    assert_eq!(failure.kind, i32::from(FailureKind::NotFound));
    // The failed one's name is free.
    assert_eq!(pod.exec("c", "e", "true").1.code, 0);
}

#[test]
fn an_exec_with_a_terminal_gives_the_caller_its_master() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    pod.run("c", IDLE);
    let mut with_terminal = exec("c", "e", "stty size; read x; echo got $x");
    let process = with_terminal.process.as_mut().unwrap();
    process.terminal = true;
    process.console = Some(wharf_plan::process::ConsoleSize {
        height: 5,
        width: 6,
    });
    let (_, mut fds) = pod
        .client
        .request(Body::Exec(with_terminal), &Fds::new())
        .unwrap();
    let master = fds.take("terminal").unwrap();
    rustix::io::write(&master, b"word\n").unwrap();
    let mut output = Vec::new();
    let mut buffer = [0; 512];
    while let Ok(n @ 1..) = rustix::io::read(&master, &mut buffer) {
        output.extend_from_slice(&buffer[..n]);
    }
    let output = String::from_utf8(output).unwrap();
    assert!(
        output.contains("5 6\r\n") && output.contains("got word\r\n"),
        "{output:?}"
    );
    assert_eq!(pod.client.exited("c", "e").code, 0);
}

#[test]
fn an_exec_can_be_signalled_and_its_name_is_unique_while_it_lives() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    pod.run("c", IDLE);
    pod.client.ask(Body::Exec(exec("c", "e", IDLE))).unwrap();
    let failure = pod
        .client
        .ask(Body::Exec(exec("c", "e", "true")))
        .unwrap_err();
    assert_eq!(failure.kind, i32::from(FailureKind::Conflict));
    let signal = wharf_plan::message::Signal {
        container_id: "c".to_owned(),
        exec_id: "e".to_owned(),
        signal: 9,
    };
    pod.client.ask(Body::Signal(signal.clone())).unwrap();
    assert_eq!(pod.client.exited("c", "e").signal, 9);
    let failure = pod.client.ask(Body::Signal(signal)).unwrap_err();
    assert_eq!(failure.kind, i32::from(FailureKind::NotFound));
}

#[test]
fn the_end_of_init_is_reported_after_the_execs_that_it_takes_along() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    pod.run("c", IDLE);
    for n in 0..5 {
        pod.client
            .ask(Body::Exec(exec("c", &format!("e{n}"), IDLE)))
            .unwrap();
    }
    pod.signal("c", 9).unwrap();
    let mut order = Vec::new();
    while order.last().is_none_or(|exec: &String| !exec.is_empty()) {
        order.push(pod.client.event(|event| match event {
            Body::Exited(exited) => Some(exited.exec_id.clone()),
            _ => None,
        }));
    }
    order.sort();
    assert_eq!(order, ["", "e0", "e1", "e2", "e3", "e4"]);
    let failure = pod
        .client
        .ask(Body::Exec(exec("c", "late", "true")))
        .unwrap_err();
    assert_eq!(failure.kind, i32::from(FailureKind::Conflict));
}

#[test]
fn two_hundred_execs_leave_no_descriptor_and_no_process() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    pod.run("c", IDLE);
    pod.exec("c", "warm", "true");
    let files = |pid: u32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = files(pod.pid);
    // Several at the same time: each is waited for on its own.
    for round in 0..20 {
        let mut ids = Vec::new();
        for n in 0..10 {
            let request = Body::Exec(exec("c", &format!("{round}-{n}"), "true"));
            ids.push(pod.client.post(request, &Fds::new()));
        }
        for id in ids {
            pod.client.reply(id).unwrap();
        }
        for n in 0..10 {
            assert_eq!(pod.client.exited("c", &format!("{round}-{n}")).code, 0);
        }
    }
    assert_eq!(files(pod.pid), before);
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", pod.pid)).unwrap();
    assert_eq!(children.split_ascii_whitespace().count(), 1, "{children}");
    let status = fs::read_to_string(format!("/proc/{}/smaps_rollup", pod.pid)).unwrap();
    for line in status
        .lines()
        .filter(|l| l.starts_with("Rss") || l.starts_with("Pss:") || l.starts_with("Private_Dirty"))
    {
        println!("shim after 200 execs: {line}");
    }
}
