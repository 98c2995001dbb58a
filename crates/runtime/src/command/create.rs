//! Makes a container up to its parked init; whatever fails, nothing stays behind.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::process::{WaitId, WaitIdOptions, waitid};
use wharf_cgroup::Cgroup;
use wharf_runtime::launch::{self, Park, Pending, Progress, Stdio};

use super::args::{New, Options};
use super::bundle::{self, Bundle};
use super::failure::Failure;
use super::log::Log;
use super::record::{Place, Record, start_time};
use super::{clock, console};

/// `SIGKILL`.
const KILL: i32 = 9;

/// `create`: the init waits on its socket, and this process ends.
pub(crate) fn create(options: &Options, new: &New, log: &Log) -> Result<(), Failure> {
    check_preserved(new)?;
    let bundle = bundle::load(new)?;
    match (bundle.terminal(), &new.console_socket) {
        (true, None) => {
            return Err(Failure::new(
                "cannot allocate a tty without a console socket: give --console-socket",
            ));
        }
        (false, Some(_)) => {
            return Err(Failure::new(
                "cannot use a console socket without a tty: process.terminal is false",
            ));
        }
        _ => {}
    }
    let mut made = make(options, new, &bundle, log, Waits::ForStart)?;
    if let (Some(master), Some(socket)) = (made.terminal.take(), &new.console_socket) {
        console::send(socket, master.as_fd(), b"/dev/ptmx")?;
    }
    made.tell(new)?;
    made.keep();
    Ok(())
}

/// How the init is let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    /// By a later `start`.
    ForStart,
    /// By us, who make it.
    ForUs,
}

/// A made container; dropped, it is unmade.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) place: Place,
    cgroup: Option<Cgroup>,
    pub(crate) init: Option<Pending>,
    pub(crate) terminal: Option<OwnedFd>,
    kept: bool,
}

impl Made {
    /// Writes the pid file and hands over the pidfd.
    pub(crate) fn tell(&self, new: &New) -> Result<(), Failure> {
        let Some(init) = &self.init else {
            return Ok(());
        };
        if let Some(socket) = &new.pidfd_socket {
            console::send(socket, init.pidfd.as_fd(), b"pidfd")?;
        }
        match &new.pid_file {
            Some(file) => write_pid(file, init.pid),
            None => Ok(()),
        }
    }

    /// It lives on without us.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }

    /// The init, as long as this owns it.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.init.as_ref().map(|init| init.pidfd.as_fd())
    }

    fn unmake(&mut self) -> Result<(), Failure> {
        if let Some(init) = self.init.take() {
            // It may have ended by itself.
            wharf_sys::signal::send(&init.pidfd, KILL).ok();
            waitid(WaitId::PidFd(init.pidfd.as_fd()), WaitIdOptions::EXITED).ok();
        }
        if let Some(cgroup) = self.cgroup.take() {
            let named = |e| Failure::because("remove cgroup", &e);
            cgroup.kill().map_err(named)?;
            cgroup.remove().map_err(named)?;
        }
        self.place.forget()
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.kept
            && let Err(failure) = self.unmake()
        {
            Log::to_stderr().warn(&format!("clean up: {failure}"));
        }
    }
}

/// Makes the container; its init is parked when this returns.
pub(crate) fn make(
    options: &Options,
    new: &New,
    bundle: &Bundle,
    log: &Log,
    waits: Waits,
) -> Result<Made, Failure> {
    let place = Place::new(&options.root, &new.id);
    place.take()?;
    let mut made = Made {
        place,
        cgroup: None,
        init: None,
        terminal: None,
        kept: false,
    };
    let mut record = bundle.record(&new.id, clock::now());
    made.place.write(&record)?;
    let cgroup = bundle.cgroup()?;
    let prepared = bundle.prepare(&cgroup);
    made.cgroup = Some(cgroup);
    let (plan, fds) = prepared?;
    let park = match waits {
        Waits::ForStart => Park::Listener(made.place.listen()?),
        Waits::ForUs => Park::Socket,
    };
    let init = launch::create(&plan, fds, stdio()?, park).map_err(|e| cannot(&e))?;
    remember(&made.place, &mut record, init.pid)?;
    let init = made.init.insert(init);
    match init.wait().map_err(|e| cannot(&e))? {
        Progress::Parked { terminal, warnings } | Progress::Executed { terminal, warnings } => {
            warnings.iter().for_each(|w| log.warn(w));
            made.terminal = terminal;
        }
    }
    Ok(made)
}

fn cannot(error: &launch::StepError) -> Failure {
    Failure::because("error during container init", error)
}

fn remember(place: &Place, record: &mut Record, pid: u32) -> Result<(), Failure> {
    record.pid = pid;
    record.pid_start = start_time(pid).unwrap_or(0);
    place.write(record)
}

/// Our own stdio, for the container.
fn stdio() -> Result<Stdio, Failure> {
    let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(Some);
    let all = || -> io::Result<Stdio> {
        Ok(Stdio {
            stdin: copy(io::stdin().as_fd())?,
            stdout: copy(io::stdout().as_fd())?,
            stderr: copy(io::stderr().as_fd())?,
        })
    };
    all().map_err(|e| Failure::io("copy stdio", e))
}

/// The descriptors that are to be inherited must be there, or ones of ours would take their numbers
/// and be inherited instead.
pub(crate) fn check_preserved(new: &New) -> Result<(), Failure> {
    let first = io::stderr().as_fd().as_raw_fd() + 1;
    let count = i32::try_from(new.preserve_fds).unwrap_or(i32::MAX);
    for number in first..first.saturating_add(count) {
        if !wharf_sys::process::is_open(number) {
            return Err(Failure::new(format!(
                "--preserve-fds {}: error: descriptor {number} is not open",
                new.preserve_fds
            )));
        }
    }
    Ok(())
}

/// Written whole: who watches the file reads all digits or none.
fn write_pid(file: &Path, pid: u32) -> Result<(), Failure> {
    let named = |e| Failure::io(format!("write {}", file.display()), e);
    let mut name = std::ffi::OsString::from(".");
    name.push(file.file_name().unwrap_or_default());
    let new = file.with_file_name(name);
    std::fs::write(&new, pid.to_string()).map_err(named)?;
    std::fs::rename(&new, file).map_err(named)
}
