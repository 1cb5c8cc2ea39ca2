//! What the host feeds a program: every input is known by name to whoever feeds it, and a run without one is refused.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use keel::executor::simt::Options;
use keel::executor::{CpuExecutor, Executor, ReferenceExecutor, SimtExecutor};
use keel::model::{BatchInputs, ModelInput, declare};
use keel::ops::{self, OptimizerInput};
use keel::program::{CompileOptions, Program};
use keel::tape::{Add, Fill, ParameterLayout, Tape, Target};
use keel::tensor::{DType, TensorType};
use keel::train::{BUILT_IN, Recipe, batch_inputs, record_step};

use super::{Tiny, on_cpu, shape_of};
use crate::harness::on_every_executor;

#[test]
fn a_run_is_refused_by_the_name_of_the_input_that_nobody_wrote() {
    let ty = TensorType::f32([3]);
    let sessions = on_every_executor(|| {
        let mut tape = Tape::new(Arc::new(ParameterLayout::default()), |_| false);
        let inputs = ["left", "right"].map(|name| tape.input(name, ty));
        tape.input("unread", ty);
        let sum = tape.record_one(Add, &inputs).expect("of one type");
        tape.output(sum, "sum");
        tape
    });
    for mut session in sessions {
        for (missing, written) in [("left, right", "left"), ("right", "right")] {
            let seconds = &mut vec![0.0; session.program().ops().len()];
            for refused in [
                session.run(),
                session.run_gradients(),
                session.run_timed(seconds),
            ] {
                let problem = refused.expect_err("nothing was written").to_string();
                assert!(
                    problem.contains(&format!("program input {missing}")),
                    "{problem}"
                );
            }
            session.write_f32(written, &[1.0; 3]).expect("it fits");
        }
        // Written once, an input stays what it is until it is written again; what no op reads may stay unwritten.
        for _ in 0..2 {
            session.run().expect("both operands are there");
            assert_eq!(session.read_f64("sum").expect("an output"), [2.0; 3]);
        }
    }
}

#[test]
fn accumulating_gradients_needs_no_input_of_the_update() {
    let tiny = Tiny::with(&["stage.target.micro_batch_size=2"]);
    let stage = tiny.recipe.stage("target").expect("a stage");
    let program = tiny.compile(stage, &on_cpu(2)).expect("a step compiles");
    let (_executor, mut session) = tiny.load(program, 2);
    tiny.write_batch(&mut *session, stage, 0);
    session.run_gradients().expect("the batch is there");
    let problem = session.run().unwrap_err().to_string();
    assert!(
        problem.contains("group_scalars, optimizer_scalars"),
        "{problem}"
    );
}

#[test]
fn a_program_with_an_input_that_nobody_feeds_is_refused_when_it_is_loaded() {
    let program = |input: &str| {
        let mut tape = Tape::new(Arc::new(ParameterLayout::default()), |_| false);
        let ty = TensorType::f32([2]);
        let inputs = [tape.input(ModelInput::Weights, ty), tape.input(input, ty)];
        let sum = tape.record_one(Add, &inputs).expect("of one type");
        tape.output(sum, "sum");
        Program::compile(tape, &CompileOptions::new(Target::Reference)).expect("it is small")
    };
    // A name that no model has, one that no batch has, and one that is the caller's own.
    for input in [
        "imagse",
        ModelInput::Slots.name(),
        ModelInput::LossWeight.name(),
    ] {
        let refused = BatchInputs::of(&program(input), &[]);
        let problem = refused.map(drop).unwrap_err().to_string();
        assert!(
            problem.contains(&format!("program input {input}")),
            "{problem}"
        );
    }
    for input in [
        ModelInput::LossWeight.name(),
        ModelInput::ContrastiveWeight.name(),
        OptimizerInput::Scalars.name(),
    ] {
        batch_inputs(&program(input)).expect("the loop of steps writes it");
    }
}

/// What [`ModelInput`] says of the inputs of a step, once more, held to every stage of every built-in recipe.
#[test]
fn every_stage_reads_what_its_objectives_are_said_to_read() {
    use ModelInput::*;
    let mut seen = BTreeSet::new();
    for (name, _) in BUILT_IN {
        for sets in [&[][..], &["stage.world-knowledge.tiles=2"]] {
            let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
            let Ok(recipe) = Recipe::load(name, &sets) else {
                continue;
            };
            let layout = declare(&recipe.model, recipe.contrastive_loss).expect("a model");
            for stage in &recipe.stages {
                let shape = shape_of(&recipe, stage, stage.micro_batch());
                let objectives = stage.objectives(recipe.contrastive_loss);
                let tape =
                    record_step(&recipe, stage, &layout, &shape, DType::F32).expect("a step");
                let values = tape.values().iter().filter(|value| value.is_input);
                let found: BTreeSet<String> = values.filter_map(|v| v.name.clone()).collect();
                let (next, contrast) = (objectives.next_token > 0.0, objectives.contrastive > 0.0);
                let towers = objectives.pair == keel::model::ContrastivePair::TextTower;
                let want = [
                    (Images, contrast || objectives.splices_images),
                    (Tokens, next),
                    (Targets, next),
                    (Weights, next),
                    (Segments, next && stage.samples_per_sequence > 1),
                    (Positions, next && stage.samples_per_sequence > 1),
                    (
                        TokenTypes,
                        next && objectives.splices_images && shape.tiling.slots > 0,
                    ),
                    (CaptionTokens, contrast),
                    (ImageIdentities, contrast),
                    (CaptionIdentities, contrast),
                    (CaptionEnd, contrast && towers),
                    (CaptionWeights, contrast && !towers),
                    (Pairs, contrast && objectives.holds_text_alone),
                    (LossWeight, stage.micro_batches() > 1),
                ];
                let want = want.into_iter().filter(|(_, reads)| *reads);
                let mut want: BTreeSet<String> = want.map(|(input, _)| input.into()).collect();
                seen.extend(want.clone());
                want.extend(OptimizerInput::ALL.map(String::from));
                assert_eq!(found, want, "{name}, {}", stage.name);
            }
        }
    }
    assert!(seen.len() >= 11, "the recipes have only {seen:?}");
}

#[test]
fn the_product_names_its_inputs_by_enums_alone() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![src.clone()];
    let mut read = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            // The ops' own examples are made up of inputs that have no meaning.
            if path.ends_with("kernels/examples.rs") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source");
                let dense: String = text.split_whitespace().collect();
                for call in [".input(\"", "write_f32(\"", "write_i32(\"", "write_f64(\""] {
                    assert!(!dense.contains(call), "{}: {call}", path.display());
                }
                read += 1;
            }
        }
    }
    assert!(read > 200, "{read} sources under {}", src.display());
}

#[test]
fn optimiser_state_of_another_program_is_refused() {
    let tiny = Tiny::new();
    let stage = tiny.recipe.stage("target").expect("a stage");
    let program = tiny.compile(stage, &on_cpu(2)).expect("a step compiles");
    let names: Vec<&str> = program.optimizer_state().iter().map(|s| s.name).collect();
    assert_eq!(names, ops::ADAMW_STATE);
    let arena = program.optimizer_state()[0].arena;
    let forward = |target| {
        let mut tape = Tape::new(Arc::new(ParameterLayout::default()), |_| false);
        let ty = TensorType::f32([2]);
        let filled = tape
            .record_one(Fill { ty, value: 1.0 }, &[])
            .expect("a constant");
        tape.output(filled, "filled");
        Arc::new(Program::compile(tape, &CompileOptions::new(target)).expect("it is small"))
    };
    let mut executors: Vec<(Box<dyn Executor>, Target)> = vec![
        (Box::new(ReferenceExecutor::new(0)), Target::Reference),
        (
            Box::new(CpuExecutor::new(0, 2).expect("threads can be had")),
            Target::Cpu { threads: 2 },
        ),
    ];
    if let Ok(executor) = SimtExecutor::new(0, Options::default()) {
        executors.push((Box::new(executor), Target::Cuda));
    }
    for (executor, target) in executors {
        let mut session = executor.load(forward(target)).expect("it is small");
        for refused in [
            session.read_arena(arena).map(drop),
            session.write_arena(arena, &[]),
        ] {
            let problem = refused.unwrap_err().to_string();
            assert!(
                problem.contains("optimiser state of the program"),
                "{problem}"
            );
        }
    }
}
