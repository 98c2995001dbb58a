//! A receiver that may open no more files. Alone in its process: the limit is the whole process's.

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use wharf_plan::message::{Body, Message, Warning};
use wharf_plan::{Channel, ChannelError, Fds};

fn message(bytes: usize) -> Message {
    Message {
        id: 7,
        fds: Vec::new(),
        body: Some(Body::Warning(Warning {
            container_id: String::new(),
            text: "x".repeat(bytes),
        })),
    }
}

#[test]
fn a_message_whose_descriptors_were_cut_says_which_one_it_was() {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let (a, b) = pair.unwrap();
    let (a, b) = (Channel::new(a), Channel::new(b));
    // Short, and so long that the message itself is in a descriptor.
    for size in [10, 1_000_000] {
        let mut fds = Fds::new();
        fds.push("in", rustix::pipe::pipe().unwrap().0);
        a.send(message(size), &fds).unwrap();
        let old = getrlimit(Resource::Nofile);
        let none = Rlimit {
            current: Some(0),
            maximum: old.maximum,
        };
        setrlimit(Resource::Nofile, none).unwrap();
        let received = b.receive();
        setrlimit(Resource::Nofile, old).unwrap();
        assert!(
            matches!(received, Err(ChannelError::OutOfDescriptors { id: 7 })),
            "{received:?}"
        );
        // The connection goes on.
        a.send(message(size), &Fds::new()).unwrap();
        assert_eq!(b.receive().unwrap().0.id, 7);
    }
}
