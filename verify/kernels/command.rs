//! `keel kernels` as a user runs it.

use std::fs;

use keel::executor::kernel_table::{IMAGES, KERNELS};
use keel::executor::simt::Emulator;
use keel_kernel_report::{Budget, catalogue};

use crate::command::keel;

#[test]
fn the_table_names_every_kernel_and_what_the_build_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let answer = keel(folder.path(), &["kernels", "--shapes", "small"]);
    if Emulator::new().is_err() {
        answer.refused(&["without a C++ compiler", "install g++"]);
        return;
    }
    let first = &KERNELS[0];
    let answer = answer.fine();
    for kernel in KERNELS {
        assert!(answer.stdout.contains(kernel.name), "{}", kernel.name);
    }
    assert!(answer.stdout.contains("Least time by roofline"));
    let says_what_is_missing = answer.stdout.contains("without nvcc");
    assert_eq!(says_what_is_missing, IMAGES.is_empty());
    let one = keel(folder.path(), &["kernels", first.name]).fine();
    assert!(one.stdout.contains("Math"), "its header is shown: {one:?}");
    keel(folder.path(), &["kernels", "layer_morn"]).refused(&["layer_morn", "such as"]);
}

#[test]
fn the_json_holds_every_kernel_and_example() {
    let folder = tempfile::tempdir().unwrap();
    if Emulator::new().is_err() {
        return;
    }
    let answer = keel(folder.path(), &["kernels", "--json", "--precision", "f32"]).fine();
    let report: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    let names: Vec<&str> = report["kernels"]
        .as_array()
        .unwrap()
        .iter()
        .map(|kernel| kernel["kernel"].as_str().unwrap())
        .collect();
    assert_eq!(names, KERNELS.iter().map(|k| k.name).collect::<Vec<_>>());
    let examples = report["examples"].as_array().unwrap();
    assert!(examples.iter().any(|e| e["op"] == "adamw"));
    for example in examples {
        for chip in ["A100", "RTX 3090", "RTX 4090", "H100"] {
            let least = example["roofline"][chip]["microseconds"].as_f64().unwrap();
            assert!(least > 0.0, "{example}");
        }
    }
}

#[test]
fn the_budget_is_written_kept_to_and_broken() {
    let folder = tempfile::tempdir().unwrap();
    let budget = folder.path().join("budget.toml");
    if !catalogue().has_mixes {
        if Emulator::new().is_ok() {
            keel(folder.path(), &["kernels", "--budget", "budget.toml"])
                .refused(&["cargo tool nvcc"]);
        }
        return;
    }
    keel(folder.path(), &["kernels", "--budget", "budget.toml"]).refused(&["budget.toml", "read"]);
    keel(
        folder.path(),
        &["kernels", "--budget", "budget.toml", "--write"],
    )
    .fine();
    let text = fs::read_to_string(&budget).unwrap();
    let mut agreed = Budget::read("budget.toml", &text).unwrap();
    let first = agreed.0.values_mut().next().unwrap();
    *first.registers.values_mut().next().unwrap() -= 1;
    fs::write(&budget, agreed.write()).unwrap();
    let answer = keel(folder.path(), &["kernels", "--budget", "budget.toml"]);
    assert!(
        answer.stdout.contains("registers were agreed"),
        "{answer:?}"
    );
    answer.refused(&["budget.toml", "the kernels break it"]);
}
