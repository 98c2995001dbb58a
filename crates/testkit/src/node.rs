//! A node: a CRI daemon with directories, configuration, cgroups and, where wanted, namespaces of
//! its own. It is wharf, or containerd where a peer is asked the same questions.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::cache;
use crate::containerd;
use crate::cri::Cri;
use crate::faults::{self, Faults};
use crate::machine::{self, Machine, Process};
use crate::place::Place;
use crate::wait;

/// How a node's names begin; then follow our process id and a number.
const PREFIX: &str = "wharf-test-";

/// How long a daemon may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long a daemon may take to end by itself.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Which daemon a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Ours.
    Wharf,
    /// containerd with the handlers `runc` and, where it is installed, `crun`.
    Containerd,
}

/// What a node shall be like.
#[derive(Debug)]
pub struct Builder {
    subject: Subject,
    place: Arc<Place>,
    programs: Option<PathBuf>,
    mirrors: Vec<(String, String)>,
    network: String,
    more: String,
    log: String,
    faults: bool,
    disk: Option<(PathBuf, String)>,
}

impl Builder {
    /// The daemon's fault points are on, where it was built with them: see [`Node::faults`].
    #[must_use]
    pub fn faults(mut self) -> Self {
        self.faults = true;
        self
    }

    /// The namespaces in which the daemon runs; by default the machine's.
    #[must_use]
    pub fn place(mut self, place: &Arc<Place>) -> Self {
        self.place = Arc::clone(place);
        self
    }

    /// The folder with `wharf` and `wharf-shim`; by default what this workspace built.
    #[must_use]
    pub fn programs(mut self, dir: impl Into<PathBuf>) -> Self {
        self.programs = Some(dir.into());
        self
    }

    /// Asks `url` for what `host` has; the host `_default` stands for all without an entry.
    #[must_use]
    pub fn mirror(mut self, host: &str, url: &str) -> Self {
        self.mirrors.push((host.into(), url.into()));
        self
    }

    /// `cri.network`; `none` by default here, and `default` is `cni` with `cri.default_network`. A
    /// containerd gets a pod network for `cni`.
    #[must_use]
    pub fn network(mut self, network: &str) -> Self {
        self.network = network.into();
        self
    }

    /// More lines at the end of wharf's configuration; they begin in `[cni]`, if the network is not `none`.
    #[must_use]
    pub fn config(mut self, lines: &str) -> Self {
        self.more = lines.into();
        self
    }

    /// `log.level`; `info` by default.
    #[must_use]
    pub fn log_level(mut self, level: &str) -> Self {
        self.log = level.into();
        self
    }

    /// Mounts the block device `device` with mount(8)'s `options` where the node keeps what survives a
    /// reboot, in its place, which must be one of its own. The place ends the mount.
    #[must_use]
    pub fn disk(mut self, device: &Path, options: &str) -> Self {
        self.disk = Some((device.into(), options.into()));
        self
    }

    /// Makes the directories, starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// The daemon ends or stays silent: the text has the end of its log.
    pub fn start(self) -> io::Result<Node> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        machine::sweep(PREFIX);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // The last letter ends the number: node 1 is not found in the paths of node 10.
        let name = format!("{PREFIX}{}-{number}x", std::process::id());
        let dir = crate::temporary_base().join(&name);
        let k8s_before = !machine::cgroups(containerd::CGROUP).is_empty();
        let mut node = Node {
            name,
            dir,
            setup: self,
            daemon: None,
            cri: None,
            k8s_before,
        };
        for dir in [node.dir.clone(), node.state()] {
            if dir.exists() {
                fs::remove_dir_all(dir)?; // of a process that had our id
            }
        }
        fs::create_dir(&node.dir)?;
        node.configure()?;
        if let Some((device, options)) = node.setup.disk.clone() {
            node.mount_root(&device, &options)?;
        }
        node.run()?;
        Ok(node)
    }
}

/// A running node. When dropped its pods are removed and everything of it goes.
#[derive(Debug)]
pub struct Node {
    name: String,
    dir: PathBuf,
    setup: Builder,
    daemon: Option<Child>,
    cri: Option<Cri>,
    k8s_before: bool,
}

impl Node {
    /// A node of ours, to be described further.
    pub fn wharf() -> Builder {
        Self::of(Subject::Wharf)
    }

    /// A node of this daemon.
    pub fn of(subject: Subject) -> Builder {
        Builder {
            subject,
            place: Place::host(),
            programs: None,
            mirrors: Vec::new(),
            network: "none".into(),
            more: String::new(),
            log: "info".into(),
            faults: false,
            disk: None,
        }
    }

    /// Its fault points.
    pub fn faults(&self) -> Faults {
        Faults::in_dir(self.dir.join("faults"))
    }

    /// Where it looks for network configurations.
    pub fn net_d(&self) -> PathBuf {
        self.dir.join("net.d")
    }

    /// Where it looks for the programs of network plugins.
    pub fn cni_bin(&self) -> PathBuf {
        self.dir.join("cni-bin")
    }

    /// The word that is in all its paths and cgroups.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory that has all others.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What survives a reboot.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// What ends with the boot.
    pub fn state(&self) -> PathBuf {
        match self.setup.subject {
            // Sockets of pods lie below, and the path of a socket has 107 bytes.
            Subject::Wharf => Path::new("/run").join(&self.name),
            Subject::Containerd => self.dir.join("state"),
        }
    }

    /// Mounts another block device over [`Node::root`], as [`Builder::disk`] does.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn mount_root(&self, device: &Path, options: &str) -> io::Result<()> {
        self.in_place(
            "/bin/mount",
            &["-o".as_ref(), options.as_ref(), device.as_ref()],
        )
    }

    /// Unmounts what was mounted last over [`Node::root`]. The daemon must not run.
    ///
    /// # Errors
    /// It is not mounted, or somebody uses it.
    pub fn unmount_root(&self) -> io::Result<()> {
        self.in_place("/bin/umount", &[])
    }

    fn in_place(&self, program: &str, arguments: &[&OsStr]) -> io::Result<()> {
        let mut command = self.setup.place.command(program);
        let out = command.args(arguments).arg(self.root()).output()?;
        if out.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&out.stderr);
        Err(io::Error::other(format!("{program}: {}", text.trim())))
    }

    /// What survives a reboot, as this process can reach it where it is mounted in the node's place.
    pub fn root_from_here(&self) -> PathBuf {
        let root = self.root();
        let inside = root.strip_prefix("/").unwrap_or(&root);
        self.setup.place.root().join(inside)
    }

    /// Where pods may have their logs.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// The CRI socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("cri.sock")
    }

    /// The folder of `HOST/hosts.toml`.
    pub fn certs_d(&self) -> PathBuf {
        self.dir.join("certs.d")
    }

    /// A cgroup below the node's for pods of this test: what goes into `cgroup_parent`.
    pub fn cgroup_parent(&self, name: &str) -> String {
        format!("/{}/{name}", self.name)
    }

    /// The namespaces in which it runs.
    pub fn place(&self) -> &Arc<Place> {
        &self.setup.place
    }

    /// A client of its CRI socket.
    ///
    /// # Panics
    /// The daemon was killed and not started again.
    pub fn cri(&self) -> &Cri {
        self.cri.as_ref().expect("the daemon runs")
    }

    /// The daemon's process id.
    ///
    /// # Panics
    /// The daemon was killed and not started again.
    pub fn pid(&self) -> i32 {
        let child = self.daemon.as_ref().expect("the daemon runs");
        i32::try_from(child.id()).expect("process ids are positive")
    }

    /// What the daemon wrote so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("daemon.log")).unwrap_or_default()
    }

    /// Its shims, and what else of ours lives outside the daemon; no containers.
    pub fn shims(&self) -> Vec<Process> {
        let prefix = match self.setup.subject {
            Subject::Wharf => "wharf",
            Subject::Containerd => "containerd-shim",
        };
        let daemon = self.daemon.as_ref().map(Child::id);
        let mut found = machine::processes(&self.name);
        found.retain(|p| p.name.starts_with(prefix) && u32::try_from(p.pid).ok() != daemon);
        found
    }

    /// What of this node is on the machine, its files included.
    pub fn look(&self) -> Machine {
        let (root, state) = (self.root(), self.state());
        let names = self.setup.place.netns_names();
        let dirs: Vec<&Path> = [&root, &state]
            .into_iter()
            .chain(&names)
            .map(PathBuf::as_path)
            .collect();
        Machine::look(&self.name, &dirs)
    }

    /// A command of the program `wharf` that gets this node's configuration.
    pub fn wharf_command(&self, words: &[&str]) -> Command {
        let mut command = self.setup.place.command(self.program("wharf"));
        command.args(words).arg("--config");
        command.arg(self.dir.join("config.toml"));
        command
    }

    /// Kills the daemon with SIGKILL, nothing else.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&mut self) -> io::Result<()> {
        self.cri = None;
        if let Some(mut child) = self.daemon.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Waits until the daemon has ended by itself; `None` when it goes on.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn ended(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let Some(child) = self.daemon.as_mut() else {
            return Ok(None);
        };
        let mut end = None;
        wait::until(limit, || {
            end = child.try_wait()?;
            Ok(end.is_some())
        })?;
        if end.is_some() {
            self.cri = None;
            self.daemon = None;
        }
        Ok(end)
    }

    /// Asks the daemon to end (SIGTERM) and waits.
    ///
    /// # Errors
    /// It does not end in time; it is killed then.
    pub fn terminate(&mut self) -> io::Result<()> {
        self.cri = None;
        let Some(mut child) = self.daemon.take() else {
            return Ok(());
        };
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _it_may_have_ended = kill_process(pid, Signal::TERM);
        }
        if wait::until(END_LIMIT, || Ok(child.try_wait()?.is_some()))? {
            return Ok(());
        }
        child.kill()?;
        child.wait()?;
        Err(io::Error::other("the daemon did not end on SIGTERM"))
    }

    /// Starts the daemon again, after [`Node::kill`] or [`Node::terminate`].
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn run(&mut self) -> io::Result<()> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("daemon.log"))?;
        let mut command = self.command()?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.daemon = Some(command.spawn()?);
        let socket = self.socket();
        let mut last = String::from("it does not listen");
        let Some(child) = self.daemon.as_mut() else {
            return Ok(());
        };
        let mut cri = None;
        wait::closely(START_LIMIT, || {
            if let Some(status) = child.try_wait()? {
                last = format!("it ended: {status}");
                return Ok(true);
            }
            match Cri::connect(&socket) {
                // Version answers before the daemon has found its pods again.
                Ok(client) => match client.version().and_then(|_| client.pods()) {
                    Ok(_) => cri = Some(client),
                    Err(status) => last = status.to_string(),
                },
                Err(e) => last = e.to_string(),
            }
            Ok(cri.is_some())
        })?;
        self.cri = cri;
        if self.cri.is_some() {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "{:?}: {last}\n{}",
            self.setup.subject,
            self.log_end()
        )))
    }

    /// Kills the daemon and starts it again.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill()?;
        self.run()
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn command(&self) -> io::Result<Command> {
        match self.setup.subject {
            Subject::Wharf => {
                let mut command = self.setup.place.command(self.program("wharf"));
                command
                    .args(["daemon", "--config"])
                    .arg(self.dir.join("config.toml"));
                if self.setup.faults {
                    command.env(faults::VARIABLE, self.faults().dir());
                }
                Ok(command)
            }
            Subject::Containerd => containerd::command(&self.setup.place, &self.dir),
        }
    }

    fn program(&self, name: &str) -> PathBuf {
        match &self.setup.programs {
            Some(dir) => dir.join(name),
            None => cache::program_under_test(name),
        }
    }

    fn configure(&self) -> io::Result<()> {
        let setup = &self.setup;
        for dir in [self.root(), self.state(), self.logs(), self.certs_d()] {
            fs::create_dir(dir)?;
        }
        fs::create_dir(self.faults().dir())?;
        for (host, url) in &setup.mirrors {
            let dir = self.certs_d().join(host);
            fs::create_dir_all(&dir)?;
            let hosts = format!("[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
            fs::write(dir.join("hosts.toml"), hosts)?;
        }
        let text = match setup.subject {
            Subject::Wharf => self.wharf_config(),
            Subject::Containerd => {
                if setup.network == "cni" {
                    containerd::network(&self.dir)?;
                }
                containerd::config(&self.dir)
            }
        };
        fs::write(self.dir.join("config.toml"), text)
    }

    fn wharf_config(&self) -> String {
        let (setup, dir) = (&self.setup, self.dir.display());
        let mut text = format!(
            "root = \"{dir}/root\"\nstate = \"{}\"\n",
            self.state().display()
        );
        let socket = self.socket().display().to_string();
        let certs = self.certs_d().display().to_string();
        let shim = self.program("wharf-shim").display().to_string();
        let network = match setup.network.as_str() {
            "default" => "cni",
            other => other,
        };
        let own = setup.network == "default";
        for (name, lines) in [
            (
                "cgroup",
                &[("parent", self.name.as_str()), ("driver", "cgroupfs")][..],
            ),
            ("cri", &[("socket", &socket), ("network", network)]),
            ("registry", &[("certs_d", &certs)]),
            ("shim", &[("path", &shim)]),
            ("log", &[("level", &setup.log)]),
        ] {
            let _into_a_string = writeln!(text, "\n[{name}]");
            for (key, value) in lines {
                let _into_a_string = writeln!(text, "{key} = \"{value}\"");
            }
            if *name == *"cri" && own {
                text.push_str("default_network = true\n");
            }
        }
        if setup.network != "none" {
            let (conf, bin) = (self.net_d(), self.cni_bin());
            let _into_a_string = writeln!(
                text,
                "\n[cni]\nconfig_dir = \"{}\"\nbin_dirs = [\"{}\"]",
                conf.display(),
                bin.display()
            );
        }
        text.push_str(&setup.more);
        text
    }

    /// Removes everything of this node; says what would not go.
    fn clean_up(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        let mut note = |what: &str, result: io::Result<()>| {
            if let Err(e) = result {
                left.push(format!("{what}: {e}"));
            }
        };
        if let Some(cri) = &self.cri {
            note("pods", cri.remove_all_pods().map_err(io::Error::other));
        }
        note("daemon", self.terminate());
        note("processes", machine::end_processes(&self.name));
        for point in machine::mounts(&self.name) {
            let flags = rustix::mount::UnmountFlags::DETACH;
            note(
                "mount",
                rustix::mount::unmount(&point, flags).map_err(Into::into),
            );
        }
        note("cgroups", machine::remove_cgroups(&self.name));
        if self.setup.subject == Subject::Containerd && !self.k8s_before {
            note("cgroups", machine::remove_cgroups(containerd::CGROUP));
        }
        if std::env::var_os("WHARF_TESTKIT_KEEP").is_none() {
            note("directory", fs::remove_dir_all(&self.dir));
            if self.state().exists() {
                note("directory", fs::remove_dir_all(self.state()));
            }
        }
        left
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- the end of the log of {}:\n{}\n---",
                self.name,
                self.log_end()
            );
        }
        let left = self.clean_up();
        for line in &left {
            eprintln!("testkit: {}: {line}", self.name);
        }
    }
}
