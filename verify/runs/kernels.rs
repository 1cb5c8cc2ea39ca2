//! Runs whose steps are computed by the CUDA kernels, on the emulator.

use std::path::Path;

use super::metrics;
use crate::command::{checkpoint, checkpoints, keel, tensors, tiny_recipe};

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

/// A run of one stage in bf16 on `device`, three steps, with a checkpoint after each.
fn half_run(folder: &Path, device: &str) {
    std::fs::write(folder.join("one.toml"), tiny_recipe(&["fine-grained"])).unwrap();
    let mut args = ["train", "--recipe", "one.toml", "--out", device].to_vec();
    args.extend(["--device", device, "--precision", "bf16", "--threads", "2"]);
    args.extend("--max-steps 3 --save-every 1 --no-evaluation".split(' '));
    let said = keel(folder, &args).fine().stdout;
    assert!(
        said.contains(", bf16") && said.contains("(as asked"),
        "{said}"
    );
}

/// The steps that were logged, by time, with their losses, in order.
fn losses(run: &Path) -> Vec<(u64, f64)> {
    let rows = metrics(run);
    let loss = |row: &serde_json::Value| Some((row["step"].as_u64()?, row["loss"].as_f64()?));
    rows.iter().filter_map(loss).collect()
}

#[test]
fn a_run_in_bf16_goes_on_on_another_device_within_what_bf16_can_tell() {
    if keel::executor::simt::Emulator::new().is_err() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (first, second) in [("cpu", "simt"), ("simt", "cpu")] {
        half_run(folder.path(), first);
        let run = folder.path().join(first);
        let whole = losses(&run);
        // Back to the checkpoint after the first step, of which the other device takes parameters and moments.
        let kept = checkpoint(&run, "1-fine-grained.step-1");
        for name in checkpoints(&run) {
            let path = run.join("checkpoints").join(name);
            if path != kept {
                std::fs::remove_file(path).unwrap();
            }
        }
        assert!(kept.exists());
        let mut args = ["train", "--resume", first, "--device", second].to_vec();
        args.extend("--precision bf16 --threads 2 --max-steps 3 --no-evaluation".split(' '));
        let said = keel(folder.path(), &args).fine().stdout;
        let named = format!("the device was {first}, is {second}: other bits from here on");
        assert!(said.contains(&named), "{said}");
        let all = losses(&run);
        // The last step is logged always; the resumed run's row is behind those of the run before.
        assert!(all.len() > whole.len(), "{all:?}");
        let (after, want) = (all[all.len() - 1], whole[whole.len() - 1]);
        assert_eq!(after.0, want.0, "{all:?}");
        let (after, want) = (after.1, want.1);
        // The losses of both devices are those of activations rounded to bf16, each within half a unit of its last place of
        // the same numbers in f64: one unit between them.
        let allowed = keel::tensor::DType::Bf16.epsilon() * want.abs();
        assert!(
            (after - want).abs() <= allowed,
            "{first} then {second}: {all:?}, and {first} alone: {whole:?}"
        );
    }
}

#[test]
fn a_run_in_bf16_on_the_processor_has_the_same_bits_for_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let run = |threads: &str| {
        let mut args = ["train", "--device", "cpu", "--precision", "bf16"].to_vec();
        args.extend(["--recipe", "tiny", "--max-steps", "2", "--no-evaluation"]);
        args.extend(["--set", "stochastic_rounding=true", "--threads", threads]);
        args.extend(["--out", threads]);
        keel(folder.path(), &args).fine();
        let stages = keel::train::stage_checkpoints(&folder.path().join(threads)).unwrap();
        let tensors: Vec<_> = stages.iter().map(|(_, path)| tensors(path)).collect();
        assert!(tensors.len() >= 5);
        tensors
    };
    assert!(
        run("1") == run("3"),
        "another number of threads gives other bits"
    );
}
