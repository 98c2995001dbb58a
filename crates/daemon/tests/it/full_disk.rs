//! The disk is full, has no inodes left, or cannot be written: each call says so by code and in words,
//! leaves nothing, and succeeds when there is space again. Removals need none.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tonic::{Code, Status};
use wharf_testkit::cri;
use wharf_testkit::faults::Fault;
use wharf_testkit::forgetful::Loop;
use wharf_testkit::image::{Image, Layer};
use wharf_testkit::tar::Entry;
use wharf_testkit::wait;

use crate::scene::{BUSYBOX, SOON, Scene, above_busybox, busybox, skips};

const ENOSPC: i32 = 28;
const EROFS: i32 = 30;
/// Steps that only read: what fails there is the layer, whatever the number.
const READS: [&str; 2] = ["pull: layer verified", "pull: piece of a layer taken"];

/// A file system of its own for what a node keeps, in memory.
struct Small {
    device: Loop,
    _dir: tempfile::TempDir,
}

impl Small {
    fn new(bytes: u64, more: &[&str]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("wharf-test-")
            .tempdir_in("/dev/shm")
            .unwrap();
        let file = dir.path().join("disk");
        File::create(&file).unwrap().set_len(bytes).unwrap();
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-m", "0"]).args(more).arg(&file);
        assert!(mkfs.status().unwrap().success());
        Self {
            device: Loop::on(&file).unwrap(),
            _dir: dir,
        }
    }
}

fn scene(test: &str, disk: &Small) -> Scene {
    let options = "noinit_itable";
    let scene = Scene::built(test, |node| {
        node.faults().disk(disk.device.device(), options)
    });
    let scene = scene.expect("root, as was asked before");
    scene.registry.add("it/busybox", "1", &busybox());
    scene.registry.add("it/wanted", "1", &wanted());
    scene
}

const WANTED: &str = "registry.test/it/wanted:1";

/// 40 files of 100 kB above busybox.
fn wanted() -> Image {
    let files: Vec<_> = (0..40)
        .map(|n| Entry::file(&format!("files/{n}"), vec![b'x'; 100_000]))
        .collect();
    above_busybox(&[Layer::of(&files)]).build()
}

/// Takes all space but `left` bytes; what it wrote goes with `ballast`.
fn fill(ballast: &Path, left: usize) {
    let mut file = File::create(ballast).unwrap();
    let rest = ballast.with_extension("rest");
    fs::write(&rest, vec![1; left]).unwrap();
    for size in [1 << 20, 64 << 10, 4 << 10] {
        let block = vec![1; size];
        while file.write_all(&block).is_ok() {}
    }
    file.sync_all().ok();
    fs::remove_file(rest).unwrap();
}

fn unfill(ballast: &Path) {
    fs::remove_file(ballast).unwrap();
}

/// Nothing half-made.
fn nothing_half_made(root: &Path, after: &str) {
    let left = || -> Vec<PathBuf> {
        let rooms = ["ingest", "trash"].map(|room| fs::read_dir(root.join(room)).unwrap());
        rooms
            .into_iter()
            .flatten()
            .map(|e| e.unwrap().path())
            .collect()
    };
    wait::until(SOON, || Ok(left().is_empty())).unwrap();
    assert_eq!(left(), Vec::<PathBuf>::new(), "{after}");
}

fn exhausted(answer: Result<String, Status>, what: &str) {
    let status = answer.expect_err(what);
    assert_eq!(status.code(), Code::ResourceExhausted, "{what}: {status:?}");
    let text = status.message();
    let named = text.contains("no space") && text.contains("/root");
    assert!(named && text.contains("remove unused"), "{what}: {text}");
}

#[test]
fn on_a_full_disk_pulls_and_creates_are_refused_removals_work_and_space_mends_it() {
    if skips("on_a_full_disk") {
        return;
    }
    let disk = Small::new(48 << 20, &[]);
    let scene = scene("on_a_full_disk", &disk);
    let root = scene.node.root_from_here();
    let ballast = root.join("ballast");
    scene.cri().pull(BUSYBOX).unwrap();
    let config = cri::pod("p", &scene.node.logs());
    for left in [0, 100 << 10, 1 << 20, 3 << 20] {
        fill(&ballast, left);
        exhausted(scene.cri().pull(WANTED), &format!("{left} bytes were left"));
        nothing_half_made(&root, "at the end");
        unfill(&ballast);
        scene.cri().pull(WANTED).unwrap();
        fill(&ballast, 0);
        scene.cri().remove_image(WANTED).unwrap();
        unfill(&ballast);
        nothing_half_made(&root, "at the end");
    }
    fill(&ballast, 0);
    let status = scene.cri().run_pod(&config, "");
    let pod = match status {
        // A record may find room in a block that is there.
        Ok(pod) => pod,
        Err(status) => {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
            unfill(&ballast);
            let pod = scene.cri().run_pod(&config, "").unwrap();
            fill(&ballast, 0);
            pod
        }
    };
    let container = cri::container("c", BUSYBOX, &["sleep", "1000"]);
    if let Err(status) = scene.cri().create(&pod, &container, &config) {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        unfill(&ballast);
        scene.cri().create(&pod, &container, &config).unwrap();
        fill(&ballast, 0);
    }
    // Everything can be taken down without space.
    scene.cri().stop_pod(&pod).unwrap();
    scene.cri().remove_pod(&pod).unwrap();
    scene.cri().remove_image(BUSYBOX).unwrap();
    unfill(&ballast);
    nothing_half_made(&root, "at the end");
    scene.cri().pull(WANTED).unwrap();
}

#[test]
fn without_inodes_a_pull_is_refused_and_a_removal_frees_them() {
    if skips("without_inodes") {
        return;
    }
    let disk = Small::new(48 << 20, &["-N", "400"]);
    let scene = scene("without_inodes", &disk);
    let root = scene.node.root_from_here();
    scene.cri().pull(WANTED).unwrap();
    let ballast = root.join("ballast");
    fs::create_dir(&ballast).unwrap();
    let mut n = 0;
    while File::create(ballast.join(n.to_string())).is_ok() {
        n += 1;
    }
    scene
        .registry
        .add("it/more", "1", &wharf_testkit::samples::hello("more"));
    exhausted(scene.cri().pull("registry.test/it/more:1"), "no inodes");
    scene.cri().remove_image(WANTED).unwrap();
    let pulled = || Ok(scene.cri().pull("registry.test/it/more:1").is_ok());
    assert!(
        wait::until(SOON, pulled).unwrap(),
        "the removed image's inodes are free"
    );
    fs::remove_dir_all(&ballast).unwrap();
    nothing_half_made(&root, "at the end");
}

/// At each step that the operation passes, the first and the last time.
#[test]
fn at_each_step_of_a_pull_and_a_removal_no_space_and_read_only_are_said_and_mended() {
    if skips("at_each_step_of_a_pull") {
        return;
    }
    let disk = Small::new(48 << 20, &[]);
    let scene = scene("at_each_step_of_a_pull", &disk);
    let root = scene.node.root_from_here();
    scene.cri().pull(BUSYBOX).unwrap();
    let faults = scene.node.faults();
    let passed = |work: &dyn Fn()| {
        let before = faults.hits().unwrap();
        work();
        let mut hits = faults.hits().unwrap();
        hits.retain(|name, count| {
            *count -= before.get(name).copied().unwrap_or(0);
            *count > 0
        });
        hits
    };
    let pull = || drop(scene.cri().pull(WANTED).unwrap());
    let remove = || scene.cri().remove_image(WANTED).unwrap();
    let (pulling, removing) = (passed(&pull), passed(&remove));
    assert!(
        pulling.len() > 5 && removing.len() > 1,
        "{pulling:?} {removing:?}"
    );
    let (mut refused, mut wrong) = (0, Vec::new());
    let mut look = |point: &str, answer: Result<(), Status>, code: Code| {
        let reads = READS.contains(&point);
        let code = if reads { Code::DataLoss } else { code };
        if let Err(status) = answer {
            refused += 1;
            wrong.extend((status.code() != code).then(|| format!("{point}: {status:?}")));
        }
        nothing_half_made(&root, point);
    };
    for (number, code) in [(ENOSPC, Code::ResourceExhausted), (EROFS, Code::Internal)] {
        for (point, count) in &pulling {
            let both = [1, *count];
            for nth in &both[..both.len().min(usize::try_from(*count).unwrap())] {
                faults.plan(point, *nth, Fault::Error(number)).unwrap();
                let answer = scene.cri().pull(WANTED).map(drop);
                faults.clear().unwrap();
                look(point, answer, code);
                pull();
                remove();
            }
        }
        for point in removing.keys() {
            pull();
            faults.plan(point, 1, Fault::Error(number)).unwrap();
            let answer = scene.cri().remove_image(WANTED);
            faults.clear().unwrap();
            look(point, answer, code);
            remove();
        }
    }
    println!(
        "{refused} refusals at {} steps",
        pulling.len() + removing.len()
    );
    assert_eq!(wrong, Vec::<String>::new());
    assert!(refused > 10);
}
