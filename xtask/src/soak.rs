//! Churn with faults, and the machine before and after.

use std::time::Duration;

use wharf_testkit::soak::Soak;

use crate::args::Args;
use crate::cargo::{build, text};
use crate::setup;

/// Clients at the same time.
const CLIENTS: usize = 4;

/// `cargo xtask soak`.
pub(crate) fn run(mut args: Args) -> Result<(), String> {
    let minutes: u64 = args.number("--minutes")?.unwrap_or(1).max(1);
    let seed = args.number("--seed")?.unwrap_or(1);
    let clients = args.number("--clients")?.unwrap_or(CLIENTS).max(1);
    let debug = args.flag("--debug");
    let programs = args.option("--programs")?;
    args.end()?;
    setup::run_for(setup::For::Everything)?;
    let soak = Soak {
        seed,
        length: Duration::from_secs(60 * minutes),
        clients,
        programs: Some(match programs {
            Some(dir) => std::path::absolute(dir).map_err(text)?,
            None => build(!debug)?,
        }),
    };
    let report = soak.run().map_err(text)?;
    println!("{report}");
    if report.differences().is_empty() {
        Ok(())
    } else {
        Err("the machine is not as before, or answers were not as they must be".into())
    }
}
