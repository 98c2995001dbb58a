//! Ports of the host that lead to pods: from everywhere, and to nobody else.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use wharf_network::{CniError, CniResult, CniVersion, Invocation};
use wharf_testkit::needs_root;

use crate::bridge::neighbour;
use crate::scene::{Asks, Host, Pod, bridge_network};

fn asks(ports: &Value) -> Asks {
    Asks {
        runtime: json!({ "portMappings": ports })
            .as_object()
            .unwrap()
            .clone(),
        ..Asks::default()
    }
}

fn network() -> Value {
    let mut chain = bridge_network("n", "cni0", &["10.88.0.0/24", "fd00:88::/64"]);
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    chain["plugins"].as_array_mut().unwrap().push(portmap);
    chain
}

/// A pod answers every connection and every datagram with the client's address; the connection also
/// gets something large.
fn serve(pod: &Pod, port: u16) {
    let listener = pod.run(|| TcpListener::bind((IpAddr::from([0_u16; 8]), port)));
    std::thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let text = format!("{}\n", from.ip().to_canonical());
            let large = vec![b'x'; 1 << 20];
            let _gone = stream
                .write_all(text.as_bytes())
                .and_then(|()| stream.write_all(&large));
        }
    });
    let socket = pod.run(|| UdpSocket::bind((IpAddr::from([0_u16; 8]), port)));
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_n, from)) = socket.recv_from(&mut buffer) {
            let text = from.ip().to_canonical().to_string();
            let _gone = socket.send_to(text.as_bytes(), from);
        }
    });
}

/// Whom a TCP client is taken for; `None`: nobody answers.
fn tcp(to: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).ok()?;
    let mut all = String::new();
    stream.read_to_string(&mut all).ok()?;
    let (from, rest) = all.split_once('\n')?;
    assert_eq!(rest.len(), 1 << 20, "all of it came");
    Some(from.to_owned())
}

/// The same for UDP.
fn udp(to: SocketAddr) -> Option<String> {
    let any: IpAddr = if to.is_ipv4() {
        [0; 4].into()
    } else {
        [0_u16; 8].into()
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    socket.connect(to).ok()?;
    socket.send(b"?").ok()?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn from_everywhere(host: &Host, [outside, other, pod]: [&Pod; 3]) {
    for (node, theirs) in [
        ("192.0.2.1", "192.0.2.2"),
        ("2001:db8:9::1", "2001:db8:9::2"),
    ] {
        let node = SocketAddr::new(node.parse().unwrap(), 8080);
        let v6 = node.is_ipv6();
        let gateway = if v6 { "fd00:88::1" } else { "10.88.0.1" };
        // From outside with the real address.
        assert_eq!(outside.run(|| Ok(tcp(node))).as_deref(), Some(theirs));
        assert_eq!(outside.run(|| Ok(udp(node))).as_deref(), Some(theirs));
        // From the host: by its address, and by loopback.
        assert!(host.in_net(|| tcp(node)).is_some() && host.in_net(|| udp(node)).is_some());
        let loopback: IpAddr = if v6 { "::1" } else { "127.0.0.1" }.parse().unwrap();
        let loopback = SocketAddr::new(loopback, 8080);
        assert_eq!(
            host.in_net(|| tcp(loopback)).as_deref(),
            Some(gateway),
            "{loopback}"
        );
        assert_eq!(
            host.in_net(|| udp(loopback)).as_deref(),
            Some(gateway),
            "{loopback}"
        );
        // From another pod, and from the pod itself.
        assert!(other.run(|| Ok(tcp(node))).is_some() && other.run(|| Ok(udp(node))).is_some());
        assert!(pod.run(|| Ok(tcp(node))).is_some(), "hairpin");
        assert!(pod.run(|| Ok(udp(node))).is_some(), "hairpin");
    }
}

#[test]
fn a_host_port_is_reached_from_everywhere() {
    if !needs_root("a_host_port_is_reached_from_everywhere") {
        return;
    }
    let host = Host::new().with_runtime();
    let outside = neighbour(&host);
    let chain = network();
    let (pod, other) = (host.pod("pod"), host.pod("other"));
    host.add(&other, &chain, &Asks::default()).unwrap();
    let before = host.nft("list table inet wharf");
    let ports = asks(&json!([
        { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": 8080, "containerPort": 80, "protocol": "UDP" },
        { "hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1" },
        { "hostPort": 8082, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1" },
    ]));
    let result = host.add(&pod, &chain, &ports).unwrap();
    host.check(&pod, &chain, &ports, &result).unwrap();
    serve(&pod, 80);
    from_everywhere(&host, [&outside, &other, &pod]);
    // A port of one address is a port of that address.
    let at = |text: &str| text.parse::<SocketAddr>().unwrap();
    assert!(host.in_net(|| tcp(at("127.0.0.1:8081"))).is_some());
    assert!(outside.run(|| Ok(tcp(at("192.0.2.1:8081")))).is_none());
    assert!(outside.run(|| Ok(tcp(at("192.0.2.1:8082")))).is_some());
    assert!(host.in_net(|| tcp(at("127.0.0.1:8082"))).is_none());
    // A loopback service of the host stays its own.
    let own = host.in_net(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let own = own.local_addr().unwrap();
    pod.say(
        "/sbin/ip",
        &[
            "route",
            "add",
            "127.0.0.1/32",
            "via",
            "10.88.0.1",
            "table",
            "9",
        ],
    );
    assert!(
        pod.run(|| Ok(tcp(SocketAddr::new(
            "10.88.0.1".parse().unwrap(),
            own.port()
        ))))
        .is_none()
    );
    host.del(("pod", Some(&pod)), &chain, &ports, Some(&result))
        .unwrap();
    assert!(outside.run(|| Ok(tcp(at("192.0.2.1:8080")))).is_none());
    assert_eq!(
        without_hairpins(&host.nft("list table inet wharf")),
        without_hairpins(&before)
    );
    assert!(
        !host.say("/bin/ss", &["-Htuln"]).contains(":808"),
        "no port is held"
    );
}

/// The rules without what a network keeps until its last pod is gone.
fn without_hairpins(table: &str) -> String {
    let (head, rest) = table.split_once("set hairpin4").unwrap();
    let (_hairpins, tail) = rest.split_once("set local4").unwrap();
    format!("{head}{tail}")
}

#[test]
fn a_taken_port_names_who_has_it() {
    if !needs_root("a_taken_port_names_who_has_it") {
        return;
    }
    let host = Host::new();
    let chain = network();
    let ports = asks(&json!([{ "hostPort": 9000, "containerPort": 80, "protocol": "tcp" }]));
    let (pod, other) = (host.pod("pod"), host.pod("other"));
    // By a process of the host.
    let listener = host.in_net(|| TcpListener::bind("127.0.0.1:9000").unwrap());
    let error = host.add(&pod, &chain, &ports).unwrap_err();
    let id = format!("process {}", std::process::id());
    assert!(
        error.msg.contains("9000/tcp") && error.msg.contains(&id),
        "{error}"
    );
    drop(listener);
    host.del(("pod", Some(&pod)), &chain, &ports, None).unwrap();
    // By another pod.
    let result = host.add(&pod, &chain, &ports).unwrap();
    let error = host.add(&other, &chain, &ports).unwrap_err();
    assert!(error.msg.contains("pod pod eth0"), "{error}");
    // The failed one's DEL does not take the port from who has it.
    host.del(("other", Some(&other)), &chain, &ports, None)
        .unwrap();
    host.check(&pod, &chain, &ports, &result).unwrap();
    // After a restart of the daemon it is held again.
    let host = host.restarted();
    host.restore(&[("pod", &chain, &ports, &result)]);
    host.check(&pod, &chain, &ports, &result).unwrap();
    host.in_net(|| TcpListener::bind("127.0.0.1:9000"))
        .unwrap_err();
    host.del(("pod", None), &chain, &ports, None).unwrap();
    drop(host.in_net(|| TcpListener::bind("127.0.0.1:9000").unwrap()));
}

#[test]
fn a_thousand_ports_are_no_more_rules_than_one() {
    if !needs_root("a_thousand_ports_are_no_more_rules_than_one") {
        return;
    }
    let host = Host::new();
    let chain = network();
    let (one, many) = (host.pod("one"), host.pod("many"));
    let port = |n: u32| json!({ "hostPort": n, "containerPort": 80, "protocol": "tcp" });
    host.add(&one, &chain, &asks(&json!([port(20_000)])))
        .unwrap();
    let rules = |host: &Host| host.nft("-t list table inet wharf");
    let before = rules(&host);
    let ports: Vec<Value> = (21_000..22_000).map(port).collect();
    let ports = asks(&Value::from(ports));
    let result = host.add(&many, &chain, &ports).unwrap();
    assert_eq!(rules(&host), before);
    assert!(host.nft("list map inet wharf ports4").contains("21999"));
    host.del(("many", None), &chain, &ports, Some(&result))
        .unwrap();
    assert!(!host.nft("list map inet wharf ports4").contains("21999"));
}

#[test]
fn a_udp_flow_that_began_before_finds_the_pod() {
    if !needs_root("a_udp_flow_that_began_before") {
        return;
    }
    let host = Host::new();
    let outside = neighbour(&host);
    let chain = network();
    let pod = host.pod("pod");
    let result = host.add(&pod, &chain, &Asks::default()).unwrap();
    serve(&pod, 53);
    // A client that does not give up: its flow is known as one to the host itself.
    let client = outside.run(|| UdpSocket::bind("192.0.2.2:7777"));
    client
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    client.connect("192.0.2.1:5353").unwrap();
    client.send(b"?").unwrap();
    let refused = client.recv(&mut [0; 8]).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let ports = asks(&json!([{ "hostPort": 5353, "containerPort": 53, "protocol": "udp" }]));
    host.del(("pod", Some(&pod)), &chain, &Asks::default(), Some(&result))
        .unwrap();
    let again = host.pod("again");
    let result = host.add(&again, &chain, &ports).unwrap();
    serve(&again, 53);
    client.send(b"?").unwrap();
    let mut buffer = [0; 64];
    let length = client.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"192.0.2.2");
    // And when the pod goes, another one is found.
    host.del(("again", Some(&again)), &chain, &ports, Some(&result))
        .unwrap();
    let third = host.pod("third");
    host.add(&third, &chain, &ports).unwrap();
    serve(&third, 53);
    drop(again);
    client.send(b"?").unwrap();
    client.recv(&mut buffer).unwrap();
}

/// ADD of a port by a program that another runtime calls.
fn add_by_program(host: &Host, id: &str, port: &Value) -> Result<CniResult, CniError> {
    let program = host.program();
    let plugin = json!({ "type": "portmap" });
    let result: CniResult = serde_json::from_value(json!({
        "interfaces": [{ "name": "eth0", "sandbox": "/run/netns/x" }],
        "ips": [{ "address": "10.88.0.2/24", "interface": 0 }],
    }))
    .unwrap();
    let asks = asks(&json!([port]));
    let call = Invocation {
        network: "n",
        version: CniVersion::V1_1_0,
        plugin: plugin.as_object().unwrap(),
        prev_result: Some(&result),
        runtime_config: &asks.runtime,
        container_id: id,
        ifname: "eth0",
        netns: None,
        args: &[],
        delegate: host,
    };
    host.in_net(|| program.get("portmap").unwrap().add(&call))
}

#[test]
fn programs_that_map_ports_at_the_same_time_lose_none() {
    if !needs_root("programs_that_map_ports_at_the_same_time") {
        return;
    }
    let host = Host::new();
    let port = |n: u32| json!({ "hostPort": n, "containerPort": 80, "protocol": "tcp" });
    // The first ones find no table, which is when they could take each other's for nobody's.
    for _round in 0..12 {
        let together = std::sync::Barrier::new(12);
        std::thread::scope(|scope| {
            for n in 20_000..20_012 {
                let (host, together) = (&host, &together);
                scope.spawn(move || {
                    together.wait();
                    add_by_program(host, &format!("pod{n}"), &port(n)).unwrap();
                });
            }
        });
        let map = host.nft("list map inet wharf_cni ports4");
        for n in 20_000..20_012 {
            assert!(map.contains(&n.to_string()), "{n} in {map}");
        }
        host.nft("delete table inet wharf_cni");
    }
    // A port on loopback alone needs somebody who stays: it is refused, not left out.
    let mut alone = port(21_000);
    alone["hostIP"] = "127.0.0.1".into();
    let error = add_by_program(&host, "alone", &alone).unwrap_err();
    assert!(error.msg.contains("hostIP"), "{error}");
}

#[test]
fn a_port_may_be_asked_for_by_family() {
    if !needs_root("a_port_may_be_asked_for_by_family") {
        return;
    }
    let host = Host::new();
    let chain = network();
    let of = |at: &str, inside: u16| json!({ "hostPort": 9000, "containerPort": inside, "protocol": "tcp", "hostIP": at });
    let (pod, other) = (host.pod("pod"), host.pod("other"));
    let both = asks(&json!([of("0.0.0.0", 80), of("::", 81)]));
    let result = host.add(&pod, &chain, &both).unwrap();
    host.check(&pod, &chain, &both, &result).unwrap();
    assert!(host.nft("list map inet wharf ports4").contains(". 80"));
    assert!(host.nft("list map inet wharf ports6").contains(". 81"));
    let one = asks(&json!([of("192.0.2.1", 80)]));
    let error = host.add(&other, &chain, &one).unwrap_err();
    assert!(error.msg.contains("pod pod eth0"), "{error}");
}
