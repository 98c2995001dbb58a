//! Sandboxes with a bridge network: one after the other, and many at once.

use std::time::Instant;

use wharf_api::v1::{RemovePodSandboxRequest, RunPodSandboxRequest, StopPodSandboxRequest};

use super::pod::{Contestant, contestants, pod_config};
use super::report::{self, Row};
use super::{Field, Options, circumstances};
use crate::cargo::text;

/// Rounds that do not count.
const WARM_UP: usize = 3;

/// Pods that are started together.
const TOGETHER: usize = 50;

/// `cargo xtask bench network`.
pub(super) fn run(options: &Options) -> Result<(), String> {
    let field = Field::start(options)?;
    let images = wharf_testkit::samples::critest().map_err(text)?;
    field.registry.push(&images).map_err(text)?;
    let contestants = contestants(&field);
    let names: Vec<String> = contestants.iter().map(|c| c.name.clone()).collect();
    let row = |name| Row::new(name, "ms", &names);
    let mut one = [row("RunPodSandbox"), row("stop and remove")];
    let mut many = [row("50 at once: run"), row("50 at once: stop and remove")];
    for number in 0..options.runs {
        one.iter_mut().chain(&mut many).for_each(Row::next_run);
        for round in 0..WARM_UP + options.rounds {
            for turn in 0..contestants.len() {
                let at = (round + turn) % contestants.len();
                let figures = together(&contestants[at], &format!("net-{number}-{round}"), 1)?;
                if round >= WARM_UP {
                    one.iter_mut()
                        .zip(figures)
                        .for_each(|(row, ms)| row.add(at, ms));
                }
            }
        }
        for (at, contestant) in contestants.iter().enumerate() {
            let figures = together(contestant, &format!("many-{number}"), TOGETHER)?;
            many.iter_mut()
                .zip(figures)
                .for_each(|(row, ms)| row.add(at, ms));
        }
        eprintln!("run {} of {} is done", number + 1, options.runs);
    }
    let rows: Vec<Row> = one.into_iter().chain(many).collect();
    println!("{}", circumstances(options));
    println!("{}", report::table(&rows));
    println!(
        "sandboxes without containers, each with a bridge network and the chain bridge, host-local, portmap"
    );
    options
        .json
        .as_ref()
        .map_or(Ok(()), |path| report::write(&rows, path))
}

/// Milliseconds until `count` sandboxes that were asked for at once are ready, and until they are gone.
fn together(c: &Contestant<'_>, label: &str, count: usize) -> Result<[f64; 2], String> {
    let failed = |what: &'static str| move |e| format!("{}: {what}: {e}", c.name);
    let cri = c.node.cri();
    let configs = (0..count).map(|i| {
        let name = format!("{label}-{i}-{}", c.handler);
        pod_config(c, &name, &c.node.logs().join(&name))
    });
    let calls = configs.map(|config| {
        let mut runtime = cri.runtime();
        let request = RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: c.handler.to_owned(),
        };
        async move { runtime.run_pod_sandbox(request).await }
    });
    let calls: Vec<_> = calls.collect();
    let start = Instant::now();
    let ids: Result<Vec<_>, _> = cri.wait_all(calls).into_iter().collect();
    let ready = Instant::now();
    let ids = ids.map_err(failed("RunPodSandbox"))?;
    let calls = ids.iter().map(|answer| {
        let (mut runtime, id) = (cri.runtime(), answer.pod_sandbox_id.clone());
        async move {
            let stop = StopPodSandboxRequest {
                pod_sandbox_id: id.clone(),
            };
            runtime.stop_pod_sandbox(stop).await?;
            let remove = RemovePodSandboxRequest { pod_sandbox_id: id };
            runtime.remove_pod_sandbox(remove).await
        }
    });
    let calls: Vec<_> = calls.collect();
    let begin = Instant::now();
    for gone in cri.wait_all(calls) {
        gone.map_err(failed("stop and remove"))?;
    }
    let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1000.0;
    Ok([ms(start, ready), ms(begin, Instant::now())])
}
