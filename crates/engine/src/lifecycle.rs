//! What callers see of pods and containers, with a world of tests below.

use std::time::Duration;

use tokio::time::Instant;
use wharf_types::Kind;

use crate::engine::Engine;
use crate::error::RequestError;
use crate::fake::{Fake, SOON, container_spec, pod_spec};
use crate::limits::KILL_GRACE;
use crate::spec::*;
use crate::view::{ContainerState, PodState};

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

pub(crate) async fn ready(fake: &Fake) -> (Engine, String) {
    let engine = fake.engine();
    let id = engine.run_pod(pod_spec("a")).await.unwrap();
    (engine, id.to_string())
}

pub(crate) async fn running(fake: &Fake) -> (Engine, String, String) {
    let (engine, pod) = ready(fake).await;
    let id = engine
        .create_container(&pod, container_spec("c"))
        .await
        .unwrap()
        .to_string();
    engine.start_container(&id).await.unwrap();
    (engine, pod, id)
}

pub(crate) async fn until_exited(engine: &Engine, id: &str) {
    while engine.container(id).unwrap().state != ContainerState::Exited {
        tokio::time::sleep(SOON).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_and_its_container_live_and_leave_nothing() {
    let fake = Fake::new();
    let (engine, pod, id) = running(&fake).await;
    assert_eq!(engine.pod(&pod).unwrap().state, PodState::Ready);
    assert_eq!(
        engine.container(&id[..40]).unwrap().state,
        ContainerState::Running
    );
    assert!(engine.container(&id).unwrap().started_at_ns > 0);
    fake.exit(&id, 3, 0).await;
    until_exited(&engine, &id).await;
    let view = engine.container(&id).unwrap();
    assert_eq!(
        (view.exit_code, view.reason.as_str(), view.finished_at_ns),
        (3, "Error", 77)
    );
    engine.stop_pod(&pod).await.unwrap();
    assert_eq!(engine.pod(&pod).unwrap().state, PodState::NotReady);
    assert_eq!(engine.containers().len(), 1);
    engine.remove_pod(&pod).await.unwrap();
    assert!(engine.pods().is_empty() && engine.containers().is_empty());
    assert!(fake.is_clean());
}

#[tokio::test(start_paused = true)]
async fn what_is_unknown_can_be_stopped_and_removed_and_nothing_else() {
    let engine = Fake::new().engine();
    for id in ["nosuch", "", &"a".repeat(64)] {
        engine.stop_pod(id).await.unwrap();
        engine.remove_pod(id).await.unwrap();
        engine.stop_container(id, MINUTE).await.unwrap();
        engine.remove_container(id).await.unwrap();
        let not_found = |e: RequestError| assert_eq!(e.kind(), Kind::NotFound);
        not_found(engine.pod(id).unwrap_err());
        not_found(engine.container(id).unwrap_err());
        not_found(engine.start_container(id).await.unwrap_err());
        not_found(
            engine
                .create_container(id, container_spec("c"))
                .await
                .unwrap_err(),
        );
        not_found(engine.reopen_container_log(id).await.unwrap_err());
        not_found(
            engine
                .update_container(id, ResourceSpec::default())
                .await
                .unwrap_err(),
        );
        let exec = ExecSyncRequest {
            container: id.to_owned(),
            cmd: vec!["true".to_owned()],
            timeout: None,
        };
        not_found(engine.exec_sync(exec).await.unwrap_err());
    }
}

#[tokio::test(start_paused = true)]
async fn everything_can_be_repeated() {
    let fake = Fake::new();
    let (engine, pod, id) = running(&fake).await;
    assert_eq!(
        engine.run_pod(pod_spec("a")).await.unwrap().to_string(),
        pod
    );
    engine.start_container(&id).await.unwrap();
    assert_eq!(
        (fake.count("start shim"), fake.count("start container")),
        (1, 1)
    );
    for _ in 0..2 {
        engine.stop_container(&id, MINUTE).await.unwrap();
    }
    for _ in 0..2 {
        engine.remove_container(&id).await.unwrap();
    }
    for _ in 0..2 {
        engine.stop_pod(&pod).await.unwrap();
    }
    let gone_on = engine.run_pod(pod_spec("a")).await.unwrap_err();
    assert_eq!(gone_on.kind(), Kind::AlreadyExists);
    for _ in 0..2 {
        engine.remove_pod(&pod).await.unwrap();
    }
    assert!(fake.is_clean());
    // The name is free again.
    assert_ne!(
        engine.run_pod(pod_spec("a")).await.unwrap().to_string(),
        pod
    );
}

#[tokio::test(start_paused = true)]
async fn the_same_request_joins_and_another_configuration_is_refused_by_name() {
    let fake = Fake::new();
    let engine = fake.engine();
    fake.hold("attach network");
    let first = tokio::spawn({
        let engine = engine.clone();
        async move { engine.run_pod(pod_spec("a")).await }
    });
    fake.reached("attach network").await;
    assert_eq!(
        engine.pod_stage(&pod_spec("a").metadata).unwrap().name,
        "attach network"
    );
    assert!(engine.pods().is_empty(), "nobody was promised it yet");
    let second = tokio::spawn({
        let engine = engine.clone();
        async move { engine.run_pod(pod_spec("a")).await }
    });
    let other = PodSpec {
        hostname: "other".to_owned(),
        ..pod_spec("a")
    };
    let refused = engine.run_pod(other).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::AlreadyExists);
    fake.let_go("attach network");
    let id = first.await.unwrap().unwrap();
    assert_eq!(second.await.unwrap().unwrap(), id);
    assert!(refused.to_string().contains(id.as_str()), "{refused}");
    assert_eq!(fake.count("start shim"), 1);

    fake.hold("create container");
    let pod = id.to_string();
    let create = |spec: ContainerSpec| {
        let (engine, pod) = (engine.clone(), pod.clone());
        tokio::spawn(async move { engine.create_container(&pod, spec).await })
    };
    let (first, second) = (create(container_spec("c")), create(container_spec("c")));
    fake.reached("create container").await;
    let other = ContainerSpec {
        tty: true,
        ..container_spec("c")
    };
    assert_eq!(
        create(other).await.unwrap().unwrap_err().kind(),
        Kind::AlreadyExists
    );
    fake.let_go("create container");
    let id = first.await.unwrap().unwrap();
    assert_eq!(second.await.unwrap().unwrap(), id);
    assert_eq!(create(container_spec("c")).await.unwrap().unwrap(), id);
    engine.start_container(id.as_str()).await.unwrap();
    let gone_on = create(container_spec("c")).await.unwrap().unwrap_err();
    assert_eq!(gone_on.kind(), Kind::AlreadyExists);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_changes_nothing() {
    let fake = Fake::new();
    let engine = fake.engine();
    for step in ["prepare pod", "start shim", "attach network", "save pod"] {
        fake.hold(step);
        let name = format!("pod-{}", step.replace(' ', "-"));
        let cut = tokio::time::timeout(SOON, engine.run_pod(pod_spec(&name)));
        assert!(cut.await.is_err(), "{step}");
        fake.let_go(step);
        let id = engine.run_pod(pod_spec(&name)).await.unwrap();
        assert_eq!(engine.pod(id.as_str()).unwrap().spec.metadata.name, name);
    }
    assert_eq!(engine.pods().len(), 4);
    let pod = engine.pods()[0].id.to_string();
    fake.hold("create container");
    let cut = tokio::time::timeout(SOON, engine.create_container(&pod, container_spec("c")));
    cut.await.unwrap_err();
    fake.let_go("create container");
    let id = engine
        .create_container(&pod, container_spec("c"))
        .await
        .unwrap();
    fake.hold("start container");
    tokio::time::timeout(SOON, engine.start_container(id.as_str()))
        .await
        .unwrap_err();
    fake.let_go("start container");
    engine.start_container(id.as_str()).await.unwrap();
    fake.hold("kill");
    tokio::time::timeout(SOON, engine.remove_pod(&pod))
        .await
        .unwrap_err();
    fake.let_go("kill");
    engine.remove_pod(&pod).await.unwrap();
    assert_eq!(fake.count("create container"), 1);
    assert_eq!(fake.count("start container"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_leaves_nothing_and_names_its_stage() {
    for step in ["prepare pod", "start shim", "attach network", "save pod"] {
        let fake = Fake::new();
        let engine = fake.engine();
        fake.fail(step, 1);
        let e = engine.run_pod(pod_spec("a")).await.unwrap_err();
        assert_eq!(e.stage(), Some(step), "{e}");
        assert!(fake.is_clean(), "{step}");
        assert!(engine.pods().is_empty());
        engine.run_pod(pod_spec("a")).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_that_cannot_be_made_leaves_nothing() {
    let fake = Fake::new();
    let (engine, pod) = ready(&fake).await;
    fake.fail("create container", 1);
    let e = engine
        .create_container(&pod, container_spec("c"))
        .await
        .unwrap_err();
    assert_eq!(e.stage(), Some("create container"));
    assert!(engine.containers().is_empty());
    assert!(fake.holdings().snapshots.is_empty());
    engine
        .create_container(&pod, container_spec("c"))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_program_that_cannot_be_started_has_ended() {
    let fake = Fake::new();
    let (engine, pod) = ready(&fake).await;
    let id = engine
        .create_container(&pod, container_spec("c"))
        .await
        .unwrap()
        .to_string();
    fake.fail("start container", 1);
    let e = engine.start_container(&id).await.unwrap_err();
    assert_eq!(e.stage(), Some("start container"));
    let view = engine.container(&id).unwrap();
    assert_eq!((view.state, view.exit_code), (ContainerState::Exited, 128));
    assert_eq!(view.reason, "StartError");
    assert_eq!(
        engine.start_container(&id).await.unwrap_err().kind(),
        Kind::Conflict
    );
}

#[tokio::test(start_paused = true)]
async fn the_shorter_grace_counts() {
    let fake = Fake::new();
    fake.holdings().obeys = false;
    let (engine, _, id) = running(&fake).await;
    let begin = Instant::now();
    let stop = |grace: u64| {
        let (engine, id) = (engine.clone(), id.clone());
        tokio::spawn(async move { engine.stop_container(&id, Duration::from_secs(grace)).await })
    };
    let long = stop(600);
    fake.reached("signal").await;
    let (short, longer) = (stop(5), stop(30));
    for waiting in [long, short, longer] {
        waiting.await.unwrap().unwrap();
    }
    assert_eq!(begin.elapsed().as_secs(), 5);
    assert_eq!((fake.count("signal"), fake.count("kill")), (1, 1));
    assert_eq!(engine.container(&id).unwrap().exit_code, 137);
}

#[tokio::test(start_paused = true)]
async fn no_grace_kills_at_once_and_an_obedient_program_is_not_killed() {
    let fake = Fake::new();
    let (engine, _, id) = running(&fake).await;
    engine.stop_container(&id, MINUTE).await.unwrap();
    assert_eq!((fake.count("signal"), fake.count("kill")), (1, 0));
    assert_eq!(engine.container(&id).unwrap().exit_code, 143);
    let fake = Fake::new();
    let (engine, _, id) = running(&fake).await;
    engine.stop_container(&id, Duration::ZERO).await.unwrap();
    assert_eq!((fake.count("signal"), fake.count("kill")), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_container_that_does_not_die_is_reported_and_killed_again() {
    let fake = Fake::new();
    let (engine, pod, id) = running(&fake).await;
    fake.fail("kill", 1);
    let begin = Instant::now();
    let e = engine
        .stop_container(&id, Duration::ZERO)
        .await
        .unwrap_err();
    assert_eq!((e.kind(), begin.elapsed()), (Kind::Unavailable, KILL_GRACE));
    until_exited(&engine, &id).await;
    engine.remove_pod(&pod).await.unwrap();
    assert!(fake.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_teardown_that_fails_is_told_and_tried_again_in_the_background() {
    for step in [
        "detach network",
        "end shim",
        "forget pod",
        "collect",
        "remove container",
    ] {
        let fake = Fake::new();
        let (engine, pod, _) = running(&fake).await;
        fake.fail(step, 2);
        let e = engine.remove_pod(&pod).await.unwrap_err();
        assert_eq!(e.stage(), Some(step), "{e}");
        // Nobody asks again.
        while !fake.is_clean() {
            tokio::time::sleep(SOON).await;
        }
        engine.run_pod(pod_spec("a")).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_shim_ends_its_containers_and_the_pod_can_be_removed() {
    let fake = Fake::new();
    let (engine, pod, id) = running(&fake).await;
    fake.kill_shim(&pod.parse().unwrap()).await;
    until_exited(&engine, &id).await;
    let view = engine.container(&id).unwrap();
    assert_eq!((view.exit_code, view.reason.as_str()), (255, "Unknown"));
    assert!(!view.message.is_empty());
    assert_eq!(engine.pod(&pod).unwrap().state, PodState::NotReady);
    let e = engine
        .create_container(&pod, container_spec("d"))
        .await
        .unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict);
    engine.stop_pod(&pod).await.unwrap();
    engine.remove_pod(&pod).await.unwrap();
    assert!(fake.is_clean());
}

#[tokio::test(start_paused = true)]
async fn an_exit_that_overtakes_the_start_is_not_lost() {
    let fake = Fake::new();
    let (engine, pod) = ready(&fake).await;
    let id = engine
        .create_container(&pod, container_spec("c"))
        .await
        .unwrap()
        .to_string();
    fake.hold("start container");
    let start = tokio::spawn({
        let (engine, id) = (engine.clone(), id.clone());
        async move { engine.start_container(&id).await }
    });
    fake.reached("start container").await;
    fake.exit(&id, 0, 0).await;
    tokio::time::sleep(SOON).await;
    fake.let_go("start container");
    start.await.unwrap().unwrap();
    until_exited(&engine, &id).await;
    let view = engine.container(&id).unwrap();
    assert_eq!((view.exit_code, view.reason.as_str()), (0, "Completed"));
}
