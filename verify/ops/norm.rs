//! LayerNorm and RMSNorm, with and without a residual, and their gradients.

use std::sync::Arc;

use keel::ops::{layer_norm, layer_norm_residual, linear, rms_norm, rms_norm_residual};
use keel::tape::{Add, ParameterLayout, Tape, Value};
use keel::tensor::TensorType;
use proptest::prelude::*;

use crate::harness::{Case, Golden, Random, aux, check, check_golden, last_launches, out};

const EPSILON: f32 = 1e-6;

/// Records the norm of `v[0]` with the weight and bias that follow it.
fn norm(tape: &mut Tape, is_layer: bool, v: &[Value]) -> keel::error::Result<Value> {
    if is_layer {
        layer_norm(tape, v[0], v[1], v[2], EPSILON)
    } else {
        rms_norm(tape, v[0], v[1], EPSILON)
    }
}

/// Adds weight [C] near one and, for LayerNorm, bias [C].
fn with_scale(case: Case, random: &mut Random, is_layer: bool, columns: usize) -> Case {
    let mut weight = random.normals(columns, 0.3);
    weight.iter_mut().for_each(|w| *w += 1.0);
    let case = case.input("weight", [columns], weight);
    if is_layer {
        case.input("bias", [columns], random.normals(columns, 1.0))
    } else {
        case
    }
}

/// A case of one norm over `x` [rows, columns] with a spread of gradients.
fn plain(name: &str, is_layer: bool, shape: [usize; 2], x: Vec<f32>, seed: u64) -> Case {
    let mut random = Random::new(seed ^ 1);
    let case = Case::new(name, move |tape, v| {
        Ok(vec![out("y", norm(tape, is_layer, v)?)])
    })
    .input("x", shape, x);
    with_scale(case, &mut random, is_layer, shape[1])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    // Of two numbers LayerNorm keeps only the order, so their gradient is nothing but rounding: at least four columns.
    #[test]
    fn norm_matches_the_reference(
        rows in 1usize..150, columns in 4usize..70, is_layer: bool, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let x = random.normals(rows * columns, 2.0);
        check(&plain("norm", is_layer, [rows, columns], x, seed), seed);
    }

    #[test]
    fn norm_with_residual_matches_the_reference(
        batch in 1usize..4, tokens in 1usize..40, columns in 4usize..50, is_layer: bool, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let shape = [batch, tokens, columns];
        let count = batch * tokens * columns;
        let case = Case::new("norm with residual", move |tape, v| {
            // Doubled first, so that the sum may take the residual's place.
            let residual = tape.record_one(Add, &[v[1], v[1]])?;
            let (sum, y) = if is_layer { layer_norm_residual(tape, v[0], residual, v[2], v[3], EPSILON)? } else { rms_norm_residual(tape, v[0], residual, v[2], EPSILON)? };
            Ok(vec![out("sum", sum), out("y", y)])
        })
        .input("x", shape, random.normals(count, 1.0))
        .input("residual", shape, random.normals(count, 1.0));
        check(&with_scale(case, &mut random, is_layer, columns), seed);
    }

    #[test]
    fn norm_adds_to_the_gradient_of_a_residual_stream(
        rows in 1usize..90, columns in 2usize..40, is_layer: bool, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let case = Case::new("norm beside a residual", move |tape, v| {
            let x = tape.record_one(Add, &[v[0], v[0]])?;
            let mut norm_inputs = v.to_vec();
            norm_inputs[0] = x;
            let y = norm(tape, is_layer, &norm_inputs)?;
            Ok(vec![out("y", tape.record_one(Add, &[x, y])?)])
        })
        .input("x", [rows, columns], random.normals(rows * columns, 1.0));
        check(&with_scale(case, &mut random, is_layer, columns), seed);
    }
}

#[test]
fn norm_of_rows_with_a_large_mean_keeps_its_digits() {
    for is_layer in [true, false] {
        let mut random = Random::new(21);
        let mut x = random.normals(7 * 45, 1.0);
        x.iter_mut().for_each(|x| *x += 1e4);
        // Beside 1e4 a bf16 has no digits left for the rest.
        let case = plain("large mean", is_layer, [7, 45], x, 21).in_f32_only();
        // RMSNorm of such rows is nearly constant: a shift by one row is right within rounding.
        let case = if is_layer {
            case
        } else {
            case.without_wrong_answers()
        };
        check(&case, 21);
    }
}

#[test]
fn norm_of_equal_and_of_zero_rows_matches_the_reference() {
    for is_layer in [true, false] {
        let mut random = Random::new(22);
        let mut x = random.normals(6 * 33, 1.0);
        x[33..66].fill(0.0);
        x[99..132].fill(0.5);
        let epsilon = 1e-2;
        let case = Case::new("equal and zero rows", move |tape, v| {
            let y = if is_layer {
                layer_norm(tape, v[0], v[1], v[2], epsilon)?
            } else {
                rms_norm(tape, v[0], v[1], epsilon)?
            };
            Ok(vec![out("y", y)])
        })
        .input("x", [6, 33], x);
        check(&with_scale(case, &mut random, is_layer, 33), 22);
    }
}

#[test]
fn norm_in_every_width_of_its_kernels_matches_the_reference() {
    // Whole vectors and ragged rows; more rows than one team takes.
    for (rows, columns) in [
        (67, 512),
        (19, 513),
        (11, 768),
        (9, 1024),
        (9, 1025),
        (9, 2048),
        (3, 2049),
        (9, 2056),
        (9, 4104),
    ] {
        for is_layer in [true, false] {
            let mut random = Random::new(columns as u64);
            let x = random.normals(rows * columns, 2.0);
            let case = plain("every width", is_layer, [rows, columns], x, 25);
            check(&case, columns as u64);
        }
    }
}

#[test]
fn norm_refuses_rows_that_no_kernel_holds() {
    let mut tape = Tape::new(Arc::new(ParameterLayout::default()), |_| false);
    let x = tape.input("x", TensorType::f32([2, 8193]));
    let weight = tape.input("weight", TensorType::f32([8193]));
    rms_norm(&mut tape, x, weight, EPSILON).expect("the processor holds any row");
    let problem = last_launches(&tape).unwrap_err().to_string();
    assert!(
        problem.contains("rms_norm_forward") && problem.contains("8192 columns, but 8193"),
        "{problem}"
    );
}

#[test]
fn norm_with_frozen_scale_gives_the_gradient_of_x_alone() {
    let mut random = Random::new(23);
    let case = Case::new("frozen scale", |tape, v| {
        Ok(vec![out("y", layer_norm(tape, v[0], v[1], v[2], EPSILON)?)])
    })
    .input("x", [40, 21], random.normals(840, 1.0))
    .constant("weight", [21], random.normals(21, 1.0))
    .constant("bias", [21], random.normals(21, 1.0));
    check(&case, 23);
}

#[test]
fn norm_in_front_of_a_frozen_tower_takes_the_place_of_its_input() {
    let case = Case::new("in place", |tape, v| {
        let x = tape.record_one(Add, &[v[0], v[0]])?;
        let y = layer_norm(tape, x, v[1], v[2], EPSILON)?;
        Ok(vec![aux("y", linear(tape, y, v[3], None)?)])
    });
    let mut random = Random::new(24);
    let case = case
        .constant("x", [37, 19], random.normals(37 * 19, 1.0))
        .constant("weight", [19], random.normals(19, 1.0))
        .constant("bias", [19], random.normals(19, 1.0))
        .constant("matrix", [5, 19], random.normals(95, 0.3));
    check(&case, 24);
}

#[test]
fn norms_agree_with_pytorch() {
    for (file, is_layer) in [
        ("op_layer_norm", true),
        ("op_rms_norm", false),
        ("op_qk_norm", false),
    ] {
        for golden in Golden::open(file).cases() {
            let epsilon = golden.config["eps"].as_f64().expect("a number") as f32;
            let has_residual = golden.has("input.residual");
            let mut case = Case::new(golden.name.clone(), move |tape, v| {
                if !has_residual {
                    let y = if is_layer {
                        layer_norm(tape, v[0], v[1], v[2], epsilon)?
                    } else {
                        rms_norm(tape, v[0], v[1], epsilon)?
                    };
                    return Ok(vec![out("y", y)]);
                }
                let (sum, y) = if is_layer {
                    layer_norm_residual(tape, v[0], v[1], v[2], v[3], epsilon)?
                } else {
                    rms_norm_residual(tape, v[0], v[1], v[2], epsilon)?
                };
                Ok(vec![out("sum", sum), out("y", y)])
            });
            for name in ["x", "residual", "weight", "bias"] {
                let key = format!("input.{name}");
                if golden.has(&key) {
                    case = case.input(name, golden.shape(&key), golden.f32s(&key));
                }
            }
            check_golden(&case, &golden);
        }
    }
}

#[test]
fn norm_refuses_shapes_that_do_not_fit() {
    let mut tape = Tape::new(Arc::new(ParameterLayout::default()), |_| false);
    let x = tape.input("x", TensorType::f32([2, 3, 8]));
    let vector = tape.input("vector", TensorType::f32([8]));
    let short = tape.input("short", TensorType::f32([7]));
    let other = tape.input("other", TensorType::f32([6, 8]));
    let ids = tape.input("ids", TensorType::i32([2, 8]));
    let said = |result: keel::error::Result<Value>| result.unwrap_err().to_string();
    let problem = said(layer_norm(&mut tape, x, short, vector, EPSILON));
    assert!(
        problem.contains("layer_norm: weight must be f32 [8]"),
        "{problem}"
    );
    let problem = said(layer_norm(&mut tape, x, vector, short, EPSILON));
    assert!(
        problem.contains("layer_norm: bias must be f32 [8]"),
        "{problem}"
    );
    let problem = said(rms_norm(&mut tape, ids, vector, EPSILON));
    assert!(problem.contains("rms_norm: x must be a float"), "{problem}");
    let problem = rms_norm_residual(&mut tape, x, other, vector, EPSILON).unwrap_err();
    assert!(
        problem
            .to_string()
            .contains("residual must be f32 [2, 3, 8]"),
        "{problem}"
    );
}
