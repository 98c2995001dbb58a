//! A container's log file: beneath the pod's log directory, through no link, and a file. A container that
//! sees the directory (a `hostPath` of /var/log) must not lead our writes to another place.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use wharf_types::Kind;

use crate::record::{ContainerRecord, PodRecord};
use crate::world::StepFailure;

const STAGE: &str = "open log";
/// How often a file is looked for anew that was made, or removed, between two looks.
const TRIES: usize = 8;

/// Where a container's log is: the pod's directory, and the path below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    directory: PathBuf,
    path: PathBuf,
}

/// Why there is no log.
enum Refusal {
    /// Asked for, or found there: with what to do about it.
    Unfit(&'static str),
    Kernel(Errno),
    Io(io::Error),
}

impl From<Errno> for Refusal {
    fn from(e: Errno) -> Self {
        match e {
            Errno::LOOP => Self::Unfit("a symbolic link lies on the way: remove it"),
            Errno::NOTDIR => Self::Unfit("a part of the path is no directory: remove it"),
            e => Self::Kernel(e),
        }
    }
}

impl Place {
    /// The log asked for, if one is. A leading slash of the container's path means nothing.
    pub(super) fn of(pod: &PodRecord, container: &ContainerRecord) -> Option<Self> {
        let (directory, path) = (&pod.spec.log_directory, &container.spec.log_path);
        let path = path.trim_start_matches('/');
        (!directory.is_empty() && !path.is_empty()).then(|| Self {
            directory: directory.into(),
            path: path.into(),
        })
    }

    /// The whole path, as clients know it.
    pub(super) fn whole(&self) -> PathBuf {
        self.directory.join(&self.path)
    }

    /// Opens the log for appending, and makes it and its directories.
    pub(super) fn open(&self) -> Result<OwnedFd, StepFailure> {
        self.attempt().map_err(|refusal| {
            let (kind, reason) = match refusal {
                Refusal::Unfit(reason) => (Kind::Invalid, reason.to_owned()),
                Refusal::Kernel(e) => failed(&e.into()),
                Refusal::Io(e) => failed(&e),
            };
            let text = format!("{}: {reason}", self.whole().display());
            StepFailure::new(STAGE, kind, text)
        })
    }

    fn attempt(&self) -> Result<OwnedFd, Refusal> {
        let names: Option<Vec<_>> = self
            .path
            .components()
            .map(|part| match part {
                Component::Normal(name) => Some(Path::new(name)),
                _ => None,
            })
            .collect();
        let below = Refusal::Unfit("log_path must lead below log_directory: no \"..\"");
        let Some((file, parents)) = names.as_ref().and_then(|names| names.split_last()) else {
            return Err(below);
        };
        let mut dir = self.directory()?;
        for name in parents {
            dir = subdirectory(&dir, name)?;
        }
        for _ in 0..TRIES {
            let opened = match existing(&dir, file) {
                Err(Refusal::Kernel(Errno::NOENT)) => create(&dir, file),
                found => found,
            };
            match opened {
                Err(Refusal::Kernel(Errno::NOENT | Errno::EXIST)) => {}
                done => return done,
            }
        }
        Err(Refusal::Unfit(
            "it comes and goes: let nobody else remove it",
        ))
    }

    /// The operator's own directory, which may lie behind links.
    fn directory(&self) -> Result<OwnedFd, Refusal> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || rustix::fs::open(&self.directory, flags, Mode::empty());
        match open() {
            Err(Errno::NOENT) => {
                fs::create_dir_all(&self.directory).map_err(Refusal::Io)?;
                Ok(open()?)
            }
            opened => Ok(opened?),
        }
    }
}

fn failed(e: &io::Error) -> (Kind, String) {
    (crate::error::io_kind(e), e.to_string())
}

/// Opens what is there under one name, following nothing.
fn entry(dir: &OwnedFd, name: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(dir, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn subdirectory(dir: &OwnedFd, name: &Path) -> Result<OwnedFd, Refusal> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match entry(dir, name, flags) {
        Err(Errno::NOENT) => {
            match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
            Ok(entry(dir, name, flags)?)
        }
        opened => Ok(opened?),
    }
}

/// Looks before it opens: to open a FIFO waits, to open a device may do anything.
fn existing(dir: &OwnedFd, name: &Path) -> Result<OwnedFd, Refusal> {
    // Without NOFOLLOW a link is refused, with it the link itself would be opened.
    let found = entry(dir, name, OFlags::PATH)?;
    let stat = rustix::fs::fstat(&found)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        let text = "is no regular file: remove it, or use another log_path";
        return Err(Refusal::Unfit(text));
    }
    // What was looked at, whatever has the name by now.
    let same = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC;
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(rustix::fs::openat(CWD, same, flags, Mode::empty())?)
}

fn create(dir: &OwnedFd, name: &Path) -> Result<OwnedFd, Refusal> {
    // EXCL: made here and now, or not at all.
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o640);
    Ok(rustix::fs::openat(
        dir,
        name,
        flags | OFlags::NOFOLLOW,
        mode,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::fs::symlink;

    fn place(dir: &Path, path: &str) -> Place {
        Place {
            directory: dir.to_owned(),
            path: path.into(),
        }
    }

    #[test]
    fn a_log_is_made_with_its_directories_and_continued() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        symlink("real/deep", &link).unwrap();
        fs::create_dir_all(dir.path().join("real")).unwrap();
        // The operator's own link to a directory that is there, and a directory that is not.
        fs::create_dir(dir.path().join("real/deep")).unwrap();
        for base in [link, dir.path().join("new/er")] {
            let log = place(&base, "a/b/0.log");
            for text in ["one ", "two"] {
                let mut file = fs::File::from(log.open().unwrap());
                file.write_all(text.as_bytes()).unwrap();
            }
            assert_eq!(fs::read_to_string(log.whole()).unwrap(), "one two");
        }
        assert!(dir.path().join("real/deep/a/b/0.log").exists());
    }

    #[test]
    fn nothing_is_followed_out_of_the_log_directory_and_nothing_but_a_file_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (logs, outside) = (dir.path().join("logs"), dir.path().join("outside"));
        fs::create_dir(&logs).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("victim"), "untouched").unwrap();
        symlink("../outside/victim", logs.join("link")).unwrap();
        symlink("../outside/new", logs.join("dangling")).unwrap();
        symlink("../outside", logs.join("dir")).unwrap();
        fs::write(logs.join("file"), "").unwrap();
        let fifo = logs.join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(logs.join("socket")).unwrap();
        for (path, word) in [
            ("link", "symbolic link"),
            ("dangling", "symbolic link"),
            ("dir/0.log", "symbolic link"),
            ("file/0.log", "no directory"),
            ("fifo", "no regular file"),
            ("socket", "no regular file"),
            ("../outside/victim", ".."),
            ("a/../../outside/new", ".."),
            (".", ".."),
        ] {
            let e = place(&logs, path).open().unwrap_err();
            assert_eq!(e.kind, Kind::Invalid, "{path}: {e}");
            let text = e.to_string();
            assert!(text.contains(word) && text.contains(path), "{path}: {e}");
        }
        assert_eq!(
            fs::read_to_string(outside.join("victim")).unwrap(),
            "untouched"
        );
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }
}
