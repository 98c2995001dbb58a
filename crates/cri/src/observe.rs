//! One line of the log for each finished RPC: method, code, duration. Never a request's content.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use http::{Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

/// The layer; the outermost one, so that it sees what the client gets.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ObserveLayer;

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner }
    }
}

/// What [`ObserveLayer`] makes of a service.
#[derive(Debug, Clone)]
pub(crate) struct Observe<S> {
    inner: S,
}

impl<S, Req, Res> Service<Request<Req>> for Observe<S>
where
    S: Service<Request<Req>, Response = Response<Res>>,
    S::Future: Send + 'static,
    S::Error: Send,
    Res: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Req>) -> Self::Future {
        let path = request.uri().path();
        let rpc = path.rsplit('/').next().unwrap_or_default().to_owned();
        let begin = Instant::now();
        let mut unfinished = Unfinished {
            rpc,
            begin,
            done: false,
        };
        let work = self.inner.call(request);
        Box::pin(async move {
            let answer = work.await;
            unfinished.done = true;
            if let Ok(answer) = &answer {
                finished(
                    &unfinished.rpc,
                    begin,
                    Status::from_header_map(answer.headers()),
                );
            }
            answer
        })
    }
}

/// Says so when the client goes away before there is an answer.
#[derive(Debug)]
struct Unfinished {
    rpc: String,
    begin: Instant,
    done: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.done {
            tracing::info!(rpc = self.rpc, ms = milliseconds(self.begin), "client left");
        }
    }
}

/// To the microsecond.
fn milliseconds(begin: Instant) -> f64 {
    (begin.elapsed().as_secs_f64() * 1e6).round() / 1e3
}

/// A status stands in the headers when there is no message: then the RPC failed.
fn finished(rpc: &str, begin: Instant, status: Option<Status>) {
    let ms = milliseconds(begin);
    match status.filter(|s| s.code() != Code::Ok) {
        Some(status) => {
            let (code, error) = (status.code(), status.message());
            tracing::info!(rpc, ms, ?code, error, "rpc failed");
        }
        // kubelet looks at everything each second: that would be most of the log.
        None if is_look(rpc) => tracing::debug!(rpc, ms, "rpc finished"),
        None => tracing::info!(rpc, ms, "rpc finished"),
    }
}

/// Whether an RPC only looks.
fn is_look(rpc: &str) -> bool {
    matches!(rpc, "Version" | "RuntimeConfig" | "ImageFsInfo")
        || rpc.starts_with("List")
        || rpc.ends_with("Status")
}
