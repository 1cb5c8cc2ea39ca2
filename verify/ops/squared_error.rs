//! The mean squared difference, and of normalised rows the mean of 1 − cos.

use keel::ops::{l2_normalize, squared_error, weighted_sum};
use keel::tape::Tape;
use keel::tensor::TensorType;
use proptest::prelude::*;

use crate::harness::{Case, Random, check, out};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn the_mean_squared_difference_matches_the_reference(rows in 1usize..300, columns in 4usize..40, seed: u64) {
        let mut random = Random::new(seed);
        let case = Case::new("squared_error", |tape, v| {
            Ok(vec![out("error", squared_error(tape, v[0], v[1])?)])
        })
        .input("x", [rows, columns], random.normals(rows * columns, 1.0))
        .input("y", [rows, columns], random.normals(rows * columns, 1.0));
        check(&case, seed);
    }

    #[test]
    fn the_mean_of_one_minus_the_cosine_matches_the_reference(rows in 1usize..40, columns in 4usize..40, seed: u64) {
        let mut random = Random::new(seed);
        let case = Case::new("cosine", move |tape, v| {
            let [x, y] = [v[0], v[1]].map(|rows| l2_normalize(tape, rows, 1e-12));
            let error = squared_error(tape, x?, y?)?;
            Ok(vec![out("error", weighted_sum(tape, &[(error, columns as f32 / 2.0)])?)])
        })
        .input("x", [rows, columns], random.normals(rows * columns, 1.0))
        .input("y", [rows, columns], random.normals(rows * columns, 1.0));
        check(&case, seed);
    }
}

#[test]
fn tensors_of_different_shapes_are_refused() {
    let mut tape = Tape::declaring();
    let x = tape.input("x", TensorType::f32([5, 8]));
    let y = tape.input("y", TensorType::f32([8, 5]));
    let refused = squared_error(&mut tape, x, y).unwrap_err().to_string();
    assert!(
        refused.contains("squared_error") && refused.contains("like x"),
        "{refused}"
    );
}
