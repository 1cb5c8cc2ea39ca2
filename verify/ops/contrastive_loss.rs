//! Contrastive losses: both forms, ragged batches across tile borders, the largest scale, masks, gradients of everything.

use std::sync::Arc;

use keel::executor::simt::Options;
use keel::executor::{CpuExecutor, Executor, ReferenceExecutor, SimtExecutor};
use keel::launch::Argument;
use keel::ops::{
    Contrastive, ContrastiveMask, contrastive_loss, contrastive_loss_in_row_blocks, l2_normalize,
    weighted_sum,
};
use keel::program::{CompileOptions, Program};
use keel::tape::{Instruction, ParameterLayout, Tape, Target, Value};
use keel::tensor::{DType, TensorType};
use proptest::prelude::*;

use crate::harness::{Case, Golden, Random, check, check_golden, check_on_gpu, gpu, out};

/// Raw features, so that the gradient also goes through normalisation.
fn case(kind: Contrastive, n: usize, e: usize, log_scale: f32, random: &mut Random) -> Case {
    let case = Case::new(
        format!("{kind:?} of {n} pairs, width {e}"),
        move |tape, v| {
            let image = l2_normalize(tape, v[0], 1e-12)?;
            let text = l2_normalize(tape, v[1], 1e-12)?;
            let (features, mask) = ([image, text, v[2]], ContrastiveMask::default());
            let loss = contrastive_loss(tape, features, v.get(3).copied(), mask, kind)?;
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

/// Which scores a case leaves out; all `None` is a loss without a mask.
#[derive(Clone, Default)]
struct Masked {
    /// How many rows are pairs, the first.
    pairs: Option<i32>,
    /// Of the images and of the texts.
    identities: Option<[Vec<i32>; 2]>,
}

impl Masked {
    fn pairs(pairs: i32) -> Masked {
        Masked {
            pairs: Some(pairs),
            ..Masked::default()
        }
    }

    fn identities(images: Vec<i32>, texts: Vec<i32>) -> Masked {
        Masked {
            identities: Some([images, texts]),
            ..Masked::default()
        }
    }

    /// The mask of a loss whose inputs for it are `values`, as [`Masked::inputs`] adds them to a case.
    fn of(&self, values: &[Value]) -> ContrastiveMask {
        let (pairs, identities) = values.split_at(usize::from(self.pairs.is_some()));
        ContrastiveMask {
            pairs: pairs.first().copied(),
            identities: self
                .identities
                .as_ref()
                .map(|_| [identities[0], identities[1]]),
        }
    }

    fn inputs(self, mut case: Case) -> Case {
        if let Some(pairs) = self.pairs {
            case = case.integers("pairs", [1], vec![pairs]);
        }
        if let Some([images, texts]) = self.identities {
            let n = images.len();
            case = case.integers("image_identities", [n], images).integers(
                "text_identities",
                [n],
                texts,
            );
        }
        case
    }
}

/// Features as they are given, so that nothing but this op runs: every element of both gradients is seen.
fn bare(kind: Contrastive, n: usize, e: usize, random: &mut Random) -> Case {
    in_row_blocks(kind, [n, e], Masked::default(), usize::MAX, random)
}

/// As [`bare`], with what `masked` leaves out, in blocks of at most `rows` rows.
fn in_row_blocks(
    kind: Contrastive,
    [n, e]: [usize; 2],
    masked: Masked,
    rows: usize,
    random: &mut Random,
) -> Case {
    let length = (e as f64).sqrt().recip();
    let of = masked
        .pairs
        .map_or(String::new(), |pairs| format!("the first {pairs} of "));
    let equal = match masked.identities {
        Some(_) => ", some of them equal",
        None => "",
    };
    let recorded = masked.clone();
    let case = Case::new(
        format!("{kind:?} of {of}{n} bare pairs{equal}, width {e}"),
        move |tape, v| {
            let (features, rest) = ([v[0], v[1], v[2]], &v[3..]);
            let (bias, rest) = match kind {
                Contrastive::InfoNce => (None, rest),
                Contrastive::Sigmoid => (Some(rest[0]), &rest[1..]),
            };
            let mask = recorded.of(rest);
            let loss = contrastive_loss_in_row_blocks(tape, features, bias, mask, kind, rows)?;
            Ok(vec![out("loss", loss)])
        },
    )
    .input("image", [n, e], random.normals(n * e, length))
    .input("text", [n, e], random.normals(n * e, length))
    .input("log_scale", [1], vec![1.5])
    .rounds_operands();
    masked.inputs(match kind {
        Contrastive::InfoNce => case,
        Contrastive::Sigmoid => case.input("bias", [1], vec![-1.0]),
    })
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
fn many_row_blocks_of_scores_add_up_to_the_whole() {
    let mut random = Random::new(9);
    for kind in [Contrastive::InfoNce, Contrastive::Sigmoid] {
        // Three blocks, the last ragged.
        let all = Masked::default();
        check(&in_row_blocks(kind, [260, 8], all, 128, &mut random), 9);
    }
}

#[test]
fn only_the_first_rows_are_contrasted_where_the_others_are_no_pairs() {
    let mut random = Random::new(10);
    for kind in [Contrastive::InfoNce, Contrastive::Sigmoid] {
        // All, a part of a tile, a whole tile of two, one row block of two and none of the other.
        for ([n, e], pairs) in [([9, 8], 9), ([21, 12], 5), ([200, 8], 128), ([150, 8], 3)] {
            let first = Masked::pairs(pairs);
            check(&in_row_blocks(kind, [n, e], first, 128, &mut random), 10);
        }
    }
}

/// Numbers for `n` rows of which one in `every` is like the next one of those, in groups of two; the others are like none.
fn some_equal(n: usize, every: usize, first: usize) -> Vec<i32> {
    let row = |row: usize| {
        if row % every == first {
            1 + (row / every / 2) as i32
        } else {
            0
        }
    };
    (0..n).map(row).collect()
}

/// The names of what a session of [`in_session`] gives.
const FOUND: [&str; 5] = [
    "loss",
    "gradient.image",
    "gradient.text",
    "gradient.scale",
    "gradient.bias",
];

/// Loss, gradients of both features, of the scale and of the bias of f32 features on an executor.
fn in_session(
    executor: &dyn Executor,
    target: Target,
    kind: Contrastive,
    rows: [&[f64]; 2],
    e: usize,
    masked: &Masked,
) -> [Vec<f64>; 5] {
    let n = rows[0].len() / e;
    let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
    let sides = ["image", "text"];
    let [image, text] = sides.map(|side| tape.input_with_gradient(side, TensorType::f32([n, e])));
    let [scale, bias] =
        ["scale", "bias"].map(|name| tape.input_with_gradient(name, TensorType::f32([1])));
    let pairs = masked
        .pairs
        .map(|_| tape.input("pairs", TensorType::i32([1])));
    let identities = masked
        .identities
        .as_ref()
        .map(|_| ["images", "texts"].map(|name| tape.input(name, TensorType::i32([n]))));
    let own_bias = (kind == Contrastive::Sigmoid).then_some(bias);
    let features = [image, text, scale];
    let mask = ContrastiveMask { pairs, identities };
    let loss = contrastive_loss(&mut tape, features, own_bias, mask, kind);
    // The bias has a part in the sum, so that it has a gradient in both forms.
    let loss = weighted_sum(&mut tape, &[(loss.unwrap(), 1.0), (bias, 1.0)]).unwrap();
    tape.output(loss, "loss");
    tape.backward(loss).unwrap();
    let program = Program::compile(tape, &CompileOptions::new(target)).unwrap();
    let mut session = executor.load(Arc::new(program)).unwrap();
    for (side, rows) in sides.iter().zip(rows) {
        session.write_f64(side, rows).unwrap();
    }
    session.write_f64("scale", &[1.5]).unwrap();
    session.write_f64("bias", &[-1.0]).unwrap();
    if let Some(pairs) = masked.pairs {
        session.write_i32("pairs", &[pairs]).unwrap();
    }
    if let Some([images, texts]) = &masked.identities {
        session.write_i32("images", images).unwrap();
        session.write_i32("texts", texts).unwrap();
    }
    session.run().unwrap();
    FOUND.map(|name| session.read_f64(name).unwrap())
}

/// Loss and gradients of the features `rows` in f64.
fn in_f64(kind: Contrastive, rows: [&[f64]; 2], e: usize, masked: &Masked) -> [Vec<f64>; 5] {
    let executor = ReferenceExecutor::new(0);
    in_session(&executor, Target::Reference, kind, rows, e, masked)
}

/// The executors of f32: the processor, and the kernels on the emulator where they were built and on the GPU where there is
/// one.
fn executors_of_f32() -> Vec<(Box<dyn Executor>, Target)> {
    let cpu = CpuExecutor::new(0, 3).expect("three threads");
    let mut all: Vec<(Box<dyn Executor>, Target)> =
        vec![(Box::new(cpu), Target::Cpu { threads: 3 })];
    if let Ok(simt) = SimtExecutor::new(0, Options::default()) {
        all.push((Box::new(simt), Target::Cuda));
    }
    if let Some(gpu) = gpu() {
        all.push((Box::new(gpu.executor(0)), Target::Cuda));
    }
    all
}

/// `n` rows of `e` features for each side.
fn features(n: usize, e: usize, seed: u64) -> [Vec<f64>; 2] {
    let mut random = Random::new(seed);
    [(); 2].map(|()| {
        let values = random.normals(n * e, 0.4);
        values.into_iter().map(f64::from).collect()
    })
}

#[test]
fn rows_that_are_no_pairs_change_nothing_and_get_no_gradient() {
    let (n, e) = (7, 6);
    let [image, text] = features(n, e, 11);
    for kind in [Contrastive::InfoNce, Contrastive::Sigmoid] {
        for pairs in [0, 1, 4, 7] {
            let end = pairs * e;
            let masked = Masked::pairs(pairs as i32);
            let found = in_f64(kind, [&image, &text], e, &masked);
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
            let alone = [&image[..end], &text[..end]];
            let alone = in_f64(kind, alone, e, &Masked::default());
            for (found, alone) in found.iter().zip(&alone) {
                let (found, others) = found.split_at(alone.len());
                assert_eq!(found, alone, "{kind:?} of {pairs} pairs");
                assert!(others.iter().all(|gradient| *gradient == 0.0));
            }
        }
    }
}

#[test]
fn equal_rows_are_masked_in_every_executor() {
    let mut random = Random::new(12);
    for kind in [Contrastive::InfoNce, Contrastive::Sigmoid] {
        for (n, e) in [(9, 8), (70, 40), (150, 9)] {
            let none = || vec![0; n];
            // Texts, images, and both: some rows share their image with one row and their text with another.
            for (images, texts) in [
                (none(), some_equal(n, 3, 0)),
                (some_equal(n, 4, 1), none()),
                (some_equal(n, 2, 0), some_equal(n, 3, 0)),
            ] {
                let masked = Masked::identities(images, texts);
                check(&in_row_blocks(kind, [n, e], masked, 128, &mut random), 12);
            }
        }
        // Most of the batch says one of two things, as answers do; and of it only the first rows are pairs.
        let n = 140;
        let answers: Vec<i32> = (0..n).map(|row| [1, 2, 1, 2, 0][row % 5]).collect();
        for pairs in [None, Some(131), Some(40)] {
            let masked = Masked {
                pairs,
                ..Masked::identities(some_equal(n, 7, 2), answers.clone())
            };
            check(&in_row_blocks(kind, [n, 8], masked, 128, &mut random), 13);
        }
    }
}

/// The formulas once more, written down score by score: a masked score is in no sum.
fn by_definition(
    kind: Contrastive,
    [u, v]: [&[f64]; 2],
    e: usize,
    m: usize,
    [images, texts]: [&[i32]; 2],
) -> f64 {
    let score = |i: usize, j: usize| -> f64 {
        let products = (0..e).map(|k| u[i * e + k] * v[j * e + k]);
        1.5f64.exp() * products.sum::<f64>()
    };
    let counts = |i: usize, j: usize| {
        let is_shared = |rows: &[i32]| rows[i] > 0 && rows[i] == rows[j];
        i == j || !(is_shared(images) || is_shared(texts))
    };
    let mut loss = 0.0;
    for i in 0..m {
        let (mut row, mut column) = (0.0, 0.0);
        for j in (0..m).filter(|j| counts(i, *j)) {
            row += score(i, j).exp();
            column += score(j, i).exp();
            if kind == Contrastive::Sigmoid {
                let sign = if i == j { 1.0 } else { -1.0 };
                loss += (-sign * (score(i, j) - 1.0)).exp().ln_1p() / m as f64;
            }
        }
        if kind == Contrastive::InfoNce {
            loss += (row.ln() + column.ln() - 2.0 * score(i, i)) / (2 * m) as f64;
        }
    }
    loss
}

#[test]
fn a_masked_loss_is_that_of_its_definition() {
    let (n, e) = (12, 5);
    let [image, text] = features(n, e, 14);
    let (images, texts) = (some_equal(n, 2, 0), some_equal(n, 3, 0));
    for kind in [Contrastive::InfoNce, Contrastive::Sigmoid] {
        for m in [n, 7] {
            let masked = Masked {
                pairs: Some(m as i32),
                ..Masked::identities(images.clone(), texts.clone())
            };
            let want = by_definition(kind, [&image, &text], e, m, [&images, &texts]);
            let none = vec![0; n];
            let unmasked = by_definition(kind, [&image, &text], e, m, [&none, &none]);
            assert!((want - unmasked).abs() > 1e-2, "the mask matters here");
            // The loss of the test has the bias, −1, beside it.
            let found = in_f64(kind, [&image, &text], e, &masked)[0][0] + 1.0;
            assert!(
                (found - want).abs() < 1e-12,
                "{kind:?}: {found}, not {want}"
            );
        }
    }
}

#[test]
fn identities_that_are_all_different_change_no_bit() {
    let (n, e) = (133, 12);
    let [image, text] = features(n, e, 15);
    let numbers: Vec<i32> = (1..=n as i32).collect();
    for kind in [Contrastive::InfoNce, Contrastive::Sigmoid] {
        for (executor, target) in executors_of_f32() {
            let bits = |masked: &Masked| {
                let found = in_session(&*executor, target, kind, [&image, &text], e, masked);
                found.map(|values| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
            };
            let plain = bits(&Masked::default());
            for numbers in [vec![0; n], numbers.clone()] {
                let masked = Masked::identities(numbers.clone(), numbers);
                assert!(bits(&masked) == plain, "{kind:?} for {target:?}");
            }
        }
    }
}

#[test]
fn a_batch_of_equal_rows_has_nothing_to_contrast() {
    for (n, e) in [(6, 4), (133, 8)] {
        let sides = features(n, e, 16);
        let [image, text] = [&sides[0][..], &sides[1][..]];
        for (images, texts) in [(1, 0), (0, 1), (1, 1)] {
            let masked = Masked::identities(vec![images; n], vec![texts; n]);
            let exact = in_f64(Contrastive::InfoNce, [image, text], e, &masked);
            assert_eq!(exact[0], [-1.0], "a loss of 0, and the bias beside it");
            assert!(exact[1..4].iter().flatten().all(|x| *x == 0.0));
            for (executor, target) in executors_of_f32() {
                let kind = Contrastive::InfoNce;
                let found = in_session(&*executor, target, kind, [image, text], e, &masked);
                let limit = match target {
                    // Its log-sums and its diagonal are the same numbers.
                    Target::Cuda => 0.0,
                    _ => rounding_of_scores([image, text], e),
                };
                let most = found[1..4]
                    .iter()
                    .flatten()
                    .fold(0.0f64, |m, x| m.max(x.abs()));
                assert!(
                    (found[0][0] + 1.0).abs() <= limit,
                    "{target:?}: {}",
                    found[0][0]
                );
                assert!(most <= limit, "{target:?}: a gradient of {most}");
            }
        }
    }
    // What is left of the sigmoid loss is its diagonal, in which every pair is a positive.
    let n = 133;
    let masked = Masked::identities(vec![0; n], vec![1; n]);
    let mut random = Random::new(17);
    let case = in_row_blocks(Contrastive::Sigmoid, [n, 8], masked, 128, &mut random);
    check(&case, 17);
}

/// How far a score in f32 may be from the same one, summed in another order, times the largest score or scale that a loss or
/// a gradient multiplies it with.
fn rounding_of_scores([image, text]: [&[f64]; 2], e: usize) -> f64 {
    let scale = 1.5f64.exp();
    let products = image.chunks(e).zip(text.chunks(e)).map(|(u, v)| {
        let products = u.iter().zip(v).map(|(u, v)| (u * v).abs());
        scale * products.sum::<f64>()
    });
    let most = products.fold(scale, f64::max);
    // Rounded products, their sums, and the scale; in each of two scores.
    2.0 * (e + 2) as f64 * f64::from(f32::EPSILON) * most * most
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
        ContrastiveMask::default(),
        Contrastive::InfoNce,
    );
    tape.backward(loss.unwrap()).unwrap();
    tape
}

#[test]
fn row_blocks_of_scores_cover_every_row_once_and_never_hold_all_pairs() {
    for n in [1, 2, 128, 129, 300, 1024, 5000, 32_768, 100_001] {
        let tape = recorded(n, 8);
        let forward = &tape.instructions()[0];
        let [inputs, outputs] = forward.types(tape.values());
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
            // The last five arguments: pairs, those of a rank, width, first row, rows.
            let numbers: Vec<i32> = launch.arguments.iter().filter_map(number).collect();
            let [pairs, share, 8, first, rows] = numbers[..] else {
                panic!("{numbers:?}");
            };
            assert_eq!([pairs, share].map(|count| count as usize), [n; 2]);
            assert_eq!(first as usize, next);
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
            let [inputs, outputs] = step.types(tape.values());
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
fn losses_of_large_batches_match_the_reference_on_a_gpu() {
    // As many pairs as make the products of the gradients take the large kernels.
    let mut random = Random::new(37);
    let kind = Contrastive::InfoNce;
    check_on_gpu(&case(kind, 1700, 24, 1.0, &mut random), 37);
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
            let (features, mask) = ([image, text, v[2]], ContrastiveMask::default());
            let loss = contrastive_loss(tape, features, v.get(3).copied(), mask, kind)?;
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
    let rows = tape.input("rows", TensorType::i32([4]));
    let all = ContrastiveMask::default();
    let mut refusal = |features: [Value; 3], mask: ContrastiveMask, kind: Contrastive| {
        let refused = contrastive_loss(&mut tape, features, None, mask, kind);
        refused.unwrap_err().to_string()
    };
    let problem = refusal([image, text, scale], all, Contrastive::InfoNce);
    assert!(problem.contains("text must be"), "{problem}");
    let features = [image, image, scale];
    let problem = refusal(features, all, Contrastive::Sigmoid);
    assert!(problem.contains("4 values"), "{problem}");
    let pairs = ContrastiveMask {
        pairs: Some(scale),
        ..all
    };
    let problem = refusal(features, pairs, Contrastive::InfoNce);
    assert!(problem.contains("pairs must be i32 [1]"), "{problem}");
    let identities = ContrastiveMask {
        identities: Some([rows, scale]),
        ..all
    };
    let problem = refusal(features, identities, Contrastive::InfoNce);
    assert!(
        problem.contains("text identities must be i32 [4]"),
        "{problem}"
    );
}
