//! One row out of the tokens of each batch row.

use keel::ops::{mean_pool, select_token};
use keel::tape::{Add, ParameterLayout, Tape};
use keel::tensor::TensorType;
use proptest::prelude::*;

use crate::harness::{Case, Golden, Random, check, check_golden, out};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn pooling_matches_the_reference(
        batch in 1usize..5, tokens in 1usize..20, width in 1usize..40, form in 0usize..3, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let case = Case::new(format!("pooling {form}"), move |tape, v| {
            let y = match form {
                0 => mean_pool(tape, v[0], None)?,
                1 => mean_pool(tape, v[0], Some(v[1]))?,
                _ => select_token(tape, v[0], v[1])?,
            };
            Ok(vec![out("y", y)])
        })
        .input("x", [batch, tokens, width], random.normals(batch * tokens * width, 1.0));
        let case = match form {
            0 => case,
            1 => {
                let mut weights = random.normals(batch * tokens, 1.0);
                weights[1..].iter_mut().step_by(3).for_each(|w| *w = 0.0);
                case.constant("weights", [batch, tokens], weights)
            }
            _ => case.integers("index", [batch], random.integers(batch, tokens)),
        };
        check(&case, seed);
    }
}

#[test]
fn pooling_adds_to_the_gradient_that_its_tokens_already_have() {
    let mut random = Random::new(2);
    let case = Case::new("pooled thrice", |tape, v| {
        let x = tape.record_one(Add, &[v[0], v[0]])?;
        let mean = mean_pool(tape, x, None)?;
        let sum = mean_pool(tape, x, Some(v[1]))?;
        let token = select_token(tape, x, v[2])?;
        // The gradient of the sum is an input of the program: it must not be overwritten.
        let other = tape.record_one(Add, &[x, v[3]])?;
        Ok(vec![
            out("mean", mean),
            out("sum", sum),
            out("token", token),
            out("other", other),
        ])
    })
    .input("x", [2, 5, 7], random.normals(70, 1.0))
    .constant("weights", [2, 5], random.normals(10, 1.0))
    .integers("index", [2], vec![4, 1])
    .constant("more", [2, 5, 7], random.normals(70, 1.0))
    // Constants are f32 in every precision, and a sum has one type.
    .in_f32_only();
    check(&case, 2);
}

#[test]
fn select_token_outside_the_row_is_zero_and_owes_nothing() {
    let mut random = Random::new(4);
    let case = Case::new("tokens that are not there", |tape, v| {
        Ok(vec![out("y", select_token(tape, v[0], v[1])?)])
    })
    .input("x", [3, 4, 6], random.normals(72, 1.0))
    .integers("index", [3], vec![-1, 2, 4]);
    check(&case, 4);
}

#[test]
fn mean_pool_of_large_equal_rows_is_the_row() {
    let case = Case::new("mean of equal rows", |tape, v| {
        Ok(vec![out("y", mean_pool(tape, v[0], None)?)])
    })
    .input("x", [1, 64, 5], [1e4f32, -1e4, 0.0, 3.0, 1e-3].repeat(64));
    check(&case, 5);
}

#[test]
fn pooling_matches_pytorch() {
    for golden in Golden::open("op_pooling").cases() {
        let weighted = golden.has("input.weights");
        let selects = golden.has("input.index");
        let case = Case::new(&golden.name, move |tape, v| {
            let y = if selects {
                select_token(tape, v[0], v[1])?
            } else {
                mean_pool(tape, v[0], v.get(1).copied())?
            };
            Ok(vec![out("y", y)])
        })
        .input("x", golden.shape("input.x"), golden.f32s("input.x"));
        let case = match (weighted, selects) {
            (true, _) => {
                let weights = golden.f32s("input.weights");
                let tokens = golden.shape("input.weights").columns();
                let shares = weights
                    .chunks(tokens)
                    .flat_map(|row| row.iter().map(|w| w / row.iter().sum::<f32>()));
                case.constant("weights", golden.shape("input.weights"), shares.collect())
            }
            (_, true) => {
                let index = golden.integers("input.index");
                case.integers("index", [index.len()], index.to_vec())
            }
            _ => case,
        };
        check_golden(&case, &golden);
    }
}

#[test]
fn pooling_refuses_wrong_shapes() {
    let x = TensorType::f32([3, 5, 8]);
    let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
    let good = tape.input("x", x);
    let flat = tape.input("flat", TensorType::f32([15, 8]));
    let trained = tape.input_with_gradient("trained", TensorType::f32([3, 5]));
    let weights = tape.input("weights", TensorType::f32([5, 3]));
    let index = tape.input("index", TensorType::i32([5]));
    let problems = [
        (mean_pool(&mut tape, flat, None), "x"),
        (mean_pool(&mut tape, good, Some(weights)), "weights"),
        (mean_pool(&mut tape, good, Some(trained)), "weights"),
        (select_token(&mut tape, good, index), "index"),
        (select_token(&mut tape, good, weights), "index"),
    ];
    for (problem, names) in problems {
        let problem = problem.expect_err("the shapes do not fit").to_string();
        assert!(problem.contains(names), "{problem}");
    }
}
