//! Installs what the tasks need, and says before what it will be; where it cannot, says what is
//! missing and how to get it.

use std::fs;
use std::path::Path;
use std::process::Command;

use wharf_testkit::real_registry::RealRegistry;
use wharf_testkit::{cache, is_root};

use crate::cargo::output;

/// What the machine is made ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// To build, and to test what needs no root.
    Building,
    /// That, and nodes, registries and containers as well.
    Everything,
}

const TARGET: &str = "x86_64-unknown-linux-musl";

/// Debian packages, and the files any of which shows that it is there.
const TO_BUILD: [(&str, &[&str]); 1] = [("musl-tools", &["musl-gcc"])];
const TO_RUN: [(&str, &[&str]); 3] = [
    ("iproute2", &["ip"]),
    ("util-linux", &["unshare"]),
    ("dpkg", &["dpkg-deb"]),
];
/// For tests that leave themselves out without them: a root file system, an oracle for seccomp.
const TO_TEST: [(&str, &[&str]); 2] = [
    ("busybox-static", &["busybox"]),
    (
        "libseccomp-dev",
        &[
            "/usr/include/seccomp.h",
            "/usr/include/x86_64-linux-gnu/seccomp.h",
        ],
    ),
];

/// Makes the machine ready, or says in one line each what is missing.
pub(crate) fn run_for(what: For) -> Result<(), String> {
    let mut missing = Vec::new();
    missing.extend(rust_target().err());
    let lists: &[&[(&str, &[&str])]] = match what {
        For::Building => &[&TO_BUILD],
        For::Everything => &[&TO_BUILD, &TO_RUN, &TO_TEST],
    };
    let there = |file: &&str| -> bool {
        file.starts_with('/') && Path::new(file).exists() || cache::find_program(file).is_some()
    };
    let packages: Vec<&str> = lists
        .iter()
        .copied()
        .flatten()
        .filter(|(_, files)| !files.iter().any(there))
        .map(|(package, _)| *package)
        .collect();
    if !packages.is_empty() {
        missing.extend(install(&packages).err());
    }
    if what == For::Everything {
        missing.extend(registry().err());
        missing.extend(overlay().err());
        if !is_root() {
            missing.push("root: nodes and containers need it; run this as root".into());
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(missing
        .iter()
        .map(|m| format!("missing: {m}"))
        .collect::<Vec<_>>()
        .join("\n"))
}

/// `cargo xtask setup`.
pub(crate) fn run() -> Result<(), String> {
    if is_root() {
        run_for(For::Everything)?;
        println!("setup: everything is there");
        return Ok(());
    }
    run_for(For::Building)?;
    println!("setup: everything to build and to test without root is there;");
    println!("missing: root, for demo, conformance, bench and the tests that make containers");
    Ok(())
}

fn rust_target() -> Result<(), String> {
    let remedy = format!("run `rustup target add {TARGET}`, or see https://rustup.rs");
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", TARGET]);
    let dir = output(rustc.current_dir(cache::workspace()));
    if dir.is_ok_and(|d| fs::read_dir(d.trim()).is_ok_and(|mut files| files.next().is_some())) {
        return Ok(());
    }
    println!("setup: rustup target add {TARGET}");
    let mut rustup = Command::new("rustup");
    let added = crate::cargo::run(
        rustup
            .args(["target", "add", TARGET])
            .current_dir(cache::workspace()),
    );
    added.map_err(|e| format!("the standard library for {TARGET} ({e}): {remedy}"))
}

fn install(packages: &[&str]) -> Result<(), String> {
    let names = packages.join(" ");
    if cache::find_program("apt-get").is_none() {
        return Err(format!(
            "what Debian calls {names}: install it by your package manager"
        ));
    }
    let by_hand = format!("{names}: run as root `apt-get install --no-install-recommends {names}`");
    if !is_root() {
        return Err(by_hand);
    }
    println!("setup: apt-get install {names}");
    let apt = |args: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(["-qq", "-o", "DPkg::Lock::Timeout=300"])
            .args(args);
        output(apt.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    let install = [&["install", "-y", "--no-install-recommends"], packages].concat();
    if apt(&install).is_ok() {
        return Ok(());
    }
    apt(&["update"])
        .and_then(|_| apt(&install))
        .map(drop)
        .map_err(|e| {
            let last = e.lines().last().unwrap_or_default();
            format!("{by_hand} (without a network? apt said: {last})")
        })
}

/// The registry is unpacked into the cache, not installed: Debian's package would start a service.
fn registry() -> Result<(), String> {
    if RealRegistry::program().is_some() {
        return Ok(());
    }
    println!(
        "setup: unpacking Debian's docker-registry into {}",
        cache::target().display()
    );
    if RealRegistry::fetch().is_ok() {
        return Ok(());
    }
    let updated = output(Command::new("apt-get").args(["-qq", "update"]));
    updated
        .and_then(|_| RealRegistry::fetch().map_err(|e| e.to_string()))
        .map_err(|e| {
            let last = e.lines().last().unwrap_or_default().to_string();
            format!("docker-registry: put it, or distribution's `registry`, into PATH ({last})")
        })
}

fn overlay() -> Result<(), String> {
    let there = || {
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        known.lines().any(|l| l.trim_end().ends_with("\toverlay"))
    };
    if there()
        || (is_root()
            && crate::cargo::output(Command::new("modprobe").arg("overlay")).is_ok()
            && there())
    {
        return Ok(());
    }
    Err("overlayfs in the kernel: `modprobe overlay`, or a kernel with CONFIG_OVERLAY_FS".into())
}
