//! The command line: one verb, and descriptors by number, opened by whoever starts the zygote.
//!
//! ```text
//! wharf-shim zygote --socket-fd N [--log-fd N] [--cgroup-fd N]...
//! ```

use std::ffi::OsString;

/// What the zygote was given.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Args {
    /// The listening `SOCK_SEQPACKET` socket.
    pub(crate) socket: u32,
    /// Where failures are written as JSON lines; standard error without it.
    pub(crate) log: Option<u32>,
    /// Files of the shims' home by which a process joins, one for each hierarchy, opened for writing.
    pub(crate) cgroups: Vec<u32>,
}

/// The command line cannot be followed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ArgsError {
    /// No verb, or not ours.
    #[error("usage: wharf-shim zygote --socket-fd N [--log-fd N] [--cgroup-fd N]...")]
    Usage,
    /// A flag that is not known.
    #[error("unknown flag {0:?}")]
    UnknownFlag(OsString),
    /// A flag without a descriptor's number after it.
    #[error("{flag} needs the number of a descriptor, not {value:?}")]
    NoNumber {
        /// The flag.
        flag: String,
        /// What follows it.
        value: OsString,
    },
}

/// Reads the command line; `args` begins with the program's name.
///
/// # Errors
///
/// What cannot be understood, named.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Args, ArgsError> {
    let mut args = args.into_iter().skip(1);
    if args.next().is_none_or(|verb| verb != "zygote") {
        return Err(ArgsError::Usage);
    }
    let mut parsed = Args::default();
    let mut socket = None;
    while let Some(flag) = args.next() {
        let flag = match flag.into_string() {
            Ok(known) if ["--socket-fd", "--log-fd", "--cgroup-fd"].contains(&known.as_str()) => {
                known
            }
            Ok(unknown) => return Err(ArgsError::UnknownFlag(unknown.into())),
            Err(unknown) => return Err(ArgsError::UnknownFlag(unknown)),
        };
        let value = args.next().unwrap_or_default();
        let Some(number) = value.to_str().and_then(|v| v.parse::<u32>().ok()) else {
            return Err(ArgsError::NoNumber { flag, value });
        };
        match flag.as_str() {
            "--socket-fd" => socket = Some(number),
            "--log-fd" => parsed.log = Some(number),
            _ => parsed.cgroups.push(number),
        }
    }
    parsed.socket = socket.ok_or(ArgsError::Usage)?;
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Args, ArgsError> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn descriptors_are_taken_in_any_order() {
        let args = parsed("wharf-shim zygote --cgroup-fd 5 --socket-fd 3 --cgroup-fd 6").unwrap();
        assert_eq!((args.socket, args.log), (3, None));
        assert_eq!(args.cgroups, [5, 6]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(parsed("wharf-shim"), Err(ArgsError::Usage));
        assert_eq!(parsed("wharf-shim zygote"), Err(ArgsError::Usage));
        assert!(
            parsed("wharf-shim zygote --socket-fd x")
                .unwrap_err()
                .to_string()
                .contains("\"x\"")
        );
        assert!(
            parsed("wharf-shim zygote --what 3")
                .unwrap_err()
                .to_string()
                .contains("--what")
        );
    }
}
