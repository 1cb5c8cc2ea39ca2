//! Products with a weight matrix: plain, with an activation, with a residual, and their gradients.

use std::sync::Arc;

use keel::error::Result;
use keel::launch::{Argument, Launch};
use keel::ops::{Activation, activation, linear, linear_activation, linear_residual};
use keel::program::{CompileOptions, Program};
use keel::tape::{Add, CompileTarget, ParameterLayout, Tape, Target, Tier, Value};
use keel::tensor::{DType, TensorType};
use proptest::prelude::*;

use crate::harness::{
    Case, Golden, Random, check, check_exact_on_gpu, check_golden, check_on_hopper, out,
};

const ACTIVATIONS: [Activation; 3] = [
    Activation::GeluErf,
    Activation::GeluTanh,
    Activation::GeluQuick,
];

/// An input that gives the product's rows a spread of about one whatever the inner length.
fn weights(random: &mut Random, outer: usize, inner: usize) -> Vec<f32> {
    random.normals(outer * inner, (inner as f64).powf(-0.5))
}

/// How often the tape recorded each op that matters here.
fn count(tape: &Tape, name: &str) -> usize {
    tape.instructions()
        .iter()
        .filter(|i| i.op.name() == name)
        .count()
}

fn empty_tape() -> Tape {
    Tape::new(Arc::new(ParameterLayout::default()), |_| false)
}

/// Of 67 tiles, the fewest for which the tier's kernel is chosen.
#[test]
fn linear_on_hopper_matches_the_reference() {
    let [rows, k, n] = [8450, 24, 40];
    let mut random = Random::new(3);
    let case = Case::new("linear_activation on Hopper", |tape, v| {
        let y = linear_activation(tape, v[0], v[1], Some(v[2]), Activation::GeluErf)?;
        Ok(vec![out("y", y)])
    })
    .input("x", [rows, k], random.normals(rows * k, 1.0))
    .input("weight", [n, k], weights(&mut random, n, k))
    .input("bias", [n], random.normals(n, 1.0));
    check_on_hopper(&case, "linear_forward_hopper_bf16", 3);
}

/// With the slope of an activation that makes dy, and with a gradient that is there already.
#[test]
fn the_input_gradient_on_hopper_matches_the_reference() {
    let [rows, k, n] = [8450, 40, 24];
    let mut random = Random::new(4);
    let case = Case::new("linear_backward_input on Hopper", |tape, v| {
        let hidden = activation(tape, v[0], Activation::GeluTanh)?;
        let (first, second) = (
            linear(tape, hidden, v[1], None)?,
            linear(tape, v[2], v[1], None)?,
        );
        let again = linear(tape, v[2], v[3], None)?;
        let sum = tape.record_one(Add, &[second, again])?;
        Ok(vec![out("y", tape.record_one(Add, &[first, sum])?)])
    })
    .input("z", [rows, k], random.normals(rows * k, 1.0))
    .input("weight", [n, k], weights(&mut random, n, k))
    .input("x", [rows, k], random.normals(rows * k, 1.0))
    .input("other_weight", [n, k], weights(&mut random, n, k));
    check_on_hopper(&case, "linear_backward_input_hopper_bf16", 4);
}

/// Of 34 tiles in two splits each, with db and without a gradient to add to.
#[test]
fn the_weight_gradient_on_hopper_matches_the_reference() {
    let [rows, k, n] = [512, 8, 4304];
    let mut random = Random::new(5);
    let case = Case::new("linear_backward_weight on Hopper", |tape, v| {
        Ok(vec![out("y", linear(tape, v[0], v[1], Some(v[2]))?)])
    })
    .input("x", [rows, k], random.normals(rows * k, 1.0))
    .input("weight", [n, k], weights(&mut random, n, k))
    .input("bias", [n], random.normals(n, 1.0));
    check_on_hopper(&case, "linear_backward_weight_hopper_bf16", 5);
}

/// Why a product keeps to the portable kernels: its type, its pitch, its size.
#[test]
fn products_that_the_hopper_tier_does_not_take_say_why() {
    let refusal = |rows: usize, k: usize, n: usize, precision: DType| {
        let mut tape = empty_tape().in_precision(precision);
        let [x, w] = [[rows, k], [n, k]].map(|shape| TensorType::new(precision, shape));
        let (x, w) = (tape.input("x", x), tape.input("w", w));
        let y = linear(&mut tape, x, w, None).expect("the shapes fit");
        tape.output(y, "y");
        let target = CompileTarget {
            target: Target::Cuda,
            precision,
            tier: Tier::Hopper,
        };
        let program = Program::compile(tape, &CompileOptions::new(target)).expect("it is planned");
        let instruction = &program.ops()[0].instruction;
        let [inputs, outputs] = instruction.types(program.values());
        let launches = instruction.op.launches(&inputs, &outputs, target);
        let kernel = launches.expect("there are kernels")[0].kernel.name;
        let refusal = instruction
            .op
            .keeps_portable(&inputs, &outputs, Tier::Hopper);
        assert_eq!(refusal.is_none(), kernel == "linear_forward_hopper_bf16");
        refusal
    };
    assert_eq!(refusal(8450, 64, 264, DType::Bf16), None);
    let cases = [
        ([8450, 64, 264], DType::F32, ["values of f32", "bf16"]),
        (
            [8450, 60, 264],
            DType::Bf16,
            ["inner length 60", "multiple of 8"],
        ),
        (
            [8450, 64, 260],
            DType::Bf16,
            ["columns 260", "multiple of 8"],
        ),
        (
            [4096, 64, 512],
            DType::Bf16,
            ["64 tiles of 4096 × 512", "132"],
        ),
    ];
    for ([rows, k, n], precision, says) in cases {
        let said = refusal(rows, k, n, precision).expect("it keeps to portable kernels");
        assert!(says.iter().all(|part| said.contains(part)), "{said}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn linear_matches_the_reference(
        batch in 1usize..4, tokens in 1usize..60, k in 1usize..50, n in 1usize..70,
        has_bias: bool, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let mut case = Case::new("linear", move |tape, v| {
            Ok(vec![out("y", linear(tape, v[0], v[1], v.get(2).copied())?)])
        })
        .input("x", [batch, tokens, k], random.normals(batch * tokens * k, 1.0))
        .input("weight", [n, k], weights(&mut random, n, k));
        if has_bias {
            case = case.input("bias", [n], random.normals(n, 1.0));
        }
        check(&case, seed);
    }

    #[test]
    fn linear_activation_matches_the_reference(
        rows in 1usize..150, k in 1usize..40, n in 1usize..50, form in 0usize..3,
        has_bias: bool, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let mut case = Case::new(format!("{:?}", ACTIVATIONS[form]), move |tape, v| {
            let bias = v.get(2).copied();
            let y = linear_activation(tape, v[0], v[1], bias, ACTIVATIONS[form])?;
            Ok(vec![out("y", y)])
        })
        .input("x", [rows, k], random.normals(rows * k, 2.0))
        .input("weight", [n, k], weights(&mut random, n, k));
        if has_bias {
            case = case.input("bias", [n], random.normals(n, 1.0));
        }
        check(&case, seed);
    }

    #[test]
    fn an_activation_of_a_sum_of_products_matches_the_reference(
        rows in 1usize..150, n in 1usize..50, form in 0usize..3, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let case = Case::new(format!("{:?} alone", ACTIVATIONS[form]), move |tape, v| {
            Ok(vec![out("y", activation(tape, v[0], ACTIVATIONS[form])?)])
        })
        .input("z", [rows, n], random.normals(rows * n, 2.0));
        check(&case, seed);
    }

    #[test]
    fn linear_residual_matches_the_reference(
        rows in 1usize..150, k in 1usize..40, n in 1usize..50, has_bias: bool, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let mut case = Case::new("linear_residual", move |tape, v| {
            // Added to itself first, so that the result may take the sum's place.
            let residual = tape.record_one(Add, &[v[2], v[2]])?;
            let y = linear_residual(tape, v[0], v[1], v.get(3).copied(), residual)?;
            Ok(vec![out("y", y)])
        })
        .input("x", [rows, k], random.normals(rows * k, 1.0))
        .input("weight", [n, k], weights(&mut random, n, k))
        .input("residual", [rows, n], random.normals(rows * n, 1.0));
        if has_bias {
            case = case.input("bias", [n], random.normals(n, 1.0));
        }
        check(&case, seed);
    }

    #[test]
    fn mlp_with_residual_and_shared_input_matches_the_reference(
        rows in 1usize..70, width in 1usize..30, inner in 1usize..40, form in 0usize..3, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let case = Case::new("mlp", move |tape, v| {
            let hidden = linear_activation(tape, v[0], v[1], Some(v[2]), ACTIVATIONS[form])?;
            Ok(vec![out("y", linear_residual(tape, hidden, v[3], None, v[0])?)])
        })
        .input("x", [rows, width], random.normals(rows * width, 1.0))
        .input("fc1", [inner, width], weights(&mut random, inner, width))
        .input("bias", [inner], random.normals(inner, 0.5))
        .input("fc2", [width, inner], weights(&mut random, width, inner));
        check(&case, seed);
    }
}

#[test]
fn linear_of_zero_rows_and_of_constant_rows_matches_the_reference() {
    let (rows, k, n) = (5, 17, 33);
    let mut random = Random::new(7);
    let mut x = random.normals(rows * k, 1.0);
    x[..k].fill(0.0);
    x[k..2 * k].fill(1e4);
    let case = Case::new("zero and constant rows", |tape, v| {
        let y = linear_activation(tape, v[0], v[1], Some(v[2]), Activation::GeluTanh)?;
        Ok(vec![out("y", y)])
    })
    .input("x", [rows, k], x)
    .input("weight", [n, k], weights(&mut random, n, k))
    .input("bias", [n], random.normals(n, 1.0));
    check(&case, 7);
}

#[test]
fn activation_of_a_hidden_layer_is_differentiated_by_the_product_that_makes_its_gradient() {
    let mut tape = empty_tape();
    let x = tape.input_with_gradient("x", TensorType::f32([6, 8]));
    let fc1 = tape.input_with_gradient("fc1", TensorType::f32([12, 8]));
    let fc2 = tape.input_with_gradient("fc2", TensorType::f32([8, 12]));
    let hidden = linear_activation(&mut tape, x, fc1, None, Activation::GeluErf).unwrap();
    let y = linear_residual(&mut tape, hidden, fc2, None, x).unwrap();
    let dy = tape.input("dy", TensorType::f32([6, 8]));
    tape.backward_from(&[(y, dy)]).unwrap();
    let recorded = ["linear_backward_activation", "linear_backward_input", "add"];
    assert_eq!(recorded.map(|op| count(&tape, op)), [1, 2, 1]);
    let program = Program::compile(tape, &CompileOptions::new(Target::Reference)).unwrap();
    let left = |op: &str| {
        let ops = program.ops().iter();
        ops.filter(|planned| planned.instruction.op.name() == op)
            .count()
    };
    // The product makes the activation's gradient, and adds to the residual's.
    assert_eq!(recorded.map(left), [0, 2, 0]);
}

#[test]
fn activation_whose_result_is_read_twice_is_differentiated_after_the_sum() {
    let (rows, k, n) = (9, 7, 11);
    let mut random = Random::new(3);
    let record = |tape: &mut Tape, v: &[Value]| {
        let hidden = linear_activation(tape, v[0], v[1], None, Activation::GeluErf)?;
        let first = linear(tape, hidden, v[2], None)?;
        linear_residual(tape, hidden, v[3], None, first)
    };
    let case = Case::new("read twice", move |tape, v| {
        Ok(vec![out("y", record(tape, v)?)])
    })
    .input("x", [rows, k], random.normals(rows * k, 1.0))
    .input("fc1", [n, k], weights(&mut random, n, k))
    .input("fc2", [k, n], weights(&mut random, k, n))
    .input("fc3", [k, n], weights(&mut random, k, n));
    check(&case, 3);
}

#[test]
fn gradient_that_two_addends_share_is_not_overwritten() {
    let (rows, k) = (4, 5);
    let mut random = Random::new(11);
    let case = Case::new("shared gradient", |tape, v| {
        // q has a gradient before the sum's arrives; p and q then get the same one, and p's must stay as it is.
        let (p, q) = (v[0], v[1]);
        let hidden = linear_activation(tape, p, v[2], None, Activation::GeluErf)?;
        let sum = tape.record_one(Add, &[hidden, q])?;
        let y = linear(tape, sum, v[3], None)?;
        Ok(vec![out("y", linear_residual(tape, q, v[3], None, y)?)])
    })
    .input("p", [rows, k], random.normals(rows * k, 1.0))
    .input("q", [rows, k], random.normals(rows * k, 1.0))
    .input("fc1", [k, k], weights(&mut random, k, k))
    .input("fc2", [k, k], weights(&mut random, k, k));
    check(&case, 11);
}

#[test]
fn frozen_weight_records_no_weight_gradient_and_saves_no_pre_activation() {
    let mut tape = empty_tape();
    let x = tape.input("x", TensorType::f32([6, 8]));
    let weight = tape.input("weight", TensorType::f32([12, 8]));
    let bias = tape.input_with_gradient("bias", TensorType::f32([12]));
    let frozen = linear_activation(&mut tape, x, weight, None, Activation::GeluErf).unwrap();
    assert_eq!(tape.instructions().last().unwrap().outputs.len(), 1);
    assert!(!tape.requires_gradient(frozen));
    let y = linear(&mut tape, x, weight, Some(bias)).unwrap();
    let dy = tape.input("dy", TensorType::f32([6, 12]));
    tape.backward_from(&[(y, dy)]).unwrap();
    assert_eq!(count(&tape, "linear_backward_weight"), 0);
    assert_eq!(count(&tape, "linear_backward_input"), 0);
    assert_eq!(count(&tape, "linear_backward_bias"), 1);
}

#[test]
fn bias_alone_gets_its_gradient() {
    let mut random = Random::new(5);
    let case = Case::new("bias alone", |tape, v| {
        let y = linear_activation(tape, v[0], v[1], Some(v[2]), Activation::GeluQuick)?;
        Ok(vec![out("y", y)])
    })
    .constant("x", [70, 9], random.normals(630, 1.0))
    .constant("weight", [13, 9], weights(&mut random, 13, 9))
    .input("bias", [13], random.normals(13, 1.0));
    check(&case, 5);
}

#[test]
fn gradients_over_many_rows_are_summed_in_parts() {
    // More rows than a block of the kernels takes at once, so that parts of the sums go through the workspace.
    let (rows, k, n) = (601, 5, 12);
    for frozen in [false, true] {
        let mut random = Random::new(17);
        let case = Case::new("many rows", |tape, v| {
            Ok(vec![out("y", linear(tape, v[0], v[1], Some(v[2]))?)])
        });
        let x = random.normals(rows * k, 1.0);
        let weight = weights(&mut random, n, k);
        let case = if frozen {
            case.constant("x", [rows, k], x)
                .constant("weight", [n, k], weight)
        } else {
            case.input("x", [rows, k], x)
                .input("weight", [n, k], weight)
        };
        check(&case.input("bias", [n], random.normals(n, 1.0)), 17);
    }
}

#[test]
fn products_by_large_tiles_of_whole_numbers_are_exact_on_a_gpu() {
    // As many tiles of 128 × 128 as make every product of one of these take the large kernels, with ragged ends.
    for (rows, k, n) in [(2100, 40, 1370), (2100, 1370, 40)] {
        let mut random = Random::new(29);
        let case = Case::new(format!("large product {rows}, {k}, {n}"), |tape, v| {
            Ok(vec![out("y", linear(tape, v[0], v[1], Some(v[2]))?)])
        })
        .input("x", [rows, k], random.whole(rows * k))
        .input("weight", [n, k], random.whole(n * k))
        .input("bias", [n], random.whole(n));
        check_exact_on_gpu(&case, 29);
    }
}

#[test]
fn linear_refuses_shapes_that_do_not_fit() {
    let mut tape = empty_tape();
    let x = tape.input("x", TensorType::f32([2, 3, 8]));
    let weight = tape.input("weight", TensorType::f32([5, 8]));
    let narrow = tape.input("narrow", TensorType::f32([5, 7]));
    let flat = tape.input("flat", TensorType::f32([40]));
    let bias = tape.input("bias", TensorType::f32([6]));
    let residual = tape.input("residual", TensorType::f32([6, 5]));
    let ids = tape.input("ids", TensorType::i32([2, 8]));
    let said = |result: keel::error::Result<Value>| result.unwrap_err().to_string();
    let problem = said(linear(&mut tape, x, narrow, None));
    assert!(
        problem.contains("linear: weight must be f32 [5, 8]"),
        "{problem}"
    );
    assert!(said(linear(&mut tape, x, flat, None)).contains("weight"));
    assert!(said(linear(&mut tape, ids, weight, None)).contains("x must be a float"));
    assert!(said(linear(&mut tape, x, weight, Some(bias))).contains("bias must be f32 [5]"));
    let problem = said(linear_residual(&mut tape, x, weight, None, residual));
    assert!(
        problem.contains("residual must be f32 [2, 3, 5]"),
        "{problem}"
    );
}

#[test]
fn linear_agrees_with_pytorch() {
    for golden in Golden::open("op_linear").cases() {
        if golden.has("input.layer_scale") {
            // See the cases of layer_scale.
            continue;
        }
        let activation = match golden.config["activation"].as_str() {
            Some("gelu") => Some(Activation::GeluErf),
            Some("gelu_tanh") => Some(Activation::GeluTanh),
            Some("quick_gelu") => Some(Activation::GeluQuick),
            _ => None,
        };
        let (has_bias, has_residual) = (golden.has("input.bias"), golden.has("input.residual"));
        let mut case = Case::new(golden.name.clone(), move |tape, v| {
            let bias = has_bias.then(|| v[2]);
            let y = match activation {
                Some(activation) => linear_activation(tape, v[0], v[1], bias, activation)?,
                None if has_residual => linear_residual(tape, v[0], v[1], bias, v[v.len() - 1])?,
                None => linear(tape, v[0], v[1], bias)?,
            };
            Ok(vec![out("y", y)])
        });
        for name in ["x", "weight", "bias", "residual"] {
            let key = format!("input.{name}");
            if golden.has(&key) {
                case = case.input(name, golden.shape(&key), golden.f32s(&key));
            }
        }
        check_golden(&case, &golden);
    }
}

#[test]
fn activations_agree_with_pytorch_in_the_tails() {
    for golden in Golden::open("op_gelu").cases() {
        let activation = match golden.config["activation"].as_str() {
            Some("gelu") => Activation::GeluErf,
            Some("gelu_tanh") => Activation::GeluTanh,
            _ => Activation::GeluQuick,
        };
        // The product with the identity leaves the activation alone.
        let shape = golden.shape("input.x");
        let columns = shape.columns();
        let mut identity = vec![0.0; columns * columns];
        identity
            .iter_mut()
            .step_by(columns + 1)
            .for_each(|x| *x = 1.0);
        let case = Case::new(golden.name.clone(), move |tape, v| {
            Ok(vec![out(
                "y",
                linear_activation(tape, v[0], v[1], None, activation)?,
            )])
        })
        .input("x", shape, golden.f32s("input.x"))
        .constant("identity", [columns, columns], identity);
        check_golden(&case, &golden);
    }
}

/// The launches of the products that `linear` and its backward make for x [rows, k] and weight [n, k].
fn product_launches(rows: usize, n: usize, k: usize, dtype: DType) -> Vec<Result<Vec<Launch>>> {
    let mut tape = empty_tape();
    let x = tape.input_with_gradient("x", TensorType::new(dtype, [rows, k]));
    let weight = tape.input_with_gradient("weight", TensorType::new(dtype, [n, k]));
    let y = linear(&mut tape, x, weight, None).unwrap();
    let dy = tape.input("dy", TensorType::new(dtype, [rows, n]));
    tape.backward_from(&[(y, dy)]).unwrap();
    tape.instructions()
        .iter()
        .filter(|i| i.op.is_matrix_product())
        .map(|i| {
            let [inputs, outputs] = i.types(tape.values());
            i.op.launches(&inputs, &outputs, Target::Cuda.into())
        })
        .collect()
}

#[test]
fn products_of_a_large_model_fill_the_multiprocessors_with_large_tiles() {
    for (rows, n, k) in [
        (65_792, 1024, 1024),
        (65_792, 4096, 1024),
        (50_432, 768, 768),
    ] {
        for dtype in [DType::Bf16, DType::F32] {
            let products = product_launches(rows, n, k, dtype);
            assert_eq!(products.len(), 3);
            for launches in products {
                let first = &launches.unwrap()[0];
                let blocks = first.grid.iter().product::<u32>();
                assert!(blocks >= 132, "{}: {blocks} blocks", first.kernel);
                assert!(!first.kernel.name.contains("small"), "{}", first.kernel);
            }
        }
    }
}

#[test]
fn splits_of_a_weight_gradient_cover_every_row_and_none_is_empty() {
    for rows in [1, 31, 32, 127, 128, 129, 300, 1000, 4097, 65_792] {
        for (dtype, rows_a_step) in [(DType::Bf16, 32), (DType::F32, 16)] {
            let products = product_launches(rows, 200, 70, dtype);
            let launches = products.into_iter().map(Result::unwrap);
            let split = launches
                .map(|launches| launches[0].clone())
                .find(|first| first.kernel.name.starts_with("linear_backward_weight"))
                .unwrap();
            let Some(Argument::I32(steps)) = split.arguments.last() else {
                panic!("the last argument is the number of steps")
            };
            let (steps, splits) = (*steps as usize, split.grid[2] as usize);
            let all_steps = rows.div_ceil(rows_a_step);
            assert!(splits * steps >= all_steps, "{rows} rows in {split:?}");
            assert!((splits - 1) * steps < all_steps, "{rows} rows in {split:?}");
        }
    }
}

#[test]
fn products_beyond_32_bits_are_refused_with_both_values() {
    for launches in product_launches(1 << 31, 2, 2, DType::Bf16) {
        let problem = launches.unwrap_err().to_string();
        assert!(problem.contains("2147483648 is wanted"), "{problem}");
        assert!(problem.contains("is at most 2147482623"), "{problem}");
        assert!(problem.contains("kernel linear_"), "{problem}");
    }
}
