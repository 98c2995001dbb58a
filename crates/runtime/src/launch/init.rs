//! The story of a container's init, from `clone3` to `execve`. The order is the design.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::thread::{ThreadNameSpaceType, move_into_link_name_space};
use wharf_plan::Fds;
use wharf_plan::container::ContainerPlan;
use wharf_sys::clone::{self, How, clone3};

use super::path::{Place, RootFd};
use super::prepare::{self, Init};
use super::process::Wait;
use super::status::{During as _, Failed, Fault, On as _, Pending, Report, Step, StepError};
use super::{Park, Stdio, devices, mounts, terminal};

/// See [`super::create`].
pub(super) fn create(
    plan: &ContainerPlan,
    fds: Fds,
    stdio: Stdio,
    park: Park,
) -> Result<Pending, StepError> {
    let init = prepare::init(plan, fds, stdio, park)?;
    let console = Place::new(b"/dev/console").map_err(|_nul| StepError::plan("console"))?;
    let (report, maker) =
        Report::pair().map_err(|e| StepError::new(Step::Prepare, "socketpair", e))?;
    let keep = prepare::keep(&init.process, init.descriptors().chain([report.as_fd()]));
    let how = How {
        namespaces: init.new,
        cgroup: init.process.cgroup2.as_ref().map(|fd| fd.as_fd()),
    };
    let late = init.mounts.iter().filter(|mount| mount.is_late());
    let mut child = Child {
        init: &init,
        report: &report,
        keep: &keep,
        console: &console,
        late: Vec::with_capacity(late.count()),
    };
    let mut make = || {
        let made = clone3(&how, &mut child, Child::main);
        made.map_err(|e| StepError::new(Step::Clone, plan.id.as_str(), e))
    };
    let made = match &init.pid_namespace {
        Some(namespace) => in_pid_namespace(PidNamespace::Link(namespace.as_fd()), make)?,
        None => make()?,
    };
    Ok(Pending::new(made, maker, true))
}

/// The PID namespace that a child is born in.
#[derive(Debug, Clone, Copy)]
pub(super) enum PidNamespace<'fd> {
    /// A file of /proc/PID/ns.
    Link(BorrowedFd<'fd>),
    /// That of a process.
    Of(BorrowedFd<'fd>),
}

/// `SIGKILL`.
const KILL: i32 = 9;

/// Runs `make` while children of this thread are born in `namespace`. When there is no way back, the
/// child is killed and reaped, and the error [says](StepError::caller_must_end) that the caller is lost.
pub(super) fn in_pid_namespace(
    namespace: PidNamespace<'_>,
    make: impl FnOnce() -> Result<clone::Child, StepError>,
) -> Result<clone::Child, StepError> {
    let failed = |e| StepError::new(Step::Namespaces, "pid", e);
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let mode = rustix::fs::Mode::empty();
    let own = rustix::fs::open(c"/proc/thread-self/ns/pid", flags, mode).map_err(failed)?;
    match namespace {
        PidNamespace::Link(fd) => join(fd, rustix::thread::LinkNameSpaceType::ProcessID),
        PidNamespace::Of(pidfd) => {
            rustix::thread::move_into_thread_name_spaces(pidfd, ThreadNameSpaceType::PROCESS_ID)
        }
    }
    .map_err(failed)?;
    let made = make();
    let back = join(own.as_fd(), rustix::thread::LinkNameSpaceType::ProcessID);
    if let Err(e) = back {
        if let Ok(child) = made {
            // It may have ended by itself.
            wharf_sys::signal::send(&child.pidfd, KILL).ok();
            waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED).ok();
        }
        return Err(StepError::new(Step::WayBack, "pid", e));
    }
    made
}

fn join(fd: BorrowedFd<'_>, kind: rustix::thread::LinkNameSpaceType) -> Result<(), Errno> {
    move_into_link_name_space(fd, Some(kind))
}

/// What the child knows: all of it was made before the clone.
struct Child<'a> {
    init: &'a Init,
    report: &'a Report,
    keep: &'a [BorrowedFd<'a>],
    console: &'a Place,
    /// Mounts that become read-only later; it never grows beyond what was allocated for it.
    late: Vec<OwnedFd>,
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

    /// The story. Every step says why it has its place.
    fn story(&mut self) -> Result<std::convert::Infallible, Failed> {
        let init = self.init;
        // 1. Nothing of the maker's stays: descriptors, signals. Then its cgroups, before anything is
        //    done on the container's account, and before the cgroup namespace takes them for its root.
        init.process.detach(self.keep)?;
        // 2. Namespaces of the pod; then what belongs to new ones. The mount namespace is new already.
        self.join_namespaces().during(Step::Namespaces)?;
        self.name_host()?;
        let proc = init.process.proc()?;
        for (path, value) in &init.sysctls {
            let proc = proc.as_ref().ok_or(Errno::BADF).during(Step::Sysctl)?;
            proc.write(path, value).on(path).during(Step::Sysctl)?;
        }
        // 3. A place of our own for the root, seen by nobody; private first, or it would be seen.
        mounts::make_private().during(Step::Propagation)?;
        let scratch = mounts::Scratch::mount().during(Step::Scratch)?;
        scratch
            .attach_root(init.rootfs.as_fd())
            .during(Step::Rootfs)?;
        // 4. In the order of the configuration: later mounts may lie in earlier ones.
        let image = RootFd::image(init.rootfs.as_fd());
        self.mount_all(image)?;
        self.make_nodes(image)?;
        // 5. The terminal needs the container's devpts, and /dev/console must not be masked by it.
        let terminal = self.open_terminal(image).during(Step::Terminal)?;
        // A working directory that is missing, before all is read-only.
        init.process.make_cwd(image)?;
        for mount in self.late.drain(..) {
            mounts::seal(&mount).during(Step::Mount)?;
        }
        // 6. What is hidden or read-only covers what was mounted; hidden last, since a read-only
        //    copy of a directory would show again what is hidden in it.
        for place in &init.readonly_paths {
            let done = mounts::make_readonly(place, image).on(&place.shown);
            done.during(Step::ReadonlyPath)?;
        }
        if !init.masked_paths.is_empty() {
            let masks = scratch.masks().during(Step::MaskedPath)?;
            for place in &init.masked_paths {
                let done = masks.cover(place, image).on(&place.shown);
                done.during(Step::MaskedPath)?;
            }
        }
        // 7. Read-only last: until here mount points had to be made.
        self.seal_root().during(Step::RootfsReadonly)?;
        mounts::pivot(init.rootfs.as_fd()).during(Step::Pivot)?;
        if init.rootfs_propagation != 0 {
            mounts::set_root_propagation(init.rootfs_propagation)
                .during(Step::RootfsPropagation)?;
        }
        // 8. The process itself.
        let wait = match &init.park {
            Park::Socket => Wait::Socket,
            Park::Listener(fd) => Wait::Listener(fd.as_fd()),
        };
        drop(scratch);
        Err(init
            .process
            .become_program(proc, terminal, self.report, wait))
    }

    fn join_namespaces(&self) -> Result<(), Errno> {
        for (fd, kind) in &self.init.joins {
            join(fd.as_fd(), *kind)?;
        }
        Ok(())
    }

    fn name_host(&self) -> Result<(), Failed> {
        let init = self.init;
        if init.new_cgroup_namespace {
            wharf_sys::process::unshare(clone::NEWCGROUP).during(Step::CgroupNamespace)?;
        }
        if init.loopback_up {
            wharf_sys::network::loopback_up().during(Step::Loopback)?;
        }
        if !init.hostname.is_empty() {
            rustix::system::sethostname(&init.hostname).during(Step::Hostname)?;
        }
        if !init.domainname.is_empty() {
            rustix::system::setdomainname(&init.domainname).during(Step::Domainname)?;
        }
        Ok(())
    }

    fn mount_all(&mut self, image: RootFd<'_>) -> Result<(), Failed> {
        for (at, mount) in self.init.mounts.iter().enumerate() {
            let shown = &mount.place.shown;
            let made = mount.make(image).on(shown).during(Step::Mount)?;
            if self.init.own_dev == Some(at)
                && let Some(dev) = &made
            {
                // Before it is attached: nothing of the image can lie in the way of what is made.
                let filled = devices::fill_dev(dev.as_fd(), &self.init.devices, &self.init.links);
                filled.during(Step::Device)?;
            }
            let attached = mount.attach(made.as_ref(), image).on(shown);
            attached.during(Step::Mount)?;
            if let Some(made) = made
                && mount.is_late()
            {
                self.late.push(made);
            }
        }
        Ok(())
    }

    /// Nodes and links that do not lie on our own /dev.
    fn make_nodes(&self, image: RootFd<'_>) -> Result<(), Failed> {
        let init = self.init;
        if init.foreign_dev {
            return Ok(());
        }
        for device in init.devices.iter().filter(|d| !d.in_dev) {
            let done = device.make(image).on(&device.place.shown);
            done.during(Step::Device)?;
        }
        for link in init.links.iter().filter(|l| !l.in_dev) {
            let done = link.make(image).on(&link.place.shown);
            done.during(Step::Link)?;
        }
        Ok(())
    }

    fn open_terminal(&self, image: RootFd<'_>) -> Result<Option<OwnedFd>, Fault> {
        let Some(size) = self.init.process.terminal else {
            return Ok(None);
        };
        let slave = terminal::open(image, size, self.report).on(c"/dev/pts/ptmx")?;
        if !self.init.foreign_dev {
            terminal::bind_console(slave.as_fd(), self.console, image).on(&self.console.shown)?;
        }
        Ok(Some(slave))
    }

    fn seal_root(&self) -> Result<(), Errno> {
        if !self.init.rootfs_readonly {
            return Ok(());
        }
        mounts::seal(&self.init.rootfs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp;
    use crate::spec::{Seccomp, SeccompAction, SeccompSyscall};
    use wharf_sys::seccomp::Filter;

    #[test]
    fn a_child_without_a_way_back_for_its_maker_is_killed_and_the_maker_told() {
        if !rustix::process::geteuid().is_root() {
            println!("a_child_without_a_way_back: skipped, it needs root");
            return;
        }
        let profile = Seccomp {
            default_action: SeccompAction::Allow,
            syscalls: vec![SeccompSyscall {
                names: vec!["setns".to_owned()],
                action: SeccompAction::Errno,
                ..SeccompSyscall::default()
            }],
            ..Seccomp::default()
        };
        let filter = Filter::from_bytes(&seccomp::compile(&profile).unwrap().code).unwrap();
        // The filter is the thread's, for ever.
        let lost = std::thread::spawn(move || {
            let own = std::fs::File::open("/proc/thread-self/ns/pid").unwrap();
            let mut born = None;
            let made = in_pid_namespace(PidNamespace::Link(own.as_fd()), || {
                filter.load(0).unwrap();
                let child = clone3(&How::default(), &mut (), |()| {
                    rustix::event::poll(&mut [], None).map_or(1, |_| 0)
                });
                let child = child.unwrap();
                born = Some(child.pid);
                Ok(child)
            });
            let error = made.unwrap_err();
            assert!(error.caller_must_end(), "{error}");
            let pid = i32::try_from(born.unwrap()).unwrap();
            let pid = rustix::process::Pid::from_raw(pid);
            let status = rustix::process::waitpid(pid, rustix::process::WaitOptions::NOHANG);
            assert_eq!(status.unwrap_err(), Errno::CHILD);
        });
        lost.join().unwrap();
        assert!(!StepError::plan("x").caller_must_end());
    }
}
