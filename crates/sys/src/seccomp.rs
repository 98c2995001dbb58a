//! Filters of system calls: `seccomp(2)` in filter mode.

use rustix::io::Errno;

use crate::call::answer;

/// Bytes of one instruction (`struct sock_filter`).
const INSTRUCTION: usize = 8;
/// The longest program that the kernel takes (`BPF_MAXINSNS`).
pub const INSTRUCTIONS_MAX: usize = 4096;

/// A classic BPF program, ready to be loaded.
pub struct Filter(Vec<libc::sock_filter>);

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Filter({} instructions)", self.0.len())
    }
}

impl Filter {
    /// From an array of `struct sock_filter` in native byte order. Allocates.
    ///
    /// `None` when the bytes are no whole instructions, none at all, or more than [`INSTRUCTIONS_MAX`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<INSTRUCTION>();
        if !rest.is_empty() || words.is_empty() || words.len() > INSTRUCTIONS_MAX {
            return None;
        }
        let instruction = |b: &[u8; INSTRUCTION]| libc::sock_filter {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        };
        Some(Self(words.iter().map(instruction).collect()))
    }

    /// Loads the filter for this thread, for ever; `flags` are `SECCOMP_FILTER_FLAG_*`.
    ///
    /// # Errors
    ///
    /// `EACCES` without `no_new_privs` and without `CAP_SYS_ADMIN`, `EINVAL` for a program that the kernel
    /// does not accept or unknown flags, `ENOMEM`.
    pub fn load(&self, flags: u32) -> Result<(), Errno> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.0.len()).map_err(|_too_long| Errno::INVAL)?,
            filter: self.0.as_ptr().cast_mut(),
        };
        // SAFETY: `program` points to `len` instructions that live during the call; the kernel copies
        // them and writes nothing.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                &raw const program,
            )
        };
        // With SECCOMP_FILTER_FLAG_TSYNC a positive answer is a thread that could not follow.
        match answer(rc)? {
            0 => Ok(()),
            _thread => Err(Errno::SRCH),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_program_is_refused() {
        assert!(Filter::from_bytes(&[]).is_none());
        assert!(Filter::from_bytes(&[0; 7]).is_none());
        assert!(Filter::from_bytes(&vec![0; 8 * (INSTRUCTIONS_MAX + 1)]).is_none());
    }
}
