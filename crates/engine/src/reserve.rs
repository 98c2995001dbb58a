//! Space for what must be written on a full disk: a pod can be stopped and removed there, too.
//!
//! A file that holds nothing. It is given up when a record that exists cannot be written anew for want of
//! space or inodes, and taken again as soon as there is room; new records never touch it. An update frees
//! what it replaces, so the same space serves again and again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};

/// Its size in bytes: many updates at once.
const BYTES: u64 = 1 << 20;

/// The file.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    held: Mutex<bool>,
}

impl Reserve {
    /// Takes the space if there is any.
    pub(crate) fn at(path: &Path) -> Self {
        let reserve = Self {
            path: path.to_owned(),
            held: Mutex::new(false),
        };
        reserve.take();
        reserve
    }

    /// Takes the space again. Without room for it there is none until there is room.
    pub(crate) fn take(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if *held {
            return;
        }
        // What an earlier daemon left of it is kept: others may take all that is given up.
        let mut options = File::options();
        let made = options
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.path)
            .is_ok_and(|file| fallocate(&file, FallocateFlags::empty(), 0, BYTES).is_ok());
        if made {
            *held = true;
        } else {
            // One that is not whole is of no use.
            std::fs::remove_file(&self.path).ok();
        }
    }

    /// Gives the space up; `false`: there was none.
    pub(crate) fn release(&self) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *held, false) && std::fs::remove_file(&self.path).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_given_up_once_and_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reserve");
        let reserve = Reserve::at(&path);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), BYTES);
        assert!(reserve.release() && !path.exists());
        assert!(!reserve.release());
        reserve.take();
        assert!(path.exists());
    }
}
