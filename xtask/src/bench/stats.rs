//! Statistics of many pods at once, each with a container that sleeps.

use std::time::Instant;

use wharf_testkit::cri::Cri;
use wharf_testkit::samples::{self, BUSYBOX_IMAGE};

use super::pod::{self, Contestant};
use super::report::{self, Row};
use super::{Field, Options, circumstances};
use crate::cargo::text;

/// Rounds that do not count: caches are filled.
const WARM_UP: usize = 2;

/// What is asked, and how many whole entries it answers.
type Question = fn(&Cri) -> Result<usize, String>;

const QUESTIONS: [(&str, Question); 3] = [
    ("ListContainerStats", containers),
    ("ListPodSandboxStats", pods),
    ("ListPodSandboxMetrics", metrics),
];

fn containers(cri: &Cri) -> Result<usize, String> {
    let stats = cri.container_stats().map_err(text)?;
    Ok(stats.iter().filter(|s| s.cpu.is_some()).count())
}

fn pods(cri: &Cri) -> Result<usize, String> {
    let stats = cri.pod_stats().map_err(text)?;
    Ok(stats.iter().filter(|s| s.linux.is_some()).count())
}

fn metrics(cri: &Cri) -> Result<usize, String> {
    Ok(cri.pod_metrics().map_err(text)?.len())
}

/// `cargo xtask bench stats`.
pub(super) fn run(options: &Options) -> Result<(), String> {
    let field = Field::start(options)?;
    let images = samples::critest().map_err(text)?;
    field.registry.push(&images).map_err(text)?;
    // Handlers of one daemon do not differ in this.
    let mut contestants = pod::contestants(&field);
    contestants.retain(|c| matches!(c.handler, "" | "runc"));
    let mut running = Vec::new();
    for c in &contestants {
        let pulled = c.node.cri().pull(BUSYBOX_IMAGE);
        pulled.map_err(|e| format!("{}: pull: {e}", c.name))?;
        eprintln!("{}: starting {} pods", c.name, options.pods);
        let start = |i| pod::start_pod(c, &format!("stats-{i}"));
        let started: Result<Vec<_>, _> = (0..options.pods).map(start).collect();
        running.push(started.map_err(|e| format!("{}: {e}", c.name))?);
    }
    let names: Vec<String> = contestants.iter().map(|c| c.name.clone()).collect();
    let mut rows = QUESTIONS.map(|(name, _)| Row::new(name, "ms", &names));
    for number in 0..options.runs {
        rows.iter_mut().for_each(Row::next_run);
        for round in 0..WARM_UP + options.rounds {
            for turn in 0..contestants.len() {
                let at = (round + turn) % contestants.len();
                let figures = ask_all(&contestants[at], options.pods)
                    .map_err(|e| format!("{}: {e}", contestants[at].name))?;
                let rows = rows.iter_mut().zip(figures);
                rows.filter(|_| round >= WARM_UP)
                    .for_each(|(row, ms)| row.add(at, ms));
            }
        }
        eprintln!("run {} of {} is done", number + 1, options.runs);
    }
    for (c, pods) in contestants.iter().zip(running) {
        for (pod, container) in pods {
            pod::remove(c.node.cri(), &pod, &container)?;
        }
    }
    println!("{}", circumstances(options));
    println!("{} pods, each with a container that sleeps\n", options.pods);
    println!("{}", report::table(&rows));
    options
        .json
        .as_ref()
        .map_or(Ok(()), |path| report::write(&rows, path))
}

/// Milliseconds of each answer, which must have all pods.
fn ask_all(c: &Contestant<'_>, pods: usize) -> Result<[f64; QUESTIONS.len()], String> {
    let mut figures = [0.0; QUESTIONS.len()];
    for (figure, (name, question)) in figures.iter_mut().zip(QUESTIONS) {
        let start = Instant::now();
        let count = question(c.node.cri()).map_err(|e| format!("{name}: {e}"))?;
        *figure = start.elapsed().as_secs_f64() * 1000.0;
        if count != pods {
            return Err(format!("{name}: {count} entries for {pods} pods"));
        }
    }
    Ok(figures)
}
