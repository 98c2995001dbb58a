//! A bearer challenge to a token.
//!
//! Source: distribution's token specification (GET) and its OAuth2 form (POST).

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, header};
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::time::Instant;

use super::challenge::Challenge;
use super::{Caller, sensitive};
use crate::answer::{Asked, read_body, refused};
use crate::credentials::{Credentials, basic_value};
use crate::endpoint::encode_query;
use crate::error::FetchError;
use crate::limits::{TOKEN_BYTES_MAX, TOKEN_LIFE_DEFAULT, TOKEN_LIFE_MAX, TOKEN_RENEW_EARLY};
use crate::transport::Call;

/// The name under which we ask for tokens.
const CLIENT_ID: &str = "wharf";

/// Where to get a token, and for what.
pub(super) struct BearerChallenge {
    realm: Uri,
    service: Option<String>,
    scope: String,
}

/// A token, ready to be sent.
pub(super) struct Token {
    pub(super) header: HeaderValue,
    pub(super) renew_at: Instant,
}

impl BearerChallenge {
    /// Checks the challenge of the caller's registry.
    pub(super) fn new(caller: &Caller<'_>, challenge: &Challenge) -> Result<Self, FetchError> {
        let realm = challenge.get("realm").unwrap_or("");
        let uri = realm
            .parse::<Uri>()
            .ok()
            .filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")))
            .filter(|uri| uri.authority().is_some_and(|a| !a.as_str().contains('@')))
            .ok_or_else(|| {
                caller.malformed("its 401 names no usable token server (realm)".to_owned())
            })?;
        if caller.https && uri.scheme_str() != Some("https") {
            return Err(caller.malformed(format!(
                "the registry speaks https, but sends credentials to a token server at http://{}, \
                 where anybody could read them: refused",
                uri.authority().map_or("", |a| a.as_str())
            )));
        }
        let scope = match challenge.get("scope") {
            Some(scope) if !scope.is_empty() => scope.to_owned(),
            _ => format!("repository:{}:pull", caller.repository),
        };
        Ok(Self {
            realm: uri,
            service: challenge.get("service").map(str::to_owned),
            scope,
        })
    }

    fn host(&self) -> &str {
        self.realm.authority().map_or("", |a| a.as_str())
    }
}

/// Asks the token server, once: who asks the registry again asks here again.
pub(super) async fn fetch_token(
    caller: &Caller<'_>,
    challenge: &BearerChallenge,
) -> Result<Token, FetchError> {
    let what = format!("a token for {}", caller.what);
    let asked = Asked {
        host: challenge.host(),
        what: &what,
        ..caller.asked()
    };
    let mut response = match post_form(caller.credentials, challenge) {
        Some(form) => {
            let response = send(caller, asked, post(caller, challenge, form)).await?;
            let refused = matches!(
                response.status().as_u16(),
                300..=399 | 400 | 401 | 404 | 405
            );
            let can_get = matches!(caller.credentials, Credentials::Basic { .. });
            // Many token servers know only the older GET; they refuse the form in various ways.
            if refused && can_get {
                None
            } else {
                Some(response)
            }
        }
        None => None,
    };
    if response.is_none() {
        let call = get(caller, challenge).ok_or_else(|| {
            caller.malformed("its 401 names no usable token server (realm)".to_owned())
        })?;
        response = Some(send(caller, asked, call).await?);
    }
    match response {
        Some(response) if response.status() == StatusCode::OK => {
            let body = read_body(
                response.into_body(),
                TOKEN_BYTES_MAX,
                caller.pace.head_timeout,
                asked,
            );
            parse_token(asked, &body.await?)
        }
        Some(response) if response.status() == StatusCode::NOT_FOUND => {
            // Not "image not found": the token server itself is missing.
            Err(caller.malformed(format!("its token server {} answers 404", challenge.host())))
        }
        Some(response) => Err(refused(response, caller.pace.head_timeout, asked).await),
        None => Err(caller.malformed("no answer about a token".to_owned())),
    }
}

async fn send(
    caller: &Caller<'_>,
    asked: Asked<'_>,
    call: Call,
) -> Result<Response<Incoming>, FetchError> {
    caller
        .transport
        .send(call)
        .await
        .map_err(|source| FetchError::Unreachable {
            host: asked.host.to_owned(),
            what: asked.what.to_owned(),
            source,
        })
}

fn post_form(credentials: &Credentials, challenge: &BearerChallenge) -> Option<String> {
    let secret = match credentials {
        Credentials::Anonymous | Credentials::RegistryToken(_) => return None,
        Credentials::Basic { username, password } => format!(
            "grant_type=password&username={}&password={}",
            encode_query(username),
            encode_query(password)
        ),
        Credentials::IdentityToken(token) => {
            format!(
                "grant_type=refresh_token&refresh_token={}",
                encode_query(token)
            )
        }
    };
    let service = encode_query(challenge.service.as_deref().unwrap_or(""));
    let scope = encode_query(&challenge.scope);
    Some(format!(
        "{secret}&service={service}&client_id={CLIENT_ID}&scope={scope}"
    ))
}

fn post(caller: &Caller<'_>, challenge: &BearerChallenge, form: String) -> Call {
    let mut call = call(caller, challenge.realm.clone());
    call.method = Method::POST;
    call.headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/x-www-form-urlencoded; charset=utf-8"),
    );
    call.body = Bytes::from(form);
    call
}

fn get(caller: &Caller<'_>, challenge: &BearerChallenge) -> Option<Call> {
    let realm = challenge.realm.to_string();
    let mut query = Vec::new();
    if let Some(service) = &challenge.service {
        query.push(format!("service={}", encode_query(service)));
    }
    for scope in challenge.scope.split(' ') {
        query.push(format!("scope={}", encode_query(scope)));
    }
    if let Credentials::Basic { username, .. } = caller.credentials {
        query.push(format!("account={}", encode_query(username)));
    }
    let joint = if realm.contains('?') { '&' } else { '?' };
    let uri = format!("{realm}{joint}{}", query.join("&")).parse().ok()?;
    let mut call = call(caller, uri);
    if let Credentials::Basic { username, password } = caller.credentials {
        let value = basic_value(username, password);
        call.authorization = Some(sensitive(&format!("Basic {value}"))?);
    }
    Some(call)
}

fn call(caller: &Caller<'_>, uri: Uri) -> Call {
    let mut headers = HeaderMap::new();
    headers.insert(header::USER_AGENT, caller.user_agent.clone());
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    Call {
        method: Method::GET,
        uri,
        headers,
        // containerd sends a host's configured headers to its token server as well.
        private: caller.endpoint.header.clone(),
        authorization: None,
        body: Bytes::new(),
        downgrade: false,
    }
}

fn parse_token(asked: Asked<'_>, body: &[u8]) -> Result<Token, FetchError> {
    #[derive(Deserialize)]
    struct Document {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<f64>,
    }
    let malformed = |problem: &str| FetchError::Malformed {
        host: asked.host.to_owned(),
        what: asked.what.to_owned(),
        problem: problem.to_owned(),
    };
    // serde_json's errors can quote the input: the token itself.
    let document: Document =
        serde_json::from_slice(body).map_err(|_quoting| malformed("not a JSON document"))?;
    let token = [document.token, document.access_token]
        .into_iter()
        .flatten()
        .find(|token| !token.is_empty())
        .ok_or_else(|| malformed("without a token in it"))?;
    let header = sensitive(&format!("Bearer {token}"))
        .ok_or_else(|| malformed("with a token that cannot be sent as a header"))?;
    let life = document
        .expires_in
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|life| !life.is_zero())
        .map_or(TOKEN_LIFE_DEFAULT, |life| life.min(TOKEN_LIFE_MAX));
    // A very short life must not mean a new token for every request.
    let early = TOKEN_RENEW_EARLY.min(life / 2);
    Ok(Token {
        header,
        renew_at: Instant::now() + (life - early),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(body: &str) -> Result<Duration, String> {
        let credentials = Credentials::Anonymous;
        let asked = Asked {
            host: "h",
            what: "w",
            credentials: &credentials,
        };
        let before = Instant::now();
        match parse_token(asked, body.as_bytes()) {
            Ok(token) => Ok(token.renew_at - before),
            Err(error) => Err(error.to_string()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_lives_as_long_as_its_server_says_or_a_minute() {
        let seconds = Duration::from_secs;
        assert_eq!(life(r#"{"token":"t"}"#), Ok(seconds(50)));
        assert_eq!(
            life(r#"{"token":"","access_token":"t","expires_in":300}"#),
            Ok(seconds(290))
        );
        assert_eq!(life(r#"{"token":"t","expires_in":4}"#), Ok(seconds(2)));
        assert_eq!(life(r#"{"token":"t","expires_in":-1}"#), Ok(seconds(50)));
        assert_eq!(life(r#"{"token":"t","expires_in":1e300}"#), Ok(seconds(50)));
        for (bad, part) in [
            ("{}", "without a token"),
            ("secret", "not a JSON"),
            (r#"{"token":"a\nb"}"#, "header"),
        ] {
            let error = life(bad).unwrap_err();
            assert!(error.contains(part) && !error.contains("secret"), "{error}");
        }
    }
}
