//! The formats that others keep pairs in: LLaVA's lists, ShareGPT's and OpenAI's conversations, InternVL's mixtures, tables,
//! gzipped shards; and what in them is counted, refused or read.

use std::fs;
use std::io::Write;
use std::path::Path;

use base64::Engine as _;
use keel::data::chat::Turn;
use keel::data::pairs::{Pair, PairLimits, PairSource, Pairs};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use crate::command::{keel, tiny_recipe};
use crate::data_image::decode;
use crate::data_pairs::{folder, images, open};
use crate::data_webdataset::{END, file};

fn turn(question: &str, answer: &str) -> Turn {
    Turn {
        question: question.to_owned(),
        answer: answer.to_owned(),
    }
}

/// A folder with one image and this file.
fn with(name: &str, content: &[u8]) -> tempfile::TempDir {
    folder(&[("p/a.png", &images()[0].1), (name, content)])
}

fn all(pairs: &Pairs) -> Vec<Pair> {
    let read = |index| {
        let pair = pairs.get(index).unwrap();
        let (image, before) = (pair.image.clone(), pair.before.clone());
        let words = pairs.words(index).unwrap();
        assert_eq!(
            Pair {
                image,
                before,
                ..words
            },
            pair,
            "the same but for its image"
        );
        pair
    };
    (0..pairs.len()).map(read).collect()
}

fn refused(name: &str, content: &[u8], texts: &[&str]) {
    let root = with(name, content);
    let error = open(root.path().join(name)).unwrap_err().to_string();
    for text in texts {
        assert!(error.contains(text), "no {text:?} in {error}");
    }
}

/// One conversation in three spellings.
fn conversations() -> [Json; 3] {
    [
        json!({"id": 1, "image": "p/a.png", "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "waves"},
            {"from": "human", "value": "Which colour?"}, {"from": "gpt", "value": " blue "},
        ]}),
        json!({"images": ["p/a.png"], "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "waves"},
            {"role": "user", "content": "Which colour?"}, {"role": "assistant", "content": "blue"},
        ]}),
        json!({"messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "p/a.png"}}, {"type": "text", "text": "What is it?"},
            ]},
            {"role": "assistant", "content": "waves"},
            {"role": "user", "content": "Which colour?"}, {"role": "assistant", "content": "blue"},
        ]}),
    ]
}

#[test]
fn conversations_of_llava_sharegpt_and_openai_say_the_same() {
    let list = json!(conversations()).to_string();
    let lines = conversations().map(|one| one.to_string()).join("\n");
    for (name, content) in [("llava.json", list), ("chat.jsonl", lines)] {
        let root = with(name, content.as_bytes());
        let pairs = open(root.path().join(name)).unwrap();
        assert_eq!(
            pairs.opening_skips().skipped(),
            0,
            "{}",
            pairs.opening_skips().summary()
        );
        assert_eq!(pairs.len(), 3);
        for pair in all(&pairs) {
            assert_eq!(pair.key, "p/a.png");
            assert!(pair.image.is_some());
            assert_eq!(pair.system.as_deref(), Some("Be brief."));
            assert_eq!(pair.prompt.as_deref(), Some("What is it?"));
            assert_eq!(pair.caption, "waves");
            assert_eq!(pair.further, [turn("Which colour?", "blue")]);
        }
    }
}

#[test]
fn text_alone_is_read_where_it_is_a_conversation_and_counted_where_a_image_is_missing() {
    let text = json!({"conversations": [
        {"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]});
    let missing = json!({"conversations": [
        {"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "4"}]});
    let root = with(
        "a.json",
        json!([text, missing, {"caption": "alone"}])
            .to_string()
            .as_bytes(),
    );
    let pairs = open(root.path().join("a.json")).unwrap();
    assert_eq!(pairs.len(), 1);
    let pair = pairs.get(0).unwrap();
    assert!(pair.image.is_none() && pair.caption == "4");
    let summary = pairs.opening_skips().summary();
    assert!(summary.contains("2 no image"), "{summary}");
}

/// In every spelling: marked where they stand, or unmarked and then before the first question.
#[test]
fn several_images_stand_where_the_conversation_marks_them() {
    let files = images();
    let root = folder(&[
        ("p/a.png", &files[0].1),
        ("p/b.png", &files[1].1),
        ("a.json", b"[]"),
    ]);
    let (a, b) = ("p/a.png", "p/b.png");
    let turns = json!([
        {"from": "human", "value": "Between <image> and <image>\n?"}, {"from": "gpt", "value": "a"},
        {"from": "human", "value": " as in <image>? "}, {"from": "gpt", "value": "no"}]);
    let part = |path: &str| json!({"type": "image", "image": path});
    let messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "First "}, part(a), {"type": "text", "text": ", then "}, part(b)]},
        {"role": "assistant", "content": "yes"}]);
    let later = json!([
        {"from": "human", "value": "Hello"}, {"from": "gpt", "value": "hello"},
        {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a"}]);
    let records = json!([
        {"image": [a, b, a], "conversations": turns},
        {"messages": messages},
        {"images": [b, a], "question": "Which?", "answer": "the first"},
        {"image": [a, b], "caption": "two"},
        {"image": b, "conversations": later},
    ]);
    std::fs::write(root.path().join("a.json"), records.to_string()).unwrap();
    let pairs = all(&open(root.path().join("a.json")).unwrap());
    let asked: Vec<Vec<&str>> = pairs
        .iter()
        .map(|pair| {
            let first = pair.prompt.as_deref().unwrap_or_default();
            let further = pair.further.iter().map(|turn| turn.question.as_str());
            std::iter::once(first).chain(further).collect()
        })
        .collect();
    assert_eq!(
        asked,
        [
            vec!["Between <image> and <image>\n?", "as in <image>?"],
            vec!["First <image>, then <image>"],
            vec!["<image>\n<image>\nWhich?"],
            vec!["<image>\n<image>\n"],
            vec!["Hello", "<image>\nWhat?"],
        ]
    );
    let decoded = [0, 1].map(|index| decode(&files[index].1).unwrap());
    let [a, b] = &decoded;
    let shown: Vec<Vec<_>> = pairs
        .iter()
        .map(|pair| pair.before.iter().chain(&pair.image).collect())
        .collect();
    assert_eq!(
        shown,
        [vec![a, b, a], vec![a, b], vec![b, a], vec![a, b], vec![b]]
    );
    assert!(pairs.iter().all(|pair| pair.is_marked));
}

#[test]
fn conversations_that_cannot_be_trained_on_are_counted_by_name() {
    let says = |from: &str, value: &str| json!({"from": from, "value": value});
    let (ask, answer) = (says("human", "<image>a?"), says("gpt", "b"));
    for (turns, text) in [
        (json!([answer]), "no question with an answer"),
        (json!([ask]), "no question with an answer"),
        (
            json!([answer, answer, ask, answer]),
            "turn 2 does not answer the one before",
        ),
        (
            json!([ask, answer, says("human", "<image>c?")]),
            "its last question shows an image and has no answer",
        ),
        (json!([ask, ask]), "turn 2 does not answer"),
        (json!([]), "no question with an answer"),
        (
            json!([ask, answer, says("human", "<image>c?"), answer]),
            "it marks the places of 2 images and has 1",
        ),
        (
            json!([says("human", "<image><image>a?"), answer]),
            "it marks the places of 2 images and has 1",
        ),
        (
            json!([says("human", "<video>a?"), answer]),
            "about a <video>",
        ),
        (json!([says("tool", "a"), answer]), "tool speaks in it"),
        (json!([{"value": "a"}, answer]), "no from and no role"),
        (json!([{"from": "human"}, answer]), "says nothing"),
        (json!("a"), "its conversations are no list"),
        (json!([ask, says("gpt", "  ")]), "its caption is empty"),
    ] {
        let record = json!({"image": "p/a.png", "conversations": turns});
        refused(
            "a.json",
            json!([record]).to_string().as_bytes(),
            &["a.json, record 1", text],
        );
    }
    for (image, text) in [
        (json!("../a.png"), "not a path below"),
        (json!("/etc/passwd"), "not a path below"),
        (json!("http://a/b.png"), "not a path below"),
        (json!(["p/a.png", "../b.png"]), "not a path below"),
        (json!(["p/a.png", 7]), "neither a path nor a list of paths"),
        (json!(7), "neither a path nor a list of paths"),
        (json!(vec!["p/a.png"; 65]), "it shows 65 images"),
    ] {
        let record = json!({"image": image, "caption": "a"});
        refused("a.json", json!([record]).to_string().as_bytes(), &[text]);
    }
    // One mark for two images does not say where the other stands.
    let record = json!({"image": ["p/a.png", "p/a.png"], "conversations": [ask, answer]});
    let text = "it marks the places of 1 images and has 2";
    refused("a.json", json!([record]).to_string().as_bytes(), &[text]);
}

#[test]
fn one_broken_record_among_many_is_counted_and_a_broken_list_is_refused() {
    let good = json!({"image": "p/a.png", "caption": "one, \"two\" ]}"}).to_string();
    let mut records: Vec<&str> = vec![&good; 40];
    records.insert(7, "{\"image\": 3, }");
    records.insert(9, "17");
    let list = format!("\u{feff} [{}]\n", records.join(" ,\n"));
    let root = with("a.json", list.as_bytes());
    let pairs = open(root.path().join("a.json")).unwrap();
    assert_eq!((pairs.len(), pairs.opening_skips().skipped()), (40, 2));
    let summary = pairs.opening_skips().summary();
    assert!(summary.contains("record 8: it is not JSON"), "{summary}");
    assert!(
        summary.contains("record 10: it is JSON, but no object"),
        "{summary}"
    );
    assert!(
        all(&pairs)
            .iter()
            .all(|pair| pair.caption == "one, \"two\" ]}")
    );
    for (content, text) in [
        (format!("[{good}, {good}"), "its list is cut short"),
        (format!("[{good} {good}]"), "no JSON list of objects"),
        (format!("[{good}] x"), "no JSON list of objects"),
        (format!("[,{good}]"), "no JSON list of objects"),
        (String::new(), "it is empty"),
        ("[]".to_owned(), "it holds no pairs"),
        (
            format!("[\"{}\"]", "a".repeat(2 << 20)),
            "it is JSON, but no object",
        ),
    ] {
        refused("a.json", content.as_bytes(), &["a.json", text]);
    }
}

#[test]
fn mixtures_of_internvl_repeat_their_parts_and_keep_their_roots() {
    let images = images();
    let lines = |count: usize, word: &str| {
        let line = |i| json!({"image": "a.png", "caption": format!("{word} {i}")}).to_string();
        (0..count).map(line).collect::<Vec<_>>().join("\n")
    };
    let mixture = |more: Json| {
        let mut mixture = json!({
            "first": {"root": "p", "annotation": "notes/one.jsonl", "repeat_time": 2, "data_augment": false, "length": 3},
            "second": {"root": "q", "annotation": "notes/two.jsonl", "repeat_time": 0.5, "length": 4},
        });
        mixture
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        mixture.to_string()
    };
    let root = folder(&[
        ("p/a.png", &images[0].1),
        ("q/a.png", &images[0].1),
        ("notes/one.jsonl", lines(3, "one").as_bytes()),
        ("notes/two.jsonl", lines(4, "two").as_bytes()),
        ("meta.json", mixture(json!({})).as_bytes()),
    ]);
    let pairs = open(root.path().join("meta.json")).unwrap();
    let captions: Vec<String> = all(&pairs).into_iter().map(|pair| pair.caption).collect();
    let wanted = [
        "one 0", "one 1", "one 2", "one 0", "one 1", "one 2", "two 0", "two 1",
    ];
    assert_eq!(captions, wanted);
    for (part, text) in [
        (
            json!({"first": {"root": "p"}}),
            "first: it has no annotation",
        ),
        (
            json!({"first": {"root": "s3://p", "annotation": "notes/one.jsonl"}}),
            "first: root: expected a path: nothing is fetched",
        ),
        (
            json!({"first": {"root": "p", "annotation": "notes/one.jsonl", "max_dynamic_patch": 0}}),
            "first: max_dynamic_patch: expected a whole number from 1 to 1024",
        ),
        (
            json!({"first": {"root": "p", "annotation": "notes/one.jsonl", "conv_style": "internlm2"}}),
            "or max_dynamic_patch, found conv_style",
        ),
        (
            json!({"first": {"root": "p", "annotation": "notes/one.jsonl", "repeat_time": -1}}),
            "repeat_time",
        ),
        (
            json!({"first": {"root": "p", "annotation": "none.jsonl"}}),
            "cannot open",
        ),
    ] {
        fs::write(root.path().join("meta.json"), mixture(part)).unwrap();
        let error = open(root.path().join("meta.json")).unwrap_err().to_string();
        assert!(error.contains(text), "no {text:?} in {error}");
    }
    // Patterns of lists, and several sources with repeats, are joined in the same way.
    fs::write(
        root.path().join("list-0.jsonl"),
        lines(2, "x").replace("a.png", "p/a.png"),
    )
    .unwrap();
    fs::write(
        root.path().join("list-1.jsonl"),
        lines(2, "y").replace("a.png", "p/a.png"),
    )
    .unwrap();
    assert_eq!(
        open(root.path().join("list-{0..1}.jsonl")).unwrap().len(),
        4
    );
    let one = root.path().join("list-0.jsonl").display().to_string();
    let several = [format!("{one}=1.5"), one];
    let joined = Pairs::open_all(&several, PairLimits::default()).unwrap();
    let captions: Vec<String> = all(&joined).into_iter().map(|pair| pair.caption).collect();
    assert_eq!(captions, ["x 0", "x 1", "x 1", "x 0", "x 1"]);
}

#[test]
fn tables_give_paths_or_images_in_base64() {
    let image = images()[0].1.clone();
    let packed = base64::engine::general_purpose::STANDARD.encode(&image);
    let tsv = format!(
        "index\timage\tquestion\tanswer\n1\t{packed}\tWhat is it?\t\"wa\nves\"\n2\tp/a.png\t\tblue\n"
    );
    let root = with("a.tsv", tsv.as_bytes());
    let pairs = all(&open(root.path().join("a.tsv")).unwrap());
    assert_eq!(pairs.len(), 2);
    assert_eq!(pairs[0].image, pairs[1].image);
    assert_eq!(pairs[0].prompt.as_deref(), Some("What is it?"));
    assert_eq!(
        (&pairs[0].caption[..], &pairs[1].caption[..]),
        ("wa\nves", "blue")
    );
    assert_eq!(pairs[1].prompt, None);

    let rows = "p/a.png,\"one, two\"\n".repeat(40);
    let csv = format!("\u{feff}File_Name,Caption\n{rows}p/a.png,three,four\n../a.png,five\n");
    let root = with("a.csv", csv.as_bytes());
    let pairs = open(root.path().join("a.csv")).unwrap();
    assert_eq!((pairs.len(), pairs.opening_skips().skipped()), (40, 2));
    assert_eq!(pairs.get(39).unwrap().caption, "one, two");
    let summary = pairs.opening_skips().summary();
    assert!(
        summary.contains("row 41: it has 3 fields, the heading 2"),
        "{summary}"
    );
    assert!(
        summary.contains("row 42: its image is not a path below"),
        "{summary}"
    );
    refused("a.csv", b"a,b\n1,2\n", &["heading has the columns a, b"]);
    refused("a.tsv", b"", &["a.tsv: it is empty"]);
    let long = "!".repeat(2000);
    refused(
        "a.csv",
        format!("image,caption\n{long},x\n").as_bytes(),
        &["neither a path nor base64: 2000 letters"],
    );
}

#[test]
fn gzipped_shards_are_read_and_damaged_ones_refused() {
    let mut bytes = file("a.png", &images()[0].1);
    bytes.extend(file("a.txt", b"waves"));
    bytes.extend(END);
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(&bytes).unwrap();
    let packed = packer.finish().unwrap();
    for name in ["s.tar.gz", "s.tgz"] {
        let root = folder(&[(name, &packed)]);
        let pairs = open(root.path().join(name)).unwrap();
        assert_eq!(pairs.get(0).unwrap().caption, "waves");
    }
    let half = &packed[..packed.len() / 2];
    refused("s.tar.gz", half, &["s.tar.gz", "fetch the file again"]);
}

#[test]
fn stages_train_on_conversations_and_contrasts_leave_text_out() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    fs::write(path.join("my.toml"), tiny_recipe(&["warm-up"])).unwrap();
    fs::create_dir(path.join("p")).unwrap();
    fs::write(path.join("p/a.png"), &images()[0].1).unwrap();
    let text = json!({"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]});
    let [one, two, three] = conversations();
    fs::write(
        path.join("a.json"),
        json!([one, text, two, three]).to_string(),
    )
    .unwrap();
    let train = |further: &[&str]| {
        let mut args = "train --device cpu --recipe my.toml --data a.json --max-steps 2 --no-evaluation --set stage.warm-up.data={samples=1} --set stage.warm-up.max_tokens=96"
            .split(' ')
            .collect::<Vec<_>>();
        args.extend(further);
        keel(path, &args)
    };
    train(&[
        "--set",
        "stage.warm-up.contrastive_weight=0",
        "--out",
        "mixed",
    ])
    .fine();
    fs::write(path.join("b.json"), json!([one, text]).to_string()).unwrap();
    let of_one = "--data b.json --set stage.warm-up.batch_size=2 --out one";
    train(&of_one.split(' ').collect::<Vec<_>>()).fine();
    let written = fs::read_to_string(path.join("one/metrics.jsonl")).unwrap();
    // The one pair of a batch is as near to itself as to all there is, up to a rounding of scores of about 7.
    let lines = written
        .lines()
        .map(|line| serde_json::from_str::<Json>(line).unwrap());
    let losses: Vec<f64> = lines
        .filter_map(|line| line["loss.contrastive"].as_f64())
        .collect();
    assert_eq!(losses.len(), 2);
    assert!(losses.iter().all(|loss| loss.abs() < 1e-6), "{losses:?}");
    // A batch of eight of three pairs, one of which has an image: its copies are masked, and every sample is trained on.
    fs::write(path.join("a.json"), json!([one, two, three]).to_string()).unwrap();
    let answer = train(&["--out", "repeated"]).fine();
    assert!(answer.stdout.contains("contrastive 0.0000"), "{answer:#?}");
}

#[test]
fn a_check_of_data_counts_everything_and_names_what_is_broken() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    fs::create_dir(path.join("p")).unwrap();
    fs::write(path.join("p/a.png"), &images()[0].1).unwrap();
    fs::write(path.join("p/b.png"), &images()[0].1).unwrap();
    fs::write(path.join("p/c.png"), "no image").unwrap();
    let mut records: Vec<Json> = conversations().to_vec();
    records.push(json!({"image": "p/b.png", "caption": "waves"}));
    records.push(json!({"image": "p/c.png", "caption": "broken"}));
    records.push(json!({"image": "p/d.png", "caption": "missing"}));
    fs::write(path.join("a.json"), json!(records).to_string()).unwrap();
    let answer = keel(path, &["data", "check", "a.json"]).fine();
    for text in [
        "6 samples: 4 usable, 2 not",
        "1 unusable image",
        "1 missing or unreadable file",
        "p/d.png: cannot open",
        "37 × 26",
        "7 answers",
        "p/b.png: the image of p/a.png",
    ] {
        assert!(answer.stdout.contains(text), "no {text:?} in {answer:#?}");
    }
    let answer = keel(path, &["data", "check", "a.json", "--json"]).fine();
    let report: Json = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!(report["samples"], 6);
    assert_eq!(report["usable"], 4);
    assert_eq!(report["images"]["duplicates"], 3);
    // Several sources are checked as one, and what opening left out of each is told.
    let lines = json!({"image": "p/a.png", "caption": "waves"}).to_string();
    fs::write(
        path.join("c.jsonl"),
        format!("{lines}\n{{\"image\": \"p/a.png\"}}\n"),
    )
    .unwrap();
    let answer = keel(path, &["data", "check", "a.json", "c.jsonl"]).fine();
    assert!(
        answer.stdout.contains("7 samples: 5 usable, 2 not"),
        "{answer:#?}"
    );
    assert!(
        answer.stdout.contains("left out when opened: 1 no caption"),
        "{answer:#?}"
    );
    // Past the limit the command fails, having said all it knows.
    let many: Vec<Json> = (0..40)
        .map(|i| json!({"image": format!("p/{i}.png"), "caption": "x"}))
        .collect();
    fs::write(path.join("b.json"), json!(many).to_string()).unwrap();
    let answer = keel(path, &["data", "check", "b.json"]);
    assert_eq!(answer.code, Some(1), "{answer:#?}");
    assert!(
        answer.stdout.contains("40 samples: 0 usable, 40 not"),
        "{answer:#?}"
    );
    assert!(
        answer.stderr.contains("could not be used, more than 5 %"),
        "{answer:#?}"
    );
}

/// Damages `bytes` at a few places.
fn damaged(bytes: &[u8], places: &[(usize, u8)], cut: usize) -> Vec<u8> {
    let mut bytes = bytes[..bytes.len() - cut % bytes.len()].to_vec();
    for (place, value) in places {
        let place = place % bytes.len().max(1);
        if let Some(byte) = bytes.get_mut(place) {
            *byte = *value;
        }
    }
    bytes
}

fn read_all(path: &Path) {
    if let Ok(pairs) = open(path) {
        for index in 0..pairs.len() {
            // A value or an error; whatever it is, it comes back.
            let _ = pairs.get(index);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn damaged_lists_and_tables_end_in_pairs_or_an_error(
        places in prop::collection::vec((any::<usize>(), any::<u8>()), 0..6), cut in 0usize..400, packed: bool,
    ) {
        let list = json!(conversations()).to_string();
        let csv = "image,caption\np/a.png,\"one, two\"\np/a.png,three\n";
        let mixture = json!({"a": {"root": "p", "annotation": "x.jsonl", "repeat_time": 1.5}}).to_string();
        for (name, content) in [("a.json", &list[..]), ("a.csv", csv), ("m.json", &mixture[..])] {
            let root = with(name, &damaged(content.as_bytes(), &places, cut));
            read_all(&root.path().join(name));
        }
        if packed {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(&[file("a.txt", b"waves"), END.to_vec()].concat()).unwrap();
            let bytes = packer.finish().unwrap();
            let root = with("s.tar.gz", &damaged(&bytes, &places, cut));
            read_all(&root.path().join("s.tar.gz"));
        }
    }
}
