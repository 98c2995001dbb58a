//! critest and crictl: found, or built from their Go module.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use wharf_testkit::cache;

use crate::cargo::{output, text};

/// The release of cri-tools.
pub(crate) const VERSION: &str = "1.36.0";

const MODULE: &str = "sigs.k8s.io/cri-tools";

/// critest of [`VERSION`]; `None` where there is none and Go is not installed.
pub(crate) fn program() -> Result<Option<PathBuf>, String> {
    if let Some(found) = cache::find_program("critest") {
        let version = output(Command::new(&found).arg("-version")).unwrap_or_default();
        if version.contains(&format!("version: v{VERSION}\n")) {
            return Ok(Some(found));
        }
    }
    let Some(go) = cache::find_program("go") else {
        return Ok(None);
    };
    let make = |dir: &Path| build(&go, dir).map_err(std::io::Error::other);
    let dir = cache::folder(&format!("critest-{VERSION}"), make).map_err(text)?;
    Ok(Some(dir.join("critest")))
}

/// crictl of the same release, beside critest.
pub(crate) fn crictl(critest: &Path) -> PathBuf {
    critest.with_file_name("crictl")
}

/// A module of our own that requires cri-tools: so its go.sum is checked and nothing is installed.
fn build(go: &Path, dir: &Path) -> Result<(), String> {
    println!("building critest and crictl {VERSION} from {MODULE} (a minute or two)");
    let module = format!("module wharf.test/critest\n\ngo 1.26\n\nrequire {MODULE} v{VERSION}\n");
    fs::write(dir.join("go.mod"), module).map_err(text)?;
    let imports = [
        "cmd/crictl",
        "pkg/benchmark",
        "pkg/framework",
        "pkg/validate",
    ];
    let imports: String = imports
        .iter()
        .map(|i| format!("import _ \"{MODULE}/{i}\"\n"))
        .collect();
    let tools = format!("//go:build tools\n\npackage tools\n\n{imports}");
    fs::write(dir.join("tools.go"), tools).map_err(text)?;
    let version = format!("-X {MODULE}/pkg/version.Version=v{VERSION}");
    let steps: [&[&str]; 3] = [
        &["mod", "tidy"],
        &[
            "build",
            "-trimpath",
            "-ldflags",
            &version,
            "-o",
            "crictl",
            &format!("{MODULE}/cmd/crictl"),
        ],
        &[
            "test",
            "-c",
            "-trimpath",
            "-ldflags",
            &version,
            "-o",
            "critest",
            &format!("{MODULE}/cmd/critest"),
        ],
    ];
    for step in steps {
        let mut command = Command::new(go);
        command.args(step).current_dir(dir);
        output(command.env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=mod"))?;
    }
    Ok(())
}

/// Characters of a failure's message that are shown; the log has the rest.
const WHY_MAX: usize = 300;

/// What critest found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) passed: usize,
    pub(crate) failed: Vec<Failure>,
    pub(crate) skipped: usize,
}

/// A spec that failed, and the beginning of why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) spec: String,
    pub(crate) why: String,
}

impl Outcome {
    /// Reads a report of ginkgo (`-ginkgo.json-report`).
    ///
    /// Specs that a focus or skip pattern took out do not count; those that skipped themselves do.
    pub(crate) fn read(report: &str) -> Result<Self, String> {
        let report: Value = serde_json::from_str(report).map_err(text)?;
        let suites = report
            .as_array()
            .ok_or("the report is not a list of suites")?;
        let mut out = Self::default();
        let specs = suites
            .iter()
            .filter_map(|s| s["SpecReports"].as_array())
            .flatten();
        for spec in specs.filter(|s| s["LeafNodeType"] == "It") {
            let why = spec["Failure"]["Message"].as_str().unwrap_or_default();
            match spec["State"].as_str().unwrap_or_default() {
                "passed" => out.passed += 1,
                "skipped" | "pending" if why.is_empty() => {}
                "skipped" => out.skipped += 1,
                _ => {
                    let why = why.lines().map(str::trim).filter(|l| !l.is_empty());
                    let why: String = why.take(3).collect::<Vec<_>>().join(" ");
                    let why = if why.is_empty() {
                        "no message".into()
                    } else {
                        why
                    };
                    let why = why.chars().take(WHY_MAX).collect();
                    out.failed.push(Failure {
                        spec: name(spec),
                        why,
                    });
                }
            }
        }
        out.failed.sort_by(|a, b| a.spec.cmp(&b.spec));
        Ok(out)
    }

    /// `critest: N passed, N failed, N skipped`.
    pub(crate) fn line(&self) -> String {
        let (passed, failed, skipped) = (self.passed, self.failed.len(), self.skipped);
        format!("critest: {passed} passed, {failed} failed, {skipped} skipped")
    }
}

fn name(spec: &Value) -> String {
    let parts = spec["ContainerHierarchyTexts"]
        .as_array()
        .into_iter()
        .flatten();
    let parts = parts
        .chain([&spec["LeafNodeText"]])
        .filter_map(Value::as_str);
    parts.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_is_counted_without_what_the_patterns_took_out() {
        let spec = |state: &str, why: &str| {
            json!({
                "LeafNodeType": "It", "ContainerHierarchyTexts": ["[k8s.io] Pod"],
                "LeafNodeText": state, "State": state, "Failure": { "Message": why },
            })
        };
        let setup = json!({ "LeafNodeType": "BeforeSuite", "State": "passed" });
        let report = json!([{ "SpecReports": [
            setup, spec("passed", ""), spec("skipped", ""), spec("skipped", "no AppArmor"),
            spec("failed", "\nexpected 1\n  got 2"), spec("timedout", ""),
        ]}]);
        let outcome = Outcome::read(&report.to_string()).unwrap();
        assert_eq!(outcome.line(), "critest: 1 passed, 2 failed, 1 skipped");
        assert_eq!(outcome.failed[0].spec, "[k8s.io] Pod failed");
        assert_eq!(outcome.failed[0].why, "expected 1 got 2");
        assert!(Outcome::read("{}").is_err());
    }
}
