//! Verbose answers: the JSON that `crictl inspect` shows and that scripts read.
//!
//! Keys are those that containerd's users know, as far as we have the thing: `pid`, `runtimeSpec`,
//! `config`, `sandboxID`, `snapshotKey`. Read by root alone, as everything behind our socket.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use wharf_engine::NetworkState;
use wharf_engine::spec::{ContainerSpec, NamespaceMode, PodSpec};
use wharf_engine::view::{ContainerView, PodState, PodView};

/// The key under which containerd puts everything, and where scripts look.
const KEY: &str = "info";
/// How snapshots are made.
const SNAPSHOTTER: &str = "overlayfs";
/// What runs containers.
const RUNTIME_TYPE: &str = "io.wharf.shim";

/// A verbose answer's map.
pub(crate) fn map(key: &str, value: &Value) -> HashMap<String, String> {
    HashMap::from([(key.to_owned(), value.to_string())])
}

/// Of the pods' network: which one, and what is wrong with configurations. `lastCNILoadStatus` is where
/// containerd's users look.
pub(crate) fn network(state: &NetworkState) -> HashMap<String, String> {
    let plugins = state.plugins.iter();
    let value = json!({
        "name": state.network,
        "file": state.file,
        "plugins": plugins.map(|(name, by)| json!({"type": name, "by": by})).collect::<Value>(),
        "problems": state.problems,
    });
    let said = match (&state.ready, state.problems.first()) {
        (Err(why), _) => why.clone(),
        (Ok(()), Some(problem)) => problem.clone(),
        (Ok(()), None) => "OK".to_owned(),
    };
    HashMap::from([
        ("network".to_owned(), value.to_string()),
        ("lastCNILoadStatus".to_owned(), said),
    ])
}

/// Of a container.
pub(crate) fn container(view: &ContainerView) -> HashMap<String, String> {
    let facts = &view.facts;
    let spec: Value = serde_json::from_str(&facts.runtime_spec).unwrap_or_default();
    let value = json!({
        "sandboxID": view.pod.as_str(),
        "pid": view.pid.unwrap_or(0),
        "image": facts.image_id,
        "snapshotKey": facts.snapshot_key,
        "snapshotter": SNAPSHOTTER,
        "runtimeType": RUNTIME_TYPE,
        "cgroup": facts.cgroup,
        "config": container_config(&view.spec),
        "runtimeSpec": spec,
    });
    map(KEY, &value)
}

fn container_config(spec: &ContainerSpec) -> Value {
    let mut config = serde_json::to_value(spec).unwrap_or_default();
    let envs = spec.envs.iter().map(|env| {
        let value = String::from_utf8_lossy(&env.value);
        json!({"key": env.name, "value": value})
    });
    if let Some(fields) = config.as_object_mut() {
        fields.insert("envs".to_owned(), envs.collect());
        below_linux(fields, &["resources", "security"]);
    }
    config
}

/// Puts what is below `linux` in CRI there, under CRI's names.
fn below_linux(fields: &mut Map<String, Value>, keys: &[&str]) {
    let mut linux = Map::new();
    for key in keys {
        let Some(mut value) = fields.remove(*key) else {
            continue;
        };
        let name = if *key == "security" {
            "security_context"
        } else {
            key
        };
        if let Some(security) = value.as_object_mut()
            && let Some(namespaces) = security.remove("namespaces")
        {
            security.insert("namespace_options".to_owned(), namespaces);
        }
        linux.insert(name.to_owned(), value);
    }
    fields.insert("linux".to_owned(), Value::Object(linux));
}

/// Of a pod. There is no pause container, so the specification is what one would have had.
pub(crate) fn pod(view: &PodView) -> HashMap<String, String> {
    let gone = view.state != PodState::Ready || view.pid().is_none();
    let value = json!({
        "pid": view.pid().unwrap_or(0),
        "processStatus": if gone { "deleted" } else { "running" },
        "netNamespaceClosed": gone,
        "netns": view.netns,
        "shimPid": view.shim_pid,
        "stage": view.stage,
        "image": "",
        "snapshotKey": "",
        "snapshotter": SNAPSHOTTER,
        "runtimeHandler": view.spec.runtime_handler,
        "runtimeType": RUNTIME_TYPE,
        "config": pod_config(&view.spec),
        "runtimeSpec": {
            "hostname": view.hostname,
            "annotations": view.spec.annotations,
            "linux": {
                "cgroupsPath": view.cgroup,
                "sysctl": view.spec.sysctls,
                "namespaces": pod_namespaces(view),
            },
        },
    });
    map(KEY, &value)
}

fn pod_config(spec: &PodSpec) -> Value {
    let mut config = serde_json::to_value(spec).unwrap_or_default();
    if let Some(fields) = config.as_object_mut() {
        let keys = [
            "cgroup_parent",
            "sysctls",
            "overhead",
            "resources",
            "security",
        ];
        below_linux(fields, &keys);
        if let Some(dns) = fields.remove("dns") {
            fields.insert("dns_config".to_owned(), dns);
        }
    }
    config
}

/// Where the pod's namespaces can be entered: `nsenter --net=PATH`.
fn pod_namespaces(view: &PodView) -> Vec<Value> {
    let modes = &view.spec.security.namespaces;
    let own = |mode| mode != NamespaceMode::Node;
    let host_network = !own(modes.network);
    let place = |name: &str| view.pid().map(|pid| format!("/proc/{pid}/ns/{name}"));
    let network = match &view.netns {
        Some(path) => Some(path.to_string_lossy().into_owned()),
        None => place("net"),
    };
    let mut list = Vec::new();
    let mut add = |kind: &str, path: Option<String>| match path {
        Some(path) => list.push(json!({"type": kind, "path": path})),
        None => list.push(json!({"type": kind})),
    };
    if !host_network {
        add("network", network);
        add("uts", place("uts"));
    }
    if own(modes.ipc) {
        add("ipc", place("ipc"));
    }
    if modes.pid == NamespaceMode::Pod {
        add("pid", place("pid"));
    }
    if modes.user.is_some() {
        add("user", place("user"));
    }
    list
}
