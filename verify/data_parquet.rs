//! Parquet files as pyarrow writes them say what pyarrow reads from them, row by row in any order; what cannot be used is
//! counted or refused by name; damage ends in a value or an error.

use std::path::PathBuf;

use keel::data::pairs::{Pair, PairLimits, PairSource, Pairs};
use keel::data::skips::SkipLimits;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use crate::allocations::measure;
use crate::harness::goldens;

fn golden(name: &str) -> PathBuf {
    goldens().join("parquet").join(name)
}

/// Every bad sample may be bad.
fn tolerant() -> PairLimits {
    PairLimits {
        skips: SkipLimits {
            max_bad_fraction: 1.0,
            ..SkipLimits::default()
        },
        ..PairLimits::default()
    }
}

fn open(name: &str) -> keel::error::Result<Pairs> {
    Pairs::open(&golden(name).to_string_lossy(), tolerant())
}

fn told(pair: &Pair) -> Json {
    let turn =
        |turn: &keel::data::chat::Turn| json!({"question": turn.question, "answer": turn.answer});
    json!({
        "prompt": pair.prompt,
        "caption": pair.caption,
        "further": pair.further.iter().map(turn).collect::<Vec<_>>(),
        "system": pair.system,
        "colour": pair.image.as_ref().map(|image| image.rgba[..3].to_vec()),
    })
}

/// What pyarrow reads from a file.
fn expected(name: &str) -> Vec<Json> {
    let text = std::fs::read_to_string(golden("expected.json")).expect("part of the checkout");
    let all: Json = serde_json::from_str(&text).expect("made by tools/golden_parquet.py");
    all["pairs"][name].as_array().expect("listed").clone()
}

fn check(name: &str) {
    let pairs = open(&format!("{name}.parquet")).unwrap_or_else(|e| panic!("{e}"));
    let expected = expected(name);
    assert_eq!(pairs.len(), expected.len());
    assert!(expected.len() > 5, "{name} has rows");
    assert_eq!(pairs.opening_skips().skipped(), 0);
    // In an order that goes through the groups again and again, on several threads at once.
    let count = expected.len();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (pairs, expected) = (&pairs, &expected);
            scope.spawn(move || {
                for step in 0..count {
                    let index = (step * 17 + thread * 5) % count;
                    let pair = pairs.get(index).unwrap_or_else(|e| panic!("{e}"));
                    assert_eq!(told(&pair), expected[index], "{name}, row {index}");
                    let words = pairs.words(index).unwrap_or_else(|e| panic!("{e}"));
                    let (image, before) = (pair.image.clone(), pair.before.clone());
                    let again = Pair {
                        image,
                        before,
                        ..words
                    };
                    assert_eq!(again, pair, "{name}, row {index}");
                }
            });
        }
    });
}

#[test]
fn captions_are_found_across_groups_pages_and_dictionaries() {
    check("captions");
    check("captions-v2");
}

#[test]
fn groups_packed_by_zstd_and_by_lz4_are_read() {
    check("captions-zstd");
    check("captions-lz4");
}

#[test]
fn conversations_of_lists_of_structs_are_put_together_again() {
    check("conversations");
    check("conversations-v2");
}

#[test]
fn columns_that_a_row_does_not_use_are_null_and_several_answers_are_a_list() {
    check("nulls");
}

#[test]
fn messages_of_lists_in_lists_and_the_cauldrons_texts_are_conversations_too() {
    check("messages");
    check("texts");
}

#[test]
fn several_files_of_one_pattern_are_one_source() {
    let pattern = golden("{captions,captions-v2}.parquet");
    let pairs = Pairs::open(&pattern.to_string_lossy(), tolerant());
    // Braces hold numbers here as everywhere; the message says so.
    assert!(pairs.is_err());
    let folder = tempfile::tempdir().unwrap();
    for index in 0..2 {
        let name = format!("train-0000{index}-of-00002.parquet");
        std::fs::copy(golden("captions.parquet"), folder.path().join(name)).unwrap();
    }
    let pattern = folder.path().join("train-{00000..00001}-of-00002.parquet");
    let pairs = Pairs::open(&pattern.to_string_lossy(), tolerant()).unwrap();
    assert_eq!(pairs.len(), 80);
    assert_eq!(told(&pairs.get(45).unwrap()), expected("captions")[5]);
}

#[test]
fn rows_that_cannot_be_used_are_counted_by_name() {
    let pairs = open("flawed.parquet").unwrap();
    // An empty answer and none at all are seen when the file is opened; no image when the row is drawn.
    assert_eq!(pairs.opening_skips().skipped(), 2);
    let summary = pairs.opening_skips().summary();
    assert!(
        summary.contains("2 question without an answer"),
        "{summary}"
    );
    assert_eq!(pairs.len(), 4);
    assert!(pairs.get(0).is_ok());
    // Two images of a list, in its order.
    let two = pairs.get(2).unwrap();
    assert_eq!(two.prompt.as_deref(), Some("<image>\n<image>\nq"));
    let colour = |image: &keel::data::image::Image| image.rgba[..3].to_vec();
    let shown: Vec<_> = two.before.iter().chain(&two.image).map(colour).collect();
    assert_eq!(shown.len(), 2);
    assert_ne!(shown[0], shown[1]);
    for (index, row, problem) in [(1, 2, "it has no image"), (3, 4, "it has no image")] {
        let error = pairs.get(index).unwrap_err().to_string();
        let name = format!("flawed.parquet, row {row}");
        assert!(error.contains(&name) && error.contains(problem), "{error}");
    }
    let pairs = open("paths.parquet").unwrap();
    assert_eq!(pairs.len(), 1);
    assert_eq!(pairs.opening_skips().skipped(), 2);
    let summary = pairs.opening_skips().summary();
    assert!(summary.contains("refused archive entry"), "{summary}");
    let error = pairs.get(0).unwrap_err().to_string();
    assert!(
        error.contains("paths.parquet, row 1") && error.contains("a.png"),
        "{error}"
    );
}

#[test]
fn files_of_another_schema_or_packing_are_refused_with_what_they_have() {
    for (name, texts) in [
        (
            "numbers.parquet",
            &["the columns image, label", "name a column image"][..],
        ),
        (
            "labels.parquet",
            &["its column answer is not text", "strings"],
        ),
        (
            "learnt.parquet",
            &["the loss of its messages says what is learnt", ".jsonl"],
        ),
        (
            "videos.parquet",
            &["it has videos, which cannot be shown to the model"],
        ),
        (
            "brotli.parquet",
            &[
                "brotli.parquet",
                "snappy, zstd, lz4, gzip or no compression",
            ],
        ),
    ] {
        let error = open(name).unwrap_err().to_string();
        for text in texts {
            assert!(error.contains(text), "no {text:?} in {error}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.parquet");
    let whole = std::fs::read(golden("captions.parquet")).unwrap();
    for cut in [0, 3, 100, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let error = Pairs::open(&path.to_string_lossy(), tolerant()).unwrap_err();
        assert!(error.to_string().contains("cut.parquet"), "{error}");
    }
}

/// What fuzzing found: the library panicked over a page's header, and never came back from passing over a list.
#[test]
fn files_that_the_library_breaks_off_over_are_counted_and_refused() {
    for name in ["page-without-header.parquet", "levels-cut-short.parquet"] {
        let refusals = match open(name) {
            Err(error) => vec![error],
            Ok(pairs) => (0..pairs.len())
                .filter_map(|i| pairs.get(i).err())
                .collect(),
        };
        assert!(!refusals.is_empty(), "{name}");
        for error in refusals {
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_end_in_a_value_or_an_error_within_memory(
        kind in 0..5_usize,
        places in prop::collection::vec((0.0..1.0_f64, any::<u8>()), 1..6),
        near_end in any::<bool>(),
    ) {
        let names = ["captions", "captions-v2", "conversations", "messages", "conversations-v2"];
        let mut bytes = std::fs::read(golden(&format!("{}.parquet", names[kind]))).unwrap();
        // Half the time the footer, which says what the rest means.
        let from = if near_end { bytes.len() / 2 } else { 0 };
        for (place, value) in places {
            let place = from + (place * (bytes.len() - from) as f64) as usize;
            bytes[place] = value;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("damaged.parquet");
        std::fs::write(&path, &bytes).unwrap();
        let ((), allocated) = measure(|| {
            if let Ok(pairs) = Pairs::open(&path.to_string_lossy(), tolerant()) {
                for index in 0..pairs.len().min(60) {
                    let _ = pairs.get(index);
                }
            }
        });
        prop_assert!(allocated.peak_bytes < 64 << 20, "{allocated:?}");
    }
}
