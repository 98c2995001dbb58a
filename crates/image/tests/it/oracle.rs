//! The same archive unpacked by GNU tar and by us.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::Command;

use crate::tree::{Layer, What, listing};

/// A tree with one of everything.
fn plant(root: &Path, with_devices: bool) {
    let dir = |p: &str| fs::create_dir_all(root.join(p)).unwrap();
    let file = |p: &str, bytes: &[u8]| fs::write(root.join(p), bytes).unwrap();
    let mode = |p: &str, m| {
        fs::set_permissions(root.join(p), fs::Permissions::from_mode(m)).unwrap();
    };
    dir("usr/bin");
    dir("tmp");
    let long = format!("deep/{}/{}", "d".repeat(120), "e".repeat(120));
    dir(&long);
    file(&format!("{long}/{}", "f".repeat(200)), b"deep");
    file("usr/bin/suid", &[7; 10_000]);
    file("usr/bin/empty", b"");
    file("usr/bin/big", &[9; 3_000_000]);
    fs::hard_link(root.join("usr/bin/suid"), root.join("usr/bin/twin")).unwrap();
    symlink("../bin", root.join("usr/link")).unwrap();
    symlink("x".repeat(180), root.join("usr/long")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    use std::os::unix::fs::FileExt as _;
    sparse.write_all_at(b"middle", 5_000_000).unwrap();
    sparse.set_len(10_000_000).unwrap();
    file("caf\u{e9}", b"name");
    use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};
    mknodat(
        CWD,
        root.join("pipe"),
        FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    if with_devices {
        chown(root.join("usr/bin/suid"), Some(3), Some(4)).unwrap();
        chown(root.join("tmp"), Some(0), Some(50)).unwrap();
        let device = makedev(1, 3);
        let kind = FileType::CharacterDevice;
        mknodat(
            CWD,
            root.join("null"),
            kind,
            Mode::from_raw_mode(0o666),
            device,
        )
        .unwrap();
    }
    mode("usr/bin/suid", 0o4755);
    mode("tmp", 0o3777);
    setxattr(
        root.join("usr/bin/big"),
        "user.note",
        b"value",
        XattrFlags::empty(),
    )
    .unwrap();
}

fn run(command: &mut Command) -> bool {
    command.output().is_ok_and(|o| o.status.success())
}

#[test]
fn every_format_of_gnu_tar_unpacks_as_gnu_tar_does() {
    let root = rustix::process::geteuid().is_root();
    if !run(Command::new("tar").arg("--version")) {
        println!("skipped: no tar");
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let planted = work.path().join("planted");
    fs::create_dir(&planted).unwrap();
    plant(&planted, root);
    for (format, more) in [
        ("gnu", &[][..]),
        ("gnu", &["--sparse"][..]),
        ("pax", &["--xattrs"][..]),
        ("pax", &["--sparse", "--sparse-version=0.0"][..]),
        ("pax", &["--sparse", "--sparse-version=0.1"][..]),
        ("pax", &["--sparse", "--sparse-version=1.0", "--xattrs"][..]),
    ] {
        let what = format!("{format} {more:?}");
        let archive = work.path().join("archive.tar");
        let mut create = Command::new("tar");
        create
            .args(["--format", format, "--numeric-owner", "-C"])
            .arg(&planted);
        create.args(more).args(["-cf"]).arg(&archive).arg(".");
        assert!(run(&mut create), "create {what}");
        let theirs = tempfile::tempdir_in(work.path()).unwrap();
        let mut extract = Command::new("tar");
        extract
            .args(["--xattrs", "--numeric-owner", "-p", "-C"])
            .arg(theirs.path());
        extract.arg("-xf").arg(&archive);
        assert!(run(&mut extract), "extract {what}");
        let layer = Layer::new();
        layer.unpack(&fs::read(&archive).unwrap()).unwrap();
        let mut expected = listing(theirs.path(), What::All);
        let mut real = listing(&layer.tree(), What::All);
        // The root's own attributes are not the layer's.
        expected.remove("");
        real.remove("");
        assert_eq!(real, expected, "{what}");
    }
}
