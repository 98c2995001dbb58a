//! The same bundle, run by ours, by runc and by crun: the same output, the same exit code.

use serde_json::json;

use crate::rig::{Bundle, Runtime};

#[test]
fn who_a_process_is() {
    let name = "who_a_process_is";
    let script = "id; grep -E '^(Cap|Groups|NoNewPrivs|Seccomp:)' /proc/self/status; hostname; \
                  pwd; umask; echo $$; env | sort; cat /proc/self/cgroup | cut -d: -f3 | sort -u";
    let Some(bundle) = Bundle::script(name, script) else {
        return;
    };
    let ours = bundle.same(name);
    assert_eq!(ours.code, Some(0), "{}", ours.stderr);
    assert!(ours.stdout.starts_with("uid=0(root) gid=0(root)"));
}

#[test]
fn another_user_with_groups_umask_and_cwd() {
    let name = "another_user";
    let script = "id; umask; pwd; touch f; stat -c '%a %u:%g' f; stat -c '%a %u:%g' .; \
                  grep ^Cap /proc/self/status; echo ok > /dev/stdout; echo ok > /dev/stderr";
    let Some(mut bundle) = Bundle::script(name, script) else {
        return;
    };
    bundle.config["process"]["user"] =
        json!({"uid": 1000, "gid": 1001, "additionalGids": [7, 8], "umask": 0o027});
    bundle.config["process"]["cwd"] = json!("/tmp");
    let dir = bundle.rootfs.path().join("tmp");
    std::os::unix::fs::chown(dir, Some(1000), Some(1001)).unwrap();
    let ours = bundle.same(name);
    assert_eq!(ours.code, Some(0), "{}", ours.stderr);
    assert!(ours.stdout.contains("\n0027\n/tmp\n640 1000:1001\n"));
}

#[test]
fn ambient_and_inheritable_capabilities_reach_a_user() {
    let name = "ambient_capabilities";
    let Some(mut bundle) = Bundle::script(name, "grep ^Cap /proc/self/status") else {
        return;
    };
    let one = json!(["CAP_NET_RAW"]);
    bundle.config["process"]["user"]["uid"] = json!(1000);
    bundle.config["process"]["capabilities"] = json!({
        "bounding": ["CAP_NET_RAW", "CAP_CHOWN"], "permitted": one, "effective": one,
        "inheritable": one, "ambient": one,
    });
    let ours = bundle.same(name);
    assert!(ours.stdout.contains("CapAmb:\t0000000000002000"));
}

#[test]
fn no_capabilities_at_all() {
    let name = "no_capabilities";
    let Some(mut bundle) = Bundle::script(name, "grep ^Cap /proc/self/status") else {
        return;
    };
    bundle.config["process"]["capabilities"] = json!({});
    let ours = bundle.same(name);
    assert!(ours.stdout.contains("CapBnd:\t0000000000000000"));
}

#[test]
fn mounts_have_the_same_types_and_options() {
    let name = "mounts";
    // Root's own type and device are the machine's; the order is that of the configuration.
    let script = "awk '$5 != \"/\" { print $5, $6, $(NF-2), $(NF-1) }' /proc/self/mountinfo | sort";
    let Some(bundle) = Bundle::script(name, script) else {
        return;
    };
    let ours = bundle.run(&Runtime::ours());
    println!("{}", ours.stdout);
    let lines = |text: &str| -> Vec<String> {
        let kept = text.lines().filter(|line| {
            // What covers masked and read-only paths is each runtime's own business.
            let masks = [
                "/proc/acpi",
                "/proc/keys",
                "/proc/timer_list",
                "/sys/firmware",
            ];
            !masks.iter().any(|mask| line.starts_with(mask))
        });
        kept.map(str::to_owned).collect()
    };
    for peer in Runtime::peers(name) {
        let theirs = bundle.run(&peer);
        assert_eq!(lines(&ours.stdout), lines(&theirs.stdout), "{}", peer.name);
    }
}

#[test]
fn devices_and_links_of_dev() {
    let name = "devices";
    let script = "for f in null zero full random urandom tty; do stat -c '%n %F %t:%T %a %u:%g' /dev/$f; done; \
                  for f in fd stdin stdout stderr ptmx; do readlink /dev/$f; done; \
                  echo x > /dev/null && head -c 3 /dev/zero | od -An -c; ls /dev";
    let Some(mut bundle) = Bundle::script(name, script) else {
        return;
    };
    bundle.config["linux"]["devices"] = json!([
        {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o600, "uid": 5, "gid": 6},
    ]);
    let ours = bundle.run(&Runtime::ours());
    for peer in Runtime::peers(name) {
        let theirs = bundle.run(&peer);
        // crun makes /dev/core too, runc only where /proc/kcore is.
        let without = |text: &str| text.replace("core\n", "");
        assert_eq!(
            without(&ours.stdout),
            without(&theirs.stdout),
            "{}",
            peer.name
        );
    }
    assert!(
        ours.stdout
            .contains("/dev/null character special file 1:3 666 0:0")
    );
}

#[test]
fn hidden_and_readonly_paths() {
    let name = "hidden_and_readonly_paths";
    let script = "wc -c < /proc/timer_list; ls -A /sys/firmware | wc -l; touch /sys/firmware/x 2>/dev/null; echo $?; \
                  echo 1 2>/dev/null > /proc/sys/vm/swappiness; echo $?; touch /proc/bus/x 2>/dev/null; echo $?; \
                  echo 0 2>/dev/null > /proc/sys/kernel/hostname; echo $?; touch /sys/x 2>/dev/null; echo $?";
    let Some(bundle) = Bundle::script(name, script) else {
        return;
    };
    let ours = bundle.same(name);
    assert!(ours.stdout.starts_with("0\n0\n1\n"), "{}", ours.stdout);
}

#[test]
fn a_masked_path_behind_a_link_of_the_image_stays_masked() {
    let name = "masked_behind_link";
    let Some(mut bundle) =
        Bundle::script(name, "cat /etc/secret; cat /etc/real 2>&1; ls -A /etc/dir")
    else {
        return;
    };
    let etc = bundle.rootfs.path().join("etc");
    std::fs::write(etc.join("real"), "hidden\n").unwrap();
    std::os::unix::fs::symlink("real", etc.join("secret")).unwrap();
    std::fs::create_dir(etc.join("dir")).unwrap();
    std::fs::write(etc.join("dir/file"), "hidden\n").unwrap();
    bundle.config["linux"]["maskedPaths"] = json!(["/etc/secret", "/etc/dir", "/none/of/these"]);
    let ours = bundle.run(&Runtime::ours());
    assert_eq!(
        (ours.stdout.as_str(), ours.code),
        ("", Some(0)),
        "{}",
        ours.stderr
    );
}

#[test]
fn resource_limits_scores_and_kernel_parameters() {
    let name = "resource_limits";
    let script = "ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj \
                  /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced /proc/sys/kernel/domainname";
    let Some(mut bundle) = Bundle::script(name, script) else {
        return;
    };
    bundle.config["domainname"] = json!("example.org");
    bundle.config["process"]["oomScoreAdj"] = json!(321);
    bundle.config["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 500, "hard": 600},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]);
    bundle.config["linux"]["sysctl"] =
        json!({"net.core.somaxconn": "777", "kernel.shm_rmid_forced": "1"});
    let ours = bundle.same(name);
    assert_eq!(
        ours.stdout, "500\n600\n0\n321\n777\n1\nexample.org\n",
        "{}",
        ours.stderr
    );
}

#[test]
fn a_filter_of_system_calls_forbids_what_it_says() {
    let name = "a_filter";
    let script = "grep ^Seccomp: /proc/self/status; mkdir /tmp/x 2>/dev/null; echo $?; uname -s; chroot / true 2>/dev/null; echo $?";
    for no_new_privileges in [true, false] {
        let Some(mut bundle) = Bundle::script(name, script) else {
            return;
        };
        bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bundle.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
                {"names": ["chroot"], "action": "SCMP_ACT_KILL"},
            ],
        });
        let ours = bundle.same(name);
        assert!(
            ours.stdout.starts_with("Seccomp:\t2\n1\nLinux\n"),
            "{ours:?}"
        );
    }
}

#[test]
fn a_filter_need_not_allow_what_only_we_call() {
    let name = "a_filter_need_not";
    let Some(mut bundle) = Bundle::script(name, "echo here") else {
        return;
    };
    bundle.config["process"]["noNewPrivileges"] = json!(false);
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["close_range"], "action": "SCMP_ACT_KILL_PROCESS"}],
    });
    let ours = bundle.run(&Runtime::ours());
    assert_eq!(
        (&*ours.stdout, ours.code),
        ("here\n", Some(0)),
        "{}",
        ours.stderr
    );
}

#[test]
fn a_missing_working_directory_is_made_before_the_root_is_readonly() {
    let name = "a_missing_working_directory";
    let Some(mut bundle) = Bundle::script(name, "pwd; stat -c %u:%g .; touch x 2>&1") else {
        return;
    };
    bundle.config["root"]["readonly"] = json!(true);
    bundle.config["process"]["cwd"] = json!("/var/lib/app");
    bundle.config["process"]["user"] = json!({"uid": 7, "gid": 8});
    let ours = bundle.run(&Runtime::ours());
    assert_eq!(
        ours.stdout, "/var/lib/app\n7:8\ntouch: x: Read-only file system\n",
        "{}",
        ours.stderr
    );
}

#[test]
fn a_readonly_tmpfs_has_the_mount_points_that_lie_in_it() {
    let name = "a_readonly_tmpfs";
    let script = "cat /cover/deep/file; touch /cover/x /dev/x 2>&1; touch /cover/deep/y && echo rw";
    let Some(mut bundle) = Bundle::script(name, script) else {
        return;
    };
    let beside = bundle.rootfs.beside().join("deep");
    std::fs::create_dir(&beside).unwrap();
    std::fs::write(beside.join("file"), "deep\n").unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts[1]["options"]
        .as_array_mut()
        .unwrap()
        .push(json!("ro"));
    mounts.extend([
        json!({"destination": "/cover", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "size=1m"]}),
        json!({"destination": "/cover/deep", "type": "bind", "source": beside, "options": ["bind"]}),
    ]);
    let ours = bundle.run(&Runtime::ours());
    assert_eq!(
        ours.stdout,
        "deep\ntouch: /cover/x: Read-only file system\ntouch: /dev/x: Read-only file system\nrw\n",
        "{}",
        ours.stderr
    );
}

#[test]
fn kernel_parameters_of_a_joined_namespace_that_is_the_hosts_are_refused() {
    let name = "kernel_parameters";
    let cases = [
        ("network", "net", "net.ipv4.ip_forward"),
        ("ipc", "ipc", "kernel.shmmni"),
        ("uts", "uts", "kernel.domainname"),
    ];
    for (kind, file, sysctl) in cases {
        let Some(mut bundle) = Bundle::new(name, &["true"]) else {
            return;
        };
        let linux = &mut bundle.config["linux"];
        let namespaces = linux["namespaces"].as_array_mut().unwrap();
        let entry = namespaces.iter_mut().find(|n| n["type"] == kind).unwrap();
        entry["path"] = json!(format!("/proc/{}/ns/{file}", std::process::id()));
        // What it is already: nothing would change.
        let now = std::fs::read_to_string(format!("/proc/sys/{}", sysctl.replace('.', "/")));
        linux["sysctl"] = json!({sysctl: now.unwrap().trim()});
        bundle.config["hostname"] = json!("");
        let out = bundle.run(&Runtime::ours());
        assert_eq!(out.code, Some(1), "{sysctl}");
        let words = format!("is not allowed in the host's {kind} namespace");
        assert!(out.stderr.contains(&words), "{}", out.stderr);
        assert_eq!(bundle.cgroups(), 0);
    }
}

#[test]
fn volumes_readonly_writable_and_nested() {
    let name = "volumes";
    let script = "cat /ro/file; touch /ro/x 2>/dev/null; echo $?; touch /rw/x; echo $?; cat /rw/nested/file; \
                  touch /rw/nested/y 2>/dev/null; echo $?; cat /etc/one; echo more 2>/dev/null >> /etc/one; echo $?; \
                  echo tmp > /scratch/f && cat /scratch/f; ls /ro/sub";
    let Some(mut bundle) = Bundle::script(name, script) else {
        return;
    };
    let beside = bundle.rootfs.beside().to_owned();
    for dir in ["ro", "ro/sub", "rw", "nested"] {
        std::fs::create_dir(beside.join(dir)).unwrap();
        std::fs::write(beside.join(dir).join("file"), format!("{dir}\n")).unwrap();
    }
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.extend([
        json!({"destination": "/ro", "type": "bind", "source": beside.join("ro"), "options": ["rbind", "ro"]}),
        json!({"destination": "/rw", "type": "bind", "source": beside.join("rw"), "options": ["rbind", "rw", "nosuid", "nodev"]}),
        json!({"destination": "/rw/nested", "type": "bind", "source": beside.join("nested"), "options": ["bind", "ro"]}),
        json!({"destination": "/etc/one", "type": "bind", "source": beside.join("ro/file"), "options": ["bind", "ro"]}),
        json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "noexec"]}),
    ]);
    let ours = bundle.same(name);
    assert_eq!(
        ours.stdout, "ro\n1\n0\nnested\n1\nro\n1\ntmp\nfile\n",
        "{}",
        ours.stderr
    );
}

#[test]
fn a_readonly_root_with_missing_mount_points() {
    let name = "a_readonly_root";
    let script = "touch /x 2>/dev/null; echo $?; touch /a/new/place/x; echo $?; grep ' / ' /proc/mounts | grep -c -E ' ro[, ]'";
    let Some(mut bundle) = Bundle::script(name, script) else {
        return;
    };
    bundle.config["root"]["readonly"] = json!(true);
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/a/new/place", "type": "tmpfs", "source": "tmpfs"}));
    let ours = bundle.same(name);
    assert_eq!(ours.stdout, "1\n0\n1\n", "{}", ours.stderr);
}

#[test]
fn mount_points_behind_links_that_lead_nowhere_yet() {
    let name = "links_that_lead_nowhere";
    let script = "for d in /var/run /data/sub /rel /up; do echo $d; ls $d; done; cat /conf; \
                  cd /; find far srv other etc/up etc/conf | sort; for l in var/run data rel up conf; do readlink /$l; done";
    let Some(mut bundle) = Bundle::script(name, script) else {
        return;
    };
    let root = bundle.rootfs.path();
    let beside = bundle.rootfs.beside().to_owned();
    std::fs::create_dir(beside.join("volume")).unwrap();
    std::fs::write(beside.join("volume/file"), "of the volume\n").unwrap();
    let links = [
        ("var/run", "/far/run"),
        ("data", "/srv/data"),
        ("rel", "other/./place"),
        ("up", "../../../etc/none/../up"),
        ("conf", "/etc/conf"),
    ];
    // As images have them; what the mounts need is made in the root by each runtime anew.
    let fresh = || {
        std::fs::create_dir_all(root.join("var")).unwrap();
        for dir in ["far", "srv", "other", "etc/up", "etc/conf"] {
            let path = root.join(dir);
            drop(std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path)));
        }
        for (link, target) in links {
            drop(std::fs::remove_file(root.join(link)));
            std::os::unix::fs::symlink(target, root.join(link)).unwrap();
        }
    };
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    let volume = beside.join("volume");
    mounts.extend([
        json!({"destination": "/var/run", "type": "tmpfs", "source": "tmpfs"}),
        json!({"destination": "/data/sub", "type": "bind", "source": volume, "options": ["bind", "ro"]}),
        json!({"destination": "/rel", "type": "bind", "source": volume, "options": ["bind", "ro"]}),
        json!({"destination": "/up", "type": "bind", "source": volume, "options": ["bind", "ro"]}),
        json!({"destination": "/conf", "type": "bind", "source": volume.join("file"), "options": ["bind", "ro"]}),
    ]);
    fresh();
    let ours = bundle.run(&Runtime::ours());
    assert_eq!(ours.code, Some(0), "{ours:?}");
    assert!(ours.stdout.contains("/data/sub\nfile\n"), "{ours:?}");
    // crun refuses what leads nowhere.
    for peer in Runtime::peers(name)
        .into_iter()
        .filter(|peer| peer.name == "runc")
    {
        fresh();
        let theirs = bundle.run(&peer);
        assert_eq!(
            ours.stdout, theirs.stdout,
            "{}: {}",
            peer.name, theirs.stderr
        );
    }
    let outside = std::fs::read_dir(&beside).unwrap();
    let outside: Vec<_> = outside.map(|e| e.unwrap().file_name()).collect();
    assert!(!outside.contains(&"far".into()), "{outside:?}");
}

#[test]
fn exit_codes_and_signals() {
    let name = "exit_codes";
    for script in [
        "exit 0",
        "exit 7",
        "exit 255",
        "kill -9 $$; sleep 9",
        "false",
    ] {
        // Its own PID 1 cannot kill itself: a child does, and its code is passed on.
        let script = format!("sh -c '{script}'; exit $?");
        let Some(bundle) = Bundle::script(name, &script) else {
            return;
        };
        bundle.same(name);
    }
}

#[test]
fn a_program_that_cannot_be_executed() {
    let name = "cannot_be_executed";
    for program in ["no-such-program", "/no/such/program", "/etc/passwd", "/etc"] {
        let Some(bundle) = Bundle::new(name, &[program]) else {
            return;
        };
        let ours = bundle.same(name);
        assert_eq!(ours.code, Some(1), "{program}");
        assert!(ours.stderr.contains(program), "{program}: {}", ours.stderr);
    }
    // runc learns of this one when it has nobody left to tell, and ends with 255.
    let Some(bundle) = Bundle::new(name, &["/script"]) else {
        return;
    };
    let script = bundle.rootfs.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    let ours = bundle.run(&Runtime::ours());
    assert_eq!(ours.code, Some(1));
    assert!(
        ours.stderr.contains("execve /script: No such file"),
        "{ours:?}"
    );
}

#[test]
fn a_program_is_found_in_the_path_of_its_environment() {
    let name = "found_in_path";
    let Some(mut bundle) = Bundle::new(name, &["tool"]) else {
        return;
    };
    let opt = bundle.rootfs.path().join("opt");
    std::fs::create_dir(&opt).unwrap();
    std::fs::write(opt.join("tool"), "#!/bin/sh\necho from opt\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(opt.join("tool"), mode).unwrap();
    bundle.config["process"]["env"] = json!(["PATH=/nowhere:/etc:/opt:/bin"]);
    assert_eq!(bundle.same(name).stdout, "from opt\n");
}

#[test]
fn only_stdio_is_inherited() {
    let name = "only_stdio";
    let Some(bundle) = Bundle::new(name, &["ls", "/proc/self/fd"]) else {
        return;
    };
    // 3 is ls's own.
    assert_eq!(bundle.same(name).stdout, "0\n1\n2\n3\n");
}

#[test]
fn namespaces_are_new_or_the_callers_as_asked() {
    let name = "namespaces";
    let script = "for n in pid net ipc uts mnt cgroup; do readlink /proc/self/ns/$n; done";
    let own = |n: &str| std::fs::read_link(format!("/proc/self/ns/{n}")).unwrap();
    let Some(mut bundle) = Bundle::script(name, script) else {
        return;
    };
    bundle.config["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}]);
    bundle.config.as_object_mut().unwrap().remove("hostname");
    // Without a network namespace of its own, sysfs shows the host's network; no more is needed.
    for runtime in std::iter::once(Runtime::ours()).chain(Runtime::peers(name)) {
        let out = bundle.run(&runtime);
        let lines: Vec<&str> = out.stdout.lines().collect();
        assert_eq!(lines.len(), 6, "{}: {}", runtime.name, out.stderr);
        for (line, n) in lines
            .iter()
            .zip(["pid", "net", "ipc", "uts", "mnt", "cgroup"])
        {
            let same = own(n).to_str() == Some(line);
            assert_eq!(same, !matches!(n, "pid" | "mnt"), "{}: {n}", runtime.name);
        }
    }
}

#[test]
fn a_namespace_can_be_joined_by_its_path() {
    let name = "joined_namespace";
    let Some(mut first) = Bundle::script(name, "readlink /proc/self/ns/uts; hostname") else {
        return;
    };
    let mut holder = std::process::Command::new("unshare")
        .args([
            "--uts",
            "sh",
            "-c",
            "hostname elsewhere; echo ready; exec sleep 1000",
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let out = holder.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    let path = format!("/proc/{}/ns/uts", holder.id());
    first.config["linux"]["namespaces"] =
        json!([{"type": "pid"}, {"type": "mount"}, {"type": "uts", "path": path}]);
    first.config.as_object_mut().unwrap().remove("hostname");
    let ours = first.run(&Runtime::ours());
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(ours.stdout.ends_with("\nelsewhere\n"), "{ours:?}");
}

#[test]
fn a_tmpfs_begins_with_what_the_image_has() {
    let name = "tmpcopyup";
    let script = "cat /data/a/f; stat -c '%a %u:%g' /data /data/a /data/a/f; readlink /data/l; echo new > /data/a/g";
    let Some(mut bundle) = Bundle::script(name, script) else {
        return;
    };
    let data = bundle.rootfs.path().join("data");
    std::fs::create_dir_all(data.join("a")).unwrap();
    std::fs::write(data.join("a/f"), "from the image\n").unwrap();
    std::os::unix::fs::chown(data.join("a/f"), Some(12), Some(34)).unwrap();
    std::os::unix::fs::symlink("/nowhere", data.join("l")).unwrap();
    bundle.config["mounts"].as_array_mut().unwrap().push(
        json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
    );
    let ours = bundle.run(&Runtime::ours());
    let wanted = "from the image\n755 0:0\n755 0:0\n644 12:34\n/nowhere\n";
    assert_eq!(ours.stdout, wanted, "{}", ours.stderr);
    assert!(!data.join("a/g").exists());
}

#[test]
fn a_view_of_its_cgroup_is_readonly() {
    let name = "cgroup_view";
    let script = "ls /sys/fs/cgroup | grep -vE '^(systemd|unified)$'; mkdir /sys/fs/cgroup/pids/x 2>/dev/null; echo $?;                   cat /sys/fs/cgroup/pids/cgroup.procs | grep -c '^1$'";
    let Some(mut bundle) = Bundle::script(name, script) else {
        return;
    };
    bundle.config["mounts"].as_array_mut().unwrap().push(json!(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
         "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
    ));
    if std::path::Path::new("/sys/fs/cgroup/pids").exists() {
        let ours = bundle.run(&Runtime::ours());
        assert!(ours.stdout.ends_with("1\n1\n"), "{ours:?}");
        for peer in Runtime::peers(name).iter().filter(|p| p.name == "runc") {
            assert_eq!(ours.stdout, bundle.run(peer).stdout);
        }
    }
    let Some(v2) = Runtime::ours_v2(name) else {
        return;
    };
    bundle.config["process"]["args"] = json!([
        "sh",
        "-c",
        "cat /sys/fs/cgroup/cgroup.procs | grep -c '^1$'; mkdir /sys/fs/cgroup/x 2>/dev/null; echo $?; \
         grep ^0: /proc/self/cgroup; cat /sys/fs/cgroup/cgroup.type"
    ]);
    let ours = bundle.run(&v2);
    assert_eq!(ours.stdout, "1\n1\n0::/\ndomain\n", "{}", ours.stderr);
}

#[test]
fn recursive_attributes_reach_the_mounts_below() {
    let name = "recursive_attributes";
    let script = "touch /v/x 2>/dev/null; echo $?; touch /v/sub/x 2>/dev/null; echo $?; \
                  touch /w/x 2>/dev/null; echo $?; touch /w/sub/x 2>/dev/null; echo $?";
    let Some(mut bundle) = Bundle::script(name, script) else {
        return;
    };
    let volume = bundle.rootfs.beside().join("volume");
    std::fs::create_dir_all(volume.join("sub")).unwrap();
    let mount = |words: &[&str]| {
        let mut command = std::process::Command::new(words[0]);
        assert!(
            command
                .args(&words[1..])
                .arg(volume.join("sub"))
                .status()
                .unwrap()
                .success()
        );
    };
    mount(&["mount", "-t", "tmpfs", "wharf-test"]);
    bundle.config["mounts"].as_array_mut().unwrap().extend([
        json!({"destination": "/v", "type": "bind", "source": volume, "options": ["rbind", "rro"]}),
        json!({"destination": "/w", "type": "bind", "source": volume, "options": ["rbind", "ro"]}),
    ]);
    let ours = bundle.run(&Runtime::ours());
    let theirs: Vec<_> = Runtime::peers(name)
        .iter()
        .map(|peer| bundle.run(peer).stdout)
        .collect();
    mount(&["umount"]);
    assert_eq!(ours.stdout, "1\n1\n1\n0\n", "{}", ours.stderr);
    assert!(theirs.iter().all(|t| *t == ours.stdout), "{theirs:?}");
}

#[test]
fn a_dev_that_is_a_link_of_the_image_leads_nowhere_outside() {
    let name = "a_dev_link";
    let Some(bundle) = Bundle::script(name, "ls -d /dev/null; test -c /dev/null; echo $?") else {
        return;
    };
    let outside = bundle.rootfs.beside().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::remove_dir(bundle.rootfs.path().join("dev")).unwrap();
    std::os::unix::fs::symlink(&outside, bundle.rootfs.path().join("dev")).unwrap();
    let ours = bundle.run(&Runtime::ours());
    // Refused or led back into the image; never made on the host.
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{ours:?}");
}

#[test]
fn its_own_program_is_all_that_a_container_sees_of_programs() {
    let name = "its_own_program";
    let script =
        "readlink /proc/self/exe; readlink /proc/1/exe; cat /proc/1/cmdline | tr '\\0' ' '";
    let Some(bundle) = Bundle::script(name, script) else {
        return;
    };
    let ours = bundle.run(&Runtime::ours());
    assert!(
        ours.stdout.starts_with("/bin/busybox\n/bin/busybox\n"),
        "{ours:?}"
    );
    assert!(!ours.stdout.contains("wharf"), "{ours:?}");
}

#[test]
fn a_working_directory_cannot_be_a_descriptor_of_the_host() {
    let name = "a_working_directory";
    // CVE-2024-21626: a directory of the host that was left open, entered as /proc/self/fd/7.
    for number in 3..20 {
        let Some(mut bundle) = Bundle::script(name, "pwd; ls ../../../../..") else {
            return;
        };
        let cwd = format!("/proc/self/fd/{number}");
        bundle.config["process"]["cwd"] = json!(cwd);
        let ours = bundle.run(&Runtime::ours());
        assert_eq!((ours.stdout.as_str(), ours.code), ("", Some(1)), "{cwd}");
        assert!(ours.stderr.contains("chdir to cwd"), "{ours:?}");
    }
}
