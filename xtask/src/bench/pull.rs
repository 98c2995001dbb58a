//! The pull of a many-layer image from a registry on loopback to a finished image.

use std::process::Command;
use std::time::Instant;

use wharf_testkit::cache;
use wharf_testkit::node::Node;
use wharf_testkit::samples::{self, BIG_IMAGE};

use super::report::{self, Row};
use super::{Field, Options, circumstances};
use crate::cargo::{run as run_command, text};

/// `cargo xtask bench pull`.
pub(super) fn run(options: &Options) -> Result<(), String> {
    let field = Field::start(options)?;
    eprintln!("making the image (minutes, the first time)");
    let big = samples::many_layers().map_err(text)?;
    let (layers, packed) = (big.image.blobs.len() - 1, weight(&big));
    field.registry.push(&[big]).map_err(text)?;
    let ours = usize::from(field.wharf.is_some());
    let names: Vec<String> = ["wharf", "containerd"][1 - ours..]
        .iter()
        .map(|n| (*n).into())
        .collect();
    let mut row = Row::new("pull", "s", &names);
    // Every pull is a new daemon's first, and nothing is deleted before the end: ext4 takes minutes
    // until it uses the inodes of deleted files again, and searches for others until then, which would
    // be paid by whoever comes next.
    let mut nodes = Vec::new();
    for number in 0..options.runs {
        row.next_run();
        for round in 0..options.rounds {
            for turn in 0..names.len() {
                let at = (number + round + turn) % names.len();
                let node = field.another(at < ours)?;
                let seconds = one_pull(&node);
                row.add(
                    at,
                    seconds.map_err(|e| format!("{}: {e}\n{}", names[at], node.log()))?,
                );
                nodes.push(node);
            }
        }
        eprintln!("run {} of {} is done", number + 1, options.runs);
    }
    let rows = [row];
    println!("{}", circumstances(options));
    let decompressor = ["igzip", "unpigz"]
        .into_iter()
        .find(|p| cache::find_program(p).is_some());
    println!(
        "image: {layers} gzip layers, {} MB packed; each pull into new directories, sync before it",
        packed / 1_000_000
    );
    println!(
        "containerd inflates with {}\n",
        decompressor.unwrap_or("Go's own gzip")
    );
    println!("{}", report::table(&rows));
    options
        .json
        .as_ref()
        .map_or(Ok(()), |path| report::write(&rows, path))
}

fn weight(served: &samples::Served) -> u64 {
    served.image.blobs.iter().map(|b| b.size).sum()
}

/// Seconds of one pull.
fn one_pull(node: &Node) -> Result<f64, String> {
    run_command(&mut Command::new("sync"))?;
    let start = Instant::now();
    node.cri()
        .pull(BIG_IMAGE)
        .map_err(|e| format!("PullImage: {e}"))?;
    Ok(start.elapsed().as_secs_f64())
}
