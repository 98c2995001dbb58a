//! Answers: statuses, verbose JSON, filtered lists.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use wharf_api::v1;
use wharf_engine::spec::ResourceSpec;
use wharf_engine::view::{
    ContainerFacts, ContainerState, ContainerView, NetworkView, PodState, PodView, UserView,
};
use wharf_types::{ContainerId, PodId};

use super::super::{filter, pod, status};
use super::{pod_request, with_mount};

pub(super) fn pod_view(id: &str, state: PodState, labels: &[(&str, &str)]) -> Arc<PodView> {
    let mut spec = pod::spec(pod_request()).unwrap();
    spec.labels = labels
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    Arc::new(PodView {
        id: format!("{id:0<64}").parse::<PodId>().unwrap(),
        spec: Arc::new(spec),
        state,
        stage: "ready",
        created_at_ns: 1_700_000_000_000_000_001,
        network: NetworkView {
            ip: "10.0.0.5".to_owned(),
            additional_ips: vec!["fd00::5".to_owned()],
        },
        shim_pid: Some(41),
        sandbox_pid: None,
        netns: Some(PathBuf::from("/run/netns/x")),
        cgroup: "wharf/pods/x".to_owned(),
        hostname: "web-0".to_owned(),
    })
}

pub(super) fn container_view() -> ContainerView {
    let spec = with_mount(|m| m.readonly = true).unwrap();
    ContainerView {
        id: ContainerId::from_random([1; 32]),
        pod: PodId::from_random([2; 32]),
        spec: Arc::new(spec),
        state: ContainerState::Exited,
        created_at_ns: 1,
        started_at_ns: 2,
        finished_at_ns: 3,
        exit_code: 137,
        reason: "OOMKilled".to_owned(),
        message: "m".to_owned(),
        facts: Arc::new(ContainerFacts {
            image_id: "sha256:aa".to_owned(),
            image_name: "docker.io/library/busybox:latest".to_owned(),
            log_path: Some(PathBuf::from("/var/log/pods/web/main/0.log")),
            user: UserView {
                uid: 1000,
                gid: 1001,
                groups: vec![1001, 5],
            },
            stop_signal: 3,
            snapshot_key: "k".to_owned(),
            cgroup: "c".to_owned(),
            runtime_spec: Arc::from(
                r#"{"ociVersion":"1.2.0","linux":{"namespaces":[{"type":"pid"}]}}"#,
            ),
        }),
        resources: ResourceSpec {
            cpu_shares: 2,
            ..ResourceSpec::default()
        },
        pid: Some(7),
    }
}

#[test]
fn a_pods_status_says_what_cri_wants_to_know() {
    let status = pod::status(&pod_view("a", PodState::Unknown, &[("app", "web")]));
    assert_eq!(
        status.state,
        i32::from(v1::PodSandboxState::SandboxNotready)
    );
    assert_eq!(status.created_at, 1_700_000_000_000_000_001, "nanoseconds");
    let network = status.network.unwrap();
    assert_eq!(
        (network.ip.as_str(), network.additional_ips[0].ip.as_str()),
        ("10.0.0.5", "fd00::5")
    );
    assert_eq!(status.metadata.unwrap().attempt, 2);
    assert_eq!(status.annotations["odd key/é"], " kept\n");
    assert!(status.linux.unwrap().namespaces.unwrap().options.is_some());
}

#[test]
fn a_containers_status_says_what_cri_wants_to_know() {
    let status = status::status(&container_view());
    assert_eq!(status.state, i32::from(v1::ContainerState::ContainerExited));
    assert_eq!(
        (status.created_at, status.started_at, status.finished_at),
        (1, 2, 3)
    );
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    assert_eq!(
        status.image.unwrap().image,
        "docker.io/library/busybox:latest"
    );
    assert_eq!(
        (status.image_ref.as_str(), status.image_id.as_str()),
        ("sha256:aa", "sha256:aa")
    );
    assert_eq!(status.mounts.len(), 1, "only those that were asked for");
    assert_eq!(status.mounts[0].host_path, "/srv");
    assert_eq!(status.log_path, "/var/log/pods/web/main/0.log");
    assert_eq!(status.stop_signal, i32::from(v1::Signal::Sigquit));
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!(
        (user.uid, user.gid, user.supplemental_groups),
        (1000, 1001, vec![1001, 5])
    );
    assert_eq!(status.resources.unwrap().linux.unwrap().cpu_shares, 2);
}

#[test]
fn verbose_answers_have_the_keys_that_scripts_read() {
    let container = crate::info::container(&container_view());
    let info: serde_json::Value = serde_json::from_str(&container["info"]).unwrap();
    assert_eq!(info["pid"], 7);
    assert_eq!(info["runtimeSpec"]["linux"]["namespaces"][0]["type"], "pid");
    assert_eq!(info["sandboxID"].as_str().unwrap().len(), 64);
    assert_eq!(info["config"]["metadata"]["name"], "main");
    assert_eq!(info["config"]["mounts"][0]["container_path"], "/data");

    let security = &info["config"]["linux"]["security_context"];
    assert_eq!(security["namespace_options"]["network"], "Pod");

    let pod = crate::info::pod(&pod_view("a", PodState::Ready, &[]));
    let info: serde_json::Value = serde_json::from_str(&pod["info"]).unwrap();
    assert_eq!(info["pid"], 41);
    let namespaces = info["runtimeSpec"]["linux"]["namespaces"]
        .as_array()
        .unwrap();
    let network = namespaces.iter().find(|n| n["type"] == "network").unwrap();
    assert_eq!(network["path"], "/run/netns/x");
    assert_eq!(info["config"]["linux"]["cgroup_parent"], "");
}

#[test]
fn filters_join_their_parts_and_find_unique_beginnings() {
    let pods = [
        pod_view("aa1", PodState::Ready, &[("app", "web"), ("tier", "1")]),
        pod_view("aa2", PodState::NotReady, &[("app", "web")]),
        pod_view("b", PodState::Ready, &[]),
    ];
    let ready = i32::from(v1::PodSandboxState::SandboxReady);
    let found = |id: &str, state: Option<i32>, labels: &[(&str, &str)]| -> Vec<String> {
        let filter = v1::PodSandboxFilter {
            id: id.to_owned(),
            state: state.map(|state| v1::PodSandboxStateValue { state }),
            label_selector: labels
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect(),
        };
        let list = pod::filtered(Some(&filter), &pods).unwrap();
        list.iter().map(|p| p.id.as_str()[..3].to_owned()).collect()
    };
    assert_eq!(found("", None, &[]).len(), 3);
    assert_eq!(found("aa1", None, &[]), ["aa1"]);
    assert!(found("aa", None, &[]).is_empty(), "not unique");
    assert!(found("c", None, &[]).is_empty());
    assert_eq!(found("", Some(ready), &[("app", "web")]), ["aa1"]);
    assert!(found("b", None, &[("app", "web")]).is_empty());
    assert!(
        found("", None, &[("app", "we")]).is_empty(),
        "values are exact"
    );
    assert_eq!(pod::filtered(None, &pods).unwrap().len(), 3);

    let containers = [Arc::new(container_view())];
    let of_pod = |id: String| {
        let filter = v1::ContainerFilter {
            pod_sandbox_id: id,
            ..Default::default()
        };
        status::filtered(Some(&filter), &containers).unwrap().len()
    };
    assert_eq!(of_pod("02".repeat(32)), 1);
    assert_eq!(of_pod("0202".to_owned()), 1);
    assert_eq!(of_pod("ff".to_owned()), 0);
    assert!(filter::has_labels(&HashMap::new(), &BTreeMap::new()));
}
