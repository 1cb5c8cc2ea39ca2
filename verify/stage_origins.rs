//! What stages start from: modules as earlier stages left them, and the control that says whether refinement paid.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use keel::report::{RunRecord, refinement_lines};
use keel::train::Recipe;

use crate::command::{checkpoint, keel, tensors, tiny_recipe};

const STAGES: [&str; 3] = ["warm-up", "world-knowledge", "target"];

/// The tiny recipe with a control before its target, which restores what the control changes.
fn recipe(restored: &str) -> String {
    let (before, target) = tiny_recipe(&STAGES)
        .split_once("# What users do next")
        .map(|(before, target)| (before.to_owned(), target.to_owned()))
        .expect("the recipe ends with its target");
    let target = target.replace(
        "reinitialize",
        "restore = { vision = \"world-knowledge\", language = \"world-knowledge\" }\nreinitialize",
    );
    format!(
        "{before}[[stage]]\nname = \"control\"\nkind = \"control\"\ncontrol_of = \"target\"\nrestore = {{ {restored} }}\n\n# {target}"
    )
}

fn train(folder: &Path, out: &str, more: &[&str]) {
    let args = [
        "train",
        "--recipe",
        "recipe.toml",
        "--out",
        out,
        "--threads",
        "2",
    ];
    keel(folder, &[&args[..], more].concat()).fine();
}

fn of_module(tensors: &BTreeMap<String, Vec<u8>>, module: &str) -> BTreeMap<String, Vec<u8>> {
    let prefix = format!("{module}.");
    let own = tensors.iter().filter(|(name, _)| name.starts_with(&prefix));
    own.map(|(name, bytes)| (name.clone(), bytes.clone()))
        .collect()
}

#[test]
fn a_control_from_the_same_modules_is_its_target_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    // The stage before it left the tower so: nothing tells the control from the target.
    fs::write(
        path.join("recipe.toml"),
        recipe("vision = \"world-knowledge\""),
    )
    .unwrap();
    train(path, "run", &["--evaluation-images", "8"]);
    let run = path.join("run");
    let [control, target] =
        ["3-control", "4-target"].map(|label| tensors(&checkpoint(&run, label)));
    assert_eq!(control, target);
    let record = RunRecord::open(&run).unwrap();
    let lines = refinement_lines(&record.recipe, &record.evaluations);
    let [line] = &lines[..] else {
        panic!("{lines:?}")
    };
    let wanted =
        "no difference shown: target − control (vision of world-knowledge) = +0.0 ± 0.0 points of";
    assert!(line.starts_with(wanted), "{line}");

    // Beside no control, a target is what it was.
    fs::write(path.join("recipe.toml"), tiny_recipe(&STAGES)).unwrap();
    train(path, "alone", &["--no-evaluation"]);
    let alone = tensors(&checkpoint(&path.join("alone"), "3-target"));
    assert_eq!(alone, target);
}

#[test]
fn a_control_trains_on_the_tower_as_it_came_and_a_stop_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("recipe.toml"), recipe("vision = \"initial\"")).unwrap();
    train(path, "whole", &["--evaluation-images", "8"]);
    let of = |run: &str, label: &str| tensors(&checkpoint(&path.join(run), label));
    let (warm, refined) = (of("whole", "1-warm-up"), of("whole", "2-world-knowledge"));
    let (control, target) = (of("whole", "3-control"), of("whole", "4-target"));
    // Stage I trains the connector alone, so that its tower is the one that came.
    let tower = |tensors| of_module(tensors, "vision");
    assert_eq!(tower(&control), tower(&warm));
    assert_eq!(tower(&target), tower(&refined));
    assert_ne!(tower(&control), tower(&target));
    assert_ne!(
        of_module(&control, "language"),
        of_module(&target, "language")
    );
    let printed = fs::read_to_string(path.join("whole/log.txt")).unwrap();
    assert!(
        printed.contains("target − control (vision as it was given) = "),
        "{printed}"
    );
    let page = fs::read_to_string(path.join("whole/report.html")).unwrap();
    assert!(page.contains("target − control"));

    // Ended within the control and within the target, at a checkpoint of a stage each time.
    for kept in [2, 3] {
        let run = format!("stopped-{kept}");
        let place = path.join(&run);
        let copied = ["recipe.toml", "tokenizer.json"];
        fs::create_dir_all(place.join("checkpoints")).unwrap();
        for name in copied
            .iter()
            .filter(|name| path.join("whole").join(name).exists())
        {
            fs::copy(path.join("whole").join(name), place.join(name)).unwrap();
        }
        for label in &["1-warm-up", "2-world-knowledge", "3-control"][..kept] {
            let from = checkpoint(&path.join("whole"), label);
            fs::copy(from, checkpoint(&place, label)).unwrap();
        }
        let args = [
            "train",
            "--resume",
            &run,
            "--threads",
            "2",
            "--no-evaluation",
        ];
        keel(path, &args).fine();
        assert_eq!(of(&run, "4-target"), target, "{kept}");
    }
}

#[test]
fn a_stage_that_cannot_start_so_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |text: String, sets: &[&str], parts: &[&str]| {
        fs::write(folder.path().join("recipe.toml"), text).unwrap();
        let args = ["train", "--recipe", "recipe.toml", "--dry-run"];
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let args: Vec<&str> = args.into_iter().chain(sets).collect();
        keel(folder.path(), &args).refused(parts);
    };
    let vision = || recipe("vision = \"initial\"");
    refused(
        recipe("vision = \"warm-pu\""),
        &[],
        &["restore.vision", "did you mean warm-up?"],
    );
    refused(
        recipe("vision = \"target\""),
        &[],
        &["a stage before this one"],
    );
    refused(
        recipe("tower = \"initial\""),
        &[],
        &["restore.tower", "modules out of"],
    );
    refused(
        recipe("connector = \"initial\""),
        &[],
        &["restore.connector", "reinitialize does not name"],
    );
    refused(
        vision(),
        &["stage.control.steps=2"],
        &["stage.control.steps", "as in target"],
    );
    refused(
        vision().replace("control_of = \"target\"", "control_of = \"warm-up\""),
        &[],
        &["control_of", "a stage of kind target"],
    );
    refused(
        vision().replace("kind = \"control\"", "kind = \"target\""),
        &[],
        &["control_of", "not of kind control"],
    );
    refused(
        vision().replace("language = \"world-knowledge\" }", "}"),
        &[],
        &[
            "stage target: restore",
            "language, which the control control changes",
        ],
    );
    refused(
        vision().replace("name = \"world-knowledge\"", "name = \"initial\""),
        &[],
        &["another name"],
    );
    // What is set for the target holds for its control.
    let recipe = Recipe::parse("it", &vision(), &["stage.target.steps=3".to_owned()]).unwrap();
    assert_eq!(recipe.stage("control").unwrap().steps, Some(3));
}
