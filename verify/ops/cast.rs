//! Casts between storage types.

use std::sync::Arc;

use keel::error::Result;
use keel::executor::simt::Options;
use keel::executor::{CpuExecutor, Executor, SimtExecutor};
use keel::ops::cast;
use keel::program::{CompileOptions, Program};
use keel::tape::{ParameterLayout, Tape, Target};
use keel::tensor::{DType, TensorType};
use proptest::prelude::*;

use crate::harness::{Random, gpu};

/// x as f32 → bf16 → f32, and the gradient of x under a cotangent that goes the same way back.
fn program(elements: usize, target: Target) -> Result<Program> {
    let mut tape = Tape::new(Arc::new(ParameterLayout::default()), |_| false);
    let x = tape.input_with_gradient("x", TensorType::f32([elements]));
    let narrow = cast(&mut tape, x, DType::Bf16)?;
    let wide = cast(&mut tape, narrow, DType::F32)?;
    tape.output(narrow, "narrow");
    tape.output(wide, "wide");
    let cotangent = tape.input("cotangent", TensorType::f32([elements]));
    tape.backward_from(&[(wide, cotangent)])?;
    Program::compile(tape, &CompileOptions::new(target))
}

/// What every executor present makes of these values: narrow, wide and the gradient of x.
fn run(values: &[f32], cotangent: &[f32]) -> Vec<[Vec<f32>; 3]> {
    let run = |executor: &dyn Executor, target| {
        let program = Arc::new(program(values.len(), target).expect("casts of floats"));
        let mut session = executor.load(program).expect("cast has kernels");
        session.write_f32("x", values).expect("an input");
        session.write_f32("cotangent", cotangent).expect("an input");
        session.run().expect("the kernels are clean");
        ["narrow", "wide", "gradient.x"].map(|name| session.read_f32(name).expect("readable"))
    };
    let cpu = CpuExecutor::new(0, 2).expect("threads can be had");
    let mut all = vec![run(&cpu, Target::Cpu { threads: 2 })];
    if let Ok(simt) = SimtExecutor::new(0, Options::default()) {
        all.push(run(&simt, Target::Cuda));
    }
    if let Some(gpu) = gpu() {
        let program = program(values.len(), Target::Cuda).expect("casts of floats");
        gpu.note("cast", &program);
        all.push(run(&gpu.executor, Target::Cuda));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn a_cast_rounds_to_nearest_and_its_gradient_goes_the_same_way(
        elements in 1usize..5000, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let (x, dy) = (random.normals(elements, 3.0), random.normals(elements, 1.0));
        let rounded = |values: &[f32]| -> Vec<f32> {
            values.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect()
        };
        for [narrow, wide, gradient] in run(&x, &dy) {
            prop_assert_eq!(&narrow, &rounded(&x));
            prop_assert_eq!(&wide, &narrow);
            prop_assert_eq!(gradient, rounded(&dy));
        }
    }
}

#[test]
fn a_cast_keeps_what_bf16_can_hold_and_ties_go_to_even() {
    let x = [
        0.0,
        -0.0,
        1.0,
        1.00390625,
        1.01171875,
        f32::INFINITY,
        -3.0e38,
    ];
    let want = [0.0, -0.0, 1.0, 1.0, 1.015625, f32::INFINITY, -3.0e38];
    let want: Vec<u32> = want
        .iter()
        .map(|v| half::bf16::from_f32(*v).to_f32().to_bits())
        .collect();
    for [narrow, ..] in run(&x, &[0.0; 7]) {
        let got: Vec<u32> = narrow.iter().map(|v| v.to_bits()).collect();
        assert_eq!(got, want);
    }
}

#[test]
fn a_cast_of_integers_is_refused() {
    let mut tape = Tape::new(Arc::new(ParameterLayout::default()), |_| false);
    let ids = tape.input("ids", TensorType::i32([4]));
    let refused = cast(&mut tape, ids, DType::Bf16).unwrap_err().to_string();
    assert!(
        refused.contains("cast") && refused.contains("i32"),
        "{refused}"
    );
}
