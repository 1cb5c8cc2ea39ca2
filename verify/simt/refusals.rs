//! Programs whose launches cannot be: refused when they are loaded or run, before a thread does, with names and both values.

use std::sync::Arc;

use keel::error::Result;
use keel::executor::resolved::resolve;
use keel::executor::simt::Options;
use keel::executor::{Executor, SimtExecutor};
use keel::launch::{Argument, Launch};
use keel::ops;
use keel::program::{CompileOptions, Program};
use keel::tape::{
    Backward, Cost, CpuArgs, Op, ParameterLayout, ReferenceArgs, Tape, Target, Value,
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

    fn launches(&self, _inputs: &[TensorType], _outputs: &[TensorType]) -> Result<Vec<Launch>> {
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
fn refusal(
    executor: &dyn Executor,
    kernel: &str,
    grid: [u32; 3],
    arguments: Vec<Argument>,
) -> String {
    let launch = Launch {
        kernel: kernel.to_owned(),
        grid,
        arguments,
    };
    let program = program(|tape| {
        let x = tape.input("x", TensorType::f32([40]));
        tape.record_one(Faulty(launch), &[x])
    });
    let problem = match executor.load(Arc::new(program)) {
        Ok(mut session) => session.run().expect_err("the launch is impossible"),
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

/// Holds an executor of the kernels to refusing launches that do not fit them.
pub fn check_refusals(executor: &dyn Executor) {
    let (y, x, n) = (Argument::output(0), Argument::input(0), Argument::I64(40));
    let far = |offset| Argument::Input { index: 0, offset };
    type Refusal<'a> = (&'a str, [u32; 3], Vec<Argument>, &'a [&'a str]);
    let cases: [Refusal<'_>; 9] = [
        (
            "copy_f64",
            [1, 1, 1],
            vec![y, x, n],
            &["copy_f64", "is not in"],
        ),
        (
            "copy_f32",
            [1, 1, 1],
            vec![y, x],
            &["copy_f32", "takes 3 arguments", "passes 2"],
        ),
        (
            "copy_bf16",
            [1, 1, 1],
            vec![y, x, n],
            &["copy_bf16", "bf16*", "f32[40]"],
        ),
        (
            "copy_f32",
            [1, 1, 1],
            vec![y, n, x],
            &["argument 1", "const f32*", "40i64"],
        ),
        (
            "copy_f32",
            [1, 1, 1],
            vec![y, x, Argument::I32(40)],
            &["argument 2", "i64", "40i32"],
        ),
        (
            "copy_f32",
            [1, 1, 1],
            vec![y, Argument::input(3), n],
            &["op faulty", "input 3", "does not have"],
        ),
        (
            "copy_f32",
            [1, 1, 1],
            vec![y, far(164), n],
            &["byte 164 of input 0", "has 160 bytes"],
        ),
        (
            "copy_f32",
            [1, 1, 1],
            vec![y, Argument::workspace(DType::I32), n],
            &["argument 1", "const f32*", "i32"],
        ),
        (
            "copy_f32",
            [1, 70_000, 1],
            vec![y, x, n],
            &["the grid (1,70000,1)"],
        ),
    ];
    for (kernel, grid, arguments, says) in cases {
        let problem = refusal(executor, kernel, grid, arguments);
        for part in says {
            assert!(problem.contains(part), "{kernel}: {part:?} in {problem}");
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
    let problem = refusal(
        &executor,
        "copy_f32",
        [1, 1, 1],
        vec![
            Argument::output(0),
            Argument::input(0),
            Argument::I64(1 << 20),
        ],
    );
    for part in ["op faulty", "copy_f32", "past", "cuda/basic.cu"] {
        assert!(problem.contains(part), "{part} in {problem}");
    }
}
