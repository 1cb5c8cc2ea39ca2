//! Fusing: how many ops of each stage it leaves, that none of those left could be merged, and that what it merges computes
//! what was recorded.

use std::any::Any;

use keel::program::{CompileOptions, PlannedOp, Program};
use keel::tape::{Add, Target};
use keel::tensor::DType;
use keel::train::{Recipe, compile_step, record_step};

use super::{Tiny, on_cpu, shape_of};

/// Ops of each stage of the tiny recipe, planned for two threads; and in bf16 for a GPU, each batch in two parts.
const OPS: [(&str, [usize; 2]); 6] = [
    ("warm-start-vision", [101, 103]),
    ("warm-start-language", [57, 68]),
    ("warm-up", [118, 124]),
    ("fine-grained", [153, 170]),
    ("world-knowledge", [201, 235]),
    ("target", [92, 107]),
];

#[test]
fn fusing_leaves_as_many_ops_of_every_stage_as_are_counted_here() {
    let whole = Tiny::new();
    let parts = OPS[1..].iter();
    let parts: Vec<String> = parts
        .map(|(stage, _)| format!("stage.{stage}.micro_batch_size=2"))
        .collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let parts = Tiny::with(&parts);
    let gpu = keel::tape::CompileTarget {
        precision: DType::Bf16,
        ..Target::Cuda.into()
    };
    let count = |tiny: &Tiny, name: &str, compile_target| {
        let stage = tiny.recipe.stage(name).expect("a stage");
        let shape = shape_of(&tiny.recipe, stage, stage.micro_batch());
        let program = compile_step(
            &tiny.recipe,
            stage,
            &tiny.layout,
            &shape,
            compile_target,
            None,
        );
        program.expect("a step compiles").ops().len()
    };
    let found = OPS.map(|(name, _)| {
        let on_two = Target::Cpu { threads: 2 }.into();
        (
            name,
            [count(&whole, name, on_two), count(&parts, name, gpu)],
        )
    });
    assert_eq!(found, OPS);
}

fn is_sum(op: &PlannedOp) -> bool {
    let recorded: &dyn Any = &*op.instruction.op;
    recorded.is::<Add>()
}

/// Every sum of gradients that is left has a reason: its second operand has another reader, is no op's first output, or was
/// made by an op that cannot add.
#[test]
fn no_sum_is_left_that_the_op_before_it_could_make() {
    let tiny = Tiny::new();
    let mut merged = 0;
    for stage in &tiny.recipe.stages {
        let shape = shape_of(&tiny.recipe, stage, 3);
        let tape = record_step(&tiny.recipe, stage, &tiny.layout, &shape, DType::F32)
            .expect("a step is recorded");
        let recorded = tape.instructions().len();
        let options = CompileOptions {
            spare_work: 0.0,
            ..on_cpu(2)
        };
        let program = Program::compile(tape, &options).expect("a step compiles");
        merged += recorded - program.ops().len();
        let ops = program.ops();
        for (index, op) in ops.iter().enumerate() {
            if !op.instruction.is_backward || !is_sum(op) {
                continue;
            }
            let [so_far, contribution] = op.instruction.inputs[..] else {
                panic!("a sum has two operands");
            };
            let producer = ops[..index]
                .iter()
                .position(|op| op.instruction.outputs.first() == Some(&contribution));
            let Some(producer) = producer else { continue };
            let readers = ops.iter().flat_map(|op| &op.instruction.inputs);
            let is_sole = readers.filter(|input| **input == contribution).count() == 1;
            let is_there = ops[producer..index]
                .iter()
                .all(|op| !op.instruction.outputs.contains(&so_far));
            let made_by = &ops[producer].instruction;
            let can_add = made_by.is_backward && made_by.op.accumulating().is_some();
            assert!(
                !(is_sole && is_there && can_add),
                "{}: {} could add to the sum itself",
                stage.name,
                made_by.op.name()
            );
        }
    }
    assert!(merged > 20, "only {merged} ops were merged in all stages");
}

/// The sums of a step's gradients in a recipe of two objectives: each value that both read gets one.
#[test]
fn recording_a_step_fuses_nothing() {
    let recipe = Recipe::load("tiny", &[]).expect("a built-in recipe");
    let tiny = Tiny::new();
    let stage = recipe.stage("world-knowledge").expect("a stage");
    let shape = shape_of(&recipe, stage, 3);
    let tape = record_step(&recipe, stage, &tiny.layout, &shape, DType::F32).expect("a step");
    let recorded = tape.instructions().iter();
    let sums = recorded.filter(|i| i.is_backward && i.op.name() == "add");
    let recorded = sums.count();
    let program = Program::compile(tape, &on_cpu(2)).expect("a step compiles");
    let left = program.ops().iter();
    let left = left.filter(|op| op.instruction.is_backward && is_sum(op));
    let left = left.count();
    assert!(left < recorded, "{left} of {recorded} sums are left");
}
