//! Named limits of messages.

/// Descriptors that one message may carry: the kernel's `SCM_MAX_FD`.
pub const FDS_MAX: usize = 253;
/// Bytes of a message that travel in the datagram itself; a longer one travels in a sealed memfd.
pub const INLINE_MAX: usize = 32 * 1024;
/// The longest message: argument and environment strings of one process are limited by the kernel
/// to a quarter of the stack limit (2 MiB by default); mounts and environment together stay below this.
pub const MESSAGE_MAX: usize = 8 * 1024 * 1024;
