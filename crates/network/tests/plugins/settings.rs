//! Settings of interfaces, limits, and what is let through.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use wharf_testkit::needs_root;

use crate::bridge::address;
use crate::scene::{Asks, Host, Pod, bridge_network};

fn network(name: &str, bridge: &str, subnet: &str, more: &Value) -> Value {
    let mut chain = bridge_network(name, bridge, &[subnet]);
    chain["plugins"].as_array_mut().unwrap().push(more.clone());
    chain
}

#[test]
fn tuning_sets_what_it_says_and_puts_back_what_was() {
    if !needs_root("tuning_sets_what_it_says") {
        return;
    }
    let host = Host::new();
    let tuning = json!({
        "type": "tuning", "mac": "0a:00:00:01:02:03", "mtu": 1234, "promisc": true, "allmulti": true,
        "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" },
    });
    let chain = network("n", "cni0", "10.88.0.0/24", &tuning);
    let pod = host.pod("pod");
    let result = host.add(&pod, &chain, &Asks::default()).unwrap();
    assert_eq!(result.interfaces[2].mac, "0a:00:00:01:02:03");
    host.check(&pod, &chain, &Asks::default(), &result).unwrap();
    let seen = pod.say("/sbin/ip", &["-d", "link", "show", "eth0"]);
    for part in ["mtu 1234", "PROMISC", "ALLMULTI", "0a:00:00:01:02:03"] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    pod.say("/sbin/ip", &["link", "set", "eth0", "mtu", "1400"]);
    let error = host
        .check(&pod, &chain, &Asks::default(), &result)
        .unwrap_err();
    assert!(error.msg.contains("1400"), "{error}");
    host.del(("pod", Some(&pod)), &chain, &Asks::default(), Some(&result))
        .unwrap();
    let seen = pod.say("/sbin/ip", &["-d", "link", "show", "eth0"]);
    assert!(
        seen.contains("mtu 1500") && !seen.contains("PROMISC"),
        "{seen}"
    );
    for (bad, field) in [
        (
            json!({ "type": "tuning", "sysctl": { "kernel.pid_max": "1" } }),
            "sysctl",
        ),
        (
            json!({ "type": "tuning", "sysctl": { "net.ipv4.../../kernel": "1" } }),
            "sysctl",
        ),
        (json!({ "type": "tuning", "mac": "nonsense" }), "mac"),
        (json!({ "type": "tuning", "mtuu": 3 }), "mtuu"),
    ] {
        let chain = network("n", "cni0", "10.88.0.0/24", &bad);
        let error = host
            .add(&host.pod("bad"), &chain, &Asks::default())
            .unwrap_err();
        assert!(error.msg.starts_with(field), "{error}");
    }
}

pub(crate) fn reaches(from: &Pod, to: &Pod, address: IpAddr) -> bool {
    let listener = to.run(|| TcpListener::bind((address, 0)));
    let at = listener.local_addr().unwrap();
    from.run(|| Ok(TcpStream::connect_timeout(&at, Duration::from_millis(700)).is_ok()))
}

#[test]
fn a_firewall_keeps_apart_what_it_says() {
    if !needs_root("a_firewall_keeps_apart_what_it_says") {
        return;
    }
    let host = Host::new();
    let none = Asks::default();
    let policy = |policy: &str| json!({ "type": "firewall", "ingressPolicy": policy });
    let mut pods = Vec::new();
    for (name, bridge, subnet, text) in [
        ("open", "br0", "10.80.0.0/24", "open"),
        ("one", "br1", "10.81.0.0/24", "same-bridge"),
        ("two", "br2", "10.82.0.0/24", "same-bridge"),
        ("alone", "br3", "10.83.0.0/24", "isolated"),
    ] {
        let mut chain = network(name, bridge, subnet, &policy(text));
        chain["plugins"][0]["ipMasq"] = json!(false);
        let both: Vec<(Pod, IpAddr)> = ["a", "b"]
            .map(|id| {
                let pod = host.pod(&format!("{name}-{id}"));
                let result = host.add(&pod, &chain, &none).unwrap();
                host.check(&pod, &chain, &none, &result).unwrap();
                let own = address(&result, false);
                (pod, own)
            })
            .into();
        pods.push(both);
    }
    let reach = |from: (usize, usize), to: (usize, usize)| {
        let to = &pods[to.0][to.1];
        reaches(&pods[from.0][from.1].0, &to.0, to.1)
    };
    assert!(reach((0, 0), (0, 1)), "on an open bridge");
    assert!(reach((1, 0), (1, 1)), "on the same bridge");
    assert!(!reach((1, 0), (2, 0)), "from bridge to bridge");
    assert!(
        reach((0, 0), (1, 0)),
        "an open bridge reaches the others, as with the reference"
    );
    assert!(!reach((3, 0), (3, 1)), "isolated");
    let error = host
        .add(
            &host.pod("x"),
            &network("x", "br9", "10.89.0.0/24", &policy("closed")),
            &none,
        )
        .unwrap_err();
    assert!(error.msg.starts_with("ingressPolicy"), "{error}");
}

#[test]
fn frames_with_anothers_address_do_not_pass() {
    if !needs_root("frames_with_anothers_address_do_not_pass") {
        return;
    }
    let host = Host::new();
    let mut chain = bridge_network("n", "cni0", &["10.88.0.0/24"]);
    chain["plugins"][0]["macspoofchk"] = json!(true);
    let (a, b) = (host.pod("a"), host.pod("b"));
    let first = host.add(&a, &chain, &Asks::default()).unwrap();
    let second = host.add(&b, &chain, &Asks::default()).unwrap();
    let to = address(&second, false);
    assert!(reaches(&a, &b, to));
    a.say(
        "/sbin/ip",
        &["link", "set", "eth0", "address", "0a:11:22:33:44:55"],
    );
    assert!(!reaches(&a, &b, to));
    host.del(("a", Some(&a)), &chain, &Asks::default(), Some(&first))
        .unwrap();
    assert!(reaches(&a, &b, to), "nothing is checked after DEL");
}
