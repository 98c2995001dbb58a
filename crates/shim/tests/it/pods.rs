//! A pod's namespaces, and the shim itself.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use wharf_plan::Fds;
use wharf_plan::container::{MountPlan, Namespace, Namespaces, SysctlPlan};
use wharf_plan::message::{Body, FailureKind, Shutdown};

use crate::rig::{Pod, Zygote, create, plan, pod, readable, root};

const IDLE: &str = "while :; do sleep 1000; done";

fn link(pid: impl std::fmt::Display, namespace: &str) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
    link.into_os_string().into_string().unwrap()
}

#[test]
fn a_pod_has_the_namespaces_that_were_asked_for_and_gives_their_descriptors() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut own = pod("own");
    own.sysctls = vec![SysctlPlan {
        path: "net/core/somaxconn".to_owned(),
        value: "77".to_owned(),
    }];
    let mut own = zygote.pod(own);
    assert_eq!(own.welcome.failure, None);
    for (namespace, file) in [
        ("ns.net", "net"),
        ("ns.ipc", "ipc"),
        ("ns.uts", "uts"),
        ("ns.mnt", "mnt"),
    ] {
        assert_ne!(link(own.pid, file), link("self", file));
        let fd = own.namespaces.get(namespace).unwrap();
        let held = format!("self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        let held = fs::read_link(format!("/proc/{held}")).unwrap();
        assert_eq!(held.to_str().unwrap(), link(own.pid, file));
    }
    assert_eq!(link(own.pid, "pid"), link("self", "pid"));
    assert!(own.namespaces.get("netlink").is_some() && own.namespaces.get("ns.pid").is_none());
    own.run("c", "hostname; cat /proc/sys/net/core/somaxconn; ifconfig lo | grep -q 'UP.*RUNNING' && echo lo up");
    own.client.exited("c", "");
    assert_eq!(
        own.log("c"),
        ["stdout F pod-under-test", "stdout F 77", "stdout F lo up"]
    );

    let mut host = pod("host");
    host.namespaces = Some(Namespaces::default());
    host.hostname = String::new();
    let host = zygote.pod(host);
    for file in ["net", "ipc", "uts", "pid"] {
        assert_eq!(link(host.pid, file), link("self", file));
    }
    assert!(host.namespaces.get("netlink").is_none() && host.namespaces.get("ns.net").is_none());
}

#[test]
fn a_shim_sees_nothing_of_the_hosts_mounts() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let pod = zygote.pod(pod("p"));
    let mounts = |pid: u32| -> Vec<String> {
        let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        let places = text.lines().map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let writable = if fields[5].starts_with("ro") {
                "ro"
            } else {
                "rw"
            };
            format!("{} {writable} {}", fields[4], fields[fields.len() - 3])
        });
        places.collect()
    };
    let common = ["/ ro tmpfs", "/proc rw proc", "/sys rw sysfs"];
    assert_eq!(mounts(zygote.pid), common);
    assert_eq!(
        mounts(pod.pid),
        [&common[..], &["/dev/shm rw tmpfs"]].concat()
    );
    let root = format!("/proc/{}/root", pod.pid);
    assert_eq!(fs::read_dir(format!("{root}/dev")).unwrap().count(), 2);
    assert_eq!(fs::read(format!("{root}/dev/null")).unwrap(), b"");
    // A second pod's /dev/shm is not seen by the first, and ends with its shim.
    let comm = fs::read_to_string(format!("/proc/{}/comm", pod.pid)).unwrap();
    assert_eq!(comm, "wharf-shim\n");
    let title = fs::read_to_string(format!("/proc/{}/cmdline", pod.pid)).unwrap();
    assert_eq!(title.trim_end_matches('\0'), "wharf-shim p");
    let comm = fs::read_to_string(format!("/proc/{}/comm", zygote.pid)).unwrap();
    assert_eq!(comm, "wharf-zygote\n");
}

fn shared_pid(zygote: &Zygote) -> Pod<'_> {
    let mut request = pod("p");
    request.namespaces.as_mut().unwrap().pid = Namespace::New.into();
    zygote.pod(request)
}

fn run_in_shared(pod: &mut Pod<'_>, id: &str, script: &str) -> u32 {
    let mut shared = plan(id, script);
    shared.namespaces.as_mut().unwrap().pid = Namespace::Pod.into();
    let log = pod.log_file(id);
    let (pid, _) = pod.create(create(shared), Some(log)).unwrap();
    pod.start(id).unwrap();
    pid
}

#[test]
fn containers_can_share_a_pid_namespace_whose_end_is_told() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = shared_pid(&zygote);
    let init = pod.welcome.sandbox_pid;
    assert!(pod.namespaces.get("ns.pid").is_some());
    let a = run_in_shared(&mut pod, "a", IDLE);
    assert_eq!(link(a, "pid"), link(init, "pid"));
    run_in_shared(
        &mut pod,
        "b",
        "cat /proc/*/comm | sort | uniq -c | tr -s ' '; echo $$",
    );
    pod.client.exited("b", "");
    let log = pod.log("b");
    assert!(log.iter().all(|line| line != "stdout F 1"), "{log:?}");
    let inside: Vec<&str> = log.iter().map(|line| &line["stdout F ".len()..]).collect();
    assert!(
        inside
            .iter()
            .any(|line| line.ends_with("busybox") || line.ends_with("sh")),
        "{log:?}"
    );
    // Orphans inside go to the shared init, which reaps them: an exec leaves one.
    let (_, exited) = pod.exec("a", "e", "(sleep 0 &); exit 3");
    assert_eq!(exited.code, 3);
    // Its end takes the containers along.
    let init = rustix::process::Pid::from_raw(i32::try_from(init).unwrap()).unwrap();
    rustix::process::kill_process(init, rustix::process::Signal::KILL).unwrap();
    assert_eq!(pod.client.exited("a", "").signal, 9);
    pod.client
        .event(|event| matches!(event, Body::SandboxEnded(_)).then_some(()));
    let mut late = plan("late", "true");
    late.namespaces.as_mut().unwrap().pid = Namespace::Pod.into();
    let failure = pod.create(create(late), None).unwrap_err();
    assert_eq!(failure.kind, i32::from(FailureKind::Conflict));
}

#[test]
fn containers_of_a_pod_share_its_shm() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    let with_shm = |id: &str, script: &str| {
        let mut plan = plan(id, script);
        plan.mounts.push(MountPlan {
            destination: b"/dev/shm".to_vec(),
            fs_type: "wharf.shm".to_owned(),
            ..MountPlan::default()
        });
        plan
    };
    for (id, script) in [
        ("writer", "echo shared > /dev/shm/x"),
        (
            "reader",
            "cat /dev/shm/x; df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2",
        ),
    ] {
        let log = pod.log_file(id);
        pod.create(create(with_shm(id, script)), Some(log)).unwrap();
        pod.start(id).unwrap();
        assert_eq!(pod.client.exited(id, "").code, 0, "{:?}", pod.log(id));
    }
    assert_eq!(pod.log("reader"), ["stdout F shared", "stdout F 65536"]);
}

#[test]
fn a_pod_that_cannot_be_made_says_why_and_is_gone() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut bad = pod("p");
    bad.sysctls = vec![SysctlPlan {
        path: "net/core/no-such-parameter".to_owned(),
        value: "1".to_owned(),
    }];
    let pod = zygote.pod(bad);
    let failure = pod.welcome.failure.clone().unwrap();
    assert_eq!((failure.step.as_str(), failure.errno), ("sysctl", 2));
    assert_eq!(failure.object, "net/core/no-such-parameter");
    assert!(readable(&pod.pidfd));
}

#[test]
fn shutdown_kills_what_is_left() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = shared_pid(&zygote);
    let (a, b) = (run_in_shared(&mut pod, "a", IDLE), pod.run("b", IDLE));
    pod.client.ask(Body::Shutdown(Shutdown {})).unwrap();
    assert!(readable(&pod.pidfd));
    for pid in [a, b, pod.welcome.sandbox_pid, pod.pid] {
        // The zygote reaps the shim in its own time; a zombie has no memory left.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        assert!(!status.contains("VmRSS"), "{status}");
    }
}

#[test]
fn a_shutdown_that_leaves_a_process_says_which() {
    let freezer = Path::new("/sys/fs/cgroup/freezer");
    if !root() || !freezer.join("cgroup.procs").exists() {
        println!("skipped: needs the freezer of cgroup v1, under which SIGKILL has to wait");
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    let pid = pod.run("stays", IDLE);
    pod.run("goes", IDLE);
    let place = freezer.join(format!("wharf-test-frozen-{}", std::process::id()));
    let frozen = Cgroups(vec![place.clone()]);
    fs::create_dir(&place).unwrap();
    fs::write(place.join("cgroup.procs"), pid.to_string()).unwrap();
    fs::write(place.join("freezer.state"), "FROZEN").unwrap();
    let asked = pod.client.post(Body::Shutdown(Shutdown {}), &Fds::new());
    assert_eq!(pod.client.exited("goes", "").signal, 9);
    // It is given time until then: more than a client of these tests waits for one message.
    readable(pod.client.channel());
    let failure = pod.client.reply(asked).unwrap_err();
    assert_eq!(failure.step, "shutdown");
    assert!(failure.object.contains("stays"), "{failure:?}");
    assert!(!failure.object.contains("goes"), "{failure:?}");
    assert!(readable(&pod.pidfd));
    drop(frozen);
}

#[test]
fn pods_outlive_their_zygote() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    zygote.client().ask(Body::Shutdown(Shutdown {})).unwrap();
    pod.run("c", "exit 12");
    assert_eq!(pod.client.exited("c", "").code, 12);
}

/// Removes what it names when the test ends, however.
struct Cgroups(Vec<PathBuf>);

impl Drop for Cgroups {
    fn drop(&mut self) {
        for path in &self.0 {
            // Where there is no such file, nothing was frozen.
            let _none = fs::write(path.join("freezer.state"), "THAWED");
            // EBUSY while the last process is on its way out.
            let begin = Instant::now();
            while fs::remove_dir(path).is_err() && begin.elapsed().as_secs() < 5 {}
        }
    }
}

#[test]
fn zygote_and_shims_live_in_the_cgroups_that_were_handed_over() {
    if !root() {
        return;
    }
    let name = format!("wharf-test-shim-{}", std::process::id());
    let hierarchies = fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .map(|entry| entry.unwrap().path());
    // cpuset wants to be filled in first; the others take processes at once.
    let places = hierarchies
        .filter(|path| path.join("cgroup.procs").exists() && !path.ends_with("cpuset"))
        .map(|path| path.join(&name));
    let cgroups = Cgroups(places.collect());
    let mut procs: Vec<OwnedFd> = Vec::new();
    for path in &cgroups.0 {
        fs::create_dir(path).unwrap();
        let file = File::options()
            .write(true)
            .open(path.join("cgroup.procs"))
            .unwrap();
        procs.push(file.into());
    }
    {
        let zygote = Zygote::start_in(&procs);
        let mut pod = zygote.pod(pod("p"));
        let pid = pod.run("c", IDLE);
        for pid in [zygote.pid, pod.pid, pid] {
            let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            let ours = text
                .lines()
                .filter(|line| line.ends_with(&format!("/{name}")))
                .count();
            assert_eq!(ours, cgroups.0.len(), "{text}");
        }
        // Nothing else that was handed over is still open.
        let files = fs::read_dir(format!("/proc/{}/fd", zygote.pid)).unwrap();
        let files = files.map(|file| fs::read_link(file.unwrap().path()).unwrap());
        let files: Vec<PathBuf> = files.collect();
        let gone = |file: &PathBuf| !file.ends_with("cgroup.procs") && !file.ends_with("version");
        assert!(files.iter().all(gone), "{files:?}");
    }
}
