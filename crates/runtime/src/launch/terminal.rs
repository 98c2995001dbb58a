//! The container's pseudo-terminal: of its own devpts, reached without a look-up in its files.
//!
//! The slave is opened from the master (`TIOCGPTPEER`, Linux 4.13), not by the name that ptsname(3)
//! gives: the name belongs to the container.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::path::{Make, Place, RootFd};
use super::{mounts, status::Report};

/// Magic number of devpts in `statfs(2)`.
const DEVPTS: u64 = 0x1cd1;
/// Device number of every ptmx.
const PTMX: (u32, u32) = (5, 2);

/// Opens a new terminal beneath `root`; gives the slave and hands the master to the maker.
pub(super) fn open(
    root: RootFd<'_>,
    size: Option<Winsize>,
    report: &Report,
) -> Result<OwnedFd, Errno> {
    // A devpts has its ptmx inside; /dev/ptmx is the container's to replace.
    let ptmx = root.open(c"dev/pts/ptmx", OFlags::RDWR | OFlags::NOCTTY)?;
    let stat = rustix::fs::fstat(&ptmx)?;
    let is_ptmx = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        ) == PTMX
        && u64::try_from(rustix::fs::fstatfs(&ptmx)?.f_type) == Ok(DEVPTS);
    if !is_ptmx {
        return Err(Errno::NOTTY);
    }
    rustix::pty::unlockpt(&ptmx)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&ptmx, flags)?;
    if let Some(size) = size {
        rustix::termios::tcsetwinsize(&slave, size)?;
    }
    report.terminal(ptmx.as_fd())?;
    Ok(slave)
}

/// Shows the terminal as /dev/console, by descriptor.
pub(super) fn bind_console(
    slave: BorrowedFd<'_>,
    place: &Place,
    root: RootFd<'_>,
) -> Result<(), Errno> {
    let target = place.open_or_make(root.without_links(), Make::File)?;
    let mount = mounts::clone(slave, c"", false)?;
    mounts::attach(mount.as_fd(), target.as_fd())
}
