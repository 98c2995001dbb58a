//! The documents that come out, whole.

use std::sync::Arc;

use serde_json::{Value, json};
use wharf_image::ImageConfig;
use wharf_runtime::spec::capability;
use wharf_types::PodId;

use super::compose::compose;
use super::{Host, HostDevice, Input, PodFiles};
use crate::error::RequestError;
use crate::record::{PodPhase, PodRecord};
use crate::spec::*;
use crate::view::{NetworkView, UserView};

struct Case {
    host: Host,
    pod: PodSpec,
    spec: ContainerSpec,
    image: ImageConfig,
    devices: Vec<HostDevice>,
}

impl Case {
    fn new() -> Self {
        let text = |t: &str| t.to_owned();
        Self {
            host: Host {
                hostname: text("node"),
                capabilities: capability::ALL,
                swap_limits: true,
                hugetlb: false,
                apparmor: false,
                selinux: false,
            },
            pod: PodSpec::default(),
            spec: ContainerSpec {
                metadata: ContainerMetadata {
                    name: text("web"),
                    attempt: 0,
                },
                image: ImageSpec {
                    image: text("sha256:1"),
                    ..ImageSpec::default()
                },
                ..ContainerSpec::default()
            },
            image: ImageConfig {
                env: vec![text("PATH=/bin"), text("A=image")],
                entrypoint: vec![text("/entry")],
                cmd: vec![text("default")],
                working_dir: text("/srv"),
                ..ImageConfig::default()
            },
            devices: Vec::new(),
        }
    }

    fn compose(&self) -> Result<Value, RequestError> {
        let pod = PodRecord {
            version: 1,
            id: PodId::from_random([7; 32]),
            spec: Arc::new(self.pod.clone()),
            created_at_ns: 1,
            phase: PodPhase::Ready,
            boot: String::new(),
            cgroup: "/w/pod".to_owned(),
            hostname: "pod-1".to_owned(),
            network: NetworkView::default(),
            netns: None,
        };
        let files = PodFiles {
            hosts: "/f/hosts".into(),
            hostname: "/f/hostname".into(),
            resolv_conf: "/f/resolv.conf".into(),
        };
        let user = UserView {
            uid: 33,
            gid: 44,
            groups: vec![44, 50],
        };
        let composed = compose(&Input {
            host: &self.host,
            pod: &pod,
            files: &files,
            spec: &self.spec,
            image: &self.image,
            user: &user,
            home: "/var/www",
            devices: &self.devices,
            cgroup: "/w/pod/c1",
            shim: &crate::world::ShimFacts {
                pid: 70,
                sandbox_pid: Some(71),
                netns: None,
            },
            target_pid: Some(99),
        })?;
        Ok(serde_json::to_value(composed.spec).unwrap())
    }

    fn mounts(&self) -> Vec<String> {
        let spec = self.compose().unwrap();
        let mounts = spec["mounts"].as_array().unwrap().clone();
        mounts
            .iter()
            .map(|m| m["destination"].as_str().unwrap().to_owned())
            .collect()
    }

    fn with_mount(mount: MountSpec) -> Self {
        let mut case = Self::new();
        case.spec.mounts.push(mount);
        case
    }
}

fn bind(container_path: &str, host_path: &str) -> MountSpec {
    MountSpec {
        container_path: container_path.to_owned(),
        host_path: host_path.to_owned(),
        ..MountSpec::default()
    }
}

#[test]
fn a_plain_container_is_what_everybody_expects() {
    let spec = Case::new().compose().unwrap();
    assert_eq!(
        spec["process"],
        json!({
            "user": {"uid": 33, "gid": 44, "additionalGids": [44, 50]},
            "args": ["/entry", "default"],
            "env": ["PATH=/bin", "HOSTNAME=pod-1", "A=image", "HOME=/var/www"],
            "cwd": "/srv",
            "oomScoreAdj": 0,
            "capabilities": {
                "bounding": DEFAULT_CAPS, "effective": DEFAULT_CAPS, "permitted": DEFAULT_CAPS,
            },
        })
    );
    assert_eq!(spec["root"], json!({"path": "rootfs"}));
    assert_eq!(spec["mounts"], default_mounts());
    assert_eq!(
        spec["linux"],
        json!({
            "cgroupsPath": "/w/pod/c1",
            "namespaces": [
                {"type": "mount"}, {"type": "cgroup"},
                {"type": "network", "path": "/proc/70/ns/net"},
                {"type": "uts", "path": "/proc/70/ns/uts"},
                {"type": "ipc", "path": "/proc/70/ns/ipc"},
                {"type": "pid", "path": "/proc/71/ns/pid"},
            ],
            "resources": {"devices": [{"allow": false, "type": "a", "access": "rwm"}]},
        })
    );
    assert_eq!(
        spec["annotations"]["io.kubernetes.cri.container-name"],
        "web"
    );
}

const DEFAULT_CAPS: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SYS_CHROOT",
    "CAP_MKNOD",
    "CAP_AUDIT_WRITE",
    "CAP_SETFCAP",
];

fn default_mounts() -> Value {
    let file = |path: &str, source: &str| {
        json!({"destination": path, "type": "bind", "source": source,
               "options": ["rbind", "rprivate", "rw"]})
    };
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc",
         "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs",
         "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/shm", "type": "wharf.shm", "source": "shm",
         "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
         "options": ["nosuid", "noexec", "nodev"]},
        file("/etc/hostname", "/f/hostname"),
        file("/etc/hosts", "/f/hosts"),
        file("/etc/resolv.conf", "/f/resolv.conf"),
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
         "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
    ])
}

#[test]
fn a_command_drops_the_images_and_arguments_alone_keep_the_entry_point() {
    let list = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let cases: [(&[&str], &[&str], &[&str]); 5] = [
        (&[], &[], &["/entry", "default"]),
        (&["/cmd"], &[], &["/cmd"]),
        (&["/cmd"], &["a"], &["/cmd", "a"]),
        (&[], &["-x", ""], &["/entry", "-x", ""]),
        (&["/cmd", "-c"], &["", "b"], &["/cmd", "-c", "", "b"]),
    ];
    for (command, args, expected) in cases {
        let mut case = Case::new();
        case.spec.command = list(command);
        case.spec.args = list(args);
        assert_eq!(case.compose().unwrap()["process"]["args"], json!(expected));
    }
    let mut nothing = Case::new();
    nothing.image = ImageConfig::default();
    assert_eq!(
        nothing.compose().unwrap_err().kind(),
        wharf_types::Kind::Invalid
    );
}

#[test]
fn the_environment_keeps_its_order_and_the_configuration_wins() {
    let mut case = Case::new();
    let var = |name: &str, value: &[u8]| EnvVar {
        name: name.to_owned(),
        value: value.to_vec(),
    };
    case.spec.envs = vec![
        var("B", b"2"),
        var("A", b"config"),
        var("HOME", b"/h"),
        var("B", b"3"),
    ];
    case.spec.tty = true;
    case.image.env = vec!["A=image".to_owned(), "ODD".to_owned()];
    assert_eq!(
        case.compose().unwrap()["process"]["env"],
        json!([
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "TERM=xterm",
            "HOSTNAME=pod-1",
            "A=config",
            "ODD=",
            "B=3",
            "HOME=/h"
        ])
    );
    for bad in [var("", b""), var("A=B", b""), var("A", b"x\0y")] {
        let mut case = Case::new();
        case.spec.envs = vec![bad];
        case.compose().unwrap_err();
    }
}

#[test]
fn an_environment_without_measure_is_refused_and_a_large_one_is_not_slow() {
    use crate::limits::{ENV_BYTES_MAX, ENV_MAX};
    let mut case = Case::new();
    // Compared with each other, these would keep a core busy for many seconds.
    case.image.env = (0..ENV_MAX).map(|n| format!("V{n}=")).collect();
    let env = case.compose().unwrap()["process"]["env"].clone();
    assert_eq!(env.as_array().unwrap().len(), ENV_MAX + 3);
    case.spec.envs = vec![EnvVar {
        name: "ONE_MORE".to_owned(),
        value: Vec::new(),
    }];
    let e = case.compose().unwrap_err().to_string();
    assert!(e.contains("environment") && e.contains("65536"), "{e}");
    case.spec.envs.clear();
    case.image.env = vec!["x".repeat(ENV_BYTES_MAX + 1)];
    let e = case.compose().unwrap_err().to_string();
    assert!(e.contains("bytes of the environment"), "{e}");
}

#[test]
fn no_new_privileges_that_are_asked_for_hold_for_the_privileged_too() {
    let mut case = Case::new();
    case.pod.security.privileged = true;
    case.spec.security.privileged = true;
    for asked in [true, false] {
        case.spec.security.no_new_privs = asked;
        let spec = case.compose().unwrap();
        let given = spec["process"]["noNewPrivileges"].as_bool();
        assert_eq!(given.unwrap_or(false), asked);
    }
}

#[test]
fn a_mount_is_the_same_however_its_path_is_spelled() {
    for path in [
        "/etc/hosts",
        "/etc/hosts/",
        "//etc/./hosts",
        "/etc/x/../hosts/.",
    ] {
        let mounts = Case::with_mount(bind(path, "/h")).mounts();
        let ours = mounts.iter().filter(|m| *m == "/etc/hosts").count();
        assert_eq!(ours, 1, "{path}: {mounts:?}");
    }
    let mounts = Case::with_mount(bind("/dev/", "/h")).mounts();
    assert!(!mounts.contains(&"/dev/pts".to_owned()), "{mounts:?}");
}

#[test]
fn mounts_asked_for_replace_defaults_and_come_after_their_parents() {
    let mut case = Case::new();
    case.spec.mounts = vec![
        bind("/data/a/b", "/1"),
        bind("/data", "/2"),
        bind("/etc/hosts", "/3"),
        bind("/data/a", "/4"),
    ];
    assert_eq!(
        case.mounts(),
        [
            "/proc",
            "/dev",
            "/sys",
            "/data",
            "/dev/pts",
            "/dev/shm",
            "/dev/mqueue",
            "/etc/hostname",
            "/etc/resolv.conf",
            "/etc/hosts",
            "/data/a",
            "/sys/fs/cgroup",
            "/data/a/b"
        ]
    );
    let own_dev = Case::with_mount(bind("/dev", "/dev")).mounts();
    assert!(
        !own_dev.iter().any(|m| m.starts_with("/dev/")),
        "{own_dev:?}"
    );
    assert!(own_dev.contains(&"/sys/fs/cgroup".to_owned()));
}

#[test]
fn read_only_is_never_silently_less() {
    let options = |mount: MountSpec| {
        let spec = Case::with_mount(mount).compose()?;
        let mounts = spec["mounts"].as_array().unwrap().clone();
        let found = mounts
            .into_iter()
            .find(|m| m["destination"] == "/m")
            .unwrap();
        Ok::<_, RequestError>(found["options"].clone())
    };
    let ro = MountSpec {
        readonly: true,
        ..bind("/m", "/h")
    };
    assert_eq!(
        options(ro.clone()).unwrap(),
        json!(["rbind", "rprivate", "ro"])
    );
    let rro = MountSpec {
        recursive_read_only: true,
        ..ro.clone()
    };
    assert_eq!(
        options(rro.clone()).unwrap(),
        json!(["rbind", "rprivate", "rro"])
    );
    let propagated = MountSpec {
        propagation: Propagation::HostToContainer,
        ..rro.clone()
    };
    assert!(
        options(propagated)
            .unwrap_err()
            .to_string()
            .contains("PRIVATE")
    );
    let writable = MountSpec {
        readonly: false,
        ..rro
    };
    assert!(
        options(writable)
            .unwrap_err()
            .to_string()
            .contains("readonly")
    );
    let words = MountSpec {
        mount_options: vec!["noexec".to_owned()],
        ..ro.clone()
    };
    assert_eq!(
        options(words).unwrap(),
        json!(["rbind", "rprivate", "ro", "noexec"])
    );
    let bad = MountSpec {
        mount_options: vec!["suid".to_owned()],
        ..ro
    };
    options(bad).unwrap_err();
    for path in ["", "relative", "/a\0b"] {
        let mount = MountSpec {
            container_path: path.to_owned(),
            ..bind("/m", "/h")
        };
        options(mount).unwrap_err();
    }
}

#[test]
fn a_privileged_container_may_everything_and_needs_a_privileged_pod() {
    let mut case = Case::new();
    case.spec.security.privileged = true;
    case.spec.security.masked_paths = vec!["/proc/kcore".to_owned()];
    assert!(case.compose().unwrap_err().to_string().contains("pod"));
    case.pod.security.privileged = true;
    case.devices.push(HostDevice {
        path: "/dev/fuse".to_owned(),
        kind: "c",
        major: 10,
        minor: 229,
        mode: 0o666,
        uid: 0,
        gid: 0,
        access: "rwm".to_owned(),
    });
    let spec = case.compose().unwrap();
    assert_eq!(spec["linux"]["devices"][0]["path"], "/dev/fuse");
    assert_eq!(
        spec["linux"]["resources"]["devices"],
        json!([
            {"allow": true, "type": "a", "access": "rwm"}
        ])
    );
    assert!(spec["linux"].get("maskedPaths").is_none());
    let all = spec["process"]["capabilities"]["bounding"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(all, capability::names(capability::ALL).len());
    let sys = spec["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .find(|m| m["destination"] == "/sys")
        .cloned();
    assert!(
        sys.unwrap()["options"]
            .as_array()
            .unwrap()
            .contains(&json!("rw"))
    );
}

#[test]
fn limits_are_what_was_asked_for_and_zero_is_nothing() {
    let mut case = Case::new();
    case.spec.resources = ResourceSpec {
        memory_limit: 64 << 20,
        cpu_shares: 512,
        cpu_quota: 20_000,
        cpu_period: 100_000,
        cpuset_cpus: "0".to_owned(),
        oom_score_adj: 2000,
        hugepage_limits: vec![HugepageLimit {
            page_size: "2MB".to_owned(),
            limit: 0,
        }],
        ..ResourceSpec::default()
    };
    let spec = case.compose().unwrap();
    let mut resources = spec["linux"]["resources"].clone();
    resources.as_object_mut().unwrap().remove("devices");
    assert_eq!(
        resources,
        json!({
            "memory": {"limit": 64 << 20, "swap": 64 << 20},
            "cpu": {"shares": 512, "quota": 20000, "period": 100_000, "cpus": "0"},
        })
    );
    assert_eq!(spec["process"]["oomScoreAdj"], 1000);
    case.host.swap_limits = false;
    let spec = case.compose().unwrap();
    assert_eq!(
        spec["linux"]["resources"]["memory"],
        json!({"limit": 64 << 20})
    );
    case.host.swap_limits = true;
    case.spec.resources.memory_swap_limit = 1;
    case.compose().unwrap_err();
    case.spec.resources = ResourceSpec {
        cpu_shares: -1,
        ..ResourceSpec::default()
    };
    case.compose().unwrap_err();
}

#[test]
fn hidden_and_read_only_paths_are_exactly_those_asked_for() {
    let mut case = Case::new();
    case.spec.security.masked_paths = vec!["/proc/kcore".to_owned()];
    case.spec.security.readonly_paths = vec!["/proc/sys".to_owned()];
    case.spec.security.readonly_rootfs = true;
    case.spec.security.no_new_privs = true;
    let spec = case.compose().unwrap();
    assert_eq!(spec["linux"]["maskedPaths"], json!(["/proc/kcore"]));
    assert_eq!(spec["linux"]["readonlyPaths"], json!(["/proc/sys"]));
    assert_eq!(spec["root"]["readonly"], true);
    assert_eq!(spec["process"]["noNewPrivileges"], true);
}

#[test]
fn pid_namespaces_are_chosen_and_a_missing_shared_one_is_said() {
    let namespaces = |pod: NamespaceMode, container: NamespaceMode| {
        let mut case = Case::new();
        case.pod.security.namespaces.pid = pod;
        case.spec.security.namespaces.pid = container;
        case.compose().map(|spec| {
            let all = spec["linux"]["namespaces"].as_array().unwrap().clone();
            all.into_iter().find(|n| n["type"] == "pid")
        })
    };
    use NamespaceMode::{Container, Node, Pod, Target};
    let path = |p: &str| Some(json!({"type": "pid", "path": p}));
    assert_eq!(namespaces(Pod, Pod).unwrap(), path("/proc/71/ns/pid"));
    assert_eq!(
        namespaces(Container, Container).unwrap(),
        Some(json!({"type": "pid"}))
    );
    assert_eq!(namespaces(Pod, Node).unwrap(), None);
    assert_eq!(
        namespaces(Container, Target).unwrap(),
        path("/proc/99/ns/pid")
    );
    assert!(
        namespaces(Container, Pod)
            .unwrap_err()
            .to_string()
            .contains("POD")
    );
}

#[test]
fn the_hosts_namespaces_are_not_listed() {
    let mut case = Case::new();
    case.pod.security.namespaces.network = NamespaceMode::Node;
    case.pod.security.namespaces.ipc = NamespaceMode::Node;
    case.pod.security.namespaces.pid = NamespaceMode::Node;
    case.spec.security.namespaces.pid = NamespaceMode::Node;
    let spec = case.compose().unwrap();
    assert_eq!(
        spec["linux"]["namespaces"],
        json!([{"type": "mount"}, {"type": "cgroup"}])
    );
}

#[test]
fn what_is_not_there_yet_is_refused_by_name() {
    let mut cdi = Case::new();
    cdi.spec.cdi_devices = vec!["vendor.com/gpu=0".to_owned()];
    let mut users = Case::new();
    users.spec.security.namespaces.user = Some(UserNamespaceSpec::default());
    let image = Case::with_mount(MountSpec {
        image: Some(ImageSpec::default()),
        ..bind("/m", "")
    });
    for (case, word) in [
        (cdi, "vendor.com/gpu=0"),
        (users, "user namespaces"),
        (image, "image"),
    ] {
        let e = case.compose().unwrap_err();
        assert_eq!(e.kind(), wharf_types::Kind::Unsupported);
        assert!(e.to_string().contains(word), "{e}");
    }
}
