//! Runs the engine's simulation with as many seeds as one likes.

use crate::args::Args;
use crate::cargo::{cargo, run as run_command};

/// The test that reads the variables below.
const TEST: &str = "sim::nothing_is_lost_and_nothing_leaks_whatever_happens";

/// `cargo xtask simulate`.
pub(crate) fn run(mut args: Args) -> Result<(), String> {
    let seeds: u64 = args.number("--seeds")?.unwrap_or(100);
    let first: u64 = args.number("--first")?.unwrap_or(1);
    let steps: Option<u64> = args.number("--steps")?;
    let debug = args.flag("--debug");
    args.end()?;
    let mut test = cargo(&["test", "--package", "wharf-engine", "--lib"]);
    if !debug {
        test.arg("--release");
    }
    test.args(["--", "--exact", TEST, "--nocapture"])
        .env("WHARF_SIM_SEEDS", seeds.to_string())
        .env("WHARF_SIM_FIRST", first.to_string());
    if let Some(steps) = steps {
        test.env("WHARF_SIM_STEPS", steps.to_string());
    }
    run_command(&mut test)
}
