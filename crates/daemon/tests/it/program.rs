//! Which program runs, as whom, and what ends it.

use tonic::Code;
use wharf_api::v1::{
    ContainerConfig, ContainerState, Int64Value, Signal, SupplementalGroupsPolicy,
};
use wharf_testkit::cri::spec;
use wharf_testkit::image::Layer;
use wharf_testkit::tar::Entry;

use crate::scene::{Pod, Scene, above_busybox, refused, security, shell, with};

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|w| String::from(*w)).collect()
}

fn of_image(name: &str, image: &str) -> ContainerConfig {
    with(wharf_testkit::cri::container(name, image, &[]), |c| {
        c.args.clear();
    })
}

#[test]
fn a_command_replaces_the_images_words_and_arguments_replace_its_command() {
    let Some(scene) = Scene::begin("a_command_replaces_the_images_words") else {
        return;
    };
    let entry = r#"for a; do printf '[%s]' "$a"; done; echo"#;
    let image = above_busybox(&[])
        .entrypoint(&["sh", "-c", entry, "entry"])
        .cmd(&["cmd"])
        .build();
    let image = scene.pull("entry", &image);
    let bare = scene.pull("bare", &above_busybox(&[]).build());
    let pod = scene.pod("words");
    for (i, (command, args, expected)) in [
        (&[][..], &[][..], "[cmd]\n"),
        (&[], &["-a", "", "two words"], "[-a][][two words]\n"),
        (&["echo", "mine"], &[], "mine\n"),
        (&["echo"], &["-n", "x"], "x"),
    ]
    .into_iter()
    .enumerate()
    {
        let config = with(of_image(&format!("c{i}"), &image), |c| {
            (c.command, c.args) = (words(command), words(args));
        });
        assert_eq!(pod.finish(&config).1, expected, "{command:?} {args:?}");
    }
    refused(
        pod.create(&of_image("nothing", &bare)),
        Code::InvalidArgument,
        &["command"],
    );
    pod.end();
    scene.leaves_nothing_but_images();
}

fn id(pod: &Pod<'_>, config: &ContainerConfig) -> String {
    let (status, said) = pod.finish(config);
    let user = status.user.unwrap().linux.unwrap();
    let mut groups = user.supplemental_groups.clone();
    groups.sort_unstable();
    let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
    let told = format!("{} {} {}\n", user.uid, user.gid, groups.join(" "));
    assert!(
        said.starts_with(&told),
        "the status tells what is: {told:?} {said:?}"
    );
    said
}

const ID: &str = "echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -nu); echo $HOME";

#[test]
fn the_user_is_who_was_asked_for_or_the_images() {
    let Some(scene) = Scene::begin("the_user_is_who_was_asked_for") else {
        return;
    };
    let accounts = Layer::of(&[
        Entry::file(
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\nweb:x:33:44::/srv:/bin/sh\n",
        ),
        Entry::file("etc/group", "root:x:0:\nweb:x:44:\nlogs:x:50:web\n"),
    ]);
    let of = |user: &str| {
        let name = format!("user-{}", user.replace(':', "-"));
        scene.pull(
            &name,
            &above_busybox(std::slice::from_ref(&accounts))
                .user(user)
                .cmd(&["sh"])
                .build(),
        )
    };
    let pod = scene.pod("users");
    for (i, (user, expected)) in [
        ("web", "33 44 44 50\n/srv\n"),
        ("33", "33 44 44 50\n/srv\n"),
        ("web:0", "33 0 0 50\n/srv\n"),
        ("web:logs", "33 50 50\n/srv\n"),
        ("4242", "4242 0 0\n/\n"),
        ("4242:77", "4242 77 77\n/\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let config = with(shell(&format!("i{i}"), ID), |c| {
            c.image = Some(spec(&of(user)));
        });
        assert_eq!(id(&pod, &config), expected, "image user {user}");
    }
    let web = of("web");
    let number = |value| Some(Int64Value { value });
    let asked = |name: &str, set: &dyn Fn(&mut wharf_api::v1::LinuxContainerSecurityContext)| {
        with(shell(name, ID), |c| {
            c.image = Some(spec(&web));
            set(security(c));
        })
    };
    let root = asked("root", &|s| s.run_as_user = number(0));
    assert_eq!(id(&pod, &root), "0 0 0\n/root\n");
    let name = asked("name", &|s| s.run_as_username = "web".into());
    assert_eq!(id(&pod, &name), "33 44 44 50\n/srv\n");
    let group = asked("group", &|s| {
        s.run_as_user = number(33);
        s.run_as_group = number(7);
        s.supplemental_groups = vec![1000, 2000];
    });
    assert_eq!(id(&pod, &group), "33 7 7 50 1000 2000\n/srv\n");
    let strict = asked("strict", &|s| {
        s.run_as_user = number(33);
        s.supplemental_groups = vec![1000];
        s.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
    });
    assert_eq!(id(&pod, &strict), "33 44 44 1000\n/srv\n");
    let ghost = asked("ghost", &|s| s.run_as_username = "ghost".into());
    refused(
        pod.create(&ghost),
        Code::InvalidArgument,
        &["\"ghost\"", "/etc/passwd"],
    );
    let config = with(shell("ghosts", ID), |c| c.image = Some(spec(&of("ghosts"))));
    refused(
        pod.create(&config),
        Code::InvalidArgument,
        &["\"ghosts\"", "/etc/passwd"],
    );
    pod.end();
    scene.leaves_nothing_but_images();
}

/// The program is looked for when the container is created or started; either way its name and the
/// reason are told, nothing runs, and the pod is as before.
#[test]
fn a_program_that_cannot_run_is_named_with_the_reason() {
    let Some(scene) = Scene::begin("a_program_that_cannot_run") else {
        return;
    };
    let layer = Layer::of(&[
        Entry::file("bin/plain", "#!/bin/sh\n"),
        Entry::program("bin/lost", "#!/no/such/interpreter\n"),
        Entry::program("bin/garbage", "\u{7f}ELF, or not"),
        Entry::file("notdir", ""),
    ]);
    let image = scene.pull("programs", &above_busybox(&[layer]).build());
    let scene = scene.settled();
    let pod = scene.pod("programs");
    for (i, (program, words)) in [
        (
            "/no/such/program",
            &["/no/such/program", "No such file"][..],
        ),
        ("nosuchprogram", &["nosuchprogram", "No such file"]),
        ("/notdir/program", &["/notdir/program"]),
        ("/bin/plain", &["/bin/plain", "Permission denied"]),
        ("/etc", &["/etc", "Permission denied"]),
        ("/bin/lost", &["/bin/lost", "No such file"]),
        ("/bin/garbage", &["/bin/garbage", "xec format"]),
    ]
    .into_iter()
    .enumerate()
    {
        let config = with(of_image(&format!("p{i}"), &image), |c| {
            c.command = words_of(program);
        });
        let container = pod.create(&config).unwrap();
        // Not NOT_FOUND: to kubelet that would mean that the container is gone.
        let text = refused(scene.cri().start(&container), Code::InvalidArgument, words);
        let status = scene.cri().container_status(&container).unwrap();
        assert_eq!(status.state(), ContainerState::ContainerExited, "{text}");
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (128, "StartError"),
            "{text}"
        );
        assert!(
            status.message.contains(program),
            "kubelet shows it: {status:?}"
        );
        scene.cri().remove(&container).unwrap();
    }
    assert_eq!(pod.script("good", "echo still"), "still\n");
    pod.end();
    scene.leaves_nothing();
}

fn words_of(program: &str) -> Vec<String> {
    vec![program.into()]
}

#[test]
fn the_stop_signal_is_the_configurations_then_the_images_then_term() {
    let Some(scene) = Scene::begin("the_stop_signal") else {
        return;
    };
    let image = above_busybox(&[])
        .set("StopSignal", "SIGQUIT".into())
        .build();
    let image = scene.pull("signal", &image);
    let pod = scene.pod("signals");
    let script = "trap 'echo got TERM; exit 0' TERM; trap 'echo got QUIT; exit 0' QUIT; \
        trap 'echo got USR1; exit 0' USR1; echo ready; while :; do sleep 0.01; done";
    for (name, image, signal, expected) in [
        ("plain", None, Signal::RuntimeDefault, "TERM"),
        ("image", Some(&image), Signal::RuntimeDefault, "QUIT"),
        ("asked", Some(&image), Signal::Sigusr1, "USR1"),
    ] {
        let config = with(shell(name, script), |c| {
            if let Some(image) = image {
                c.image = Some(spec(image));
            }
            c.stop_signal = signal.into();
        });
        let container = pod.run(&config);
        let status = scene.cri().container_status(&container).unwrap();
        let log = || std::fs::read_to_string(&status.log_path).unwrap();
        wharf_testkit::wait::until(crate::scene::SOON, || Ok(log().contains("ready"))).unwrap();
        assert_eq!(
            Signal::try_from(status.stop_signal).unwrap().as_str_name(),
            format!("SIGNAL_SIG{expected}")
        );
        scene.cri().stop(&container, 20).unwrap();
        assert!(
            log().contains(&format!("got {expected}")),
            "{name}: {}",
            log()
        );
    }
    pod.end();
}

#[test]
fn what_ignores_the_stop_signal_is_killed_when_its_grace_is_over() {
    let Some(scene) = Scene::begin("what_ignores_the_stop_signal") else {
        return;
    };
    let pod = scene.pod("grace");
    for (name, grace) in [("one", 1), ("none", 0)] {
        let container = pod.run(&shell(name, "trap '' TERM; while :; do sleep 0.1; done"));
        scene.cri().stop(&container, grace).unwrap();
        let status = scene.cri().container_status(&container).unwrap();
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (137, "Error"),
            "{name}"
        );
    }
    pod.end();
    scene.leaves_nothing();
}
