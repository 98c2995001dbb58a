//! What callers see after a restart of the daemon, with a world of tests below.

use wharf_types::Kind;

use crate::fake::{Fake, SOON, container_spec, pod_spec};
use crate::lifecycle::{MINUTE, ready, running, until_exited};
use crate::pod::recovered::Recovered;
use crate::record::Records;
use crate::view::{ContainerState, PodState};
use crate::world::ShimEvent;

#[tokio::test(start_paused = true)]
async fn a_restart_finds_everything_as_it_is() {
    let fake = Fake::new();
    let (engine, pod, id) = running(&fake).await;
    let created = engine
        .create_container(&pod, container_spec("d"))
        .await
        .unwrap()
        .to_string();
    let ended = engine
        .create_container(&pod, container_spec("e"))
        .await
        .unwrap()
        .to_string();
    engine.start_container(&ended).await.unwrap();
    drop(engine);
    // Ends while no daemon is there.
    fake.holdings()
        .processes
        .get_mut(&ended.parse().unwrap())
        .unwrap()
        .2 = Some(5);
    let engine = fake.restarted().await;
    assert_eq!(engine.pod(&pod).unwrap().state, PodState::Ready);
    until_exited(&engine, &ended).await;
    let view = engine.container(&ended).unwrap();
    assert_eq!((view.exit_code, view.finished_at_ns), (5, 66));
    assert_eq!(
        engine.container(&id).unwrap().state,
        ContainerState::Running
    );
    assert_eq!(
        engine.container(&created).unwrap().state,
        ContainerState::Created
    );
    // Repetitions of what the last daemon answered.
    assert_eq!(
        engine.run_pod(pod_spec("a")).await.unwrap().to_string(),
        pod
    );
    let again = engine
        .create_container(&pod, container_spec("d"))
        .await
        .unwrap();
    assert_eq!(again.to_string(), created);
    engine.start_container(&created).await.unwrap();
    engine.stop_container(&id, MINUTE).await.unwrap();
    engine.remove_pod(&pod).await.unwrap();
    assert!(fake.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_restart_undoes_what_nobody_was_answered() {
    for step in ["prepare pod", "start shim", "attach network", "save pod"] {
        let fake = Fake::new();
        fake.hold(step);
        let engine = fake.engine();
        tokio::time::timeout(SOON, engine.run_pod(pod_spec("a")))
            .await
            .unwrap_err();
        drop(engine);
        tokio::time::sleep(SOON).await;
        // The step of the dead daemon never ends; the next daemon's do.
        let engine = fake.restarted_without(step).await;
        while !fake.is_clean() {
            tokio::time::sleep(SOON).await;
        }
        engine.run_pod(pod_spec("a")).await.unwrap();
    }
    let fake = Fake::new();
    let (engine, pod) = ready(&fake).await;
    fake.hold("create container");
    let cut = tokio::time::timeout(SOON, engine.create_container(&pod, container_spec("c"))).await;
    cut.unwrap_err();
    drop(engine);
    tokio::time::sleep(SOON).await;
    let engine = fake.restarted_without("create container").await;
    while !fake.holdings().snapshots.is_empty() {
        tokio::time::sleep(SOON).await;
    }
    engine
        .create_container(&pod, container_spec("c"))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_shim_that_is_gone_after_a_restart_leaves_its_pod_to_be_removed() {
    let fake = Fake::new();
    let (engine, pod, id) = running(&fake).await;
    drop(engine);
    let key = pod.parse().unwrap();
    fake.holdings().shims.remove(&key);
    fake.holdings().processes.clear();
    let engine = fake.restarted().await;
    until_exited(&engine, &id).await;
    assert_eq!(engine.container(&id).unwrap().exit_code, 255);
    assert_eq!(engine.pod(&pod).unwrap().state, PodState::NotReady);
    engine.remove_pod(&pod).await.unwrap();
    assert!(fake.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_silent_shim_makes_its_own_pod_unknown_until_it_answers() {
    let fake = Fake::new();
    let (engine, pod, id) = running(&fake).await;
    drop(engine);
    fake.hold("silent");
    let engine = fake.restarted().await;
    assert_eq!(engine.pod(&pod).unwrap().state, PodState::Unknown);
    assert_eq!(
        engine.container(&id).unwrap().state,
        ContainerState::Unknown
    );
    engine.run_pod(pod_spec("b")).await.unwrap();
    fake.let_go("silent");
    while engine.pod(&pod).unwrap().state != PodState::Ready {
        tokio::time::sleep(SOON).await;
    }
    assert_eq!(
        engine.container(&id).unwrap().state,
        ContainerState::Running
    );
}

#[tokio::test(start_paused = true)]
async fn a_shim_that_falls_silent_makes_its_own_pod_unknown_until_it_answers() {
    let fake = Fake::new();
    let (engine, pod, id) = running(&fake).await;
    fake.silence_shim(&pod.parse().unwrap()).await;
    while engine.pod(&pod).unwrap().state != PodState::Unknown {
        tokio::time::sleep(SOON).await;
    }
    assert_eq!(
        engine.container(&id).unwrap().state,
        ContainerState::Unknown
    );
    fake.let_go("silent");
    while engine.pod(&pod).unwrap().state != PodState::Ready {
        tokio::time::sleep(SOON).await;
    }
    assert_eq!(
        engine.container(&id).unwrap().state,
        ContainerState::Running
    );
    engine.remove_pod(&pod).await.unwrap();
    assert!(fake.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_shim_that_only_cuts_us_off_is_found_again() {
    let fake = Fake::new();
    let (engine, pod, id) = running(&fake).await;
    // One ends meanwhile: that it did is told by what the shim holds.
    let short = engine.create_container(&pod, container_spec("short")).await;
    let short = short.unwrap().to_string();
    engine.start_container(&short).await.unwrap();
    let events = fake.holdings().shims.get(&pod.parse().unwrap()).cloned();
    fake.holdings()
        .processes
        .get_mut(&short.parse().unwrap())
        .unwrap()
        .2 = Some(5);
    events.unwrap().send(ShimEvent::Lost).await.unwrap();
    until_exited(&engine, &short).await;
    assert_eq!(engine.container(&short).unwrap().exit_code, 5);
    let state = engine.container(&id).unwrap().state;
    assert_eq!(state, ContainerState::Running);
    assert_eq!(engine.pod(&pod).unwrap().state, PodState::Ready);
    engine.remove_pod(&pod).await.unwrap();
    assert!(fake.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_shim_never_answers_again_can_be_removed() {
    let fake = Fake::new();
    let (engine, pod, id) = running(&fake).await;
    fake.silence_shim(&pod.parse().unwrap()).await;
    while engine.pod(&pod).unwrap().state != PodState::Unknown {
        tokio::time::sleep(SOON).await;
    }
    engine.stop_pod(&pod).await.unwrap();
    let view = engine.container(&id).unwrap();
    assert_eq!((view.state, view.exit_code), (ContainerState::Exited, 137));
    engine.remove_pod(&pod).await.unwrap();
    assert!(fake.is_clean());
}

/// What a restart finds when these files of the records are no records.
fn with_broken(fake: &Fake, files: &[String]) -> Vec<Recovered> {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(dir.path()).unwrap();
    let holdings = fake.holdings();
    for pod in holdings.pod_records.values() {
        records.save_pod(pod).unwrap();
    }
    for container in holdings.container_records.values() {
        records.save_container(container).unwrap();
    }
    for file in files {
        std::fs::write(dir.path().join("pods").join(file), b"{").unwrap();
    }
    let loaded = records.load().unwrap().into_iter();
    loaded
        .map(|pod| Recovered::of(pod, "boot".to_owned(), "own".to_owned()))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_record_is_broken_does_not_run_on_unseen() {
    let fake = Fake::new();
    let (engine, pod, _) = running(&fake).await;
    let other = engine.run_pod(pod_spec("b")).await.unwrap().to_string();
    drop(engine);
    let found = with_broken(&fake, &[format!("{pod}/pod.json")]);
    let engine = fake.restarted_with(found).await;
    while fake.holdings().pod_records.len() > 1 {
        tokio::time::sleep(SOON).await;
    }
    assert!(fake.holdings().processes.is_empty());
    assert_eq!(engine.pods().len(), 1);
    assert_eq!(engine.pod(&other).unwrap().state, PodState::Ready);
    engine.run_pod(pod_spec("a")).await.unwrap();
    for pod in engine.pods() {
        engine.remove_pod(pod.id.as_str()).await.unwrap();
    }
    assert!(fake.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_container_whose_record_is_broken_does_not_run_on_unseen() {
    let fake = Fake::new();
    let (engine, pod, broken) = running(&fake).await;
    let whole = engine
        .create_container(&pod, container_spec("whole"))
        .await
        .unwrap()
        .to_string();
    drop(engine);
    let found = with_broken(&fake, &[format!("{pod}/{broken}.json")]);
    let engine = fake.restarted_with(found).await;
    while fake.holdings().processes.len() > 1 {
        tokio::time::sleep(SOON).await;
    }
    engine.container(&broken).unwrap_err();
    engine.start_container(&whole).await.unwrap();
    let again = engine.create_container(&pod, container_spec("c")).await;
    again.unwrap();
    engine.remove_pod(&pod).await.unwrap();
    assert!(fake.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_driver_ended_over_a_fault_gets_another_one() {
    let fake = Fake::new();
    let (engine, pod, id) = running(&fake).await;
    fake.hold("driver fault");
    let e = engine.reopen_container_log(&id).await.unwrap_err();
    assert_eq!(
        (e.kind(), e.stage()),
        (Kind::Unavailable, Some("drive pod"))
    );
    fake.let_go("driver fault");
    assert_eq!(
        engine.container(&id).unwrap().state,
        ContainerState::Running
    );
    // Who asks meanwhile waits for the next driver.
    let same = engine.run_pod(pod_spec("a")).await.unwrap();
    assert_eq!(same.to_string(), pod);
    engine.reopen_container_log(&id).await.unwrap();
    fake.exit(&id, 4, 0).await;
    until_exited(&engine, &id).await;
    assert_eq!(engine.container(&id).unwrap().exit_code, 4);
    engine.remove_pod(&pod).await.unwrap();
    assert!(fake.is_clean());
}
