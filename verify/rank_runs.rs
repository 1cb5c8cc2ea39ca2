//! Training over ranks: threads as ranks against one rank with the same batch, the same bits for a number of ranks and however
//! much is in shards, and checkpoints that any number goes on from.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use keel::error::Result;
use keel::executor::SelectedDevice;
use keel::ranks::{Seat, local};
use keel::train::{BUILT_IN, Recipe, TrainOptions, Trainer};
use serde_json::Value;

use crate::command::{checkpoint, checkpoints, keel, tensors, tiny_recipe};

/// The tiny recipe with one of its stages alone, and these settings of it.
pub fn one_stage(stage: &str, settings: &[&str]) -> Recipe {
    let (_, text) = BUILT_IN.iter().find(|(name, _)| *name == "tiny").unwrap();
    let sets = settings.iter().map(|set| format!("stage.{stage}.{set}"));
    let mut recipe = Recipe::parse("tiny", text, &sets.collect::<Vec<_>>()).unwrap();
    recipe.stages.retain(|known| known.name == stage);
    recipe.stages[0].reinitialize.clear();
    recipe
}

pub fn options(out: &Path, threads: usize) -> TrainOptions {
    TrainOptions {
        out: Some(out.to_owned()),
        max_steps: Some(2),
        save_every: 1,
        keep: 8,
        ..TrainOptions::new(SelectedDevice::processor(threads))
    }
}

/// Runs a trainer that `of` makes on a thread for each rank; what the first rank to fail failed of.
pub fn on_ranks(ranks: usize, of: impl Fn(Seat) -> Result<Trainer> + Sync) -> Vec<Result<()>> {
    let of = &of;
    std::thread::scope(|scope| {
        let threads: Vec<_> = local::seats(ranks)
            .into_iter()
            .map(|seat| {
                scope.spawn(move || {
                    let outcome = of(seat.clone()).and_then(|mut trainer| trainer.run().map(drop));
                    if let Err(problem) = &outcome {
                        seat.votes().give_up(&problem.to_string());
                    }
                    outcome
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

pub fn train(ranks: usize, recipe: &Recipe, options: &TrainOptions) {
    let outcomes = on_ranks(ranks, |seat| {
        let options = TrainOptions {
            seat,
            ..options.clone()
        };
        Trainer::new(recipe.clone(), options, None)
    });
    for outcome in outcomes {
        outcome.unwrap_or_else(|problem| panic!("{ranks} ranks: {problem}"));
    }
}

/// The values of the steps' rows in a run's metrics under `key`.
fn of_steps(run: &Path, key: &str) -> Vec<f64> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let rows = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let steps = rows.filter(|row| row["kind"] == "step");
    steps.map(|row| row[key].as_f64().unwrap()).collect()
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    let numbers = bytes.chunks_exact(4);
    numbers
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

/// The tensors of a checkpoint, put together from the pieces of its ranks where several have saved it; f32 values in shards are
/// the parameters that they are of.
pub fn whole_tensors(run: &Path, label: &str) -> BTreeMap<String, Vec<u8>> {
    let mut all = tensors(&checkpoint(run, label));
    let mut pieces: BTreeMap<String, BTreeMap<usize, Vec<u8>>> = BTreeMap::new();
    for shard in shards(run, label) {
        for (name, bytes) in tensors(&shard) {
            let (parameter, first) = name.split_once('@').expect("a piece has a place");
            let of = pieces.entry(parameter.to_owned()).or_default();
            let before = of.insert(first.parse().unwrap(), bytes);
            assert!(before.is_none(), "{name} is saved twice");
        }
    }
    for (name, pieces) in pieces {
        let mut whole = Vec::new();
        for (first, bytes) in pieces {
            assert_eq!(4 * first, whole.len(), "{name} is saved without a gap");
            whole.extend(bytes);
        }
        let before = match name.strip_prefix("master.") {
            Some(parameter) => all.insert(parameter.to_owned(), whole).is_none(),
            None => all.insert(name, whole).is_some(),
        };
        assert!(!before, "values replace a parameter, all else is new");
    }
    all
}

/// The files that ranks have written of a checkpoint, by name.
pub fn shards(run: &Path, label: &str) -> Vec<PathBuf> {
    let prefix = format!("{label}.rank-");
    let names = checkpoints(run).into_iter();
    let names = names.filter(|name| name.starts_with(&prefix));
    names
        .map(|name| run.join("checkpoints").join(name))
        .collect()
}

/// Holds the first step of two runs of one stage to each other: loss, norm, and first moments, which are a tenth of the gradient.
pub fn assert_same_step(what: &str, [one, other]: [&Path; 2], stage: &str) {
    for key in ["loss", "gradient_norm"] {
        let [one, other] = [one, other].map(|run| of_steps(run, key));
        assert_eq!([one.len(), other.len()], [2, 2], "{what}");
        // The first step begins with the same bits. AdamW's first steps take the sign of each gradient, and roundings turn
        // some of the smallest: the second step begins with that.
        for (step, allowed) in [(0, 1e-5), (1, 2e-2)] {
            let (one, other) = (one[step], other[step]);
            assert!(
                (one - other).abs() <= allowed * one.abs(),
                "{what}: {key} of step {step}: {one} and {other}"
            );
        }
    }
    let label = format!("1-{stage}.step-1");
    let [one, other] = [one, other].map(|run| whole_tensors(run, &label));
    assert_eq!(
        one.keys().collect::<Vec<_>>(),
        other.keys().collect::<Vec<_>>(),
        "{what}"
    );
    let mut compared = 0;
    for (name, one) in one.iter().filter(|(name, _)| name.starts_with("first_")) {
        let (one, other) = (floats(one), floats(&other[name]));
        let scale = one.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (one, other) in one.iter().zip(&other) {
            // Sums of some hundred terms in another order, each rounded to 2⁻²⁴ of the largest.
            assert!(
                (one - other).abs() <= 1000.0 * f32::EPSILON * scale,
                "{what}: {name}: {one} and {other}"
            );
            compared += 1;
        }
    }
    assert!(compared > 100, "{what}: {compared}");
}

const STAGES: [&str; 6] = [
    "warm-start-vision",
    "warm-start-language",
    "warm-up",
    "fine-grained",
    "world-knowledge",
    "target",
];

#[test]
fn ranks_make_the_step_of_one_rank_with_the_same_batch_in_every_stage() {
    let folder = tempfile::tempdir().unwrap();
    for stage in STAGES {
        let recipe = one_stage(stage, &[]);
        let alone = folder.path().join(format!("{stage}-1"));
        train(1, &recipe, &options(&alone, 1));
        for ranks in [2, 4] {
            let run = folder.path().join(format!("{stage}-{ranks}"));
            train(ranks, &recipe, &options(&run, 1));
            assert_same_step(&format!("{stage} on {ranks} ranks"), [&alone, &run], stage);
        }
    }
}

#[test]
fn the_sigmoid_form_sees_the_pairs_of_all_ranks_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = one_stage("warm-start-vision", &[]);
    recipe.contrastive_loss = keel::ops::Contrastive::Sigmoid;
    let [alone, run] = ["one", "two"].map(|name| folder.path().join(name));
    train(1, &recipe, &options(&alone, 1));
    train(2, &recipe, &options(&run, 1));
    assert_same_step("sigmoid", [&alone, &run], "warm-start-vision");
}

#[test]
fn given_micro_batches_are_handed_out_in_turn() {
    // Without a contrast, which compares the pairs that ranks compute at the same time.
    let folder = tempfile::tempdir().unwrap();
    let recipe = one_stage(
        "world-knowledge",
        &["micro_batch_size=2", "contrastive_weight=0.0"],
    );
    let alone = folder.path().join("one");
    train(1, &recipe, &options(&alone, 1));
    for ranks in [2, 4] {
        let run = folder.path().join(ranks.to_string());
        train(ranks, &recipe, &options(&run, 1));
        assert_same_step(&format!("{ranks} ranks"), [&alone, &run], "world-knowledge");
    }
}

/// A stage of packed sequences whose samples come with and without images, some masked.
pub fn packed() -> Recipe {
    one_stage(
        "world-knowledge",
        &["samples_per_sequence=2", "max_tokens=160", "steps=6"],
    )
}

#[test]
fn the_same_number_of_ranks_leaves_the_same_bits_whatever_the_threads() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = packed();
    let runs = [1, 2].map(|threads| {
        let run = folder.path().join(threads.to_string());
        train(4, &recipe, &options(&run, threads));
        tensors(&checkpoint(&run, "1-world-knowledge"))
    });
    assert!(runs[0] == runs[1], "other bits");
}

/// A copy of `run` as it was after `step` steps.
pub fn cut(run: &Path, to: &Path, step: u64) -> PathBuf {
    fs::create_dir_all(to.join("checkpoints")).unwrap();
    fs::copy(run.join("recipe.toml"), to.join("recipe.toml")).unwrap();
    let label = format!("1-world-knowledge.step-{step}");
    for file in [vec![checkpoint(run, &label)], shards(run, &label)].concat() {
        fs::copy(
            &file,
            to.join("checkpoints").join(file.file_name().unwrap()),
        )
        .unwrap();
    }
    to.to_owned()
}

/// All parameters in a checkpoint, one after the other.
fn parameters(run: &Path, label: &str) -> Vec<f32> {
    let all = tensors(&checkpoint(run, label)).into_iter();
    let parameters = all.filter(|(name, _)| !name.contains("_moment."));
    parameters.flat_map(|(_, bytes)| floats(&bytes)).collect()
}

fn distance(one: &[f32], other: &[f32]) -> f64 {
    let squares = one.iter().zip(other).map(|(a, b)| f64::from(a - b).powi(2));
    squares.sum::<f64>().sqrt()
}

/// Goes on on `ranks` ranks from what `whole` saved after three of six steps. Returns the run, and how far from the whole run
/// it ends, as a share of the way that both went.
fn gone_on(recipe: &Recipe, whole: &Path, ranks: usize) -> (PathBuf, f64) {
    let run = cut(whole, &whole.with_extension(ranks.to_string()), 3);
    let resumed = TrainOptions {
        out: None,
        resume: Some(run.clone()),
        max_steps: None,
        ..options(&run, 1)
    };
    train(ranks, recipe, &resumed);
    let end = "1-world-knowledge";
    let (wanted, found) = (parameters(whole, end), parameters(&run, end));
    let begun = parameters(whole, "1-world-knowledge.step-3");
    let share = distance(&wanted, &found) / distance(&wanted, &begun);
    (run, share)
}

#[test]
fn what_four_ranks_saved_any_number_goes_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = packed();
    let whole = folder.path().join("whole");
    let to_the_end = TrainOptions {
        max_steps: None,
        ..options(&whole, 1)
    };
    train(4, &recipe, &to_the_end);
    for ranks in [4, 1, 2] {
        let (run, share) = gone_on(&recipe, &whole, ranks);
        let end = |run: &Path| tensors(&checkpoint(run, "1-world-knowledge"));
        assert_eq!(
            end(&run) == end(&whole),
            ranks == 4,
            "bits on {ranks} ranks"
        );
        // Roundings turn the sign of some of the smallest updates; another moment or batch would turn most.
        assert!(share < 0.1, "{ranks} ranks end {share} of the way off");
        let log = fs::read_to_string(run.join("log.txt")).unwrap();
        let said = format!("the number of ranks was 4, is {ranks}");
        assert_eq!(log.contains(&said), ranks != 4, "{log}");
    }
}

#[test]
fn ranks_save_their_own_moments_and_an_index_that_no_damage_passes() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = packed();
    let whole = folder.path().join("whole");
    let to_the_end = TrainOptions {
        max_steps: None,
        ..options(&whole, 1)
    };
    train(4, &recipe, &to_the_end);
    let name = |rank: usize| format!("1-world-knowledge.step-3.rank-{rank:04}-of-0004.safetensors");
    let found = shards(&whole, "1-world-knowledge.step-3");
    let want: Vec<PathBuf> = (0..4)
        .map(|rank| whole.join("checkpoints").join(name(rank)))
        .collect();
    assert_eq!(found, want);
    let own = tensors(&checkpoint(&whole, "1-world-knowledge.step-3"));
    assert!(
        own.keys().all(|name| !name.contains("_moment.")),
        "moments are with their ranks"
    );

    // A run that was cut off while it saved: parts without an index are no checkpoint, and are removed.
    let run = cut(&whole, &folder.path().join("cut"), 2);
    for shard in &found {
        fs::copy(
            shard,
            run.join("checkpoints").join(shard.file_name().unwrap()),
        )
        .unwrap();
    }
    let resumed = TrainOptions {
        out: None,
        resume: Some(run.clone()),
        keep: 1,
        max_steps: None,
        save_every: 0,
        ..options(&run, 1)
    };
    train(2, &recipe, &resumed);
    let log = fs::read_to_string(run.join("log.txt")).unwrap();
    assert!(log.contains("from stage world-knowledge, step 2"), "{log}");
    assert!(shards(&run, "1-world-knowledge.step-3").is_empty());

    // A bit of one part, or all of it: the checkpoint before is taken.
    for is_gone in [false, true] {
        let run = cut(&whole, &folder.path().join(format!("damaged-{is_gone}")), 2);
        cut(&whole, &run, 3);
        let part = run.join("checkpoints").join(name(2));
        if is_gone {
            fs::remove_file(&part).unwrap();
        } else {
            let mut bytes = fs::read(&part).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(&part, bytes).unwrap();
        }
        let resumed = TrainOptions {
            resume: Some(run.clone()),
            ..resumed.clone()
        };
        train(4, &recipe, &resumed);
        let log = fs::read_to_string(run.join("log.txt")).unwrap();
        assert!(
            log.contains("passed over: ") && log.contains(&name(2)),
            "{log}"
        );
        assert!(log.contains("from stage world-knowledge, step 2"), "{log}");
        let end = |run: &Path| tensors(&checkpoint(run, "1-world-knowledge"));
        assert!(end(&run) == end(&whole), "other bits");
    }
}

#[test]
fn what_one_rank_saved_eight_go_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = packed();
    recipe.stages[0].batch_size = 16;
    let whole = folder.path().join("whole");
    let to_the_end = TrainOptions {
        max_steps: None,
        ..options(&whole, 1)
    };
    train(1, &recipe, &to_the_end);
    let (_, share) = gone_on(&recipe, &whole, 8);
    assert!(share < 0.1, "{share} of the way off");
}

#[test]
fn another_number_of_ranks_goes_on_at_the_border_of_a_stage() {
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        "stage.fine-grained.steps=3",
        "stage.world-knowledge.samples_per_sequence=2",
        "stage.world-knowledge.max_tokens=160",
        "stage.world-knowledge.steps=3",
    ];
    let text = tiny_recipe(&["fine-grained", "world-knowledge"]);
    let recipe = Recipe::parse("two", &text, &settings.map(str::to_owned)).unwrap();
    let whole = folder.path().join("whole");
    let to_the_end = TrainOptions {
        max_steps: None,
        save_every: 0,
        ..options(&whole, 1)
    };
    train(4, &recipe, &to_the_end);
    for ranks in [4, 2, 1] {
        let run = folder.path().join(ranks.to_string());
        fs::create_dir_all(run.join("checkpoints")).unwrap();
        fs::copy(whole.join("recipe.toml"), run.join("recipe.toml")).unwrap();
        let border = checkpoint(&whole, "1-fine-grained");
        fs::copy(border, checkpoint(&run, "1-fine-grained")).unwrap();
        let resumed = TrainOptions {
            out: None,
            resume: Some(run.clone()),
            ..to_the_end.clone()
        };
        train(ranks, &recipe, &resumed);
        let log = fs::read_to_string(run.join("log.txt")).unwrap();
        assert!(log.contains("from stage world-knowledge, step 0"), "{log}");
        let end = "2-world-knowledge";
        let [wanted, found] = [&whole, &run].map(|run| parameters(run, end));
        assert_eq!(wanted == found, ranks == 4, "bits on {ranks} ranks");
        let begun = parameters(&whole, "1-fine-grained");
        let share = distance(&wanted, &found) / distance(&wanted, &begun);
        assert!(share < 0.1, "{ranks} ranks end {share} of the way off");
    }
}

#[test]
fn counts_that_do_not_divide_are_refused_with_those_that_do() {
    let folder = tempfile::tempdir().unwrap();
    for (args, want) in [
        (
            &["--ranks", "3"][..],
            "--ranks: expected a divisor of the 8 sequences of a step of stage warm-start-vision: 1, 2, 4, 8, found 3",
        ),
        (
            &["--ranks", "8", "--set", "stage.warm-up.micro_batch_size=4"],
            "expected a divisor of the 2 micro-batches of a step of stage warm-up: 1, 2; or --set stage.warm-up.micro_batch_size=1, found 8",
        ),
        (&["--ranks", "2000"], "expected 1 to 1024, found 2000"),
        (
            &["--ranks", "2", "--fit", "--memory-limit", "1G"],
            "cannot be used with",
        ),
    ] {
        let mut all = vec![
            "train", "--recipe", "tiny", "--device", "cpu", "--out", "run",
        ];
        all.extend(args);
        let answer = keel(folder.path(), &all);
        assert_eq!(answer.code, Some(2), "{answer:?}");
        assert!(answer.stderr.contains(want), "{}", answer.stderr);
        assert!(!folder.path().join("run").exists());
    }
}

/// The recipe with gradients in shards too.
fn sharded(recipe: &Recipe) -> Recipe {
    Recipe {
        zero_stage: 2,
        ..recipe.clone()
    }
}

#[test]
fn gradients_in_shards_leave_the_bits_of_gradients_that_are_whole() {
    let folder = tempfile::tempdir().unwrap();
    for (stage, ranks) in [("warm-start-vision", 2), ("world-knowledge", 4)] {
        let recipe = one_stage(stage, &[]);
        let [whole, shards] = ["whole", "shards"].map(|name| folder.path().join(stage).join(name));
        fs::create_dir(folder.path().join(stage)).unwrap();
        train(ranks, &recipe, &options(&whole, 1));
        train(ranks, &sharded(&recipe), &options(&shards, 2));
        for label in [format!("1-{stage}.step-1"), format!("1-{stage}")] {
            assert!(
                whole_tensors(&shards, &label) == whole_tensors(&whole, &label),
                "{label}: other bits"
            );
        }
    }
}

#[test]
fn gradients_in_shards_of_several_micro_batches_are_those_of_one_rank() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = one_stage(
        "world-knowledge",
        &["micro_batch_size=2", "contrastive_weight=0.0"],
    );
    let [alone, run] = ["one", "two"].map(|name| folder.path().join(name));
    train(1, &sharded(&recipe), &options(&alone, 1));
    train(2, &sharded(&recipe), &options(&run, 1));
    assert_same_step("in shards", [&alone, &run], "world-knowledge");
    // A run that was cut off between goes on to the same bits.
    let cut = cut(&run, &folder.path().join("cut"), 1);
    let resumed = TrainOptions {
        out: None,
        resume: Some(cut.clone()),
        ..options(&cut, 1)
    };
    train(2, &sharded(&recipe), &resumed);
    let last = |run: &Path| tensors(&checkpoint(run, "1-world-knowledge"));
    assert!(last(&cut) == last(&run), "other bits");
}

#[test]
fn the_program_trains_evaluates_and_reports_once() {
    let folder = tempfile::tempdir().unwrap();
    let run = |more: &[&str]| {
        let mut args = vec![
            "train",
            "--recipe",
            "tiny",
            "--device",
            "cpu",
            "--threads",
            "2",
            "--ranks",
            "2",
        ];
        args.extend([
            "--max-steps",
            "2",
            "--save-every",
            "1",
            "--evaluation-images",
            "8",
        ]);
        args.extend(more);
        keel(folder.path(), &args).fine()
    };
    let answer = run(&["--out", "run"]);
    assert_eq!(
        answer
            .stdout
            .matches("ranks: 2, threads of this process")
            .count(),
        1
    );
    let begins = "\nstage warm-start-vision: trains";
    assert_eq!(answer.stdout.matches(begins).count(), 1);
    assert!(folder.path().join("run/report.html").is_file());
    let text = fs::read_to_string(folder.path().join("run/metrics.jsonl")).unwrap();
    assert_eq!(
        text.matches("\"kind\":\"evaluation\"").count(),
        5,
        "one a stage that sees images"
    );
}
