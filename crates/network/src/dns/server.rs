//! The sockets of one pod, served from the daemon's loop. What a pod can have under way is limited: it
//! neither holds memory without bound nor keeps others from being answered (compare CVE-2024-8418).

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, UdpSocket as StdUdp};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};

use super::book::{Book, Known};
use super::forward::{self, Transport, forward};
use super::resolv::Upstream;
use super::wire::{self, Code, Query, TCP_MAX, UDP_MAX, Unusable};
use crate::limits::{
    DNS_CONNECTIONS_PER_POD, DNS_FORWARDS_MAX, DNS_FORWARDS_PER_POD, DNS_IDLE, DNS_PAUSE,
};

/// Sockets that were opened inside a pod, non-blocking.
#[derive(Debug)]
pub struct Listeners {
    /// For datagrams.
    pub udp: StdUdp,
    /// For streams.
    pub tcp: StdListener,
}

/// Answers for all pods. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Resolver(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    book: Book,
    upstream: Upstream,
    /// All questions that the host's servers are asked.
    forwards: Arc<Semaphore>,
    turn: AtomicUsize,
}

/// A pod is served until this is dropped.
#[derive(Debug)]
pub struct Serving(Vec<JoinHandle<()>>);

impl Drop for Serving {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// One pod, to the tasks that serve it.
#[derive(Debug, Clone)]
struct Pod {
    id: Arc<str>,
    shared: Arc<Shared>,
    forwards: Arc<Semaphore>,
}

/// What becomes of a message.
enum Verdict {
    Reply(Vec<u8>),
    Ignore,
    Forward(Query, [OwnedSemaphorePermit; 2]),
}

impl Resolver {
    /// With the names of `book` and the servers that `resolv_conf` names.
    pub fn new(book: Book, resolv_conf: PathBuf) -> Self {
        Self(Arc::new(Shared {
            book,
            upstream: Upstream::new(resolv_conf),
            forwards: Arc::new(Semaphore::new(DNS_FORWARDS_MAX)),
            turn: AtomicUsize::new(0),
        }))
    }

    /// The names.
    pub fn book(&self) -> &Book {
        &self.0.book
    }

    /// Serves a pod. To be called inside the daemon's loop.
    ///
    /// # Errors
    ///
    /// The sockets cannot be watched.
    pub fn serve(&self, pod: &str, listeners: Listeners) -> io::Result<Serving> {
        let udp = UdpSocket::from_std(listeners.udp)?;
        let tcp = TcpListener::from_std(listeners.tcp)?;
        let pod = Pod {
            id: pod.into(),
            shared: self.0.clone(),
            forwards: Arc::new(Semaphore::new(DNS_FORWARDS_PER_POD)),
        };
        Ok(Serving(vec![
            tokio::spawn(pod.clone().datagrams(Arc::new(udp))),
            tokio::spawn(pod.streams(tcp)),
        ]))
    }
}

impl Pod {
    fn judge(&self, message: &[u8], room: impl Fn(&Query) -> usize) -> Verdict {
        let query = match wire::read(message) {
            Ok(query) => query,
            Err(Unusable::Ignore) => return Verdict::Ignore,
            Err(Unusable::Refuse(answer)) => return Verdict::Reply(answer),
        };
        let reply = |code, records: &[_]| Verdict::Reply(query.answer(code, records, room(&query)));
        match self.shared.book.look_up(&self.id, &query) {
            Known::Ours(mut records) => {
                // Each time another one is first: that is the one that most clients take.
                let turn = self.shared.turn.fetch_add(1, Ordering::Relaxed);
                let first = turn.checked_rem(records.len()).unwrap_or(0);
                records.rotate_left(first);
                reply(Code::Fine, &records)
            }
            Known::Nobody => reply(Code::NoSuchName, &[]),
            Known::Others => {
                let own = self.forwards.clone().try_acquire_owned();
                let all = self.shared.forwards.clone().try_acquire_owned();
                match (own, all) {
                    (Ok(own), Ok(all)) => Verdict::Forward(query, [own, all]),
                    _ => reply(Code::ServerFailure, &[]),
                }
            }
        }
    }

    async fn forwarded(
        &self,
        query: &Query,
        message: &[u8],
        transport: Transport,
        room: usize,
    ) -> Vec<u8> {
        match forward(&self.shared.upstream, query, message, transport).await {
            Some(answer) => query.passed_on(answer, room),
            None => query.answer(Code::ServerFailure, &[], room),
        }
    }

    async fn datagrams(self, socket: Arc<UdpSocket>) {
        let mut under_way = JoinSet::new();
        let mut buffer = vec![0; UDP_MAX];
        loop {
            let received = tokio::select! {
                received = socket.recv_from(&mut buffer) => received,
                Some(_done) = under_way.join_next() => continue,
            };
            let (message, from) = match received {
                Ok((length, from)) => (buffer.get(..length).unwrap_or_default(), from),
                Err(error) => {
                    self.pause(&error).await;
                    continue;
                }
            };
            match self.judge(message, Query::udp_room) {
                Verdict::Ignore => {}
                Verdict::Reply(answer) => reply(&socket, &answer, from).await,
                Verdict::Forward(query, permits) => {
                    let (pod, socket, message) = (self.clone(), socket.clone(), message.to_vec());
                    under_way.spawn(async move {
                        let room = query.udp_room();
                        let answer = pod.forwarded(&query, &message, Transport::Udp, room).await;
                        reply(&socket, &answer, from).await;
                        drop(permits);
                    });
                }
            }
        }
    }

    async fn streams(self, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(DNS_CONNECTIONS_PER_POD));
        let mut under_way = JoinSet::new();
        loop {
            // Those beyond the limit wait in the kernel's queue.
            let Ok(permit) = room.clone().acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_done) = under_way.join_next() => continue,
            };
            match accepted {
                Ok((stream, _from)) => {
                    let pod = self.clone();
                    under_way.spawn(pod.client(stream, permit));
                }
                Err(error) => self.pause(&error).await,
            }
        }
    }

    async fn client(self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        if let Err(error) = self.connection(stream).await {
            tracing::trace!(pod = &*self.id, %error, "a client's connection");
        }
        drop(permit);
    }

    /// Answers one question after the other, until the client goes or is silent.
    async fn connection(&self, mut stream: TcpStream) -> io::Result<()> {
        let slow = |_elapsed| io::Error::from(io::ErrorKind::TimedOut);
        loop {
            let read = tokio::time::timeout(DNS_IDLE, forward::read(&mut stream)).await;
            let message = read.map_err(slow)??;
            let answer = match self.judge(&message, |_| TCP_MAX) {
                Verdict::Ignore => return Ok(()),
                Verdict::Reply(answer) => answer,
                Verdict::Forward(query, permits) => {
                    let transport = Transport::Tcp;
                    let answer = self.forwarded(&query, &message, transport, TCP_MAX).await;
                    drop(permits);
                    answer
                }
            };
            let written = forward::write(&mut stream, &answer);
            tokio::time::timeout(DNS_IDLE, written)
                .await
                .map_err(slow)??;
        }
    }

    /// The kernel had no memory or descriptor: it may in a moment.
    async fn pause(&self, error: &io::Error) {
        tracing::warn!(pod = &*self.id, %error, "the pod's questions for names wait");
        tokio::time::sleep(DNS_PAUSE).await;
    }
}

async fn reply(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(answer, to).await {
        // It asks again.
        tracing::trace!(%error, "an answer was not sent");
    }
}
