//! What is written where: rotation, full and stalled disks, processes that hold a pipe.

use std::fs::{self, File};
use std::io::Read as _;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use wharf_plan::Fds;
use wharf_plan::container::Namespaces;
use wharf_plan::message::Body;

use crate::rig::{Zygote, create, named, plan, pod, root};

#[test]
fn switching_the_log_file_loses_and_doubles_nothing() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    let log = pod.log_file("part0");
    pod.create(create(plan("c", "seq 1 300000")), Some(log))
        .unwrap();
    pod.start("c").unwrap();
    let mut parts = 1;
    loop {
        let mut fds = Fds::new();
        fds.push("log", pod.log_file(&format!("part{parts}")));
        pod.client
            .request(Body::ReopenLog(named("c")), &fds)
            .unwrap();
        parts += 1;
        if pod.client.state().containers[0].exited.is_some() {
            break;
        }
    }
    let mut expected = 1;
    let mut used = 0;
    for part in 0..parts {
        let text = fs::read_to_string(pod.log_path(&format!("part{part}"))).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        used += u32::from(!text.is_empty());
        for line in text.lines() {
            assert_eq!(line[31..], format!("stdout F {expected}"));
            expected += 1;
        }
    }
    assert_eq!(expected, 300_001);
    assert!(
        used > 1,
        "the log was never switched under load ({parts} parts)"
    );
}

#[test]
fn long_lines_are_split_and_can_be_joined() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    pod.run(
        "c",
        "head -c 40000 /dev/zero | tr '\\0' x; echo; echo short",
    );
    pod.client.exited("c", "");
    let log = pod.log("c");
    let shape: Vec<(&str, usize)> = log.iter().map(|l| (&l[..8], l.len() - 9)).collect();
    assert_eq!(
        shape,
        [
            ("stdout P", 16384),
            ("stdout P", 16384),
            ("stdout F", 7232),
            ("stdout F", 5)
        ]
    );
}

#[test]
fn a_disk_that_stalls_holds_back_its_own_container_only() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    // A pipe that nobody reads is a disk that takes nothing more.
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    pod.create(
        create(plan("stalled", "seq 1 200000; echo last")),
        Some(writer),
    )
    .unwrap();
    pod.start("stalled").unwrap();
    pod.run("free", "seq 1 50000; echo done");
    assert_eq!(pod.client.exited("free", "").code, 0);
    assert_eq!(pod.log("free").len(), 50_001);
    // The control thread was never held up; a container of later is served as well.
    pod.run("later", "echo later");
    assert_eq!(pod.client.exited("later", "").code, 0);
    assert_eq!(pod.log("later"), ["stdout F later"]);
    // The disk comes back: nothing was lost.
    let reader = std::thread::spawn(move || std::io::read_to_string(File::from(reader)).unwrap());
    assert_eq!(pod.client.exited("stalled", "").code, 0);
    pod.delete("stalled").unwrap();
    let text = reader.join().unwrap();
    assert_eq!(text.lines().count(), 200_001);
    assert!(text.ends_with("stdout F last\n"));
}

#[test]
fn deleting_a_container_answers_those_who_wait_for_its_log() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    pod.create(
        create(plan("stalled", "head -c 200000 /dev/zero")),
        Some(writer),
    )
    .unwrap();
    pod.start("stalled").unwrap();
    assert_eq!(pod.client.exited("stalled", "").code, 0);
    let mut fds = Fds::new();
    fds.push("log", pod.log_file("stalled"));
    let waiting = pod.client.post(Body::ReopenLog(named("stalled")), &fds);
    pod.delete("stalled").unwrap();
    let failure = pod.client.reply(waiting).unwrap_err();
    assert!(failure.object.contains("deleted"), "{failure:?}");
    drop(reader);
}

#[test]
fn a_full_disk_leaves_whole_lines_and_one_about_the_gap() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    rustix::mount::fsconfig_set_string(&context, "size", "64k").unwrap();
    rustix::mount::fsconfig_create(&context).unwrap();
    let none = MountAttrFlags::empty();
    let disk = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, none).unwrap();
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::APPEND | OFlags::CLOEXEC;
    let log = rustix::fs::openat(&disk, "c.log", flags, Mode::from_raw_mode(0o640)).unwrap();
    let mut with_stdin = create(plan(
        "c",
        "seq 1 5000; : > /tmp/written; read x; echo after; echo more",
    ));
    with_stdin.stdin = true;
    let (_, fds) = pod
        .create(with_stdin, Some(log.try_clone().unwrap()))
        .unwrap();
    pod.start("c").unwrap();
    pod.client.event(|event| match event {
        Body::Warning(warning) if warning.text.contains("no space left") => Some(()),
        _ => None,
    });
    while pod.exec("c", "look", "test -e /tmp/written").1.code != 0 {}
    // What is in the pipe now is read in the turn of the first switch, at the latest; the second is
    // answered after that. (A switch to the same file changes nothing.)
    for _ in 0..2 {
        let mut fds = Fds::new();
        fds.push("log", log.try_clone().unwrap());
        pod.client
            .request(Body::ReopenLog(named("c")), &fds)
            .unwrap();
    }
    let mut before = String::new();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&log));
    File::open(&path)
        .unwrap()
        .read_to_string(&mut before)
        .unwrap();
    assert!(before.ends_with('\n'), "a line was cut");
    let written = before.lines().count();
    assert_eq!(
        before.lines().last().unwrap()[31..],
        format!("stdout F {written}")
    );
    rustix::fs::ftruncate(&log, 0).unwrap();
    pod.client.ask(Body::CloseStdin(named("c"))).unwrap();
    assert!(crate::rig::readable(fds.get("pidfd").unwrap()));
    pod.client.exited("c", "");
    let mut after = String::new();
    File::open(&path)
        .unwrap()
        .read_to_string(&mut after)
        .unwrap();
    let gaps: Vec<&str> = after
        .lines()
        .filter(|line| line.contains("bytes of output lost"))
        .collect();
    assert_eq!(gaps.len(), 1, "{after}");
    assert!(gaps[0].ends_with("no space left on device"));
    assert!(after.ends_with("stdout F more\n"));
}

#[test]
fn a_process_that_outlives_its_container_does_not_keep_the_end_from_being_reported() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    let mut host_pid = plan("c", "sleep 1000 & echo $!; (true &); exit 2");
    host_pid.namespaces = Some(Namespaces::default());
    let log = pod.log_file("c");
    pod.create(create(host_pid), Some(log)).unwrap();
    pod.start("c").unwrap();
    assert_eq!(pod.client.exited("c", "").code, 2);
    let log = pod.log("c");
    let orphan: i32 = log[0]["stdout F ".len()..].parse().unwrap();
    // It came to the shim, which reaps it.
    let stat = fs::read_to_string(format!("/proc/{orphan}/stat")).unwrap();
    assert_eq!(
        stat.split_ascii_whitespace().nth(3),
        Some(pod.pid.to_string().as_str())
    );
    let orphan = rustix::process::Pid::from_raw(orphan).unwrap();
    let pidfd = rustix::process::pidfd_open(orphan, rustix::process::PidfdFlags::empty()).unwrap();
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
    assert!(crate::rig::readable(&pidfd));
    pod.client.state();
    // The other orphan, `true`, has ended long ago and is no zombie.
    pod.delete("c").unwrap();
    let mut children = String::from("some");
    while !children.trim().is_empty() {
        pod.client.state();
        children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", pod.pid)).unwrap();
    }
}

#[test]
fn without_a_log_the_output_is_taken_and_dropped() {
    if !root() {
        return;
    }
    let zygote = Zygote::start();
    let mut pod = zygote.pod(pod("p"));
    pod.create(create(plan("c", "seq 1 200000; exit 1")), None)
        .unwrap();
    pod.start("c").unwrap();
    assert_eq!(pod.client.exited("c", "").code, 1);
}
