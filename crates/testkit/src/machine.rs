//! What of a node is on the machine: processes, mounts, cgroups, network namespaces, files.
//!
//! A node has a name that is in all its paths; by it what is the node's is told from the rest, so
//! that tests which run side by side do not see each other.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// A process that belongs to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its name (comm).
    pub name: String,
    /// Its command line, words separated by blanks.
    pub command: String,
}

/// Every process whose command line or cgroup names `marker`, except ourselves.
pub fn processes(marker: &str) -> Vec<Process> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<i32>().ok())
        else {
            continue;
        };
        if u32::try_from(pid) == Ok(std::process::id()) {
            continue;
        }
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let cgroups = read("cgroup");
        if command.contains(marker) || String::from_utf8_lossy(&cgroups).contains(marker) {
            let name = String::from_utf8_lossy(&read("comm")).trim().to_string();
            found.push(Process {
                pid,
                name,
                command: command.trim().into(),
            });
        }
    }
    found.sort_by_key(|p| p.pid);
    found
}

/// Kills every process of [`processes`] by its id, until there is none.
///
/// # Errors
/// Some live on: their names are in the text.
pub fn end_processes(marker: &str) -> io::Result<()> {
    let gone = wait::until(Duration::from_secs(10), || {
        let left = processes(marker);
        for p in &left {
            if let Some(pid) = Pid::from_raw(p.pid) {
                let _it_may_be_gone = kill_process(pid, Signal::KILL);
            }
        }
        Ok(left.is_empty())
    })?;
    if gone {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "these processes do not end: {:?}",
        processes(marker)
    )))
}

/// Proportional set size of a process in KiB (smaps_rollup).
///
/// # Errors
/// It is gone.
pub fn pss(pid: i32) -> io::Result<u64> {
    rolled_up(pid, "Pss:")
}

/// Anonymous memory of a process in KiB (smaps_rollup): unlike the proportional set size it does not
/// depend on who else runs the same program.
///
/// # Errors
/// It is gone.
pub fn anonymous(pid: i32) -> io::Result<u64> {
    rolled_up(pid, "Anonymous:")
}

fn rolled_up(pid: i32, key: &str) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    let number = line
        .and_then(|l| l.split_whitespace().next())
        .and_then(|n| n.parse().ok());
    number.ok_or_else(|| io::Error::other(format!("process {pid} has no {key}")))
}

/// Mount points of this mount namespace that name `marker`, the deepest first.
pub fn mounts(marker: &str) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text
        .lines()
        .filter(|l| l.contains(marker))
        .filter_map(|l| l.split(' ').nth(4));
    let mut points: Vec<PathBuf> = points.map(PathBuf::from).collect();
    points.reverse();
    points
}

/// The roots of the cgroup hierarchies: each v1 controller, v2.
pub fn hierarchies() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let cgroup = |l: &&str| l.contains(" - cgroup ") || l.contains(" - cgroup2 ");
    text.lines()
        .filter(cgroup)
        .filter_map(|l| l.split(' ').nth(4))
        .map(PathBuf::from)
        .collect()
}

/// Every cgroup `name` at the root of a hierarchy and all below, the deepest first.
pub fn cgroups(name: &str) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for root in hierarchies() {
        below(&root.join(name), &mut out);
    }
    out
}

fn below(dir: &Path, out: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            below(&entry.path(), out);
        }
    }
    out.push(dir.into());
}

/// Removes the cgroups of [`cgroups`]; their processes must have ended.
///
/// # Errors
/// One stays: its path and why are in the text.
pub fn remove_cgroups(name: &str) -> io::Result<()> {
    let mut last = None;
    let gone = wait::until(Duration::from_secs(5), || {
        for dir in cgroups(name) {
            if let Err(e) = fs::remove_dir(&dir) {
                last = Some(format!("{}: {e}", dir.display()));
            }
        }
        Ok(cgroups(name).is_empty())
    })?;
    if gone {
        Ok(())
    } else {
        Err(io::Error::other(last.unwrap_or_default()))
    }
}

/// Removes what nodes of test processes that were killed left: processes, cgroups, mounts, files.
///
/// A node is called `PREFIXpid-NUMBERx`; other names are not ours.
pub fn sweep(prefix: &str) {
    let mut dead = BTreeSet::new();
    let mut homes = hierarchies();
    homes.extend([PathBuf::from("/run"), crate::temporary_base()]);
    for entry in homes
        .iter()
        .filter_map(|h| fs::read_dir(h).ok())
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = name.strip_prefix(prefix).and_then(|n| n.strip_suffix('x'));
        let owner = ours
            .and_then(|n| n.split_once('-'))
            .and_then(|(o, _)| o.parse::<u32>().ok());
        if owner.is_some_and(|o| !Path::new(&format!("/proc/{o}")).exists()) {
            dead.insert(name);
        }
    }
    for name in dead {
        let mut result = end_processes(&name).and_then(|()| remove_cgroups(&name));
        for point in mounts(&name) {
            let flags = rustix::mount::UnmountFlags::DETACH;
            result = result.and(rustix::mount::unmount(&point, flags).map_err(Into::into));
        }
        let dirs = [
            Path::new("/run").join(&name),
            crate::temporary_base().join(&name),
        ];
        for dir in dirs.iter().filter(|d| d.exists()) {
            result = result.and(fs::remove_dir_all(dir));
        }
        if let Err(e) = result {
            eprintln!("testkit: an earlier test left {name}: {e}");
        }
    }
}

/// A look at the machine, to be compared with a later one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    facts: BTreeSet<String>,
}

impl Machine {
    /// What of the node `marker` is there now, and every file below `dirs`.
    pub fn look(marker: &str, dirs: &[&Path]) -> Self {
        let mut facts = BTreeSet::new();
        for p in processes(marker) {
            facts.insert(format!("process {} {}: {}", p.pid, p.name, p.command));
        }
        for point in mounts(marker) {
            facts.insert(format!("mount {}", point.display()));
        }
        for p in processes(marker) {
            inside(&p, marker, &mut facts);
        }
        for dir in cgroups(marker) {
            facts.insert(format!("cgroup {}", dir.display()));
        }
        for (what, dir) in [
            ("network namespace", "/run/netns"),
            ("interface", "/sys/class/net"),
        ] {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.contains(marker) || name.starts_with("wharf") {
                    facts.insert(format!("{what} {name}"));
                }
            }
        }
        for dir in dirs {
            files(dir, &mut facts);
        }
        Self { facts }
    }

    /// The same, and a process that began anew is the same thing: ids are not compared.
    pub fn changes_of_things(&self, later: &Self) -> Vec<String> {
        let mut changes = self.changes(later);
        let anonymous = |line: &str| -> String {
            let words = line.split(' ').map(|word| match word.parse::<u32>() {
                Ok(_id) => "N",
                Err(_) => word,
            });
            words.collect::<Vec<_>>().join(" ")
        };
        let less = changes.iter().filter(|c| c.starts_with('-'));
        for gone in less.cloned().collect::<Vec<_>>() {
            let came = format!("+{}", &anonymous(&gone)[1..]);
            if let Some(at) = changes.iter().position(|c| anonymous(c) == came) {
                changes.remove(at);
                changes.retain(|c| *c != gone);
            }
        }
        changes
    }

    /// What `later` has more (`+ …`) and less (`- …`); empty where nothing changed.
    pub fn changes(&self, later: &Self) -> Vec<String> {
        let less = self
            .facts
            .difference(&later.facts)
            .map(|f| format!("- {f}"));
        let more = later
            .facts
            .difference(&self.facts)
            .map(|f| format!("+ {f}"));
        less.chain(more).collect()
    }
}

/// What a process of the node alone can see: mounts of its mount namespace that are not ours too,
/// and namespaces that it keeps by a descriptor.
fn inside(p: &Process, marker: &str, facts: &mut BTreeSet<String>) {
    let proc = Path::new("/proc").join(p.pid.to_string());
    let namespace = |dir: &Path| fs::read_link(dir.join("ns/mnt")).ok();
    if namespace(&proc) != namespace(Path::new("/proc/self")) {
        let text = fs::read_to_string(proc.join("mountinfo")).unwrap_or_default();
        for line in text
            .lines()
            .filter(|l| l.contains(marker) || l.contains(" - nsfs "))
        {
            let point = line.split(' ').nth(4).unwrap_or_default();
            facts.insert(format!("mount seen by {} {}: {point}", p.pid, p.name));
        }
    }
    for entry in fs::read_dir(proc.join("fd"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let target = target.to_string_lossy();
        if ["net:[", "mnt:[", "pid:[", "ipc:[", "user:[", "uts:["]
            .iter()
            .any(|n| target.starts_with(n))
        {
            facts.insert(format!("namespace kept by {} {}: {target}", p.pid, p.name));
        }
    }
}

fn files(dir: &Path, facts: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        facts.insert(format!("file {}", entry.path().display()));
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            files(&entry.path(), facts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_tells_what_came_and_what_went() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("old"), "").unwrap();
        let before = Machine::look("no-node-has-this-name", &[dir.path()]);
        fs::remove_file(dir.path().join("old")).unwrap();
        fs::create_dir(dir.path().join("new")).unwrap();
        let after = Machine::look("no-node-has-this-name", &[dir.path()]);
        let at = dir.path().display();
        assert_eq!(
            before.changes(&after),
            [format!("- file {at}/old"), format!("+ file {at}/new")]
        );
        assert!(before.changes(&before).is_empty());
    }

    #[test]
    fn processes_are_found_by_a_word_of_their_command_line_and_ended() {
        let marker = format!("marker-{}", std::process::id());
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read x", &marker])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let found = processes(&marker);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(u32::try_from(found[0].pid).unwrap(), child.id());
        let reaper = std::thread::spawn(move || child.wait());
        end_processes(&marker).unwrap();
        assert!(!reaper.join().unwrap().unwrap().success());
    }
}
