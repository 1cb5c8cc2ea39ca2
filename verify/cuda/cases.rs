//! The cases that a GPU is held to, on the driver of our own: expected values that were computed beforehand are kept to, wrong
//! results are refused, and nobody takes this driver for a GPU.

use std::path::Path;
use std::process::{Command, Output};

use super::executing_driver;

/// A case of an op, and steps of a stage. Neither is drawn, so nothing is kept of those that fail here.
const CASE: &str = "ops::swiglu::swiglu_of_rows_wider_than_a_block_matches_the_reference";
const STEPS: &str = "devices::steps_in_micro_batches_are_the_same_on_every_executor";

/// Runs a test of this program with `KEEL_EXPECTED`; rows go to `rows`.
fn run(test: &str, expected: Option<&str>, rows: &Path, library: &Path, settings: &str) -> Output {
    run_in(test, expected, rows, library, settings, None)
}

/// As [`run`], with `KEEL_CUDA_TIER`.
fn run_in(
    test: &str,
    expected: Option<&str>,
    rows: &Path,
    library: &Path,
    settings: &str,
    tier: Option<&str>,
) -> Output {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("KEEL_ROWS", rows)
        .env("LD_LIBRARY_PATH", library)
        .env("KEEL_FAKE_CUDA", settings);
    if let Some(expected) = expected {
        command.env("KEEL_EXPECTED", expected);
    }
    if let Some(tier) = tier {
        command.env("KEEL_CUDA_TIER", tier);
    }
    command.output().expect("this program starts")
}

fn said(output: &Output) -> String {
    let (said, noise) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(said).into_owned() + &String::from_utf8_lossy(noise)
}

/// The rows that were written, which are removed.
fn taken(rows: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(rows).unwrap_or_default();
    std::fs::remove_file(rows).ok();
    let read = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    text.lines().map(read).collect()
}

#[test]
fn cases_on_a_gpu_are_held_to_values_that_were_computed_beforehand() {
    let Some(driver) = executing_driver() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (values, rows) = (folder.path().join("expected"), folder.path().join("rows"));
    let (write, read) = (
        format!("write:{}", values.display()),
        format!("read:{}", values.display()),
    );
    for test in [CASE, STEPS] {
        // Without a driver, as where the values are computed.
        let output = run(test, Some(&write), &rows, folder.path(), "");
        assert!(output.status.success(), "{}", said(&output));
        assert!(taken(&rows).is_empty(), "nothing ran on a GPU");

        let output = run(test, Some(&read), &rows, driver, "late");
        assert!(output.status.success(), "{}", said(&output));
        let found = taken(&rows);
        assert!(found.len() >= 2, "both precisions: {found:?}");
        for row in &found {
            assert_eq!(row["device"], "Emulated GPU 0", "{row}");
            assert_eq!(row["stand_in"], true, "{row}");
            assert_eq!(row["same_bits_again"], true, "{row}");
            if row["kind"] == "case" {
                let share = row["share_of_budget"].as_f64().expect("a number");
                assert!(share > 0.0 && share < 1.0, "{row}");
                assert!(!row["kernels"].as_array().unwrap().is_empty(), "{row}");
            }
        }
    }
    // A kernel that does nothing leaves what was there before.
    let output = run(CASE, Some(&read), &rows, driver, "late idle=1");
    let text = said(&output);
    assert!(
        !output.status.success()
            && text.contains("Emulated GPU 0 ")
            && text.contains("not a number at "),
        "{text}"
    );

    // Another case than those of the file, and a file that was cut off.
    let other = "ops::swiglu::swiglu_of_zeros_and_of_far_tails_matches_the_reference";
    let output = run(other, Some(&read), &rows, driver, "");
    let text = said(&output);
    assert!(
        !output.status.success() && text.contains("the expected values lack this case"),
        "{text}"
    );
    let bytes = std::fs::read(&values).unwrap();
    std::fs::write(&values, &bytes[..bytes.len() - 5]).unwrap();
    let text = said(&run(CASE, Some(&read), &rows, driver, ""));
    assert!(text.contains("ends in the middle of a record"), "{text}");
}

#[test]
fn a_case_of_the_hopper_tier_runs_on_a_gpu_of_that_tier_alone() {
    let Some(driver) = executing_driver() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (values, rows) = (folder.path().join("expected"), folder.path().join("rows"));
    let test = "ops::linear::linear_on_hopper_matches_the_reference";
    let write = format!("write:{}", values.display());
    let output = run(test, Some(&write), &rows, folder.path(), "");
    assert!(output.status.success(), "{}", said(&output));
    let read = format!("read:{}", values.display());
    let output = run(test, Some(&read), &rows, driver, "late");
    assert!(output.status.success(), "{}", said(&output));
    let found = taken(&rows);
    assert_eq!(found.len(), 1, "{found:?}");
    let kernels = found[0]["kernels"].as_array().expect("a list");
    assert!(
        kernels
            .iter()
            .any(|name| name == "linear_forward_hopper_bf16")
    );
    for (settings, tier) in [("capability=80", None), ("", Some("portable"))] {
        let output = run_in(test, Some(&read), &rows, driver, settings, tier);
        let text = said(&output);
        let is_left_out = text.contains("not of the Hopper tier");
        assert!(output.status.success() && is_left_out, "{text}");
    }
    let output = run_in(test, Some(&read), &rows, driver, "", Some("ampere"));
    let text = said(&output);
    assert!(
        !output.status.success() && text.contains("KEEL_CUDA_TIER"),
        "{text}"
    );
    assert!(taken(&rows).is_empty());
    // The driver refuses a map: the sentence names the kernel, the map and the driver's code.
    let output = run(
        test,
        Some(&read),
        &rows,
        driver,
        "fail=cuTensorMapEncodeTiled:2:1",
    );
    let text = said(&output);
    for part in [
        "linear_forward_hopper_bf16",
        "argument 1",
        "tensor map of output",
        "CUDA_ERROR_INVALID_VALUE",
    ] {
        assert!(
            !output.status.success() && text.contains(part),
            "{part}: {text}"
        );
    }
}

#[test]
fn no_case_runs_on_a_gpu_that_is_not_there() {
    let Some(driver) = executing_driver() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (values, rows) = (folder.path().join("expected"), folder.path().join("rows"));
    // Unasked, nobody takes the driver of the tests for one.
    let output = run(CASE, None, &rows, driver, "");
    assert!(output.status.success(), "{}", said(&output));
    assert!(taken(&rows).is_empty());
    // Asked for the GPU alone, cases do not pass without one.
    let write = format!("write:{}", values.display());
    run(CASE, Some(&write), &rows, folder.path(), "");
    let read = format!("read:{}", values.display());
    let output = run(CASE, Some(&read), &rows, driver, "devices=0");
    let text = said(&output);
    assert!(
        !output.status.success() && text.contains("the CUDA driver sees no device"),
        "{text}"
    );
}
