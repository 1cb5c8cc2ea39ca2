//! Ablations: equal compute, the same target training, going on after a stop, and plans that are refused.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use keel::data::pairs::{PairLimits, Pairs};
use keel::eval::Measurements;
use keel::executor::{Device, SelectedDevice};
use keel::train::{
    Ablation, AblationOptions, AblationPlan, AblationResults, BUILT_IN_PLANS, Silent, Spend,
    UnitResult, units,
};

use rustix::fs::{FlockOperation, flock};

use crate::benchmark::benchmark;
use crate::command::{keel, tiny_recipe};
use crate::data_image::png_file;
use crate::harness::goldens;

const PLAN: &str = r#"
name = "trial"
question = "Does it pay?"
recipe = "tiny"
seeds = [1, 2]
max_images = 8

[quick]
warm_start_ratio = 0.34
refinement_ratio = 0.34
target_ratio = 0.34
max_images = 4
seeds = [3, 4]

[[arm]]
name = "none"
stages = []
spend = "as_is"

[[arm]]
name = "all of it"
stages = ["warm-up", "fine-grained", "world-knowledge"]
against = "none"
"#;

#[test]
fn arms_of_every_built_in_plan_cost_the_same_but_those_that_say_otherwise() {
    let longer = concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/ablations/longer.toml");
    let trained = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/recipes/ablations/trained.toml"
    );
    for name in BUILT_IN_PLANS
        .iter()
        .map(|(name, _)| *name)
        .chain([longer, trained])
    {
        let plan = AblationPlan::load(name, |_| {}).unwrap();
        for quick in [false, true] {
            for unit in units(&plan, quick).unwrap() {
                let arm = plan.arms.iter().find(|arm| arm.name == unit.arm).unwrap();
                let spent = match arm.spend {
                    Spend::AsIs => continue,
                    Spend::Target => {
                        let plain = &plan.recipe_of(arm).unwrap().stages.pop().unwrap();
                        let target = &unit.targets[0];
                        let steps = target.stage.steps.unwrap();
                        let ratio = if quick { plan.quick.target_ratio } else { 1.0 };
                        let short = (plain.steps.unwrap() as f64 * ratio).round();
                        target.flops * (1.0 - short / steps as f64)
                    }
                    Spend::Refinement => unit.refinement_flops,
                    Spend::WarmStart => {
                        let plain = |other: &&keel::train::Unit| {
                            other.seed == unit.seed
                                && other.recipe.model == unit.recipe.model
                                && other.refinement_flops > 0.0
                        };
                        let all = units(&plan, quick).unwrap();
                        unit.warm_flops - all.iter().find(plain).unwrap().warm_flops
                    }
                };
                // Steps are whole: the shortest of these stages have under 30, and miss by up to half of one.
                let off = (spent / unit.budget - 1.0).abs();
                assert!(
                    off < 0.02,
                    "{name}, {}: {spent} of {}",
                    unit.arm,
                    unit.budget
                );
            }
        }
    }
}

fn results(folder: &Path) -> AblationResults {
    let text = fs::read_to_string(folder.join("results.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn an_ablation_that_was_stopped_goes_on_and_ends_with_the_same_numbers() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("plan.toml"), PLAN).unwrap();
    let args = [
        "ablate",
        "plan.toml",
        "--quick",
        "--out",
        "whole",
        "--threads",
        "2",
    ];
    let answer = keel(folder.path(), &args).fine();
    assert!(answer.stdout.contains("4 of 4 runs done"), "{answer:#?}");
    let whole = results(&folder.path().join("whole"));
    assert_eq!(whole.units.len(), 4);
    // What a time is stands apart: results are the same bytes wherever they are computed.
    let text = fs::read_to_string(folder.path().join("whole/results.json")).unwrap();
    assert!(!text.contains("seconds"), "{text}");
    let times = fs::read_to_string(folder.path().join("whole/times.json")).unwrap();
    assert!(times.contains("all-of-it-seed-4"), "{times}");
    let pair = &whole.arms[1];
    assert_eq!(pair.seeds, [3, 4]);
    let questions = &pair.metrics["answer_loss.seen_style"];
    let mean = (questions.values[0] + questions.values[1]) / 2.0;
    assert!((questions.interval.mean - mean).abs() < 1e-12);
    let others = &whole.arms[0].metrics["answer_loss.seen_style"].values;
    let difference = mean - (others[0] + others[1]) / 2.0;
    let test = questions.test.unwrap();
    assert!((test.difference.mean - difference).abs() < 1e-12);

    // Cut off in the third unit: its result and the later one are missing, its target had begun.
    let cut = folder.path().join("whole");
    for result in ["none-seed-4", "all-of-it-seed-4"] {
        fs::remove_file(cut.join(format!("results/{result}.json"))).unwrap();
    }
    let answer = keel(folder.path(), &args).fine();
    assert_eq!(
        answer.stdout.matches("already there").count(),
        2,
        "{answer:#?}"
    );
    let again = results(&cut);
    let numbers = |results: &AblationResults| -> Vec<_> {
        let of = |unit: &UnitResult| (unit.arm.clone(), unit.seed, unit.metrics.clone());
        results.units.iter().map(of).collect()
    };
    assert_eq!(numbers(&again), numbers(&whole));

    // Another length is another result, not the old one under the same name.
    let (longer, _) = PLAN.rsplit_once("[[arm]]").unwrap();
    let longer = longer
        .replace("target_ratio = 0.34", "target_ratio = 0.5")
        .replace("[3, 4]", "[4]");
    fs::write(folder.path().join("plan.toml"), longer).unwrap();
    let answer = keel(folder.path(), &args).fine();
    assert!(!answer.stdout.contains("already there"), "{answer:#?}");

    let lock = fs::File::create(cut.join("lock")).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    keel(folder.path(), &args).refused(&["ablation folder whole", "one that is in use"]);
    drop(lock);

    fs::write(cut.join("results/none-seed-4.json"), "{").unwrap();
    keel(folder.path(), &args).refused(&["none-seed-4.json", "remove it"]);
}

#[test]
fn arms_whose_names_differ_in_punctuation_only_have_files_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let (head, _) = PLAN.split_once("[[arm]]").unwrap();
    let head = head.replace("[3, 4]", "[3]");
    let arm =
        |name: &str| format!("[[arm]]\nname = \"{name}\"\nstages = []\nspend = \"as_is\"\n\n");
    let arms = ["I+II", "I-II", "other"].map(arm).concat();
    let plan = format!("{head}{arms}");
    fs::write(folder.path().join("plan.toml"), &plan).unwrap();
    let args = ["ablate", "plan.toml", "--quick", "--out", "out"];
    keel(folder.path(), &args).fine();
    let names = fs::read_dir(folder.path().join("out/results")).unwrap();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let [one, two, other] = &names[..] else {
        panic!("{names:?}");
    };
    assert!(
        one.starts_with("i-ii-") && two.starts_with("i-ii-"),
        "{names:?}"
    );
    assert_eq!(other, "other-seed-3.json");

    // A result that was computed on something else is named, and run again where that is asked for.
    let path = folder.path().join("out/results").join(other);
    let mut result: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(result["inputs"]["device"], "cpu");
    result["inputs"]["device"] = "cuda".into();
    result["key"] = "of then".into();
    fs::write(&path, result.to_string()).unwrap();
    let parts = ["--out out", "other, seed 3: the device was cuda, is cpu"];
    keel(folder.path(), &args).refused(&parts);
    let answer = keel(folder.path(), &[&args[..], &["--accept-changes"]].concat()).fine();
    assert_eq!(answer.stdout.matches("already there").count(), 2);
}

#[test]
fn the_target_trains_the_language_model_of_the_warm_start() {
    let folder = tempfile::tempdir().unwrap();
    // With no refinement and a target of one step at a rate of almost nothing, what is evaluated is the warm start; with
    // refinement in between, only the tower differs: the language model's distance statistics do not move.
    let plan = PLAN.replace(
        "seeds = [1, 2]",
        "seeds = [1]\nset = [\"stage.target.learning_rate=1e-12\", \"stage.target.steps=1\", \
         \"stage.world-knowledge.trains=['language', 'connector']\", \
         \"stage.fine-grained.trains=['connector', 'align']\"]",
    );
    fs::write(folder.path().join("plan.toml"), plan).unwrap();
    keel(folder.path(), &["ablate", "plan.toml", "--out", "out"]).fine();
    let results = results(&folder.path().join("out"));
    // Neither arm changed the tower, and connector and language model are those of before: the same numbers.
    let [none, refined] = &results.units[..] else {
        panic!("two units");
    };
    for name in [
        "recall_1.seen_style",
        "zero_shot.seen_style",
        "questions.seen_style",
    ] {
        assert_eq!(none.metrics[name], refined.metrics[name], "{name}");
    }
    let losses = [none, refined].map(|unit| unit.metrics["answer_loss.seen_style"]);
    assert_eq!(losses[0], losses[1]);
    assert!(refined.refinement_flops > 0.0 && none.refinement_flops == 0.0);
}

/// A difference of arms is one of towers: nothing else that the target does hangs on the stages before it.
#[test]
fn arms_with_equal_towers_have_equal_targets_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (plan, _) = PLAN.split_once("[[arm]]\nname = \"all of it\"").unwrap();
    let arm = r#"[[arm]]
name = "the connector alone"
stages = ["warm-up"]
set = ["stage.warm-up.trains=['connector']", "stage.warm-up.contrastive_weight=0"]
against = "none"
"#;
    fs::write(folder.path().join("plan.toml"), format!("{plan}{arm}")).unwrap();
    let args = ["ablate", "plan.toml", "--quick", "--out", "out"];
    keel(folder.path(), &args).fine();
    let results = results(&folder.path().join("out"));
    for units in results.units.chunks(2) {
        let [none, other] = units else {
            panic!("two arms of a seed");
        };
        assert_eq!(none.seed, other.seed);
        assert!(other.refinement_flops > 0.0 && none.refinement_flops == 0.0);
        assert_eq!(none.metrics, other.metrics, "seed {}", none.seed);
    }
    assert_eq!(results.units.len(), 4);
}

/// A plan on panels that is over in seconds.
const PANELS: &str = r#"
name = "panels-trial"
question = "Is the control equal?"
recipe = "panels"
set = [
    "model.vision.image_size=32", "model.vision.width=32", "model.vision.depth=1", "model.vision.heads=1",
    "model.vision.mlp_width=32", "model.text.width=32", "model.text.depth=1", "model.text.heads=1",
    "model.language.width=32", "model.language.depth=1", "model.language.heads=1", "model.language.key_value_heads=1",
    "model.language.mlp_width=32", "model.embed_dim=32",
    "stage.warm-start-vision.steps=2", "stage.warm-start-vision.batch_size=4", "stage.warm-start-language.steps=2",
    "stage.warm-start-language.batch_size=4", "stage.warm-up.steps=2", "stage.warm-up.batch_size=4",
    "stage.fine-grained.steps=2", "stage.fine-grained.batch_size=4", "stage.world-knowledge.steps=2",
    "stage.world-knowledge.batch_size=4", "stage.target.steps=2", "stage.target.batch_size=4",
]
seeds = [1, 2]
max_images = 8
expected_sd = 0.02
smallest_effect = 0.03

[[test]]
arm = "contrast"
against = "none"
metric = "questions.seen_style"

[[test]]
arm = "contrast"
against = "none"
metric = "co-trained/questions.seen_style"

[[target]]
name = "frozen"
draws = 2

[[target]]
name = "co-trained"
set = ["stage.target.trains=['vision', 'connector', 'language']"]
arms = ["none", "contrast"]

[[arm]]
name = "none"
stages = []
spend = "as_is"

[[arm]]
name = "contrast"
stages = ["fine-grained"]
set = [
    "stage.fine-grained.trains=['vision', 'text', 'contrastive']",
    "stage.fine-grained.reinitialize=['text', 'contrastive']",
    "stage.fine-grained.data={ panels_dense = 1.0 }",
    "stage.fine-grained.contrast_with='text_tower'",
    "stage.fine-grained.contrastive_weight=1.0",
    "stage.fine-grained.next_token_weight=0.0",
]
against = "none"

[[arm]]
name = "tower frozen"
stages = ["warm-up", "fine-grained", "world-knowledge"]
set = [
    "stage.fine-grained.trains=['connector', 'align']",
    "stage.fine-grained.learning_rates={}",
    "stage.world-knowledge.trains=['connector', 'language', 'align']",
    "stage.world-knowledge.learning_rates={}",
]
against = "none"
equals = "none"

[quick]
seeds = [1]
draws = 1
targets = ["frozen"]
arms = ["none", "tower frozen"]
warm_start_ratio = 1.0
refinement_ratio = 1.0
target_ratio = 1.0
"#;

/// The control of the comparison: whatever connector and language model went through, an equal tower gives equal numbers.
#[test]
fn an_arm_whose_tower_learns_nothing_equals_the_arm_without_refinement_in_every_bit() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("plan.toml"), PANELS).unwrap();
    let args = ["ablate", "plan.toml", "--out", "out", "--threads", "2"];
    let answer = keel(folder.path(), &args).fine();
    let equal = "Control: tower frozen equals none to the bit in all";
    assert!(answer.stdout.contains(equal), "{answer:#?}");
    assert!(
        answer.stdout.contains("### Target co-trained"),
        "{answer:#?}"
    );
    let results = results(&folder.path().join("out"));
    let [held] = &results.equal[..] else {
        panic!("one control");
    };
    assert!(held.seeds == 2 && held.numbers > 60, "{held:?}");
    assert!(held.differing.is_empty(), "{held:?}");
    let of = |arm: &str| {
        let mut units = results.units.iter();
        &units
            .find(|unit| unit.arm == arm && unit.seed == 1)
            .unwrap()
            .metrics
    };
    // Neither its tower nor its numbers moved; the other arm's did, in both forms of the target.
    assert_eq!(of("tower frozen")["drift.vision"], 0.0);
    assert_eq!(of("tower frozen")["cka.vision"], of("none")["cka.vision"]);
    assert!(of("contrast")["drift.vision"] > 0.0);
    for name in [
        "answer_loss.seen_style",
        "co-trained/answer_loss.seen_style",
    ] {
        assert_ne!(of("none")[name], of("contrast")[name], "{name}");
    }
    assert!(!of("tower frozen").contains_key("co-trained/answer_loss.seen_style"));
    assert_eq!(results.primary.len(), 2);
    for primary in &results.primary {
        assert_eq!(primary.test.unwrap().difference.count, 2);
    }

    // A control that does differ is an error, and the tables say so.
    let path = folder.path().join("out/results/tower-frozen-seed-2.json");
    let mut result: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    result["metrics"]["count.seen_style"] = 2.0.into();
    fs::write(&path, result.to_string()).unwrap();
    let parts = [
        "the control tower frozen",
        "count.seen_style",
        "do not read",
    ];
    let answer = keel(folder.path(), &args);
    assert_ne!(answer.code, Some(0));
    for part in parts {
        assert!(answer.stderr.contains(part), "{answer:#?}");
    }
    assert!(
        answer.stdout.contains("The comparison is broken"),
        "{answer:#?}"
    );

    // What the plan could show is told without running anything.
    let answer = keel(folder.path(), &["ablate", "plan.toml", "--power"]).fine();
    for part in ["2 seeds, 2 primary tests", "2 ←", "power for 3.0 %"] {
        assert!(answer.stdout.contains(part), "{answer:#?}");
    }
    let answer = keel(
        folder.path(),
        &["ablate", "plan.toml", "--quick", "--dry-run"],
    )
    .fine();
    assert_eq!(
        answer.stdout.matches("target frozen: 1 × 2 steps").count(),
        2
    );
    assert!(!answer.stdout.contains("contrast, seed"), "{answer:#?}");
    keel(folder.path(), &["ablate", "strategies", "--power"]).refused(&["expected_sd"]);

    for (from, to, parts) in [
        (
            "against = \"none\"\nmetric",
            "against = \"nome\"\nmetric",
            &["test.0.against", "did you mean none?"][..],
        ),
        (
            "questions.seen_style",
            "qestions.seen_style",
            &["test.0.metric", "did you mean questions.seen_style?"],
        ),
        (
            "co-trained/q",
            "co-traned/q",
            &["test.1.metric", "did you mean co-trained?"],
        ),
        ("draws = 2", "draws = 0", &["target.0.draws", "1 to 64"]),
        (
            "equals = \"none\"",
            "equals = \"nine\"",
            &["arm.2.equals", "did you mean none?"],
        ),
        (
            "arms = [\"none\", \"contrast\"]",
            "arms = [\"nonne\"]",
            &["target.1.arms", "did you mean none?"],
        ),
        (
            "expected_sd = 0.02",
            "expected_sd = 0.0",
            &["expected_sd", "above 0"],
        ),
        (
            "stage.fine-grained.next_token_weight=0.0",
            "stage.fine-grained.next_token_weight=0.5",
            &["next_token_weight", "contrasts with the text tower"],
        ),
    ] {
        assert!(PANELS.contains(from), "{from}");
        fs::write(
            folder.path().join("wrong.toml"),
            PANELS.replacen(from, to, 1),
        )
        .unwrap();
        keel(folder.path(), &["ablate", "wrong.toml"]).refused(parts);
    }
}

#[test]
fn a_wrong_plan_is_refused_with_file_line_and_the_nearest_right_key() {
    let folder = tempfile::tempdir().unwrap();
    for (from, to, parts) in [
        (
            "against",
            "agianst",
            &["plan.toml, line 23", "agianst", "did you mean against?"][..],
        ),
        ("question", "qestion", &["line 3", "did you mean question?"]),
        (
            "\"as_is\"",
            "\"as-is\"",
            &["arm.0.spend", "as_is", "line 18"],
        ),
        (
            "fine-grained",
            "fine-graind",
            &["arm.1.stages", "did you mean fine-grained?"],
        ),
        (
            "against = \"none\"",
            "against = \"nine\"",
            &["arm.1.against", "did you mean none?"],
        ),
        (
            "spend = \"as_is\"",
            "",
            &["arm.0.stages", "at least one stage"],
        ),
        ("\"all of it\"", "\"none\"", &["arm.1.name", "another name"]),
        ("seeds = [1, 2]", "seeds = [1, 1]", &["seeds", "each once"]),
        (
            "recipe = \"tiny\"",
            "recipe = \"tinny\"",
            &["recipe", "did you mean tiny?"],
        ),
        (
            "max_images = 8",
            "set = [\"modle.x=1\"]",
            &["modle", "did you mean model?"],
        ),
        (
            "refinement_ratio = 0.34",
            "refinement_ratio = 0",
            &["quick.refinement_ratio", "above 0"],
        ),
        (
            "refinement_ratio = 0.34",
            "steps = 0.34",
            &[
                "line 10",
                "quick.steps",
                "refinement_ratio",
                "steps, its old name",
            ],
        ),
        (
            "max_images = 8",
            "pictures = 8",
            &["line 6", "max_images", "pictures, its old name"],
        ),
    ] {
        assert!(PLAN.contains(from), "{from}");
        let text = PLAN.replacen(from, to, 1);
        fs::write(folder.path().join("plan.toml"), text).unwrap();
        let answer = keel(folder.path(), &["ablate", "plan.toml"]);
        answer.refused(&["plan.toml"]).refused(parts);
        assert!(!folder.path().join("runs").exists(), "something was run");
    }
    keel(folder.path(), &["ablate", "strategy"]).refused(&["did you mean strategies?"]);
    keel(folder.path(), &["ablate", "no.toml"]).refused(&["no.toml", "read the plan"]);
}

#[test]
fn a_dry_run_says_what_each_unit_costs_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let answer = keel(
        folder.path(),
        &["ablate", "strategies", "--quick", "--dry-run"],
    )
    .fine();
    assert!(answer.stdout.contains("I+II+III, seed 2: "), "{answer:#?}");
    assert!(answer.stdout.contains("TFLOP before the target stage"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// The plan whose second arm trains on, and what the text `more` adds before its arms.
fn plan_from_weights(more: &str) -> String {
    let (head, arms) = PLAN.split_once("[[arm]]").unwrap();
    let head = head.replace("seeds = [3, 4]", "seeds = [1]");
    format!(
        "{head}[[arm]]\nname = \"longer\"\nstages = []\nspend = \"warm_start\"\n\n[[arm]]{arms}"
    )
    .replacen("max_images = 8", &format!("max_images = 8\n{more}"), 1)
}

#[test]
fn arms_begin_from_a_published_tower_and_train_on_the_users_pairs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let stages = ["warm-start-vision"];
    fs::write(path.join("tower.toml"), tiny_recipe(&stages)).unwrap();
    let args = ["train", "--recipe", "tower.toml", "--out", "run"];
    keel(path, &[&args[..], &["--no-evaluation"]].concat()).fine();
    keel(path, &["export", "run", "--out", "tower"]).fine();
    fs::create_dir(path.join("pairs")).unwrap();
    for name in 0..8u8 {
        let image = [0, 20 * name, 160, 240];
        let file = png_file(2, 2, png::ColorType::Grayscale, &image);
        fs::write(path.join(format!("pairs/{name}.png")), file).unwrap();
        fs::write(
            path.join(format!("pairs/{name}.txt")),
            format!("square {name}"),
        )
        .unwrap();
    }
    let more = "set = [\"stage.warm-up.data={ samples = 1.0 }\"]\ndata = [\"elsewhere\"]";
    fs::write(path.join("plan.toml"), plan_from_weights(more)).unwrap();
    let args_of_plan = ["ablate", "plan.toml", "--quick", "--out", "out"];
    let given = ["--vision", "tower", "--data", "pairs"];
    let answer = keel(path, &[&args_of_plan[..], &given].concat()).fine();
    assert!(
        answer.stdout.contains("data: 8 samples of pairs"),
        "{answer:#?}"
    );
    let found = results(&path.join("out"));
    let steps = |unit: &UnitResult| -> Vec<String> {
        unit.steps.iter().map(|(name, _)| name.clone()).collect()
    };
    let [longer, none, all] = &found.units[..] else {
        panic!("{} units", found.units.len());
    };
    assert_eq!(
        steps(longer),
        ["warm-start-language", "warm-start-vision", "target"]
    );
    assert_eq!(steps(none), ["warm-start-language", "target"]);
    assert_eq!(steps(all)[..2], ["warm-start-language", "warm-up"]);
    // To half a step of each stage.
    let further = longer.warm_flops - none.warm_flops;
    assert!(
        (further / all.refinement_flops - 1.0).abs() < 0.3,
        "{further}"
    );

    // A tower that nothing trained is worth what it is worth alone.
    let metrics = "neighbours,linear-probe,two-layer-probe";
    let args = [
        "eval",
        "tower",
        "--images",
        "4",
        "--json",
        "--metrics",
        metrics,
    ];
    let alone = keel(path, &args).fine();
    let alone: Measurements = serde_json::from_str(&alone.stdout).unwrap();
    assert_eq!(none.measurements.probes, alone.probes);
    assert_ne!(longer.measurements.probes, alone.probes);
    let table = fs::read_to_string(path.join("out/table.md")).unwrap();
    let said = "Recipe tiny, towers from tower, pairs of pairs, seeds 1; 3 of 3 runs done";
    assert!(table.contains(said), "{table}");

    // Other numbers in a folder of the same name are another tower.
    let results_there = || {
        let plan = AblationPlan::load(path.join("plan.toml").to_str().unwrap(), |plan| {
            plan.weights.vision = Some(path.join("tower"));
            plan.data = vec!["pairs".into()];
        });
        let pairs = Pairs::open(path.join("pairs").to_str().unwrap(), PairLimits::default());
        let options = AblationOptions {
            compute: SelectedDevice::new(Device::Cpu, 1, None).unwrap(),
            out: path.join("out"),
            quick: true,
            accept_changes: false,
            observer: Arc::new(Silent),
        };
        let ablation =
            Ablation::new(plan.unwrap(), options, Some(Arc::new(pairs.unwrap())), None).unwrap();
        ablation.results().unwrap().units.len()
    };
    assert_eq!(results_there(), 3);
    let file = path.join("tower/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    assert_eq!(results_there(), 0);

    // Pairs that no stage draws from.
    fs::write(path.join("plan.toml"), plan_from_weights("")).unwrap();
    let answer = keel(path, &[&args_of_plan[..], &given].concat());
    answer.refused(&["a stage that draws from samples"]);
}

#[test]
fn arms_are_compared_by_held_out_samples_and_a_benchmark_of_the_users_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::create_dir(path.join("held")).unwrap();
    for name in 0..4u8 {
        let file = png_file(2, 2, png::ColorType::Grayscale, &[0, 20 * name, 160, 240]);
        fs::write(path.join(format!("held/{name}.png")), file).unwrap();
        fs::write(
            path.join(format!("held/{name}.txt")),
            format!("square {name}"),
        )
        .unwrap();
    }
    fs::write(path.join("asked.tsv"), benchmark()).unwrap();
    let test = "[[test]]\narm = \"all of it\"\nagainst = \"none\"\nmetric = ";
    let plan = |metric: &str| {
        let (head, arms) = PLAN.split_once("[[arm]]").unwrap();
        let head = head.replace("seeds = [3, 4]", "seeds = [1, 2]");
        let own = "validate = \"held\"\nbenchmark = \"asked.tsv\"\nwording = \"plain\"\n";
        let text = format!("{own}{head}{test}\"{metric}\"\n\n[[arm]]{arms}");
        fs::write(path.join("plan.toml"), text).unwrap();
    };
    let run = ["ablate", "plan.toml", "--quick", "--out", "out"];
    plan("questions.seen_style");
    keel(path, &run).refused(&["metric", "validation.loss", "benchmark"]);
    plan("validation.loss.captions");
    let answer = keel(path, &run).fine();
    let said = "held-out data: 4 samples of held";
    assert!(answer.stdout.contains(said), "{answer:#?}");
    let found = results(&path.join("out"));
    assert_eq!(found.units.len(), 4);
    let names: Vec<&str> = found.units[0].metrics.keys().map(String::as_str).collect();
    let wanted = [
        "benchmark",
        "benchmark.animals",
        "benchmark.presence",
        "validation.loss",
        "validation.loss.captions",
        "validation.loss.next_token",
    ];
    assert_eq!(names, wanted);
    // Nothing is measured on the embedded sets.
    assert!(
        found
            .units
            .iter()
            .all(|unit| unit.evaluation.sets.is_empty())
    );
    let test = found.primary[0].test.as_ref().unwrap();
    assert_eq!(test.difference.count, 2);
    assert_ne!(test.difference.mean, 0.0);
    let table = fs::read_to_string(path.join("out/table.md")).unwrap();
    for part in [
        "validated on held, benchmark asked.tsv, seeds 1, 2; 4 of 4 runs done",
        "held-out loss.captions ↓",
        "benchmark, animals ↑",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }

    // What is there is not run again; what was answered to other questions is no result of these.
    let again = keel(path, &run).fine();
    assert!(!again.stdout.contains("step"), "{again:#?}");
    fs::write(path.join("asked.tsv"), benchmark().replace("cat", "cow")).unwrap();
    keel(path, &run).refused(&["the benchmark asked.tsv is another", "--accept-changes"]);
    let args = ["ablate", "strategies", "--wording", "plain", "--dry-run"];
    keel(path, &args).refused(&["wording", "a benchmark beside it"]);
    let unasked = PLAN.replacen("max_images", "wording = \"plain\"\nmax_images", 1);
    fs::write(path.join("plan.toml"), unasked).unwrap();
    keel(path, &run).refused(&["wording", "a benchmark beside it"]);
}

#[test]
fn plans_that_do_not_go_with_their_weights_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let tower = goldens().join("hub/aimv2").display().to_string();
    let refused = |text: String, more: &[&str], parts: &[&str]| {
        fs::write(path.join("plan.toml"), text).unwrap();
        let args = [&["ablate", "plan.toml"], more].concat();
        keel(path, &args).refused(parts);
        assert!(!path.join("runs").exists(), "something was run");
    };
    let own = "set = [\"model.vision.depth=1\"]";
    let sized = "weights = { image_size = 32 }";
    let spelt = "weights = { visoin = \"x\" }";
    for (more, args, parts) in [
        (
            own,
            &["--vision", &tower][..],
            &["arm longer", "model.vision.depth", "come with the weights"][..],
        ),
        (sized, &[], &["plan.toml, line", "weights.vision beside it"]),
        (spelt, &[], &["plan.toml, line", "did you mean vision?"]),
        ("", &["--vision", "nowhere"], &["nowhere"]),
        ("", &["--data", "nowhere"], &["nowhere"]),
    ] {
        refused(plan_from_weights(more), args, parts);
    }
    fs::write(
        path.join("short.toml"),
        tiny_recipe(&[
            "warm-start-language",
            "warm-up",
            "fine-grained",
            "world-knowledge",
            "target",
        ]),
    )
    .unwrap();
    let short = plan_from_weights("").replace("recipe = \"tiny\"", "recipe = \"short.toml\"");
    refused(short, &[], &["arm.0.spend", "a warm start that trains"]);
    let set = ["--set", "model.vision.depth=1", "--dry-run"];
    let args = [&["train", "--recipe", "tiny", "--vision", &tower], &set[..]].concat();
    keel(path, &args).refused(&["model.vision.depth", "come with the weights"]);
}
