//! `keel plan` beside a GPU, on the driver of our own: it plans with the kernels that the chip has.

use std::path::Path;
use std::process::{Command, Output};

use super::executing_driver;

fn plan(driver: &Path, device: &str, precision: &str, settings: &str, tier: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_keel"))
        .args(["plan", "--stage", "warm-start-vision", "--device", device])
        .args(["--precision", precision])
        .env("LD_LIBRARY_PATH", driver)
        .env("KEEL_FAKE_CUDA", settings)
        .env("KEEL_CUDA_TIER", tier)
        .output()
        .expect("the program starts")
}

#[test]
fn a_plan_for_a_gpu_says_which_ops_take_kernels_of_its_tier() {
    let Some(driver) = executing_driver() else {
        return;
    };
    let said = |precision, settings, tier| {
        let output = plan(driver, "gpu", precision, settings, tier);
        assert!(output.status.success(), "{output:#?}");
        String::from_utf8(output.stdout).expect("it is text")
    };
    let text = said("bf16", "", "");
    let line = text.lines().find(|line| line.contains("Hopper tier  "));
    assert!(line.is_some_and(|line| line.contains("linear ")), "{text}");
    assert!(
        text.contains("cuda, bf16, kernels of the Hopper tier"),
        "{text}"
    );
    // What is not in bf16 keeps to portable kernels, and the plan says why.
    let text = said("f32", "", "");
    assert!(text.contains("wgmma is used for bf16"), "{text}");
    for (settings, tier) in [("capability=80", ""), ("", "portable")] {
        let text = said("bf16", settings, tier);
        assert!(!text.contains(" tier"), "{settings} {tier}: {text}");
    }
}

#[test]
fn a_wrong_tier_is_refused_and_is_not_taken_for_no_gpu() {
    let Some(driver) = executing_driver() else {
        return;
    };
    for device in ["auto", "gpu"] {
        let output = plan(driver, device, "bf16", "", "ampere");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{device}: {output:#?}");
        assert!(said.contains("KEEL_CUDA_TIER"), "{device}: {said}");
    }
}
