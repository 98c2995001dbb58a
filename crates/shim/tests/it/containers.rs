//! Create, start, signal, delete, state.

use std::fs::File;
use std::io::Write as _;

use wharf_plan::Fds;
use wharf_plan::message::{Body, FailureKind};
use wharf_plan::process::ConsoleSize;

use crate::rig::{Client, Zygote, create, named, plan, pod, readable, root};

#[test]
fn a_container_is_logged_and_its_exit_code_is_kept_until_it_is_deleted() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    let pid = pod.run("c", "echo out; echo err >&2; echo $$; printf tail; exit 3");
    let exited = pod.client.exited("c", "");
    assert_eq!((exited.code, exited.signal), (3, 0));
    let mut log = pod.log("c");
    log.sort();
    assert_eq!(
        log,
        [
            "stderr F err",
            "stdout F 1",
            "stdout F out",
            "stdout P tail"
        ]
    );
    let state = pod.client.state().containers;
    assert_eq!(
        (state.len(), state[0].pid, state[0].started),
        (1, pid, true)
    );
    assert_eq!(state[0].exited.as_ref(), Some(&exited));
    pod.delete("c").unwrap();
    assert_eq!(pod.client.state().containers, []);
    let failure = pod.delete("c").unwrap_err();
    assert_eq!(failure.kind, i32::from(FailureKind::NotFound));
    assert!(failure.object.contains("container c"));
}

#[test]
fn nothing_runs_before_start() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    let log = pod.log_file("c");
    let (_, fds) = pod
        .create(create(plan("c", "echo ran")), Some(log))
        .unwrap();
    assert!(!pod.client.state().containers[0].started);
    assert_eq!(pod.log("c"), [""; 0]);
    pod.start("c").unwrap();
    assert!(readable(fds.get("pidfd").unwrap()));
    assert_eq!(pod.client.exited("c", "").code, 0);
    assert_eq!(pod.log("c"), ["stdout F ran"]);
    let failure = pod.start("c").unwrap_err();
    assert_eq!(failure.kind, i32::from(FailureKind::Conflict));
    assert!(failure.object.contains("has exited"));
}

#[test]
fn signals_reach_init_and_a_killed_container_says_which() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    pod.run("killed", "while true; do sleep 1000; done");
    pod.run(
        "asked",
        "trap 'exit 5' TERM; echo ready; while :; do sleep 1; done",
    );
    pod.signal("killed", 9).unwrap();
    let exited = pod.client.exited("killed", "");
    assert_eq!((exited.code, exited.signal), (137, 9));
    pod.signal("killed", 15).unwrap();
    // The shell must have set its trap before the signal comes.
    pod.wait_for_log("asked", "ready");
    pod.signal("asked", 15).unwrap();
    assert_eq!(pod.client.exited("asked", "").code, 5);
    let failure = pod.signal("killed", 65).unwrap_err();
    assert_eq!(failure.kind, i32::from(FailureKind::Invalid));
}

#[test]
fn a_container_that_is_killed_before_its_start_ends_like_any_other() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    pod.create(create(plan("c", "true")), None).unwrap();
    let failure = pod.delete("c").unwrap_err();
    assert_eq!(failure.kind, i32::from(FailureKind::Conflict));
    pod.signal("c", 9).unwrap();
    assert_eq!(pod.client.exited("c", "").code, 137);
    assert_eq!(
        pod.start("c").unwrap_err().kind,
        i32::from(FailureKind::Conflict)
    );
    pod.delete("c").unwrap();
}

#[test]
fn a_missing_program_fails_the_start_with_step_object_and_errno() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    let mut missing = plan("c", "");
    missing.process.as_mut().unwrap().args = vec![b"/no/such/program".to_vec()];
    pod.create(create(missing), None).unwrap();
    let failure = pod.start("c").unwrap_err();
    assert_eq!(
        (failure.errno, failure.kind),
        (2, i32::from(FailureKind::Step))
    );
    assert!(failure.step.contains("exec"), "{failure:?}");
    assert!(failure.object.contains("/no/such/program"), "{failure:?}");
    assert_ne!(pod.client.exited("c", "").code, 0);
    pod.delete("c").unwrap();
}

#[test]
fn a_mount_that_fails_fails_the_create_and_leaves_nothing() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    let mut bad = plan("c", "true");
    bad.mounts[1].fs_type = "no-such-file-system".to_owned();
    let failure = pod.create(create(bad), None).unwrap_err();
    assert_eq!(failure.kind, i32::from(FailureKind::Step));
    assert_ne!(failure.errno, 0, "{failure:?}");
    assert_eq!(pod.client.state().containers, []);
    // The name is free again.
    pod.run("c", "exit 4");
    assert_eq!(pod.client.exited("c", "").code, 4);
}

#[test]
fn stdin_stays_open_until_it_is_closed_and_is_empty_when_not_wanted() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    let mut wanted = create(plan("open", "cat; exit 6"));
    wanted.stdin = true;
    pod.create(wanted, None).unwrap();
    pod.start("open").unwrap();
    pod.run("empty", "cat; exit 7");
    assert_eq!(pod.client.exited("empty", "").code, 7);
    assert_eq!(pod.client.state().containers[1].exited, None);
    pod.client.ask(Body::CloseStdin(named("open"))).unwrap();
    assert_eq!(pod.client.exited("open", "").code, 6);
}

#[test]
fn a_terminal_is_the_containers_own_and_can_be_resized() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    let script =
        "tty; stty size; trap 'stty size; exit 8' WINCH; echo set; while :; do sleep 1; done";
    let mut with_terminal = plan("c", script);
    let process = with_terminal.process.as_mut().unwrap();
    process.terminal = true;
    process.console = Some(ConsoleSize {
        height: 11,
        width: 22,
    });
    let log = pod.log_file("c");
    pod.create(create(with_terminal), Some(log)).unwrap();
    pod.start("c").unwrap();
    pod.wait_for_log("c", "set");
    let resize = wharf_plan::message::Resize {
        container_id: "c".to_owned(),
        exec_id: String::new(),
        size: Some(ConsoleSize {
            height: 33,
            width: 44,
        }),
    };
    pod.client.ask(Body::Resize(resize)).unwrap();
    assert_eq!(pod.client.exited("c", "").code, 8);
    let log = pod.log("c");
    let log: Vec<&str> = log.iter().map(|line| line.trim_end()).collect();
    assert!(log[0].starts_with("stdout F /dev/"), "{log:?}");
    assert_eq!(
        &log[1..],
        ["stdout F 11 22", "stdout F set", "stdout F 33 44"]
    );
}

#[test]
fn a_terminal_that_nobody_has_open_for_a_moment_is_logged_on() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    // Closes all its ends, and opens the terminal again when it is told to.
    let script = "echo before; exec </dev/null >/dev/null 2>&1; \
        trap 'exec >/dev/pts/0; echo after; exit 5' TERM; : >/tmp/closed; \
        while :; do sleep 0.1; done";
    let mut plan = plan("c", script);
    plan.process.as_mut().unwrap().terminal = true;
    let log = pod.log_file("c");
    pod.create(create(plan), Some(log)).unwrap();
    pod.start("c").unwrap();
    pod.wait_for_log("c", "before");
    pod.exec("c", "x", "until [ -e /tmp/closed ]; do sleep 0.1; done");
    pod.signal("c", 15).unwrap();
    assert_eq!(pod.client.exited("c", "").code, 5);
    let lines = pod.log("c");
    assert_eq!(
        lines.last().unwrap().trim_end(),
        "stdout F after",
        "{lines:?}"
    );
}

#[test]
fn a_client_that_comes_later_finds_what_happened_meanwhile() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    let mut waiting = create(plan("c", "read x; echo $x; exit 9"));
    waiting.stdin = true;
    let log = pod.log_file("c");
    let (_, fds) = pod.create(waiting, Some(log)).unwrap();
    pod.start("c").unwrap();
    pod.run("stays", "while :; do sleep 1000; done");
    // The daemon goes with its last request; the container's end comes while nobody listens.
    pod.client.post(Body::CloseStdin(named("c")), &Fds::new());
    let other = Client::connect(&pod.socket);
    drop(std::mem::replace(&mut pod.client, other));
    assert!(readable(fds.get("pidfd").unwrap()));
    let mut again = Client::connect(&pod.socket);
    let (welcome, _) = again.hello();
    assert_eq!(welcome.pod_id, "p");
    let state = again.state().containers;
    let exited = state[0]
        .exited
        .clone()
        .unwrap_or_else(|| again.exited("c", ""));
    assert_eq!(exited.code, 9);
    assert_eq!(
        (state[1].container_id.as_str(), state[1].exited.is_none()),
        ("stays", true)
    );
}

#[test]
fn a_program_begins_with_no_descriptor_signal_or_variable_of_ours() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    pod.run("c", "grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; ls /proc/self/fd; env; echo ready; while :; do sleep 1000; done");
    pod.wait_for_log("c", "ready");
    let (exec, _) = pod.exec(
        "c",
        "e",
        "grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd",
    );
    pod.signal("c", 9).unwrap();
    pod.client.exited("c", "");
    let init: Vec<String> = pod
        .log("c")
        .iter()
        .map(|line| line[9..].to_owned())
        .collect();
    assert_eq!(init[0], "SigBlk:\t0000000000000000");
    assert_eq!(init[1], "SigIgn:\t0000000000000000");
    // 3 is ls's own, for the directory.
    assert_eq!(&init[3..7], ["0", "1", "2", "3"]);
    let mut rest = init[7..].to_vec();
    rest.retain(|line| {
        !line.starts_with("PWD=") && !line.starts_with("SHLVL=") && !line.starts_with("_=")
    });
    assert_eq!(rest, ["PATH=/bin", "ready"]);
    let exec: Vec<&str> = exec.lines().collect();
    assert_eq!(exec[..2], init[..2]);
    assert_eq!(exec[2..], ["0", "1", "2", "3"]);
}

#[test]
fn deleting_closes_what_was_held() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    let count = |pid: u32| {
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count()
    };
    pod.run("first", "true");
    pod.client.exited("first", "");
    pod.delete("first").unwrap();
    // The log thread closes in its own time; a switch of another container's log comes after it.
    let settle = |pod: &mut crate::rig::Pod<'_>| {
        pod.run("other", "true");
        pod.client.exited("other", "");
        let mut fds = Fds::new();
        fds.push("log", pod.log_file("other"));
        pod.client
            .request(Body::ReopenLog(named("other")), &fds)
            .unwrap();
        count(pod.pid)
    };
    let before = settle(&mut pod);
    for round in 0..20 {
        let id = format!("c{round}");
        pod.run(&id, "echo hello");
        pod.client.exited(&id, "");
        pod.delete(&id).unwrap();
    }
    pod.delete("other").unwrap();
    let after = settle(&mut pod);
    assert_eq!(after, before);
}

#[test]
fn what_is_written_just_before_the_end_is_in_the_log_when_the_end_is_reported() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    pod.run("c", "seq 1 100000");
    assert_eq!(pod.client.exited("c", "").code, 0);
    let log = pod.log("c");
    assert_eq!(log.len(), 100_000);
    assert_eq!(log.last().unwrap(), "stdout F 100000");
    // Nothing keeps a log open for writing that the next line would need.
    File::options()
        .append(true)
        .open(pod.log_path("c"))
        .unwrap()
        .write_all(b"")
        .unwrap();
}
