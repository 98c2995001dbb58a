//! `wharf-runtime`: the runtime library behind runc's command line.

mod command;

use std::process::ExitCode;

fn main() -> ExitCode {
    command::main(std::env::args_os().skip(1))
}
