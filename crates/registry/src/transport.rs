//! One request over pooled HTTP/1.1 connections; redirects are followed by hand.
//!
//! By hand because what may go with a redirect is our rule: credentials stay with the scheme, host and
//! port they were meant for. HTTP/1.1 because parallel layers then have connections, and windows, of their own.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Uri};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::OnceCell;
use wharf_types::Digest;

use crate::endpoint::Endpoint;
use crate::limits::{
    IDLE_CONNECTIONS_MAX, IDLE_TIMEOUT, READ_BUFFER_MAX, REDIRECTS_MAX, TRANSPORTS_MAX,
};
use crate::tls::{TlsError, TlsMaterial};

/// Why a TLS connection was not made; trying again changes neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsFault {
    /// The other side answers in another protocol: plain http, most likely.
    NotTls,
    /// Its certificate is not one that we trust for this name.
    Certificate,
}

/// No answer was got from a host. The message names the cause; the host is named by who asks.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// TLS is not configured in a way that can work.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The connection failed, or was lost before the answer.
    #[error("{op}: {cause}")]
    Connection {
        /// "connect", "send the request".
        op: &'static str,
        /// The reason, without the HTTP library's own words around it.
        cause: String,
        /// What TLS had against the other side.
        tls: Option<TlsFault>,
    },
    /// Connected or not: no answer in time.
    #[error("no answer within {} s", after.as_secs())]
    Timeout {
        /// How long was waited.
        after: Duration,
    },
    /// A redirect that cannot or must not be followed.
    #[error("redirect {0}")]
    Redirect(String),
}

impl TransportError {
    /// Whether asking again later can help.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Connection { tls: None, .. } | Self::Timeout { .. }
        )
    }

    /// Whether the other side does not speak TLS at all.
    pub(crate) fn is_plain_http(&self) -> bool {
        matches!(
            self,
            Self::Connection {
                tls: Some(TlsFault::NotTls),
                ..
            }
        )
    }

    fn connection(error: &hyper_util::client::legacy::Error) -> Self {
        let cause = std::error::Error::source(error);
        let tls = tls_fault(cause);
        let mut text = cause.map_or_else(|| error.to_string(), wharf_types::chain);
        text += match tls {
            None => "",
            Some(TlsFault::NotTls) => {
                " (it does not speak TLS: if that is meant, write http:// for it in hosts.toml)"
            }
            Some(TlsFault::Certificate) => {
                " (name the authority that signed it as `ca` in hosts.toml)"
            }
        };
        let op = if error.is_connect() {
            "connect"
        } else {
            "send the request"
        };
        Self::Connection {
            op,
            cause: text,
            tls,
        }
    }
}

fn tls_fault(mut cause: Option<&(dyn std::error::Error + 'static)>) -> Option<TlsFault> {
    while let Some(error) = cause {
        match error.downcast_ref() {
            Some(rustls::Error::InvalidMessage(_)) => return Some(TlsFault::NotTls),
            Some(rustls::Error::InvalidCertificate(_)) => return Some(TlsFault::Certificate),
            _ => {}
        }
        // io::Error's source() skips the error that it wraps: step into that one first.
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        cause = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// One request.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    /// What every host on the way may see.
    pub(crate) headers: HeaderMap,
    /// What the first host alone may see: configured headers.
    pub(crate) private: HeaderMap,
    /// The same for our own authorisation.
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) body: Bytes,
    /// Whether a redirect from https may lead to plain http: only what is verified by digest may.
    pub(crate) downgrade: bool,
}

/// Connections that share one TLS configuration.
pub(crate) struct Transport {
    plain: Pool<HttpConnector, Full<Bytes>>,
    secure: OnceCell<SecurePool>,
    material: Arc<TlsMaterial>,
    connector: HttpConnector,
    dial_timeout: Duration,
    head_timeout: Duration,
}

impl Transport {
    fn new(material: Arc<TlsMaterial>, dial_timeout: Duration, head_timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_keepalive(Some(Duration::from_secs(30)));
        connector.set_connect_timeout(Some(dial_timeout));
        connector.enforce_http(false);
        Self {
            plain: builder().build(connector.clone()),
            secure: OnceCell::new(),
            material,
            connector,
            dial_timeout,
            head_timeout: head_timeout.saturating_add(dial_timeout),
        }
    }

    /// Sends, follows redirects, and returns the head of the last answer.
    pub(crate) async fn send(&self, mut call: Call) -> Result<Response<Incoming>, TransportError> {
        let mut redirects = 0;
        loop {
            let answer = self.once(&call).await?;
            // A redirected POST would carry credentials in its body: that answer is final.
            if call.method != Method::GET || !is_redirect(answer.status()) {
                return Ok(answer);
            }
            redirects += 1;
            if redirects > REDIRECTS_MAX {
                return Err(TransportError::Redirect(format!(
                    "number {redirects} is too many"
                )));
            }
            let location = answer
                .headers()
                .get(header::LOCATION)
                .and_then(|l| l.to_str().ok())
                .ok_or_else(|| TransportError::Redirect("without a location".to_owned()))?;
            let next = join(&call.uri, location)?;
            if is_https(&call.uri) && !is_https(&next) && !call.downgrade {
                let host = next.authority().map_or("", Authority::as_str);
                return Err(TransportError::Redirect(format!(
                    "from https to plain http at {host} is not followed"
                )));
            }
            if origin(&call.uri) != origin(&next) {
                call.authorization = None;
                call.private = HeaderMap::new();
            }
            call.uri = next;
        }
    }

    async fn once(&self, call: &Call) -> Result<Response<Incoming>, TransportError> {
        let mut request = Request::new(Full::new(call.body.clone()));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = call.uri.clone();
        let headers = request.headers_mut();
        headers.extend(call.private.clone());
        for (name, value) in &call.headers {
            headers.insert(name, value.clone());
        }
        if let Some(value) = &call.authorization {
            headers.insert(header::AUTHORIZATION, value.clone());
        }
        let asked = if is_https(&call.uri) {
            let pool = self.secure.get_or_try_init(|| self.secure_pool()).await?;
            pool.request(request)
        } else {
            self.plain.request(request)
        };
        match tokio::time::timeout(self.head_timeout, asked).await {
            Ok(answer) => answer.map_err(|error| TransportError::connection(&error)),
            Err(_elapsed) => Err(TransportError::Timeout {
                after: self.head_timeout,
            }),
        }
    }

    async fn secure_pool(&self) -> Result<SecurePool, TransportError> {
        let material = Arc::clone(&self.material);
        let config = match tokio::task::spawn_blocking(move || material.config()).await {
            Ok(config) => config?,
            // The runtime is going down; a panic in there is a bug that must not be hidden.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_cancelled) => {
                    return Err(TransportError::Timeout {
                        after: Duration::ZERO,
                    });
                }
            },
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .wrap_connector(self.connector.clone());
        Ok(builder().build(Deadline {
            connector,
            dial_timeout: self.dial_timeout,
        }))
    }
}

type SecurePool = Pool<Deadline<HttpsConnector<HttpConnector>>, Full<Bytes>>;

/// A connector with a deadline for TCP and TLS together; `HttpConnector` knows one for TCP alone.
#[derive(Clone)]
struct Deadline<C> {
    connector: C,
    dial_timeout: Duration,
}

impl<C> tower::Service<Uri> for Deadline<C>
where
    C: tower::Service<Uri, Error: Into<BoxError>, Future: Send + 'static>,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connector.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connection = tokio::time::timeout(self.dial_timeout, self.connector.call(uri));
        Box::pin(async move {
            match connection.await {
                Ok(connected) => connected.map_err(Into::into),
                Err(_elapsed) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            }
        })
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn builder() -> hyper_util::client::legacy::Builder {
    let mut builder = Pool::builder(TokioExecutor::new());
    builder
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .http1_max_buf_size(READ_BUFFER_MAX);
    builder
}

fn is_https(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Scheme, host and port: what credentials belong to.
fn origin(uri: &Uri) -> (bool, String, u16) {
    let https = is_https(uri);
    let host = uri.host().unwrap_or("").to_ascii_lowercase();
    (
        https,
        host,
        uri.port_u16().unwrap_or(if https { 443 } else { 80 }),
    )
}

/// Resolves `location` against `base` (RFC 3986, 5.2, without dot segments).
fn join(base: &Uri, location: &str) -> Result<Uri, TransportError> {
    let bad = || TransportError::Redirect("to an address that is not http or https".to_owned());
    let location = location.split('#').next().unwrap_or("");
    let scheme = base.scheme_str().unwrap_or("http");
    let text = if location.contains("://") && !location.starts_with('/') {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else {
        let authority = base.authority().ok_or_else(bad)?;
        let path = base.path();
        let path = match location.chars().next() {
            None => base
                .path_and_query()
                .map_or("/", PathAndQuery::as_str)
                .to_owned(),
            Some('/') => location.to_owned(),
            Some('?') => format!("{path}{location}"),
            Some(_) => format!("{}{location}", &path[..=path.rfind('/').unwrap_or(0)]),
        };
        format!("{scheme}://{authority}{path}")
    };
    let uri: Uri = text.parse().map_err(|_invalid| bad())?;
    let named = uri.authority().is_some_and(|a| !a.as_str().contains('@'));
    match uri.scheme_str() {
        Some("http" | "https") if named => Ok(uri),
        _ => Err(bad()),
    }
}

/// The transports of a client, by TLS configuration and dial timeout.
#[derive(Default)]
pub(crate) struct Transports {
    made: Mutex<HashMap<(Digest, Duration), Arc<Transport>>>,
}

impl Transports {
    /// The transport for `endpoint`, with its certificate files as they were when it was looked up.
    pub(crate) fn get(
        &self,
        endpoint: &Endpoint,
        head_timeout: Duration,
    ) -> Result<Arc<Transport>, TlsError> {
        let (identity, material) = endpoint.material.as_ref().map_err(Clone::clone)?;
        let key = (*identity, endpoint.dial_timeout);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.len() >= TRANSPORTS_MAX && !made.contains_key(&key) {
            // Certificates were replaced often: start again; streams under way keep theirs.
            made.clear();
        }
        let transport = made.entry(key).or_insert_with(|| {
            Arc::new(Transport::new(
                Arc::clone(material),
                endpoint.dial_timeout,
                head_timeout,
            ))
        });
        Ok(Arc::clone(transport))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_resolved_against_the_request() {
        let base: Uri = "https://a:1/v2/r/blobs/x?q=1".parse().unwrap();
        for (location, expected) in [
            ("http://b/c?d=e", "http://b/c?d=e"),
            ("//b/c", "https://b/c"),
            ("/c?d=http://x", "https://a:1/c?d=http://x"),
            ("?d", "https://a:1/v2/r/blobs/x?d"),
            ("y", "https://a:1/v2/r/blobs/y"),
        ] {
            assert_eq!(join(&base, location).unwrap().to_string(), expected);
        }
        for bad in ["ftp://b/c", "http://u:p@b/c", "http://"] {
            assert!(
                matches!(join(&base, bad), Err(TransportError::Redirect(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_default_port_is_the_same_origin() {
        let uri = |text: &str| text.parse::<Uri>().unwrap();
        assert_eq!(origin(&uri("https://A/x")), origin(&uri("https://a:443/y")));
        assert_ne!(origin(&uri("http://a/x")), origin(&uri("https://a/x")));
        assert_ne!(origin(&uri("https://a/x")), origin(&uri("https://a:444/x")));
    }

    #[test]
    fn certificate_files_are_read_at_the_look_up_and_not_for_each_request() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("example.com");
        std::fs::create_dir(&home).unwrap();
        std::fs::write(home.join("a.crt"), "one").unwrap();
        let look_up = || crate::endpoint::look_up(Some(dir.path()), "example.com").unwrap();
        let transports = Transports::default();
        let get = |endpoint: &Endpoint| transports.get(endpoint, Duration::from_secs(1));
        let first = look_up();
        let one = get(&first[0]).unwrap();
        std::fs::write(home.join("a.crt"), "two").unwrap();
        assert!(Arc::ptr_eq(&one, &get(&first[0]).unwrap()));
        assert!(!Arc::ptr_eq(&one, &get(&look_up()[0]).unwrap()));
        std::fs::remove_file(home.join("a.crt")).unwrap();
        get(&first[0]).unwrap();
        std::fs::write(
            home.join("hosts.toml"),
            "server = \"https://example.com\"\nca = \"gone.crt\"\n",
        )
        .unwrap();
        assert!(matches!(get(&look_up()[0]), Err(TlsError::Io { .. })));
    }
}
