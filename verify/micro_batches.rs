//! Steps whose batch is computed in parts: the gradient is that of the whole batch.

use std::fs;
use std::path::Path;

use keel::train::BUILT_IN;

use crate::command::{checkpoint, keel, tensors};

/// The tiny recipe without contrasts, which see the pairs of a part alone.
fn recipe() -> String {
    let (_, text) = BUILT_IN.iter().find(|(name, _)| *name == "tiny").unwrap();
    text.replace("contrastive_weight = 0.1", "contrastive_weight = 0.0")
}

/// Two steps of each stage from the language model's warm start on, with these settings.
fn train(folder: &Path, out: &str, more: &[&str]) {
    let mut args = vec!["train", "--recipe", "plain.toml", "--out", out];
    args.extend(["--max-steps", "2", "--save-every", "1", "--no-evaluation"]);
    args.extend(more);
    keel(folder, &args).fine();
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let numbers = bytes.chunks_exact(4);
    numbers
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

#[test]
fn a_batch_computed_in_parts_gives_the_gradient_of_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("plain.toml"), recipe()).unwrap();
    train(folder.path(), "whole", &[]);
    let stages = [
        (2, "warm-start-language"),
        (3, "warm-up"),
        (4, "fine-grained"),
        (5, "world-knowledge"),
        (6, "target"),
    ];
    let parts = stages.map(|(_, stage)| format!("stage.{stage}.micro_batch_size=2"));
    let sets: Vec<&str> = parts.iter().flat_map(|set| ["--set", set]).collect();
    train(folder.path(), "parts", &sets);
    // After the first step the first moment is a tenth of the gradient. Only the first divided stage begins with the same
    // parameters to the last bit; the second step of each has what the roundings of the first made of them.
    let label = "2-warm-start-language.step-1";
    let [whole, parts] = ["whole", "parts"].map(|run| {
        let all = tensors(&checkpoint(&folder.path().join(run), label));
        let moments = all.into_iter().filter(|(n, _)| n.starts_with("first_"));
        moments.map(|(n, b)| (n, floats(&b))).collect::<Vec<_>>()
    });
    let mut compared = 0;
    for ((name, whole), (_, parts)) in whole.iter().zip(&parts) {
        let scale = whole.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        for (whole, parts) in whole.iter().zip(parts) {
            // Sums of some hundred terms in another order, each rounded to 2⁻²⁴ of the largest.
            let allowed = 1000.0 * f32::EPSILON * scale;
            assert!(
                (whole - parts).abs() <= allowed,
                "{name}: {whole} and {parts}"
            );
            compared += 1;
        }
    }
    assert!(compared > 10_000, "{compared}");
    let losses = ["whole", "parts"].map(|run| {
        let text = fs::read_to_string(folder.path().join(run).join("metrics.jsonl")).unwrap();
        let rows = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let steps = rows.filter(|row| row["kind"] == "step");
        let losses = steps.map(|row| (row["stage"].clone(), row["loss"].as_f64().unwrap()));
        losses.collect::<Vec<_>>()
    });
    // Both steps of every stage.
    assert_eq!(losses.each_ref().map(Vec::len), [12, 12]);
    for ((stage, whole), (_, parts)) in losses[0].iter().zip(&losses[1]) {
        // AdamW's first steps take the sign of each gradient: roundings turn some of the smallest.
        assert!(
            (whole - parts).abs() < 1e-3 * whole,
            "{stage}: {whole} and {parts}"
        );
    }
}

#[test]
fn a_part_that_does_not_divide_the_batch_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for wrong in ["0", "3", "16"] {
        let set = format!("stage.fine-grained.micro_batch_size={wrong}");
        let args = ["train", "--recipe", "tiny", "--dry-run", "--set", &set];
        keel(folder.path(), &args).refused(&["micro_batch_size", "divides batch_size = 8", wrong]);
    }
}

#[test]
fn sequences_that_do_not_divide_what_is_computed_at_once_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (wrong, found) in [
        (&["fine-grained.samples_per_sequence=3"][..], "3"),
        (&["fine-grained.samples_per_sequence=0"][..], "0"),
        (
            &[
                "fine-grained.micro_batch_size=2",
                "fine-grained.samples_per_sequence=4",
            ][..],
            "4",
        ),
        (
            &["warm-start-vision.samples_per_sequence=2"][..],
            "1 in a stage that predicts no tokens",
        ),
    ] {
        let sets: Vec<String> = wrong.iter().map(|set| format!("stage.{set}")).collect();
        let mut args = vec!["train", "--recipe", "tiny", "--dry-run"];
        args.extend(sets.iter().flat_map(|set| ["--set", set]));
        keel(folder.path(), &args).refused(&["samples_per_sequence", found]);
    }
}

#[test]
fn batches_are_divided_to_fit_a_limit_and_the_plan_names_the_same_parts() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["plan", "--recipe", "tiny", "--memory-limit", "5M"];
    let planned = keel(folder.path(), &args).fine().stdout;
    let mut args = vec!["train", "--recipe", "tiny", "--max-steps", "1"];
    args.extend(["--no-evaluation", "--out", "run"]);
    args.extend(["--memory-limit", "5M", "--fit"]);
    let said = keel(folder.path(), &args).fine().stdout;
    let recipe = fs::read_to_string(folder.path().join("run/recipe.toml")).unwrap();
    let mut divided = 0;
    for part in planned.split("\nstage ").skip(1) {
        let stage = part.split(':').next().unwrap();
        let (_, size) = part
            .split_once("largest micro-batch within 5.0 MiB: ")
            .unwrap();
        let size: usize = size.split(' ').next().unwrap().parse().unwrap();
        let set = format!("set to fit 5.0 MiB: stage.{stage}.micro_batch_size={size}\n");
        // Only stages that take more are divided.
        assert_eq!(said.contains(&set), size < 8, "{stage}: {size}");
        divided += usize::from(size < 8);
    }
    assert!(divided >= 4, "{planned}");
    assert_eq!(recipe.matches("micro_batch_size").count(), divided);
    let alone = ["train", "--recipe", "tiny", "--fit"];
    keel(folder.path(), &alone).code_is(2);
}
