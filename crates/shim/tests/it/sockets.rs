//! Sockets in the pod's network namespace.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;

use wharf_plan::Fds;
use wharf_plan::message::{Body, Failure, FailureKind, OpenSocket, SocketEnd, SocketKind};

use crate::rig::{Client, Zygote, pod, readable, root};

fn end(address: &str) -> Option<SocketEnd> {
    let address: SocketAddr = address.parse().unwrap();
    let bytes = match address {
        SocketAddr::V4(a) => a.ip().octets().to_vec(),
        SocketAddr::V6(a) => a.ip().octets().to_vec(),
    };
    Some(SocketEnd {
        address: bytes,
        port: address.port().into(),
    })
}

fn listener(at: &str) -> OpenSocket {
    OpenSocket {
        kind: SocketKind::Stream.into(),
        bind: end(at),
        backlog: 16,
        ..OpenSocket::default()
    }
}

fn to(kind: SocketKind, address: &str) -> OpenSocket {
    OpenSocket {
        kind: kind.into(),
        connect: end(address),
        ..OpenSocket::default()
    }
}

fn open(client: &mut Client, asked: OpenSocket) -> Result<OwnedFd, Failure> {
    match client.request(Body::OpenSocket(asked), &Fds::new())? {
        (Body::Done(_), mut fds) => Ok(fds.take("socket").expect("a socket")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_socket_is_in_the_pods_network_and_the_caller_has_it() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    for any in ["127.0.0.1:0", "[::1]:0", "127.0.0.11:0"] {
        let listener = TcpListener::from(open(&mut pod.client, listener(any)).unwrap());
        let at = listener.local_addr().unwrap();
        // Not in ours.
        let here = TcpStream::connect(at).unwrap_err();
        assert_eq!(here.kind(), ErrorKind::ConnectionRefused, "{at}");
        let asked = to(SocketKind::Stream, &at.to_string());
        let mut near = TcpStream::from(open(&mut pod.client, asked).unwrap());
        assert!(readable(&listener));
        let (mut far, _) = listener.accept().unwrap();
        far.write_all(b"inside").unwrap();
        drop(far);
        near.set_nonblocking(false).unwrap();
        let mut said = String::new();
        near.read_to_string(&mut said).unwrap();
        assert_eq!(said, "inside");
    }
}

#[test]
fn datagrams_go_both_ways() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    let own = OpenSocket {
        kind: SocketKind::Datagram.into(),
        bind: end("127.0.0.11:53"),
        ..OpenSocket::default()
    };
    let server = UdpSocket::from(open(&mut pod.client, own.clone()).unwrap());
    let taken = open(&mut pod.client, own).unwrap_err();
    assert_eq!(
        (taken.object.as_str(), taken.errno),
        ("127.0.0.11:53", rustix::io::Errno::ADDRINUSE.raw_os_error())
    );
    let asked = to(SocketKind::Datagram, "127.0.0.11:53");
    let client = UdpSocket::from(open(&mut pod.client, asked).unwrap());
    client.send(b"question").unwrap();
    assert!(readable(&server));
    let mut bytes = [0; 64];
    let (n, from) = server.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..n], b"question");
    server.send_to(b"answer", from).unwrap();
    assert!(readable(&client));
    let n = client.recv(&mut bytes).unwrap();
    assert_eq!(&bytes[..n], b"answer");
}

#[test]
fn a_connection_that_nobody_answers_holds_nobody() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    // A listener whose queue is full answers no further SYN.
    let full = OpenSocket {
        backlog: 1,
        ..listener("127.0.0.1:7000")
    };
    let _full = open(&mut pod.client, full).unwrap();
    let asked = to(SocketKind::Stream, "127.0.0.1:7000");
    let many: Vec<OwnedFd> = (0..8)
        .map(|_| open(&mut pod.client, asked.clone()).unwrap())
        .collect();
    let waits = |fd: &OwnedFd| {
        let stream = TcpStream::from(fd.try_clone().unwrap());
        stream.peer_addr().is_err()
    };
    assert!(many.iter().any(waits), "none of them waits");
    assert!(pod.client.state().containers.is_empty());
}

#[test]
fn what_makes_no_sense_is_refused_and_named() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    let short = SocketEnd {
        address: vec![1, 2, 3],
        port: 1,
    };
    let far = SocketEnd {
        address: vec![127, 0, 0, 1],
        port: 65_536,
    };
    let stream = to(SocketKind::Stream, "127.0.0.1:1");
    for wrong in [
        OpenSocket::default(),
        OpenSocket {
            kind: 99,
            ..stream.clone()
        },
        OpenSocket {
            connect: None,
            ..stream.clone()
        },
        OpenSocket {
            connect: Some(short),
            ..stream.clone()
        },
        OpenSocket {
            connect: Some(far),
            ..stream.clone()
        },
        OpenSocket {
            bind: end("[::1]:0"),
            ..stream.clone()
        },
        OpenSocket {
            backlog: 1,
            ..stream.clone()
        },
        OpenSocket {
            kind: SocketKind::Datagram.into(),
            ..listener("127.0.0.1:0")
        },
    ] {
        let failure = open(&mut pod.client, wrong.clone()).unwrap_err();
        assert_eq!(failure.kind, i32::from(FailureKind::Invalid), "{wrong:?}");
        assert_eq!(failure.step, "open socket");
    }
    let rules = OpenSocket {
        kind: SocketKind::Netfilter.into(),
        ..OpenSocket::default()
    };
    open(&mut pod.client, rules).unwrap();
}
