//! Blobs over connections that are cut, stall, and lie.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use wharf_types::Kind;

use super::server::{End, Reply, Seen, Server, reply};
use super::{client, client_that_waits, content, pull, reference, request, write_hosts};
use crate::{BlobRequest, Credentials};

const ANYBODY: Credentials = Credentials::Anonymous;

/// The first byte that `seen` asks for.
fn wanted_from(seen: &Seen) -> usize {
    let range = seen
        .header("range")
        .map(|r| r.trim_start_matches("bytes=").trim_end_matches('-'));
    range.map_or(0, |start| start.parse().unwrap())
}

/// What a good registry answers, with at most `most` bytes before `end`.
fn serve(seen: &Seen, layer: &[u8], most: usize, end: End) -> Reply {
    let start = wanted_from(seen);
    let rest = &layer[start..];
    let reply = match start {
        0 => reply(200),
        _ => reply(206).header(
            "content-range",
            format!("bytes {start}-{}/{}", layer.len() - 1, layer.len()),
        ),
    };
    let reply = reply.header("content-length", rest.len().to_string());
    if rest.len() <= most {
        return reply.body(rest);
    }
    reply.body(&rest[..most]).end(end)
}

#[tokio::test]
async fn a_cut_blob_is_resumed_where_it_ended() {
    let layer = content(350_000);
    let wanted = request(&layer);
    let served = layer.clone();
    let server = Server::start(move |seen| serve(seen, &served, 200_000, End::Cut)).await;
    let pulled = pull(&client(None), &reference(&server.domain), wanted, &ANYBODY)
        .await
        .unwrap();
    assert_eq!(pulled, layer);
    let starts: Vec<usize> = server.seen().iter().map(wanted_from).collect();
    // What was in flight when the connection broke may be lost with it.
    assert!(
        starts.len() >= 2 && starts.is_sorted() && starts[1] <= 200_000,
        "{starts:?}"
    );
    assert!(starts[1] > 0, "{starts:?}");
}

#[tokio::test]
async fn a_blob_can_be_read_from_the_middle_and_from_the_end() {
    let layer = content(100_000);
    let served = layer.clone();
    let server = Server::start(move |seen| serve(seen, &served, usize::MAX, End::Whole)).await;
    let (client, name) = (client(None), reference(&server.domain));
    let from = |offset| BlobRequest {
        offset,
        ..request(&layer)
    };
    assert_eq!(
        pull(&client, &name, from(60_000), &ANYBODY).await.unwrap(),
        &layer[60_000..]
    );
    assert!(
        pull(&client, &name, from(100_000), &ANYBODY)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(server.seen().len(), 1);
    let beyond = pull(&client, &name, from(100_001), &ANYBODY)
        .await
        .unwrap_err();
    assert_eq!(beyond.kind(), Kind::Invalid);
}

#[tokio::test]
async fn a_registry_that_ignores_ranges_is_read_from_the_beginning() {
    let layer = content(300_000);
    let (wanted, served) = (request(&layer), layer.clone());
    let tries = AtomicUsize::new(0);
    let server = Server::start(move |_| {
        let whole = reply(200).header("content-length", served.len().to_string());
        match tries.fetch_add(1, Ordering::Relaxed) {
            0 => whole.body(&served[..150_000]).end(End::Cut),
            _ => whole.body(&served),
        }
    })
    .await;
    let pulled = pull(&client(None), &reference(&server.domain), wanted, &ANYBODY)
        .await
        .unwrap();
    assert_eq!(pulled, layer);
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn the_wrong_part_is_not_taken_for_the_right_one() {
    let layer = content(100_000);
    let wanted = BlobRequest {
        offset: 50_000,
        ..request(&layer)
    };
    for (range, part) in [
        (
            Some("bytes 40000-99999/100000"),
            "byte 50000 was asked for, byte 40000 came",
        ),
        (
            Some("bytes 50000-99999/100001"),
            "100001 bytes, 100000 were promised",
        ),
        (None, "does not say which part"),
    ] {
        let server = Server::start(move |_| match range {
            Some(range) => reply(206).header("content-range", range).body("x"),
            None => reply(206).body("x"),
        })
        .await;
        let pulled = pull(&client(None), &reference(&server.domain), wanted, &ANYBODY).await;
        let error = pulled.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn more_or_fewer_bytes_than_promised_are_an_error() {
    let layer = content(100_000);
    let wanted = request(&layer);
    let (short, long) = (layer[..99_999].to_vec(), [&layer[..], b"x"].concat());
    for (body, announced) in [(&short, true), (&long, true), (&long, false)] {
        let body = body.clone();
        let server = Server::start(move |_| match announced {
            true => reply(200)
                .header("content-length", body.len().to_string())
                .body(&body),
            false => reply(200).body(&body),
        })
        .await;
        let pulled = pull(&client(None), &reference(&server.domain), wanted, &ANYBODY).await;
        assert_eq!(pulled.unwrap_err().kind(), Kind::Corrupt);
    }
    // Without an announced length, too little looks like a cut.
    let server = Server::start(move |seen| reply(200).body(&short[wanted_from(seen)..])).await;
    let pulled = pull(&client(None), &reference(&server.domain), wanted, &ANYBODY).await;
    assert_eq!(pulled.unwrap_err().kind(), Kind::Unavailable);
}

#[tokio::test]
async fn a_connection_that_always_breaks_ends_the_pull() {
    let layer = content(100_000);
    let wanted = request(&layer);
    let server = Server::start(move |seen| serve(seen, &layer, 10, End::Cut)).await;
    let pulled = pull(&client(None), &reference(&server.domain), wanted, &ANYBODY).await;
    let error = pulled.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains(&server.domain), "{error}");
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn a_stalled_connection_is_replaced() {
    let layer = content(100_000);
    let (wanted, served) = (request(&layer), layer.clone());
    let tries = AtomicUsize::new(0);
    let server = Server::start(move |seen| match tries.fetch_add(1, Ordering::Relaxed) {
        0 => serve(seen, &served, 30_000, End::Hang),
        _ => serve(seen, &served, usize::MAX, End::Whole),
    })
    .await;
    let client = client_that_waits(None, Duration::from_millis(500));
    let name = reference(&server.domain);
    let pulled = pull(&client, &name, wanted, &ANYBODY);
    let deadline = Duration::from_secs(15);
    let pulled = tokio::time::timeout(deadline, pulled)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(pulled, layer);
    let seen = server.seen();
    assert!(
        seen.len() >= 2 && wanted_from(&seen[1]) <= 30_000,
        "{seen:?}"
    );
}

#[tokio::test]
async fn the_rest_comes_from_the_next_host_when_one_keeps_breaking() {
    let layer = content(200_000);
    let (wanted, served, cut) = (request(&layer), layer.clone(), layer.clone());
    let mirror = Server::start(move |seen| match wanted_from(seen) {
        0 => serve(seen, &cut, 50_000, End::Cut),
        _ => serve(seen, &cut, 0, End::Cut),
    })
    .await;
    let server = Server::start(move |seen| serve(seen, &served, usize::MAX, End::Whole)).await;
    let certs_d = tempfile::tempdir().unwrap();
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        server.domain, mirror.domain
    );
    write_hosts(certs_d.path(), "example.com", &hosts);
    let client = client(Some(certs_d.path()));
    let pulled = pull(&client, &reference("example.com"), wanted, &ANYBODY)
        .await
        .unwrap();
    assert_eq!(pulled, layer);
    assert_eq!((mirror.seen().len(), server.seen().len()), (3, 1));
    assert!(wanted_from(&server.seen()[0]) > 0);
}

#[tokio::test]
async fn a_changed_encoding_is_noticed_and_a_stored_one_is_not_undone() {
    let layer = content(1000);
    let wanted = request(&layer);
    let served = layer.clone();
    let stored = Server::start(move |_| {
        let reply = reply(200).header("content-encoding", "gzip");
        reply.header("content-length", "1000").body(&served)
    })
    .await;
    let pulled = pull(&client(None), &reference(&stored.domain), wanted, &ANYBODY).await;
    assert_eq!(pulled.unwrap(), layer);
    let changed =
        Server::start(|_| reply(200).header("content-encoding", "gzip").body("short")).await;
    let pulled = pull(&client(None), &reference(&changed.domain), wanted, &ANYBODY).await;
    assert_eq!(pulled.unwrap_err().kind(), Kind::Corrupt);
}
