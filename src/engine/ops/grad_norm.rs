//! Norm of the whole gradient and the factor that clips it (Pascanu et al. 2013), in two deterministic passes.
//!
//! n = s ‖g‖₂ with the gradient scale s; factor = s min(1, largest / (n + 10⁻⁶)), as PyTorch has it, where
//! the largest norm is above 0, else s; both numbers are among the optimiser's scalars. Sums of squares are kept in
//! f64, so that no gradient that is finite overflows. A gradient that is not finite makes the factor NaN, which the
//! update takes as its sign not to happen. 2 flops and 4 bytes an element: bound by memory.

use rayon::prelude::*;

use super::adamw::{GRADIENT_SCALE, LARGEST_NORM, OPTIMIZER_SCALARS};
use crate::launch::kernels::constants::grad_norm::{NORM_BLOCK_ELEMENTS, NORM_BLOCKS};
use crate::launch::{Argument, Launch, kernels};
use crate::tape::{CompileTarget, Cost, CpuArgs, Op, ReferenceArgs, Target};
use crate::tensor::{DType, TensorType};
use keel_base::error::{Error, Result};

/// Elements whose squares are summed by one task.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// Blocks of `cuda/grad_norm.cu`: from the size alone, so that every device gives the same sum.
fn blocks(elements: usize) -> usize {
    elements.div_ceil(NORM_BLOCK_ELEMENTS).clamp(1, NORM_BLOCKS)
}

/// Inputs: gradients [n], optimiser scalars [10]. Outputs: norm [1], factor [1].
#[derive(Clone, Copy, Debug)]
pub(super) struct GradNorm;

fn factor(norm: f64, largest: f64, scale: f64) -> f64 {
    if !norm.is_finite() {
        f64::NAN
    } else if largest > 0.0 {
        scale * (largest / (norm + 1e-6)).min(1.0)
    } else {
        scale
    }
}

impl Op for GradNorm {
    fn name(&self) -> &'static str {
        "grad_norm"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [_, scalars] = inputs else {
            return Err(Error::shape(
                "grad_norm",
                "inputs",
                "two values",
                inputs.len(),
            ));
        };
        let want = TensorType::f32([OPTIMIZER_SCALARS]);
        if *scalars != want {
            return Err(Error::shape(
                "grad_norm",
                "optimizer_scalars",
                want,
                scalars,
            ));
        }
        Ok(vec![TensorType::f32([1]), TensorType::f32([1])])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([g, scalars], [norm, scale]) = args.split();
        let sum: f64 = g.float().iter().map(|g| g * g).sum();
        let [largest, gradient_scale] =
            [LARGEST_NORM, GRADIENT_SCALE].map(|index| scalars.float()[index]);
        let length = gradient_scale * sum.sqrt();
        norm.float_mut()[0] = length;
        scale.float_mut()[0] = factor(length, largest, gradient_scale);
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let (g, scalars) = (args.inputs.f32(0), args.inputs.f32(1));
        let [norm, scale] = args.outputs.f32();
        // The bytes of two floats hold one partial sum in f64.
        args.workspace
            .par_chunks_mut(2)
            .zip(g.par_chunks(ELEMENTS_PER_TASK))
            .for_each(|(partial, g)| {
                // Sixteen sums side by side: one would wait for its own addition every time. Their number is fixed, and
                // with it the order.
                let mut lanes = [0.0f64; 16];
                for g in g.chunks(16) {
                    for (lane, g) in lanes.iter_mut().zip(g) {
                        *lane += f64::from(*g) * f64::from(*g);
                    }
                }
                let sum: f64 = lanes.iter().sum();
                partial.copy_from_slice(bytemuck::cast_slice(&[sum]));
            });
        let sum: f64 = args
            .workspace
            .chunks(2)
            .map(|partial| bytemuck::pod_read_unaligned::<f64>(bytemuck::cast_slice(partial)))
            .sum();
        let [largest, gradient_scale] =
            [LARGEST_NORM, GRADIENT_SCALE].map(|index| f64::from(scalars[index]));
        // The factor comes from the norm as it was rounded, so that what a log shows explains what was clipped.
        norm[0] = (gradient_scale * sum.sqrt()) as f32;
        scale[0] = factor(f64::from(norm[0]), largest, gradient_scale) as f32;
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let elements = inputs[0].numel();
        let blocks = blocks(elements);
        // Pairs of f32 that hold one f64 each.
        let partials = Argument::workspace(DType::F32);
        let squares = vec![partials, Argument::input(0), Argument::I64(elements as i64)];
        let factor = vec![
            Argument::output(0),
            Argument::output(1),
            partials,
            Argument::I32(blocks as i32),
            Argument::input(1),
        ];
        Ok(vec![
            Launch::new(kernels::GRAD_NORM_SQUARES_F32, blocks as u32, squares),
            Launch::new(kernels::GRAD_NORM_FACTOR_F32, 1, factor),
        ])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(2.0 * inputs[0].numel() as f64, inputs, outputs)
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        match compile_target.target {
            Target::Cpu { .. } => inputs[0].numel().div_ceil(ELEMENTS_PER_TASK) * size_of::<f64>(),
            Target::Cuda => blocks(inputs[0].numel()) * size_of::<f64>(),
            Target::Reference => 0,
        }
    }
}
