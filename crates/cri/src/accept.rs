//! Connections of clients: how many there may be, and how long one may take to say something. What
//! a client holds open costs a descriptor, and a daemon without descriptors can start no pod.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, UdsConnectInfo};

/// Connections at the same time; a further one is closed at once. kubelet has three, and each crictl one.
const CONNECTIONS_MAX: usize = 256;
/// How long a new connection may be silent: HTTP/2 clients speak first, at once.
const GREETING: Duration = Duration::from_secs(10);
/// The pause after a connection could not be accepted, most likely for want of descriptors: it stays
/// in the listener's queue, so that asking again at once would be a busy loop.
const PAUSE: Duration = Duration::from_millis(100);

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    /// Until it has said something.
    greeting: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

/// Accepts until nobody takes them any more.
pub(crate) fn connections(listener: UnixListener) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(accept(listener, sender));
    ReceiverStream::new(receiver)
}

async fn accept(listener: UnixListener, sender: mpsc::Sender<io::Result<Connection>>) {
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Said once for each time that it is crowded, not once for each connection.
    let mut crowded = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sender.closed() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => continue,
                    () = sender.closed() => return,
                }
            }
        };
        let Ok(permit) = Arc::clone(&free).try_acquire_owned() else {
            if !crowded {
                let limit = CONNECTIONS_MAX;
                tracing::warn!(limit, "too many connections: further ones are closed");
            }
            crowded = true;
            continue;
        };
        crowded = false;
        let connection = Connection {
            stream,
            greeting: Some(Box::pin(tokio::time::sleep(GREETING))),
            _permit: permit,
        };
        if sender.send(Ok(connection)).await.is_err() {
            return;
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(done) = Pin::new(&mut self.stream).poll_read(cx, buffer) {
            self.greeting = None;
            return Poll::Ready(done);
        }
        let Some(greeting) = self.greeting.as_mut() else {
            return Poll::Pending;
        };
        ready!(greeting.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;
    use tokio_stream::StreamExt as _;

    fn listening() -> (tempfile::TempDir, std::path::PathBuf, UnixListener) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        (dir, path, listener)
    }

    #[tokio::test]
    async fn connections_over_the_limit_are_closed_and_there_is_room_again_when_one_ends() {
        let (_dir, path, listener) = listening();
        let mut accepted = connections(listener);
        let mut pairs = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let client = UnixStream::connect(&path).await.unwrap();
            pairs.push((client, accepted.next().await.unwrap().unwrap()));
        }
        let mut over = UnixStream::connect(&path).await.unwrap();
        assert_eq!(over.read(&mut [0; 8]).await.unwrap(), 0, "it is closed");
        pairs.pop();
        let _client = UnixStream::connect(&path).await.unwrap();
        accepted.next().await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_not_waited_for_and_who_has_spoken_may_be_silent() {
        let (_dir, path, listener) = listening();
        let mut accepted = connections(listener);
        let mut silent = UnixStream::connect(&path).await.unwrap();
        let mut server = accepted.next().await.unwrap().unwrap();
        let ended = server.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        drop(server);
        assert_eq!(silent.read(&mut [0; 8]).await.unwrap(), 0);

        let client = UnixStream::connect(&path).await.unwrap();
        let mut server = accepted.next().await.unwrap().unwrap();
        client.writable().await.unwrap();
        client.try_write(b"PRI").unwrap();
        assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 3);
        let waited = tokio::time::timeout(GREETING * 2, server.read(&mut [0; 8])).await;
        waited.unwrap_err();
    }
}
