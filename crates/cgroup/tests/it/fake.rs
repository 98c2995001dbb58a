//! Limits of cgroup v2 as they come to lie in files, in a directory that looks like one.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};
use wharf_cgroup::{CgroupError, Cgroups, Limits};

/// A tree with one cgroup `wharf/c` whose files are there, as the kernel would make them.
fn tree(files: &[&str]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let leaf = directory.path().join("wharf/c");
    fs::create_dir_all(&leaf).unwrap();
    for file in files {
        fs::write(leaf.join(file), "max\n").unwrap();
    }
    fs::write(leaf.join("cgroup.procs"), "").unwrap();
    for parent in ["", "wharf"] {
        fs::write(
            directory.path().join(parent).join("cgroup.subtree_control"),
            "",
        )
        .unwrap();
    }
    directory
}

fn read(root: &Path, file: &str) -> String {
    fs::read_to_string(root.join("wharf/c").join(file)).unwrap()
}

const CONTROLLERS: [&str; 4] = ["memory", "cpu", "cpuset", "pids"];

#[test]
fn limits_of_v2_come_to_lie_in_their_files() {
    let tree = tree(&[
        "memory.max",
        "memory.swap.max",
        "memory.low",
        "memory.high",
        "cpu.weight",
        "cpu.max",
        "cpuset.cpus",
        "pids.max",
    ]);
    let cgroups = Cgroups::unified(tree.path(), &CONTROLLERS);
    let mut limits = Limits {
        memory: Some(64 << 20),
        memory_swap: Some(64 << 20),
        cpu_shares: Some(1024),
        cpu_quota: Some(20_000),
        cpuset_cpus: "0".to_owned(),
        pids: Some(12),
        ..Limits::default()
    };
    limits
        .unified
        .insert("memory.high".to_owned(), "60000000".to_owned());
    cgroups.create("wharf/c", &limits).unwrap();
    let expected = [
        ("memory.max", "67108864"),
        ("memory.swap.max", "0"),
        ("memory.low", "max\n"),
        ("memory.high", "60000000"),
        ("cpu.weight", "100"),
        ("cpu.max", "20000 100000"),
        ("cpuset.cpus", "0"),
        ("pids.max", "12"),
    ];
    for (file, value) in expected {
        assert_eq!(read(tree.path(), file), value, "{file}");
    }
    // The parents hand the controllers down.
    let handed = fs::read_to_string(tree.path().join("wharf/cgroup.subtree_control")).unwrap();
    assert!(handed.starts_with('+'), "{handed}");
}

#[test]
fn a_failed_update_leaves_every_value_as_it_was() {
    let tree = tree(&["memory.max", "pids.max"]);
    let cgroups = Cgroups::unified(tree.path(), &CONTROLLERS);
    let cgroup = cgroups.open("wharf/c").unwrap();
    let limits = Limits {
        memory: Some(1 << 20),
        pids: Some(3),
        // There is no such file here.
        unified: [("memory.peculiar".to_owned(), "1".to_owned())].into(),
        ..Limits::default()
    };
    let error = cgroup.update(&limits).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("memory.peculiar"), "{message}");
    assert_eq!(read(tree.path(), "memory.max").trim(), "max");
    assert_eq!(read(tree.path(), "pids.max").trim(), "max");
}

#[test]
fn devices_that_are_refused_take_the_other_limits_back() {
    let tree = tree(&["pids.max"]);
    let cgroups = Cgroups::unified(tree.path(), &CONTROLLERS);
    let cgroup = cgroups.open("wharf/c").unwrap();
    let limits = Limits {
        pids: Some(3),
        // No program can be attached to a plain directory.
        devices: Some(Vec::new()),
        ..Limits::default()
    };
    cgroup.update(&limits).unwrap_err();
    assert_eq!(read(tree.path(), "pids.max").trim(), "max");
}

/// Makes directories one in the other, beyond what a path can name; gives the deepest.
fn nest(top: &Path, levels: usize) -> OwnedFd {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(top, flags, Mode::empty()).unwrap();
    for _ in 0..levels {
        rustix::fs::mkdirat(&at, "nested-cgroup", Mode::from_raw_mode(0o755)).unwrap();
        at = rustix::fs::openat(&at, "nested-cgroup", flags, Mode::empty()).unwrap();
    }
    at
}

#[test]
fn cgroups_that_a_container_nested_deeply_are_found_and_removed() {
    let tree = tempfile::tempdir().unwrap();
    let top = tree.path().join("wharf");
    fs::create_dir(&top).unwrap();
    for beside in ["a", "b", "b/c"] {
        fs::create_dir(top.join(beside)).unwrap();
    }
    let deepest = nest(&top, 1000);
    let flags = OFlags::CREATE | OFlags::WRONLY;
    let procs = rustix::fs::openat(&deepest, "cgroup.procs", flags, Mode::from_raw_mode(0o644));
    rustix::io::write(procs.unwrap(), b"17\n").unwrap();
    let cgroup = Cgroups::unified(tree.path(), &CONTROLLERS)
        .open("wharf")
        .unwrap();
    assert_eq!(cgroup.processes().unwrap(), [17]);
    rustix::fs::unlinkat(&deepest, "cgroup.procs", AtFlags::empty()).unwrap();
    cgroup.remove().unwrap();
    assert!(!top.exists());
}

#[test]
fn more_cgroups_than_are_searched_are_an_error() {
    let tree = tempfile::tempdir().unwrap();
    let top = tree.path().join("wharf");
    for n in 0..16 * 1024 {
        fs::create_dir_all(top.join(format!("{n}"))).unwrap();
    }
    let cgroup = Cgroups::unified(tree.path(), &CONTROLLERS)
        .open("wharf")
        .unwrap();
    let error = cgroup.remove().unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("more than 16384"), "{source}");
}

#[test]
fn a_machine_without_swap_takes_limits_that_ask_for_none() {
    let tree = tree(&["memory.max"]);
    let cgroups = Cgroups::unified(tree.path(), &CONTROLLERS);
    let limits = |swap| Limits {
        memory: Some(1 << 20),
        memory_swap: Some(swap),
        ..Limits::default()
    };
    cgroups.create("wharf/c", &limits(1 << 20)).unwrap();
    let error = cgroups.create("wharf/c", &limits(2 << 20)).unwrap_err();
    assert!(error.to_string().contains("memory.swap.max"), "{error}");
}

#[test]
fn memory_below_what_cannot_be_reclaimed_is_refused() {
    let tree = tree(&["memory.max"]);
    let leaf = tree.path().join("wharf/c");
    fs::write(leaf.join("memory.current"), "5000000\n").unwrap();
    fs::write(
        leaf.join("memory.stat"),
        "inactive_file 2000000\nactive_file 1000000\n",
    )
    .unwrap();
    let cgroup = Cgroups::unified(tree.path(), &CONTROLLERS)
        .open("wharf/c")
        .unwrap();
    let limits = |memory, check_before_update| Limits {
        memory: Some(memory),
        check_before_update,
        ..Limits::default()
    };
    let error = cgroup.update(&limits(1_000_000, false)).unwrap_err();
    assert!(
        matches!(
            error,
            CgroupError::BelowUsage {
                usage: 2_000_000,
                ..
            }
        ),
        "{error}"
    );
    assert!(cgroup.update(&limits(3_000_000, true)).is_err());
    cgroup.update(&limits(3_000_000, false)).unwrap();
}

#[test]
fn statistics_of_v2_are_in_bytes_and_nanoseconds() {
    let tree = tree(&[]);
    let leaf = tree.path().join("wharf/c");
    fs::write(leaf.join("memory.current"), "5000\n").unwrap();
    fs::write(leaf.join("memory.stat"), "anon 1\ninactive_file 2000\n").unwrap();
    fs::write(leaf.join("memory.events"), "oom 2\noom_kill 3\n").unwrap();
    fs::write(leaf.join("cpu.stat"), "usage_usec 7\nuser_usec 1\n").unwrap();
    fs::write(leaf.join("pids.current"), "4\n").unwrap();
    let cgroup = Cgroups::unified(tree.path(), &CONTROLLERS)
        .open("wharf/c")
        .unwrap();
    let stats = cgroup.stats().unwrap();
    assert_eq!(stats.memory_usage, Some(5000));
    assert_eq!(stats.memory_working_set, Some(3000));
    assert_eq!(stats.cpu_nanoseconds, Some(7000));
    assert_eq!(stats.pids, Some(4));
    assert_eq!(cgroup.oom_kills().unwrap(), Some(3));
    assert_eq!(stats.memory_limit, None);
    assert_eq!(stats.io_pressure, None);
}

/// The files of a container with everything that a kernel counts.
const WHOLE: &[(&str, &str)] = &[
    ("memory.current", "5000\n"),
    ("memory.max", "9000\n"),
    (
        "memory.stat",
        "anon 11\nfile 12\nkernel 16\nfile_mapped 13\nactive_file 14\ninactive_file 6000\npgfault 17\npgmajfault 2\n",
    ),
    ("memory.swap.current", "21\n"),
    ("memory.swap.max", "max\n"),
    ("memory.peak", "6001\n"),
    ("memory.events", "low 0\nmax 5\noom 2\noom_kill 3\n"),
    (
        "memory.pressure",
        "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
    ),
    (
        "cpu.stat",
        "usage_usec 7\nuser_usec 4\nsystem_usec 3\nnr_periods 8\nnr_throttled 2\nthrottled_usec 9\n",
    ),
    (
        "cpu.pressure",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
    ),
    (
        "io.stat",
        "8:0 rbytes=4096 wbytes=512 rios=1 wios=2 dbytes=0 dios=0\n8:16 \n",
    ),
    ("pids.current", "4\n"),
    ("pids.max", "64\n"),
];

#[test]
fn v2_tells_limits_faults_swap_pressure_and_disks() {
    let tree = tree(&[]);
    let leaf = tree.path().join("wharf/c");
    for (file, text) in WHOLE {
        fs::write(leaf.join(file), text).unwrap();
    }
    let cgroup = Cgroups::unified(tree.path(), &["cpu", "memory", "pids", "io"])
        .open("wharf/c")
        .unwrap();
    let reader = cgroup.stats_reader().unwrap();
    let mut buffer = Vec::new();
    let stats = reader.read(&mut buffer).unwrap();
    assert_eq!(stats.memory_limit, Some(9000));
    assert_eq!(stats.memory_working_set, Some(0), "never below zero");
    assert_eq!((stats.memory_rss, stats.memory_cache), (Some(11), Some(12)));
    assert_eq!(
        (stats.page_faults, stats.major_page_faults),
        (Some(17), Some(2))
    );
    assert_eq!((stats.swap_usage, stats.swap_limit), (Some(21), None));
    let memory = stats.memory_pressure.unwrap();
    assert_eq!((memory.some.total, memory.full.total), (77, 7));
    assert!((memory.some.avg10 - 1.5).abs() < 1e-9 && (memory.some.avg60 - 0.25).abs() < 1e-9);
    assert_eq!(stats.cpu_pressure.unwrap().some.total, 5);
    assert_eq!(stats.io_pressure, None, "there is no such file");

    // The same files, with what they say now.
    fs::write(leaf.join("pids.current"), "5\n").unwrap();
    fs::write(leaf.join("memory.current"), "7\n").unwrap();
    let again = reader.read(&mut buffer).unwrap();
    assert_eq!((again.pids, again.memory_usage), (Some(5), Some(7)));

    let details = cgroup.details();
    assert_eq!(
        (details.cpu_user, details.cpu_system),
        (Some(4000), Some(3000))
    );
    assert_eq!(
        (details.cpu_periods, details.cpu_throttled),
        (Some(8), Some(9000))
    );
    assert_eq!(
        (details.memory_max_usage, details.memory_kernel),
        (Some(6001), Some(16))
    );
    assert_eq!(
        (details.memory_limit_hits, details.oom_kills),
        (Some(5), Some(3))
    );
    assert_eq!(details.pids_limit, Some(64));
    let first = details.disks[0];
    assert_eq!(
        (first.device, first.read_bytes, first.writes),
        ((8, 0), 4096, 2)
    );
}
