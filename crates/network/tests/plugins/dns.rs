//! The embedded DNS of a pod, asked by the usual clients from inside: `dig`, `getent`.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with};
use wharf_network::dns::wire::{self, A, Code, Record};
use wharf_network::dns::{ADDRESS, Book, Listeners, Membership, Resolver, Serving, redirect};

use crate::scene::{Host, Pod, eventually};

const DIG: &str = "/usr/bin/dig";

/// Servers of the host's: `127.0.0.53` and `127.0.0.54`, in its network namespace.
struct Servers {
    asked: Arc<Mutex<Vec<String>>>,
    /// Questions that are never answered.
    silent: Arc<AtomicUsize>,
}

impl Servers {
    fn start(host: &Host) -> Self {
        let servers = Self {
            asked: Arc::default(),
            silent: Arc::default(),
        };
        for server in ["127.0.0.53", "127.0.0.54"] {
            let bound = || {
                let tcp = TcpListener::bind((server, 53)).unwrap();
                (UdpSocket::bind((server, 53)).unwrap(), tcp)
            };
            let (udp, tcp) = host.in_net(bound);
            let (asked, silent) = (servers.asked.clone(), servers.silent.clone());
            std::thread::spawn(move || datagrams(server, &udp, &asked, &silent));
            std::thread::spawn(move || streams(&tcp));
        }
        servers
    }

    fn were_asked(&self, name: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|n| n == name)
    }
}

fn many() -> Vec<Record> {
    let address = |n: u8| Record::Address(Ipv4Addr::new(192, 0, 2, n).into());
    (0..200).map(address).collect()
}

fn datagrams(server: &str, udp: &UdpSocket, asked: &Mutex<Vec<String>>, silent: &AtomicUsize) {
    let mut buffer = [0; 4096];
    while let Ok((length, from)) = udp.recv_from(&mut buffer) {
        let message = &buffer[..length];
        let query = wire::read(message).unwrap();
        asked.lock().unwrap().push(query.name.clone());
        let one = [Record::Address(Ipv4Addr::new(192, 0, 2, 1).into())];
        let forged = [Record::Address(Ipv4Addr::new(6, 6, 6, 6).into())];
        let answer = match query.name.as_str() {
            "silent.test" => {
                silent.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            "first-fails.test" if server == "127.0.0.53" => {
                query.answer(Code::ServerFailure, &[], 512)
            }
            "missing.test" => query.answer(Code::NoSuchName, &[], 512),
            "many.test" => query.answer(Code::Fine, &many(), 512),
            "forged.test" => {
                let mut wrong = query.answer(Code::Fine, &forged, 512);
                let id = query.id.wrapping_add(1);
                wire::set_id(&mut wrong, id);
                udp.send_to(&wrong, from).unwrap();
                let other = wire::ask(query.id, "other.test", A, None).unwrap();
                let other = wire::read(&other).unwrap().answer(Code::Fine, &forged, 512);
                udp.send_to(&other, from).unwrap();
                query.answer(Code::Fine, &one, 512)
            }
            _ => query.answer(Code::Fine, &one, 512),
        };
        udp.send_to(&answer, from).unwrap();
    }
}

fn streams(tcp: &TcpListener) {
    while let Ok((mut stream, _)) = tcp.accept() {
        let mut length = [0; 2];
        if stream.read_exact(&mut length).is_err() {
            continue;
        }
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut message).unwrap();
        let query = wire::read(&message).unwrap();
        let answer = query.answer(Code::Fine, &many(), wire::TCP_MAX);
        let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
        stream.write_all(&length).unwrap();
        stream.write_all(&answer).unwrap();
    }
}

/// A host with a resolver for its pods.
struct Net {
    host: Host,
    resolver: Resolver,
    servers: Servers,
}

impl Net {
    fn begin() -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new(DIG).exists() {
            println!("skipped: needs root and {DIG}");
            return None;
        }
        let host = Host::new().with_runtime();
        let servers = Servers::start(&host);
        let file = resolv_conf(
            &host,
            "upstream",
            "nameserver 127.0.0.53\nnameserver 127.0.0.54\n",
        );
        Some(Self {
            resolver: Resolver::new(Book::default(), file),
            servers,
            host,
        })
    }

    /// Serves a pod from now on.
    fn serve(&self, pod: &Pod) -> Serving {
        let (udp, tcp, rules) = pod.run(|| {
            std::process::Command::new("/sbin/ip")
                .args(["link", "set", "lo", "up"])
                .status()?;
            let udp = UdpSocket::bind((ADDRESS, 0))?;
            let tcp = TcpListener::bind((ADDRESS, 0))?;
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            let (family, flags) = (AddressFamily::NETLINK, SocketFlags::CLOEXEC);
            let rules = socket_with(family, SocketType::RAW, flags, Some(netlink::NETFILTER))?;
            Ok((udp, tcp, rules))
        });
        let port = |a: std::io::Result<std::net::SocketAddr>| a.unwrap().port();
        redirect(rules, port(udp.local_addr()), port(tcp.local_addr())).unwrap();
        let listeners = Listeners { udp, tcp };
        self.host
            .in_net(|| self.resolver.serve(&pod.id, listeners).unwrap())
    }

    fn member(&self, pod: &str, network: &str, addresses: &[&str], names: &[&str]) {
        let address = |a: &&str| a.parse::<IpAddr>().unwrap();
        let member = Membership {
            network: network.to_owned(),
            internal: network == "internal",
            addresses: addresses.iter().map(address).collect(),
            names: names.iter().map(|n| (*n).to_owned()).collect(),
        };
        self.resolver.book().set(pod, vec![member]);
    }
}

fn resolv_conf(host: &Host, name: &str, text: &str) -> PathBuf {
    let file = host.directory.path().join(name);
    std::fs::write(&file, text).unwrap();
    file
}

/// What dig says: short, of our server.
fn dig(pod: &Pod, words: &str) -> Vec<String> {
    let mut args = vec!["@127.0.0.11", "+short", "+tries=1", "+time=8"];
    args.extend(words.split(' '));
    let said = pod.say(DIG, &args);
    said.lines().map(str::to_owned).collect()
}

/// The same, whole.
fn whole(pod: &Pod, words: &str) -> String {
    let mut args = vec!["@127.0.0.11", "+tries=1", "+time=8"];
    args.extend(words.split(' '));
    pod.say(DIG, &args)
}

#[test]
fn neighbours_are_found_by_name_and_everything_else_by_the_hosts_servers() {
    let Some(net) = Net::begin() else {
        return;
    };
    let pod = net.host.pod("p1");
    let _serving = net.serve(&pod);
    net.member("p1", "front", &["10.0.0.1", "fd00::1"], &["web", "shop"]);
    net.member("p2", "front", &["10.0.0.2"], &["web2", "shop"]);
    // Somebody inside serves DNS too.
    let _theirs = pod.run(|| {
        Ok((
            UdpSocket::bind("0.0.0.0:53")?,
            TcpListener::bind("0.0.0.0:53")?,
        ))
    });
    assert_eq!(dig(&pod, "WEB2"), ["10.0.0.2"]);
    assert_eq!(dig(&pod, "+tcp web2.front"), ["10.0.0.2"]);
    assert_eq!(dig(&pod, "web AAAA"), ["fd00::1"]);
    assert_eq!(dig(&pod, "+noedns web2"), ["10.0.0.2"]);
    assert_eq!(dig(&pod, "-x 10.0.0.2"), ["web2.front."]);
    assert_eq!(dig(&pod, "-x fd00::1"), ["web.front."]);
    let none = whole(&pod, "web2 AAAA");
    assert!(
        none.contains("status: NOERROR") && none.contains("ANSWER: 0"),
        "{none}"
    );
    assert!(
        !none.contains("warning") && !none.contains("WARNING"),
        "{none}"
    );
    // Each of several is first at some time.
    let first = |n| dig(&pod, "shop")[0] == n;
    eventually("p1 is first", || first("10.0.0.1"));
    eventually("p2 is first", || first("10.0.0.2"));
    let mut both = dig(&pod, "shop");
    both.sort();
    assert_eq!(both, ["10.0.0.1", "10.0.0.2"]);
    assert!(!net.servers.were_asked("shop"));

    assert_eq!(dig(&pod, "example.test"), ["192.0.2.1"]);
    assert!(whole(&pod, "missing.test").contains("NXDOMAIN"));
    assert_eq!(dig(&pod, "first-fails.test"), ["192.0.2.1"]);
    assert_eq!(dig(&pod, "forged.test"), ["192.0.2.1"]);
    // By UDP it is cut, which sends dig to TCP.
    assert_eq!(dig(&pod, "many.test").len(), 200);
    assert!(whole(&pod, "+ignore many.test").contains(" tc "));
    assert!(whole(&pod, "+edns=1 +noednsneg web2").contains("BADVERS"));
    // A server of the host's was replaced.
    resolv_conf(&net.host, "upstream", "nameserver 127.0.0.54\n");
    assert_eq!(dig(&pod, "first-fails.test"), ["192.0.2.1"]);
}

#[test]
fn the_c_librarys_resolver_is_content() {
    let Some(net) = Net::begin() else {
        return;
    };
    let pod = net.host.pod("p1");
    let _serving = net.serve(&pod);
    net.member("p1", "front", &["10.0.0.1", "fd00::1"], &["web"]);
    // It asks only about families that the pod has beside loopback.
    for address in ["10.0.0.1/24", "fd00::1/64"] {
        pod.say("/sbin/ip", &["addr", "add", address, "dev", "lo"]);
    }
    let text = "nameserver 127.0.0.11\nsearch test\noptions ndots:0\n";
    let file = resolv_conf(&net.host, "inside", text);
    let script = |asks: &str| {
        format!(
            "mount --bind {} /etc/resolv.conf && getent {asks}",
            file.display()
        )
    };
    let said = |asks: &str| pod.say("/usr/bin/unshare", &["-m", "sh", "-c", &script(asks)]);
    assert!(said("ahostsv4 web").starts_with("10.0.0.1 "));
    assert!(said("ahostsv6 web.front").starts_with("fd00::1 "));
    assert!(said("hosts 10.0.0.1").contains("web.front"));
    assert!(said("ahostsv4 example.test").starts_with("192.0.2.1"));
}

#[test]
fn pods_of_internal_networks_learn_nothing_of_the_world() {
    let Some(net) = Net::begin() else {
        return;
    };
    let pod = net.host.pod("p1");
    let _serving = net.serve(&pod);
    net.member("p1", "internal", &["10.0.0.1"], &["web"]);
    assert_eq!(dig(&pod, "web"), ["10.0.0.1"]);
    assert!(whole(&pod, "secret.example.test").contains("NXDOMAIN"));
    assert!(whole(&pod, "+tcp secret.example.test").contains("NXDOMAIN"));
    assert!(!net.servers.were_asked("secret.example.test"));
}

#[test]
fn a_pod_that_asks_too_much_is_refused_and_keeps_nobody_waiting() {
    let Some(net) = Net::begin() else {
        return;
    };
    let (greedy, modest) = (net.host.pod("greedy"), net.host.pod("modest"));
    let _serving = [net.serve(&greedy), net.serve(&modest)];
    net.member("greedy", "front", &["10.0.0.1"], &["greedy"]);
    net.member("modest", "front", &["10.0.0.2"], &["modest"]);
    let socket = greedy.run(|| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect((ADDRESS, 53))?;
        socket.set_read_timeout(Some(std::time::Duration::from_secs(30)))?;
        Ok(socket)
    });
    let limit = wharf_network::limits::DNS_FORWARDS_PER_POD;
    let ask = |id: u16| {
        let question = wire::ask(id, "silent.test", A, None).unwrap();
        socket.send(&question).unwrap();
    };
    for n in 0..limit {
        ask(u16::try_from(n).unwrap());
        // Not faster than they are read: the kernel drops what does not fit in its queue.
        eventually("asked", || net.servers.silent.load(Ordering::SeqCst) > n);
    }
    ask(9999);
    let mut buffer = [0; 512];
    let mut answer = || {
        let length = socket.recv(&mut buffer).unwrap();
        (
            u16::from_be_bytes([buffer[0], buffer[1]]),
            buffer[3] & 15,
            length,
        )
    };
    let (id, code, _) = answer();
    assert_eq!((id, code), (9999, 2));
    assert_eq!(dig(&modest, "example.test"), ["192.0.2.1"]);
    assert_eq!(dig(&modest, "greedy"), ["10.0.0.1"]);
    // The others are answered too, in the end.
    assert_eq!(answer().1, 2);
    // Connections beyond the limit wait; the answers of others do not.
    let most = wharf_network::limits::DNS_CONNECTIONS_PER_POD;
    let _idle: Vec<TcpStream> = (0..most + 4)
        .map(|_| greedy.run(|| TcpStream::connect((ADDRESS, 53))))
        .collect();
    assert_eq!(dig(&modest, "+tcp modest"), ["10.0.0.2"]);
    assert_eq!(dig(&greedy, "greedy"), ["10.0.0.1"]);
}

#[test]
fn what_is_no_question_hurts_nobody() {
    let Some(net) = Net::begin() else {
        return;
    };
    let pod = net.host.pod("p1");
    let serving = net.serve(&pod);
    net.member("p1", "front", &["10.0.0.1"], &["web"]);
    let socket = pod.run(|| UdpSocket::bind("127.0.0.1:0"));
    for bytes in [
        &[][..],
        &[0; 1],
        &[0xff; 12],
        &[0; 12],
        &[0xc0; 512],
        &[1; 4000],
    ] {
        socket.send_to(bytes, (ADDRESS, 53)).unwrap();
    }
    let mut stream = pod.run(|| TcpStream::connect((ADDRESS, 53)));
    stream.write_all(&[0, 3, 1, 2, 3]).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "{rest:?}");
    assert_eq!(dig(&pod, "web"), ["10.0.0.1"]);
    // Served anew, as after a restart of the daemon: other ports, the same address.
    drop(serving);
    let _serving = net.serve(&pod);
    assert_eq!(dig(&pod, "web"), ["10.0.0.1"]);
    let rules = pod.say("/usr/sbin/nft", &["list", "table", "ip", "wharf_dns"]);
    assert_eq!(rules.matches("dnat to 127.0.0.11").count(), 2, "{rules}");
}
