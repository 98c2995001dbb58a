//! Roots and bind sources, opened by the planner in the host's mount namespace: detached copies with
//! their attributes already set.
//!
//! A detached mount can be attached in another mount namespace, but not copied there: whoever sees the
//! source must open it.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::OpenTreeFlags;
use wharf_sys::mount::{Change, set_attributes};

use crate::compile::BindSource;

/// `MS_PRIVATE` of mount(2).
const MS_PRIVATE: u64 = 1 << 18;
/// `MS_REC` of mount(2).
const MS_REC: u64 = 0x4000;
/// The part of an image's /etc/passwd that is read.
const PASSWD_MAX: u64 = 1024 * 1024;
/// Magic number of procfs in `statfs(2)`.
const PROCFS: u64 = 0x9fa0;

/// A detached, private copy of the directory `path`, with what is mounted below it, to be a container's
/// root (descriptor `rootfs` of a plan).
///
/// # Errors
///
/// `NotFound`; `NotADirectory`; those of `open_tree(2)`.
pub fn rootfs(path: &Path) -> io::Result<OwnedFd> {
    let root = copy(path, true)?;
    let stat = rustix::fs::fstat(&root)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let private = Change {
        propagation: MS_PRIVATE,
        ..Change::default()
    };
    set_attributes(&root, &private, true)?;
    Ok(root)
}

/// The home directory of user `uid` by the image's own /etc/passwd, `/` when that does not say: the
/// value of `HOME` for a process whose environment has none, as runc and crun set it.
pub fn home_directory(root: BorrowedFd<'_>, uid: u32) -> String {
    // An image without users, or with something else in that place, has no homes.
    let passwd = read_passwd(root).unwrap_or_default();
    let mut lines = passwd.lines().map(|line| line.split(':'));
    let home = lines.find_map(|mut fields| {
        let own = fields.nth(2)?.parse() == Ok(uid);
        own.then(|| fields.nth(2)).flatten()
    });
    match home {
        Some(home) if home.starts_with('/') => home.to_owned(),
        _ => "/".to_owned(),
    }
}

/// Opens the regular file `path` beneath `root` for reading. An image may have anything in any place, and
/// merely to open a device can do something, so nothing else is ever opened.
///
/// # Errors
///
/// `NotFound`; `InvalidInput` for what is no regular file; those of `openat2(2)`.
pub fn regular_file(root: BorrowedFd<'_>, path: &str) -> io::Result<File> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let handle = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)?;
    let stat = rustix::fs::fstat(&handle)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        let text = "is no regular file";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    // What was looked at, whatever lies at the path by now.
    let same = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(File::from(rustix::fs::open(same, flags, Mode::empty())?))
}

/// Not all of a large one.
fn read_passwd(root: BorrowedFd<'_>) -> io::Result<String> {
    let file = regular_file(root, "etc/passwd")?;
    let mut bytes = Vec::new();
    file.take(PASSWD_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn copy(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

/// Opens what a plan's `bind` descriptor needs: a detached copy of the source with its attributes and
/// propagation already set. The last component may be a symbolic link, which is followed, as mount(8)
/// does.
///
/// # Errors
///
/// `NotFound`; `InvalidInput` for a source over /proc that is no procfs; those of `open_tree(2)` and
/// `mount_setattr(2)`.
pub fn open(bind: &BindSource) -> io::Result<OwnedFd> {
    let mount = copy(&bind.source, bind.recursive)?;
    if bind.must_be_procfs && u64::try_from(rustix::fs::fstatfs(&mount)?.f_type) != Ok(PROCFS) {
        let text = format!(
            "{} is no procfs, and nothing else may lie over /proc",
            bind.source.display()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let below = Change {
        set: bind.recursive_set,
        clear: bind.recursive_clear,
        ..Change::default()
    };
    if below.set | below.clear != 0 {
        set_attributes(&mount, &below, true)?;
    }
    let itself = Change {
        set: bind.set,
        clear: bind.clear,
        ..Change::default()
    };
    if itself.set | itself.clear != 0 {
        set_attributes(&mount, &itself, false)?;
    }
    // A copy of a shared mount is shared with it: without this, what the container mounts below would
    // appear on the host.
    let propagation = Change {
        propagation: bind.propagation & !MS_REC,
        ..Change::default()
    };
    if propagation.propagation != 0 {
        set_attributes(&mount, &propagation, bind.propagation & MS_REC != 0)?;
    }
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn a_home_is_found_in_the_image_and_nowhere_else() {
        let root = tempfile::tempdir().unwrap();
        let open = || File::open(root.path()).unwrap();
        let home = |uid| home_directory(open().as_fd(), uid);
        assert_eq!(home(0), "/");
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let passwd = root.path().join("etc/passwd");
        let text =
            "short\nroot:x:0:0::/root:/bin/sh\nweb:x:33:33:web:/srv:\nodd:x:44:44::relative:\n";
        std::fs::write(&passwd, text).unwrap();
        assert_eq!(
            [home(0), home(33), home(44), home(55)],
            ["/root", "/srv", "/", "/"]
        );
        std::fs::remove_file(&passwd).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &passwd).unwrap();
        assert_eq!(home(0), "/");
    }

    /// Opening the terminal multiplexer makes a terminal, opening a watchdog starts it: a socket is the
    /// one such thing that a test can tell by its error, for it cannot be opened at all (`ENXIO`).
    #[test]
    fn what_is_no_regular_file_is_not_even_opened() {
        let root = tempfile::tempdir().unwrap();
        let dir = File::open(root.path()).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.path().join("s")).unwrap();
        std::os::unix::fs::symlink("s", root.path().join("l")).unwrap();
        for path in ["s", "l", "."] {
            let e = regular_file(dir.as_fd(), path).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::InvalidInput, "{path}: {e}");
        }
        std::fs::write(root.path().join("f"), "text").unwrap();
        let mut text = String::new();
        let mut file = regular_file(dir.as_fd(), "/f").unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
    }
}
