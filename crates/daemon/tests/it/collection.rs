//! Images that are removed while they are used, while they come, by many at once; and images whose files
//! were damaged.

use std::fs;
use std::path::PathBuf;

use tonic::Code;
use wharf_api::v1::{ImageFsInfoRequest, ImageStatusRequest, ListImagesRequest};
use wharf_testkit::image::Layer;
use wharf_testkit::tar::Entry;
use wharf_testkit::{cri, wait};

use crate::scene::{Pod, SOON, Scene, above_busybox, refused, with};

fn names(scene: &Scene) -> Vec<String> {
    let mut client = scene.cri().image();
    let list = client.list_images(ListImagesRequest::default());
    let images = scene.cri().wait(list).unwrap().images;
    images.into_iter().flat_map(|i| i.repo_tags).collect()
}

fn is_there(scene: &Scene, image: &str) -> bool {
    let request = ImageStatusRequest {
        image: Some(cri::spec(image)),
        verbose: false,
    };
    let mut client = scene.cri().image();
    let status = scene.cri().wait(client.image_status(request)).unwrap();
    status.image.is_some()
}

/// What `wharf image check` says, and whether all was well.
fn check(scene: &Scene, names: &[&str]) -> (bool, String) {
    let words = [&["image", "check"], names].concat();
    let out = scene.node.wharf_command(&words).output().unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8(text).unwrap())
}

/// The tree of the layer that has this path.
fn tree_with(scene: &Scene, path: &str) -> PathBuf {
    let layers = fs::read_dir(scene.node.root().join("layers")).unwrap();
    let mut trees = layers.map(|e| e.unwrap().path().join("tree"));
    trees.find(|tree| tree.join(path).exists()).unwrap()
}

fn sleeper(image: &str) -> wharf_api::v1::ContainerConfig {
    cri::container("c", image, &["sleep", "1000"])
}

#[test]
fn an_image_in_use_goes_by_all_its_names_and_its_container_goes_on() {
    let Some(mut scene) = Scene::begin("an_image_in_use_goes") else {
        return;
    };
    let image = above_busybox(&[Layer::of(&[Entry::file("word", "here")])]).build();
    let first = scene.pull("used", &image);
    let second = scene.pull("alias", &image);
    let pod = scene.pod("p");
    let id = pod.run(&sleeper(&first));
    let created = pod.create(&with(sleeper(&first), |c| {
        c.metadata.get_or_insert_default().name = "other".into();
    }));
    let created = created.unwrap();
    let image_id = scene.cri().container_status(&id).unwrap().image_ref;
    scene.cri().remove_image(&image_id).unwrap();
    scene.cri().remove_image(&image_id).unwrap();
    assert!(!names(&scene).iter().any(|n| *n == first || *n == second));
    let says = |scene: &Scene, id: &str| {
        let answer = scene.cri().exec(id, &["cat", "/word"], 10).unwrap();
        String::from_utf8(answer.stdout).unwrap()
    };
    assert_eq!(says(&scene, &id), "here");
    // One that was created, but not started, has its layers too.
    scene.cri().start(&created).unwrap();
    assert_eq!(says(&scene, &created), "here");
    assert_eq!(
        scene.cri().container_status(&id).unwrap().image_ref,
        image_id
    );
    let later = with(sleeper(&first), |c| {
        c.metadata.get_or_insert_default().name = "later".into();
    });
    refused(
        pod.create(&later),
        Code::NotFound,
        &[&first, "pull it first"],
    );
    let (pod_id, config) = (pod.id.clone(), pod.config.clone());
    scene.node.restart().unwrap();
    assert_eq!(says(&scene, &id), "here");
    assert_eq!(
        scene.cri().container_status(&id).unwrap().image_ref,
        image_id
    );
    // It comes back beside what is used, without a transfer of busybox's layer.
    scene.cri().pull(&first).unwrap();
    let third = with(sleeper(&first), |c| {
        c.metadata.get_or_insert_default().name = "third".into();
    });
    let third = scene.cri().create(&pod_id, &third, &config).unwrap();
    scene.cri().start(&third).unwrap();
    assert_eq!(says(&scene, &third), "here");
    scene.cri().remove_image(&first).unwrap();
    scene.cri().stop_pod(&pod_id).unwrap();
    scene.cri().remove_pod(&pod_id).unwrap();
    for name in ["c.log", "other.log", "third.log"] {
        fs::remove_file(scene.node.logs().join(name)).ok();
    }
    scene.leaves_nothing();
}

fn pull_or_not(scene: &Scene, reference: &str) {
    if let Err(status) = scene.cri().pull(reference) {
        // Removed again and again while it came.
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    }
}

/// Whole, or refused because the image is not there.
fn create_or_not(pod: &Pod<'_>, config: &wharf_api::v1::ContainerConfig) {
    let id = match pod.create(config) {
        Ok(id) => id,
        Err(status) => {
            assert_eq!(status.code(), Code::NotFound, "{status:?}");
            return;
        }
    };
    pod.cri().start(&id).unwrap();
    let answer = pod.cri().exec(&id, &["cat", "/d/49"], 10).unwrap();
    assert_eq!(answer.stdout.len(), 2000);
    pod.cri().remove(&id).unwrap();
}

#[test]
fn pulls_removals_and_creates_of_one_image_at_the_same_time_are_all_answered() {
    let Some(scene) = Scene::begin("pulls_removals_and_creates") else {
        return;
    };
    let files: Vec<_> = (0..50)
        .map(|n| Entry::file(&format!("d/{n}"), vec![b'x'; 2000]))
        .collect();
    let image = above_busybox(&[Layer::of(&files)]).build();
    let reference = scene.pull("busy", &image);
    let pod = scene.pod("p");
    std::thread::scope(|threads| {
        for turn in 0..4 {
            let (scene, reference, pod) = (&scene, &reference, &pod);
            threads.spawn(move || {
                (0..10).for_each(|_| scene.cri().remove_image(reference).unwrap());
            });
            threads.spawn(move || (0..10).for_each(|_| pull_or_not(scene, reference)));
            threads.spawn(move || {
                let config = with(sleeper(reference), |c| {
                    c.metadata.get_or_insert_default().name = format!("c{turn}");
                });
                (0..10).for_each(|_| create_or_not(pod, &config));
            });
        }
    });
    scene.cri().pull(&reference).unwrap();
    let (fine, said) = check(&scene, &[]);
    assert!(fine, "{said}");
    scene.cri().remove_image(&reference).unwrap();
    pod.end();
    for turn in 0..4 {
        fs::remove_file(scene.node.logs().join(format!("c{turn}.log"))).ok();
    }
    scene.leaves_nothing();
}

#[test]
fn damage_is_found_by_path_and_a_pull_repairs_it_under_running_containers() {
    let Some(scene) = Scene::begin("damage_is_found_by_path") else {
        return;
    };
    let layer = Layer::of(&[
        Entry::file("etc/word", "right"),
        Entry::file("etc/other", "x"),
    ]);
    let reference = scene.pull("harm", &above_busybox(&[layer]).build());
    let (fine, said) = check(&scene, &[]);
    assert!(fine && said.matches("whole").count() == 2, "{said}");
    let pod = scene.pod("p");
    let old = pod.run(&sleeper(&reference));
    let tree = tree_with(&scene, "etc/word");
    fs::write(tree.join("etc/word"), "wrong").unwrap();
    fs::remove_file(tree.join("etc/other")).unwrap();
    let (fine, said) = check(&scene, &[&reference]);
    let told = [
        "damaged",
        &reference,
        "layer sha256:",
        "\"etc/word\": has other content",
        "\"etc/other\": is missing",
        "1 of 1 images are damaged: pull them again",
    ];
    assert!(
        !fine && told.iter().all(|word| said.contains(word)),
        "{said}"
    );
    scene.registry.forget_requests();
    scene.cri().pull(&reference).unwrap();
    let blobs = scene.registry.requests();
    let blobs = blobs.iter().filter(|r| r.path.contains("/blobs/")).count();
    assert_eq!(blobs, 1, "busybox is not fetched again");
    let (fine, said) = check(&scene, &[&reference]);
    assert!(fine, "{said}");
    let word = |id: &str| {
        scene
            .cri()
            .exec(id, &["cat", "/etc/word"], 10)
            .unwrap()
            .stdout
    };
    assert_eq!(word(&old), b"wrong", "what runs keeps what it has");
    let new = pod.run(&with(sleeper(&reference), |c| {
        c.metadata.get_or_insert_default().name = "new".into();
    }));
    assert_eq!(word(&new), b"right");
    let (fine, said) = check(&scene, &["no.such/image:1"]);
    assert!(
        !fine && said.contains("no such image: no.such/image:1"),
        "{said}"
    );
    scene.cri().remove_image(&reference).unwrap();
    assert_eq!(word(&old), b"wrong");
    pod.end();
    for name in ["c.log", "new.log"] {
        fs::remove_file(scene.node.logs().join(name)).ok();
    }
    scene.leaves_nothing();
}

#[test]
fn a_large_image_is_deleted_behind_the_answer_and_by_the_next_daemon() {
    let Some(mut scene) = Scene::begin("a_large_image_is_deleted") else {
        return;
    };
    let files: Vec<_> = (0..4_000)
        .map(|n| Entry::file(&format!("d{}/{n}", n % 100), "x"))
        .collect();
    let image = above_busybox(&[Layer::of(&files)]).build();
    let reference = scene.pull("large", &image);
    let used = |scene: &Scene| {
        let mut client = scene.cri().image();
        let info = scene
            .cri()
            .wait(client.image_fs_info(ImageFsInfoRequest {}));
        let inodes = info.unwrap().image_filesystems[0].inodes_used.unwrap();
        inodes.value
    };
    let before = used(&scene);
    assert!(before > 4_000);
    scene.cri().remove_image(&reference).unwrap();
    assert!(!is_there(&scene, &reference));
    assert!(
        used(&scene) < before - 4_000,
        "what is in the trash is no image"
    );
    scene.node.kill().unwrap();
    let trash = scene.node.root().join("trash");
    let left = fs::read_dir(&trash).unwrap().count();
    println!("{left} entries of the trash were left to the next daemon");
    scene.node.run().unwrap();
    let empty = || Ok(fs::read_dir(&trash)?.next().is_none());
    // It is slow on purpose, and slower beside others.
    assert!(wait::until(6 * SOON, empty).unwrap());
    scene.leaves_nothing();
}
