//! Pods on a bridge: they reach each other, the host, and a machine beside it.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use serde_json::json;
use wharf_network::CniResult;
use wharf_testkit::needs_root;

use crate::scene::{Asks, Host, Pod, bridge_network, eventually};

/// The pod's address of a family.
pub(crate) fn address(result: &CniResult, v6: bool) -> IpAddr {
    let mut all = result.ips.iter().map(|ip| ip.address.addr);
    all.find(|a| a.is_ipv6() == v6).unwrap()
}

/// How much goes through in a large transfer.
const LARGE: usize = 8 << 20;

/// One connection with a large answer. Gives from where the server saw it come.
pub(crate) fn transfer(
    listener: TcpListener,
    connect: impl FnOnce() -> io::Result<TcpStream> + Send,
    client: impl FnOnce(Box<dyn FnOnce() -> io::Result<usize> + Send>) -> usize,
) -> SocketAddr {
    let server = std::thread::spawn(move || {
        let (mut stream, from) = listener.accept().unwrap();
        stream.write_all(&vec![7; LARGE]).unwrap();
        from
    });
    let got = std::thread::scope(|_s| {
        let stream = connect().unwrap();
        client(Box::new(move || {
            let mut stream = stream;
            let mut all = Vec::new();
            stream.read_to_end(&mut all)
        }))
    });
    assert_eq!(got, LARGE);
    server.join().unwrap()
}

fn listen(pod: &Pod, address: IpAddr) -> TcpListener {
    pod.run(|| TcpListener::bind((address, 0)))
}

/// A machine beside the host, which knows no way to the pods: 192.0.2.2 and 2001:db8:9::2; the host
/// is 192.0.2.1 and 2001:db8:9::1.
pub(crate) fn neighbour(host: &Host) -> Pod {
    let neighbour = host.pod("neighbour");
    host.ip("link add up0 type veth peer name eth0");
    host.ip(&format!("link set eth0 netns {}", pid(&neighbour)));
    for args in [
        "addr add 192.0.2.1/24 dev up0",
        "addr add 2001:db8:9::1/64 dev up0 nodad",
        "link set up0 mtu 1400 up",
    ] {
        host.ip(args);
    }
    for args in [
        "addr add 192.0.2.2/24 dev eth0",
        "addr add 2001:db8:9::2/64 dev eth0 nodad",
        "link set eth0 mtu 1400 up",
    ] {
        neighbour.say("/sbin/ip", &args.split(' ').collect::<Vec<_>>());
    }
    host.ip("route add default via 192.0.2.2");
    neighbour
}

#[test]
fn pods_of_both_families_reach_each_other_the_host_and_a_neighbour_behind_masquerading() {
    if !needs_root("pods_of_both_families_reach_each_other") {
        return;
    }
    let host = Host::new();
    let neighbour = neighbour(&host);
    let chain = bridge_network("n", "cni0", &["10.88.0.0/24", "fd00:88::/64"]);
    let (a, b) = (host.pod("aaa"), host.pod("bbb"));
    let first = host.add(&a, &chain, &Asks::default()).unwrap();
    let second = host.add(&b, &chain, &Asks::default()).unwrap();
    host.check(&a, &chain, &Asks::default(), &first).unwrap();
    assert!(
        a.say("/sbin/ip", &["link", "show", "eth0"])
            .contains("mtu 1400"),
        "as the uplink"
    );
    for v6 in [false, true] {
        let (one, two) = (address(&first, v6), address(&second, v6));
        let gateway = first
            .ips
            .iter()
            .find(|ip| ip.address.addr == one)
            .unwrap()
            .gateway
            .unwrap();
        // Pod to pod, with its own address.
        let server = listen(&b, two);
        let to = server.local_addr().unwrap();
        let from = talk(server, &a, to);
        assert_eq!(from.ip(), one);
        // Pod to host, host to pod.
        let server = host.in_net(|| TcpListener::bind((gateway, 0)).unwrap());
        let to = server.local_addr().unwrap();
        assert_eq!(talk(server, &a, to).ip(), one);
        let server = listen(&a, one);
        let to = server.local_addr().unwrap();
        let stream = host.in_net(|| TcpStream::connect(to).unwrap());
        assert_eq!(server.accept().unwrap().1, stream.local_addr().unwrap());
        // Pod to the neighbour: with the host's address.
        let theirs: IpAddr = if v6 { "2001:db8:9::2" } else { "192.0.2.2" }
            .parse()
            .unwrap();
        let ours: IpAddr = if v6 { "2001:db8:9::1" } else { "192.0.2.1" }
            .parse()
            .unwrap();
        let server = listen(&neighbour, theirs);
        let to = server.local_addr().unwrap();
        assert_eq!(talk(server, &a, to).ip(), ours);
        // UDP as well.
        let server = neighbour.run(|| UdpSocket::bind((theirs, 0)));
        let to = server.local_addr().unwrap();
        a.run(|| {
            let any: IpAddr = if v6 { "::" } else { "0.0.0.0" }.parse().unwrap();
            UdpSocket::bind((any, 0))?.send_to(b"hello", to)
        });
        let mut buffer = [0; 16];
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from.ip()), (&b"hello"[..], ours));
    }
}

/// A large transfer from a server to a pod. Gives from where the server saw it come.
pub(crate) fn talk(server: TcpListener, client: &Pod, to: SocketAddr) -> SocketAddr {
    transfer(
        server,
        || Ok(client.run(|| TcpStream::connect(to))),
        |read| read().unwrap(),
    )
}

pub(crate) fn pid(pod: &Pod) -> String {
    pod.path.iter().nth(2).unwrap().to_str().unwrap().to_owned()
}

#[test]
fn an_address_is_not_given_again_before_its_interface_is_gone() {
    if !needs_root("an_address_is_not_given_again") {
        return;
    }
    let host = Host::new();
    // Two addresses: the gateway's and two of pods.
    let chain = bridge_network("n", "cni0", &["10.88.0.0/29"]);
    let asks = Asks {
        args: vec![("IP".into(), "10.88.0.2".into())],
        ..Asks::default()
    };
    let old = host.pod("old");
    let result = host.add(&old, &chain, &asks).unwrap();
    host.del(("old", Some(&old)), &chain, &asks, Some(&result))
        .unwrap();
    host.del(("old", None), &chain, &asks, None).unwrap();
    // The old namespace lives: its interface still answers for the address.
    let new = host.pod("new");
    let refused = host.add(&new, &chain, &asks).unwrap_err();
    assert!(
        refused.msg.contains("10.88.0.2") && refused.msg.contains("still going"),
        "{refused}"
    );
    let other = host.add(&new, &chain, &Asks::default()).unwrap();
    assert_eq!(address(&other, false).to_string(), "10.88.0.3");
    drop(old);
    let again = host.pod("again");
    eventually("the old interface is gone", || {
        host.add(&again, &chain, &asks).is_ok()
    });
    // And the same call gives the same again.
    let same = host.add(&again, &chain, &Asks::default()).unwrap();
    assert_eq!(address(&same, false).to_string(), "10.88.0.2");
}

#[test]
fn a_failed_add_leaves_nothing_and_bad_configurations_name_their_field() {
    if !needs_root("a_failed_add_leaves_nothing") {
        return;
    }
    let host = Host::new();
    let pod = host.pod("pod");
    for (field, change) in [
        ("bridge", json!({ "bridge": "far too long for a name" })),
        ("vlan", json!({ "vlan": 5000 })),
        ("hairpinMode", json!({ "promiscMode": true })),
        ("mtu", json!({ "mtu": "big" })),
        ("isGatway", json!({ "isGatway": true })),
        (
            "ipam.ranges[0][0].subnet",
            json!({ "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.1.0.1/24" }]] } }),
        ),
        (
            "ipam.ranges",
            json!({ "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "10.1.0.0/16" }]] } }),
        ),
        (
            "ipam.ranges[0][0].rangeEnd",
            json!({ "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.1.0.0/24", "rangeEnd": "10.2.0.9" }]] } }),
        ),
        (
            "ipam.dataDirr",
            json!({ "ipam": { "type": "host-local", "dataDirr": "/x", "subnet": "10.1.0.0/24" } }),
        ),
    ] {
        let mut chain = bridge_network("n", "cni0", &["10.88.0.0/24"]);
        for (key, value) in change.as_object().unwrap() {
            chain["plugins"][0][key] = value.clone();
        }
        let error = host.add(&pod, &chain, &Asks::default()).unwrap_err();
        let name = field.rsplit('.').next().unwrap();
        assert!(error.msg.contains(name), "{field}: {error}");
    }
    // The bridge has another address, which is found out after the pod's was reserved.
    let chain = bridge_network("n", "cni1", &["10.88.0.0/29"]);
    host.ip("link add cni1 type bridge");
    host.ip("addr add 10.99.0.1/24 dev cni1");
    for _more_often_than_there_are_addresses in 0..8 {
        let error = host.add(&pod, &chain, &Asks::default()).unwrap_err();
        assert!(
            error.msg.contains("10.99.0.1/24") && error.msg.contains("forceAddress"),
            "{error}"
        );
    }
    assert!(
        !host.ip("-o link").contains("veth"),
        "{}",
        host.ip("-o link")
    );
    assert_eq!(
        pod.say("/sbin/ip", &["-o", "link"]).lines().count(),
        1,
        "the loopback"
    );
}

#[test]
fn an_exhausted_range_says_so_and_addresses_go_round() {
    if !needs_root("an_exhausted_range") {
        return;
    }
    let host = Host::new();
    let chain = bridge_network("n", "cni0", &["10.88.0.0/29"]);
    let mut pods = Vec::new();
    let mut given = Vec::new();
    for i in 0..5 {
        let pod = host.pod(&format!("p{i}"));
        let result = host.add(&pod, &chain, &Asks::default()).unwrap();
        given.push(address(&result, false).to_string());
        pods.push(pod);
    }
    assert_eq!(
        given,
        [
            "10.88.0.2",
            "10.88.0.3",
            "10.88.0.4",
            "10.88.0.5",
            "10.88.0.6"
        ]
    );
    let more = host.pod("more");
    let error = host.add(&more, &chain, &Asks::default()).unwrap_err();
    assert_eq!(error.code, wharf_network::error::TRY_AGAIN);
    assert!(
        error.msg.contains("10.88.0.1-10.88.0.6") && error.msg.contains("network wharf-test-n"),
        "{error}"
    );
    host.del(("p2", None), &chain, &Asks::default(), None)
        .unwrap();
    drop(pods.remove(2));
    let mut result = None;
    eventually("its interface is gone", || {
        result = host.add(&more, &chain, &Asks::default()).ok();
        result.is_some()
    });
    assert_eq!(address(&result.unwrap(), false).to_string(), "10.88.0.4");
}
