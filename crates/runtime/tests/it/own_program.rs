//! Our own program, and what a container that gets hold of it can do with it (CVE-2019-5736): nothing.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::rig::{Bundle, Runtime, is_root, outcome};

/// A copy of our program that nobody else executes: a program that runs cannot be written to anyhow.
fn copy(dir: &Path) -> PathBuf {
    let program = dir.join("own-runtime");
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_wharf-runtime"))
        .arg(&program)
        .status();
    assert!(copied.unwrap().success());
    program
}

fn open(path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
}

#[test]
fn the_program_that_a_container_finds_in_its_maker_cannot_be_written_to() {
    let Some(bundle) = Bundle::new("own_program", &["sleep", "1000"]) else {
        return;
    };
    let dir = bundle.write();
    let program = copy(&dir);
    let call = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("--root").arg(dir.join("states")).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        assert_eq!(command.status().unwrap().code(), Some(0), "{words:?}");
    };
    let pid_file = dir.join("pid");
    let [bundle_dir, pid_path] = [&dir, &pid_file].map(|path| path.to_str().unwrap());
    call(&[
        "create",
        "--bundle",
        bundle_dir,
        "--pid-file",
        pid_path,
        "own",
    ]);
    // Its init is parked: still our program, but in the container's namespaces.
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let held = open(&format!("/proc/{pid}/exe"), OFlags::PATH);
    call(&["delete", "--force", "own"]);
    let held = held.unwrap();
    let again = format!("/proc/self/fd/{}", held.as_raw_fd());
    assert_eq!(open(&again, OFlags::WRONLY).unwrap_err(), Errno::ROFS);
    assert_eq!(
        open(&again, OFlags::RDWR | OFlags::TRUNC).unwrap_err(),
        Errno::ROFS
    );
    // The file itself is an ordinary one all the time.
    open(program.to_str().unwrap(), OFlags::WRONLY).unwrap();
}

#[test]
fn a_container_that_executes_its_maker_gets_the_protected_program() {
    let Some(bundle) = Bundle::new("executes_its_maker", &["/proc/self/exe", "--version"]) else {
        return;
    };
    let out = bundle.run(&Runtime::ours());
    assert_eq!(out.code, Some(0), "{}", out.stderr);
    assert!(out.stdout.starts_with("wharf-runtime version"), "{out:?}");
}

#[test]
fn without_the_right_to_mount_the_program_runs_from_a_sealed_copy() {
    if !is_root("sealed_copy") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = copy(dir.path());
    let mut command = Command::new(&program);
    command.uid(65534).gid(65534).env("A", "1").arg("--version");
    let out = outcome(&mut command);
    assert_eq!(out.code, Some(0), "{}", out.stderr);
    assert!(out.stdout.starts_with("wharf-runtime version"), "{out:?}");
}
