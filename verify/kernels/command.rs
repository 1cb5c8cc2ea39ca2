//! `keel kernels` as a user runs it, and the report as those who maintain the kernels do.

use std::fs;

use keel::error::Result;
use keel::executor::kernel_table::{IMAGES, KERNELS};
use keel_kernel_report::{Budget, catalogue, command};

use crate::command::keel;

/// What the report prints, or refuses.
fn report(arguments: &[&str]) -> Result<String> {
    let mut out = Vec::new();
    let arguments = [&["kernel-report"], arguments].concat();
    command::run(arguments, &mut out)?;
    Ok(String::from_utf8(out).expect("a report is text"))
}

fn refused(arguments: &[&str], words: &[&str]) {
    let text = report(arguments).expect_err("a refusal").to_string();
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

#[test]
fn the_program_names_every_kernel_and_shows_the_header_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let answer = keel(folder.path(), &["kernels"]).fine();
    for kernel in KERNELS {
        assert!(answer.stdout.contains(kernel.name), "{}", kernel.name);
    }
    let says_what_is_missing = answer.stdout.contains("cargo tool nvcc");
    assert_eq!(says_what_is_missing, IMAGES.is_empty());
    let one = keel(folder.path(), &["kernels", KERNELS[0].name]).fine();
    assert!(one.stdout.contains("Math"), "its header is shown: {one:?}");
    // What it executes, from the file that counts are held to.
    let counted = keel(folder.path(), &["kernels", "linear_backward_input_bf16"]).fine();
    for part in ["\n  counted   linear ", ": instructions ", ", wavefronts "] {
        assert!(counted.stdout.contains(part), "{counted:?}");
    }
    keel(folder.path(), &["kernels", "layer_morn"]).refused(&["layer_morn", "such as"]);
}

#[test]
fn the_report_names_every_kernel_and_what_the_build_left_out() {
    let text = report(&["--shapes", "small"]).unwrap();
    for kernel in KERNELS {
        assert!(text.contains(kernel.name), "{}", kernel.name);
    }
    assert!(text.contains("Least time by roofline"));
    assert_eq!(text.contains("without nvcc"), IMAGES.is_empty());
    let one = report(&[KERNELS[0].name]).unwrap();
    assert!(one.contains("Math"), "its header is shown: {one}");
    assert!(report(&["--help"]).unwrap().contains("--budget"));
    refused(&["layer_morn"], &["layer_morn", "such as"]);
    refused(&["--shapes", "smal"], &["did you mean small?"]);
    refused(&["--bugdet"], &["kernel-report --help", "--bugdet"]);
}

#[test]
fn the_json_holds_every_kernel_and_example() {
    let text = report(&["--json", "--precision", "f32"]).unwrap();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
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
    let path = folder.path().join("budget.toml");
    let budget = path.to_str().expect("a plain path");
    if !catalogue().has_mixes {
        refused(&["--budget", budget], &["cargo tool nvcc"]);
        return;
    }
    refused(&["--budget", budget], &["budget.toml", "read"]);
    report(&["--budget", budget, "--write"]).unwrap();
    assert!(report(&["--budget", budget]).unwrap().contains("keep to"));
    let text = fs::read_to_string(&path).unwrap();
    let mut agreed = Budget::read("budget.toml", &text).unwrap();
    let first = agreed.0.values_mut().next().unwrap();
    *first.registers.values_mut().next().unwrap() -= 1;
    fs::write(&path, agreed.write()).unwrap();
    let mut out = Vec::new();
    let broken = command::run(["kernel-report", "--budget", budget], &mut out);
    let text = broken.expect_err("a broken budget").to_string();
    assert!(text.contains("the kernels break it"), "{text}");
    let told = String::from_utf8(out).unwrap();
    assert!(told.contains("registers were agreed"), "{told}");
}

#[test]
fn one_example_is_timed_alone() {
    let at_once = ["--time", "--device", "cpu", "--shapes", "tiny", "--repeats"];
    let timed = |example: &'static str| {
        let arguments = [&at_once[..], &["1", "--json", "--example", example]].concat();
        report(&arguments)
    };
    for (example, op) in [("swiglu", "swiglu_backward"), ("update", "adamw")] {
        let text = timed(example).unwrap();
        let rows: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert!(rows.iter().all(|row| row["example"] == example), "{text}");
        assert!(rows.iter().any(|row| row["op"] == op), "{text}");
    }
    let refused = timed("swiglue").expect_err("a refusal").to_string();
    assert!(refused.contains("did you mean swiglu?"), "{refused}");
}
