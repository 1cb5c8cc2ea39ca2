//! `keel train --device cuda` as a user starts it, on the driver of our own. Needs the images that nvcc makes.

use std::path::Path;
use std::process::{Command, Output};

use keel::executor::kernel_table::IMAGES;

use super::executing_driver;
use crate::command::tensors;

/// Two steps of each stage of the tiny recipe on `device`, one of them in micro-batches, with the driver under `settings`.
fn train(folder: &Path, device: &str, driver: &Path, settings: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_keel"))
        .args([
            "train",
            "--recipe",
            "tiny",
            "--max-steps",
            "2",
            "--no-evaluation",
            "--set",
            "stage.world-knowledge.micro_batch_size=4",
        ])
        .args(["--device", device, "--out", device])
        .current_dir(folder)
        .env("LD_LIBRARY_PATH", driver)
        .env("KEEL_FAKE_CUDA", settings)
        .env_remove("KEEL_CUDA_SYNC")
        .output()
        .expect("the program starts")
}

#[test]
fn training_on_the_gpu_gives_the_bits_of_training_on_the_emulator() {
    let Some(driver) = executing_driver().filter(|_| !IMAGES.is_empty()) else {
        eprintln!(
            "not run: this program was built without the kernels' images or without the emulator"
        );
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    // Queued work runs as late as the driver's contract allows, while the next batch is written.
    for (device, settings) in [("simt", ""), ("cuda", "late")] {
        let output = train(folder.path(), device, driver, settings);
        assert!(output.status.success(), "{device}: {output:#?}");
    }
    let stages =
        |device: &str| keel::train::stage_checkpoints(&folder.path().join(device)).unwrap();
    let (simt, cuda) = (stages("simt"), stages("cuda"));
    assert!(simt.len() >= 4 && simt.len() == cuda.len());
    for ((stage, want), (_, found)) in simt.iter().zip(&cuda) {
        // The tensors alone: each checkpoint also names the device that made it.
        let (want, found) = (tensors(want), tensors(found));
        assert!(!want.is_empty() && want == found, "{stage} has other bits");
    }
}

#[test]
fn a_fault_of_the_gpu_ends_training_in_a_sentence() {
    let Some(driver) = executing_driver().filter(|_| !IMAGES.is_empty()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let output = train(folder.path(), "cuda", driver, "late fault=300:700");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{output:#?}");
    assert!(said.starts_with("error: "), "{said}");
    assert!(said.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}
