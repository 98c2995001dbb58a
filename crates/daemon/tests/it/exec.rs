//! Programs beside a container's own.

use std::fs;

use tonic::Code;
use wharf_api::v1::{Capability, ExecSyncRequest, Int64Value};
use wharf_testkit::{machine, wait};

use crate::scene::{SOON, Scene, idle, refused, security, shell, value, with};

/// What a process is, in lines that two of them can be compared by.
const SELF: &str = "id; echo cwd=$PWD; env | grep -v SHLVL | sort; umask; \
    grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)' /proc/self/status; cat /proc/self/oom_score_adj; \
    for n in net ipc uts pid mnt cgroup user; do readlink /proc/self/ns/$n; done; ulimit -a; \
    sort /proc/self/cgroup | sed 's/exec.*//'";

#[test]
fn an_exec_is_what_the_containers_own_program_is() {
    let Some(scene) = Scene::begin("an_exec_is_what_the_containers_own_program_is") else {
        return;
    };
    let pod = scene.pod("same");
    let config = with(shell("c", &format!("{SELF}; echo done; sleep 1000")), |c| {
        c.working_dir = "/tmp".into();
        let (key, value) = ("X".into(), b"y z".to_vec());
        c.envs.push(wharf_api::v1::KeyValue { key, value });
        let security = security(c);
        security.run_as_user = Some(Int64Value { value: 33 });
        security.supplemental_groups = vec![7, 8];
        security.no_new_privs = true;
        security.capabilities = Some(Capability {
            drop_capabilities: vec!["CHOWN".into()],
            ..Capability::default()
        });
    });
    let container = pod.run(&config);
    let log = scene.cri().container_status(&container).unwrap().log_path;
    let init = || crate::scene::said(&fs::read_to_string(&log).unwrap());
    wait::until(SOON, || Ok(init().contains("done\n"))).unwrap();
    let answer = scene
        .cri()
        .exec(&container, &["sh", "-c", SELF], 10)
        .unwrap();
    let exec = String::from_utf8(answer.stdout).unwrap();
    assert_eq!(format!("{exec}done\n"), init());
    assert_eq!(value(&exec, "cwd"), "/tmp");
    let answer = scene.cri().exec(&container, &["cat"], 10).unwrap();
    assert_eq!(
        (answer.exit_code, answer.stdout.len()),
        (0, 0),
        "its stdin is empty"
    );
    pod.end();
    scene.leaves_nothing();
}

#[test]
fn at_its_deadline_an_exec_ends_with_everything_it_started() {
    let Some(scene) = Scene::begin("at_its_deadline_an_exec_ends") else {
        return;
    };
    let pod = scene.pod("deadline");
    let container = pod.run(&idle("c"));
    let tree = "trap '' TERM HUP; sleep 2001 & setsid sleep 2002 & (setsid sh -c 'sleep 2003 & sleep 2004' &); sleep 2005";
    let answer = scene.cri().exec(&container, &["sh", "-c", tree], 1);
    refused(answer, Code::DeadlineExceeded, &[&container]);
    let left: Vec<_> = machine::processes(scene.node.name())
        .into_iter()
        .filter(|p| p.command.contains("sleep 200"))
        .collect();
    assert_eq!(left, [], "they are gone when the answer comes");
    let answer = scene.cri().exec(&container, &["echo", "fine"], 10).unwrap();
    assert_eq!(answer.stdout, b"fine\n", "the container goes on");
    pod.end();
    scene.leaves_nothing();
}

#[test]
fn a_grandchild_that_holds_the_output_does_not_hold_the_answer() {
    let Some(scene) = Scene::begin("a_grandchild_that_holds_the_output") else {
        return;
    };
    let pod = scene.pod("grandchild");
    let container = pod.run(&idle("c"));
    for timeout in [0, 60] {
        let answer = scene.cri().exec(
            &container,
            &["sh", "-c", "sleep 3001 & echo out; exit 4"],
            timeout,
        );
        let answer = answer.unwrap();
        assert_eq!((answer.exit_code, &*answer.stdout), (4, &b"out\n"[..]));
    }
    pod.end();
    scene.leaves_nothing();
}

#[test]
fn output_is_kept_to_its_limit_and_the_program_runs_to_its_end() {
    let Some(scene) = Scene::begin("output_is_kept_to_its_limit") else {
        return;
    };
    const LIMIT: usize = 16 << 20;
    let pod = scene.pod("much");
    let container = pod.run(&idle("c"));
    let script =
        "head -c 3000000 /dev/zero >&2; head -c 20000000 /dev/zero && touch /tmp/came-to-the-end";
    let mut client = scene.cri().runtime().max_decoding_message_size(64 << 20);
    let request = ExecSyncRequest {
        container_id: container.clone(),
        cmd: ["sh", "-c", script].map(String::from).into(),
        timeout: 60,
    };
    let answer = scene.cri().wait(client.exec_sync(request)).unwrap();
    assert_eq!(answer.exit_code, 0);
    assert!(
        answer.stdout.len() <= LIMIT && answer.stdout.len() > LIMIT / 2,
        "{}",
        answer.stdout.len()
    );
    let both = answer.stdout.len() + answer.stderr.len();
    assert!(both <= LIMIT + 3_000_000, "{both}");
    let answer = scene
        .cri()
        .exec(&container, &["ls", "/tmp/came-to-the-end"], 10)
        .unwrap();
    assert_eq!(answer.exit_code, 0);
    pod.end();
}

/// What an ordinary client takes in one message.
#[test]
fn the_largest_output_still_fits_a_clients_message() {
    let Some(scene) = Scene::begin("the_largest_output_still_fits") else {
        return;
    };
    let pod = scene.pod("fits");
    let container = pod.run(&idle("c"));
    let script = "head -c 17000000 /dev/zero; head -c 17000000 /dev/zero >&2";
    let answer = scene
        .cri()
        .exec(&container, &["sh", "-c", script], 60)
        .unwrap();
    assert_eq!(answer.exit_code, 0);
    pod.end();
}

#[test]
fn many_execs_run_side_by_side() {
    let Some(scene) = Scene::begin("many_execs_run_side_by_side") else {
        return;
    };
    let pod = scene.pod("many");
    let container = pod.run(&idle("c"));
    let calls = (0..30).map(|i| {
        let mut client = scene.cri().runtime();
        let request = ExecSyncRequest {
            container_id: container.clone(),
            cmd: ["sh", "-c", &format!("sleep 0.1; echo {i}; exit {i}")]
                .map(String::from)
                .into(),
            timeout: 30,
        };
        async move { client.exec_sync(request).await }
    });
    for (i, answer) in scene
        .cri()
        .wait_all(calls.collect())
        .into_iter()
        .enumerate()
    {
        let answer = answer.unwrap();
        assert_eq!(usize::try_from(answer.exit_code), Ok(i));
        assert_eq!(String::from_utf8(answer.stdout).unwrap(), format!("{i}\n"));
    }
    pod.end();
    scene.leaves_nothing();
}

#[test]
fn an_exec_that_cannot_run_says_why() {
    let Some(scene) = Scene::begin("an_exec_that_cannot_run_says_why") else {
        return;
    };
    let cri = scene.cri();
    let pod = scene.pod("cannot");
    let created = pod.create(&idle("created")).unwrap();
    refused(
        cri.exec(&created, &["true"], 10),
        Code::FailedPrecondition,
        &[&created, "created"],
    );
    let running = pod.run(&idle("running"));
    refused(cri.exec(&running, &[], 10), Code::InvalidArgument, &["cmd"]);
    refused(
        cri.exec(&running, &["true"], -1),
        Code::InvalidArgument,
        &["timeout"],
    );
    refused(
        cri.exec(&running, &["/no/such"], 10),
        Code::InvalidArgument,
        &["/no/such", "No such file"],
    );
    refused(
        cri.exec(&running, &["/etc/passwd"], 10),
        Code::InvalidArgument,
        &["/etc/passwd", "Permission denied"],
    );
    cri.stop(&running, 5).unwrap();
    refused(
        cri.exec(&running, &["true"], 10),
        Code::FailedPrecondition,
        &[&running, "exited"],
    );
    pod.end();
    scene.leaves_nothing();
}
#[test]
fn an_exec_whose_client_has_left_is_killed() {
    let Some(scene) = Scene::begin("an_exec_whose_client_has_left_is_killed") else {
        return;
    };
    let pod = scene.pod("left");
    let container = pod.run(&idle("c"));
    let running = || {
        let all = machine::processes(scene.node.name());
        all.iter()
            .filter(|p| p.command.contains("sleep 400"))
            .count()
    };
    let mut client = scene.cri().runtime();
    let request = ExecSyncRequest {
        container_id: container.clone(),
        cmd: ["sh", "-c", "setsid sleep 4001 & sleep 4002"]
            .map(String::from)
            .into(),
        timeout: 0,
    };
    let left = scene.cri().wait(async {
        let begun = async {
            while running() < 2 {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            answer = client.exec_sync(request) => answer,
            () = begun => Err(tonic::Status::cancelled("left")),
        }
    });
    refused(left, Code::Cancelled, &["left"]);
    wait::until(SOON, || Ok(running() == 0)).unwrap();
    let answer = scene.cri().exec(&container, &["echo", "fine"], 10).unwrap();
    assert_eq!(answer.stdout, b"fine\n", "the container goes on");
    pod.end();
    scene.leaves_nothing();
}
