//! A node, a real registry and a pod, from the pull to the clean-up, with the time of each step.

use std::fs;
use std::path::Path;
use std::time::Duration;

use wharf_testkit::cri::{self, Cri};
use wharf_testkit::node::Node;
use wharf_testkit::place::Place;
use wharf_testkit::real_registry::RealRegistry;
use wharf_testkit::samples::{self, BUSYBOX_IMAGE};
use wharf_testkit::wait;

use crate::args::Args;
use crate::cargo::{build, text};
use crate::setup;
use crate::waterfall::Waterfall;

/// How long the container may take to write its first line.
const LOG_LIMIT: Duration = Duration::from_secs(10);

/// `cargo xtask demo`.
pub(crate) fn run(mut args: Args) -> Result<(), String> {
    let debug = args.flag("--debug");
    args.end()?;
    setup::run_for(setup::For::Everything)?;
    let programs = build(!debug)?;

    let mut ready = Waterfall::new();
    let images = ready.step("make images", samples::critest)?;
    let place = ready.step("make namespaces", Place::own)?;
    let dir = wharf_testkit::temporary().map_err(text)?;
    let registry = ready.step("start a registry", || {
        RealRegistry::start(&place, dir.path())
    })?;
    ready.step("push the images", || registry.push(&images))?;
    let builder = Node::wharf().programs(programs).place(&place);
    let builder = builder.mirror("_default", &registry.url());
    let node = ready.step("start wharf", || builder.start())?;
    let version = node.cri().version().map_err(text)?;
    println!(
        "{} {}, CRI {}",
        version.runtime_name, version.runtime_version, version.runtime_api_version
    );
    println!(
        "registry at {} (in a network namespace of its own)\n",
        registry.url()
    );
    println!("Before the pod:\n{}", ready.draw());

    let mut pod = Waterfall::new();
    let shown = one_pod(node.cri(), &node.logs(), &mut pod);
    let mut clean = Waterfall::new();
    clean.step::<_, String>("clean up", || {
        drop(node);
        drop(registry);
        Ok(())
    })?;
    let (log, answer) = shown?;
    println!("Its log:\n{}", indented(&log));
    println!(
        "exec `id; hostname; cat /proc/1/cmdline`:\n{}",
        indented(&answer)
    );
    println!("The pod:\n{}", pod.draw());
    print!("After the pod:\n{}", clean.draw());
    Ok(())
}

/// The life of one pod; gives the container's log and an exec's output.
fn one_pod(cri: &Cri, logs: &Path, steps: &mut Waterfall) -> Result<(String, String), String> {
    let pod = cri::pod("demo", logs);
    let script = "echo \"hello from $(hostname), pid $$\"; exec sleep 1000";
    let config = cri::container("hello", BUSYBOX_IMAGE, &["sh", "-c", script]);
    steps.step("PullImage", || cri.pull(BUSYBOX_IMAGE))?;
    let id = steps.step("RunPodSandbox", || cri.run_pod(&pod, ""))?;
    let container = steps.step("CreateContainer", || cri.create(&id, &config, &pod))?;
    steps.step("StartContainer", || cri.start(&container))?;
    let log = steps.step("first log line", || first_line(&logs.join("hello.log")))?;
    let command = [
        "sh",
        "-c",
        "id; hostname; tr '\\0' ' ' < /proc/1/cmdline; echo",
    ];
    let answer = steps.step("ExecSync", || cri.exec(&container, &command, 10))?;
    steps.step("StopContainer", || cri.stop(&container, 0))?;
    steps.step("RemoveContainer", || cri.remove(&container))?;
    steps.step("StopPodSandbox", || cri.stop_pod(&id))?;
    steps.step("RemovePodSandbox", || cri.remove_pod(&id))?;
    steps.step("RemoveImage", || cri.remove_image(BUSYBOX_IMAGE))?;
    if answer.exit_code != 0 {
        let words = String::from_utf8_lossy(&answer.stderr);
        return Err(format!("ExecSync: exit code {}: {words}", answer.exit_code));
    }
    Ok((log, String::from_utf8_lossy(&answer.stdout).into_owned()))
}

fn first_line(log: &Path) -> Result<String, String> {
    let read = || fs::read_to_string(log).unwrap_or_default();
    let there = wait::until(LOG_LIMIT, || Ok(read().ends_with('\n'))).map_err(text)?;
    if there {
        Ok(read())
    } else {
        Err(format!("{} stays empty", log.display()))
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|l| format!("  {l}\n")).collect()
}
