//! Gram matrices of tokens, and the loss that holds those of one tower's features to another's.

use keel::ops::{cast, gram, l2_normalize, squared_error};
use keel::tape::Tape;
use keel::tensor::{DType, TensorType};
use proptest::prelude::*;

use crate::harness::{Case, Golden, Random, check, check_golden, out};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn gram_matrices_of_every_image_match_the_reference(
        images in 1usize..4,
        tokens in 1usize..70,
        columns in 1usize..40,
        seed: u64,
    ) {
        let mut random = Random::new(seed);
        let case = Case::new("gram", |tape, v| {
            let x = cast(tape, v[0], DType::F32)?;
            Ok(vec![out("gram", gram(tape, x)?)])
        })
            .input("x", [images, tokens, columns], random.normals(images * tokens * columns, 1.0));
        check(&case, seed);
    }
}

#[test]
fn the_loss_of_gram_matrices_is_that_of_pytorch() {
    for golden in Golden::open("op_gram").cases() {
        let mut case = Case::new(&golden.name, |tape, v| {
            let grams = [v[0], v[1]].map(|x| {
                let x = cast(tape, x, DType::F32)?;
                let x = l2_normalize(tape, x, 1e-12)?;
                gram(tape, x)
            });
            let [ours, theirs] = grams;
            Ok(vec![out("loss", squared_error(tape, ours?, theirs?)?)])
        });
        for name in ["x", "y"] {
            let input = format!("input.{name}");
            case = case.input(name, golden.shape(&input), golden.f32s(&input));
        }
        check_golden(&case, &golden);
    }
}

#[test]
fn what_is_no_batch_of_tokens_in_f32_is_refused() {
    let mut tape = Tape::declaring();
    let x = tape.input("x", TensorType::f32([5, 8]));
    let refused = gram(&mut tape, x).unwrap_err().to_string();
    assert!(
        refused.contains("gram") && refused.contains("[B, T, C]"),
        "{refused}"
    );
}
