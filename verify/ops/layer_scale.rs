//! Scaled residual branches.

use keel::ops::layer_scale;
use proptest::prelude::*;

use crate::harness::{Case, Random, check, out};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    #[test]
    fn scaled_branches_match_the_reference(rows in 1usize..150, c in 1usize..40, seed: u64) {
        let mut random = Random::new(seed);
        let case = Case::new("layer scale", |tape, v| {
            Ok(vec![out("y", layer_scale(tape, v[0], v[1], v[2])?)])
        })
        .input("x", [rows, c], random.normals(rows * c, 1.0))
        .input("gamma", [c], random.normals(c, 1.0))
        .input("residual", [rows, c], random.normals(rows * c, 1.0));
        check(&case, seed);
    }
}

#[test]
fn scaled_branches_of_many_rows_and_channels_match_the_reference() {
    // Several chunks of rows and tiles of channels, in whole vectors and ragged.
    for channels in [272, 301] {
        let (rows, mut random) = (150, Random::new(5));
        let count = rows * channels;
        let case = Case::new("layer scale in tiles", |tape, v| {
            Ok(vec![out("y", layer_scale(tape, v[0], v[1], v[2])?)])
        })
        .input("x", [rows, channels], random.normals(count, 1.0))
        .input("gamma", [channels], random.normals(channels, 1.0))
        .input("residual", [rows, channels], random.normals(count, 1.0));
        check(&case, 5);
    }
}
