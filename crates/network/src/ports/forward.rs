//! What comes to the node's port over loopback goes to the pod through this process: the kernel could
//! translate packets to 127.0.0.1 only with a setting that opens the node's own loopback services to
//! pods, and packets to ::1 not at all.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::ReadBuf;
use tokio::net::{TcpStream, UdpSocket as Udp};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Connections at the same time for each port and family.
const MAX_CONNECTIONS: usize = 1024;
/// Clients of UDP at the same time for each port and family.
const MAX_CLIENTS: usize = 1024;
/// How long a pod may take to take a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a client of UDP is remembered after its last answer.
const SILENCE: Duration = Duration::from_secs(60);
/// The largest datagram.
const DATAGRAM: usize = 65_535;

/// The sockets of one port and the tasks that serve them. The tasks only borrow the sockets while they
/// look at them: the port is free as soon as this value is dropped, not when the tasks have ended.
#[derive(Debug, Default)]
pub(super) struct Forwarder {
    tcp: Vec<Arc<tokio::net::TcpListener>>,
    udp: Vec<Arc<Udp>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Forwarder {
    pub(super) fn tcp(
        &mut self,
        runtime: &Handle,
        listener: TcpListener,
        to: &[SocketAddr],
    ) -> io::Result<()> {
        let _inside = runtime.enter();
        let listener = Arc::new(tokio::net::TcpListener::from_std(listener)?);
        let task = accept(Arc::downgrade(&listener), to.to_vec());
        self.tasks.push(runtime.spawn(task));
        self.tcp.push(listener);
        Ok(())
    }

    pub(super) fn udp(
        &mut self,
        runtime: &Handle,
        socket: UdpSocket,
        to: &[SocketAddr],
    ) -> io::Result<()> {
        let _inside = runtime.enter();
        let socket = Arc::new(Udp::from_std(socket)?);
        let task = datagrams(Arc::downgrade(&socket), to.to_vec());
        self.tasks.push(runtime.spawn(task));
        self.udp.push(socket);
        Ok(())
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Polls a socket that may be gone.
async fn with<S, T>(
    socket: &Weak<S>,
    mut work: impl FnMut(&S, &mut Context<'_>) -> Poll<io::Result<T>>,
) -> Option<io::Result<T>> {
    poll_fn(|cx| match socket.upgrade() {
        Some(socket) => work(&socket, cx).map(Some),
        None => Poll::Ready(None),
    })
    .await
}

/// The pod's address of the client's family, or the other one.
fn target(to: &[SocketAddr], client: SocketAddr) -> Option<SocketAddr> {
    let same = to.iter().find(|t| t.is_ipv4() == client.is_ipv4());
    same.or(to.first()).copied()
}

async fn accept(listener: Weak<tokio::net::TcpListener>, to: Vec<SocketAddr>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        let (client, from) = match with(&listener, tokio::net::TcpListener::poll_accept).await {
            None => return,
            Some(Ok(accepted)) => accepted,
            // The client has gone, or descriptors are short: the next may do better.
            Some(Err(error)) => {
                tracing::debug!(%error, "accept on a host port");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let Some(target) = target(&to, from) else {
            return;
        };
        tokio::spawn(async move {
            let _room = permit;
            if let Err(error) = copy(client, target).await {
                tracing::debug!(%error, %target, "a connection over loopback ended");
            }
        });
    }
}

async fn copy(mut client: TcpStream, target: SocketAddr) -> io::Result<()> {
    let mut pod = tokio::time::timeout(CONNECT, TcpStream::connect(target)).await??;
    tokio::io::copy_bidirectional(&mut client, &mut pod).await?;
    Ok(())
}

type Clients = Arc<Mutex<HashMap<SocketAddr, Arc<Udp>>>>;

async fn datagrams(socket: Weak<Udp>, to: Vec<SocketAddr>) {
    let clients = Clients::default();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let (length, from) = match receive(&socket, &mut buffer).await {
            None => return,
            Some(Ok(received)) => received,
            // An ICMP message about an earlier datagram.
            Some(Err(_earlier)) => continue,
        };
        let known = lock(&clients).get(&from).cloned();
        let pod = match known {
            Some(pod) => pod,
            None if lock(&clients).len() >= MAX_CLIENTS => continue,
            None => {
                let Some(target) = target(&to, from) else {
                    return;
                };
                let Ok(pod) = begin(target).await else {
                    continue;
                };
                lock(&clients).insert(from, pod.clone());
                let (own, socket, clients) = (pod.clone(), socket.clone(), clients.clone());
                tokio::spawn(async move {
                    answers(&own, &socket, from).await;
                    lock(&clients).remove(&from);
                });
                pod
            }
        };
        if let Err(error) = pod.send(&buffer[..length]).await {
            tracing::debug!(%error, "a datagram over loopback was lost");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn receive(socket: &Weak<Udp>, buffer: &mut [u8]) -> Option<io::Result<(usize, SocketAddr)>> {
    with(socket, |socket, cx| {
        let mut buffer = ReadBuf::new(buffer);
        let polled = socket.poll_recv_from(cx, &mut buffer);
        polled.map_ok(|from| (buffer.filled().len(), from))
    })
    .await
}

async fn begin(target: SocketAddr) -> io::Result<Arc<Udp>> {
    let any: IpAddr = if target.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let pod = Udp::bind((any, 0)).await?;
    pod.connect(target).await?;
    Ok(Arc::new(pod))
}

/// Sends the pod's answers to its client until it is silent.
async fn answers(pod: &Udp, socket: &Weak<Udp>, client: SocketAddr) {
    let mut buffer = vec![0; DATAGRAM];
    while let Ok(Ok(length)) = tokio::time::timeout(SILENCE, pod.recv(&mut buffer)).await {
        let answer = &buffer[..length];
        match with(socket, |socket, cx| socket.poll_send_to(cx, answer, client)).await {
            Some(Ok(_sent)) => {}
            _gone => return,
        }
    }
}
