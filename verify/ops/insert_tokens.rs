//! Learned tokens among those of a row.

use keel::ops::insert_tokens;
use keel::tape::Tape;
use keel::tensor::TensorType;
use proptest::prelude::*;

use crate::harness::{Case, Random, check, out};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    // Rows of at least four numbers: in bf16 shorter ones may be as good as equal by chance.
    #[test]
    fn inserted_tokens_match_the_reference(
        b in 1usize..4, t in 1usize..8, count in 1usize..5, c in 4usize..20, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let at = random.below(t + 1);
        let case = Case::new(format!("{count} tokens at {at} of {t}"), move |tape, v| {
            Ok(vec![out("y", insert_tokens(tape, v[0], v[1], at)?)])
        })
        .input("x", [b, t, c], random.normals(b * t * c, 1.0))
        .input("tokens", [count, c], random.normals(count * c, 1.0));
        check(&case, seed);
    }
}

#[test]
fn tokens_of_another_width_and_a_place_beyond_the_row_are_refused() {
    let mut tape = Tape::declaring();
    let x = tape.input("x", TensorType::f32([2, 5, 8]));
    let tokens = tape.input("tokens", TensorType::f32([3, 8]));
    let wide = tape.input("wide", TensorType::f32([3, 9]));
    let refused = insert_tokens(&mut tape, x, wide, 1).unwrap_err();
    assert!(refused.to_string().contains("f32 [R, 8]"), "{refused}");
    let refused = insert_tokens(&mut tape, x, tokens, 6).unwrap_err();
    assert!(
        refused.to_string().contains("at least 6 tokens"),
        "{refused}"
    );
    assert!(insert_tokens(&mut tape, x, tokens, 5).is_ok());
}
