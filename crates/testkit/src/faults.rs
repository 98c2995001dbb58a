//! The fault points of a daemon: which were passed, and what is to happen at the next ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The variable that switches fault points on, as `wharf_sys::fault` reads it.
pub const VARIABLE: &str = "WHARF_FAULTS";

/// What happens at a fault point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed with SIGKILL.
    Kill,
    /// The step fails with this number.
    Error(i32),
}

/// The directory of a daemon's fault points.
#[derive(Clone, Debug)]
pub struct Faults {
    dir: PathBuf,
}

impl Faults {
    pub(crate) fn in_dir(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How often each point was passed since [`Faults::forget`].
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn hits(&self) -> io::Result<BTreeMap<String, u64>> {
        let text = match fs::read_to_string(self.dir.join("hits")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        let mut hits = BTreeMap::new();
        for line in text.lines() {
            *hits.entry(line.to_owned()).or_default() += 1;
        }
        Ok(hits)
    }

    /// Begins to count anew. The daemon counts from its start: call it while there is none.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn forget(&self) -> io::Result<()> {
        absent_is_fine(fs::remove_file(self.dir.join("hits")))
    }

    /// Plans that `fault` happens when the running daemon passes `point` for the `nth` time from
    /// now; what was planned before is forgotten. The hits must be those of this daemon.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn plan(&self, point: &str, nth: u64, fault: Fault) -> io::Result<()> {
        let passed = self.hits()?.get(point).copied().unwrap_or(0);
        let action = match fault {
            Fault::Kill => "kill".to_owned(),
            Fault::Error(number) => format!("error {number}"),
        };
        let draft = self.dir.join("plan.new");
        fs::write(&draft, format!("{point} {} {action}\n", passed + nth))?;
        fs::rename(draft, self.dir.join("plan"))
    }

    /// Holds one of the daemon's blocking steps at its beginning, and no other; `None`: none any more.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn hold(&self, step: Option<&str>) -> io::Result<()> {
        let draft = self.dir.join("held.new");
        fs::write(&draft, step.unwrap_or_default())?;
        fs::rename(draft, self.dir.join("held"))
    }

    /// The daemon's wall clock is ahead by so many nanoseconds, or behind.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn shift_clock(&self, ns: i64) -> io::Result<()> {
        let draft = self.dir.join("clock.new");
        fs::write(&draft, ns.to_string())?;
        fs::rename(draft, self.dir.join("clock"))
    }

    /// Nothing is planned any more.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn clear(&self) -> io::Result<()> {
        absent_is_fine(fs::remove_file(self.dir.join("plan")))
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Names of all fault points in the sources of these crates.
///
/// # Errors
/// A source cannot be read.
pub fn points_in(crates: &[&str]) -> io::Result<BTreeSet<String>> {
    let mut points = BTreeSet::new();
    for name in crates {
        let dir = crate::cache::workspace().join("crates").join(name);
        collect(&dir.join("src"), &mut points)?;
    }
    Ok(points)
}

fn collect(dir: &Path, points: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, points)?;
        } else {
            let text = fs::read_to_string(&path)?;
            let calls = text.split("point(").skip(1);
            let names = calls.filter_map(|rest| {
                let (name, _) = rest.trim_start().strip_prefix('"')?.split_once('"')?;
                Some(name.to_owned())
            });
            points.extend(names);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_counts_from_what_was_passed_already() {
        let dir = tempfile::tempdir().unwrap();
        let faults = Faults::in_dir(dir.path().into());
        assert!(faults.hits().unwrap().is_empty());
        fs::write(dir.path().join("hits"), "a: b\na: c\na: b\n").unwrap();
        faults.plan("a: b", 2, Fault::Kill).unwrap();
        let plan = || fs::read_to_string(dir.path().join("plan")).unwrap();
        assert_eq!(plan(), "a: b 4 kill\n");
        faults.forget().unwrap();
        faults.plan("a: b", 1, Fault::Error(5)).unwrap();
        assert_eq!(plan(), "a: b 1 error 5\n");
        faults.clear().unwrap();
        faults.clear().unwrap();
    }

    #[test]
    fn points_are_found_in_the_sources() {
        let points = points_in(&["engine", "store", "image"]).unwrap();
        assert!(points.len() > 40, "{points:?}");
        assert!(points.iter().all(|p| p.contains(": ")), "{points:?}");
    }
}
