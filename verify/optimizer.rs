//! What surrounds an update: rates and decays by module, pattern and layer, and schedules, against PyTorch; and whole runs
//! with them.

mod adapters;
mod averages;
mod distillation;
mod runs;

use std::collections::BTreeMap;
use std::sync::Arc;

use keel::executor::simt::Options;
use keel::executor::{CpuExecutor, Executor, ReferenceExecutor, Session, SimtExecutor};
use keel::ops::{UpdateOptions, record_update};
use keel::program::{CompileOptions, Program};
use keel::tape::{Init, ParameterLayout, ParameterSpec, Tape, Target};
use keel::tensor::{DType, TensorType};
use keel::train::{DecayShape, Recipe, Schedule, Stage, optimizer_scalars};

use crate::harness::{Golden, gpu};

/// A stage of the tiny recipe to set rates of.
pub fn stage() -> Stage {
    let recipe = Recipe::load("tiny", &[]).unwrap();
    recipe.stage("world-knowledge").unwrap().clone()
}

#[test]
fn schedules_are_those_of_pytorch() {
    for golden in Golden::open("optimizer_schedules").cases() {
        let number = |key: &str| golden.config[key].as_f64().unwrap();
        let steps = number("steps");
        let shape = match golden.config["shape"].as_str().unwrap() {
            "linear" => Some(DecayShape::Linear),
            "1-sqrt" => Some(DecayShape::OneMinusSqrt),
            _ => None,
        };
        let stage = Stage {
            learning_rate: number("peak"),
            warmup_ratio: number("rise") / steps,
            schedule: match shape {
                Some(_) => Schedule::WarmupStableDecay,
                None => Schedule::Cosine,
            },
            min_learning_rate_ratio: number("floor"),
            decay_ratio: shape.map(|_| number("fall") / steps),
            decay_shape: shape,
            ..stage()
        };
        let want = golden.floats("value.rates");
        assert_eq!(want.len(), steps as usize);
        for (step, want) in want.iter().enumerate() {
            let found = stage.learning_rate_at(step as u64, steps as u64);
            // PyTorch's schedulers go from step to step: a rounding each.
            assert!(
                (found - want).abs() <= steps * f64::EPSILON * number("peak"),
                "{} step {step}: want {want:e}, got {found:e}",
                golden.name
            );
        }
    }
}

/// The executors of this machine that train, each with what its programs are compiled for.
pub fn executors(elements: usize) -> Vec<(Box<dyn Executor>, Target)> {
    let mut all: Vec<(Box<dyn Executor>, Target)> = vec![
        (
            Box::new(ReferenceExecutor::new(elements)),
            Target::Reference,
        ),
        (
            Box::new(CpuExecutor::new(elements, 2).unwrap()),
            Target::Cpu { threads: 2 },
        ),
    ];
    if let Ok(simt) = SimtExecutor::new(elements, Options::default()) {
        all.push((Box::new(simt), Target::Cuda));
    }
    if let Some(gpu) = gpu() {
        all.push((Box::new(gpu.executor(elements)), Target::Cuda));
    }
    all
}

/// An update of parameters whose gradients are inputs, `g.NAME`.
pub fn loaded(
    stage: &Stage,
    layout: &Arc<ParameterLayout>,
    executor: &dyn Executor,
    target: Target,
    precision: DType,
) -> Box<dyn Session> {
    let trained = stage.clone();
    let tape = Tape::new(layout.clone(), move |name| trained.trains(name));
    let mut tape = tape.in_precision(precision);
    let mut seeds = Vec::new();
    for entry in layout.entries() {
        let (spec, ty) = (entry.spec.clone(), TensorType::f32(entry.spec.shape));
        let gradient = tape.input(format!("g.{}", spec.name), ty);
        seeds.push((tape.parameter(spec).unwrap(), gradient));
    }
    seeds.retain(|(parameter, _)| tape.requires_gradient(*parameter));
    tape.backward_from(&seeds).unwrap();
    let groups = stage.parameter_groups(layout).unwrap();
    let options = UpdateOptions {
        ema_decay: stage.ema_decay,
        ..UpdateOptions::default()
    };
    record_update(&mut tape, layout, &groups, &options).unwrap();
    let program = Program::compile(tape, &CompileOptions::new(target)).unwrap();
    executor.load(Arc::new(program)).unwrap()
}

#[test]
fn rates_by_pattern_and_layer_update_as_the_groups_of_pytorch_do() {
    let golden = &Golden::open("optimizer_groups").cases()[0];
    let number = |key: &str| golden.config[key].as_f64().unwrap();
    let specs = golden.config["parameters"].as_array().unwrap();
    let specs = specs.iter().map(|row| ParameterSpec {
        name: row[0].as_str().unwrap().to_owned(),
        shape: [row[1].as_u64().unwrap() as usize].into(),
        init: Init::Constant(0.0),
        decays: row[2].as_bool().unwrap(),
    });
    let specs: Vec<ParameterSpec> = specs.collect();
    let table = |rows: &[(&str, f64)]| -> BTreeMap<String, f64> {
        let rows = rows.iter();
        rows.map(|(name, number)| ((*name).to_owned(), *number))
            .collect()
    };
    let (steps, peak) = (number("steps"), number("peak"));
    let stage = Stage {
        freeze: vec!["vision.blocks.2-2".to_owned()],
        learning_rate: peak,
        learning_rates: table(&[("vision", 2e-4), ("connector", 4e-3)]),
        layer_decay: table(&[("vision", 0.75), ("language", 0.9)]),
        patch_embed_factor: 0.2,
        weight_decay: 0.05,
        weight_decays: table(&[("vision.blocks.1", 0.1), ("language.embedding", 0.02)]),
        betas: [0.9, 0.95],
        epsilon: number("eps"),
        max_grad_norm: number("max_norm"),
        warmup_ratio: number("rise") / steps,
        schedule: Schedule::Cosine,
        min_learning_rate_ratio: number("floor"),
        ..stage()
    };
    let layout = Arc::new(ParameterLayout::new(&specs));
    let groups = stage.parameter_groups(&layout).unwrap();
    for (executor, target) in executors(layout.elements()) {
        let mut session = loaded(&stage, &layout, executor.as_ref(), target, DType::F32);
        for entry in layout.entries() {
            let values = golden.f32s(&format!("input.{}", entry.spec.name));
            executor.write_parameters(entry.offset, &values).unwrap();
        }
        for step in 0..steps as usize {
            for spec in specs.iter().filter(|spec| stage.trains(&spec.name)) {
                let size = spec.shape.numel();
                let all = golden.f32s(&format!("input.gradient.{}", spec.name));
                let name = format!("g.{}", spec.name);
                session
                    .write_f32(&name, &all[step * size..][..size])
                    .unwrap();
            }
            let at = [step as u64, steps as u64];
            let scalars = optimizer_scalars(&stage, &groups, at, 1.0);
            scalars.write(session.as_mut()).unwrap();
            session.run().unwrap();
            for entry in layout.entries() {
                let (name, size) = (&entry.spec.name, entry.spec.shape.numel());
                let mut found = vec![0.0f32; size];
                executor.read_parameters(entry.offset, &mut found).unwrap();
                let want = &golden.floats(&format!("value.{name}"))[step * size..][..size];
                let scale = want.iter().fold(0.0f64, |most, x| most.max(x.abs()));
                for (want, found) in want.iter().zip(found) {
                    // Each step rounds the parameter once, and its scalars and moments to 2⁻²⁴ of a change that is far
                    // smaller than it.
                    let allowed = (step + 1) as f64 * f64::from(f32::EPSILON) * scale;
                    assert!(
                        (want - f64::from(found)).abs() <= allowed,
                        "{name} step {step} on {}: want {want:e}, got {found:e}",
                        executor.describe()
                    );
                }
            }
        }
    }
}

#[test]
fn parameters_that_learn_and_decay_alike_share_an_op() {
    let layout = keel::model::declare(
        &Recipe::load("tiny", &[]).unwrap().model,
        keel::ops::Contrastive::InfoNce,
    )
    .unwrap();
    let groups = |stage: &Stage| stage.parameter_groups(&layout).unwrap().groups().len();
    assert_eq!(groups(&stage()), 2);
    let with_rate = Stage {
        learning_rates: BTreeMap::from([("vision".to_owned(), 1e-4)]),
        ..stage()
    };
    // Two rates, each with matrices that decay and vectors that do not.
    assert_eq!(groups(&with_rate), 4);
    let with_layers = Stage {
        layer_decay: BTreeMap::from([("vision".to_owned(), 0.5)]),
        ..stage()
    };
    // Of the tower: what comes before the blocks and two blocks, in matrices and vectors; what comes after them learns as the
    // other modules' vectors do.
    assert_eq!(groups(&with_layers), 8);
    // A rate of its own that is the stage's is none.
    let same = Stage {
        learning_rates: BTreeMap::from([("vision".to_owned(), stage().learning_rate)]),
        ..stage()
    };
    let numbers = |stage: &Stage| stage.parameter_groups(&layout).unwrap().scalars(1e-3);
    assert_eq!(numbers(&same), numbers(&stage()));
}
