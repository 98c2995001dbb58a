//! Requests that must fail: the field and what would be right, the code, and nothing left.

use std::time::Duration;

use tonic::{Code, Request};
use wharf_api::v1::{
    Capability, CdiDevice, ContainerConfig, Device, Int64Value, KeyValue, Mount, MountPropagation,
    NamespaceMode, PodSandboxConfig, PortMapping, RunPodSandboxRequest, SecurityProfile,
    security_profile::ProfileType,
};
use wharf_testkit::cri::spec;

use crate::scene::{Scene, idle, linux, pod_security, refused, security, with};

type SetPod = fn(&mut PodSandboxConfig);
type SetContainer = fn(&mut ContainerConfig);

fn number(value: i64) -> Option<Int64Value> {
    Some(Int64Value { value })
}

#[test]
fn a_pod_that_cannot_be_is_refused_by_its_field() {
    let Some(scene) = Scene::begin("a_pod_that_cannot_be") else {
        return;
    };
    let cases: [(&str, SetPod); 12] = [
        ("metadata", |p| p.metadata = None),
        ("metadata.name", |p| {
            p.metadata.as_mut().unwrap().name.clear();
        }),
        ("metadata.uid", |p| {
            p.metadata.as_mut().unwrap().uid = "a\nb".into();
        }),
        ("metadata.namespace", |p| {
            p.metadata.as_mut().unwrap().namespace = "n".repeat(600);
        }),
        ("hostname", |p| p.hostname = "h".repeat(65)),
        ("hostname", |p| p.hostname = "a/b".into()),
        ("log_directory", |p| p.log_directory = "relative".into()),
        ("cgroup_parent", |p| {
            crate::scene::pod_linux(p).cgroup_parent = "/../../elsewhere".into();
        }),
        ("run_as_group", |p| pod_security(p).run_as_group = number(7)),
        ("namespace_options.network", |p| {
            let options = pod_security(p).namespace_options.get_or_insert_default();
            options.network = NamespaceMode::Container.into();
        }),
        ("namespace_options.pid", |p| {
            let options = pod_security(p).namespace_options.get_or_insert_default();
            options.pid = NamespaceMode::Target.into();
        }),
        ("port_mappings", |p| {
            p.port_mappings = vec![PortMapping {
                container_port: 70_000,
                ..PortMapping::default()
            }];
        }),
    ];
    for (field, set) in cases {
        let config = scene.pod_config("wrong", set);
        refused(
            scene.cri().run_pod(&config, ""),
            Code::InvalidArgument,
            &[field],
        );
        scene.leaves_nothing();
    }
    let mut client = scene.cri().runtime();
    let answer = scene
        .cri()
        .wait(client.run_pod_sandbox(RunPodSandboxRequest::default()));
    refused(answer, Code::InvalidArgument, &["config"]);
    let config = scene.pod_config("handler", |_| {});
    let answer = scene.cri().run_pod(&config, "no-such-handler");
    let text = answer.expect_err("it is refused");
    assert!(text.message().contains("no-such-handler"), "{text:?}");
    assert!(
        matches!(text.code(), Code::InvalidArgument | Code::NotFound),
        "{text:?}"
    );
    scene.leaves_nothing();
}

/// Until pods have networks of their own a port that nothing would forward is not accepted silently.
#[test]
fn a_host_port_that_cannot_be_forwarded_is_not_taken_silently() {
    let Some(scene) = Scene::begin("a_host_port") else {
        return;
    };
    let port = |host_port| PortMapping {
        container_port: 80,
        host_port,
        ..PortMapping::default()
    };
    let config = scene.pod_config("port", |p| p.port_mappings = vec![port(8080)]);
    let status = scene
        .cri()
        .run_pod(&config, "")
        .expect_err("nothing would listen there");
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    assert!(status.message().contains("port"), "{status:?}");
    scene.leaves_nothing();
    // Port 0 asks for no mapping; on the host's network the container listens itself.
    let pod = scene.pod_with("none", |p| p.port_mappings = vec![port(0)]);
    pod.end();
    let pod = scene.pod_with("host", |p| {
        p.port_mappings = vec![port(8080)];
        let options = pod_security(p).namespace_options.get_or_insert_default();
        options.network = NamespaceMode::Node.into();
    });
    pod.end();
}

#[test]
fn a_container_that_cannot_be_is_refused_by_its_field() {
    let Some(scene) = Scene::begin("a_container_that_cannot_be") else {
        return;
    };
    let pod = scene.pod("refuses");
    pod.finish(&crate::scene::shell("makes-the-pods-cgroup", "true"));
    let scene_now = scene.node.look();
    let cases: [(&str, Code, SetContainer); 27] = [
        ("metadata", Code::InvalidArgument, |c| c.metadata = None),
        ("metadata.name", Code::InvalidArgument, |c| {
            c.metadata.as_mut().unwrap().name.clear();
        }),
        ("image", Code::InvalidArgument, |c| c.image = None),
        ("image", Code::InvalidArgument, |c| c.image = Some(spec(""))),
        ("nosuch", Code::NotFound, |c| {
            c.image = Some(spec("registry.test/nosuch:1"));
        }),
        ("log_path", Code::InvalidArgument, |c| {
            c.log_path = "../../escape.log".into();
        }),
        ("host_path", Code::InvalidArgument, |c| {
            mount(c, "relative", "/m");
        }),
        ("container_path", Code::InvalidArgument, |c| {
            mount(c, "/tmp", "relative");
        }),
        ("host_path", Code::InvalidArgument, |c| mount(c, "", "/m")),
        ("mount", Code::InvalidArgument, |c| {
            mount(c, "/etc/passwd/x", "/m");
        }),
        ("propagation", Code::InvalidArgument, |c| {
            mount(c, "/var", "/m");
            c.mounts[0].propagation = 77;
        }),
        ("--make-r", Code::InvalidArgument, |c| {
            mount(c, "/var", "/m");
            c.mounts[0].propagation = MountPropagation::PropagationBidirectional.into();
        }),
        ("recursive_read_only", Code::InvalidArgument, |c| {
            mount(c, "/var", "/m");
            c.mounts[0].recursive_read_only = true;
        }),
        ("mount option", Code::InvalidArgument, |c| {
            mount(c, "/var", "/m");
            c.mounts[0].mount_options = vec!["suid".into()];
        }),
        ("readonly", Code::InvalidArgument, |c| {
            let image = Some(spec("registry.test/it/busybox:1"));
            c.mounts = vec![Mount {
                image,
                container_path: "/m".into(),
                ..Mount::default()
            }];
        }),
        ("run_as_group", Code::InvalidArgument, |c| {
            security(c).run_as_group = number(7);
        }),
        ("run_as_user", Code::InvalidArgument, |c| {
            security(c).run_as_user = number(-1);
        }),
        ("run_as_username", Code::InvalidArgument, |c| {
            security(c).run_as_user = number(1);
            security(c).run_as_username = "root".into();
        }),
        ("\"ghost\"", Code::InvalidArgument, |c| {
            security(c).run_as_username = "ghost".into();
        }),
        ("supplemental_groups", Code::InvalidArgument, |c| {
            security(c).supplemental_groups = vec![1 << 40];
        }),
        ("\"FLY\"", Code::InvalidArgument, |c| {
            security(c).capabilities = Some(Capability {
                add_capabilities: vec!["FLY".into()],
                ..Capability::default()
            });
        }),
        ("privileged", Code::InvalidArgument, |c| {
            security(c).privileged = true;
        }),
        ("/no/such/profile", Code::InvalidArgument, |c| {
            security(c).seccomp = Some(SecurityProfile {
                profile_type: ProfileType::Localhost.into(),
                localhost_ref: "/no/such/profile".into(),
            });
        }),
        ("envs", Code::InvalidArgument, |c| {
            c.envs = vec![KeyValue {
                key: "A=B".into(),
                value: Vec::new(),
            }];
        }),
        ("/dev/nosuch", Code::InvalidArgument, |c| {
            c.devices = vec![Device {
                host_path: "/dev/nosuch".into(),
                container_path: "/dev/x".into(),
                permissions: "rw".into(),
            }];
        }),
        ("target_id", Code::InvalidArgument, |c| {
            let options = security(c).namespace_options.get_or_insert_default();
            options.pid = NamespaceMode::Target.into();
            options.target_id = "f".repeat(64);
        }),
        ("vendor.test/class=x", Code::Unimplemented, |c| {
            c.cdi_devices = vec![CdiDevice {
                name: "vendor.test/class=x".into(),
            }];
        }),
    ];
    for (word, code, set) in cases {
        let config = with(idle("wrong"), set);
        refused(pod.create(&config), code, &[word]);
        let left = || scene_now.changes(&scene.node.look());
        wharf_testkit::wait::until(crate::scene::SOON, || Ok(left().is_empty())).unwrap();
        assert_eq!(left(), Vec::<String>::new(), "{word}");
    }
    pod.run(&idle("wrong"));
    scene.cri().stop_pod(&pod.id).unwrap();
    refused(
        pod.create(&idle("late")),
        Code::FailedPrecondition,
        &[&pod.id],
    );
    pod.end();
    refused(pod.create(&idle("late")), Code::NotFound, &[&pod.id]);
    scene.leaves_nothing();
}

fn mount(config: &mut ContainerConfig, host_path: &str, container_path: &str) {
    let (host_path, container_path) = (host_path.into(), container_path.into());
    config.mounts = vec![Mount {
        host_path,
        container_path,
        ..Mount::default()
    }];
}

/// "name is reserved for …" is what the incumbents' users report most.
#[test]
fn a_repeated_request_gets_the_id_and_another_one_of_that_name_is_refused() {
    let Some(scene) = Scene::begin("a_repeated_request") else {
        return;
    };
    let pod = scene.pod("same");
    assert_eq!(scene.cri().run_pod(&pod.config, "").unwrap(), pod.id);
    let other = scene.pod_config("same", |p| p.hostname = "other".into());
    refused(
        scene.cri().run_pod(&other, ""),
        Code::AlreadyExists,
        &[&pod.id, "same"],
    );
    let again = scene.pod_config("same", |p| p.metadata.as_mut().unwrap().attempt = 1);
    let second = scene.cri().run_pod(&again, "").unwrap();
    assert_ne!(second, pod.id);
    scene.cri().remove_pod(&second).unwrap();

    let container = pod.create(&idle("c")).unwrap();
    assert_eq!(pod.create(&idle("c")).unwrap(), container);
    let other = with(idle("c"), |c| {
        linux(c).resources.get_or_insert_default().cpu_shares = 64;
    });
    refused(pod.create(&other), Code::AlreadyExists, &[&container, "c"]);
    scene.cri().start(&container).unwrap();
    scene.cri().start(&container).unwrap();
    refused(pod.create(&idle("c")), Code::AlreadyExists, &[&container]);
    scene.cri().stop(&container, 5).unwrap();
    refused(
        scene.cri().start(&container),
        Code::FailedPrecondition,
        &[&container, "exited"],
    );
    scene.cri().remove(&container).unwrap();
    let next = pod.create(&idle("c")).unwrap();
    assert_ne!(next, container, "ids are never used twice");
    scene.cri().stop_pod(&pod.id).unwrap();
    refused(
        scene.cri().run_pod(&pod.config, ""),
        Code::AlreadyExists,
        &[&pod.id],
    );
    pod.end();
    scene.leaves_nothing();
}

/// A client's patience ends in the middle; kubelet asks the same again.
#[test]
fn a_client_that_goes_and_asks_again_gets_one_pod() {
    let Some(scene) = Scene::begin("a_client_that_goes_and_asks_again") else {
        return;
    };
    let cri = scene.cri();
    let mut cut = 0;
    for (i, micros) in [1, 300, 700, 1_500, 2_500, 4_000, 6_000]
        .into_iter()
        .enumerate()
    {
        let config = scene.pod_config(&format!("cut-{i}"), |_| {});
        let request = || RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        let mut client = cri.runtime();
        let mut hurried = Request::new(request());
        hurried.set_timeout(Duration::from_micros(micros));
        if let Err(status) = cri.wait(client.run_pod_sandbox(hurried)) {
            let fits = matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled);
            assert!(fits, "{status:?}");
            cut += 1;
        }
        let id = cri
            .wait(client.run_pod_sandbox(request()))
            .unwrap()
            .pod_sandbox_id;
        assert_eq!(cri.pods().unwrap(), std::slice::from_ref(&id));
        cri.remove_pod(&id).unwrap();
    }
    assert!(cut > 0, "no deadline was met");
    scene.leaves_nothing();
}
