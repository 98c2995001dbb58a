//! The wharf binary: configuration, wiring, sockets, signals, readiness.

mod socket; // a unix socket for root alone
mod config; // the configuration file
mod log; // stderr
mod args; // the command line
mod lock; // one daemon a directory
mod called_as; // another program's name
mod checks; // what the machine must offer
mod api; // wharf's own door
mod daemon; // wiring, in order, and back
mod image_command; // what people ask about images

use std::error::Error;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};

use crate::args::{Args, Choice, Command, ConfigVerb, ImageVerb};
use crate::config::{Config, ConfigError, DEFAULT_PATH};

/// musl's allocator is many times slower under threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if let Some(code) = called_as::another() {
        return code;
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(refused) => return explain(&refused),
    };
    match run(args.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when stderr is closed.
            drop(writeln!(
                io::stderr(),
                "wharf: {}",
                wharf_types::chain(&*error)
            ));
            ExitCode::FAILURE
        }
    }
}

/// What clap says, and after an unknown command those that exist.
fn explain(refused: &clap::Error) -> ExitCode {
    let mut text = refused.render().to_string();
    if refused.kind() == ErrorKind::InvalidSubcommand {
        text = format!("{text}\n{}", Args::command().render_help());
    }
    // Nobody is left to tell when the stream is closed.
    drop(if refused.use_stderr() {
        io::stderr().write_all(text.as_bytes())
    } else {
        io::stdout().write_all(text.as_bytes())
    });
    ExitCode::from(u8::try_from(refused.exit_code()).unwrap_or(1))
}

fn run(command: Command) -> Result<(), Box<dyn Error>> {
    match command {
        Command::Daemon(choice) => Ok(daemon::run(&effective(&choice)?)?),
        Command::Config { verb } => configuration(verb),
        Command::Image {
            verb: ImageVerb::Check { names, choice },
        } => image_command::check(&effective(&choice)?, &names),
        Command::Version => {
            let text = format!("wharf {}\n", env!("CARGO_PKG_VERSION"));
            Ok(io::stdout().write_all(text.as_bytes())?)
        }
    }
}

fn configuration(verb: ConfigVerb) -> Result<(), Box<dyn Error>> {
    let text = match verb {
        ConfigVerb::Check(choice) => {
            effective(&choice)?;
            let file = choice.config.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
            format!("{}: ok\n", file.display())
        }
        ConfigVerb::Default => Config::default().to_text()?,
        ConfigVerb::Show(choice) => effective(&choice)?.to_text()?,
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

/// The file, then the command line.
fn effective(choice: &Choice) -> Result<Config, ConfigError> {
    let mut config = Config::load(choice.config.as_deref())?;
    if let Some(root) = &choice.root {
        config.root.clone_from(root);
    }
    if let Some(state) = &choice.state {
        config.state.clone_from(state);
    }
    config.check()?;
    Ok(config)
}
