//! Authorisation as clients see it.

use std::sync::atomic::{AtomicUsize, Ordering};

use wharf_types::{Kind, chain};

use super::server::{Reply, Seen, Server, reply};
use super::{MANIFEST, ann, client, content, pull, reference, request};
use crate::Credentials;

/// A registry with its own token server under `/token`.
fn bearer(seen: &Seen, token_answer: impl Fn(&Seen) -> Reply) -> Reply {
    if seen.path.starts_with("/token") {
        return token_answer(seen);
    }
    if seen.header("authorization") == Some("Bearer t0ken") {
        return reply(200).body(MANIFEST);
    }
    let host = seen.header("host").unwrap();
    let challenge = format!(
        r#"Basic realm="a, b", Bearer realm="http://{host}/token",service="reg, istry",scope="repository:team/app:pull""#
    );
    reply(401).header("www-authenticate", challenge).body("no")
}

const SCOPE: &str = "scope=repository%3Ateam%2Fapp%3Apull";

#[tokio::test]
async fn a_password_is_exchanged_by_post_and_the_token_is_kept() {
    let server = Server::start(|seen| {
        bearer(seen, |_| {
            reply(200).body(r#"{"access_token":"t0ken","expires_in":300}"#)
        })
    })
    .await;
    let (client, name) = (client(None), reference(&server.domain));
    client.resolve(&name, &ann()).await.unwrap();
    client.resolve(&name, &ann()).await.unwrap();
    let seen = server.seen();
    let paths: Vec<&str> = seen.iter().map(|s| s.path.as_str()).collect();
    let manifest = "/v2/team/app/manifests/v1";
    assert_eq!(paths, [manifest, "/token", manifest, manifest]);
    assert_eq!(seen[0].header("authorization"), None);
    assert_eq!(seen[1].method, "POST");
    assert_eq!(
        seen[1].body,
        format!(
            "grant_type=password&username=ann&password=hunter2&service=reg%2C%20istry&client_id=wharf&{SCOPE}"
        )
    );
    assert_eq!(seen[1].header("authorization"), None);
}

#[tokio::test]
async fn a_token_server_that_knows_only_get_is_asked_by_get() {
    for refusal in [400, 401, 404, 405] {
        let server = Server::start(move |seen| {
            bearer(seen, |seen| match seen.method.as_str() {
                "POST" => reply(refusal),
                // ann:hunter2
                _ if seen.header("authorization") == Some("Basic YW5uOmh1bnRlcjI=") => {
                    reply(200).body(r#"{"token":"t0ken"}"#)
                }
                _ => reply(401),
            })
        })
        .await;
        client(None)
            .resolve(&reference(&server.domain), &ann())
            .await
            .unwrap();
        let get = server.seen()[2].clone();
        assert_eq!(
            get.path,
            format!("/token?service=reg%2C%20istry&{SCOPE}&account=ann")
        );
    }
}

#[tokio::test]
async fn nobody_gets_a_token_too() {
    let server =
        Server::start(|seen| bearer(seen, |_| reply(200).body(r#"{"token":"t0ken"}"#))).await;
    client(None)
        .resolve(&reference(&server.domain), &Credentials::Anonymous)
        .await
        .unwrap();
    let asked = server.seen()[1].clone();
    assert_eq!(
        (asked.method.as_str(), asked.header("authorization")),
        ("GET", None)
    );
}

#[tokio::test]
async fn an_identity_token_is_exchanged_and_a_registry_token_is_sent() {
    let server =
        Server::start(|seen| bearer(seen, |_| reply(200).body(r#"{"token":"t0ken"}"#))).await;
    let name = reference(&server.domain);
    let identity = Credentials::IdentityToken("i&d".to_owned());
    client(None).resolve(&name, &identity).await.unwrap();
    assert!(
        server.seen()[1]
            .body
            .starts_with("grant_type=refresh_token&refresh_token=i%26d&")
    );
    let token = Credentials::RegistryToken("t0ken".to_owned());
    client(None).resolve(&name, &token).await.unwrap();
    assert_eq!(server.count("/token"), 1);
}

#[tokio::test]
async fn many_layers_at_once_share_one_token() {
    let layer = content(100_000);
    let wanted = request(&layer);
    let server = Server::start(move |seen| {
        if seen.path.starts_with("/token") || seen.header("authorization").is_none() {
            return bearer(seen, |_| reply(200).body(r#"{"token":"t0ken"}"#));
        }
        reply(200).body(&layer)
    })
    .await;
    let (client, name) = (client(None), reference(&server.domain));
    let mut pulls = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (client, name) = (client.clone(), name.clone());
        pulls.spawn(async move { pull(&client, &name, wanted, &ann()).await });
    }
    for pulled in pulls.join_all().await {
        assert_eq!(pulled.unwrap().len(), 100_000);
    }
    assert_eq!(server.count("/token"), 1);
}

#[tokio::test]
async fn many_layers_at_once_share_one_denial() {
    let wanted = request(b"a layer");
    let server = Server::start(|seen| bearer(seen, |_| reply(403))).await;
    let (client, name) = (client(None), reference(&server.domain));
    let mut pulls = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (client, name) = (client.clone(), name.clone());
        pulls.spawn(async move { pull(&client, &name, wanted, &ann()).await });
    }
    for pulled in pulls.join_all().await {
        assert_eq!(pulled.unwrap_err().kind(), Kind::Denied);
    }
    // Those who come after the denial ask again.
    assert!(server.count("/token") < 16, "{}", server.count("/token"));
    client.resolve(&name, &ann()).await.unwrap_err();
    assert!(server.count("/token") >= 2);
}

#[tokio::test]
async fn a_token_that_ended_early_is_replaced_once() {
    let token = AtomicUsize::new(0);
    let server = Server::start(move |seen| {
        if seen.path.starts_with("/token") {
            let number = token.fetch_add(1, Ordering::Relaxed) + 1;
            return reply(200).body(format!(r#"{{"token":"{number}","expires_in":3600}}"#));
        }
        let valid = format!("Bearer {}", token.load(Ordering::Relaxed));
        if seen.header("authorization") == Some(&valid) && !seen.path.contains("revoke") {
            return reply(200).body(MANIFEST);
        }
        if seen.path.contains("revoke") && seen.header("authorization").is_some() {
            token.fetch_add(1, Ordering::Relaxed);
            return reply(200).body(MANIFEST);
        }
        bearer(seen, |_| reply(500))
    })
    .await;
    let client = client(None);
    let revoke = format!("{}/team/app:revoke", server.domain)
        .parse()
        .unwrap();
    client.resolve(&revoke, &ann()).await.unwrap();
    client
        .resolve(&reference(&server.domain), &ann())
        .await
        .unwrap();
    assert_eq!(server.count("/token"), 2);
}

#[tokio::test]
async fn a_second_refusal_after_a_fresh_token_is_final() {
    let server =
        Server::start(|seen| bearer(seen, |_| reply(200).body(r#"{"token":"useless"}"#))).await;
    let error = client(None)
        .resolve(&reference(&server.domain), &ann())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert_eq!((server.count("manifests"), server.count("token")), (2, 1));
}

/// A registry that wants ann's password itself.
fn basic(seen: &Seen) -> Reply {
    match seen.header("authorization") {
        Some("Basic YW5uOmh1bnRlcjI=") => reply(200).body(MANIFEST),
        Some(sent) => reply(401)
            .header("www-authenticate", "Basic realm=x")
            .body(format!("what is {sent} with wr0ng")),
        None => reply(401).header("www-authenticate", "Basic realm=x"),
    }
}

#[tokio::test]
async fn basic_is_sent_after_it_was_asked_for() {
    let server = Server::start(basic).await;
    let (client, name) = (client(None), reference(&server.domain));
    client.resolve(&name, &ann()).await.unwrap();
    client.resolve(&name, &ann()).await.unwrap();
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn a_wrong_password_is_denied_and_never_shown() {
    let server = Server::start(basic).await;
    let wrong = Credentials::Basic {
        username: "ann".to_owned(),
        password: "wr0ng".to_owned(),
    };
    let (client, name) = (client(None), reference(&server.domain));
    let error = client.resolve(&name, &wrong).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    let text = format!("{} {error:?}", chain(&error));
    assert!(
        text.contains(&server.domain) && text.contains("user \"ann\""),
        "{text}"
    );
    // Neither as it is nor as it was sent (ann:wr0ng).
    assert!(
        !text.contains("wr0ng") && !text.contains("YW5uOndyMG5n"),
        "{text}"
    );
    // The right password is not spoilt by the wrong one.
    client.resolve(&name, &ann()).await.unwrap();
}

#[tokio::test]
async fn without_credentials_the_denial_says_so() {
    let server = Server::start(basic).await;
    let resolved = client(None)
        .resolve(&reference(&server.domain), &Credentials::Anonymous)
        .await;
    let error = resolved.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert!(
        error.to_string().contains("no credentials were given"),
        "{error}"
    );
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_password_refused_by_the_token_server_is_denied() {
    let server = Server::start(|seen| {
        bearer(seen, |_| {
            reply(401).body(r#"{"details":"incorrect username or password hunter2"}"#)
        })
    })
    .await;
    let error = client(None)
        .resolve(&reference(&server.domain), &ann())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    let text = error.to_string();
    assert!(
        text.contains("incorrect username") && !text.contains("hunter2"),
        "{text}"
    );
    assert_eq!(server.count("manifests"), 1);
}

#[tokio::test]
async fn a_redirect_elsewhere_carries_no_credentials() {
    let layer = content(50_000);
    let wanted = request(&layer);
    let storage = Server::start(move |_| reply(200).body(&layer)).await;
    let elsewhere = storage.domain.clone();
    let server = Server::start(move |seen| {
        if seen.header("authorization").is_none() {
            return reply(401).header("www-authenticate", "Basic realm=x");
        }
        match seen.path.strip_prefix("/moved") {
            None => reply(307).header("location", format!("/moved{}?a=b", seen.path)),
            Some(path) => reply(302).header("location", format!("http://{elsewhere}{path}")),
        }
    })
    .await;
    let certs_d = tempfile::tempdir().unwrap();
    let hosts = format!(
        "server = \"http://{}\"\n[header]\nx-secret = \"s\"\n",
        server.domain
    );
    super::write_hosts(certs_d.path(), &server.domain, &hosts);
    let client = client(Some(certs_d.path()));
    pull(&client, &reference(&server.domain), wanted, &ann())
        .await
        .unwrap();
    let (here, there) = (server.seen(), storage.seen());
    assert!(
        here[2].path.starts_with("/moved/v2/team/app/blobs/"),
        "{}",
        here[2].path
    );
    assert!(here[2].header("authorization").is_some() && here[2].header("x-secret").is_some());
    assert_eq!(there.len(), 1);
    assert_eq!(
        (
            there[0].header("authorization"),
            there[0].header("x-secret")
        ),
        (None, None)
    );
    assert_eq!(there[0].header("accept-encoding"), Some("identity"));
}

#[tokio::test]
async fn redirects_do_not_go_on_for_ever() {
    let server = Server::start(|seen| reply(307).header("location", seen.path.clone())).await;
    let resolved = client(None)
        .resolve(&reference(&server.domain), &Credentials::Anonymous)
        .await;
    assert!(chain(&resolved.unwrap_err()).contains("number 11 is too many"));
    assert_eq!(server.seen().len(), 11);
}
