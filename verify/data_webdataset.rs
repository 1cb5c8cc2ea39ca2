//! Shards: samples are grouped by key, and every way an archive can lie or be cut ends in a sentence.

use std::path::Path;

use keel::data::archive::InputFile;
use keel::data::webdataset::{Defect, Shard, ShardItem, ShardLimits, ShardSample, expand_braces};
use keel::error::Error;

use crate::allocations::measure;

/// Ends an archive: two blocks of zeros.
pub const END: [u8; 1024] = [0; 1024];

/// One archive entry, header and padded content, with nothing checked.
pub fn entry(name: &str, kind: u8, claimed: &[u8; 12], content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(claimed);
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut header);
    let mut bytes = header.to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Writes the checksum.
fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header[..512].iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn octal(size: usize) -> [u8; 12] {
    format!("{size:011o}\0").into_bytes().try_into().unwrap()
}

/// A regular file.
pub fn file(name: &str, content: &[u8]) -> Vec<u8> {
    entry(name, b'0', &octal(content.len()), content)
}

/// An archive of regular files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes: Vec<u8> = files
        .iter()
        .flat_map(|(name, content)| file(name, content))
        .collect();
    bytes.extend(END);
    bytes
}

/// What walking over an archive gives: samples, "defect key: reason" lines, and the last error.
#[derive(Default, Debug)]
struct Walk {
    samples: Vec<ShardSample>,
    skipped: Vec<(Defect, String)>,
    error: Option<String>,
}

fn walk_limited(bytes: Vec<u8>, limits: ShardLimits) -> Walk {
    let shard = Shard::from_bytes("s.tar", bytes);
    let mut walk = Walk::default();
    for step in shard.samples(limits) {
        assert!(walk.error.is_none(), "nothing comes after an error");
        match step {
            Ok(ShardItem::Sample(sample)) => walk.samples.push(sample),
            Ok(ShardItem::Skipped(defect, name, reason)) => {
                walk.skipped.push((defect, format!("{name}: {reason}")))
            }
            Err(error) => {
                assert!(matches!(error, Error::Content { .. }));
                walk.error = Some(error.to_string());
            }
        }
    }
    walk
}

fn walk(bytes: Vec<u8>) -> Walk {
    walk_limited(bytes, ShardLimits::default())
}

fn keys(walk: &Walk) -> Vec<&str> {
    walk.samples
        .iter()
        .map(|sample| sample.key.as_str())
        .collect()
}

#[test]
fn neighbours_with_one_key_form_a_sample_and_keyless_files_are_passed_over() {
    let bytes = tar(&[
        ("README", b"about"),
        ("./a/001.jpg", b"first"),
        ("./a/001.caption.TXT", b"words"),
        ("a/._002.jpg", b"finder"),
        ("a/002.png", b"second"),
        (".DS_Store", b""),
        ("b/002.json", b"{}"),
    ]);
    let walk = walk(bytes.clone());
    assert_eq!(keys(&walk), ["a/001", "a/002", "b/002"]);
    assert!(walk.skipped.is_empty() && walk.error.is_none(), "{walk:?}");
    let endings: Vec<&str> = walk.samples[0]
        .members
        .iter()
        .map(|m| m.ending.as_str())
        .collect();
    assert_eq!(endings, ["jpg", "caption.txt"]);
    let shard = Shard::from_bytes("s.tar", bytes);
    assert_eq!(
        shard
            .read(walk.samples[0].member(&["caption.txt"]).unwrap())
            .unwrap(),
        b"words"
    );
    assert_eq!(
        shard
            .read(walk.samples[1].member(&["jpg", "png"]).unwrap())
            .unwrap(),
        b"second"
    );
}

#[test]
fn long_names_are_read_in_every_form_that_archivers_write() {
    let long = format!("{}/{}.jpg", "f".repeat(120), "k".repeat(90));
    let mut gnu = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    gnu.append_data(&mut header, &long, &b"gnu!"[..]).unwrap();
    let gnu = gnu.into_inner().unwrap();

    let record = format!(" path={long}\n");
    let record = format!("{}{record}", record.len() + 3);
    let pax = [
        entry(
            "PaxHeaders/x",
            b'x',
            &octal(record.len()),
            record.as_bytes(),
        ),
        file("short.jpg", b"pax!"),
        END.to_vec(),
    ]
    .concat();

    let mut prefixed = file(&long[121..], b"ustr");
    prefixed[345..345 + 120].fill(b'f');
    seal(&mut prefixed);
    prefixed.extend(END);

    for (bytes, content) in [(gnu, b"gnu!"), (pax, b"pax!"), (prefixed, b"ustr")] {
        let found = walk(bytes.clone());
        assert_eq!(keys(&found), [&long[..long.len() - 4]], "{found:?}");
        let read = Shard::from_bytes("s.tar", bytes)
            .read(&found.samples[0].members[0])
            .unwrap();
        assert_eq!(read, content);
    }
}

#[test]
fn an_archive_cut_anywhere_before_its_end_marker_is_an_error() {
    let whole = tar(&[
        ("a.jpg", &[7; 700]),
        ("a.txt", b"one"),
        ("b.jpg", &[8; 30]),
        ("b.txt", b"two"),
    ]);
    let data = whole.len() - END.len();
    for length in 0..data + 512 {
        let walk = walk(whole[..length].to_vec());
        let error = walk
            .error
            .unwrap_or_else(|| panic!("a cut at {length} of {data} goes unnoticed"));
        assert!(
            error.starts_with("s.tar: ") && error.contains("pack it again"),
            "{error}"
        );
        // A sample is given out only once an entry of the next is there whole, so never in halves.
        assert!(
            walk.samples.iter().all(|sample| sample.members.len() == 2),
            "at {length}"
        );
        assert_eq!(
            walk.samples.len(),
            usize::from(length >= 2560 + 512 + 30),
            "at {length}"
        );
    }
    for length in data + 512..=whole.len() {
        assert_eq!(walk(whole[..length].to_vec()).samples.len(), 2);
    }
}

#[test]
fn the_message_for_a_cut_archive_tells_border_header_and_content_apart() {
    let whole = tar(&[("a.jpg", &[7; 700])]);
    let cases = [
        (0, "the archive is empty"),
        (100, "cut short inside the header at byte 0"),
        (
            600,
            "entry a.jpg claims 700 bytes, 88 are left in the archive",
        ),
        (1536, "its 1536 bytes have no end marker"),
    ];
    for (length, wanted) in cases {
        let error = walk(whole[..length].to_vec()).error.unwrap();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn names_that_climb_out_links_and_devices_are_refused_one_by_one() {
    let none = octal(0);
    let bytes = [
        file("a.txt", b"fine"),
        file("../../etc/x.jpg", b"climbs"),
        file("b/../../x.jpg", b"climbs"),
        file("/etc/passwd.txt", b"absolute"),
        entry("l.jpg", b'2', &none, b""),
        entry("h.jpg", b'1', &none, b""),
        entry("c.jpg", b'3', &none, b""),
        entry("d.jpg", b'4', &none, b""),
        entry("p.jpg", b'6', &none, b""),
        entry("s.jpg", b'S', &none, b""),
        entry("q.jpg", b'?', &none, b""),
        entry("folder.d/", b'5', &none, b""),
        file("z..txt", b"fine"),
        END.to_vec(),
    ]
    .concat();
    let walk = walk(bytes);
    assert!(walk.error.is_none());
    assert_eq!(keys(&walk), ["a", "z"]);
    assert!(
        walk.skipped
            .iter()
            .all(|(defect, _)| *defect == Defect::RefusedEntry)
    );
    let reasons: Vec<&str> = walk
        .skipped
        .iter()
        .map(|(_, reason)| reason.as_str())
        .collect();
    assert_eq!(
        reasons,
        [
            "../../etc/x.jpg: its name climbs out of the archive",
            "b/../../x.jpg: its name climbs out of the archive",
            "/etc/passwd.txt: its name is an absolute path",
            "l.jpg: it is a link",
            "h.jpg: it is a link",
            "c.jpg: it is a device",
            "d.jpg: it is a device",
            "p.jpg: it is a device",
            "s.jpg: it is a sparse file",
            "q.jpg: its kind is unknown",
        ]
    );
}

#[test]
fn a_link_inside_a_sample_takes_the_sample_with_it() {
    let bytes = [
        file("a.txt", b"words"),
        entry("a.jpg", b'2', &octal(0), b""),
        END.to_vec(),
    ]
    .concat();
    let walk = walk(bytes);
    assert!(walk.samples.is_empty());
    assert_eq!(
        walk.skipped,
        [(Defect::RefusedEntry, "a: a.jpg: it is a link".to_owned())]
    );
}

#[test]
fn keys_that_come_again_and_endings_that_come_twice_are_skipped_and_named() {
    let interleaved = walk(tar(&[
        ("a.jpg", b"1"),
        ("b.jpg", b"2"),
        ("a.txt", b"3"),
        ("b.txt", b"4"),
    ]));
    assert_eq!(keys(&interleaved), ["a", "b"]);
    let reason = "its key came before; a sample's files must lie side by side";
    let wanted = ["a", "b"].map(|key| (Defect::DuplicateKey, format!("{key}: {reason}")));
    assert_eq!(interleaved.skipped, wanted);
    let twice = walk(tar(&[("a.jpg", b"1"), ("a.JPG", b"2"), ("b.jpg", b"3")]));
    assert_eq!(keys(&twice), ["b"]);
    assert_eq!(
        twice.skipped,
        [(Defect::DuplicateKey, "a: a.JPG is there twice".to_owned())]
    );
}

#[test]
fn sizes_that_are_not_there_are_errors_and_take_no_memory() {
    let pax = |record: &str| {
        let record = format!("{} {record}\n", record.len() + 4);
        let header = entry("x", b'x', &octal(record.len()), record.as_bytes());
        [header, file("a.jpg", b"tiny"), END.to_vec()].concat()
    };
    let mut binary = [0xff_u8; 12];
    binary[0] = 0x80;
    let cases: [(Vec<u8>, &str); 6] = [
        (
            entry("a.jpg", b'0', b"100000000000", b"tiny"),
            "entry a.jpg claims 8589934592 bytes",
        ),
        (
            entry("a.jpg", b'0', &binary, b"tiny"),
            "its size is not a number",
        ),
        (
            pax("size=18446744073709551615"),
            "entry a.jpg claims 18446744073709551615 bytes",
        ),
        (
            pax("size=18446744073709551616"),
            "the size is not a number in the extended header",
        ),
        (
            entry("x", b'L', b"010000000000", b"tiny"),
            "entry x claims 1073741824 bytes",
        ),
        (
            [
                entry("x", b'L', &octal(2 << 20), &vec![b'n'; 2 << 20]),
                END.to_vec(),
            ]
            .concat(),
            "a name of 2097152 bytes is claimed",
        ),
    ];
    for (bytes, wanted) in cases {
        let (walk, allocated) = measure(|| walk(bytes));
        let error = walk.error.unwrap();
        assert!(error.contains(wanted), "{error}");
        assert!(allocated.peak_bytes < 1 << 16, "{wanted}: {allocated:?}");
    }
}

#[test]
fn members_and_samples_above_their_limits_are_skipped_and_the_rest_is_kept() {
    let bytes = tar(&[
        ("a.jpg", &[0; 100]),
        ("b.jpg", &[0; 101]),
        ("c.jpg", &[0; 90]),
        ("c.txt", &[0; 61]),
        ("d.jpg", &[0; 90]),
        ("d.txt", &[0; 60]),
    ]);
    let limits = ShardLimits {
        member_bytes: 100,
        sample_bytes: 150,
    };
    let walk = walk_limited(bytes, limits);
    assert_eq!(keys(&walk), ["a", "d"]);
    assert_eq!(
        walk.skipped,
        [
            (
                Defect::TooLarge,
                "b: b.jpg has 101 bytes, the limit is 100".to_owned()
            ),
            (
                Defect::TooLarge,
                "c: its files have more than 150 bytes".to_owned()
            ),
        ]
    );
}

#[test]
fn data_behind_the_end_marker_are_an_error_and_padding_is_not() {
    let one = tar(&[("a.jpg", b"1")]);
    let strung = [one.clone(), tar(&[("b.jpg", b"2")])].concat();
    let error = walk(strung).error.unwrap();
    assert!(
        error.contains("there are data behind the end marker at byte 1024"),
        "{error}"
    );
    let padded = [one, vec![0; 200_000]].concat();
    assert_eq!(keys(&walk(padded)), ["a"]);
}

#[test]
fn a_damaged_header_is_named_by_its_place() {
    let whole = tar(&[("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"3")]);
    for place in (1024..1536).filter(|place| !(1024 + 148..1024 + 156).contains(place)) {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x15;
        let walk = walk(damaged);
        let error = walk
            .error
            .unwrap_or_else(|| panic!("byte {place} is not protected"));
        assert!(
            error.contains("the header at byte 1024 is damaged"),
            "{error}"
        );
    }
}

#[test]
fn files_that_are_no_tar_are_named_for_what_they_are() {
    let cases: [(&[u8], &str); 6] = [
        (&[0x1f, 0x8b, 8], "gzip-compressed; unpack it with gunzip"),
        (
            &[0x28, 0xb5, 0x2f, 0xfd],
            "zstd-compressed; unpack it with unzstd",
        ),
        (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz-compressed"),
        (b"PK\x03\x04", "a zip archive; pack it as tar"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a Git LFS pointer",
        ),
        (b"<html>", "not a tar archive"),
    ];
    for (start, wanted) in cases {
        let mut bytes = start.to_vec();
        bytes.resize(2000, b'x');
        let error = walk(bytes).error.unwrap();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn reading_beyond_the_end_is_an_error_and_takes_no_memory() {
    let source = InputFile::memory("m", vec![1, 2, 3]);
    for (offset, size) in [(0, 4), (3, 1), (u64::MAX, 1), (1, u64::MAX), (0, 1 << 40)] {
        let (outcome, allocated) = measure(|| source.read(offset, size));
        assert!(outcome.is_err() && allocated.peak_bytes < 4096);
    }
    assert_eq!(source.read(1, 2).unwrap(), [2, 3]);
}

#[test]
fn a_file_is_read_with_its_handle_and_without_and_noticed_when_it_shrinks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.tar");
    std::fs::write(&path, tar(&[("a.jpg", b"hello")])).unwrap();
    let mut shard = Shard::open(&path).unwrap();
    for _ in 0..2 {
        assert_eq!(shard.read_at(512, 5).unwrap(), b"hello");
        shard.release_handle();
    }
    std::fs::write(&path, b"short").unwrap();
    assert!(matches!(shard.read_at(512, 5), Err(Error::Io { .. })));
}

#[test]
fn missing_files_folders_and_pipes_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none.tar");
    let text = Shard::open(&missing).unwrap_err().to_string();
    assert!(
        text.starts_with(&format!("{}: cannot open: ", missing.display())),
        "{text}"
    );
    let text = Shard::open(folder.path()).unwrap_err().to_string();
    assert!(
        text.contains("it is not a regular file; name a file"),
        "{text}"
    );
    assert!(Shard::open(Path::new("/dev/null")).is_err());
    assert!(Shard::open(Path::new("pipe:touch x")).is_err());
}

#[test]
fn braces_count_with_their_leading_zeros() {
    let names = |pattern: &str| expand_braces(pattern).unwrap();
    assert_eq!(names("a.tar"), ["a.tar"]);
    assert_eq!(
        names("s-{008..011}.tar"),
        ["s-008.tar", "s-009.tar", "s-010.tar", "s-011.tar"]
    );
    assert_eq!(names("{9..10}/{0..1}"), ["9/0", "9/1", "10/0", "10/1"]);
    for bad in [
        "{",
        "{}",
        "{1}",
        "{1..}",
        "{3..1}",
        "{a..c}",
        "{+1..2}",
        "{0..99999999999}",
        "{0..9999}{0..9999}",
    ] {
        let text = expand_braces(bad).unwrap_err().to_string();
        assert!(text.starts_with("data pattern: expected "), "{text}");
    }
}

/// A PAX header of kind `x` or `g` with one record.
fn pax(kind: u8, record: &str) -> Vec<u8> {
    let length = format!("{:02} {record}\n", record.len() + 4);
    entry(
        "PaxHeaders/x",
        kind,
        &octal(length.len()),
        length.as_bytes(),
    )
}

/// Found by tools/differential.py: other readers saw other files.
#[test]
fn what_readers_take_differently_hides_no_file() {
    // What a link, a device or a folder claims to hold is not there: the next header comes at once.
    for kind in *b"123456" {
        let claiming = entry("a.txt", kind, &octal(512), b"");
        let walk = walk([claiming, file("b.txt", b"fine"), END.to_vec()].concat());
        assert!(walk.error.is_none(), "{walk:?}");
        assert_eq!(keys(&walk), ["b"]);
    }
    // A file with holes, in the form that PAX has for it.
    let sparse = [pax(b'x', "GNU.sparse.size=9"), file("a.txt", b"4\n0\n")].concat();
    let found = walk([sparse, file("b.txt", b"fine"), END.to_vec()].concat());
    assert_eq!(keys(&found), ["b"]);
    assert_eq!(found.skipped[0].1, "a.txt: it is a sparse file");
    // Names and sizes that are said twice, or of all entries at once.
    let [path, size] = ["path=b.txt", "size=1"].map(|record| pax(b'x', record));
    let all = pax(b'g', "path=b.txt");
    let twice = |header: &[u8]| [header, header].concat();
    for (headers, problem) in [
        (
            twice(&path),
            "a second name in the extended header at byte 1024",
        ),
        (
            twice(&size),
            "a second size in the extended header at byte 1024",
        ),
        (
            all,
            "what only one entry can have is said of all in the extended header at byte 0",
        ),
    ] {
        let walk = walk([headers, file("a.txt", b"fine"), END.to_vec()].concat());
        assert!(
            walk.error.is_some_and(|error| error.contains(problem)),
            "{problem}"
        );
    }
    // Anything else may be said of all.
    let comment = pax(b'g', "comment=hello");
    assert_eq!(
        keys(&walk(
            [comment, file("a.txt", b"fine"), END.to_vec()].concat()
        )),
        ["a"]
    );
}
