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
fn program(elements: usize) -> Result<Program> {
    let mut tape = Tape::new(Arc::new(ParameterLayout::default()), |_| false);
    let x = tape.input_with_gradient("x", TensorType::f32([elements]));
    let narrow = cast(&mut tape, x, DType::Bf16)?;
    let wide = cast(&mut tape, narrow, DType::F32)?;
    tape.output(narrow, "narrow");
    tape.output(wide, "wide");
    let cotangent = tape.input("cotangent", TensorType::f32([elements]));
    tape.backward_from(&[(wide, cotangent)])?;
    Program::compile(tape, &CompileOptions::new(Target::Cuda))
}

/// What the kernels make of these values on the emulator, or else on the GPU, and where they run on both, the same: narrow,
/// wide and the gradient of x.
fn run(values: &[f32], cotangent: &[f32]) -> Option<[Vec<f32>; 3]> {
    let program = Arc::new(program(values.len()).expect("casts of floats"));
    let run = |executor: &dyn Executor| {
        let mut session = executor.load(program.clone()).expect("cast has kernels");
        session.write_f32("x", values).expect("an input");
        session.write_f32("cotangent", cotangent).expect("an input");
        session.run().expect("the kernels are clean");
        ["narrow", "wide", "gradient.x"].map(|name| session.read_f32(name).expect("readable"))
    };
    let simt = SimtExecutor::new(0, Options::default()).ok();
    let simt = simt.map(|executor| run(&executor));
    let gpu = gpu().map(|gpu| {
        gpu.note("cast", &program);
        run(&gpu.executor)
    });
    if let (Some(simt), Some(gpu)) = (&simt, &gpu) {
        assert_eq!(simt, gpu, "a cast has one right result");
    }
    simt.or(gpu)
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
        let Some([narrow, wide, gradient]) = run(&x, &dy) else { return Ok(()) };
        prop_assert_eq!(&narrow, &rounded(&x));
        prop_assert_eq!(&wide, &narrow);
        prop_assert_eq!(gradient, rounded(&dy));
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
    let Some([narrow, ..]) = run(&x, &[0.0; 7]) else {
        return;
    };
    let want = [0.0, -0.0, 1.0, 1.0, 1.015625, f32::INFINITY, -3.0e38];
    let want: Vec<u32> = want
        .iter()
        .map(|v| half::bf16::from_f32(*v).to_f32().to_bits())
        .collect();
    let got: Vec<u32> = narrow.iter().map(|v| v.to_bits()).collect();
    assert_eq!(got, want);
}

#[test]
fn a_cast_of_integers_is_refused_and_the_processor_says_what_it_computes_in() {
    let mut tape = Tape::new(Arc::new(ParameterLayout::default()), |_| false);
    let ids = tape.input("ids", TensorType::i32([4]));
    let refused = cast(&mut tape, ids, DType::Bf16).unwrap_err().to_string();
    assert!(
        refused.contains("cast") && refused.contains("i32"),
        "{refused}"
    );
    let cpu = CpuExecutor::new(0, 1).expect("a thread can be had");
    let program = Arc::new(program(4).expect("casts of floats"));
    let refused = cpu
        .load(program)
        .err()
        .expect("bf16 is not the processor's")
        .to_string();
    assert!(refused.contains("computes in f32"), "{refused}");
}
