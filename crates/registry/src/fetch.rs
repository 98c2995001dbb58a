//! One question to several hosts until one answers.
//!
//! All hosts are asked once in the configured order before any is asked again: a dead mirror costs its
//! dial timeout once, not once a retry, and is asked last for a while after that.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::time::Instant;
use wharf_types::chain;

use crate::answer::{Asked, read_body, refused};
use crate::auth::{Authorizer, Caller};
use crate::credentials::Credentials;
use crate::endpoint::{Endpoint, look_up};
use crate::error::FetchError;
use crate::hosts::Scheme;
use crate::limits::{DOWN_FOR, DOWN_MAX, ERROR_BYTES_MAX, THROTTLED_TRIES_MAX, TRIES_MAX};
use crate::retry::Pace;
use crate::transport::{Call, Transport, TransportError, Transports};

/// What all requests of one client share.
pub(crate) struct Fetcher {
    pub(crate) certs_d: Option<PathBuf>,
    pub(crate) user_agent: HeaderValue,
    pub(crate) pace: Pace,
    pub(crate) authorizer: Authorizer,
    pub(crate) transports: Transports,
    /// Hosts that could not be reached, and until when they are asked last.
    pub(crate) down: Mutex<HashMap<String, Instant>>,
    /// Hosts configured as plain http with certificates: what they turned out to speak.
    pub(crate) spoken: Mutex<HashMap<String, Scheme>>,
}

/// One question, the same for every host.
#[derive(Clone)]
pub(crate) struct Query {
    /// The thing, as errors name it.
    pub(crate) what: String,
    pub(crate) repository: String,
    /// Behind `/v2/`.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) credentials: Credentials,
    /// Whether the answer is verified by a digest that we already have.
    pub(crate) by_digest: bool,
}

impl Fetcher {
    /// The hosts that may answer for `domain`, in order.
    pub(crate) async fn endpoints(
        &self,
        domain: &str,
        query: &Query,
    ) -> Result<Vec<Endpoint>, FetchError> {
        let (certs_d, name) = (self.certs_d.clone(), domain.to_owned());
        let read = move || look_up(certs_d.as_deref(), &name);
        let mut endpoints = match tokio::task::spawn_blocking(read).await {
            Ok(found) => found?,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_cancelled) => {
                    return Err(FetchError::Invalid(
                        "the client is shutting down".to_owned(),
                    ));
                }
            },
        };
        let capability = if query.by_digest { "pull" } else { "resolve" };
        endpoints.retain(|endpoint| match capability {
            "pull" => endpoint.capabilities.pull,
            _ => endpoint.capabilities.resolve,
        });
        if endpoints.is_empty() {
            return Err(FetchError::NoHost {
                what: query.what.clone(),
                capability,
            });
        }
        Ok(endpoints)
    }

    /// Runs `attempt` on the endpoints, beginning with number `start`, until one succeeds.
    pub(crate) async fn first<'a, T, F, A>(
        &self,
        endpoints: &'a [Endpoint],
        start: usize,
        what: &str,
        attempt: F,
    ) -> Result<(usize, T), FetchError>
    where
        F: Fn(&'a Endpoint) -> A,
        A: Future<Output = Result<T, FetchError>>,
    {
        let order = self.order(endpoints, start);
        let mut errors: Vec<Option<FetchError>> = endpoints.iter().map(|_| None).collect();
        for round in 1..=THROTTLED_TRIES_MAX {
            let mut asked_wait = None;
            let mut again = false;
            for &index in &order {
                if errors[index]
                    .as_ref()
                    .is_some_and(|error| !may_ask_again(error, round))
                {
                    continue;
                }
                let endpoint = &endpoints[index];
                let error = match attempt(endpoint).await {
                    Ok(answer) => {
                        self.set_down(endpoint, false);
                        return Ok((index, answer));
                    }
                    Err(error) => error,
                };
                tracing::debug!(
                    host = endpoint.host(),
                    what,
                    error = chain(&error),
                    "fetch failed"
                );
                self.set_down(endpoint, matches!(error, FetchError::Unreachable { .. }));
                if may_ask_again(&error, round + 1) {
                    again = true;
                    asked_wait = shorter(asked_wait, error.retry_after());
                }
                errors[index] = Some(error);
            }
            if !again {
                break;
            }
            tokio::time::sleep(self.pace.delay(round, asked_wait)).await;
        }
        Err(FetchError::combine(
            what,
            errors.into_iter().flatten().collect(),
        ))
    }

    /// Asks one endpoint once (and once more after a 401). An answer is 200 or 206.
    pub(crate) async fn ask(
        &self,
        endpoint: &Endpoint,
        query: &Query,
    ) -> Result<Response<Incoming>, FetchError> {
        let unreachable = |source| FetchError::Unreachable {
            host: endpoint.host().to_owned(),
            what: query.what.clone(),
            source,
        };
        let transport = self
            .transports
            .get(endpoint, self.pace.head_timeout)
            .map_err(|error| unreachable(TransportError::Tls(error)))?;
        let scheme = self.scheme(endpoint);
        let answer = self.ask_by(endpoint, scheme, &transport, query).await;
        match &answer {
            Err(FetchError::Unreachable { source, .. })
                if source.is_plain_http() && endpoint.https_first() && scheme == Scheme::Https =>
            {
                let mut spoken = self.spoken.lock().unwrap_or_else(PoisonError::into_inner);
                if spoken.len() < DOWN_MAX {
                    spoken.insert(endpoint.host().to_owned(), Scheme::Http);
                }
            }
            _ => return answer,
        }
        self.ask_by(endpoint, Scheme::Http, &transport, query).await
    }

    async fn ask_by(
        &self,
        endpoint: &Endpoint,
        scheme: Scheme,
        transport: &Transport,
        query: &Query,
    ) -> Result<Response<Incoming>, FetchError> {
        let uri = endpoint.uri(scheme, &query.path).map_err(|_invalid| {
            FetchError::Invalid(format!(
                "{} cannot be asked of {}",
                query.what,
                endpoint.host()
            ))
        })?;
        let caller = Caller {
            endpoint,
            transport,
            https: scheme == Scheme::Https,
            repository: &query.repository,
            credentials: &query.credentials,
            what: &query.what,
            user_agent: &self.user_agent,
            pace: &self.pace,
        };
        let asked = Asked {
            host: endpoint.host(),
            what: &query.what,
            credentials: &query.credentials,
        };
        let mut headers = query.headers.clone();
        headers.insert(header::USER_AGENT, self.user_agent.clone());
        let permit = self.authorizer.permit(caller).await?;
        let mut call = Call {
            method: Method::GET,
            uri,
            headers,
            private: endpoint.header.clone(),
            authorization: permit.header.clone(),
            body: Bytes::new(),
            downgrade: query.by_digest,
        };
        let unreachable = |source| FetchError::Unreachable {
            host: endpoint.host().to_owned(),
            what: query.what.clone(),
            source,
        };
        let mut response = transport.send(call.clone()).await.map_err(unreachable)?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let (head, body) = response.into_parts();
            // Read to its end, so that the connection can be used again; what it says does not matter yet.
            let patience = self.pace.head_timeout;
            let _unused = read_body(body, ERROR_BYTES_MAX, patience, asked).await;
            let permit = self
                .authorizer
                .challenged(caller, permit, &head.headers)
                .await?;
            call.authorization = permit.header.clone();
            response = transport.send(call).await.map_err(unreachable)?;
            if response.status() == StatusCode::UNAUTHORIZED {
                self.authorizer.refused(permit).await;
            }
        }
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            _ => Err(refused(response, self.pace.head_timeout, asked).await),
        }
    }

    fn scheme(&self, endpoint: &Endpoint) -> Scheme {
        if !endpoint.https_first() {
            return endpoint.url.scheme;
        }
        let spoken = self.spoken.lock().unwrap_or_else(PoisonError::into_inner);
        spoken
            .get(endpoint.host())
            .copied()
            .unwrap_or(Scheme::Https)
    }

    /// The numbers of the endpoints from `start` on, around the end; those that are down last.
    fn order(&self, endpoints: &[Endpoint], start: usize) -> Vec<usize> {
        let now = Instant::now();
        let down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        let mut order: Vec<usize> = (0..endpoints.len()).collect();
        order.rotate_left(start.min(endpoints.len()));
        // A stable sort: the order within each half stays.
        order.sort_by_key(|index| {
            down.get(endpoints[*index].host())
                .is_some_and(|until| *until > now)
        });
        order
    }

    fn set_down(&self, endpoint: &Endpoint, is_down: bool) {
        let now = Instant::now();
        let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_down {
            down.remove(endpoint.host());
            return;
        }
        if down.len() >= DOWN_MAX {
            down.retain(|_, until| *until > now);
        }
        if down.len() < DOWN_MAX {
            down.insert(endpoint.host().to_owned(), now + DOWN_FOR);
        }
    }
}

fn may_ask_again(error: &FetchError, round: u32) -> bool {
    let tries = if error.is_throttled() {
        THROTTLED_TRIES_MAX
    } else {
        TRIES_MAX
    };
    error.is_transient() && round <= tries
}

fn shorter<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
