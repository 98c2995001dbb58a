//! The zygote: found after a restart of the daemon, started when there is none, replaced when it is
//! dead, silent or of another version. Old shims go on without it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use tokio::io::Interest;
use tokio::sync::Mutex;
use wharf_plan::message::{Body, GetState, Hello, MakeShim, Orphan, Shutdown, Welcome};
use wharf_plan::{Fds, PROTOCOL};
use wharf_sys::spawn::Program;
use wharf_types::Kind;

use super::link::{Link, LinkError};
use super::socket;
use super::watch::watch;
use crate::error::io_kind;
use crate::limits::ZYGOTE_ANSWER;
use crate::world::StepFailure;

const STAGE: &str = "start shim";
/// The first number of a descriptor that is handed over beside the standard streams.
const FIRST_FD: i32 = 3;

/// Opens the shims' home in every hierarchy for joining: v1's `tasks`, v2's `cgroup.procs`.
pub(crate) type Home = Box<dyn Fn() -> Result<Vec<OwnedFd>, StepFailure> + Send + Sync>;

/// Where the zygote is, and how it is started.
pub(crate) struct Zygote {
    program: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    home: Home,
    open_files: Option<u64>,
    link: Mutex<Option<Link>>,
}

/// A new shim.
#[derive(Debug)]
pub(crate) struct NewShim {
    /// Its process id.
    pub(crate) pid: u32,
    /// Names it for ever.
    pub(crate) pidfd: Option<OwnedFd>,
}

fn failed(e: LinkError) -> StepFailure {
    e.at(STAGE)
}

impl Zygote {
    /// `program` is the path of `wharf-shim`; socket and log lie in `state`; `open_files` is its soft
    /// limit, which shims and containers inherit, when it is not to be ours.
    pub(crate) fn new(
        program: PathBuf,
        state: &std::path::Path,
        home: Home,
        open_files: Option<u64>,
    ) -> Self {
        let (socket, log) = (state.join("zygote.sock"), state.join("shim.log"));
        Self {
            program,
            socket,
            log,
            home,
            open_files,
            link: Mutex::new(None),
        }
    }

    /// Makes a shim that listens on `listener`. `None`: the zygote was lost over it, and whether it made
    /// the shim is told by the socket alone.
    pub(crate) async fn make_shim(
        &self,
        request: MakeShim,
        listener: OwnedFd,
    ) -> Result<Option<NewShim>, StepFailure> {
        let link = self.link().await?;
        let mut fds = Fds::new();
        fds.push("listen", listener);
        match link.call(Body::MakeShim(request), fds, ZYGOTE_ANSWER).await {
            Ok((Body::ShimMade(made), mut fds)) => Ok(Some(NewShim {
                pid: made.pid,
                pidfd: fds.take("pidfd"),
            })),
            Err(LinkError::Lost(_)) => Ok(None),
            Ok(_) => Err(failed(LinkError::Unexpected("zygote"))),
            Err(e) => {
                if matches!(e, LinkError::Silent { .. }) {
                    // The next pod does not wait for this one.
                    *self.link.lock().await = None;
                }
                Err(failed(e))
            }
        }
    }

    /// How the processes ended that were left to the zygote; none when it does not answer.
    pub(crate) async fn orphans(&self) -> Vec<Orphan> {
        let asked = async {
            let link = self.link().await.ok()?;
            let body = Body::GetOrphans(GetState {});
            match link.call(body, Fds::new(), ZYGOTE_ANSWER).await.ok()? {
                (Body::Orphans(orphans), _) => Some(orphans.processes),
                _ => None,
            }
        };
        asked.await.unwrap_or_default()
    }

    /// Finds or starts the zygote ahead of the first pod.
    pub(crate) async fn warm(&self) -> Result<(), StepFailure> {
        self.link().await.map(|_| ())
    }

    async fn link(&self) -> Result<Link, StepFailure> {
        let mut held = self.link.lock().await;
        if let Some(link) = held.as_ref().filter(|link| !link.is_lost()) {
            return Ok(link.clone());
        }
        let link = match self.find().await {
            Some(link) => link,
            None => self.start().await?,
        };
        *held = Some(link.clone());
        Ok(link)
    }

    /// The zygote of an earlier daemon, if it lives and is ours.
    async fn find(&self) -> Option<Link> {
        let socket = socket::connect(&self.socket).ok()?;
        let (link, welcome) = hello(socket).await.ok()?;
        if welcome.version == env!("CARGO_PKG_VERSION") && welcome.protocol == PROTOCOL {
            tracing::info!(pid = welcome.pid, "found the zygote");
            return Some(link);
        }
        tracing::info!(
            pid = welcome.pid,
            version = welcome.version,
            "replacing an older zygote"
        );
        if let Err(e) = link
            .done(Body::Shutdown(Shutdown {}), Fds::new(), ZYGOTE_ANSWER)
            .await
        {
            tracing::warn!(error = %e, "the older zygote did not end");
        }
        None
    }

    async fn start(&self) -> Result<Link, StepFailure> {
        let pid = self.spawn()?;
        let socket = socket::connect(&self.socket).map_err(failed)?;
        let (link, welcome) = hello(socket).await.map_err(|e| {
            let text = format!(
                "the zygote ({}) did not come up: {}; see {}",
                self.program.display(),
                wharf_types::chain(&e),
                self.log.display()
            );
            StepFailure::new(STAGE, Kind::Internal, text)
        })?;
        tracing::info!(pid, version = welcome.version, "started the zygote");
        Ok(link)
    }

    /// Starts the program with its listening socket, its log and its home.
    fn spawn(&self) -> Result<u32, StepFailure> {
        let io = |what: String| {
            move |e: std::io::Error| StepFailure::new(STAGE, io_kind(&e), format!("{what}: {e}"))
        };
        let listener = socket::listen(&self.socket).map_err(failed)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
        let log = rustix::fs::open(&self.log, flags, Mode::from_raw_mode(0o640))
            .map_err(|e| io(format!("open {}", self.log.display()))(e.into()))?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| io("open /dev/null".to_owned())(e.into()))?;
        let home = (self.home)()?;
        let mut given = vec![("--socket-fd", listener.as_fd()), ("--log-fd", log.as_fd())];
        given.extend(home.iter().map(|procs| ("--cgroup-fd", procs.as_fd())));
        let numbered: Vec<_> = given.into_iter().zip(FIRST_FD..).collect();
        let mut args = vec!["wharf-shim".to_owned(), "zygote".to_owned()];
        for ((flag, _), number) in &numbered {
            args.extend([(*flag).to_owned(), number.to_string()]);
        }
        let args: Vec<&[u8]> = args.iter().map(String::as_bytes).collect();
        let path = self.program.as_os_str().as_encoded_bytes();
        let program = Program::new(path, &args, &[])
            .map_err(|e| StepFailure::new(STAGE, Kind::Invalid, e))?;
        let mut program = program
            .fd(null.as_fd(), 0)
            .fd(null.as_fd(), 1)
            .fd(log.as_fd(), 2);
        for ((_, fd), number) in numbered {
            program = program.fd(fd, number);
        }
        if let Some(soft) = self.open_files {
            program = program.open_files(soft);
        }
        let started = program
            .own_session()
            .spawn()
            .map_err(io(format!("start {}", self.program.display())))?;
        tokio::spawn(reap(started.pidfd));
        Ok(started.pid)
    }
}

/// Waits for the end of a zygote that is our child.
async fn reap(pidfd: OwnedFd) {
    let Ok(pidfd) = watch(pidfd, Interest::READABLE) else {
        return tracing::warn!("cannot watch the zygote");
    };
    if pidfd.readable().await.is_ok() {
        let id = rustix::process::WaitId::PidFd(pidfd.get_ref().as_fd());
        let end = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED);
        tracing::warn!(?end, "the zygote has ended");
    }
}

/// Opens a connection to a zygote.
async fn hello(socket: OwnedFd) -> Result<(Link, Welcome), LinkError> {
    let link = Link::new("zygote", socket, None)?;
    let body = Body::Hello(Hello { protocol: PROTOCOL });
    match link.call(body, Fds::new(), ZYGOTE_ANSWER).await? {
        (Body::Welcome(welcome), _) => Ok((link, welcome)),
        _ => Err(LinkError::Unexpected("zygote")),
    }
}
