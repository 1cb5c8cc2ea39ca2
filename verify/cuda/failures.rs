//! What can go wrong on a GPU, injected: each is reported with names and values, and nothing is left behind.

use std::sync::Arc;

use keel::error::Result;
use keel::executor::Executor;
use keel::program::{CompileOptions, Program};
use keel::tape::{Add, Copy, ParameterLayout, Tape, Target};
use keel::tensor::{DType, TensorType};

use super::{Children, executor, is_child};
use crate::simt::refusals::check_refusals;

/// y = (a + b) + b by two launches, and what came of it.
fn attempt() -> Result<Vec<f64>> {
    let executor = executor(16, DType::F32)?;
    let mut tape = Tape::new(Arc::new(ParameterLayout::default()), |_| false);
    let (a, b) = (
        tape.input("a", TensorType::f32([300])),
        tape.input("b", TensorType::f32([300])),
    );
    let sum = tape.scoped("first", |tape| tape.record_one(Add, &[a, b]))?;
    let sum = tape.scoped("second", |tape| tape.record_one(Add, &[sum, b]))?;
    let y = tape.record_one(Copy, &[sum])?;
    tape.output(y, "y");
    let program = Program::compile(tape, &CompileOptions::new(Target::Cuda))?;
    let mut session = executor.load(Arc::new(program))?;
    session.write_f32("a", &[1.0; 300])?;
    session.write_f32("b", &[2.0; 300])?;
    session.run()?;
    session.read_f64("y")
}

/// How a launch of [`attempt`] is described.
const LAUNCH: &str = "grid (1,1,1), block (256,1,1), 0 bytes of shared memory, arguments (f32[300], f32[300], f32[300], 300i64)";

/// What is injected, whether launches are waited for (KEEL_CUDA_SYNC), and what the sentence has to say.
const FAILURES: [(&str, &str, &[&str]); 21] = [
    (
        "fail=cuDevicePrimaryCtxRetain:1:46",
        "0",
        &["Emulated GPU 0 cannot be used (CUDA error 46", "nvidia-smi"],
    ),
    (
        "fail=cuStreamCreate:2:2",
        "0",
        &["Emulated GPU 0 cannot be used (CUDA_ERROR_OUT_OF_MEMORY (2)"],
    ),
    (
        "fail=cuMemAlloc_v2:1:2",
        "0",
        &[
            "memory of the parameters: 64 bytes are refused by the Emulated GPU 0, of whose 1073741824 bytes",
            "CUDA_ERROR_OUT_OF_MEMORY (2)",
            "smaller batch",
        ],
    ),
    (
        "fail=cuMemAlloc_v2:2:2",
        "0",
        &["memory of activations: 4864 bytes are refused"],
    ),
    (
        "memory=1024",
        "0",
        &[
            "memory of activations",
            "bytes are refused by the Emulated GPU 0, of whose 1024 bytes 768 are free",
        ],
    ),
    (
        "fail=cuMemHostAlloc:2:2",
        "0",
        &[
            "memory for the next batch",
            "cannot be pinned (CUDA_ERROR_OUT_OF_MEMORY (2))",
        ],
    ),
    (
        "fail=cuModuleLoadData:1:209",
        "0",
        &["the image of cuda/basic.cu does not load on the Emulated GPU 0 (sm_90): CUDA error 209"],
    ),
    (
        "without=add_f32",
        "0",
        &[
            "kernel add_f32: the image of cuda/basic.cu lacks its entry point (CUDA_ERROR_NOT_FOUND (500))",
        ],
    ),
    (
        "skewed",
        "0",
        &["kernel add_f32: by the image of cuda/basic.cu it takes 5 parameters, by the table 4"],
    ),
    (
        "fail=cuLaunchKernel:2:1",
        "0",
        &[
            "kernel add_f32 of op add of second",
            LAUNCH,
            "CUDA_ERROR_INVALID_VALUE (1)",
        ],
    ),
    (
        "fault=2:700",
        "0",
        &[
            "CUDA_ERROR_ILLEGAL_ADDRESS (700) while the GPU worked; run again with KEEL_CUDA_SYNC=1",
            "the last launches",
            "op add of first",
            LAUNCH,
        ],
    ),
    (
        "late fault=2:700",
        "0",
        &["CUDA_ERROR_ILLEGAL_ADDRESS (700) while the GPU worked; run again with KEEL_CUDA_SYNC=1"],
    ),
    (
        "late fault=2:700",
        "1",
        &[
            "kernel add_f32 of op add of second, grid",
            LAUNCH,
            "CUDA_ERROR_ILLEGAL_ADDRESS (700)",
            "the last launches",
            "op add of first",
        ],
    ),
    (
        "late fault=3:719",
        "1",
        &[
            "kernel copy_f32 of op copy of the step",
            "CUDA_ERROR_LAUNCH_FAILED (719)",
        ],
    ),
    (
        "fail=cuGraphLaunch:1:700",
        "0",
        &["CUDA_ERROR_ILLEGAL_ADDRESS (700)"],
    ),
    (
        "fail=cuMemcpyDtoHAsync_v2:3:719",
        "0",
        &["CUDA_ERROR_LAUNCH_FAILED (719) while the GPU worked"],
    ),
    (
        "late fault=2:214",
        "0",
        &[
            "CUDA_ERROR_ECC_UNCORRECTABLE (214) while the GPU worked; its memory has an error that cannot be corrected",
            "nvidia-smi -q -d ECC",
        ],
    ),
    // Codes that no list of today has, from a function of each kind.
    ("fail=cuStreamSynchronize:1:4321", "0", &["CUDA error 4321"]),
    (
        "fail=cuGraphLaunch:1:4321",
        "0",
        &["CUDA error 4321 while the GPU worked"],
    ),
    (
        "late fault=2:4321",
        "1",
        &["kernel add_f32 of op add of second", "CUDA error 4321"],
    ),
    (
        "fail=cuFuncSetAttribute:1:4321 fail=cuFuncGetAttribute:2:4321",
        "0",
        &[
            "kernel add_f32: the Emulated GPU 0 does not say what it takes (CUDA error 4321); build this program again",
        ],
    ),
];

#[test]
fn failures_of_the_device_are_reported_with_names_and_values() {
    if is_child() {
        match attempt() {
            Ok(values) => assert!(values.iter().all(|y| *y == 5.0)),
            Err(problem) => println!("refused: {problem}"),
        }
        return;
    }
    let name = "cuda::failures::failures_of_the_device_are_reported_with_names_and_values";
    let Some(children) = Children::of(name) else {
        return;
    };
    assert!(!children.run("", &[]).said.contains("refused"));
    for (settings, synchronous, says) in FAILURES {
        let outcome = children.run(settings, &[("KEEL_CUDA_SYNC", synchronous)]);
        let said = &outcome.said;
        assert!(said.contains("refused: "), "{settings}: {said}");
        for part in says {
            assert!(said.contains(part), "{settings}: {part:?} in {said}");
        }
        assert!(
            !outcome.noise.contains("panicked"),
            "{settings}: {}",
            outcome.noise
        );
    }
}

#[test]
fn launches_that_do_not_fit_their_kernel_are_refused_before_the_driver_sees_them() {
    if is_child() {
        check_refusals(&executor(0, DType::F32).expect("the driver has a GPU"));
        return;
    }
    let name = "cuda::failures::launches_that_do_not_fit_their_kernel_are_refused_before_the_driver_sees_them";
    let Some(children) = Children::of(name) else {
        return;
    };
    let outcome = children.run("", &[]);
    assert!(!outcome.log.contains("launch"), "{}", outcome.log);
}
