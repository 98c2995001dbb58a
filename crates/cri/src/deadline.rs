//! Deadlines of clients: an expired `grpc-timeout` answers DEADLINE_EXCEEDED and says what was waited for.
//!
//! tonic's own timer answers CANCELLED, which kubelet and critest do not take for a timeout, and it
//! lies outside of every layer. So this one answers a little earlier: before tonic, and before the
//! client's own clock, so that the text arrives. What the handler began goes on in the engine.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use tonic::Status;
use tower::{Layer, Service};

use crate::stage::Stage;

/// gRPC over HTTP/2, "Requests": at most 8 digits and a unit.
const HEADER: &str = "grpc-timeout";
/// How much earlier than the client's deadline at least: tokio's timers count milliseconds, and two
/// within one of them could be seen in either order.
const LEAD_MIN: Duration = Duration::from_millis(2);
/// How much earlier at most.
const LEAD_MAX: Duration = Duration::from_millis(20);

/// The layer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner }
    }
}

/// What [`DeadlineLayer`] makes of a service.
#[derive(Debug, Clone)]
pub(crate) struct Deadline<S> {
    inner: S,
}

impl<S, Req, Res> Service<Request<Req>> for Deadline<S>
where
    S: Service<Request<Req>, Response = Response<Res>>,
    S::Future: Send + 'static,
    Res: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Req>) -> Self::Future {
        let stage = Stage::default();
        let limit = timeout(request.headers());
        request.extensions_mut().insert(stage.clone());
        let work = self.inner.call(request);
        let Some(limit) = limit else {
            return Box::pin(work);
        };
        Box::pin(async move {
            match tokio::time::timeout(early(limit), work).await {
                Ok(answer) => answer,
                Err(_elapsed) => Ok(expired(limit, &stage).into_http()),
            }
        })
    }
}

fn expired(limit: Duration, stage: &Stage) -> Status {
    let limit = limit.as_secs_f64();
    Status::deadline_exceeded(match stage.now() {
        Some(stage) => format!(
            "the request took longer than its {limit} s, it goes on in the background; now: {stage}"
        ),
        None => format!("the request took longer than its {limit} s"),
    })
}

fn early(limit: Duration) -> Duration {
    limit.saturating_sub((limit / 10).clamp(LEAD_MIN, LEAD_MAX))
}

/// The client's patience; what cannot be read counts as none.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(HEADER)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn headers(value: &str) -> HeaderMap {
        let mut map = HeaderMap::new();
        map.insert(HEADER, value.parse().unwrap());
        map
    }

    #[test]
    fn the_header_is_read_as_the_specification_says() {
        for (text, expected) in [
            ("1S", Some(Duration::from_secs(1))),
            ("2M", Some(Duration::from_secs(120))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("250m", Some(Duration::from_millis(250))),
            ("1000u", Some(Duration::from_millis(1))),
            ("5n", Some(Duration::from_nanos(5))),
            ("", None),
            ("S", None),
            ("1", None),
            ("1s", None),
            ("-1S", None),
            ("123456789S", None),
            ("1\u{e9}", None),
        ] {
            let mut map = HeaderMap::new();
            map.insert(
                HEADER,
                http::HeaderValue::from_bytes(text.as_bytes()).unwrap(),
            );
            assert_eq!(timeout(&map), expected, "{text}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }

    /// A service that says where it is and never answers.
    #[derive(Clone)]
    struct Stuck;

    impl Service<Request<()>> for Stuck {
        type Response = Response<String>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Response<String>, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<()>) -> Self::Future {
            let stage: &Stage = request.extensions().get().unwrap();
            stage.tell(|| Some("attach network".to_owned()));
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_deadline_is_told_as_such_with_the_stage_and_before_tonics_timer() {
        for (text, limit) in [("1m", 1), ("10m", 10), ("3S", 3000)] {
            let mut request = Request::new(());
            *request.headers_mut() = headers(text);
            let answer = DeadlineLayer.layer(Stuck).call(request);
            let tonics = tokio::time::sleep(Duration::from_millis(limit));
            let answer = tokio::select! {
                biased;
                () = tonics => panic!("tonic's timer was first: {text}"),
                answer = answer => answer.unwrap(),
            };
            let status = Status::from_header_map(answer.headers()).unwrap();
            assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
            assert!(status.message().contains("attach network"), "{status}");
        }
    }
}
