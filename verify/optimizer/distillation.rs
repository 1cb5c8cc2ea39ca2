//! Runs that distill: a copy of the tower as it came, or another tower, holds the features, stays as it is, and resumes bit for bit.

use std::path::Path;

use keel::train::{PublishedWeights, Recipe, TrainOptions};

use crate::command::{checkpoint, keel, tensors};
use crate::harness::goldens;
use crate::rank_runs::{assert_same_step, cut, options, train};

const STAGE: &str = "world-knowledge";

/// One stage that distills, of the tiny recipe; `sets` come behind.
fn recipe(sets: &[&str]) -> Recipe {
    let common = [
        "model.teacher={}",
        "stage.world-knowledge.distillation_weight=2.0",
        "stage.world-knowledge.steps=4",
    ];
    let sets: Vec<String> = common
        .iter()
        .chain(sets)
        .map(|set| (*set).to_owned())
        .collect();
    let mut recipe = Recipe::load("tiny", &sets).unwrap();
    recipe.stages.retain(|known| known.name == STAGE);
    recipe.stages[0].reinitialize.clear();
    recipe
}

/// The values of the steps' rows in a run's metrics.
fn of_steps(run: &Path, key: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let rows = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let rows = rows.filter(|row| row["kind"] == "step");
    rows.map(|row| row[key].as_f64().unwrap()).collect()
}

#[test]
fn a_copy_of_the_tower_stays_as_it_came_while_the_tower_learns_and_a_resume_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let packed = [
        "stage.world-knowledge.micro_batch_size=4",
        "stage.world-knowledge.samples_per_sequence=2",
        "stage.world-knowledge.max_tokens=160",
        "stage.world-knowledge.distillation_loss=mse",
    ];
    let (recipe, whole) = (recipe(&packed), folder.path().join("whole"));
    let to_the_end = TrainOptions {
        max_steps: None,
        ..options(&whole, 1)
    };
    train(1, &recipe, &to_the_end);
    let [first, end] = ["1-world-knowledge.step-1", "1-world-knowledge"]
        .map(|label| tensors(&checkpoint(&whole, label)));
    let mut copied = 0;
    for (name, values) in &end {
        if let Some(rest) = name.strip_prefix("teacher.") {
            assert!(first[name] == *values, "{name}");
            assert!(end[&format!("vision.{rest}")] != *values, "vision.{rest}");
            copied += 1;
        }
    }
    assert!(copied > 10, "{copied}");
    // The tower is the teacher at first, and moves away from it.
    let losses = of_steps(&whole, "loss.distillation");
    assert_eq!(losses[0], 0.0);
    assert!(losses[1..].iter().all(|loss| *loss > 0.0), "{losses:?}");
    let again = cut(&whole, &folder.path().join("again"), 2);
    let resumed = TrainOptions {
        out: None,
        resume: Some(again.clone()),
        ..to_the_end
    };
    train(1, &recipe, &resumed);
    let again = tensors(&checkpoint(&again, "1-world-knowledge"));
    assert!(again == end, "other bits");
}

#[test]
fn another_tower_teaches_over_ranks_through_a_projection_as_on_one() {
    let folder = tempfile::tempdir().unwrap();
    let sets = [
        "stage.world-knowledge.trains=[\"vision\", \"connector\", \"language\", \"align\", \"distillation\"]",
        "model.vision.width=48",
        "model.vision.heads=3",
    ];
    let sets: Vec<String> = sets.map(str::to_owned).to_vec();
    let weights = PublishedWeights {
        teacher: Some(goldens().join("hub/siglip")),
        ..PublishedWeights::default()
    };
    let sets = [
        sets,
        vec!["stage.world-knowledge.distillation_weight=1.0".to_owned()],
    ]
    .concat();
    let (mut recipe, _) = Recipe::load_from("tiny", &sets, &weights).unwrap();
    recipe.stages.retain(|known| known.name == STAGE);
    let [alone, two] = ["alone", "two"].map(|name| folder.path().join(name));
    train(1, &recipe, &options(&alone, 1));
    train(2, &recipe, &options(&two, 1));
    assert_same_step("two ranks", [&alone, &two], STAGE);
    let [one, other] = [&alone, &two].map(|run| of_steps(run, "loss.distillation")[0]);
    assert!(
        (one - other).abs() <= 1e-5 * one && one > 0.1,
        "{one} {other}"
    );
    // It has the folder's numbers, and keeps them.
    let held =
        |label: &str| tensors(&checkpoint(&alone, label))["teacher.final_norm.weight"].clone();
    assert!(held("1-world-knowledge.step-1") == held("1-world-knowledge"));
    let norm = crate::rank_runs::floats(&held("1-world-knowledge"));
    assert!(norm.iter().any(|weight| *weight != 1.0), "{norm:?}");
}

#[test]
fn how_alike_patches_are_is_held_to_a_tower_of_another_width_without_a_projection() {
    let folder = tempfile::tempdir().unwrap();
    let sets = [
        "stage.world-knowledge.distillation_weight=1.0",
        "stage.world-knowledge.distillation_loss=gram",
        "model.vision.width=48",
        "model.vision.heads=3",
    ];
    let weights = PublishedWeights {
        teacher: Some(goldens().join("hub/siglip")),
        ..PublishedWeights::default()
    };
    let (mut recipe, _) = Recipe::load_from("tiny", &sets.map(str::to_owned), &weights).unwrap();
    recipe.stages.retain(|known| known.name == STAGE);
    let [alone, two] = ["alone", "two"].map(|name| folder.path().join(name));
    train(1, &recipe, &options(&alone, 1));
    train(2, &recipe, &options(&two, 1));
    assert_same_step("two ranks", [&alone, &two], STAGE);
    let [one, other] = [&alone, &two].map(|run| of_steps(run, "loss.distillation")[0]);
    // Squares of differences of cosines.
    assert!(
        (one - other).abs() <= 1e-5 * one && one > 1e-4 && one < 4.0,
        "{one} {other}"
    );
    let trains = "stage.world-knowledge.trains=[\"vision\", \"connector\", \"distillation\"]";
    let sets = [&sets[..], &[trains]].concat();
    let sets: Vec<String> = sets.into_iter().map(str::to_owned).collect();
    let refused = Recipe::load_from("tiny", &sets, &weights)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("compares no features and projects none"),
        "{refused}"
    );
}

#[test]
fn distillation_is_refused_where_nothing_teaches_or_nothing_learns() {
    let folder = tempfile::tempdir().unwrap();
    let plan = |sets: &[&str]| {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let all: Vec<&str> = ["plan", "--recipe", "tiny"]
            .into_iter()
            .chain(sets)
            .collect();
        keel(folder.path(), &all)
    };
    let weight = "stage.world-knowledge.distillation_weight=1.0";
    plan(&[weight]).refused(&["distillation_weight", "[model.teacher]"]);
    let planned = plan(&["model.teacher={}", weight]).fine();
    // Stage III trains all that it uses but the teacher, which nothing would train.
    let stage = planned
        .stdout
        .split("stage ")
        .find(|text| text.starts_with(STAGE));
    let stage = stage.expect("the stage is planned");
    assert!(!stage.contains("freezing saves"), "{stage}");
    plan(&["model.teacher={}", "stage.target.distillation_weight=1.0"])
        .refused(&["distillation_weight", "trains neither vision"]);
    plan(&[
        "model.teacher={}",
        "stage.world-knowledge.distillation_loss=mse",
    ])
    .refused(&["distillation_loss", "left out"]);
}
