//! Questions to the host's servers, from the host's network: 127.0.0.53 works too. Each has a socket and
//! an id of its own, and only the server's answer to that question, from that server, counts.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::resolv::Upstream;
use super::wire::{self, Query, UDP_MAX};
use crate::limits::{DNS_QUERY, DNS_SERVER};

/// How a question came, and goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// The answer of the first server that has one; `None` when none has in time. An answer that says that
/// the server could not find out counts when no other has a better one.
pub(super) async fn forward(
    upstream: &Upstream,
    query: &Query,
    message: &[u8],
    transport: Transport,
) -> Option<Vec<u8>> {
    let servers = upstream.servers();
    let mut worse = None;
    let asked = async {
        for server in servers.iter() {
            let one =
                tokio::time::timeout(DNS_SERVER, exchange(*server, query, message, transport));
            match one.await {
                Ok(Ok(answer)) if !wire::failed(&answer) => return Some(answer),
                Ok(Ok(answer)) => worse = Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "a server of names"),
                Err(_elapsed) => tracing::debug!(%server, "a server of names does not answer"),
            }
        }
        None
    };
    let best = tokio::time::timeout(DNS_QUERY, asked).await;
    best.unwrap_or(None).or(worse)
}

async fn exchange(
    server: SocketAddr,
    query: &Query,
    message: &[u8],
    transport: Transport,
) -> io::Result<Vec<u8>> {
    let id = u16::from_ne_bytes(wharf_sys::random::bytes()?);
    let mut message = message.to_vec();
    wire::set_id(&mut message, id);
    match transport {
        Transport::Udp => by_udp(server, query, &message, id).await,
        Transport::Tcp => by_tcp(server, query, &message, id).await,
    }
}

async fn by_udp(server: SocketAddr, query: &Query, message: &[u8], id: u16) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    // The kernel drops what comes from elsewhere.
    socket.connect(server).await?;
    socket.send(message).await?;
    // One more byte than anybody gets: what was cut here is seen to be too long.
    let mut buffer = vec![0; UDP_MAX + 1];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..length).unwrap_or_default();
        if query.is_answered_by(answer, id) {
            return Ok(answer.to_vec());
        }
    }
}

async fn by_tcp(server: SocketAddr, query: &Query, message: &[u8], id: u16) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write(&mut stream, message).await?;
    let answer = read(&mut stream).await?;
    match query.is_answered_by(&answer, id) {
        true => Ok(answer),
        false => Err(io::Error::other("an answer to another question")),
    }
}

/// Reads a message with its length before it.
pub(super) async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes a message with its length before it, in one piece.
pub(super) async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_long| io::ErrorKind::InvalidData)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(message);
    stream.write_all(&bytes).await
}
