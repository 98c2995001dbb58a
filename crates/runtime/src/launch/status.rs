//! What child and maker tell each other: fixed-size records over a `SOCK_SEQPACKET` socket pair.
//!
//! ```text
//! 0     1     2        4       8   16  24      136
//! kind  code  length   errno   a   b   object        kinds: Error, Warning, Terminal (+ descriptor), Parked
//! ```
//!
//! The maker sends one byte: go. End of file is the news that `execve` went well: the child's end is
//! closed by it. Records are written with `write(2)`, which every sane seccomp profile allows.

use std::borrow::Cow;
use std::ffi::CStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// Bytes of an object's name that a record holds; a longer one is cut.
const OBJECT_MAX: usize = 112;
const RECORD: usize = 24 + OBJECT_MAX;

const ERROR: u8 = 1;
const WARNING: u8 = 2;
const TERMINAL: u8 = 3;
const PARKED: u8 = 4;

/// Defines the steps with their names, and their numbers on the wire.
macro_rules! steps {
    ($($(#[$doc:meta])* $step:ident = $name:expr,)*) => {
        /// The steps of a child, in the words of errors and logs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub(super) enum Step { $($(#[$doc])* $step,)* }

        const STEPS: &[(u8, &str)] = &[$((Step::$step as u8, $name),)*];
    };
}

steps! {
    Prepare = "prepare",
    Clone = "clone3",
    Descriptors = "close descriptors",
    Signals = "reset signals",
    Cgroup = "join cgroup",
    Session = "setsid",
    Namespaces = "join namespaces",
    WayBack = WAY_BACK,
    CgroupNamespace = "unshare cgroup namespace",
    Loopback = "bring lo up",
    Hostname = "set hostname",
    Domainname = "set domainname",
    Proc = "open procfs",
    Sysctl = "set sysctl",
    Propagation = "make mounts private",
    Scratch = "mount scratch",
    Rootfs = "mount rootfs",
    Mount = "mount",
    Device = "make device",
    Link = "make link",
    Terminal = "make terminal",
    Stdio = "set up stdio",
    ReadonlyPath = "make path read-only",
    MaskedPath = "mask path",
    RootfsReadonly = "make rootfs read-only",
    Pivot = "pivot_root",
    RootfsPropagation = "set rootfs propagation",
    Rlimit = "set rlimit",
    OomScoreAdj = "set oom_score_adj",
    Keyring = "join session keyring",
    Personality = "set personality",
    IoPriority = "set io priority",
    Cwd = "chdir to cwd",
    SecurityLabel = "set security label",
    User = "set user",
    Capabilities = "set capabilities",
    NoNewPrivileges = "set no_new_privs",
    Seccomp = "load seccomp filter",
    Park = "park",
    Execve = "execve",
}

/// The name of [`Step::WayBack`].
const WAY_BACK: &str = "leave the container's namespaces";

fn step_name(code: u8) -> &'static str {
    let found = STEPS.iter().find(|(step, _)| *step == code);
    found.map_or("unknown step", |(_, name)| name)
}

/// What the kernel did not allow in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Caution {
    /// `errno` is the resource, a the hard limit that was wanted, b what it is.
    Rlimit = 1,
    /// a is the value that was wanted, b what it is (both as two's complement).
    OomScoreAdj = 2,
    /// a: capabilities that the maker does not have itself.
    Capabilities = 3,
    /// a: capabilities that could not be made ambient.
    Ambient = 4,
}

/// A failed step of making a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepError {
    /// The step, in the words of the log: "mount", "execve".
    pub step: Cow<'static, str>,
    /// What it was done to: a path, a name; may be empty.
    pub object: String,
    /// The kernel's answer; 0 when the kernel was not asked.
    pub errno: i32,
}

impl std::fmt::Display for StepError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.step)?;
        if !self.object.is_empty() {
            write!(f, " {}", self.object)?;
        }
        if self.errno != 0 {
            write!(f, ": {}", io::Error::from_raw_os_error(self.errno))?;
        }
        Ok(())
    }
}

impl std::error::Error for StepError {}

impl StepError {
    pub(super) fn new(step: Step, object: impl Into<String>, errno: Errno) -> Self {
        Self {
            step: step_name(step as u8).into(),
            object: object.into(),
            errno: errno.raw_os_error(),
        }
    }

    /// The calling thread is left with a PID namespace of a container for its children, and every one that
    /// it makes from now on would be born there: the process must end.
    pub fn caller_must_end(&self) -> bool {
        self.step == WAY_BACK
    }

    /// A plan that cannot be carried out; `why` stands where the object does.
    pub(super) fn plan(why: impl Into<String>) -> Self {
        Self::new(Step::Prepare, why, Errno::INVAL)
    }
}

/// What went wrong in the child, before it is known in which step: no memory but its own.
#[derive(Debug)]
pub(super) struct Fault {
    errno: Errno,
    length: u8,
    object: [u8; OBJECT_MAX],
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self {
            errno,
            length: 0,
            object: [0; OBJECT_MAX],
        }
    }
}

impl Fault {
    pub(super) fn new(errno: Errno, object: &[u8]) -> Self {
        let mut fault = Self::from(errno);
        fault.append(object);
        fault
    }

    /// Adds to the object's name what there is room for.
    fn append(&mut self, text: &[u8]) {
        let rest = &mut self.object[usize::from(self.length)..];
        let length = text.len().min(rest.len());
        rest[..length].copy_from_slice(&text[..length]);
        self.length += u8::try_from(length).unwrap_or(0);
    }

    #[cfg(test)]
    pub(super) fn errno(&self) -> Errno {
        self.errno
    }
}

/// Names what an operation of the kernel was done to.
pub(super) trait On<T> {
    fn on(self, object: &CStr) -> Result<T, Fault>;
}

impl<T> On<T> for Result<T, Errno> {
    fn on(self, object: &CStr) -> Result<T, Fault> {
        self.map_err(|errno| Fault::new(errno, object.to_bytes()))
    }
}

impl<T> On<T> for Result<T, Fault> {
    /// Puts the name that is known already in brackets: `/dev (size)`.
    fn on(self, object: &CStr) -> Result<T, Fault> {
        self.map_err(|inner| {
            let mut fault = Fault::new(inner.errno, object.to_bytes());
            if inner.length != 0 {
                fault.append(b" (");
                fault.append(&inner.object[..usize::from(inner.length)]);
                fault.append(b")");
            }
            fault
        })
    }
}

/// A failed step of the child.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) step: Step,
    pub(super) fault: Fault,
}

/// Says in which step it happened.
pub(super) trait During<T> {
    fn during(self, step: Step) -> Result<T, Failed>;
}

impl<T, E: Into<Fault>> During<T> for Result<T, E> {
    fn during(self, step: Step) -> Result<T, Failed> {
        self.map_err(|e| Failed {
            step,
            fault: e.into(),
        })
    }
}

/// The child's end.
#[derive(Debug)]
pub(super) struct Report(OwnedFd);

impl Report {
    /// A pair: for the child, and for the maker.
    pub(super) fn pair() -> Result<(Self, OwnedFd), Errno> {
        let (child, maker) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(child), maker))
    }

    /// The other end is now whoever has connected.
    pub(super) fn over(connection: OwnedFd) -> Self {
        Self(connection)
    }

    pub(super) fn failed(&self, failed: &Failed) {
        let mut record = head(ERROR, failed.step as u8, failed.fault.errno.raw_os_error());
        let length = usize::from(failed.fault.length);
        record[2..4].copy_from_slice(&u16::from(failed.fault.length).to_ne_bytes());
        record[24..24 + length].copy_from_slice(&failed.fault.object[..length]);
        self.write(&record);
    }

    pub(super) fn caution(&self, caution: Caution, which: i32, wanted: u64, got: u64) {
        let mut record = head(WARNING, caution as u8, which);
        record[8..16].copy_from_slice(&wanted.to_ne_bytes());
        record[16..24].copy_from_slice(&got.to_ne_bytes());
        self.write(&record);
    }

    pub(super) fn parked(&self) {
        self.write(&head(PARKED, 0, 0));
    }

    /// Hands over the terminal's master side.
    pub(super) fn terminal(&self, master: BorrowedFd<'_>) -> Result<(), Errno> {
        let record = head(TERMINAL, 0, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [master];
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(Errno::NOBUFS);
        }
        let parts = [IoSlice::new(&record)];
        rustix::net::sendmsg(&self.0, &parts, &mut control, SendFlags::NOSIGNAL).map(drop)
    }

    /// Waits for the byte that lets a parked init go on; `false` when the other end is gone.
    pub(super) fn wait_for_go(&self) -> Result<bool, Errno> {
        let mut byte = [0];
        rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut byte)).map(|n| n == 1)
    }

    fn write(&self, record: &[u8; RECORD]) {
        // Without a maker nobody is left to be told.
        let _nobody = rustix::io::retry_on_intr(|| rustix::io::write(&self.0, record));
    }
}

impl AsFd for Report {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn head(kind: u8, code: u8, errno: i32) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[0] = kind;
    record[1] = code;
    record[4..8].copy_from_slice(&errno.to_ne_bytes());
    record
}

/// How far a made process is.
#[derive(Debug)]
pub enum Progress {
    /// Everything is made; it waits for [`Pending::release`].
    Parked {
        /// Master side of its terminal, when one was wanted.
        terminal: Option<OwnedFd>,
        /// What was not allowed in full, in words.
        warnings: Vec<String>,
    },
    /// Its program runs (or has already ended).
    Executed {
        /// As above; given once.
        terminal: Option<OwnedFd>,
        /// As above.
        warnings: Vec<String>,
    },
}

/// A process on its way to `execve`.
///
/// It is a child of the caller, who waits for it (by `pidfd`) whatever becomes of it. Dropped before
/// [`Progress::Executed`], an init that parks on the status socket ends.
#[derive(Debug)]
pub struct Pending {
    /// Its process id, in the caller's PID namespace.
    pub pid: u32,
    /// Names it for ever; readable when it has ended.
    pub pidfd: OwnedFd,
    status: Status,
    must_park: bool,
}

impl Pending {
    pub(super) fn new(child: wharf_sys::clone::Child, socket: OwnedFd, must_park: bool) -> Self {
        Self {
            pid: child.pid,
            pidfd: child.pidfd,
            status: Status::new(socket),
            must_park,
        }
    }

    /// Readable when [`Self::poll`] has something to say.
    pub fn status_fd(&self) -> BorrowedFd<'_> {
        self.status.socket.as_fd()
    }

    /// What the child said, without blocking; `None` is nothing yet.
    ///
    /// # Errors
    ///
    /// The step that failed; the child has then ended, or is about to.
    pub fn poll(&mut self) -> Result<Option<Progress>, StepError> {
        let Some(news) = self.status.next(RecvFlags::DONTWAIT)? else {
            return Ok(None);
        };
        let (terminal, warnings) = self.status.take();
        match news {
            News::Parked => {
                self.must_park = false;
                Ok(Some(Progress::Parked { terminal, warnings }))
            }
            News::End if self.must_park => Err(StepError {
                step: "init".into(),
                object: "ended before it was ready (killed, or out of memory)".to_owned(),
                errno: 0,
            }),
            News::End => Ok(Some(Progress::Executed { terminal, warnings })),
        }
    }

    /// Lets a parked init execute its program; [`Self::poll`] then says how that went.
    ///
    /// # Errors
    ///
    /// `EPIPE` when it has ended.
    pub fn release(&mut self) -> Result<(), StepError> {
        go(&self.status.socket)
    }

    /// Like [`Self::poll`], but waits.
    ///
    /// # Errors
    ///
    /// As [`Self::poll`].
    pub fn wait(&mut self) -> Result<Progress, StepError> {
        loop {
            if let Some(progress) = self.poll()? {
                return Ok(progress);
            }
            let mut fds = [PollFd::new(&self.status.socket, PollFlags::IN)];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(StepError::new(Step::Park, "poll", e)),
            }
        }
    }
}

/// Lets an init execute that parks on a listening socket, over a connection to that; returns when it
/// has, with its warnings.
///
/// # Errors
///
/// The step that failed.
pub fn release_parked(connection: OwnedFd) -> Result<Vec<String>, StepError> {
    go(&connection)?;
    let mut status = Status::new(connection);
    loop {
        if let Some(News::End) = status.next(RecvFlags::empty())? {
            return Ok(status.take().1);
        }
    }
}

fn go(socket: &OwnedFd) -> Result<(), StepError> {
    rustix::net::send(socket, b"!", SendFlags::NOSIGNAL)
        .map(drop)
        .map_err(|e| StepError::new(Step::Park, "release", e))
}

#[derive(Debug)]
enum News {
    Parked,
    End,
}

/// The maker's end, and what was gathered from it.
#[derive(Debug)]
struct Status {
    socket: OwnedFd,
    terminal: Option<OwnedFd>,
    warnings: Vec<String>,
}

impl Status {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            terminal: None,
            warnings: Vec::new(),
        }
    }

    fn take(&mut self) -> (Option<OwnedFd>, Vec<String>) {
        (self.terminal.take(), std::mem::take(&mut self.warnings))
    }

    /// The next news; `None` when there is none yet on a read that does not block.
    fn next(&mut self, flags: RecvFlags) -> Result<Option<News>, StepError> {
        loop {
            let mut record = [0; RECORD];
            let n = match self.receive(&mut record, flags) {
                Ok(n) => n,
                Err(Errno::AGAIN) => return Ok(None),
                // The child was killed with something of ours unread: it has ended.
                Err(Errno::CONNRESET) => 0,
                Err(e) => return Err(StepError::new(Step::Park, "read status", e)),
            };
            match record[0] {
                _ if n == 0 => return Ok(Some(News::End)),
                ERROR => return Err(error(&record)),
                WARNING => self.warnings.push(warning(&record)),
                PARKED => return Ok(Some(News::Parked)),
                // A terminal's descriptor was taken by `receive`.
                _ => {}
            }
        }
    }

    fn receive(&mut self, record: &mut [u8; RECORD], flags: RecvFlags) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        let received = rustix::io::retry_on_intr(|| {
            let parts = &mut [IoSliceMut::new(record)];
            rustix::net::recvmsg(&self.socket, parts, &mut control, flags)
        })?;
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                self.terminal = rights.into_iter().next();
            }
        }
        Ok(received.bytes)
    }
}

fn number(record: &[u8; RECORD], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&record[at..at + 8]);
    u64::from_ne_bytes(bytes)
}

fn errno(record: &[u8; RECORD]) -> i32 {
    i32::from_ne_bytes([record[4], record[5], record[6], record[7]])
}

fn error(record: &[u8; RECORD]) -> StepError {
    let length = usize::from(u16::from_ne_bytes([record[2], record[3]])).min(OBJECT_MAX);
    let mut object = String::from_utf8_lossy(&record[24..24 + length]).into_owned();
    if length == OBJECT_MAX {
        object.push('…');
    }
    StepError {
        step: step_name(record[1]).into(),
        object,
        errno: errno(record),
    }
}

fn warning(record: &[u8; RECORD]) -> String {
    let (wanted, got) = (number(record, 8), number(record, 16));
    match record[1] {
        c if c == Caution::Rlimit as u8 => format!(
            "rlimit {} clamped to {got}: {wanted} needs CAP_SYS_RESOURCE",
            errno(record)
        ),
        c if c == Caution::OomScoreAdj as u8 => format!(
            "oom_score_adj stays {}: {} needs CAP_SYS_RESOURCE",
            got.cast_signed(),
            wanted.cast_signed()
        ),
        c if c == Caution::Capabilities as u8 => {
            format!("capabilities {wanted:#x} left out: this runtime does not have them itself")
        }
        _ => format!("capabilities {wanted:#x} cannot be ambient"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_child_reports_is_what_the_maker_reads() {
        let (child, maker) = Report::pair().unwrap();
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        child.caution(Caution::OomScoreAdj, 0, (-5_i64).cast_unsigned(), 3);
        child.terminal(reader.as_fd()).unwrap();
        child.parked();
        child.failed(&Failed {
            step: Step::Mount,
            fault: Fault::new(Errno::NODEV, b"/proc"),
        });
        let mut status = Status::new(maker);
        let news = status.next(RecvFlags::DONTWAIT).unwrap();
        assert!(matches!(news, Some(News::Parked)));
        let (terminal, warnings) = status.take();
        assert!(terminal.is_some());
        assert_eq!(
            warnings,
            ["oom_score_adj stays 3: -5 needs CAP_SYS_RESOURCE"]
        );
        let e = status.next(RecvFlags::DONTWAIT).unwrap_err();
        assert_eq!(e.to_string(), "mount /proc: No such device (os error 19)");
        assert!(status.next(RecvFlags::DONTWAIT).unwrap().is_none());
        drop(child);
        assert!(matches!(
            status.next(RecvFlags::DONTWAIT).unwrap(),
            Some(News::End)
        ));
    }

    #[test]
    fn a_long_name_is_cut_not_lost() {
        let (child, maker) = Report::pair().unwrap();
        child.failed(&Failed {
            step: Step::Execve,
            fault: Fault::new(Errno::NOENT, &[b'x'; 500]),
        });
        let e = Status::new(maker).next(RecvFlags::DONTWAIT).unwrap_err();
        assert_eq!(e.object, format!("{}…", "x".repeat(OBJECT_MAX)));
    }
}
