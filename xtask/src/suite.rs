//! Runs every test and counts what was left out.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use crate::args::Args;
use crate::cargo::{build, cargo, text};
use crate::setup;

/// `cargo xtask test`.
pub(crate) fn run(args: Args) -> Result<(), String> {
    let root = wharf_testkit::is_root();
    setup::run_for(if root {
        setup::For::Everything
    } else {
        setup::For::Building
    })?;
    build(false)?;
    let mut test = cargo(&["test", "--no-fail-fast"]);
    let mut words = args.rest();
    if !words.iter().any(|w| w == "-p" || w == "--package") {
        test.arg("--workspace");
    }
    if !words.iter().any(|w| w == "--") {
        words.push("--".into());
    }
    words.push("--show-output".into());
    let mut child = test
        .args(words)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(text)?;
    let mut filter = Filter::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            for shown in filter.line(line.map_err(text)?) {
                println!("{shown}");
            }
        }
    }
    let status = child.wait().map_err(text)?;
    for line in filter.end() {
        println!("{line}");
    }
    if status.success() {
        Ok(())
    } else {
        Err("some tests failed".into())
    }
}

/// `skipped: needs root`, or `name: skipped, it needs root`.
fn left_out(line: &str) -> bool {
    line.trim_start().starts_with("skipped:") || line.contains(": skipped, ")
}

/// Takes the words of passed tests out of the runner's output, and counts the tests that left
/// themselves out: they say so in their words.
#[derive(Debug, Default)]
struct Filter {
    in_words: bool,
    test: String,
    skipped: Vec<String>,
    held: Vec<String>,
}

impl Filter {
    /// The lines to show now.
    fn line(&mut self, line: String) -> Vec<String> {
        if let Some(name) = line.strip_prefix("---- ") {
            self.test = name.split(' ').next().unwrap_or_default().into();
        }
        if left_out(&line) {
            self.skipped.push(format!("{}: {}", self.test, line.trim()));
        }
        if line == "successes:" {
            self.in_words = true;
        } else if line == "failures:" || line.starts_with("test result:") {
            self.in_words = false;
        }
        if self.in_words {
            return Vec::new();
        }
        // The last closing line waits for what is said about the tests that were left out.
        if line.starts_with("test result:") {
            let before = std::mem::take(&mut self.held);
            self.held = vec![line];
            return before;
        }
        if line.is_empty() && !self.held.is_empty() {
            self.held.push(line);
            return Vec::new();
        }
        let mut shown = std::mem::take(&mut self.held);
        shown.push(line);
        shown
    }

    /// What was left out, then the runner's closing line.
    fn end(mut self) -> Vec<String> {
        let mut out = self.skipped.clone();
        if !self.skipped.is_empty() {
            out.push(format!(
                "{} tests were left out (see the lines above)",
                self.skipped.len()
            ));
        }
        while self.held.last().is_some_and(String::is_empty) {
            self.held.pop();
        }
        out.append(&mut self.held);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(text: &str) -> String {
        let mut filter = Filter::default();
        let mut out: Vec<String> = text.lines().flat_map(|l| filter.line(l.into())).collect();
        out.extend(filter.end());
        out.join("\n")
    }

    #[test]
    fn words_of_passed_tests_go_and_the_closing_line_stays_last() {
        let text = "test a ... ok\n\nsuccesses:\n\n---- a stdout ----\nskipped: needs root\n\n\
                    successes:\n    a\n\ntest result: ok. 1 passed\n\n";
        assert_eq!(
            filtered(text),
            "test a ... ok\n\na: skipped: needs root\n\
             1 tests were left out (see the lines above)\ntest result: ok. 1 passed"
        );
    }

    #[test]
    fn words_of_failed_tests_stay() {
        let text = "successes:\nquiet\nfailures:\n---- b stdout ----\nboom\ntest result: FAILED.";
        assert_eq!(
            filtered(text),
            "failures:\n---- b stdout ----\nboom\ntest result: FAILED."
        );
    }
}
