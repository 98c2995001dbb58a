//! The store as its users see it: what survives, what is visible, what goes away.
#![cfg(test)]
#![expect(
    clippy::disallowed_types,
    reason = "tests copy a store with cp, as after a power cut"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wharf_store::{
    Durability, ImageCommit, LayerFacts, LayerPath, Name, Sealed, Store, StoreError,
};
use wharf_types::{DiffId, Digest, Kind};

struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn open(&self) -> Store {
        Store::open(&self.root(), Durability::None).unwrap()
    }

    /// Entries of a room of the state directory.
    fn entries(&self, room: &str) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.root().join(room))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn needs_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: {test}: needs root");
    }
    root
}

fn diff(name: &str) -> DiffId {
    DiffId(Digest::of(name.as_bytes()))
}

fn path_of(fd: impl std::os::fd::AsFd) -> PathBuf {
    use std::os::fd::AsRawFd as _;
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// A layer written by `fill`.
fn layer(store: &Store, name: &str, facts: LayerFacts, fill: impl FnOnce(&Path)) -> Arc<Sealed> {
    let ingest = store.ingest().unwrap();
    fill(&path_of(ingest.tree()));
    Arc::new(ingest.seal(diff(name), facts).unwrap())
}

fn facts(entries: u64) -> LayerFacts {
    LayerFacts {
        entries,
        content: 3,
        ..LayerFacts::default()
    }
}

fn name(text: &str) -> Name {
    Name {
        namespace: "k8s.io".to_owned(),
        reference: text.parse().unwrap(),
    }
}

/// Commits an image of the given layers; its id is the digest of `config`.
fn commit(store: &Store, config: &str, tag: &str, layers: &[Arc<Sealed>], ids: &[&str]) -> Digest {
    let lease = store.lease();
    let ids: Vec<_> = ids.iter().map(|n| diff(n)).collect();
    for id in &ids {
        lease.hold(*id);
    }
    let id = Digest::of(config.as_bytes());
    let done = store.commit_image(&ImageCommit {
        id,
        layers: &ids,
        sealed: layers,
        lease: &lease,
        blobs: &[(id, config.as_bytes())],
        names: &[name(tag)],
        target: id,
    });
    done.unwrap();
    id
}

#[test]
fn a_second_daemon_is_told_who_holds_the_directory() {
    let node = Node::new();
    let first = node.open();
    let error = Store::open(&node.root(), Durability::None).unwrap_err();
    assert!(
        error.to_string().contains(&std::process::id().to_string()),
        "{error}"
    );
    assert_eq!(error.kind(), Kind::Conflict);
    drop(first);
    node.open();
}

#[test]
fn an_image_is_there_after_a_restart_and_nothing_else_is() {
    let node = Node::new();
    let store = node.open();
    let a = layer(&store, "a", facts(1), |dir| {
        fs::write(dir.join("f"), "abc").unwrap();
    });
    let id = commit(&store, "config", "x/y:1", &[a], &["a"]);
    // A pull that is cut: sealed, but never committed; and one that is still writing.
    let cut = layer(&store, "cut", facts(1), |dir| {
        fs::write(dir.join("f"), "abc").unwrap();
    });
    let writing = store.ingest().unwrap();
    // The daemon is killed: no destructor runs, the lock goes with the process.
    let orphan = node.root().join("layers").join(diff("orphan").0.hex());
    fs::create_dir_all(orphan.join("tree")).unwrap();
    let copy = Node::new();
    let cp = std::process::Command::new("cp")
        .arg("-a")
        .arg(node.root())
        .arg(copy.root())
        .status();
    assert!(cp.unwrap().success());
    let again = copy.open();
    assert_eq!(again.images().len(), 1);
    assert_eq!(again.image(&id).unwrap().1.len(), 1);
    assert_eq!(again.blob(&id).unwrap(), b"config");
    assert!(!again.has_layer(diff("cut")) && !again.has_layer(diff("orphan")));
    again.drain_trash();
    assert_eq!(copy.entries("layers"), [diff("a").0.hex()]);
    assert!(copy.entries("ingest").is_empty() && copy.entries("trash").is_empty());
    drop((cut, writing));
    store.drain_trash();
    assert!(node.entries("ingest").is_empty());
}

#[test]
fn a_lost_or_broken_database_is_made_anew_from_the_sidecars() {
    for broken in [true, false] {
        let node = Node::new();
        let store = node.open();
        let a = layer(&store, "a", facts(1), |dir| {
            fs::write(dir.join("f"), "abc").unwrap();
        });
        let id = commit(&store, "config", "x/y:1", &[a], &["a"]);
        drop(store);
        let db = node.root().join("store.redb");
        if broken {
            fs::write(&db, b"not a database at all").unwrap();
        } else {
            fs::remove_file(&db).unwrap();
        }
        let store = node.open();
        let (record, names) = store.image(&id).unwrap();
        assert_eq!(record.layers, [diff("a")]);
        assert_eq!(names[0].0, name("x/y:1"));
        assert!(store.has_layer(diff("a")));
    }
}

#[test]
fn a_database_that_was_scribbled_over_anywhere_opens_with_all_images() {
    let node = Node::new();
    let store = node.open();
    let mut ids = Vec::new();
    for n in 0..20 {
        let name = format!("layer{n}");
        let one = layer(&store, &name, facts(1), |dir| {
            fs::write(dir.join("f"), "abc").unwrap();
        });
        let tag = format!("x/y:{n}");
        ids.push(commit(&store, &name, &tag, &[one], &[&name]));
    }
    ids.sort();
    drop(store);
    let path = node.root().join("store.redb");
    let good = fs::read(&path).unwrap();
    let used = |page: &[u8]| page.iter().any(|b| *b != 0);
    let pages: Vec<_> = (0..good.len() / 4096)
        .filter(|n| used(&good[n * 4096..(n + 1) * 4096]))
        .collect();
    assert!(pages.len() > 5, "{pages:?}");
    for page in pages {
        let mut bad = good.clone();
        bad[page * 4096..(page + 1) * 4096].fill(0xa5);
        fs::write(&path, bad).unwrap();
        let store = node.open();
        let found: Vec<_> = store.images().iter().map(|image| image.id).collect();
        assert_eq!(found, ids, "page {page}");
        assert!(ids.iter().all(|id| store.image(id).unwrap().1.len() == 1));
    }
}

#[test]
fn an_image_whose_layer_is_lost_is_forgotten_so_that_a_pull_repairs_it() {
    let node = Node::new();
    let store = node.open();
    let a = layer(&store, "a", facts(1), |_| {});
    commit(&store, "config", "x/y:1", &[a], &["a"]);
    drop(store);
    fs::remove_dir_all(node.root().join("layers").join(diff("a").0.hex())).unwrap();
    let store = node.open();
    assert!(store.images().is_empty() && store.name(&name("x/y:1")).is_none());
    let a = layer(&store, "a", facts(1), |_| {});
    commit(&store, "config", "x/y:1", &[a], &["a"]);
    assert_eq!(store.images().len(), 1);
}

#[test]
fn an_emptied_document_is_corrupt_and_the_next_pull_repairs_it() {
    let node = Node::new();
    let store = node.open();
    let id = commit(&store, "config", "x/y:1", &[], &[]);
    fs::write(node.root().join("blobs").join(id.hex()), b"").unwrap();
    assert_eq!(store.blob(&id).unwrap_err().kind(), Kind::Corrupt);
    commit(&store, "config", "x/y:1", &[], &[]);
    assert_eq!(store.blob(&id).unwrap(), b"config");
}

#[test]
fn removing_an_image_takes_all_its_names_and_only_layers_that_nobody_needs() {
    let node = Node::new();
    let store = node.open();
    let [a, b] = ["a", "b"].map(|n| layer(&store, n, facts(1), |_| {}));
    let one = commit(&store, "one", "x/y:1", &[a, b], &["a", "b"]);
    commit(&store, "one", "other/z:2", &[], &["a", "b"]);
    let two = commit(&store, "two", "x/y:2", &[], &["a"]);
    let before = store.usage();
    let removed: Vec<_> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..5)
            .map(|_| scope.spawn(|| store.remove_image(&one)))
            .collect();
        calls
            .into_iter()
            .map(|c| c.join().unwrap().unwrap())
            .collect()
    });
    assert_eq!(removed.iter().filter(|r| **r).count(), 1);
    assert!(store.name(&name("x/y:1")).is_none() && store.name(&name("other/z:2")).is_none());
    assert!(store.has_layer(diff("a")) && !store.has_layer(diff("b")));
    assert!(store.usage().bytes <= before.bytes);
    assert!(store.remove_image(&two).unwrap());
    store.drain_trash();
    for room in ["layers", "blobs", "trash", "images", "ingest"] {
        assert!(
            node.entries(room).is_empty(),
            "{room} {:?}",
            node.entries(room)
        );
    }
}

#[test]
fn a_name_that_moves_leaves_no_image_without_names() {
    let node = Node::new();
    let store = node.open();
    let one = commit(&store, "one", "x/y:1", &[], &[]);
    let two = commit(&store, "two", "x/y:1", &[], &[]);
    assert!(store.image(&one).is_none());
    assert_eq!(store.name(&name("x/y:1")).unwrap().image, two);
    drop(store);
    assert_eq!(node.open().images().len(), 1);
}

#[test]
fn a_lease_keeps_a_layer_until_it_ends() {
    let node = Node::new();
    let store = node.open();
    let a = layer(&store, "a", facts(1), |_| {});
    let id = commit(&store, "one", "x/y:1", &[a], &["a"]);
    let lease = store.lease();
    assert!(lease.hold(diff("a")) && !lease.hold(diff("b")));
    store.remove_image(&id).unwrap();
    assert!(store.has_layer(diff("a")));
    drop(lease);
    store.collect().unwrap();
    assert!(!store.has_layer(diff("a")));
}

#[test]
fn a_snapshot_keeps_its_layers_when_the_image_is_removed() {
    let node = Node::new();
    let store = node.open();
    let a = layer(&store, "a", facts(1), |_| {});
    let id = commit(&store, "one", "x/y:1", &[a], &["a"]);
    store.prepare("c1", &[diff("a")]).unwrap();
    assert!(store.remove_image(&id).unwrap());
    assert!(store.images().is_empty() && store.has_layer(diff("a")));
    drop(store);
    let store = node.open();
    assert!(store.has_layer(diff("a")), "also after a restart");
    assert_eq!(store.snapshots(), ["c1"]);
    store.remove("c1").unwrap();
    store.remove("c1").unwrap();
    assert!(!store.has_layer(diff("a")));
    store.drain_trash();
    assert!(node.entries("layers").is_empty() && node.entries("snapshots").is_empty());
}

#[test]
fn the_same_snapshot_twice_is_one_and_another_of_that_key_is_refused() {
    let node = Node::new();
    let store = node.open();
    let [a, b] = ["a", "b"].map(|n| layer(&store, n, facts(1), |_| {}));
    commit(&store, "one", "x/y:1", &[a, b], &["a", "b"]);
    store.prepare("c1", &[diff("a")]).unwrap();
    store.prepare("c1", &[diff("a")]).unwrap();
    let kind = |r: Result<_, StoreError>| r.map(|_| ()).unwrap_err().kind();
    assert_eq!(kind(store.prepare("c1", &[diff("b")])), Kind::AlreadyExists);
    assert_eq!(kind(store.prepare("c2", &[diff("zzz")])), Kind::NotFound);
    assert_eq!(kind(store.prepare("../c", &[])), Kind::Invalid);
    assert_eq!(store.snapshots(), ["c1"]);
}

#[test]
fn a_half_made_snapshot_of_a_dead_daemon_is_swept() {
    let node = Node::new();
    let store = node.open();
    store.prepare("c1", &[]).unwrap();
    drop(store);
    fs::remove_dir(node.root().join("snapshots/c1/work")).unwrap();
    let store = node.open();
    assert!(store.snapshots().is_empty());
    store.drain_trash();
    assert!(node.entries("snapshots").is_empty());
}

#[test]
fn usage_grows_with_what_a_container_writes() {
    let node = Node::new();
    let store = node.open();
    store.prepare("c1", &[]).unwrap();
    let upper = node.root().join("snapshots/c1/upper");
    fs::create_dir(upper.join("d")).unwrap();
    fs::write(upper.join("d/f"), vec![7; 100_000]).unwrap();
    fs::hard_link(upper.join("d/f"), upper.join("g")).unwrap();
    let usage = store.usage_of("c1").unwrap();
    assert_eq!(usage.inodes, 3, "the root, d, and one file with two names");
    assert!((100_000..300_000).contains(&usage.bytes), "{usage:?}");
}

#[test]
fn a_deep_and_wide_tree_leaves_the_trash() {
    let node = Node::new();
    let store = node.open();
    let ingest = store.ingest().unwrap();
    let mut at = ingest.tree().try_clone_to_owned().unwrap();
    for _ in 0..1500 {
        let mode = rustix::fs::Mode::from_raw_mode(0o755);
        rustix::fs::mkdirat(&at, "d", mode).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        at = rustix::fs::openat(&at, "d", flags, mode).unwrap();
    }
    let wide = path_of(ingest.tree());
    for n in 0..2000 {
        fs::write(wide.join(format!("f{n}")), "").unwrap();
    }
    drop(ingest);
    store.drain_trash();
    assert!(node.entries("trash").is_empty());
}

#[test]
fn a_snapshot_mounts_its_layers_and_takes_writes() {
    if !needs_root("a_snapshot_mounts_its_layers_and_takes_writes") {
        return;
    }
    let node = Node::new();
    let store = node.open();
    let a = layer(&store, "a", facts(2), |dir| {
        fs::write(dir.join("low"), "a").unwrap();
        fs::write(dir.join("both"), "a").unwrap();
    });
    let empty = layer(&store, "empty", facts(0), |_| {});
    let b = layer(&store, "b", facts(1), |dir| {
        fs::write(dir.join("both"), "b").unwrap();
    });
    let ids = ["a", "empty", "b", "empty", "a"];
    commit(&store, "one", "x/y:1", &[a, empty, b], &ids);
    let ids: Vec<_> = ids.iter().map(|n| diff(n)).collect();
    let snapshot = store.prepare("c1", &ids).unwrap();
    let mount = snapshot.mount(false).unwrap();
    let at = path_of(&mount);
    assert_eq!(fs::read_to_string(at.join("low")).unwrap(), "a");
    assert_eq!(
        fs::read_to_string(at.join("both")).unwrap(),
        "a",
        "repeated on top"
    );
    fs::write(at.join("new"), "n").unwrap();
    assert_eq!(fs::metadata(&at).unwrap().mode() & 0o7777, 0o755);
    drop(mount);
    // The next mount in the same boot works, although the first was without syncs.
    let mount = snapshot.mount(false).unwrap();
    assert_eq!(
        fs::read_to_string(path_of(&mount).join("new")).unwrap(),
        "n"
    );
    drop(mount);
    let mount = snapshot.mount(true).unwrap();
    let at = path_of(&mount);
    assert_eq!(fs::read_to_string(at.join("new")).unwrap(), "n");
    assert!(fs::write(at.join("other"), "").is_err());
    drop(mount);
    // An image without any layer is an empty root.
    let scratch = store.prepare("c2", &[]).unwrap();
    for readonly in [false, true] {
        let mount = scratch.mount(readonly).unwrap();
        assert_eq!(fs::read_dir(path_of(&mount)).unwrap().count(), 0);
    }
}

#[test]
fn a_hundred_layers_mount() {
    if !needs_root("a_hundred_layers_mount") {
        return;
    }
    let node = Node::new();
    let store = node.open();
    let names: Vec<_> = (0..100).map(|n| format!("layer{n}")).collect();
    let layers: Vec<_> = names
        .iter()
        .map(|n| {
            layer(&store, n, facts(1), |dir| {
                fs::write(dir.join(n), n).unwrap();
            })
        })
        .collect();
    let ids: Vec<_> = names.iter().map(String::as_str).collect();
    commit(&store, "one", "x/y:1", &layers, &ids);
    let ids: Vec<_> = names.iter().map(|n| diff(n)).collect();
    let mount = store.prepare("c1", &ids).unwrap().mount(false).unwrap();
    assert_eq!(fs::read_dir(path_of(&mount)).unwrap().count(), 100);
}

/// A layer with `tmp/x` but no `tmp/` must not change the mode of `tmp`; a whiteout in a directory
/// that nothing below has must not be seen.
#[test]
fn a_stack_is_corrected_where_only_the_whole_can_know() {
    if !needs_root("a_stack_is_corrected_where_only_the_whole_can_know") {
        return;
    }
    let node = Node::new();
    let store = node.open();
    let base = layer(&store, "base", facts(1), |dir| {
        fs::create_dir(dir.join("tmp")).unwrap();
        fs::set_permissions(dir.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        std::os::unix::fs::chown(dir.join("tmp"), Some(7), Some(8)).unwrap();
    });
    let path = |p: &str| LayerPath(p.as_bytes().to_vec());
    let above = LayerFacts {
        implied: vec![path("tmp"), path("own")],
        whiteouts_in: vec![path("own/deep")],
        ..facts(3)
    };
    let top = layer(&store, "top", above, |dir| {
        fs::create_dir(dir.join("tmp")).unwrap();
        fs::write(dir.join("tmp/x"), "x").unwrap();
        fs::create_dir_all(dir.join("own/deep")).unwrap();
        fs::set_permissions(dir.join("own/deep"), fs::Permissions::from_mode(0o710)).unwrap();
        let ghost = dir.join("own/deep/ghost");
        let mode = rustix::fs::Mode::empty();
        let (kind, cwd) = (rustix::fs::FileType::CharacterDevice, rustix::fs::CWD);
        rustix::fs::mknodat(cwd, &ghost, kind, mode, 0).unwrap();
        fs::write(dir.join("own/deep/real"), "").unwrap();
    });
    commit(&store, "one", "x/y:1", &[base, top], &["base", "top"]);
    let mount = store
        .prepare("c1", &[diff("base"), diff("top")])
        .unwrap()
        .mount(false)
        .unwrap();
    let at = path_of(&mount);
    let tmp = fs::metadata(at.join("tmp")).unwrap();
    assert_eq!((tmp.mode() & 0o7777, tmp.uid(), tmp.gid()), (0o1777, 7, 8));
    assert!(at.join("tmp/x").exists());
    assert_eq!(
        fs::metadata(at.join("own/deep")).unwrap().mode() & 0o7777,
        0o710
    );
    let names: Vec<_> = fs::read_dir(at.join("own/deep"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["real"]);
    drop(mount);
    // Without the image the correction goes too.
    store.remove_image(&Digest::of(b"one")).unwrap();
    store.remove("c1").unwrap();
    store.drain_trash();
    assert!(node.entries("layers").is_empty());
}

#[test]
fn a_writable_layer_from_before_a_reboot_is_refused() {
    if !needs_root("a_writable_layer_from_before_a_reboot_is_refused") {
        return;
    }
    let node = Node::new();
    let store = node.open();
    drop(store.prepare("c1", &[]).unwrap().mount(false).unwrap());
    drop(store);
    let record = node.root().join("snapshots/c1/snapshot.json");
    let text = fs::read_to_string(&record).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    fs::write(&record, text.replace(boot.trim(), "another")).unwrap();
    let error = node
        .open()
        .snapshot("c1")
        .unwrap()
        .mount(false)
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict, "{error}");
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
    let none = MountAttrFlags::empty();
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, none).unwrap()
}

#[test]
fn a_full_disk_refuses_new_images_and_lets_old_ones_go() {
    if !needs_root("a_full_disk_refuses_new_images_and_lets_old_ones_go") {
        return;
    }
    let disk = tmpfs("24m");
    let root = path_of(&disk).join("store");
    let store = Store::open(&root, Durability::None).unwrap();
    let a = layer(&store, "a", facts(1), |dir| {
        fs::write(dir.join("f"), vec![1; 1 << 20]).unwrap();
    });
    let id = commit(&store, "one", "x/y:1", &[a], &["a"]);
    let mut ballast = fs::File::create(path_of(&disk).join("ballast")).unwrap();
    use std::io::Write as _;
    let full = (0..).find_map(|_| ballast.write_all(&[0; 4096]).err());
    assert_eq!(full.unwrap().kind(), std::io::ErrorKind::StorageFull);
    let lease = store.lease();
    let new = Digest::of(b"two");
    let many: Vec<_> = (0..20_000).map(|n| name(&format!("x/y:tag-{n}"))).collect();
    let refused = store.commit_image(&ImageCommit {
        id: new,
        layers: &[],
        sealed: &[],
        lease: &lease,
        blobs: &[(new, b"two")],
        names: &many,
        target: new,
    });
    assert_eq!(refused.unwrap_err().kind(), Kind::Exhausted);
    assert!(store.image(&new).is_none());
    drop(lease);
    assert!(
        store.remove_image(&id).unwrap(),
        "also after a failed write"
    );
    store.drain_trash();
    drop(ballast);
    fs::remove_file(path_of(&disk).join("ballast")).unwrap();
    commit(&store, "three", "x/y:3", &[], &[]);
    drop(store);
    assert_eq!(
        Store::open(&root, Durability::None).unwrap().images().len(),
        1
    );
}

#[test]
fn snapshots_made_and_removed_by_many_at_once_stay_whole() {
    let node = Node::new();
    let store = node.open();
    let prepare = || (0..50).for_each(|_| drop(store.prepare("c1", &[]).unwrap()));
    let remove = || (0..50).for_each(|_| store.remove("c1").unwrap());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(prepare);
            scope.spawn(remove);
        }
    });
    let listed = store.snapshots();
    assert_eq!(
        listed,
        node.entries("snapshots"),
        "records and directories agree"
    );
    store.remove("c1").unwrap();
    assert!(node.entries("snapshots").is_empty());
}

#[test]
fn an_image_without_its_sidecar_is_committed_and_the_next_start_writes_it() {
    let node = Node::new();
    let store = node.open();
    let id = Digest::of(b"config");
    let (sidecar, obstacle) = (
        node.root().join(format!("images/{}.json", id.hex())),
        node.root().join(format!("images/.{}.json.new", id.hex())),
    );
    fs::create_dir(&obstacle).unwrap();
    commit(&store, "config", "x/y:1", &[], &[]);
    assert_eq!(store.images().len(), 1);
    assert!(!sidecar.exists());
    drop(store);
    fs::remove_dir(&obstacle).unwrap();
    drop(node.open());
    assert!(sidecar.exists());
    fs::remove_file(node.root().join("store.redb")).unwrap();
    assert_eq!(node.open().images()[0].id, id);
}

#[test]
fn a_failed_commit_leaves_no_draft() {
    let node = Node::new();
    let store = node.open();
    let id = Digest::of(b"config");
    // What cannot be replaced is in the way.
    fs::create_dir(node.root().join("blobs").join(id.hex())).unwrap();
    let lease = store.lease();
    let failed = store.commit_image(&ImageCommit {
        id,
        layers: &[],
        sealed: &[],
        lease: &lease,
        blobs: &[(Digest::of(b"other"), b"other"), (id, b"config")],
        names: &[name("x/y:1")],
        target: id,
    });
    failed.unwrap_err();
    assert!(store.images().is_empty());
    assert!(node.entries("ingest").is_empty());
}

#[test]
fn a_snapshot_that_cannot_be_read_is_kept_with_all_layers_until_it_is_removed() {
    let node = Node::new();
    let store = node.open();
    let a = layer(&store, "a", facts(1), |_| {});
    let id = commit(&store, "one", "x/y:1", &[a], &["a"]);
    store.prepare("c1", &[diff("a")]).unwrap();
    drop(store);
    let home = node.root().join("snapshots/c1");
    fs::write(home.join("upper/precious"), "data").unwrap();
    let record = fs::read_to_string(home.join("snapshot.json")).unwrap();
    fs::write(
        home.join("snapshot.json"),
        record.replace("\"v\":1", "\"v\":99"),
    )
    .unwrap();
    let store = node.open();
    assert!(store.remove_image(&id).unwrap());
    assert!(store.has_layer(diff("a")), "its container may be running");
    assert_eq!(store.snapshots(), ["c1"]);
    for error in [
        store.snapshot("c1").unwrap_err(),
        store.prepare("c1", &[diff("a")]).unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(text.contains("is kept") && text.contains("newer"), "{text}");
    }
    assert!(home.join("upper/precious").exists());
    drop(store);
    // The newer daemon is back.
    fs::write(home.join("snapshot.json"), record).unwrap();
    let store = node.open();
    store.snapshot("c1").unwrap();
    assert!(home.join("upper/precious").exists());
    drop(store);
    fs::write(home.join("snapshot.json"), "{\"v\":99}").unwrap();
    let store = node.open();
    store.remove("c1").unwrap();
    assert!(store.snapshots().is_empty() && !store.has_layer(diff("a")));
    store.drain_trash();
    assert!(node.entries("snapshots").is_empty() && node.entries("layers").is_empty());
}

#[test]
fn a_snapshot_whose_layer_is_lost_keeps_what_was_written() {
    let node = Node::new();
    let store = node.open();
    let a = layer(&store, "a", facts(1), |_| {});
    commit(&store, "one", "x/y:1", &[a], &["a"]);
    store.prepare("c1", &[diff("a")]).unwrap();
    drop(store);
    fs::remove_dir_all(node.root().join("layers").join(diff("a").0.hex())).unwrap();
    let store = node.open();
    assert!(store.images().is_empty());
    let error = store.snapshot("c1").unwrap().mount(true).unwrap_err();
    assert!(
        error.to_string().contains(&diff("a").0.hex()),
        "it names the layer: {error}"
    );
}

#[test]
fn a_corrected_directory_inherits_nothing_from_its_parent() {
    if !needs_root("a_corrected_directory_inherits_nothing_from_its_parent") {
        return;
    }
    let node = Node::new();
    let store = node.open();
    let acl: Vec<u8> = std::iter::once(2_u32.to_le_bytes().to_vec())
        .chain(
            [(1, 7), (2, 7), (4, 5), (16, 7), (32, 5)].map(|(tag, rights): (u16, u16)| {
                let id: u32 = if tag == 2 { 1234 } else { u32::MAX };
                let parts = [&tag.to_le_bytes()[..], &rights.to_le_bytes()];
                [&parts.concat()[..], &id.to_le_bytes()].concat()
            }),
        )
        .flatten()
        .collect();
    let flags = rustix::fs::XattrFlags::empty();
    let base = layer(&store, "base", facts(2), |dir| {
        fs::create_dir_all(dir.join("d/sub")).unwrap();
        fs::set_permissions(dir.join("d/sub"), fs::Permissions::from_mode(0o700)).unwrap();
        let set = rustix::fs::setxattr(dir.join("d"), "system.posix_acl_default", &acl, flags);
        set.unwrap();
    });
    let path = |p: &str| LayerPath(p.as_bytes().to_vec());
    let above = LayerFacts {
        implied: vec![path("d"), path("d/sub")],
        ..facts(3)
    };
    let top = layer(&store, "top", above, |dir| {
        fs::create_dir_all(dir.join("d/sub")).unwrap();
        fs::write(dir.join("d/sub/x"), "x").unwrap();
    });
    commit(&store, "one", "x/y:1", &[base, top], &["base", "top"]);
    let fix = node.entries("layers");
    let fix = fix.iter().find(|name| name.starts_with("fix-")).unwrap();
    let tree = node.root().join("layers").join(fix).join("tree");
    let names = |at: PathBuf| {
        let mut names = vec![0_u8; 4096];
        let n = rustix::fs::listxattr(at, names.as_mut_slice()).unwrap();
        String::from_utf8(names[..n].to_vec()).unwrap()
    };
    assert_eq!(names(tree.join("d")), "system.posix_acl_default\0");
    assert_eq!(names(tree.join("d/sub")), "");
    assert_eq!(
        fs::metadata(tree.join("d/sub")).unwrap().mode() & 0o777,
        0o700
    );
}
