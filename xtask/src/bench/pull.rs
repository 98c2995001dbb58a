//! The pull of a many-layer image from a registry on loopback to a finished image.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use wharf_testkit::node::Node;
use wharf_testkit::samples::{self, BIG_IMAGE};
use wharf_testkit::{cache, wait};

use super::report::{self, Row};
use super::{Field, Options, circumstances};
use crate::cargo::{run as run_command, text};

/// Below this a removed image counts as gone from the disk.
const EMPTY: u64 = 32 << 20;

/// How long the collection of a removed image may take.
const GONE_LIMIT: Duration = Duration::from_secs(60);

/// `cargo xtask bench pull`.
pub(super) fn run(options: &Options) -> Result<(), String> {
    let field = Field::start(options)?;
    eprintln!("making the image (minutes, the first time)");
    let big = samples::many_layers().map_err(text)?;
    let (layers, packed) = (big.image.blobs.len() - 1, weight(&big));
    field.registry.push(&[big]).map_err(text)?;
    let mut contestants: Vec<(String, &Node)> = Vec::new();
    contestants.extend(field.wharf.iter().map(|node| (String::from("wharf"), node)));
    contestants.push(("containerd".into(), &field.containerd));
    let names: Vec<String> = contestants.iter().map(|(name, _)| name.clone()).collect();
    let mut row = Row::new("pull", "s", &names);
    for number in 0..options.runs {
        row.next_run();
        for round in 0..options.rounds {
            for turn in 0..contestants.len() {
                let at = (number + round + turn) % contestants.len();
                let (name, node) = &contestants[at];
                row.add(
                    at,
                    one_pull(node).map_err(|e| format!("{name}: {e}\n{}", node.log()))?,
                );
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
        "image: {layers} gzip layers, {} MB packed; sync before each pull",
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

/// Seconds of one pull; the image is removed again, and its bytes are gone from the disk.
fn one_pull(node: &Node) -> Result<f64, String> {
    run_command(&mut Command::new("sync"))?;
    let start = Instant::now();
    node.cri()
        .pull(BIG_IMAGE)
        .map_err(|e| format!("PullImage: {e}"))?;
    let seconds = start.elapsed().as_secs_f64();
    node.cri()
        .remove_image(BIG_IMAGE)
        .map_err(|e| format!("RemoveImage: {e}"))?;
    let root = node.root();
    let gone = wait::until(GONE_LIMIT, || Ok(size(&root) < EMPTY)).map_err(text)?;
    if gone {
        Ok(seconds)
    } else {
        Err("the image's bytes stay after RemoveImage".into())
    }
}

/// Bytes of the regular files below `dir`.
fn size(dir: &Path) -> u64 {
    let mut sum = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(m) if m.is_dir() => sum += size(&entry.path()),
            Ok(m) if m.is_file() => sum += m.len(),
            _ => {}
        }
    }
    sum
}
