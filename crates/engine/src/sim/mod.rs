//! A simulation: the drivers on a machine that delays, fails, reorders and crashes as a seed says, in a
//! time that passes as fast as it is waited for. What must be true is looked at after every step.
//!
//! ```text
//! cargo xtask simulate --seeds N [--first S] [--steps M]
//! ```

mod dice; // chance
mod told; // what the client knows
mod check; // what must be true
mod machine; // what the machine holds
mod steps; // how a step goes
mod world; // the machine as a world
mod client; // who asks
mod story; // daemons, one after the other

use dice::{FAULTS, Tally};

/// Steps of one seed.
const STEPS: u64 = 5_000;
/// Steps of one run of the tests.
const STEPS_IN_ALL: u64 = 100_000;

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().expect("a number"))
}

fn show(tally: &Tally) {
    println!("{} steps", tally.steps);
    for fault in FAULTS {
        let times = tally.faults.get(&fault).copied().unwrap_or(0);
        println!("  {fault:?}: {times}");
    }
    for ((verb, well), times) in &tally.answers {
        let how = if *well { "done" } else { "refused or failed" };
        println!("  {verb} {how}: {times}");
    }
}

#[test]
fn nothing_is_lost_and_nothing_leaks_whatever_happens() {
    let first = number("WHARF_SIM_FIRST").unwrap_or(1);
    let seeds = number("WHARF_SIM_SEEDS");
    let steps = number("WHARF_SIM_STEPS").unwrap_or(STEPS);
    let mut tally = Tally::default();
    let (mut passed, mut failed) = (0, 0);
    for seed in first.. {
        let enough = match seeds {
            Some(seeds) => passed + failed >= seeds,
            None => tally.steps >= STEPS_IN_ALL,
        };
        if enough {
            break;
        }
        let report = story::run(seed, steps);
        tally.add(&report.tally);
        let Some(failure) = report.failure else {
            passed += 1;
            continue;
        };
        failed += 1;
        println!(
            "{failure}\nseed {seed} failed at step {}; again: \
             cargo xtask simulate --first {seed} --seeds 1 --steps {steps}\n",
            report.tally.steps
        );
        // One is enough to begin with.
        if seeds.is_none() {
            break;
        }
    }
    show(&tally);
    println!("{passed} seeds passed, {failed} failed");
    assert_eq!(failed, 0, "see above");
    // A few steps need not meet everything.
    if tally.steps >= STEPS_IN_ALL {
        for fault in FAULTS {
            assert!(
                tally.faults.contains_key(&fault),
                "{fault:?} never happened"
            );
        }
    }
}

#[test]
fn the_same_seed_is_the_same_story() {
    for seed in [3, 4] {
        assert!(story::repeats(seed, 1_500), "seed {seed}");
    }
}
