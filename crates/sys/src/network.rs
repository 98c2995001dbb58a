//! Interfaces of this thread's network namespace.

use std::os::fd::AsRawFd as _;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::call::answer_int;

/// The part of `struct ifreq` that `SIOCGIFFLAGS` and `SIOCSIFFLAGS` use, padded to its size.
#[repr(C)]
struct InterfaceFlags {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Brings the interface `lo` up: a new network namespace has it down.
///
/// # Errors
///
/// `ENODEV` without such an interface, `EPERM` without `CAP_NET_ADMIN`.
pub fn loopback_up() -> Result<(), Errno> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut request = InterfaceFlags {
        name: [0; libc::IFNAMSIZ],
        flags: 0,
        rest: [0; 22],
    };
    request.name[..2].copy_from_slice(b"lo");
    let get = libc::Ioctl::try_from(libc::SIOCGIFFLAGS).map_err(|_too_big| Errno::INVAL)?;
    let set = libc::Ioctl::try_from(libc::SIOCSIFFLAGS).map_err(|_too_big| Errno::INVAL)?;
    // SAFETY: the request has the size of struct ifreq (40 bytes) and a terminated name; the kernel
    // writes only its flags.
    answer_int(unsafe { libc::ioctl(socket.as_raw_fd(), get, &raw mut request) })?;
    request.flags |= libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    // SAFETY: as above; the kernel only reads.
    answer_int(unsafe { libc::ioctl(socket.as_raw_fd(), set, &raw const request) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_the_kernels_size() {
        assert_eq!(size_of::<InterfaceFlags>(), size_of::<libc::ifreq>());
    }
}
