//! The fused next-token loss and the fused argmax: ragged vocabularies, ignored rows, weightings, tied accumulation.

use keel::ops::{linear_argmax, linear_cross_entropy};
use keel::tape::Tape;
use keel::tensor::TensorType;
use proptest::prelude::*;

use crate::harness::{Case, Golden, Random, aux, check, check_golden, on_every_executor, out};

fn case(n: usize, d: usize, v: usize, ignored: f64, random: &mut Random) -> Case {
    let targets = (0..n)
        .map(|_| {
            if random.uniform() < ignored {
                -100
            } else {
                random.below(v) as i32
            }
        })
        .collect();
    let weights = (0..n).map(|_| 0.1 + random.uniform() as f32).collect();
    Case::new(format!("{n} rows, width {d}, {v} words"), |tape, x| {
        Ok(vec![out(
            "loss",
            linear_cross_entropy(tape, x[0], x[1], x[2], x[3])?,
        )])
    })
    .input("hidden", [n, d], random.normals(n * d, 1.0))
    .input("weight", [v, d], random.normals(v * d, 0.5))
    .integers("targets", [n], targets)
    .constant("weights", [n], weights)
    .rounds_operands()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    #[test]
    fn loss_and_gradients_match_the_reference(
        n in 1usize..70, d in 1usize..40, v in 2usize..90, ignored in 0.0f64..0.7, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let case = case(n, d, v, ignored, &mut random);
        // A loss whose every row is ignored is zero, and so are its gradients.
        check(&case.without_wrong_answers(), seed);
    }

    #[test]
    fn the_likeliest_word_matches_the_reference(
        n in 1usize..40, d in 1usize..40, v in 1usize..600, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let case = Case::new("argmax", |tape, x| {
            Ok(vec![aux("next", linear_argmax(tape, x[0], x[1])?)])
        })
        .input("hidden", [n, d], random.normals(n * d, 1.0))
        .input("weight", [v, d], random.normals(v * d, 1.0));
        check(&case, seed);
    }
}

#[test]
fn loss_matches_across_tile_borders_and_refuses_wrong_answers() {
    let mut random = Random::new(3);
    check(&case(300, 16, 530, 0.4, &mut random), 3);
}

/// Two losses through one matrix, whose gradients are summed. Where one of hidden states and matrix is frozen, the other's gradient
/// is an op of its own.
#[test]
fn both_gradients_and_either_alone_match_the_reference_and_are_summed() {
    for (hidden_is_frozen, weight_is_frozen) in [(false, false), (false, true), (true, false)] {
        let mut random = Random::new(5);
        let (n, d, v) = (40, 24, 150);
        let targets = |random: &mut Random| (0..n).map(|_| random.below(v) as i32 - 9).collect();
        let mut case = Case::new("two losses", |tape, x| {
            let first = linear_cross_entropy(tape, x[0], x[1], x[2], x[3])?;
            let second = linear_cross_entropy(tape, x[0], x[1], x[4], x[5])?;
            Ok(vec![out("first", first), out("second", second)])
        })
        .rounds_operands();
        for (name, shape, is_frozen) in [
            ("hidden", [n, d], hidden_is_frozen),
            ("weight", [v, d], weight_is_frozen),
        ] {
            let values = random.normals(shape[0] * shape[1], 0.7);
            case = if is_frozen {
                case.constant(name, shape, values)
            } else {
                case.input(name, shape, values)
            };
        }
        for (targets_name, weights_name) in [("targets", "weights"), ("others", "other weights")] {
            let weights = (0..n).map(|_| 0.1 + random.uniform() as f32).collect();
            case = case
                .integers(targets_name, [n], targets(&mut random))
                .constant(weights_name, [n], weights);
        }
        // A number that owes no gradient is f32 in every program, and both operands are of one type.
        if hidden_is_frozen || weight_is_frozen {
            case = case.in_f32_only();
        }
        check(&case, 5);
    }
}

#[test]
fn a_batch_without_supervised_rows_has_loss_and_gradient_zero() {
    let mut random = Random::new(4);
    check(&case(9, 8, 12, 1.1, &mut random).without_wrong_answers(), 4);
}

#[test]
fn a_target_past_the_vocabulary_makes_the_loss_nan() {
    let record = || {
        let mut tape = Tape::new(Default::default(), |_| false);
        let hidden = tape.input("hidden", TensorType::f32([2, 4]));
        let weight = tape.input("weight", TensorType::f32([3, 4]));
        let targets = tape.input("targets", TensorType::i32([2]));
        let weights = tape.input("weights", TensorType::f32([2]));
        let loss = linear_cross_entropy(&mut tape, hidden, weight, targets, weights).unwrap();
        tape.output(loss, "loss");
        tape
    };
    for mut session in on_every_executor(record) {
        session.write_f32("hidden", &[0.5; 8]).unwrap();
        session.write_f32("weight", &[0.5; 12]).unwrap();
        session.write_i32("targets", &[1, 3]).unwrap();
        session.write_f32("weights", &[1.0, 1.0]).unwrap();
        session.run().unwrap();
        assert!(session.read_f64("loss").unwrap()[0].is_nan());
    }
}

#[test]
fn losses_match_pytorch() {
    for golden in Golden::open("op_linear_cross_entropy").cases() {
        let case = Case::new(golden.name.clone(), |tape, x| {
            Ok(vec![out(
                "loss",
                linear_cross_entropy(tape, x[0], x[1], x[2], x[3])?,
            )])
        })
        .input(
            "hidden",
            golden.shape("input.hidden"),
            golden.f32s("input.hidden"),
        )
        .input(
            "weight",
            golden.shape("input.weight"),
            golden.f32s("input.weight"),
        )
        .integers(
            "targets",
            golden.shape("input.targets"),
            golden.integers("input.targets").to_vec(),
        )
        .constant(
            "weights",
            golden.shape("value.weights"),
            golden.f32s("value.weights"),
        );
        check_golden(&case, &golden);
    }
}
