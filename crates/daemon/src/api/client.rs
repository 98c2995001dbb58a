//! The asking side: one request, one answer.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::api::message::{CHECK_PATH, CheckAnswer, CheckRequest, Failure};

/// Bytes of an answer.
const ANSWER_MAX: usize = 256 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum AskError {
    #[error(
        "connect to {socket}: is the daemon running, and are --config and --state the same as its own?"
    )]
    Connect { socket: PathBuf, source: io::Error },
    #[error("ask the daemon")]
    Http(#[from] hyper::Error),
    #[error("read the daemon's answer: {0}")]
    Answer(String),
    #[error("the daemon refused: {0}")]
    Refused(String),
    #[error("start a runtime")]
    Runtime(#[source] io::Error),
}

/// Lets the daemon behind `socket` check images: those named, or all.
pub(crate) fn check(socket: &Path, names: &[String]) -> Result<CheckAnswer, AskError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AskError::Runtime)?;
    let names = names.to_vec();
    let body = serde_json::to_vec(&CheckRequest { names });
    let body = body.map_err(|e| AskError::Answer(e.to_string()))?;
    runtime.block_on(ask(socket, body))
}

async fn ask(socket: &Path, body: Vec<u8>) -> Result<CheckAnswer, AskError> {
    let stream = UnixStream::connect(socket).await;
    let stream = stream.map_err(|source| AskError::Connect {
        socket: socket.to_owned(),
        source,
    })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driven = tokio::spawn(connection);
    let request = Request::post(CHECK_PATH)
        .header(http::header::HOST, "wharf")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| AskError::Answer(e.to_string()))?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let bytes = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
    let bytes = bytes
        .map_err(|e| AskError::Answer(e.to_string()))?
        .to_bytes();
    driven.abort();
    if !status.is_success() {
        let failure = serde_json::from_slice::<Failure>(&bytes);
        return Err(AskError::Refused(
            failure.map_or_else(|_| status.to_string(), |f| f.message),
        ));
    }
    serde_json::from_slice(&bytes).map_err(|e| AskError::Answer(e.to_string()))
}
