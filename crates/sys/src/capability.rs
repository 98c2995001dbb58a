//! The five capability sets of a thread, as bit masks: bit n is capability n of capabilities(7).

use rustix::io::Errno;

use crate::call::{answer, answer_int};

/// The highest number that fits the masks.
pub const MAX: u32 = 63;

/// Effective, permitted and inheritable set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sets {
    /// What is checked.
    pub effective: u64,
    /// What may be made effective.
    pub permitted: u64,
    /// What `execve` may keep.
    pub inheritable: u64,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;
const AMBIENT_RAISE: libc::c_ulong = 2;
const AMBIENT_CLEAR_ALL: libc::c_ulong = 4;

fn low(mask: u64) -> u32 {
    u32::try_from(mask & 0xffff_ffff).unwrap_or(0)
}

fn high(mask: u64) -> u32 {
    u32::try_from(mask >> 32).unwrap_or(0)
}

/// The sets of this thread (`capget(2)`).
///
/// # Errors
///
/// None that a correct kernel gives.
pub fn get() -> Result<Sets, Errno> {
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let mut halves = [Half::default(); 2];
    // SAFETY: version 3 writes two halves; header and halves live during the call.
    let rc = unsafe { libc::syscall(libc::SYS_capget, &raw const header, halves.as_mut_ptr()) };
    answer(rc)?;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(Sets {
        effective: join(halves[0].effective, halves[1].effective),
        permitted: join(halves[0].permitted, halves[1].permitted),
        inheritable: join(halves[0].inheritable, halves[1].inheritable),
    })
}

/// Sets the sets of this thread (`capset(2)`).
///
/// # Errors
///
/// `EPERM` when `permitted` has more than before, or another set has what it may not.
pub fn set(sets: Sets) -> Result<(), Errno> {
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let half = |part: fn(u64) -> u32| Half {
        effective: part(sets.effective),
        permitted: part(sets.permitted),
        inheritable: part(sets.inheritable),
    };
    let halves = [half(low), half(high)];
    // SAFETY: version 3 reads two halves; header and halves live during the call.
    let rc = unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) };
    answer(rc).map(drop)
}

/// Whether `capability` is in the bounding set.
///
/// # Errors
///
/// `EINVAL` for a capability that the kernel does not know.
pub fn in_bounding(capability: u32) -> Result<bool, Errno> {
    prctl(libc::PR_CAPBSET_READ, capability.into(), 0).map(|yes| yes == 1)
}

/// Removes `capability` from the bounding set.
///
/// # Errors
///
/// `EINVAL` for a capability that the kernel does not know, `EPERM` without `CAP_SETPCAP`.
pub fn drop_bounding(capability: u32) -> Result<(), Errno> {
    prctl(libc::PR_CAPBSET_DROP, capability.into(), 0).map(drop)
}

/// Empties the ambient set.
///
/// # Errors
///
/// `EINVAL` below Linux 4.3.
pub fn clear_ambient() -> Result<(), Errno> {
    prctl(libc::PR_CAP_AMBIENT, AMBIENT_CLEAR_ALL, 0).map(drop)
}

/// Adds `capability` to the ambient set.
///
/// # Errors
///
/// `EPERM` when it is not both permitted and inheritable.
pub fn raise_ambient(capability: u32) -> Result<(), Errno> {
    prctl(libc::PR_CAP_AMBIENT, AMBIENT_RAISE, capability.into()).map(drop)
}

fn prctl(option: libc::c_int, a: libc::c_ulong, b: libc::c_ulong) -> Result<libc::c_int, Errno> {
    const NONE: libc::c_ulong = 0;
    // SAFETY: the options that are used here take integers.
    answer_int(unsafe { libc::prctl(option, a, b, NONE, NONE) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_masks_are_those_of_proc() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|l| l.starts_with(name)).unwrap();
            u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
        };
        let sets = get().unwrap();
        assert_eq!(sets.effective, field("CapEff:"));
        assert_eq!(sets.permitted, field("CapPrm:"));
        assert_eq!(sets.inheritable, field("CapInh:"));
        let bounding = (0..=MAX).filter(|c| in_bounding(*c) == Ok(true));
        assert_eq!(bounding.fold(0, |m, c| m | 1 << c), field("CapBnd:"));
        set(sets).unwrap();
    }
}
