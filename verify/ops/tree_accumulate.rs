//! Sums of parts that come one after the other, in a balanced binary tree.

use keel::ops::{MICRO_BATCH_INDEX, tree_accumulate};
use keel::ranks::order::{partial_sums, tree_sum};
use keel::tape::{ParameterLayout, Tape};
use keel::tensor::TensorType;

use crate::harness::{Case, Random, aux, check, on_every_executor};

#[test]
fn a_part_is_added_to_what_waits_as_the_reference_does() {
    let mut random = Random::new(6);
    for (count, index, n) in [
        (2, 0, 5),
        (2, 1, 8),
        (8, 3, 1030),
        (8, 6, 64),
        (8, 7, 37),
        (6, 5, 40),
        (7, 6, 4),
        (5, 4, 33),
    ] {
        let levels = partial_sums(count);
        let case = Case::new(
            format!("part {index} of {count}, {n} numbers"),
            move |tape, v| {
                let [sum, waiting] = tree_accumulate(tape, [v[0], v[1], v[2]], count)?;
                Ok(vec![aux("sum", sum), aux("waiting", waiting)])
            },
        )
        .constant("part", [n], random.normals(n, 1.0))
        .constant("waits", [levels * n], random.normals(levels * n, 1.0))
        .integers("index", [1], vec![index])
        .in_f32_only();
        check(&case, 1);
    }
}

#[test]
fn parts_that_come_one_by_one_add_to_the_bits_of_the_tree_on_every_executor() {
    let n = 37;
    for count in [1, 2, 3, 4, 5, 6, 7, 8, 11, 16] {
        let parts: Vec<Vec<f32>> = (0..count)
            .map(|part| Random::new(part as u64).normals(n, 1e4))
            .collect();
        let want: Vec<f32> = (0..n)
            .map(|i| tree_sum(parts.iter().map(|part| part[i])).unwrap())
            .collect();
        let record = || {
            let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
            let part = tape.input("part", TensorType::f32([n]));
            let waiting = tape.cached([partial_sums(count) * n]);
            let index = tape.input(MICRO_BATCH_INDEX, TensorType::i32([1]));
            let place = tape.values()[waiting.index()].storage;
            let [sum, after] = tree_accumulate(&mut tape, [part, waiting, index], count).unwrap();
            let keel::tape::Storage::Fixed(arena, offset) = place else {
                unreachable!("it is kept from run to run")
            };
            tape.bind(after, arena, offset);
            tape.output(sum, "sum");
            tape
        };
        // The first computes in f64, where the order cannot be seen in f32 bits. Twice: nothing of a sum is left for the next.
        for mut session in on_every_executor(record).into_iter().skip(1) {
            for _ in 0..2 {
                for (index, part) in parts.iter().enumerate() {
                    session.write_f32("part", part).unwrap();
                    session
                        .write_i32(MICRO_BATCH_INDEX, &[index as i32])
                        .unwrap();
                    session.run().unwrap();
                }
                assert_eq!(session.read_f32("sum").unwrap(), want, "{count} parts");
            }
        }
    }
}

#[test]
fn what_does_not_fit_the_number_of_parts_is_refused() {
    let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
    let part = tape.input("part", TensorType::f32([10]));
    let waiting = tape.input("waiting", TensorType::f32([20]));
    let index = tape.input("index", TensorType::i32([1]));
    let problem = tree_accumulate(&mut tape, [part, waiting, index], 8).unwrap_err();
    let want = "tree_accumulate: what waits must be f32 [30], but is f32 [20]";
    assert!(problem.to_string().starts_with(want), "{problem}");
}
