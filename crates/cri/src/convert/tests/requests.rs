//! Requests, table by table.

use std::collections::HashMap;
use std::time::Duration;

use wharf_api::v1;
use wharf_engine::spec::{NamespaceMode, ProfileSpec, Propagation};

use super::super::{container, pod, resources};
use super::{container_linux, container_of, names, pod_linux, pod_of, some, with_mount};

#[test]
fn a_pod_is_asked_for_as_the_client_said() {
    let spec = pod_of(|c| {
        c.hostname = "web-0".to_owned();
        c.dns_config = Some(v1::DnsConfig {
            servers: vec!["10.0.0.10".to_owned()],
            searches: vec!["cluster.local".to_owned()],
            options: vec!["ndots:5".to_owned()],
        });
        c.port_mappings = vec![v1::PortMapping {
            protocol: v1::Protocol::Udp.into(),
            container_port: 53,
            host_port: 0,
            host_ip: "::1".to_owned(),
        }];
        let linux = c.linux.as_mut().unwrap();
        linux.cgroup_parent = "/kubepods/burstable/pod1".to_owned();
        linux
            .sysctls
            .insert("kernel.shm_rmid_forced".to_owned(), "1".to_owned());
    })
    .unwrap();
    assert_eq!(spec.metadata.to_string(), "shop/web (uid u-1, attempt 2)");
    assert_eq!(spec.annotations["odd key/é"], " kept\n");
    assert_eq!(spec.dns.unwrap().options, ["ndots:5"]);
    assert_eq!(spec.port_mappings[0].container_port, 53);
    assert_eq!(spec.cgroup_parent, "/kubepods/burstable/pod1");
    assert_eq!(spec.sysctls["kernel.shm_rmid_forced"], "1");
    assert_eq!(spec.security.namespaces.network, NamespaceMode::Pod);
}

#[test]
fn what_is_wrong_with_a_pod_is_named_by_field() {
    let missing = v1::RunPodSandboxRequest::default();
    names(pod::spec(missing).map_err(|e| e.to_string()), "config");
    names(pod_of(|c| c.metadata = None), "config.metadata");
    let meta =
        |change: fn(&mut v1::PodSandboxMetadata)| pod_of(|c| change(c.metadata.as_mut().unwrap()));
    names(meta(|m| m.name.clear()), "config.metadata.name");
    names(meta(|m| m.name = "a\nb".to_owned()), "config.metadata.name");
    names(meta(|m| m.name = "a".repeat(513)), "config.metadata.name");
    names(meta(|m| m.uid.clear()), "config.metadata.uid");
    names(meta(|m| m.namespace.clear()), "config.metadata.namespace");
    names(
        pod_of(|c| c.log_directory = "logs".into()),
        "config.log_directory",
    );
    names(pod_of(|c| c.hostname = "a".repeat(65)), "config.hostname");
    names(pod_of(|c| c.hostname = "a\nb".into()), "config.hostname");
    let smuggled = v1::DnsConfig {
        servers: vec!["1.1.1.1\noptions x".to_owned()],
        ..Default::default()
    };
    names(
        pod_of(|c| c.dns_config = Some(smuggled)),
        "config.dns_config.servers",
    );
    let port = v1::PortMapping {
        host_port: 65_536,
        ..Default::default()
    };
    names(
        pod_of(|c| c.port_mappings = vec![port]),
        "config.port_mappings",
    );
    names(
        pod_of(|c| c.linux.as_mut().unwrap().cgroup_parent = "/a/../..".into()),
        "config.linux.cgroup_parent",
    );
    names(
        pod_linux(|s| s.run_as_group = some(1)),
        "security_context.run_as_group",
    );
    names(
        pod_linux(|s| s.run_as_user = some(-1)),
        "security_context.run_as_user",
    );
    let net = |network: i32, pid: i32| {
        pod_linux(|s| {
            s.namespace_options = Some(v1::NamespaceOption {
                network,
                pid,
                ..Default::default()
            });
        })
    };
    names(net(1, 0), "namespace_options.network");
    names(net(77, 0), "namespace_options.network");
    names(net(0, 3), "namespace_options.pid");
}

#[test]
fn a_user_namespace_needs_one_mapping_each_from_zero() {
    let user = |mode: v1::NamespaceMode, uids: &[(u32, u32)], gids: &[(u32, u32)]| {
        let maps = |list: &[(u32, u32)]| {
            let one = |(container_id, length): &(u32, u32)| v1::IdMapping {
                host_id: 100_000,
                container_id: *container_id,
                length: *length,
            };
            list.iter().map(one).collect()
        };
        let options = v1::UserNamespace {
            mode: mode.into(),
            uids: maps(uids),
            gids: maps(gids),
        };
        pod_linux(|s| {
            s.namespace_options = Some(v1::NamespaceOption {
                userns_options: Some(options),
                ..Default::default()
            });
        })
        .map(|spec| spec.security.namespaces.user.is_some())
    };
    use v1::NamespaceMode::{Container, Node, Pod};
    let field = "namespace_options.userns_options";
    assert_eq!(user(Node, &[], &[]), Ok(false));
    assert_eq!(user(Pod, &[(0, 65_536)], &[(0, 65_536)]), Ok(true));
    names(user(Pod, &[], &[]), field);
    names(user(Pod, &[(0, 1)], &[(0, 2)]), field);
    names(user(Pod, &[(1, 1)], &[(0, 1)]), field);
    names(user(Pod, &[(0, 1), (1, 1)], &[(0, 1)]), field);
    names(user(Node, &[(0, 1)], &[(0, 1)]), field);
    names(user(Container, &[(0, 1)], &[(0, 1)]), field);
}

#[test]
fn a_container_is_asked_for_as_the_client_said() {
    let spec = container_of(|c| {
        c.command = vec!["sh".to_owned(), String::new()];
        c.log_path = "/main/0.log".to_owned();
        c.stop_signal = v1::Signal::Sigusr1.into();
        c.envs = vec![v1::KeyValue {
            key: "RAW".to_owned(),
            value: b"\xff\xfe\0\0".to_vec(),
        }];
        c.devices = vec![v1::Device {
            host_path: "/dev/fuse".to_owned(),
            permissions: "rw".to_owned(),
            ..Default::default()
        }];
    })
    .unwrap();
    assert_eq!(spec.metadata.attempt, 1);
    assert_eq!(spec.command, ["sh", ""]);
    assert_eq!(spec.log_path, "main/0.log");
    assert_eq!(spec.stop_signal, Some(10));
    assert_eq!(spec.envs[0].value, b"\xff\xfe");
    assert_eq!(spec.devices[0].permissions, "rw");
    assert_eq!(
        spec.security.seccomp, None,
        "absent is not the default profile"
    );
    let seccomp = |n| {
        let profile = v1::SecurityProfile {
            profile_type: n,
            localhost_ref: "/p.json".to_owned(),
        };
        container_linux(|s| s.seccomp = Some(profile))
            .unwrap()
            .security
            .seccomp
    };
    assert_eq!(seccomp(0), Some(ProfileSpec::RuntimeDefault));
    assert_eq!(seccomp(1), Some(ProfileSpec::Unconfined));
    assert_eq!(
        seccomp(2),
        Some(ProfileSpec::Localhost("/p.json".to_owned()))
    );
}

#[test]
fn what_is_wrong_with_a_container_is_named_by_field() {
    names(container::spec(None).map_err(|e| e.to_string()), "config");
    names(container_of(|c| c.metadata = None), "config.metadata");
    names(container_of(|c| c.image = None), "config.image");
    names(
        container_of(|c| c.image = Some(v1::ImageSpec::default())),
        "config.image.image",
    );
    names(
        container_of(|c| c.log_path = "../x".into()),
        "config.log_path",
    );
    names(
        container_of(|c| c.args = vec!["a\0b".into()]),
        "config.args",
    );
    names(container_of(|c| c.stop_signal = 66), "config.stop_signal");
    for (key, value) in [("", "x"), ("A=B", "x"), ("A", "x\0y")] {
        let env = v1::KeyValue {
            key: key.to_owned(),
            value: value.into(),
        };
        names(container_of(|c| c.envs = vec![env]), "config.envs");
    }
    for (host, permissions, field) in [
        ("dev/fuse", "rw", "config.devices.host_path"),
        ("/dev/fuse", "rx", "config.devices.permissions"),
    ] {
        let device = v1::Device {
            host_path: host.to_owned(),
            permissions: permissions.to_owned(),
            ..Default::default()
        };
        names(container_of(|c| c.devices = vec![device]), field);
    }
    let both = container_linux(|s| {
        s.run_as_user = some(1);
        s.run_as_username = "www".to_owned();
    });
    names(both, "security_context.run_as_username");
    names(
        container_linux(|s| s.run_as_group = some(1)),
        "security_context.run_as_group",
    );
    names(
        container_linux(|s| s.supplemental_groups = vec![1 << 32]),
        "security_context.supplemental_groups",
    );
    names(
        container_linux(|s| s.masked_paths = vec!["proc".into()]),
        "security_context.masked_paths",
    );
    let localhost = v1::SecurityProfile {
        profile_type: 2,
        localhost_ref: String::new(),
    };
    names(
        container_linux(|s| s.seccomp = Some(localhost)),
        "security_context.seccomp",
    );
    let target = v1::NamespaceOption {
        pid: v1::NamespaceMode::Target.into(),
        ..Default::default()
    };
    names(
        container_linux(|s| s.namespace_options = Some(target)),
        "namespace_options.target_id",
    );
}

#[test]
fn mounts_that_cannot_be_kept_are_refused() {
    let image = || {
        Some(v1::ImageSpec {
            image: "img".to_owned(),
            ..Default::default()
        })
    };
    let mount = |change: &dyn Fn(&mut v1::Mount)| with_mount(|m| change(m));
    let recursive = "config.mounts.recursive_read_only";
    names(
        mount(&|m| m.container_path = "data".into()),
        "config.mounts.container_path",
    );
    names(mount(&|m| m.host_path.clear()), "config.mounts.host_path");
    names(mount(&|m| m.propagation = 9), "config.mounts.propagation");
    names(mount(&|m| m.recursive_read_only = true), recursive);
    for propagation in [1, 2] {
        let refused = mount(&|m| {
            (m.readonly, m.recursive_read_only, m.propagation) = (true, true, propagation);
        });
        names(refused, recursive);
    }
    names(mount(&|m| m.image = image()), "config.mounts");
    names(
        mount(&|m| (m.image, m.host_path) = (image(), String::new())),
        "config.mounts",
    );
    let good = mount(&|m| {
        (m.image, m.readonly) = (image(), true);
        m.host_path.clear();
    });
    assert_eq!(good.unwrap().mounts[0].image.as_ref().unwrap().image, "img");
    let shared = mount(&|m| m.propagation = 2).unwrap();
    assert_eq!(shared.mounts[0].propagation, Propagation::Bidirectional);
}

#[test]
fn limits_out_of_range_are_refused_by_field_and_others_come_back_unchanged() {
    let limits = |change: &dyn Fn(&mut v1::LinuxContainerResources)| {
        let mut r = v1::LinuxContainerResources::default();
        change(&mut r);
        resources::checked(&r).map_err(|e| e.to_string())
    };
    names(limits(&|r| r.cpu_period = 999), "resources.cpu_period");
    names(limits(&|r| r.cpu_quota = 999), "resources.cpu_quota");
    names(limits(&|r| r.cpu_quota = -2), "resources.cpu_quota");
    names(limits(&|r| r.cpu_shares = 1), "resources.cpu_shares");
    names(
        limits(&|r| r.memory_limit_in_bytes = -2),
        "resources.memory_limit_in_bytes",
    );
    names(
        limits(&|r| r.oom_score_adj = 1001),
        "resources.oom_score_adj",
    );
    names(
        limits(&|r| r.cpuset_cpus = "0-".into()),
        "resources.cpuset_cpus",
    );
    names(
        limits(&|r| r.cpuset_mems = "x".into()),
        "resources.cpuset_mems",
    );
    names(
        limits(&|r| (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (2, 1)),
        "resources.memory_swap_limit_in_bytes",
    );
    names(
        limits(&|r| drop(r.unified.insert("../x.y".into(), "1".into()))),
        "resources.unified",
    );
    let all = v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: -1,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: -998,
        cpuset_cpus: "0-3,7".to_owned(),
        cpuset_mems: "0".to_owned(),
        hugepage_limits: vec![v1::HugepageLimit {
            page_size: "2MB".to_owned(),
            limit: 1 << 21,
        }],
        unified: HashMap::from([("memory.high".to_owned(), "1000".to_owned())]),
        memory_swap_limit_in_bytes: 64 << 20,
    };
    assert_eq!(resources::back(&resources::checked(&all).unwrap()), all);
}

#[test]
fn exec_and_times_are_checked() {
    let exec = |cmd: &[&str], timeout| {
        container::exec_sync(v1::ExecSyncRequest {
            container_id: "c".to_owned(),
            cmd: cmd.iter().map(|w| (*w).to_owned()).collect(),
            timeout,
        })
        .map_err(|e| e.to_string())
    };
    names(exec(&[], 0), "cmd");
    names(exec(&["a\0"], 0), "cmd");
    names(exec(&["a"], -1), "timeout");
    assert_eq!(exec(&["a"], 0).unwrap().timeout, None, "0 is no limit");
    assert_eq!(
        exec(&["a"], 3).unwrap().timeout,
        Some(Duration::from_secs(3))
    );
    assert!(exec(&["a"], i64::MAX).unwrap().timeout.unwrap() < Duration::from_secs(1 << 32));
}
