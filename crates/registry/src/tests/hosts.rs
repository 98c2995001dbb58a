//! Mirrors, certificates and broken configuration.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use wharf_types::{Digest, Kind, chain};

use super::server::{Server, reply};
use super::{MANIFEST, ann, client, reference, write_hosts};
use crate::Credentials;

const ANYBODY: Credentials = Credentials::Anonymous;

#[tokio::test]
async fn mirrors_are_asked_in_the_order_of_the_file_with_the_namespace() {
    let missing = Server::start(|_| reply(404)).await;
    let wrong = Server::start(|_| reply(200).body("{\"manifests\":[]}")).await;
    let digests_only = Server::start(|_| reply(200).body(MANIFEST)).await;
    let certs_d = tempfile::tempdir().unwrap();
    let hosts = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\n[host.\"http://{}/prefix\"]\ncapabilities = [\"resolve\", \"pull\"]\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        missing.domain, wrong.domain, digests_only.domain
    );
    write_hosts(certs_d.path(), "docker.io", &hosts);
    let client = client(Some(certs_d.path()));
    let name = "busybox:1".parse().unwrap();
    let digest = Digest::of(MANIFEST);
    let found = client.manifest(&name, digest, &ANYBODY).await.unwrap();
    assert_eq!(found.digest, digest);
    let path = format!("/v2/library/busybox/manifests/{digest}?ns=docker.io");
    assert_eq!(missing.seen()[0].path, path);
    assert_eq!(wrong.seen()[0].path, format!("/prefix{path}"));
    assert_eq!(digests_only.seen()[0].path, path);
    // Who may only be asked for digests is not asked what a tag means.
    let by_tag = client.resolve(&name, &ANYBODY).await.unwrap();
    assert_ne!(by_tag.digest, digest);
    assert_eq!(digests_only.seen().len(), 1);
}

#[tokio::test]
async fn a_dead_mirror_is_passed_over_and_then_asked_last() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = listener.local_addr().unwrap();
    let knocks = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&knocks);
    let mirror = tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            drop(connection);
        }
    });
    let server = Server::start(|_| reply(200).body(MANIFEST)).await;
    let busy = Server::start(|_| reply(503)).await;
    let certs_d = tempfile::tempdir().unwrap();
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{dead}\"]\n[host.\"http://{}\"]\n",
        server.domain, busy.domain
    );
    write_hosts(certs_d.path(), "_default", &hosts);
    let client = client(Some(certs_d.path()));
    for pulls in 1..=3 {
        client
            .resolve(&reference("example.com"), &ANYBODY)
            .await
            .unwrap();
        // A busy mirror is asked each time, a dead one only once.
        assert_eq!((busy.seen().len(), server.seen().len()), (pulls, pulls));
        assert_eq!(knocks.load(Ordering::Relaxed), 1);
    }
    assert_eq!(
        server.seen()[0].path,
        "/v2/team/app/manifests/v1?ns=example.com"
    );
    mirror.abort();
}

#[tokio::test]
async fn a_host_that_takes_connections_and_says_nothing_costs_its_dial_timeout() {
    // TCP connects (the kernel does that), TLS never answers.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap();
    let server = Server::start(|_| reply(200).body(MANIFEST)).await;
    let certs_d = tempfile::tempdir().unwrap();
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"https://{silent}\"]\nskip_verify = true\ndial_timeout = \"100ms\"\n",
        server.domain
    );
    write_hosts(certs_d.path(), "example.com", &hosts);
    let client = client(Some(certs_d.path()));
    // Far less than the time for an answer, which is all that would end the wait otherwise.
    let name = reference("example.com");
    let pulled = client.resolve(&name, &ANYBODY);
    tokio::time::timeout(Duration::from_secs(15), pulled)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn when_all_fail_every_host_is_named_with_its_reason() {
    let server = Server::start(|_| reply(404)).await;
    let denied = Server::start(|_| reply(403)).await;
    let certs_d = tempfile::tempdir().unwrap();
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        server.domain, denied.domain
    );
    write_hosts(certs_d.path(), "example.com", &hosts);
    let client = client(Some(certs_d.path()));
    let error = client
        .resolve(&reference("example.com"), &ann())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    let text = chain(&error);
    assert!(
        text.contains(&server.domain) && text.contains(&denied.domain),
        "{text}"
    );
}

#[tokio::test]
async fn a_syntax_error_stops_the_pull_and_names_file_and_line() {
    let server = Server::start(|_| reply(200).body(MANIFEST)).await;
    let certs_d = tempfile::tempdir().unwrap();
    write_hosts(certs_d.path(), &server.domain, "\n[host.\"http://m\"\n");
    let with_file = client(Some(certs_d.path()));
    let error = with_file
        .resolve(&reference(&server.domain), &ANYBODY)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    let file = certs_d.path().join(&server.domain).join("hosts.toml");
    let text = chain(&error);
    assert!(
        text.contains(&format!("{} line 2: ", file.display())),
        "{text}"
    );
    assert!(server.seen().is_empty());
    // Read again each time: the repaired file works at once.
    write_hosts(certs_d.path(), &server.domain, "");
    with_file
        .resolve(&reference(&server.domain), &ANYBODY)
        .await
        .unwrap();
}

#[tokio::test]
async fn tags_without_anybody_to_resolve_them_are_a_configuration_error() {
    let certs_d = tempfile::tempdir().unwrap();
    let hosts = "server = \"https://example.com\"\ncapabilities = [\"pull\"]\n";
    write_hosts(certs_d.path(), "example.com", hosts);
    let client = client(Some(certs_d.path()));
    let error = client
        .resolve(&reference("example.com"), &ANYBODY)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("\"resolve\""), "{error}");
}

/// `127.0.0.1:port` over TLS with the options of a `hosts.toml`.
async fn over_tls(server: &Server, options: &str) -> Result<(), (Kind, String)> {
    let certs_d = tempfile::tempdir().unwrap();
    let hosts = format!("server = \"https://{}\"\n{options}\n", server.domain);
    write_hosts(certs_d.path(), &server.domain, &hosts);
    let ca = include_bytes!("certificates/ca.crt");
    std::fs::write(certs_d.path().join(&server.domain).join("ca.crt"), ca).unwrap();
    let client = client(Some(certs_d.path()));
    let resolved = client.resolve(&reference(&server.domain), &ann()).await;
    resolved
        .map(drop)
        .map_err(|error| (error.kind(), chain(&error)))
}

#[tokio::test]
async fn a_certificate_is_trusted_by_its_authority_or_not_at_all() {
    let server = Server::start_tls(|_| reply(200).body(MANIFEST)).await;
    over_tls(&server, "ca = \"ca.crt\"").await.unwrap();
    over_tls(&server, "skip_verify = true").await.unwrap();
    let (kind, text) = over_tls(&server, "").await.unwrap_err();
    assert_eq!(kind, Kind::Unavailable);
    assert!(
        text.contains(&server.domain) && text.contains("`ca`"),
        "{text}"
    );
    let (_, text) = over_tls(&server, "ca = \"missing.crt\"").await.unwrap_err();
    assert!(text.contains("missing.crt"), "{text}");
    let (_, text) = over_tls(&server, "ca = \"hosts.toml\"").await.unwrap_err();
    assert!(text.contains("no usable certificate"), "{text}");
}

#[tokio::test]
async fn a_password_is_not_taken_from_https_to_http() {
    let eavesdropper = Server::start(|_| reply(200).body(r#"{"token":"t"}"#)).await;
    let realm = eavesdropper.domain.clone();
    let server = Server::start_tls(move |seen| {
        if seen.path.contains("/moved/") {
            return reply(200).body(MANIFEST);
        }
        reply(401).header(
            "www-authenticate",
            format!("Bearer realm=\"http://{realm}/token\""),
        )
    })
    .await;
    let (_, text) = over_tls(&server, "ca = \"ca.crt\"").await.unwrap_err();
    assert!(text.contains("anybody could read them"), "{text}");
    let elsewhere = eavesdropper.domain.clone();
    let server =
        Server::start_tls(move |_| reply(307).header("location", format!("http://{elsewhere}/x")))
            .await;
    let (_, text) = over_tls(&server, "ca = \"ca.crt\"").await.unwrap_err();
    assert!(text.contains("from https to plain http"), "{text}");
    assert!(eavesdropper.seen().is_empty());
}

#[tokio::test]
async fn http_with_certificates_means_https_first() {
    for tls in [true, false] {
        let answer = |_: &super::server::Seen| reply(200).body(MANIFEST);
        let server = if tls {
            Server::start_tls(answer).await
        } else {
            Server::start(answer).await
        };
        let certs_d = tempfile::tempdir().unwrap();
        let hosts = format!(
            "server = \"http://{}\"\nskip_verify = true\n",
            server.domain
        );
        write_hosts(certs_d.path(), &server.domain, &hosts);
        let client = client(Some(certs_d.path()));
        client
            .resolve(&reference(&server.domain), &ANYBODY)
            .await
            .unwrap();
        assert_eq!(server.seen().len(), 1);
    }
}
