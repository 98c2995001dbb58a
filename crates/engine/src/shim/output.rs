//! The output of an exec, collected from pipes: bounded in size, and in time once the process has
//! ended, for a grandchild may hold the pipe for ever.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::watch::watch;
use crate::limits::EXEC_OUTPUT_MAX;

/// Bytes read at once: what a pipe holds by default.
const PIECE: usize = 64 * 1024;

/// The end of a pipe that the process writes to, and a task that reads the other.
pub(crate) struct Collector {
    kept: Arc<Mutex<Vec<u8>>>,
    reader: tokio::task::JoinHandle<()>,
}

impl Collector {
    /// A new pipe: the write end, and its collector.
    ///
    /// # Errors
    ///
    /// No descriptors are left.
    pub(crate) fn new() -> io::Result<(OwnedFd, Self)> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // Only our end: the process gets a pipe as any shell would give it.
        rustix::io::ioctl_fionbio(&reader, true)?;
        let reader = watch(reader, Interest::READABLE)?;
        let kept = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(read(reader, kept.clone()));
        Ok((writer, Self { kept, reader: task }))
    }

    /// Waits until every writer has closed its end.
    pub(crate) async fn end_of_file(&mut self) {
        // A reader that panicked has read what it has read.
        (&mut self.reader).await.ok();
    }

    /// What was read.
    pub(crate) fn take(self) -> Vec<u8> {
        std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // Whoever may hold the pipe: its writers are told that nobody reads.
        self.reader.abort();
    }
}

async fn read(pipe: AsyncFd<OwnedFd>, kept: Arc<Mutex<Vec<u8>>>) {
    let mut piece = vec![0; PIECE];
    while let Ok(mut ready) = pipe.readable().await {
        match rustix::io::read(pipe.get_ref(), &mut piece) {
            Ok(0) => return,
            Ok(n) => {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                let room = EXEC_OUTPUT_MAX - kept.len();
                // What is over the limit is read all the same: a full pipe would hold the process.
                kept.extend_from_slice(&piece[..n.min(room)]);
            }
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Err(_broken) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_all(fd: &OwnedFd, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let n = rustix::io::write(fd, bytes).unwrap();
            bytes = &bytes[n..];
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn output_is_kept_to_the_limit_and_read_to_the_end() {
        let (writer, mut collector) = Collector::new().unwrap();
        let written = tokio::task::spawn_blocking(move || {
            write_all(&writer, &vec![b'x'; EXEC_OUTPUT_MAX + 100_000]);
        });
        collector.end_of_file().await;
        written.await.unwrap();
        assert_eq!(collector.take().len(), EXEC_OUTPUT_MAX);
    }

    #[tokio::test]
    async fn what_was_read_is_there_while_the_pipe_is_still_held() {
        let (writer, mut collector) = Collector::new().unwrap();
        write_all(&writer, b"hello");
        let waited = tokio::time::timeout(crate::limits::EXEC_DRAIN, collector.end_of_file());
        assert!(waited.await.is_err(), "the pipe is held");
        assert_eq!(collector.take(), b"hello");
        drop(writer);
    }

    #[tokio::test]
    async fn a_collector_that_is_dropped_closes_its_end() {
        let (writer, collector) = Collector::new().unwrap();
        drop(collector);
        while rustix::io::write(&writer, b"x") != Err(Errno::PIPE) {
            tokio::task::yield_now().await;
        }
    }
}
