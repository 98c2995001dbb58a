//! A response body that can end early, stop, or trickle.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::Sleep;

/// How the bytes go out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    AtOnce,
    /// Then the connection breaks.
    CutAfter(u64),
    /// Then nothing more comes.
    StallAfter(u64),
    /// This many bytes between two pauses.
    Slow(usize, Duration),
}

/// Bytes with a pace.
#[derive(Debug)]
pub(crate) struct Body {
    rest: Bytes,
    sent: u64,
    pace: Pace,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Body {
    pub(crate) fn of(bytes: impl Into<Bytes>) -> Self {
        Self::paced(bytes.into(), Pace::AtOnce)
    }

    pub(crate) fn paced(rest: Bytes, pace: Pace) -> Self {
        Self {
            rest,
            sent: 0,
            pace,
            pause: None,
        }
    }

    fn take(&mut self, n: usize) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let part = self.rest.split_to(n.min(self.rest.len()));
        self.sent += part.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(part))))
    }
}

/// Bytes of one frame of a body that is not sent whole.
const FRAME: usize = 16 << 10;

/// Between the last byte and the break of a cut body.
const FLUSH: Duration = Duration::from_millis(5);

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let left =
            |limit: u64, sent: u64| usize::try_from(limit.saturating_sub(sent)).unwrap_or(FRAME);
        match self.pace {
            Pace::AtOnce if self.rest.is_empty() => Poll::Ready(None),
            Pace::AtOnce => {
                let all = self.rest.len();
                self.take(all)
            }
            Pace::CutAfter(n) => match left(n, self.sent).min(self.rest.len()) {
                0 => {
                    // What was sent leaves hyper's buffer only while the body is not ready.
                    let pause = self
                        .pause
                        .get_or_insert_with(|| Box::pin(tokio::time::sleep(FLUSH)));
                    ready!(pause.as_mut().poll(cx));
                    Poll::Ready(Some(Err(io::Error::other("cut by the test"))))
                }
                more => self.take(more.min(FRAME)),
            },
            Pace::StallAfter(n) => match left(n, self.sent).min(self.rest.len()) {
                0 => Poll::Pending,
                more => self.take(more.min(FRAME)),
            },
            Pace::Slow(chunk, pause) => {
                if let Some(sleep) = &mut self.pause {
                    ready!(sleep.as_mut().poll(cx));
                }
                if self.rest.is_empty() {
                    return Poll::Ready(None);
                }
                self.pause = Some(Box::pin(tokio::time::sleep(pause)));
                self.take(chunk.max(1))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.pace, Pace::AtOnce | Pace::Slow(..)) && self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match self.pace {
            Pace::AtOnce => SizeHint::with_exact(self.rest.len() as u64),
            _ => SizeHint::default(),
        }
    }
}
