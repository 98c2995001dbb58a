//! System calls by number: their arguments and answers as Rust values.

use std::io;

use rustix::io::Errno;

/// The answer of a system call that went through libc: -1 means that `errno` says why.
pub(crate) fn answer(value: libc::c_long) -> Result<libc::c_long, Errno> {
    if value == -1 { Err(errno()) } else { Ok(value) }
}

/// The answer of a call whose value is a `c_int`.
pub(crate) fn answer_int(value: libc::c_int) -> Result<libc::c_int, Errno> {
    if value == -1 { Err(errno()) } else { Ok(value) }
}

fn errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}
