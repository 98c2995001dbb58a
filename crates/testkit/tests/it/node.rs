//! A node, with wharf and with a peer that is known to be right: the same pod, the same outcome.

use wharf_testkit::node::{Node, Subject};
use wharf_testkit::place::Place;
use wharf_testkit::real_registry::RealRegistry;
use wharf_testkit::samples::{self, BUSYBOX_IMAGE};
use wharf_testkit::{cache, containerd, cri, machine};

#[test]
fn a_pod_of_containerd_runs_on_a_node_that_leaves_nothing() {
    if let Some(program) = containerd::missing() {
        println!("skipped: no {program} in $RIG/bin or PATH");
        return;
    }
    one_pod(Subject::Containerd);
}

#[test]
fn a_pod_of_wharf_runs_on_a_node_that_leaves_nothing() {
    if !cache::program_under_test("wharf").exists() {
        println!("skipped: run `cargo build --workspace` first");
        return;
    }
    one_pod(Subject::Wharf);
}

fn one_pod(subject: Subject) {
    if !wharf_testkit::needs_root("a_pod_runs_on_a_node_that_leaves_nothing") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let place = Place::own().unwrap();
    let registry = RealRegistry::start(&place, dir.path()).unwrap();
    registry.push(&samples::critest().unwrap()).unwrap();
    let node = Node::of(subject)
        .place(&place)
        .mirror("_default", &registry.url());
    let mut node = node.start().unwrap();
    let name = node.name().to_string();
    node.cri().pull(BUSYBOX_IMAGE).unwrap();
    let pod = cri::host_network_pod("p", &node.logs(), &node.cgroup_parent("pods"));
    let before = node.look();
    let id = node.cri().run_pod(&pod, "").unwrap();
    let script = ["sh", "-c", "echo from the log; exec sleep 1000"];
    let config = cri::host_network_container("c", BUSYBOX_IMAGE, &script);
    let container = node.cri().create(&id, &config, &pod).unwrap();
    node.cri().start(&container).unwrap();
    let answer = node.cri().exec(&container, &["echo", "hello"], 10).unwrap();
    assert_eq!(
        (answer.exit_code, answer.stdout.as_slice()),
        (0, b"hello\n".as_slice())
    );
    assert!(!node.shims().is_empty());
    let during = before.changes(&node.look()).join("\n");
    for word in ["+ process", "+ cgroup", "+ mount seen by", "+ file"] {
        assert!(during.contains(word), "{word}: {during}");
    }

    node.restart().unwrap();
    assert_eq!(node.cri().pods().unwrap(), [id]);
    let answer = node
        .cri()
        .exec(&container, &["cat", "/proc/1/cmdline"], 10)
        .unwrap();
    assert_eq!(
        answer.stdout, b"sleep\x001000\0",
        "it is the same container"
    );
    let log = std::fs::read_to_string(node.logs().join("c.log")).unwrap();
    assert!(log.ends_with(" stdout F from the log\n"), "{log}");

    drop(node);
    assert_eq!(machine::processes(&name), []);
    assert!(machine::cgroups(&name).is_empty() && machine::mounts(&name).is_empty());
}
