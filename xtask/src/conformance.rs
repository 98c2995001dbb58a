//! critest against wharf, or against containerd to tell a fault of ours from one of the images.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use wharf_testkit::node::{Node, Subject};
use wharf_testkit::place::Place;
use wharf_testkit::real_registry::RealRegistry;
use wharf_testkit::{cache, containerd, samples, wait};

use crate::args::Args;
use crate::cargo::{build, text};
use crate::crictl;
use crate::critest::{self, Outcome};
use crate::setup;

/// When critest is killed: it takes about three minutes.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// `cargo xtask conformance`.
pub(crate) fn run(mut args: Args) -> Result<(), String> {
    let what = args.word();
    let subject = match args.option("--runtime")?.as_deref() {
        None | Some("wharf") => Subject::Wharf,
        Some("containerd") => Subject::Containerd,
        Some(other) => return Err(format!("--runtime {other}: wharf or containerd")),
    };
    let release = args.flag("--release");
    match what.as_deref() {
        Some("cri") => cri(subject, release, args),
        Some("crictl") => args.end().and_then(|()| walk(subject, release)),
        _ => Err("conformance of what? `cargo xtask conformance cri`, or `crictl`".into()),
    }
}

const NO_GO: &str = "conformance: skipped: Go is not installed, and critest is not in PATH";

fn cri(subject: Subject, release: bool, mut args: Args) -> Result<(), String> {
    let mut patterns = Vec::new();
    for name in ["focus", "skip"] {
        if let Some(pattern) = args.option(&format!("--{name}"))? {
            patterns.push(format!("-ginkgo.{name}={pattern}"));
        }
    }
    let at_least = args.number("--at-least")?;
    args.end()?;
    let at_least = at_least.unwrap_or_else(|| if patterns.is_empty() { promised() } else { 0 });

    setup::run_for(setup::For::Everything)?;
    let Some(program) = critest::program()? else {
        println!("{NO_GO}");
        return Ok(());
    };
    let outcome = judge(&Court::open(subject, release)?, &program, &patterns)?;
    for failure in &outcome.failed {
        println!("failed: {}\n        {}", failure.spec, failure.why);
    }
    println!("{}", outcome.line());
    if outcome.passed >= at_least {
        return Ok(());
    }
    Err(format!(
        "conformance: {} passed, but {at_least} is promised",
        outcome.passed
    ))
}

fn walk(subject: Subject, release: bool) -> Result<(), String> {
    setup::run_for(setup::For::Everything)?;
    let Some(program) = critest::program()? else {
        println!("{NO_GO}");
        return Ok(());
    };
    let court = Court::open(subject, release)?;
    let (passed, failed) = crictl::walk(&critest::crictl(&program), &court.node)?;
    for line in &failed {
        println!("failed: {line}");
    }
    println!("crictl: {passed} passed, {} failed", failed.len());
    if failed.is_empty() {
        Ok(())
    } else {
        Err("conformance: crictl does not work whole".into())
    }
}

/// How many specs pass according to the README: the number in its first `critest: N passed`.
fn promised() -> usize {
    let readme = fs::read_to_string(cache::workspace().join("README.md")).unwrap_or_default();
    stated(&readme).unwrap_or(0)
}

fn stated(readme: &str) -> Option<usize> {
    let (_, rest) = readme.split_once("critest: ")?;
    rest.split_once(" passed")?.0.parse().ok()
}

/// Who is judged, with the images of critest behind a mirror.
struct Court {
    // The order is that of the end.
    node: Node,
    _registry: RealRegistry,
    data: tempfile::TempDir,
}

impl Court {
    fn open(subject: Subject, release: bool) -> Result<Self, String> {
        let mut node = Node::of(subject);
        match subject {
            Subject::Wharf => node = node.programs(build(release)?).network("default"),
            Subject::Containerd => {
                if let Some(missing) = containerd::missing() {
                    return Err(format!("no {missing} in $RIG/bin or PATH"));
                }
                node = node.network("cni");
            }
        }
        let place = Place::own().map_err(text)?;
        let data = wharf_testkit::temporary().map_err(text)?;
        let registry = RealRegistry::start(&place, data.path()).map_err(text)?;
        registry
            .push(&samples::critest().map_err(text)?)
            .map_err(text)?;
        let node = node
            .place(&place)
            .mirror("_default", &registry.url())
            .start()
            .map_err(text)?;
        Ok(Self {
            node,
            _registry: registry,
            data,
        })
    }
}

fn judge(court: &Court, program: &Path, patterns: &[String]) -> Result<Outcome, String> {
    let node = &court.node;
    let out = cache::target().join("conformance");
    fs::create_dir_all(&out).map_err(text)?;
    // Two runs at the same time do not write into one file.
    let (report, log) = (
        node.dir().join("critest.json"),
        node.dir().join("critest.log"),
    );
    println!(
        "critest {} runs; its log: {}",
        critest::VERSION,
        log.display()
    );
    let mut command = node.place().command(program);
    command
        .arg("-config=/nonexistent")
        .arg(format!(
            "-runtime-endpoint=unix://{}",
            node.socket().display()
        ))
        .arg(format!("-ginkgo.json-report={}", report.display()))
        .arg("-ginkgo.no-color")
        .args(patterns)
        .current_dir(court.data.path());
    finish(&mut command, &log)?;
    for name in ["critest.json", "critest.log", "daemon.log"] {
        let _a_missing_report_is_told_below = fs::copy(node.dir().join(name), out.join(name));
    }
    println!("critest is done; report and logs: {}", out.display());
    let report = fs::read_to_string(&report).map_err(|e| {
        let log = fs::read_to_string(&log).unwrap_or_default();
        let end: Vec<&str> = log.lines().rev().take(15).collect();
        let end: Vec<&str> = end.into_iter().rev().collect();
        format!("critest left no report ({e}):\n{}", end.join("\n"))
    })?;
    Outcome::read(&report)
}

/// Runs critest to its end; that specs failed is not an error here.
fn finish(command: &mut Command, log: &Path) -> Result<(), String> {
    let file = fs::File::create(log).map_err(text)?;
    let err = file.try_clone().map_err(text)?;
    command.stdin(Stdio::null()).stdout(file).stderr(err);
    let mut child = command.spawn().map_err(|e| format!("critest: {e}"))?;
    let ended = wait::until(LIMIT, || Ok(child.try_wait()?.is_some())).map_err(text)?;
    if ended {
        return Ok(());
    }
    child.kill().and_then(|()| child.wait()).map_err(text)?;
    Err(format!(
        "critest did not end in {} minutes",
        LIMIT.as_secs() / 60
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_promise_is_read_from_the_readme() {
        assert_eq!(
            stated("…\n`critest: 73 passed, 35 failed, 14 skipped`"),
            Some(73)
        );
        assert_eq!(stated("nothing of the kind"), None);
    }
}
