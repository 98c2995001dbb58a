//! wharf's own door: HTTP/1.1 on `api.sock` in the state directory, for root alone. What is below `/wharf/`
//! is ours; the Docker Engine API will come beside it.

mod message; // what is asked and answered
pub(crate) mod client; // the asking side, for commands

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use wharf_image::Images;
use wharf_types::Digest;

use crate::api::message::{CHECK_PATH, CheckAnswer, CheckRequest, CheckedImage, Failure};

/// The socket's name in the state directory.
pub(crate) const SOCKET: &str = "api.sock";
/// Clients at the same time.
const CLIENTS_MAX: usize = 64;
/// Bytes of a request's body.
const BODY_MAX: usize = 1 << 20;
/// How long a client may take to say what it wants.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// The same of the body.
const BODY_PATIENCE: Duration = Duration::from_secs(10);
/// Checks at the same time.
static CHECKS: Semaphore = Semaphore::const_new(1);
/// How long no client is taken after the kernel refused one: descriptors are exhausted, say.
const PAUSE: Duration = Duration::from_millis(100);

type Answer = Response<Full<Bytes>>;

/// Answers until it is dropped.
pub(crate) async fn serve(listener: UnixListener, images: Images) {
    let room = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        // Never closed.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let images = images.clone();
                drop(tokio::spawn(async move {
                    converse(stream, images).await;
                    drop(place);
                }));
            }
            Err(error) => {
                tracing::warn!(%error, "a client of the API was not taken");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, images: Images) {
    let service = service_fn(move |request| {
        let images = images.clone();
        async move { Ok::<_, Infallible>(answer(request, &images).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a client of the API went away");
    }
}

async fn answer(request: Request<Incoming>, images: &Images) -> Answer {
    match (request.method(), request.uri().path()) {
        (&Method::POST, CHECK_PATH) => {}
        (_, CHECK_PATH) => {
            return failure(StatusCode::METHOD_NOT_ALLOWED, "only POST is known here");
        }
        (_, path) => {
            let message = format!("{path}: not supported yet by wharf");
            return failure(StatusCode::NOT_FOUND, &message);
        }
    }
    let body = Limited::new(request.into_body(), BODY_MAX).collect();
    let body = match tokio::time::timeout(BODY_PATIENCE, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Err(_elapsed) => {
            let message = "the body did not come in time";
            return failure(StatusCode::REQUEST_TIMEOUT, message);
        }
        Ok(Err(error)) => {
            let message = format!("the body cannot be read, or is over {BODY_MAX} bytes: {error}");
            return failure(StatusCode::BAD_REQUEST, &message);
        }
    };
    match serde_json::from_slice::<CheckRequest>(&body) {
        Ok(request) => written(StatusCode::OK, &check(request, images).await),
        Err(error) => failure(StatusCode::BAD_REQUEST, &format!("the body: {error}")),
    }
}

/// Looks at the named images, or at all of them.
async fn check(request: CheckRequest, images: &Images) -> CheckAnswer {
    let mut answer = CheckAnswer::default();
    let mut ids: Vec<Digest> = Vec::new();
    for name in request.names {
        match images.find(&name) {
            Some(image) => ids.push(image.id),
            None => answer.unknown.push(name),
        }
    }
    if ids.is_empty() && answer.unknown.is_empty() {
        ids = images.list().iter().map(|image| image.id).collect();
    }
    ids.sort();
    ids.dedup();
    // Each reads everything and has lists of layers in memory: the others wait.
    let _turn = CHECKS.acquire().await;
    for checked in images.check(ids).await {
        answer.images.push(CheckedImage::new(
            &checked,
            images.find(&checked.id.to_string()).as_deref(),
        ));
    }
    answer
}

fn failure(status: StatusCode, message: &str) -> Answer {
    let message = message.to_owned();
    written(status, &Failure { message })
}

fn written(status: StatusCode, value: &impl serde::Serialize) -> Answer {
    // Plain data: it has a form as JSON.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let mut answer = Response::new(Full::new(Bytes::from(bytes)));
    *answer.status_mut() = status;
    let json = http::HeaderValue::from_static("application/json");
    answer
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, json);
    answer
}
