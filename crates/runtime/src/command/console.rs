//! Terminals: the master is handed to whoever asked for it, or copied from and to our own stdio.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread::JoinHandle;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use rustix::termios::{OptionalActions, Termios};

use super::failure::Failure;

/// Sends `fd` over the unix stream socket at `path`, as runc does with a terminal or a pidfd.
pub(crate) fn send(path: &Path, fd: BorrowedFd<'_>, name: &[u8]) -> Result<(), Failure> {
    let named = |e: Errno| Failure::io(format!("send to {}", path.display()), e);
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(named)?;
    let address = SocketAddrUnix::new(path).map_err(named)?;
    rustix::net::connect(&socket, &address).map_err(named)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(named(Errno::NOBUFS));
    }
    let parts = [IoSlice::new(name)];
    rustix::net::sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL)
        .map(drop)
        .map_err(named)
}

/// Our own stdio copied from and to a container's terminal.
#[derive(Debug)]
pub(crate) struct Proxy {
    master: OwnedFd,
    output: Option<JoinHandle<()>>,
    /// What our terminal was like before it became raw.
    before: Option<Termios>,
}

impl Proxy {
    /// Begins to copy.
    pub(crate) fn start(master: OwnedFd) -> Result<Self, Failure> {
        let named = |e: io::Error| Failure::io("copy the terminal", e);
        let before = make_raw().map_err(|e| named(e.into()))?;
        let mut proxy = Self {
            output: None,
            before,
            master,
        };
        proxy.resize();
        let copy = |fd: &OwnedFd| fd.try_clone().map(std::fs::File::from);
        let (mut to, mut from) = (
            copy(&proxy.master).map_err(named)?,
            copy(&proxy.master).map_err(named)?,
        );
        // Ends with the process: nothing wakes a read of our stdin.
        std::thread::Builder::new()
            .spawn(move || copy_all(&mut io::stdin().lock(), &mut to))
            .map_err(named)?;
        let output = std::thread::Builder::new()
            .spawn(move || copy_all(&mut from, &mut io::stdout()))
            .map_err(named)?;
        proxy.output = Some(output);
        Ok(proxy)
    }

    /// Gives the container's terminal the size of ours.
    pub(crate) fn resize(&self) {
        let stdin = io::stdin();
        if let Ok(size) = rustix::termios::tcgetwinsize(stdin.as_fd()) {
            // A terminal that has just ended needs no size.
            rustix::termios::tcsetwinsize(&self.master, size).ok();
        }
    }

    /// Waits until the last output was copied (all slaves are closed).
    pub(crate) fn finish(mut self) {
        if let Some(output) = self.output.take() {
            output.join().ok();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            rustix::termios::tcsetattr(io::stdin().as_fd(), OptionalActions::Now, before).ok();
        }
    }
}

fn make_raw() -> Result<Option<Termios>, Errno> {
    let stdin = io::stdin();
    if !rustix::termios::isatty(stdin.as_fd()) {
        return Ok(None);
    }
    let before = rustix::termios::tcgetattr(stdin.as_fd())?;
    let mut raw = before.clone();
    raw.make_raw();
    rustix::termios::tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw)?;
    Ok(Some(before))
}

/// Copies until one side ends; EIO is how a terminal says that its last user has gone.
fn copy_all(from: &mut dyn io::Read, to: &mut dyn io::Write) {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) if to.write_all(&buffer[..n]).and_then(|()| to.flush()).is_ok() => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => return,
        }
    }
}
