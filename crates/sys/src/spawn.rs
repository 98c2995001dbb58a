//! A new program in a new process: `posix_spawn(3)`, which shares memory until `execve` and so costs
//! the same from a large process as from a small one.

use std::ffi::{CString, NulError};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, getrlimit, pidfd_open, prlimit};

/// Where descriptors are put before they get their final numbers, so that none covers another.
const ABOVE: i32 = 64;

/// A program to start. It gets no descriptor but those that are given to it (all of ours must be
/// `O_CLOEXEC`), default signal actions and an empty signal mask.
#[derive(Debug)]
pub struct Program<'fd> {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    fds: Vec<(BorrowedFd<'fd>, i32)>,
    own_session: bool,
    open_files: Option<u64>,
}

/// A started program.
#[derive(Debug)]
pub struct Started {
    /// Its process id.
    pub pid: u32,
    /// Names this very process; readable when it has ended. It must be waited for.
    pub pidfd: OwnedFd,
}

impl<'fd> Program<'fd> {
    /// The program at `path` (not searched for in `PATH`) with `args` (the first is its name) and
    /// exactly the environment `env`.
    ///
    /// # Errors
    ///
    /// A string with a NUL byte.
    pub fn new(path: &[u8], args: &[&[u8]], env: &[&[u8]]) -> Result<Self, NulError> {
        let strings = |list: &[&[u8]]| -> Result<Vec<_>, _> {
            list.iter().map(|s| CString::new(*s)).collect()
        };
        Ok(Self {
            path: CString::new(path)?,
            args: strings(args)?,
            env: strings(env)?,
            fds: Vec::new(),
            own_session: false,
            open_files: None,
        })
    }

    /// The program gets `fd` as descriptor `number` (below 64). What is not given as 0, 1 or 2 is
    /// inherited from this process.
    #[must_use]
    pub fn fd(mut self, fd: BorrowedFd<'fd>, number: i32) -> Self {
        self.fds.push((fd, number));
        self
    }

    /// The program becomes the leader of a session of its own (`setsid(2)`).
    #[must_use]
    pub fn own_session(mut self) -> Self {
        self.own_session = true;
        self
    }

    /// The program gets this soft limit of open files (`RLIMIT_NOFILE`) instead of ours; never more than
    /// our hard limit. It is set when the program has begun, so that it may open more in its first moment.
    #[must_use]
    pub fn open_files(mut self, soft: u64) -> Self {
        self.open_files = Some(soft);
        self
    }

    /// Starts it. Allocates: not for a forked child.
    ///
    /// # Errors
    ///
    /// What `execve(2)`, `clone(2)`, `dup2(2)` or, when the program runs already, `prlimit(2)` say.
    pub fn spawn(&self) -> io::Result<Started> {
        let high = self
            .fds
            .iter()
            .map(|(fd, number)| Ok((rustix::io::fcntl_dupfd_cloexec(fd, ABOVE)?, *number)))
            .collect::<io::Result<Vec<_>>>()?;
        let mut actions = Actions::new()?;
        for (fd, number) in &high {
            actions.dup2(fd.as_fd(), *number)?;
        }
        let attributes = Attributes::new(self.own_session)?;
        let pid = self.posix_spawn(&actions, &attributes)?;
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
        // Nobody else waits for this child, so its number cannot be used again before we do.
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        if let Some(soft) = self.open_files {
            let hard = getrlimit(Resource::Nofile).maximum;
            let limit = Rlimit {
                current: Some(hard.map_or(soft, |hard| soft.min(hard))),
                maximum: hard,
            };
            prlimit(Some(pid), Resource::Nofile, limit)?;
        }
        Ok(Started {
            pid: u32::try_from(pid.as_raw_nonzero().get()).map_err(io::Error::other)?,
            pidfd,
        })
    }

    fn posix_spawn(&self, actions: &Actions, attributes: &Attributes) -> io::Result<libc::pid_t> {
        let pointers = |list: &[CString]| -> Vec<*mut libc::c_char> {
            let strings = list.iter().map(|s| s.as_ptr().cast_mut());
            strings.chain([std::ptr::null_mut()]).collect()
        };
        let (argv, envp) = (pointers(&self.args), pointers(&self.env));
        let mut pid = 0;
        // SAFETY: path and strings are terminated and live during the call, both arrays end with
        // null, actions and attributes were initialised; nothing is written but `pid`.
        let rc = unsafe {
            libc::posix_spawn(
                &raw mut pid,
                self.path.as_ptr(),
                &raw const actions.0,
                &raw const attributes.0,
                argv.as_ptr(),
                envp.as_ptr(),
            )
        };
        ok(rc).map(|()| pid)
    }
}

/// The functions of posix_spawn return the error number.
fn ok(rc: libc::c_int) -> io::Result<()> {
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(rc))
    }
}

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: writes the struct it is given.
        ok(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: initialised by the call above.
        Ok(Self(unsafe { actions.assume_init() }))
    }

    fn dup2(&mut self, fd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
        let fd = fd.as_raw_fd();
        // SAFETY: the actions were initialised; descriptors are integers here.
        ok(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, fd, number) })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new(own_session: bool) -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: writes the struct it is given.
        ok(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: initialised by the call above.
        let mut this = Self(unsafe { attributes.assume_init() });
        let mut all = MaybeUninit::uninit();
        // SAFETY: writes the set it is given.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        // SAFETY: the set was filled above, the attributes were initialised.
        ok(unsafe { libc::posix_spawnattr_setsigdefault(&raw mut this.0, all.as_ptr()) })?;
        let mut none = MaybeUninit::uninit();
        // SAFETY: writes the set it is given.
        unsafe { libc::sigemptyset(none.as_mut_ptr()) };
        // SAFETY: the set was emptied above, the attributes were initialised.
        ok(unsafe { libc::posix_spawnattr_setsigmask(&raw mut this.0, none.as_ptr()) })?;
        let session = if own_session {
            i32::from(libc::POSIX_SPAWN_SETSID)
        } else {
            0
        };
        let flags = libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK | session;
        let flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
        // SAFETY: the attributes were initialised.
        ok(unsafe { libc::posix_spawnattr_setflags(&raw mut this.0, flags) })?;
        Ok(this)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use std::io::Read as _;

    #[test]
    fn descriptors_get_the_numbers_asked_for() {
        let (mut a_reader, a) = io::pipe().unwrap();
        let (mut b_reader, b) = io::pipe().unwrap();
        let script: &[u8] = b"echo a >&5; echo b >&4";
        let started = Program::new(b"/bin/sh", &[b"sh", b"-c", script], &[])
            .unwrap()
            .fd(a.as_fd(), 5)
            .fd(b.as_fd(), 4)
            .own_session()
            .spawn()
            .unwrap();
        drop((a, b));
        let (mut first, mut second) = (String::new(), String::new());
        a_reader.read_to_string(&mut first).unwrap();
        b_reader.read_to_string(&mut second).unwrap();
        assert_eq!((first.as_str(), second.as_str()), ("a\n", "b\n"));
        let id = WaitId::PidFd(started.pidfd.as_fd());
        let end = waitid(id, WaitIdOptions::EXITED).unwrap().unwrap();
        assert_eq!(end.exit_status(), Some(0));
    }

    #[test]
    fn a_program_gets_the_limit_of_open_files_that_it_is_given() {
        let ours = getrlimit(Resource::Nofile);
        let (mut out, writer) = io::pipe().unwrap();
        let (reader, go) = io::pipe().unwrap();
        let script: &[u8] = b"read line; ulimit -Sn; ulimit -Hn";
        let started = Program::new(b"/bin/sh", &[b"sh", b"-c", script], &[])
            .unwrap()
            .fd(reader.as_fd(), 0)
            .fd(writer.as_fd(), 1)
            .open_files(77)
            .spawn()
            .unwrap();
        drop((reader, writer, go));
        let mut said = String::new();
        out.read_to_string(&mut said).unwrap();
        let hard = ours
            .maximum
            .map_or("unlimited".to_owned(), |n| n.to_string());
        assert_eq!(said, format!("77\n{hard}\n"));
        assert_eq!(getrlimit(Resource::Nofile), ours);
        let id = WaitId::PidFd(started.pidfd.as_fd());
        waitid(id, WaitIdOptions::EXITED).unwrap();
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let e = Program::new(b"/does/not/exist", &[b"x"], &[])
            .unwrap()
            .spawn()
            .unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::NotFound);
    }
}
