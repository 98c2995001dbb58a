//! Churn: clients that start, use and remove pods and images at random while everything around them
//! fails, and a look at the machine before and after.
//!
//! ```text
//! clients (threads) ──CRI──► wharf ◄──killed, stopped, cut off── troubles (one thread)
//!      └──── what was answered, what failed ────► report ◄──── look before, look after
//! ```
//!
//! In the first half every kind of fault takes place; in the second half daemon and zygote live on, so
//! that what they lose can be seen.

mod random;
mod tally;
mod worker;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::image::{Builder, Flavour, Layer};
use crate::machine::{self, Machine, Process};
use crate::node::Node;
use crate::place::Place;
use crate::registry::{Act, On, Registry};
use crate::tar::Entry;
use crate::{cri, debian, wait};
use random::Random;
pub use tally::{Report, Size};
use worker::{Shared, Worker};

/// Images that come and go, beside the one that stays.
const IMAGES: usize = 4;
/// Bytes of noise in each.
const NOISE: usize = 400_000;
/// How long the end may take: removals, connections that are kept for a while, and the trash, which is
/// emptied with the lowest priority.
const SETTLE: Duration = Duration::from_secs(300);
/// Pods that are run before the first look, so that caches are filled.
const WARM_UP: usize = 10;

/// What a soak shall be like.
#[derive(Clone, Debug)]
pub struct Soak {
    /// Of all choices; what the machine makes of them differs from run to run.
    pub seed: u64,
    /// How long requests and faults go on.
    pub length: Duration,
    /// Clients at the same time.
    pub clients: usize,
    /// The folder of the programs; `None`: what this workspace built.
    pub programs: Option<PathBuf>,
}

impl Soak {
    /// Runs it. Needs root.
    ///
    /// # Errors
    /// No node can be had, or it does not come back after it was killed.
    pub fn run(&self) -> io::Result<Report> {
        let place = Place::own()?;
        let registry = Registry::start_in(&place)?;
        let images = images(&registry)?;
        let mut builder = Node::wharf().place(&place);
        builder = builder.mirror("registry.test", &registry.url());
        if let Some(dir) = &self.programs {
            builder = builder.programs(dir);
        }
        let mut node = builder.start()?;
        warm_up(&node, &images)?;
        let before = (settled(&node)?, sizes(&node));
        let shared = Arc::new(Shared {
            socket: node.socket(),
            logs: node.logs(),
            images: images.clone(),
            end: AtomicBool::new(false),
            report: Mutex::new(Report {
                seed: self.seed,
                seconds: self.length.as_secs(),
                ..Report::default()
            }),
        });
        let clients: Vec<_> = (0..self.clients)
            .map(|number| {
                let seed = self.seed.wrapping_mul(1000).wrapping_add(number as u64);
                let worker = Worker::new(number, seed, Arc::clone(&shared));
                std::thread::spawn(move || worker.run())
            })
            .collect();
        let troubled = self.trouble(&mut node, &registry, &shared);
        shared.end.store(true, Ordering::SeqCst);
        for client in clients {
            if client.join().is_err() {
                shared.report().unexpected("a client panicked".into());
            }
        }
        let mut report = shared.report().clone();
        troubled?;
        finish(&node, &images, before, &mut report)?;
        Ok(report)
    }

    /// Faults until the time is over.
    fn trouble(&self, node: &mut Node, registry: &Registry, shared: &Shared) -> io::Result<()> {
        let mut random = Random::new(!self.seed);
        let begin = Instant::now();
        let mut is_late = false;
        while begin.elapsed() < self.length {
            std::thread::park_timeout(random.pause(100, 900));
            if !is_late && begin.elapsed() > self.length / 2 {
                node.restart()?;
                is_late = true;
            }
            // The first kinds only before half time.
            let kind = match is_late {
                false => random.below(11),
                true => 5 + random.below(6),
            };
            match kind {
                0..2 => {
                    shared.report().fault("daemon killed");
                    node.restart()?;
                }
                2 => {
                    shared.report().fault("daemon ended and begun");
                    node.terminate()?;
                    node.run()?;
                }
                3..5 => {
                    if let Some(zygote) = node.shims().iter().find(|p| p.name == "wharf-zygote") {
                        shared.report().fault("zygote killed");
                        signal(zygote, Signal::KILL);
                    }
                }
                5..7 => kill_shim(node, shared, &mut random),
                7..9 => stop_shim(node, shared, &mut random),
                _ => spoil(registry, shared, &mut random),
            }
        }
        Ok(())
    }
}

fn images(registry: &Registry) -> io::Result<Vec<String>> {
    let busybox = Layer::of(&debian::busybox_root()?);
    let mut random = Random::new(7);
    let mut names = Vec::new();
    for n in 0..=IMAGES {
        let noise: Vec<u8> = (0..NOISE)
            .map(|_| u8::try_from(random.below(256)).unwrap_or(0))
            .collect();
        let layer = Layer::of(&[Entry::file("noise", noise)]);
        let layers = [busybox.clone(), layer];
        let image = Builder::new(Flavour::Oci, layers).cmd(&["sh"]).build();
        let name = format!("soak/app{n}");
        registry.add(&name, "1", &image);
        names.push(format!("registry.test/{name}:1"));
    }
    Ok(names)
}

/// What a process keeps from its first requests on is there afterwards.
fn warm_up(node: &Node, images: &[String]) -> io::Result<()> {
    let image = images.first().map_or("", String::as_str);
    let cri = node.cri();
    let result = cri.pull(image).and_then(|_| {
        for n in 0..WARM_UP {
            let pod = cri::pod(&format!("warm-{n}"), &node.logs());
            let id = cri.run_pod(&pod, "")?;
            let config = cri::container("c", image, &["sleep", "1000"]);
            let container = cri.create(&id, &config, &pod)?;
            cri.start(&container)?;
            cri.exec(&container, &["true"], 20)?;
            cri.stop_pod(&id)?;
            cri.remove_pod(&id)?;
        }
        Ok(())
    });
    result.map_err(io::Error::other)
}

/// A look at a node that has nothing to do.
fn settled(node: &Node) -> io::Result<Machine> {
    let quiet = || {
        let trash = Machine::default().changes(&node.look());
        let shims = node.shims();
        Ok(!shims.iter().any(|p| p.name == "wharf-shim")
            && !trash.iter().any(|l| l.contains("/root/trash/")))
    };
    wait::until(SETTLE, quiet)?;
    Ok(node.look())
}

fn signal(process: &Process, signal: Signal) {
    if let Some(pid) = Pid::from_raw(process.pid) {
        let _it_may_be_gone = kill_process(pid, signal);
    }
}

/// Some shim with the id of its pod.
fn some_shim(node: &Node, random: &mut Random) -> Option<(Process, String)> {
    let mut shims = node.shims();
    shims.retain(|p| p.name == "wharf-shim");
    let shim = random.one(&shims)?.clone();
    let hex = |word: &&str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let pod = shim.command.split(' ').find(hex)?.to_owned();
    Some((shim, pod))
}

fn kill_shim(node: &Node, shared: &Shared, random: &mut Random) {
    if let Some((shim, pod)) = some_shim(node, random) {
        let mut report = shared.report();
        report.fault("shim killed");
        report.harmed.insert(pod);
        signal(&shim, Signal::KILL);
    }
}

fn stop_shim(node: &Node, shared: &Shared, random: &mut Random) {
    if let Some((shim, _)) = some_shim(node, random) {
        shared.report().fault("shim stopped for a while");
        signal(&shim, Signal::STOP);
        std::thread::park_timeout(random.pause(50, 2500));
        signal(&shim, Signal::CONT);
    }
}

fn spoil(registry: &Registry, shared: &Shared, random: &mut Random) {
    let acts = [
        Act::Cut(10_000),
        Act::Status(503),
        Act::WrongBytes,
        Act::Slow(16 << 10, Duration::from_millis(30)),
        Act::Stall(5000),
    ];
    if let Some(act) = random.one(&acts) {
        shared.report().fault("registry misbehaves");
        registry.fail(On::Blobs, act.clone());
        std::thread::park_timeout(random.pause(100, 1500));
        registry.heal();
        registry.forget_requests();
    }
}

/// What, how much, and how much more is no difference.
fn sizes(node: &Node) -> Vec<(&'static str, u64, u64)> {
    let zygote = node.shims().into_iter().find(|p| p.name == "wharf-zygote");
    let zygote = zygote.map_or(0, |p| p.pid);
    let count = |pid: i32, what: &str| {
        let dir = std::fs::read_dir(format!("/proc/{pid}/{what}"));
        dir.map_or(0, |d| d.count() as u64)
    };
    let memory = |pid| machine::anonymous(pid).unwrap_or(0);
    let daemon = node.pid();
    vec![
        ("descriptors of the daemon", count(daemon, "fd"), 0),
        ("memory of the daemon, KiB (own)", memory(daemon), 24 << 10),
        ("descriptors of the zygote", count(zygote, "fd"), 0),
        ("memory of the zygote, KiB (own)", memory(zygote), 512),
    ]
}

/// Removes everything, and looks what stays.
fn finish(
    node: &Node,
    images: &[String],
    (before, sizes_before): (Machine, Vec<(&'static str, u64, u64)>),
    report: &mut Report,
) -> io::Result<()> {
    let mut last = String::new();
    let removed = wait::until(SETTLE, || {
        if let Err(status) = node.cri().remove_all_pods() {
            last = status.to_string();
        }
        Ok(node.cri().pods().is_ok_and(|pods| pods.is_empty()))
    })?;
    if !removed {
        report.unexpected(format!("pods are not removed: {last}"));
    }
    for image in images.get(1..).unwrap_or_default() {
        if let Err(status) = node.cri().remove_image(image) {
            report.unexpected(format!("remove {image}: {status}"));
        }
    }
    // Connections to registries are kept for a while.
    let idle = |now: &[(&str, u64, u64)]| {
        let mut both = now.iter().zip(&sizes_before);
        both.all(|(now, then)| now.1 <= then.1 + then.2)
    };
    wait::until(SETTLE, || {
        Ok(before.changes_of_things(&node.look()).is_empty() && idle(&sizes(node)))
    })?;
    report.changes = before.changes_of_things(&node.look());
    report.sizes = sizes(node)
        .into_iter()
        .zip(sizes_before)
        .map(|((what, after, slack), (_, before, _))| Size {
            what,
            before,
            after,
            slack,
        })
        .collect();
    Ok(())
}
