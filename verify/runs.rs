//! Runs of the tiny recipe through the program: what is frozen stays, what is cut off goes on bit for bit, numbers come
//! back, and a loss that breaks down costs neither parameters nor checkpoints.

mod kernels;
mod observers;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytemuck::cast_slice;
use keel::executor::{CpuExecutor, Executor};
use keel::model::{declare, initialise};
use keel::tape::ParameterLayout;
use keel::train::{Recipe, load, newest_checkpoint, read_position, save};
use serde_json::Value;
use tempfile::TempDir;

use crate::command::{checkpoint, checkpoints, command, keel, tensors, tiny_recipe, tiny_run};
use crate::data_pairs::images;

fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|row: &Value| row["kind"] == "step" || row["kind"] == "evaluation")
        .collect()
}

/// Images of each set that the run below is evaluated on.
const EVALUATED: &str = "24";

/// A run of every stage of the tiny recipe, evaluated; made once.
fn whole_run() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| {
        let (run, answer) = tiny_run(&["--quick", "--evaluation-images", EVALUATED]);
        assert!(
            answer.stdout.contains("Questions answered exactly"),
            "{answer:#?}"
        );
        run
    })
}

/// A copy of a run with only these of its checkpoints, as if it had been cut off after the last.
fn cut(run: &Path, labels: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("run");
    fs::create_dir_all(copy.join("checkpoints")).unwrap();
    fs::copy(run.join("recipe.toml"), copy.join("recipe.toml")).unwrap();
    for label in labels {
        fs::copy(checkpoint(run, label), checkpoint(&copy, label)).unwrap();
    }
    folder
}

#[test]
fn a_stage_changes_the_modules_it_trains_and_no_bit_of_the_others() {
    let run = whole_run();
    let recipe = Recipe::load("tiny", &[]).unwrap();
    let layout = declare(&recipe.model, recipe.contrastive_loss).unwrap();
    let first = initialise(&layout, recipe.seed);
    let mut before: BTreeMap<String, Vec<u8>> = layout
        .entries()
        .iter()
        .map(|entry| {
            let end = entry.offset + entry.spec.shape.numel();
            let values = &first[entry.offset..end];
            (entry.spec.name.clone(), cast_slice(values).to_vec())
        })
        .collect();
    for (index, stage) in recipe.stages.iter().enumerate() {
        let label = format!("{}-{}", index + 1, stage.name);
        let after = tensors(&checkpoint(run, &label));
        assert_eq!(after.len(), before.len(), "{label}");
        for module in layout.modules() {
            let of_module = |all: &BTreeMap<String, Vec<u8>>| -> Vec<(String, Vec<u8>)> {
                let prefix = format!("{module}.");
                let here = all.iter().filter(|(name, _)| name.starts_with(&prefix));
                here.map(|(name, bytes)| (name.clone(), bytes.clone()))
                    .collect()
            };
            let same = of_module(&before) == of_module(&after);
            let trained = stage.trains.iter().any(|name| name == module);
            assert!(!of_module(&after).is_empty(), "{label}: {module}");
            assert_eq!(same, !trained, "{label}: {module}");
        }
        before = after;
    }
}

/// The two stages that the tests of going on use, four steps each, a checkpoint after each step. The first packs two
/// samples into a sequence, the second gathers the gradients of two micro-batches.
fn stepwise_run(threads: &str, seed: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(&["warm-up", "fine-grained"]);
    fs::write(folder.path().join("two.toml"), recipe).unwrap();
    let args = [
        "train",
        "--recipe",
        "two.toml",
        "--out",
        "run",
        "--set",
        "stage.fine-grained.micro_batch_size=4",
        "--set",
        "stage.warm-up.samples_per_sequence=2",
        "--max-steps",
        "4",
        "--save-every",
        "1",
        "--no-evaluation",
        "--threads",
        threads,
        "--seed",
        seed,
    ];
    keel(folder.path(), &args).fine();
    folder
}

/// Asserts that two runs wrote the same checkpoints, byte for byte, and returns how many.
#[track_caller]
fn same_checkpoints(run: &Path, other: &Path, except: &[&str]) -> usize {
    let skipped = |name: &String| !except.iter().any(|e| *name == format!("{e}.safetensors"));
    let names: Vec<String> = checkpoints(run).into_iter().filter(skipped).collect();
    for name in &names {
        let read = |run: &Path| fs::read(run.join("checkpoints").join(name)).unwrap();
        assert!(read(run) == read(other), "{name} differs");
    }
    names.len()
}

#[test]
fn a_run_cut_off_anywhere_ends_with_the_bits_of_one_that_was_not() {
    let whole = stepwise_run("1", "7");
    let whole = whole.path().join("run");
    let labels = [
        "1-warm-up.step-1",
        "1-warm-up.step-2",
        "1-warm-up.step-3",
        "1-warm-up",
        "2-fine-grained.step-1",
        "2-fine-grained.step-2",
        "2-fine-grained.step-3",
        "2-fine-grained",
    ];
    assert_eq!(checkpoints(&whole).len(), labels.len());
    for (place, threads) in [(0, "2"), (2, "1"), (3, "3"), (5, "2")] {
        let folder = cut(&whole, &labels[..=place]);
        let args = [
            "train",
            "--resume",
            "run",
            "--max-steps",
            "4",
            "--save-every",
            "1",
            "--no-evaluation",
            "--threads",
            threads,
        ];
        let answer = keel(folder.path(), &args).fine();
        assert!(
            answer.stdout.contains("continuing run from stage"),
            "{answer:#?}"
        );
        let same = same_checkpoints(&whole, &folder.path().join("run"), &[]);
        assert_eq!(same, labels.len(), "cut after {}", labels[place]);
    }
    // In the middle of a stage the moments are in the file, and they are not all zero.
    let middle = tensors(&checkpoint(&whole, labels[5]));
    let moments: Vec<_> = middle
        .iter()
        .filter(|(name, _)| name.contains("_moment."))
        .collect();
    assert!(
        moments
            .iter()
            .any(|(_, bytes)| bytes.iter().any(|byte| *byte != 0))
    );
    assert!(
        tensors(&checkpoint(&whole, "1-warm-up"))
            .keys()
            .all(|n| !n.contains("_moment."))
    );
    // Nothing is left after the last stage.
    let folder = cut(&whole, &labels);
    let answer = keel(folder.path(), &["train", "--resume", "run"]).fine();
    assert!(
        answer.stdout.contains("nothing is left to train"),
        "{answer:#?}"
    );
}

#[test]
fn one_seed_gives_the_same_bits_on_any_number_of_threads_and_another_seed_does_not() {
    let first = stepwise_run("1", "7");
    let again = stepwise_run("2", "7");
    let other = stepwise_run("1", "8");
    let run = |folder: &TempDir| folder.path().join("run");
    assert_eq!(same_checkpoints(&run(&first), &run(&again), &[]), 8);
    let last = "2-fine-grained";
    let (first, other) = (
        tensors(&checkpoint(&run(&first), last)),
        tensors(&checkpoint(&run(&other), last)),
    );
    for name in ["vision.patch_embed.weight", "language.embedding"] {
        assert!(
            first.contains_key(name),
            "{name} is not among {:?}",
            first.keys()
        );
        assert_ne!(first[name], other[name], "{name}");
    }
}

#[test]
fn a_run_that_is_killed_goes_on_from_its_newest_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("one.toml"), tiny_recipe(&["warm-up"])).unwrap();
    let settings = [
        "--set",
        "stage.warm-up.steps=400",
        "--no-evaluation",
        "--threads",
        "1",
    ];
    let mut args = vec![
        "train",
        "--recipe",
        "one.toml",
        "--out",
        "run",
        "--save-every",
        "1",
        "--keep",
        "1000",
    ];
    args.extend(settings);
    let mut child = command(folder.path(), &args)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let third = checkpoint(&folder.path().join("run"), "1-warm-up.step-3");
    while !third.exists() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before its third step"
        );
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let run = folder.path().join("run");
    let newest = newest_checkpoint(&run).unwrap().unwrap();
    let step = read_position(&newest).unwrap().step;
    assert!(step >= 3, "{}", newest.display());
    let most = (step + 1).to_string();
    let answer = keel(
        folder.path(),
        &[
            "train",
            "--resume",
            "run",
            "--no-evaluation",
            "--max-steps",
            &most,
        ],
    );
    let wanted = format!("from stage warm-up, step {step}");
    assert!(answer.fine().stdout.contains(&wanted), "{wanted}");
    assert!(checkpoint(&run, "1-warm-up").exists());
}

#[test]
fn one_batch_over_and_over_is_learnt() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("one.toml"),
        tiny_recipe(&["world-knowledge"]),
    )
    .unwrap();
    let common = ["--overfit-one-batch", "--no-evaluation", "--threads", "2"];
    let mut args = vec![
        "train",
        "--recipe",
        "one.toml",
        "--out",
        "run",
        "--save-every",
        "119",
        "--set",
        "stage.world-knowledge.steps=120",
        "--set",
        "stage.world-knowledge.learning_rate=1e-2",
        "--set",
        "stage.world-knowledge.schedule=constant",
    ];
    args.extend(common);
    keel(folder.path(), &args).fine();
    let run = folder.path().join("run");
    let first = metrics(&run)[0]["loss"].as_f64().unwrap();
    // Going on from one step before the end gives a row for the last step alone.
    fs::remove_file(checkpoint(&run, "1-world-knowledge")).unwrap();
    let mut args = vec!["train", "--resume", "run"];
    args.extend(common);
    keel(folder.path(), &args).fine();
    let rows = metrics(&run);
    let last = rows.last().unwrap();
    assert_eq!(last["step"], 120);
    let last = last["loss"].as_f64().unwrap();
    assert!(
        first > 5.0,
        "ln 512 = 6.2 is what knowing nothing costs, found {first}"
    );
    assert!(last < first / 2.0, "the loss went from {first} to {last}");
}

#[test]
fn what_a_run_measured_is_measured_again_from_its_checkpoints() {
    let run = whole_run();
    let folder = run.parent().unwrap();
    let rows: Vec<Value> = metrics(run)
        .into_iter()
        .filter(|row| row["kind"] == "evaluation")
        .collect();
    let stages: Vec<&str> = rows
        .iter()
        .map(|row| row["stage"].as_str().unwrap())
        .collect();
    let wanted = [
        "warm-start-vision",
        "warm-up",
        "fine-grained",
        "world-knowledge",
        "target",
    ];
    assert_eq!(stages, wanted);
    let early = "run/checkpoints/1-warm-start-vision.safetensors";
    for (path, row) in [("run", &rows[4]), (early, &rows[0])] {
        let images = ["--images", EVALUATED, "--threads", "1"];
        let args = [&["eval", path, "--json"][..], &images].concat();
        let mut measured: Value = serde_json::from_str(&keel(folder, &args).fine().stdout).unwrap();
        measured["kind"] = "evaluation".into();
        assert_eq!(measured, *row, "{path}");
    }
    let text = "run/checkpoints/2-warm-start-language.safetensors";
    keel(folder, &["eval", text]).refused(&["2-warm-start-language", "trained on text alone"]);
}

#[test]
fn rows_of_the_metrics_have_their_fields() {
    let rows = metrics(whole_run());
    let mut steps = 0;
    for row in rows.iter().filter(|row| row["kind"] == "step") {
        steps += 1;
        assert!(row["stage"].is_string(), "{row}");
        for key in [
            "step",
            "loss",
            "gradient_norm",
            "learning_rate",
            "tokens_per_second",
        ] {
            let value = row[key]
                .as_f64()
                .unwrap_or_else(|| panic!("{key} in {row}"));
            assert!(value > 0.0 && value.is_finite(), "{key} in {row}");
        }
        let share = row["share_of_peak"].as_f64().unwrap();
        assert!((0.0..=1.5).contains(&share), "{row}");
        let images = row["images_per_second"].as_f64().unwrap();
        assert_eq!(images > 0.0, row["stage"] != "warm-start-language", "{row}");
        let terms = ["loss.next_token", "loss.contrastive"].map(|key| row[key].is_f64());
        assert!(terms.contains(&true), "{row}");
    }
    // The first and the last step of each of six stages have a line.
    assert!(
        steps >= 12 || rows.iter().any(|row| row["step"] == 1),
        "{steps}"
    );
    for row in rows.iter().filter(|row| row["kind"] == "evaluation") {
        assert_eq!(row["sets"].as_array().unwrap().len(), 4, "{row}");
        for set in row["sets"].as_array().unwrap() {
            assert!(
                set["recall"].is_object() && set["zero_shot"].is_f64(),
                "{set}"
            );
        }
    }
    let log = fs::read_to_string(whole_run().join("log.txt")).unwrap();
    assert_eq!(log.matches("evaluation after").count(), 5, "{log}");
}

#[test]
fn a_image_is_described_and_what_is_no_image_is_refused() {
    let folder = whole_run().parent().unwrap();
    for (ending, bytes) in images() {
        let name = format!("image.{ending}");
        fs::write(folder.join(&name), &bytes).unwrap();
        let asked = keel(
            folder,
            &["caption", "run", &name, "--question", "what is this?"],
        )
        .fine();
        assert_eq!(asked.stdout.lines().count(), 1, "{asked:#?}");
        fs::write(folder.join(&name), &bytes[..bytes.len() / 2]).unwrap();
        keel(folder, &["caption", "run", &name]).refused(&[&name]);
    }
    fs::write(folder.join("words.png"), "these are words").unwrap();
    keel(folder, &["caption", "run", "words.png"]).refused(&["words.png", "; "]);
    fs::write(folder.join("empty.png"), "").unwrap();
    keel(folder, &["caption", "run", "empty.png"]).refused(&["empty.png", "; "]);
    keel(folder, &["caption", "run", "none.png"]).refused(&["none.png: cannot read the image"]);
    keel(folder, &["caption", "none", "words.png"]).refused(&["run none: "]);
    let long = "why? ".repeat(100);
    fs::write(folder.join("good.png"), &images()[0].1).unwrap();
    keel(folder, &["caption", "run", "good.png", "--question", &long])
        .refused(&["--question: expected one that leaves room in 80 tokens"]);
}

#[test]
fn a_damaged_checkpoint_is_refused_wherever_the_damage_is() {
    let path = checkpoint(whole_run(), "3-warm-up");
    let recipe = Recipe::load("tiny", &[]).unwrap();
    let layout = declare(&recipe.model, recipe.contrastive_loss).unwrap();
    load(&path, &layout, None, &mut |_, _| Ok(())).unwrap();
    let bytes = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("bad.safetensors");
    let refused = |what: String| {
        let problem = load(&bad, &layout, None, &mut |_, _| Ok(()))
            .expect_err(&what)
            .to_string();
        assert!(problem.contains("bad.safetensors: "), "{what}: {problem}");
        assert_eq!(problem.lines().count(), 1, "{what}: {problem}");
    };
    for length in [
        0,
        1,
        7,
        8,
        9,
        header / 2,
        header,
        header + 1,
        bytes.len() - 1,
    ] {
        fs::write(&bad, &bytes[..length]).unwrap();
        refused(format!("cut to {length} of {} bytes", bytes.len()));
    }
    let mut longer = bytes.clone();
    longer.push(0);
    fs::write(&bad, &longer).unwrap();
    refused("one byte longer".into());
    let places = (0..64).chain((64..header).step_by(97));
    for place in places.chain([header, header + 1000, bytes.len() - 1]) {
        let mut flipped = bytes.clone();
        flipped[place] ^= 1 << (place % 8);
        fs::write(&bad, &flipped).unwrap();
        refused(format!(
            "bit {} of byte {place} of {header} flipped",
            place % 8
        ));
    }
    fs::write(&bad, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    refused("a pointer".into());
}

#[test]
fn with_a_damaged_newest_checkpoint_a_run_goes_on_from_the_one_before_and_says_so() {
    let folder = cut(whole_run(), &["2-warm-start-language", "3-warm-up"]);
    let newest = checkpoint(&folder.path().join("run"), "3-warm-up");
    let bytes = fs::read(&newest).unwrap();
    fs::write(&newest, &bytes[..bytes.len() / 3]).unwrap();
    let resume = [
        "train",
        "--resume",
        "run",
        "--max-steps",
        "1",
        "--no-evaluation",
    ];
    // Who measures or asks a run must know which checkpoint answers.
    for args in [&["eval", "run"][..], &["caption", "run", "x.png"]] {
        keel(folder.path(), args).refused(&["3-warm-up.safetensors", "damaged", "remove it"]);
    }
    assert_eq!(fs::metadata(&newest).unwrap().len(), bytes.len() as u64 / 3);
    let answer = keel(folder.path(), &resume).fine();
    let passed_over = answer
        .stdout
        .lines()
        .find(|line| line.starts_with("passed over: "));
    let passed_over = passed_over.unwrap_or_else(|| panic!("no word of it in {answer:#?}"));
    assert!(
        passed_over.contains("3-warm-up.safetensors: the checkpoint is damaged"),
        "{passed_over}"
    );
    assert!(
        answer
            .stdout
            .contains("continuing run from stage warm-up, step 0"),
        "{answer:#?}"
    );
    assert!(checkpoint(&folder.path().join("run"), "6-target").exists());
    // The stage was trained again, and its checkpoint is whole again.
    assert_eq!(fs::read(&newest).unwrap().len(), bytes.len());

    // Where none is whole, the newest is named.
    let folder = cut(whole_run(), &["3-warm-up"]);
    fs::write(checkpoint(&folder.path().join("run"), "3-warm-up"), "x").unwrap();
    keel(folder.path(), &resume).refused(&["3-warm-up.safetensors", "damaged", "remove it"]);
}

/// Writes a checkpoint anew, its parameters changed and without the optimiser's state; returns its path.
fn saved_again(
    run: &Path,
    label: &str,
    change: impl Fn(&ParameterLayout, &CpuExecutor),
) -> PathBuf {
    let recipe = Recipe::load(run.join("recipe.toml").to_str().unwrap(), &[]).unwrap();
    let layout = declare(&recipe.model, recipe.contrastive_loss).unwrap();
    let path = checkpoint(run, label);
    let executor = CpuExecutor::new(layout.elements(), 1).unwrap();
    let sink = &mut |offset, values: &[f32]| executor.write_parameters(offset, values);
    let loaded = load(&path, &layout, None, sink).unwrap();
    change(&layout, &executor);
    save(&path, &loaded.position, &layout, &executor, None).unwrap();
    path
}

/// Found by files changed inside: such a run went on with moments of zero, and nothing was said.
#[test]
fn a_checkpoint_inside_a_stage_without_the_optimisers_state_is_refused() {
    let whole = stepwise_run("1", "7");
    let label = "2-fine-grained.step-2";
    let folder = cut(&whole.path().join("run"), &["1-warm-up", label]);
    let path = saved_again(&folder.path().join("run"), label, |_, _| {});
    let before = fs::read(&path).unwrap();
    keel(folder.path(), &["train", "--resume", "run"]).refused(&[
        "2-fine-grained.step-2.safetensors",
        "holds nothing of the optimiser",
        "remove it",
    ]);
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_loss_that_is_not_finite_costs_no_parameter_and_ends_the_run_after_five_steps() {
    let whole = stepwise_run("1", "7");
    let whole = whole.path().join("run");
    let label = "2-fine-grained.step-1";
    let folder = cut(&whole, &["1-warm-up"]);
    let run = folder.path().join("run");
    // A checkpoint whose frozen language model has one value that is no number.
    let path = saved_again(&run, "1-warm-up", |layout, executor| {
        let mut entries = layout.entries().iter();
        let is_norm = |name: &str| name.starts_with("language.") && name.contains("norm");
        let norm = entries.find(|entry| is_norm(&entry.spec.name));
        let norm = norm.expect("a language model has norms");
        executor.write_parameters(norm.offset, &[f32::NAN]).unwrap();
    });
    let before = fs::read(&path).unwrap();

    let args = [
        "train",
        "--resume",
        "run",
        "--no-evaluation",
        "--set",
        "stage.fine-grained.steps=20",
    ];
    let answer = keel(folder.path(), &args).failed(&[
        "stage fine-grained, step 4: 5 bad steps in a row, and going back and leaving their data out has not helped",
        "lower the learning rate",
    ]);
    assert_eq!(
        answer
            .stdout
            .matches("the update was not applied; samples: ")
            .count(),
        10,
        "{answer:#?}"
    );
    let log = fs::read_to_string(run.join("log.txt")).unwrap();
    let bad: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("are not finite"))
        .collect();
    // Once more from the beginning, with other data.
    assert_eq!(bad.len(), 10, "{log}");
    for (step, line) in bad.iter().enumerate() {
        assert!(
            line.starts_with(&format!("stage fine-grained, step {}: loss ", step % 5))
                && line.contains("NaN"),
            "{line}"
        );
        let keys = line.split("samples: ").nth(1).unwrap();
        assert_eq!(
            keys.split(", ").filter(|key| !key.is_empty()).count(),
            8,
            "{line}"
        );
    }
    assert_eq!(checkpoints(&run), ["1-warm-up.safetensors"]);
    assert!(fs::read(&path).unwrap() == before);

    // Bad steps leave nothing worth keeping.
    let mut saving = args.to_vec();
    saving.extend(["--save-every", "1", "--keep", "9"]);
    keel(folder.path(), &saving).failed(&["5 bad steps in a row"]);
    assert_eq!(checkpoints(&run), ["1-warm-up.safetensors"]);
    // Four bad steps are a stage of four steps: it ends with the parameters it began with.
    let old = tensors(&path);
    let few = [&args[..5], &["stage.fine-grained.steps=4"]].concat();
    keel(folder.path(), &few).fine();
    assert!(tensors(&checkpoint(&run, "2-fine-grained")) == old);
    // The same step does change parameters where the loss is finite.
    let good = tensors(&checkpoint(&whole, label));
    assert!(old.iter().any(|(name, bytes)| good[name] != *bytes));
}
