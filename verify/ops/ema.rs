//! The exponential moving average beside AdamW: against PyTorch's, on every executor, and a bad step that leaves it alone.

use std::sync::Arc;

use keel::executor::{Executor, Session};
use keel::ops::EMA_STATE;
use keel::tape::{Init, ParameterLayout, ParameterSpec};
use keel::tensor::DType;
use keel::train::{Schedule, Stage, optimizer_scalars};

use crate::harness::Golden;
use crate::optimizer::{executors, loaded, stage};

/// The averages of a parameter.
fn averages(session: &dyn Session, layout: &ParameterLayout, name: &str) -> Vec<f32> {
    let program = session.program();
    let mut slots = program.optimizer_state().iter();
    let slot = slots.find(|slot| slot.name == EMA_STATE).expect("a slot");
    let mut entries = program.gradient_entries().iter();
    let entry = entries.find(|entry| entry.parameter == name).unwrap();
    let size = layout.get(name).unwrap().spec.shape.numel();
    session.read_arena(slot.arena).unwrap()[entry.offset..][..size].to_vec()
}

/// Gives parameters and averages these values.
fn begin(
    executor: &dyn Executor,
    session: &mut dyn Session,
    layout: &ParameterLayout,
    values: impl Fn(&str) -> Vec<f32>,
) {
    let program = session.program();
    let mut slots = program.optimizer_state().iter();
    let slot = slots.find(|slot| slot.name == EMA_STATE).expect("a slot");
    let arena = slot.arena;
    let mut all = session.read_arena(arena).unwrap();
    for entry in session.program().gradient_entries() {
        let values = values(&entry.parameter);
        let place = layout.get(&entry.parameter).unwrap().offset;
        executor.write_parameters(place, &values).unwrap();
        all[entry.offset..][..values.len()].copy_from_slice(&values);
    }
    session.write_arena(arena, &all).unwrap();
}

fn layout(sizes: [usize; 2]) -> Arc<ParameterLayout> {
    let specs = ["decayed", "plain"].into_iter().zip(sizes);
    let specs = specs.map(|(name, size)| ParameterSpec {
        name: format!("vision.{name}"),
        shape: [size].into(),
        init: Init::Constant(0.0),
        decays: name == "decayed",
    });
    Arc::new(ParameterLayout::new(&specs.collect::<Vec<_>>()))
}

#[test]
fn averages_are_those_of_pytorch_on_every_executor() {
    for golden in Golden::open("optimizer_ema").cases() {
        let number = |key: &str| golden.config[key].as_f64().unwrap();
        let sizes = ["decayed", "plain"].map(|name| golden.shape(&format!("input.{name}")).numel());
        let layout = layout(sizes);
        let stage = Stage {
            learning_rate: number("rate"),
            betas: [number("beta1"), number("beta2")],
            epsilon: number("eps"),
            schedule: Schedule::Constant,
            warmup_ratio: 0.0,
            weight_decay: 0.0,
            max_grad_norm: 0.0,
            ema_decay: Some(number("ema_decay")),
            ..stage()
        };
        let groups = stage.parameter_groups(&layout).unwrap();
        let short = |name: &str| name.trim_start_matches("vision.").to_owned();
        for precision in [DType::F32, DType::Bf16] {
            for (executor, target) in executors(layout.elements()) {
                let mut session = loaded(&stage, &layout, executor.as_ref(), target, precision);
                begin(executor.as_ref(), session.as_mut(), &layout, |name| {
                    golden.f32s(&format!("input.{}", short(name)))
                });
                let steps = number("steps") as usize;
                for step in 0..steps {
                    for entry in layout.entries() {
                        let (name, size) = (&entry.spec.name, entry.spec.shape.numel());
                        let all = golden.f32s(&format!("input.{}_gradients", short(name)));
                        let gradient = &all[step * size..][..size];
                        session.write_f32(&format!("g.{name}"), gradient).unwrap();
                    }
                    let at = [step as u64, steps as u64];
                    let scalars = optimizer_scalars(&stage, &groups, at, 1.0);
                    scalars.write(session.as_mut()).unwrap();
                    session.run().unwrap();
                    for entry in layout.entries() {
                        let (name, size) = (&entry.spec.name, entry.spec.shape.numel());
                        let found = averages(session.as_ref(), &layout, name);
                        let key = format!("value.{}_average", short(name));
                        let want = &golden.floats(&key)[step * size..][..size];
                        let scale = want.iter().fold(0.0f64, |most, x| most.max(x.abs()));
                        for (want, found) in want.iter().zip(found) {
                            // A step rounds parameter and average once each.
                            let roundings = 2.0 * (step + 1) as f64;
                            let allowed = roundings * f64::from(f32::EPSILON) * scale;
                            assert!(
                                (want - f64::from(found)).abs() <= allowed,
                                "{}: {name} step {step} on {}: want {want:e}, got {found:e}",
                                golden.name,
                                executor.describe()
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_step_that_is_not_applied_leaves_the_averages_alone() {
    let layout = layout([20, 3]);
    let stage = Stage {
        ema_decay: Some(0.5),
        ..stage()
    };
    let groups = stage.parameter_groups(&layout).unwrap();
    for (executor, target) in executors(layout.elements()) {
        let mut session = loaded(&stage, &layout, executor.as_ref(), target, DType::F32);
        begin(executor.as_ref(), session.as_mut(), &layout, |name| {
            let size = layout.get(name).unwrap().spec.shape.numel();
            vec![0.75; size]
        });
        // Parameters that have moved away, and a gradient that is no number.
        executor.write_parameters(0, &[0.25; 20]).unwrap();
        let gradients = [
            ("decayed", vec![1.0; 20]),
            ("plain", vec![1.0, f32::NAN, 1.0]),
        ];
        for (name, gradient) in gradients {
            let name = format!("g.vision.{name}");
            session.write_f32(&name, &gradient).unwrap();
        }
        let scalars = optimizer_scalars(&stage, &groups, [0, 10], 1.0);
        scalars.write(session.as_mut()).unwrap();
        session.run().unwrap();
        let found = averages(session.as_ref(), &layout, "vision.decayed");
        assert_eq!(found, [0.75; 20], "{}", executor.describe());
    }
}
