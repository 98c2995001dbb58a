//! From an answer's status and body to bytes or an error.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use serde::Deserialize;

use crate::credentials::Credentials;
use crate::error::FetchError;
use crate::limits::{ERROR_BYTES_MAX, ERROR_SHOWN_CHARS};
use crate::retry::retry_after;

/// Who was asked for what: the words of an error.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) host: &'a str,
    pub(crate) what: &'a str,
    /// Whose secrets must not be shown.
    pub(crate) credentials: &'a Credentials,
}

/// Reads a body of at most `limit` bytes, each part of it within `patience`.
pub(crate) async fn read_body(
    mut body: Incoming,
    limit: usize,
    patience: Duration,
    asked: Asked<'_>,
) -> Result<Bytes, FetchError> {
    let too_large = || FetchError::TooLarge {
        host: asked.host.to_owned(),
        what: asked.what.to_owned(),
        limit,
    };
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limit {
        return Err(too_large());
    }
    let mut bytes = BytesMut::new();
    // The deadline is for the whole body: it is small, and a trickle must not hold a pull.
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        let cut = |cause: String| FetchError::Cut {
            host: asked.host.to_owned(),
            what: asked.what.to_owned(),
            got: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            cause,
        };
        let frame = match tokio::time::timeout_at(deadline, body.frame()).await {
            Err(_elapsed) => {
                return Err(cut(format!("not finished within {} s", patience.as_secs())));
            }
            Ok(None) => return Ok(bytes.freeze()),
            Ok(Some(Err(error))) => return Err(cut(wharf_types::chain(&error))),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
    }
}

/// The error that an answer other than success stands for.
pub(crate) async fn refused(
    response: Response<Incoming>,
    patience: Duration,
    asked: Asked<'_>,
) -> FetchError {
    let (head, body) = response.into_parts();
    let status = head.status.as_u16();
    let detail = detail(&head.headers, body, patience, asked).await;
    let (host, what) = (asked.host.to_owned(), asked.what.to_owned());
    match status {
        404 => FetchError::NotFound {
            what,
            hosts: vec![host],
        },
        401 | 403 => FetchError::Denied {
            remedy: remedy(asked.credentials),
            host,
            what,
            status,
            detail,
        },
        _ => FetchError::Status {
            host,
            what,
            status,
            detail,
            retry_after: retry_after(&head.headers),
        },
    }
}

/// What a person can do about a denial.
pub(crate) fn remedy(credentials: &Credentials) -> String {
    match credentials {
        Credentials::Anonymous => "no credentials were given: add a pull secret or log in; \
            the repository may also not exist"
            .to_owned(),
        given => format!(
            "{} may not read it: check the user name, the secret and the permissions; \
             the repository may also not exist",
            given.account()
        ),
    }
}

async fn detail(
    headers: &HeaderMap,
    body: Incoming,
    patience: Duration,
    asked: Asked<'_>,
) -> String {
    // An error about the error would help nobody.
    let bytes = match read_body(body, ERROR_BYTES_MAX, patience, asked).await {
        Ok(bytes) => bytes,
        Err(_unreadable) => return String::new(),
    };
    let html = headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|t| t.as_bytes().starts_with(b"text/html"));
    let text = asked.credentials.redact(&describe(&bytes, html));
    if text.is_empty() {
        text
    } else {
        format!(": {text}")
    }
}

/// The distribution specification's error document, or the beginning of whatever it is.
fn describe(bytes: &[u8], html: bool) -> String {
    #[derive(Deserialize)]
    struct Document {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    /// Token servers of several makers.
    #[derive(Deserialize)]
    struct Single {
        #[serde(alias = "error_description", alias = "message")]
        details: String,
    }
    let text = if let Ok(document) = serde_json::from_slice::<Document>(bytes) {
        let each = document
            .errors
            .iter()
            .map(|e| format!("{} {}", e.code, e.message));
        each.collect::<Vec<_>>().join(", ")
    } else if let Ok(single) = serde_json::from_slice::<Single>(bytes) {
        single.details
    } else {
        let text = String::from_utf8_lossy(bytes);
        match text
            .split_once("<title>")
            .and_then(|(_, rest)| rest.split_once("</title>"))
        {
            Some((title, _)) if html => title.to_owned(),
            _ => text.into_owned(),
        }
    };
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .collect();
    let words: Vec<&str> = words.into_iter().filter(|w| !w.is_empty()).collect();
    words.join(" ").chars().take(ERROR_SHOWN_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_document_is_read_and_anything_else_is_shown_short() {
        let document =
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown tag","detail":{}}]}"#;
        assert_eq!(describe(document, false), "MANIFEST_UNKNOWN unknown tag");
        assert_eq!(describe(br#"{"details":"bad login"}"#, false), "bad login");
        let html = b"<html><title>502\nBad Gateway</title><body>long</body></html>";
        assert_eq!(describe(html, true), "502 Bad Gateway");
        assert_eq!(
            describe("ü".repeat(5000).as_bytes(), false).chars().count(),
            512
        );
        assert_eq!(describe(b"a\x1b[31mb\r\n", false), "a [31mb");
    }
}
