//! The same configuration gives the same result and the same interface as the reference plugins.

use serde_json::{Value, json};
use wharf_testkit::needs_root;

use crate::scene::{Asks, Host, Pod, bridge_network, exec_chain, reference};

/// What may differ: names that are drawn, Ethernet addresses, the path of the namespace.
fn neutral(mut result: Value) -> Value {
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        let is_mac = interface["mac"].as_str().is_some_and(|m| m.len() == 17);
        interface["mac"] = json!(is_mac);
        if interface["name"]
            .as_str()
            .is_some_and(|n| n.starts_with("veth"))
        {
            interface["name"] = json!("veth");
        }
        if interface["name"]
            .as_str()
            .is_some_and(|n| n.starts_with("bwp"))
        {
            interface["name"] = json!("bwp");
        }
        if interface.get("sandbox").is_some() {
            interface["sandbox"] = json!("pod");
        }
    }
    let all = result.as_object_mut().unwrap();
    all.remove("cniVersion");
    // No names: left out or empty, as the version has it.
    if all.get("dns") == Some(&json!({})) {
        all.remove("dns");
    }
    result
}

/// Addresses, routes and flags of the pod, as `ip` lists them.
fn seen(pod: &Pod) -> Value {
    let list =
        |args: &[&str]| -> Value { serde_json::from_str(&pod.say("/sbin/ip", args)).unwrap() };
    let mut addresses = Vec::new();
    for link in list(&["-j", "addr"]).as_array().unwrap() {
        for a in link["addr_info"].as_array().unwrap() {
            if a["scope"] != "link" {
                addresses.push(json!([
                    link["ifname"],
                    a["local"],
                    a["prefixlen"],
                    a["broadcast"]
                ]));
            }
        }
    }
    let mut links = Vec::new();
    for link in list(&["-j", "link"]).as_array().unwrap() {
        links.push(json!([
            link["ifname"],
            link["mtu"],
            link["operstate"],
            link["flags"]
        ]));
    }
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        for r in list(&["-j", family, "route"]).as_array().unwrap() {
            if r["dst"] != "fe80::/64" {
                routes.push(json!([
                    r["dst"],
                    r["gateway"],
                    r["dev"],
                    r["prefsrc"],
                    r["metric"]
                ]));
            }
        }
    }
    json!({ "addresses": addresses, "links": links, "routes": routes })
}

/// What is known of the host's end of a pod's interface: its queues.
fn queues(host: &Host) -> String {
    let links = host.ip("-o link");
    let name = |prefix: &str| {
        let line = links.lines().find(|l| l.contains(&format!(": {prefix}")));
        line.map(|l| l.split([':', '@']).nth(1).unwrap().trim().to_owned())
    };
    let mut all = String::new();
    for dev in [name("veth"), name("bwp")].into_iter().flatten() {
        let text = host.say("/sbin/tc", &["qdisc", "show", "dev", &dev]);
        all += &text.replace(&dev, "DEV");
        let text = host.say(
            "/sbin/tc",
            &["filter", "show", "dev", &dev, "parent", "ffff:"],
        );
        let text = text.split("index").next().unwrap_or_default();
        all += &text.replace(&name("bwp").unwrap_or_default(), "IFB");
    }
    all
}

/// Runs a chain by exec on one host and in-process on another, and compares.
fn same(chain: &Value, asks: &Asks, prepare: &dyn Fn(&Host)) {
    let Some(bin) = reference() else {
        println!("skipped: the reference plugins are not here (shared rig)");
        return;
    };
    let directory = wharf_testkit::temporary().unwrap();
    let mut theirs_chain = chain.clone();
    theirs_chain["plugins"][0]["ipam"]["dataDir"] = json!(directory.path());
    let (theirs, ours) = (Host::new(), Host::new());
    prepare(&theirs);
    prepare(&ours);
    let (a, b) = (theirs.pod("pod1"), ours.pod("pod1"));
    let expected = exec_chain(&bin, &theirs.place, "ADD", &a, (&theirs_chain, asks), None).unwrap();
    let result = ours.add(&b, chain, asks).unwrap();
    let result = serde_json::to_value(&result).unwrap();
    assert_eq!(neutral(result), neutral(expected.clone()), "{chain}");
    assert_eq!(seen(&b), seen(&a), "{chain}");
    assert_eq!(queues(&ours), queues(&theirs), "{chain}");
    exec_chain(
        &bin,
        &theirs.place,
        "DEL",
        &a,
        (&theirs_chain, asks),
        Some(&expected),
    )
    .unwrap();
}

#[test]
fn a_bridge_gives_what_the_reference_plugin_gives() {
    if !needs_root("a_bridge_gives_what_the_reference_plugin_gives") {
        return;
    }
    let none = |_: &Host| {};
    let v4 = bridge_network("n", "cni0", &["10.88.0.0/24"]);
    same(&v4, &Asks::default(), &none);
    let mut both = bridge_network("n", "cni0", &["10.88.0.0/24", "fd00:88::/64"]);
    both["plugins"][0]["mtu"] = json!(1280);
    both["plugins"][0]["dns"] = json!({ "nameservers": ["10.0.0.53"], "search": ["a", "b"] });
    same(&both, &Asks::default(), &none);
    let mut detailed = bridge_network("n", "br-x", &["10.88.0.0/24"]);
    let bridge = &mut detailed["plugins"][0];
    bridge["isDefaultGateway"] = json!(true);
    bridge["promiscMode"] = json!(true);
    bridge["hairpinMode"] = json!(false);
    bridge["ipam"] = json!({
        "type": "host-local",
        "ranges": [
            [
                { "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.20", "rangeEnd": "10.1.0.30", "gateway": "10.1.0.254" },
                { "subnet": "10.2.0.0/24" },
            ],
            [{ "subnet": "fd00:1::/64", "rangeStart": "fd00:1::100" }],
        ],
        "routes": [{ "dst": "172.16.0.0/12" }, { "dst": "172.32.5.5/32", "gw": "10.1.0.77" }, { "dst": "fd00:2::/48" }],
    });
    same(&detailed, &Asks::default(), &none);
    // Asked for by the pod: an address, and an Ethernet address.
    let asks = Asks {
        runtime: json!({ "ips": ["10.1.0.25/24"], "mac": "0a:00:00:11:22:33" })
            .as_object()
            .unwrap()
            .clone(),
        args: vec![("IgnoreUnknown".into(), "1".into())],
    };
    same(&detailed, &asks, &none);
    // No addresses: the bridge as a switch.
    let plain = json!({ "cniVersion": "0.4.0", "name": "l2", "plugins": [{ "type": "bridge", "bridge": "sw0" }] });
    let bin = reference();
    if bin.is_some() {
        let host = Host::new();
        let pod = host.pod("p");
        let result = host.add(&pod, &plain, &Asks::default()).unwrap();
        assert_eq!((result.ips.len(), result.interfaces.len()), (0, 3));
        assert!(
            pod.say("/sbin/ip", &["link", "show", "eth0"])
                .contains("LOWER_UP")
        );
    }
}

#[test]
fn a_chain_gives_what_the_reference_plugins_give() {
    if !needs_root("a_chain_gives_what_the_reference_plugins_give") {
        return;
    }
    let mut chain = bridge_network("n", "cni0", &["10.88.0.0/24", "fd00:88::/64"]);
    let more = json!([
        { "type": "portmap", "capabilities": { "portMappings": true }, "backend": "nftables" },
        { "type": "tuning", "mac": "0a:00:00:44:55:66", "mtu": 1300, "allmulti": true, "txQLen": 77,
          "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "500" } },
        { "type": "bandwidth", "capabilities": { "bandwidth": true } },
    ]);
    chain["plugins"]
        .as_array_mut()
        .unwrap()
        .extend(more.as_array().unwrap().clone());
    let asks = Asks {
        runtime: json!({
            "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
            "bandwidth": { "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 40_000_000_000_u64, "egressBurst": 16_000_000 },
        })
        .as_object()
        .unwrap()
        .clone(),
        ..Asks::default()
    };
    same(&chain, &asks, &|_| {});
}

#[test]
fn a_pod_alone_with_the_node_is_as_with_the_reference_plugins() {
    if !needs_root("a_pod_alone_with_the_node") {
        return;
    }
    let mut chain = bridge_network("n", "unused", &["10.88.0.0/24", "fd00:88::/64"]);
    let ipam = chain["plugins"][0]["ipam"].clone();
    chain["plugins"] = json!([{ "type": "ptp", "mtu": 1400, "ipam": ipam }]);
    same(&chain, &Asks::default(), &|_| {});
    let written = json!({
        "type": "static",
        "addresses": [
            { "address": "10.88.0.9/24", "gateway": "10.88.0.1" },
            { "address": "fd00:88::9/64", "gateway": "fd00:88::1" },
        ],
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "fd00:1::/48", "gw": "fd00:88::1" }],
        "dns": { "nameservers": ["10.0.0.53"], "domain": "a.b" },
    });
    let mut chain = bridge_network("n", "cni0", &[]);
    chain["plugins"][0]["ipam"] = written;
    same(&chain, &Asks::default(), &|_| {});
    // And packets find their way.
    let host = Host::new();
    let mut chain = bridge_network("n", "unused", &["10.88.0.0/24"]);
    let ipam = chain["plugins"][0]["ipam"].clone();
    chain["plugins"] = json!([{ "type": "ptp", "ipMasq": true, "ipam": ipam }]);
    let (a, b) = (host.pod("a"), host.pod("b"));
    let first = host.add(&a, &chain, &Asks::default()).unwrap();
    let second = host.add(&b, &chain, &Asks::default()).unwrap();
    host.check(&a, &chain, &Asks::default(), &first).unwrap();
    let to = crate::bridge::address(&second, false);
    let server = b.run(|| std::net::TcpListener::bind((to, 0)));
    let at = server.local_addr().unwrap();
    let from = crate::bridge::talk(server, &a, at);
    assert_eq!(from.ip(), crate::bridge::address(&first, false));
}
