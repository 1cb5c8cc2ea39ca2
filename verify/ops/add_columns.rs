//! A part added to some columns of rows.

use keel::ops::add_columns;
use keel::tape::{Add, Tape};
use keel::tensor::TensorType;
use proptest::prelude::*;

use crate::harness::{Case, Random, check, out};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn columns_added_in_place_and_beside_match_the_reference(
        rows in 1usize..70, first in 0usize..9, width in 1usize..19, behind in 0usize..9, by_vectors: bool, seed: u64,
    ) {
        let mut random = Random::new(seed);
        // Multiples of eight take the kernels' vectors.
        let scale = if by_vectors { 8 } else { 1 };
        let (first, width) = (first * scale, width * scale);
        let columns = first + width + behind * scale;
        let beside = Case::new("beside", move |tape, v| {
            Ok(vec![out("y", add_columns(tape, v[0], v[1], first)?)])
        })
        .input("x", [rows, columns], random.normals(rows * columns, 1.0))
        .input("part", [rows, width], random.normals(rows * width, 1.0));
        check(&beside, seed);
        let in_place = Case::new("in place", move |tape, v| {
            // Added to itself first, so that the result may take the sum's place.
            let sum = tape.record_one(Add, &[v[0], v[0]])?;
            Ok(vec![out("y", add_columns(tape, sum, v[1], first)?)])
        })
        .input("x", [rows, columns], random.normals(rows * columns, 1.0))
        .input("part", [rows, width], random.normals(rows * width, 1.0));
        check(&in_place, seed);
    }
}

#[test]
fn a_part_beyond_the_columns_or_of_other_rows_is_refused() {
    let mut tape = Tape::declaring();
    let x = tape.input("x", TensorType::f32([5, 8]));
    let part = tape.input("part", TensorType::f32([5, 4]));
    let other = tape.input("other", TensorType::f32([4, 4]));
    let refused = add_columns(&mut tape, x, part, 5).unwrap_err().to_string();
    assert!(refused.contains("1 to 3 columns"), "{refused}");
    assert!(add_columns(&mut tape, x, other, 0).is_err());
    assert!(add_columns(&mut tape, x, part, 4).is_ok());
}
