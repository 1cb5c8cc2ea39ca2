//! Neighbouring image tokens merged into wider ones.

use keel::ops::pixel_unshuffle;
use keel::tape::{ParameterLayout, Tape};
use keel::tensor::TensorType;
use proptest::prelude::*;

use crate::harness::{Case, Golden, Random, check, check_golden, out};

fn case(name: String, [batch, height, width]: [usize; 3], factor: usize, x: Vec<f32>) -> Case {
    let columns = x.len() / (batch * height * width);
    Case::new(name, move |tape, v| {
        let y = pixel_unshuffle(tape, v[0], height, width, factor)?;
        Ok(vec![out("y", y)])
    })
    .input("x", [batch, height * width, columns], x)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn pixel_unshuffle_matches_the_reference(
        batch in 1usize..4, rows in 1usize..5, columns in 1usize..5, factor in 1usize..4,
        width in 1usize..12, seed: u64,
    ) {
        let sides = [batch, rows * factor, columns * factor];
        let count = sides.iter().product::<usize>() * width;
        let x = Random::new(seed).normals(count, 1.0);
        check(&case(format!("pixel_unshuffle {factor} of {sides:?}"), sides, factor, x), seed);
    }
}

#[test]
fn pixel_unshuffle_matches_pytorch() {
    for golden in Golden::open("op_pixel_unshuffle").cases() {
        let &[batch, height, width, _] = golden.shape("input.x").dims() else {
            panic!("{}: wanted [B, h, w, C]", golden.name);
        };
        let x = golden.f32s("input.x");
        check_golden(
            &case(golden.name.clone(), [batch, height, width], 2, x),
            &golden,
        );
    }
}

#[test]
fn pixel_unshuffle_refuses_grids_that_do_not_divide() {
    let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
    let x = tape.input("x", TensorType::f32([2, 12, 5]));
    for (height, width, factor, names) in [
        (3, 4, 2, "3 × 4"),
        (4, 3, 2, "4 × 3"),
        (2, 4, 2, "x must be"),
        (2, 6, 0, "factor 0"),
        (0, 0, 1, "0 × 0"),
    ] {
        let problem = pixel_unshuffle(&mut tape, x, height, width, factor)
            .expect_err("the grid does not fit")
            .to_string();
        assert!(problem.contains(names), "{problem}");
    }
}
