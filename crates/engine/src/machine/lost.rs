//! How a container ended whose shim is gone: by the descriptor of its init, else by what the zygote
//! saw, which is the parent of what a shim leaves.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::{Parts, held};
use crate::shim::identity;
use crate::world::{ContainerRef, SeenEnd};

/// How long a killed process may take to be gone and waited for.
const GONE: Duration = Duration::from_secs(2);

/// What is known of an init that its shim does not tell of any more.
#[derive(Debug)]
pub(super) struct LostInit {
    /// Names it for ever, if it was opened in time.
    pidfd: Option<Arc<OwnedFd>>,
    /// Which process it was: number and start.
    identity: Option<(u32, u64)>,
}

impl LostInit {
    /// Before anything is killed. May block.
    pub(super) fn find(parts: &Parts, container: &ContainerRef) -> Option<Self> {
        let held = parts.held(&container.pod.id);
        if held.as_ref().is_some_and(|held| !held.link.is_lost()) {
            return None;
        }
        // Ids of another boot mean nothing.
        if container.pod.boot != parts.boot {
            return None;
        }
        let known = held.and_then(|held| held.container(&container.record.id));
        let path: PathBuf =
            held::init_path(&parts.pod_dir(&container.pod.id), &container.record.id);
        let pidfd = known.and_then(|known| known.pidfd.clone());
        Some(Self {
            pidfd: pidfd.or_else(|| identity::load(&path).map(Arc::new)),
            identity: identity::read(&path),
        })
    }

    /// How it ended. To be called when all its processes were killed.
    pub(super) async fn end(self, parts: &Parts) -> Option<SeenEnd> {
        if let Some(pidfd) = self.pidfd {
            let seen = tokio::task::spawn_blocking(move || seen(&pidfd));
            if let Some(end) = seen.await.ok().flatten() {
                return Some(end);
            }
        }
        let (pid, started) = self.identity?;
        let orphans = parts.zygote.orphans().await;
        let ours = |o: &&wharf_plan::message::Orphan| (o.pid, o.started) == (pid, started);
        let orphan = orphans.iter().rev().find(ours)?;
        Some(SeenEnd {
            code: orphan.code,
            signal: orphan.signal,
            at_ns: Some(orphan.at_ns),
        })
    }
}

/// What the kernel says, as soon as its parent has waited for it.
fn seen(pidfd: &OwnedFd) -> Option<SeenEnd> {
    // A kernel that does not know the question is not worth a wait.
    let end = match wharf_sys::end::of(pidfd) {
        Ok(None) => {
            // Only its having gone, which needs no asking.
            let mut gone = [PollFd::new(pidfd, PollFlags::empty())];
            let within = Timespec::try_from(GONE).ok();
            // Interrupted or overdue: what is known then is what is known.
            let _told: Result<usize, Errno> = rustix::event::poll(&mut gone, within.as_ref());
            wharf_sys::end::of(pidfd)
        }
        other => other,
    };
    let end = end.ok().flatten()?;
    Some(SeenEnd {
        code: end.code,
        signal: end.signal,
        at_ns: None,
    })
}
