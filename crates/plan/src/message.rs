//! Requests, replies and events between daemon, zygote and shim.
//!
//! ```text
//! daemon ──MakeShim──► zygote ──clone3──► shim          (zygote's socket, made by the daemon)
//! daemon ──Hello, Create, Start, Exec, …──► shim        (the pod's own listening socket)
//! daemon ◄──────replies by id, events─────── shim
//! ```
//!
//! A request carries an `id`; its reply carries the same. Events have id 0. A connection begins with
//! `Hello`; a shim serves several connections and sends events to each that said `Hello`.

use crate::container::{ContainerPlan, Namespaces, SysctlPlan};
use crate::process::{ConsoleSize, ProcessPlan};

/// A message in either direction.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Message {
    /// Matches a reply to its request; 0 for events.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What the descriptors beside the message are, in their order: see [`crate::fds`].
    #[prost(string, repeated, tag = "2")]
    pub fds: Vec<String>,
    /// The message itself; `None` when this build does not know its kind.
    #[prost(
        oneof = "Body",
        tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 40, 41, 42, 43, 44, 45, 46, 60, 61, 62"
    )]
    pub body: Option<Body>,
}

/// Every kind of message. Requests from 10, replies from 40, events from 60.
#[derive(Clone, PartialEq, prost::Oneof)]
#[expect(
    clippy::large_enum_variant,
    reason = "one message lives at a time, briefly: a box would be one more allocation on the hot path"
)]
pub enum Body {
    /// Opens a connection. Reply: [`Welcome`].
    #[prost(message, tag = "10")]
    Hello(Hello),
    /// To the zygote: make a shim. Descriptor `listen`: the shim's listening socket. Optionally
    /// `log`: where the shim writes its own JSON lines. Reply: [`ShimMade`] with `pidfd`.
    #[prost(message, tag = "11")]
    MakeShim(MakeShim),
    /// Make a container up to the point where only `execve` is left. Descriptors: those of
    /// [`ContainerPlan`], and `log` when its output is logged. Reply: [`Created`] with `pidfd`.
    #[prost(message, tag = "12")]
    Create(Create),
    /// Let a created container execute its program. Reply: [`Done`], or the error of `execve`.
    #[prost(message, tag = "13")]
    Start(ContainerRef),
    /// Send a signal. A container that has exited is no error. Reply: [`Done`].
    #[prost(message, tag = "14")]
    Signal(Signal),
    /// Run another process in a running container. Descriptors: `stdin`, `stdout`, `stderr` (each
    /// optional, else /dev/null) and `cgroup2`/`cgroup1` when it has a leaf of its own.
    /// Reply: [`Created`] with `pidfd` (and `terminal` when one was wanted), or an error; then the event [`Exited`].
    #[prost(message, tag = "15")]
    Exec(Exec),
    /// Forget an exited container and close what is held for it. Reply: [`Done`].
    #[prost(message, tag = "16")]
    Delete(ContainerRef),
    /// Continue the log in the file `log` (a descriptor). Whole lines only; none is lost or doubled.
    /// Reply: [`Done`], once the next line will go to the new file.
    #[prost(message, tag = "17")]
    ReopenLog(ContainerRef),
    /// Set a terminal's size. Reply: [`Done`].
    #[prost(message, tag = "18")]
    Resize(Resize),
    /// Everything that the shim holds. Reply: [`ShimState`].
    #[prost(message, tag = "19")]
    GetState(GetState),
    /// Kill what is left and end the shim. Reply: [`Done`], or a [`Failure`] that names the processes
    /// that did not end; either way the shim ends then and the connection closes. A [`Failure`] before
    /// anything was waited for (a process could not be signalled) leaves the shim as it is.
    #[prost(message, tag = "20")]
    Shutdown(Shutdown),
    /// Close the container's stdin. Reply: [`Done`].
    #[prost(message, tag = "21")]
    CloseStdin(ContainerRef),
    /// The reserved place of attach (streaming comes later).
    #[prost(message, tag = "22")]
    Attach(ContainerRef),
    /// Open a socket in the pod's network namespace; it never blocks. Reply: [`Done`] with the descriptor
    /// `socket`, at once: a connection may still be under way. A shim that is too old to know it answers
    /// with a failure of kind `Invalid`.
    #[prost(message, tag = "24")]
    OpenSocket(OpenSocket),

    /// To the zygote: how the processes ended that were left to it. Reply: [`Orphans`].
    #[prost(message, tag = "23")]
    GetOrphans(GetState),

    /// The request was carried out.
    #[prost(message, tag = "40")]
    Done(Done),
    /// The request failed.
    #[prost(message, tag = "41")]
    Failed(Failure),
    /// Reply to `Hello`. Descriptors: `ns.net`, `ns.ipc`, `ns.uts`, `ns.user`, `ns.pid`, `ns.mnt`
    /// (those that are the pod's own), `netlink` (an `AF_NETLINK` route socket opened inside).
    #[prost(message, tag = "42")]
    Welcome(Welcome),
    /// Reply to `MakeShim`.
    #[prost(message, tag = "43")]
    ShimMade(ShimMade),
    /// Reply to `Create` and `Exec`.
    #[prost(message, tag = "44")]
    Created(Created),
    /// Reply to `GetState`.
    #[prost(message, tag = "45")]
    ShimState(ShimState),

    /// Reply to `GetOrphans`.
    #[prost(message, tag = "46")]
    Orphans(Orphans),

    /// A container's init, or an exec, has ended, and its output was read to the end (or the drain
    /// time passed).
    #[prost(message, tag = "60")]
    Exited(Exited),
    /// Something a person should know: clamped limits, log gaps.
    #[prost(message, tag = "61")]
    Warning(Warning),
    /// The pod's shared PID namespace ended: its init died.
    #[prost(message, tag = "62")]
    SandboxEnded(Done),
}

/// Opens a connection.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    /// [`crate::PROTOCOL`] of the caller.
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
}

/// Answers [`Hello`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Welcome {
    /// [`crate::PROTOCOL`] of the shim (or zygote).
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// Version text of the binary.
    #[prost(string, tag = "2")]
    pub version: String,
    /// Process id, in the host's PID namespace.
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    /// The pod, for a shim.
    #[prost(string, tag = "4")]
    pub pod_id: String,
    /// PID 1 of the pod's shared PID namespace, in the host's; 0 without one.
    #[prost(uint32, tag = "5")]
    pub sandbox_pid: u32,
    /// Why the pod's namespaces could not be made: the shim ends after saying so.
    #[prost(message, optional, tag = "6")]
    pub failure: Option<Failure>,
}

/// The pod that a shim holds.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MakeShim {
    /// The pod's id.
    #[prost(string, tag = "1")]
    pub pod_id: String,
    /// Network, IPC, UTS: `New` or `Inherit` (the host's); pid: `New` makes the shared PID namespace,
    /// anything else leaves it to each container; cgroup and user are not used yet.
    #[prost(message, optional, tag = "2")]
    pub namespaces: Option<Namespaces>,
    /// Host name of a new UTS namespace.
    #[prost(string, tag = "3")]
    pub hostname: String,
    /// Kernel parameters of the new namespaces.
    #[prost(message, repeated, tag = "4")]
    pub sysctls: Vec<SysctlPlan>,
    /// `oom_score_adj` of the shim itself.
    #[prost(int32, optional, tag = "5")]
    pub oom_score_adj: Option<i32>,
}

/// A shim was made.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShimMade {
    /// Its process id.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

/// Make a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Create {
    /// What to make.
    #[prost(message, optional, tag = "1")]
    pub plan: Option<ContainerPlan>,
    /// The container's stdin stays open (a pipe held by the shim) instead of /dev/null.
    #[prost(bool, tag = "2")]
    pub stdin: bool,
    /// stdin is closed after the first attach ends.
    #[prost(bool, tag = "3")]
    pub stdin_once: bool,
}

/// Names a container of the pod.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerRef {
    /// Container id.
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// Send a signal.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Signal {
    /// Container id.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The exec, when it is not the init that is meant.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// Signal number.
    #[prost(int32, tag = "3")]
    pub signal: i32,
}

/// Run another process in a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exec {
    /// Container id.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Chosen by the caller, unique in the container while the exec lives.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// What to run.
    #[prost(message, optional, tag = "3")]
    pub process: Option<ProcessPlan>,
}

/// Set a terminal's size.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Resize {
    /// Container id.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The exec; the init when empty.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// The size.
    #[prost(message, optional, tag = "3")]
    pub size: Option<ConsoleSize>,
}

/// Open a socket in the pod's network namespace.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OpenSocket {
    /// What kind.
    #[prost(enumeration = "SocketKind", tag = "1")]
    pub kind: i32,
    /// Its own address. One of `bind` and `connect` decides the family; they agree.
    #[prost(message, optional, tag = "2")]
    pub bind: Option<SocketEnd>,
    /// Where it connects.
    #[prost(message, optional, tag = "3")]
    pub connect: Option<SocketEnd>,
    /// A stream socket listens, with this many connections that wait; 0: it does not listen.
    #[prost(uint32, tag = "4")]
    pub backlog: u32,
    /// `SO_REUSEADDR`.
    #[prost(bool, tag = "5")]
    pub reuse_address: bool,
}

/// What kind of socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum SocketKind {
    /// Not said: refused.
    Unspecified = 0,
    /// TCP.
    Stream = 1,
    /// UDP.
    Datagram = 2,
    /// Netlink of netfilter, for the namespace's own rules. It has no addresses.
    Netfilter = 3,
}

/// One end of a socket.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SocketEnd {
    /// 4 bytes of IPv4 or 16 of IPv6, in the order of the network.
    #[prost(bytes = "vec", tag = "1")]
    pub address: Vec<u8>,
    /// Port; 0 lets the kernel choose.
    #[prost(uint32, tag = "2")]
    pub port: u32,
}

/// Ask for everything.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct GetState {}

/// End the shim.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Shutdown {}

/// Carried out.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Done {}

/// A process was made.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Created {
    /// Its process id, in the shim's PID namespace (the host's).
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

/// Why a request failed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Failure {
    /// The step, in the words of the log: "mount", "execve".
    #[prost(string, tag = "1")]
    pub step: String,
    /// The object: a path, a name.
    #[prost(string, tag = "2")]
    pub object: String,
    /// The kernel's answer; 0 when the kernel was not asked.
    #[prost(int32, tag = "3")]
    pub errno: i32,
    /// What class of failure it is.
    #[prost(enumeration = "FailureKind", tag = "4")]
    pub kind: i32,
}

/// What the daemon can make of a [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum FailureKind {
    /// A step of the kernel's failed.
    Step = 0,
    /// No such container or exec.
    NotFound = 1,
    /// Not in a state that allows it (exists, not created, has exited).
    Conflict = 2,
    /// The message cannot be understood or breaks a limit.
    Invalid = 3,
    /// A request of a kind that this release does not know.
    Unsupported = 4,
}

/// Everything a shim holds.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShimState {
    /// Its containers.
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<ContainerState>,
    /// Its execs: those that live, and the last of those that have ended, until their container is
    /// deleted.
    #[prost(message, repeated, tag = "2")]
    pub execs: Vec<ExecState>,
}

/// An exec in a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecState {
    /// Container id.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The exec.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// Process id.
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    /// How it ended, if it has.
    #[prost(message, optional, tag = "4")]
    pub exited: Option<Exited>,
}

/// A container in a shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerState {
    /// Container id.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Process id of its init.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    /// `execve` was reached.
    #[prost(bool, tag = "3")]
    pub started: bool,
    /// How it ended, if it has.
    #[prost(message, optional, tag = "4")]
    pub exited: Option<Exited>,
}

/// A process has ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exited {
    /// Container id.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The exec; empty for the init.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// Exit status, or 128 + signal.
    #[prost(int32, tag = "3")]
    pub code: i32,
    /// The signal that ended it; 0 when it exited by itself.
    #[prost(int32, tag = "4")]
    pub signal: i32,
    /// When, in nanoseconds since 1970.
    #[prost(int64, tag = "5")]
    pub at_ns: i64,
}

/// The last processes that a zygote has waited for: shims, and what shims that were killed left.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Orphans {
    /// In the order of their ends.
    #[prost(message, repeated, tag = "1")]
    pub processes: Vec<Orphan>,
}

/// How one of them ended.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Orphan {
    /// Its process id, in the zygote's PID namespace (the host's).
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// When it began, in ticks since the boot (proc_pid_stat(5), field 22): another process may have
    /// its id by now.
    #[prost(uint64, tag = "2")]
    pub started: u64,
    /// Exit status, or 128 + signal.
    #[prost(int32, tag = "3")]
    pub code: i32,
    /// The signal that ended it; 0 when it exited by itself.
    #[prost(int32, tag = "4")]
    pub signal: i32,
    /// When, in nanoseconds since 1970.
    #[prost(int64, tag = "5")]
    pub at_ns: i64,
}

/// Something a person should know.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Warning {
    /// Container id; empty for the pod.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// In words.
    #[prost(string, tag = "2")]
    pub text: String,
}
