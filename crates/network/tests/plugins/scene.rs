//! A host in namespaces of its own, its pods, and calls of plugins: built-in or the reference's.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Map, Value, json};
use wharf_network::plugin::{Plugins, PluginsConfig};
use wharf_network::{
    Attachment, Builtin, CniError, CniResult, CniVersion, Delegate, Inside, Invocation, Netns,
};
use wharf_testkit::place::Place;

/// Where the reference plugins are, if they are on this machine.
pub(crate) fn reference() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let fixed = PathBuf::from("/var/tmp/wharf-rig/bin");
    std::env::split_paths(&path)
        .chain([fixed])
        .map(|d| d.join("cni"))
        .find(|d| d.join("host-local").exists())
}

/// A network namespace with nothing but a loopback, held by a small process.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) id: String,
    holder: Child,
    pub(crate) path: PathBuf,
    fd: OwnedFd,
    route: OwnedFd,
}

/// Something to do inside a namespace, on a thread of its own.
fn inside<T: Send>(netns: &OwnedFd, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|s| {
        let thread = s.spawn(|| {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        });
        thread
            .join()
            .unwrap_or_else(|e| std::panic::resume_unwind(e))
    })
}

impl Pod {
    pub(crate) fn new(place: &Place, id: &str) -> Self {
        let mut holder = place
            .command("/usr/bin/unshare")
            .args([
                "--net",
                "--",
                "/bin/sh",
                "-c",
                "echo ready; cat > /dev/null",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line.trim(), "ready");
        let path = PathBuf::from(format!("/proc/{}/ns/net", holder.id()));
        let fd: OwnedFd = File::open(&path).unwrap().into();
        let route = inside(&fd, || {
            Ok(rustix::net::socket_with(
                rustix::net::AddressFamily::NETLINK,
                rustix::net::SocketType::RAW,
                rustix::net::SocketFlags::CLOEXEC,
                None,
            )?)
        })
        .unwrap();
        Self {
            id: id.to_owned(),
            holder,
            path,
            fd,
            route,
        }
    }

    /// As a daemon holds it.
    pub(crate) fn netns(&self) -> wharf_network::PodNetns {
        wharf_network::PodNetns {
            path: self.path.clone(),
            fd: self.fd.try_clone().unwrap(),
            route: self.route.try_clone().unwrap(),
        }
    }

    /// Does something inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> T {
        inside(&self.fd, work).unwrap()
    }

    /// What a program says inside.
    pub(crate) fn say(&self, program: &str, args: &[&str]) -> String {
        let mut command = std::process::Command::new("/usr/bin/nsenter");
        command
            .arg(format!("--net={}", self.path.display()))
            .arg("--")
            .arg(program);
        let said = command.args(args).output().unwrap();
        assert!(
            said.status.success(),
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&said.stderr)
        );
        String::from_utf8(said.stdout).unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ended = self.holder.wait();
    }
}

impl Inside for Pod {
    fn sysctl(&self, name: &str) -> io::Result<String> {
        let path = format!("/proc/sys/{name}");
        inside(&self.fd, || std::fs::read_to_string(&path)).map(|t| t.trim_end().to_owned())
    }

    fn set_sysctl(&self, name: &str, value: &str) -> io::Result<()> {
        let path = format!("/proc/sys/{name}");
        inside(&self.fd, || std::fs::write(&path, value))
    }
}

/// A host: namespaces of its own, and the plugins of a daemon that runs in them.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) place: Arc<Place>,
    pub(crate) plugins: Plugins,
    runtime: Option<Runtime>,
    pub(crate) directory: tempfile::TempDir,
}

/// Tasks on a thread in the host's network namespace.
#[derive(Debug)]
pub(crate) struct Runtime {
    handle: tokio::runtime::Handle,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Runtime {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ended = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// An attachment: the container, its chain, what it asked for, and what it got.
pub(crate) type Attached<'a> = (&'a str, &'a Value, &'a Asks, &'a CniResult);

/// What a pod asks for beside its network's configuration.
#[derive(Debug, Default, Clone)]
pub(crate) struct Asks {
    pub(crate) runtime: Map<String, Value>,
    pub(crate) args: Vec<(String, String)>,
}

impl Host {
    pub(crate) fn new() -> Self {
        let directory = wharf_testkit::temporary().unwrap();
        Self {
            place: Place::own().unwrap(),
            plugins: Plugins::new(&config(directory.path())),
            runtime: None,
            directory,
        }
    }

    /// The same host after a restart of the daemon.
    pub(crate) fn restarted(mut self) -> Self {
        self.plugins = Plugins::new(&config(self.directory.path()));
        self
    }

    /// The plugins as a process of its own has them that another runtime calls.
    pub(crate) fn program(&self) -> Plugins {
        Plugins::for_program(&config(self.directory.path()))
    }

    pub(crate) fn pod(&self, id: &str) -> Pod {
        Pod::new(&self.place, id)
    }

    /// What a program says on the host.
    pub(crate) fn say(&self, program: &str, args: &[&str]) -> String {
        let said = self.place.command(program).args(args).output().unwrap();
        assert!(
            said.status.success(),
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&said.stderr)
        );
        String::from_utf8(said.stdout).unwrap()
    }

    pub(crate) fn ip(&self, args: &str) -> String {
        self.say("/sbin/ip", &args.split(' ').collect::<Vec<_>>())
    }

    pub(crate) fn nft(&self, args: &str) -> String {
        self.say("/usr/sbin/nft", &args.split(' ').collect::<Vec<_>>())
    }

    /// Calls the plugins of a chain, one after the other.
    pub(crate) fn add(&self, pod: &Pod, chain: &Value, asks: &Asks) -> Result<CniResult, CniError> {
        self.call(Some(pod), &pod.id, chain, asks, |call, result| {
            let plugin = self.plugin(call)?;
            *result = Some(plugin.add(call)?);
            Ok(())
        })
        .map(Option::unwrap_or_default)
    }

    /// Takes a pod down, with or without its namespace.
    pub(crate) fn del(
        &self,
        pod: (&str, Option<&Pod>),
        chain: &Value,
        asks: &Asks,
        result: Option<&CniResult>,
    ) -> Result<(), CniError> {
        let mut reversed = chain.clone();
        reversed["plugins"].as_array_mut().unwrap().reverse();
        self.call(pod.1, pod.0, &reversed, asks, |call, _none| {
            let call = Invocation {
                prev_result: result,
                ..*call
            };
            self.plugin(&call)?.del(&call)
        })
        .map(drop)
    }

    pub(crate) fn check(
        &self,
        pod: &Pod,
        chain: &Value,
        asks: &Asks,
        result: &CniResult,
    ) -> Result<(), CniError> {
        self.call(Some(pod), &pod.id, chain, asks, |call, _none| {
            let call = Invocation {
                prev_result: Some(result),
                ..*call
            };
            self.plugin(&call)?.check(&call)
        })
        .map(drop)
    }

    /// Tells the plugins what is attached, as a daemon that begins does.
    pub(crate) fn restore(&self, attached: &[Attached<'_>]) {
        self.in_net(|| {
            for plugin in self.plugins.iter() {
                let all = attached
                    .iter()
                    .flat_map(|one| self.calls_of(one, plugin.name()));
                plugin.restore(&all.collect::<Vec<_>>()).unwrap();
            }
        });
    }

    fn calls_of<'a>(&'a self, one: &'a Attached<'a>, name: &str) -> Vec<Invocation<'a>> {
        let (id, chain, asks, result) = *one;
        let objects = chain["plugins"].as_array().unwrap().iter();
        let mine = objects.filter(|o| o["type"] == name);
        mine.map(|object| Invocation {
            network: chain["name"].as_str().unwrap(),
            version: CniVersion::V1_1_0,
            plugin: object.as_object().unwrap(),
            prev_result: Some(result),
            runtime_config: &asks.runtime,
            container_id: id,
            ifname: "eth0",
            netns: None,
            args: &asks.args,
            delegate: self,
        })
        .collect()
    }

    /// Does something on a thread in the host's network namespace.
    pub(crate) fn in_net<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let work = || {
            let _tasks_go_there = self.runtime.as_ref().map(|r| r.handle.enter());
            Ok(work())
        };
        self.place.in_net(work).unwrap()
    }

    /// From here on the plugins have a tokio runtime, as in the daemon: what comes to host ports
    /// over loopback is forwarded.
    pub(crate) fn with_runtime(mut self) -> Self {
        let (give, take) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let place = self.place.clone();
        let thread = std::thread::spawn(move || {
            place.enter_net().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            give.send(runtime.handle().clone()).unwrap();
            let _dropped = runtime.block_on(stopped);
        });
        self.runtime = Some(Runtime {
            handle: take.recv().unwrap(),
            stop: Some(stop),
            thread: Some(thread),
        });
        self
    }

    fn plugin(&self, call: &Invocation<'_>) -> Result<&dyn Builtin, CniError> {
        let name = call.plugin["type"].as_str().unwrap();
        self.plugins
            .get(name)
            .ok_or_else(|| CniError::internal(format!("no plugin {name}")))
    }

    fn call(
        &self,
        pod: Option<&Pod>,
        id: &str,
        chain: &Value,
        asks: &Asks,
        mut each: impl FnMut(&Invocation<'_>, &mut Option<CniResult>) -> Result<(), CniError> + Send,
    ) -> Result<Option<CniResult>, CniError> {
        let version: CniVersion = chain["cniVersion"].as_str().unwrap().parse().unwrap();
        self.in_net(|| {
            let mut result = None;
            for object in chain["plugins"].as_array().unwrap() {
                let before = result.clone();
                let call = Invocation {
                    network: chain["name"].as_str().unwrap(),
                    version,
                    plugin: object.as_object().unwrap(),
                    prev_result: before.as_ref(),
                    runtime_config: &asks.runtime,
                    container_id: id,
                    ifname: "eth0",
                    netns: pod.map(|pod| Netns {
                        path: &pod.path,
                        fd: pod.fd.as_fd(),
                        route: pod.route.as_fd(),
                        inside: pod,
                    }),
                    args: &asks.args,
                    delegate: self,
                };
                each(&call, &mut result)?;
            }
            Ok(result)
        })
    }
}

fn config(directory: &Path) -> PluginsConfig {
    PluginsConfig {
        root: directory.join("root"),
        state: directory.join("state"),
    }
}

impl Delegate for Host {
    fn add(&self, name: &str, call: &Invocation<'_>) -> Result<CniResult, CniError> {
        self.plugins.get(name).unwrap().add(call)
    }

    fn del(&self, name: &str, call: &Invocation<'_>) -> Result<(), CniError> {
        self.plugins.get(name).unwrap().del(call)
    }

    fn check(&self, name: &str, call: &Invocation<'_>) -> Result<(), CniError> {
        self.plugins.get(name).unwrap().check(call)
    }

    fn status(
        &self,
        name: &str,
        network: &str,
        plugin: &Map<String, Value>,
    ) -> Result<(), CniError> {
        self.plugins.get(name).unwrap().status(network, plugin)
    }

    fn gc(
        &self,
        name: &str,
        network: &str,
        plugin: &Map<String, Value>,
        valid: &[Attachment],
    ) -> Result<(), CniError> {
        self.plugins.get(name).unwrap().gc(network, plugin, valid)
    }
}

/// A chain of reference plugins by exec, as libcni calls them: gives the final result.
pub(crate) fn exec_chain(
    bin: &Path,
    place: &Place,
    command: &str,
    pod: &Pod,
    (chain, asks): (&Value, &Asks),
    result: Option<&Value>,
) -> Result<Value, Value> {
    let mut plugins = chain["plugins"].as_array().unwrap().clone();
    if command == "DEL" {
        plugins.reverse();
    }
    let mut previous = result.cloned();
    let args: Vec<String> = asks.args.iter().map(|(k, v)| format!("{k}={v}")).collect();
    for mut object in plugins {
        let kind = object["type"].as_str().unwrap().to_owned();
        object["cniVersion"] = chain["cniVersion"].clone();
        object["name"] = chain["name"].clone();
        if let Some(previous) = &previous {
            object["prevResult"] = previous.clone();
        }
        object["runtimeConfig"] = Value::Object(asks.runtime.clone());
        let mut child = place
            .command(bin.join(&kind))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &pod.id)
            .env("CNI_NETNS", &pod.path)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", bin)
            .env("CNI_ARGS", args.join(";"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(object.to_string().as_bytes())
            .unwrap();
        let said = child.wait_with_output().unwrap();
        let answer: Value = serde_json::from_slice(&said.stdout).unwrap_or(Value::Null);
        if !said.status.success() {
            return Err(json!({ "plugin": kind, "error": answer }));
        }
        if command == "ADD" {
            previous = Some(answer);
        }
    }
    Ok(previous.unwrap_or_default())
}

/// A network of one bridge with addresses of these subnets.
pub(crate) fn bridge_network(name: &str, bridge: &str, subnets: &[&str]) -> Value {
    let ranges: Vec<Value> = subnets.iter().map(|s| json!([{ "subnet": s }])).collect();
    let routes: Vec<Value> = subnets
        .iter()
        .map(|s| json!({ "dst": if s.contains(':') { "::/0" } else { "0.0.0.0/0" } }))
        .collect();
    json!({
        "cniVersion": "1.0.0",
        // A name that no plugin of this machine has reserved addresses for.
        "name": format!("wharf-test-{name}"),
        "plugins": [{
            "type": "bridge",
            "bridge": bridge,
            "isGateway": true,
            "ipMasq": true,
            "ipMasqBackend": "nftables",
            "hairpinMode": true,
            "ipam": { "type": "host-local", "ranges": ranges, "routes": routes },
        }],
    })
}

/// Waits until something is true that others make true.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let limit = std::time::Duration::from_secs(30);
    let came = wharf_testkit::wait::until(limit, || Ok(done())).unwrap();
    assert!(came, "{what}");
}
