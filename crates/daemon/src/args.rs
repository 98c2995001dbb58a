//! The command line. Only commands that exist.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// A Kubernetes container runtime.
#[derive(Debug, Parser)]
#[command(
    name = "wharf",
    version,
    propagate_version = false,
    subcommand_required = true
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon: serve CRI on a unix socket
    Daemon(Choice),
    /// Look at the configuration
    Config {
        #[command(subcommand)]
        verb: ConfigVerb,
    },
    /// Ask the daemon about images
    Image {
        #[command(subcommand)]
        verb: ImageVerb,
    },
    /// Print the version
    Version,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// Read images from the disk and say what is not as it came; exit code 1 if anything is damaged
    Check {
        /// Names or ids; all images when there are none
        names: Vec<String>,
        #[command(flatten)]
        choice: Choice,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Say whether the configuration can work
    Check(Choice),
    /// Print the defaults as a file
    Default,
    /// Print what the daemon would use
    Show(Choice),
}

/// Which configuration.
#[derive(Debug, clap::Args)]
pub(crate) struct Choice {
    /// Configuration file [default: /etc/wharf/config.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Directory of what survives a reboot, instead of the configuration's
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Directory of what ends with the boot, instead of the configuration's
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
}
