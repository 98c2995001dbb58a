//! A registry of our own that serves images from memory, notes every request, and misbehaves when
//! told: it demands credentials, cuts, corrupts, stalls, redirects, answers errors.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;

use crate::body::{Body, Pace};
use crate::image::{Image, Manifest};
use crate::place::Place;

/// Which requests a fault meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum On {
    /// Every request below `/v2/`.
    Any,
    /// `GET` of any blob.
    Blobs,
    /// `GET` of the blob with this digest.
    Blob(String),
    /// `GET` and `HEAD` of any manifest.
    Manifests,
    /// Requests for a token.
    Token,
}

/// What happens instead of the right answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// The connection ends after this many bytes of the body.
    Cut(u64),
    /// The right number of bytes, the last one wrong.
    WrongBytes,
    /// No byte after this many, for as long as the registry lives.
    Stall(u64),
    /// This many bytes, then a pause, and so on.
    Slow(usize, Duration),
    /// This status with an error document of the distribution specification.
    Status(u16),
    /// 429 with `Retry-After` of this many seconds.
    Busy(u32),
    /// 307 to a path outside `/v2/` that has the same bytes and refuses credentials.
    Redirect,
    /// A `Content-Length` that is larger than the blob by this much.
    TooLong(u64),
    /// Ignores `Range`: 200 and the whole blob.
    NoRanges,
    /// Another digest in `Docker-Content-Digest` than that of the body.
    WrongDigestHeader,
}

/// A fault: where, what, and how often (`None`: always).
#[derive(Clone, Debug)]
pub struct Fault {
    on: On,
    act: Act,
    times: Option<u32>,
}

/// Who may pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Everybody.
    Open,
    /// Who sends this name and password with each request.
    Basic(String, String),
    /// Who fetched a token; with a name and password to get it, or for everybody.
    Bearer(Option<(String, String)>),
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// Path.
    pub path: String,
    /// Query, empty where there was none.
    pub query: String,
    /// The scheme of `Authorization`: `Basic`, `Bearer`. Its secret is not kept.
    pub authorization: Option<String>,
    /// `Range`.
    pub range: Option<String>,
    /// `User-Agent`.
    pub user_agent: Option<String>,
}

#[derive(Debug)]
struct State {
    manifests: HashMap<(String, String), Manifest>,
    blobs: HashMap<String, Bytes>,
    auth: Auth,
    faults: Vec<Fault>,
    seen: Vec<Seen>,
    tokens: Vec<String>,
}

/// The registry; it ends when dropped.
#[derive(Debug)]
pub struct Registry {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
    connections: Arc<AtomicUsize>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Registry {
    /// On a free port of 127.0.0.1.
    ///
    /// # Errors
    /// No socket.
    pub fn start() -> io::Result<Self> {
        Self::start_in(&Place::host())
    }

    /// The same in the network namespace of `place`.
    ///
    /// # Errors
    /// No socket, or the namespace cannot be entered.
    pub fn start_in(place: &Place) -> io::Result<Self> {
        let listener = place.in_net(|| std::net::TcpListener::bind("127.0.0.1:0"))?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State {
            manifests: HashMap::new(),
            blobs: HashMap::new(),
            auth: Auth::Open,
            faults: Vec::new(),
            seen: Vec::new(),
            tokens: Vec::new(),
        }));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let served = Arc::clone(&state);
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, addr, served, counted) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self {
            addr,
            state,
            connections,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// `127.0.0.1:PORT`, the registry's part of a reference.
    pub fn host(&self) -> String {
        self.addr.to_string()
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Serves `image` by digest and, where `tag` is not empty, by tag; gives the tagged reference.
    pub fn add(&self, repository: &str, tag: &str, image: &Image) -> String {
        let mut state = self.state();
        for manifest in image.children.iter().chain([&image.top]) {
            let key = (repository.into(), manifest.blob.digest.clone());
            state.manifests.insert(key, manifest.clone());
        }
        for blob in &image.blobs {
            let bytes = blob
                .bytes()
                .expect("the bytes of an image of this test are there");
            state.blobs.insert(blob.digest.clone(), bytes);
        }
        if tag.is_empty() {
            return format!("{}/{repository}@{}", self.addr, image.digest());
        }
        state
            .manifests
            .insert((repository.into(), tag.into()), image.top.clone());
        format!("{}/{repository}:{tag}", self.addr)
    }

    /// Who may pull from now on; tokens given before end here.
    pub fn demand(&self, auth: Auth) {
        let mut state = self.state();
        state.auth = auth;
        state.tokens.clear();
    }

    /// Every token given so far ends now.
    pub fn expire_tokens(&self) {
        self.state().tokens.clear();
    }

    /// From now on each request that fits `on` meets `act`. The newest fitting fault wins.
    pub fn fail(&self, on: On, act: Act) {
        self.state().faults.push(Fault {
            on,
            act,
            times: None,
        });
    }

    /// The same for the next `times` fitting requests only.
    pub fn fail_times(&self, times: u32, on: On, act: Act) {
        self.state().faults.push(Fault {
            on,
            act,
            times: Some(times),
        });
    }

    /// Behaves again.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// Connections that clients hold open now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Forgets the requests so far.
    pub fn forget_requests(&self) {
        self.state().seen.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

async fn accept(
    listener: std::net::TcpListener,
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
    connections: Arc<AtomicUsize>,
) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("the listener is set up");
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        let connections = Arc::clone(&connections);
        connections.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let response = answer(addr, &state, &request);
                async move { Ok::<_, Infallible>(response) }
            });
            let http = hyper::server::conn::http1::Builder::new();
            let _connection_ended = http.serve_connection(TokioIo::new(stream), service).await;
            connections.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn answer(addr: SocketAddr, state: &Mutex<State>, request: &Request<Incoming>) -> Response<Body> {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let (method, path) = (request.method(), request.uri().path());
    let headers = request.headers();
    state.seen.push(seen(request));
    if path == "/token" {
        return token(&mut state, request);
    }
    if let Some(digest) = path.strip_prefix("/elsewhere/") {
        if headers.contains_key(header::AUTHORIZATION) {
            return error(StatusCode::BAD_REQUEST, "DENIED");
        }
        return blob(&state, digest, headers, None);
    }
    let Some(rest) = path.strip_prefix("/v2/") else {
        return error(StatusCode::NOT_FOUND, "NAME_UNKNOWN");
    };
    if !admitted(&state, headers) {
        return challenge(addr, &state, rest);
    }
    if rest.is_empty() {
        return respond(StatusCode::OK, Body::of("{}"));
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        return error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED");
    }
    if let Some((repository, reference)) = rest.split_once("/manifests/") {
        let act = state.fault(|on| matches!(on, On::Any | On::Manifests));
        let key = (repository.to_string(), reference.to_string());
        return manifest(state.manifests.get(&key), method, act.as_ref());
    }
    if let Some((_, digest)) = rest.split_once("/blobs/") {
        let act = state.fault(|on| match on {
            On::Any | On::Blobs => true,
            On::Blob(d) => d == digest,
            On::Manifests | On::Token => false,
        });
        return blob(&state, digest, headers, act.as_ref());
    }
    error(StatusCode::NOT_FOUND, "UNSUPPORTED")
}

impl State {
    /// The newest fault that fits; a counted one is used up.
    fn fault(&mut self, fits: impl Fn(&On) -> bool) -> Option<Act> {
        let at = self
            .faults
            .iter()
            .rposition(|f| f.times != Some(0) && fits(&f.on))?;
        let fault = &mut self.faults[at];
        if let Some(times) = &mut fault.times {
            *times -= 1;
        }
        Some(fault.act.clone())
    }
}

fn seen(request: &Request<Incoming>) -> Seen {
    let text = |name| {
        let value = request.headers().get(name)?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let scheme = |a: String| a.split(' ').next().unwrap_or_default().to_string();
    Seen {
        method: request.method().to_string(),
        path: request.uri().path().into(),
        query: request.uri().query().unwrap_or_default().into(),
        authorization: text(header::AUTHORIZATION).map(scheme),
        range: text(header::RANGE),
        user_agent: text(header::USER_AGENT),
    }
}

fn admitted(state: &State, headers: &HeaderMap) -> bool {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok());
    match &state.auth {
        Auth::Open => true,
        Auth::Basic(name, password) => given == Some(&basic(name, password)),
        Auth::Bearer(_) => given
            .and_then(|g| g.strip_prefix("Bearer "))
            .is_some_and(|token| state.tokens.iter().any(|t| t == token)),
    }
}

fn basic(name: &str, password: &str) -> String {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
    format!("Basic {pair}")
}

fn challenge(addr: SocketAddr, state: &State, rest: &str) -> Response<Body> {
    let mut response = error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
    let repository = rest.split("/manifests/").next().unwrap_or_default();
    let repository = repository.split("/blobs/").next().unwrap_or_default();
    let text = match &state.auth {
        Auth::Bearer(_) => format!(
            "Bearer realm=\"http://{addr}/token\",service=\"testkit\",\
             scope=\"repository:{repository}:pull\""
        ),
        Auth::Basic(..) | Auth::Open => "Basic realm=\"testkit\"".into(),
    };
    set(&mut response, header::WWW_AUTHENTICATE, &text);
    response
}

fn token(state: &mut State, request: &Request<Incoming>) -> Response<Body> {
    if let Some(Act::Status(code)) = state.fault(|on| *on == On::Token) {
        return error(
            StatusCode::from_u16(code).unwrap_or_default(),
            "UNAVAILABLE",
        );
    }
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok());
    if let Auth::Bearer(Some((name, password))) = &state.auth
        && given != Some(&basic(name, password))
    {
        return error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
    }
    let token = format!("token-{}", state.seen.len());
    state.tokens.push(token.clone());
    let text = json!({ "token": token, "access_token": token, "expires_in": 300 }).to_string();
    let mut response = respond(StatusCode::OK, Body::of(text));
    set(&mut response, header::CONTENT_TYPE, "application/json");
    response
}

fn manifest(found: Option<&Manifest>, method: &Method, act: Option<&Act>) -> Response<Body> {
    if let Some(response) = act.and_then(refusal) {
        return response;
    }
    let Some(manifest) = found else {
        return error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN");
    };
    let bytes = manifest.blob.bytes().expect("manifests are in memory");
    let size = bytes.len().to_string();
    let body = match (method, act) {
        (&Method::HEAD, _) => Body::of(""),
        (_, Some(act)) => faulty(bytes, act),
        (_, None) => Body::of(bytes),
    };
    let mut response = respond(StatusCode::OK, body);
    set(&mut response, header::CONTENT_TYPE, &manifest.media_type);
    set(&mut response, header::CONTENT_LENGTH, &size);
    let digest = match act {
        Some(Act::WrongDigestHeader) => crate::image::digest(b"another"),
        _ => manifest.blob.digest.clone(),
    };
    set(
        &mut response,
        header::HeaderName::from_static("docker-content-digest"),
        &digest,
    );
    response
}

fn blob(state: &State, digest: &str, headers: &HeaderMap, act: Option<&Act>) -> Response<Body> {
    if let Some(response) = act.and_then(refusal) {
        return response;
    }
    let Some(bytes) = state.blobs.get(digest) else {
        return error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN");
    };
    if act == Some(&Act::Redirect) {
        let mut response = respond(StatusCode::TEMPORARY_REDIRECT, Body::of(""));
        set(
            &mut response,
            header::LOCATION,
            &format!("/elsewhere/{digest}"),
        );
        return response;
    }
    let total = bytes.len();
    let start = headers
        .get(header::RANGE)
        .and_then(|v| range_start(v.to_str().ok()?));
    let start = start.filter(|_| act != Some(&Act::NoRanges));
    if start.is_some_and(|s| s >= total) {
        return error(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID");
    }
    let rest = bytes.slice(start.unwrap_or(0)..);
    let longer = if let Some(Act::TooLong(n)) = act {
        *n
    } else {
        0
    };
    let length = rest.len() as u64 + longer;
    let body = act.map_or_else(|| Body::of(rest.clone()), |act| faulty(rest.clone(), act));
    let mut response = match start {
        None => respond(StatusCode::OK, body),
        Some(start) => {
            let mut partial = respond(StatusCode::PARTIAL_CONTENT, body);
            let range = format!("bytes {start}-{}/{total}", total - 1);
            set(&mut partial, header::CONTENT_RANGE, &range);
            partial
        }
    };
    set(
        &mut response,
        header::CONTENT_TYPE,
        "application/octet-stream",
    );
    set(&mut response, header::CONTENT_LENGTH, &length.to_string());
    response
}

/// The start of `bytes=START-`; an end is not looked at, clients here ask for the rest.
fn range_start(range: &str) -> Option<usize> {
    range
        .strip_prefix("bytes=")?
        .split('-')
        .next()?
        .parse()
        .ok()
}

/// The faults that have no body of their own.
fn refusal(act: &Act) -> Option<Response<Body>> {
    match act {
        Act::Status(code) => Some(error(
            StatusCode::from_u16(*code).unwrap_or_default(),
            "UNAVAILABLE",
        )),
        Act::Busy(seconds) => {
            let mut response = error(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS");
            set(&mut response, header::RETRY_AFTER, &seconds.to_string());
            Some(response)
        }
        _ => None,
    }
}

fn faulty(bytes: Bytes, act: &Act) -> Body {
    match act {
        Act::Cut(n) => Body::paced(bytes, Pace::CutAfter(*n)),
        Act::TooLong(_) => {
            let all = bytes.len() as u64;
            Body::paced(bytes, Pace::CutAfter(all))
        }
        Act::Stall(n) => Body::paced(bytes, Pace::StallAfter(*n)),
        Act::Slow(chunk, pause) => Body::paced(bytes, Pace::Slow(*chunk, *pause)),
        Act::WrongBytes => {
            let mut wrong = bytes.to_vec();
            if let Some(last) = wrong.last_mut() {
                *last ^= 0xff;
            }
            Body::of(wrong)
        }
        Act::Status(_) | Act::Busy(_) | Act::Redirect | Act::NoRanges | Act::WrongDigestHeader => {
            Body::of(bytes)
        }
    }
}

fn respond(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

fn error(status: StatusCode, code: &str) -> Response<Body> {
    let text = json!({ "errors": [{ "code": code, "message": "the testkit says so" }] });
    let mut response = respond(status, Body::of(text.to_string()));
    set(&mut response, header::CONTENT_TYPE, "application/json");
    response
}

fn set(response: &mut Response<Body>, name: header::HeaderName, value: &str) {
    let value = value
        .parse()
        .expect("the testkit's own header values are valid");
    response.headers_mut().insert(name, value);
}
