//! Start, exec, stop and memory of pods with a bridge network.

use std::path::Path;
use std::time::Instant;

use wharf_api::v1::PodSandboxConfig;
use wharf_testkit::cri::{self, Cri};
use wharf_testkit::node::Node;
use wharf_testkit::samples::{self, BUSYBOX_IMAGE};
use wharf_testkit::{containerd, machine};

use super::report::{self, Row};
use super::{Field, Options, circumstances};
use crate::cargo::text;

/// Rounds that do not count: sandbox images are pulled, caches filled.
const WARM_UP: usize = 3;

/// A daemon with one of its handlers.
pub(super) struct Contestant<'a> {
    pub(super) name: String,
    pub(super) node: &'a Node,
    pub(super) handler: &'static str,
    /// Its pods have a bridge network; else the place's own.
    pub(super) bridge: bool,
}

/// `cargo xtask bench pod`.
pub(super) fn run(options: &Options) -> Result<(), String> {
    let field = Field::start(options)?;
    let images = samples::critest().map_err(text)?;
    field.registry.push(&images).map_err(text)?;
    let contestants = contestants(&field);
    let names: Vec<String> = contestants.iter().map(|c| c.name.clone()).collect();
    for c in &contestants {
        c.node
            .cri()
            .pull(BUSYBOX_IMAGE)
            .map_err(|e| format!("{}: pull: {e}", c.name))?;
    }
    let row = |name, unit| Row::new(name, unit, &names);
    let mut times = [
        row("pod start", "ms"),
        row("exec", "ms"),
        row("stop and remove", "ms"),
    ];
    let mut memory = [
        row("memory per idle pod", "MiB"),
        row("daemon memory", "MiB"),
    ];
    for number in 0..options.runs {
        times.iter_mut().chain(&mut memory).for_each(Row::next_run);
        for round in 0..WARM_UP + options.rounds {
            for turn in 0..contestants.len() {
                let at = (round + turn) % contestants.len();
                let label = format!("bench-{number}-{round}");
                let one = one_pod(&contestants[at], &label).map_err(|e| {
                    format!(
                        "{}: {e}\n{}",
                        contestants[at].name,
                        contestants[at].node.log()
                    )
                })?;
                if round >= WARM_UP {
                    times
                        .iter_mut()
                        .zip(one)
                        .for_each(|(row, ms)| row.add(at, ms));
                }
            }
        }
        for (at, contestant) in contestants.iter().enumerate() {
            let (pod, daemon) =
                idle(contestant, options.idle).map_err(|e| format!("{}: {e}", contestant.name))?;
            memory[0].add(at, pod);
            memory[1].add(at, daemon);
        }
        eprintln!("run {} of {} is done", number + 1, options.runs);
    }
    let rows: Vec<Row> = times.into_iter().chain(memory).collect();
    println!("{}", circumstances(options));
    println!("{}", report::table(&rows));
    println!(
        "memory: PSS of all shims by the number of pods ({}), containers not counted;",
        options.idle
    );
    println!("PSS of the daemon with these pods running");
    options
        .json
        .as_ref()
        .map_or(Ok(()), |path| report::write(&rows, path))
}

pub(super) fn contestants(field: &Field) -> Vec<Contestant<'_>> {
    let ours = field.wharf.iter().map(|node| Contestant {
        name: "wharf".into(),
        node,
        handler: "",
        bridge: field.bridge,
    });
    let peers = containerd::handlers()
        .into_iter()
        .map(|handler| Contestant {
            name: format!("containerd+{handler}"),
            node: &field.containerd,
            handler,
            bridge: field.bridge,
        });
    ours.chain(peers).collect()
}

/// Milliseconds of start, exec, and stop with removal.
fn one_pod(c: &Contestant<'_>, label: &str) -> Result<[f64; 3], String> {
    let cri = c.node.cri();
    let start = Instant::now();
    let (pod, container) = start_pod(c, label)?;
    let started = Instant::now();
    let answer = cri.exec(&container, &["true"], 10).map_err(text)?;
    let executed = Instant::now();
    if answer.exit_code != 0 {
        return Err(format!("exec of true: exit code {}", answer.exit_code));
    }
    remove(cri, &pod, &container)?;
    let removed = Instant::now();
    let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1000.0;
    Ok([
        ms(start, started),
        ms(started, executed),
        ms(executed, removed),
    ])
}

/// Starts a pod with a container that sleeps; gives their ids.
pub(super) fn start_pod(c: &Contestant<'_>, label: &str) -> Result<(String, String), String> {
    let cri = c.node.cri();
    let name = format!("{label}-{}", c.handler);
    let logs = c.node.logs().join(&name);
    let pod = pod_config(c, &name, &logs);
    let command = ["sleep", "100000"];
    let config = match c.bridge {
        true => cri::container("c", BUSYBOX_IMAGE, &command),
        false => cri::host_network_container("c", BUSYBOX_IMAGE, &command),
    };
    let id = cri
        .run_pod(&pod, c.handler)
        .map_err(|e| format!("RunPodSandbox: {e}"))?;
    let container = cri
        .create(&id, &config, &pod)
        .map_err(|e| format!("CreateContainer: {e}"))?;
    cri.start(&container)
        .map_err(|e| format!("StartContainer: {e}"))?;
    Ok((id, container))
}

/// A pod for this contestant.
pub(super) fn pod_config(c: &Contestant<'_>, name: &str, logs: &Path) -> PodSandboxConfig {
    let mut config = cri::host_network_pod(name, logs, &c.node.cgroup_parent("pods"));
    if c.bridge {
        let linux = config.linux.take();
        config = cri::pod(name, logs);
        if let (Some(own), Some(given)) = (&mut config.linux, linux) {
            own.cgroup_parent = given.cgroup_parent;
        }
    }
    config
}

pub(super) fn remove(cri: &Cri, pod: &str, container: &str) -> Result<(), String> {
    cri.stop(container, 0)
        .and_then(|()| cri.remove(container))
        .and_then(|()| cri.stop_pod(pod))
        .and_then(|()| cri.remove_pod(pod))
        .map_err(text)
}

/// MiB of a shim's part for one pod, and of the daemon, with `count` pods running.
fn idle(c: &Contestant<'_>, count: usize) -> Result<(f64, f64), String> {
    let pods: Result<Vec<_>, _> = (0..count)
        .map(|i| start_pod(c, &format!("idle-{i}")))
        .collect();
    let pods = pods?;
    let mib = |pids: &[i32]| -> Result<f64, String> {
        let mut kib = 0;
        for pid in pids {
            kib += machine::pss(*pid).map_err(text)?;
        }
        Ok(f64::from(u32::try_from(kib).map_err(text)?) / 1024.0)
    };
    let shims: Vec<i32> = c.node.shims().iter().map(|p| p.pid).collect();
    let figures = (mib(&shims)? / count as f64, mib(&[c.node.pid()])?);
    for (pod, container) in pods {
        remove(c.node.cri(), &pod, &container)?;
    }
    Ok(figures)
}
