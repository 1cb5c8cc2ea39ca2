//! Positions, class token and its removal.

use keel::ops::{add_position, drop_tokens};
use keel::tape::Tape;
use keel::tensor::TensorType;
use proptest::prelude::*;

use crate::harness::{Case, Random, check, out};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    // Rows of at least four numbers: in bf16 shorter ones may be as good as equal by chance.
    #[test]
    fn positions_and_class_token_match_the_reference(
        b in 1usize..4, t in 1usize..9, c in 4usize..20, spare in 0usize..3, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let rows = t + 1 + spare;
        let with_class = Case::new("class token", |tape, v| {
            Ok(vec![out("y", add_position(tape, v[0], v[1], Some(v[2]))?)])
        })
        .input("x", [b, t, c], random.normals(b * t * c, 1.0))
        .input("position", [rows, c], random.normals(rows * c, 1.0))
        .input("class_token", [c], random.normals(c, 1.0));
        check(&with_class, seed);
        let without = Case::new("positions", |tape, v| {
            Ok(vec![out("y", add_position(tape, v[0], v[1], None)?)])
        })
        .input("x", [b, t, c], random.normals(b * t * c, 1.0))
        .input("position", [rows, c], random.normals(rows * c, 1.0));
        check(&without, seed);
    }

    #[test]
    fn dropped_tokens_match_the_reference(
        b in 1usize..4, t in 2usize..9, c in 4usize..20, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let first = 1 + random.below(t - 1);
        let case = Case::new("drop", move |tape, v| {
            Ok(vec![out("y", drop_tokens(tape, v[0], first)?)])
        })
        .input("x", [b, t, c], random.normals(b * t * c, 1.0));
        check(&case, seed);
    }
}

#[test]
fn a_table_that_is_too_short_and_a_drop_of_everything_are_refused() {
    let mut tape = Tape::declaring();
    let x = tape.input("x", TensorType::f32([2, 5, 8]));
    let position = tape.input("position", TensorType::f32([5, 8]));
    let class_token = tape.input("class", TensorType::f32([8]));
    let refused = add_position(&mut tape, x, position, Some(class_token)).unwrap_err();
    assert!(refused.to_string().contains("P at least 6"), "{refused}");
    assert!(drop_tokens(&mut tape, x, 5).is_err());
}
