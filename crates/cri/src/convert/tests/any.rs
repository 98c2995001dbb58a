//! Whatever a client sends: an answer or a refusal, never a panic.

use proptest::prelude::*;
use wharf_api::v1;

use super::super::resources;
use super::{container_of, pod_of};

prop_compose! {
    fn any_mount()(
        container_path in ".{0,12}", host_path in "/?.{0,12}", propagation in -1..5i32,
        readonly: bool, recursive_read_only: bool, image in proptest::option::of(".{0,4}"),
        length: u32,
    ) -> v1::Mount {
        v1::Mount {
            container_path, host_path, propagation, readonly, recursive_read_only,
            image: image.map(|image| v1::ImageSpec { image, ..Default::default() }),
            uid_mappings: vec![v1::IdMapping { length, ..Default::default() }],
            ..Default::default()
        }
    }
}

prop_compose! {
    fn any_security()(
        modes: (i32, i32, i32), user: Option<i64>, group: Option<i64>, username in ".{0,6}",
        groups: Vec<i64>, policy in -1..3i32, profile in proptest::option::of((-1..4i32, ".{0,6}")),
        masked in proptest::collection::vec(".{0,8}", 0..3),
    ) -> v1::LinuxContainerSecurityContext {
        v1::LinuxContainerSecurityContext {
            namespace_options: Some(v1::NamespaceOption {
                network: modes.0 % 5, pid: modes.1 % 5, ipc: modes.2 % 5, ..Default::default()
            }),
            run_as_user: user.map(|value| v1::Int64Value { value }),
            run_as_group: group.map(|value| v1::Int64Value { value }),
            run_as_username: username,
            supplemental_groups: groups,
            supplemental_groups_policy: policy,
            seccomp: profile.map(|(profile_type, localhost_ref)| v1::SecurityProfile {
                profile_type, localhost_ref,
            }),
            masked_paths: masked,
            ..Default::default()
        }
    }
}

proptest! {
    /// Whatever a client sends: an answer or a refusal, never a panic, and a refusal names a field.
    #[test]
    fn no_container_request_panics(
        name in ".{0,20}", log_path in ".{0,20}", signal: i32, key in ".{0,5}",
        value: Vec<u8>, mount in any_mount(), security in any_security(),
        numbers: [i64; 6], cpus in "[0-9,x-]{0,9}",
    ) {
        let resources = v1::LinuxContainerResources {
            cpu_period: numbers[0], cpu_quota: numbers[1], cpu_shares: numbers[2],
            memory_limit_in_bytes: numbers[3], memory_swap_limit_in_bytes: numbers[4],
            oom_score_adj: numbers[5], cpuset_cpus: cpus, ..Default::default()
        };
        drop(resources::checked(&resources));
        let result = container_of(|c| {
            c.metadata.as_mut().unwrap().name = name;
            c.log_path = log_path;
            c.stop_signal = signal;
            c.envs = vec![v1::KeyValue { key, value }];
            c.mounts = vec![mount];
            c.linux = Some(v1::LinuxContainerConfig {
                resources: Some(resources), security_context: Some(security),
            });
        });
        if let Err(error) = result {
            prop_assert!(error.contains(": "), "{}", error);
        }
    }

    #[test]
    fn no_pod_request_panics(
        hostname in ".{0,70}", log_directory in ".{0,9}", server in ".{0,9}",
        ports: (i32, i32, i32), parent in ".{0,9}", user: Option<i64>,
        maps: Vec<(u32, u32)>, mode in -1..5i32,
    ) {
        let maps: Vec<_> = maps.into_iter().map(|(container_id, length)| v1::IdMapping {
            host_id: 0, container_id, length,
        }).collect();
        let options = v1::UserNamespace { mode, uids: maps.clone(), gids: maps };
        drop(pod_of(|c| {
            c.hostname = hostname;
            c.log_directory = log_directory;
            c.dns_config = Some(v1::DnsConfig { servers: vec![server], ..Default::default() });
            c.port_mappings = vec![v1::PortMapping {
                protocol: ports.0, container_port: ports.1, host_port: ports.2,
                host_ip: String::new(),
            }];
            c.linux = Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: parent,
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    run_as_user: user.map(|value| v1::Int64Value { value }),
                    namespace_options: Some(v1::NamespaceOption {
                        userns_options: Some(options), ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            });
        }));
    }
}
