//! Muon: orthogonalised matrices under derived budgets and against PyTorch's, and whole updates against torch.optim.Muon.

use std::sync::Arc;

use keel::ops::{ADAMW_STATE, orthogonalize};
use keel::tape::{Init, ParameterLayout, ParameterSpec};
use keel::tensor::DType;
use keel::train::{Schedule, Stage, optimizer_scalars};

use crate::harness::{Case, Golden, Random, aux, check, check_golden};
use crate::optimizer::{executors, loaded, stage};

/// A matrix, orthogonalised.
fn case(name: impl Into<String>, [rows, columns]: [usize; 2], u: Vec<f32>) -> Case {
    Case::new(name, |tape, inputs| {
        Ok(vec![aux("x", orthogonalize(tape, inputs[0])?)])
    })
    .constant("u", [rows, columns], u)
}

#[test]
fn every_executor_orthogonalises_wide_tall_and_square_matrices() {
    for [rows, columns] in [[7, 20], [33, 9], [16, 16], [1, 12], [5, 1]] {
        let seed = (rows + columns) as u64;
        let u = Random::new(seed).normals(rows * columns, 0.5);
        let name = format!("orthogonalize {rows} x {columns}");
        check(&case(name, [rows, columns], u), seed);
    }
}

#[test]
fn what_is_orthogonalised_is_what_pytorch_makes_of_it() {
    let golden = Golden::open("optimizer_muon");
    let cases = golden.cases();
    let cases = cases.iter().filter(|case| case.name.contains("orthogonal"));
    let mut count = 0;
    for golden in cases {
        let shape = golden.shape("input.u");
        let sides = [shape.rows(), shape.columns()];
        check_golden(&case(&*golden.name, sides, golden.f32s("input.u")), golden);
        count += 1;
    }
    assert_eq!(count, 3);
}

#[test]
fn a_matrix_of_zeros_takes_no_step() {
    let zeros = case("zeros", [4, 6], vec![0.0; 24]).without_wrong_answers();
    check(&zeros, 1);
}

/// How much of what is wrong in a small singular value five steps of the iteration can make: 3.4445⁵.
const GAIN: f64 = 485.0;

#[test]
fn three_steps_match_pytorch_on_every_executor() {
    let golden = &Golden::open("optimizer_muon").cases()[0];
    let number = |key: &str| golden.config[key].as_f64().unwrap();
    let names = ["wide", "tall", "square"];
    let specs = names.map(|name| ParameterSpec {
        name: format!("vision.blocks.0.{name}"),
        shape: golden.shape(&format!("input.{name}")),
        init: Init::Constant(0.0),
        decays: true,
    });
    let layout = Arc::new(ParameterLayout::new(&specs));
    let (steps, rate) = (number("steps") as usize, number("rate"));
    let stage = Stage {
        learning_rate: rate,
        schedule: Schedule::Constant,
        warmup_ratio: 0.0,
        weight_decay: number("weight_decay"),
        max_grad_norm: 0.0,
        muon: vec!["vision.blocks".to_owned()],
        muon_momentum: Some(number("momentum")),
        ..stage()
    };
    let groups = stage.parameter_groups(&layout).unwrap();
    for (executor, target) in executors(layout.elements()) {
        let mut session = loaded(&stage, &layout, executor.as_ref(), target, DType::F32);
        for (name, entry) in names.iter().map(|name| {
            let full = format!("vision.blocks.0.{name}");
            (name, layout.get(&full).unwrap())
        }) {
            let values = golden.f32s(&format!("input.{name}"));
            executor.write_parameters(entry.offset, &values).unwrap();
        }
        for step in 0..steps {
            for name in names {
                let size = golden.shape(&format!("input.{name}")).numel();
                let all = golden.f32s(&format!("input.{name}_gradients"));
                let gradient = &all[step * size..][..size];
                let input = format!("g.vision.blocks.0.{name}");
                session.write_f32(&input, gradient).unwrap();
            }
            let scalars = optimizer_scalars(&stage, &groups, [step as u64, steps as u64], 1.0);
            scalars.write(session.as_mut()).unwrap();
            session.run().unwrap();
            let slot = session.program().optimizer_state().iter();
            let slot = slot
                .clone()
                .find(|slot| slot.name == ADAMW_STATE[0])
                .unwrap();
            let momentum = session.read_arena(slot.arena).unwrap();
            for name in names {
                let shape = golden.shape(&format!("input.{name}"));
                let (size, longer) = (shape.numel(), shape.rows().max(shape.columns()));
                let entry = layout.get(&format!("vision.blocks.0.{name}")).unwrap();
                let mut found = vec![0.0f32; size];
                executor.read_parameters(entry.offset, &mut found).unwrap();
                let mut entries = session.program().gradient_entries().iter();
                let own = entries
                    .find(|own| own.parameter == entry.spec.name)
                    .unwrap();
                let moments = momentum[own.offset..][..size].to_vec();
                let one_step = rate * 0.2 * (longer as f64).sqrt();
                for (key, found, beside) in [
                    (format!("value.{name}"), found, GAIN * one_step),
                    (format!("value.{name}_momentum"), moments, 0.0),
                ] {
                    let want = &golden.floats(&key)[step * size..][..size];
                    let scale = want.iter().fold(0.0f64, |most, x| most.max(x.abs()));
                    let roundings = (step + 1) as f64 * f64::from(f32::EPSILON);
                    for (want, found) in want.iter().zip(found) {
                        assert!(
                            (want - f64::from(found)).abs() <= roundings * (2.0 * scale + beside),
                            "{key} step {step} on {}: want {want:e}, got {found:e}",
                            executor.describe()
                        );
                    }
                }
            }
        }
    }
}
