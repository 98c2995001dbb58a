//! What a document comes to.

#![expect(clippy::disallowed_types, reason = "asks runc for its example")]

use std::path::Path;
use std::process::Command;

use wharf_cgroup::{HierarchyView, View};
use wharf_plan::container::MountSource;

use super::*;
use crate::spec::load::parse;

type Change = fn(&mut serde_json::Value);

/// A document with the usual parts, changed.
fn document(change: impl FnOnce(&mut serde_json::Value)) -> Spec {
    let mut value = serde_json::json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "box",
        "process": {
            "args": ["sh"], "cwd": "/", "env": ["A=1", "PATH=/bin", "A=2"],
            "user": {"uid": 5, "gid": 6, "additionalGids": [7], "umask": 63},
            "capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "mode=1777", "size=65536k"]},
            {"destination": "/data/", "source": "vol", "options": ["rbind", "rro", "nodev", "rslave"]},
        ],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "uts"}, {"type": "cgroup"},
                           {"type": "network", "path": "/run/netns/x"}],
            "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"],
            "cgroupsPath": "/wharf/c1",
            "sysctl": {"net.ipv4.ip_forward": "1"},
            "resources": {"memory": {"limit": 1000000}, "devices": [{"allow": false, "access": "rwm"}]},
        },
    });
    change(&mut value);
    parse(value.to_string().as_bytes()).unwrap()
}

fn options() -> CompileOptions<'static> {
    CompileOptions {
        id: "c1".to_owned(),
        bundle: "/bundle".into(),
        ..CompileOptions::default()
    }
}

fn refusal(change: impl FnOnce(&mut serde_json::Value)) -> String {
    compile(&document(change), &options())
        .unwrap_err()
        .to_string()
}

#[test]
fn a_usual_document_becomes_a_plan() {
    let compiled = compile(&document(|_| {}), &options()).unwrap();
    let plan = &compiled.plan;
    assert_eq!(compiled.rootfs, Path::new("/bundle/rootfs"));
    assert!(plan.rootfs_readonly);
    assert_eq!((plan.hostname.as_str(), plan.loopback_up), ("box", false));
    let namespaces = plan.namespaces.unwrap();
    assert_eq!(namespaces.pid(), Namespace::New);
    assert_eq!(namespaces.network(), Namespace::Join);
    assert_eq!(namespaces.ipc(), Namespace::Inherit);
    assert_eq!(compiled.namespaces[0].descriptor, "ns.net");
    assert_eq!(compiled.namespaces[0].path, "/run/netns/x");

    let process = plan.process.as_ref().unwrap();
    assert_eq!(process.env, [b"PATH=/bin".to_vec(), b"A=2".to_vec()]);
    assert_eq!(
        (process.uid, process.gid, process.umask),
        (5, 6, Some(0o77))
    );
    assert_eq!(process.capabilities.unwrap().bounding, 0b10_0001);
    assert_eq!(process.rlimits[0].resource, 7);

    assert_eq!(plan.mounts[0].fs_type, "proc");
    assert_eq!(plan.mounts[0].attributes, 0xe);
    assert_eq!(plan.mounts[1].options, ["mode=1777", "size=65536k"]);
    assert_eq!(plan.mounts[2].destination, b"/data");
    assert_eq!(plan.mounts[2].source(), MountSource::Bind);
    assert_eq!(
        compiled.binds,
        [BindSource {
            mount: 2,
            source: "/bundle/vol".into(),
            recursive: true,
            set: 0x4,
            clear: 0,
            recursive_set: 0x1,
            recursive_clear: 0,
            propagation: 1 << 19 | 1 << 14,
            must_be_procfs: false,
        }]
    );
    assert_eq!(plan.sysctls[0].path, "net/ipv4/ip_forward");
    assert_eq!(plan.devices.len(), 6);
    assert!(plan.links.iter().any(|link| link.path == b"/dev/ptmx"));
    assert_eq!(compiled.cgroup.path, "/wharf/c1");
    assert_eq!(compiled.cgroup.limits.memory, Some(1_000_000));
}

#[test]
fn a_pods_namespaces_are_the_shims() {
    let options = CompileOptions {
        shared: vec![
            (NamespaceKind::Network, Namespace::Inherit),
            (NamespaceKind::Pid, Namespace::Pod),
        ],
        ..options()
    };
    let compiled = compile(
        &document(|v| v["linux"]["namespaces"][1]["path"] = "/proc/7/ns/pid".into()),
        &options,
    )
    .unwrap();
    let namespaces = compiled.plan.namespaces.unwrap();
    assert_eq!(namespaces.network(), Namespace::Inherit);
    assert_eq!(namespaces.pid(), Namespace::Pod);
    assert!(compiled.namespaces.is_empty());
}

#[test]
fn what_is_asked_for_and_not_there_is_refused_by_name() {
    let cases: [(Change, &str); 9] = [
        (
            |v| v["hooks"] = serde_json::json!({"prestart": [{"path": "/x"}]}),
            "hooks",
        ),
        (
            |v| v["linux"]["uidMappings"] = serde_json::json!([{"size": 1}]),
            "uidMappings",
        ),
        (
            |v| v["linux"]["namespaces"][4] = serde_json::json!({"type": "user"}),
            "user namespace",
        ),
        (
            |v| v["linux"]["namespaces"][4] = serde_json::json!({"type": "time"}),
            "time namespace",
        ),
        (
            |v| v["process"]["scheduler"] = serde_json::json!({"policy": "X"}),
            "scheduler",
        ),
        (
            |v| v["linux"]["resources"]["blockIO"] = serde_json::json!({"weight": 10}),
            "blockIO",
        ),
        (
            |v| v["linux"]["intelRdt"] = serde_json::json!({"closID": "x"}),
            "intelRdt",
        ),
        (|v| v["linux"]["mountLabel"] = "x".into(), "mountLabel"),
        (
            |v| v["mounts"][2]["options"] = serde_json::json!(["bind", "idmap"]),
            "idmapped",
        ),
    ];
    for (change, name) in cases {
        let message = refusal(change);
        assert!(
            message.contains(name) && message.contains("not supported yet"),
            "{message}"
        );
    }
    // Empty ones ask for nothing.
    compile(
        &document(|v| v["hooks"] = serde_json::json!({})),
        &options(),
    )
    .unwrap();
}

#[test]
fn bad_values_are_refused_by_name() {
    let cases: [(Change, &str); 12] = [
        (
            |v| v["linux"]["sysctl"] = serde_json::json!({"vm.swappiness": "1"}),
            "vm.swappiness",
        ),
        (
            |v| v["linux"]["sysctl"] = serde_json::json!({"kernel.shmmax": "1"}),
            "ipc namespace",
        ),
        (
            |v| v["process"]["rlimits"][0]["type"] = "RLIMIT_LUCK".into(),
            "RLIMIT_LUCK",
        ),
        (
            |v| v["process"]["rlimits"][0]["soft"] = 99.into(),
            "RLIMIT_NOFILE",
        ),
        (
            |v| v["mounts"][2]["destination"] = "/proc/self".into(),
            "/proc/self",
        ),
        (|v| v["mounts"][0]["type"] = "tmpfs".into(), "/proc"),
        (
            |v| v["mounts"][2]["destination"] = "/x/..".into(),
            "mounts[2].destination",
        ),
        (|v| v["mounts"][2]["source"] = "".into(), "mounts[2].source"),
        (
            |v| v["linux"]["rootfsPropagation"] = "up".into(),
            "rootfsPropagation",
        ),
        (
            |v| v["linux"]["devices"] = serde_json::json!([{"path": "/dev/x", "type": "z"}]),
            "/dev/x",
        ),
        (
            |v| v["linux"]["personality"] = serde_json::json!({"domain": "BSD"}),
            "BSD",
        ),
        (
            |v| {
                v["linux"]["namespaces"] =
                    serde_json::json!([{"type": "mount"}, {"type": "network"}]);
            },
            "hostname",
        ),
    ];
    for (change, name) in cases {
        let message = refusal(change);
        assert!(message.contains(name), "{message} does not name {name}");
    }
}

#[test]
fn a_profile_that_cannot_be_compiled_never_gives_a_plan_without_filter() {
    let message = compile(
        &document(|v| {
            v["linux"]["seccomp"] = serde_json::json!({"defaultAction": "SCMP_ACT_NOTIFY"});
        }),
        &options(),
    )
    .unwrap_err();
    assert!(matches!(message, CompileError::Seccomp(_)));
    let compiled = compile(
        &document(|v| {
            v["linux"]["seccomp"] = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW",
                "flags": ["SECCOMP_FILTER_FLAG_LOG"]});
        }),
        &options(),
    )
    .unwrap();
    let process = compiled.plan.process.unwrap();
    assert!(!process.seccomp.is_empty());
    assert_eq!(process.seccomp_flags, 2);
}

#[test]
fn the_own_cgroup_is_shown_on_both_versions() {
    let with_cgroup = |options: &[&str]| {
        let options = options.to_vec();
        document(move |v| {
            v["mounts"] = serde_json::json!([{"destination": "/sys/fs/cgroup", "type": "cgroup",
                "source": "cgroup", "options": options}]);
        })
    };
    let document = with_cgroup(&["nosuid", "noexec", "nodev", "relatime", "ro"]);
    compile(&document, &options()).unwrap_err();
    let unified = CompileOptions {
        cgroup: Some(View::Unified {
            directory: "/sys/fs/cgroup/wharf/c1".into(),
        }),
        ..options()
    };
    let compiled = compile(&document, &unified).unwrap();
    assert_eq!(compiled.plan.mounts[0].fs_type, "cgroup2");
    assert_eq!(compiled.plan.mounts[0].attributes, 0xf);
    assert!(compiled.binds.is_empty());

    let legacy = CompileOptions {
        cgroup: Some(View::Hierarchies(vec![HierarchyView {
            name: "cpu,cpuacct".to_owned(),
            links: vec!["cpu".to_owned(), "cpuacct".to_owned()],
            directory: "/sys/fs/cgroup/cpu,cpuacct/wharf/c1".into(),
        }])),
        ..options()
    };
    let compiled = compile(&document, &legacy).unwrap();
    assert_eq!(compiled.plan.mounts[0].fs_type, "tmpfs");
    assert_eq!(
        compiled.plan.mounts[1].destination,
        b"/sys/fs/cgroup/cpu,cpuacct"
    );
    assert_eq!(compiled.binds[0].set, 0xf);
    assert!(
        compiled
            .plan
            .links
            .iter()
            .any(|l| l.path == b"/sys/fs/cgroup/cpu")
    );
    assert_eq!(compiled.plan.readonly_paths[0], b"/sys/fs/cgroup");
    let writable = compile(&with_cgroup(&["rw"]), &legacy).unwrap();
    assert_eq!(writable.binds[0].set & 1, 0);
}

#[test]
fn the_callers_own_dev_is_left_alone() {
    let compiled = compile(
        &document(|v| {
            v["mounts"] = serde_json::json!([{"destination": "/dev/", "source": "/dev",
                "options": ["rbind"]}]);
        }),
        &options(),
    )
    .unwrap();
    assert!(compiled.plan.devices.is_empty());
    assert!(compiled.plan.links.is_empty());
}

#[test]
fn an_asked_device_takes_the_place_of_a_default_one() {
    let compiled = compile(
        &document(|v| {
            v["linux"]["devices"] = serde_json::json!([{"path": "/dev/null", "type": "c",
                "major": 1, "minor": 3, "fileMode": 0o600, "uid": 9}]);
        }),
        &options(),
    )
    .unwrap();
    let null: Vec<_> = compiled
        .plan
        .devices
        .iter()
        .filter(|device| device.path == b"/dev/null")
        .collect();
    assert_eq!(null.len(), 1);
    assert_eq!((null[0].mode, null[0].uid), (0o020_600, 9));
}

/// The document that `runc spec` writes; runc is looked for in `$RIG/bin` and in PATH.
#[test]
fn runcs_own_example_compiles() {
    let rig = std::env::var_os("RIG").map(|rig| Path::new(&rig).join("bin/runc"));
    let bundle = tempfile::tempdir().unwrap();
    let written = rig.into_iter().chain(["runc".into()]).any(|runc| {
        let status = Command::new(runc)
            .arg("spec")
            .current_dir(bundle.path())
            .status();
        status.is_ok_and(|status| status.success())
    });
    if !written {
        println!("skipped: needs runc");
        return;
    }
    let spec = spec::load(&bundle.path().join("config.json")).unwrap();
    let options = CompileOptions {
        cgroup: Some(View::Unified {
            directory: "/sys/fs/cgroup/wharf/c1".into(),
        }),
        ..options()
    };
    let compiled = compile(&spec, &options).unwrap();
    let process = compiled.plan.process.unwrap();
    assert!(process.terminal && process.no_new_privileges);
    assert_eq!(compiled.plan.hostname, "runc");
    assert!(compiled.plan.loopback_up);
    let types: Vec<_> = compiled
        .plan
        .mounts
        .iter()
        .map(|m| m.fs_type.as_str())
        .collect();
    // The last one, the cgroup's, depends on the machine that runc finds.
    assert_eq!(
        types[..6],
        ["proc", "tmpfs", "devpts", "tmpfs", "mqueue", "sysfs"]
    );
    assert_eq!(types.len(), 7);
    assert_eq!(
        compiled.plan.mounts[1].attributes, 0x22,
        "strictatime, nosuid"
    );
}
