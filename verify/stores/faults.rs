//! What a network and a store can do wrong. What passes costs time and no bit; what stays ends in one sentence that names the
//! address, what was wanted, what came and what to do; nothing hangs.

use keel::data::pairs::PairSource;
use keel::error::Error;

use super::{Fault, StoreServer, all, answer, at_store, both, open, shard, shards};

/// A number of a request's own, by which its fault is drawn.
fn drawn(seed: u64, number: u64) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&seed.to_le_bytes())
        .update(&number.to_le_bytes());
    u64::from_le_bytes(hasher.finalize().as_bytes()[..8].try_into().unwrap())
}

#[test]
fn faults_that_pass_cost_no_sample_and_no_bit_and_are_counted() {
    let (local, server) = both(&shards());
    let wanted = all(&open(&format!("{}/s-{{0..2}}.tar", local.path().display())).unwrap());
    for seed in 0..3 {
        // One request in eight fails: five failures one after the other are met once in thirty thousand reads.
        server.fail(move |number, _| match drawn(seed, number) % 40 {
            0 => Some(Fault::Status(500)),
            1 => Some(Fault::Status(503)),
            2 => Some(Fault::Status(429)),
            3 => Some(Fault::Cut),
            4 => Some(Fault::Shifted),
            _ => None,
        });
        let pairs = open(&format!("{}/bucket/s-{{0..2}}.tar", server.url())).unwrap();
        assert!(all(&pairs) == wanted, "seed {seed}");
        let news = pairs
            .news()
            .expect("some of more than a hundred requests failed");
        assert!(
            news.contains("requests to stores were made again, of http://127.0.0.1"),
            "{news}"
        );
        assert_eq!(pairs.news(), None, "said once");
        assert_eq!(pairs.drawing_skips().skipped(), 0);
    }
}

/// What opening a shard says when every request meets this fault.
fn said(fault: Fault) -> String {
    let bytes = shard(0, 3, 0);
    let server = StoreServer::new(&[("bucket/s.tar", &bytes)]);
    server.fail(move |_, _| Some(fault.clone()));
    let address = format!("{}/bucket/s.tar", server.url());
    let text = open(&address).expect_err("must fail").to_string();
    assert!(text.starts_with(&address) && !text.contains('\n'), "{text}");
    text
}

#[test]
fn faults_that_stay_end_in_one_sentence_that_says_what_to_do() {
    let cases: Vec<(Fault, &str)> = vec![
        (
            Fault::Status(404),
            "cannot open: the store has no such object (404); check the address",
        ),
        (
            Fault::Status(403),
            "cannot open: the store refuses to show it (403); who may see it is told by",
        ),
        (
            Fault::Status(401),
            "cannot open: the store asks who wants to see it (401)",
        ),
        (Fault::Status(400), "the store refused the request (400)"),
        (
            Fault::Status(500),
            "the store failed (500), 5 times; try again later",
        ),
        (
            Fault::Status(429),
            "the store failed (429), 5 times; try again later",
        ),
        (Fault::Status(301), "the store leads elsewhere"),
        (Fault::Cut, "of bytes 0 to 16384 something else came ("),
        (
            Fault::Shifted,
            "of bytes 0 to 16384 something else came (Requested 0..",
        ),
        (
            Fault::Whole,
            "gives whole files only and no ranges of them; copy the file here",
        ),
        (
            Fault::Redirect("/bucket/s.tar".into()),
            "leads from one address to another without end",
        ),
    ];
    // Each waits for its attempts, and all of them together.
    std::thread::scope(|scope| {
        for (fault, wanted) in cases {
            scope.spawn(move || {
                let text = said(fault.clone());
                assert!(text.contains(wanted), "{fault:?}: {text}");
            });
        }
        scope.spawn(|| {
            // Longer than a name can be, so that no server is asked for it.
            let host = "a".repeat(70);
            let text = open(&format!("http://{host}.invalid/s.tar"))
                .expect_err("no host")
                .to_string();
            assert!(
                text.contains("it cannot be reached (") && text.contains("check the address"),
                "{text}"
            );
        });
    });
}

#[test]
fn a_redirect_that_ends_is_followed() {
    let bytes = shard(0, 30, 0);
    let server = StoreServer::new(&[("bucket/s.tar", &bytes)]);
    let place = format!("{}/bucket/s.tar", server.url());
    server.fail(move |_, name| (name == "moved.tar").then(|| Fault::Redirect(place.clone())));
    let pairs = open(&format!("{}/moved.tar", server.url())).unwrap();
    assert_eq!((pairs.len(), all(&pairs).len()), (30, 30));
}

#[test]
fn a_server_that_is_silent_or_slow_ends_a_command_within_its_time_limits() {
    let bytes = shard(0, 3, 0);
    let server = StoreServer::new(&[("bucket/silent.tar", &bytes), ("bucket/slow.tar", &bytes)]);
    server.fail(|_, name| {
        Some(match name {
            "bucket/silent.tar" => Fault::Silent,
            _ => Fault::Slow,
        })
    });
    let folder = tempfile::tempdir().unwrap();
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        for data in ["s3://bucket/silent.tar", "s3://bucket/slow.tar"] {
            let (server, folder) = (&server, folder.path());
            scope.spawn(move || {
                let told = "no whole answer came within 1 seconds, 5 times; see whether the store can be reached";
                answer(at_store(server, folder, &["data", "check", data])).failed(&[data, told]);
            });
        }
    });
    // Five attempts of a second and three seconds between them, and as much again for a machine that is busy.
    assert!(began.elapsed().as_secs() < 16, "{:?}", began.elapsed());
    let mut command = at_store(
        &server,
        folder.path(),
        &["data", "check", "s3://bucket/slow.tar"],
    );
    command.env("KEEL_STORE_TIMEOUT", "soon");
    answer(command)
        .refused(&["KEEL_STORE_TIMEOUT is soon; set it to a number of seconds from 1 to 3600"]);
}

#[test]
fn an_object_that_changes_while_it_is_read_stops_whatever_reads_it() {
    let (_local, server) = both(&shards());
    let address = format!("{}/bucket/s-0.tar", server.url());
    let pairs = open(&address).unwrap();
    pairs.get(0).unwrap();
    // Of the same size, with other bytes.
    let mut other = shards()[0].1.clone();
    other[600] ^= 1;
    server.put("bucket/s-0.tar", &other);
    let stops = |pairs: &dyn PairSource| {
        let error = pairs.get(1).expect_err("another object");
        assert!(matches!(error, Error::Stopped { .. }), "{error}");
        let text = error.to_string();
        assert!(text.starts_with(&address), "{text}");
        assert!(
            text.contains("it changed while it was read: it was ")
                && text.contains("put the object back"),
            "{text}"
        );
    };
    stops(&pairs);
    // Where a store gives no tags, the time of the last change and the size tell.
    server.without_tags();
    let pairs = open(&address).unwrap();
    server.put("bucket/s-0.tar", &shard(0, 41, 0));
    server.without_tags();
    stops(&pairs);
}

#[test]
fn an_image_that_is_not_there_counts_as_missing_and_one_that_is_refused_stops_a_run() {
    let list = r#"{"image": "a.png", "caption": "one"}"#;
    let server = StoreServer::new(&[("b/list.jsonl", list.as_bytes())]);
    let address = format!("{}/b/list.jsonl", server.url());
    let pairs = open(&address).unwrap();
    let missing = pairs.get(0).expect_err("there is none");
    assert!(matches!(missing, Error::Io { .. }), "{missing}");
    let text = missing.to_string();
    assert!(
        text.contains("list.jsonl, line 1: ") && text.contains("(404)"),
        "{text}"
    );
    server.fail(|_, name| name.ends_with(".png").then_some(Fault::Status(403)));
    let refused = pairs.get(0).expect_err("it may not be seen");
    assert!(matches!(refused, Error::Stopped { .. }), "{refused}");
    assert!(
        refused
            .to_string()
            .contains("/b/a.png: the store refuses to show it (403)"),
        "{refused}"
    );
}

#[test]
fn an_archive_in_a_store_that_is_cut_short_or_empty_is_refused_as_a_local_one() {
    let whole = shard(0, 30, 0);
    let server = StoreServer::new(&[
        ("b/cut.tar", &whole[..whole.len() - 1024]),
        ("b/empty.tar", b""),
        ("b/no.parquet", b"PAR1"),
    ]);
    for (name, wanted) in [
        ("cut.tar", "have no end marker; fetch or pack it again"),
        ("empty.tar", "the archive is empty"),
        (
            "no.parquet",
            "write the file anew, as datasets or pyarrow do",
        ),
    ] {
        let address = format!("{}/b/{name}", server.url());
        let text = open(&address).expect_err("must be refused").to_string();
        assert!(text.contains(&address) && text.contains(wanted), "{text}");
    }
}
