//! Weighted sums of losses.

use keel::ops::weighted_sum;

use crate::harness::{Case, check, out};

#[test]
fn a_weighted_sum_and_its_gradients_match_the_reference() {
    let case = Case::new("1.5 a − 0.3 b + 2 a", |tape, v| {
        let sum = weighted_sum(tape, &[(v[0], 1.5), (v[1], -0.3), (v[0], 2.0)])?;
        Ok(vec![out("y", sum)])
    })
    .input("a", [1], vec![0.7])
    .input("b", [1], vec![-1.9]);
    check(&case, 1);
}
