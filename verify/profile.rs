//! `keel profile`: every op of a step once, times that add up, and files that other programs open.

use std::fs;

use keel::data::chat::ChatTokenizer;
use keel::train::{Recipe, compile_step};

use crate::command::keel;

#[test]
fn a_profile_holds_every_op_of_the_step_once_and_its_times_add_up() {
    let folder = tempfile::tempdir().unwrap();
    let args = "profile --device cpu --threads 2 --recipe tiny --stage warm-up --steps 3 --trace t.json --svg s.svg";
    let answer = keel(folder.path(), &args.split(' ').collect::<Vec<_>>()).fine();
    let trace: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.path().join("t.json")).unwrap()).unwrap();
    let events: Vec<&serde_json::Value> = trace["traceEvents"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["ph"] == "X")
        .collect();

    let recipe = Recipe::load("tiny", &[]).unwrap();
    let stage = recipe.stages.iter().find(|s| s.name == "warm-up").unwrap();
    let layout = keel::model::declare(&recipe.model, recipe.contrastive_loss).unwrap();
    let target = keel::tape::Target::Cpu { threads: 2 };
    let program = compile_step(
        &recipe,
        stage,
        &layout,
        &recipe.batch_shape(stage, ChatTokenizer::embedded().image()),
        target,
        None,
    );
    let program = program.unwrap();
    assert_eq!(events.len(), program.ops().len());
    let (mut at, mut flops) = (0.0, 0.0);
    for (event, step) in events.iter().zip(program.ops()) {
        assert_eq!(event["name"], step.instruction.op.name());
        assert_eq!(event["args"]["scope"], *step.instruction.scope);
        let start = event["ts"].as_f64().unwrap();
        assert!(
            (start - at).abs() < 1e-3,
            "ops follow each other: {start} after {at}"
        );
        at = start + event["dur"].as_f64().unwrap();
        flops += event["args"]["flops"].as_f64().unwrap();
    }
    assert_eq!(flops, program.cost().flops);
    let all = format!(
        "{:.2} ms a step ({} ops, median of 3 runs)",
        at / 1e3,
        events.len()
    );
    assert!(
        answer.stdout.contains(&all),
        "wanted {all} in {}",
        answer.stdout
    );
    // The column of milliseconds of each table adds up to the same.
    for table in answer
        .stdout
        .split("\n\n")
        .filter(|part| part.contains("of roofline"))
    {
        let milliseconds = table.lines().skip(2).map(|line| {
            let numbers: Vec<&str> = line.split_whitespace().collect();
            let share = numbers.iter().position(|word| *word == "%").unwrap();
            numbers[share - 2].parse::<f64>().unwrap()
        });
        let sum: f64 = milliseconds.sum();
        assert!(
            (sum - at / 1e3).abs() < 0.01 * table.lines().count() as f64,
            "{sum}\n{table}"
        );
    }
    let svg = fs::read_to_string(folder.path().join("s.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    for part in ["forward", "backward", "update", "connector"] {
        assert!(svg.contains(part), "{part}");
    }
}

#[test]
fn a_run_keeps_its_profile_for_its_report() {
    let folder = tempfile::tempdir().unwrap();
    let train = "train --device cpu --recipe tiny --max-steps 1 --no-evaluation --out run";
    keel(folder.path(), &train.split(' ').collect::<Vec<_>>()).fine();
    let profile = ["profile", "--run", "run", "--steps", "1", "--device", "cpu"];
    keel(folder.path(), &profile).fine();
    let html = fs::read_to_string(folder.path().join("run/report.html")).unwrap();
    assert!(html.contains("<section id=\"profile\"") && html.contains("of roofline"));
}

#[test]
fn what_cannot_be_profiled_is_refused_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let profile = |further: &[&str]| {
        let args = [
            &["profile", "--device", "cpu", "--recipe", "tiny"][..],
            further,
        ]
        .concat();
        keel(folder.path(), &args)
    };
    profile(&["--stage", "warm-upp"]).refused(&["--stage", "warm-up"]);
    let pairs = "stage.target.data.samples=1";
    profile(&["--set", pairs]).refused(&["samples"]);
    keel(folder.path(), &["profile", "--run", "."]).refused(&["the folder of a run"]);
}
