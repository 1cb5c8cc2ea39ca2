//! `reproducible_across_ranks`: the same bits on any number of ranks, in training, in what it reports, and after a resume.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keel::clock::{Clock, TimeSource};
use keel::executor::{Device, Precision, SelectedDevice};
use keel::model::declare;
use keel::train::{Recipe, TrainOptions, load};
use serde_json::Value;

use crate::command::{checkpoint, keel, tensors};
use crate::rank_runs::{cut, floats, one_stage, options, shards, train, whole_tensors};

/// A stage whose step is eight micro-batches of two samples, some without images.
fn recipe(settings: &[&str], zero_stage: usize) -> Recipe {
    let mut all = vec!["batch_size=16", "micro_batch_size=2", "steps=4"];
    all.extend(settings);
    Recipe {
        reproducible_across_ranks: true,
        zero_stage,
        ..one_stage("world-knowledge", &all)
    }
}

const LABEL: &str = "1-world-knowledge.step-3";

/// Loss, its terms, norm and skipped samples of every row of steps, as they are written.
fn steps(run: &Path) -> Vec<BTreeMap<String, Value>> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let rows = text
        .lines()
        .map(|line| serde_json::from_str::<BTreeMap<String, Value>>(line).unwrap());
    rows.filter(|row| row["kind"] == "step")
        .map(|mut row| {
            row.retain(|key, _| {
                ["step", "gradient_norm", "skipped"].contains(&&**key) || key.contains("loss")
            });
            row
        })
        .collect()
}

/// A clock that stands still: which steps a row of the metrics has the averages of depends on the time.
#[derive(Debug)]
struct Still;

impl TimeSource for Still {
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn since_1970(&self) -> Duration {
        Duration::ZERO
    }
}

fn whole(options: TrainOptions) -> TrainOptions {
    TrainOptions {
        max_steps: None,
        clock: Clock::over(Arc::new(Still)),
        ..options
    }
}

#[test]
fn every_number_of_ranks_leaves_the_bits_of_one_whatever_is_in_shards() {
    let folder = tempfile::tempdir().unwrap();
    let packed: &[&str] = &["samples_per_sequence=2", "max_tokens=160"];
    for (name, settings) in [("contrast", &[][..]), ("packed", packed)] {
        let alone = folder.path().join(name);
        train(1, &recipe(settings, 1), &whole(options(&alone, 2)));
        let want = whole_tensors(&alone, LABEL);
        assert!(want.keys().any(|name| name.starts_with("first_moment.")));
        // The first, and the others together.
        assert_eq!(steps(&alone).len(), 2);
        for (ranks, zero_stage) in [(2, 1), (2, 2), (4, 1), (4, 2), (8, 1)] {
            let run = folder.path().join(format!("{name}-{ranks}-{zero_stage}"));
            train(
                ranks,
                &recipe(settings, zero_stage),
                &whole(options(&run, 1)),
            );
            let what = format!("{name} on {ranks} ranks, zero_stage {zero_stage}");
            assert!(whole_tensors(&run, LABEL) == want, "{what}: other bits");
            assert_eq!(steps(&run), steps(&alone), "{what}");
        }
    }
}

#[test]
fn so_do_ranks_in_bf16_with_random_rounding_and_with_muon() {
    let folder = tempfile::tempdir().unwrap();
    let muon: &[&str] = &[r#"muon=["vision.blocks", "language.blocks"]"#];
    for (name, settings, precision, stochastic_rounding) in [
        ("bf16", &[][..], Precision::Bf16, true),
        ("muon", muon, Precision::F32, false),
        ("muon in bf16", muon, Precision::Bf16, false),
    ] {
        let recipe = Recipe {
            stochastic_rounding,
            ..recipe(settings, 1)
        };
        let runs = [1, 4].map(|ranks| {
            let run = folder.path().join(format!("{name}-{ranks}"));
            let compute = SelectedDevice::new(Device::Cpu, 1, Some(precision)).unwrap();
            let options = TrainOptions {
                compute,
                ..whole(options(&run, 1))
            };
            train(ranks, &recipe, &options);
            (whole_tensors(&run, LABEL), steps(&run))
        });
        assert!(runs[0] == runs[1], "{name}: other bits");
    }
}

#[test]
fn f32_values_in_shards_are_those_of_one_rank_in_checkpoints_and_after_a_resume() {
    let folder = tempfile::tempdir().unwrap();
    let in_bf16 = |options: TrainOptions| TrainOptions {
        compute: SelectedDevice::new(Device::Cpu, 1, Some(Precision::Bf16)).unwrap(),
        ..whole(options)
    };
    let runs = [(1, 1), (4, 1), (2, 2)].map(|(ranks, zero_stage)| {
        let run = folder.path().join(format!("{ranks}-{zero_stage}"));
        let recipe = recipe(&["ema_decay=0.9"], zero_stage);
        train(ranks, &recipe, &in_bf16(options(&run, 1)));
        (run, recipe)
    });
    let end = "1-world-knowledge";
    let (alone, _) = &runs[0];
    let want = [LABEL, end].map(|label| whole_tensors(alone, label));
    for (run, recipe) in &runs[1..] {
        let is_master = |name: &String| name.starts_with("master.");
        let in_shards = |label: &str| {
            let shards = shards(run, label);
            shards
                .iter()
                .any(|shard| tensors(shard).keys().any(is_master))
        };
        // Whole again when the stage is over.
        assert!(in_shards(LABEL) && !in_shards(end));
        let got = [LABEL, end].map(|label| whole_tensors(run, label));
        assert!(got == want, "{}: other bits", run.display());
        // What reads a checkpoint of the middle has the values and not their copies.
        let layout = declare(&recipe.model, recipe.contrastive_loss).unwrap();
        let mut read = vec![0.0; layout.elements()];
        let sink = &mut |first: usize, values: &[f32]| {
            read[first..first + values.len()].copy_from_slice(values);
            Ok(())
        };
        load(&checkpoint(run, LABEL), &layout, None, sink).unwrap();
        for entry in layout.entries() {
            let read = &read[entry.offset..][..entry.spec.shape.numel()];
            assert!(
                floats(&want[0][&entry.spec.name]) == read,
                "{}",
                entry.spec.name
            );
        }
    }
    let (four, recipe) = &runs[1];
    for ranks in [1, 2, 4] {
        let run = cut(four, &folder.path().join(format!("on-{ranks}")), 2);
        let resumed = TrainOptions {
            out: None,
            resume: Some(run.clone()),
            ..in_bf16(options(&run, 1))
        };
        train(ranks, recipe, &resumed);
        let got = [LABEL, end].map(|label| whole_tensors(&run, label));
        assert!(got == want, "{ranks} ranks go on to other bits");
    }
}

#[test]
fn without_it_numbers_of_ranks_leave_other_bits() {
    let folder = tempfile::tempdir().unwrap();
    let plain = Recipe {
        reproducible_across_ranks: false,
        ..recipe(&["contrastive_weight=0.0"], 1)
    };
    let [one, four] = [1, 4].map(|ranks| {
        let run = folder.path().join(ranks.to_string());
        train(ranks, &plain, &whole(options(&run, 1)));
        whole_tensors(&run, LABEL)
    });
    assert!(one != four, "the test would prove nothing");
}

#[test]
fn another_number_of_ranks_goes_on_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(&["ema_decay=0.9"], 1);
    let whole_run = folder.path().join("whole");
    train(4, &recipe, &whole(options(&whole_run, 1)));
    let want = whole_tensors(&whole_run, "1-world-knowledge.step-3");
    assert!(want.keys().any(|name| name.starts_with("ema.")));
    for ranks in [1, 2, 8] {
        let run = cut(&whole_run, &folder.path().join(ranks.to_string()), 2);
        let resumed = TrainOptions {
            out: None,
            resume: Some(run.clone()),
            ..whole(options(&run, 1))
        };
        train(ranks, &recipe, &resumed);
        assert!(
            whole_tensors(&run, LABEL) == want,
            "{ranks} ranks: other bits"
        );
        let log = fs::read_to_string(run.join("log.txt")).unwrap();
        let said = format!("the number of ranks was 4, is {ranks}: the same bits");
        assert!(log.contains(&said), "{log}");
    }
}

#[test]
fn ranks_by_which_the_tree_cannot_be_cut_are_refused_with_those_by_which_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let stage = "stage.warm-start-vision";
    let set = |key: &str| format!("{stage}.{key}");
    let (batch, micro) = (set("batch_size=12"), set("micro_batch_size=2"));
    let on = ["--set", "reproducible_across_ranks=true", "--set"];
    let sixth = [&on[..], &[&batch, "--set", &micro]].concat();
    for (ranks, zero_stage, more, want) in [
        (
            "2",
            "zero_stage=1",
            &sixth[..],
            "--ranks: expected a number by which the tree over the 6 micro-batches of a step of stage warm-start-vision is cut into \
             subtrees, with reproducible_across_ranks: 1, 3, 6, found 2",
        ),
        (
            "3",
            "zero_stage=2",
            &sixth[..],
            "with reproducible_across_ranks: 1, 2, 6, found 3",
        ),
        (
            "2",
            "zero_stage=1",
            &on[..2],
            "micro_batch_size: expected given with reproducible_across_ranks: a micro-batch that depends on the number of ranks",
        ),
    ] {
        let mut args = vec![
            "train", "--recipe", "tiny", "--device", "cpu", "--out", "run",
        ];
        args.extend(["--ranks", ranks, "--set", zero_stage]);
        // Every other stage says its own, where the first is asked about.
        let others = [
            "warm-start-language",
            "warm-up",
            "fine-grained",
            "world-knowledge",
            "target",
        ];
        let others = others.map(|other| format!("stage.{other}.micro_batch_size=2"));
        if more.len() > 2 {
            others
                .iter()
                .for_each(|other| args.extend(["--set", other]));
        }
        args.extend(more);
        let answer = keel(folder.path(), &args);
        assert_eq!(answer.code, Some(2), "{answer:?}");
        assert!(answer.stderr.contains(want), "{}", answer.stderr);
    }
}
