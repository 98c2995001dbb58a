//! Benchmarks against peers: all contestants in one run, in turns, so that the machine's moods meet
//! them alike. A row's figure is the median of the medians of several runs.

mod report;
mod bridge;
mod pod;
mod network;
mod pull;
mod restart;
mod stats;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use wharf_testkit::node::{Builder, Node, Subject};
use wharf_testkit::place::Place;
use wharf_testkit::real_registry::RealRegistry;
use wharf_testkit::{cache, containerd};

use crate::args::Args;
use crate::cargo::{build, output, text};
use crate::setup;

/// What both benchmarks take from the command line.
#[derive(Debug)]
pub(crate) struct Options {
    json: Option<PathBuf>,
    rounds: usize,
    runs: usize,
    idle: usize,
    pods: usize,
    peers_only: bool,
    programs: Option<PathBuf>,
    /// Pods get a bridge network, of the same kind on all sides; else the place's own.
    bridge: bool,
}

/// `cargo xtask bench`.
pub(crate) fn run(mut args: Args) -> Result<(), String> {
    let what = args.word();
    let rounds: usize = match what.as_deref() {
        Some("pull" | "restart") => 3,
        _ => 20,
    };
    let options = Options {
        json: args.option("--json")?.map(PathBuf::from),
        rounds: args.number("--rounds")?.unwrap_or(rounds).max(1),
        runs: args.number("--runs")?.unwrap_or(3).max(1),
        idle: args.number("--idle")?.unwrap_or(20).max(1),
        pods: args.number("--pods")?.unwrap_or(100).max(1),
        peers_only: args.flag("--peers-only"),
        programs: args.option("--programs")?.map(PathBuf::from),
        bridge: matches!(what.as_deref(), Some("pod" | "network")),
    };
    args.end()?;
    match what.as_deref() {
        Some("pod") => pod::run(&options),
        Some("network") => network::run(&options),
        Some("pull") => pull::run(&options),
        Some("restart") => restart::run(&options),
        Some("stats") => stats::run(&options),
        _ => Err(
            "bench what? `cargo xtask bench pod`, `network`, `pull`, `restart` or `stats`".into(),
        ),
    }
}

/// The daemons, in one place, with one registry for all.
pub(crate) struct Field {
    // The order is that of the end: daemons first, then what they use.
    wharf: Option<Node>,
    containerd: Node,
    registry: RealRegistry,
    place: Arc<Place>,
    programs: Option<PathBuf>,
    bridge: bool,
    _data: tempfile::TempDir,
}

impl Field {
    /// Starts everything; without wharf for `--peers-only`.
    fn start(options: &Options) -> Result<Self, String> {
        setup::run_for(setup::For::Everything)?;
        if let Some(missing) = containerd::missing() {
            return Err(format!(
                "a benchmark needs its peer: no {missing} in $RIG/bin or PATH"
            ));
        }
        let programs = match &options.programs {
            _ if options.peers_only => None,
            Some(dir) => Some(std::path::absolute(dir).map_err(text)?),
            None => Some(build(true)?),
        };
        let place = Place::own_without_hybrid().map_err(text)?;
        let data = wharf_testkit::temporary().map_err(text)?;
        let registry = RealRegistry::start(&place, data.path()).map_err(text)?;
        let start = |builder| start(builder, &place, &registry, options.bridge);
        let containerd = start(Node::of(Subject::Containerd))?;
        let ours = |dir| start(Node::wharf().programs(dir));
        let wharf = programs.as_ref().map(ours).transpose()?;
        Ok(Self {
            wharf,
            containerd,
            registry,
            place,
            programs,
            bridge: options.bridge,
            _data: data,
        })
    }

    /// One more daemon with directories of its own: wharf where it takes part and `ours` asks for it.
    fn another(&self, ours: bool) -> Result<Node, String> {
        let builder = match &self.programs {
            Some(dir) if ours => Node::wharf().programs(dir),
            _ => Node::of(Subject::Containerd),
        };
        start(builder, &self.place, &self.registry, self.bridge)
    }
}

fn start(
    builder: Builder,
    place: &Arc<Place>,
    registry: &RealRegistry,
    bridge: bool,
) -> Result<Node, String> {
    let builder = builder.place(place).mirror("_default", &registry.url());
    if !bridge {
        return builder.start().map_err(text);
    }
    let node = builder.network("cni").start().map_err(text)?;
    bridge::configure(&node)?;
    Ok(node)
}

/// How the figures were taken, for people who read them later.
fn circumstances(options: &Options) -> String {
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_string()
    };
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = read("/proc/sys/kernel/osrelease");
    let mut text = format!(
        "Linux {kernel}, {cpus} CPUs; {} runs of {} rounds, contestants in turns\n",
        options.runs, options.rounds
    );
    for program in ["containerd", "runc", "crun"] {
        let Some(path) = cache::find_program(program) else {
            continue;
        };
        let version = output(Command::new(path).arg("--version")).unwrap_or_default();
        text.push_str(version.lines().next().unwrap_or_default());
        text.push('\n');
    }
    text
}
