//! Pod networks: readiness, plugins that are programs, and what becomes of attachments.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tonic::Code;
use wharf_api::v1::{NamespaceMode, StatusRequest, StatusResponse};
use wharf_testkit::faults::Fault;
use wharf_testkit::{cache, wait};

use crate::scene::{SOON, Scene, pod_security, shell};

/// A plugin that does nothing to any network and notes how it was called. `hold` in its folder makes it hang
/// at ADD, `refuse` makes DEL fail.
const FAKE: &str = r#"
cat > $NOTES/$CNI_COMMAND.in
echo "$CNI_COMMAND [$CNI_NETNS] $CNI_ARGS" >> $NOTES/calls
case $CNI_COMMAND in
ADD)
  if [ -e $NOTES/hold ]; then echo $$ > $NOTES/held; exec sleep 1000; fi
  echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'$CNI_NETNS'"}],
         "ips":[{"address":"fd00::7/64","interface":0},{"address":"10.9.8.7/24","interface":0}]}';;
DEL)
  if [ -e $NOTES/refuse ]; then echo '{"code":100,"msg":"not now"}'; exit 1; fi;;
esac
"#;

const CONF: &str = r#"{"cniVersion":"1.0.0","name":"fake","plugins":[{"type":"fake","capabilities":{"portMappings":true}}]}"#;

/// A node with pod networks by CNI and a fake plugin; no configuration yet.
struct Net {
    scene: Scene,
    notes: PathBuf,
}

impl Net {
    fn begin(test: &str) -> Option<Self> {
        let more = "builtin = false\ngrace_seconds = 0\n";
        let scene = Scene::built(test, |node| node.network("cni").config(more).faults())?;
        let notes = scene.node.dir().join("notes");
        fs::create_dir(&notes).unwrap();
        fs::create_dir(scene.node.cni_bin()).unwrap();
        let program = scene.node.cni_bin().join("fake");
        fs::write(
            &program,
            format!("#!/bin/sh\nNOTES={}\n{FAKE}", notes.display()),
        )
        .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Some(Self { scene, notes })
    }

    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.notes.join("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    fn note(&self, name: &str) -> PathBuf {
        self.notes.join(name)
    }

    fn configure(&self, name: &str, text: &str) {
        fs::create_dir_all(self.scene.node.net_d()).unwrap();
        fs::write(self.scene.node.net_d().join(name), text).unwrap();
    }

    fn status(&self) -> StatusResponse {
        status(&self.scene)
    }

    /// Waits until the network is ready, or is not; gives the condition's reason and message.
    fn ready(&self, ready: bool) -> (String, String) {
        await_ready(&self.scene, ready)
    }

    fn configured(self) -> Self {
        self.configure("10-fake.conflist", CONF);
        self.ready(true);
        self
    }
}

fn status(scene: &Scene) -> StatusResponse {
    let request = StatusRequest { verbose: true };
    let cri = scene.cri();
    cri.wait(cri.runtime().status(request)).unwrap()
}

fn await_ready(scene: &Scene, ready: bool) -> (String, String) {
    let condition = || {
        let conditions = status(scene).status.unwrap().conditions;
        let is =
            |c: &&_| -> bool { wharf_api::v1::RuntimeCondition::clone(c).r#type == "NetworkReady" };
        conditions.iter().find(is).unwrap().clone()
    };
    let came = wait::until(SOON, || Ok(condition().status == ready)).unwrap();
    let last = condition();
    assert!(came, "{last:?}");
    (last.reason, last.message)
}

#[test]
fn without_a_configuration_the_network_is_not_ready_and_pods_on_the_hosts_network_run() {
    let Some(net) = Net::begin("without_a_configuration") else {
        return;
    };
    let (reason, message) = net.ready(false);
    assert_eq!(reason, "NetworkPluginNotReady");
    let dir = net.scene.node.net_d().display().to_string();
    assert!(
        message.contains(&dir) && message.contains("cri.default_network"),
        "{message}"
    );
    let config = net.scene.pod_config("own", |_| {});
    let refused = net.scene.cri().run_pod(&config, "").unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains(&dir), "{refused:?}");
    let host = net.scene.pod_with("host", |p| {
        let options = pod_security(p).namespace_options.get_or_insert_default();
        options.network = NamespaceMode::Node.into();
    });
    assert_eq!(host.status().network.unwrap().ip, "");
    host.end();
    // The directory appears, with a file that is not whole yet, then is.
    net.configure("10-fake.conflist", &CONF[..30]);
    let seen = || Ok(net.status().info["lastCNILoadStatus"].contains("10-fake.conflist"));
    assert!(wait::until(SOON, seen).unwrap(), "{:?}", net.status().info);
    net.configure("10-fake.conflist", CONF);
    net.ready(true);
    assert_eq!(net.status().info["lastCNILoadStatus"], "OK");
    // It vanishes with all that is in it, and comes back as a link to another one.
    fs::remove_dir_all(net.scene.node.net_d()).unwrap();
    net.ready(false);
    let other = net.scene.node.dir().join("other.d");
    fs::create_dir(&other).unwrap();
    fs::write(
        other.join("20-x.conf"),
        r#"{"cniVersion":"1.0.0","name":"x","type":"fake"}"#,
    )
    .unwrap();
    symlink(&other, net.scene.node.net_d()).unwrap();
    net.ready(true);
    // A plugin that is nowhere is named with its file.
    fs::write(other.join("20-x.conf"), r#"{"name":"x","type":"nowhere"}"#).unwrap();
    let (_, message) = net.ready(false);
    for word in ["20-x.conf", "nowhere", "cni-bin"] {
        assert!(message.contains(word), "{word} in {message}");
    }
}

#[test]
fn a_pods_addresses_come_from_the_plugins_and_go_the_way_they_came() {
    let Some(net) = Net::begin("a_pods_addresses") else {
        return;
    };
    let net = net.configured();
    let pod = net.scene.pod_with("p", |p| {
        p.port_mappings = vec![wharf_api::v1::PortMapping {
            container_port: 80,
            host_port: 8080,
            ..Default::default()
        }];
    });
    let network = pod.status().network.unwrap();
    assert_eq!(network.ip, "10.9.8.7");
    assert_eq!(network.additional_ips[0].ip, "fd00::7");
    let read = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(net.note(name)).unwrap()).unwrap()
    };
    let ports = &read("ADD.in")["runtimeConfig"]["portMappings"];
    assert_eq!(ports[0]["hostPort"], 8080, "{ports}");
    let [add] = &net.calls()[..] else {
        panic!("{:?}", net.calls());
    };
    let metadata = pod.config.metadata.as_ref().unwrap();
    for word in [
        format!("K8S_POD_NAME={}", metadata.name),
        format!("K8S_POD_UID={}", metadata.uid),
        format!("K8S_POD_INFRA_CONTAINER_ID={}", pod.id),
        format!("[/run/netns/wharf-{}]", pod.id),
    ] {
        assert!(add.contains(&word), "{word} in {add}");
    }
    // The configuration goes; a DEL that fails is told, and tried again.
    fs::remove_dir_all(net.scene.node.net_d()).unwrap();
    fs::write(net.note("refuse"), "").unwrap();
    let refused = net.scene.cri().stop_pod(&pod.id).unwrap_err();
    for word in ["fake", "not now", "DEL"] {
        assert!(refused.message().contains(word), "{refused:?}");
    }
    fs::remove_file(net.note("refuse")).unwrap();
    assert!(wait::until(SOON, || Ok(net.scene.cri().stop_pod(&pod.id).is_ok())).unwrap());
    assert_eq!(
        read("DEL.in")["prevResult"]["ips"][1]["address"],
        "10.9.8.7/24"
    );
    let del = net.calls().pop().unwrap();
    assert!(
        del.starts_with(&format!("DEL [/run/netns/wharf-{}]", pod.id)),
        "{del}"
    );
    pod.end();
    let records = net.scene.node.root().join("network/attachments");
    assert_eq!(fs::read_dir(records).unwrap().count(), 0);
}

#[test]
fn what_was_attached_before_the_daemon_died_is_taken_down_by_its_record() {
    let Some(net) = Net::begin("what_was_attached") else {
        return;
    };
    let mut net = net.configured();
    let id = net.scene.pod("p").id.clone();
    let shims = net.scene.node.shims();
    net.scene.node.kill().unwrap();
    fs::remove_dir_all(net.scene.node.net_d()).unwrap();
    // The pod's shim dies too, so that nothing holds the namespace.
    for shim in shims.iter().filter(|p| p.name == "wharf-shim") {
        let pid = rustix::process::Pid::from_raw(shim.pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
    }
    net.scene.node.run().unwrap();
    net.scene.cri().stop_pod(&id).unwrap();
    net.scene.cri().remove_pod(&id).unwrap();
    let calls = net.calls();
    assert!(calls.iter().any(|c| c.starts_with("DEL [] ")), "{calls:?}");
    let read = fs::read(net.note("DEL.in")).unwrap();
    let del: Value = serde_json::from_slice(&read).unwrap();
    assert_eq!(del["prevResult"]["ips"][1]["address"], "10.9.8.7/24");
}

#[test]
fn a_daemon_that_dies_or_fails_at_any_step_of_a_network_leaves_nothing_attached() {
    let Some(net) = Net::begin("a_daemon_that_dies_or_fails") else {
        return;
    };
    let mut net = net.configured();
    let kill_and_error = [Fault::Kill, Fault::Error(5)];
    let points = [
        "attach network: the intent was recorded",
        "attach network: a plugin has run",
        "attach network: the result was recorded",
        "detach network: the plugins have run",
    ];
    for (n, (point, fault)) in points
        .iter()
        .flat_map(|point| kill_and_error.map(|fault| (point, fault)))
        .enumerate()
    {
        let what = format!("{point}: {fault:?}");
        let before = net.calls().len();
        let faults = net.scene.node.faults();
        faults.plan(point, 1, fault).unwrap();
        let config = net.scene.pod_config(&format!("p{n}"), |_| {});
        // Either fails on the way, or the daemon is gone.
        let lived = net.scene.cri().run_pod(&config, "");
        let stopped = lived.and_then(|id| net.scene.cri().stop_pod(&id));
        assert!(stopped.is_err(), "{what}: nothing happened");
        // What was planned is not for the next one, which counts anew.
        fs::remove_file(faults.dir().join("plan")).unwrap();
        if fault == Fault::Kill {
            net.scene.node.kill().unwrap();
            faults.forget().unwrap();
            net.scene.node.run().unwrap();
            net.ready(true);
        }
        // Kubelet's next words: everything of before goes, a new attempt comes.
        let gone = || Ok(net.scene.cri().remove_all_pods().is_ok());
        assert!(wait::until(SOON, gone).unwrap(), "{what}");
        let records = net.scene.node.root().join("network/attachments");
        let none = || Ok(fs::read_dir(&records)?.count() == 0);
        assert!(
            wait::until(SOON, none).unwrap(),
            "{what}: {:?}",
            fs::read_dir(&records)
        );
        let calls = net.calls().split_off(before);
        assert!(
            calls.last().unwrap().starts_with("DEL"),
            "{what}: {calls:?}"
        );
        let pod = net.scene.pod(&format!("q{n}"));
        assert_eq!(pod.status().network.unwrap().ip, "10.9.8.7", "{what}");
        pod.end();
    }
    let names = net.scene.node.place().netns_names().unwrap();
    assert_eq!(fs::read_dir(names).unwrap().count(), 0);
}

#[test]
fn a_hung_plugin_keeps_only_its_own_pod_waiting() {
    let Some(net) = Net::begin("a_hung_plugin") else {
        return;
    };
    let net = net.configured();
    fs::write(net.note("hold"), "").unwrap();
    std::thread::scope(|scope| {
        let config = net.scene.pod_config("hangs", |_| {});
        let cri = net.scene.cri();
        let hangs = scope.spawn(move || cri.run_pod(&config, ""));
        let held = || Ok(fs::read_to_string(net.note("held")).is_ok_and(|t| t.ends_with('\n')));
        assert!(wait::until(SOON, held).unwrap());
        fs::remove_file(net.note("hold")).unwrap();
        net.ready(true);
        net.scene.pod("other").end();
        // It is ended here instead of at its deadline of minutes.
        let pid: i32 = fs::read_to_string(net.note("held"))
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let failed = hangs.join().unwrap().unwrap_err();
        for word in ["fake", "ADD", "signal 15"] {
            assert!(failed.message().contains(word), "{failed:?}");
        }
    });
    let dels = || Ok(net.calls().iter().filter(|c| c.starts_with("DEL")).count() == 2);
    assert!(wait::until(SOON, dels).unwrap(), "{:?}", net.calls());
}

#[test]
fn pods_of_the_official_plugins_can_be_reached_and_leave_nothing() {
    let test = "pods_of_the_official_plugins";
    let plugins = cache::find_program("containerd").map(|p| p.with_file_name("cni"));
    let Some(plugins) = plugins.filter(|dir| dir.join("bridge").is_file()) else {
        println!("skipped: {test}: no CNI plugins beside containerd in $RIG/bin or PATH");
        return;
    };
    reached_and_gone(test, |bin| symlink(&plugins, bin).unwrap());
}

/// flannel and multus start other plugins by exec: ours answers by their names.
#[test]
fn pods_of_our_own_binary_called_as_plugins_can_be_reached_and_leave_nothing() {
    let own = |bin: &Path| {
        fs::create_dir(bin).unwrap();
        for name in ["bridge", "host-local"] {
            symlink(env!("CARGO_BIN_EXE_wharf"), bin.join(name)).unwrap();
        }
    };
    reached_and_gone("pods_of_our_own_binary", own);
}

/// A dual-stack bridge made by programs that `programs` puts into a folder.
fn reached_and_gone(test: &str, programs: impl FnOnce(&Path)) {
    let built =
        |node: wharf_testkit::node::Builder| node.network("cni").config("builtin = false\n");
    let Some(scene) = Scene::built(test, built) else {
        return;
    };
    scene
        .registry
        .add("it/busybox", "1", &crate::scene::busybox());
    scene.cri().pull(crate::scene::BUSYBOX).unwrap();
    programs(&scene.node.cni_bin());
    let ipam = scene.node.dir().join("ipam");
    let text = serde_json::json!({"cniVersion": "1.1.0", "name": "official", "plugins": [{
        "type": "bridge", "bridge": "cni0", "isGateway": true,
        "ipam": {"type": "host-local", "dataDir": ipam, "routes": [{"dst": "0.0.0.0/0"}],
                 "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]]},
    }]});
    fs::create_dir(scene.node.net_d()).unwrap();
    fs::write(
        scene.node.net_d().join("10-bridge.conflist"),
        text.to_string(),
    )
    .unwrap();
    await_ready(&scene, true);
    let pod = scene.pod("web");
    pod.run(&shell("httpd", "exec httpd -f -p 80"));
    let network = pod.status().network.unwrap();
    assert!(network.ip.starts_with("10.77.0."), "{network:?}");
    assert!(
        network.additional_ips[0].ip.starts_with("fd77::"),
        "{network:?}"
    );
    let reach = |ip: &str| {
        let address = (ip.parse::<std::net::IpAddr>().unwrap(), 80).into();
        scene
            .node
            .place()
            .in_net(|| TcpStream::connect_timeout(&address, Duration::from_secs(5)))
    };
    for ip in [&network.ip, &network.additional_ips[0].ip] {
        let reached = wait::until(SOON, || Ok(reach(ip).is_ok())).unwrap();
        assert!(reached, "{ip}: {:?}", reach(ip));
    }
    let other = scene.pod("client");
    let said = other.script(
        "wget",
        &format!(
            "wget -q -O - http://{}/ 2>&1; ip addr show eth0",
            network.ip
        ),
    );
    assert!(said.contains("404") && said.contains("10.77.0."), "{said}");
    let leases = || {
        let files = fs::read_dir(ipam.join("official")).unwrap().flatten();
        files
            .filter(|f| f.file_name().to_string_lossy().contains("10.77"))
            .count()
    };
    assert_eq!(leases(), 2);
    other.end();
    pod.end();
    assert!(
        wait::until(SOON, || Ok(leases() == 0)).unwrap(),
        "{}",
        leases()
    );
    let links = || {
        let mut list = scene.node.place().command("/bin/sh");
        let said = list.args(["-c", "ip -o link"]).output()?.stdout;
        std::io::Result::Ok(String::from_utf8_lossy(&said).into_owned())
    };
    let none = || Ok(!links()?.contains("veth"));
    assert!(wait::until(SOON, none).unwrap(), "{:?}", links());
}

/// The node's own default network, with no plugin program and no rule of iptables on the machine.
#[test]
fn pods_of_the_default_network_have_both_families_ports_of_the_node_and_leave_nothing() {
    let Some(scene) = Scene::built("pods_of_the_default", |node| node.network("default")) else {
        return;
    };
    scene
        .registry
        .add("it/busybox", "1", &crate::scene::busybox());
    scene.cri().pull(crate::scene::BUSYBOX).unwrap();
    await_ready(&scene, true);
    let place = scene.node.place().clone();
    let reach = |ip: &str, port: u16| {
        let address = (ip.parse::<std::net::IpAddr>().unwrap(), port).into();
        place.in_net(|| TcpStream::connect_timeout(&address, Duration::from_secs(5)))
    };
    let mut scene = scene;
    let ids: Vec<String> = {
        let pod = scene.pod_with("web", |p| {
            p.port_mappings = vec![wharf_api::v1::PortMapping {
                container_port: 80,
                host_port: 12080,
                ..Default::default()
            }];
        });
        pod.run(&shell("httpd", "exec httpd -f -p 80"));
        let network = pod.status().network.unwrap();
        let second = &network.additional_ips[0].ip;
        for (ip, port) in [
            (network.ip.as_str(), 80),
            (second, 80),
            ("127.0.0.1", 12080),
            ("::1", 12080),
        ] {
            let reached = wait::until(SOON, || Ok(reach(ip, port).is_ok())).unwrap();
            assert!(reached, "{ip} {port}: {:?}", reach(ip, port));
        }
        let taken = scene.pod_config("second", |p| {
            p.port_mappings.clone_from(&pod.config.port_mappings);
        });
        let refused = scene.cri().run_pod(&taken, "").unwrap_err();
        assert!(refused.message().contains("12080"), "{refused:?}");
        let other = scene.pod("client");
        let said = other.script("wget", &format!("wget -q -O - http://{}/ 2>&1", network.ip));
        assert!(said.contains("404"), "{said}");
        vec![pod.id.clone(), other.id.clone()]
    };
    // A new daemon knows what is attached, and serves its ports.
    scene.node.restart().unwrap();
    await_ready(&scene, true);
    let reached = wait::until(SOON, || Ok(reach("127.0.0.1", 12080).is_ok())).unwrap();
    assert!(reached, "{:?}", reach("127.0.0.1", 12080));
    for id in &ids {
        scene.cri().stop_pod(id).unwrap();
        scene.cri().remove_pod(id).unwrap();
    }
    let links = || {
        let mut list = place.command("/bin/sh");
        let said = list
            .args(["-c", "ip -o link; ls /run/netns"])
            .output()?
            .stdout;
        std::io::Result::Ok(String::from_utf8_lossy(&said).into_owned())
    };
    let none = || Ok(!links()?.contains("veth") && !links()?.contains("wharf-"));
    assert!(wait::until(SOON, none).unwrap(), "{:?}", links());
    reach("127.0.0.1", 12080).unwrap_err();
}
