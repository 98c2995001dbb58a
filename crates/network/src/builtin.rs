//! A plugin that runs in-process, and a call of one: what the specification passes by environment and
//! standard input, with descriptors instead of paths.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::CniError;
use crate::result::CniResult;
use crate::version::CniVersion;

/// A plugin that runs in-process. It is called on threads that may block, never twice at the same time
/// for one container; calls for different containers come in parallel.
///
/// `del` has to succeed when there is nothing (any more), any number of times, without a namespace and
/// without a previous result. `add` repeated for the same container and interface after an `add` that
/// nobody was answered gives the same.
pub trait Builtin: Send + Sync + fmt::Debug {
    /// The `type` in configurations.
    fn name(&self) -> &'static str;

    /// Attaches: gives the whole result, which includes the previous one's if it is kept.
    ///
    /// # Errors
    ///
    /// What failed; what was done so far is taken back by a `del` that follows.
    fn add(&self, call: &Invocation<'_>) -> Result<CniResult, CniError>;

    /// Detaches.
    ///
    /// # Errors
    ///
    /// What could not be taken down; it is tried again.
    fn del(&self, call: &Invocation<'_>) -> Result<(), CniError>;

    /// Whether what `add` made is still there.
    ///
    /// # Errors
    ///
    /// What is missing or different.
    fn check(&self, call: &Invocation<'_>) -> Result<(), CniError>;

    /// Whether pods can be attached by this configuration. `plugin` is the object of the file.
    ///
    /// # Errors
    ///
    /// The configuration is wrong (which field, and why), or something is missing on this machine.
    fn status(&self, network: &str, plugin: &Map<String, Value>) -> Result<(), CniError>;

    /// Takes down what belongs to this network and to none of the `valid` attachments.
    ///
    /// # Errors
    ///
    /// What could not be taken down; the next one tries again.
    fn gc(
        &self,
        network: &str,
        plugin: &Map<String, Value>,
        valid: &[Attachment],
    ) -> Result<(), CniError>;

    /// Called once before anything else, with every call that made what is attached now: what lives in
    /// this process (addresses in use, reserved ports) and what the kernel has (rules) is made to say
    /// the same again. Calls have no namespace.
    ///
    /// # Errors
    ///
    /// What could not be restored; the rest was.
    fn restore(&self, attached: &[Invocation<'_>]) -> Result<(), CniError> {
        let _nothing_to_restore = attached;
        Ok(())
    }
}

/// An attachment, to the specification. Source: CNI 1.1, "GC".
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The container.
    pub container_id: String,
    /// Its interface.
    pub ifname: String,
}

/// One call.
#[derive(Clone, Copy)]
pub struct Invocation<'a> {
    /// Name of the network.
    pub network: &'a str,
    /// Version of the network's configuration.
    pub version: CniVersion,
    /// The plugin's object in the configuration, as it was written.
    pub plugin: &'a Map<String, Value>,
    /// What the plugins before this one made (ADD), or what the chain made (DEL, CHECK).
    pub prev_result: Option<&'a CniResult>,
    /// What the runtime says of this pod: only keys of which the plugin's `capabilities` are true.
    pub runtime_config: &'a Map<String, Value>,
    /// The container (of Kubernetes: the pod).
    pub container_id: &'a str,
    /// Name of the interface in the pod.
    pub ifname: &'a str,
    /// The pod's network namespace; `None` when it is gone.
    pub netns: Option<Netns<'a>>,
    /// `CNI_ARGS`, in order.
    pub args: &'a [(String, String)],
    /// Calls other plugins, built-in or not.
    pub delegate: &'a dyn Delegate,
}

impl Invocation<'_> {
    /// The value of a `CNI_ARGS` key.
    pub fn arg(&self, key: &str) -> Option<&str> {
        let found = self.args.iter().find(|(k, _)| k == key);
        found.map(|(_, value)| value.as_str())
    }
}

impl fmt::Debug for Invocation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invocation")
            .field("network", &self.network)
            .field("container_id", &self.container_id)
            .field("ifname", &self.ifname)
            .field("netns", &self.netns)
            .finish_non_exhaustive()
    }
}

/// A pod's network namespace, from outside.
#[derive(Clone, Copy)]
pub struct Netns<'a> {
    /// Where it is bound; for results (`sandbox`) and for plugins by exec.
    pub path: &'a Path,
    /// The namespace itself: what `IFLA_NET_NS_FD` takes.
    pub fd: BorrowedFd<'a>,
    /// A socket of `NETLINK_ROUTE` that was opened inside. Nobody else uses it during the call.
    pub route: BorrowedFd<'a>,
    /// What can only be done by someone who is inside.
    pub inside: &'a dyn Inside,
}

impl fmt::Debug for Netns<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

/// What can only be done inside a network namespace.
pub trait Inside: Send + Sync {
    /// Reads `/proc/sys/NAME`, without the newline at its end. The name has slashes:
    /// `net/ipv4/conf/eth0/rp_filter`.
    ///
    /// # Errors
    ///
    /// There is no such parameter, or it cannot be read.
    fn sysctl(&self, name: &str) -> io::Result<String>;

    /// Writes `/proc/sys/NAME`.
    ///
    /// # Errors
    ///
    /// There is no such parameter, or the kernel does not take the value.
    fn set_sysctl(&self, name: &str, value: &str) -> io::Result<()>;
}

/// Calls other plugins on behalf of one: address management (`ipam.type`) above all. The call is as the
/// caller got it, with its own configuration; the plugin called may be built-in or not.
pub trait Delegate: Send + Sync {
    /// ADD of the plugin called `name`.
    ///
    /// # Errors
    ///
    /// The plugin's own, or it is not there.
    fn add(&self, name: &str, call: &Invocation<'_>) -> Result<CniResult, CniError>;

    /// DEL of the plugin called `name`.
    ///
    /// # Errors
    ///
    /// The plugin's own, or it is not there.
    fn del(&self, name: &str, call: &Invocation<'_>) -> Result<(), CniError>;

    /// CHECK of the plugin called `name`.
    ///
    /// # Errors
    ///
    /// The plugin's own, or it is not there.
    fn check(&self, name: &str, call: &Invocation<'_>) -> Result<(), CniError>;

    /// STATUS of the plugin called `name`.
    ///
    /// # Errors
    ///
    /// The plugin's own, or it is not there.
    fn status(
        &self,
        name: &str,
        network: &str,
        plugin: &Map<String, Value>,
    ) -> Result<(), CniError>;

    /// GC of the plugin called `name`.
    ///
    /// # Errors
    ///
    /// The plugin's own, or it is not there.
    fn gc(
        &self,
        name: &str,
        network: &str,
        plugin: &Map<String, Value>,
        valid: &[Attachment],
    ) -> Result<(), CniError>;
}
