//! Whether a host path can propagate mounts as was asked: CRI lets nobody be silently downgraded.

use std::path::Path;

use crate::error::RequestError;
use crate::spec::{MountSpec, Propagation};

/// How the mount that a path lies on propagates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peer {
    Private,
    Slave,
    Shared,
}

/// Checks `mount`, whose host path resolves to `resolved`, against the text of /proc/self/mountinfo.
///
/// # Errors
///
/// The source's mount does not propagate as needed; says what to do about it.
pub(crate) fn check(
    mount: &MountSpec,
    resolved: &Path,
    mountinfo: &str,
) -> Result<(), RequestError> {
    let (peer, point) = peer_of(resolved, mountinfo);
    let (word, enough, remedy) = match mount.propagation {
        Propagation::Private => return Ok(()),
        Propagation::HostToContainer => (
            "HOST_TO_CONTAINER",
            peer != Peer::Private,
            "mount --make-rslave",
        ),
        Propagation::Bidirectional => (
            "BIDIRECTIONAL",
            peer == Peer::Shared,
            "mount --make-rshared",
        ),
    };
    if enough {
        return Ok(());
    }
    let reason = format!(
        "{}: propagation {word} needs a mount that propagates, but {} lies on {point}, which does not: \
         use `{remedy} {point}` on the node",
        mount.container_path, mount.host_path
    );
    Err(RequestError::Invalid {
        field: "mounts",
        reason,
    })
}

fn peer_of<'a>(path: &Path, mountinfo: &'a str) -> (Peer, String) {
    let mut best = (Peer::Private, "/".to_owned());
    let mut longest = 0;
    for line in mountinfo.lines() {
        // 36 35 98:0 /root /point options shared:1 master:2 - type source options
        let mut fields = line.split(' ');
        let Some(point) = fields.nth(4).map(unescape) else {
            continue;
        };
        let length = Path::new(&point).components().count();
        // Of several mounts on one point, the last covers the others.
        if path.starts_with(&point) && length >= longest {
            longest = length;
            let tags: Vec<&'a str> = fields.skip(1).take_while(|f| *f != "-").collect();
            let has = |tag: &str| tags.iter().any(|t| t.starts_with(tag));
            let peer = match (has("shared:"), has("master:")) {
                (true, _) => Peer::Shared,
                (false, true) => Peer::Slave,
                (false, false) => Peer::Private,
            };
            best = (peer, point);
        }
    }
    best
}

/// proc(5): space, tab, newline and backslash are written as octal numbers.
fn unescape(text: &str) -> String {
    let mut out = text.to_owned();
    for (code, plain) in [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ] {
        out = out.replace(code, plain);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:5 / /dev rw shared:2 - devtmpfs udev rw
30 22 0:9 / /srv/private rw - tmpfs tmpfs rw
31 22 0:9 / /srv/slave rw master:4 - tmpfs tmpfs rw
32 30 0:9 / /srv/private/a\\040b rw shared:7 - tmpfs tmpfs rw
";

    fn asked(propagation: Propagation, path: &str) -> Result<(), RequestError> {
        let mount = MountSpec {
            host_path: path.to_owned(),
            container_path: "/c".to_owned(),
            propagation,
            ..MountSpec::default()
        };
        check(&mount, Path::new(path), INFO)
    }

    #[test]
    fn a_mount_propagates_only_as_far_as_its_source() {
        use Propagation::{Bidirectional, HostToContainer, Private};
        for (path, to_container, both) in [
            ("/srv/other", true, true),
            ("/srv/private", false, false),
            ("/srv/private/x", false, false),
            ("/srv/private/a b/x", true, true),
            ("/srv/slave", true, false),
            ("/srv/privateer", true, true),
        ] {
            asked(Private, path).unwrap();
            assert_eq!(asked(HostToContainer, path).is_ok(), to_container, "{path}");
            assert_eq!(asked(Bidirectional, path).is_ok(), both, "{path}");
        }
    }

    #[test]
    fn a_refusal_names_the_mount_and_the_remedy() {
        let e = asked(Propagation::Bidirectional, "/srv/slave/x")
            .unwrap_err()
            .to_string();
        assert!(e.contains("mount --make-rshared /srv/slave"), "{e}");
    }
}
