//! The tape's own ops: view, copy, slice, add.

use keel::tape::{Add, Copy, Fill, Slice, Tape};
use keel::tensor::TensorType;
use proptest::prelude::*;

use crate::harness::{Case, Random, check, out};

#[test]
fn fills_of_every_type_match_the_reference() {
    let mut random = Random::new(41);
    let case = Case::new("a + 0.5", |tape, v| {
        let ty = tape.ty(v[0]);
        let filled = tape.record_one(Fill { ty, value: 0.5 }, &[])?;
        Ok(vec![out("y", tape.record_one(Add, &[v[0], filled])?)])
    })
    .input("a", [5, 67], random.normals(5 * 67, 1.0));
    check(&case, 41);
}

#[test]
fn slices_match_the_reference_and_those_outside_are_refused() {
    for (first, elements) in [(0, 7), (16, 300), (320, 15)] {
        let mut random = Random::new(43);
        let case = Case::new("x[first..]", move |tape, v| {
            let x = tape.record_one(Copy, &[v[0]])?;
            let part = Slice { first, elements };
            Ok(vec![out("y", tape.record_one(part, &[x])?)])
        })
        .constant("x", [5, 67], random.normals(5 * 67, 1.0));
        check(&case, 43);
    }
    let mut tape = Tape::declaring();
    let x = tape.input("x", TensorType::f32([64]));
    for (first, elements) in [(48, 17), (8, 8)] {
        let refused = tape.record(Slice { first, elements }, &[x]);
        assert!(refused.is_err(), "{first}, {elements}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn add_copy_and_view_match_the_reference(rows in 1usize..40, columns in 1usize..70, seed: u64) {
        let mut random = Random::new(seed);
        let shape = [rows, columns];
        let case = Case::new("(a + view(copy(b))) + a", move |tape, v| {
            let flat = tape.reshape(v[1], [rows * columns])?;
            let copied = tape.record_one(Copy, &[flat])?;
            let b = tape.reshape(copied, shape)?;
            let sum = tape.record_one(Add, &[v[0], b])?;
            Ok(vec![out("y", tape.record_one(Add, &[sum, v[0]])?)])
        })
        .input("a", shape, random.normals(rows * columns, 1.0))
        .input("b", shape, random.normals(rows * columns, 1.0));
        check(&case, seed);
    }
}
