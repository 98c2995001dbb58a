//! A new program in this process: `execve(2)` with arguments that were prepared before a fork.

use std::ffi::{CStr, CString, NulError};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;

use crate::call::{answer, answer_int};

/// Arguments and environment of a program, as arrays that the kernel reads as they are.
pub struct Image {
    args: Strings,
    env: Strings,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The environment may hold secrets.
        let (args, env) = (self.args.owned.len(), self.env.owned.len());
        write!(f, "Image({args} arguments, {env} variables)")
    }
}

/// Strings and a null-terminated array of pointers to them.
struct Strings {
    owned: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

// SAFETY: the pointers lead into `owned`, which is not changed after `new` and moves with them.
unsafe impl Send for Strings {}
// SAFETY: as above; nothing is changed through a shared reference.
unsafe impl Sync for Strings {}

impl Strings {
    fn new(strings: &[Vec<u8>]) -> Result<Self, NulError> {
        let owned = strings
            .iter()
            .map(|s| CString::new(s.as_slice()))
            .collect::<Result<Vec<_>, _>>()?;
        let ends = std::iter::once(std::ptr::null());
        // The heap memory of a CString stays where it is when the CString moves.
        let pointers = owned.iter().map(|s| s.as_ptr()).chain(ends).collect();
        Ok(Self { owned, pointers })
    }
}

impl Image {
    /// Prepares `args` (the first is the program's name) and `env` (`KEY=value`). Allocates.
    ///
    /// # Errors
    ///
    /// A string with a NUL byte.
    pub fn new(args: &[Vec<u8>], env: &[Vec<u8>]) -> Result<Self, NulError> {
        Ok(Self {
            args: Strings::new(args)?,
            env: Strings::new(env)?,
        })
    }

    /// Becomes the program `path`; comes back only when that failed.
    #[must_use]
    pub fn execute(&self, path: &CStr) -> Errno {
        // SAFETY: the path is terminated, both arrays end with null and point to terminated strings
        // that `self` owns.
        let rc = unsafe {
            libc::execve(
                path.as_ptr(),
                self.args.pointers.as_ptr(),
                self.env.pointers.as_ptr(),
            )
        };
        answer_int(rc).err().unwrap_or(Errno::NOEXEC)
    }

    /// Becomes the program in `file` (`execveat(2)` without a path); comes back only when that failed.
    /// `file` may be close-on-exec, but then not a script.
    #[must_use]
    pub fn execute_file(&self, file: BorrowedFd<'_>) -> Errno {
        // SAFETY: the path is terminated, both arrays end with null and point to terminated strings
        // that `self` owns; the descriptor is borrowed for the call.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_execveat,
                file.as_raw_fd(),
                c"".as_ptr(),
                self.args.pointers.as_ptr(),
                self.env.pointers.as_ptr(),
                libc::AT_EMPTY_PATH,
            )
        };
        answer(rc).err().unwrap_or(Errno::NOEXEC)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_program_is_not_executed() {
        let image = Image::new(&[b"x".to_vec()], &[]).unwrap();
        let directory = std::fs::File::open("/").unwrap();
        let errno = image.execute_file(std::os::fd::AsFd::as_fd(&directory));
        assert_eq!(errno, Errno::ACCESS);
    }

    #[test]
    fn a_missing_program_is_said() {
        let image = Image::new(&[b"x".to_vec()], &[]).unwrap();
        assert_eq!(image.execute(c"/does/not/exist"), Errno::NOENT);
        Image::new(&[b"a\0b".to_vec()], &[]).unwrap_err();
    }
}
