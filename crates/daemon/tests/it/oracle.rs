//! The same container by containerd and runc: what a process sees must be the same, and where it is
//! not, the difference is one that is named here.

use std::collections::BTreeSet;
use std::fs;

use wharf_api::v1::{ContainerState, Int64Value};
use wharf_testkit::node::{Node, Subject};
use wharf_testkit::place::Place;
use wharf_testkit::registry::Registry;
use wharf_testkit::{containerd, cri, wait};

use crate::scene::{BUSYBOX, SOON, above_busybox, busybox, linux, said, security, serve, with};

/// Everything about itself that a process can tell without naming its node.
const LOOK: &str = "
id; pwd; umask; env | grep -v -e SHLVL -e HOSTNAME | sort
grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)' /proc/self/status
echo oom $(cat /proc/self/oom_score_adj)
ulimit -a; ulimit -Ha
cd /dev; stat -c 'dev %n %F %a %u:%g %t:%T' *; for l in fd stdin stdout stderr ptmx core; do echo $l $(readlink $l); done
for p in /proc/asound /proc/acpi /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list /proc/scsi /sys/firmware; do
  [ -e $p ] && echo masked $p $(stat -c '%F' $p) $(ls $p 2>/dev/null | wc -l); done
for p in /proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger; do
  [ -e $p ] && { grep -q \" $p .*ro[, ]\" /proc/self/mounts && echo read-only $p; }; done
while read source point type options rest; do
  case $point in /|/proc/*|/sys/firmware|/sys/fs/cgroup/*) continue;; esac
  echo mount $point $type $(echo $options | tr , '\\n' | grep -E '^(ro|rw|nosuid|nodev|noexec|mode=.*|gid=.*|ptmxmode=.*|size=.*)$' | sort | tr '\\n' ,)
done < /proc/self/mounts
ls -1 /proc/self/fd | tr '\\n' ' '; echo
readlink /proc/self/ns/cgroup > /dev/null && echo cgroup $(cut -d: -f3 /proc/self/cgroup | sort -u)
cat /etc/resolv.conf
exit 0
";

/// How lines begin that may differ, and why.
const KNOWN: [(&str, &str); 6] = [
    (
        "cgroup ",
        "on cgroup v1 containerd shares the host's cgroup namespace, wharf never does",
    ),
    ("mount /sys/fs/cgroup ", "the same reason"),
    (
        "oom ",
        "restrict_oom_score_adj gives 1 more than the daemon's own score where 0 was asked for",
    ),
    (
        "core",
        "wharf makes the link to /proc/kcore as runc did; it is masked",
    ),
    ("dev core ", "the same link"),
    (
        "mount /dev/shm ",
        "containerd's bind loses nosuid, nodev and noexec, wharf keeps them as docker does",
    ),
];

/// A node with busybox of this daemon.
pub(crate) struct Peer {
    pub(crate) node: Node,
    _registry: Registry,
}

pub(crate) fn peer(subject: Subject) -> Peer {
    let place = Place::own().unwrap();
    let registry = Registry::start_in(&place).unwrap();
    registry.add("it/busybox", "1", &busybox());
    let pause = above_busybox(&[]).cmd(&["sleep", "1000000"]).build();
    registry.add("pause", "3.10", &pause);
    let node = Node::of(subject).place(&place).start().unwrap();
    for host in ["registry.test", "registry.k8s.io"] {
        serve(&node, host, &registry.url());
    }
    node.cri().pull(BUSYBOX).unwrap();
    Peer {
        node,
        _registry: registry,
    }
}

/// What the containers said, by name.
fn look(peer: &Peer) -> Vec<(&'static str, BTreeSet<String>)> {
    let node = &peer.node;
    let pod = cri::host_network_pod("oracle", &node.logs(), &node.cgroup_parent("pods"));
    let pod = {
        let mut pod = pod;
        pod.linux
            .as_mut()
            .unwrap()
            .security_context
            .as_mut()
            .unwrap()
            .privileged = true;
        pod
    };
    let id = node.cri().run_pod(&pod, "").unwrap();
    let of = |name: &str| cri::host_network_container(name, BUSYBOX, &["sh", "-c", LOOK]);
    let number = |value| Some(Int64Value { value });
    let mut seen = Vec::new();
    for (name, config) in [
        ("plain", of("plain")),
        (
            "user",
            with(of("user"), |c| {
                c.working_dir = "/tmp".into();
                let security = security(c);
                security.run_as_user = number(33);
                security.supplemental_groups = vec![7];
                security.no_new_privs = true;
            }),
        ),
        (
            "bare",
            with(of("bare"), |c| {
                let security = security(c);
                security.readonly_rootfs = true;
                security.seccomp = None;
                security.masked_paths.clear();
                security.readonly_paths.clear();
                let caps = security.capabilities.get_or_insert_default();
                caps.drop_capabilities = vec!["ALL".into()];
                linux(c).resources.get_or_insert_default().oom_score_adj = 999;
            }),
        ),
        ("terminal", with(of("terminal"), |c| c.tty = true)),
    ] {
        let container = node.cri().create(&id, &config, &pod).unwrap();
        node.cri().start(&container).unwrap();
        let exited = || {
            let status = node.cri().container_status(&container).unwrap();
            Ok(status.state() == ContainerState::ContainerExited)
        };
        assert!(wait::until(SOON, exited).unwrap());
        let status = node.cri().container_status(&container).unwrap();
        let log = said(&fs::read_to_string(status.log_path).unwrap());
        let mut lines: BTreeSet<String> = log.lines().map(|l| l.trim_end().to_owned()).collect();
        let mut user = status.user.unwrap().linux.unwrap();
        user.supplemental_groups.sort_unstable();
        lines.insert(format!(
            "exit {} {} {user:?}",
            status.exit_code, status.reason
        ));
        lines.retain(|line| !KNOWN.iter().any(|(start, _)| line.starts_with(start)));
        seen.push((name, lines));
    }
    node.cri().remove_all_pods().unwrap();
    seen
}

#[test]
fn a_process_sees_what_it_sees_under_containerd() {
    if !wharf_testkit::needs_root("a_process_sees_what_it_sees_under_containerd") {
        return;
    }
    if let Some(program) = containerd::missing() {
        println!(
            "skipped: a_process_sees_what_it_sees_under_containerd: no {program} in $RIG/bin or PATH"
        );
        return;
    }
    let (ours, theirs) = (
        look(&peer(Subject::Wharf)),
        look(&peer(Subject::Containerd)),
    );
    let mut differences = Vec::new();
    for ((name, ours), (_, theirs)) in ours.iter().zip(&theirs) {
        let lines = |from: &BTreeSet<String>, other: &BTreeSet<String>, who: &str| -> Vec<String> {
            from.difference(other)
                .map(|l| format!("{name}: only {who}: {l}"))
                .collect()
        };
        differences.extend(lines(ours, theirs, "wharf"));
        differences.extend(lines(theirs, ours, "containerd"));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
