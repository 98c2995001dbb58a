//! The library: a plan and descriptors in, a process out.

use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use wharf_plan::Fds;
use wharf_plan::container::{
    ContainerPlan, DevicePlan, LinkPlan, MountPlan, MountSource, Namespace, Namespaces, SysctlPlan,
};
use wharf_plan::process::{CapabilitySets, ProcessPlan, Rlimit};
use wharf_runtime::launch::{
    self, Park, Pending, Progress, Stdio, StepError, Target, sandbox_init, sources,
};

use crate::rig::{Rootfs, is_root};

fn file_system(destination: &str, fs_type: &str, options: &[&str]) -> MountPlan {
    MountPlan {
        destination: destination.into(),
        source: MountSource::FileSystem.into(),
        fs_type: fs_type.to_owned(),
        options: options.iter().map(|o| (*o).to_owned()).collect(),
        source_name: fs_type.to_owned(),
        ..MountPlan::default()
    }
}

fn char_device(path: &str, major: u32, minor: u32) -> DevicePlan {
    DevicePlan {
        path: path.into(),
        mode: 0o20666,
        major,
        minor,
        uid: 0,
        gid: 0,
    }
}

/// A plan like that of an ordinary container.
fn plan(args: &[&str]) -> ContainerPlan {
    let strings = |list: &[&str]| list.iter().map(|s| s.as_bytes().to_vec()).collect();
    let caps = 0xa804_25fb;
    ContainerPlan {
        version: wharf_plan::PROTOCOL,
        id: "test".to_owned(),
        process: Some(ProcessPlan {
            args: strings(args),
            env: strings(&["PATH=/bin", "HOME=/root"]),
            cwd: b"/".to_vec(),
            capabilities: Some(CapabilitySets {
                bounding: caps,
                effective: caps,
                permitted: caps,
                ..CapabilitySets::default()
            }),
            no_new_privileges: true,
            ..ProcessPlan::default()
        }),
        namespaces: Some(Namespaces {
            pid: Namespace::New.into(),
            network: Namespace::New.into(),
            ipc: Namespace::New.into(),
            uts: Namespace::New.into(),
            cgroup: Namespace::New.into(),
            user: Namespace::Inherit.into(),
        }),
        mounts: vec![
            file_system("/proc", "proc", &[]),
            file_system("/dev", "tmpfs", &["mode=755", "size=65536k"]),
            file_system(
                "/dev/pts",
                "devpts",
                &["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            ),
            file_system("/dev/mqueue", "mqueue", &[]),
            file_system("/sys", "sysfs", &[]),
        ],
        devices: vec![
            char_device("/dev/null", 1, 3),
            char_device("/dev/zero", 1, 5),
            char_device("/dev/tty", 5, 0),
        ],
        links: vec![LinkPlan {
            path: b"/dev/ptmx".to_vec(),
            target: b"pts/ptmx".to_vec(),
        }],
        masked_paths: vec![
            b"/proc/kcore".to_vec(),
            b"/proc/timer_list".to_vec(),
            b"/sys/firmware".to_vec(),
        ],
        readonly_paths: vec![b"/proc/sys".to_vec()],
        hostname: "box".to_owned(),
        loopback_up: true,
        ..ContainerPlan::default()
    }
}

fn process(plan: &mut ContainerPlan) -> &mut ProcessPlan {
    plan.process.as_mut().unwrap()
}

fn fds(rootfs: &Rootfs) -> Fds {
    let mut fds = Fds::new();
    fds.push("rootfs", sources::rootfs(&rootfs.path()).unwrap());
    fds
}

fn exit_status(pidfd: &OwnedFd) -> (Option<i32>, Option<i32>) {
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
    let status = status.unwrap().unwrap();
    (status.exit_status(), status.terminating_signal())
}

/// A made init that is killed and reaped when a test ends, whatever becomes of the test.
struct Running(Pending);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = pidfd_send_signal(&self.0.pidfd, Signal::KILL);
        let id = WaitId::PidFd(self.0.pidfd.as_fd());
        let _reaped = waitid(id, WaitIdOptions::EXITED);
    }
}

struct Outcome {
    output: String,
    code: Option<i32>,
    signal: Option<i32>,
    warnings: Vec<String>,
}

/// Runs a plan to its end; stdout and stderr together.
fn run(plan: &ContainerPlan, fds: Fds) -> Result<Outcome, StepError> {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let stdio = Stdio {
        stdin: None,
        stdout: Some(writer.try_clone().unwrap().into()),
        stderr: Some(writer.into()),
    };
    let mut pending = launch::create(plan, fds, stdio, Park::Socket)?;
    let finish = |pending: &mut Pending| -> Result<Vec<String>, StepError> {
        let Progress::Parked { mut warnings, .. } = pending.wait()? else {
            panic!("an init parks first");
        };
        pending.release()?;
        match pending.wait()? {
            Progress::Executed { warnings: more, .. } => warnings.extend(more),
            Progress::Parked { .. } => panic!("it parks once"),
        }
        Ok(warnings)
    };
    match finish(&mut pending) {
        Err(e) => {
            exit_status(&pending.pidfd);
            Err(e)
        }
        Ok(warnings) => {
            let mut output = String::new();
            reader.read_to_string(&mut output).unwrap();
            let (code, signal) = exit_status(&pending.pidfd);
            Ok(Outcome {
                output,
                code,
                signal,
                warnings,
            })
        }
    }
}

fn shell(script: &str) -> ContainerPlan {
    plan(&["sh", "-c", script])
}

#[test]
fn an_init_is_alone_in_its_namespaces_with_what_the_plan_gives_it() {
    let name = "an_init_is_alone";
    let (true, Some(root)) = (is_root(name), Rootfs::new(name)) else {
        return;
    };
    let plan = shell(
        "echo $$; hostname; ls /; ip -o link | grep -c LOWER_UP; cat /proc/1/comm; ls /dev; \
         grep -E '^(Cap|NoNewPrivs)' /proc/self/status; ls -l /proc/self/fd | wc -l; pwd; umask",
    );
    let outcome = run(&plan, fds(&root)).unwrap();
    println!("{}", outcome.output);
    let lines: Vec<&str> = outcome.output.lines().collect();
    assert_eq!((outcome.code, outcome.signal), (Some(0), None));
    assert_eq!(lines[..2], ["1", "box"]);
    assert!(outcome.output.contains("CapInh:\t0000000000000000"));
    assert!(outcome.output.contains("CapBnd:\t00000000a80425fb"));
    assert!(outcome.output.contains("NoNewPrivs:\t1"));
    assert!(outcome.output.ends_with("/\n0022\n"));
}

#[test]
fn nothing_of_the_makers_mounts_is_left() {
    let name = "nothing_of_the_makers_mounts";
    let (true, Some(root)) = (is_root(name), Rootfs::new(name)) else {
        return;
    };
    let mut plan = shell("cut -d' ' -f5 /proc/self/mountinfo; ls /..");
    plan.masked_paths.clear();
    plan.readonly_paths.clear();
    let outcome = run(&plan, fds(&root)).unwrap();
    let wanted = "/\n/proc\n/dev\n/dev/pts\n/dev/mqueue\n/sys\nbin\n";
    assert!(outcome.output.starts_with(wanted), "{}", outcome.output);
}

#[test]
fn hidden_paths_are_empty_and_readonly_ones_cannot_be_written() {
    let name = "hidden_paths";
    let (true, Some(root)) = (is_root(name), Rootfs::new(name)) else {
        return;
    };
    let mut plan = shell(
        "ls /sys/firmware; wc -c < /proc/timer_list; echo 1 > /proc/sys/vm/swappiness; \
         touch /x; touch /sys/firmware/x; grep -c tmpfs /proc/mounts; stat -c %t:%T /proc/timer_list",
    );
    plan.rootfs_readonly = true;
    let outcome = run(&plan, fds(&root)).unwrap();
    println!("{}", outcome.output);
    assert_eq!(outcome.output.matches("Read-only file system").count(), 3);
    assert!(outcome.output.starts_with("0\n"));
    assert!(outcome.output.ends_with("1:3\n"));
}

#[test]
fn a_missing_program_is_told_as_step_object_and_errno() {
    let name = "a_missing_program";
    let (true, Some(root)) = (is_root(name), Rootfs::new(name)) else {
        return;
    };
    let e = run(&plan(&["no-such-program"]), fds(&root)).err().unwrap();
    assert_eq!(
        (&*e.step, &*e.object, e.errno),
        ("execve", "no-such-program", 2)
    );
    let e = run(&plan(&["/etc/passwd"]), fds(&root)).err().unwrap();
    assert_eq!(
        (&*e.step, &*e.object, e.errno),
        ("execve", "/etc/passwd", 13)
    );
}

#[test]
fn a_failing_mount_names_its_destination() {
    let name = "a_failing_mount";
    let (true, Some(root)) = (is_root(name), Rootfs::new(name)) else {
        return;
    };
    let mut plan = shell("true");
    plan.mounts.push(file_system("/x", "no-such-fs", &[]));
    let e = run(&plan, fds(&root)).err().unwrap();
    assert_eq!(
        (&*e.step, &*e.object, e.errno),
        ("mount", "/x (no-such-fs)", 19)
    );
    plan.mounts.pop();
    plan.mounts
        .push(file_system("/x", "tmpfs", &["colour=green"]));
    let e = run(&plan, fds(&root)).err().unwrap();
    assert_eq!(e.errno, 22);
    assert_eq!(e.object, "/x (tmpfs: Unknown parameter 'colour')");
}

#[test]
fn user_groups_limits_sysctls_and_cwd_are_set() {
    let name = "user_groups";
    let (true, Some(root)) = (is_root(name), Rootfs::new(name)) else {
        return;
    };
    let mut plan = shell(
        "id; pwd; umask; ulimit -n; cat /proc/sys/net/core/somaxconn; stat -c %u:%g .; \
         cat /proc/self/oom_score_adj; grep -E '^Cap(Prm|Eff|Amb)' /proc/self/status; echo x > /dev/stdout",
    );
    plan.links.push(LinkPlan {
        path: b"/dev/stdout".to_vec(),
        target: b"/proc/self/fd/1".to_vec(),
    });
    plan.sysctls = vec![SysctlPlan {
        path: "net/core/somaxconn".to_owned(),
        value: "777".to_owned(),
    }];
    let process = process(&mut plan);
    (process.uid, process.gid, process.groups) = (1000, 1001, vec![5, 7]);
    process.umask = Some(0o077);
    process.cwd = b"/made/for/you".to_vec();
    process.oom_score_adj = Some(999);
    process.rlimits = vec![Rlimit {
        resource: 7,
        soft: 333,
        hard: 444,
    }];
    process.capabilities.as_mut().unwrap().inheritable = 1 << 10;
    process.capabilities.as_mut().unwrap().ambient = 1 << 10;
    let outcome = run(&plan, fds(&root)).unwrap();
    println!("{}", outcome.output);
    for part in [
        "uid=1000 gid=1001 groups=5,7",
        "/made/for/you\n0077\n333\n777\n1000:1001\n999\n",
        "CapEff:\t0000000000000400\nCapAmb:\t0000000000000400",
    ] {
        assert!(outcome.output.contains(part), "{part}");
    }
    assert!(outcome.output.ends_with("x\n"));
}

#[test]
fn what_needs_cap_sys_resource_is_clamped_with_a_warning() {
    let name = "what_needs_cap_sys_resource";
    let (true, Some(root)) = (is_root(name), Rootfs::new(name)) else {
        return;
    };
    let own = wharf_sys::capability::get().unwrap().effective;
    if own & 1 << 24 != 0 {
        println!("{name}: skipped, this process has CAP_SYS_RESOURCE");
        return;
    }
    let mut plan = shell("ulimit -Hn; cat /proc/self/oom_score_adj");
    let process = process(&mut plan);
    process.oom_score_adj = Some(-900);
    let hard = wharf_sys::process::limit(7, None).unwrap().hard;
    process.rlimits = vec![Rlimit {
        resource: 7,
        soft: 100,
        hard: hard + 5,
    }];
    let outcome = run(&plan, fds(&root)).unwrap();
    assert_eq!(outcome.code, Some(0));
    assert!(outcome.output.starts_with(&format!("{hard}\n")));
    assert_eq!(outcome.warnings.len(), 2, "{:?}", outcome.warnings);
    assert!(
        outcome
            .warnings
            .iter()
            .all(|w| w.contains("CAP_SYS_RESOURCE"))
    );
}

#[test]
fn an_exec_joins_everything_and_has_its_own_identity() {
    let name = "an_exec_joins";
    let (true, Some(root)) = (is_root(name), Rootfs::new(name)) else {
        return;
    };
    let plan = plan(&["sleep", "1000"]);
    let pending = launch::create(&plan, fds(&root), Stdio::default(), Park::Socket).unwrap();
    let mut init = Running(pending);
    init.0.wait().unwrap();
    init.0.release().unwrap();
    init.0.wait().unwrap();
    let target = Target {
        pidfd: init.0.pidfd.as_fd(),
        namespaces: plan.namespaces.unwrap(),
    };
    let run = |args: &[&str], terminal: bool| {
        let process = ProcessPlan {
            args: args.iter().map(|s| s.as_bytes().to_vec()).collect(),
            env: vec![b"PATH=/bin".to_vec()],
            cwd: b"/tmp".to_vec(),
            uid: 7,
            terminal,
            ..ProcessPlan::default()
        };
        let (mut reader, writer) = std::io::pipe().unwrap();
        let stdio = Stdio {
            stdout: Some(writer.into()),
            ..Stdio::default()
        };
        let mut exec = launch::exec(target, &process, Fds::new(), stdio).unwrap();
        let done = exec.wait();
        let mut output = String::new();
        if let Ok(Progress::Executed {
            terminal: Some(master),
            ..
        }) = &done
        {
            let mut buffer = [0; 1000];
            // EIO: the last slave was closed.
            while let Ok(n @ 1..) = rustix::io::read(master, &mut buffer) {
                output.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
            }
        } else {
            reader.read_to_string(&mut output).unwrap();
        }
        (done.err(), output, exit_status(&exec.pidfd).0)
    };
    let (e, output, code) = run(
        &["sh", "-c", "hostname; id -u; pwd; ps | wc -l; exit 3"],
        false,
    );
    assert_eq!((e, code), (None, Some(3)));
    assert!(output.starts_with("box\n7\n/tmp\n"), "{output}");
    let (e, output, _) = run(&["tty"], true);
    assert_eq!((e, &*output), (None, "/dev/pts/0\r\n"));
    let (e, ..) = run(&["nothing"], false);
    assert_eq!(
        e.unwrap().to_string(),
        "execve nothing: No such file or directory (os error 2)"
    );
    // The maker's own PID namespace is back in place.
    let own = std::fs::read_link("/proc/thread-self/ns/pid").unwrap();
    let children = std::fs::read_link("/proc/thread-self/ns/pid_for_children").unwrap();
    assert_eq!(own, children);
}

#[test]
fn a_terminal_is_the_containers_own_and_its_console() {
    let name = "a_terminal";
    let (true, Some(root)) = (is_root(name), Rootfs::new(name)) else {
        return;
    };
    let mut plan = shell(
        "tty; stty size; stat -c %t:%T /dev/console; stat -Lc %t:%T /proc/self/fd/0; echo hi > /dev/tty",
    );
    process(&mut plan).terminal = true;
    process(&mut plan).console = Some(wharf_plan::process::ConsoleSize {
        height: 33,
        width: 99,
    });
    let pending = launch::create(&plan, fds(&root), Stdio::default(), Park::Socket).unwrap();
    let mut init = Running(pending);
    let Progress::Parked {
        terminal: Some(master),
        ..
    } = init.0.wait().unwrap()
    else {
        panic!("no terminal");
    };
    init.0.release().unwrap();
    init.0.wait().unwrap();
    let (mut output, mut buffer) = (String::new(), [0; 1000]);
    while let Ok(n @ 1..) = rustix::io::read(&master, &mut buffer) {
        output.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
    }
    assert_eq!(output, "/dev/pts/0\r\n33 99\r\n88:0\r\n88:0\r\nhi\r\n");
}

#[test]
fn a_pod_shares_a_pid_namespace_whose_init_reaps_and_dies_last() {
    let name = "a_pod_shares";
    let (true, Some(root)) = (is_root(name), Rootfs::new(name)) else {
        return;
    };
    let (pid, pidfd) = sandbox_init().unwrap();
    // As a container sees it that forges its sender, or one outside: nothing happens.
    pidfd_send_signal(&pidfd, Signal::TERM).unwrap();
    pidfd_send_signal(&pidfd, Signal::INT).unwrap();
    let open = || OwnedFd::from(std::fs::File::open(format!("/proc/{pid}/ns/pid")).unwrap());
    let mut plan = shell(
        "cat /proc/1/comm; test $$ -gt 1; readlink /proc/1/exe; kill -TERM 1; ls /proc/1/comm",
    );
    plan.namespaces.as_mut().unwrap().pid = Namespace::Pod.into();
    let mut fds = fds(&root);
    fds.push("ns.pid", open());
    let outcome = run(&plan, fds).unwrap();
    // Its program, the host's file, cannot be seen; and a container cannot end its pod.
    assert_eq!(outcome.output, "wharf-sandbox\n/proc/1/comm\n");
    pidfd_send_signal(&pidfd, Signal::KILL).unwrap();
    assert_eq!(exit_status(&pidfd), (None, Some(9)));
}

#[test]
fn a_tracing_container_finds_nothing_of_the_host_in_its_pods_first_process() {
    let name = "a_tracing_container";
    let (true, Some(root)) = (is_root(name), Rootfs::new(name)) else {
        return;
    };
    let trace = 1 << 19; // CAP_SYS_PTRACE
    if wharf_sys::capability::get().unwrap().permitted & trace == 0 {
        println!("{name}: skipped, it needs CAP_SYS_PTRACE");
        return;
    }
    let (pid, pidfd) = sandbox_init().unwrap();
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/pid")).unwrap();
    let mut plan = shell(
        "cd /proc/1/root/ && ls -A . | wc -l
        stat -c %a . ; touch x || echo cannot touch; mkdir proc || echo cannot mkdir
        test -e proc/sys/kernel/core_pattern || echo no sysctl
        test -e sys || echo no sysfs
        cut -d' ' -f5,6 /proc/1/mountinfo
        ls -A /proc/1/cwd/ | wc -l
        grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapAmb|NoNewPrivs|Seccomp):' /proc/1/status",
    );
    plan.namespaces.as_mut().unwrap().pid = Namespace::Pod.into();
    let capabilities = process(&mut plan).capabilities.as_mut().unwrap();
    for set in [
        &mut capabilities.bounding,
        &mut capabilities.effective,
        &mut capabilities.permitted,
    ] {
        *set |= trace;
    }
    let mut fds = fds(&root);
    fds.push("ns.pid", namespace.into());
    let outcome = run(&plan, fds).unwrap();
    pidfd_send_signal(&pidfd, Signal::KILL).unwrap();
    assert_eq!(exit_status(&pidfd), (None, Some(9)));
    let nothing = "0000000000000000";
    assert_eq!(
        outcome.output,
        format!(
            "0\n555\ntouch: x: Read-only file system\ncannot touch\n\
            mkdir: can't create directory 'proc': Read-only file system\ncannot mkdir\n\
            no sysctl\nno sysfs\n/ ro,nosuid,nodev,noexec,relatime\n0\n\
            Uid:\t65534\t65534\t65534\t65534\nGid:\t65534\t65534\t65534\t65534\nGroups:\t \n\
            CapInh:\t{nothing}\nCapPrm:\t{nothing}\nCapEff:\t{nothing}\nCapAmb:\t{nothing}\n\
            NoNewPrivs:\t1\nSeccomp:\t2\n"
        )
    );
}

#[test]
fn a_symbolic_link_in_the_image_leads_no_mount_out_of_it() {
    let name = "a_symbolic_link";
    let (true, Some(root)) = (is_root(name), Rootfs::new(name)) else {
        return;
    };
    let outside = root.beside().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, root.path().join("link")).unwrap();
    let inside = root.path().join(outside.strip_prefix("/").unwrap());
    std::fs::create_dir_all(&inside).unwrap();
    let mut plan = shell("touch /link/file; grep -c /outside /proc/mounts");
    plan.mounts.push(file_system("/link", "tmpfs", &[]));
    let outcome = run(&plan, fds(&root)).unwrap();
    assert_eq!(outcome.output, "1\n");
    assert!(!outside.join("file").exists());
    // /proc must be a real directory: labels and limits are written there (CVE-2019-19921).
    std::fs::remove_dir(root.path().join("proc")).unwrap();
    std::os::unix::fs::symlink("/tmp", root.path().join("proc")).unwrap();
    let e = run(&shell("true"), fds(&root)).err().unwrap();
    assert_eq!((&*e.step, &*e.object, e.errno), ("mount", "/proc", 40));
}

#[test]
fn no_descriptor_of_the_maker_reaches_the_container() {
    let name = "no_descriptor";
    let (true, Some(root)) = (is_root(name), Rootfs::new(name)) else {
        return;
    };
    // One that is not closed by execve, as a careless library would open it.
    let leaky = rustix::io::dup(std::fs::File::open("/").unwrap()).unwrap();
    rustix::io::fcntl_setfd(&leaky, rustix::io::FdFlags::empty()).unwrap();
    let outcome = run(&plan(&["ls", "/proc/self/fd"]), fds(&root)).unwrap();
    // 3 is ls's own.
    assert_eq!(outcome.output, "0\n1\n2\n3\n");
}

#[test]
fn an_init_whose_maker_lets_it_down_ends() {
    let name = "an_init_whose_maker";
    let (true, Some(root)) = (is_root(name), Rootfs::new(name)) else {
        return;
    };
    let stdio = Stdio::default();
    let mut pending = launch::create(&shell("true"), fds(&root), stdio, Park::Socket).unwrap();
    pending.wait().unwrap();
    let pidfd = pending.pidfd.try_clone().unwrap();
    drop(pending);
    assert_eq!(exit_status(&pidfd), (Some(1), None));
}

#[test]
fn an_init_that_is_killed_before_it_is_ready_is_an_error() {
    let name = "an_init_that_is_killed";
    let (true, Some(root)) = (is_root(name), Rootfs::new(name)) else {
        return;
    };
    let stdio = Stdio::default();
    let mut pending = launch::create(&shell("true"), fds(&root), stdio, Park::Socket).unwrap();
    let mut seen = Ok(None);
    // Whether it is killed on its way or parked already: never does it count as executed.
    pidfd_send_signal(&pending.pidfd, Signal::KILL).unwrap();
    exit_status(&pending.pidfd);
    while matches!(seen, Ok(None | Some(Progress::Parked { .. }))) {
        seen = pending.poll();
        if matches!(seen, Ok(Some(Progress::Parked { .. }))) {
            assert_eq!(pending.release().unwrap_err().errno, 32);
            return;
        }
    }
    let e = seen.unwrap_err();
    assert!(e.to_string().contains("ended before it was ready"), "{e}");
}

#[test]
fn a_capability_that_the_maker_lacks_is_left_out_with_a_warning() {
    let name = "a_capability";
    let (true, Some(root)) = (is_root(name), Rootfs::new(name)) else {
        return;
    };
    let own = wharf_sys::capability::get().unwrap().permitted;
    let Some(missing) = (0..41).find(|n| own & 1 << n == 0) else {
        println!("{name}: skipped, this process has all capabilities");
        return;
    };
    let mut plan = shell("grep ^CapEff /proc/self/status");
    let caps = process(&mut plan).capabilities.as_mut().unwrap();
    (caps.effective, caps.permitted) = (1 | 1 << missing, 1 | 1 << missing);
    caps.bounding = caps.permitted;
    let outcome = run(&plan, fds(&root)).unwrap();
    assert_eq!(outcome.code, Some(0));
    assert!(
        outcome.warnings[0].contains("left out"),
        "{:?}",
        outcome.warnings
    );
    assert!(outcome.output.contains("CapEff:\t0000000000000001"));
}

#[test]
fn init_and_exec_are_born_in_their_cgroup() {
    let name = "born_in_cgroup";
    let (true, Some(root)) = (is_root(name), Rootfs::new(name)) else {
        return;
    };
    let tree = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .map(Path::new)
        .into_iter()
        .find(|dir| dir.join("cgroup.controllers").exists());
    let Some(tree) = tree else {
        println!("{name}: skipped, no cgroup2 here");
        return;
    };
    let cgroup = Cgroup(tree.join(format!("wharf-test-launch-{}", std::process::id())));
    std::fs::create_dir_all(cgroup.0.join("leaf")).unwrap();
    let directory = |path: &Path| OwnedFd::from(std::fs::File::open(path).unwrap());
    let mut plan = plan(&["sleep", "1000"]);
    let mut fds = fds(&root);
    fds.push("cgroup2", directory(&cgroup.0));
    let pending = launch::create(&plan, fds, Stdio::default(), Park::Socket).unwrap();
    let mut init = Running(pending);
    init.0.wait().unwrap();
    init.0.release().unwrap();
    init.0.wait().unwrap();
    let target = Target {
        pidfd: init.0.pidfd.as_fd(),
        namespaces: plan.namespaces.unwrap(),
    };
    process(&mut plan).args = ["grep", "^0:", "/proc/self/cgroup"]
        .map(|s| s.as_bytes().to_vec())
        .to_vec();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let stdio = Stdio {
        stdout: Some(writer.into()),
        ..Stdio::default()
    };
    let mut fds = Fds::new();
    fds.push("cgroup2", directory(&cgroup.0.join("leaf")));
    let mut exec = launch::exec(target, process(&mut plan), fds, stdio).unwrap();
    exec.wait().unwrap();
    let mut output = String::new();
    reader.read_to_string(&mut output).unwrap();
    assert_eq!(exit_status(&exec.pidfd).0, Some(0));
    // The container's cgroup namespace begins at init's cgroup.
    assert_eq!(output, "0::/leaf\n");
}

/// A cgroup that is removed when a test ends.
struct Cgroup(PathBuf);

impl Drop for Cgroup {
    fn drop(&mut self) {
        for dir in [self.0.join("leaf"), self.0.clone()] {
            // A test that failed may have left a process in it for a moment.
            while let Err(e) = std::fs::remove_dir(&dir) {
                if e.raw_os_error() != Some(16) {
                    break;
                }
            }
        }
    }
}
