//! What is done to a container that exists: start, state, kill, delete.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use serde_json::json;
use wharf_cgroup::Cgroup;
use wharf_runtime::launch::release_parked;

use super::args::Options;
use super::failure::Failure;
use super::log::Log;
use super::record::{Place, Record, Status};

/// `SIGKILL`.
const KILL: i32 = 9;
/// How long a killed init may take to end, as runc has it.
const KILL_SECONDS: i64 = 10;

fn find(options: &Options, id: &str) -> Result<(Place, Record), Failure> {
    let place = Place::new(&options.root, id);
    let record = place.read()?;
    Ok((place, record))
}

/// Lets a created container execute its program.
pub(crate) fn start(options: &Options, id: &str, log: &Log) -> Result<(), Failure> {
    let (place, record) = find(options, id)?;
    match place.status(&record).0 {
        Status::Created => {}
        Status::Running => return Err(Failure::new("cannot start an already running container")),
        Status::Stopped => return Err(Failure::new("cannot start a container that has stopped")),
        Status::Creating => {
            return Err(Failure::new(
                "cannot start a container that is being created",
            ));
        }
    }
    let connection = place.connect()?;
    let released = release_parked(connection);
    // Whatever became of it, it does not wait any more.
    place.started()?;
    let warnings = released.map_err(|e| Failure::because("error during container start", &e))?;
    warnings.iter().for_each(|w| log.warn(w));
    Ok(())
}

/// The state as the specification has it, with runc's additions.
pub(crate) fn state(options: &Options, id: &str) -> Result<String, Failure> {
    let (place, record) = find(options, id)?;
    let status = place.status(&record).0;
    let pid = if status == Status::Stopped {
        0
    } else {
        record.pid
    };
    let state = json!({
        "ociVersion": record.oci_version,
        "id": record.id,
        "pid": pid,
        "status": status.word(),
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "annotations": record.annotations,
        "owner": record.owner,
    });
    let text = serde_json::to_string_pretty(&state);
    let text = text.map_err(|e| Failure::because("print state", &e))?;
    Ok(text + "\n")
}

/// Sends a signal to the init, or to all processes.
pub(crate) fn kill(options: &Options, id: &str, signal: i32, all: bool) -> Result<(), Failure> {
    let (place, record) = find(options, id)?;
    let (_, pidfd) = place.status(&record);
    if all {
        return kill_all(&record, signal);
    }
    let pidfd = pidfd.ok_or_else(Failure::not_running)?;
    match wharf_sys::signal::send(&pidfd, signal) {
        Err(Errno::SRCH) => Err(Failure::not_running()),
        other => other.map_err(|e| Failure::io(format!("send signal {signal}"), e)),
    }
}

/// No process being left is no failure here, as for runc.
fn kill_all(record: &Record, signal: i32) -> Result<(), Failure> {
    let Some(cgroup) = cgroup(record)? else {
        return Ok(());
    };
    if signal == KILL {
        return cgroup.kill().map_err(|e| Failure::because("kill", &e));
    }
    let processes = cgroup.processes();
    for pid in processes.map_err(|e| Failure::because("list processes", &e))? {
        let Some(pid) = i32::try_from(pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        else {
            continue;
        };
        if let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            // It may end at any moment.
            wharf_sys::signal::send(&pidfd, signal).ok();
        }
    }
    Ok(())
}

fn cgroup(record: &Record) -> Result<Option<Cgroup>, Failure> {
    super::bundle::open_cgroup(&record.cgroup)
}

/// Removes a container that does not run; with `force`, kills it before.
pub(crate) fn delete(options: &Options, id: &str, force: bool) -> Result<(), Failure> {
    let place = Place::new(&options.root, id);
    let record = match place.read() {
        Err(_) if force && !options.root.join(id).exists() => return Ok(()),
        other => other?,
    };
    let (status, pidfd) = place.status(&record);
    if matches!(status, Status::Running | Status::Creating) && !force {
        return Err(Failure::new(format!(
            "cannot delete container {id} that is not stopped: {}",
            status.word()
        )));
    }
    if let Some(pidfd) = pidfd {
        end(&pidfd)?;
    }
    if let Some(cgroup) = cgroup(&record)? {
        let named = |e| Failure::because("remove cgroup", &e);
        cgroup.kill().map_err(named)?;
        cgroup.remove().map_err(named)?;
    }
    place.forget()
}

fn end(pidfd: &OwnedFd) -> Result<(), Failure> {
    let failed = |e: Errno| Failure::io("kill the container's init", e);
    match wharf_sys::signal::send(pidfd, KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(e) => return Err(failed(e)),
    }
    let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    let limit = Timespec {
        tv_sec: KILL_SECONDS,
        tv_nsec: 0,
    };
    match rustix::event::poll(&mut fds, Some(&limit)).map_err(failed)? {
        0 => Err(Failure::new(format!(
            "the container's init did not end within {KILL_SECONDS} s of SIGKILL"
        ))),
        _ => Ok(()),
    }
}
