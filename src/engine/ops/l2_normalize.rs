//! Rows divided by their length.
//!
//! Forward: n = ‖x‖₂, y = x / max(n, ε). Backward: dx = (dy − y⟨y, dy⟩) / n where n > ε, else dy / ε.
//!
//! Shapes: x, y [.., C]. Saved: y and n f32 [rows]. 3·C flops a row forward, 5·C backward; every byte once.

use rayon::prelude::*;

use crate::launch::{Argument, Launch, Widths, index, kernels};
use crate::ops::rows::{RowKernel, dot, rows_per_task};
use crate::ops::special;
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Tape, Value, with_element,
};
use crate::tensor::TensorType;
use keel_base::error::{Error, Result};
use keel_cpu::Stored;

/// y = x / max(‖x‖₂, `epsilon`) for each row.
///
/// Shapes: `x` and the result [.., C]. PyTorch's `normalize` has `epsilon` 1e-12.
///
/// # Errors
/// [`Error::Shape`] when `x` does not hold floats in rows, or `epsilon` is not positive.
pub fn l2_normalize(tape: &mut Tape, x: Value, epsilon: f32) -> Result<Value> {
    let op = L2Normalize {
        epsilon,
        saves: tape.requires_gradient(x),
    };
    tape.record_one(op, &[x])
}

/// The launch of a kernel of `cuda/l2_normalize.cu`: its tensors, ε, rows, columns.
fn launch(
    widths: Widths,
    x: TensorType,
    tensors: &[Argument],
    epsilon: f32,
) -> Result<Vec<Launch>> {
    let (rows, columns) = (x.shape.rows(), x.shape.columns());
    let kernel = RowKernel::new(widths, columns, x.dtype)?;
    let mut arguments = tensors.to_vec();
    arguments.extend([
        Argument::F32(epsilon),
        Argument::I64(rows as i64),
        index(kernel.entry, "the number of columns", columns)?,
    ]);
    let blocks = kernel.blocks(rows)?;
    Ok(vec![Launch::new(kernel.entry, blocks, arguments)])
}

/// Input: x. Outputs: y, and n where it is saved.
#[derive(Clone, Copy, Debug)]
struct L2Normalize {
    epsilon: f32,
    saves: bool,
}

/// Inputs: y, n, dy. Output: dx.
#[derive(Clone, Copy, Debug)]
struct L2NormalizeBackward {
    epsilon: f32,
}

impl L2Normalize {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let x = args.inputs.of_or_in_place::<T>(0);
        let width = args.input_types[0].shape.columns();
        let block = rows_per_task(width);
        let load = |task: usize, y: &mut [T]| {
            if let Some(x) = x {
                y.copy_from_slice(&x[task * block * width..][..y.len()]);
            }
        };
        let divide = |y: &mut [T]| {
            let norm = length(y);
            let divisor = norm.max(self.epsilon);
            for y in y {
                *y = T::rounded(y.widen() / divisor);
            }
            norm
        };
        if self.saves {
            let mut outputs = args.outputs.in_order();
            let (y, norms) = (outputs.next::<T>(), outputs.next::<f32>());
            y.par_chunks_mut(block * width)
                .zip(norms.par_chunks_mut(block))
                .enumerate()
                .for_each(|(task, (y, norms))| {
                    load(task, y);
                    for (y, norm) in y.chunks_exact_mut(width).zip(norms) {
                        *norm = divide(y);
                    }
                });
        } else {
            let y = args.outputs.in_order().next::<T>();
            y.par_chunks_mut(block * width)
                .enumerate()
                .for_each(|(task, y)| {
                    load(task, y);
                    for y in y.chunks_exact_mut(width) {
                        divide(y);
                    }
                });
        }
    }
}

impl Op for L2Normalize {
    fn name(&self) -> &'static str {
        "l2_normalize"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let x = inputs[0];
        if !x.dtype.is_float() || x.shape.rank() == 0 || x.shape.columns() == 0 {
            return Err(Error::shape(self.name(), "x", "floats [.., C]", x));
        }
        // Also refuses NaN.
        if !(self.epsilon > 0.0 && self.epsilon.is_finite()) {
            let want = "a positive number";
            return Err(Error::shape(self.name(), "epsilon", want, self.epsilon));
        }
        let mut outputs = vec![x];
        if self.saves {
            outputs.push(TensorType::f32([x.shape.rows()]));
        }
        Ok(outputs)
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let x = args.inputs[0];
        let width = x.columns();
        for (row, x) in x.float().chunks_exact(width).enumerate() {
            let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
            let divisor = norm.max(f64::from(self.epsilon));
            let y = &mut args.outputs[0].float_mut()[row * width..];
            for (y, x) in y.iter_mut().zip(x) {
                *y = x / divisor;
            }
            if self.saves {
                args.outputs[1].float_mut()[row] = norm;
            }
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
        let norms = if self.saves {
            Argument::output(1)
        } else {
            Argument::Null
        };
        let tensors = [Argument::output(0), norms, Argument::input(0)];
        launch(
            kernels::L2_NORMALIZE_FORWARD_WIDTHS,
            inputs[0],
            &tensors,
            self.epsilon,
        )
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let op = L2NormalizeBackward {
            epsilon: self.epsilon,
        };
        let inputs = [
            backward.outputs[0],
            backward.outputs[1],
            backward.gradient(0),
        ];
        Ok(vec![Some(backward.tape.record_one(op, &inputs)?)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(3.0 * inputs[0].numel() as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

/// ‖x‖₂; rows whose squares leave the range of f32 are measured in units of their largest element.
fn length<T: Stored>(x: &[T]) -> f32 {
    // The usual row takes one pass. Beyond this range the squares have lost digits or become ∞, and scaling by the
    // largest element brings them back.
    let sum = dot(x, x);
    if sum > 1e-30 && sum.is_finite() {
        return sum.sqrt();
    }
    let sizes = x.iter().map(|x| x.widen().abs());
    let largest = sizes.clone().fold(0.0f32, f32::max);
    if largest == 0.0 || !largest.is_finite() {
        return largest;
    }
    let sum: f32 = sizes.map(|x| (x / largest) * (x / largest)).sum();
    largest * sum.sqrt()
}

impl L2NormalizeBackward {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let (y, norms) = (args.inputs.of::<T>(0), args.inputs.f32(1));
        let dy = args.inputs.of_or_in_place::<T>(2);
        let dx = args.outputs.in_order().next::<T>();
        let width = args.input_types[0].shape.columns();
        let block = rows_per_task(width);
        dx.par_chunks_mut(block * width)
            .zip(y.par_chunks(block * width))
            .zip(norms.par_chunks(block))
            .enumerate()
            .for_each(|(task, ((dx, y), norms))| {
                if let Some(dy) = dy {
                    dx.copy_from_slice(&dy[task * block * width..][..dx.len()]);
                }
                let rows = dx.chunks_exact_mut(width).zip(y.chunks_exact(width));
                for ((dx, y), norm) in rows.zip(norms) {
                    if *norm > self.epsilon {
                        let (along, factor) = (dot(y, dx), 1.0 / norm);
                        for (dx, y) in dx.iter_mut().zip(y) {
                            *dx = T::rounded((dx.widen() - y.widen() * along) * factor);
                        }
                    } else {
                        // Below ε the divisor is a constant, and the direction of x has no part in the gradient.
                        let factor = 1.0 / self.epsilon;
                        for dx in dx {
                            *dx = T::rounded(dx.widen() * factor);
                        }
                    }
                }
            });
    }
}

impl Op for L2NormalizeBackward {
    fn name(&self) -> &'static str {
        "l2_normalize_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [y, norms, dy] = [inputs[0], inputs[1], inputs[2]];
        if dy != y {
            return Err(Error::shape(self.name(), "dy", y, dy));
        }
        let want = TensorType::f32([y.shape.rows()]);
        if norms != want {
            return Err(Error::shape(self.name(), "n", want, norms));
        }
        Ok(vec![dy])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([y, norms, dy], [dx]) = args.split();
        let (width, epsilon) = (y.columns(), f64::from(self.epsilon));
        for (row, norm) in norms.float().iter().enumerate() {
            let range = row * width..(row + 1) * width;
            let (y, dy) = (&y.float()[range.clone()], &dy.float()[range.clone()]);
            let along = special::dot(y, dy);
            for ((dx, y), dy) in dx.float_mut()[range].iter_mut().zip(y).zip(dy) {
                *dx = if *norm > epsilon {
                    (dy - y * along) / norm
                } else {
                    dy / epsilon
                };
            }
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
        let tensors = [
            Argument::output(0),
            Argument::input(0),
            Argument::input(1),
            Argument::input(2),
        ];
        launch(
            kernels::L2_NORMALIZE_BACKWARD_WIDTHS,
            inputs[0],
            &tensors,
            self.epsilon,
        )
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(5.0 * inputs[0].numel() as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 2)]
    }
}
