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
