//! Runs that keep averages: e ← e + (1 − d)(p − e) to the bit, over ranks too, resumed, evaluated and exported on request.

use std::collections::BTreeMap;
use std::path::Path;

use keel::train::{ExportOptions, ExportPart, Recipe, TrainOptions, export};
use safetensors::SafeTensors;

use crate::command::{checkpoint, keel, tensors};
use crate::rank_runs::{cut, floats, one_stage, options, train, whole_tensors};

const DECAY: f64 = 0.75;

fn recipe() -> Recipe {
    let decay = format!("ema_decay={DECAY}");
    one_stage(
        "world-knowledge",
        &["steps=4", &decay, "freeze=[\"vision.blocks.0\"]"],
    )
}

/// Numbers by parameter: the averages, or the parameters that have one.
type Numbers = BTreeMap<String, Vec<f32>>;

/// Averages and parameters of a checkpoint.
fn kept(run: &Path, label: &str) -> [Numbers; 2] {
    let all = whole_tensors(run, label);
    let averages = all.iter().filter_map(|(name, bytes)| {
        let name = name.strip_prefix("ema.")?;
        Some((name.to_owned(), floats(bytes)))
    });
    let averages: Numbers = averages.collect();
    let parameters = averages.keys();
    let parameters = parameters.map(|name| (name.clone(), floats(&all[name])));
    let parameters = parameters.collect();
    [averages, parameters]
}

#[test]
fn averages_follow_the_parameters_to_the_bit_on_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let rest = (1.0 - DECAY) as f32;
    for ranks in [1, 2] {
        let run = folder.path().join(ranks.to_string());
        let to_the_end = TrainOptions {
            max_steps: None,
            ..options(&run, 1)
        };
        train(ranks, &recipe(), &to_the_end);
        let labels = [
            "1-world-knowledge.step-2",
            "1-world-knowledge.step-3",
            "1-world-knowledge",
        ];
        for pair in labels.windows(2) {
            let [before, _] = kept(&run, pair[0]);
            let [after, parameters] = kept(&run, pair[1]);
            assert!(
                after
                    .keys()
                    .all(|name| !name.starts_with("vision.blocks.0."))
            );
            assert!(
                after
                    .keys()
                    .any(|name| name.starts_with("vision.blocks.1."))
            );
            for (name, after) in after {
                let values = before[&name].iter().zip(&parameters[&name]);
                let want: Vec<f32> = values.map(|(e, p)| e + rest * (p - e)).collect();
                assert!(want == after, "{name} on {ranks} ranks");
            }
        }
    }
}

#[test]
fn a_resumed_run_keeps_the_same_averages() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let to_the_end = TrainOptions {
        max_steps: None,
        ..options(&whole, 1)
    };
    train(1, &recipe(), &to_the_end);
    let again = cut(&whole, &folder.path().join("again"), 2);
    let resumed = TrainOptions {
        out: None,
        resume: Some(again.clone()),
        ..to_the_end
    };
    train(1, &recipe(), &resumed);
    let [whole, again] = [&whole, &again].map(|run| tensors(&checkpoint(run, "1-world-knowledge")));
    assert!(whole.keys().any(|name| name.starts_with("ema.vision.")));
    assert!(whole == again, "other bits");
}

/// A tensor's bytes in a folder of one file.
fn exported(folder: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    tensors
        .iter()
        .map(|(_, tensor)| tensor.data().to_vec())
        .collect()
}

#[test]
fn averages_are_evaluated_and_exported_on_request_and_refused_where_there_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (name, ranks, recipe) in [
        ("with", 2, recipe()),
        ("without", 1, one_stage("world-knowledge", &["steps=1"])),
    ] {
        train(ranks, &recipe, &options(&at.join(name), 1));
    }
    let averages = whole_tensors(&at.join("with"), "1-world-knowledge");
    let export_to = |run: &str, out: &str, averages| {
        let options = ExportOptions {
            part: ExportPart::Vision,
            layout: None,
            dtype: None,
            shard_bytes: u64::MAX,
            averages,
            lora: None,
        };
        export(&at.join(run), &at.join(out), &options)
    };
    export_to("with", "trained", false).unwrap();
    export_to("with", "averaged", true).unwrap();
    let name = "vision.final_norm.weight";
    let [trained, averaged] = ["trained", "averaged"].map(|out| exported(&at.join(out)));
    let average = &averages[&format!("ema.{name}")];
    assert!(averages[name] != *average);
    assert!(trained.contains(&averages[name]) && !trained.contains(average));
    assert!(averaged.contains(average) && !averaged.contains(&averages[name]));
    // What the stage froze is what it was.
    let frozen = &averages["vision.blocks.0.norm1.weight"];
    assert!(averaged.contains(frozen));
    let problem = export_to("without", "none", true).unwrap_err().to_string();
    for part in ["--ema", "a stage with ema_decay", "which has none"] {
        assert!(problem.contains(part), "{problem}");
    }
    let measure = ["--metrics", "retrieval", "--images", "8", "--json"];
    let eval = |more: &[&str]| keel(at, &[&["eval", "with"][..], more, &measure].concat()).fine();
    assert_ne!(eval(&[]).stdout, eval(&["--ema"]).stdout);
    let files = ["1-world-knowledge.json", "1-world-knowledge.ema.json"];
    for file in files {
        assert!(at.join("with/evaluations").join(file).exists(), "{file}");
    }
    let refused = [&["eval", "without", "--ema"][..], &measure].concat();
    keel(at, &refused).refused(&["--ema", "a stage with ema_decay"]);
}
