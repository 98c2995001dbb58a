//! What init and exec have in common: from "in the right namespaces" to `execve`.

use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::process::{Gid, Uid};
use rustix::termios::Winsize;
use wharf_plan::process::{CapabilitySets, Rlimit};
use wharf_sys::capability;
use wharf_sys::exec::Image;
use wharf_sys::process::Limit;
use wharf_sys::seccomp::Filter;

use super::mounts;
use super::path::{Make, Place, RootFd};
use super::proc::Proc;
use super::status::{Caution, During as _, Failed, Fault, On as _, Report, Step};

/// A process, ready.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) image: Image,
    pub(super) candidates: Vec<CString>,
    pub(super) name: CString,
    pub(super) cwd: CString,
    pub(super) cwd_place: Place,
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    pub(super) groups: Vec<Gid>,
    pub(super) umask: Mode,
    pub(super) capabilities: CapabilitySets,
    pub(super) no_new_privileges: bool,
    pub(super) rlimits: Vec<Rlimit>,
    pub(super) oom_score_adj: Option<i32>,
    /// A terminal is wanted, perhaps of a size.
    pub(super) terminal: Option<Option<Winsize>>,
    pub(super) filter: Option<Filter>,
    pub(super) filter_flags: u32,
    /// Files of procfs and what is written there.
    pub(super) labels: Vec<(CString, Vec<u8>)>,
    pub(super) io_priority: Option<i32>,
    pub(super) personality: Option<u64>,
    pub(super) new_keyring: bool,
    pub(super) needs_proc: bool,
    /// The first descriptor that the program does not inherit.
    pub(super) inherited: u32,
    pub(super) stdio: [OwnedFd; 3],
    pub(super) cgroup2: Option<OwnedFd>,
    pub(super) cgroup1: Vec<OwnedFd>,
}

/// What waits between everything being ready and `execve`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wait<'fd> {
    No,
    Socket,
    Listener(BorrowedFd<'fd>),
}

impl Process {
    /// The first steps of every child: nothing of the maker's is left but what the plan names.
    pub(super) fn detach(&self, keep: &[BorrowedFd<'_>]) -> Result<(), Failed> {
        wharf_sys::process::close_all_but(self.inherited, keep).during(Step::Descriptors)?;
        wharf_sys::signal::reset().during(Step::Signals)?;
        // Nobody in the container may look into what is still the maker's memory (CVE-2019-5736).
        wharf_sys::process::set_undumpable().during(Step::Descriptors)?;
        // Modes of what is made are those that are written here.
        rustix::process::umask(Mode::empty());
        // Directly one after the other: after a quiet moment the first move waits for all CPUs (RCU,
        // some 10 ms), those that follow at once do not.
        for procs in &self.cgroup1 {
            rustix::io::write(procs, b"0").during(Step::Cgroup)?;
        }
        // Its own session before it gets a terminal: only a leader can have one.
        rustix::process::setsid().during(Step::Session)?;
        Ok(())
    }

    /// A private procfs when some step needs one.
    pub(super) fn proc(&self) -> Result<Option<Proc>, Failed> {
        let proc = self.needs_proc.then(Proc::open);
        proc.transpose().during(Step::Proc)
    }

    /// From here on the process has its place; it becomes the program. Comes back only with a failure.
    pub(super) fn become_program(
        &self,
        proc: Option<Proc>,
        terminal: Option<OwnedFd>,
        report: &Report,
        wait: Wait<'_>,
    ) -> Failed {
        match self.run(proc, terminal, report, wait) {
            Err(failed) => failed,
            Ok(never) => match never {},
        }
    }

    fn run(
        &self,
        proc: Option<Proc>,
        terminal: Option<OwnedFd>,
        report: &Report,
        wait: Wait<'_>,
    ) -> Result<std::convert::Infallible, Failed> {
        // 1. As root: descriptors 0 to 2, score, keys, working directory, labels, limits.
        self.stdio(terminal.as_ref()).during(Step::Stdio)?;
        drop(terminal);
        self.oom_score_adj(proc.as_ref(), report)
            .during(Step::OomScoreAdj)?;
        self.keyring().during(Step::Keyring)?;
        self.execution_domain()?;
        let entered = self.enter_cwd().on(&self.cwd).during(Step::Cwd)?;
        for (file, label) in &self.labels {
            let proc = proc.as_ref().ok_or(Errno::BADF);
            let proc = proc.during(Step::SecurityLabel)?;
            let done = proc.write(file, label).on(file);
            done.during(Step::SecurityLabel)?;
        }
        drop(proc);
        // Last of these: a low limit of open files is the program's, not ours.
        for limit in &self.rlimits {
            set_limit(limit, report).during(Step::Rlimit)?;
        }
        // 2. A parked init holds nothing open, above all not its maker's stdio: who waits for the end
        //    of that would wait for ever. All of ours have O_CLOEXEC; the second call is for the one
        //    that is forgotten some day. Before any filter, which need not allow it.
        self.close(report, wait).during(Step::Descriptors)?;
        // 3. Without no_new_privs a filter needs CAP_SYS_ADMIN, so it comes before that is dropped.
        if !self.no_new_privileges {
            self.seccomp().during(Step::Seccomp)?;
        }
        // 4. The bounding set while CAP_SETPCAP is there, the user while CAP_SETUID is.
        self.bound().during(Step::Capabilities)?;
        self.user().during(Step::User)?;
        self.capabilities(report).during(Step::Capabilities)?;
        if !entered {
            // A directory that root may not enter (NFS), the user perhaps may.
            let done = rustix::process::chdir(self.cwd.as_c_str()).on(&self.cwd);
            done.during(Step::Cwd)?;
        }
        // A directory that is not below the root gives the host away (CVE-2024-21626).
        let checked = wharf_sys::process::check_cwd().on(&self.cwd);
        checked.during(Step::Cwd)?;
        rustix::process::umask(self.umask);
        if self.no_new_privileges {
            let done = rustix::thread::set_no_new_privs(true);
            done.during(Step::NoNewPrivileges)?;
        }
        // 5. The filter as late as can be: it sees the wait's end and execve, nothing else.
        let over = self.wait(report, wait)?;
        let failed = self.execute();
        if let Some(over) = over {
            over.failed(&failed);
        }
        Err(failed)
    }

    /// Closes all but what is inherited and what is waited on. Nothing that is closed here is owned by
    /// a value of the child any more: those of the plan are the maker's copies, never dropped.
    fn close(&self, report: &Report, wait: Wait<'_>) -> Result<(), Errno> {
        let report = report.as_fd();
        let mut keep = match wait {
            Wait::Listener(listener) => [report, listener],
            Wait::Socket | Wait::No => [report, report],
        };
        keep.sort_unstable_by_key(|fd| fd.as_raw_fd());
        let keep = match wait {
            Wait::Listener(_) => &keep[..],
            Wait::Socket | Wait::No => &keep[..1],
        };
        wharf_sys::process::close_all_but(self.inherited, keep)?;
        wharf_sys::process::cloexec_from(self.inherited)
    }

    fn execute(&self) -> Failed {
        if self.no_new_privileges
            && let Err(failed) = self.seccomp().during(Step::Seccomp)
        {
            return failed;
        }
        // As execvp(3): a directory of PATH without the program, or where it may not be executed, is
        // no failure while others are left.
        let mut worst = Errno::NOENT;
        for path in &self.candidates {
            match self.image.execute(path) {
                Errno::NOENT | Errno::NOTDIR => {}
                Errno::ACCESS => worst = Errno::ACCESS,
                other => {
                    worst = other;
                    break;
                }
            }
        }
        Failed {
            step: Step::Execve,
            fault: Fault::new(worst, self.name.to_bytes()),
        }
    }

    /// Parks; gives the connection that released it, when that is another than the status socket.
    fn wait(&self, report: &Report, wait: Wait<'_>) -> Result<Option<Report>, Failed> {
        match wait {
            Wait::No => Ok(None),
            Wait::Socket => {
                report.parked();
                if report.wait_for_go().during(Step::Park)? {
                    return Ok(None);
                }
                // The maker is gone: nobody would ever look after this container.
                wharf_sys::process::exit(1)
            }
            Wait::Listener(listener) => {
                self.find().on(&self.name).during(Step::Execve)?;
                report.parked();
                loop {
                    let accepted = rustix::io::retry_on_intr(|| {
                        rustix::net::accept_with(listener, SocketFlags::CLOEXEC)
                    });
                    let over = Report::over(accepted.during(Step::Park)?);
                    if over.wait_for_go() == Ok(true) {
                        return Ok(Some(over));
                    }
                }
            }
        }
    }

    /// Whether the program is there, for a maker that wants to know before the start.
    fn find(&self) -> Result<(), Errno> {
        let mut worst = Errno::NOENT;
        for path in &self.candidates {
            let path = path.as_c_str();
            let access = rustix::fs::Access::EXEC_OK;
            match rustix::fs::accessat(CWD, path, access, AtFlags::EACCESS) {
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(e) => worst = e,
                Ok(()) => {
                    let stat = rustix::fs::statat(CWD, path, AtFlags::empty())?;
                    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                        return Ok(());
                    }
                    worst = Errno::ACCESS;
                }
            }
        }
        Err(worst)
    }

    fn stdio(&self, terminal: Option<&OwnedFd>) -> Result<(), Errno> {
        let [stdin, stdout, stderr] = self.stdio.each_ref().map(|fd| terminal.unwrap_or(fd));
        rustix::stdio::dup2_stdin(stdin)?;
        rustix::stdio::dup2_stdout(stdout)?;
        rustix::stdio::dup2_stderr(stderr)?;
        if terminal.is_some() {
            rustix::process::ioctl_tiocsctty(stdin)?;
        }
        for fd in [stdin, stdout, stderr] {
            self.own(fd.as_fd())?;
        }
        Ok(())
    }

    /// A pipe or terminal becomes the user's, who may then open /dev/stdout again.
    fn own(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        let stat = rustix::fs::fstat(fd)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_null =
            kind == FileType::CharacterDevice && stat.st_rdev == rustix::fs::makedev(1, 3);
        if is_null || stat.st_uid == self.uid.as_raw() {
            return Ok(());
        }
        match rustix::fs::fchown(fd, Some(self.uid), None) {
            // A file on a read-only or foreign file system stays what it is; no reason to fail.
            Err(Errno::PERM | Errno::INVAL | Errno::ROFS | Errno::OPNOTSUPP) => Ok(()),
            other => other,
        }
    }

    fn oom_score_adj(&self, proc: Option<&Proc>, report: &Report) -> Result<(), Errno> {
        const FILE: &std::ffi::CStr = c"self/oom_score_adj";
        let (Some(wanted), Some(proc)) = (self.oom_score_adj, proc) else {
            return Ok(());
        };
        let mut text = Decimal::new(wanted);
        match proc.write(FILE, text.bytes()) {
            Err(Errno::ACCESS | Errno::PERM) => {}
            other => return other,
        }
        // Below what a process with CAP_SYS_RESOURCE has set for us: we stay where we are.
        let stays = proc.read_number(FILE)?;
        let wanted = i64::from(wanted).cast_unsigned();
        report.caution(Caution::OomScoreAdj, 0, wanted, stays.cast_unsigned());
        Ok(())
    }

    fn keyring(&self) -> Result<(), Errno> {
        if !self.new_keyring {
            return Ok(());
        }
        match wharf_sys::process::new_session_keyring() {
            // A kernel without keys, or a maker that a filter keeps from them: none can leak.
            Err(Errno::NOSYS | Errno::PERM) => Ok(()),
            other => other,
        }
    }

    fn execution_domain(&self) -> Result<(), Failed> {
        if let Some(persona) = self.personality {
            wharf_sys::process::set_personality(persona).during(Step::Personality)?;
        }
        if let Some(priority) = self.io_priority {
            wharf_sys::process::set_io_priority(priority).during(Step::IoPriority)?;
        }
        Ok(())
    }

    /// Makes the working directory beneath `image` when it is missing.
    pub(super) fn make_cwd(&self, image: RootFd<'_>) -> Result<(), Failed> {
        let made = match self.cwd_place.open(image) {
            Err(Errno::NOENT) => self.new_cwd(image).map(drop),
            // Whatever else is wrong with it is said by who enters it.
            _ => Ok(()),
        };
        made.on(&self.cwd).during(Step::Cwd)
    }

    fn new_cwd(&self, image: RootFd<'_>) -> Result<OwnedFd, Errno> {
        let made = self.cwd_place.open_or_make(image, Make::Directory)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&made, c".", flags, Mode::empty())?;
        rustix::fs::fchown(&dir, Some(self.uid), Some(self.gid))?;
        Ok(dir)
    }

    /// Enters the working directory, made when missing; `false` when only the user may enter it.
    fn enter_cwd(&self) -> Result<bool, Fault> {
        let root = mounts::open_root()?;
        let image = RootFd::image(root.as_fd());
        let dir = match self.cwd_place.open(image) {
            Err(Errno::NOENT) => self.new_cwd(image)?,
            Err(Errno::ACCESS) => return Ok(false),
            other => other?,
        };
        match rustix::process::fchdir(&dir) {
            Err(Errno::ACCESS) => Ok(false),
            other => other.map(|()| true).map_err(Fault::from),
        }
    }

    fn bound(&self) -> Result<(), Errno> {
        for number in 0..=capability::MAX {
            if self.capabilities.bounding & (1 << number) != 0 {
                continue;
            }
            match capability::drop_bounding(number) {
                // The first number that the kernel does not know: there are no more.
                Err(Errno::INVAL) => break,
                other => other?,
            }
        }
        Ok(())
    }

    fn user(&self) -> Result<(), Errno> {
        rustix::thread::set_thread_groups(&self.groups)?;
        rustix::thread::set_thread_res_gid(self.gid, self.gid, self.gid)?;
        // Leaving root would empty the permitted set before we have said what stays.
        rustix::thread::set_keep_capabilities(true)?;
        rustix::thread::set_thread_res_uid(self.uid, self.uid, self.uid)?;
        rustix::thread::set_keep_capabilities(false)
    }

    fn capabilities(&self, report: &Report) -> Result<(), Errno> {
        let own = capability::get()?.permitted;
        let wanted = &self.capabilities;
        let all = wanted.permitted | wanted.effective | wanted.inheritable;
        if all & !own != 0 {
            report.caution(Caution::Capabilities, 0, all & !own, 0);
        }
        // Exactly what is asked for: an inheritable set that nobody asked for gives programs with
        // file capabilities more than their container may have (CVE-2022-29162).
        let permitted = wanted.permitted & own;
        capability::set(capability::Sets {
            effective: wanted.effective & permitted,
            permitted,
            inheritable: wanted.inheritable & own,
        })?;
        capability::clear_ambient()?;
        let mut refused = 0;
        for number in (0..=capability::MAX).filter(|n| wanted.ambient & (1 << n) != 0) {
            match capability::raise_ambient(number) {
                Err(Errno::PERM | Errno::INVAL) => refused |= 1 << number,
                other => other?,
            }
        }
        if refused != 0 {
            report.caution(Caution::Ambient, 0, refused, 0);
        }
        Ok(())
    }

    fn seccomp(&self) -> Result<(), Errno> {
        match &self.filter {
            Some(filter) => filter.load(self.filter_flags),
            None => Ok(()),
        }
    }
}

fn set_limit(wanted: &Rlimit, report: &Report) -> Result<(), Errno> {
    let limit = Limit {
        soft: wanted.soft,
        hard: wanted.hard,
    };
    match wharf_sys::process::limit(wanted.resource, Some(limit)) {
        Err(Errno::PERM) => {}
        other => return other.map(drop),
    }
    let now = wharf_sys::process::limit(wanted.resource, None)?;
    let clamped = Limit {
        soft: wanted.soft.min(now.hard),
        hard: wanted.hard.min(now.hard),
    };
    wharf_sys::process::limit(wanted.resource, Some(clamped))?;
    let resource = i32::try_from(wanted.resource).unwrap_or(-1);
    report.caution(Caution::Rlimit, resource, wanted.hard, clamped.hard);
    Ok(())
}

/// A number as text, without allocating.
struct Decimal {
    text: [u8; 12],
    from: usize,
}

impl Decimal {
    fn new(number: i32) -> Self {
        let (mut text, mut from) = ([0; 12], 12);
        let mut rest = number.unsigned_abs();
        loop {
            from -= 1;
            text[from] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        if number < 0 {
            from -= 1;
            text[from] = b'-';
        }
        Self { text, from }
    }

    fn bytes(&mut self) -> &[u8] {
        &self.text[self.from..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_text() {
        for n in [0, 7, -1, -999, 1000, i32::MIN, i32::MAX] {
            assert_eq!(Decimal::new(n).bytes(), n.to_string().as_bytes());
        }
    }
}
