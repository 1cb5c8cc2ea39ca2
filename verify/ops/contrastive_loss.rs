//! Contrastive losses: both forms, ragged batches across tile borders, the largest scale, gradients of everything.

use std::sync::Arc;

use keel::executor::{Executor, ReferenceExecutor};
use keel::launch::Argument;
use keel::ops::{
    Contrastive, contrastive_loss, contrastive_loss_in_strips, l2_normalize, weighted_sum,
};
use keel::program::{CompileOptions, Program};
use keel::tape::{Instruction, ParameterLayout, Tape, Target};
use keel::tensor::{DType, TensorType};
use proptest::prelude::*;

use crate::harness::{Case, Golden, Random, check, check_golden, out};

/// Raw features, so that the gradient also goes through normalisation.
fn case(kind: Contrastive, n: usize, e: usize, log_scale: f32, random: &mut Random) -> Case {
    let case = Case::new(
        format!("{kind:?} of {n} pairs, width {e}"),
        move |tape, v| {
            let image = l2_normalize(tape, v[0], 1e-12)?;
            let text = l2_normalize(tape, v[1], 1e-12)?;
            let loss = contrastive_loss(tape, [image, text, v[2]], v.get(3).copied(), None, kind)?;
            Ok(vec![out("loss", loss)])
        },
    )
    .input("image", [n, e], random.normals(n * e, 1.0))
    .input("text", [n, e], random.normals(n * e, 1.0))
    .input("log_scale", [1], vec![log_scale]);
    match kind {
        Contrastive::InfoNce => case,
        Contrastive::Sigmoid => case.input("bias", [1], vec![-1.5]),
    }
}

/// Features as they are given, so that nothing but this op runs: every element of both gradients is seen.
fn bare(kind: Contrastive, n: usize, e: usize, random: &mut Random) -> Case {
    in_strips(kind, [n, e], None, usize::MAX, random)
}

/// As [`bare`], of which the first `pairs` are pairs, in strips of at most `rows` rows.
fn in_strips(
    kind: Contrastive,
    [n, e]: [usize; 2],
    pairs: Option<i32>,
    rows: usize,
    random: &mut Random,
) -> Case {
    let length = (e as f64).sqrt().recip();
    let of = pairs.map_or(String::new(), |pairs| format!("the first {pairs} of "));
    let case = Case::new(
        format!("{kind:?} of {of}{n} bare pairs, width {e}"),
        move |tape, v| {
            let (features, rest) = ([v[0], v[1], v[2]], &v[3..]);
            let (bias, rest) = match kind {
                Contrastive::InfoNce => (None, rest),
                Contrastive::Sigmoid => (Some(rest[0]), &rest[1..]),
            };
            let count = rest.first().copied();
            let loss = contrastive_loss_in_strips(tape, features, bias, count, kind, rows)?;
            Ok(vec![out("loss", loss)])
        },
    )
    .input("image", [n, e], random.normals(n * e, length))
    .input("text", [n, e], random.normals(n * e, length))
    .input("log_scale", [1], vec![1.5])
    .rounds_operands();
    let case = match kind {
        Contrastive::InfoNce => case,
        Contrastive::Sigmoid => case.input("bias", [1], vec![-1.0]),
    };
    match pairs {
        None => case,
        Some(pairs) => case.integers("pairs", [1], vec![pairs]),
    }
}

#[test]
fn gradients_of_bare_features_match_for_whole_and_ragged_tiles() {
    let mut random = Random::new(8);
    for kind in [Contrastive::InfoNce, Contrastive::Sigmoid] {
        for (n, e) in [(2, 8), (70, 40), (131, 33)] {
            check(&bare(kind, n, e, &mut random), 8);
        }
    }
}

#[test]
fn many_strips_of_scores_add_up_to_the_whole() {
    let mut random = Random::new(9);
    for kind in [Contrastive::InfoNce, Contrastive::Sigmoid] {
        // Three strips, the last ragged.
        check(&in_strips(kind, [260, 8], None, 128, &mut random), 9);
    }
}

#[test]
fn only_the_first_rows_are_contrasted_where_the_others_are_no_pairs() {
    let mut random = Random::new(10);
    for kind in [Contrastive::InfoNce, Contrastive::Sigmoid] {
        // All, a part of a tile, a whole tile of two, one strip of two and none of the other.
        for ([n, e], pairs) in [([9, 8], 9), ([21, 12], 5), ([200, 8], 128), ([150, 8], 3)] {
            check(&in_strips(kind, [n, e], Some(pairs), 128, &mut random), 10);
        }
    }
}

/// Loss and gradients of the features `rows`, whose first `pairs` are pairs, in f64.
fn in_f64(kind: Contrastive, rows: [&[f64]; 2], e: usize, pairs: Option<i32>) -> [Vec<f64>; 5] {
    let n = rows[0].len() / e;
    let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
    let sides = ["image", "text"];
    let [image, text] = sides.map(|side| tape.input_with_gradient(side, TensorType::f32([n, e])));
    let [scale, bias] =
        ["scale", "bias"].map(|name| tape.input_with_gradient(name, TensorType::f32([1])));
    let count = pairs.map(|_| tape.input("pairs", TensorType::i32([1])));
    let own_bias = (kind == Contrastive::Sigmoid).then_some(bias);
    let features = [image, text, scale];
    let loss = contrastive_loss(&mut tape, features, own_bias, count, kind);
    // The bias has a part in the sum, so that it has a gradient in both forms.
    let loss = weighted_sum(&mut tape, &[(loss.unwrap(), 1.0), (bias, 1.0)]).unwrap();
    tape.output(loss, "loss");
    tape.backward(loss).unwrap();
    let program = Program::compile(tape, &CompileOptions::new(Target::Reference)).unwrap();
    let mut session = ReferenceExecutor::new(0).load(Arc::new(program)).unwrap();
    for (side, rows) in sides.iter().zip(rows) {
        session.write_f64(side, rows).unwrap();
    }
    session.write_f64("scale", &[1.5]).unwrap();
    session.write_f64("bias", &[-1.0]).unwrap();
    if let Some(pairs) = pairs {
        session.write_i32("pairs", &[pairs]).unwrap();
    }
    session.run().unwrap();
    [
        "loss",
        "gradient.image",
        "gradient.text",
        "gradient.scale",
        "gradient.bias",
    ]
    .map(|name| session.read_f64(name).unwrap())
}

#[test]
fn rows_that_are_no_pairs_change_nothing_and_get_no_gradient() {
    let (n, e) = (7, 6);
    let mut random = Random::new(11);
    let mut rows = || -> Vec<f64> {
        let values = random.normals(n * e, 0.4);
        values.into_iter().map(f64::from).collect()
    };
    let (image, text) = (rows(), rows());
    for kind in [Contrastive::InfoNce, Contrastive::Sigmoid] {
        for pairs in [0, 1, 4, 7] {
            let end = pairs * e;
            let found = in_f64(kind, [&image, &text], e, Some(pairs as i32));
            if pairs == 0 {
                assert_eq!(found[0], [-1.0], "{kind:?}: the loss of no pairs is 0");
                assert!(
                    found[1..4]
                        .iter()
                        .flatten()
                        .all(|gradient| *gradient == 0.0)
                );
                continue;
            }
            let alone = in_f64(kind, [&image[..end], &text[..end]], e, None);
            for (found, alone) in found.iter().zip(&alone) {
                let (found, others) = found.split_at(alone.len());
                assert_eq!(found, alone, "{kind:?} of {pairs} pairs");
                assert!(others.iter().all(|gradient| *gradient == 0.0));
            }
        }
    }
}

/// The loss of `n` pairs of `e` features in bf16 and its gradients, recorded and never run.
fn recorded(n: usize, e: usize) -> Tape {
    let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
    let features = TensorType {
        shape: [n, e].into(),
        dtype: DType::Bf16,
    };
    let [image, text] = ["image", "text"].map(|side| tape.input_with_gradient(side, features));
    let scale = tape.input_with_gradient("log_scale", TensorType::f32([1]));
    let loss = contrastive_loss(
        &mut tape,
        [image, text, scale],
        None,
        None,
        Contrastive::InfoNce,
    );
    tape.backward(loss.unwrap()).unwrap();
    tape
}

fn types(tape: &Tape, step: &Instruction) -> [Vec<TensorType>; 2] {
    [&step.inputs, &step.outputs].map(|values| values.iter().map(|v| tape.ty(*v)).collect())
}

#[test]
fn strips_of_scores_cover_every_row_once_and_never_hold_all_pairs() {
    for n in [1, 2, 128, 129, 300, 1024, 5000, 32_768, 100_001] {
        let tape = recorded(n, 8);
        let forward = &tape.instructions()[0];
        let [inputs, outputs] = types(&tape, forward);
        let launches = forward
            .op
            .launches(&inputs, &outputs, Target::Cuda.into())
            .unwrap();
        let mut next = 0;
        for launch in &launches {
            if !launch
                .kernel
                .name
                .starts_with("contrastive_loss_info_nce_forward")
            {
                continue;
            }
            // The last four arguments: pairs, width, first row, rows.
            let numbers: Vec<i32> = launch.arguments.iter().filter_map(number).collect();
            let [pairs, 8, first, rows] = numbers[..] else {
                panic!("{numbers:?}");
            };
            assert_eq!([pairs as usize, first as usize], [n, next]);
            assert!(rows > 0 && first % 128 == 0 && (n <= 128 || (rows as usize) < n));
            next += rows as usize;
        }
        assert_eq!(next, n);
    }
}

fn number(argument: &Argument) -> Option<i32> {
    match argument {
        Argument::I32(number) => Some(*number),
        _ => None,
    }
}

#[test]
fn memory_of_the_loss_grows_with_the_batch_and_not_with_its_square() {
    let bytes = |n| -> usize {
        let tape = recorded(n, 512);
        let of = |step: &Instruction| {
            let [inputs, outputs] = types(&tape, step);
            step.op.workspace(&inputs, &outputs, Target::Cuda.into())
        };
        tape.instructions().iter().map(of).sum()
    };
    let (once, eightfold) = (bytes(1 << 17), bytes(1 << 20));
    assert!(
        once > 0 && eightfold <= 8 * once,
        "{once} bytes become {eightfold}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn info_nce_matches_the_reference_at_any_size(n in 2usize..80, e in 1usize..40, seed: u64) {
        let mut random = Random::new(seed);
        check(&case(Contrastive::InfoNce, n, e + 1, 1.0, &mut random), seed);
    }

    #[test]
    fn sigmoid_matches_the_reference_at_any_size(n in 2usize..80, e in 1usize..40, seed: u64) {
        let mut random = Random::new(seed);
        check(&case(Contrastive::Sigmoid, n, e + 1, 1.0, &mut random), seed);
    }
}

#[test]
fn losses_match_across_tile_borders() {
    let mut random = Random::new(5);
    for kind in [Contrastive::InfoNce, Contrastive::Sigmoid] {
        check(&case(kind, 300, 8, 1.0, &mut random), 5);
    }
}

#[test]
fn the_largest_scale_does_not_overflow() {
    let mut random = Random::new(6);
    check(
        &case(Contrastive::InfoNce, 33, 12, 100.0f32.ln(), &mut random),
        6,
    );
}

#[test]
fn losses_match_pytorch() {
    for golden in Golden::open("op_contrastive").cases() {
        let kind = match golden.config["kind"].as_str() {
            Some("infonce") => Contrastive::InfoNce,
            _ => Contrastive::Sigmoid,
        };
        let mut case = Case::new(golden.name.clone(), move |tape, v| {
            let image = l2_normalize(tape, v[0], 1e-12)?;
            let text = l2_normalize(tape, v[1], 1e-12)?;
            let loss = contrastive_loss(tape, [image, text, v[2]], v.get(3).copied(), None, kind)?;
            Ok(vec![out("loss", loss)])
        });
        for name in ["image", "text", "log_scale", "bias"] {
            let key = format!("input.{name}");
            if golden.has(&key) {
                case = case.input(name, golden.shape(&key), golden.f32s(&key));
            }
        }
        // At the largest scale these pairs match to 1e-14: nothing of that is left in f32.
        if golden.name.ends_with("infonce_largest_scale") {
            case = case.in_f64_only();
        }
        check_golden(&case, &golden);
    }
}

#[test]
fn wrong_shapes_are_refused_by_name() {
    let mut tape = Tape::declaring();
    let image = tape.input("image", TensorType::f32([4, 8]));
    let text = tape.input("text", TensorType::f32([5, 8]));
    let scale = tape.input("scale", TensorType::f32([1]));
    let refused = contrastive_loss(
        &mut tape,
        [image, text, scale],
        None,
        None,
        Contrastive::InfoNce,
    );
    assert!(refused.unwrap_err().to_string().contains("text must be"));
    let refused = contrastive_loss(
        &mut tape,
        [image, image, scale],
        None,
        None,
        Contrastive::Sigmoid,
    );
    assert!(refused.unwrap_err().to_string().contains("4 values"));
    let features = [image, image, scale];
    let refused = contrastive_loss(&mut tape, features, None, Some(scale), Contrastive::InfoNce);
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("pairs must be i32 [1]")
    );
}
