//! What comes to the node's port over loopback goes to the pod through this process: the kernel could
//! translate packets to 127.0.0.1 only with a setting that opens the node's own loopback services to
//! pods, and packets to ::1 not at all.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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

/// The tasks of one port; they end with it.
#[derive(Debug, Default)]
pub(super) struct Forwarder(Vec<JoinHandle<()>>);

impl Forwarder {
    pub(super) fn tcp(&mut self, runtime: &Handle, listener: TcpListener, to: &[SocketAddr]) {
        let to = to.to_vec();
        self.0.push(runtime.spawn(async move {
            if let Err(error) = accept(listener, to).await {
                tracing::warn!(%error, "a host port is no longer served on loopback");
            }
        }));
    }

    pub(super) fn udp(&mut self, runtime: &Handle, socket: UdpSocket, to: &[SocketAddr]) {
        let to = to.to_vec();
        self.0.push(runtime.spawn(async move {
            if let Err(error) = datagrams(socket, to).await {
                tracing::warn!(%error, "a host port is no longer served on loopback");
            }
        }));
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// The pod's address of the client's family, or the other one.
fn target(to: &[SocketAddr], client: SocketAddr) -> Option<SocketAddr> {
    let same = to.iter().find(|t| t.is_ipv4() == client.is_ipv4());
    same.or(to.first()).copied()
}

async fn accept(listener: TcpListener, to: Vec<SocketAddr>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return Ok(());
        };
        let (client, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            // The client has gone, or descriptors are short: the next may do better.
            Err(error) => {
                tracing::debug!(%error, "accept on a host port");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let Some(target) = target(&to, from) else {
            return Ok(());
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

async fn datagrams(socket: UdpSocket, to: Vec<SocketAddr>) -> io::Result<()> {
    let socket = Arc::new(Udp::from_std(socket)?);
    let clients = Clients::default();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        // An error is an ICMP message about an earlier datagram.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let known = lock(&clients).get(&from).cloned();
        let pod = match known {
            Some(pod) => pod,
            None if lock(&clients).len() >= MAX_CLIENTS => continue,
            None => {
                let Some(target) = target(&to, from) else {
                    return Ok(());
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
async fn answers(pod: &Udp, socket: &Udp, client: SocketAddr) {
    let mut buffer = vec![0; DATAGRAM];
    while let Ok(Ok(length)) = tokio::time::timeout(SILENCE, pod.recv(&mut buffer)).await {
        if socket.send_to(&buffer[..length], client).await.is_err() {
            return;
        }
    }
}
