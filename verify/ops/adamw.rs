//! The update: three steps against PyTorch, a bad step that must change nothing, clamps, the norm.

use std::sync::Arc;

use keel::executor::{CpuExecutor, Executor, ReferenceExecutor, Session};
use keel::ops::{UpdateOptions, record_update};
use keel::program::{CompileOptions, Program};
use keel::tape::{Arena, Init, ParameterLayout, ParameterSpec, Tape, Target};
use keel::tensor::TensorType;

use crate::harness::Golden;

/// A program whose gradients are its inputs: parameters `a.decayed` [n] and `a.plain` [m].
struct Update {
    layout: Arc<ParameterLayout>,
    executor: Box<dyn Executor>,
    session: Box<dyn Session>,
}

const NAMES: [&str; 2] = ["a.decayed", "a.plain"];

fn updates(sizes: [usize; 2], clamps: &[(&'static str, f32, f32)]) -> Vec<Update> {
    let specs = [0, 1].map(|index| ParameterSpec {
        name: NAMES[index].into(),
        shape: [sizes[index]].into(),
        init: Init::Constant(0.0),
        decays: index == 0,
    });
    let layout = Arc::new(ParameterLayout::new(&specs));
    let executors: [(Box<dyn Executor>, Target); 2] = [
        (
            Box::new(ReferenceExecutor::new(layout.elements())),
            Target::Reference,
        ),
        (
            Box::new(CpuExecutor::new(layout.elements(), 2).unwrap()),
            Target::Cpu { threads: 2 },
        ),
    ];
    executors
        .into_iter()
        .map(|(executor, target)| {
            let mut tape = Tape::new(layout.clone(), |_| true);
            let mut seeds = Vec::new();
            for (index, spec) in specs.iter().enumerate() {
                let parameter = tape.parameter(spec.clone()).unwrap();
                let ty = TensorType::f32([sizes[index]]);
                let gradient = tape.input(format!("g{index}"), ty);
                seeds.push((parameter, gradient));
            }
            tape.backward_from(&seeds).unwrap();
            let options = UpdateOptions {
                clamps: clamps.to_vec(),
            };
            record_update(&mut tape, &layout, &options).unwrap();
            let program = Program::compile(tape, &CompileOptions::new(target)).unwrap();
            let session = executor.load(Arc::new(program)).unwrap();
            Update {
                layout: layout.clone(),
                executor,
                session,
            }
        })
        .collect()
}

impl Update {
    fn parameter(&self, index: usize) -> Vec<f64> {
        let entry = self.layout.get(NAMES[index]).unwrap();
        let mut values = vec![0.0f32; entry.spec.shape.numel()];
        self.executor.read_parameters(entry.offset, &mut values);
        values.into_iter().map(f64::from).collect()
    }

    fn write(&self, index: usize, values: &[f32]) {
        self.executor
            .write_parameters(self.layout.get(NAMES[index]).unwrap().offset, values);
    }

    fn moment(&self, index: usize, arena: Arena) -> Vec<f64> {
        let entries = self.session.program().gradient_entries();
        let entry = entries
            .iter()
            .find(|entry| entry.parameter == NAMES[index])
            .unwrap();
        let count = self.layout.get(NAMES[index]).unwrap().spec.shape.numel();
        let all = self.session.read_arena(arena);
        all[entry.offset..entry.offset + count]
            .iter()
            .map(|x| f64::from(*x))
            .collect()
    }
}

/// Rounding of one f32 update: three roundings of the largest number, for the values read back as f32.
fn assert_near(what: &str, want: &[f64], got: &[f64]) {
    let scale = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    for (index, (want, got)) in want.iter().zip(got).enumerate() {
        let error = (want - got).abs();
        let allowed = 4.0 * f64::from(f32::EPSILON) * scale;
        assert!(
            error <= allowed,
            "{what}[{index}]: want {want:e}, got {got:e}"
        );
    }
}

#[test]
fn three_steps_match_pytorch_with_and_without_clipping() {
    for golden in Golden::open("op_adamw").cases() {
        let names = ["decayed", "plain"];
        let sizes = names.map(|name| golden.shape(&format!("input.{name}")).numel());
        let setting = |key: &str| golden.config[key].as_f64().unwrap();
        for mut update in updates(sizes, &[]) {
            for (index, name) in names.iter().enumerate() {
                update.write(index, &golden.f32s(&format!("input.{name}")));
            }
            for step in 0..3 {
                let count = step as i32 + 1;
                let (beta1, beta2) = (setting("beta1"), setting("beta2"));
                let hyper = [
                    golden.floats("input.rates")[step],
                    beta1,
                    beta2,
                    setting("eps"),
                    setting("weight_decay"),
                    setting("max_norm"),
                    1.0 - beta1.powi(count),
                    1.0 - beta2.powi(count),
                    1.0 - beta1,
                    1.0 - beta2,
                ];
                update.session.write_f64("hyper", &hyper).unwrap();
                for (index, name) in names.iter().enumerate() {
                    let all = golden.f32s(&format!("input.{name}_gradients"));
                    let gradient = &all[step * sizes[index]..(step + 1) * sizes[index]];
                    update
                        .session
                        .write_f32(&format!("g{index}"), gradient)
                        .unwrap();
                }
                update.session.run().unwrap();
                let what = format!(
                    "{} step {step} on {}",
                    golden.name,
                    update.executor.describe()
                );
                let norm = update.session.read_f64("gradient_norm").unwrap();
                assert_near(
                    &format!("{what}: norm"),
                    &golden.floats("value.norms")[step..=step],
                    &norm,
                );
                for (index, name) in names.iter().enumerate() {
                    let range = step * sizes[index]..(step + 1) * sizes[index];
                    let want = |key: &str| {
                        golden.floats(&format!("value.{name}{key}"))[range.clone()].to_vec()
                    };
                    assert_near(
                        &format!("{what}: {name}"),
                        &want(""),
                        &update.parameter(index),
                    );
                    let moment = update.moment(index, Arena::FirstMoments);
                    assert_near(
                        &format!("{what}: m of {name}"),
                        &want("_first_moment"),
                        &moment,
                    );
                    let moment = update.moment(index, Arena::SecondMoments);
                    assert_near(
                        &format!("{what}: v of {name}"),
                        &want("_second_moment"),
                        &moment,
                    );
                }
            }
        }
    }
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    for bad in [f32::NAN, f32::INFINITY] {
        for mut update in updates([20, 3], &[]) {
            update.write(0, &[0.25; 20]);
            update.write(1, &[-0.5; 3]);
            let hyper = [0.1, 0.9, 0.999, 1e-8, 0.1, 1.0, 0.1, 0.001, 0.1, 0.001];
            update.session.write_f32("hyper", &hyper).unwrap();
            update.session.write_f32("g0", &[1.0; 20]).unwrap();
            update.session.write_f32("g1", &[1.0, bad, 1.0]).unwrap();
            update.session.run().unwrap();
            assert_eq!(update.parameter(0), [0.25; 20]);
            assert_eq!(update.parameter(1), [-0.5; 3]);
            assert_eq!(update.moment(0, Arena::FirstMoments), [0.0; 20]);
            assert_eq!(update.moment(1, Arena::SecondMoments), [0.0; 3]);
        }
    }
}

#[test]
fn a_clamped_scalar_stays_between_its_bounds() {
    for mut update in updates([20, 1], &[("a.plain", -0.25, 0.25)]) {
        let hyper = [10.0, 0.9, 0.999, 1e-8, 0.0, 0.0, 0.1, 0.001, 0.1, 0.001];
        for (gradient, want) in [(-1.0, 0.25), (1.0, -0.25)] {
            update.write(1, &[0.0]);
            update
                .session
                .write_arena(Arena::FirstMoments, &[0.0; 48])
                .unwrap();
            update.session.write_f32("hyper", &hyper).unwrap();
            update.session.write_f32("g0", &[0.0; 20]).unwrap();
            update.session.write_f32("g1", &[gradient]).unwrap();
            update.session.run().unwrap();
            assert_eq!(update.parameter(1), [want]);
        }
    }
}
