//! What callers see when several things happen beside each other, with a world of tests below.

use std::time::Duration;

use tokio::time::Instant;
use wharf_types::Kind;

use crate::fake::{Fake, SOON, container_spec, pod_spec};
use crate::lifecycle::{MINUTE, ready, running, until_exited};
use crate::limits::{EXECS_PER_POD_MAX, LABELS_MAX};
use crate::spec::*;
use crate::view::{ContainerState, PodState};

#[tokio::test(start_paused = true)]
async fn want_of_memory_is_said() {
    let fake = Fake::new();
    let (engine, _, id) = running(&fake).await;
    fake.hold("oom");
    fake.exit(&id, 137, 9).await;
    until_exited(&engine, &id).await;
    assert_eq!(engine.container(&id).unwrap().reason, "OOMKilled");
}

#[tokio::test(start_paused = true)]
async fn execs_run_side_by_side_and_end_at_their_deadline() {
    let fake = Fake::new();
    let (engine, _, id) = running(&fake).await;
    fake.hold("exec");
    let exec = |timeout| {
        let request = ExecSyncRequest {
            container: id.clone(),
            cmd: vec!["true".to_owned()],
            timeout,
        };
        let engine = engine.clone();
        tokio::spawn(async move { engine.exec_sync(request).await })
    };
    let (endless, short) = (exec(None), exec(Some(Duration::from_secs(2))));
    assert_eq!(short.await.unwrap().unwrap_err().kind(), Kind::Timeout);
    fake.let_go("exec");
    endless.await.unwrap().unwrap();
    assert_eq!(fake.count("exec"), 2);
}

#[tokio::test(start_paused = true)]
async fn an_exec_that_nobody_waits_for_any_more_is_killed_and_leaves_room() {
    let fake = Fake::new();
    let (engine, _, id) = running(&fake).await;
    let exec = |cmd: &str| {
        let request = ExecSyncRequest {
            container: id.clone(),
            cmd: vec![cmd.to_owned()],
            timeout: None,
        };
        engine.exec_sync(request)
    };
    fake.hold("exec");
    for n in 1..=EXECS_PER_POD_MAX {
        let left = tokio::time::timeout(SOON, exec("sleep")).await;
        left.unwrap_err();
        while fake.count("exec given up") < n {
            tokio::time::sleep(SOON).await;
        }
    }
    fake.let_go("exec");
    exec("true").await.unwrap();
    // A fault of ours leaves room too.
    for _ in 0..EXECS_PER_POD_MAX {
        let e = exec("panic").await.unwrap_err();
        assert_eq!(e.kind(), Kind::Internal, "{e}");
    }
    exec("true").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_written_side_by_side_is_all_in_the_record() {
    let fake = Fake::new();
    let (engine, pod) = ready(&fake).await;
    let id = engine
        .create_container(&pod, container_spec("c"))
        .await
        .unwrap()
        .to_string();
    let record = || fake.holdings().container_records[&id.parse().unwrap()].clone();
    let update = |n| {
        let (engine, id) = (engine.clone(), id.clone());
        let resources = ResourceSpec {
            memory_limit: n,
            ..ResourceSpec::default()
        };
        tokio::spawn(async move { engine.update_container(&id, resources).await })
    };
    fake.hold("save container");
    let (started, updated) = (
        tokio::spawn({
            let (engine, id) = (engine.clone(), id.clone());
            async move { engine.start_container(&id).await }
        }),
        update(1),
    );
    fake.reached("update").await;
    tokio::time::sleep(SOON).await;
    fake.let_go("save container");
    started.await.unwrap().unwrap();
    updated.await.unwrap().unwrap();
    assert!(record().started_at_ns > 0);
    assert_eq!(record().resources.memory_limit, 1);

    fake.hold("save container");
    let updated = update(2);
    while fake.count("update") < 2 {
        tokio::time::sleep(SOON).await;
    }
    fake.exit(&id, 3, 0).await;
    fake.reached("collect").await;
    tokio::time::sleep(SOON).await;
    fake.let_go("save container");
    updated.await.unwrap().unwrap();
    until_exited(&engine, &id).await;
    assert_eq!(record().resources.memory_limit, 2);
    assert_eq!(record().exit.unwrap().code, 3);
    engine.remove_pod(&pod).await.unwrap();
    assert!(fake.is_clean());
}

#[tokio::test(start_paused = true)]
async fn an_update_that_ends_after_the_removal_does_not_bring_the_record_back() {
    let fake = Fake::new();
    let (engine, pod, id) = running(&fake).await;
    fake.hold("update");
    let updated = tokio::spawn({
        let (engine, id) = (engine.clone(), id.clone());
        async move { engine.update_container(&id, ResourceSpec::default()).await }
    });
    fake.reached("update").await;
    engine.remove_container(&id).await.unwrap();
    let saves = fake.count("save container");
    fake.let_go("update");
    drop(updated.await.unwrap());
    tokio::time::sleep(SOON).await;
    assert_eq!(fake.count("save container"), saves);
    assert!(fake.holdings().container_records.is_empty());
    engine.remove_pod(&pod).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn too_many_labels_are_refused_with_their_limit() {
    let fake = Fake::new();
    let (engine, pod) = ready(&fake).await;
    let labels: std::collections::BTreeMap<_, _> = (0..LABELS_MAX)
        .map(|n| (n.to_string(), String::new()))
        .collect();
    let mut container = ContainerSpec {
        labels: labels.clone(),
        ..container_spec("c")
    };
    let mut other = PodSpec {
        labels,
        ..pod_spec("b")
    };
    engine
        .create_container(&pod, container.clone())
        .await
        .unwrap();
    engine.run_pod(other.clone()).await.unwrap();
    let one = || [("one".to_owned(), String::new())].into();
    container.metadata.attempt = 1;
    container.annotations = one();
    other.metadata.attempt = 1;
    other.annotations = one();
    let refusals = [
        engine.create_container(&pod, container).await.unwrap_err(),
        engine.run_pod(other).await.unwrap_err(),
    ];
    for e in refusals {
        assert_eq!(e.kind(), Kind::Exhausted);
        assert!(e.to_string().contains("4096"), "{e}");
    }
}

#[tokio::test(start_paused = true)]
async fn limits_change_one_after_the_other_and_all_or_none() {
    let fake = Fake::new();
    let (engine, _, id) = running(&fake).await;
    let memory = |n| ResourceSpec {
        memory_limit: n,
        ..ResourceSpec::default()
    };
    let shares = ResourceSpec {
        cpu_shares: 5,
        ..ResourceSpec::default()
    };
    let (a, b) = tokio::join!(
        engine.update_container(&id, memory(1)),
        engine.update_container(&id, shares)
    );
    a.and(b).unwrap();
    fake.fail("update", 1);
    assert!(engine.update_container(&id, memory(9)).await.is_err());
    let now = engine.container(&id).unwrap().resources.clone();
    assert_eq!((now.memory_limit, now.cpu_shares), (1, 5));
}

#[tokio::test(start_paused = true)]
async fn readers_never_wait() {
    let fake = Fake::new();
    let (engine, pod, id) = running(&fake).await;
    for step in ["kill", "collect", "detach network", "end shim"] {
        fake.hold(step);
    }
    let cut = tokio::time::timeout(SOON, engine.stop_pod(&pod)).await;
    cut.unwrap_err();
    let begin = Instant::now();
    assert_eq!(engine.pods().len(), 1);
    assert_eq!(
        engine.container(&id).unwrap().state,
        ContainerState::Running
    );
    assert_eq!(engine.pod(&pod).unwrap().stage, "kill containers");
    // Another pod is not held up either.
    engine.run_pod(pod_spec("b")).await.unwrap();
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_stopped_while_it_starts_is_undone() {
    for step in ["prepare pod", "start shim", "attach network", "save pod"] {
        let fake = Fake::new();
        let engine = fake.engine();
        fake.hold(step);
        let run = tokio::spawn({
            let engine = engine.clone();
            async move { engine.run_pod(pod_spec("a")).await }
        });
        fake.reached(step).await;
        let id = fake
            .holdings()
            .pod_records
            .keys()
            .next()
            .unwrap()
            .to_string();
        let remove = tokio::spawn({
            let engine = engine.clone();
            async move { engine.remove_pod(&id).await }
        });
        tokio::time::sleep(SOON).await;
        fake.let_go(step);
        assert!(run.await.unwrap().is_err(), "{step}");
        remove.await.unwrap().unwrap();
        assert!(fake.is_clean(), "{step}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_answered_finds_it_so() {
    let fake = Fake::new();
    let (engine, pod) = ready(&fake).await;
    for n in 0..300 {
        let spec = container_spec(&format!("c{n}"));
        let id = engine
            .create_container(&pod, spec)
            .await
            .unwrap()
            .to_string();
        assert_eq!(
            engine.container(&id).unwrap().state,
            ContainerState::Created
        );
        engine.start_container(&id).await.unwrap();
        assert_eq!(
            engine.container(&id).unwrap().state,
            ContainerState::Running
        );
        engine.stop_container(&id, MINUTE).await.unwrap();
        assert_eq!(engine.container(&id).unwrap().state, ContainerState::Exited);
        engine.remove_container(&id).await.unwrap();
        assert!(engine.containers().is_empty());
    }
    for n in 0..100 {
        let id = engine
            .run_pod(pod_spec(&format!("p{n}")))
            .await
            .unwrap()
            .to_string();
        assert_eq!(engine.pod(&id).unwrap().state, PodState::Ready);
        engine.stop_pod(&id).await.unwrap();
        assert_eq!(engine.pod(&id).unwrap().state, PodState::NotReady);
        engine.remove_pod(&id).await.unwrap();
        assert_eq!(engine.pods().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_without_grace_does_not_wait_for_one_that_has_some() {
    let fake = Fake::new();
    fake.holdings().obeys = false;
    let (engine, _, id) = running(&fake).await;
    let begin = Instant::now();
    let stop = |seconds| {
        let (engine, id) = (engine.clone(), id.clone());
        let grace = Duration::from_secs(seconds);
        tokio::spawn(async move { engine.stop_container(&id, grace).await })
    };
    let patient = stop(30);
    fake.reached("signal").await;
    stop(0).await.unwrap().unwrap();
    patient.await.unwrap().unwrap();
    assert_eq!(begin.elapsed(), Duration::ZERO);
    assert_eq!((fake.count("signal"), fake.count("kill")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_meets_a_start_is_answered_and_leaves_the_name_free() {
    for step in ["prepare pod", "start shim", "attach network", "save pod"] {
        let fake = Fake::new();
        let engine = fake.engine();
        fake.hold(step);
        let run = tokio::spawn({
            let engine = engine.clone();
            async move { engine.run_pod(pod_spec("a")).await }
        });
        fake.reached(step).await;
        let records = fake.holdings().pod_records.clone();
        let id = records.keys().next().unwrap().to_string();
        let stop = tokio::spawn({
            let engine = engine.clone();
            async move { engine.stop_pod(&id).await }
        });
        tokio::time::sleep(SOON).await;
        fake.let_go(step);
        assert!(run.await.unwrap().is_err(), "{step}");
        stop.await.unwrap().unwrap();
        assert!(fake.is_clean(), "{step}");
        engine.run_pod(pod_spec("a")).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn all_who_remove_are_answered_when_it_is_gone() {
    let fake = Fake::new();
    let (engine, pod, id) = running(&fake).await;
    let (one, two) = tokio::join!(engine.remove_container(&id), engine.remove_container(&id));
    one.and(two).unwrap();
    assert_eq!(fake.count("remove container"), 1);
    let (one, two) = tokio::join!(engine.remove_pod(&pod), engine.remove_pod(&pod));
    one.and(two).unwrap();
    assert_eq!(fake.count("forget pod"), 1);
    assert!(fake.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_creation_that_is_being_undone_is_begun_anew_for_who_repeats_it() {
    let fake = Fake::new();
    let (engine, pod) = ready(&fake).await;
    fake.fail("create container", 1);
    fake.hold("remove container");
    let create = |name: &str| {
        let (engine, pod, spec) = (engine.clone(), pod.clone(), container_spec(name));
        tokio::spawn(async move { engine.create_container(&pod, spec).await })
    };
    let first = create("c");
    fake.reached("remove container").await;
    let (second, third) = (create("c"), create("c"));
    tokio::time::sleep(SOON).await;
    fake.let_go("remove container");
    first.await.unwrap().unwrap_err();
    let id = second.await.unwrap().unwrap();
    assert_eq!(third.await.unwrap().unwrap(), id);
    assert_eq!(engine.containers().len(), 1);
    engine.remove_pod(&pod).await.unwrap();
    assert!(fake.is_clean());
}
