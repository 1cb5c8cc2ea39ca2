//! The script that a GPU machine runs is run here on the emulator, on shapes that take no time, with the binaries that
//! `cargo test` has just built.

use std::path::Path;
use std::process::{Command, Output};

use keel::executor::simt::Emulator;

fn run(arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    Command::new("bash")
        .arg(root.join("tools/gpu-run.sh"))
        .args(arguments)
        .env_remove("RUST_BACKTRACE")
        .output()
        .expect("bash is there wherever the build scripts run")
}

#[test]
fn the_gpu_script_runs_every_part_on_the_emulator() {
    if Emulator::new().is_err() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let own = std::env::current_exe().unwrap();
    std::os::unix::fs::symlink(own, bin.join("verify")).unwrap();
    let keel = Path::new(env!("CARGO_BIN_EXE_keel"));
    std::os::unix::fs::symlink(keel, bin.join("keel")).unwrap();
    // `cargo test` builds examples beside the program.
    let report = keel.with_file_name("examples").join("kernel-report");
    std::os::unix::fs::symlink(report, bin.join("kernel-report")).unwrap();
    let out = folder.path().join("results");
    let output = run(&[
        "--device",
        "simt",
        "--tiny",
        "--cases",
        "ops::basic",
        "--bin",
        &bin.to_string_lossy(),
        "--out",
        &out.to_string_lossy(),
    ]);
    let text = std::fs::read_to_string(out.join("simt.jsonl"))
        .unwrap_or_else(|problem| panic!("{problem}: {output:#?}"));
    let rows: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    for kind in [
        "machine",
        "probe",
        "steps",
        "cases",
        "time-bf16",
        "time-f32",
    ] {
        let row = rows.iter().find(|row| row["kind"] == kind);
        let row = row.unwrap_or_else(|| panic!("no row of {kind} in {text}"));
        // What the machine is cannot fail.
        assert!(
            kind == "machine" || row["status"] == 0,
            "{row}: {output:#?}"
        );
    }
    let cases = rows.iter().find(|row| row["kind"] == "cases").unwrap();
    let says = cases["says"].as_str().unwrap();
    assert!(
        says.starts_with("test result: ok") && !says.contains(" 0 passed"),
        "{cases}"
    );
    let timed: Vec<_> = rows.iter().filter(|row| row["kind"] == "op").collect();
    for precision in ["bf16", "f32"] {
        for op in ["linear", "linear_backward_weight", "layer_norm", "adamw"] {
            let row = timed
                .iter()
                .find(|row| row["op"] == op && row["precision"] == precision)
                .unwrap_or_else(|| panic!("{op} in {precision} is not among {timed:#?}"));
            assert!(row["median_ms"].as_f64().unwrap() > 0.0, "{row}");
            assert!(!row["kernels"].as_array().unwrap().is_empty(), "{row}");
        }
    }
}

#[test]
fn the_gpu_script_says_what_is_wrong_with_its_options() {
    for (arguments, part) in [
        (&["--device", "tpu"][..], "not tpu"),
        (&["--device"], "--device needs a value"),
        (&["--frobnicate"], "unknown option --frobnicate"),
        (&["--bin", "/nowhere"], "cargo tool bundle builds it"),
    ] {
        let output = run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(part) && said.lines().count() == 1, "{said}");
    }
}
