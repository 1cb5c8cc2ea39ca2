//! Runs whose steps are computed by the CUDA kernels, on the emulator.

use super::metrics;
use crate::command::keel;

#[test]
fn the_tiny_recipe_trains_on_the_emulated_kernels_in_both_precisions() {
    if keel::executor::simt::Emulator::new().is_err() {
        return;
    }
    let mut losses = Vec::new();
    for precision in ["bf16", "f32"] {
        let folder = tempfile::tempdir().unwrap();
        let mut args = ["train", "--device", "simt", "--precision", precision].to_vec();
        args.extend(["--recipe", "tiny", "--max-steps", "1", "--no-evaluation"]);
        args.extend(["--out", "run"]);
        let answer = keel(folder.path(), &args).fine();
        let device = format!("device: simt (the CUDA kernels on the emulator), {precision}");
        assert!(answer.stdout.contains(&device), "{answer:#?}");
        let steps = metrics(&folder.path().join("run"));
        losses.push(
            steps
                .iter()
                .filter_map(|row| row["loss"].as_f64())
                .collect::<Vec<_>>(),
        );
    }
    // Every stage's first loss: the same to what bf16 can tell of a loss of a few units.
    assert!(losses[0].len() >= 5, "{losses:?}");
    assert_eq!(losses[0].len(), losses[1].len());
    for (half, single) in losses[0].iter().zip(&losses[1]) {
        let allowed = keel::tensor::DType::Bf16.epsilon() * single.abs();
        assert!((half - single).abs() <= allowed, "{losses:?}");
    }
}

#[test]
fn a_precision_that_the_device_does_not_know_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "train",
        "--device",
        "cpu",
        "--precision",
        "bf16",
        "--recipe",
        "tiny",
    ];
    keel(folder.path(), &args).refused(&["--precision", "bf16", "--device cuda or simt"]);
}
