//! The parser alone: formats, limits, and that nothing makes it panic or read on for ever.

use proptest::prelude::*;
use wharf_image::tar::{Entry, EntryKind, Reader, TarError, Time};

use crate::raw::{Raw, record, tar};

type Read = Vec<(Entry, Vec<u8>)>;

/// All entries with their data, holes as zeros. The input comes in pieces of `step` bytes.
fn read_in(tar: &[u8], step: usize) -> Result<Read, TarError> {
    let mut reader = Reader::new(std::io::BufReader::with_capacity(step, tar));
    let mut all = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        while let Some(piece) = reader.next_piece()? {
            let at = usize::try_from(piece.offset).unwrap();
            data.resize(at, 0);
            data.extend_from_slice(piece.data);
        }
        if let EntryKind::File { size } = entry.kind
            && size < 1 << 20
        {
            data.resize(usize::try_from(size).unwrap(), 0);
        }
        all.push((entry, data));
    }
    reader.drain()?;
    Ok(all)
}

fn read(tar: &[u8]) -> Result<Read, TarError> {
    let whole = read_in(tar, 1 << 16);
    let shown = |r: &Result<Read, TarError>| match r {
        Ok(read) => format!("{read:?}"),
        Err(error) => error.to_string(),
    };
    assert_eq!(
        shown(&whole),
        shown(&read_in(tar, 1)),
        "boundaries do not matter"
    );
    whole
}

fn names(tar: &[u8]) -> Vec<String> {
    let all = read(tar).unwrap();
    all.iter()
        .map(|(e, _)| String::from_utf8_lossy(&e.path).into_owned())
        .collect()
}

#[test]
fn long_names_of_every_format_are_read() {
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(99));
    let prefix = Raw::file(&"f".repeat(99), "x").text(345, "d".repeat(150).as_bytes());
    assert_eq!(names(&tar(&[prefix])), [&long[..]]);
    let hundred = "h".repeat(100);
    assert_eq!(names(&tar(&[Raw::file(&hundred, "x")])), [hundred]);
    let very = "v/".repeat(2500) + "v";
    let gnu = Raw::new(b'L', "././@LongLink").data(format!("{very}\0").as_bytes());
    assert_eq!(names(&tar(&[gnu, Raw::file("short", "x")])), [&very[..]]);
    let pax = Raw::file("short", "x").pax("path", very.as_bytes());
    assert_eq!(names(&tar(&[pax])), [very]);
    let target = "t".repeat(300);
    let link = Raw::link(b'2', "l", "short").pax("linkpath", target.as_bytes());
    assert_eq!(
        read(&tar(&[link])).unwrap()[0].0.kind,
        EntryKind::Symlink(target.clone().into())
    );
    let gnu = Raw::new(b'K', "././@LongLink").data(target.as_bytes());
    let link = Raw::link(b'2', "l", "short");
    assert_eq!(
        read(&tar(&[gnu, link])).unwrap()[0].0.kind,
        EntryKind::Symlink(target.into())
    );
}

#[test]
fn numbers_may_be_octal_base_256_or_pax() {
    let big = |n: u64| [&[0x80, 0, 0, 0][..], &n.to_be_bytes()].concat();
    let file = Raw::file("f", "abc")
        .text(124, &big(3))
        .text(108, &[0x80, 0, 0, 0, 0x80, 0, 0, 1]);
    let (entry, data) = read(&tar(&[file])).unwrap().remove(0);
    assert_eq!((entry.uid, &data[..]), (0x8000_0001, &b"abc"[..]));
    let file = Raw::file("f", "abc")
        .pax("uid", b"4294967294")
        .pax("mtime", b"12.345678901");
    let (entry, _) = read(&tar(&[file])).unwrap().remove(0);
    assert_eq!(entry.uid, 4_294_967_294);
    assert_eq!(
        entry.mtime,
        Time {
            seconds: 12,
            nanos: 345_678_901
        }
    );
    let negative = Raw::file("f", "").text(136, &[0xff; 12]);
    assert_eq!(read(&tar(&[negative])).unwrap()[0].0.mtime.seconds, -1);
}

/// CVE-2025-62518: a reader that takes the header's size finds entries inside of data.
#[test]
fn the_pax_size_decides_where_the_next_header_is() {
    let hidden = tar(&[Raw::file("smuggled", "x")]);
    let mut outer = Raw::file("f", "").pax("size", hidden.len().to_string().as_bytes());
    outer.data = hidden;
    assert_eq!(names(&tar(&[outer, Raw::file("next", "")])), ["f", "next"]);
}

#[test]
fn all_four_forms_of_sparse_files_have_the_same_content() {
    let expected = [&b"\0\0\0\0\0\0\0\0\0\0ab"[..], &[0; 8], b"cdef", &[0; 6]].concat();
    let octal = |n: u64| format!("{n:011o}\0").into_bytes();
    let pair = |a, b| [octal(a), octal(b)].concat();
    let old = Raw::new(b'S', "f")
        .text(257, b"ustar  \0")
        .text(386, &[pair(10, 2), pair(20, 4), pair(30, 0)].concat())
        .text(483, &octal(30))
        .data(b"abcdef");
    let v00 = Raw::file("f", "abcdef")
        .pax("GNU.sparse.size", b"30")
        .pax("GNU.sparse.numblocks", b"2")
        .pax("GNU.sparse.offset", b"10")
        .pax("GNU.sparse.numbytes", b"2")
        .pax("GNU.sparse.offset", b"20")
        .pax("GNU.sparse.numbytes", b"4");
    let v01 = Raw::file("x", "abcdef")
        .pax("GNU.sparse.size", b"30")
        .pax("GNU.sparse.map", b"10,2,20,4")
        .pax("GNU.sparse.name", b"f");
    let mut map = b"2\n10\n2\n20\n4\n".to_vec();
    map.resize(512, 0);
    map.extend(b"abcdef");
    let v10 = Raw::new(b'0', "GNUSparseFile.1/f")
        .data(&map)
        .pax("GNU.sparse.major", b"1")
        .pax("GNU.sparse.minor", b"0")
        .pax("GNU.sparse.name", b"f")
        .pax("GNU.sparse.realsize", b"30");
    for form in [old, v00, v01, v10] {
        let all = read(&tar(&[form, Raw::file("next", "n")])).unwrap();
        assert_eq!(all[0].0.path, b"f");
        assert_eq!(all[0].0.kind, EntryKind::File { size: 30 });
        assert_eq!(all[0].1, expected);
        assert_eq!(all[1].0.path, b"next");
    }
}

#[test]
fn a_sparse_map_that_lies_is_refused() {
    let sparse = |map: &str, size: &str| {
        Raw::file("f", "abcdef")
            .pax("GNU.sparse.size", size.as_bytes())
            .pax("GNU.sparse.map", map.as_bytes())
    };
    for (map, size) in [
        ("10,2,5,4", "30"),
        ("10,2,20,4", "23"),
        ("10,2", "30"),
        ("10,2,20", "30"),
        ("10,2,9223372036854775807,4", "30"),
        ("x", "30"),
    ] {
        assert!(read(&tar(&[sparse(map, size)])).is_err(), "{map} {size}");
    }
    let endless = Raw::new(b'0', "f")
        .data(&[b'1'; 2048])
        .pax("GNU.sparse.major", b"1")
        .pax("GNU.sparse.minor", b"0")
        .pax("GNU.sparse.realsize", b"30");
    read(&tar(&[endless])).unwrap_err();
}

#[test]
fn what_is_wrong_is_an_error_and_never_skipped() {
    let good = tar(&[Raw::file("f", "abc")]);
    let mut sum = good.clone();
    sum[0] ^= 1;
    let nul = Raw::file("f", "").pax("path", b"a\0b");
    let bad_pax = Raw::new(b'x', "pax").data(b"7 path\n");
    let huge = Raw::new(b'x', "pax").size(2 << 20);
    let unknown = Raw::new(b'V', "volume");
    let lone = [
        &Raw::file("a", "").bytes()[..],
        &[0; 512],
        &Raw::file("b", "").bytes(),
    ]
    .concat();
    for (what, bytes) in [
        ("checksum", sum),
        ("NUL", tar(&[nul])),
        ("PAX", tar(&[bad_pax, Raw::file("f", "")])),
        ("limit", tar(&[huge])),
        ("type", tar(&[unknown])),
        ("lone zero block", lone),
        ("cut header", good[..200].to_vec()),
        ("cut data", good[..514].to_vec()),
        (
            "size",
            tar(&[Raw::file("f", "").text(124, b"9999\0\0\0\0\0\0\0\0")]),
        ),
        (
            "negative size",
            tar(&[Raw::file("f", "").text(124, &[0xff; 12])]),
        ),
        (
            "device",
            tar(&[Raw::device(b'3', "d", 1, 1).text(329, &[0x80, 0, 0, 1, 0, 0, 0, 0])]),
        ),
        (
            "xattr",
            tar(&[Raw::file("f", "").pax("SCHILY.xattr.", b"x")]),
        ),
        (
            "owner",
            tar(&[Raw::file("f", "").text(108, &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])]),
        ),
    ] {
        assert!(read(&bytes).is_err(), "{what}");
    }
}

#[test]
fn a_missing_end_marker_and_anything_behind_it_are_accepted() {
    let good = tar(&[Raw::file("f", "abc")]);
    assert_eq!(names(&good[..1024]), ["f"], "no marker");
    assert_eq!(names(&good[..515]), ["f"], "no padding either");
    assert_eq!(names(&[&good[..], b"whatever"].concat()), ["f"]);
    assert!(names(&[0; 1024]).is_empty());
    assert!(names(&[]).is_empty());
}

#[test]
fn odd_but_common_headers_are_understood() {
    // V7: a directory is a file whose name ends in a slash; no magic.
    let v7 = Raw::new(0, "dir/").text(257, &[0; 8]);
    assert_eq!(read(&tar(&[v7])).unwrap()[0].0.kind, EntryKind::Directory);
    // Reserved type 7 is a file; global headers are comments; a link has no data, whatever it says.
    let global = Raw::new(b'g', "pax").data(&record(b"path", b"not this"));
    let link = Raw::link(b'1', "link", "file").size(12345);
    let all = [
        global,
        Raw::new(b'7', "file").data(b"abc"),
        link,
        Raw::file("last", ""),
    ];
    assert_eq!(names(&tar(&all)), ["file", "link", "last"]);
    // Signed checksums were written by old programs.
    let mut odd = Raw::file("f\u{e9}", "");
    odd.header[148..156].copy_from_slice(b"        ");
    let sum: i32 = odd.header.iter().map(|b| i32::from(b.cast_signed())).sum();
    odd.header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(names(&tar(&[odd])), ["f\u{e9}"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Bytes changed anywhere in a good archive: entries or an error, at any piece size.
    #[test]
    fn a_damaged_archive_is_read_or_refused(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = tar(&[
            Raw::file("f", "abcdef").pax("GNU.sparse.map", b"1,2,4,4").pax("GNU.sparse.size", b"30"),
            Raw::new(b'L', "l").data(&[b'n'; 300]),
            Raw::file("x", "y").pax("SCHILY.xattr.user.a", b"b").pax("mtime", b"1.5"),
            Raw::link(b'1', "h", "x"),
            Raw::device(b'3', "d", 5, 1),
        ]);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
            // Half of the damage gets a right checksum, to come further.
            let block = at / 512 * 512;
            if value % 2 == 0 {
                bytes[block + 148..block + 156].copy_from_slice(b"        ");
                let sum: u32 = bytes[block..block + 512].iter().map(|b| u32::from(*b)).sum();
                bytes[block + 148..block + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        drop(read(&bytes));
    }
}
