//! One run of an executable plugin: bounded in time and in what it may say.
//!
//! The program runs in a session of its own, so that at its deadline everything it started is killed
//! with it.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use wharf_sys::spawn::{Program, Started};

use crate::limits::{BUSY_PAUSE, BUSY_TRIES, OUTPUT_MAX, STDERR_MAX};

/// What is run.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) program: &'a Path,
    /// Its arguments, the name under which it is called first.
    pub(crate) args: &'a [&'a str],
    /// `CNI_…`; what we have ourselves comes first.
    pub(crate) env: &'a [(&'a str, String)],
    pub(crate) stdin: &'a [u8],
    pub(crate) deadline: Duration,
    /// Soft limit of open files; ours when absent.
    pub(crate) open_files: Option<u64>,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) how: How,
    pub(crate) stdout: Vec<u8>,
    /// The beginning of it.
    pub(crate) stderr: String,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Code(i32),
    Signal(i32),
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "ended with exit code {code}"),
            Self::Signal(signal) => write!(f, "was ended by signal {signal}"),
        }
    }
}

/// A run without an end of its own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("cannot be started: {0}")]
    Start(#[source] io::Error),
    #[error("did not end within {0:?} and was killed with everything it had started")]
    Deadline(Duration),
    #[error("wrote more than {OUTPUT_MAX} bytes and was killed")]
    TooMuch,
    #[error("cannot be spoken to: {0}")]
    Io(#[source] io::Error),
}

/// The executable called `name` in the first directory that has one.
pub(crate) fn find(dirs: &[PathBuf], name: &str) -> Option<PathBuf> {
    let places = dirs.iter().map(|dir| dir.join(name));
    let mut executable = places.filter(|path| {
        use std::os::unix::fs::PermissionsExt as _;
        let meta = std::fs::metadata(path);
        meta.is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    });
    executable.next()
}

/// Runs it. Blocks until it has ended.
pub(crate) fn run(run: &Run<'_>) -> Result<Ended, RunError> {
    let (stdin, our_stdin) = io::pipe().map_err(RunError::Io)?;
    let (our_stdout, stdout) = io::pipe().map_err(RunError::Io)?;
    let (our_stderr, stderr) = io::pipe().map_err(RunError::Io)?;
    for ours in [our_stdin.as_fd(), our_stdout.as_fd(), our_stderr.as_fd()] {
        rustix::io::ioctl_fionbio(ours, true).map_err(|e| RunError::Io(e.into()))?;
    }
    let mut child = Child {
        started: start(run, [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])?,
        reaped: false,
    };
    drop((stdin, stdout, stderr));
    let until = Instant::now() + run.deadline;
    let mut talk = Talk {
        unsaid: run.stdin,
        stdin: Some(our_stdin),
        stdout: Stream::new(our_stdout, OUTPUT_MAX + 1),
        stderr: Stream::new(our_stderr, STDERR_MAX),
    };
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(RunError::Deadline(run.deadline));
        }
        let ended = talk
            .on(child.started.pidfd.as_fd(), left)
            .map_err(RunError::Io)?;
        if talk.stdout.kept.len() > OUTPUT_MAX {
            return Err(RunError::TooMuch);
        }
        if ended {
            break;
        }
    }
    let stderr = String::from_utf8_lossy(&talk.stderr.kept).trim().to_owned();
    let stdout = std::mem::take(&mut talk.stdout.kept);
    Ok(Ended {
        how: child.reap().map_err(RunError::Io)?,
        stdout,
        stderr,
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "nothing tells when the writer of a program closes it; this thread may block"
)]
fn start(run: &Run<'_>, fds: [BorrowedFd<'_>; 3]) -> Result<Started, RunError> {
    let failed = |e| RunError::Start(io::Error::other(e));
    let env = environment(run.env);
    let env: Vec<&[u8]> = env.iter().map(|v| v.as_bytes()).collect();
    let path = run.program.as_os_str().as_bytes();
    let args: Vec<&[u8]> = run.args.iter().map(|a| a.as_bytes()).collect();
    let mut program = Program::new(path, &args, &env).map_err(failed)?;
    for (fd, number) in fds.into_iter().zip(0..) {
        program = program.fd(fd, number);
    }
    program = program.own_session();
    if let Some(soft) = run.open_files {
        program = program.open_files(soft);
    }
    let mut tries = 1;
    loop {
        match program.spawn() {
            // It is being written at this moment: an upgrade.
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                tries += 1;
                std::thread::sleep(BUSY_PAUSE);
            }
            started => return started.map_err(RunError::Start),
        }
    }
}

/// Ours, as plugins read `PATH`, proxies and the like from it, then `more`.
fn environment(more: &[(&str, String)]) -> Vec<OsString> {
    let ours = std::env::vars_os().filter(|(key, _)| {
        let key = key.as_bytes();
        !key.starts_with(b"CNI_") && !key.starts_with(b"WHARF_")
    });
    let join = |key: &[u8], value: &[u8]| OsString::from_vec([key, b"=", value].concat());
    let ours = ours.map(|(key, value)| join(key.as_bytes(), value.as_bytes()));
    let more = more
        .iter()
        .map(|(key, value)| join(key.as_bytes(), value.as_bytes()));
    ours.chain(more).collect()
}

/// A started plugin; killed with its session when it is not reaped.
struct Child {
    started: Started,
    reaped: bool,
}

impl Child {
    fn reap(&mut self) -> io::Result<How> {
        let how = wait(&self.started)?;
        // Its number may be somebody else's now.
        self.reaped = true;
        Ok(how)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        // Not reaped yet, so the number is still its own, and its group's.
        let pid = i32::try_from(self.started.pid).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // Err: it has just ended.
            kill_process_group(pid, Signal::KILL).ok();
        }
        if let Err(error) = wait(&self.started) {
            tracing::warn!(pid = self.started.pid, %error, "a plugin cannot be waited for");
        }
    }
}

fn wait(child: &Started) -> io::Result<How> {
    let status = loop {
        match waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok(status) => break status,
        }
    };
    let status = status.ok_or(io::ErrorKind::InvalidData)?;
    Ok(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => How::Code(code),
        (None, signal) => How::Signal(signal.unwrap_or(0)),
    })
}

/// Our side of the three pipes.
struct Talk<'a> {
    unsaid: &'a [u8],
    stdin: Option<io::PipeWriter>,
    stdout: Stream,
    stderr: Stream,
}

struct Stream {
    from: Option<io::PipeReader>,
    kept: Vec<u8>,
    max: usize,
}

impl Talk<'_> {
    /// Waits until something can be said or heard, or the program has ended: then what it has left is
    /// heard, and true is given.
    fn on(&mut self, program: BorrowedFd<'_>, left: Duration) -> io::Result<bool> {
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let ended = {
            let mut fds = vec![PollFd::from_borrowed_fd(program, PollFlags::IN)];
            if let Some(stdin) = &self.stdin {
                fds.push(PollFd::new(stdin, PollFlags::OUT));
            }
            for stream in [&self.stdout, &self.stderr] {
                if let Some(from) = &stream.from {
                    fds.push(PollFd::new(from, PollFlags::IN));
                }
            }
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            !fds[0].revents().is_empty()
        };
        self.say()?;
        self.stdout.hear()?;
        self.stderr.hear()?;
        Ok(ended)
    }

    fn say(&mut self) -> io::Result<()> {
        while let Some(stdin) = &mut self.stdin {
            match stdin.write(self.unsaid) {
                Ok(n) => self.unsaid = self.unsaid.get(n..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // It does not want to hear more.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.unsaid = &[],
                Err(e) => return Err(e),
            }
            if self.unsaid.is_empty() {
                self.stdin = None;
            }
        }
        Ok(())
    }
}

impl Stream {
    fn new(from: io::PipeReader, max: usize) -> Self {
        Self {
            from: Some(from),
            kept: Vec::new(),
            max,
        }
    }

    /// Hears what there is; what is over the limit is dropped.
    fn hear(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        let mut heard = 0;
        while let Some(from) = &mut self.from {
            match from.read(&mut buffer) {
                Ok(0) => self.from = None,
                Ok(n) => {
                    let room = self.max.saturating_sub(self.kept.len());
                    self.kept.extend_from_slice(&buffer[..n.min(room)]);
                    heard += n;
                    // Who never stops writing must not keep us from looking at the clock.
                    if heard > OUTPUT_MAX {
                        return Ok(());
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
