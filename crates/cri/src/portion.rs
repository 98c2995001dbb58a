//! Streamed lists: the same objects in several messages, so that none grows over a client's limit.

use std::pin::Pin;

use tokio_stream::Stream;
use tonic::Status;

/// A stream of messages.
pub(crate) type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Objects in one message.
const PORTION: usize = 256;

/// `items` in messages.
pub(crate) fn portions<T: Clone, M: Send + 'static>(
    items: &[T],
    message: impl Fn(Vec<T>) -> M,
) -> Messages<M> {
    let messages: Vec<_> = items
        .chunks(PORTION)
        .map(|p| Ok(message(p.to_vec())))
        .collect();
    Box::pin(tokio_stream::iter(messages))
}
