//! What a soak has done and seen, as tables.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use tonic::Code;

/// Unexpected answers that are kept in words; further ones are counted.
const WORDS_MAX: usize = 20;

/// A figure that may not grow without end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    /// `descriptors of the daemon`…
    pub what: &'static str,
    /// When a few pods had come and gone.
    pub before: u64,
    /// When everything was removed.
    pub after: u64,
    /// How much more is no difference.
    pub slack: u64,
}

/// What a soak has done and found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Answered requests by kind.
    pub operations: BTreeMap<&'static str, u64>,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Requests that failed as they may, by kind and code.
    pub failures: BTreeMap<(&'static str, String), u64>,
    /// Answers that no fault explains.
    pub unexpected: Vec<String>,
    /// Figures before and after.
    pub sizes: Vec<Size>,
    /// What the machine has more or less.
    pub changes: Vec<String>,
    /// Seconds that requests and faults took place.
    pub seconds: u64,
    /// The seed of all choices.
    pub seed: u64,
    pub(super) harmed: BTreeSet<String>,
}

impl Report {
    pub(super) fn operation(&mut self, what: &'static str) {
        *self.operations.entry(what).or_default() += 1;
    }

    pub(super) fn fault(&mut self, what: &'static str) {
        *self.faults.entry(what).or_default() += 1;
    }

    pub(super) fn failure(&mut self, what: &'static str, code: Code) {
        let code = format!("{code:?}");
        *self.failures.entry((what, code)).or_default() += 1;
    }

    pub(super) fn unexpected(&mut self, text: String) {
        self.unexpected.push(text);
    }

    /// Everything that must not be, in words; empty after a clean run.
    pub fn differences(&self) -> Vec<String> {
        let grown = self.sizes.iter().filter(|s| s.after > s.before + s.slack);
        let grown = grown.map(|s| format!("{}: {} became {}", s.what, s.before, s.after));
        let unexpected = self.unexpected.iter().map(|u| format!("unexpected: {u}"));
        unexpected
            .chain(self.changes.iter().cloned())
            .chain(grown)
            .collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seed, seconds) = (self.seed, self.seconds);
        writeln!(
            f,
            "seed {seed}, {seconds} s\n\n{:<28}{:>9}",
            "operation", "times"
        )?;
        for (what, times) in &self.operations {
            writeln!(f, "{what:<28}{times:>9}")?;
        }
        let all: u64 = self.operations.values().sum();
        writeln!(
            f,
            "{:<28}{all:>9}\n\n{:<28}{:>9}",
            "together", "fault", "times"
        )?;
        for (what, times) in &self.faults {
            writeln!(f, "{what:<28}{times:>9}")?;
        }
        writeln!(
            f,
            "\n{:<28}{:<20}{:>9}",
            "failed while faults lasted", "code", "times"
        )?;
        for ((what, code), times) in &self.failures {
            writeln!(f, "{what:<28}{code:<20}{times:>9}")?;
        }
        writeln!(f, "\n{:<36}{:>10}{:>10}", "size", "before", "after")?;
        for size in &self.sizes {
            writeln!(f, "{:<36}{:>10}{:>10}", size.what, size.before, size.after)?;
        }
        let differences = self.differences();
        for line in differences.iter().take(WORDS_MAX) {
            writeln!(f, "{line}")?;
        }
        match differences.len() {
            0 => write!(f, "\nsoak: clean"),
            n => write!(f, "\nsoak: {n} differences"),
        }
    }
}
