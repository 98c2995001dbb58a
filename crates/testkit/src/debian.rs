//! Real programs for images, from Debian's packages: fetched by apt, unpacked in the cache.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cache;
use crate::tar::{Entry, Kind};

/// Fetches packages and unpacks them together; gives the folder.
///
/// Each element is one package, or `a|b`: the first of these that apt knows.
///
/// # Errors
/// apt or dpkg-deb is missing or failed; the text is theirs.
pub fn unpacked(key: &str, packages: &[&str]) -> io::Result<PathBuf> {
    cache::folder(key, |dir| {
        let names: Vec<&str> = packages
            .iter()
            .map(|p| known(p))
            .collect::<io::Result<_>>()?;
        let mut apt = Command::new("apt-get");
        apt.args(["-q", "-o", "APT::Sandbox::User=root", "download"]);
        run(apt.args(&names).current_dir(dir))?;
        for deb in files_in(dir, "deb")? {
            run(Command::new("dpkg-deb")
                .arg("-x")
                .arg(&deb)
                .arg(dir.join("root")))?;
            fs::remove_file(deb)?;
        }
        Ok(())
    })
    .map(|dir| dir.join("root"))
}

fn known(alternatives: &str) -> io::Result<&str> {
    for name in alternatives.split('|') {
        let mut show = Command::new("apt-cache");
        show.args(["--no-all-versions", "show", name])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if show.status()?.success() {
            return Ok(name);
        }
    }
    let remedy = "run `apt-get update`, or look at /etc/apt/sources.list";
    Err(io::Error::other(format!(
        "apt knows no package {alternatives}: {remedy}"
    )))
}

/// Runs a command to its end.
///
/// # Errors
/// It does not start, or ends with another status than 0: its words are in the text.
pub fn run(command: &mut Command) -> io::Result<String> {
    let out = command.stdin(Stdio::null()).output().map_err(|e| {
        io::Error::new(
            e.kind(),
            format!("{}: {e}", command.get_program().to_string_lossy()),
        )
    })?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(if out.stderr.is_empty() {
        &out.stdout
    } else {
        &out.stderr
    });
    Err(io::Error::other(format!(
        "{command:?}: {}: {}",
        out.status,
        words.trim()
    )))
}

fn files_in(dir: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A dynamic program of an unpacked root: itself at `to`, its loader and its libraries where the
/// loader looks (`/lib`).
///
/// # Errors
/// The root lacks the program or one of its libraries.
pub fn program(root: &Path, from: &str, to: &str) -> io::Result<Vec<Entry>> {
    let loader = first_of(
        root,
        &[
            "lib64/ld-linux-x86-64.so.2",
            "usr/lib64/ld-linux-x86-64.so.2",
        ],
    )?;
    let file = first_of(root, &[from, &format!("usr/{from}")])?;
    let path =
        ["lib", "usr/lib"].map(|d| root.join(d).join("x86_64-linux-gnu").display().to_string());
    let mut list = Command::new(&loader);
    list.args([
        "--inhibit-cache",
        "--library-path",
        &path.join(":"),
        "--list",
    ])
    .arg(&file);
    let list = run(&mut list)?;
    let mut entries = vec![Entry::program(to, fs::read(&file)?)];
    entries.push(Entry::program(
        "lib64/ld-linux-x86-64.so.2",
        fs::read(&loader)?,
    ));
    for line in list.lines() {
        let Some((name, rest)) = line.trim().split_once(" => ") else {
            continue;
        };
        let found = rest.split(" (").next().unwrap_or_default();
        if !Path::new(found).starts_with(root) {
            return Err(io::Error::other(format!(
                "{from} needs {name}, which no package here has"
            )));
        }
        if !name.contains("ld-linux") {
            entries.push(Entry::file(&format!("lib/{name}"), fs::read(found)?));
        }
    }
    Ok(entries)
}

fn first_of(root: &Path, names: &[&str]) -> io::Result<PathBuf> {
    let found = names.iter().map(|n| root.join(n)).find(|f| f.is_file());
    found.ok_or_else(|| io::Error::other(format!("{} is not in {}", names[0], root.display())))
}

/// Every file below `root` as entries that read their bytes when the layer is written, sorted.
///
/// # Errors
/// The folder cannot be read.
pub fn tree(root: &Path) -> io::Result<Vec<Entry>> {
    let mut out = Vec::new();
    walk(root, "", &mut out)?;
    Ok(out)
}

fn walk(root: &Path, below: &str, out: &mut Vec<Entry>) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(root.join(below))? {
        names.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    for name in names {
        let path = if below.is_empty() {
            name
        } else {
            format!("{below}/{name}")
        };
        let file = root.join(&path);
        let meta = fs::symlink_metadata(&file)?;
        let mode = meta.permissions().mode() & 0o7777;
        if meta.is_dir() {
            out.push(Entry::dir(&path).mode(mode));
            walk(root, &path, out)?;
        } else if meta.is_symlink() {
            out.push(Entry::symlink(
                &path,
                &fs::read_link(&file)?.to_string_lossy(),
            ));
        } else if meta.is_file() {
            out.push(Entry::copy(&path, &file).mode(mode));
        }
    }
    Ok(())
}

/// A static program from a few lines of C, by musl-gcc or cc.
///
/// # Errors
/// There is no compiler, or it refuses the text.
pub fn compiled(key: &str, source: &str) -> io::Result<Vec<u8>> {
    let dir = cache::folder(key, |dir| {
        let file = dir.join("main.c");
        fs::write(&file, source)?;
        let cc = ["musl-gcc", "cc"]
            .into_iter()
            .find(|c| cache::find_program(c).is_some());
        let cc = cc.ok_or_else(|| io::Error::other("no musl-gcc: run `cargo xtask setup`"))?;
        run(Command::new(cc)
            .args(["-static", "-Os", "-s", "-o"])
            .arg(dir.join("main"))
            .arg(&file))?;
        Ok(())
    })?;
    fs::read(dir.join("main"))
}

/// The entries of a root with Debian's dynamic busybox, every applet a hard link to it.
///
/// Not the static package: its shell runs applets without looking at the files, so that a masked
/// or removed `/bin/ls` would still work.
///
/// # Errors
/// apt or dpkg-deb failed.
pub fn busybox_root() -> io::Result<Vec<Entry>> {
    let root = unpacked("debian-busybox", &["busybox", "libc6", "libcrypt1"])?;
    let mut entries = vec![
        Entry::dir("bin"),
        Entry::dir("dev"),
        Entry::dir("etc"),
        Entry::dir("home"),
        Entry::dir("lib"),
        Entry::dir("lib64"),
        Entry::dir("proc"),
        Entry::dir("root").mode(0o700),
        Entry::dir("sys"),
        Entry::dir("tmp").mode(0o1777),
        Entry::dir("usr"),
        Entry::dir("usr/bin"),
        Entry::dir("usr/sbin"),
        Entry::dir("var"),
        Entry::dir("var/log"),
        Entry::dir("var/run"),
        Entry::file("etc/passwd", PASSWD),
        Entry::file("etc/group", GROUP),
        Entry::file(
            "etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\n",
        ),
        Entry::program("bin/pgrep", "#!/bin/sh\nexec pidof \"$@\"\n"),
        Entry::program("bin/ipcs", "#!/bin/sh\ncat /proc/sysvipc/shm\n"),
    ];
    let program = program(&root, "bin/busybox", "bin/busybox")?;
    entries.extend(program);
    for applet in applets(&root)?.lines().filter(|a| *a != "busybox") {
        entries.push(Entry::link(&format!("bin/{applet}"), "bin/busybox").mode(0o755));
    }
    Ok(entries)
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    daemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
    www-data:x:33:33:www-data:/var/www:/bin/false\n\
    nobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nnogroup:x:65534:\n";

fn applets(root: &Path) -> io::Result<String> {
    let loader = first_of(
        root,
        &[
            "lib64/ld-linux-x86-64.so.2",
            "usr/lib64/ld-linux-x86-64.so.2",
        ],
    )?;
    let busybox = first_of(root, &["bin/busybox", "usr/bin/busybox"])?;
    let path =
        ["lib", "usr/lib"].map(|d| root.join(d).join("x86_64-linux-gnu").display().to_string());
    let mut list = Command::new(loader);
    run(list
        .args(["--inhibit-cache", "--library-path", &path.join(":")])
        .arg(busybox)
        .arg("--list"))
}

/// How many regular files there are in these entries, and their bytes.
pub fn weight(entries: &[Entry]) -> (usize, u64) {
    let sizes = entries.iter().filter_map(|e| match &e.kind {
        Kind::File(bytes) => Some(bytes.len() as u64),
        Kind::Copy(from) => fs::metadata(from).ok().map(|m| m.len()),
        _ => None,
    });
    sizes.fold((0, 0), |(n, sum), size| (n + 1, sum + size))
}
