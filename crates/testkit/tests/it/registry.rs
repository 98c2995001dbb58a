//! What a client of the testkit's registry sees, byte by byte.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use wharf_testkit::place::Place;
use wharf_testkit::real_registry::RealRegistry;
use wharf_testkit::registry::{Act, Auth, On, Registry};
use wharf_testkit::samples;

fn get(host: &str, target: &str, headers: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(host).unwrap();
    let ask =
        format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(ask.as_bytes()).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let end = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    (
        String::from_utf8(all[..end].to_vec()).unwrap(),
        all[end + 4..].to_vec(),
    )
}

#[test]
fn an_image_is_served_by_tag_and_by_digest() {
    let registry = Registry::start().unwrap();
    let image = samples::hello("hi");
    let reference = registry.add("library/hello", "1", &image);
    assert_eq!(reference, format!("{}/library/hello:1", registry.host()));
    for name in ["1", image.digest()] {
        let (head, body) = get(
            &registry.host(),
            &format!("/v2/library/hello/manifests/{name}"),
            "",
        );
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains(image.digest()), "{head}");
        assert_eq!(wharf_testkit::image::digest(&body), image.digest());
    }
    for blob in &image.blobs {
        let (_, body) = get(
            &registry.host(),
            &format!("/v2/x/blobs/{}", blob.digest),
            "",
        );
        assert_eq!(wharf_testkit::image::digest(&body), blob.digest);
    }
    assert_eq!(registry.requests().len(), 2 + image.blobs.len());
}

#[test]
fn a_range_gives_the_rest_of_a_blob() {
    let registry = Registry::start().unwrap();
    let image = samples::hello("hi");
    registry.add("a", "1", &image);
    let blob = &image.blobs[0];
    let target = format!("/v2/a/blobs/{}", blob.digest);
    let (head, rest) = get(&registry.host(), &target, "Range: bytes=10-\r\n");
    assert!(head.starts_with("HTTP/1.1 206"), "{head}");
    assert_eq!(rest, blob.bytes().unwrap()[10..]);
    assert_eq!(registry.requests()[0].range.as_deref(), Some("bytes=10-"));
}

#[test]
fn a_cut_blob_ends_after_so_many_bytes_of_the_promised_length() {
    let registry = Registry::start().unwrap();
    let image = samples::hello(&"x".repeat(1000));
    registry.add("a", "1", &image);
    registry.fail_times(1, On::Blobs, Act::Cut(20));
    let blob = &image.blobs[0];
    let target = format!("/v2/a/blobs/{}", blob.digest);
    let (head, body) = get(&registry.host(), &target, "");
    assert!(
        head.contains(&format!("content-length: {}", blob.size)),
        "{head}"
    );
    assert_eq!(body, blob.bytes().unwrap()[..20]);
    let (_, again) = get(&registry.host(), &target, "");
    assert_eq!(
        again,
        blob.bytes().unwrap(),
        "the fault was for one request"
    );
}

#[test]
fn wrong_bytes_have_the_right_length() {
    let registry = Registry::start().unwrap();
    let image = samples::hello("hi");
    registry.add("a", "1", &image);
    registry.fail(On::Blob(image.blobs[0].digest.clone()), Act::WrongBytes);
    let (_, body) = get(
        &registry.host(),
        &format!("/v2/a/blobs/{}", image.blobs[0].digest),
        "",
    );
    assert_eq!(body.len() as u64, image.blobs[0].size);
    assert_ne!(body, image.blobs[0].bytes().unwrap());
}

#[test]
fn a_slow_blob_comes_whole() {
    let registry = Registry::start().unwrap();
    let image = samples::hello("hi");
    registry.add("a", "1", &image);
    registry.fail(On::Blobs, Act::Slow(40, Duration::from_millis(1)));
    let (_, body) = get(
        &registry.host(),
        &format!("/v2/a/blobs/{}", image.blobs[0].digest),
        "",
    );
    assert_eq!(body, image.blobs[0].bytes().unwrap());
}

#[test]
fn a_stalled_blob_stops_and_the_registry_still_ends() {
    let registry = Registry::start().unwrap();
    let image = samples::hello("hi");
    registry.add("a", "1", &image);
    registry.fail(On::Blobs, Act::Stall(5));
    let mut stream = TcpStream::connect(registry.host()).unwrap();
    let ask = format!(
        "GET /v2/a/blobs/{} HTTP/1.1\r\nHost: x\r\n\r\n",
        image.blobs[0].digest
    );
    stream.write_all(ask.as_bytes()).unwrap();
    let mut first = [0; 8];
    stream.read_exact(&mut first).unwrap();
    drop(registry);
    let mut rest = Vec::new();
    let _cut = stream.read_to_end(&mut rest);
}

#[test]
fn bearer_demands_a_token_that_credentials_buy() {
    let registry = Registry::start().unwrap();
    registry.add("a/b", "1", &samples::hello("hi"));
    registry.demand(Auth::Bearer(Some(("me".into(), "secret".into()))));
    let (head, _) = get(&registry.host(), "/v2/a/b/manifests/1", "");
    assert!(head.starts_with("HTTP/1.1 401"), "{head}");
    assert!(head.contains("scope=\"repository:a/b:pull\""), "{head}");
    let (head, _) = get(&registry.host(), "/token?scope=x", "");
    assert!(head.starts_with("HTTP/1.1 401"), "{head}");
    let basic = "Authorization: Basic bWU6c2VjcmV0\r\n";
    let (_, body) = get(&registry.host(), "/token?scope=x", basic);
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let bearer = format!(
        "Authorization: Bearer {}\r\n",
        body["token"].as_str().unwrap()
    );
    assert!(
        get(&registry.host(), "/v2/a/b/manifests/1", &bearer)
            .0
            .starts_with("HTTP/1.1 200")
    );
    registry.expire_tokens();
    assert!(
        get(&registry.host(), "/v2/a/b/manifests/1", &bearer)
            .0
            .starts_with("HTTP/1.1 401")
    );
    assert!(!format!("{:?}", registry.requests()).contains("bWU6c2VjcmV0"));
}

#[test]
fn a_redirect_leads_to_bytes_that_refuse_credentials() {
    let registry = Registry::start().unwrap();
    let image = samples::hello("hi");
    registry.add("a", "1", &image);
    registry.fail(On::Blobs, Act::Redirect);
    let (head, _) = get(
        &registry.host(),
        &format!("/v2/a/blobs/{}", image.blobs[0].digest),
        "",
    );
    assert!(head.starts_with("HTTP/1.1 307"), "{head}");
    let target = format!("/elsewhere/{}", image.blobs[0].digest);
    assert_eq!(
        get(&registry.host(), &target, "").1,
        image.blobs[0].bytes().unwrap()
    );
    let (head, _) = get(&registry.host(), &target, "Authorization: Bearer x\r\n");
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
}

#[test]
fn a_real_registry_takes_our_images_in_a_network_of_its_own() {
    if !wharf_testkit::needs_root("a_real_registry_takes_our_images") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let place = Place::own().unwrap();
    let registry = RealRegistry::start(&place, dir.path()).unwrap();
    let image = samples::hello("hi");
    let served = samples::Served::new("some/hello", &["1"], image.clone());
    registry.push(&[served]).unwrap();
    let (head, body) = place
        .in_net(|| {
            Ok(get(
                &registry.addr().to_string(),
                "/v2/some/hello/manifests/1",
                "",
            ))
        })
        .unwrap();
    assert!(
        head.starts_with("HTTP/1.1 404") || head.starts_with("HTTP/1.1 200"),
        "{head}"
    );
    assert!(
        TcpStream::connect(registry.addr()).is_err(),
        "it is not on the machine's network"
    );
    if head.starts_with("HTTP/1.1 200") {
        assert_eq!(wharf_testkit::image::digest(&body), image.digest());
    }
}
