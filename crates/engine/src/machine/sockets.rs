//! Sockets in a pod's network namespace: its shim, which is inside, opens them.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use wharf_plan::Fds;
use wharf_plan::message::{Body, FailureKind, OpenSocket, SocketEnd, SocketKind};
use wharf_types::{Kind, PodId};

use super::Parts;
use crate::limits::{POD_BACKLOG, SHIM_ANSWER};
use crate::shim::link::LinkError;
use crate::sockets::{PodSocket, Transport};
use crate::world::StepFailure;

const OPEN: &str = "open socket";
/// What a shim calls a message that it does not know.
const REQUEST: &str = "request";

impl Parts {
    /// Opens a socket in the pod's namespace (of a pod on the host's network: the host's).
    pub(super) async fn open_in_pod(
        &self,
        pod: &PodId,
        socket: PodSocket,
    ) -> Result<OwnedFd, StepFailure> {
        let held = self.held(pod).ok_or_else(|| {
            let text = "the pod's shim is not connected: stop the pod and run it again";
            StepFailure::new(OPEN, Kind::Unavailable, text)
        })?;
        let asked = Body::OpenSocket(request(socket));
        match held.link.call(asked, Fds::new(), SHIM_ANSWER).await {
            Ok((Body::Done(_), mut fds)) => fds
                .take("socket")
                .ok_or_else(|| LinkError::Unexpected("shim").at(OPEN)),
            Ok(_) => Err(LinkError::Unexpected("shim").at(OPEN)),
            Err(LinkError::Failed(f))
                if f.step == REQUEST && f.kind == i32::from(FailureKind::Invalid) =>
            {
                let text = "the pod's shim is of an older version, which opens no sockets: run the pod anew";
                Err(StepFailure::new(OPEN, Kind::Unsupported, text))
            }
            // What the kernel said is told as it is: the caller may try another address.
            Err(LinkError::Failed(f)) if f.errno != 0 => {
                let source = std::io::Error::from_raw_os_error(f.errno);
                Err(StepFailure::new(
                    OPEN,
                    crate::error::io_kind(&source),
                    source,
                ))
            }
            Err(e) => Err(e.at(OPEN)),
        }
    }
}

fn request(socket: PodSocket) -> OpenSocket {
    let kind = |transport| match transport {
        Transport::Stream => SocketKind::Stream.into(),
        Transport::Datagram => SocketKind::Datagram.into(),
    };
    match socket {
        PodSocket::Connect(transport, to) => OpenSocket {
            kind: kind(transport),
            connect: Some(end(to)),
            ..OpenSocket::default()
        },
        PodSocket::Bind(transport, at) => OpenSocket {
            kind: kind(transport),
            bind: Some(end(at)),
            backlog: match transport {
                Transport::Stream => POD_BACKLOG,
                Transport::Datagram => 0,
            },
            reuse_address: transport == Transport::Stream,
            ..OpenSocket::default()
        },
        PodSocket::Netfilter => OpenSocket {
            kind: SocketKind::Netfilter.into(),
            ..OpenSocket::default()
        },
    }
}

fn end(address: SocketAddr) -> SocketEnd {
    let bytes = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    SocketEnd {
        address: bytes,
        port: address.port().into(),
    }
}
