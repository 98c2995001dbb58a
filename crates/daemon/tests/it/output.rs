//! A container's log: CRI's format, whole and in order, over rotation and terminals.

use std::fs;

use tonic::{Code, Status};
use wharf_api::v1::{ContainerState, ReopenContainerLogRequest};
use wharf_testkit::wait;

use crate::scene::{SOON, Scene, idle, refused, said, shell, with};

fn reopen(scene: &Scene, container: &str) -> Result<(), Status> {
    let request = ReopenContainerLogRequest {
        container_id: container.into(),
    };
    let mut client = scene.cri().runtime();
    scene
        .cri()
        .wait(client.reopen_container_log(request))
        .map(drop)
}

#[test]
fn long_lines_are_parted_and_a_last_one_without_an_end_is_kept() {
    let Some(scene) = Scene::begin("long_lines_are_parted") else {
        return;
    };
    let pod = scene.pod("lines");
    let long = "x".repeat(40_000);
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; echo; echo short; printf 'no end'";
    let (status, said) = pod.finish(&shell("c", script));
    assert_eq!(said.trim_end(), format!("{long}\n\nshort\nno end"));
    let log = fs::read_to_string(&status.log_path).unwrap();
    let parts: Vec<(&str, usize)> = log
        .lines()
        .map(|l| l.splitn(4, ' ').collect::<Vec<_>>())
        .map(|p| (p[2], p[3].len()))
        .collect();
    assert_eq!(
        parts[..3],
        [("P", 16_384), ("P", 16_384), ("F", 40_000 - 2 * 16_384)]
    );
    assert_eq!(parts[3..5], [("F", 0), ("F", 5)]);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(&status.log_path).unwrap().permissions(),
    );
    assert_eq!(mode & 0o7777, 0o640);
    pod.end();
}

#[test]
fn a_short_life_has_a_whole_log() {
    let Some(scene) = Scene::begin("a_short_life_has_a_whole_log") else {
        return;
    };
    let pod = scene.pod("short");
    for i in 0..5 {
        let (_, said) = pod.finish(&shell(&format!("c{i}"), "seq 1 5000"));
        let expected: String = (1..=5000).map(|n| format!("{n}\n")).collect();
        assert_eq!(said, expected);
    }
    pod.end();
}

#[test]
fn rotation_loses_no_line_of_a_container_that_writes() {
    const LINES: usize = 40_000;
    let Some(scene) = Scene::begin("rotation_loses_no_line") else {
        return;
    };
    let pod = scene.pod("rotation");
    let container = pod.run(&shell(
        "c",
        &format!("seq 1 {LINES}; echo the end; sleep 1000"),
    ));
    let path = scene.cri().container_status(&container).unwrap().log_path;
    let mut all = String::new();
    for turn in 0..8 {
        let old = format!("{path}.{turn}");
        fs::rename(&path, &old).unwrap();
        reopen(&scene, &container).unwrap();
        assert!(
            fs::exists(&path).unwrap(),
            "the new file is there when the answer is"
        );
        all.push_str(&fs::read_to_string(&old).unwrap());
    }
    let log = || fs::read_to_string(&path).unwrap();
    let ended = wait::until(SOON, || {
        Ok(all.contains("the end") || log().contains("the end"))
    });
    assert!(ended.unwrap());
    all.push_str(&log());
    let expected: String = (1..=LINES).map(|n| format!("{n}\n")).collect();
    assert!(
        said(&all) == expected + "the end\n",
        "a line is lost, doubled or out of order"
    );
    pod.end();
}

#[test]
fn a_log_that_cannot_be_reopened_leaves_no_file() {
    let Some(scene) = Scene::begin("a_log_that_cannot_be_reopened") else {
        return;
    };
    let pod = scene.pod("reopen");
    refused(reopen(&scene, "nosuch"), Code::NotFound, &["nosuch"]);
    let (status, _) = pod.finish(&shell("c", "echo x"));
    fs::rename(&status.log_path, format!("{}.1", status.log_path)).unwrap();
    refused(
        reopen(&scene, &status.id),
        Code::FailedPrecondition,
        &[&status.id],
    );
    assert!(!fs::exists(&status.log_path).unwrap());
    pod.end();
}

#[test]
fn a_terminal_is_a_terminal_and_all_of_it_is_stdout() {
    let Some(scene) = Scene::begin("a_terminal_is_a_terminal") else {
        return;
    };
    let pod = scene.pod("tty");
    let script = "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo terminal; echo err >&2; echo $TERM; tty; \
        ls -l /dev/console >/dev/null && echo console; stty -a | grep -o ' echo '";
    let config = with(shell("c", script), |c| (c.tty, c.stdin) = (true, true));
    let (status, _) = pod.finish(&config);
    let log = fs::read_to_string(&status.log_path).unwrap();
    assert!(!log.contains(" stderr "), "{log}");
    for word in ["terminal", "err", "xterm", "/dev/pts/0", "console"] {
        assert!(
            log.lines()
                .any(|l| l.trim_end_matches('\r').ends_with(word)),
            "{word}: {log}"
        );
    }
    pod.end();
}

#[test]
fn stdin_is_empty_unless_it_is_asked_for() {
    let Some(scene) = Scene::begin("stdin_is_empty") else {
        return;
    };
    let pod = scene.pod("stdin");
    let (status, said) = pod.finish(&shell("none", "cat; echo end of file"));
    assert_eq!((status.exit_code, said.as_str()), (0, "end of file\n"));
    let waiting = pod.run(&with(shell("open", "echo waits; cat; echo end"), |c| {
        c.stdin = true;
    }));
    let status = scene.cri().container_status(&waiting).unwrap();
    let log = || fs::read_to_string(&status.log_path).unwrap();
    wait::until(SOON, || Ok(log().contains("waits"))).unwrap();
    scene.cri().exec(&waiting, &["true"], 10).unwrap();
    let status = scene.cri().container_status(&waiting).unwrap();
    assert_eq!(
        status.state(),
        ContainerState::ContainerRunning,
        "nobody attached: {}",
        log()
    );
    assert!(!log().contains("end"));
    pod.end();
}

#[test]
fn directories_of_a_log_are_made_and_no_path_is_no_log() {
    let Some(scene) = Scene::begin("directories_of_a_log_are_made") else {
        return;
    };
    let pod = scene.pod_with("dirs", |p| p.log_directory.push_str("/deep/er"));
    let (status, said) = pod.finish(&with(shell("c", "echo x"), |c| {
        c.log_path = "c/0.log".into();
    }));
    assert_eq!(said, "x\n");
    assert!(status.log_path.ends_with("/deep/er/c/0.log"), "{status:?}");
    let silent = pod.run(&with(shell("silent", "seq 1 100000"), |c| {
        c.log_path.clear();
    }));
    let status = scene.exit_of(&silent);
    assert_eq!((status.exit_code, status.log_path.as_str()), (0, ""));
    pod.end();
    let pod = scene.pod_with("nowhere", |p| p.log_directory.clear());
    let quiet = pod.run(&idle("quiet"));
    assert_eq!(scene.cri().container_status(&quiet).unwrap().log_path, "");
    pod.end();
}
