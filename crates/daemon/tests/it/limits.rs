//! Limits: what is asked for is what the kernel has, is what the status says.

use std::fs;

use tonic::{Code, Status};
use wharf_api::v1::{ContainerStatus, LinuxContainerResources, UpdateContainerResourcesRequest};

use crate::scene::{Scene, cgroup_file, idle, linux, refused, shell, with};

fn of(status: &ContainerStatus) -> LinuxContainerResources {
    let resources = status.resources.clone().unwrap();
    resources.linux.unwrap()
}

fn update(scene: &Scene, container: &str, linux: LinuxContainerResources) -> Result<(), Status> {
    let request = UpdateContainerResourcesRequest {
        container_id: container.into(),
        linux: Some(linux),
        ..UpdateContainerResourcesRequest::default()
    };
    let mut client = scene.cri().runtime();
    scene
        .cri()
        .wait(client.update_container_resources(request))
        .map(drop)
}

/// Values of a v1 hierarchy, where this machine has them.
fn kernel(scene: &Scene, container: &str) -> [String; 5] {
    [
        ("cpu", "cpu.shares"),
        ("cpu", "cpu.cfs_quota_us"),
        ("cpu", "cpu.cfs_period_us"),
        ("cpuset", "cpuset.cpus"),
        ("memory", "memory.limit_in_bytes"),
    ]
    .map(|(controller, file)| {
        let path = cgroup_file(scene, container, controller, file);
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.trim().to_owned()
    })
}

#[test]
fn limits_reach_the_kernel_and_updates_too() {
    let Some(scene) = Scene::begin("limits_reach_the_kernel") else {
        return;
    };
    if !std::path::Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists() {
        println!("skipped: limits_reach_the_kernel: needs cgroup v1 controllers");
        return;
    }
    let pod = scene.pod("limits");
    let asked = LinuxContainerResources {
        cpu_shares: 512,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpuset_cpus: "0".into(),
        memory_limit_in_bytes: 64 << 20,
        ..LinuxContainerResources::default()
    };
    let config = with(idle("c"), |c| linux(c).resources = Some(asked.clone()));
    let container = pod.create(&config).unwrap();
    let first = ["512", "50000", "100000", "0", "67108864"].map(String::from);
    assert_eq!(kernel(&scene, &container), first);
    assert_eq!(
        of(&scene.cri().container_status(&container).unwrap()),
        asked
    );

    // Before the start: what is not named stays.
    let change = LinuxContainerResources {
        memory_limit_in_bytes: 96 << 20,
        ..Default::default()
    };
    update(&scene, &container, change).unwrap();
    scene.cri().start(&container).unwrap();
    let after = LinuxContainerResources {
        memory_limit_in_bytes: 96 << 20,
        ..asked.clone()
    };
    assert_eq!(
        of(&scene.cri().container_status(&container).unwrap()),
        after
    );
    assert_eq!(kernel(&scene, &container)[4], (96 << 20).to_string());

    let change = LinuxContainerResources {
        cpu_shares: 2048,
        cpu_quota: -1,
        memory_limit_in_bytes: 32 << 20,
        ..Default::default()
    };
    update(&scene, &container, change).unwrap();
    let third = ["2048", "-1", "100000", "0", "33554432"].map(String::from);
    assert_eq!(kernel(&scene, &container), third);
    let status = of(&scene.cri().container_status(&container).unwrap());
    assert_eq!((status.cpu_shares, status.cpu_quota), (2048, -1));

    // All or nothing: the second value cannot be, so the first is not either.
    let impossible = LinuxContainerResources {
        cpu_shares: 4096,
        cpuset_cpus: "900".into(),
        ..Default::default()
    };
    let answer = update(&scene, &container, impossible);
    assert!(answer.is_err(), "there is no CPU 900");
    assert_eq!(kernel(&scene, &container), third, "{answer:?}");
    assert_eq!(
        of(&scene.cri().container_status(&container).unwrap()),
        status
    );

    scene.cri().stop(&container, 5).unwrap();
    let late = LinuxContainerResources {
        cpu_shares: 3,
        ..Default::default()
    };
    refused(
        update(&scene, &container, late),
        Code::FailedPrecondition,
        &[&container],
    );
    pod.end();
    scene.leaves_nothing();
}

#[test]
fn a_limit_is_felt_inside() {
    let Some(scene) = Scene::begin("a_limit_is_felt_inside") else {
        return;
    };
    let pod = scene.pod("felt");
    let config = with(
        shell("c", "grep Cpus_allowed_list /proc/self/status"),
        |c| {
            linux(c).resources = Some(LinuxContainerResources {
                cpuset_cpus: "0".into(),
                ..Default::default()
            });
        },
    );
    assert_eq!(pod.finish(&config).1, "Cpus_allowed_list:\t0\n");
    pod.end();
    scene.leaves_nothing();
}

#[test]
fn limits_out_of_range_are_refused_by_field_and_leave_nothing() {
    let Some(scene) = Scene::begin("limits_out_of_range") else {
        return;
    };
    let pod = scene.pod("range");
    pod.finish(&shell("makes-the-pods-cgroup", "true"));
    let scene_before = scene.node.look();
    let none = LinuxContainerResources::default;
    for (field, resources) in [
        (
            "memory_limit_in_bytes",
            LinuxContainerResources {
                memory_limit_in_bytes: -7,
                ..none()
            },
        ),
        (
            "memory_limit_in_bytes",
            LinuxContainerResources {
                memory_limit_in_bytes: 4096,
                ..none()
            },
        ),
        (
            "cpu_shares",
            LinuxContainerResources {
                cpu_shares: 1,
                ..none()
            },
        ),
        (
            "cpu_shares",
            LinuxContainerResources {
                cpu_shares: 300_000,
                ..none()
            },
        ),
        (
            "cpu_quota",
            LinuxContainerResources {
                cpu_quota: 10,
                ..none()
            },
        ),
        (
            "cpu_period",
            LinuxContainerResources {
                cpu_period: 2_000_000,
                ..none()
            },
        ),
        (
            "oom_score_adj",
            LinuxContainerResources {
                oom_score_adj: 1001,
                ..none()
            },
        ),
        (
            "cpuset_cpus",
            LinuxContainerResources {
                cpuset_cpus: "a-b".into(),
                ..none()
            },
        ),
        (
            "cpuset_cpus",
            LinuxContainerResources {
                cpuset_cpus: "900".into(),
                ..none()
            },
        ),
        (
            "memory_swap_limit_in_bytes",
            LinuxContainerResources {
                memory_limit_in_bytes: 64 << 20,
                memory_swap_limit_in_bytes: 32 << 20,
                ..none()
            },
        ),
    ] {
        let word = if resources.cpuset_cpus == "900" {
            "cpuset"
        } else {
            field
        };
        let config = with(idle("c"), |c| linux(c).resources = Some(resources));
        refused(pod.create(&config), Code::InvalidArgument, &[word]);
        let left = || scene_before.changes(&scene.node.look());
        wharf_testkit::wait::until(crate::scene::SOON, || Ok(left().is_empty())).unwrap();
        assert_eq!(left(), Vec::<String>::new(), "{field}");
    }
    pod.end();
    scene.leaves_nothing();
}
