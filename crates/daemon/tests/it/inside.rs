//! What a process in a container sees.

use std::fs;

use tonic::Code;
use wharf_api::v1::{
    Capability, Device, DnsConfig, Int64Value, KeyValue, NamespaceMode, SecurityProfile,
    security_profile::ProfileType,
};

use crate::scene::{
    Scene, idle, linux, pod_linux, pod_security, refused, security, shell, value, with,
};

fn var(key: &str, value: &[u8]) -> KeyValue {
    let (key, value) = (key.into(), value.to_vec());
    KeyValue { key, value }
}

#[test]
fn environment_directory_and_host_name_are_those_asked_for() {
    let Some(scene) = Scene::begin("environment_directory_and_host_name") else {
        return;
    };
    let pod = scene.pod_with("seen", |p| {
        p.hostname = "host-of-pod".into();
        p.dns_config = Some(DnsConfig {
            servers: vec!["192.0.2.1".into(), "2001:db8::1".into()],
            searches: vec!["a.test".into(), "b.test".into()],
            options: vec!["ndots:5".into()],
        });
    });
    let config = with(
        shell(
            "c",
            "echo cwd=$PWD; echo home=$HOME; echo path=$PATH; echo name=$HOSTNAME/$(hostname); \
             echo umask=$(umask); printf 'raw=%s\\n' \"$RAW\"; echo empty=[$EMPTY]; \
             echo ours=$OURS; cat /etc/resolv.conf; echo file=$(cat /etc/hostname); \
             grep host-of-pod /etc/hosts; echo cgroup=$(cut -d: -f3 /proc/self/cgroup | sort -u)",
        ),
        |c| {
            c.working_dir = "/made/on/the/spot".into();
            c.envs = vec![
                var("RAW", b"caf\xe9 = \"x\"\0"),
                var("EMPTY", b""),
                var("OURS", b"first"),
                var("OURS", b"last"),
            ];
        },
    );
    let id = pod.run(&config);
    let status = scene.exit_of(&id);
    let log = fs::read(&status.log_path).unwrap();
    let line = b"raw=caf\xe9 = \"x\"\n";
    let raw = log.windows(line.len()).any(|w| w == line);
    assert!(
        raw,
        "bytes that are no UTF-8 arrive: {}",
        String::from_utf8_lossy(&log)
    );
    let said = crate::scene::said(&String::from_utf8_lossy(&log));
    for (key, expected) in [
        ("cwd", "/made/on/the/spot"),
        ("home", "/root"),
        (
            "path",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ),
        ("name", "host-of-pod/host-of-pod"),
        ("umask", "0022"),
        ("empty", "[]"),
        ("ours", "last"),
        ("file", "host-of-pod"),
        ("cgroup", "/"),
    ] {
        assert_eq!(value(&said, key), expected, "{key}");
    }
    let resolv =
        "search a.test b.test\nnameserver 192.0.2.1\nnameserver 2001:db8::1\noptions ndots:5\n";
    assert!(said.contains(resolv), "{said}");
    pod.end();
    let pod = scene.pod("plain");
    let said = pod.script("plain", "cat /etc/resolv.conf");
    let host = fs::read_to_string("/etc/resolv.conf").unwrap();
    assert_eq!(said, host, "without a configuration as on the host");
    pod.end();
}

/// Numbers of /proc/PID/status (proc(5)); the default set is what images expect everywhere.
#[test]
fn capabilities_are_the_defaults_with_what_was_added_and_dropped() {
    const DEFAULT: u64 = 0xa804_25fb;
    const NET_ADMIN: u64 = 1 << 12;
    const CHOWN: u64 = 1;
    const KILL: u64 = 1 << 5;
    let Some(scene) = Scene::begin("capabilities_are_the_defaults") else {
        return;
    };
    let pod = scene.pod_with("caps", |p| pod_security(p).privileged = true);
    let words = |list: &[&str]| list.iter().map(|w| String::from(*w)).collect::<Vec<_>>();
    let caps = |name: &str, add: &[&str], drop: &[&str], user: i64, privileged: bool| {
        let config = with(shell(name, "grep Cap /proc/self/status"), |c| {
            let security = security(c);
            security.privileged = privileged;
            security.run_as_user = Some(Int64Value { value: user });
            security.capabilities = Some(Capability {
                add_capabilities: words(add),
                drop_capabilities: words(drop),
                ..Capability::default()
            });
        });
        let said = pod.finish(&config).1;
        let read = |key: &str| {
            let line = said
                .lines()
                .find_map(|l| l.strip_prefix(key))
                .unwrap_or_else(|| panic!("{said}"));
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        [
            read("CapEff:"),
            read("CapPrm:"),
            read("CapBnd:"),
            read("CapInh:"),
            read("CapAmb:"),
        ]
    };
    let root = |set| [set, set, set, 0, 0];
    assert_eq!(caps("default", &[], &[], 0, false), root(DEFAULT));
    let changed = (DEFAULT | NET_ADMIN) & !CHOWN;
    assert_eq!(
        caps("changed", &["net_admin"], &["CAP_CHOWN"], 0, false),
        root(changed)
    );
    assert_eq!(caps("none", &[], &["ALL"], 0, false), root(0));
    assert_eq!(caps("one", &["KILL"], &["all"], 0, false), root(KILL));
    assert_eq!(caps("user", &[], &[], 1000, false), [0, 0, DEFAULT, 0, 0]);
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|l| l.strip_prefix("CapBnd:")).unwrap();
    let own = u64::from_str_radix(own.trim(), 16).unwrap();
    assert_eq!(caps("all", &[], &[], 0, true), root(own));
    pod.end();
}

#[test]
fn system_calls_are_filtered_as_the_profile_says() {
    let Some(scene) = Scene::begin("system_calls_are_filtered") else {
        return;
    };
    let pod = scene.pod_with("filter", |p| pod_security(p).privileged = true);
    let profile = |kind: ProfileType, path: &str| {
        let (profile_type, localhost_ref) = (kind.into(), path.into());
        Some(SecurityProfile {
            profile_type,
            localhost_ref,
        })
    };
    let own = scene.node.dir().join("profile.json");
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["sethostname"],"action":"SCMP_ACT_ERRNO","errnoRet":62}]}"#;
    fs::write(&own, text).unwrap();
    let own = own.display().to_string();
    let script = "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status | tr -d '\\t' | tr '\\n' ' '; hostname x";
    let run = |name: &str, seccomp, nnp, privileged| {
        pod.finish(&with(shell(name, script), |c| {
            let security = security(c);
            security.seccomp = seccomp;
            security.no_new_privs = nnp;
            security.privileged = privileged;
            let caps = security.capabilities.get_or_insert_default();
            caps.add_capabilities = vec!["SYS_ADMIN".into()];
        }))
        .1
    };
    let allowed = run("absent", None, false, false);
    assert_eq!(
        allowed, "NoNewPrivs:0 Seccomp:0 ",
        "no profile asked for is none"
    );
    let said = run(
        "unconfined",
        profile(ProfileType::Unconfined, ""),
        true,
        false,
    );
    assert_eq!(said, "NoNewPrivs:1 Seccomp:0 ");
    let said = run(
        "default",
        profile(ProfileType::RuntimeDefault, ""),
        false,
        false,
    );
    assert_eq!(
        said, "NoNewPrivs:0 Seccomp:2 ",
        "with CAP_SYS_ADMIN the default profile allows it"
    );
    let said = run("own", profile(ProfileType::Localhost, &own), true, false);
    assert!(said.contains("NoNewPrivs:1 Seccomp:2 "), "{said}");
    assert!(
        said.contains("Timer expired"),
        "ETIME of the profile: {said}"
    );
    let said = run(
        "privileged",
        profile(ProfileType::RuntimeDefault, ""),
        false,
        true,
    );
    assert_eq!(
        said, "NoNewPrivs:0 Seccomp:0 ",
        "the privileged are not filtered"
    );
    pod.end();
}

#[test]
fn masked_and_read_only_paths_are_exactly_those_listed() {
    let Some(scene) = Scene::begin("masked_and_read_only_paths") else {
        return;
    };
    let pod = scene.pod("masks");
    let script = "echo keys=$(wc -c < /proc/keys); echo firmware=$(ls /sys/firmware | wc -l); \
        echo own=$(cat /etc/passwd | wc -c); \
        (echo x > /proc/sys/kernel/domainname) 2>&1 && echo written; \
        (echo x > /sys/kernel/x) 2>&1; \
        (: >> /proc/sys/kernel/domainname) && echo open";
    let said = pod.script("default", script);
    assert_eq!(
        (value(&said, "keys"), value(&said, "firmware")),
        ("0", "0"),
        "{said}"
    );
    assert!(
        said.contains("Read-only file system") && !said.contains("written"),
        "{said}"
    );
    let config = with(shell("none", script), |c| {
        let security = security(c);
        security.masked_paths = vec!["/etc/passwd".into(), "/nosuch".into()];
        security.readonly_paths.clear();
    });
    let said = pod.finish(&config).1;
    assert_eq!(
        value(&said, "own"),
        "0",
        "what was listed and nothing else: {said}"
    );
    assert_ne!(value(&said, "keys"), "0", "{said}");
    assert!(
        said.contains("open"),
        "/proc/sys is not protected where nothing is listed: {said}"
    );
    pod.end();
}

#[test]
fn a_read_only_root_leaves_the_writable_places_writable() {
    let Some(scene) = Scene::begin("a_read_only_root") else {
        return;
    };
    let pod = scene.pod("ro");
    let config = with(
        shell(
            "c",
            "for f in /x /etc/hosts /tmp/x /dev/shm/x /dev/x; do (: >> $f) 2>/dev/null && echo $f; done",
        ),
        |c| security(c).readonly_rootfs = true,
    );
    assert_eq!(pod.finish(&config).1, "/dev/shm/x\n/dev/x\n");
    assert!(
        pod.script("rw", "touch /x /etc/x && echo fine")
            .contains("fine")
    );
    pod.end();
}

#[test]
fn devices_are_the_default_ones_and_those_asked_for() {
    let Some(scene) = Scene::begin("devices_are_the_default_ones") else {
        return;
    };
    let pod = scene.pod("devices");
    let script = "echo list=$(cd /dev; ls -d *); echo asked=$(stat -c '%F %t:%T' /dev/dir/own 2>&1); \
        mknod /tmp/mem c 1 1; (head -c 1 /tmp/mem) 2>&1; \
        head -c 3 /dev/zero | wc -c; echo x > /dev/null && echo x > /dev/dir/own && echo writable; \
        (head -c 1 /dev/dir/own) 2>&1; ls -l /dev/fd /dev/ptmx | sed 's/.* -> //'";
    let config = with(shell("c", script), |c| {
        c.devices = vec![Device {
            host_path: "/dev/null".into(),
            container_path: "/dev/dir/own".into(),
            permissions: "rwm".into(),
        }];
    });
    let said = pod.finish(&config).1;
    let list: Vec<&str> = value(&said, "list").split(' ').collect();
    for name in [
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
        "stdout", "tty", "urandom", "zero", "dir",
    ] {
        assert!(list.contains(&name), "{name} in {list:?}");
    }
    assert!(
        !list
            .iter()
            .any(|n| n.starts_with("sd") || *n == "kmsg" || *n == "mem"),
        "{list:?}"
    );
    assert_eq!(value(&said, "asked"), "character special file 1:3");
    assert!(said.contains("/tmp/mem: Operation not permitted"), "{said}");
    assert!(said.contains("writable"), "{said}");
    pod.end();
}

#[test]
fn containers_of_a_pod_share_memory_network_and_names_and_no_processes() {
    let Some(scene) = Scene::begin("containers_of_a_pod_share") else {
        return;
    };
    let pod = scene.pod("together");
    let first = pod.run(&shell(
        "first",
        "echo word > /dev/shm/word; nc -l -p 4000 -e echo from-the-first & sleep 1000",
    ));
    let place = "for n in net ipc uts pid mnt; do echo $n=$(readlink /proc/self/ns/$n); done";
    let first_ns = scene.cri().exec(&first, &["sh", "-c", place], 10).unwrap();
    let first_ns = String::from_utf8(first_ns.stdout).unwrap();
    let script = format!(
        "{place}; until cat /dev/shm/word; do sleep 0.01; done; \
         until echo | nc 127.0.0.1 4000; do sleep 0.05; done; echo self=$$; \
         echo seen=$(ls /proc | grep -c '^[0-9]*$'); ip -o addr | sed 's/ \\+/ /g'"
    );
    let said = pod.script("second", &script);
    for shared in ["net", "ipc", "uts"] {
        assert_eq!(value(&said, shared), value(&first_ns, shared), "{shared}");
    }
    for own in ["pid", "mnt"] {
        assert_ne!(value(&said, own), value(&first_ns, own), "{own}");
    }
    assert_eq!(value(&said, "self"), "1");
    assert!(
        said.contains("word\n") && said.contains("from-the-first\n"),
        "{said}"
    );
    assert!(
        said.contains("lo inet 127.0.0.1/8"),
        "loopback is up: {said}"
    );
    assert!(!said.contains("eth"), "{said}");
    let other = scene.pod("apart");
    let said = other.script("c", &format!("{place}; ls /dev/shm | wc -l"));
    for own in ["net", "ipc", "uts"] {
        assert_ne!(value(&said, own), value(&first_ns, own), "{own}");
    }
    assert!(said.ends_with("0\n"), "{said}");
    pod.end();
    other.end();
    scene.leaves_nothing();
}

#[test]
fn a_shared_pid_namespace_shows_the_pods_processes_and_reaps_orphans() {
    let Some(scene) = Scene::begin("a_shared_pid_namespace") else {
        return;
    };
    let share = |p: NamespaceMode| {
        move |c: &mut wharf_api::v1::ContainerConfig| {
            security(c).namespace_options.get_or_insert_default().pid = p.into();
        }
    };
    let pod = scene.pod_with("shared", |p| {
        pod_security(p)
            .namespace_options
            .get_or_insert_default()
            .pid = NamespaceMode::Pod.into();
    });
    let first = pod.run(&with(
        shell("first", "sleep 1111"),
        share(NamespaceMode::Pod),
    ));
    let said = pod
        .finish(&with(
            shell(
                "second",
                "until ps | grep -v grep | grep -q 'sleep 1111'; do sleep 0.01; done; echo sees; echo self=$$; \
                 (sleep 0.01 & ) ; sleep 0.1; \
                 echo zombies=$(grep -l '^State:.Z' /proc/[0-9]*/status | wc -l)",
            ),
            share(NamespaceMode::Pod),
        ))
        .1;
    assert!(
        said.contains("sees") && value(&said, "self") != "1",
        "{said}"
    );
    assert_eq!(value(&said, "zombies"), "0", "orphans are reaped: {said}");
    // The first's end leaves the pod's PID namespace alone.
    scene.cri().stop(&first, 0).unwrap();
    assert!(
        pod.finish(&with(
            shell("third", "echo lives"),
            share(NamespaceMode::Pod)
        ))
        .1
        .contains("lives")
    );
    pod.end();

    let pod = scene.pod("target");
    let target = pod.run(&idle("target"));
    let debug = with(shell("debug", "ps"), |c| {
        let options = security(c).namespace_options.get_or_insert_default();
        options.pid = NamespaceMode::Target.into();
        options.target_id.clone_from(&target);
    });
    let said = pod.finish(&debug).1;
    assert!(
        said.contains("sleep 1000"),
        "a debugging container sees its target: {said}"
    );
    pod.end();
    scene.leaves_nothing();
}

#[test]
fn namespaces_of_the_host_are_the_daemons() {
    let Some(scene) = Scene::begin("namespaces_of_the_host") else {
        return;
    };
    let place = "for n in net ipc pid uts; do echo $n=$(readlink /proc/self/ns/$n); done";
    let node = |p: &mut wharf_api::v1::NamespaceOption| {
        p.network = NamespaceMode::Node.into();
        p.pid = NamespaceMode::Node.into();
        p.ipc = NamespaceMode::Node.into();
    };
    let pod = scene.pod_with("host", |p| {
        p.hostname.clear();
        node(pod_security(p).namespace_options.get_or_insert_default());
    });
    let config = with(shell("c", place), |c| {
        node(security(c).namespace_options.get_or_insert_default());
    });
    let said = pod.finish(&config).1;
    for name in ["net", "ipc", "pid", "uts"] {
        let own = fs::read_link(format!("/proc/{}/ns/{name}", scene.node.pid())).unwrap();
        assert_eq!(value(&said, name), own.to_string_lossy(), "{name}");
    }
    let options = pod
        .status()
        .linux
        .unwrap()
        .namespaces
        .unwrap()
        .options
        .unwrap();
    assert_eq!(options.network(), NamespaceMode::Node);
    pod.end();
    scene.leaves_nothing();
}

#[test]
fn sysctls_of_the_pod_are_set_and_those_of_the_host_refused() {
    let Some(scene) = Scene::begin("sysctls_of_the_pod") else {
        return;
    };
    let sysctl = |key: &str, value: &str| {
        let entry = [(String::from(key), String::from(value))];
        move |p: &mut wharf_api::v1::PodSandboxConfig| pod_linux(p).sysctls = entry.into()
    };
    let pod = scene.pod_with("sysctl", |p| {
        pod_linux(p).sysctls = [
            ("kernel.shm_rmid_forced", "1"),
            ("net.ipv4.ip_unprivileged_port_start", "7"),
            ("net.ipv4.ping_group_range", "0 100"),
        ]
        .map(|(k, v)| (k.into(), v.into()))
        .into();
    });
    let said = pod.script(
        "c",
        "cd /proc/sys; cat kernel/shm_rmid_forced net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range",
    );
    assert_eq!(said, "1\n7\n0\t100\n");
    pod.end();
    for (key, value, words) in [
        ("kernel.panic", "1", &["panic"][..]),
        ("kernel/../vm/swappiness", "1", &["swappiness"]),
        ("net.nosuch", "1", &["nosuch"]),
        (
            "net.ipv4.ip_unprivileged_port_start",
            "many",
            &["ip_unprivileged_port_start"],
        ),
    ] {
        let config = scene.pod_config("refused", sysctl(key, value));
        refused(
            scene.cri().run_pod(&config, ""),
            Code::InvalidArgument,
            words,
        );
        scene.leaves_nothing();
    }
    let config = scene.pod_config("host", |p| {
        sysctl("net.ipv4.ip_forward", "0")(p);
        pod_security(p)
            .namespace_options
            .get_or_insert_default()
            .network = NamespaceMode::Node.into();
    });
    refused(
        scene.cri().run_pod(&config, ""),
        Code::InvalidArgument,
        &["ip_forward"],
    );
    scene.leaves_nothing();
}

/// Without CAP_SYS_RESOURCE the kernel lets no score sink below our own.
#[test]
fn an_oom_score_that_the_kernel_refuses_is_clamped_with_a_warning() {
    let Some(scene) = Scene::begin("an_oom_score") else {
        return;
    };
    let pod = scene.pod("oom");
    let run = |name: &str, score| {
        let config = with(shell(name, "cat /proc/self/oom_score_adj"), |c| {
            linux(c).resources.get_or_insert_default().oom_score_adj = score;
        });
        pod.finish(&config).1
    };
    assert_eq!(run("more", 500), "500\n");
    let own = fs::read_to_string(format!("/proc/{}/oom_score_adj", scene.node.pid())).unwrap();
    let got = run("less", -900);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .unwrap();
    let able = u64::from_str_radix(effective.trim(), 16).unwrap() & (1 << 24) != 0;
    if able {
        assert_eq!(got, "-900\n");
    } else {
        assert_eq!(got, own);
        let log = scene.node.log();
        let warned = log
            .lines()
            .any(|l| l.contains("WARN") && l.contains("oom_score_adj"));
        assert!(warned, "{log}");
    }
    pod.end();
}

#[test]
fn nothing_of_the_runtime_is_open_in_a_container() {
    let Some(scene) = Scene::begin("nothing_of_the_runtime_is_open") else {
        return;
    };
    let pod = scene.pod("fds");
    // The shell's own: 0, 1, 2; the ls that looks has the directory besides.
    let list = "ls /proc/self/fd | tr '\\n' ' '; readlink /proc/self/exe; cat /proc/self/oom_score_adj >/dev/null";
    let container = pod.run(&shell("c", &format!("{list}; sleep 1000")));
    let answer = scene
        .cri()
        .exec(&container, &["sh", "-c", list], 10)
        .unwrap();
    let exec = String::from_utf8(answer.stdout).unwrap();
    assert!(exec.starts_with("0 1 2 3 "), "{exec}");
    let log = scene.cri().container_status(&container).unwrap().log_path;
    let said = crate::scene::said(&fs::read_to_string(log).unwrap());
    assert_eq!(said, exec);
    let mounts = scene
        .cri()
        .exec(&container, &["cat", "/proc/self/mountinfo"], 10)
        .unwrap();
    let mounts = String::from_utf8(mounts.stdout).unwrap();
    let root = mounts.lines().next().unwrap();
    assert!(
        root.contains(" / / "),
        "the root is the first mount, nothing is above it: {mounts}"
    );
    pod.end();
}
