//! The story of a container's init, from `clone3` to `execve`. The order is the design.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::thread::{ThreadNameSpaceType, move_into_link_name_space};
use wharf_plan::Fds;
use wharf_plan::container::ContainerPlan;
use wharf_sys::clone::{self, How, clone3};

use super::path::{Place, RootFd};
use super::prepare::{self, Init};
use super::process::Wait;
use super::status::{During as _, Failed, Fault, On as _, Pending, Report, Step, StepError};
use super::{Parent, Park, Stdio, devices, mounts, terminal};

/// See [`super::create`].
pub(super) fn create(
    plan: &ContainerPlan,
    fds: Fds,
    stdio: Stdio,
    park: Park,
    parent: Parent,
) -> Result<Pending, StepError> {
    let init = prepare::init(plan, fds, stdio, park)?;
    let console = Place::new(b"/dev/console").map_err(|_nul| StepError::plan("console"))?;
    let (report, maker) =
        Report::pair().map_err(|e| StepError::new(Step::Prepare, "socketpair", e))?;
    let keep = prepare::keep(&init.process, init.descriptors().chain([report.as_fd()]));
    let how = How {
        namespaces: init.new,
        cgroup: init.process.cgroup2.as_ref().map(|fd| fd.as_fd()),
        sibling: parent == Parent::Callers,
    };
    let mut child = Child {
        init: &init,
        report: &report,
        keep: &keep,
        console: &console,
    };
    let made = match &init.pid_namespace {
        Some(namespace) => in_pid_namespace(PidNamespace::Link(namespace.as_fd()), || {
            clone3(&how, &mut child, Child::main)
        })?,
        None => clone3(&how, &mut child, Child::main),
    };
    let made = made.map_err(|e| StepError::new(Step::Clone, plan.id.as_str(), e))?;
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

/// Runs `make` while children of this thread are born in `namespace`.
pub(super) fn in_pid_namespace<T>(
    namespace: PidNamespace<'_>,
    make: impl FnOnce() -> T,
) -> Result<T, StepError> {
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
    join(own.as_fd(), rustix::thread::LinkNameSpaceType::ProcessID).map_err(failed)?;
    Ok(made)
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
    fn story(&self) -> Result<std::convert::Infallible, Failed> {
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

    fn mount_all(&self, image: RootFd<'_>) -> Result<(), Failed> {
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
        let change = wharf_sys::mount::Change {
            set: wharf_sys::mount::RDONLY,
            ..wharf_sys::mount::Change::default()
        };
        wharf_sys::mount::set_attributes(&self.init.rootfs, &change, false)
    }
}
