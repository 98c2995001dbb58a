//! Waits for what has no event of its own, with a limit.

use std::io;
use std::time::{Duration, Instant};

/// Between the first two looks; then twice as long each time, up to the longest.
const FIRST_STEP: Duration = Duration::from_millis(2);
const LONGEST_STEP: Duration = Duration::from_millis(100);
const CLOSE_STEP: Duration = Duration::from_millis(8);

/// Asks `done` again and again until it says yes; `false` when `limit` is over.
///
/// For states of other processes that nobody announces: a socket that answers, an empty cgroup.
///
/// # Errors
/// What `done` says.
pub fn until(limit: Duration, mut done: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
    stepping(limit, LONGEST_STEP, &mut done)
}

/// The same with a short step, for what is measured or waited for often.
///
/// # Errors
/// What `done` says.
pub fn closely(limit: Duration, mut done: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
    stepping(limit, CLOSE_STEP, &mut done)
}

fn stepping(
    limit: Duration,
    longest: Duration,
    done: &mut dyn FnMut() -> io::Result<bool>,
) -> io::Result<bool> {
    let end = Instant::now() + limit;
    let mut step = FIRST_STEP;
    loop {
        if done()? {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        std::thread::park_timeout(step);
        step = (step * 2).min(longest);
    }
}
