//! Every task of a developer: set-up, demo, tests, checks, conformance, benchmarks.

mod args;
mod cargo;
mod setup;
mod waterfall;
mod demo;
mod suite;
mod simulate;
mod tidy;
mod critest;
mod crictl;
mod conformance;
mod bench;
mod soak;

use std::process::ExitCode;

use crate::args::Args;

const USAGE: &str = "cargo xtask TASK

  setup                   installs what the other tasks need, or says what is missing
  demo [--debug]          root: a node, a registry, a pod from pull to clean-up, with times
  test [CARGO-TEST-ARGS]  every test; without root those that need none
  simulate [--seeds N] [--first S] [--steps M] [--debug]
                          the engine on a machine that fails as a seed says; a seed is always the
                          same story
  tidy [--quick]          layers, module order, lengths, headers; unless quick: format, lints
  conformance cri         root: critest against wharf, or against a peer
    [--runtime wharf|containerd] [--focus RE] [--skip RE] [--at-least N] [--release]
  conformance crictl      root: the walk of a person with crictl [--runtime …] [--release]
  bench pod  --json FILE  root: pods against containerd with runc and crun
    [--rounds N] [--runs N] [--idle N]
  bench network --json FILE  root: pods with a bridge network, fifty at once, against plugin programs
    [--rounds N] [--runs N] [--pods N]
  bench pull --json FILE  root: a many-layer image against containerd
    [--rounds N] [--runs N]
  bench restart --json FILE  root: a hundred pods found again, against containerd
    [--rounds N] [--runs N]
  bench stats --json FILE root: statistics of many pods against containerd
    [--rounds N] [--runs N] [--pods N]
    all: [--programs DIR] instead of a release build, [--peers-only] without wharf
  soak                    root: churn with faults, and the machine before and after
    [--minutes N] [--seed S] [--clients N] [--debug | --programs DIR]

Peers are looked for in $RIG/bin and in PATH.";

fn main() -> ExitCode {
    let mut args = Args::new(std::env::args().skip(1));
    let result = match args.word().as_deref() {
        Some("setup") => args.end().and_then(|()| setup::run()),
        Some("demo") => demo::run(args),
        Some("test") => suite::run(args),
        Some("simulate") => simulate::run(args),
        Some("tidy") => tidy::run(args),
        Some("conformance") => conformance::run(args),
        Some("bench") => bench::run(args),
        Some("soak") => soak::run(args),
        Some("help" | "--help" | "-h") => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => Err(USAGE.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}
