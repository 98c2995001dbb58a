//! runc's verbs, flags, exit codes and log, for containerd, CRI-O, podman and docker.
//!
//! ```text
//! args ─► create ─► state file ─► cgroup ─► launch ─► parked init      start ─► its socket
//!         run = create + start + wait                                  kill, delete, state: by the file
//! ```

mod args; // the command line
mod failure; // what went wrong, in words that callers look for
mod log; // the log file, as containerd reads it
mod clock; // time stamps
mod record; // what is known about a container: one file
mod bundle; // config.json to a plan with descriptors
mod console; // terminals: handed over, or copied
mod create; // a parked init
mod foreground; // until the container ends
mod verbs; // start, state, kill, delete

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use args::{Options, Verb};
use failure::Failure;
use log::Log;

/// Runs the command line; gives the exit code.
pub(crate) fn main(words: impl Iterator<Item = OsString>) -> ExitCode {
    let options = match args::parse(words) {
        Ok(options) => options,
        Err(failure) => {
            Log::to_stderr().error(&failure);
            return ExitCode::FAILURE;
        }
    };
    let log = match Log::open(&options) {
        Ok(log) => log,
        Err(failure) => {
            Log::to_stderr().error(&failure);
            return ExitCode::FAILURE;
        }
    };
    match run(&options, &log) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            log.error(&failure);
            ExitCode::FAILURE
        }
    }
}

/// Says why no command line is looked at at all.
pub(crate) fn refuse(error: &dyn std::error::Error) -> ExitCode {
    Log::to_stderr().error(&Failure::because("begin", error));
    ExitCode::FAILURE
}

fn run(options: &Options, log: &Log) -> Result<u8, Failure> {
    match &options.verb {
        Verb::Help => say(args::HELP).map(|()| 0),
        Verb::Version => say(&format!(
            "wharf-runtime version {}\nspec: 1.3.0\n",
            env!("CARGO_PKG_VERSION")
        ))
        .map(|()| 0),
        Verb::Create(new) => create::create(options, new, log).map(|()| 0),
        Verb::Run(new) => foreground::run(options, new, log),
        Verb::Start { id } => verbs::start(options, id, log).map(|()| 0),
        Verb::State { id } => say(&verbs::state(options, id)?).map(|()| 0),
        Verb::Kill { id, signal, all } => verbs::kill(options, id, *signal, *all).map(|()| 0),
        Verb::Delete { id, force } => verbs::delete(options, id, *force).map(|()| 0),
    }
}

/// Writes to stdout; a reader who has left is no failure.
fn say(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::io("write stdout", e)),
        _ => Ok(()),
    }
}
