//! Descriptors that tokio watches.

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has tokio watch `owner`, which owns its descriptor and never changes it.
///
/// # Errors
///
/// The descriptor cannot be watched, or no more can.
pub(crate) fn watch<T: AsRawFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    #[expect(
        deprecated,
        reason = "its successor wants a promise that the owner keeps its descriptor open; ours (OwnedFd, \
                  Channel) do until they are dropped, which is after tokio has let go"
    )]
    AsyncFd::with_interest(owner, interest)
}
