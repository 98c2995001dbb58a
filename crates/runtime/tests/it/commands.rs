//! The command's verbs: a container's life, the words that callers look for, the log.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::rig::{Bundle, Outcome, Runtime, outcome};

/// Calls of one runtime about one container.
struct Calls<'a> {
    runtime: &'a Runtime,
    bundle: &'a Bundle,
}

impl Calls<'_> {
    fn call(&self, words: &[&str]) -> Outcome {
        outcome(self.command(words))
    }

    fn command(&self, words: &[&str]) -> &mut Command {
        let mut command = self.runtime.command(&self.bundle.states(self.runtime));
        command.args(words);
        Box::leak(Box::new(command))
    }

    /// `create` with stdio that nobody waits for: the container inherits it.
    fn create(&self, id: &str, more: &[&str]) -> Outcome {
        let dir = self.bundle.write();
        let log = self.bundle.rootfs.beside().join("create.log");
        let file = std::fs::File::create(&log).unwrap();
        let command = self.command(&["create", "--bundle", dir.to_str().unwrap(), id]);
        command.args(more).stdin(Stdio::null());
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let code = command.status().unwrap().code();
        let stderr = std::fs::read_to_string(log).unwrap();
        Outcome {
            stdout: String::new(),
            stderr,
            code,
        }
    }

    fn status(&self, id: &str) -> String {
        let state = self.call(&["state", id]);
        let state: Value = serde_json::from_str(&state.stdout).unwrap_or_default();
        state["status"].as_str().unwrap_or("none").to_owned()
    }
}

fn pid(calls: &Calls<'_>, id: &str) -> i32 {
    let state: Value = serde_json::from_str(&calls.call(&["state", id]).stdout).unwrap();
    i32::try_from(state["pid"].as_i64().unwrap()).unwrap()
}

fn wait_for_end(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    if let Ok(fd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        let mut fds = [rustix::event::PollFd::new(
            &fd,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut fds, None).unwrap();
    }
}

#[test]
fn a_containers_life_is_that_of_runc() {
    let name = "a_containers_life";
    let script = "trap 'exit 3' TERM; echo $$ > /tmp/here; while :; do sleep 0.01; done";
    let Some(bundle) = Bundle::script(name, script) else {
        return;
    };
    for runtime in std::iter::once(Runtime::ours()).chain(Runtime::peers(name)) {
        let calls = Calls {
            runtime: &runtime,
            bundle: &bundle,
        };
        let (id, who) = (format!("life-{}", runtime.name), runtime.name);
        let ok = |o: &Outcome| assert_eq!(o.code, Some(0), "{who}: {}", o.stderr);
        let here = bundle.rootfs.path().join("tmp/here");
        let _none = std::fs::remove_file(&here);
        ok(&calls.create(&id, &[]));
        assert_eq!(calls.status(&id), "created", "{who}");
        assert!(!here.exists(), "{who}: started before start");
        assert_eq!(calls.create(&id, &[]).code, Some(1), "{who}");
        ok(&calls.call(&["start", &id]));
        assert_eq!(calls.status(&id), "running", "{who}");
        assert_eq!(calls.call(&["start", &id]).code, Some(1), "{who}");
        assert_eq!(calls.call(&["delete", &id]).code, Some(1), "{who}");
        let init = pid(&calls, &id);
        while !here.exists() {
            std::thread::yield_now();
        }
        ok(&calls.call(&["kill", &id, "TERM"]));
        wait_for_end(init);
        // crun shows a dead init as running until it is reaped; that is init's business.
        ok(&calls.call(&["kill", "--all", &id, "KILL"]));
        assert_eq!(calls.status(&id), "stopped", "{who}");
        assert_eq!(calls.call(&["kill", &id, "TERM"]).code, Some(1), "{who}");
        ok(&calls.call(&["delete", &id]));
        assert_eq!(calls.call(&["delete", &id]).code, Some(1), "{who}");
        ok(&calls.call(&["delete", "--force", &id]));
        assert_eq!(calls.call(&["state", &id]).code, Some(1), "{who}");
    }
}

#[test]
fn callers_find_the_words_that_they_look_for() {
    let name = "words";
    let Some(bundle) = Bundle::new(name, &["true"]) else {
        return;
    };
    let runtime = Runtime::ours();
    let calls = Calls {
        runtime: &runtime,
        bundle: &bundle,
    };
    for words in [["state", "none"], ["start", "none"], ["delete", "none"]] {
        let out = calls.call(&words);
        assert!(out.stderr.contains("does not exist"), "{words:?}: {out:?}");
    }
    assert_eq!(calls.create("x", &[]).code, Some(0));
    assert!(calls.create("x", &[]).stderr.contains("already exists"));
    let init = pid(&calls, "x");
    assert_eq!(calls.call(&["start", "x"]).code, Some(0));
    wait_for_end(init);
    let out = calls.call(&["kill", "x", "9"]);
    assert!(out.stderr.contains("container not running"), "{out:?}");
    assert_eq!(calls.call(&["delete", "x"]).code, Some(0));
    let out = calls.call(&["exec", "x", "true"]);
    assert!(out.stderr.contains("exec is not supported yet"), "{out:?}");
    assert_eq!(out.code, Some(1));
}

#[test]
fn the_log_is_what_containerd_reads() {
    let name = "the_log";
    let Some(bundle) = Bundle::new(name, &["no-such-program"]) else {
        return;
    };
    let runtime = Runtime::ours();
    let calls = Calls {
        runtime: &runtime,
        bundle: &bundle,
    };
    let log = bundle.rootfs.beside().join("log.json");
    let log_words = ["--log", log.to_str().unwrap(), "--log-format", "json"];
    let out = calls.create("x", &log_words);
    assert_eq!(out.code, Some(1));
    assert!(out.stderr.contains("error"), "{out:?}");
    let text = std::fs::read_to_string(&log).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "error");
    assert!(last["msg"].as_str().unwrap().contains("no-such-program"));
    assert!(last["time"].as_str().unwrap().ends_with('Z'));
    // Nothing stays of what could not be made.
    assert_eq!(calls.status("x"), "none");
    assert_eq!(bundle.cgroups(), 0);
}

#[test]
fn pid_file_and_console_socket_get_what_they_wait_for() {
    let name = "console_socket";
    let Some(mut bundle) = Bundle::new(name, &["sh", "-c", "tty; stty size"]) else {
        return;
    };
    bundle.config["process"]["terminal"] = true.into();
    bundle.config["process"]["consoleSize"] = serde_json::json!({"height": 11, "width": 22});
    let runtime = Runtime::ours();
    let calls = Calls {
        runtime: &runtime,
        bundle: &bundle,
    };
    let refused = calls.create("x", &[]);
    assert!(refused.stderr.contains("console socket"), "{refused:?}");
    let beside = bundle.rootfs.beside();
    let (socket, pid_file) = (beside.join("tty.sock"), beside.join("pid"));
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let more = [
        "--console-socket",
        socket.to_str().unwrap(),
        "--pid-file",
        pid_file.to_str().unwrap(),
    ];
    let made = calls.create("x", &more);
    assert_eq!(made.code, Some(0), "{made:?}");
    let master = receive_fd(&listener.accept().unwrap().0);
    let init = pid(&calls, "x");
    assert_eq!(
        std::fs::read_to_string(&pid_file).unwrap(),
        init.to_string()
    );
    assert_eq!(calls.call(&["start", "x"]).code, Some(0));
    let mut text = Vec::new();
    // Ends with EIO, when the last user of the terminal has gone.
    let _eio = std::fs::File::from(master).read_to_end(&mut text);
    assert_eq!(String::from_utf8(text).unwrap(), "/dev/pts/0\r\n11 22\r\n");
    wait_for_end(init);
    assert_eq!(calls.call(&["delete", "x"]).code, Some(0));
}

fn receive_fd(stream: &std::os::unix::net::UnixStream) -> std::os::fd::OwnedFd {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    let parts = &mut [std::io::IoSliceMut::new(&mut name)];
    let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(stream.as_fd(), parts, &mut control, flags).unwrap();
    for part in control.drain() {
        if let rustix::net::RecvAncillaryMessage::ScmRights(mut fds) = part {
            return fds.next().unwrap();
        }
    }
    panic!("no descriptor came");
}

#[test]
fn a_signal_to_run_reaches_the_program() {
    let name = "a_signal_to_run";
    let script = "trap 'echo got it; exit 5' USR1; echo ready; while :; do sleep 0.01; done";
    let Some(bundle) = Bundle::script(name, script) else {
        return;
    };
    let (runtime, dir) = (Runtime::ours(), bundle.write());
    let mut command = runtime.command(&bundle.states(&runtime));
    command.args(["run", "--bundle", dir.to_str().unwrap(), "x"]);
    let mut run = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = run.stdout.take().unwrap();
    let mut ready = [0; 6];
    out.read_exact(&mut ready).unwrap();
    let pid = rustix::process::Pid::from_child(&run);
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(
        (rest.as_str(), run.wait().unwrap().code()),
        ("got it\n", Some(5))
    );
    assert!(!states(&bundle, &runtime).contains(&"x".to_owned()));
    assert_eq!(bundle.cgroups(), 0);
}

fn states(bundle: &Bundle, runtime: &Runtime) -> Vec<String> {
    let entries = std::fs::read_dir(bundle.states(runtime)).unwrap();
    entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn preserved_descriptors_are_inherited_and_no_others() {
    let name = "preserved_descriptors";
    let Some(bundle) = Bundle::script(name, "cat <&3; ls /proc/self/fd") else {
        return;
    };
    let (runtime, dir) = (Runtime::ours(), bundle.write());
    std::fs::write(dir.join("three"), "three\n").unwrap();
    let program = runtime.command(&bundle.states(&runtime));
    let words: Vec<_> = program
        .get_args()
        .map(|a| a.to_str().unwrap().to_owned())
        .collect();
    let script = format!(
        "exec {} {} run --preserve-fds 1 --bundle {d} x 3< {d}/three 4< {d}/three",
        program.get_program().to_str().unwrap(),
        words.join(" "),
        d = dir.display()
    );
    let out = outcome(Command::new("sh").args(["-c", &script]));
    assert_eq!(out.stdout, "three\n0\n1\n2\n3\n4\n", "{}", out.stderr);
    let refused = outcome(runtime.command(&bundle.states(&runtime)).args([
        "run",
        "--preserve-fds",
        "5",
        "--bundle",
        dir.to_str().unwrap(),
        "y",
    ]));
    assert!(refused.stderr.contains("is not open"), "{refused:?}");
}

#[test]
fn a_process_is_in_its_cgroup_and_limited_by_it() {
    let name = "in_its_cgroup";
    let Some(mut bundle) = Bundle::script(name, "exec cat") else {
        return;
    };
    if !Path::new("/sys/fs/cgroup/pids").exists() {
        println!("{name}: skipped, the machine has no v1 pids hierarchy");
        return;
    }
    bundle.config["linux"]["resources"] = serde_json::json!({"pids": {"limit": 55}});
    let runtime = Runtime::ours();
    let calls = Calls {
        runtime: &runtime,
        bundle: &bundle,
    };
    assert_eq!(calls.create("x", &[]).code, Some(0));
    let init = pid(&calls, "x");
    let groups = std::fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap();
    let path = bundle.config["linux"]["cgroupsPath"].as_str().unwrap();
    assert!(
        groups
            .lines()
            .filter(|l| !l.contains("misc"))
            .all(|l| l.ends_with(path)),
        "{groups}"
    );
    let limit = std::fs::read_to_string(format!("/sys/fs/cgroup/pids{path}/pids.max")).unwrap();
    assert_eq!(limit, "55\n");
    assert_eq!(calls.call(&["delete", "--force", "x"]).code, Some(0));
    assert_eq!(bundle.cgroups(), 0);
}

#[test]
fn a_terminal_without_a_socket_is_copied_to_stdout() {
    let name = "a_terminal_without_a_socket";
    let Some(mut bundle) = Bundle::new(name, &["sh", "-c", "tty; echo done; exit 4"]) else {
        return;
    };
    bundle.config["process"]["terminal"] = true.into();
    let out = bundle.run(&Runtime::ours());
    assert_eq!(
        (out.stdout.as_str(), out.code),
        ("/dev/pts/0\r\ndone\r\n", Some(4)),
        "{}",
        out.stderr
    );
}

#[test]
fn a_detached_run_goes_on_alone() {
    let name = "a_detached_run";
    let Some(bundle) = Bundle::new(name, &["sleep", "1000"]) else {
        return;
    };
    let (runtime, dir) = (Runtime::ours(), bundle.write());
    let calls = Calls {
        runtime: &runtime,
        bundle: &bundle,
    };
    let run = calls.command(&["run", "-d", "--bundle", dir.to_str().unwrap(), "x"]);
    let code = run.stdin(Stdio::null()).stdout(Stdio::null()).status();
    assert_eq!(code.unwrap().code(), Some(0));
    assert_eq!(calls.status("x"), "running");
    let init = pid(&calls, "x");
    assert_eq!(calls.call(&["kill", "x", "KILL"]).code, Some(0));
    wait_for_end(init);
    assert_eq!(calls.status("x"), "stopped");
    assert_eq!(calls.call(&["delete", "x"]).code, Some(0));
    assert_eq!(bundle.cgroups(), 0);
}

/// Makes a configuration impossible.
type Break = fn(&mut Value);

#[test]
fn what_cannot_be_made_leaves_nothing_behind() {
    let name = "leaves_nothing";
    let runtime = Runtime::ours();
    let breaks: [(&str, Break); 7] = [
        ("hooks", |c| {
            c["hooks"] = serde_json::json!({"prestart": [{"path": "/bin/true"}]});
        }),
        ("CAP_NONSENSE", |c| {
            c["process"]["capabilities"]["bounding"] = serde_json::json!(["CAP_NONSENSE"]);
        }),
        ("no/such/source", |c| {
            let mount = serde_json::json!({"destination": "/x", "type": "bind", "source": "no/such/source"});
            c["mounts"].as_array_mut().unwrap().push(mount);
        }),
        ("no/such/root", |c| {
            c["root"]["path"] = "no/such/root".into();
        }),
        ("/x (no-such-fs)", |c| {
            let mount =
                serde_json::json!({"destination": "/x", "type": "no-such-fs", "source": "x"});
            c["mounts"].as_array_mut().unwrap().push(mount);
        }),
        ("kernel.nonsense", |c| {
            c["linux"]["sysctl"] = serde_json::json!({"kernel.nonsense": "1"});
        }),
        ("/etc/passwd/x", |c| {
            c["process"]["cwd"] = "/etc/passwd/x".into();
        }),
    ];
    for (word, break_it) in breaks {
        let Some(mut bundle) = Bundle::new(name, &["true"]) else {
            return;
        };
        break_it(&mut bundle.config);
        let out = bundle.run(&runtime);
        assert_eq!(out.code, Some(1), "{word}");
        assert!(out.stderr.contains(word), "{word}: {}", out.stderr);
        let left = std::fs::read_dir(bundle.states(&runtime)).map_or(0, Iterator::count);
        assert_eq!((left, bundle.cgroups()), (0, 0), "{word}");
    }
}
