//! What of the host a container gets, how, and what is refused.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tonic::Code;
use wharf_api::v1::{ContainerConfig, Mount, MountPropagation};
use wharf_testkit::image::Layer;
use wharf_testkit::tar::Entry;
use wharf_testkit::{debian, wait};

use crate::scene::{SOON, Scene, above_busybox, pod_security, refused, security, shell, with};

fn mount(host: &Path, container: &str) -> Mount {
    Mount {
        host_path: host.display().to_string(),
        container_path: container.into(),
        ..Mount::default()
    }
}

fn mounting(config: ContainerConfig, mounts: impl Into<Vec<Mount>>) -> ContainerConfig {
    with(config, |c| c.mounts = mounts.into())
}

/// A mount command in the node's namespaces.
fn on_host(scene: &Scene, words: &[&str]) {
    let mut command = scene.node.place().command(words[0]);
    debian::run(command.args(&words[1..])).unwrap();
}

#[test]
fn volumes_are_written_through_or_read_only_as_asked() {
    let Some(scene) = Scene::begin("volumes_are_written_through") else {
        return;
    };
    let at = scene.node.dir().join("v");
    for dir in ["rw", "ro", "outer", "inner", "real"] {
        fs::create_dir_all(at.join(dir)).unwrap();
        fs::write(at.join(dir).join("name"), dir).unwrap();
    }
    fs::write(at.join("file"), "one file").unwrap();
    symlink("real", at.join("link")).unwrap();
    let readonly = |m: Mount| Mount {
        readonly: true,
        ..m
    };
    let script = "echo new > /rw/new; (echo x > /ro/new) 2>&1; cat /ro/name /a/b/name /a/name /link/name /etc/one; \
        (echo x > /etc/one) 2>&1; ls /missing | wc -l; touch /missing/made; cat /etc/hosts";
    let config = mounting(
        shell("c", script),
        [
            mount(&at.join("rw"), "/rw"),
            readonly(mount(&at.join("ro"), "/ro")),
            // The inner one is named first and must not be covered by the outer one.
            mount(&at.join("inner"), "/a/b"),
            mount(&at.join("outer"), "/a"),
            mount(&at.join("link"), "/link"),
            readonly(mount(&at.join("file"), "/etc/one")),
            mount(&at.join("missing/deep"), "/missing"),
            mount(&at.join("file"), "/etc/hosts"),
        ],
    );
    let pod = scene.pod("volumes");
    let said = pod.finish(&config).1;
    assert_eq!(said.matches("Read-only file system").count(), 2, "{said}");
    assert!(said.contains("roinnerouterrealone file"), "{said}");
    assert!(
        said.contains("\n0\n"),
        "a missing host path was made, empty: {said}"
    );
    assert!(
        said.ends_with("one file"),
        "a mount replaces what we put there: {said}"
    );
    assert_eq!(fs::read_to_string(at.join("rw/new")).unwrap(), "new\n");
    assert!(!at.join("ro/new").exists() && at.join("missing/deep/made").exists());
    pod.end();
    assert!(at.join("rw/new").exists(), "volumes stay when the pod goes");
    scene.leaves_nothing();
}

/// A link in the image leads a mount to another place of the image, and never out of it.
#[test]
fn a_mount_point_that_is_a_link_stays_in_the_container() {
    let Some(scene) = Scene::begin("a_mount_point_that_is_a_link") else {
        return;
    };
    let outside = scene.node.dir().join("outside");
    let source = scene.node.dir().join("source");
    fs::create_dir(&outside).unwrap();
    fs::create_dir(&source).unwrap();
    fs::write(source.join("mark"), "").unwrap();
    let out = outside.display().to_string();
    let up = format!("../../../../../../../..{out}");
    let image = |name: &str, entries: &[Entry]| {
        let layer = Layer::of(entries);
        scene.pull(name, &above_busybox(&[layer]).cmd(&["sh"]).build())
    };
    let within = [
        Entry::dir("real"),
        Entry::symlink("data", "/real"),
        Entry::symlink("deep", "real"),
    ];
    let within = image("within", &within);
    let without = image(
        "without",
        &[Entry::symlink("data", &up), Entry::symlink("deep", &out)],
    );
    let pod = scene.pod("links");
    let config = |name: &str, image: &str, at: &[&str]| {
        with(shell(name, "ls /data /deep/er"), |c| {
            c.image = Some(wharf_testkit::cri::spec(image));
            c.mounts = at.iter().map(|at| mount(&source, at)).collect();
        })
    };
    let (status, said) = pod.finish(&config("within", &within, &["/data", "/deep/er"]));
    assert_eq!(
        (status.exit_code, said.matches("mark").count()),
        (0, 2),
        "{said}"
    );
    for (name, at) in [("itself", "/data"), ("below", "/deep/er")] {
        // Where the link leads there is nothing in the image: made there or refused, never outside.
        if let Ok(container) = pod.create(&config(name, &without, &[at])) {
            scene.cri().start(&container).unwrap();
            scene.exit_of(&container);
        }
        assert_eq!(
            fs::read_dir(&outside).unwrap().count(),
            0,
            "nothing was made outside"
        );
    }
    pod.end();
    scene.leaves_nothing_but_images();
}

#[test]
fn propagation_works_from_shared_mounts_and_is_refused_from_private_ones() {
    let Some(scene) = Scene::begin("propagation_works_from_shared_mounts") else {
        return;
    };
    let at = scene.node.dir().join("private");
    let dir = at.display().to_string();
    fs::create_dir(&at).unwrap();
    let pod = scene.pod_with("propagation", |p| pod_security(p).privileged = true);
    let trailing = |mut config: ContainerConfig| {
        config.mounts[0].container_path = "/./m/".into();
        config
    };
    let with_propagation = |name: &str, script: &str, propagation: MountPropagation| {
        let m = Mount {
            propagation: propagation.into(),
            ..mount(&at, "/m")
        };
        with(mounting(shell(name, script), [m]), |c| {
            security(c).privileged = true;
        })
    };
    for propagation in [
        MountPropagation::PropagationHostToContainer,
        MountPropagation::PropagationBidirectional,
    ] {
        let config = with_propagation("refused", "true", propagation);
        for config in [config.clone(), trailing(config)] {
            refused(
                pod.create(&config),
                Code::InvalidArgument,
                &[&dir, "mount --make-r"],
            );
        }
    }
    on_host(&scene, &["/bin/mount", "-t", "tmpfs", "x", &dir]);
    on_host(&scene, &["/bin/mount", "--make-shared", &dir]);
    on_host(
        &scene,
        &["/bin/mkdir", &format!("{dir}/later"), &format!("{dir}/own")],
    );
    let wait_for = "until [ -e /m/later/mark ]; do sleep 0.01; done; echo came";
    let slave = pod.run(&with_propagation(
        "slave",
        wait_for,
        MountPropagation::PropagationHostToContainer,
    ));
    let private = pod.run(&with_propagation(
        "private",
        "sleep 1000",
        MountPropagation::PropagationPrivate,
    ));
    on_host(
        &scene,
        &["/bin/mount", "-t", "tmpfs", "x", &format!("{dir}/later")],
    );
    on_host(&scene, &["/bin/touch", &format!("{dir}/later/mark")]);
    assert_eq!(scene.exit_of(&slave).exit_code, 0);
    let answer = scene.cri().exec(&private, &["ls", "/m/later"], 10).unwrap();
    assert_eq!(
        answer.stdout, b"",
        "a private mount sees nothing that comes later"
    );
    let script = "mount -t tmpfs x /m/own && touch /m/own/from-inside && sleep 1000";
    pod.run(&with_propagation(
        "both",
        script,
        MountPropagation::PropagationBidirectional,
    ));
    let seen = format!("{dir}/own/from-inside");
    let came = || {
        let mut look = scene.node.place().command("/bin/ls");
        Ok(debian::run(look.arg(&seen)).is_ok())
    };
    assert!(
        wait::until(SOON, came).unwrap(),
        "what it mounts reaches the host"
    );
    pod.end();
    on_host(&scene, &["/bin/umount", "-R", &dir]);
    scene.leaves_nothing();
}

#[test]
fn read_only_can_include_what_is_mounted_below() {
    let Some(scene) = Scene::begin("read_only_can_include_what_is_mounted_below") else {
        return;
    };
    let at = scene.node.dir().join("tree");
    fs::create_dir_all(at.join("sub")).unwrap();
    let sub = at.join("sub").display().to_string();
    on_host(&scene, &["/bin/mount", "-t", "tmpfs", "x", &sub]);
    let scene = scene.settled();
    let pod = scene.pod("rro");
    let script = "(touch /m/x) 2>&1; touch /m/sub/x && echo sub is writable";
    let run = |name: &str, recursive_read_only| {
        let m = Mount {
            readonly: true,
            recursive_read_only,
            ..mount(&at, "/m")
        };
        pod.finish(&mounting(shell(name, script), [m])).1
    };
    let plain = run("plain", false);
    assert!(
        plain.contains("/m/x: Read-only") && plain.contains("sub is writable"),
        "{plain}"
    );
    let all = run("all", true);
    assert!(
        all.contains("/m/x: Read-only") && all.contains("/m/sub/x: Read-only"),
        "{all}"
    );
    pod.end();
    scene.leaves_nothing();
    on_host(&scene, &["/bin/umount", &sub]);
}

/// What a container may write to must not be the host's memory, which /run is.
#[test]
fn the_files_of_a_pod_lie_on_disk_and_go_with_it() {
    let Some(scene) = Scene::begin("the_files_of_a_pod_lie_on_disk") else {
        return;
    };
    let pod = scene.pod("files");
    let script = "head -c 1000000 /dev/zero >> /etc/hosts; sleep 1000";
    let container = pod.run(&shell("c", script));
    let info = scene.info(&container);
    let mounts = info["runtimeSpec"]["mounts"].as_array().unwrap();
    for path in ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"] {
        let mount = mounts.iter().find(|m| m["destination"] == path).unwrap();
        let source = Path::new(mount["source"].as_str().unwrap());
        assert!(source.starts_with(scene.node.root()), "{source:?}");
        assert!(source.exists(), "{source:?}");
        if path == "/etc/hosts" {
            let grown = || Ok(fs::metadata(source)?.len() >= 1_000_000);
            assert!(wait::until(SOON, grown).unwrap());
        }
    }
    pod.end();
    scene.leaves_nothing();
}
