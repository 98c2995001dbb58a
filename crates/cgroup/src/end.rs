//! Freezing, killing and removing a cgroup.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::apply::field;
use crate::cgroup::Cgroup;
use crate::error::CgroupError;
use crate::group::{Group, Version, io_error};

/// Rounds of waiting; round n waits at most 2^n milliseconds, so all together about 4 s.
const ROUNDS: u32 = 12;
/// The most processes that are waited for at once.
const WAIT_MAX: usize = 256;

impl Cgroup {
    /// Kills every process in it and below it, also those that fork meanwhile. They may still be
    /// ending when this returns; [`Cgroup::remove`] waits.
    ///
    /// # Errors
    /// The kernel refuses, or (v1) processes are left after the bound.
    pub fn kill(&self) -> Result<(), CgroupError> {
        let Some(group) = self.primary() else {
            return Ok(());
        };
        if group.version == Version::V2 {
            match group.write("cgroup.kill", "1") {
                Ok(()) | Err(Errno::NODEV) => return Ok(()),
                // Before 5.14: one by one.
                Err(Errno::NOENT) if group.path.exists() => {}
                Err(Errno::NOENT) => return Ok(()),
                Err(error) => return Err(io_error("kill", &group.path, error)),
            }
        }
        kill_each(group)
    }

    /// Stops every process in it; returns when all have stopped.
    ///
    /// # Errors
    /// There is no freezer, or a process did not stop within the bound.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.frozen(true)
    }

    /// Lets its processes go on.
    ///
    /// # Errors
    /// As of [`Cgroup::freeze`].
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.frozen(false)
    }

    fn frozen(&self, freeze: bool) -> Result<(), CgroupError> {
        let Some(group) = self.primary() else {
            return Err(CgroupError::NotFound(self.path.clone()));
        };
        match group.version {
            Version::V2 => frozen_v2(group, freeze),
            Version::V1 if group.has("freezer") => frozen_v1(group, freeze),
            Version::V1 => Err(CgroupError::NoController {
                controller: "freezer".to_owned(),
                file: "freezer.state".to_owned(),
                value: "FROZEN".to_owned(),
            }),
        }
    }

    /// Removes it and the cgroups below it; processes that are ending are waited for, within a bound.
    /// A cgroup that is gone already is no error.
    ///
    /// # Errors
    /// Processes are left after the bound ([`CgroupError::Stuck`]), or the kernel refuses.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for round in 0..ROUNDS {
            let mut busy = None;
            for group in self.groups.iter().filter(|group| group.own) {
                if !group.remove()? {
                    busy = Some(group);
                }
            }
            let Some(group) = busy else {
                return Ok(());
            };
            wait_for_exits(group, round)?;
        }
        Err(CgroupError::Stuck {
            path: self
                .primary()
                .map_or_else(Default::default, |g| g.path.clone()),
            what: "its processes did not end: kill them first",
        })
    }
}

/// Waits until a process of the group ends, at most 2^round milliseconds. A group without processes
/// may be busy for a moment too: the kernel takes the last one out after its exit was seen.
fn wait_for_exits(group: &Group, round: u32) -> Result<(), CgroupError> {
    let pidfds = pidfds(&group.processes()?);
    wait(polled(&pidfds), round, &group.path)
}

/// Waits for one of `polled`, at most 2^round milliseconds.
fn wait(mut polled: Vec<PollFd<'_>>, round: u32, path: &Path) -> Result<(), CgroupError> {
    let timeout = Timespec {
        tv_sec: i64::from(round / 10),
        tv_nsec: (1_000_000 << (round % 10)).min(999_999_999),
    };
    match rustix::event::poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(io_error("wait for", path, error)),
    }
}

/// Handles of those processes that still exist and are ours to see.
fn pidfds(processes: &[u32]) -> Vec<(u32, OwnedFd)> {
    processes
        .iter()
        .filter_map(|&pid| {
            let id = Pid::from_raw(i32::try_from(pid).ok()?)?;
            let pidfd = rustix::process::pidfd_open(id, PidfdFlags::empty()).ok()?;
            Some((pid, pidfd))
        })
        .collect()
}

/// Those that have not ended yet: one whose exit nobody collected would end every wait at once.
fn polled(pidfds: &[(u32, OwnedFd)]) -> Vec<PollFd<'_>> {
    let mut polled: Vec<_> = pidfds
        .iter()
        .take(WAIT_MAX)
        .map(|(_, pidfd)| PollFd::new(pidfd, PollFlags::IN))
        .collect();
    if rustix::event::poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ended| ended > 0) {
        polled.retain(|one| one.revents().is_empty());
    }
    polled
}

/// Freezes where it can, signals, thaws; until nobody is left.
fn kill_each(group: &Group) -> Result<(), CgroupError> {
    for round in 0..ROUNDS {
        // Frozen processes cannot fork away from the signal. If freezing hangs on one of them, the
        // signals are sent all the same: the next round finds who forked.
        let freezer = group.version == Version::V1 && group.has("freezer");
        if freezer {
            let _next_round_finds_them = group.write("freezer.state", "FROZEN");
        }
        let processes = group.processes()?;
        let handles = pidfds(&processes);
        // A process id may have been taken by another process before its handle was opened: only
        // ids that are still in the group are signalled.
        let still = group.processes()?;
        for (_, handle) in handles.iter().filter(|(pid, _)| still.contains(pid)) {
            // ESRCH: it ended by itself.
            let _gone = rustix::process::pidfd_send_signal(handle, Signal::KILL);
        }
        if freezer {
            match group.write("freezer.state", "THAWED") {
                Ok(()) | Err(Errno::NOENT | Errno::NODEV) => {}
                Err(error) => return Err(io_error("thaw", &group.path, error)),
            }
        }
        if processes.is_empty() {
            return Ok(());
        }
        wait(polled(&handles), round, &group.path)?;
    }
    Err(CgroupError::Stuck {
        path: group.path.clone(),
        what: "processes are left after SIGKILL",
    })
}

fn frozen_v2(group: &Group, freeze: bool) -> Result<(), CgroupError> {
    let value = if freeze { "1" } else { "0" };
    group
        .write("cgroup.freeze", value)
        .map_err(|error| io_error("freeze", &group.path, error))?;
    if !freeze {
        return Ok(());
    }
    let path = group.path.join("cgroup.events");
    let events = group
        .file("cgroup.events", OFlags::RDONLY)
        .map_err(|error| io_error("open", &path, error))?;
    let mut text = Vec::new();
    for round in 0..ROUNDS {
        crate::group::read_at_start(&events, &mut text)
            .map_err(|error| io_error("read", &path, error))?;
        // An empty cgroup counts as frozen.
        if field(&String::from_utf8_lossy(&text), "frozen") == Some(1) {
            return Ok(());
        }
        let polled = vec![PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)];
        wait(polled, round, &path)?;
    }
    stuck(group)
}

fn frozen_v1(group: &Group, freeze: bool) -> Result<(), CgroupError> {
    let state = if freeze { "FROZEN" } else { "THAWED" };
    let path = group.path.join("freezer.state");
    for round in 0..ROUNDS {
        // Writing again freezes those who forked meanwhile. v1 tells nobody when it is done.
        group
            .write("freezer.state", state)
            .map_err(|error| io_error("freeze", &path, error))?;
        let now = group
            .read("freezer.state")
            .map_err(|error| io_error("read", &path, error))?;
        if now.trim() == state {
            return Ok(());
        }
        wait(Vec::new(), round, &path)?;
    }
    stuck(group)
}

/// A half-frozen cgroup helps nobody.
fn stuck(group: &Group) -> Result<(), CgroupError> {
    let (file, value) = match group.version {
        Version::V2 => ("cgroup.freeze", "0"),
        Version::V1 => ("freezer.state", "THAWED"),
    };
    group
        .write(file, value)
        .map_err(|error| io_error("thaw", &group.path, error))?;
    Err(CgroupError::Stuck {
        path: group.path.clone(),
        what: "a process did not freeze",
    })
}
