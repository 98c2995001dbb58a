//! The command line as a person meets it: configuration, refusals, what exists.
#![cfg(test)]
#![expect(clippy::disallowed_types, reason = "runs the binary")]

use std::path::Path;
use std::process::{Command, Output};

fn wharf(args: &[&str]) -> (bool, String) {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_wharf"))
        .args(args)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

/// Writes a configuration whose directories lie in `dir`.
fn config(dir: &Path, more: &str) -> String {
    let path = dir.join("config.toml");
    let d = dir.display();
    let text = format!(
        "root = \"{d}/root\"\nstate = \"{d}/state\"\n[shim]\npath = \"{}\"\n[cri]\nsocket = \"{d}/sock\"\n{more}",
        env!("CARGO_BIN_EXE_wharf"),
    );
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn an_unknown_verb_is_answered_with_those_that_exist() {
    let (good, text) = wharf(&["frobnicate"]);
    assert!(!good);
    for part in ["frobnicate", "daemon", "config", "version"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn the_configuration_can_be_checked_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), "network = \"none\"\n");
    assert_eq!(
        wharf(&["config", "check", "--config", &file]),
        (true, format!("{file}: ok\n"))
    );
    let (_, shown) = wharf(&["config", "show", "--config", &file, "--root", "/elsewhere"]);
    assert!(shown.contains("root = \"/elsewhere\"") && shown.contains("network = \"none\""));
    let file = config(dir.path(), "netwrok = \"none\"\n");
    let (good, text) = wharf(&["config", "check", "--config", &file]);
    assert!(
        !good && text.contains("netwrok") && text.contains("line 7") && text.contains(&file),
        "{text}"
    );
    let (good, text) = wharf(&["config", "check", "--config", "/nonexistent/x.toml"]);
    assert!(!good && text.contains("/nonexistent/x.toml"), "{text}");
    let (good, default) = wharf(&["config", "default"]);
    assert!(good && default.contains("/run/wharf/wharf.sock"));
}

/// The lock is flock(2) on a file that holds the pid; here another process is made believe.
#[test]
fn a_second_daemon_on_the_same_state_is_refused_naming_the_first() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), "");
    let state = dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let lock = std::fs::File::create(state.join("daemon.lock")).unwrap();
    std::fs::write(state.join("daemon.lock"), "4242\n").unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let (good, text) = wharf(&["daemon", "--config", &file]);
    assert!(!good && text.contains("pid 4242"), "{text}");
    assert!(!dir.path().join("root").exists(), "nothing was made");
}

#[test]
fn a_missing_shim_is_named_with_the_key_that_says_where_it_is() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), "");
    let text = std::fs::read_to_string(&file).unwrap();
    let shim = env!("CARGO_BIN_EXE_wharf");
    std::fs::write(&file, text.replace(shim, "/nonexistent/wharf-shim")).unwrap();
    let (good, text) = wharf(&["daemon", "--config", &file]);
    assert!(
        !good && text.contains("/nonexistent/wharf-shim") && text.contains("shim.path"),
        "{text}"
    );
}
