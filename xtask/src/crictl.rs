//! The walk of a person with crictl: from the pull to the removal, each answer looked at.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use wharf_testkit::node::Node;
use wharf_testkit::samples::BUSYBOX_IMAGE;

use crate::cargo::{output, text};

/// crictl on the socket of a node.
struct Crictl<'a> {
    program: PathBuf,
    node: &'a Node,
    passed: usize,
    failed: Vec<String>,
}

impl Crictl<'_> {
    fn call(&self, args: &[&str]) -> Result<String, String> {
        let endpoint = format!("unix://{}", self.node.socket().display());
        let mut command = self.node.place().command(&self.program);
        // Without a configuration file of the machine.
        command.args([
            "-c",
            "/dev/null",
            "-t",
            "60s",
            "-r",
            &endpoint,
            "-i",
            &endpoint,
        ]);
        output(command.args(args)).map(|answer| answer.trim().to_string())
    }

    /// One step: crictl succeeds and its answer is as it should be.
    fn step(&mut self, args: &[&str], right: impl FnOnce(&str) -> bool) -> String {
        let verb = args[0];
        match self.call(args) {
            Ok(answer) if right(&answer) => {
                self.passed += 1;
                return answer;
            }
            Ok(answer) => self
                .failed
                .push(format!("crictl {verb}: unexpected answer: {answer}")),
            Err(e) => self.failed.push(e),
        }
        String::new()
    }
}

/// Walks on `node`; gives how many steps passed, and a line for each that did not.
///
/// The image is among those of critest, which the node's registry must have.
pub(crate) fn walk(program: &Path, node: &Node) -> Result<(usize, Vec<String>), String> {
    let (pod, container) = (
        node.dir().join("pod.json"),
        node.dir().join("container.json"),
    );
    fs::write(&pod, pod_json(node).to_string()).map_err(text)?;
    fs::write(&container, CONTAINER.replace("IMAGE", BUSYBOX_IMAGE)).map_err(text)?;
    let (pod, container) = (pod.display().to_string(), container.display().to_string());
    let program = program.to_owned();
    let mut crictl = Crictl {
        program,
        node,
        passed: 0,
        failed: Vec::new(),
    };

    let is_id = |answer: &str| answer.len() >= 12 && answer.lines().count() == 1;
    crictl.step(&["version"], |a| a.contains("RuntimeApiVersion:  v1"));
    crictl.step(&["info"], |a| {
        has(a, "/status/conditions/0/status", &json!(true))
    });
    crictl.step(&["pull", BUSYBOX_IMAGE], |a| a.contains("up to date"));
    crictl.step(&["images"], |a| a.contains("e2e-test-images/busybox"));
    crictl.step(&["inspecti", BUSYBOX_IMAGE], |a| {
        has(a, "/status/repoTags/0", &json!(BUSYBOX_IMAGE))
    });
    let id = crictl.step(&["runp", &pod], is_id);
    crictl.step(&["pods"], |a| a.contains("walk"));
    crictl.step(&["inspectp", &id], |a| {
        has(a, "/status/state", &json!("SANDBOX_READY"))
    });
    let made = crictl.step(&["create", &id, &container, &pod], is_id);
    crictl.step(&["start", &made], |a| a.contains(&made));
    crictl.step(&["ps"], |a| a.contains("Running") && a.contains("walker"));
    crictl.step(&["exec", "-s", &made, "echo", "from", "exec"], |a| {
        a == "from exec"
    });
    crictl.step(&["inspect", &made], running_with_pid);
    crictl.step(&["logs", &made], |a| a.contains("from the walker"));
    measures(&mut crictl, &made);
    crictl.step(&["stop", "-t", "0", &made], |a| a.contains(&made));
    crictl.step(&["ps", "-a"], |a| a.contains("Exited"));
    crictl.step(&["rm", &made], |a| a.contains(&made));
    crictl.step(&["stopp", &id], |a| a.contains(&id));
    crictl.step(&["rmp", &id], |a| a.contains(&id));
    crictl.step(&["rmi", BUSYBOX_IMAGE], |_| true);
    crictl.step(&["pods", "-q"], str::is_empty);
    Ok((crictl.passed, crictl.failed))
}

/// What `container` and its pod use, in the words of a person and of a program.
fn measures(crictl: &mut Crictl<'_>, container: &str) {
    let figure = |answer: &str, pointer: &str| {
        let answer: Value = serde_json::from_str(answer).unwrap_or_default();
        let text = answer.pointer(pointer).and_then(Value::as_str);
        text.and_then(|number| number.parse::<u64>().ok()) > Some(0)
    };
    crictl.step(&["stats"], |a| a.contains("walker"));
    crictl.step(&["stats", "-o", "json", container], |a| {
        figure(a, "/stats/0/cpu/usageCoreNanoSeconds/value")
            && figure(a, "/stats/0/memory/workingSetBytes/value")
            && figure(a, "/stats/0/writableLayer/usedBytes/value")
    });
    crictl.step(&["statsp"], |a| a.contains("walk"));
    crictl.step(&["statsp", "-o", "json"], |a| {
        figure(a, "/stats/0/linux/process/processCount/value")
    });
    crictl.step(&["metricdescs"], |a| {
        a.contains("container_memory_working_set_bytes")
    });
    crictl.step(&["metricsp"], |a| {
        a.contains("container_start_time_seconds")
    });
    crictl.step(&["imagefsinfo"], |a| a.contains("usedBytes"));
}

/// What scripts read: the state, and `info.pid` for nsenter.
fn running_with_pid(answer: &str) -> bool {
    let pid = serde_json::from_str::<Value>(answer)
        .ok()
        .and_then(|v| v["info"]["pid"].as_u64());
    has(answer, "/status/state", &json!("CONTAINER_RUNNING")) && pid.is_some_and(|pid| pid > 1)
}

fn has(answer: &str, pointer: &str, value: &Value) -> bool {
    let answer: Value = serde_json::from_str(answer).unwrap_or_default();
    answer.pointer(pointer) == Some(value)
}

fn pod_json(node: &Node) -> Value {
    json!({
        "metadata": { "name": "walk", "uid": "walk", "namespace": "default", "attempt": 0 },
        "log_directory": node.logs(),
        "linux": { "cgroup_parent": node.cgroup_parent("walk"), "security_context": {
            "namespace_options": { "pid": 1, "network": 2 },
        }},
    })
}

const CONTAINER: &str = r#"{
    "metadata": { "name": "walker", "attempt": 0 },
    "image": { "image": "IMAGE" },
    "command": ["sh", "-c", "echo from the walker; exec sleep 1000"],
    "log_path": "walker.log",
    "linux": { "security_context": { "namespace_options": { "pid": 1, "network": 2 } } }
}"#;
