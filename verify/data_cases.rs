//! Data as people publish and pass them on, each with the value that is right for it: the small folders of verify/cases, and
//! the other members of each kind. What `keel data check` says of them is held too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keel::data::augment::Augmentation;
use keel::data::chat::{ChatTokenizer, Conversation};
use keel::data::image_view::ImageCache;
use keel::data::pairs::{Pair, PairSource, Pairs};
use keel::data::sample::View;
use keel::data::skips::{Note, Reason};
use keel::data::source::{Draw, SampleSettings, TaskSource};
use keel::data::user_samples::UserSamples;
use keel::random::{Purpose, Stream};
use serde_json::{Value as Json, json};

use crate::command::keel;
use crate::data_pairs::{folder, images, open};
use crate::data_webdataset::{END, file};

/// A folder or file of verify/cases.
fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("verify/cases")
        .join(name)
}

fn all(pairs: &Pairs) -> Vec<Pair> {
    (0..pairs.len()).map(|at| pairs.get(at).unwrap()).collect()
}

/// The captions of data that are wholly usable.
fn captions(path: impl AsRef<Path>) -> Vec<String> {
    let pairs = open(path).unwrap();
    assert_eq!(
        pairs.opening_skips().skipped(),
        0,
        "{}",
        pairs.opening_skips().summary()
    );
    all(&pairs).into_iter().map(|pair| pair.caption).collect()
}

fn refusal(path: impl AsRef<Path>) -> String {
    open(path).expect_err("must be refused").to_string()
}

/// A list of these records beside one image, a.png.
fn list(records: &Json) -> (tempfile::TempDir, PathBuf) {
    let root = folder(&[
        ("a.png", &images()[0].1),
        ("l.json", records.to_string().as_bytes()),
    ]);
    let path = root.path().join("l.json");
    (root, path)
}

#[test]
fn image_folders_have_their_metadata_in_the_folders_of_splits() {
    assert_eq!(captions(case("imagefolder-subfolder/hfjl")), ["one", "two"]);
    let both = captions(case("imagefolder-subfolder/hfcsv2"));
    assert_eq!(both, ["one", "two", "one", "two"]);
    // What no list describes is said; a list of another kind in the same folder is a copy.
    let png = &images()[0].1;
    let root = folder(&[
        ("train/a.png", png),
        ("train/deep/b.png", png),
        (
            "train/metadata.jsonl",
            b"{\"file_name\": \"a.png\", \"text\": \"one\"}\n{\"file_name\": \"deep/b.png\", \"text\": \"two\"}\n",
        ),
        ("train/metadata.csv", b"file_name,text\na.png,copy\n"),
        ("test/c.png", png),
        (".cache/metadata.jsonl", b"nonsense"),
    ]);
    assert_eq!(captions(root.path()), ["one", "two"]);
    let notes = open(root.path()).unwrap().notes();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(
        notes[0].starts_with("1 images are left out") && notes[0].contains("test/c.png"),
        "{notes:?}"
    );
}

#[test]
fn a_quote_that_takes_other_rows_with_it_is_an_error_that_names_its_row() {
    let text = refusal(case("unbalanced-quote/quote_unbalanced.tsv"));
    assert!(
        text.contains("quote_unbalanced.tsv, row 2: a quote that opens in it is never closed"),
        "{text}"
    );
    let png = &images()[0].1;
    let rows = |table: &str| folder(&[("a.png", png), ("t.tsv", table.as_bytes())]);
    // The second lone quote closes the first, two rows further on.
    let root = rows("image\tcaption\na.png\tone\na.png\t\"two\na.png\tthree\na.png\t\"four\n");
    let text = refusal(root.path().join("t.tsv"));
    assert!(
        text.contains("row 2: a quote that opens in it is closed in a later row"),
        "{text}"
    );
    // Within one row only that row is lost, and quotes inside a field are letters.
    let good = "a.png\tsays \"hi\"\n".repeat(40);
    let root = rows(&format!("image\tcaption\n{good}a.png\t\"two\" of it\n"));
    let pairs = open(root.path().join("t.tsv")).unwrap();
    assert_eq!(
        (
            pairs.len(),
            pairs.opening_skips().skipped_for(Reason::BadRecord)
        ),
        (40, 1)
    );
    assert_eq!(pairs.get(0).unwrap().caption, "says \"hi\"");
    let summary = pairs.opening_skips().summary();
    assert!(
        summary.contains("row 41: letters follow the closing quote"),
        "{summary}"
    );
}

#[test]
fn a_system_key_says_what_a_turn_of_the_system_says() {
    let of = |name: &str| all(&open(case(name)).unwrap()).swap_remove(0);
    let (key, turn) = (
        of("system-key/system_key.json"),
        of("system-key/system_turn.json"),
    );
    assert_eq!(key.system.as_deref(), Some("Answer in French."));
    assert_eq!(key, turn);
    let turns = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    let (_root, path) = list(&json!([{"system": "Be long.", "messages": turns}]));
    assert!(refusal(path).contains("its key system and its turn of the system differ"));
    // The same on a single question; an empty one says nothing.
    let (_root, path) = list(&json!([
        {"image": "a.png", "system": "x", "question": "q", "answer": "a"},
        {"image": "a.png", "system": "", "question": "q", "answer": "a"},
    ]));
    let pairs = all(&open(path).unwrap());
    assert_eq!(pairs[0].system.as_deref(), Some("x"));
    assert_eq!(pairs[1].system, None);
    // What changes the meaning and cannot be honoured is refused by name.
    for key in ["video", "audios", "tools"] {
        let (_root, path) = list(&json!([{"image": "a.png", key: ["x"], "caption": "c"}]));
        assert!(refusal(path).contains(&format!("it has {key}, which cannot be shown")));
    }
}

#[test]
fn null_is_a_column_that_a_record_does_not_use_in_every_format() {
    assert_eq!(
        captions(case("null-fields/null_caption.json")),
        ["A gradient."]
    );
    assert_eq!(
        captions(case("null-fields/null_question.json")),
        ["a gradient"]
    );
    assert_eq!(captions(case("null-fields/jsonnull.tar")), ["words"]);
    // Empty strings and the empty fields of tables are the nulls of formats that have none.
    let (_root, path) = list(&json!([
        {"image": "a.png", "caption": "", "conversations": null, "question": "q", "answer": "a"},
        {"image": null, "messages": [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "3"}]},
        {"image": "", "conversations": [{"from": "human", "value": "4?"}, {"from": "gpt", "value": "5"}]},
    ]));
    assert_eq!(captions(path), ["a", "3", "5"]);
    let root = folder(&[
        ("a.png", &images()[0].1),
        (
            "t.csv",
            b"image,caption,question,answer\na.png,one,,\na.png,,q,two\n",
        ),
    ]);
    assert_eq!(captions(root.path().join("t.csv")), ["one", "two"]);
}

#[test]
fn captions_are_quoted_as_csv_has_them() {
    assert_eq!(
        captions(case("captions-csv")),
        ["A dog, black, runs", "A cat .", "He said \"hi\" to her"]
    );
    let lines = "a.png,he said \"hi\"\n".repeat(40) + "\"a.png\",\"b\na.png,\"x\" y\n";
    let root = folder(&[
        ("a.png", &images()[0].1),
        ("captions.txt", lines.as_bytes()),
    ]);
    let pairs = open(root.path()).unwrap();
    assert_eq!((pairs.len(), pairs.opening_skips().skipped()), (40, 2));
    assert_eq!(pairs.get(0).unwrap().caption, "he said \"hi\"");
    let summary = pairs.opening_skips().summary();
    assert!(
        summary.contains("captions.txt, line 41: its quotes are not those of CSV"),
        "{summary}"
    );
}

#[test]
fn answers_that_are_not_to_be_learnt_are_not_supervised() {
    for name in ["loss-false/loss_false.json", "loss-false/weight0.json"] {
        let pair = all(&open(case(name)).unwrap()).swap_remove(0);
        assert_eq!(pair.rules.unsupervised, [0], "{name}");
        let turns = vec![
            [pair.prompt.as_deref().unwrap(), pair.caption.as_str()],
            [
                pair.further[0].question.as_str(),
                pair.further[0].answer.as_str(),
            ],
        ];
        // As text alone, and beside an image.
        for image_tokens in [0, 2] {
            let tokenizer = ChatTokenizer::embedded();
            let sequence = tokenizer.sequence(&Conversation {
                image_tokens,
                is_marked: false,
                system: None,
                context: "",
                turns: turns.clone(),
                unsupervised: &pair.rules.unsupervised,
            });
            let learnt = sequence.supervised.iter();
            let learnt: Vec<String> = learnt
                .map(|range| tokenizer.decode(&sequence.ids[range.clone()]))
                .collect();
            assert_eq!(learnt, ["d"], "{name}");
            let everything = tokenizer.decode(&sequence.ids);
            assert!(everything.contains("wrong"), "{everything}");
        }
    }
    let turn =
        |role: &str, key: &str, value: Json| json!({"role": role, "content": "x", key: value});
    let plain = |role: &str| json!({"role": role, "content": "x"});
    for (turns, text) in [
        (
            json!([plain("user"), turn("assistant", "weight", json!(0.5))]),
            "the weight of a turn is 0.5; a turn is learnt (1) or not (0)",
        ),
        (
            json!([plain("user"), turn("assistant", "train", json!(false))]),
            "none of its answers is to be learnt",
        ),
        (
            json!([turn("user", "loss", json!(true)), plain("assistant")]),
            "its turn 1 is to be learnt and is no answer",
        ),
    ] {
        let (_root, path) = list(&json!([{"messages": turns}]));
        let found = refusal(path);
        assert!(found.contains(text), "{found}");
    }
}

#[test]
fn conversations_are_trimmed_as_llava_does_and_counted() {
    let says = |from: &str, value: &str| json!({"from": from, "value": value});
    let (ask, answer) = (says("human", "<image>a?"), says("gpt", "b"));
    let records = json!([
        {"image": "a.png", "conversations": [says("gpt", "hello"), ask, answer]},
        {"image": "a.png", "conversations": [ask, answer, says("human", "c?")]},
        {"image": "a.png", "conversations": [says("system", "s"), says("gpt", "hello"), ask, answer]},
        {"image": "a.png", "conversations": [ask, answer]},
    ]);
    let (_root, path) = list(&records);
    let pairs = open(path).unwrap();
    for pair in all(&pairs) {
        assert_eq!(pair.prompt.as_deref(), Some("a?"));
        assert_eq!((&*pair.caption, pair.further.len()), ("b", 0));
    }
    assert_eq!(pairs.opening_skips().noted_for(Note::Trimmed), 3);
    let notes = pairs.notes();
    assert!(
        notes[0].starts_with("3 trimmed to whole questions with answers (")
            && notes[0].contains("record 1"),
        "{notes:?}"
    );
}

#[test]
fn images_stand_in_data_addresses_and_in_base64_of_any_length() {
    let pairs = open(case("data-uri/data_uri.json")).unwrap();
    let pair = pairs.get(0).unwrap();
    let image = pair.image.as_ref().unwrap();
    assert_eq!((image.width, image.height), (40, 32));
    assert!(
        pair.key.ends_with("data_uri.json, record 1"),
        "{}",
        pair.key
    );
    // A small image is shorter than many paths.
    let png = crate::data_image::png_file(2, 1, png::ColorType::Rgb, &[1, 2, 3, 4, 5, 6]);
    let packed = STANDARD.encode(&png);
    assert!(packed.len() < 200);
    let address = format!("data:image/png;base64,{packed}");
    let root = folder(&[
        (
            "t.tsv",
            format!("image\tcaption\n{packed}\tone\n{address}\ttwo\n").as_bytes(),
        ),
        (
            "l.jsonl",
            format!("{}\n", json!({"image": packed, "caption": "three"})).as_bytes(),
        ),
    ]);
    assert_eq!(captions(root.path().join("t.tsv")), ["one", "two"]);
    assert_eq!(captions(root.path().join("l.jsonl")), ["three"]);
    // Damaged ones are refused when the data are opened, and not one is printed whole.
    let broken = format!("data:image/png;base64,{}!", "iVBORw0KGgo".repeat(300));
    let unknown = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo".repeat(20);
    for (image, wanted) in [
        (broken.as_str(), "neither a path nor base64"),
        ("data:,x", "not in base64"),
        ("data:image/png", "without a comma"),
    ] {
        let (_root, path) = list(&json!([{"image": image, "caption": "x"}]));
        let text = refusal(path);
        assert!(text.contains(wanted), "{text}");
        assert!(text.len() < 600, "{text}");
    }
    let (_root, path) = list(&json!([{"image": unknown, "caption": "x"}]));
    let text = open(path).unwrap().get(0).unwrap_err().to_string();
    assert!(text.contains("no image that is known here"), "{text}");
    assert!(text.len() < 600, "{text}");
}

#[test]
fn a_line_that_is_too_long_is_one_bad_record() {
    let good = format!("{}\n", json!({"image": "a.png", "caption": "x"})).repeat(40);
    let long = "y".repeat(97 << 20);
    let root = folder(&[
        ("a.png", &images()[0].1),
        ("l.jsonl", format!("{good}{long}\n{good}").as_bytes()),
    ]);
    let pairs = open(root.path().join("l.jsonl")).unwrap();
    let skips = pairs.opening_skips();
    assert_eq!((pairs.len(), skips.skipped_for(Reason::TooLarge)), (80, 1));
    assert!(
        skips.summary().contains("line 41: the line has more than")
            && skips.summary().contains("images in files of their own"),
        "{}",
        skips.summary()
    );
    assert_eq!(pairs.get(79).unwrap().caption, "x");
    drop(root);
    // A list of records by another name is a list.
    let records = json!([{"image": "a.png", "caption": "one"}]).to_string();
    let root = folder(&[("a.png", &images()[0].1), ("l.jsonl", records.as_bytes())]);
    assert_eq!(captions(root.path().join("l.jsonl")), ["one"]);
}

#[test]
fn first_frames_are_shown_and_counted() {
    let pairs = open(case("gif-share/list.json")).unwrap();
    assert_eq!(all(&pairs).len(), 24);
    let png = &images()[0].1;
    let goldens = crate::data_image::goldens();
    let animated = goldens.tensor("animated.webp").unwrap();
    let root = folder(&[("x/a.png", png), ("x/b.webp", animated.data())]);
    let pairs = open(root.path()).unwrap();
    assert_eq!(all(&pairs).len(), 2);
    assert_eq!(pairs.drawing_skips().noted_for(Note::FirstFrame), 1);
    let answer = keel(root.path(), &["data", "check", "x"]).refused(&["a.png: it has no caption"]);
    drop(answer);
    let answer = keel(root.path(), &["data", "check", "."]).fine();
    assert!(
        answer
            .stdout
            .contains("1 sample with the first frame of an animation"),
        "{answer:#?}"
    );
}

#[test]
fn what_macos_adds_is_passed_over() {
    assert_eq!(
        captions(case("macos/macfolder")),
        ["cats", "cats", "cats", "cats"]
    );
    let png = &images()[0].1;
    let mut shard = file("__MACOSX/a/._1.jpg", b"\0\x05\x16\x07");
    shard.extend(file("__MACOSX/a/1.jpg", b"\0\x05\x16\x07"));
    shard.extend(file("a/1.png", png));
    shard.extend(file("a/1.txt", b"one"));
    shard.extend(file(".hidden/2.png", png));
    shard.extend(END);
    let root = folder(&[
        ("s.tar", &shard),
        ("x/.thumbs/a.png", b""),
        ("x/c.png", png),
    ]);
    assert_eq!(captions(root.path().join("s.tar")), ["one"]);
    assert_eq!(captions(root.path()), ["x"]);
}

#[test]
fn the_limit_on_bad_samples_can_be_raised_as_its_message_says() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    fs::write(path.join("a.png"), &images()[0].1).unwrap();
    let record = |image: &str| json!({"image": image, "caption": "x"});
    let records: Vec<Json> = (0..40)
        .map(|at| record(if at < 6 { "none.png" } else { "a.png" }))
        .collect();
    fs::write(path.join("l.json"), json!(records).to_string()).unwrap();
    let answer = keel(path, &["data", "check", "l.json"]);
    assert_eq!(answer.code, Some(1));
    assert!(
        answer
            .stderr
            .contains("6 of 40 samples could not be used, more than 5 %")
            && answer
                .stderr
                .contains("--max-bad-samples (20%, for example)"),
        "{answer:#?}"
    );
    for share in ["20%", "0.15"] {
        keel(
            path,
            &["data", "check", "l.json", "--max-bad-samples", share],
        )
        .fine();
    }
    keel(
        path,
        &["data", "check", "l.json", "--max-bad-samples", "120%"],
    )
    .misunderstood(&["a share from 0% to 100%"]);
}

#[test]
fn tables_are_separated_as_their_heading_shows() {
    assert_eq!(
        captions(case("openclip-csv/openclip.csv")),
        ["one, two", "three"]
    );
    let png = &images()[0].1;
    for (name, table) in [
        ("t.csv", "image;caption\na.png;one\n"),
        ("t.tsv", "image,caption\na.png,one\n"),
        // Flickr30k's.
        (
            "t.csv",
            "image_name| comment_number| comment\na.png| 0| one\n",
        ),
        ("t.tsv", "image\tcaption\r\na.png\tone\r\n\r\n"),
    ] {
        let root = folder(&[("a.png", png), (name, table.as_bytes())]);
        assert_eq!(captions(root.path().join(name)), ["one"], "{table:?}");
    }
}

#[test]
fn mixtures_are_read_as_internvl_reads_them() {
    let count = |name: &str| {
        let pairs = open(case(&format!("mixture/{name}"))).unwrap();
        let captions: Vec<String> = all(&pairs).into_iter().map(|pair| pair.caption).collect();
        assert_eq!(captions, ["A0", "A1", "A2", "A3"], "{name}");
        pairs
    };
    assert!(count("m_jsonlist.json").notes().is_empty());
    let notes = count("m_len.json").notes();
    assert!(
        notes[0].contains("its length says 5, and there are 4, which are used"),
        "{notes:?}"
    );
    let rules = count("m_patch.json").get(0).unwrap().rules;
    assert_eq!((rules.most_tiles, rules.is_varied), (1, false));
}

#[test]
fn sets_of_a_mixture_are_cut_and_varied_as_they_say_and_the_right_answer_is_contrasted() {
    let (_root, path) = list(&json!([]));
    let folder = path.parent().unwrap();
    let said = json!([
        {"role": "user", "content": "<image>a?"}, {"role": "assistant", "content": "wrong", "weight": 0},
        {"role": "user", "content": "c?"}, {"role": "assistant", "content": "right"}]);
    let records = json!([{"image": "a.png", "messages": said}]);
    fs::write(folder.join("l.json"), records.to_string()).unwrap();
    let sample = |more: Json| {
        let mut set = json!({"root": ".", "annotation": "l.json"});
        set.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let mixture = folder.join("m.json");
        fs::write(&mixture, json!({"set": set}).to_string()).unwrap();
        let settings = SampleSettings {
            augmentation: Augmentation::TRAINING,
            turns: 1,
            images: 1,
            share: 1.0,
        };
        let samples = UserSamples::new(Arc::new(open(mixture).unwrap()), &settings);
        let mut draw = Draw {
            form: 0,
            text: &mut Stream::new(1, Purpose::Text, 0, 0),
            look: &mut Stream::new(1, Purpose::Augment, 0, 0),
            fits: &|_| true,
            kept: &Arc::new(ImageCache::new(0)),
        };
        samples.sample(0, &mut draw).unwrap()
    };
    // 37 by 26 pixels in squares of 8: many tiles, were they allowed.
    for (set, is_varied, is_cut) in [
        (json!({}), true, true),
        (json!({"data_augment": false}), false, true),
        (
            json!({"data_augment": true, "max_dynamic_patch": 1}),
            true,
            false,
        ),
    ] {
        let sample = sample(set.clone());
        let View::Image(image) = &sample.view else {
            panic!("{set}: one image")
        };
        assert_eq!(image.window.is_some(), is_varied, "{set}");
        assert_eq!(sample.view.grid(12, 8) != [1, 1], is_cut, "{set}");
        assert_eq!((&*sample.answer, &*sample.caption), ("wrong", "right"));
        assert_eq!(sample.unsupervised, [0]);
    }
}

#[test]
fn of_several_answers_the_one_that_most_gave_is_learnt() {
    let people = |answers: &[&str]| {
        let one = |answer: &&str| json!({"answer": answer, "answer_confidence": "yes"});
        answers.iter().map(one).collect::<Vec<_>>()
    };
    let (_root, path) = list(&json!([
        {"image": "a.png", "question": "q", "answers": ["net", "mesh", "net"]},
        {"image": "a.png", "question": "q", "answers": people(&["red", "blue", "blue", "red"])},
        {"image": "a.png", "question": "q", "answers": {"text": ["four"], "answer_start": [1]}},
        {"image": "a.png", "question": "q", "answer": ["one", ""]},
    ]));
    assert_eq!(captions(path), ["net", "red", "four", "one"]);
    // Splits whose answers are kept back.
    for empty in [json!(null), json!([]), json!(["", ""]), json!("")] {
        let record = json!({"image": "a.png", "question": "q", "answers": empty});
        let (_root, path) = list(&json!(vec![record; 30]));
        let text = refusal(path);
        assert!(
            text.contains("it holds no answers to learn: 30 question without an answer")
                && text.contains("it is a test split, it seems"),
            "{text}"
        );
    }
    // Objects without an `answer`, as of another data set's.
    let record = json!({"image": "a.png", "question": "q", "answers": [{"text": "four"}]});
    let (_root, path) = list(&json!([record]));
    assert!(refusal(path).contains("its answers is not a string"));
    let root = folder(&[
        ("a.png", &images()[0].1),
        ("t.csv", b"image,question,answer\na.png,q,\n"),
    ]);
    assert!(refusal(root.path().join("t.csv")).contains("it is a test split, it seems"));
}

#[test]
fn a_pipe_in_place_of_a_file_is_refused_by_name_and_never_waited_for() {
    let png = &images()[0].1;
    let made = |name: &str, others: &[(&str, &[u8])]| {
        let root = folder(others);
        let path = root.path().join(name);
        let status = Command::new("mkfifo").arg(&path).status();
        assert!(status.expect("mkfifo is there").success());
        root
    };
    for name in [
        "l.json",
        "l.jsonl",
        "t.csv",
        "t.tsv",
        "p.parquet",
        "s.tar",
        "s.tar.gz",
    ] {
        let root = made(name, &[]);
        let text = refusal(root.path().join(name));
        assert!(
            text.contains(name) && text.contains("it is not a regular file"),
            "{text}"
        );
    }
    let tar = crate::data_webdataset::tar(&[("a.png", png), ("a.txt", b"x")]);
    let root = made("B3SUMS", &[("s.tar", &tar)]);
    assert!(refusal(root.path().join("s.tar")).contains("B3SUMS: it is not a regular file"));
    for name in ["captions.txt", "metadata.csv", "metadata.jsonl"] {
        let root = made(name, &[("x/a.png", png)]);
        assert!(refusal(root.path()).contains("it is not a regular file"));
    }
    let root = made("x/b.png", &[("x/a.png", png)]);
    let pairs = open(root.path()).unwrap();
    let text = pairs.get(1).unwrap_err().to_string();
    assert!(text.contains("x/b.png: it is not a regular file"), "{text}");
}

#[test]
fn checksums_that_name_other_shards_say_so() {
    let tar = crate::data_webdataset::tar(&[("a.png", &images()[0].1), ("a.txt", b"x")]);
    let root = folder(&[("s-0.tar", &tar), ("s-1.tar", &tar)]);
    let path = root.path().join("s-{0..1}.tar");
    let sum = blake3::hash(&tar).to_hex();
    for (names, wanted) in [
        (
            ["data/s-0.tar", "data/s-1.tar"],
            "0 of 2 shards listed; without a checksum: s-0.tar, s-1.tar",
        ),
        (
            ["s-0.tar", "other.tar"],
            "1 of 2 shards listed; without a checksum: s-1.tar",
        ),
    ] {
        let text = names.map(|name| format!("{sum}  {name}\n")).concat();
        fs::write(root.path().join("B3SUMS"), text).unwrap();
        let notes = open(&path).unwrap().notes();
        assert!(notes.len() == 1 && notes[0].ends_with(wanted), "{notes:?}");
    }
    let whole = format!("{sum}  s-0.tar\n{sum}  s-1.tar\n");
    fs::write(root.path().join("B3SUMS"), whole).unwrap();
    assert!(open(&path).unwrap().notes().is_empty());
}

#[test]
fn a_check_says_the_right_thing_of_every_case() {
    let cases: [(&str, &[&str]); 16] = [
        (
            "imagefolder-subfolder/hfjl",
            &["2 samples: 2 usable, 0 not"],
        ),
        (
            "imagefolder-subfolder/hfcsv2",
            &["4 samples: 4 usable, 0 not"],
        ),
        ("system-key/system_key.json", &["1 sample: 1 usable, 0 not"]),
        (
            "system-key/system_turn.json",
            &["1 sample: 1 usable, 0 not"],
        ),
        (
            "null-fields/null_caption.json",
            &["1 sample: 1 usable, 0 not"],
        ),
        (
            "null-fields/null_question.json",
            &["1 sample: 1 usable, 0 not"],
        ),
        ("null-fields/jsonnull.tar", &["1 sample: 1 usable, 0 not"]),
        ("captions-csv", &["3 samples: 3 usable, 0 not"]),
        (
            "loss-false/loss_false.json",
            &["no images", "2 answers, 1 of them not to be learnt"],
        ),
        ("loss-false/weight0.json", &["1 sample: 1 usable, 0 not"]),
        ("gif-share/list.json", &["24 samples: 24 usable, 0 not"]),
        ("data-uri/data_uri.json", &["1 sample: 1 usable, 0 not"]),
        ("macos/macfolder", &["4 samples: 4 usable, 0 not"]),
        ("openclip-csv/openclip.csv", &["2 samples: 2 usable, 0 not"]),
        (
            "mixture/m_len.json",
            &["4 samples: 4 usable, 0 not", "noted: "],
        ),
        ("mixture/m_patch.json", &["4 samples: 4 usable, 0 not"]),
    ];
    let root = tempfile::tempdir().unwrap();
    for (name, texts) in cases {
        let path = case(name);
        let answer = keel(root.path(), &["data", "check", &path.to_string_lossy()]).fine();
        for text in texts {
            assert!(answer.stdout.contains(text), "{name}: {answer:#?}");
        }
    }
    let path = case("unbalanced-quote/quote_unbalanced.tsv");
    keel(root.path(), &["data", "check", &path.to_string_lossy()]).refused(&["row 2"]);
}
