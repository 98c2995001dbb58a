//! Device programs of cgroup v2: `bpf(2)`.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::Errno;

use crate::call::answer;

/// The most instructions that the kernel loads for us (`BPF_MAXINSNS` for those without `CAP_BPF`).
pub const INSTRUCTIONS_MAX: usize = 4096;
/// The most programs that are asked for at one cgroup (`BPF_CGROUP_MAX_PROGS`).
pub const PROGRAMS_MAX: usize = 64;

// enum bpf_cmd, enum bpf_prog_type, enum bpf_attach_type of linux/bpf.h.
const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const PROG_QUERY: libc::c_long = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 1 << 1;

/// Larger than every kernel's `union bpf_attr`: kernels 6.17 to 7.1 write past the end of a short
/// one in `BPF_PROG_QUERY`. What the kernel does not know must be zero, and is.
#[repr(C, align(8))]
struct Attributes([u32; 64]);

impl Attributes {
    fn new(head: &[u32]) -> Self {
        let mut words = [0; 64];
        for (to, from) in words.iter_mut().zip(head) {
            *to = *from;
        }
        Self(words)
    }

    /// Puts a 64-bit value at the word `at`.
    fn wide(mut self, at: usize, value: u64) -> Self {
        let b = value.to_ne_bytes();
        let words = [
            u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        ];
        for (to, from) in self.0.iter_mut().skip(at).zip(words) {
            *to = from;
        }
        self
    }

    /// # Safety
    /// Every address among the attributes must be valid for what `command` does with it, for the
    /// whole call.
    unsafe fn call(&mut self, command: libc::c_long) -> Result<libc::c_long, Errno> {
        // SAFETY: the attributes are as long as said and writable; the caller vouches for what they
        // point to.
        answer(unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                (&raw mut self.0).cast::<libc::c_void>(),
                size_of::<Self>(),
            )
        })
    }
}

fn word(fd: BorrowedFd<'_>) -> u32 {
    // A BorrowedFd is never negative.
    u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)
}

fn address<T>(pointer: *const T) -> u64 {
    u64::try_from(pointer.expose_provenance()).unwrap_or(0)
}

fn owned(fd: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = libc::c_int::try_from(fd).map_err(|_not_a_descriptor| Errno::IO)?;
    // SAFETY: the kernel just made this descriptor (CLOEXEC, as all of bpf(2)) and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Loads a program that decides about access to devices (`BPF_PROG_TYPE_CGROUP_DEVICE`);
/// each instruction is a `struct bpf_insn` as one native integer.
///
/// # Errors
///
/// `EINVAL` or `EACCES` for a program that the verifier refuses, `EPERM` without `CAP_BPF`
/// or `CAP_SYS_ADMIN`, `E2BIG` for one that is too long.
pub fn load_device_program(instructions: &[u64]) -> Result<OwnedFd, Errno> {
    if instructions.len() > INSTRUCTIONS_MAX {
        return Err(Errno::TOOBIG);
    }
    let count = u32::try_from(instructions.len()).map_err(|_too_long| Errno::TOOBIG)?;
    let license = c"Apache-2.0";
    let mut attributes = Attributes::new(&[PROG_TYPE_CGROUP_DEVICE, count])
        .wide(2, address(instructions.as_ptr()))
        .wide(4, address(license.as_ptr()));
    // SAFETY: instructions and licence are borrowed during the call and only read.
    owned(unsafe { attributes.call(PROG_LOAD) }?)
}

/// Attaches a device program to a cgroup, beside those that are there: access needs the consent of all.
///
/// # Errors
///
/// `EPERM` when an ancestor's program forbids others, `EBADF` when `cgroup` is no directory of cgroup v2.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut attributes =
        Attributes::new(&[word(cgroup), word(program), CGROUP_DEVICE, ALLOW_MULTI]);
    // SAFETY: the attributes hold no address.
    unsafe { attributes.call(PROG_ATTACH) }.map(drop)
}

/// The ids of the device programs attached to this very cgroup. Allocates.
///
/// # Errors
///
/// `EBADF` when `cgroup` is no directory of cgroup v2, `ENOSPC` for more than [`PROGRAMS_MAX`].
pub fn device_programs(cgroup: BorrowedFd<'_>) -> Result<Vec<u32>, Errno> {
    let mut ids = vec![0u32; PROGRAMS_MAX];
    let count = u32::try_from(PROGRAMS_MAX).map_err(|_never| Errno::INVAL)?;
    let mut attributes = Attributes::new(&[word(cgroup), CGROUP_DEVICE, 0, 0, 0, 0, count])
        .wide(4, address(ids.as_mut_ptr().cast_const()));
    // SAFETY: `prog_ids` points to `prog_cnt` writable words that live during the call.
    unsafe { attributes.call(PROG_QUERY) }?;
    let found = attributes.0.get(6).copied().unwrap_or(0);
    ids.truncate(usize::try_from(found).unwrap_or(PROGRAMS_MAX));
    Ok(ids)
}

/// Detaches the device program with this id from a cgroup.
///
/// # Errors
///
/// `ENOENT` when there is none of that id or it is not attached there.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, id: u32) -> Result<(), Errno> {
    let mut attributes = Attributes::new(&[id]);
    // SAFETY: the attributes hold no address.
    let program = owned(unsafe { attributes.call(PROG_GET_FD_BY_ID) }?)?;
    let mut attributes = Attributes::new(&[word(cgroup), word(program.as_fd()), CGROUP_DEVICE]);
    // SAFETY: the attributes hold no address.
    unsafe { attributes.call(PROG_DETACH) }.map(drop)
}
