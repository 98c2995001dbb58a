//! Manifests: by tag and digest, checked, retried.

use std::sync::atomic::{AtomicUsize, Ordering};

use wharf_types::{Digest, Kind, Reference, chain};

use super::server::{Server, reply};
use super::{DOCKER_MANIFEST, MANIFEST, OCI_MANIFEST, client, reference};
use crate::Credentials;
use crate::limits::MANIFEST_BYTES_MAX;

#[tokio::test]
async fn a_manifest_is_found_by_tag_and_by_digest() {
    let server = Server::start(|_| {
        reply(200)
            .header("content-type", OCI_MANIFEST)
            .body(MANIFEST)
    })
    .await;
    let (client, name) = (client(None), reference(&server.domain));
    let by_tag = client
        .resolve(&name, &Credentials::Anonymous)
        .await
        .unwrap();
    assert_eq!(by_tag.digest, Digest::of(MANIFEST));
    assert_eq!(by_tag.media_type, OCI_MANIFEST);
    assert_eq!(&by_tag.bytes[..], MANIFEST);
    // The digest decides, also beside a tag.
    let both: Reference = format!("{name}@{}", by_tag.digest).parse().unwrap();
    client
        .resolve(&both, &Credentials::Anonymous)
        .await
        .unwrap();
    client
        .manifest(&name, by_tag.digest, &Credentials::Anonymous)
        .await
        .unwrap();
    let by_digest = format!("/v2/team/app/manifests/{}", by_tag.digest);
    let paths: Vec<String> = server.seen().into_iter().map(|s| s.path).collect();
    assert_eq!(
        paths,
        [
            "/v2/team/app/manifests/v1",
            by_digest.as_str(),
            by_digest.as_str()
        ]
    );
    let accept = server.seen()[0].header("accept").unwrap().to_owned();
    for wanted in [
        "oci.image.index.v1",
        "oci.image.manifest.v1",
        "manifest.list.v2",
        "manifest.v2+json",
    ] {
        assert!(accept.contains(wanted), "{accept}");
    }
    assert_eq!(server.seen()[0].header("user-agent"), Some("wharf/test"));
}

#[tokio::test]
async fn what_does_not_match_its_digest_is_corrupt() {
    let server = Server::start(|_| reply(200).body(MANIFEST)).await;
    let wanted = Digest::of(b"something else");
    let error = client(None)
        .manifest(&reference(&server.domain), wanted, &Credentials::Anonymous)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    let text = error.to_string();
    for part in [
        &server.domain,
        &wanted.to_string(),
        &Digest::of(MANIFEST).to_string(),
    ] {
        assert!(text.contains(part.as_str()), "{text}");
    }
}

#[tokio::test]
async fn an_endless_manifest_is_refused() {
    let server = Server::start(|_| reply(200).body(vec![b' '; MANIFEST_BYTES_MAX + 1])).await;
    let resolved = client(None)
        .resolve(&reference(&server.domain), &Credentials::Anonymous)
        .await;
    let error = resolved.unwrap_err();
    assert_eq!(error.kind(), Kind::Exhausted);
    assert!(
        error.to_string().contains("longer than 8388608 bytes"),
        "{error}"
    );
}

#[tokio::test]
async fn a_missing_image_names_itself_and_who_was_asked() {
    let server = Server::start(|_| {
        reply(404).body(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}"#)
    })
    .await;
    let name = reference(&server.domain);
    let error = client(None)
        .resolve(&name, &Credentials::Anonymous)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(
        error.to_string(),
        format!("{name} not found (asked: {})", server.domain)
    );
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_registry_in_trouble_is_asked_again() {
    let tries = AtomicUsize::new(0);
    let server = Server::start(move |_| match tries.fetch_add(1, Ordering::Relaxed) {
        0 => reply(503).header("retry-after", "3600"),
        1 => reply(500),
        2 => reply(429),
        _ => reply(200).body(MANIFEST),
    })
    .await;
    client(None)
        .resolve(&reference(&server.domain), &Credentials::Anonymous)
        .await
        .unwrap();
    assert_eq!(server.seen().len(), 4);
}

#[tokio::test]
async fn trouble_without_end_is_reported_and_other_answers_are_final() {
    for (status, tries, kind) in [
        (502, 3, Kind::Unavailable),
        (429, 5, Kind::Unavailable),
        (400, 1, Kind::Invalid),
        (501, 1, Kind::Unavailable),
    ] {
        let server = Server::start(move |_| {
            reply(status).body(r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow\ndown"}]}"#)
        })
        .await;
        let resolved = client(None)
            .resolve(&reference(&server.domain), &Credentials::Anonymous)
            .await;
        let error = resolved.unwrap_err();
        assert_eq!(
            (server.seen().len(), error.kind()),
            (tries, kind),
            "{status}"
        );
        assert!(
            error.to_string().ends_with(": TOOMANYREQUESTS slow down"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn an_unreachable_registry_is_named_with_the_cause() {
    // A port that was ours a moment ago: nobody listens there.
    let domain = Server::start(|_| reply(200)).await.domain.clone();
    let listener = std::net::TcpListener::bind(&domain);
    drop(listener);
    let mut error = None;
    for _ in 0..100 {
        let resolved = client(None)
            .resolve(&reference(&domain), &Credentials::Anonymous)
            .await;
        let text = chain(resolved.as_ref().unwrap_err());
        error = resolved.err();
        if text.contains("refused") {
            break;
        }
        // The server's task has not been dropped yet.
        tokio::task::yield_now().await;
    }
    let error = error.unwrap();
    assert_eq!(error.kind(), Kind::Unavailable);
    let text = chain(&error);
    assert!(
        text.contains(&domain) && text.contains("Connection refused"),
        "{text}"
    );
}

#[tokio::test]
async fn schema_one_is_refused() {
    let server = Server::start(|_| {
        let old = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        reply(200)
            .header("content-type", old)
            .body(r#"{"schemaVersion":1}"#)
    })
    .await;
    let resolved = client(None)
        .resolve(&reference(&server.domain), &Credentials::Anonymous)
        .await;
    assert_eq!(resolved.unwrap_err().kind(), Kind::Unsupported);
}

#[tokio::test]
async fn index_and_manifest_at_once_is_refused() {
    let server = Server::start(|_| {
        reply(200)
            .header("content-type", DOCKER_MANIFEST)
            .body(r#"{"manifests":[],"layers":[]}"#)
    })
    .await;
    let resolved = client(None)
        .resolve(&reference(&server.domain), &Credentials::Anonymous)
        .await;
    assert_eq!(resolved.unwrap_err().kind(), Kind::Corrupt);
}
