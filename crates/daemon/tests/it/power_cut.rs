//! The power is cut at random moments, on a disk that forgets what was not synced: the store opens, what
//! was answered is there, and nothing half-made is seen.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use wharf_store::{Durability, Store};
use wharf_testkit::cri;
use wharf_testkit::forgetful::{Dice, Forgetful, Loop};
use wharf_testkit::image::{Builder, Flavour, Image, Layer};
use wharf_testkit::machine;
use wharf_testkit::node::Node;
use wharf_testkit::place::Place;
use wharf_testkit::registry::Registry;
use wharf_testkit::tar::Entry;

use crate::scene::{BUSYBOX, SOON, busybox, serve, skips};

/// Bytes of the disk.
const SIZE: usize = 64 << 20;
/// Images that come and go.
const IMAGES: usize = 3;
/// Pulls and removals of one run.
const ROUNDS: usize = 12;
/// Moments at which the power is cut.
const CUTS: u64 = 24;
/// After every such cut a daemon starts, too.
const DAEMON_EVERY: u64 = 6;

/// A request, and what the log of the disk was when it was made and when it was answered.
#[derive(Debug)]
struct Act {
    image: usize,
    pulled: bool,
    asked: usize,
    answered: usize,
}

fn reference(image: usize) -> String {
    format!("registry.test/it/cut{image}:1")
}

/// A layer that all share, and one of its own: many small files and some larger ones.
fn image(number: usize) -> Image {
    let mut dice = Dice::new(u64::try_from(number).unwrap());
    let mut noise = |length: usize| -> Vec<u8> {
        (0..length)
            .map(|_| u8::try_from(dice.below(256)).unwrap())
            .collect()
    };
    let shared: Vec<_> = (0..20)
        .map(|n| Entry::file(&format!("shared/{n}"), vec![b'a'; n * 700]))
        .collect();
    let mut own: Vec<_> = (0..60)
        .map(|n| Entry::file(&format!("own/{n}"), noise(n * 50)))
        .collect();
    own.push(Entry::file("large", noise(200_000)));
    own.push(Entry::link("linked", "large"));
    Builder::new(Flavour::Oci, [Layer::of(&shared), Layer::of(&own)])
        .cmd(&["x"])
        .build()
}

fn ext4(file: &Path) -> io::Result<()> {
    let mut mkfs = Command::new("mkfs.ext4");
    let status = mkfs.args(["-q", "-F", "-m", "0"]).arg(file).status()?;
    status
        .success()
        .then_some(())
        .ok_or_else(|| io::Error::other("mkfs.ext4 failed"))
}

/// Pulls, removals, pods and containers; gives what was asked and answered when.
fn live(node: &Node, disk: &Forgetful) -> Vec<Act> {
    let cri = node.cri();
    cri.pull(BUSYBOX).unwrap();
    let mut there = BTreeSet::new();
    let mut acts = Vec::new();
    let mut dice = Dice::new(7);
    for round in 0..ROUNDS {
        let image = round % IMAGES;
        for pulled in [true, false] {
            let image = if pulled { image } else { (image + 1) % IMAGES };
            if pulled == there.contains(&image) {
                continue;
            }
            let asked = disk.moment();
            if pulled {
                cri.pull(&reference(image)).unwrap();
                there.insert(image);
            } else {
                cri.remove_image(&reference(image)).unwrap();
                there.remove(&image);
            }
            let answered = disk.moment();
            acts.push(Act {
                image,
                pulled,
                asked,
                answered,
            });
        }
        let config = cri::pod(&format!("pod{round}"), &node.logs());
        let pod = cri.run_pod(&config, "").unwrap();
        let container = cri::container("c", BUSYBOX, &["sleep", "1000"]);
        let id = cri.create(&pod, &container, &config).unwrap();
        if dice.below(2) == 0 {
            cri.start(&id).unwrap();
        }
        if dice.below(2) == 0 {
            cri.stop_pod(&pod).unwrap();
            cri.remove_pod(&pod).unwrap();
        }
    }
    acts
}

/// What must be there, and what must not, when the power is cut at `moment`.
fn known(acts: &[Act], moment: usize) -> Vec<(usize, bool)> {
    let last = |image| acts.iter().rfind(|a| a.image == image && a.asked <= moment);
    let known = (0..IMAGES)
        .filter_map(last)
        .filter(|a| a.answered <= moment);
    known.map(|act| (act.image, act.pulled)).collect()
}

/// The store as it is after the cut: it opens, everything that it shows is whole, and it shows what it
/// must.
fn look(root: &Path, expected: &[(usize, bool)], cut: &str) {
    let store = Store::open(root, Durability::Image).unwrap_or_else(|e| panic!("{cut}: {e:?}"));
    let ids: Vec<_> = store.images().iter().map(|image| image.id).collect();
    for checked in store.check(&ids) {
        assert!(
            checked.damage.is_empty() && checked.unlisted.is_empty(),
            "{cut}: {checked:?}"
        );
    }
    for (image, there) in expected {
        let name = wharf_store::Name {
            namespace: "k8s.io".to_owned(),
            reference: reference(*image).parse().unwrap(),
        };
        assert_eq!(store.name(&name).is_some(), *there, "{cut}: {name:?}");
    }
    store.drain_trash();
    for room in ["ingest", "trash", "retired"] {
        let left = fs::read_dir(root.join(room)).unwrap().count();
        assert_eq!(left, 0, "{cut}: {room}");
    }
}

#[test]
fn after_a_power_cut_what_was_answered_is_there_and_nothing_half_made_is_seen() {
    if skips("after_a_power_cut") {
        return;
    }
    let place = Place::own().unwrap();
    let registry = Registry::start_in(&place).unwrap();
    registry.add("it/busybox", "1", &busybox());
    for number in 0..IMAGES {
        registry.add(&format!("it/cut{number}"), "1", &image(number));
    }
    let disk = Forgetful::new(SIZE, ext4).unwrap();
    let node = Node::wharf()
        .place(&place)
        .disk(disk.device(), "noinit_itable");
    let mut node = node.start().unwrap();
    serve(&node, "registry.test", &registry.url());
    let begin = disk.moment();
    let acts = live(&node, &disk);
    let end = disk.moment();
    let off = |node: &mut Node| {
        node.kill().unwrap();
        machine::end_processes(node.name()).unwrap();
        let gone = || node.unmount_root().map(|()| true).or(Ok(false));
        assert!(wharf_testkit::wait::until(SOON, gone).unwrap());
        // What was below /run ended with the boot.
        for entry in fs::read_dir(node.state()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                fs::remove_dir_all(path).unwrap();
            } else {
                fs::remove_file(path).unwrap();
            }
        }
    };
    off(&mut node);
    // In memory: what is synced there waits for no disk.
    let dir = tempfile::Builder::new()
        .prefix("wharf-test-")
        .tempdir_in("/dev/shm")
        .unwrap();
    let (mut dice, mut demanded) = (Dice::new(1), 0);
    for seed in 0..CUTS {
        let span = u64::try_from(end - begin).unwrap();
        let moment = begin + usize::try_from(dice.below(span)).unwrap();
        let expected = known(&acts, moment);
        demanded += expected.iter().filter(|(_, there)| *there).count();
        let cut = format!("seed {seed}, moment {moment} of {begin} to {end}");
        let file = dir.path().join("cut");
        disk.cut(moment, seed, &file).unwrap();
        let device = Loop::on(&file).unwrap();
        node.mount_root(device.device(), "noinit_itable").unwrap();
        look(&node.root_from_here(), &expected, &cut);
        if seed % DAEMON_EVERY == 0 {
            // Records of pods and containers are readable, or absent.
            node.run().unwrap_or_else(|e| panic!("{cut}: {e}"));
            let removed = node.cri().remove_all_pods();
            removed.unwrap_or_else(|e| panic!("{cut}: {e}"));
            off(&mut node);
        } else {
            node.unmount_root().unwrap();
        }
        drop(device);
    }
    println!("{end} writes and barriers, {demanded} times an image had to be there");
    assert!(demanded > 10, "the cuts show something");
}
