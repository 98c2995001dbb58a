//! What can only be done inside a network namespace. A process of the runtime's own kind enters it: by a
//! thread where that is allowed, by a short-lived helper for a daemon that never leaves its own.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::builtin::Inside;
use crate::exec::{self, How, Run};
use crate::limits::HELPER_DEADLINE;

/// The name under which our binary is the helper.
pub const HELPER: &str = "wharf-in-netns";

/// Starts the helper for each thing that is asked.
#[derive(Debug)]
pub struct ByHelper<'a> {
    /// Our binary.
    pub program: &'a Path,
    /// The namespace.
    pub netns: BorrowedFd<'a>,
}

impl ByHelper<'_> {
    fn ask(&self, name: &str, value: Option<&str>) -> io::Result<String> {
        // The helper opens it through us: that we hold it is why it is still there.
        let netns = format!("/proc/{}/fd/{}", std::process::id(), self.netns.as_raw_fd());
        let mut args = vec![HELPER, netns.as_str(), name];
        args.extend(value);
        let ended = exec::run(&Run {
            program: self.program,
            args: &args,
            env: &[],
            stdin: &[],
            deadline: HELPER_DEADLINE,
            open_files: None,
        });
        let ended = ended.map_err(io::Error::other)?;
        let text = String::from_utf8_lossy(&ended.stdout).trim_end().to_owned();
        match ended.how {
            How::Code(0) => Ok(text),
            // The number of the error is all that it says.
            How::Code(_) => Err(text.parse().map_or_else(
                |_| io::Error::other(ended.stderr),
                io::Error::from_raw_os_error,
            )),
            How::Signal(_) => Err(io::Error::other(format!("{HELPER} {}", ended.how))),
        }
    }
}

impl Inside for ByHelper<'_> {
    fn sysctl(&self, name: &str) -> io::Result<String> {
        self.ask(name, None)
    }

    fn set_sysctl(&self, name: &str, value: &str) -> io::Result<()> {
        self.ask(name, Some(value)).map(drop)
    }
}

/// What the helper does: `wharf-in-netns NETNS NAME [VALUE]`. Gives what it writes, or the error whose
/// number it writes. The calling process is in the namespace afterwards.
///
/// # Errors
///
/// The namespace cannot be entered, or the parameter cannot be read or written.
pub fn help(args: &[String]) -> io::Result<String> {
    let (netns, name, value) = match args {
        [netns, name] => (netns, name, None),
        [netns, name, value] => (netns, name, Some(value)),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    enter(std::fs::File::open(netns)?.as_fd())?;
    match value {
        None => read(name),
        Some(value) => write(name, value).map(|()| String::new()),
    }
}

/// Enters by a thread of its own: for a process that may.
#[derive(Debug)]
pub struct ByThread<'a> {
    /// The namespace.
    pub netns: BorrowedFd<'a>,
}

impl ByThread<'_> {
    /// A socket of `NETLINK_ROUTE` that was opened inside.
    ///
    /// # Errors
    ///
    /// The namespace cannot be entered, or there are no more descriptors.
    pub fn route_socket(&self) -> io::Result<OwnedFd> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
        self.within(|| {
            let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
            Ok(socket_with(family, kind, SocketFlags::CLOEXEC, None)?)
        })
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter(self.netns)?;
                work()
            });
            let done = thread.join();
            done.unwrap_or_else(|_panicked| Err(io::Error::other("a fault of wharf")))
        })
    }
}

impl Inside for ByThread<'_> {
    fn sysctl(&self, name: &str) -> io::Result<String> {
        self.within(|| read(name))
    }

    fn set_sysctl(&self, name: &str, value: &str) -> io::Result<()> {
        self.within(|| write(name, value))
    }
}

fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(
        netns,
        Some(LinkNameSpaceType::Network),
    )?)
}

/// The parameter's file. A name never leads out of `/proc/sys`.
fn path(name: &str) -> io::Result<PathBuf> {
    let path = Path::new(name);
    let plain = |c| matches!(c, std::path::Component::Normal(_));
    if name.is_empty() || !path.components().all(plain) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(Path::new("/proc/sys").join(path))
}

fn read(name: &str) -> io::Result<String> {
    Ok(std::fs::read_to_string(path(name)?)?.trim_end().to_owned())
}

fn write(name: &str, value: &str) -> io::Result<()> {
    // Not created when it is not there.
    let mut file = std::fs::File::options().write(true).open(path(name)?)?;
    io::Write::write_all(&mut file, value.as_bytes())
}
