//! The gated activation and its gradient.

use std::sync::Arc;

use keel::ops::swiglu;
use keel::tape::{Add, ParameterLayout, Tape};
use keel::tensor::TensorType;
use proptest::prelude::*;

use crate::harness::{Case, Golden, Random, check, check_golden, out};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn swiglu_matches_the_reference(
        batch in 1usize..4, tokens in 1usize..50, width in 1usize..60, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let count = 2 * batch * tokens * width;
        let case = Case::new("swiglu", |tape, v| {
            // Doubled first, so that the gradient may take the place of what was saved.
            let gate_up = tape.record_one(Add, &[v[0], v[0]])?;
            Ok(vec![out("y", swiglu(tape, gate_up)?)])
        })
        .input("gate_up", [batch, tokens, 2 * width], random.normals(count, 1.0));
        check(&case, seed);
    }
}

#[test]
fn swiglu_of_zeros_and_of_far_tails_matches_the_reference() {
    let mut random = Random::new(31);
    let mut gate_up = random.normals(6 * 2 * 19, 1.0);
    gate_up[..38].fill(0.0);
    gate_up[38..57].fill(80.0);
    gate_up[76..95].fill(-80.0);
    let case = Case::new("zeros and tails", |tape, v| {
        Ok(vec![out("y", swiglu(tape, v[0])?)])
    })
    .input("gate_up", [6, 38], gate_up);
    check(&case, 31);
}

#[test]
fn swiglu_of_rows_wider_than_a_block_matches_the_reference() {
    let mut random = Random::new(32);
    let case = Case::new("wide", |tape, v| Ok(vec![out("y", swiglu(tape, v[0])?)])).input(
        "gate_up",
        [2, 8_400],
        random.normals(16_800, 1.0),
    );
    check(&case, 32);
}

#[test]
fn swiglu_agrees_with_pytorch() {
    for golden in Golden::open("op_swiglu").cases() {
        let case = Case::new(golden.name.clone(), |tape, v| {
            Ok(vec![out("y", swiglu(tape, v[0])?)])
        })
        .input(
            "gate_up",
            golden.shape("input.gate_up"),
            golden.f32s("input.gate_up"),
        );
        check_golden(&case, &golden);
    }
}

#[test]
fn swiglu_refuses_an_odd_width() {
    let mut tape = Tape::new(Arc::new(ParameterLayout::default()), |_| false);
    let odd = tape.input("odd", TensorType::f32([4, 7]));
    let problem = swiglu(&mut tape, odd).unwrap_err().to_string();
    assert!(
        problem.contains("swiglu: gate_up must be [.., 2F]"),
        "{problem}"
    );
    let ids = tape.input("ids", TensorType::i32([4, 8]));
    assert!(swiglu(&mut tape, ids).is_err());
}
