//! `SOCK_SEQPACKET` sockets at paths of any length: bound and connected through a descriptor of the
//! directory, because `sun_path` holds 107 bytes.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::link::LinkError;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

fn failed(call: &'static str) -> impl Fn(Errno) -> LinkError {
    move |e| LinkError::Connect {
        call,
        source: e.into(),
    }
}

/// The directory, held open, and the address of `path` through it.
fn address(path: &Path) -> Result<(OwnedFd, SocketAddrUnix), LinkError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(parent, flags, Mode::empty()).map_err(failed("open"))?;
    let short = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    let address = SocketAddrUnix::new(short).map_err(failed("sockaddr_un"))?;
    Ok((dir, address))
}

fn socket(flags: SocketFlags) -> Result<OwnedFd, LinkError> {
    let flags = flags | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(failed("socket"))
}

/// A listening socket at `path`, for root only; what was there is replaced.
pub(crate) fn listen(path: &Path) -> Result<OwnedFd, LinkError> {
    let (dir, address) = address(path)?;
    let name = path.file_name().unwrap_or_default();
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(failed("unlink")(e)),
    }
    let socket = socket(SocketFlags::empty())?;
    rustix::net::bind(&socket, &address).map_err(failed("bind"))?;
    rustix::fs::chmodat(&dir, name, Mode::RUSR | Mode::WUSR, AtFlags::empty())
        .map_err(failed("chmod"))?;
    rustix::net::listen(&socket, BACKLOG).map_err(failed("listen"))?;
    Ok(socket)
}

/// A non-blocking connection to the socket at `path`.
pub(crate) fn connect(path: &Path) -> Result<OwnedFd, LinkError> {
    let (_dir, address) = address(path)?;
    let socket = socket(SocketFlags::NONBLOCK)?;
    rustix::net::connect(&socket, &address).map_err(failed("connect"))?;
    Ok(socket)
}
