//! Whole pulls from a registry that misbehaves: what is there afterwards, and what is not.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use wharf_image::{Image, Images, ImagesConfig, PullError, PullRequest};
use wharf_registry::{Client, ClientConfig, Credentials};
use wharf_store::{Durability, Store};
use wharf_testkit::image::{Builder, Flavour, Layer, Packing};
use wharf_testkit::registry::{Act, Auth, On, Registry};
use wharf_testkit::tar::Entry;
use wharf_testkit::{needs_root, wait};
use wharf_types::{Digest, Kind, Platform};

/// Longest wait for what happens in the background.
const SOON: Duration = Duration::from_secs(20);

/// A node that pulls, and the registry that it pulls from.
pub(crate) struct Node {
    _dir: tempfile::TempDir,
    pub(crate) root: PathBuf,
    pub(crate) store: Store,
    pub(crate) images: Images,
    pub(crate) registry: Registry,
}

impl Node {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        Self::at(dir, root, Duration::ZERO)
    }

    fn at(dir: tempfile::TempDir, root: PathBuf, linger: Duration) -> Self {
        let store = Store::open(&root, Durability::None).unwrap();
        let images = images(&store, linger);
        Self {
            _dir: dir,
            root,
            store,
            images,
            registry: Registry::start().unwrap(),
        }
    }

    /// The next daemon on the same directory.
    pub(crate) fn reopen(&mut self) {
        let nowhere = tempfile::tempdir().unwrap();
        self.store = Store::open(nowhere.path(), Durability::None).unwrap();
        self.images = images(&self.store, Duration::ZERO);
        // The last handle may still be on its way out of a finished task.
        let mut again = None;
        let opened = wait::until(SOON, || {
            again = Store::open(&self.root, Durability::None).ok();
            Ok(again.is_some())
        });
        assert!(opened.unwrap());
        self.store = again.unwrap();
        self.images = images(&self.store, Duration::ZERO);
    }

    pub(crate) async fn pull(&self, reference: &str) -> Result<Arc<Image>, PullError> {
        self.images.pull(request(reference)).await
    }

    /// Blob requests that the registry saw since it forgot.
    pub(crate) fn blobs(&self) -> Vec<String> {
        let seen = self.registry.requests().into_iter().map(|r| r.path);
        seen.filter(|path| path.contains("/blobs/")).collect()
    }

    /// Everything that a pull can leave in the state directory.
    fn leftovers(&self) -> Vec<String> {
        self.store.drain_trash();
        let mut all = Vec::new();
        for room in ["ingest", "trash", "layers", "blobs", "images", "snapshots"] {
            for entry in fs::read_dir(self.root.join(room)).unwrap() {
                all.push(format!("{room}/{}", entry.unwrap().file_name().display()));
            }
        }
        all
    }

    /// Waits until a failed pull has cleaned up, and tells what stays.
    pub(crate) async fn assert_clean(&self) {
        let this = (self.store.clone(), self.root.clone());
        let done = tokio::task::spawn_blocking(move || {
            wait::until(SOON, || {
                this.0.drain_trash();
                let rooms = ["ingest", "trash", "layers", "blobs"];
                let empty = |room| fs::read_dir(this.1.join(room)).unwrap().next().is_none();
                Ok(rooms.into_iter().all(empty))
            })
        });
        let clean = done.await.unwrap().unwrap();
        assert!(clean, "{:?}", self.leftovers());
        assert!(self.images.list().is_empty());
    }
}

fn images(store: &Store, linger: Duration) -> Images {
    let certs_d = None;
    let client = Client::new(ClientConfig {
        certs_d,
        user_agent: "wharf-test".to_owned(),
    });
    let platform = Platform::new("linux", "amd64", "");
    let config = ImagesConfig {
        platform,
        max_parallel_layers: 3,
        linger,
    };
    Images::new(store.clone(), client.unwrap(), config)
}

fn request(reference: &str) -> PullRequest {
    PullRequest {
        reference: reference.parse().unwrap(),
        credentials: Credentials::Anonymous,
        namespace: "k8s.io".to_owned(),
        platform: None,
    }
}

pub(crate) fn path_of(fd: &impl std::os::fd::AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn layer(name: &str, packing: Packing) -> Layer {
    Layer::packed(
        &[Entry::dir("etc"), Entry::file(&format!("etc/{name}"), name)],
        packing,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn every_packing_and_flavour_becomes_the_same_files() {
    for (flavour, packing) in [
        (Flavour::Oci, Packing::Gzip),
        (Flavour::Oci, Packing::Zstd),
        (Flavour::Oci, Packing::Plain),
        (Flavour::Docker, Packing::Gzip),
    ] {
        let node = Node::new();
        let built = Builder::new(flavour, [layer("one", packing), layer("two", packing)])
            .cmd(&["sh", "-c"])
            .user("7:8")
            .label("a", "b")
            .build();
        let reference = node.registry.add("team/app", "v1", &built);
        let image = node.pull(&reference).await.unwrap();
        assert_eq!(image.repo_tags, [&reference[..]]);
        let by_digest = format!("{}/team/app@{}", node.registry.host(), built.digest());
        assert_eq!(image.repo_digests, [by_digest]);
        assert_eq!(image.config.cmd, ["sh", "-c"]);
        assert_eq!(
            (
                image.config.user.as_str(),
                image.config.labels["a"].as_str()
            ),
            ("7:8", "b")
        );
        assert_eq!(Digest::of(&image.config_json), image.id);
        assert_eq!(
            image.size,
            6 + u64::try_from(image.config_json.len()).unwrap()
        );
        for (id, name) in image.layers.iter().zip(["one", "two"]) {
            let file = node
                .root
                .join(format!("layers/{}/tree/etc/{name}", id.0.hex()));
            assert_eq!(fs::read_to_string(file).unwrap(), name);
        }
        assert!(node.images.usage().inodes > 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_by_digest_has_no_tag_and_a_tag_beside_a_digest_is_dropped() {
    let node = Node::new();
    let built = Builder::new(Flavour::Oci, [layer("one", Packing::Gzip)]).build();
    let reference = node.registry.add("app", "", &built);
    let image = node.pull(&reference).await.unwrap();
    assert!(image.repo_tags.is_empty());
    assert_eq!(image.repo_digests, [&reference[..]]);
    node.registry.add("app", "v1", &built);
    let both = format!("{}/app:v1@{}", node.registry.host(), built.digest());
    assert_eq!(node.pull(&both).await.unwrap(), image);
    assert_eq!(node.images.find(&both).unwrap().id, image.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_gives_this_nodes_image_and_an_error_names_what_exists() {
    let node = Node::new();
    let layers = [layer("one", Packing::Gzip)];
    let index = Builder::new(Flavour::Oci, layers.clone())
        .index(&[
            "unknown/unknown",
            "linux/arm64",
            "linux/amd64",
            "linux/amd64/v3",
        ])
        .build();
    let image = node
        .pull(&node.registry.add("app", "multi", &index))
        .await
        .unwrap();
    assert_eq!(image.platform.to_string(), "linux/amd64");
    assert!(
        image.repo_digests[0].ends_with(index.digest()),
        "the index's digest"
    );
    let exact = PullRequest {
        platform: Some(Platform::new("linux", "aarch64", "")),
        ..request(&format!("{}/app:multi", node.registry.host()))
    };
    assert_eq!(
        node.images.pull(exact).await.unwrap().platform.to_string(),
        "linux/arm64"
    );
    let foreign = Builder::new(Flavour::Docker, layers.clone())
        .index(&["linux/s390x", "linux/arm/v7"])
        .build();
    let error = node
        .pull(&node.registry.add("app", "foreign", &foreign))
        .await
        .unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(
        text.contains("linux/s390x, linux/arm/v7") && text.contains("linux/amd64"),
        "{text}"
    );
    let plain = Builder::new(Flavour::Oci, layers)
        .platform("linux/s390x")
        .build();
    let error = node
        .pull(&node.registry.add("app", "plain", &plain))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("linux/s390x"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_is_not_fetched_again() {
    let node = Node::new();
    let [one, two, three] = ["one", "two", "three"].map(|n| layer(n, Packing::Gzip));
    let base = Builder::new(Flavour::Oci, [one.clone(), two.clone()]).build();
    let more = Builder::new(Flavour::Oci, [one, two, three]).build();
    let reference = node.registry.add("app", "base", &base);
    let first = node.pull(&reference).await.unwrap();
    node.registry.forget_requests();
    assert_eq!(node.pull(&reference).await.unwrap(), first);
    assert_eq!(
        node.registry.requests().len(),
        1,
        "the question for the tag"
    );
    node.registry.forget_requests();
    node.pull(&node.registry.add("app", "more", &more))
        .await
        .unwrap();
    assert_eq!(
        node.blobs().len(),
        2,
        "configuration and the new layer: {:?}",
        node.blobs()
    );
    // A second name of the same image needs nothing but the question.
    node.registry.forget_requests();
    let other = node.registry.add("other/name", "v9", &base);
    let image = node.pull(&other).await.unwrap();
    assert!(node.blobs().is_empty());
    assert_eq!((image.repo_tags.len(), image.repo_digests.len()), (2, 2));
    assert_eq!(node.images.list().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_callers_make_one_transfer_and_two_images_share_a_layer() {
    let node = Arc::new(Node::new());
    let shared = layer("shared", Packing::Gzip);
    let image =
        |name| Builder::new(Flavour::Oci, [shared.clone(), layer(name, Packing::Gzip)]).build();
    let references = ["a", "b"].map(|name| node.registry.add("app", name, &image(name)));
    // The layers take a moment, so that all callers meet.
    node.registry
        .fail(On::Blobs, Act::Slow(64, Duration::from_millis(20)));
    let callers: Vec<_> = (0..20)
        .map(|n| {
            let (node, reference) = (Arc::clone(&node), references[n % 2].clone());
            tokio::spawn(async move { node.pull(&reference).await })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    let mut blobs = node.blobs();
    let all = blobs.len();
    blobs.sort();
    blobs.dedup();
    assert_eq!(
        (all, blobs.len()),
        (5, 5),
        "two configurations, three layers, each once"
    );
    assert_eq!(node.images.list().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_found_and_leave_nothing() {
    let node = Node::new();
    let good = Builder::new(
        Flavour::Oci,
        [layer("one", Packing::Gzip), layer("two", Packing::Zstd)],
    );
    let reference = node.registry.add("app", "v1", &good.build());
    node.registry.fail(On::Blobs, Act::WrongBytes);
    assert_eq!(
        node.pull(&reference).await.unwrap_err().kind(),
        Kind::Corrupt
    );
    node.assert_clean().await;
    // Right bytes, but not those that the configuration promises.
    let mut lying = layer("three", Packing::Gzip);
    lying.diff_id = Digest::of(b"other").to_string();
    let lying = Builder::new(Flavour::Oci, [layer("one", Packing::Gzip), lying]).build();
    node.registry.heal();
    let error = node
        .pull(&node.registry.add("app", "v2", &lying))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("diff ID"), "{error}");
    node.assert_clean().await;
    node.pull(&reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_resumed_and_a_missing_blob_is_an_error_that_leaves_nothing() {
    let node = Node::new();
    let layers = [layer("one", Packing::Gzip), layer("two", Packing::Gzip)];
    let built = Builder::new(Flavour::Oci, layers.clone()).build();
    let reference = node.registry.add("app", "v1", &built);
    node.registry
        .fail(On::Blob(layers[1].blob.digest.clone()), Act::Status(404));
    let error = node.pull(&reference).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error:?}");
    node.assert_clean().await;
    node.registry.heal();
    node.registry
        .fail_times(1, On::Blob(layers[0].blob.digest.clone()), Act::Cut(60));
    node.pull(&reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_nobody_waits_for_ends_and_leaves_nothing() {
    let node = Arc::new(Node::new());
    let layers = [layer("one", Packing::Gzip), layer("two", Packing::Gzip)];
    let built = Builder::new(Flavour::Oci, layers.clone()).build();
    let reference = node.registry.add("app", "v1", &built);
    let stalled = layers[1].blob.digest.clone();
    node.registry
        .fail(On::Blob(stalled.clone()), Act::Stall(10));
    let caller = {
        let (node, reference) = (Arc::clone(&node), reference.clone());
        tokio::spawn(async move { node.pull(&reference).await })
    };
    let waiting = Arc::clone(&node);
    let asked = tokio::task::spawn_blocking(move || {
        wait::until(SOON, || {
            Ok(waiting.blobs().iter().any(|path| path.ends_with(&stalled)))
        })
    });
    assert!(asked.await.unwrap().unwrap());
    caller.abort();
    node.assert_clean().await;
    node.registry.heal();
    node.pull(&reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_layer_is_refused_and_leaves_nothing() {
    let node = Node::new();
    for name in ["../../../../escape", "a/../../../escape"] {
        let layer = Layer::of(&[Entry::file("fine", "x"), Entry::file(name, "x")]);
        let built = Builder::new(Flavour::Oci, [layer]).build();
        let error = node
            .pull(&node.registry.add("app", "bad", &built))
            .await
            .unwrap_err();
        assert_eq!(
            error.kind(),
            Kind::Corrupt,
            "{}",
            wharf_types::chain(&error)
        );
        node.assert_clean().await;
    }
    let garbage = Layer::of_tar(&[b'x'; 4096], Packing::Gzip);
    let built = Builder::new(Flavour::Oci, [garbage]).build();
    let error = node
        .pull(&node.registry.add("app", "garbage", &built))
        .await
        .unwrap_err();
    assert!(
        wharf_types::chain(&error).contains("checksum"),
        "{}",
        wharf_types::chain(&error)
    );
    assert!(!Path::new("/escape").exists());
    node.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_stops_at_the_ratio() {
    let node = Node::new();
    let bomb = Layer::of(&[Entry::file("zeros", vec![0; 100 << 20])]);
    let built = Builder::new(Flavour::Oci, [bomb]).build();
    let error = node
        .pull(&node.registry.add("app", "bomb", &built))
        .await
        .unwrap_err();
    assert!(
        wharf_types::chain(&error).contains("200 times"),
        "{}",
        wharf_types::chain(&error)
    );
    node.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_used_and_wrong_ones_leave_nothing() {
    let node = Node::new();
    let built = Builder::new(Flavour::Oci, [layer("one", Packing::Gzip)]).build();
    let reference = node.registry.add("app", "v1", &built);
    let person = ("bob".to_owned(), "secret".to_owned());
    node.registry.demand(Auth::Bearer(Some(person.clone())));
    assert_eq!(
        node.pull(&reference).await.unwrap_err().kind(),
        Kind::Denied
    );
    node.assert_clean().await;
    let (username, password) = person;
    let credentials = Credentials::Basic { username, password };
    let request = PullRequest {
        credentials,
        ..request(&reference)
    };
    assert!(!format!("{request:?}").contains("secret"));
    node.images.pull(request).await.unwrap();
}

/// A file system of its own that is attached nowhere.
fn tmpfs(size: &str) -> std::os::fd::OwnedFd {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
        fsopen,
    };
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_set_string(&fs, "size", size).unwrap();
    fsconfig_create(&fs).unwrap();
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_the_pull_leaves_nothing() {
    if !needs_root("a_full_disk_is_named_and_the_pull_leaves_nothing") {
        return;
    }
    let disk = tmpfs("12m");
    let root = path_of(&disk).join("store");
    let node = Node::at(tempfile::tempdir().unwrap(), root.clone(), Duration::ZERO);
    let noise: Vec<u8> = (0..20_u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let big = Layer::packed(&[Entry::file("big", noise)], Packing::Plain);
    let built = Builder::new(Flavour::Oci, [big]).build();
    let error = node
        .pull(&node.registry.add("app", "big", &built))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Exhausted);
    assert!(
        error.to_string().contains(root.to_str().unwrap()),
        "{error}"
    );
    node.assert_clean().await;
    let small = Builder::new(Flavour::Oci, [layer("one", Packing::Gzip)]).build();
    node.pull(&node.registry.add("app", "small", &small))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_name_an_image_finds_it_and_one_removal_takes_all_names() {
    let node = Node::new();
    let built = Builder::new(Flavour::Oci, [layer("one", Packing::Gzip)]).build();
    let other = Builder::new(Flavour::Oci, [layer("two", Packing::Gzip)]).build();
    let references = ["v1", "v2"].map(|tag| node.registry.add("app", tag, &built));
    for reference in &references {
        node.pull(reference).await.unwrap();
    }
    let elsewhere = node.registry.add("elsewhere", "v1", &built);
    let image = node.pull(&elsewhere).await.unwrap();
    let kept = node
        .pull(&node.registry.add("app", "other", &other))
        .await
        .unwrap();
    assert_eq!(image.repo_tags.len(), 3);
    let hex = image.id.hex();
    let by_digest = format!("{}/elsewhere@{}", node.registry.host(), built.digest());
    let tagged = format!("{}/elsewhere:v9@{}", node.registry.host(), built.digest());
    for text in [
        &hex,
        &format!("sha256:{hex}"),
        &hex[..12],
        &references[1],
        &by_digest,
        &tagged,
    ] {
        assert_eq!(
            node.images.find(text).map(|i| i.id),
            Some(image.id),
            "{text}"
        );
    }
    for text in [
        "",
        "nothing",
        "sha256:",
        "zzzz",
        &format!("{}/app:v3", node.registry.host()),
    ] {
        assert!(node.images.find(text).is_none(), "{text}");
    }
    let removals = futures(&node.images, &references[0], 5).await;
    assert_eq!(removals.into_iter().filter(|r| *r).count(), 1);
    assert!(node.images.find(&elsewhere).is_none() && node.images.find(&hex).is_none());
    assert_eq!(*node.images.list(), [Arc::clone(&kept)]);
    assert!(!node.images.remove(&elsewhere).await.unwrap());
    assert!(node.images.remove(&kept.id.to_string()).await.unwrap());
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

async fn futures(images: &Images, text: &str, n: usize) -> Vec<bool> {
    let calls: Vec<_> = (0..n)
        .map(|_| {
            let (images, text) = (images.clone(), text.to_owned());
            tokio::spawn(async move { images.remove(&text).await.unwrap() })
        })
        .collect();
    let mut all = Vec::new();
    for call in calls {
        all.push(call.await.unwrap());
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_there_after_a_restart_with_durable_commits() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start().unwrap();
    let built = Builder::new(Flavour::Oci, [layer("one", Packing::Gzip)]).build();
    let reference = registry.add("app", "v1", &built);
    let store = Store::open(dir.path(), Durability::Image).unwrap();
    let before = {
        let images = images(&store, Duration::ZERO);
        images.pull(request(&reference)).await.unwrap()
    };
    // The last handle may still be on its way out of a finished task.
    drop(store);
    let path = dir.path().to_owned();
    let mut again = None;
    let opened = wait::until(SOON, || {
        again = Store::open(&path, Durability::Image).ok();
        Ok(again.is_some())
    });
    assert!(opened.unwrap());
    assert_eq!(*images(&again.unwrap(), Duration::ZERO).list(), [before]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moved_names_the_new_image_and_the_old_keeps_its_digest() {
    let node = Node::new();
    let [old, new] =
        ["old", "new"].map(|n| Builder::new(Flavour::Oci, [layer(n, Packing::Gzip)]).build());
    let reference = node.registry.add("app", "v1", &old);
    let before = node.pull(&reference).await.unwrap();
    node.registry.add("app", "v1", &new);
    let after = node.pull(&reference).await.unwrap();
    assert_ne!(before.id, after.id);
    assert_eq!(after.repo_tags, [reference]);
    let before = node.images.find(&before.id.to_string()).unwrap();
    assert!(before.repo_tags.is_empty());
    assert!(before.repo_digests[0].ends_with(old.digest()));
}

/// What a container sees: layers over each other, corrections included.
#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_image_shows_the_sum_of_its_layers() {
    if !needs_root("a_mounted_image_shows_the_sum_of_its_layers") {
        return;
    }
    let node = Node::new();
    let base = Layer::of(&[
        Entry::dir("tmp").mode(0o1777),
        Entry::dir("d"),
        Entry::file("d/old", "old"),
        Entry::file("gone", "x"),
        Entry::file("d/kept", "kept"),
        Entry::dir("e"),
        Entry::file("e/hidden", "x"),
    ]);
    let top = Layer::of(&[
        Entry::file("tmp/new", "new"),
        Entry::whiteout("gone"),
        Entry::whiteout("d/old"),
        Entry::opaque("e"),
        Entry::file("e/seen", "seen"),
        Entry::whiteout("nowhere/ghost"),
    ]);
    let empty = Layer::of(&[]);
    let layers = [empty.clone(), base, empty.clone(), top, empty];
    let built = Builder::new(Flavour::Oci, layers).build();
    let image = node
        .pull(&node.registry.add("app", "v1", &built))
        .await
        .unwrap();
    assert_eq!(image.layers.len(), 5);
    let snapshot = node.store.prepare("c1", &image.layers).unwrap();
    let mount = snapshot.mount(false).unwrap();
    let shown = crate::tree::listing(&path_of(&mount).join("."), crate::tree::What::Shape);
    let names: Vec<_> = shown.keys().map(String::as_str).collect();
    let expected = [
        "", "d", "d/kept", "e", "e/seen", "nowhere", "tmp", "tmp/new",
    ];
    assert_eq!(names, expected);
    let tmp = fs::metadata(path_of(&mount).join("tmp")).unwrap();
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(tmp.mode() & 0o7777, 0o1777);
    // The image goes, the container stays whole.
    assert!(node.images.remove(&image.id.to_string()).await.unwrap());
    let mut text = String::new();
    fs::File::open(path_of(&mount).join("d/kept"))
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "kept");
    drop(mount);
    node.store.remove("c1").unwrap();
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_sends_nothing_keeps_only_its_own_pulls_waiting() {
    let node = Arc::new(Node::new());
    let names = ["1", "2", "3", "4"];
    let stuck = Builder::new(Flavour::Oci, names.map(|n| layer(n, Packing::Gzip))).build();
    let reference = node.registry.add("stuck", "v1", &stuck);
    for layer in names.map(|n| layer(n, Packing::Gzip)) {
        let on = On::Blob(layer.blob.digest.clone());
        node.registry.fail(on, Act::Stall(10));
    }
    let caller = {
        let (node, reference) = (Arc::clone(&node), reference.clone());
        tokio::spawn(async move { node.pull(&reference).await })
    };
    let waiting = Arc::clone(&node);
    let asked = tokio::task::spawn_blocking(move || {
        // The configuration and as many layers as there are slots.
        wait::until(SOON, || Ok(waiting.blobs().len() > 3))
    });
    assert!(asked.await.unwrap().unwrap());
    let other = Registry::start().unwrap();
    // The first layer is one that the stuck registry has announced too.
    let fine = Builder::new(
        Flavour::Oci,
        ["1", "x", "y", "z"].map(|n| layer(n, Packing::Gzip)),
    );
    let fine = other.add("fine", "v1", &fine.build());
    let pulled = tokio::time::timeout(SOON, node.pull(&fine)).await;
    pulled.expect("not kept waiting").unwrap();
    assert!(!caller.is_finished());
    caller.abort();
}
