//! The story of another process in a container: the same end as init's, with a short beginning.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use wharf_plan::Fds;
use wharf_plan::container::Namespace;
use wharf_plan::process::ProcessPlan;
use wharf_sys::clone::{How, clone3};

use super::init::{PidNamespace, in_pid_namespace};
use super::path::RootFd;
use super::prepare;
use super::process::{Process, Wait};
use super::status::{During as _, Failed, Fault, On as _, Pending, Report, Step, StepError};
use super::{Stdio, Target, mounts, terminal};

/// See [`super::exec`].
pub(super) fn exec(
    target: Target<'_>,
    plan: &ProcessPlan,
    mut fds: Fds,
    stdio: Stdio,
) -> Result<Pending, StepError> {
    let process = prepare::process(plan, &mut fds, stdio)?;
    if target.namespaces.user() != Namespace::Inherit {
        return Err(StepError::plan("user namespaces are not supported yet"));
    }
    let (report, maker) =
        Report::pair().map_err(|e| StepError::new(Step::Prepare, "socketpair", e))?;
    let keep = prepare::keep(&process, [target.pidfd, report.as_fd()]);
    let how = How {
        namespaces: 0,
        cgroup: process.cgroup2.as_ref().map(|fd| fd.as_fd()),
    };
    let mut child = Child {
        process: &process,
        report: &report,
        keep: &keep,
        target: target.pidfd,
    };
    let make = || {
        let made = clone3(&how, &mut child, Child::main);
        made.map_err(|e| StepError::new(Step::Clone, "", e))
    };
    let made = in_pid_namespace(PidNamespace::Of(target.pidfd), make)?;
    Ok(Pending::new(made, maker, false))
}

struct Child<'a> {
    process: &'a Process,
    report: &'a Report,
    keep: &'a [BorrowedFd<'a>],
    target: BorrowedFd<'a>,
}

impl Child<'_> {
    fn main(&mut self) -> i32 {
        let failed = match self.story() {
            Err(failed) => failed,
            Ok(never) => match never {},
        };
        self.report.failed(&failed);
        1
    }

    fn story(&self) -> Result<std::convert::Infallible, Failed> {
        // 1. Nothing of the maker's stays; its cgroup before the cgroup namespace.
        self.process.detach(self.keep)?;
        // 2. All namespaces of the container at once. From here on /proc and / are the container's.
        let all = ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::CONTROL_GROUP;
        move_into_thread_name_spaces(self.target, all).during(Step::Namespaces)?;
        let proc = self.process.proc()?;
        let terminal = self.open_terminal().during(Step::Terminal)?;
        // 3. The process itself.
        let wait = Wait::No;
        Err(self
            .process
            .become_program(proc, terminal, self.report, wait))
    }

    fn open_terminal(&self) -> Result<Option<OwnedFd>, Fault> {
        let Some(size) = self.process.terminal else {
            return Ok(None);
        };
        let root = mounts::open_root()?;
        let image = RootFd::image(root.as_fd());
        let slave = terminal::open(image, size, self.report);
        slave.on(c"/dev/pts/ptmx").map(Some)
    }
}
