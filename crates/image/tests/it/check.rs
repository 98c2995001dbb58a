//! Damage on the disk: found wherever it is, and repaired by a pull, under running containers too.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use wharf_testkit::image::{Builder, Flavour, Image, Layer};
use wharf_testkit::needs_root;
use wharf_testkit::tar::Entry;
use wharf_types::Digest;

use crate::pull::{Node, path_of};

/// Everything that a tar can hold, replaced and linked; and a layer above that hides and implies.
fn all_kinds() -> Image {
    let long: String = vec!["a".repeat(200); 21].join("/");
    let below = [
        Entry::dir("bin").mode(0o711).owner(1, 2),
        Entry::file("bin/tool", vec![7; 300_000]).mode(0o4755),
        Entry::link("bin/other", "bin/tool").mode(0o4755),
        Entry::file("empty", ""),
        Entry::symlink("link", "bin/tool").owner(3, 3),
        Entry::fifo("pipe"),
        Entry::char_device("null", 1, 3).mode(0o666),
        Entry::file("twice/x", "first"),
        Entry::file("twice", "second"),
        Entry::file("f/implied/deep", "deep"),
        Entry::file("attr", "x").xattr("user.a", "b").owner(5, 6),
        Entry::dir("tmp").mode(0o1777),
        Entry::file(&format!("{long}/end"), "far"),
        Entry::file("d/a", "a"),
        Entry::file("d/b", "b"),
    ];
    let above = [
        Entry::whiteout("empty"),
        Entry::opaque("d"),
        Entry::file("d/c", "c"),
        Entry::file("tmp/x", "x"),
        Entry::whiteout("f/implied/deep"),
    ];
    let layers = [Layer::of(&below), Layer::of(&above)];
    Builder::new(Flavour::Oci, layers).cmd(&["x"]).build()
}

/// The tree of the layer that has `path`.
fn tree_with(node: &Node, path: &str) -> PathBuf {
    let layers = fs::read_dir(node.root.join("layers")).unwrap();
    let mut trees = layers.map(|e| e.unwrap().path().join("tree"));
    trees
        .find(|tree| tree.join(path).symlink_metadata().is_ok())
        .unwrap()
}

async fn damage(node: &Node, id: Digest) -> BTreeMap<String, String> {
    let checked = node.images.check(vec![id]).await;
    let [one] = &checked[..] else {
        panic!("{checked:?}")
    };
    assert_eq!(one.id, id);
    assert!(one.unlisted.is_empty(), "{one:?}");
    let found = one.damage.iter().cloned();
    found
        .map(|d| (d.path, format!("{}: {}", d.part, d.what)))
        .collect()
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
async fn every_kind_of_damage_is_found_by_path_and_a_pull_repairs_it() {
    if !needs_root("every_kind_of_damage") {
        return;
    }
    let node = Node::new();
    node.registry.add("a", "1", &all_kinds());
    let reference = format!("{}/a:1", node.registry.host());
    let id = node.pull(&reference).await.unwrap().id;
    assert_eq!(damage(&node, id).await, BTreeMap::new());
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    type Harm<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, &str, &str, Harm<'_>); 14] = [
        ("bin/other", "bin/other", "content", &|t| {
            flip(&t.join("bin/tool"));
            mode(&t.join("bin/tool"), 0o4755);
        }),
        ("bin/tool", "bin/tool", "is missing", &|t| {
            fs::remove_file(t.join("bin/tool")).unwrap();
        }),
        ("bin/tool", "bin/tool", "hard link", &|t| {
            fs::copy(t.join("bin/tool"), t.join("copy")).unwrap();
            fs::rename(t.join("copy"), t.join("bin/tool")).unwrap();
        }),
        ("twice", "twice", "has 3 bytes, not 6", &|t| {
            fs::write(t.join("twice"), "sec").unwrap();
        }),
        ("bin", "bin", "has mode 0755, not 0711", &|t| {
            mode(&t.join("bin"), 0o755);
        }),
        ("attr", "attr", "belongs to 0:6, not 5:6", &|t| {
            std::os::unix::fs::chown(t.join("attr"), Some(0), None).unwrap();
        }),
        ("link", "link", "leads to", &|t| {
            fs::remove_file(t.join("link")).unwrap();
            symlink("elsewhere", t.join("link")).unwrap();
            std::os::unix::fs::lchown(t.join("link"), Some(3), Some(3)).unwrap();
        }),
        ("pipe", "pipe", "is a file, not a pipe", &|t| {
            fs::remove_file(t.join("pipe")).unwrap();
            fs::write(t.join("pipe"), "").unwrap();
        }),
        ("null", "null", "is missing", &|t| {
            fs::remove_file(t.join("null")).unwrap();
        }),
        ("f", "f", "is missing", &|t| {
            fs::remove_dir_all(t.join("f")).unwrap();
        }),
        ("d/a", "d/new", "not of this layer", &|t| {
            fs::write(t.join("d/new"), "").unwrap();
        }),
        ("tmp/x", "tmp", "has mode 0700", &|t| {
            mode(&t.join("tmp"), 0o700);
        }),
        ("d/c", "d/c", "is missing", &|t| {
            fs::remove_file(t.join("d/c")).unwrap();
        }),
        ("bin/tool", "", "list of its contents is damaged", &|t| {
            flip(&t.join("../contents"));
        }),
    ];
    for (at, path, what, harm) in cases {
        harm(&tree_with(&node, at));
        let found = damage(&node, id).await;
        let told = found
            .get(path)
            .unwrap_or_else(|| panic!("no {path:?} in {found:?}"));
        assert!(
            told.starts_with("layer sha256:") && told.contains(what),
            "{path}: {told}"
        );
        node.registry.forget_requests();
        node.pull(&reference).await.unwrap();
        assert_eq!(
            node.blobs().len(),
            1,
            "only what is damaged is fetched again"
        );
        assert_eq!(damage(&node, id).await, BTreeMap::new(), "{path}: {what}");
    }
    assert!(node.images.remove(&reference).await.unwrap());
    node.assert_clean().await;
}

#[tokio::test]
async fn damaged_corrections_and_documents_are_found_and_repaired_too() {
    if !needs_root("damaged_corrections") {
        return;
    }
    let node = Node::new();
    node.registry.add("a", "1", &all_kinds());
    let reference = format!("{}/a:1", node.registry.host());
    let id = node.pull(&reference).await.unwrap().id;
    let fix = || {
        let layers = fs::read_dir(node.root.join("layers")).unwrap();
        let mut paths = layers.map(|e| e.unwrap().path());
        paths
            .find(|p| p.to_string_lossy().contains("/fix-"))
            .unwrap()
    };
    let tmp = fix().join("tree/tmp");
    assert_eq!(fs::metadata(&tmp).unwrap().mode() & 0o7777, 0o1777);
    fs::set_permissions(&tmp, fs::Permissions::from_mode(0o755)).unwrap();
    let found = damage(&node, id).await;
    assert!(
        found["tmp"].starts_with("corrections of layers"),
        "{found:?}"
    );
    node.pull(&reference).await.unwrap();
    assert_eq!(damage(&node, id).await, BTreeMap::new());
    fs::write(node.root.join("blobs").join(id.hex()), "").unwrap();
    let found = damage(&node, id).await;
    assert!(
        found[""].starts_with(&format!("document {id}")),
        "{found:?}"
    );
    node.pull(&reference).await.unwrap();
    assert_eq!(damage(&node, id).await, BTreeMap::new());
}

#[tokio::test]
async fn what_runs_keeps_the_damaged_layer_and_what_comes_gets_the_new_one() {
    if !needs_root("what_runs_keeps_the_damaged_layer") {
        return;
    }
    let mut node = Node::new();
    node.registry.add("a", "1", &all_kinds());
    let reference = format!("{}/a:1", node.registry.host());
    let image = node.pull(&reference).await.unwrap();
    let old = node.store.prepare("old", &image.layers).unwrap();
    let mounted = old.mount(false).unwrap();
    fs::write(tree_with(&node, "twice").join("twice"), "broken").unwrap();
    assert_eq!(damage(&node, image.id).await.len(), 1);
    // The mark outlives the daemon.
    drop(old);
    node.reopen();
    node.registry.forget_requests();
    node.pull(&reference).await.unwrap();
    assert_eq!(node.blobs().len(), 1);
    let read = |at: &PathBuf| fs::read_to_string(at.join("twice")).unwrap();
    let new = node.store.prepare("new", &image.layers).unwrap();
    let other = new.mount(false).unwrap();
    assert_eq!(
        (read(&path_of(&mounted)), read(&path_of(&other))),
        ("broken".into(), "second".into())
    );
    let retired = || fs::read_dir(node.root.join("retired")).unwrap().count();
    assert_eq!(retired(), 1);
    assert!(node.images.remove(&reference).await.unwrap());
    node.store.drain_trash();
    assert_eq!(
        fs::read(path_of(&mounted).join("bin/tool")).unwrap().len(),
        300_000
    );
    drop(mounted);
    node.store.remove("old").unwrap();
    assert_eq!(retired(), 0, "nobody shows it any more");
    assert_eq!(read(&path_of(&other)), "second");
    drop(other);
    node.store.remove("new").unwrap();
    node.assert_clean().await;
}
