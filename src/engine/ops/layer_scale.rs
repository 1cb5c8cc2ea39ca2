//! The gradients of a residual branch scaled per channel (Touvron et al. 2021, eq. 4).
//!
//! y = r + γ ⊙ x over rows [.., C], which the product that makes x computes on its way out (`linear_layer_scale`);
//! ∂r = dy, ∂x = γ ⊙ dy, ∂γ = Σ_rows dy ⊙ x. Needs x. Bound by memory: reads 8 and writes 4 bytes an element; ∂x and ∂γ
//! come from one pass.

use rayon::prelude::*;

use crate::launch::kernels::constants::partials::PARTIAL_COLUMNS;
use crate::launch::{Argument, Launch, blocks, index, kernels, vector};
use crate::tape::{
    CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Tape, Target, Value, with_element,
};
use crate::tensor::{DType, TensorType};
use keel_base::error::{Error, Result};

/// Rows of one task; also the rows whose part of ∂γ is summed together.
const ROWS_PER_TASK: usize = 64;

/// Records the gradients of y = residual + γ ⊙ z: returns ∂z and ∂γ of `inputs` z, γ, dy.
///
/// Shapes: z, dy [.., C] of one float type, γ and ∂γ f32 [C].
///
/// # Errors
/// [`Error::Shape`] when the shapes do not belong together.
pub(super) fn layer_scale_backward(tape: &mut Tape, inputs: [Value; 3]) -> Result<[Value; 2]> {
    let gradients = tape.record(LayerScaleBackward, &inputs)?;
    Ok([gradients[0], gradients[1]])
}

fn infer(inputs: &[TensorType]) -> Result<()> {
    const OP: &str = "layer_scale";
    let [x, gamma, other] = inputs else {
        return Err(Error::shape(OP, "inputs", "three values", inputs.len()));
    };
    if !x.dtype.is_float() || x.shape.rank() == 0 {
        return Err(Error::shape(OP, "x", "floats [.., C]", x));
    }
    let channels = TensorType::f32([x.shape.columns()]);
    if *gamma != channels {
        return Err(Error::shape(OP, "gamma", channels, gamma));
    }
    if other != x {
        return Err(Error::shape(OP, "residual", x, other));
    }
    Ok(())
}

/// Inputs x, γ, dy; outputs ∂x, ∂γ.
#[derive(Clone, Copy, Debug)]
struct LayerScaleBackward;

/// Column tiles of `layer_scale_backward`, 32 vectors of 16 bytes each, and the chunks of rows that share a tile's column
/// sums: as many as fill a large chip, and fewer where a chunk would get less than 64 rows. From the shape alone.
fn tiles_and_chunks(x: TensorType) -> (usize, usize) {
    let tiles = x.shape.columns().div_ceil(32 * vector(x)).max(1);
    let chunks = x.shape.rows().div_ceil(ROWS_PER_TASK);
    (tiles, chunks.clamp(1, (1056 / tiles).max(1)))
}

impl LayerScaleBackward {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let (x, dy) = (args.inputs.of::<T>(0), args.inputs.of::<T>(2));
        let gamma = args.inputs.f32(1);
        let mut outputs = args.outputs.in_order();
        let (dx, dgamma) = (outputs.next::<T>(), outputs.next::<f32>());
        let channels = gamma.len();
        let task = ROWS_PER_TASK * channels;
        dx.par_chunks_mut(task)
            .zip(args.workspace.par_chunks_mut(channels))
            .zip(x.par_chunks(task).zip(dy.par_chunks(task)))
            .for_each(|((dx, sums), (x, dy))| {
                // ∂γ of 64 rows at a time, in the workspace, and then those sums in order: one sum for all tasks would
                // take its order from the threads.
                sums.fill(0.0);
                let rows = dx
                    .chunks_mut(channels)
                    .zip(x.chunks(channels).zip(dy.chunks(channels)));
                for (dx, (x, dy)) in rows {
                    for (channel, (dx, (x, dy))) in dx.iter_mut().zip(x.iter().zip(dy)).enumerate()
                    {
                        *dx = T::rounded(gamma[channel] * dy.widen());
                        sums[channel] += x.widen() * dy.widen();
                    }
                }
            });
        let tasks = x.len().div_ceil(task);
        dgamma.fill(0.0);
        for sums in args.workspace.chunks(channels).take(tasks) {
            for (dgamma, sum) in dgamma.iter_mut().zip(sums) {
                *dgamma += sum;
            }
        }
    }
}

impl Op for LayerScaleBackward {
    fn name(&self) -> &'static str {
        "layer_scale_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        infer(inputs)?;
        Ok(vec![inputs[0], inputs[1]])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([x, gamma, dy], [dx, dgamma]) = args.split();
        let channels = gamma.float().len();
        for (i, dx) in dx.float_mut().iter_mut().enumerate() {
            *dx = gamma.float()[i % channels] * dy.float()[i];
            dgamma.float_mut()[i % channels] += x.float()[i] * dy.float()[i];
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[0].dtype, T => self.compute::<T>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let x = inputs[0];
        let kernel = kernels::LAYER_SCALE_BACKWARD.of(x.dtype)?;
        let (tiles, chunks) = tiles_and_chunks(x);
        let columns = index(kernel, "the number of columns", x.shape.columns())?;
        let partials = Argument::workspace(DType::F32);
        let arguments = vec![
            Argument::output(0),
            partials,
            Argument::input(0),
            Argument::input(1),
            Argument::input(2),
            Argument::I64(x.shape.rows() as i64),
            columns,
            Argument::I32(chunks as i32),
        ];
        let blocks_of_rows = blocks(kernel, tiles * chunks, 1)?;
        let name = kernels::LAYER_SCALE_BACKWARD_GAMMA_F32;
        let sums = vec![
            Argument::output(1),
            partials,
            Argument::I32(chunks as i32),
            columns,
        ];
        let blocks = blocks(name, x.shape.columns(), PARTIAL_COLUMNS)?;
        Ok(vec![
            Launch::new(kernel, blocks_of_rows, arguments),
            Launch::new(name, blocks, sums),
        ])
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
            Target::Cpu { .. } => {
                let tasks = inputs[0].shape.rows().div_ceil(ROWS_PER_TASK);
                tasks * inputs[0].shape.columns() * size_of::<f32>()
            }
            Target::Cuda => {
                tiles_and_chunks(inputs[0]).1 * inputs[0].shape.columns() * size_of::<f32>()
            }
            Target::Reference => 0,
        }
    }
}
