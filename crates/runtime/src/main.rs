//! `wharf-runtime`: the runtime library behind runc's command line.

mod command;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Err(error) = wharf_runtime::launch::own_copy::ensure(c"wharf-runtime") {
        return command::refuse(&error);
    }
    command::main(std::env::args_os().skip(1))
}
