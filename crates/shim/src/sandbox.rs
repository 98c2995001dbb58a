//! The pod's own namespaces, made by the shim in itself and held by it.

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use wharf_plan::Fds;
use wharf_plan::container::{Namespace, Namespaces, SysctlPlan};
use wharf_plan::message::{Failure, MakeShim};
use wharf_sys::clone::{NEWIPC, NEWNET, NEWNS, NEWUTS};

use crate::limits::{SYSCTL_MAX, SYSCTLS_MAX};
use crate::{failure, mounts};

/// What a shim holds for its pod as long as it lives.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// Descriptors by the names of `Welcome`.
    namespaces: Vec<(&'static str, OwnedFd)>,
    network: bool,
    shm: bool,
    init: Option<Init>,
    warnings: Vec<String>,
}

/// PID 1 of the pod's shared PID namespace.
#[derive(Debug)]
pub(crate) struct Init {
    /// In the host's PID namespace.
    pub(crate) pid: u32,
    /// Names it for ever.
    pub(crate) pidfd: OwnedFd,
    namespace: OwnedFd,
}

/// Which namespaces are the pod's own.
#[derive(Debug, Clone, Copy)]
struct Own {
    network: bool,
    ipc: bool,
    uts: bool,
    pid: bool,
}

impl Own {
    fn of(asked: Namespaces) -> Result<Self, Failure> {
        let new = |value: i32, name: &str| match Namespace::try_from(value) {
            Ok(Namespace::New) => Ok(true),
            Ok(Namespace::Inherit) => Ok(false),
            _ => Err(failure::invalid(
                "make namespaces",
                format!("a pod's {name} namespace is a new one or the host's"),
            )),
        };
        if asked.user == i32::from(Namespace::New) || asked.user == i32::from(Namespace::Join) {
            let why = "user namespaces of pods are not supported yet";
            return Err(failure::invalid("make namespaces", why));
        }
        Ok(Self {
            network: new(asked.network, "network")?,
            ipc: new(asked.ipc, "IPC")?,
            uts: new(asked.uts, "UTS")?,
            pid: asked.pid == i32::from(Namespace::New),
        })
    }

    /// Whether a kernel parameter belongs to one of them: any other would change the host.
    fn covers(self, sysctl: &str) -> bool {
        let ipc = ["kernel/shm", "kernel/msg", "kernel/sem", "fs/mqueue/"];
        let uts = ["kernel/hostname", "kernel/domainname"];
        (self.network && sysctl.starts_with("net/"))
            || (self.ipc && ipc.iter().any(|start| sysctl.starts_with(start)))
            || (self.uts && uts.contains(&sysctl))
    }
}

impl Sandbox {
    /// A sandbox that could not be made, for a shim that lives only to say so.
    pub(crate) fn none() -> Self {
        Self {
            namespaces: Vec::new(),
            network: false,
            shm: false,
            init: None,
            warnings: Vec::new(),
        }
    }

    /// Makes the namespaces that are asked for, in the calling process, which has one thread.
    ///
    /// # Errors
    ///
    /// The step that failed; the process should end, its namespaces go with it.
    pub(crate) fn make(asked: &MakeShim) -> Result<Self, Failure> {
        let own = Own::of(asked.namespaces.unwrap_or_default())?;
        check_sysctls(own, &asked.sysctls)?;
        let flags = [
            (own.network, NEWNET),
            (own.ipc, NEWIPC | NEWNS),
            (own.uts, NEWUTS),
        ]
        .into_iter()
        .filter(|(new, _)| *new)
        .fold(0, |flags, (_, flag)| flags | flag);
        wharf_sys::process::unshare(flags)
            .map_err(failure::errno("unshare", "the pod's namespaces"))?;
        let mut sandbox = Self::none();
        if own.ipc {
            mounts::make_shm()?;
        }
        if own.uts && !asked.hostname.is_empty() {
            rustix::system::sethostname(asked.hostname.as_bytes())
                .map_err(failure::errno("sethostname", &asked.hostname))?;
        }
        if own.network {
            wharf_sys::network::loopback_up().map_err(failure::errno("link up", "lo"))?;
        }
        for sysctl in &asked.sysctls {
            write_sysctl(sysctl).map_err(failure::errno("sysctl", &sysctl.path))?;
        }
        if let Some(adjustment) = asked.oom_score_adj {
            // Lowering needs CAP_SYS_RESOURCE; a pod without it is better than none.
            if let Err(e) = fs::write("/proc/self/oom_score_adj", adjustment.to_string()) {
                let text = format!(
                    "the shim's oom_score_adj stays as it is: {adjustment} was refused: {e}"
                );
                sandbox.warnings.push(text);
            }
        }
        sandbox.shm = own.ipc;
        sandbox.network = own.network;
        let files = [
            (own.network, "ns.net", "net"),
            (own.ipc, "ns.ipc", "ipc"),
            (own.uts, "ns.uts", "uts"),
            (own.ipc, "ns.mnt", "mnt"), // its own because of its /dev/shm
        ];
        for (_, name, file) in files.into_iter().filter(|(own, ..)| *own) {
            let path = format!("/proc/self/ns/{file}");
            sandbox.namespaces.push((name, open_namespace(&path)?));
        }
        if own.pid {
            sandbox.init = Some(Init::make()?);
        }
        Ok(sandbox)
    }

    /// The descriptors of `Welcome`: copies of the namespaces', and a new route socket (a socket has
    /// one queue of answers, so each caller gets its own).
    ///
    /// # Errors
    ///
    /// When the process has no room for more descriptors.
    pub(crate) fn descriptors(&self) -> Result<Fds, Failure> {
        let mut fds = Fds::new();
        let init = self.init.iter().map(|init| ("ns.pid", &init.namespace));
        let held = self.namespaces.iter().map(|(name, fd)| (*name, fd));
        for (name, fd) in held.chain(init) {
            fds.push(name, fd.try_clone().map_err(failure::io("dup", name))?);
        }
        if self.network {
            let socket = rustix::net::socket_with(
                AddressFamily::NETLINK,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                None, // protocol 0 is NETLINK_ROUTE
            );
            fds.push(
                "netlink",
                socket.map_err(failure::errno("socket", "netlink"))?,
            );
        }
        Ok(fds)
    }

    /// PID 1 of the shared PID namespace, if the pod has one that lives.
    pub(crate) fn init(&self) -> Option<&Init> {
        self.init.as_ref()
    }

    /// The shared PID namespace has ended.
    pub(crate) fn init_ended(&mut self) {
        self.init = None;
    }

    /// Whether the pod has a /dev/shm of its own.
    pub(crate) fn has_shm(&self) -> bool {
        self.shm
    }

    /// What could not be done as asked; given once.
    pub(crate) fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }
}

impl Init {
    fn make() -> Result<Self, Failure> {
        let (pid, pidfd) =
            wharf_runtime::launch::sandbox_init().map_err(|e| failure::launch(&e))?;
        let namespace = open_namespace(&format!("/proc/{pid}/ns/pid"))?;
        Ok(Self {
            pid,
            pidfd,
            namespace,
        })
    }

    /// The PID namespace itself.
    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

fn open_namespace(path: &str) -> Result<OwnedFd, Failure> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(failure::errno("open", path))
}

fn check_sysctls(own: Own, sysctls: &[SysctlPlan]) -> Result<(), Failure> {
    let too_long = |s: &SysctlPlan| s.path.len().max(s.value.len()) > SYSCTL_MAX;
    if sysctls.len() > SYSCTLS_MAX || sysctls.iter().any(too_long) {
        return Err(failure::invalid("sysctl", "too many or too long"));
    }
    // `covers` goes by the beginning of the path: it has to be the path that the kernel walks.
    let is_name = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    if let Some(bad) = sysctls.iter().find(|s| !s.path.split('/').all(is_name)) {
        let why = format!("{:?} is not the name of a kernel parameter", bad.path);
        return Err(failure::invalid("sysctl", why));
    }
    match sysctls.iter().find(|s| !own.covers(&s.path)) {
        None => Ok(()),
        Some(SysctlPlan { path, .. }) => Err(failure::invalid(
            "sysctl",
            format!(
                "{path} does not belong to a namespace of the pod's own: it would change the host"
            ),
        )),
    }
}

fn write_sysctl(sysctl: &SysctlPlan) -> Result<(), Errno> {
    let base = rustix::fs::open("/proc/sys", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(&base, &sysctl.path, flags, Mode::empty(), beneath)?;
    rustix::io::write(&file, sysctl.value.as_bytes()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_of_the_host_is_refused_by_name() {
        let own = Own {
            network: false,
            ipc: true,
            uts: true,
            pid: false,
        };
        let plan = |path: &str| SysctlPlan {
            path: path.to_owned(),
            value: "1".to_owned(),
        };
        check_sysctls(own, &[plan("kernel/shmmax"), plan("fs/mqueue/msg_max")]).unwrap();
        for host in [
            "net/core/somaxconn",
            "vm/swappiness",
            "kernel/panic",
            "../x",
        ] {
            let failure = check_sysctls(own, &[plan(host)]).unwrap_err();
            assert!(failure.object.contains(host));
        }
    }

    #[test]
    fn no_spelling_leads_out_of_the_pods_own_parameters() {
        let own = Own {
            network: true,
            ipc: true,
            uts: true,
            pid: true,
        };
        let check = |path: &str| {
            let path = path.to_owned();
            let value = "1".to_owned();
            check_sysctls(own, &[SysctlPlan { path, value }])
        };
        check("net/ipv4/conf/eno2.100/rp_filter").unwrap();
        for bad in [
            "net/../kernel/panic",
            "kernel/shm/../panic",
            "fs/mqueue/../../vm/swappiness",
            "net/./core/somaxconn",
            "net//core/somaxconn",
            "net/",
            "/net/core/somaxconn",
            "net/core\0",
            "",
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_pod_cannot_join_and_user_namespaces_are_not_there_yet() {
        let join = Namespaces {
            network: Namespace::Join.into(),
            ..Namespaces::default()
        };
        assert!(Own::of(join).unwrap_err().object.contains("network"));
        let user = Namespaces {
            user: Namespace::New.into(),
            ..Namespaces::default()
        };
        assert!(
            Own::of(user)
                .unwrap_err()
                .object
                .contains("not supported yet")
        );
    }
}
