//! Validation on held-out samples: which they are, that it changes no bit of training, what it tells, the best checkpoint and the
//! early end, and what is refused.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use keel::data::pairs::{PairLimits, PairSource, Pairs};
use keel::data::split::{SplitPairs, split};
use keel::train::{Recipe, ValidationHistory, ValidationMetric, read_position};
use serde_json::Value;
use tempfile::TempDir;

use crate::command::{Answer, checkpoint, checkpoints, keel, tensors, tiny_recipe};
use crate::data_image::png_file;

/// An image that no other number gives.
fn image(number: u32) -> Vec<u8> {
    let side = 8;
    let pixel = |at: u32| {
        let is_drawn = number >> (at % 7) & 1 == 1;
        let value = (number * 37 + at * if is_drawn { 5 } else { 1 }) as u8;
        [value, value.wrapping_mul(3), 255 - value]
    };
    let pixels: Vec<u8> = (0..side * side).flat_map(pixel).collect();
    png_file(side, side, png::ColorType::Rgb, &pixels)
}

/// Images with captions, numbered.
fn write_images(folder: &Path, numbers: std::ops::Range<u32>) {
    fs::create_dir_all(folder).unwrap();
    for number in numbers {
        let name = format!("{number:04}");
        fs::write(folder.join(format!("{name}.png")), image(number)).unwrap();
        let caption = format!("picture {number} of a cat");
        fs::write(folder.join(format!("{name}.txt")), caption).unwrap();
    }
}

fn open(spec: impl AsRef<Path>) -> Arc<dyn PairSource> {
    let spec = spec.as_ref().to_str().unwrap();
    Arc::new(Pairs::open(spec, PairLimits::default()).unwrap())
}

fn keys(pairs: &Arc<dyn PairSource>) -> BTreeSet<String> {
    let keys = (0..pairs.len()).map(|index| pairs.words(index).unwrap().key);
    keys.collect()
}

#[test]
fn a_sample_keeps_its_side_when_data_grow_are_repeated_or_stand_in_a_list() {
    let folder = tempfile::tempdir().unwrap();
    let (few, many) = (folder.path().join("few"), folder.path().join("many"));
    write_images(&few, 0..100);
    write_images(&many, 0..200);
    let side = |data: Arc<dyn PairSource>, share| {
        let SplitPairs { trained, held_out } = split(data, share).unwrap();
        let (trained, held_out) = (keys(&trained), keys(&held_out));
        assert!(trained.is_disjoint(&held_out));
        (trained, held_out)
    };
    let (trained, held_out) = side(open(&few), 0.2);
    assert_eq!(trained.len() + held_out.len(), 100);
    // Five standard deviations of a binomial count.
    let far = 5.0 * (100.0f64 * 0.2 * 0.8).sqrt();
    assert!(
        (held_out.len() as f64 - 20.0).abs() < far,
        "{}",
        held_out.len()
    );

    let (_, of_more) = side(open(&many), 0.2);
    let is_old = |key: &&String| key.as_str() < "0100";
    let old: BTreeSet<String> = of_more.iter().filter(is_old).cloned().collect();
    assert_eq!(old, held_out);
    let (_, of_larger) = side(open(&few), 0.4);
    assert!(of_larger.is_superset(&held_out) && of_larger.len() > held_out.len());
    let twice = format!("{}=2.5", few.display());
    assert_eq!(side(open(twice), 0.2).1, held_out);

    let line = |number: u32| {
        format!(
            "{{\"image\": \"{number:04}.png\", \"question\": \"what?\", \"answer\": \"{number}\"}}\n"
        )
    };
    let list: String = (0..100).rev().map(line).collect();
    fs::write(few.join("list.jsonl"), list).unwrap();
    assert_eq!(side(open(few.join("list.jsonl")), 0.2).1, held_out);
}

#[test]
fn conversations_without_an_image_are_told_apart_by_their_words() {
    let folder = tempfile::tempdir().unwrap();
    let line = |number: u32| {
        let question =
            format!("{{\"role\": \"user\", \"content\": \"what is {number} and {number}?\"}}");
        let answer = format!(
            "{{\"role\": \"assistant\", \"content\": \"{}\"}}",
            2 * number
        );
        format!("{{\"messages\": [{question}, {answer}]}}\n")
    };
    let list: String = (0..200).map(line).collect();
    fs::write(folder.path().join("list.jsonl"), &list).unwrap();
    let held_out = split(open(folder.path().join("list.jsonl")), 0.25)
        .unwrap()
        .held_out;
    let words = |pairs: &Arc<dyn PairSource>| -> BTreeSet<String> {
        let words = (0..pairs.len()).map(|index| pairs.words(index).unwrap().prompt.unwrap());
        words.collect()
    };
    // The same records in another order, under another name.
    let other: String = (0..200).rev().map(line).collect();
    fs::write(folder.path().join("other.jsonl"), other).unwrap();
    let moved = split(open(folder.path().join("other.jsonl")), 0.25)
        .unwrap()
        .held_out;
    assert_eq!(words(&held_out), words(&moved));
}

/// A folder with the data `train` and `held`, and a recipe of the stages given that draws from the user's samples.
fn prepared(stages: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_images(&folder.path().join("train"), 0..24);
    write_images(&folder.path().join("held"), 24..33);
    fs::write(folder.path().join("recipe.toml"), tiny_recipe(stages)).unwrap();
    folder
}

const SAMPLES: &str = "stage.warm-up.data={samples=1}";

fn train(folder: &Path, out: &str, more: &[&str]) -> Answer {
    let args = [
        "train",
        "--recipe",
        "recipe.toml",
        "--data",
        "train",
        "--out",
        out,
        "--threads",
        "1",
        "--no-evaluation",
        "--set",
        SAMPLES,
    ];
    keel(folder, &[&args[..], more].concat())
}

/// Rows of a run's validations.
fn validations(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str(line).unwrap());
    rows.filter(|row: &Value| row["kind"] == "validation")
        .collect()
}

#[test]
fn validating_changes_no_bit_of_training_and_tells_a_curve_once() {
    let folder = prepared(&["warm-up"]);
    let steps = [
        "--max-steps",
        "4",
        "--set",
        "stage.warm-up.micro_batch_size=4",
    ];
    let with = [
        "--validate",
        "held",
        "--set",
        "stage.warm-up.validation.every=2",
    ];
    for ranks in ["1", "2"] {
        let (plain, validated) = (format!("plain-{ranks}"), format!("validated-{ranks}"));
        let ranks = ["--ranks", ranks];
        train(folder.path(), &plain, &[&steps[..], &ranks].concat()).fine();
        let answer = train(
            folder.path(),
            &validated,
            &[&steps[..], &with, &ranks].concat(),
        )
        .fine();
        let of = |run: &str| tensors(&checkpoint(&folder.path().join(run), "1-warm-up"));
        assert_eq!(of(&plain), of(&validated), "{ranks:?}");

        let run = folder.path().join(&validated);
        let rows = validations(&run);
        let at: Vec<u64> = rows
            .iter()
            .map(|row| row["step"].as_u64().unwrap())
            .collect();
        assert_eq!(at, [0, 2, 4], "{ranks:?}");
        for row in &rows {
            assert_eq!(row["samples"], 9);
            let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key}: {row}"));
            // The recipe's weights: 1 of next token, 0.1 of contrastive.
            let weighted = number("loss.next_token") + 0.1 * number("loss.contrastive");
            let error = (weighted - number("loss")).abs();
            assert!(error <= 1e-6 * weighted.abs(), "{row}");
            assert_eq!(number("loss.captions"), number("loss.next_token"));
            assert!(number("image_to_text_r5") >= number("image_to_text_r1"));
            assert_eq!(row["generated"].as_array().unwrap().len(), 4);
        }
        assert!(
            rows[2]["loss"].as_f64() < rows[0]["loss"].as_f64(),
            "{rows:?}"
        );
        let events = fs::read_dir(&run)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let events = events.filter(|path| path.to_str().unwrap().contains("tfevents"));
        let events: Vec<u8> = events.flat_map(|path| fs::read(path).unwrap()).collect();
        let tag = b"warm-up/validation/loss.next_token";
        assert_eq!(
            events
                .windows(tag.len())
                .filter(|bytes| bytes == tag)
                .count(),
            3
        );
        let page = fs::read_to_string(run.join("report.html")).unwrap();
        for part in [
            "On held-out samples",
            "Answers after warm-up",
            "validation beside it",
        ] {
            assert!(page.contains(part), "{part}");
        }
        assert!(answer.stdout.contains("Held-out samples"), "{answer:#?}");
    }
}

#[test]
fn a_resumed_run_keeps_its_best_checkpoint_and_ends_as_early() {
    let folder = prepared(&["warm-up"]);
    let of = |key: &str| format!("stage.warm-up.{key}");
    // With so small a rate nothing is told apart better than before: the first validation stays the best.
    let sets = [
        "validation.every=2",
        "validation.best_by=image_to_text_r1",
        "validation.patience=2",
        "learning_rate=1e-12",
        "steps=12",
    ]
    .map(of);
    let sets = sets.iter().flat_map(|set| ["--set", set.as_str()]);
    let more = ["--validate", "held", "--save-every", "1", "--keep", "12"];
    let more: Vec<&str> = more.into_iter().chain(sets).collect();
    let answer = train(folder.path(), "run", &more).fine();
    let said =
        "stage warm-up ends after 6 of 12 steps: 2 validations without a better image_to_text_r1";
    assert!(answer.stdout.contains(said), "{answer:#?}");
    let run = folder.path().join("run");
    let best = checkpoint(&run, "1-warm-up.best");
    assert_eq!(read_position(&best).unwrap().step, 2);
    assert_eq!(validations(&run).last().unwrap()["ends_stage"], true);
    let page = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(!page.contains("has not come to its end"));
    let whole = tensors(&checkpoint(&run, "1-warm-up"));

    for from in [1, 3, 5] {
        let cut = folder.path().join(format!("cut-{from}"));
        fs::create_dir_all(cut.join("checkpoints")).unwrap();
        fs::copy(run.join("recipe.toml"), cut.join("recipe.toml")).unwrap();
        let label = format!("1-warm-up.step-{from}");
        fs::copy(checkpoint(&run, &label), checkpoint(&cut, &label)).unwrap();
        let resume = [
            "train",
            "--data",
            "train",
            "--validate",
            "held",
            "--no-evaluation",
        ];
        let resume = [
            &resume[..],
            &["--threads", "1", "--resume", cut.to_str().unwrap()],
        ];
        let answer = keel(folder.path(), &resume.concat()).fine();
        assert!(answer.stdout.contains(said), "from {from}: {answer:#?}");
        assert!(
            answer.stdout.contains("after step 2"),
            "from {from}: {answer:#?}"
        );
        assert_eq!(
            tensors(&checkpoint(&cut, "1-warm-up")),
            whole,
            "from {from}"
        );
    }
    // What is validated on is part of what a run goes on with.
    let resume = [
        "train",
        "--resume",
        "run",
        "--data",
        "train",
        "--validate",
        "20%",
    ];
    let cut = folder.path().join("cut-3");
    fs::remove_file(checkpoint(&cut, "1-warm-up")).unwrap();
    let resume = resume.map(|arg| {
        if arg == "run" {
            cut.to_str().unwrap()
        } else {
            arg
        }
    });
    let parts = [
        "the samples of --validate were 9 samples",
        "are 20% of --data",
    ];
    keel(folder.path(), &resume).refused(&parts);
}

#[test]
fn a_share_is_held_out_of_every_batch_and_the_best_checkpoint_is_opened_by_name() {
    let folder = prepared(&["warm-up"]);
    let more = [
        "--validate",
        "25%",
        "--max-steps",
        "3",
        "--set",
        "stage.warm-up.validation={every=1, best_by=\"loss\"}",
    ];
    let answer = train(folder.path(), "run", &more).fine();
    let held_out = split(open(folder.path().join("train")), 0.25)
        .unwrap()
        .held_out;
    let said = format!("{} of 24 samples held out by their keys", held_out.len());
    assert!(answer.stdout.contains(&said), "{answer:#?}");
    let run = folder.path().join("run");
    let rows = validations(&run);
    assert!(rows.iter().all(|row| row["samples"] == held_out.len()));
    let generated = rows[0]["generated"].as_array().unwrap().iter();
    let generated: Vec<&str> = generated.map(|row| row["key"].as_str().unwrap()).collect();
    assert!(
        generated.iter().all(|key| keys(&held_out).contains(*key)),
        "{generated:?}"
    );
    let names = ["1-warm-up.best.safetensors", "1-warm-up.safetensors"];
    assert_eq!(checkpoints(&run), names);
    let best = rows
        .iter()
        .rev()
        .find(|row| row["is_best"] == true)
        .unwrap();
    let path = checkpoint(&run, "1-warm-up.best");
    assert_eq!(
        Some(read_position(&path).unwrap().step),
        best["step"].as_u64()
    );
    // The newest checkpoint is still the stage's own.
    keel(
        folder.path(),
        &[
            "train",
            "--resume",
            "run",
            "--data",
            "train",
            "--validate",
            "25%",
        ],
    )
    .fine();
    let image = folder.path().join("held/0024.png");
    let ask = ["caption", path.to_str().unwrap(), image.to_str().unwrap()];
    keel(folder.path(), &ask).fine();
}

#[test]
fn what_cannot_be_validated_is_refused_by_name() {
    let folder = prepared(&["warm-up", "warm-start-language"]);
    let text = fs::read_to_string(folder.path().join("recipe.toml")).unwrap();
    let refused = |more: &[&str], parts: &[&str]| train(folder.path(), "run", more).refused(parts);
    let set = |key: &str| format!("stage.warm-up.validation.{key}");

    refused(
        &["--validate", "0.001%"],
        &["--validate 0.001%", "0 held out and 24 to train on"],
    );
    refused(&["--validate", "nowhere.jsonl"], &["nowhere.jsonl"]);
    refused(
        &["--set", &set("every=2")],
        &["stage warm-up: validation", "--validate"],
    );
    refused(
        &["--set", &set("best_by=loss.contrastve")],
        &["loss.contrastive"],
    );
    refused(&["--set", &set("patience=2")], &["patience", "best_by"]);
    refused(&["--set", &set("samples=1")], &["samples", "2 to"]);
    let other = "stage.warm-start-language.validation.every=1";
    refused(&["--set", other], &["validation", "sees images"]);
    let plain = "stage.warm-up.contrastive_weight=0";
    let metric = set("best_by=image_to_text_r1");
    let parts = ["best_by", "loss.next_token", "found image_to_text_r1"];
    refused(&["--set", plain, "--set", &metric], &parts);
    // No sample asks anything: known before the first step.
    let asked = [
        "--validate",
        "held",
        "--set",
        &set("best_by=loss.questions"),
    ];
    refused(
        &asked,
        &[
            "validation.best_by",
            "loss.captions",
            "found loss.questions",
        ],
    );

    let alone = ["train", "--recipe", "recipe.toml", "--validate", "2%"];
    keel(folder.path(), &alone).refused(&["--validate", "--data"]);
    for share in ["0%", "100%", "-1", "1.5"] {
        let args = ["train", "--validate", share];
        keel(folder.path(), &args).misunderstood(&["--validate", "2%"]);
    }
    assert!(Recipe::parse("recipe", &text, &[set("every=-1")]).is_err());
}

#[test]
fn held_out_samples_that_share_sequences_have_the_losses_of_samples_apart() {
    let folder = prepared(&["warm-up"]);
    // Sequences of so many tokens that not every batch holds all samples that it could.
    let of = |pack: &str, run: &str| {
        let set = format!("stage.warm-up.samples_per_sequence={pack}");
        let more = [
            "--validate",
            "held",
            "--max-steps",
            "1",
            "--set",
            "stage.warm-up.contrastive_weight=0",
            "--set",
            &set,
        ];
        train(folder.path(), run, &more).fine();
        validations(&folder.path().join(run)).swap_remove(0)
    };
    let (apart, packed) = (of("1", "apart"), of("4", "packed"));
    assert_eq!(apart["samples"], 9);
    assert_eq!(packed["samples"], 9);
    let loss = |row: &Value| row["loss.captions"].as_f64().unwrap();
    // The same sums in other shapes: a few roundings of f32 for each of the values that a loss goes through.
    let error = (loss(&packed) / loss(&apart) - 1.0).abs();
    assert!(error < 64.0 * f64::from(f32::EPSILON), "{apart} {packed}");
}

#[test]
fn memory_of_a_validation_is_planned_and_held_to_the_limit() {
    let folder = prepared(&["warm-up"]);
    let plan = ["plan", "--recipe", "recipe.toml", "--threads", "1"];
    let plain = keel(folder.path(), &plan).fine();
    let planned = keel(folder.path(), &[&plan[..], &["--validate"]].concat()).fine();
    assert!(!plain.stdout.contains("  validation "), "{plain:#?}");
    assert!(planned.stdout.contains("  validation "), "{planned:#?}");

    let limited = ["--max-steps", "1", "--validate", "held"];
    let answer = train(folder.path(), "run", &limited).fine();
    let text = fs::read_to_string(folder.path().join("run/metrics.jsonl")).unwrap();
    let row = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let row = row.clone().find(|row| row["kind"] == "stage").unwrap();
    let bytes = |key: &str| {
        row[key]
            .as_u64()
            .unwrap_or_else(|| panic!("{key}: {answer:#?}"))
    };
    let of_stage: u64 = [
        "parameter_bytes",
        "gradient_bytes",
        "moment_bytes",
        "activation_bytes",
    ]
    .map(bytes)
    .iter()
    .sum();
    assert!(bytes("validation_bytes") > 0);
    let limit = (of_stage + bytes("validation_bytes") - 1).to_string();
    let parts = ["--memory-limit", "while it is validated"];
    train(
        folder.path(),
        "limited",
        &[&limited[..], &["--memory-limit", &limit]].concat(),
    )
    .refused(&parts);
    train(
        folder.path(),
        "fits",
        &["--max-steps", "1", "--memory-limit", &limit],
    )
    .fine();
}

#[test]
fn the_best_is_the_first_of_equals_and_what_is_no_number_never_is() {
    let mut history = ValidationHistory::default();
    let loss = ValidationMetric::Loss;
    let taken = [f64::NAN, 3.0, 3.0, f64::NAN, 2.0, 4.0];
    let steps = taken.iter().enumerate();
    let best: Vec<bool> = steps
        .map(|(step, value)| history.take(loss, step as u64, *value))
        .collect();
    assert_eq!(best, [false, true, false, false, true, false]);
    assert_eq!(history.best.unwrap().step, 4);
    let mut history = ValidationHistory::default();
    let recall = ValidationMetric::ImageToText1;
    assert!(
        history.take(recall, 1, 0.5)
            && history.take(recall, 2, 0.75)
            && !history.take(recall, 3, 0.6)
    );
}
