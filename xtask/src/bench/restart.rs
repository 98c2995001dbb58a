//! How long a daemon needs to find its pods again after it was killed.

use std::time::Instant;

use wharf_testkit::node::Node;
use wharf_testkit::samples::{self, BUSYBOX_IMAGE};

use super::pod::{Contestant, start_pod};
use super::report::{self, Row};
use super::{Field, Options, circumstances};
use crate::cargo::text;

/// Pods that run, each with one container.
const PODS: usize = 100;

/// `cargo xtask bench restart`.
pub(super) fn run(options: &Options) -> Result<(), String> {
    let mut field = Field::start(options)?;
    let images = samples::critest().map_err(text)?;
    field.registry.push(&images).map_err(text)?;
    let mut nodes: Vec<(&str, &mut Node)> = Vec::new();
    nodes.extend(field.wharf.as_mut().map(|node| ("wharf", node)));
    nodes.push(("containerd", &mut field.containerd));
    let names: Vec<String> = nodes.iter().map(|(name, _)| (*name).to_owned()).collect();
    for (name, node) in &nodes {
        fill(name, node)?;
    }
    let mut row = [Row::new("100 pods found again", "ms", &names)];
    for _ in 0..options.runs {
        row[0].next_run();
        for _ in 0..options.rounds {
            for (at, (name, node)) in nodes.iter_mut().enumerate() {
                row[0].add(at, found_again(name, node)?);
            }
        }
    }
    println!("{}", circumstances(options));
    println!("{}", report::table(&row));
    println!("from the daemon's start to the first answer with all pods and containers");
    options
        .json
        .as_ref()
        .map_or(Ok(()), |path| report::write(&row, path))
}

fn fill(name: &str, node: &Node) -> Result<(), String> {
    node.cri()
        .pull(BUSYBOX_IMAGE)
        .map_err(|e| format!("{name}: pull: {e}"))?;
    let handler = if name == "containerd" { "runc" } else { "" };
    let name = name.to_owned();
    let contestant = Contestant {
        name,
        node,
        handler,
        bridge: false,
    };
    for number in 0..PODS {
        start_pod(&contestant, &format!("found-{number}"))?;
    }
    Ok(())
}

/// Milliseconds from a start after a kill to the answer with all.
fn found_again(name: &str, node: &mut Node) -> Result<f64, String> {
    node.kill().map_err(text)?;
    let start = Instant::now();
    node.run().map_err(text)?;
    let pods = node.cri().pods().map_err(text)?.len();
    let containers = node.cri().containers().map_err(text)?.len();
    let took = start.elapsed();
    if (pods, containers) != (PODS, PODS) {
        return Err(format!("{name}: {pods} pods and {containers} containers"));
    }
    Ok(took.as_secs_f64() * 1000.0)
}
