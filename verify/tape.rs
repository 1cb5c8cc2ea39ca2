//! Differentiation on the tape: gradients of values that are used more than once, and ops that add to a gradient that is
//! there instead of making one that has to be added.

use std::sync::Arc;

use keel::error::Result;
use keel::executor::{Executor, ReferenceExecutor};
use keel::ops;
use keel::program::{CompileOptions, PlannedOp, Program};
use keel::tape::{
    Add, Backward, Cost, CpuArgs, Init, Op, ParameterLayout, ParameterSpec, ReferenceArgs, Tape,
    Target, Value,
};
use keel::tensor::TensorType;
use proptest::prelude::*;

use crate::harness::{Case, Random, check, out};

/// y = x, whose gradient is made by an op that cannot add to another: behind it the tape has to record sums.
#[derive(Clone, Copy, Debug)]
struct Wall;

impl Op for Wall {
    fn name(&self) -> &'static str {
        "wall"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        Ok(inputs.to_vec())
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([x], [y]) = args.split();
        y.data = x.data.clone();
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let x = args.inputs.f32(0);
        let [y] = args.outputs.f32();
        y.copy_from_slice(x);
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let dy = backward.gradient(0);
        Ok(vec![Some(backward.tape.record_one(Wall, &[dy])?)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(0.0, inputs, outputs)
    }
}

/// Rows and columns of every value of a random graph.
const ROWS: usize = 5;
const COLUMNS: usize = 8;

/// A random graph over two inputs and two weights; each op reads values made before, often the same ones. With
/// `is_walled`, every operand goes through a [`Wall`].
fn graph(tape: &mut Tape, inputs: &[Value], seed: u64, is_walled: bool) -> Result<Value> {
    let [x, y, weight, scale] = *inputs else {
        panic!("a graph has four inputs");
    };
    let mut random = Random::new(seed);
    let mut made = vec![x, y];
    let operand = |tape: &mut Tape, value: Value| {
        if is_walled {
            tape.record_one(Wall, &[value])
        } else {
            Ok(value)
        }
    };
    for _ in 0..4 + random.below(5) {
        let a = made[random.below(made.len())];
        let b = made[random.below(made.len())];
        let a = operand(tape, a)?;
        let b = operand(tape, b)?;
        let w = operand(tape, weight)?;
        let s = operand(tape, scale)?;
        let value = match random.below(5) {
            0 => tape.record_one(Add, &[a, b])?,
            1 => ops::linear(tape, a, w, None)?,
            2 => ops::linear_residual(tape, a, w, None, b)?,
            3 => ops::rms_norm(tape, a, s, 1e-5)?,
            _ => {
                let flat = tape.reshape(a, [ROWS * COLUMNS])?;
                let back = tape.reshape(flat, [ROWS, COLUMNS])?;
                tape.record_one(Add, &[back, b])?
            }
        };
        made.push(value);
    }
    // Every value and every input counts.
    let mut sum = made[0];
    for value in &made[1..] {
        let a = operand(tape, sum)?;
        let b = operand(tape, *value)?;
        sum = tape.record_one(Add, &[a, b])?;
    }
    let mixed = ops::linear_residual(tape, sum, weight, None, sum)?;
    ops::rms_norm(tape, mixed, scale, 1e-5)
}

fn types() -> [(&'static str, TensorType); 4] {
    [
        ("x", TensorType::f32([ROWS, COLUMNS])),
        ("y", TensorType::f32([ROWS, COLUMNS])),
        ("weight", TensorType::f32([COLUMNS, COLUMNS])),
        ("scale", TensorType::f32([COLUMNS])),
    ]
}

/// All gradients of a graph in f64, and the sums that are left of its backward part.
fn differentiate(seed: u64, is_walled: bool) -> (Vec<Vec<f64>>, usize) {
    let mut random = Random::new(!seed);
    let mut tape = Tape::new(Arc::new(ParameterLayout::default()), |_| false);
    let inputs: Vec<Value> = types()
        .iter()
        .map(|(name, ty)| tape.input_with_gradient(*name, *ty))
        .collect();
    let result = graph(&mut tape, &inputs, seed, is_walled).expect("shapes agree");
    let ty = tape.ty(result);
    let cotangent = tape.input("cotangent", ty);
    tape.backward_from(&[(result, cotangent)])
        .expect("inputs ask for gradients");
    let program = Program::compile(tape, &CompileOptions::new(Target::Reference))
        .expect("a small graph compiles");
    let is_sum = |op: &&PlannedOp| op.instruction.is_backward && op.instruction.op.name() == "add";
    let sums = program.ops().iter().filter(is_sum).count();
    let mut session = ReferenceExecutor::new(0)
        .load(Arc::new(program))
        .expect("a small graph fits");
    for (name, ty) in types().into_iter().chain([("cotangent", ty)]) {
        let values = random.normals(ty.numel(), 1.0);
        session.write_f32(name, &values).expect("the input fits");
    }
    session.run().expect("a small graph runs");
    let gradients = types()
        .iter()
        .map(|(name, _)| session.read_f64(&format!("gradient.{name}")))
        .collect::<Result<Vec<_>>>()
        .expect("every input has its gradient");
    (gradients, sums)
}

/// Two orders of summation in f64 of at most a thousand terms.
const F64_ORDER: f64 = 1e-12;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn adding_within_an_op_gives_the_gradients_of_adding_after_it(seed: u64) {
        let (within, few) = differentiate(seed, false);
        let (after, many) = differentiate(seed, true);
        prop_assert!(few <= many, "{few} sums within, {many} after");
        for (index, (within, after)) in within.iter().zip(&after).enumerate() {
            let largest = after.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            for (a, b) in within.iter().zip(after) {
                prop_assert!(
                    (a - b).abs() <= F64_ORDER * (1.0 + largest),
                    "{}: {a} within, {b} after", types()[index].0
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn gradients_of_random_graphs_match_central_differences_and_the_processor(seed: u64) {
        let mut random = Random::new(seed);
        let mut case = Case::new("random graph", move |tape, inputs| {
            Ok(vec![out("result", graph(tape, inputs, seed, false)?)])
        });
        for (name, ty) in types() {
            case = case.input(name, ty.shape, random.normals(ty.numel(), 1.0));
        }
        check(&case.without_wrong_answers(), seed);
    }
}

#[test]
fn some_sums_are_made_within_ops() {
    let saved = |seed| differentiate(seed, true).1 > differentiate(seed, false).1;
    assert!((0..16).any(saved), "no graph of sixteen saved a sum");
}

/// The gradient of `x` where the result is `record(x)` and the cotangent counts up from 1.
fn gradient(record: impl Fn(&mut Tape, Value) -> Result<Value>) -> Vec<f64> {
    let mut tape = Tape::new(Arc::new(ParameterLayout::default()), |_| false);
    let x = tape.input_with_gradient("x", TensorType::f32([2, 3]));
    let y = record(&mut tape, x).expect("shapes agree");
    let cotangent = tape.input("cotangent", TensorType::f32([2, 3]));
    tape.backward_from(&[(y, cotangent)])
        .expect("x asks for its gradient");
    let program = Program::compile(tape, &CompileOptions::new(Target::Reference))
        .expect("a small graph compiles");
    let mut session = ReferenceExecutor::new(0)
        .load(Arc::new(program))
        .expect("a small graph fits");
    session.write_f32("x", &[0.5; 6]).expect("the input fits");
    session
        .write_f32("cotangent", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        .expect("the input fits");
    session.run().expect("a small graph runs");
    session.read_f64("gradient.x").expect("x has its gradient")
}

#[test]
fn a_value_used_n_times_gets_the_sum_of_n_gradients() {
    let times = |n: f64| (1..=6).map(|c| f64::from(c) * n).collect::<Vec<f64>>();
    assert_eq!(
        gradient(|tape, x| tape.record_one(Add, &[x, x])),
        times(2.0)
    );
    let three = gradient(|tape, x| {
        let two = tape.record_one(Add, &[x, x])?;
        tape.record_one(Add, &[x, two])
    });
    assert_eq!(three, times(3.0));
    let doubled_twice = gradient(|tape, x| {
        let two = tape.record_one(Add, &[x, x])?;
        tape.record_one(Add, &[two, two])
    });
    assert_eq!(doubled_twice, times(4.0));
}

#[test]
fn a_value_used_through_views_gets_the_sum_of_all_gradients() {
    let times = |n: f64| (1..=6).map(|c| f64::from(c) * n).collect::<Vec<f64>>();
    let two_views = gradient(|tape, x| {
        let flat = tape.reshape(x, [6])?;
        let tall = tape.reshape(x, [3, 2])?;
        let tall = tape.reshape(tall, [6])?;
        let sum = tape.record_one(Add, &[flat, tall])?;
        tape.reshape(sum, [2, 3])
    });
    assert_eq!(two_views, times(2.0));
    let view_and_itself = gradient(|tape, x| {
        let flat = tape.reshape(x, [6])?;
        let two = tape.record_one(Add, &[flat, flat])?;
        let two = tape.reshape(two, [2, 3])?;
        tape.record_one(Add, &[two, x])
    });
    assert_eq!(view_and_itself, times(3.0));
    assert_eq!(gradient(|tape, x| tape.reshape(x, [2, 3])), times(1.0));
}

/// A tape over one weight that `trains` decides on, and linear(x, weight).
fn with_weight(trains: bool) -> (Tape, Value) {
    let spec = ParameterSpec {
        name: "vision.weight".into(),
        shape: [3, 3].into(),
        init: Init::XavierUniform,
        decays: true,
    };
    let layout = Arc::new(ParameterLayout::new(std::slice::from_ref(&spec)));
    let mut tape = Tape::new(layout, move |_| trains);
    let x = tape.input("x", TensorType::f32([1, 3]));
    let weight = tape.parameter(spec).expect("the layout has it");
    let y = ops::linear(&mut tape, x, weight, None).expect("shapes agree");
    (tape, y)
}

#[test]
fn backward_of_a_frozen_graph_is_refused() {
    let (mut tape, y) = with_weight(false);
    let cotangent = tape.input("cotangent", TensorType::f32([1, 3]));
    let problem = tape
        .backward_from(&[(y, cotangent)])
        .unwrap_err()
        .to_string();
    assert!(problem.contains("every module is frozen"), "{problem}");
    assert!(
        problem.contains("depends on a trained parameter"),
        "{problem}"
    );
}

#[test]
fn backward_of_more_than_one_number_is_refused() {
    let (mut tape, y) = with_weight(true);
    let problem = tape.backward(y).unwrap_err().to_string();
    assert!(
        problem.contains("loss must be a single number"),
        "{problem}"
    );
}

#[test]
fn a_parameter_of_two_shapes_is_refused_with_both() {
    let (mut tape, _) = with_weight(true);
    let spec = ParameterSpec {
        name: "vision.weight".into(),
        shape: [2, 3].into(),
        init: Init::Constant(0.0),
        decays: false,
    };
    let problem = tape.parameter(spec).unwrap_err().to_string();
    assert!(
        problem.contains("[3, 3]") && problem.contains("[2, 3]"),
        "{problem}"
    );
}
