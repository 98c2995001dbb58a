//! Notices that the directory of configurations may have changed: it, what leads to it, and the
//! directories in it are watched, so that it may appear, vanish or be replaced by a link. Man: inotify(7).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::limits::CONFIG_FILES_MAX;

/// A watched directory.
#[derive(Debug)]
pub struct Watch {
    inotify: AsyncFd<OwnedFd>,
    path: PathBuf,
}

#[expect(
    deprecated,
    reason = "unsafe without a caller who may write unsafe code; an OwnedFd keeps its descriptor"
)]
fn register(inotify: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(inotify)
}

impl Watch {
    /// Watches `path`, which need not be there. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// The kernel has no more inotify instances for us.
    pub fn new(path: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let watch = Self {
            inotify: register(inotify)?,
            path: path.to_owned(),
        };
        watch.renew();
        Ok(watch)
    }

    /// Watches what is there now: to be called before each look.
    pub fn renew(&self) {
        let names = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ONLYDIR;
        for ancestor in self.path.ancestors().skip(1) {
            self.add(ancestor, names);
        }
        let files = names
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        self.add(&self.path, files);
        let entries = std::fs::read_dir(&self.path)
            .into_iter()
            .flatten()
            .flatten();
        for entry in entries.take(CONFIG_FILES_MAX) {
            if entry.path().is_dir() {
                self.add(&entry.path(), files);
            }
        }
    }

    /// What is watched already stays so.
    fn add(&self, path: &Path, what: WatchFlags) {
        match inotify::add_watch(self.inotify.get_ref(), path, what) {
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::LOOP) => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "changes here are seen late");
            }
        }
    }

    /// Waits until something may have changed.
    ///
    /// # Errors
    ///
    /// The descriptor cannot be waited on any more.
    pub async fn changed(&self) -> io::Result<()> {
        let mut ready = self.inotify.readable().await?;
        // What happened does not matter: everything is looked at.
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        while let Ok(Ok(1..)) = ready.try_io(|fd| {
            let read = rustix::io::read(fd.get_ref(), &mut buffer[..])?;
            Ok(read.0.len())
        }) {}
        Ok(())
    }
}
