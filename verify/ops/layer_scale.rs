//! Residual branches scaled per channel: the scale in the product's epilogue, and its gradients.

use keel::ops::{linear, linear_layer_scale};
use keel::tape::Tape;
use keel::tensor::TensorType;
use proptest::prelude::*;

use crate::harness::{Case, Golden, Random, check, check_golden, out};

/// y = residual + γ ⊙ (x·Wᵀ + b) with `n` channels.
fn scaled(name: &str, [rows, k, n]: [usize; 3], has_bias: bool, seed: u64) -> Case {
    let mut random = Random::new(seed);
    let case = Case::new(name, move |tape, v| {
        let bias = has_bias.then(|| v[4]);
        let y = linear_layer_scale(tape, v[0], v[1], bias, v[2], v[3])?;
        Ok(vec![out("y", y)])
    })
    .input("x", [rows, k], random.normals(rows * k, 1.0))
    .input("weight", [n, k], random.normals(n * k, 1.0))
    .input("gamma", [n], random.normals(n, 1.0))
    .input("residual", [rows, n], random.normals(rows * n, 1.0));
    if has_bias {
        case.input("bias", [n], random.normals(n, 1.0))
    } else {
        case
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    #[test]
    fn scaled_branches_match_the_reference(
        rows in 1usize..150, k in 1usize..20, n in 1usize..40, has_bias: bool, seed: u64,
    ) {
        check(&scaled("layer scale", [rows, k, n], has_bias, seed), seed);
    }
}

#[test]
fn scaled_branches_of_many_rows_and_channels_match_the_reference() {
    // Several chunks of rows and tiles of channels, in whole vectors and ragged.
    for channels in [272, 301] {
        check(
            &scaled("layer scale in tiles", [150, 3, channels], true, 5),
            5,
        );
    }
}

#[test]
fn scaled_branches_agree_with_pytorch() {
    let mut found = 0;
    for golden in Golden::open("op_linear").cases() {
        if !golden.has("input.layer_scale") {
            continue;
        }
        found += 1;
        let names = ["x", "weight", "layer_scale", "residual", "bias"];
        let has_bias = golden.has("input.bias");
        let mut case = Case::new(golden.name.clone(), move |tape, v| {
            let bias = has_bias.then(|| v[4]);
            let y = linear_layer_scale(tape, v[0], v[1], bias, v[2], v[3])?;
            Ok(vec![out("y", y)])
        });
        for name in names {
            let key = format!("input.{name}");
            if golden.has(&key) {
                case = case.input(name, golden.shape(&key), golden.f32s(&key));
            }
        }
        check_golden(&case, &golden);
    }
    assert!(found > 0, "no golden scales its channels");
}

#[test]
fn a_scale_that_fits_no_channel_is_refused() {
    let mut tape = Tape::declaring();
    let mut input = |name: &str, dims: &[usize]| tape.input(name, TensorType::f32(dims));
    let (x, weight) = (input("x", &[2, 3]), input("weight", &[5, 3]));
    let (gamma, residual) = (input("gamma", &[4]), input("residual", &[2, 5]));
    let problem = linear_layer_scale(&mut tape, x, weight, None, gamma, residual)
        .expect_err("four scales for five channels")
        .to_string();
    assert!(problem.contains("gamma must be f32 [5]"), "{problem}");
    assert!(linear(&mut tape, x, weight, None).is_ok());
}
