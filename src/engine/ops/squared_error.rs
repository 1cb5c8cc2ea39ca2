//! The mean squared difference of two tensors: e = Σ (x − y)² / n over their n numbers; ∂x = 2 (x − y) de / n and ∂y = −∂x.
//!
//! Rows of length one have ‖x − y‖² = 2 (1 − ⟨x, y⟩), so that C / 2 times this, of normalised rows of C columns, is the mean of
//! 1 − cos. Saves nothing beside its inputs; 3 flops an element, bound by memory.

use rayon::prelude::*;

use super::shapes::{expect_float, expect_inputs, expect_type};
use crate::launch::kernels::constants::squared_error::{ERROR_BLOCKS, ERROR_THREADS};
use crate::launch::{Argument, Launch, blocks, kernels, vector};
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Tape, Target, Value,
    with_element,
};
use crate::tensor::{DType, TensorType};
use keel_base::error::Result;

/// Elements of one task of the processor.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// Records the mean of (x − y)², f32 `[1]`, for x and y of one float type and shape.
///
/// # Errors
/// [`keel_base::error::Error::Shape`] when they are not.
pub fn squared_error(tape: &mut Tape, x: Value, y: Value) -> Result<Value> {
    tape.record_one(SquaredError, &[x, y])
}

/// Blocks of `cuda/squared_error.cu`, about four rounds each: from the size alone, so that every device gives the same sum.
fn sum_blocks(x: TensorType) -> usize {
    let block = 4 * ERROR_THREADS * vector(x);
    x.numel().div_ceil(block).clamp(1, ERROR_BLOCKS)
}

/// Inputs x, y; output the mean.
#[derive(Clone, Copy, Debug)]
struct SquaredError;

impl SquaredError {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(args: CpuArgs<'_>) {
        let (x, y) = (args.inputs.of::<T>(0), args.inputs.of::<T>(1));
        // The bytes of two floats hold one partial sum in f64; their order is that of the elements, whatever the threads.
        args.workspace
            .par_chunks_mut(2)
            .zip(
                x.par_chunks(ELEMENTS_PER_TASK)
                    .zip(y.par_chunks(ELEMENTS_PER_TASK)),
            )
            .for_each(|(partial, (x, y))| {
                let mut lanes = [0.0f64; 16];
                for (x, y) in x.chunks(16).zip(y.chunks(16)) {
                    for (lane, (x, y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
                        let difference = f64::from(x.widen() - y.widen());
                        *lane += difference * difference;
                    }
                }
                let sum: f64 = lanes.iter().sum();
                partial.copy_from_slice(bytemuck::cast_slice(&[sum]));
            });
        let tasks = x.len().div_ceil(ELEMENTS_PER_TASK);
        let partials = args.workspace.chunks(2).take(tasks);
        let sum: f64 = partials
            .map(|partial| bytemuck::pod_read_unaligned::<f64>(bytemuck::cast_slice(partial)))
            .sum();
        let [error] = args.outputs.f32();
        error[0] = (sum / x.len() as f64) as f32;
    }
}

impl Op for SquaredError {
    fn name(&self) -> &'static str {
        "squared_error"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [x, y] = expect_inputs(self.name(), inputs)?;
        expect_float(self.name(), "x", 1, x)?;
        expect_type(self.name(), "y", "like x", x, y)?;
        Ok(vec![TensorType::f32([1])])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([x, y], [error]) = args.split();
        let squares = x
            .float()
            .iter()
            .zip(y.float())
            .map(|(x, y)| (x - y) * (x - y));
        error.float_mut()[0] = squares.sum::<f64>() / x.float().len() as f64;
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[0].dtype, T => SquaredError::compute::<T>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let x = inputs[0];
        let kernel = kernels::SQUARED_ERROR_FORWARD.of(x.dtype)?;
        let blocks = sum_blocks(x);
        let partials = Argument::workspace(DType::F32);
        let sums = vec![
            partials,
            Argument::input(0),
            Argument::input(1),
            Argument::I64(x.numel() as i64),
        ];
        let total = vec![
            Argument::output(0),
            partials,
            Argument::I32(blocks as i32),
            Argument::F32((1.0 / x.numel() as f64) as f32),
        ];
        Ok(vec![
            Launch::new(kernel, blocks as u32, sums),
            Launch::new(kernels::SQUARED_ERROR_TOTAL_F32, 1, total),
        ])
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let (x, y) = (backward.inputs[0], backward.inputs[1]);
        let derror = backward.gradient(0);
        let mut gradients = Vec::new();
        for (input, [own, other]) in [[x, y], [y, x]].into_iter().enumerate() {
            gradients.push(match backward.needs(input) {
                true => {
                    let inputs = [own, other, derror];
                    Some(backward.tape.record_one(SquaredErrorBackward, &inputs)?)
                }
                false => None,
            });
        }
        Ok(gradients)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(3.0 * inputs[0].numel() as f64, inputs, outputs)
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        match compile_target.target {
            Target::Cpu { .. } => inputs[0].numel().div_ceil(ELEMENTS_PER_TASK) * size_of::<f64>(),
            Target::Cuda => sum_blocks(inputs[0]) * size_of::<f32>(),
            Target::Reference => 0,
        }
    }
}

/// Inputs x, y and the gradient of the mean; output ∂x.
#[derive(Clone, Copy, Debug)]
struct SquaredErrorBackward;

impl SquaredErrorBackward {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(args: CpuArgs<'_>) {
        let (x, y) = (args.inputs.of::<T>(0), args.inputs.of::<T>(1));
        let factor = (2.0 / x.len() as f64) as f32 * args.inputs.f32(2)[0];
        let dx = args.outputs.in_order().next::<T>();
        dx.par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(
                x.par_chunks(ELEMENTS_PER_TASK)
                    .zip(y.par_chunks(ELEMENTS_PER_TASK)),
            )
            .for_each(|(dx, (x, y))| {
                for (dx, (x, y)) in dx.iter_mut().zip(x.iter().zip(y)) {
                    *dx = T::rounded(factor * (x.widen() - y.widen()));
                }
            });
    }
}

impl Op for SquaredErrorBackward {
    fn name(&self) -> &'static str {
        "squared_error_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [x, y, derror] = expect_inputs(self.name(), inputs)?;
        expect_type(self.name(), "y", "like x", x, y)?;
        expect_type(
            self.name(),
            "derror",
            "one number",
            TensorType::f32([1]),
            derror,
        )?;
        Ok(vec![x])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([x, y, derror], [dx]) = args.split();
        let factor = 2.0 / x.float().len() as f64 * derror.float()[0];
        for (dx, (x, y)) in dx
            .float_mut()
            .iter_mut()
            .zip(x.float().iter().zip(y.float()))
        {
            *dx = factor * (x - y);
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[0].dtype, T => SquaredErrorBackward::compute::<T>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let x = inputs[0];
        let kernel = kernels::SQUARED_ERROR_BACKWARD.of(x.dtype)?;
        let blocks = blocks(kernel, x.numel(), ERROR_THREADS * vector(x))?;
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::input(1),
            Argument::input(2),
            Argument::I64(x.numel() as i64),
            Argument::F32((2.0 / x.numel() as f64) as f32),
        ];
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(2.0 * inputs[0].numel() as f64, inputs, outputs)
    }
}
