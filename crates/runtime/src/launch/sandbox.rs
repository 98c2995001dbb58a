//! PID 1 of a pod's shared PID namespace: a forked child without a program of its own. It reaps.
//!
//! Every container of the pod sees it in /proc, and one with `CAP_SYS_PTRACE` sees through it: its
//! files by /proc/1/root, its memory and descriptors. So it has nothing: an empty read-only root, an
//! ordinary user, no capabilities, and only the system calls that reaping takes.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Gid, PidfdFlags, Uid, WaitId, WaitIdOptions, WaitOptions, getpid};
use rustix::process::{pidfd_open, waitid};
use wharf_sys::clone::{How, NEWNS, NEWPID, clone3};
use wharf_sys::seccomp::Filter;
use wharf_sys::{capability, process, signal};

use super::mounts;
use super::status::{During as _, Failed, Pending, Progress, Report, Step, StepError};
use crate::seccomp::{self, SeccompError};
use crate::spec::{Seccomp, SeccompAction, SeccompSyscall};

/// `SIGKILL`, `SIGCHLD`: the same numbers on every architecture that we build for.
const SIGKILL: i32 = 9;
const SIGCHLD: i32 = 17;

/// The overflow user and group: those of nobody.
const NOBODY: u32 = 65534;

/// All that PID 1 does once it is in its place. Whoever traces it can make it do these, nothing else.
const CALLS: [&str; 9] = [
    "close",
    "exit",
    "exit_group",
    "poll",
    "ppoll",
    "read",
    "restart_syscall",
    "wait4",
    "write",
];

/// Makes a process that is PID 1 of a new PID namespace. It reaps whoever is left to it, and ends, and
/// with it everything in the namespace, on `SIGKILL` from outside, or when the caller's process ends.
/// No other signal does anything to it: inside, each could be forged.
///
/// Returns when it is in its place, out of reach. Gives its process id and pidfd; it is a child of the
/// caller, who waits for it.
///
/// # Errors
///
/// The step that failed, the kernel's answer to `clone3` among them; nothing is left then.
pub fn sandbox_init() -> Result<(u32, OwnedFd), StepError> {
    let failed = |object: &'static str| move |e: Errno| StepError::new(Step::Prepare, object, e);
    let parent = pidfd_open(getpid(), PidfdFlags::empty()).map_err(failed("pidfd of the pod"))?;
    let (report, maker) = Report::pair().map_err(failed("socketpair"))?;
    let filter = filter()?;
    let mut keep = [parent.as_fd(), report.as_fd()];
    keep.sort_unstable_by_key(|fd| fd.as_raw_fd());
    let how = How {
        namespaces: NEWPID | NEWNS,
        ..How::default()
    };
    let mut child = Child {
        parent: parent.as_fd(),
        report: &report,
        keep: &keep,
        filter: filter.as_ref(),
    };
    let made = clone3(&how, &mut child, Child::main);
    let made = made.map_err(|e| StepError::new(Step::Clone, "PID 1 of the pod", e))?;
    drop(report);
    let mut pending = Pending::new(made, maker, true);
    match pending.wait() {
        Ok(Progress::Parked { .. } | Progress::Executed { .. }) => Ok((pending.pid, pending.pidfd)),
        Err(error) => {
            // It may have ended by itself.
            signal::send(&pending.pidfd, SIGKILL).ok();
            waitid(WaitId::PidFd(pending.pidfd.as_fd()), WaitIdOptions::EXITED).ok();
            Err(error)
        }
    }
}

/// The filter that leaves [`CALLS`]; none where there is no table of calls for the machine.
fn filter() -> Result<Option<Filter>, StepError> {
    let profile = Seccomp {
        default_action: SeccompAction::KillProcess,
        syscalls: vec![SeccompSyscall {
            names: CALLS.map(str::to_owned).to_vec(),
            action: SeccompAction::Allow,
            ..SeccompSyscall::default()
        }],
        ..Seccomp::default()
    };
    match seccomp::compile(&profile) {
        Ok(program) => Ok(Filter::from_bytes(&program.code)),
        Err(SeccompError::Unsupported(_)) => Ok(None),
        Err(e) => Err(StepError::plan(e.to_string())),
    }
}

/// What the child knows: all of it was made before the clone.
struct Child<'a> {
    parent: BorrowedFd<'a>,
    report: &'a Report,
    keep: &'a [BorrowedFd<'a>],
    filter: Option<&'a Filter>,
}

impl Child<'_> {
    fn main(&mut self) -> i32 {
        let signals = match self.settle() {
            Ok(signals) => signals,
            Err(failed) => {
                self.report.failed(&failed);
                return 1;
            }
        };
        self.report.parked();
        match reap_until_alone(self.parent, &signals) {
            Ok(()) => 0,
            Err(_nobody_is_told) => 1,
        }
    }

    /// Lets go of all that the caller has; gives the descriptor of `SIGCHLD`.
    fn settle(&self) -> Result<OwnedFd, Failed> {
        process::close_all_but(0, self.keep).during(Step::Descriptors)?;
        process::set_name(c"wharf-sandbox").during(Step::Prepare)?;
        rustix::process::setsid().during(Step::Session)?;
        signal::reset().during(Step::Signals)?;
        signal::block_all().during(Step::Signals)?;
        let signals = signal::descriptor(&[SIGCHLD]).during(Step::Signals)?;
        // The caller's mounts have a full /proc and /sys.
        mounts::make_private().during(Step::Propagation)?;
        mounts::leave_all().during(Step::Pivot)?;
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        rustix::thread::set_thread_groups(&[]).during(Step::User)?;
        rustix::thread::set_thread_res_gid(group, group, group).during(Step::User)?;
        rustix::thread::set_thread_res_uid(user, user, user).during(Step::User)?;
        capability::set(capability::Sets::default()).during(Step::Capabilities)?;
        rustix::thread::set_no_new_privs(true).during(Step::NoNewPrivileges)?;
        // After the change of user, which sets it anew.
        process::set_undumpable().during(Step::Descriptors)?;
        if let Some(filter) = self.filter {
            filter.load(0).during(Step::Seccomp)?;
        }
        Ok(signals)
    }
}

fn reap_until_alone(parent: BorrowedFd<'_>, signals: &OwnedFd) -> Result<(), Errno> {
    loop {
        let mut fds = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::from_borrowed_fd(parent, PollFlags::IN),
        ];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
        if fds[1].revents().contains(PollFlags::IN) {
            return Ok(());
        }
        match signal::take(signals) {
            Ok(_) | Err(Errno::AGAIN) => reap()?,
            Err(e) => return Err(e),
        }
    }
}

fn reap() -> Result<(), Errno> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) | Err(Errno::CHILD) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}
