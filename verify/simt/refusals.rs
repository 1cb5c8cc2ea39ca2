//! Programs whose launches cannot be: refused when they are loaded or run, before a thread does, with names and both values.
//! What no executor launches yet is refused by name, too; the rules of tensor maps are in tensor_maps.rs.

use std::sync::Arc;

use keel::error::Result;
use keel::executor::resolved::resolve;
use keel::executor::simt::Options;
use keel::executor::{Executor, SimtExecutor};
use keel::launch::{
    Argument, KernelEntry, Launch, Mapped, Parameter, Swizzle, TensorMap, TensorMapShape, kernels,
};
use keel::ops;
use keel::program::{CompileOptions, Program};
use keel::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Op, ParameterLayout, ReferenceArgs, Tape, Target, Value,
};
use keel::tensor::{DType, TensorType};

/// y = x by whatever launch a test wants to see refused.
#[derive(Debug)]
struct Faulty(Launch);

impl Op for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        Ok(vec![inputs[0]])
    }

    fn reference(&self, _args: ReferenceArgs<'_>) {}

    fn cpu(&self, _args: CpuArgs<'_>) {}

    fn launches(
        &self,
        _inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        Ok(vec![self.0.clone()])
    }

    fn backward(&self, _backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        Ok(vec![None])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(0.0, inputs, outputs)
    }
}

fn program(record: impl FnOnce(&mut Tape) -> Result<Value>) -> Program {
    let mut tape = Tape::new(Arc::new(ParameterLayout::default()), |_| false);
    let y = record(&mut tape).expect("the shapes fit");
    tape.output(y, "y");
    Program::compile(tape, &CompileOptions::new(Target::Cuda)).expect("a plan needs no memory")
}

/// What loading and running a program with this launch says.
fn refusal(executor: &dyn Executor, launch: Launch) -> String {
    let program = program(|tape| {
        let x = tape.input("x", TensorType::f32([40]));
        tape.record_one(Faulty(launch), &[x])
    });
    let problem = match executor.load(Arc::new(program)) {
        Ok(mut session) => {
            session.write_f32("x", &[1.0; 40]).expect("the input fits");
            session.run().expect_err("the launch is impossible")
        }
        Err(problem) => problem,
    };
    problem.to_string()
}

#[test]
fn launches_that_do_not_fit_their_kernel_are_refused_with_names_and_both_values() {
    if let Ok(executor) = SimtExecutor::new(0, Options::default()) {
        check_refusals(&executor);
    }
}

/// A kernel that no file of cuda/ has.
static UNKNOWN: KernelEntry = KernelEntry {
    name: "copy_f64",
    ..*kernels::COPY_F32
};

/// One that would take a tensor map.
static MAPPED: KernelEntry = KernelEntry {
    name: "copy_mapped_f32",
    stem: "basic",
    parameters: &[Parameter::TensorMap],
    cluster: 1,
};

/// Holds an executor of the kernels to refusing launches that do not fit them.
pub fn check_refusals(executor: &dyn Executor) {
    check_grids_and_arguments(executor);
    check_clusters_and_maps(executor);
}

/// A kernel that no source has, and launches whose grid or arguments are not the kernel's.
fn check_grids_and_arguments(executor: &dyn Executor) {
    let (y, x, n) = (Argument::output(0), Argument::input(0), Argument::I64(40));
    let far = |offset| Argument::Input { index: 0, offset };
    type Refusal<'a> = (&'static KernelEntry, [u32; 3], Vec<Argument>, &'a [&'a str]);
    let cases: [Refusal<'_>; 9] = [
        (
            &UNKNOWN,
            [1, 1, 1],
            vec![y, x, n],
            &["copy_f64", "is not in"],
        ),
        (
            kernels::COPY_F32,
            [1, 1, 1],
            vec![y, x],
            &["copy_f32", "takes 3 arguments", "passes 2"],
        ),
        (
            kernels::COPY_BF16,
            [1, 1, 1],
            vec![y, x, n],
            &["copy_bf16", "bf16*", "f32[40]"],
        ),
        (
            kernels::COPY_F32,
            [1, 1, 1],
            vec![y, n, x],
            &["argument 1", "const f32*", "40i64"],
        ),
        (
            kernels::COPY_F32,
            [1, 1, 1],
            vec![y, x, Argument::I32(40)],
            &["argument 2", "i64", "40i32"],
        ),
        (
            kernels::COPY_F32,
            [1, 1, 1],
            vec![y, Argument::input(3), n],
            &["op faulty", "input 3", "does not have"],
        ),
        (
            kernels::COPY_F32,
            [1, 1, 1],
            vec![y, far(164), n],
            &["byte 164 of input 0", "has 160 bytes"],
        ),
        (
            kernels::COPY_F32,
            [1, 1, 1],
            vec![y, Argument::workspace(DType::I32), n],
            &["argument 1", "const f32*", "i32"],
        ),
        (
            kernels::COPY_F32,
            [1, 70_000, 1],
            vec![y, x, n],
            &["the grid (1,70000,1)"],
        ),
    ];
    for (kernel, grid, arguments, says) in cases {
        let problem = refusal(executor, Launch::on_grid(kernel, grid, arguments));
        for part in says {
            assert!(problem.contains(part), "{kernel}: {part:?} in {problem}");
        }
    }
}

/// What the portable tier does not launch, and tensor maps that do not fit what they are made of.
fn check_clusters_and_maps(executor: &dyn Executor) {
    let (y, x, n) = (Argument::output(0), Argument::input(0), Argument::I64(40));
    let plain = Launch::new(kernels::COPY_F32, 6, vec![y, x, n]);
    let shape = TensorMapShape {
        dims: &[40],
        strides: &[],
        box_dims: &[4],
        swizzle: Swizzle::None,
    };
    let map = TensorMap::new(&MAPPED, Mapped::Input(0), 0, DType::F32, shape).expect("160 bytes");
    let mapped = |map| Launch::new(&MAPPED, 1, vec![Argument::TensorMap(map)]);
    let bf16 = TensorMap::new(
        &MAPPED,
        Mapped::Input(0),
        0,
        DType::Bf16,
        TensorMapShape {
            box_dims: &[8],
            ..shape
        },
    );
    let far = TensorMap::new(&MAPPED, Mapped::Input(0), 16, DType::F32, shape);
    let cases: [(Launch, &[&str]); 7] = [
        (
            Launch {
                cluster: 2,
                ..plain.clone()
            },
            &["copy_f32", "clusters of 1 blocks", "clusters of 2"],
        ),
        (
            Launch {
                cluster: 4,
                ..plain.clone()
            },
            &["copy_f32", "6 blocks in x", "clusters of 4"],
        ),
        (
            Launch {
                shared_bytes: Some(1024),
                ..plain
            },
            &["copy_f32", "1024 bytes of shared memory"],
        ),
        (mapped(map), &["copy_mapped_f32"]),
        (
            mapped(bf16.expect("80 bytes")),
            &["copy_mapped_f32", "map of bf16", "input 0, which holds f32"],
        ),
        (
            mapped(far.expect("it starts at a multiple of 16")),
            &[
                "reaches over 160 bytes of input 0",
                "has 144 from byte 16 on",
            ],
        ),
        (
            Launch::new(kernels::COPY_F32, 1, vec![y, Argument::TensorMap(map), n]),
            &[
                "argument 1",
                "const f32*",
                "a tensor map of input 0 (f32 [40], box [4])",
            ],
        ),
    ];
    for (launch, says) in cases {
        let problem = refusal(executor, launch);
        for part in says {
            assert!(problem.contains(part), "{part:?} in {problem}");
        }
    }
}

#[test]
fn a_program_of_more_elements_than_a_kernel_can_count_is_refused_without_any_memory() {
    let program = program(|tape| {
        let x = tape.input("x", TensorType::f32([1 << 33, 8]));
        let weight = tape.input("weight", TensorType::f32([8, 8]));
        ops::linear(tape, x, weight, None)
    });
    let problem = resolve(&program).expect_err("2^33 rows").to_string();
    for part in ["linear_forward", "rows is at most", "8589934592"] {
        assert!(problem.contains(part), "{part} in {problem}");
    }
}

#[test]
fn a_kernel_that_writes_past_its_output_is_reported_with_its_line() {
    let Ok(executor) = SimtExecutor::new(0, Options::default()) else {
        return;
    };
    let arguments = vec![
        Argument::output(0),
        Argument::input(0),
        Argument::I64(1 << 20),
    ];
    let problem = refusal(&executor, Launch::new(kernels::COPY_F32, 1, arguments));
    for part in ["op faulty", "copy_f32", "past", "cuda/basic.cu"] {
        assert!(problem.contains(part), "{part} in {problem}");
    }
}
