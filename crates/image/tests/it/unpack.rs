//! What becomes of entries: whiteouts row by row, attributes, and names that want to get out.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use proptest::prelude::*;
use wharf_store::LayerPath;
use wharf_testkit::needs_root;
use wharf_types::Kind;

use crate::raw::{Raw, tar};
use crate::tree::{Layer, What, listing, unpacked};

/// The shape of the layer that these entries make: `path what`, the root left out.
fn shape(entries: &[Raw]) -> Vec<String> {
    let (layer, result) = unpacked(&tar(entries));
    result.unwrap();
    let mut all = listing(&layer.tree(), What::Shape);
    all.remove("");
    let short = |what: &str| what.split(" sha256").next().unwrap_or(what).to_owned();
    all.into_iter()
        .map(|(path, what)| format!("{path}: {}", short(&what)))
        .collect()
}

fn refused(entries: &[Raw]) -> String {
    let (layer, result) = unpacked(&tar(entries));
    let before = Layer::new().outside().into_keys().collect::<Vec<_>>();
    assert_eq!(layer.outside().into_keys().collect::<Vec<_>>(), before);
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    error.to_string()
}

/// What whiteouts mean, row by row: entries in order (directories end in a slash), and the layer.
#[test]
fn whiteouts_and_what_they_meet() {
    let table = [
        (".wh.x", "x: whiteout"),
        (".wh.x .wh.x", "x: whiteout"),
        // What the layer brings wins over what it hides.
        (".wh.x x", "x: file 3"),
        ("x .wh.x", "x: file 3"),
        // A directory that is hidden and brought is a new one: nothing shines through.
        (".wh.d d/ d/n", "d: dir opaque, d/n: file 3"),
        ("d/ d/n .wh.d", "d: dir opaque, d/n: file 3"),
        (".wh.d d/n", "d: dir opaque, d/n: file 3"),
        // Below a whiteout there is nothing to hide.
        (".wh.foo foo/.wh.bar", "foo: whiteout"),
        (".wh.foo foo/.wh..wh..opq", "foo: whiteout"),
        // The opaque mark holds for its directory wherever it stands, and needs no whiteouts.
        ("d/.wh..wh..opq d/n d/.wh.old", "d: dir opaque, d/n: file 3"),
        (
            "d/n d/.wh.old d/e/.wh.old d/.wh..wh..opq",
            "d: dir opaque, d/e: dir, d/n: file 3",
        ),
        // Marks of AUFS, and a name that only looks like one.
        (".wh..wh.aufs .wh..wh.plnk/ .wh..wh.plnk/1.2 x", "x: file 3"),
        (".wh....", "...: whiteout"),
    ];
    let entry = |name: &str| match name.strip_suffix('/') {
        Some(_) => Raw::dir(name),
        None => Raw::file(name, "abc"),
    };
    for (entries, expected) in table {
        let raws: Vec<_> = entries.split(' ').map(entry).collect();
        assert_eq!(shape(&raws).join(", "), expected, "{entries}");
    }
    assert_eq!(shape(&[Raw::device(b'3', "x", 0, 0)]), ["x: whiteout"]);
    for bad in [".wh.", ".wh..", ".wh...", "d/.wh.", ".wh.d/x"] {
        assert!(refused(&[entry(bad)]).contains("whiteout"), "{bad}");
    }
}

#[test]
fn later_entries_replace_earlier_ones_and_directories_merge() {
    let f = Raw::file;
    assert_eq!(shape(&[f("x", "old"), f("x", "newer")]), ["x: file 5"]);
    assert_eq!(
        shape(&[Raw::dir("d"), f("d/n", ""), f("d", "abc")]),
        ["d: file 3"]
    );
    assert_eq!(shape(&[f("d", "abc"), Raw::dir("d")]), ["d: dir"]);
    let merged = [
        Raw::dir("d"),
        f("d/n", "a"),
        Raw::dir("d").mode(0o700),
        f("d/m", "b"),
    ];
    assert_eq!(shape(&merged), ["d: dir", "d/m: file 1", "d/n: file 1"]);
    let (layer, result) = unpacked(&tar(&merged));
    result.unwrap();
    assert_eq!(
        fs::metadata(layer.tree().join("d")).unwrap().mode() & 0o7777,
        0o700
    );
    // A link that is replaced by a directory no longer leads elsewhere.
    let relinked = [
        Raw::dir("a"),
        Raw::link(b'2', "l", "a"),
        f("l/1", ""),
        Raw::dir("l"),
        f("l/2", ""),
    ];
    assert_eq!(
        shape(&relinked),
        ["a: dir", "a/1: file 0", "l: dir", "l/2: file 0"]
    );
}

#[test]
fn links_are_followed_within_the_layer_only() {
    let f = Raw::file;
    let usr = [
        Raw::dir("usr/lib"),
        Raw::link(b'2', "lib", "usr/lib"),
        f("lib/x", "abc"),
    ];
    assert_eq!(shape(&usr)[2..], ["usr/lib: dir", "usr/lib/x: file 3"]);
    for target in [
        "/etc",
        "../../../../etc",
        "etc",
        "/../etc/./",
        "./etc/../etc",
    ] {
        let entries = [
            Raw::link(b'2', "l", target),
            f("l/x", "abc"),
            f("l/y", "abc"),
        ];
        let expected = ["etc: dir", "etc/x: file 3", "etc/y: file 3"];
        assert_eq!(shape(&entries)[..3], expected, "{target}");
    }
    let out = [
        Raw::link(b'2', "a/l", "../../outside"),
        f("a/l/secret", "changed"),
    ];
    assert_eq!(shape(&out)[2..], ["outside: dir", "outside/secret: file 7"]);
    assert!(refused(&[Raw::link(b'2', "l", "l"), f("l/x", "")]).contains("too many"));
    assert!(refused(&[f("x", ""), f("x/y", "")]).contains("not a directory"));
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in ["../x", "a/../../x", "..", "/..", "a/../.."] {
        assert!(
            refused(&[Raw::file(name, "x")]).contains("out of the layer"),
            "{name}"
        );
    }
    assert_eq!(
        shape(&[Raw::file("/abs/x", ""), Raw::file("./a/./b", "")])[1],
        "a/b: file 0"
    );
    let deep = "d/".repeat(2100);
    assert!(refused(&[Raw::file("x", "").pax("path", deep.as_bytes())]).contains("2000"));
    let wide = "w".repeat(256);
    assert!(refused(&[Raw::file("x", "").pax("path", wide.as_bytes())]).contains("255"));
    assert!(refused(&[Raw::file("./", "x").text(156, b"2").text(157, b"/etc")]).contains("root"));
    assert!(shape(&[Raw::dir("./"), Raw::dir("/")]).is_empty());
}

#[test]
fn hard_links_reach_only_what_the_layer_holds() {
    let link = |name, target| Raw::link(b'1', name, target);
    let f = Raw::file("f", "abc");
    let s = Raw::link(b'2', "s", "/etc/passwd");
    let all = [
        f.clone(),
        s.clone(),
        link("h", "f"),
        link("hs", "s"),
        link("d/h", "./f"),
    ];
    let (layer, result) = unpacked(&tar(&all));
    result.unwrap();
    assert_eq!(fs::metadata(layer.tree().join("d/h")).unwrap().nlink(), 3);
    assert!(
        fs::symlink_metadata(layer.tree().join("hs"))
            .unwrap()
            .is_symlink()
    );
    for target in ["missing", "/etc/passwd", "d", "../passwd", "s/x", "w", ""] {
        let entries = [
            f.clone(),
            s.clone(),
            Raw::dir("d"),
            Raw::file(".wh.w", ""),
            link("h", target),
        ];
        let error = refused(&entries);
        assert!(
            error.contains("not in this layer") || error.contains("out of"),
            "{error}"
        );
    }
    // The target before the link, always; and a link to itself or again changes nothing.
    assert!(refused(&[link("h", "f"), f.clone()]).contains("not in this layer"));
    let again = [f.clone(), link("f", "f"), link("h", "f"), link("h", "f")];
    assert_eq!(shape(&again), ["f: file 3", "h: file 3"]);
    // Through a link of the layer.
    let through = [
        Raw::dir("a"),
        Raw::file("a/f", "abc"),
        Raw::link(b'2', "b", "a"),
        link("h", "b/f"),
    ];
    assert_eq!(shape(&through)[3], "h: file 3");
}

#[test]
fn attributes_are_exact() {
    if !needs_root("attributes_are_exact") {
        return;
    }
    let caps = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let entries = [
        Raw::dir("sgid").mode(0o2775).owner(0, 50).time(500),
        Raw::file("sgid/mine", "x").mode(0o666),
        Raw::dir("sgid/sub").mode(0o755),
        Raw::file("suid", "x").mode(0o4755).owner(7, 8),
        Raw::file("cap", "x")
            .owner(7, 8)
            .pax("SCHILY.xattr.security.capability", &caps),
        Raw::dir("sticky").mode(0o1777),
        Raw::dir("closed").mode(0),
        Raw::file("closed/f", "x").mode(0),
        Raw::link(b'2', "link", "nowhere").owner(9, 10).time(77),
        Raw::file("big", "")
            .pax("uid", b"2147483649")
            .pax("gid", b"4294967294"),
        Raw::file("old", "").pax("mtime", b"-1.5"),
        Raw::file("fine", "").pax("mtime", b"100.123456789"),
        Raw::file("future", "").pax("mtime", b"9223372037"),
        Raw::device(b'3', "null", 1, 3).mode(0o666),
        Raw::device(b'4', "sda", 8, 0).mode(0o660).owner(0, 6),
        Raw::new(b'6', "pipe").mode(0o622),
    ];
    let (layer, result) = unpacked(&tar(&entries));
    result.unwrap();
    let all = listing(&layer.tree(), What::All);
    let has = |path: &str, text: &str| assert!(all[path].contains(text), "{path}: {}", all[path]);
    has("", "dir 755 0:0 @0.000000000");
    has("sgid", "2775 0:50 @500.000000000");
    has("sgid/mine", "666 0:0 ");
    has("sgid/sub", "dir 755 0:0 ");
    has("suid", "4755 7:8 ");
    has("cap", "security.capability=[1, 0, 0, 2, 0, 32,");
    has("sticky", "1777 ");
    has("closed", "dir 0 0:0 @1000.");
    has("closed/f", " 0 0:0");
    has("link", "9:10 @77.");
    has("big", "2147483649:4294967294");
    has("old", "@0.000000000");
    has("fine", "@100.123456789");
    has("future", "@0.");
    has("null", "device 103 666");
    has("sda", "device 800 660 0:6");
    has("pipe", "fifo 622");
}

#[test]
fn the_last_header_about_a_hard_linked_file_decides() {
    if !needs_root("the_last_header_about_a_hard_linked_file_decides") {
        return;
    }
    let link = Raw::link(b'1', "h", "f").mode(0o6711).owner(3, 4).time(42);
    let (layer, result) = unpacked(&tar(&[Raw::file("f", "abc"), link]));
    result.unwrap();
    let all = listing(&layer.tree(), What::All);
    assert!(all["f"].contains(" 6711 3:4 @42."), "{}", all["f"]);
}

#[test]
fn an_image_cannot_bring_marks_that_overlayfs_or_the_host_obeys() {
    if !needs_root("an_image_cannot_bring_marks_that_overlayfs_or_the_host_obeys") {
        return;
    }
    let dir = [
        "trusted.overlay.opaque",
        "user.overlay.opaque",
        "security.selinux",
        "security.SMACK64",
        "security.apparmor",
        "user.kept",
    ]
    .iter()
    .fold(Raw::dir("d"), |raw, name| {
        raw.pax(&format!("SCHILY.xattr.{name}"), b"y")
    });
    let file = [
        "trusted.overlay.redirect",
        "user.overlay.whiteout",
        "security.ima",
        "user.kept",
    ]
    .iter()
    .fold(Raw::file("f", ""), |raw, name| {
        raw.pax(&format!("SCHILY.xattr.{name}"), b"y")
    });
    // Version 2, CAP_NET_RAW, effective.
    let mut capability = [0; 20];
    (capability[0], capability[3], capability[5]) = (1, 2, 0x20);
    let ping = Raw::file("ping", "").pax("SCHILY.xattr.security.capability", &capability);
    let (layer, result) = unpacked(&tar(&[dir, file, ping]));
    result.unwrap();
    let all = listing(&layer.tree(), What::All);
    assert!(all["ping"].contains("security.capability"), "{all:?}");
    assert!(!all["d"].contains("security"), "{}", all["d"]);
    assert!(all["d"].ends_with(" user.kept=[121]"), "{}", all["d"]);
    assert!(all["f"].ends_with(" user.kept=[121]"), "{}", all["f"]);
    assert!(!all["d"].contains("overlay") && !all["f"].contains("security"));
}

#[test]
fn a_sparse_file_has_holes_and_its_full_size() {
    let sparse = Raw::file("f", "abcdef")
        .pax("GNU.sparse.size", b"100000000")
        .pax("GNU.sparse.map", b"50000000,6");
    let (layer, result) = unpacked(&tar(&[sparse]));
    result.unwrap();
    let meta = fs::metadata(layer.tree().join("f")).unwrap();
    assert_eq!(meta.len(), 100_000_000);
    assert!(meta.blocks() * 512 < 100_000);
}

#[test]
fn facts_name_what_other_layers_decide() {
    let entries = [
        Raw::file("a/b/f", "12345"),
        Raw::dir("a"),
        Raw::file("w/.wh.x", ""),
        Raw::file("o/.wh.y", ""),
        Raw::file("o/.wh..wh..opq", ""),
    ];
    let (_, facts) = unpacked(&tar(&entries));
    let facts = facts.unwrap();
    let paths = |all: &[LayerPath]| {
        all.iter()
            .map(|p| String::from_utf8(p.0.clone()).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(paths(&facts.implied), ["a/b", "o", "w"]);
    assert_eq!(paths(&facts.whiteouts_in), ["w"]);
    assert_eq!(facts.content, 5);
    assert!(!facts.opaque_root && facts.entries > 0 && facts.usage.bytes >= 4096);
    let (_, root) = unpacked(&tar(&[Raw::file(".wh..wh..opq", "")]));
    assert!(root.unwrap().opaque_root);
    let (_, empty) = unpacked(&[0; 1024]);
    assert_eq!(empty.unwrap().entries, 0);
}

/// What a model says of plain entries, whiteouts and opaque marks in any order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    File,
    Dir { opaque: bool },
    Whiteout,
}

#[derive(Debug, Clone)]
enum Step {
    File(Vec<u8>),
    Dir(Vec<u8>),
    Hide(Vec<u8>),
    Opaque(Vec<u8>),
}

type Model = BTreeMap<Vec<u8>, Node>;

/// Makes the directories above; `false`: below a whiteout (only when hiding), or below a file.
fn parents(model: &mut Model, path: &[u8], hiding: bool) -> Option<bool> {
    for n in 1..path.len() {
        match model.get(&path[..n]) {
            None => drop(model.insert(path[..n].to_vec(), Node::Dir { opaque: false })),
            Some(Node::Dir { .. }) => {}
            Some(Node::Whiteout) if hiding => return Some(false),
            Some(Node::Whiteout) => {
                model.insert(path[..n].to_vec(), Node::Dir { opaque: true });
            }
            Some(Node::File) => return None,
        }
    }
    Some(true)
}

fn step(model: &mut Model, step: &Step) -> Option<()> {
    match step {
        Step::File(path) => {
            parents(model, path, false)?;
            model.retain(|p, _| !p.starts_with(path));
            model.insert(path.clone(), Node::File);
        }
        Step::Dir(path) => {
            parents(model, path, false)?;
            match model.get(path) {
                Some(Node::Dir { .. }) => {}
                old => {
                    let opaque = old == Some(&Node::Whiteout);
                    model.insert(path.clone(), Node::Dir { opaque });
                }
            }
        }
        Step::Hide(path) => {
            if parents(model, path, true)? {
                match model.get(path) {
                    None => drop(model.insert(path.clone(), Node::Whiteout)),
                    Some(Node::Dir { .. }) => {
                        model.insert(path.clone(), Node::Dir { opaque: true });
                    }
                    Some(_) => {}
                }
            }
        }
        Step::Opaque(path) => {
            let inside = [&path[..], b"x"].concat();
            if parents(model, &inside, true)? {
                model.insert(path.clone(), Node::Dir { opaque: true });
            }
        }
    }
    Some(())
}

fn shown(model: &Model) -> BTreeMap<String, String> {
    let name = |path: &[u8]| {
        path.iter()
            .map(|b| char::from(*b).to_string())
            .collect::<Vec<_>>()
            .join("/")
    };
    let covered = |path: &[u8]| {
        (1..path.len()).any(|n| model.get(&path[..n]) == Some(&Node::Dir { opaque: true }))
    };
    let mut all = BTreeMap::new();
    for (path, node) in model {
        let text = match node {
            Node::File => "file",
            Node::Dir { opaque: true } => "dir opaque",
            Node::Dir { opaque: false } => "dir",
            Node::Whiteout if covered(path) => continue,
            Node::Whiteout => "whiteout",
        };
        all.insert(name(path), text.to_owned());
    }
    all
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop::sample::select(&b"ab"[..]), 1..4)
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        path().prop_map(Step::File),
        path().prop_map(Step::Dir),
        path().prop_map(Step::Hide),
        path().prop_map(Step::Opaque),
    ]
}

fn raw(step: &Step) -> Raw {
    let join = |path: &[u8], last: String| {
        let mut parts: Vec<_> = path.iter().map(|b| char::from(*b).to_string()).collect();
        parts.push(last);
        parts.join("/")
    };
    let name = |path: &[u8]| char::from(path[path.len() - 1]).to_string();
    match step {
        Step::File(p) => Raw::file(&join(&p[..p.len() - 1], name(p)), "x"),
        Step::Dir(p) => Raw::dir(&join(&p[..p.len() - 1], name(p))),
        Step::Hide(p) => Raw::file(&join(&p[..p.len() - 1], format!(".wh.{}", name(p))), ""),
        Step::Opaque(p) => Raw::file(&join(p, ".wh..wh..opq".to_owned()), ""),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_order_of_entries_and_marks_gives_what_the_model_says(
        steps in proptest::collection::vec(any_step(), 1..14),
    ) {
        let mut model = Model::new();
        let mut fine = true;
        for s in &steps {
            if step(&mut model, s).is_none() {
                fine = false;
                break;
            }
        }
        let (layer, result) = unpacked(&tar(&steps.iter().map(raw).collect::<Vec<_>>()));
        prop_assert_eq!(result.is_ok(), fine, "{:?}", result);
        if fine {
            let mut real = listing(&layer.tree(), What::Shape);
            real.remove("");
            for text in real.values_mut() {
                if text.starts_with("file") {
                    *text = "file".to_owned();
                }
            }
            prop_assert_eq!(real, shown(&model));
        }
    }

    /// Links of every kind, names with `..`, in any order: nothing outside changes.
    #[test]
    fn nothing_outside_the_layer_changes(
        entries in proptest::collection::vec(
            (
                prop::sample::select(&b"01225"[..]),
                prop::sample::select(&["l", "a", "l/secret", "l/a", "a/l", "l/l", "../passwd"][..]),
                prop::sample::select(
                    &["../outside", "..", "../passwd", "/", "@/outside", "@", "a", "l", "../outside/secret"][..],
                ),
            ),
            1..8,
        ),
    ) {
        let layer = Layer::new();
        let above = layer.tree().parent().unwrap().to_str().unwrap().to_owned();
        let raws: Vec<_> = entries
            .iter()
            .map(|(flag, name, target)| match flag {
                b'0' => Raw::file(name, "changed"),
                b'5' => Raw::dir(name).mode(0o777),
                flag => Raw::link(*flag, name, &target.replace('@', &above)),
            })
            .collect();
        let before = layer.outside();
        drop(layer.unpack(&tar(&raws)));
        prop_assert_eq!(layer.outside(), before);
    }
}

/// Links so that `s0/x` is really below 15 directories with long names, `s1/x` below 30…
fn lengthening(n: usize) -> Vec<Raw> {
    let long = vec!["p".repeat(250); 15].join("/");
    let target = |i: usize| match i.checked_sub(1) {
        Some(before) => format!("s{before}/{long}"),
        None => long.clone(),
    };
    (0..n)
        .map(|i| Raw::link(b'2', &format!("s{i}"), "").pax("linkpath", target(i).as_bytes()))
        .collect()
}

#[test]
fn links_cannot_lengthen_a_path_without_end() {
    let mut entries = lengthening(9);
    entries.push(Raw::file("s7/f", "abc"));
    let (_, result) = unpacked(&tar(&entries));
    result.unwrap();
    entries.push(Raw::file("s8/f", "abc"));
    let error = unpacked(&tar(&entries)).1.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    let error = error.to_string();
    assert!(error.contains("that links lead to"), "{error}");
}

#[test]
fn the_memory_that_directories_take_is_limited() {
    let exhausted = |entries: &[Raw], what: &str| {
        let error = unpacked(&tar(entries)).1.unwrap_err();
        assert_eq!(error.kind(), Kind::Exhausted, "{error}");
        assert!(error.to_string().contains(what), "{error}");
    };
    let many = |n: usize, entry: &dyn Fn(usize) -> Raw| {
        let mut all = lengthening(8);
        all.extend((0..n).map(entry));
        all
    };
    let described = many(3000, &|i| Raw::dir(&format!("s7/{i}")));
    exhausted(&described, "bytes of directory names");
    let implied = many(200, &|i| Raw::file(&format!("s7/{i}/f"), ""));
    exhausted(&implied, "implied directories");
    let hiding = many(400, &|i| match i % 2 {
        0 => Raw::dir(&format!("s7/{i}")),
        _ => Raw::file(&format!("s7/{}/.wh.x", i - 1), ""),
    });
    exhausted(&hiding, "directories with whiteouts");
}
