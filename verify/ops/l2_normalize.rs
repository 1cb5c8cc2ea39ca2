//! Rows divided by their length.

use keel::ops::l2_normalize;
use keel::tape::{Add, ParameterLayout, Tape};
use keel::tensor::TensorType;
use proptest::prelude::*;

use crate::harness::{Case, Golden, Random, check, check_golden, out};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn l2_normalize_matches_the_reference(
        rows in 1usize..40, width in 1usize..70, scale in -2i32..3, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let x = random.normals(rows * width, 10f64.powi(scale));
        let case = Case::new("l2_normalize", |tape, v| {
            // Added first, so that the result may take the sum's place.
            let x = tape.record_one(Add, &[v[0], v[0]])?;
            Ok(vec![out("y", l2_normalize(tape, x, 1e-12)?)])
        })
        .input("x", [rows, width], x)
        .without_wrong_answers();
        check(&case, seed);
    }
}

#[test]
fn l2_normalize_in_every_width_of_its_kernels_matches_the_reference() {
    for (rows, width) in [(9, 512), (3, 513), (3, 2048), (2, 2049), (2, 2056)] {
        let mut random = Random::new(width as u64);
        let case = Case::new("every width", |tape, v| {
            Ok(vec![out("y", l2_normalize(tape, v[0], 1e-12)?)])
        })
        .input("x", [rows, width], random.normals(rows * width, 1.0));
        check(&case, width as u64);
    }
}

#[test]
fn l2_normalize_divides_short_rows_by_epsilon() {
    let mut random = Random::new(1);
    let mut x = random.normals(4 * 9, 1.0);
    x[9..18].iter_mut().for_each(|x| *x *= 1e-3);
    x[18..27].fill(0.0);
    let case = Case::new("l2_normalize with a large epsilon", |tape, v| {
        Ok(vec![out("y", l2_normalize(tape, v[0], 0.1)?)])
    })
    .input("x", [2, 2, 9], x);
    check(&case, 1);
}

#[test]
fn l2_normalize_holds_rows_whose_squares_leave_the_range_of_f32() {
    let mut random = Random::new(2);
    let mut x = random.normals(3 * 11, 1.0);
    x[..11].iter_mut().for_each(|x| *x *= 1e25);
    x[11..22].iter_mut().for_each(|x| *x *= 1e-25);
    x[22..].fill(1e4);
    let case = Case::new("l2_normalize of huge and tiny rows", |tape, v| {
        Ok(vec![out("y", l2_normalize(tape, v[0], 1e-30)?)])
    })
    .constant("x", [3, 11], x);
    check(&case, 2);
}

#[test]
fn l2_normalize_matches_pytorch() {
    let golden = &Golden::open("op_l2_normalize").cases()[0];
    let case = Case::new(&golden.name, |tape, v| {
        Ok(vec![out("y", l2_normalize(tape, v[0], 1e-12)?)])
    })
    .input("x", golden.shape("input.x"), golden.f32s("input.x"));
    check_golden(&case, golden);
}

#[test]
fn l2_normalize_refuses_integers_and_a_bad_epsilon() {
    let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
    let x = tape.input("x", TensorType::f32([2, 3]));
    let ids = tape.input("ids", TensorType::i32([2, 3]));
    assert!(l2_normalize(&mut tape, ids, 1e-12).is_err());
    for epsilon in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(l2_normalize(&mut tape, x, epsilon).is_err(), "{epsilon}");
    }
}
