//! `wharf-shim`: the zygote, and the shims that it forks.
//!
//! ```text
//! daemon ──starts──► zygote ──fork──► shim of a pod: control thread, log thread
//! ```
//!
//! One executable and no second `execve`, so the shims share nearly all their memory. No async
//! runtime: each process is one loop around `poll(2)`.

mod limits; // every limit by name
mod clock; // the time of day
mod failure; // failures in the protocol's words
mod args; // the command line
mod title; // what ps shows
mod own_log; // the log of zygote and shims
mod mounts; // the minimal mount namespace
mod sandbox; // the pod's namespaces
mod log; // the containers' output
mod connection; // one client
mod control; // the control thread of a shim
mod zygote; // the zygote

use std::process::ExitCode;

use zygote::{Ended, complain};

fn main() -> ExitCode {
    if let Err(error) = wharf_runtime::launch::own_copy::ensure(c"wharf-shim") {
        complain(&error);
        return ExitCode::FAILURE;
    }
    let args = match args::parse(std::env::args_os()) {
        Ok(args) => args,
        Err(error) => {
            complain(&error);
            return ExitCode::from(2);
        }
    };
    // The zygote's state is gone when this returns in a shim, its listening socket with it.
    match zygote::run(&args) {
        Ok(Ended::Shutdown) => ExitCode::SUCCESS,
        Ok(Ended::Shim(seed)) => control::run(*seed),
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}
