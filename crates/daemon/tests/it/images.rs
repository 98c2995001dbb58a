//! Pulls that must fail: the code, words that name the thing and the remedy, and nothing left.

use std::fs;
use std::net::TcpListener;

use tonic::Code;
use wharf_api::v1::ListImagesRequest;
use wharf_testkit::image::{Builder, Flavour, Image, Layer, Packing};
use wharf_testkit::registry::{Act, Auth, On};
use wharf_testkit::samples;
use wharf_testkit::tar::Entry;

use crate::scene::{Scene, refused, serve};

fn images(scene: &Scene) -> usize {
    let mut client = scene.cri().image();
    let list = client.list_images(ListImagesRequest::default());
    scene.cri().wait(list).unwrap().images.len()
}

/// Refused, and neither an image nor a file is there afterwards.
fn pull_fails(scene: &Scene, reference: &str, code: Code, words: &[&str]) -> String {
    let text = refused(scene.cri().pull(reference), code, words);
    assert_eq!(images(scene), 0, "{text}");
    scene.leaves_nothing();
    text
}

fn of_layer(layer: Layer) -> Image {
    Builder::new(Flavour::Oci, [layer]).cmd(&["x"]).build()
}

#[test]
fn what_a_registry_does_not_have_is_not_found_by_name() {
    let Some(scene) = Scene::empty("what_a_registry_does_not_have") else {
        return;
    };
    scene.registry.add("it/a", "1", &samples::hello("a"));
    pull_fails(
        &scene,
        "registry.test/it/nosuch:1",
        Code::NotFound,
        &["registry.test/it/nosuch:1"],
    );
    pull_fails(
        &scene,
        "registry.test/it/a:2",
        Code::NotFound,
        &["registry.test/it/a:2"],
    );
    let digest = format!("registry.test/it/a@sha256:{}", "0".repeat(64));
    pull_fails(&scene, &digest, Code::NotFound, &[&digest]);
    let pod = scene.pod("p");
    let config = wharf_testkit::cri::container("c", "registry.test/it/a:1", &["x"]);
    refused(
        pod.create(&config),
        Code::NotFound,
        &["registry.test/it/a:1", "pull it first"],
    );
    pod.end();
    scene.leaves_nothing_but_images();
    scene.cri().pull("registry.test/it/a:1").unwrap();
}

#[test]
fn names_that_are_none_are_refused() {
    let Some(scene) = Scene::empty("names_that_are_none_are_refused") else {
        return;
    };
    for name in [
        "",
        "registry.test/UPPER/case:1",
        "a b",
        "x:y:z",
        "registry.test/it/a@sha256:short",
        "../../etc",
        "a/../b",
    ] {
        pull_fails(&scene, name, Code::InvalidArgument, &[name]);
    }
    assert_eq!(scene.registry.requests().len(), 0, "nobody was asked");
}

#[test]
fn a_registry_that_is_not_there_is_said_as_kubelet_reads_it() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{closed}");
    let Some(scene) = Scene::empty("a_registry_that_is_not_there") else {
        return;
    };
    serve(&scene.node, "away.test", &url);
    let text = pull_fails(
        &scene,
        "away.test/it/a:1",
        Code::Unknown,
        &["away.test/it/a:1"],
    );
    assert!(text.starts_with("RegistryUnavailable: "), "{text}");
    scene.registry.add("it/a", "1", &samples::hello("a"));
    scene.registry.fail(On::Any, Act::Status(503));
    let text = pull_fails(&scene, "registry.test/it/a:1", Code::Unknown, &["503"]);
    assert!(text.starts_with("RegistryUnavailable: "), "{text}");
    scene.registry.heal();
    scene.cri().pull("registry.test/it/a:1").unwrap();
}

#[test]
fn who_may_not_pull_is_told_so_and_the_password_is_not() {
    let Some(scene) = Scene::empty("who_may_not_pull") else {
        return;
    };
    scene.registry.add("it/a", "1", &samples::hello("a"));
    for auth in [
        Auth::Basic("u".into(), "right".into()),
        Auth::Bearer(Some(("u".into(), "right".into()))),
    ] {
        scene.registry.demand(auth);
        pull_fails(
            &scene,
            "registry.test/it/a:1",
            Code::PermissionDenied,
            &["registry.test/it/a:1"],
        );
        let mut client = scene.cri().image();
        let request = |password: &str| wharf_api::v1::PullImageRequest {
            image: Some(wharf_testkit::cri::spec("registry.test/it/a:1")),
            auth: Some(wharf_api::v1::AuthConfig {
                username: "u".into(),
                password: password.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let answer = scene.cri().wait(client.pull_image(request("wrong-secret")));
        let text = refused(answer, Code::PermissionDenied, &["registry.test/it/a:1"]);
        assert!(!text.contains("wrong-secret") && !scene.node.log().contains("wrong-secret"));
        scene.leaves_nothing();
        scene
            .cri()
            .wait(client.pull_image(request("right")))
            .unwrap();
        scene.cri().remove_image("registry.test/it/a:1").unwrap();
    }
}

#[test]
fn what_does_not_fit_its_digest_is_refused() {
    let Some(scene) = Scene::empty("what_does_not_fit_its_digest") else {
        return;
    };
    let image = samples::hello("a");
    let tagged = "registry.test/it/a:1";
    scene.registry.add("it/a", "1", &image);
    let layer = &image.blobs[0].digest;
    let config = &image.blobs[1].digest;
    for (name, on, act) in [
        (
            "wrong bytes of the layer",
            On::Blob(layer.clone()),
            Act::WrongBytes,
        ),
        (
            "wrong bytes of the configuration",
            On::Blob(config.clone()),
            Act::WrongBytes,
        ),
        ("longer than told", On::Blobs, Act::TooLong(7)),
    ] {
        scene.registry.fail(on, act);
        let text = pull_fails(&scene, tagged, Code::DataLoss, &["sha256:"]);
        println!("{name}: {text}");
        scene.registry.heal();
    }
    scene.registry.fail(On::Manifests, Act::WrongBytes);
    let by_digest = format!("registry.test/it/a@{}", image.digest());
    pull_fails(&scene, &by_digest, Code::DataLoss, &[image.digest()]);
    scene.registry.heal();

    let mut layer = Layer::of(&[Entry::file("f", "x")]);
    layer.diff_id = format!("sha256:{}", "1".repeat(64));
    scene.registry.add("it/diff", "1", &of_layer(layer.clone()));
    pull_fails(
        &scene,
        "registry.test/it/diff:1",
        Code::DataLoss,
        &[&layer.diff_id],
    );
    scene.cri().pull(tagged).unwrap();
}

#[test]
fn a_layer_that_ends_too_early_leaves_nothing() {
    let Some(scene) = Scene::empty("a_layer_that_ends_too_early") else {
        return;
    };
    // Noise, so that it stays large when packed.
    let noise: Vec<u8> = (0..200_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let plain = wharf_testkit::tar::archive(&[Entry::file("noise", noise)]);
    scene
        .registry
        .add("it/a", "1", &of_layer(Layer::of_tar(&plain, Packing::Gzip)));
    // No progress at all, however often it is asked.
    scene.registry.fail(On::Blobs, Act::Cut(0));
    let answer = scene.cri().pull("registry.test/it/a:1");
    let text = answer.unwrap_err().message().to_owned();
    assert!(
        text.contains("sha256:") || text.contains("registry.test"),
        "{text}"
    );
    scene.leaves_nothing();
    scene.registry.heal();
    // The tar itself is cut: digest and diff ID are right, and yet it is no whole tree.
    let cut = &plain[..plain.len() / 2];
    scene
        .registry
        .add("it/cut", "1", &of_layer(Layer::of_tar(cut, Packing::Gzip)));
    pull_fails(
        &scene,
        "registry.test/it/cut:1",
        Code::DataLoss,
        &["sha256:"],
    );
    // A connection that breaks now and then is no failure.
    scene.registry.fail_times(2, On::Blobs, Act::Cut(100_000));
    scene.cri().pull("registry.test/it/a:1").unwrap();
}

#[test]
fn an_image_for_another_machine_is_named_with_what_there_is() {
    let Some(scene) = Scene::empty("an_image_for_another_machine") else {
        return;
    };
    let of = |b: Builder| b.cmd(&["x"]).build();
    let layer = || Layer::of(&[Entry::file("f", "x")]);
    let list = of(Builder::new(Flavour::Oci, [layer()]).index(&["linux/s390x", "windows/amd64"]));
    scene.registry.add("it/list", "1", &list);
    let text = pull_fails(
        &scene,
        "registry.test/it/list:1",
        Code::NotFound,
        &["linux/amd64", "linux/s390x"],
    );
    assert!(text.contains("registry.test/it/list:1"), "{text}");
    let plain = of(Builder::new(Flavour::Docker, [layer()]).platform("linux/arm64"));
    scene.registry.add("it/plain", "1", &plain);
    pull_fails(
        &scene,
        "registry.test/it/plain:1",
        Code::NotFound,
        &["linux/amd64", "linux/arm64"],
    );
}

#[test]
fn a_hostile_tar_writes_nothing_outside() {
    let Some(scene) = Scene::empty("a_hostile_tar_writes_nothing_outside") else {
        return;
    };
    let outside = scene.node.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    let up = "../".repeat(20);
    let at = outside.display().to_string();
    let relative = format!("{up}{}", at.trim_start_matches('/'));
    let evil = |path: &str| Entry::file(path, "evil");
    for (i, entries) in [
        vec![evil(&format!("{relative}/f"))],
        vec![Entry::dir("d"), evil(&format!("d/{relative}/f"))],
        vec![Entry::symlink("l", &at), evil("l/f")],
        vec![Entry::symlink("l", &relative), evil("l/f")],
        vec![Entry::symlink("l", &at), Entry::dir("l/d"), evil("l/d/f")],
        vec![Entry::link("h", &format!("{relative}/g")), evil("h")],
        vec![Entry::symlink("l", &format!("{at}/g")), evil("l")],
        vec![evil(&format!("{at}/f"))],
        vec![Entry::symlink("l", &at), Entry::whiteout("l/keep")],
    ]
    .into_iter()
    .enumerate()
    {
        fs::write(outside.join("keep"), "").unwrap();
        let repository = format!("it/evil{i}");
        scene
            .registry
            .add(&repository, "1", &of_layer(Layer::of(&entries)));
        let answer = scene.cri().pull(&format!("registry.test/{repository}:1"));
        let names: Vec<_> = fs::read_dir(&outside)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["keep"], "{entries:?}");
        // Either refused with a name, or tamed inside the layer, as the peers do with absolute names.
        match answer {
            Err(status) => {
                let fits = matches!(status.code(), Code::DataLoss | Code::InvalidArgument);
                assert!(fits, "{status:?}");
                scene.leaves_nothing();
            }
            Ok(_) => scene
                .cri()
                .remove_image(&format!("registry.test/{repository}:1"))
                .unwrap(),
        }
    }
    scene.leaves_nothing();
}

#[test]
fn documents_that_are_none_are_refused() {
    let Some(scene) = Scene::empty("documents_that_are_none") else {
        return;
    };
    for (i, text) in [
        "",
        "{}",
        "[1]",
        "not json",
        "{\"schemaVersion\":1}",
        "{\"schemaVersion\":2,\"layers\":[{}]}",
    ]
    .into_iter()
    .enumerate()
    {
        let repository = format!("it/doc{i}");
        scene
            .registry
            .add(&repository, "1", &samples::broken_manifest(text));
        let answer = scene.cri().pull(&format!("registry.test/{repository}:1"));
        let status = answer.expect_err(text);
        let fits = matches!(
            status.code(),
            Code::DataLoss | Code::InvalidArgument | Code::Unimplemented
        );
        assert!(
            fits && status.message().contains(&repository),
            "{text}: {status:?}"
        );
        scene.leaves_nothing();
    }
}
