//! Samples, medians, the table for people and the JSON for programs.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::cargo::text;

/// The contestant that the others are compared with.
const OURS: &str = "wharf";

/// One figure of every contestant.
#[derive(Debug)]
pub(super) struct Row {
    name: &'static str,
    unit: &'static str,
    /// By contestant: the samples of each run.
    runs: Vec<(String, Vec<Vec<f64>>)>,
}

impl Row {
    pub(super) fn new(name: &'static str, unit: &'static str, contestants: &[String]) -> Self {
        let runs = contestants
            .iter()
            .map(|c| (c.clone(), Vec::new()))
            .collect();
        Self { name, unit, runs }
    }

    /// Begins a run.
    pub(super) fn next_run(&mut self) {
        for (_, runs) in &mut self.runs {
            runs.push(Vec::new());
        }
    }

    /// A sample of a contestant, in the run that began last.
    pub(super) fn add(&mut self, contestant: usize, value: f64) {
        if let Some(run) = self
            .runs
            .get_mut(contestant)
            .and_then(|(_, runs)| runs.last_mut())
        {
            run.push(value);
        }
    }

    /// The median of the medians of the runs, by contestant.
    fn figures(&self) -> Vec<(&str, f64)> {
        let of = |runs: &Vec<Vec<f64>>| median(&runs.iter().map(|r| median(r)).collect::<Vec<_>>());
        self.runs
            .iter()
            .map(|(name, runs)| (name.as_str(), of(runs)))
            .collect()
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The rows as a table; behind each peer's figure how many times ours it is.
pub(super) fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    let Some(first) = rows.first() else {
        return out;
    };
    let _into_a_string = write!(out, "{:<22}{:<6}", "", "unit");
    for (name, _) in first.figures() {
        let width = if name == OURS { 10 } else { 26 };
        let _into_a_string = write!(out, "{name:>width$}");
    }
    out.push('\n');
    for row in rows {
        let figures = row.figures();
        let ours = figures
            .iter()
            .find(|(name, _)| *name == OURS)
            .map(|(_, v)| *v);
        let _into_a_string = write!(out, "{:<22}{:<6}", row.name, row.unit);
        for (name, value) in figures {
            let shown = match ours {
                Some(ours) if name != OURS => format!("{value:.2} ({:.1}×)", value / ours),
                _ => format!("{value:.2}"),
            };
            let width = if name == OURS { 10 } else { 26 };
            let _into_a_string = write!(out, "{shown:>width$}");
        }
        out.push('\n');
    }
    out
}

/// Writes `{"rows":[{"name","unit","wharf","peers":{…}}]}`.
pub(super) fn write(rows: &[Row], path: &Path) -> Result<(), String> {
    let rows: Vec<Value> = rows.iter().map(json_row).collect();
    let text_of_rows = serde_json::to_string_pretty(&json!({ "rows": rows })).map_err(text)?;
    fs::write(path, text_of_rows + "\n").map_err(|e| format!("{}: {e}", path.display()))
}

fn json_row(row: &Row) -> Value {
    let mut peers = Map::new();
    let mut ours = Value::Null;
    for (name, value) in row.figures() {
        let value = json!((value * 1000.0).round() / 1000.0);
        if name == OURS {
            ours = value;
        } else {
            peers.insert(name.into(), value);
        }
    }
    json!({ "name": row.name, "unit": row.unit, "wharf": ours, "peers": peers })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let mut row = Row::new(
            "pod start",
            "ms",
            &["wharf".into(), "containerd+runc".into()],
        );
        for run in [[1.0, 2.0, 30.0], [4.0, 4.0, 4.0], [9.0, 3.0, 3.0]] {
            row.next_run();
            for value in run {
                row.add(0, value);
                row.add(1, value * 10.0);
            }
        }
        row
    }

    #[test]
    fn a_figure_is_the_median_of_the_medians_of_the_runs() {
        assert_eq!(row().figures(), [("wharf", 3.0), ("containerd+runc", 30.0)]);
        assert!((median(&[1.0, 2.0]) - 1.5).abs() < 1e-9);
    }

    #[test]
    fn the_json_has_the_form_that_all_benchmarks_share() {
        assert_eq!(
            json_row(&row()),
            json!({ "name": "pod start", "unit": "ms", "wharf": 3.0,
                    "peers": { "containerd+runc": 30.0 } })
        );
    }

    #[test]
    fn the_table_has_the_ratio_beside_each_peer() {
        let table = table(&[row()]);
        assert!(table.contains("30.00 (10.0×)"), "{table}");
    }
}
