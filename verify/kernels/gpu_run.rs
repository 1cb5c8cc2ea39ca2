//! The script that a GPU machine runs is run here: on the emulator, and on the tests' own driver as on a GPU, on shapes that
//! take no time, with the binaries that `cargo test` has just built. What ends it early is tried with programs that hang.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use keel::executor::kernel_table::IMAGES;
use keel::executor::simt::Emulator;
use serde_json::Value;

use crate::cuda::executing_driver;

fn script(arguments: &[&str]) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("bash");
    command
        .arg(root.join("tools/gpu-run.sh"))
        .args(arguments)
        .env_remove("RUST_BACKTRACE");
    command
}

fn output_of(mut command: Command) -> Output {
    command
        .output()
        .expect("bash is there wherever the build scripts run")
}

/// A folder for the script: programs in `bin`, results in `results`.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bin")).unwrap();
        Place { folder }
    }

    fn bin(&self, name: &str) -> PathBuf {
        self.folder.path().join("bin").join(name)
    }

    /// The programs that were just built.
    fn with_programs() -> Place {
        let place = Place::new();
        symlink(std::env::current_exe().unwrap(), place.bin("verify")).unwrap();
        let keel = Path::new(env!("CARGO_BIN_EXE_keel"));
        symlink(keel, place.bin("keel")).unwrap();
        // `cargo test` builds examples beside the program.
        let report = keel.with_file_name("examples").join("kernel-report");
        symlink(report, place.bin("kernel-report")).unwrap();
        place
    }

    /// Programs that are these lines of shell.
    fn with_stubs(lines: &str) -> Place {
        let place = Place::new();
        for name in ["keel", "verify", "kernel-report", "steps"] {
            let path = place.bin(name);
            std::fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        place
    }

    fn script(&self, arguments: &[&str]) -> Command {
        let mut command = script(arguments);
        command.arg("--bin").arg(self.folder.path().join("bin"));
        command.arg("--out").arg(self.folder.path().join("results"));
        command
    }

    /// The rows of the results.
    fn rows(&self, name: &str) -> Vec<Value> {
        let path = self.folder.path().join("results").join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let read = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        text.lines().map(read).collect()
    }
}

/// The row of a part.
fn row<'a>(rows: &'a [Value], kind: &str) -> &'a Value {
    let found = rows.iter().find(|row| row["kind"] == kind);
    found.unwrap_or_else(|| panic!("no row of {kind} in {rows:#?}"))
}

fn is_left_out(row: &Value) -> bool {
    let status = row["status"].as_str().unwrap_or_default();
    status.starts_with("left out: ")
}

#[test]
fn the_gpu_script_runs_every_part_on_the_emulator() {
    if Emulator::new().is_err() {
        return;
    }
    let place = Place::with_programs();
    let arguments = ["--device", "simt", "--tiny", "--cases", "ops::basic"];
    let output = output_of(place.script(&arguments));
    let rows = place.rows("simt.jsonl");
    assert!(output.status.success(), "{output:#?}");
    for kind in [
        "probe",
        "steps",
        "cases",
        "time-linear-bf16",
        "time-update-f32",
    ] {
        assert_eq!(row(&rows, kind)["status"], 0, "{kind}: {output:#?}");
    }
    for kind in ["step-vit_large", "memcheck", "racecheck", "counters-linear"] {
        assert!(is_left_out(row(&rows, kind)), "{rows:#?}");
    }
    let cases = row(&rows, "cases");
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
    assert_eq!(rows[0]["kind"], "machine");
    assert_eq!(rows.last().unwrap()["status"], "complete");
}

#[test]
fn the_gpu_script_runs_as_on_a_gpu_on_the_driver_of_the_tests_and_does_not_claim_one() {
    let Some(driver) = executing_driver() else {
        return;
    };
    let place = Place::with_programs();
    let expected = place.bin("expected");
    let written = Command::new(place.bin("verify"))
        .args(["--quiet", "ops::swiglu::", "--skip", "pytorch"])
        .env("KEEL_EXPECTED", format!("write:{}", expected.display()))
        // As the script sets it.
        .env("PROPTEST_RNG_SEED", "20261123")
        .output()
        .unwrap();
    assert!(written.status.success(), "{written:#?}");
    let mut command = place.script(&["--tiny", "--cases", "ops::swiglu"]);
    command
        .env("LD_LIBRARY_PATH", driver)
        .env("KEEL_FAKE_CUDA", "late");
    let output = output_of(command);
    let rows = place.rows("cuda-unknown.jsonl");
    let cases = row(&rows, "cases-swiglu");
    assert_eq!(cases["status"], 0, "{output:#?}");
    let held: Vec<_> = rows.iter().filter(|row| row["kind"] == "case").collect();
    assert!(held.len() > 2, "{rows:#?}");
    for row in held {
        assert_eq!(row["device"], "Emulated GPU 0", "{row}");
        assert_eq!(row["stand_in"], true, "{row}");
    }
    let kernels = row(&rows, "kernels");
    assert!(kernels["ran"].as_u64().unwrap() >= 4, "{kernels}");
    assert_eq!(kernels["stand_in"], true);
    let says = kernels["says"].as_str().unwrap();
    assert!(says.ends_with("no GPU computed anything"), "{says}");
    // The programs of users need images, which this build may lack: they say so, and the other parts run.
    for kind in ["probe", "steps", "time-linear-bf16", "time-attention-bf16"] {
        let row = row(&rows, kind);
        let status = row["status"].as_i64().unwrap();
        assert_eq!(status == 0, !IMAGES.is_empty(), "{row}: {output:#?}");
        if IMAGES.is_empty() {
            let says = row["says"].as_str().unwrap();
            assert!(says.contains("was built without nvcc"), "{row}");
        }
    }
    assert_eq!(output.status.success(), !IMAGES.is_empty(), "{output:#?}");
    assert_eq!(rows.last().unwrap()["status"], "complete");
}

#[test]
fn a_part_that_hangs_costs_its_time_and_no_fact() {
    let place = Place::with_stubs("echo '{\"kind\":\"fact\"}'; exec sleep 1000");
    let start = Instant::now();
    // Time for a busy machine to come to the first part; the rest of it is waited, and costs nothing.
    let output = output_of(place.script(&["--device", "simt", "--seconds", "10"]));
    assert!(start.elapsed() < Duration::from_secs(60), "{output:#?}");
    assert_eq!(output.status.code(), Some(1), "{output:#?}");
    let rows = place.rows("simt.jsonl");
    assert_eq!(rows[1]["kind"], "fact", "{rows:#?}");
    let probe = row(&rows, "probe");
    assert_eq!(probe["status"], 124, "{probe}");
    let says = probe["says"].as_str().unwrap();
    assert!(says.starts_with("ended after its limit of "), "{probe}");
    for kind in ["cases", "time-linear-bf16", "time-update-f32"] {
        let row = row(&rows, kind);
        assert_eq!(
            row["status"], "left out: no time left of 10 seconds",
            "{row}"
        );
    }
    assert_eq!(rows.last().unwrap()["kind"], "end");
}

#[test]
fn an_interrupted_run_keeps_what_was_found() {
    let place = Place::with_stubs("echo '{\"kind\":\"fact\"}'; exec sleep 1000");
    let mut command = place.script(&["--device", "simt"]);
    let mut running = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while place.rows("simt.jsonl").len() < 2 {
        assert!(Instant::now() < deadline, "the first part says a fact");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_child(&running);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = running.wait().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(Instant::now() < deadline, "it ends at once");
    let rows = place.rows("simt.jsonl");
    assert_eq!(rows[1]["kind"], "fact", "{rows:#?}");
    let last = rows.last().unwrap();
    assert_eq!(last["kind"], "end", "{last}");
    assert_eq!(last["status"], "interrupted", "{last}");
}

#[test]
fn the_gpu_script_says_what_is_wrong_with_its_options() {
    for (arguments, part) in [
        (&["--device", "tpu"][..], "not tpu"),
        (&["--device"], "--device needs a value"),
        (&["--seconds", "soon"], "not soon"),
        (&["--frobnicate"], "unknown option --frobnicate"),
        (&["--bin", "/nowhere"], "cargo tool bundle builds it"),
    ] {
        let output = output_of(script(arguments));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(part) && said.lines().count() == 1, "{said}");
    }
}
