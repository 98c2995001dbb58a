//! Times of steps that follow each other, drawn as a waterfall in the terminal.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Columns of the widest bar.
const WIDTH: f64 = 48.0;

/// Steps with their start and length.
#[derive(Debug)]
pub(crate) struct Waterfall {
    origin: Instant,
    steps: Vec<(String, Duration, Duration)>,
}

impl Waterfall {
    pub(crate) fn new() -> Self {
        Self {
            origin: Instant::now(),
            steps: Vec::new(),
        }
    }

    /// Does one step and notes its time; the step's name goes into its error.
    pub(crate) fn step<T, E: std::fmt::Display>(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, String> {
        let start = self.origin.elapsed();
        let result = work();
        self.steps
            .push((name.into(), start, self.origin.elapsed() - start));
        result.map_err(|e| format!("{name}: {e}"))
    }

    /// The drawing: name, milliseconds, a bar from start to end on one time line.
    pub(crate) fn draw(&self) -> String {
        let first = self.steps.first().map_or(Duration::ZERO, |s| s.1);
        let end = self.steps.last().map_or(Duration::ZERO, |s| s.1 + s.2);
        let total = (end - first).as_secs_f64().max(f64::MIN_POSITIVE);
        let column = |at: Duration| ((at - first).as_secs_f64() / total * WIDTH).round();
        let mut out = String::new();
        for (name, start, length) in &self.steps {
            let from = column(*start) as usize;
            let bar = (column(*start + *length) as usize - from).max(1);
            let (gap, bar) = (" ".repeat(from), "█".repeat(bar));
            let ms = length.as_secs_f64() * 1000.0;
            let _into_a_string = writeln!(out, "  {name:<20}{ms:>9.2} ms  {gap}{bar}");
        }
        let _into_a_string = writeln!(out, "  {:<20}{:>9.2} ms", "together", total * 1000.0);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_begins_where_the_one_before_ended() {
        let ms = Duration::from_millis;
        let steps = vec![("a".into(), ms(10), ms(10)), ("b".into(), ms(20), ms(30))];
        let drawn = Waterfall {
            origin: Instant::now(),
            steps,
        }
        .draw();
        let lines: Vec<&str> = drawn.lines().collect();
        assert!(
            lines[0].ends_with(&format!("10.00 ms  {}", "█".repeat(12))),
            "{drawn}"
        );
        assert!(
            lines[1].ends_with(&format!("30.00 ms  {}{}", " ".repeat(12), "█".repeat(36))),
            "{drawn}"
        );
        assert!(lines[2].ends_with("40.00 ms"), "{drawn}");
    }

    #[test]
    fn a_failed_step_names_itself() {
        let failed = Waterfall::new().step("PullImage", || Err::<(), _>("no such host"));
        assert_eq!(failed, Err("PullImage: no such host".into()));
    }
}
