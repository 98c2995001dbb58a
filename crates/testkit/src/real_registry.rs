//! A real registry: Debian's docker-registry, or distribution's `registry` where it is in PATH.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::cache;
use crate::debian;
use crate::place::Place;
use crate::push;
use crate::samples::Served;
use crate::wait;

/// A running registry; it ends when dropped. Its data stay where the caller put them.
#[derive(Debug)]
pub struct RealRegistry {
    place: Arc<Place>,
    addr: SocketAddr,
    child: Child,
}

/// How long it may take to answer for the first time.
const START_LIMIT: Duration = Duration::from_secs(20);

impl RealRegistry {
    /// The program that would run: what [`RealRegistry::fetch`] unpacked, or one in PATH.
    pub fn program() -> Option<PathBuf> {
        let unpacked = cache::dir()
            .ok()?
            .join("debian-registry/root/usr/bin/docker-registry");
        if unpacked.is_file() {
            return Some(unpacked);
        }
        ["docker-registry", "registry"]
            .into_iter()
            .find_map(cache::find_program)
    }

    /// Unpacks Debian's docker-registry into the cache; nothing is installed.
    ///
    /// # Errors
    /// apt or dpkg-deb failed.
    pub fn fetch() -> io::Result<()> {
        debian::unpacked("debian-registry", &["docker-registry"]).map(drop)
    }

    /// Starts it in `place` on a free port of 127.0.0.1, its data and log in `dir`.
    ///
    /// # Errors
    /// There is no such program, or it ends at once: the text has the end of its log.
    pub fn start(place: &Arc<Place>, dir: &Path) -> io::Result<Self> {
        let program = Self::program()
            .ok_or_else(|| io::Error::other("no docker-registry here: run `cargo xtask setup`"))?;
        fs::create_dir_all(dir.join("data"))?;
        let free = place.in_net(|| std::net::TcpListener::bind("127.0.0.1:0")?.local_addr())?;
        let config = dir.join("registry.yml");
        let data = dir.join("data");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: warn}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             http: {{addr: \"{free}\"}}\n",
                data.display()
            ),
        )?;
        let log = dir.join("registry.log");
        let out = fs::File::create(&log)?;
        let mut child = place
            .command(program)
            .arg("serve")
            .arg(config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()?;
        let ready = wait::until(START_LIMIT, || {
            Ok(push::answers(place, free) || child.try_wait()?.is_some())
        })?;
        if !ready || child.try_wait()?.is_some() {
            let _killed = child.kill();
            let _ended = child.wait();
            let words = fs::read_to_string(&log).unwrap_or_default();
            return Err(io::Error::other(format!(
                "the registry does not answer: {words}"
            )));
        }
        Ok(Self {
            place: Arc::clone(place),
            addr: free,
            child,
        })
    }

    /// Where it listens, in its place.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Pushes these images.
    ///
    /// # Errors
    /// The registry refuses one.
    pub fn push(&self, images: &[Served]) -> io::Result<()> {
        push::push(&self.place, self.addr, images)
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _ended = self.child.wait();
    }
}
