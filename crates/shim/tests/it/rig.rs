//! A zygote in a directory of its own, with pods whose containers share one busybox root.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tempfile::TempDir;
use wharf_plan::container::{ContainerPlan, DevicePlan, MountPlan, Namespace, Namespaces};
use wharf_plan::message::{
    Body, ContainerRef, Create, Exec, Exited, Failure, GetState, Hello, MakeShim, Message,
    ShimState, Shutdown, Signal, Welcome,
};
use wharf_plan::process::ProcessPlan;
use wharf_plan::{Channel, Fds, PROTOCOL};

/// How long a test waits for something that must come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether tests that need root can run; says so when not.
pub(crate) fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: needs root");
    }
    root
}

/// A directory with a static busybox, made once.
fn busybox_root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let root = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("busybox-root");
        if !root.join("bin/busybox").exists() {
            for dir in ["bin", "proc", "dev", "tmp"] {
                fs::create_dir_all(root.join(dir)).unwrap();
            }
            let fresh = root.join("bin/.busybox");
            fs::copy(busybox(), &fresh).unwrap();
            fs::rename(fresh, root.join("bin/busybox")).unwrap();
        }
        root
    })
}

fn busybox() -> PathBuf {
    let rig = std::env::var_os("RIG").map(|rig| Path::new(&rig).join("bundle/rootfs/bin/busybox"));
    if let Some(found) = rig.filter(|path| path.exists()) {
        return found;
    }
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("busybox-static");
    fs::create_dir_all(&dir).unwrap();
    let line = "apt-get download -q busybox-static && dpkg -x busybox-static*.deb .";
    let made = Command::new("sh")
        .arg("-c")
        .arg(line)
        .current_dir(&dir)
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "busybox-static: {made:?}; or set RIG"
    );
    ["bin/busybox", "usr/bin/busybox"]
        .map(|path| dir.join(path))
        .into_iter()
        .find(|path| path.exists())
        .expect("the package has a busybox")
}

fn listen(path: &Path) -> OwnedFd {
    let socket = seqpacket();
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&socket, 16).unwrap();
    socket
}

fn seqpacket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

/// Waits until `fd` is readable.
pub(crate) fn readable(fd: impl AsFd) -> bool {
    let timeout = Timespec::try_from(PATIENCE).unwrap();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) == Ok(1)
}

/// A connection that waits for replies and keeps events.
pub(crate) struct Client {
    channel: Channel,
    last_id: u64,
    replies: HashMap<u64, (Message, Fds)>,
    pub(crate) events: VecDeque<Body>,
}

impl Client {
    pub(crate) fn connect(path: &Path) -> Self {
        let socket = seqpacket();
        rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        Self {
            channel: Channel::new(socket),
            last_id: 0,
            replies: HashMap::new(),
            events: VecDeque::new(),
        }
    }

    pub(crate) fn channel(&self) -> &Channel {
        &self.channel
    }

    pub(crate) fn receive(&mut self) -> Option<(Message, Fds)> {
        assert!(
            readable(&self.channel),
            "nothing came; events: {:?}",
            self.events
        );
        self.channel.receive().ok()
    }

    /// Sends a request without waiting; gives its id.
    pub(crate) fn post(&mut self, body: Body, fds: &Fds) -> u64 {
        self.last_id += 1;
        let message = Message {
            id: self.last_id,
            fds: Vec::new(),
            body: Some(body),
        };
        self.channel.send(message, fds).unwrap();
        self.last_id
    }

    /// Waits for the reply to `id`; replies to others are kept, events too.
    pub(crate) fn reply(&mut self, id: u64) -> Result<(Body, Fds), Failure> {
        loop {
            if let Some((message, fds)) = self.replies.remove(&id) {
                return match message.body.expect("a body") {
                    Body::Failed(failure) => Err(failure),
                    body => Ok((body, fds)),
                };
            }
            let (message, fds) = self.receive().expect("a reply");
            match message.id {
                0 => self.events.extend(message.body),
                other => drop(self.replies.insert(other, (message, fds))),
            }
        }
    }

    pub(crate) fn request(&mut self, body: Body, fds: &Fds) -> Result<(Body, Fds), Failure> {
        let id = self.post(body, fds);
        self.reply(id)
    }

    /// A request without descriptors.
    pub(crate) fn ask(&mut self, body: Body) -> Result<Body, Failure> {
        self.request(body, &Fds::new()).map(|(body, _)| body)
    }

    pub(crate) fn hello(&mut self) -> (Welcome, Fds) {
        match self.request(Body::Hello(Hello { protocol: PROTOCOL }), &Fds::new()) {
            Ok((Body::Welcome(welcome), fds)) => (welcome, fds),
            other => panic!("{other:?}"),
        }
    }

    /// Waits for an event that `wanted` likes; others are kept.
    pub(crate) fn event<T>(&mut self, wanted: impl Fn(&Body) -> Option<T>) -> T {
        loop {
            if let Some(at) = self.events.iter().position(|e| wanted(e).is_some()) {
                let event = self.events.remove(at).unwrap();
                return wanted(&event).unwrap();
            }
            let (message, _) = self.receive().expect("an event");
            self.events.extend(message.body.filter(|_| message.id == 0));
        }
    }

    /// Waits for the end of a process.
    pub(crate) fn exited(&mut self, container: &str, exec: &str) -> Exited {
        self.event(|event| match event {
            Body::Exited(e) if e.container_id == container && e.exec_id == exec => Some(e.clone()),
            _ => None,
        })
    }

    pub(crate) fn state(&mut self) -> ShimState {
        match self.ask(Body::GetState(GetState {})) {
            Ok(Body::ShimState(state)) => state,
            other => panic!("{other:?}"),
        }
    }
}

/// A running zygote; ends with the value.
pub(crate) struct Zygote {
    dir: TempDir,
    pub(crate) pid: u32,
    pidfd: OwnedFd,
}

impl Zygote {
    pub(crate) fn start() -> Self {
        Self::start_in(&[])
    }

    /// Starts it in the cgroups of these `cgroup.procs` files.
    pub(crate) fn start_in(cgroups: &[OwnedFd]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = listen(&dir.path().join("zygote.sock"));
        let numbers: Vec<String> = (4..).take(cgroups.len()).map(|n| n.to_string()).collect();
        let mut args = vec![
            "a-name-that-leaves-room-for-titles",
            "zygote",
            "--socket-fd",
            "3",
        ];
        for number in &numbers {
            args.extend(["--cgroup-fd", number.as_str()]);
        }
        let args: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
        let program = env!("CARGO_BIN_EXE_wharf-shim").as_bytes();
        let mut program = wharf_sys::spawn::Program::new(program, &args, &[]).unwrap();
        program = program.fd(socket.as_fd(), 3);
        // A careless starter: nobody said what this one is for.
        let forgotten = File::open("/proc/version").unwrap();
        program = program.fd(forgotten.as_fd(), 40);
        for (procs, number) in cgroups.iter().zip(4..) {
            program = program.fd(procs.as_fd(), number);
        }
        let started = program.spawn().unwrap();
        Self {
            dir,
            pid: started.pid,
            pidfd: started.pidfd,
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.dir.path().join("zygote.sock"))
    }

    /// Makes the shim of a pod and says hello.
    pub(crate) fn pod(&self, request: MakeShim) -> Pod<'_> {
        let socket = self.dir.path().join(format!("{}.sock", request.pod_id));
        let mut fds = Fds::new();
        fds.push("listen", listen(&socket));
        let dir = tempfile::tempdir().unwrap();
        let mut append = File::options();
        let own_log = append
            .create(true)
            .append(true)
            .open(dir.path().join("shim.log"))
            .unwrap();
        fds.push("log", own_log.into());
        let made = self.client().request(Body::MakeShim(request), &fds);
        drop(fds);
        let Ok((Body::ShimMade(made), mut fds)) = made else {
            panic!("{made:?}");
        };
        let mut client = Client::connect(&socket);
        let (welcome, namespaces) = client.hello();
        assert_eq!(welcome.pid, made.pid);
        Pod {
            _zygote: self,
            dir,
            socket,
            pid: made.pid,
            pidfd: fds.take("pidfd").unwrap(),
            client,
            welcome,
            namespaces,
        }
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        // A test that failed has perhaps left it in any state.
        let _sent = wharf_sys::signal::send(&self.pidfd, 9);
        let id = rustix::process::WaitId::PidFd(self.pidfd.as_fd());
        let _status = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED);
    }
}

/// A pod's shim with a client that has said hello; ends with the value.
pub(crate) struct Pod<'z> {
    _zygote: &'z Zygote,
    pub(crate) dir: TempDir,
    pub(crate) socket: PathBuf,
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) client: Client,
    pub(crate) welcome: Welcome,
    pub(crate) namespaces: Fds,
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Shutdown would kill the containers; a shim that does not answer is killed itself.
            let channel = self.client.channel();
            let bodies = [
                Body::Hello(Hello { protocol: PROTOCOL }),
                Body::Shutdown(Shutdown {}),
            ];
            for body in bodies.map(Some) {
                let message = Message {
                    id: 99_999,
                    fds: Vec::new(),
                    body,
                };
                let _sent = channel.send(message, &Fds::new());
            }
        } else if !self.ended() {
            let mut last = Client::connect(&self.socket);
            last.hello();
            last.ask(Body::Shutdown(Shutdown {})).unwrap();
        }
        if !readable(&self.pidfd) {
            let _sent = wharf_sys::signal::send(&self.pidfd, 9);
        }
    }
}

impl Pod<'_> {
    fn ended(&self) -> bool {
        poll(
            &mut [PollFd::new(&self.pidfd, PollFlags::IN)],
            Some(&Timespec::default()),
        ) == Ok(1)
    }

    pub(crate) fn log_path(&self, id: &str) -> PathBuf {
        self.dir.path().join(format!("{id}.log"))
    }

    /// Opens a container's log for appending, as the daemon does.
    pub(crate) fn log_file(&self, id: &str) -> OwnedFd {
        let mut options = File::options();
        options.create(true).append(true);
        options.open(self.log_path(id)).unwrap().into()
    }

    /// A container's log without times: `stdout F text`.
    pub(crate) fn log(&self, id: &str) -> Vec<String> {
        let text = fs::read_to_string(self.log_path(id)).unwrap();
        text.lines().map(|line| line[31..].to_owned()).collect()
    }

    /// A detached copy of the containers' root.
    pub(crate) fn rootfs(&self) -> OwnedFd {
        wharf_runtime::launch::sources::rootfs(busybox_root()).unwrap()
    }

    /// Asks the shim again and again until a container's log has `text` at the end of a line.
    pub(crate) fn wait_for_log(&mut self, id: &str, text: &str) {
        let begin = Instant::now();
        while !self
            .log(id)
            .iter()
            .any(|line| line.trim_end().ends_with(text))
        {
            assert!(begin.elapsed() < PATIENCE, "{:?}", self.log(id));
            self.client.state();
        }
    }

    pub(crate) fn create(
        &mut self,
        create: Create,
        log: Option<OwnedFd>,
    ) -> Result<(u32, Fds), Failure> {
        let mut fds = Fds::new();
        fds.push("rootfs", self.rootfs());
        if let Some(log) = log {
            fds.push("log", log);
        }
        match self.client.request(Body::Create(create), &fds)? {
            (Body::Created(created), fds) => Ok((created.pid, fds)),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn start(&mut self, id: &str) -> Result<(), Failure> {
        self.client
            .ask(Body::Start(named(id)))
            .map(|body| assert!(matches!(body, Body::Done(_))))
    }

    /// Creates and starts a container that runs a shell script; gives its pid.
    pub(crate) fn run(&mut self, id: &str, script: &str) -> u32 {
        let log = self.log_file(id);
        let (pid, _) = self.create(create(plan(id, script)), Some(log)).unwrap();
        self.start(id).unwrap();
        pid
    }

    pub(crate) fn signal(&mut self, id: &str, signal: i32) -> Result<Body, Failure> {
        self.client.ask(Body::Signal(Signal {
            container_id: id.to_owned(),
            exec_id: String::new(),
            signal,
        }))
    }

    /// Runs a shell script in a container; gives its output, and waits for its end.
    pub(crate) fn exec(&mut self, id: &str, exec_id: &str, script: &str) -> (String, Exited) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut fds = Fds::new();
        fds.push("stderr", write.try_clone().unwrap());
        fds.push("stdout", write);
        self.client
            .request(Body::Exec(exec(id, exec_id, script)), &fds)
            .unwrap();
        drop(fds);
        let output = std::io::read_to_string(File::from(read)).unwrap();
        let exited = self.client.exited(id, exec_id);
        (output, exited)
    }

    pub(crate) fn delete(&mut self, id: &str) -> Result<Body, Failure> {
        self.client.ask(Body::Delete(named(id)))
    }
}

/// A pod with namespaces of its own; each container has its own PID namespace.
pub(crate) fn pod(id: &str) -> MakeShim {
    MakeShim {
        pod_id: id.to_owned(),
        namespaces: Some(Namespaces {
            network: Namespace::New.into(),
            ipc: Namespace::New.into(),
            uts: Namespace::New.into(),
            ..Namespaces::default()
        }),
        hostname: "pod-under-test".to_owned(),
        ..MakeShim::default()
    }
}

pub(crate) fn named(id: &str) -> ContainerRef {
    ContainerRef {
        container_id: id.to_owned(),
    }
}

pub(crate) fn create(plan: ContainerPlan) -> Create {
    Create {
        plan: Some(plan),
        stdin: false,
        stdin_once: false,
    }
}

pub(crate) fn process(script: &str) -> ProcessPlan {
    let words = ["/bin/busybox", "sh", "-c", script];
    ProcessPlan {
        args: words.iter().map(|word| word.as_bytes().to_vec()).collect(),
        env: vec![b"PATH=/bin".to_vec()],
        cwd: b"/".to_vec(),
        ..ProcessPlan::default()
    }
}

/// A container with a PID namespace of its own that runs a shell script (busybox's applets).
pub(crate) fn plan(id: &str, script: &str) -> ContainerPlan {
    let mount = |destination: &str, fs_type: &str| MountPlan {
        destination: destination.as_bytes().to_vec(),
        fs_type: fs_type.to_owned(),
        source_name: fs_type.to_owned(),
        ..MountPlan::default()
    };
    ContainerPlan {
        version: PROTOCOL,
        id: id.to_owned(),
        process: Some(process(script)),
        namespaces: Some(Namespaces {
            pid: Namespace::New.into(),
            ..Namespaces::default()
        }),
        rootfs_readonly: true,
        devices: [("/dev/null", 3), ("/dev/zero", 5)].map(device).into(),
        mounts: vec![
            mount("/proc", "proc"),
            mount("/dev", "tmpfs"),
            MountPlan {
                options: vec!["newinstance".to_owned(), "ptmxmode=0666".to_owned()],
                ..mount("/dev/pts", "devpts")
            },
            mount("/tmp", "tmpfs"),
        ],
        ..ContainerPlan::default()
    }
}

fn device((path, minor): (&str, u32)) -> DevicePlan {
    DevicePlan {
        path: path.as_bytes().to_vec(),
        mode: 0o020_666,
        major: 1,
        minor,
        uid: 0,
        gid: 0,
    }
}

pub(crate) fn exec(id: &str, exec_id: &str, script: &str) -> Exec {
    Exec {
        container_id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        process: Some(process(script)),
    }
}
