//! A blob's bytes as a stream that reconnects: after a cut or a stall it asks the same host for the rest,
//! then the next one. Nothing is hashed here; the caller does that while unpacking.
//!
//! Always from the registry's own address, never from where it redirected to: signed addresses expire. And
//! without `If-Range`: a digest names one content, whatever ETag a cache gives it, and the digest is verified.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::time::Instant;
use wharf_types::{Digest, chain};

use crate::endpoint::Endpoint;
use crate::error::FetchError;
use crate::fetch::{Fetcher, Query};
use crate::limits::{PROGRESS_BYTES, RECONNECTS_MAX, STALL_BYTES, TRIES_MAX};

/// Which bytes of which blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobRequest {
    /// Its name.
    pub digest: Digest,
    /// Its whole size in bytes, as the manifest promised.
    pub size: u64,
    /// How many bytes from its beginning are already here.
    pub offset: u64,
}

/// The bytes of a blob from the wanted offset to its promised end.
pub struct BlobStream {
    fetcher: Arc<Fetcher>,
    query: Query,
    endpoints: Vec<Endpoint>,
    request: BlobRequest,
    /// The next byte to hand out.
    position: u64,
    /// Who is sending, or is asked first.
    at: usize,
    source: Option<Source>,
    /// Connections lost in a row without real progress on this host.
    failures: u32,
    reconnects: u32,
    done: bool,
}

/// One connection's part of the blob.
struct Source {
    body: Incoming,
    /// Bytes to throw away: the host sends from the beginning.
    skip: u64,
    /// Bytes since the last reconnection.
    received: u64,
    window: Window,
}

/// Bytes and time waited since the last time that enough had come. Only time spent waiting for the host
/// counts: a slow disk is not the registry's fault.
#[derive(Default)]
struct Window {
    bytes: u64,
    waited: Duration,
}

impl std::fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobStream")
            .field("what", &self.query.what)
            .field("request", &self.request)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl BlobStream {
    /// Connects to the first host that has the blob.
    pub(crate) async fn open(
        fetcher: Arc<Fetcher>,
        domain: &str,
        mut query: Query,
        request: BlobRequest,
    ) -> Result<Self, FetchError> {
        if request.offset > request.size {
            return Err(FetchError::Invalid(format!(
                "{} has {} bytes, it cannot be read from byte {}",
                query.what, request.size, request.offset
            )));
        }
        query.headers.insert(
            header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        );
        query
            .headers
            .insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        let endpoints = fetcher.endpoints(domain, &query).await?;
        let mut stream = Self {
            fetcher,
            query,
            endpoints,
            request,
            position: request.offset,
            at: 0,
            source: None,
            failures: 0,
            reconnects: 0,
            done: false,
        };
        if stream.position < request.size {
            Box::pin(stream.connect()).await?;
        }
        Ok(stream)
    }

    /// The next bytes; `None` after the last one. After an error nothing more comes.
    ///
    /// # Errors
    /// When the blob cannot be had whole from any host.
    pub async fn next(&mut self) -> Option<Result<Bytes, FetchError>> {
        if self.done {
            return None;
        }
        let next = self.advance().await.transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }

    async fn advance(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            let Some(source) = &mut self.source else {
                if self.position == self.request.size {
                    return Ok(None);
                }
                Box::pin(self.connect()).await?;
                continue;
            };
            if self.position == self.request.size && source.body.is_end_stream() {
                self.source = None;
                continue;
            }
            match source.read(self.fetcher.pace.stall_window).await {
                Ok(Some(bytes)) => {
                    let Some(bytes) = source.take_new(bytes) else {
                        continue;
                    };
                    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                    let position = self.position.saturating_add(length);
                    if position > self.request.size {
                        self.source = None;
                        return Err(self.wrong_size(position));
                    }
                    self.position = position;
                    if source.received >= PROGRESS_BYTES {
                        self.failures = 0;
                    }
                    return Ok(Some(bytes));
                }
                // Whatever ends the connection after the last byte does not matter any more.
                Ok(None) | Err(_) if self.position == self.request.size => self.source = None,
                Ok(None) => self.lost(Lost::Cut("the answer ended".to_owned())).await?,
                Err(lost) => self.lost(lost).await?,
            }
        }
    }

    /// Decides what follows a lost connection: the same host, the next one, or giving up.
    async fn lost(&mut self, lost: Lost) -> Result<(), FetchError> {
        self.source = None;
        self.failures += 1;
        self.reconnects += 1;
        let error = self.lost_error(lost);
        // Every host gets its tries; a host whose connections keep breaking has no more.
        let tries = TRIES_MAX.saturating_mul(u32::try_from(self.endpoints.len()).unwrap_or(1));
        if self.failures >= tries || self.reconnects >= RECONNECTS_MAX {
            return Err(error);
        }
        tracing::debug!(error = chain(&error), "reconnecting");
        if self.failures.is_multiple_of(TRIES_MAX) {
            self.at = (self.at + 1) % self.endpoints.len();
        } else if self.failures > 1 {
            // The first time at once: idle connections are cut by load balancers all the time.
            tokio::time::sleep(self.fetcher.pace.delay(self.failures - 1, None)).await;
        }
        Ok(())
    }

    fn lost_error(&self, lost: Lost) -> FetchError {
        let host = self.endpoints[self.at].host().to_owned();
        let what = self.query.what.clone();
        let got = self.position;
        match lost {
            Lost::Cut(cause) => FetchError::Cut {
                host,
                what,
                got,
                cause,
            },
            Lost::Stalled { window_bytes } => FetchError::Stalled {
                host,
                what,
                got,
                window_bytes,
                window: self.fetcher.pace.stall_window,
            },
        }
    }

    fn wrong_size(&self, found: u64) -> FetchError {
        FetchError::Size {
            host: self.endpoints[self.at].host().to_owned(),
            what: self.query.what.clone(),
            expected: self.request.size,
            found,
        }
    }

    async fn connect(&mut self) -> Result<(), FetchError> {
        let mut query = self.query.clone();
        let (position, size) = (self.position, self.request.size);
        if position > 0 {
            let range = HeaderValue::try_from(format!("bytes={position}-"))
                .map_err(|_invalid| FetchError::Invalid("range".to_owned()))?;
            query.headers.insert(header::RANGE, range);
        }
        let (fetcher, query) = (&self.fetcher, &query);
        let attempt = async |endpoint: &Endpoint| {
            let response = fetcher.ask(endpoint, query).await?;
            begin(endpoint, &query.what, response, position, size)
        };
        let opened = fetcher
            .first(&self.endpoints, self.at, &query.what, attempt)
            .await;
        let (at, source) = opened?;
        self.at = at;
        self.source = Some(source);
        Ok(())
    }
}

/// How a connection was lost.
enum Lost {
    Cut(String),
    Stalled { window_bytes: u64 },
}

impl Source {
    /// The next bytes of the body, not later than the stall rule allows.
    async fn read(&mut self, stall_window: Duration) -> Result<Option<Bytes>, Lost> {
        loop {
            let left = stall_window.saturating_sub(self.window.waited);
            let before = Instant::now();
            let frame = match tokio::time::timeout(left, self.body.frame()).await {
                Err(_elapsed) => {
                    return Err(Lost::Stalled {
                        window_bytes: self.window.bytes,
                    });
                }
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(Lost::Cut(chain(&error))),
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(bytes) = frame.into_data() else {
                continue;
            };
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            self.window.bytes = self.window.bytes.saturating_add(length);
            self.window.waited += before.elapsed();
            if self.window.bytes >= STALL_BYTES {
                self.window = Window::default();
            }
            self.received = self.received.saturating_add(length);
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
        }
    }

    /// Without what the caller has already.
    fn take_new(&mut self, mut bytes: Bytes) -> Option<Bytes> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let skipped = self.skip.min(length);
        self.skip -= skipped;
        bytes.advance(usize::try_from(skipped).unwrap_or(bytes.len()));
        (!bytes.is_empty()).then_some(bytes)
    }
}

/// Checks that the answer is the part of the blob that was asked for.
fn begin(
    endpoint: &Endpoint,
    what: &str,
    response: Response<Incoming>,
    position: u64,
    size: u64,
) -> Result<Source, FetchError> {
    let host = || endpoint.host().to_owned();
    let malformed = |problem: String| FetchError::Malformed {
        host: host(),
        what: what.to_owned(),
        problem,
    };
    let wrong_size = |found| FetchError::Size {
        host: host(),
        what: what.to_owned(),
        expected: size,
        found,
    };
    let (head, body) = response.into_parts();
    let skip = if head.status == StatusCode::PARTIAL_CONTENT {
        let (start, total) = content_range(&head.headers)
            .ok_or_else(|| malformed("a partial answer that does not say which part".to_owned()))?;
        if start != position {
            return Err(malformed(format!(
                "byte {position} was asked for, byte {start} came"
            )));
        }
        if total.is_some_and(|total| total != size) {
            return Err(wrong_size(total.unwrap_or(0)));
        }
        0
    } else {
        position
    };
    let length = body.size_hint().exact();
    let rest = size - position + skip;
    if length.is_some_and(|length| length != rest) {
        return Err(wrong_size(
            length.unwrap_or(0).saturating_add(position - skip),
        ));
    }
    // Stores that keep "gzip" with a gzip layer send it as it is; then the length is right. Proxies that
    // compress on the way change it.
    let encoding = head.headers.get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|e| e != "identity" && !e.is_empty()) && length.is_none() {
        return Err(malformed(
            "sent in an encoding that was not asked for: a proxy in between changes it".to_owned(),
        ));
    }
    Ok(Source {
        body,
        skip,
        received: 0,
        window: Window::default(),
    })
}

/// `bytes 5-9/10` and `bytes 5-9/*`: the first byte and the whole size.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text
        .trim()
        .strip_prefix("bytes")?
        .trim_start()
        .split_once('/')?;
    let start = range.split_once('-')?.0.trim().parse().ok()?;
    match total.trim() {
        "*" => Some((start, None)),
        total => Some((start, Some(total.parse().ok()?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_read() {
        let parsed = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, text.parse().unwrap());
            content_range(&headers)
        };
        assert_eq!(parsed("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parsed("bytes 5-9/*"), Some((5, None)));
        for bad in [
            "",
            "bytes",
            "bytes */10",
            "bytes 5-9",
            "items 5-9/10",
            "bytes a-b/c",
        ] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
