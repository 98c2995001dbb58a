//! From a 401 to an `Authorization` header, remembered and renewed.
//!
//! Nothing is sent before a host asks for it: a mirror that needs no credentials never sees them.
//! What is remembered belongs to one host, repository and credentials, so that a denied pull spoils
//! no other; one task at a time asks for a token, the others wait for it.
//!
//! Source: distribution specification, "token authentication"; RFC 6750, 7235, 7617.

mod challenge;
mod token;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderMap, HeaderValue, header};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use crate::answer::{Asked, remedy};
use crate::auth::token::{BearerChallenge, Token, fetch_token};
use crate::credentials::{Credentials, basic_value};
use crate::endpoint::Endpoint;
use crate::error::FetchError;
use crate::limits::TOKENS_MAX;
use crate::retry::Pace;
use crate::transport::Transport;

/// For whom and where an authorisation is needed.
#[derive(Clone, Copy)]
pub(crate) struct Caller<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) transport: &'a Transport,
    /// Whether the registry is spoken to by https (a realm must then be, too).
    pub(crate) https: bool,
    pub(crate) repository: &'a str,
    pub(crate) credentials: &'a Credentials,
    pub(crate) what: &'a str,
    pub(crate) user_agent: &'a HeaderValue,
    pub(crate) pace: &'a Pace,
}

impl<'a> Caller<'a> {
    fn asked(&self) -> Asked<'a> {
        Asked {
            host: self.endpoint.host(),
            what: self.what,
            credentials: self.credentials,
        }
    }

    fn malformed(&self, problem: String) -> FetchError {
        FetchError::Malformed {
            host: self.endpoint.host().to_owned(),
            what: self.what.to_owned(),
            problem,
        }
    }
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    /// Scheme, host and path of the endpoint.
    registry: String,
    repository: String,
    credentials: Credentials,
}

/// What a host wants.
enum Method {
    /// The same header each time.
    Fixed(HeaderValue),
    Bearer {
        challenge: BearerChallenge,
        token: Option<Token>,
    },
}

#[derive(Default)]
struct Slot {
    method: Option<Method>,
    /// Grows with each new header: who comes with an older one takes the newer instead of asking again.
    generation: u64,
    /// Why no token was got, and when: those who were waiting then share the answer.
    failed: Option<(Instant, FetchError)>,
}

/// The header for one request.
pub(crate) struct Permit {
    slot: Arc<AsyncMutex<Slot>>,
    generation: u64,
    pub(crate) header: Option<HeaderValue>,
}

/// What is known about hosts that ask for authorisation.
#[derive(Default)]
pub(crate) struct Authorizer {
    slots: Mutex<HashMap<Key, Arc<AsyncMutex<Slot>>>>,
}

impl Authorizer {
    /// The header to begin with: none, or what worked last time, renewed if it is about to end.
    pub(crate) async fn permit(&self, caller: Caller<'_>) -> Result<Permit, FetchError> {
        let since = Instant::now();
        let shared = self.slot(&caller);
        let mut slot = shared.lock().await;
        let header = slot.header(&caller, since).await?;
        let generation = slot.generation;
        drop(slot);
        Ok(Permit {
            slot: shared,
            generation,
            header,
        })
    }

    /// The header after a 401 to a request with `permit`; `headers` are the answer's.
    pub(crate) async fn challenged(
        &self,
        caller: Caller<'_>,
        permit: Permit,
        headers: &HeaderMap,
    ) -> Result<Permit, FetchError> {
        let Permit {
            slot: shared,
            generation,
            ..
        } = permit;
        let since = Instant::now();
        let mut slot = shared.lock().await;
        if slot.generation == generation {
            slot.method = Some(choose(&caller, headers)?);
            slot.generation += 1;
        }
        let header = slot.header(&caller, since).await?;
        let generation = slot.generation;
        drop(slot);
        Ok(Permit {
            slot: shared,
            generation,
            header,
        })
    }

    /// Forgets what was refused although it was new.
    pub(crate) async fn refused(&self, permit: Permit) {
        let mut slot = permit.slot.lock().await;
        if slot.generation == permit.generation {
            slot.method = None;
        }
    }

    fn slot(&self, caller: &Caller<'_>) -> Arc<AsyncMutex<Slot>> {
        let url = &caller.endpoint.url;
        let scheme = if caller.https { "https" } else { "http" };
        let key = Key {
            registry: format!("{scheme}://{}{}", url.authority, url.path),
            repository: caller.repository.to_owned(),
            credentials: caller.credentials.clone(),
        };
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= TOKENS_MAX && !slots.contains_key(&key) {
            // What nobody is using now costs one more question later, no more.
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        Arc::clone(slots.entry(key).or_default())
    }
}

impl Slot {
    /// The header for a caller that has been waiting `since` then.
    async fn header(
        &mut self,
        caller: &Caller<'_>,
        since: Instant,
    ) -> Result<Option<HeaderValue>, FetchError> {
        let (challenge, token) = match &mut self.method {
            None => return Ok(None),
            Some(Method::Fixed(header)) => return Ok(Some(header.clone())),
            Some(Method::Bearer { challenge, token }) => (challenge, token),
        };
        if let Some(token) = token
            && Instant::now() < token.renew_at
        {
            return Ok(Some(token.header.clone()));
        }
        if let Some((at, error)) = &self.failed
            && since < *at
        {
            return Err(error.clone());
        }
        let new = match fetch_token(caller, challenge).await {
            Ok(new) => new,
            Err(error) => {
                self.failed = Some((Instant::now(), error.clone()));
                return Err(error);
            }
        };
        let header = new.header.clone();
        *token = Some(new);
        self.generation += 1;
        Ok(Some(header))
    }
}

/// Picks the best of the challenges that we have something to answer with.
fn choose(caller: &Caller<'_>, headers: &HeaderMap) -> Result<Method, FetchError> {
    let challenges: Vec<_> = headers
        .get_all(header::WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(challenge::parse)
        .collect();
    let bearer = challenges.iter().find(|c| c.scheme == "bearer");
    let basic = challenges.iter().any(|c| c.scheme == "basic");
    match caller.credentials {
        Credentials::RegistryToken(token) if bearer.is_some() => {
            return fixed(caller, "Bearer", token);
        }
        Credentials::Basic { username, password } if bearer.is_none() && basic => {
            return fixed(caller, "Basic", &basic_value(username, password));
        }
        _ => {}
    }
    if let Some(bearer) = bearer {
        let challenge = BearerChallenge::new(caller, bearer)?;
        return Ok(Method::Bearer {
            challenge,
            token: None,
        });
    }
    if basic {
        return Err(FetchError::Denied {
            host: caller.endpoint.host().to_owned(),
            what: caller.what.to_owned(),
            status: 401,
            detail: ": it asks for a user name and a password".to_owned(),
            remedy: remedy(caller.credentials),
        });
    }
    let known: Vec<&str> = challenges.iter().map(|c| c.scheme.as_str()).collect();
    Err(FetchError::Denied {
        host: caller.endpoint.host().to_owned(),
        what: caller.what.to_owned(),
        status: 401,
        detail: format!(
            ": it names no way to authorise that is supported ({})",
            known.join(", ")
        ),
        remedy: "Bearer and Basic are supported".to_owned(),
    })
}

fn fixed(caller: &Caller<'_>, scheme: &str, value: &str) -> Result<Method, FetchError> {
    sensitive(&format!("{scheme} {value}"))
        .map(Method::Fixed)
        .ok_or_else(|| {
            FetchError::Invalid(format!(
                "the credentials for {} contain characters that cannot be sent",
                caller.endpoint.host()
            ))
        })
}

/// A header value that Debug output does not show.
fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
