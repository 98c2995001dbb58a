//! Connections into pods: the data path of port forwarding.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpStream;
use wharf_types::Kind;

use crate::engine::Engine;
use crate::error::RequestError;
use crate::limits::POD_CONNECT;
use crate::sockets::{PodSocket, Transport};

/// Where a pod's servers are looked for, in this order, as kubelet's other runtimes do.
const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// Nothing took the connection.
#[derive(Debug, thiserror::Error)]
#[error("nothing takes connections on port {port} inside the pod: {v4}; {v6}")]
struct NobodyListens {
    port: u16,
    v4: Refusal,
    v6: Refusal,
}

#[derive(Debug, thiserror::Error)]
#[error("{to}: {why}")]
struct Refusal {
    to: SocketAddr,
    why: io::Error,
}

impl Engine {
    /// Connects to a TCP port inside a pod, on 127.0.0.1 and, where nothing listens there, on ::1. In a
    /// pod on the host's network these are the host's.
    ///
    /// # Errors
    ///
    /// `NotFound` for the pod, `State` when it is not ready, `Unsupported` for a shim of an older version,
    /// or a step that names port and pod: nothing takes connections there.
    pub async fn connect_in_pod(&self, pod: &str, port: u16) -> Result<TcpStream, RequestError> {
        let mut refusals = Vec::new();
        for ip in LOOPBACK {
            let to = SocketAddr::new(ip, port);
            match self.connect_to(pod, to).await? {
                Ok(stream) => return Ok(stream),
                Err(why) => refusals.push(Refusal { to, why }),
            }
        }
        let view = self.pod(pod)?;
        let metadata = &view.spec.metadata;
        let subject = format!("pod {}/{}", metadata.namespace, metadata.name);
        let source: Arc<dyn std::error::Error + Send + Sync> =
            match <[Refusal; 2]>::try_from(refusals) {
                Ok([v4, v6]) => Arc::new(NobodyListens { port, v4, v6 }),
                Err(_other) => Arc::new(io::Error::from(io::ErrorKind::ConnectionRefused)),
            };
        Err(RequestError::Step {
            stage: "connect",
            subject: format!("port {port} of {subject}"),
            kind: Kind::Unavailable,
            source,
        })
    }

    /// The inner error is the network's answer; the outer one is ours.
    async fn connect_to(
        &self,
        pod: &str,
        to: SocketAddr,
    ) -> Result<io::Result<TcpStream>, RequestError> {
        let socket = PodSocket::Connect(Transport::Stream, to);
        let socket = match self.open_in_pod(pod, socket).await {
            Ok(socket) => socket,
            Err(e) => return refused(e).map(Err),
        };
        let connected = async {
            let stream = TcpStream::from_std(socket.into())?;
            stream.writable().await?;
            match stream.take_error()? {
                Some(error) => Err(error),
                None => Ok(stream),
            }
        };
        let waited = tokio::time::timeout(POD_CONNECT, connected).await;
        Ok(waited.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())))
    }
}

/// What the kernel said to the shim about this address, if it is that.
fn refused(e: RequestError) -> Result<io::Error, RequestError> {
    let RequestError::Step { source, kind, .. } = &e else {
        return Err(e);
    };
    if *kind == Kind::Exhausted {
        return Err(e);
    }
    match source
        .downcast_ref::<io::Error>()
        .and_then(io::Error::raw_os_error)
    {
        Some(errno) => Ok(io::Error::from_raw_os_error(errno)),
        None => Err(e),
    }
}
