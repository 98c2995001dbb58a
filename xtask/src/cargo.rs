//! Runs cargo and other programs, and builds what is shipped.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use wharf_testkit::cache;

/// cargo, in the folder of the workspace.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(args).current_dir(cache::workspace());
    command
}

/// Runs a command whose output people see.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let shown = shown(command);
    let status = command.status().map_err(|e| format!("{shown}: {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{shown}: {status}"))
    }
}

/// Runs a command and gives its output; what it says on stderr people see only when it fails.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let shown = shown(command);
    let out = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{shown}: {e}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&out.stderr);
    Err(format!("{shown}: {}\n{}", out.status, words.trim()))
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|w| w.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Builds `wharf`, `wharf-shim` and `wharf-runtime`; gives their folder.
pub(crate) fn build(release: bool) -> Result<PathBuf, String> {
    let mut build = cargo(&["build"]);
    for package in ["wharf-daemon", "wharf-shim", "wharf-runtime"] {
        build.args(["--package", package]);
    }
    if release {
        build.arg("--release");
    }
    run(&mut build)?;
    let profile = if release { "release" } else { "debug" };
    Ok(cache::target()
        .join("x86_64-unknown-linux-musl")
        .join(profile))
}

/// The error of something that did not work, as text.
pub(crate) fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}
