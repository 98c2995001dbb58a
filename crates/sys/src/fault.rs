//! Fault points: named places where a test can end the process, fail the step or hold it.
//!
//! Only builds with the feature `faults` have them; nothing that is shipped does, and there every point
//! is an empty function. With the feature, and the variable [`VARIABLE`] naming a directory, each point
//! that is passed appends its name as a line to `hits` there, and then does what `plan` says. A line
//! of `plan` is `NAME NTH ACTION`: at the NTH passing since the process began (`*`: at every one)
//!
//! - `kill`: the process is killed with SIGKILL,
//! - `error ERRNO`: the step fails with this number,
//! - `hold`: the calling thread waits until the line is gone. Only for places that may block.
//!
//! Both files are read and written at each passing, so that a test can change its mind.
//!
//! Two further files: `held` names steps that [`gate`] holds; `clock` moves the wall clock of the process
//! ([`clock_shift_ns`]).

/// The variable that names the directory of `hits` and `plan`.
pub const VARIABLE: &str = "WHARF_FAULTS";

/// Passes the point `name`: words of the form `operation: what was just done`, unique in the project.
///
/// # Errors
///
/// The one that a test has asked for.
#[cfg(not(feature = "faults"))]
#[inline]
pub fn point(_name: &'static str) -> std::io::Result<()> {
    Ok(())
}

/// What the variable `name` says instead of `usual`: for tests that play another release.
#[cfg(not(feature = "faults"))]
#[inline]
pub fn number(_name: &'static str, usual: u32) -> u32 {
    usual
}

/// Passes the gate before the blocking step `name`: a test may hold it, until its line in `held` is gone.
/// Gates are not points: passing one is not counted.
#[cfg(not(feature = "faults"))]
#[inline]
pub fn gate(_name: &'static str) {}

/// Nanoseconds that a test wants the wall clock to be ahead (negative: behind); 0 in every other build.
#[cfg(not(feature = "faults"))]
#[inline]
pub fn clock_shift_ns() -> i64 {
    0
}

#[cfg(feature = "faults")]
pub use on::{clock_shift_ns, gate, number, point};

#[cfg(feature = "faults")]
mod on {
    use std::collections::HashMap;
    use std::fs::{File, read_to_string};
    use std::io::{self, Write as _};
    use std::path::{Path, PathBuf};
    use std::sync::{LazyLock, Mutex, PoisonError};
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    static DIR: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os(super::VARIABLE).map(PathBuf::from));
    static PASSED: LazyLock<Mutex<HashMap<&'static str, u64>>> = LazyLock::new(Mutex::default);

    /// How often a held point looks whether it may go on.
    const LOOK: Duration = Duration::from_millis(5);

    /// See [`super`].
    ///
    /// # Errors
    ///
    /// The one that the plan asks for; or hits that cannot be written, so that no test believes
    /// that nothing was passed.
    pub fn point(name: &'static str) -> io::Result<()> {
        let Some(dir) = &*DIR else { return Ok(()) };
        let nth = {
            let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
            let count = passed.entry(name).or_default();
            *count += 1;
            *count
        };
        let mut hits = File::options()
            .create(true)
            .append(true)
            .open(dir.join("hits"))?;
        hits.write_all(format!("{name}\n").as_bytes())?;
        match action(dir, name, nth).as_deref() {
            None => Ok(()),
            Some("kill") => {
                kill_process(getpid(), Signal::KILL)?;
                Ok(())
            }
            Some("hold") => {
                while action(dir, name, nth).is_some() {
                    look_later();
                }
                Ok(())
            }
            Some(other) => Err(other
                .strip_prefix("error ")
                .and_then(|number| number.parse().ok())
                .map_or_else(
                    || io::Error::other(format!("fault point {name:?}: {other:?} is no action")),
                    io::Error::from_raw_os_error,
                )),
        }
    }

    /// See [`super`].
    pub fn number(name: &'static str, usual: u32) -> u32 {
        let said = std::env::var(name).ok();
        said.and_then(|text| text.parse().ok()).unwrap_or(usual)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a test writes a file; nothing tells of it that every build has"
    )]
    fn look_later() {
        std::thread::sleep(LOOK);
    }

    /// See [`super`].
    pub fn gate(name: &'static str) {
        let Some(dir) = &*DIR else { return };
        let is_held = || {
            let held = read_to_string(dir.join("held")).unwrap_or_default();
            held.lines().any(|line| line == name)
        };
        while is_held() {
            look_later();
        }
    }

    /// See [`super`]: the number in the file `clock`.
    #[must_use]
    pub fn clock_shift_ns() -> i64 {
        let Some(dir) = &*DIR else { return 0 };
        let text = read_to_string(dir.join("clock")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// What the plan says of this passing. The name may have spaces; the last words are ours.
    fn action(dir: &Path, name: &str, nth: u64) -> Option<String> {
        let plan = read_to_string(dir.join("plan")).ok()?;
        plan.lines().find_map(|line| {
            let rest = line.strip_prefix(name)?.strip_prefix(' ')?;
            let (when, action) = rest.split_once(' ')?;
            (when == "*" || when.parse() == Ok(nth)).then(|| action.to_owned())
        })
    }
}
