//! Sums of parts in a balanced binary tree.

use keel::ops::tree_sum;
use keel::ranks::order;

use crate::harness::{Case, Random, check, on_every_executor, out};
use keel::tape::{ParameterLayout, Tape};
use keel::tensor::TensorType;

#[test]
fn sums_and_gradients_match_the_reference_for_every_count_of_parts() {
    let mut random = Random::new(3);
    for (parts, rows, columns) in [
        (1, 3, 5),
        (2, 1, 8),
        (3, 2, 7),
        (5, 1, 1030),
        (8, 2, 4),
        (13, 1, 9),
    ] {
        let elements = parts * rows * columns;
        let case = Case::new(
            format!("{parts} parts of {rows}×{columns}"),
            move |tape, v| Ok(vec![out("y", tree_sum(tape, v[0], parts)?)]),
        )
        .input("x", [parts * rows, columns], random.normals(elements, 1.0));
        check(&case, 1);
    }
}

#[test]
fn every_executor_adds_in_the_order_of_the_tree() {
    let (parts, n) = (11, 37);
    let x: Vec<f32> = Random::new(4).normals(parts * n, 1e4);
    let want: Vec<f32> = (0..n)
        .map(|i| order::tree_sum((0..parts).map(|part| x[part * n + i])).unwrap())
        .collect();
    let record = || {
        let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
        let x = tape.input("x", TensorType::f32([parts * n]));
        let y = tree_sum(&mut tape, x, parts).unwrap();
        tape.output(y, "y");
        tape
    };
    // The first computes in f64, where the order cannot be seen in f32 bits.
    for mut session in on_every_executor(record).into_iter().skip(1) {
        session.write_f32("x", &x).unwrap();
        session.run().unwrap();
        assert_eq!(session.read_f32("y").unwrap(), want);
    }
}

#[test]
fn parts_that_do_not_divide_are_refused() {
    let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
    let x = tape.input("x", TensorType::f32([10]));
    for parts in [0, 3, 2000] {
        let problem = tree_sum(&mut tape, x, parts).unwrap_err().to_string();
        assert!(
            problem.starts_with("tree_sum: x must be floats in a multiple of"),
            "{problem}"
        );
    }
}
