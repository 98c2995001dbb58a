//! A unix socket for root alone: a stale one is replaced, a live one is respected.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Appended to the path while the socket is not yet protected.
pub(crate) const SUFFIX: &str = ".new";
/// Access to the socket: whoever may connect is root.
const MODE: u32 = 0o600;
/// Access to a directory that we make for it.
const DIRECTORY_MODE: u32 = 0o711;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SocketError {
    /// Somebody answers there.
    #[error("socket {0} is in use by a running daemon: stop it, or set cri.socket")]
    Live(PathBuf),
    /// Something else lies there; we do not remove it.
    #[error("{0} exists and is not a socket: remove it, or set cri.socket")]
    NotASocket(PathBuf),
    /// The kernel refused.
    #[error("{what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Listens at `path`. The socket appears there with its final mode.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |what| {
        let path = path.to_owned();
        move |source| SocketError::Io { what, path, source }
    };
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(parent)
            .map_err(failed("make the directory of socket"))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(SocketError::Live(path.to_owned()));
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("look at socket")(e)),
    }
    let mut name = path.as_os_str().to_owned();
    name.push(SUFFIX);
    let new = PathBuf::from(name);
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove what an earlier daemon left of socket")(e));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&new).map_err(failed("bind socket"))?;
    std::fs::set_permissions(&new, Permissions::from_mode(MODE))
        .map_err(failed("protect socket"))?;
    std::fs::rename(&new, path).map_err(failed("publish socket"))?;
    listener
        .set_nonblocking(true)
        .map_err(failed("prepare socket"))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_a_live_one_and_a_file_are_respected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/wharf.sock");
        let first = listen(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = listen(&path).unwrap_err().to_string();
        assert!(error.contains("in use") && error.contains("wharf.sock"));
        drop(first);
        let _second = listen(&path).unwrap();
        UnixStream::connect(&path).unwrap();

        let file = dir.path().join("file");
        std::fs::write(&file, "mine").unwrap();
        assert!(matches!(listen(&file), Err(SocketError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    }
}
