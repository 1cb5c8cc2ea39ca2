//! The user's own pairs when they are bad: every defect is counted, named and limited, or refused in one sentence.

use std::fs;
use std::path::Path;

use keel::data::image::ImageLimits;
use keel::data::pairs::{PairLimits, PairSource, Pairs};
use keel::data::skips::{Reason, SkipLimits};
use keel::error::Error;

use crate::command::keel;
use crate::data_pairs::{folder, images, open};
use crate::data_webdataset::{END, entry, file, tar};

fn refused(path: impl AsRef<Path>) -> String {
    open(path).expect_err("must be refused").to_string()
}

#[test]
fn data_that_are_not_there_or_of_no_known_kind_are_refused_by_name() {
    let png = &images()[0].1;
    let root = folder(&[
        ("a.png", png),
        ("s-0.tar", &tar(&[("a.png", png), ("a.txt", b"x")])),
        ("empty/x.md", b""),
    ]);
    let path = |name: &str| root.path().join(name);
    for missing in ["none", "none.tar", "none.jsonl"] {
        let text = refused(path(missing));
        assert!(
            text.contains(missing) && text.contains("cannot open: No such file"),
            "{text}"
        );
    }
    let text = refused(path("s-{0..1}.tar"));
    assert!(text.contains("s-1.tar: cannot open"), "{text}");
    let text = refused(path("a.png"));
    assert!(
        text.contains("no kind of pairs that is known here; give a folder"),
        "{text}"
    );
    fs::write(path("s.tar.gz"), [0x1f, 0x8b].repeat(300)).unwrap();
    let text = refused(path("s.tar.gz"));
    assert!(
        text.contains("s.tar.gz: invalid gzip header; fetch the file again"),
        "{text}"
    );
    let text = refused(path("empty"));
    assert!(
        text.contains("it holds no pairs; a pair is an image"),
        "{text}"
    );
    fs::create_dir(path("s-1.tar")).unwrap();
    let text = refused(path("s-{0..1}.tar"));
    assert!(text.contains("s-1.tar: it is not a regular file"), "{text}");
    let shards = folder(&[("s-0.tar", b""), ("s-1.tar", b"")]);
    let text = refused(shards.path());
    assert!(
        text.contains("holds 2 .tar files and no images; name the shards themselves"),
        "{text}"
    );
    assert!(refused("pipe:touch x").contains("a command, and none is ever run"));
    assert!(!Path::new("x").exists());
}

/// Forty good samples, so that one bad one stays below one in twenty.
fn forty() -> Vec<u8> {
    let png = &images()[0].1;
    (0..40)
        .flat_map(|n| {
            [
                file(&format!("g{n:02}.png"), png),
                file(&format!("g{n:02}.txt"), b"fine"),
            ]
            .concat()
        })
        .collect()
}

#[test]
fn images_of_kinds_that_are_not_read_are_counted_in_folders_and_shards() {
    let png = &images()[0].1;
    let names: Vec<String> = (0..40).map(|index| format!("red/{index}.png")).collect();
    let mut files: Vec<(&str, &[u8])> = names.iter().map(|name| (&name[..], &png[..])).collect();
    files.push(("red/new.AVIF", b"\0\0\0\x20ftypavif"));
    let bytes = [
        forty(),
        file("z.heic", png),
        file("z.txt", b"a phone's"),
        END.to_vec(),
    ]
    .concat();
    files.push(("s.tar", &bytes));
    let root = folder(&files);
    for (data, said) in [
        (
            root.path().to_owned(),
            "new.AVIF: it is an AVIF; convert it to PNG, JPEG or WebP",
        ),
        (
            root.path().join("s.tar"),
            "z: it is a HEIC; convert it to PNG, JPEG or WebP",
        ),
    ] {
        let pairs = open(data).unwrap();
        let skips = pairs.opening_skips();
        assert_eq!((pairs.len(), skips.skipped_for(Reason::BadImage)), (40, 1));
        assert!(skips.summary().contains(said), "{}", skips.summary());
    }
}

#[test]
fn one_bad_sample_in_a_shard_is_counted_named_and_passed_over() {
    let png = &images()[0].1;
    let nul = *b"00000000000\0";
    let cases: [(Vec<Vec<u8>>, Reason, &str); 9] = [
        (
            vec![file("z.png", png), file("z.txt", b" \n\t")],
            Reason::EmptyCaption,
            "z: its caption is empty",
        ),
        (
            vec![file("z.png", png), file("z.txt", b"\xff\xfe")],
            Reason::NoCaption,
            "z: its caption is not UTF-8",
        ),
        (
            vec![file("z.png", png)],
            Reason::NoCaption,
            "z: it has no caption",
        ),
        (
            vec![file("z.txt", b"words")],
            Reason::NoImage,
            "z: it has no image",
        ),
        (
            vec![file("z.png", png), file("z.json", b"{\"caption\":")],
            Reason::BadRecord,
            "z: it is not JSON",
        ),
        (
            vec![file("z.png", png), file("z.json", b"[]")],
            Reason::BadRecord,
            "z: it is JSON, but no object",
        ),
        (
            vec![file("../z.png", png)],
            Reason::RefusedEntry,
            "../z.png: its name climbs out",
        ),
        (
            vec![entry("z.png", b'2', &nul, b"")],
            Reason::RefusedEntry,
            "z.png: it is a link",
        ),
        (
            vec![file("g00.png", png), file("g00.txt", b"again")],
            Reason::DuplicateKey,
            "g00: its key came before",
        ),
    ];
    for (entries, reason, wanted) in cases {
        let bytes = [forty(), entries.concat(), END.to_vec()].concat();
        let root = folder(&[("s.tar", &bytes)]);
        let pairs = open(root.path().join("s.tar")).unwrap();
        let skips = pairs.opening_skips();
        assert_eq!(
            (pairs.len(), skips.skipped(), skips.skipped_for(reason)),
            (40, 1, 1),
            "{wanted}"
        );
        assert!(
            skips.summary().starts_with(&format!("1 {reason} (")),
            "{}",
            skips.summary()
        );
        assert!(
            skips.summary().contains(&format!("s.tar: {wanted}")),
            "{}",
            skips.summary()
        );
    }
}

#[test]
fn too_many_bad_samples_stop_the_opening_and_the_worst_shard_is_named() {
    let bad = |count: usize| -> Vec<u8> {
        (0..count)
            .flat_map(|n| file(&format!("z{n}.txt"), b"no image"))
            .collect()
    };
    let shard = |count: usize| [forty(), bad(count), END.to_vec()].concat();
    let root = folder(&[("s-0.tar", &shard(1)), ("s-1.tar", &shard(3))]);
    // Four of eighty-four: below one in twenty.
    let pattern = root.path().join("s-{0..1}.tar");
    assert_eq!(open(&pattern).unwrap().len(), 80);
    fs::write(root.path().join("s-1.tar"), shard(4)).unwrap();
    let error = open(&pattern).unwrap_err();
    assert!(matches!(error, Error::Stopped { .. }));
    let text = error.to_string();
    assert!(
        text.contains("s-1.tar: 5 of 85 samples could not be used, more than 5 %: 5 no image ("),
        "{text}"
    );
    assert!(
        text.ends_with(
            "repair the data, or allow more bad samples with --max-bad-samples (20%, for example)"
        ),
        "{text}"
    );
    let skips = SkipLimits {
        max_bad_fraction: 0.06,
        ..SkipLimits::default()
    };
    let limits = PairLimits {
        skips,
        ..PairLimits::default()
    };
    assert_eq!(
        Pairs::open(pattern.to_str().unwrap(), limits)
            .unwrap()
            .len(),
        80
    );
}

#[test]
fn a_damaged_shard_is_an_error_alone_and_counted_among_many() {
    let whole = [forty(), END.to_vec()].concat();
    let root = folder(&[("s-00.tar", &whole[..whole.len() - 2000])]);
    let text = refused(root.path().join("s-00.tar"));
    assert!(
        text.contains("s-00.tar: ") && text.contains("fetch or pack it again"),
        "{text}"
    );
    for n in 1..20 {
        fs::write(root.path().join(format!("s-{n:02}.tar")), &whole).unwrap();
    }
    let pairs = open(root.path().join("s-{00..19}.tar")).unwrap();
    assert_eq!(pairs.opening_skips().skipped_for(Reason::DamagedShard), 1);
    assert_eq!(pairs.len(), 19 * 40 + 39);
    let text = refused(root.path().join("s-{00..18}.tar"));
    assert!(
        text.contains("1 of 19 are damaged: ") && text.contains("s-00.tar"),
        "{text}"
    );
}

#[test]
fn a_broken_line_is_counted_with_its_file_and_number() {
    let png = &images()[0].1;
    let good = "{\"image\": \"a.png\", \"caption\": \"fine\"}\n".repeat(40);
    let cases = [
        (
            "{\"image\": \"a.png\"",
            Reason::BadRecord,
            "it is not JSON (column 17)",
        ),
        ("7", Reason::BadRecord, "it is JSON, but no object"),
        ("{\"caption\": \"x\"}", Reason::NoImage, "it names no image"),
        (
            "{\"image\": [\"a.png\", 7], \"caption\": \"x\"}",
            Reason::BadRecord,
            "its image is neither a path nor a list of paths",
        ),
        (
            "{\"image\": \"../a.png\", \"caption\": \"x\"}",
            Reason::RefusedEntry,
            "not a path below the list's folder",
        ),
        (
            "{\"image\": \"/a.png\", \"caption\": \"x\"}",
            Reason::RefusedEntry,
            "not a path below the list's folder",
        ),
        (
            "{\"image\": \"a.png\"}",
            Reason::NoCaption,
            "neither caption, text, conversations, messages nor answer",
        ),
        (
            "{\"image\": \"a.png\", \"caption\": 7}",
            Reason::BadRecord,
            "its caption is not a string",
        ),
        (
            "{\"image\": \"a.png\", \"text\": \" \"}",
            Reason::EmptyCaption,
            "its caption is empty",
        ),
        (
            "{\"image\": \"a.png\", \"conversations\": []}",
            Reason::BadRecord,
            "no question with an answer",
        ),
    ];
    for (line, reason, wanted) in cases {
        let root = folder(&[
            ("a.png", png),
            ("l.jsonl", format!("{good}{line}\n").as_bytes()),
        ]);
        let pairs = open(root.path().join("l.jsonl")).unwrap();
        let skips = pairs.opening_skips();
        assert_eq!((pairs.len(), skips.skipped_for(reason)), (40, 1), "{line}");
        let summary = skips.summary();
        assert!(
            summary.contains("l.jsonl, line 41: ") && summary.contains(wanted),
            "{summary}"
        );
    }
}

#[test]
fn a_list_without_a_usable_line_is_refused_with_the_first_reasons() {
    let root = folder(&[
        ("l.jsonl", b"{\n}\n"),
        ("one.jsonl", &[b'['; 3 << 20]),
        ("none.jsonl", b"\n\n"),
    ]);
    let text = refused(root.path().join("l.jsonl"));
    assert!(
        text.contains("it holds no usable pairs: 2 unusable record (") && text.contains("line 1"),
        "{text}"
    );
    let text = refused(root.path().join("one.jsonl"));
    assert!(text.contains("one.jsonl: its list is cut short"), "{text}");
    assert!(refused(root.path().join("none.jsonl")).contains("it holds no pairs"));
}

#[test]
fn bad_captions_in_a_folder_are_counted_and_named() {
    let png = &images()[0].1;
    let list = format!(
        "{}b.png no tab\n../c.png\tout\nd.png\t \n",
        "a.png\tfine\n".repeat(80)
    );
    let root = folder(&[("a.png", png), ("captions.txt", list.as_bytes())]);
    let pairs = open(root.path()).unwrap();
    let skips = pairs.opening_skips();
    let counts = [
        Reason::BadRecord,
        Reason::RefusedEntry,
        Reason::EmptyCaption,
    ];
    assert_eq!(
        (pairs.len(), counts.map(|reason| skips.skipped_for(reason))),
        (80, [1, 1, 1])
    );
    assert!(
        skips.summary().contains("captions.txt, line 82: "),
        "{}",
        skips.summary()
    );

    let root = folder(&[("a.png", png), ("b.png", png), ("b.txt", b"  ")]);
    let text = refused(root.path());
    assert!(
        text.contains("a.png: it has no caption; write one"),
        "{text}"
    );
    assert!(text.contains("b.txt: its caption is empty"), "{text}");
}

#[test]
fn drawing_passes_over_bad_images_counts_them_and_stops_when_they_are_many() {
    let png = &images()[0].1;
    let line = |name: &str| format!("{{\"image\": \"{name}\", \"caption\": \"fine\"}}\n");
    let list = format!(
        "{}{}{}",
        line("cut.png"),
        line("none.png"),
        line("a.png").repeat(98)
    );
    let root = folder(&[
        ("a.png", png),
        ("cut.png", &png[..200]),
        ("l.jsonl", list.as_bytes()),
    ]);
    let pairs = open(root.path().join("l.jsonl")).unwrap();
    assert_eq!(pairs.len(), 100);
    let text = pairs.get(0).unwrap_err().to_string();
    assert!(
        text.contains("l.jsonl, line 1: ") && text.contains("cut.png: the image is damaged"),
        "{text}"
    );
    assert!(
        pairs
            .get(1)
            .unwrap_err()
            .to_string()
            .contains("none.png: cannot open")
    );
    for index in 0..100 {
        assert_eq!(pairs.draw(index).unwrap().key, "a.png");
    }
    // The first draw meets both bad lines, the second meets the missing file again.
    let skips = pairs.drawing_skips();
    assert_eq!(
        (
            skips.seen(),
            skips.skipped(),
            pairs.opening_skips().skipped()
        ),
        (103, 3, 0)
    );
    for _ in 0..4 {
        pairs.draw(0).unwrap();
    }
    // 11 of 107 are within three deviations of 5 %; about twice that is not.
    let stop = (0..20)
        .find_map(|_| pairs.draw(0).err())
        .expect("twenty more must be too many");
    assert!(matches!(stop, Error::Stopped { .. }));
    assert!(stop.to_string().contains("l.jsonl: "), "{stop}");
}

#[test]
fn data_whose_every_image_is_bad_end_in_an_error() {
    for (count, wanted) in [
        (3, "no pair is usable: 3 "),
        (50, "20 of 20 samples could not be used"),
    ] {
        let list = "{\"image\": \"none.png\", \"caption\": \"fine\"}\n".repeat(count);
        let root = folder(&[("l.jsonl", list.as_bytes())]);
        let text = open(root.path().join("l.jsonl"))
            .unwrap()
            .draw(1)
            .unwrap_err()
            .to_string();
        assert!(text.contains(wanted), "{text}");
    }
}

#[test]
fn images_above_a_limit_of_bytes_or_pixels_are_refused_where_they_are_drawn() {
    let png = &images()[0].1;
    let root = folder(&[("x/a.png", png)]);
    let text = |limits: PairLimits| {
        let pairs = Pairs::open(root.path().to_str().unwrap(), limits).unwrap();
        pairs.get(0).unwrap_err().to_string()
    };
    let mut limits = PairLimits::default();
    limits.shard.member_bytes = 100;
    assert!(text(limits).contains("the limit is 100; scale it down"));
    let image = ImageLimits { max_pixels: 100 };
    let limits = PairLimits {
        image,
        ..PairLimits::default()
    };
    assert!(text(limits).contains("37 x 26 pixels, the limit is 100; scale it down"));
}

#[test]
fn shards_are_held_to_the_checksums_beside_them() {
    let whole = [forty(), END.to_vec()].concat();
    let root = folder(&[]);
    let shard = |n: usize| root.path().join(format!("s-{n:02}.tar"));
    for n in 0..20 {
        fs::write(shard(n), &whole).unwrap();
    }
    keel(root.path(), &["data", "sums", "s-{00..18}.tar"]).fine();
    let sums = fs::read_to_string(root.path().join("B3SUMS")).unwrap();
    let line = format!("{}  s-00.tar\n", blake3::hash(&whole).to_hex());
    assert!(
        sums.starts_with(&line) && sums.lines().count() == 19,
        "{sums}"
    );
    let all = || open(root.path().join("s-{00..19}.tar"));
    assert_eq!(all().unwrap().len(), 20 * 40);
    // A bit in the middle of an image, which no header shows; the last shard, which is not listed, is not held to anything.
    for n in [7, 19] {
        let mut bytes = whole.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(shard(n), bytes).unwrap();
    }
    let pairs = all().unwrap();
    assert_eq!(pairs.opening_skips().skipped_for(Reason::DamagedShard), 1);
    assert_eq!(pairs.len(), 19 * 40);
    let text = refused(shard(7));
    assert!(
        text.contains("s-07.tar: its content is not what ") && text.contains("B3SUMS says"),
        "{text}"
    );
    // One that is packed again is listed anew, and the others stay.
    keel(root.path(), &["data", "sums", "s-07.tar", "./s-19.tar"]).fine();
    assert_eq!(all().unwrap().len(), 20 * 40);
    let sums = fs::read_to_string(root.path().join("B3SUMS")).unwrap();
    assert!(
        sums.starts_with(&line) && sums.lines().count() == 20,
        "{sums}"
    );
    keel(root.path(), &["data", "sums", "none.tar"]).refused(&["none.tar"]);
    fs::write(root.path().join("B3SUMS"), format!("{line}s-01.tar\n")).unwrap();
    let text = refused(shard(1));
    assert!(text.contains("B3SUMS, line 2: it is no checksum"), "{text}");
}
