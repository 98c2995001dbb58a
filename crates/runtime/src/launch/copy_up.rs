//! `tmpcopyup`: a new tmpfs begins with what the image has in the place that it covers.
//!
//! Directories, files and symbolic links with mode, owner and group; other kinds are left out. No
//! link is followed, and depth is bounded: the image decides what lies here.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::status::{Fault, On as _};

/// Directories in directories; a deeper tree is refused with `ELOOP`.
const DEPTH_MAX: u32 = 32;

/// Copies the directory `from` into the directory `to`.
pub(super) fn copy_up(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Fault> {
    let stat = rustix::fs::fstat(from)?;
    // A handle of a mount (`O_PATH`) cannot be changed itself, but through itself as a directory.
    let to = directory(to, c".")?;
    copy_entries(from, to.as_fd(), DEPTH_MAX)?;
    rustix::fs::fchown(&to, Some(uid(&stat)), Some(gid(&stat)))?;
    rustix::fs::fchmod(&to, mode(&stat)).map_err(Fault::from)
}

fn copy_entries(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: u32) -> Result<(), Fault> {
    let depth = depth.checked_sub(1).ok_or(Errno::LOOP)?;
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(from, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).on(name)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => copy_directory(from, to, name, depth).on(name)?,
            FileType::RegularFile => copy_file(from, to, name).on(name)?,
            FileType::Symlink => copy_link(from, to, name).on(name)?,
            _ => continue,
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(to, name, Some(uid(&stat)), Some(gid(&stat)), flags).on(name)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            // Nobody else can reach the new file system yet, so the name is still what was made.
            rustix::fs::chmodat(to, name, mode(&stat), AtFlags::empty()).on(name)?;
        }
    }
    Ok(())
}

fn copy_directory(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    depth: u32,
) -> Result<(), Fault> {
    rustix::fs::mkdirat(to, name, Mode::RWXU)?;
    let (from, to) = (directory(from, name)?, directory(to, name)?);
    copy_entries(from.as_fd(), to.as_fd(), depth)
}

fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let from = rustix::fs::openat(from, name, read, Mode::empty())?;
    let make = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let to = rustix::fs::openat(to, name, make, Mode::RUSR | Mode::WUSR)?;
    let mut buffer = [0; 4096];
    loop {
        let n = rustix::io::retry_on_intr(|| rustix::io::read(&from, &mut buffer))?;
        if n == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..n];
        while !rest.is_empty() {
            let written = rustix::io::retry_on_intr(|| rustix::io::write(&to, rest))?;
            rest = &rest[written..];
        }
    }
}

fn copy_link(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let mut buffer = [0_u8; 4097];
    let n = rustix::fs::readlinkat_raw(from, name, &mut buffer[..4096])?;
    buffer[n] = 0;
    let target = CStr::from_bytes_until_nul(&buffer).map_err(|_none| Errno::NAMETOOLONG)?;
    rustix::fs::symlinkat(target, to, name)
}

fn directory(at: BorrowedFd<'_>, name: &CStr) -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn uid(stat: &Stat) -> Uid {
    Uid::from_raw(stat.st_uid)
}

fn gid(stat: &Stat) -> Gid {
    Gid::from_raw(stat.st_gid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn a_tree_arrives_with_modes_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(from.join("a/b")).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("a/b/file"), vec![7; 10_000]).unwrap();
        std::fs::set_permissions(from.join("a"), std::fs::Permissions::from_mode(0o1750)).unwrap();
        symlink("/etc/passwd", from.join("a/link")).unwrap();
        let open = |path: &std::path::Path| std::fs::File::open(path).unwrap();
        copy_up(open(&from).as_fd(), open(&to).as_fd()).unwrap();
        assert_eq!(std::fs::read(to.join("a/b/file")).unwrap(), vec![7; 10_000]);
        let mode = std::fs::metadata(to.join("a"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o1750);
        let link = std::fs::read_link(to.join("a/link")).unwrap();
        assert_eq!(link.to_str(), Some("/etc/passwd"));
    }

    #[test]
    fn a_bottomless_tree_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(from.join("d/".repeat(40))).unwrap();
        std::fs::create_dir(&to).unwrap();
        let open = |path: &std::path::Path| std::fs::File::open(path).unwrap();
        let fault = copy_up(open(&from).as_fd(), open(&to).as_fd()).unwrap_err();
        assert_eq!(fault.errno(), Errno::LOOP);
    }
}
