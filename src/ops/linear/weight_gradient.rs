//! dW = dyᵀ·x with db = Σ over rows of dy, and that sum alone.

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::executor::cpu::product::{Operand, product};
use crate::ops::shapes::expect_float;
use crate::tape::{Backward, Cost, CpuArgs, Op, ReferenceArgs, Value};
use crate::tensor::TensorType;

/// Rows of dW that one task computes, over all rows of x.
const OUTPUTS_PER_TASK: usize = 48;

/// Columns that one task sums.
const COLUMNS_PER_TASK: usize = 64;

/// Inputs dy [.., N], x [.., K], then the gradient [N, K] to add to; outputs dW [N, K], then db [N].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LinearWeightGradient {
    pub has_bias: bool,
    pub accumulates: bool,
}

impl Op for LinearWeightGradient {
    fn name(&self) -> &'static str {
        "linear_weight_gradient"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let op = self.name();
        let (dy, x) = (inputs[0], inputs[1]);
        expect_float(op, "dy", 1, dy)?;
        if dy.shape.rows() != x.shape.rows() || dy.dtype != x.dtype {
            let want = format!("{} with {} rows", dy.dtype, dy.shape.rows());
            return Err(Error::shape(op, "x", want, x));
        }
        let dw = TensorType::new(dy.dtype, [dy.shape.columns(), x.shape.columns()]);
        if let Some(sum) = inputs.get(2)
            && *sum != dw
        {
            return Err(Error::shape(op, "the gradient to add to", dw, sum));
        }
        let db = TensorType::new(dy.dtype, [dy.shape.columns()]);
        Ok(match self.has_bias {
            true => vec![dw, db],
            false => vec![dw],
        })
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let (dy, x) = (args.inputs[0], args.inputs[1]);
        let (columns, inner) = (dy.columns(), x.columns());
        for n in 0..columns {
            for k in 0..inner {
                let mut sum = 0.0;
                for row in 0..dy.shape.rows() {
                    sum += dy.float()[row * columns + n] * x.float()[row * inner + k];
                }
                if self.accumulates {
                    sum += args.inputs[2].float()[n * inner + k];
                }
                args.outputs[0].float_mut()[n * inner + k] = sum;
            }
            if self.has_bias {
                args.outputs[1].float_mut()[n] =
                    dy.float().iter().skip(n).step_by(columns).sum::<f64>();
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let (dy, x) = (args.inputs.f32(0), args.inputs.f32(1));
        let sum = self.accumulates.then(|| args.inputs.f32_or_in_place(2));
        let (dy_type, x_type) = (args.input_types[0], args.input_types[1]);
        let (rows, columns, inner) = (
            dy_type.shape.rows(),
            dy_type.shape.columns(),
            x_type.shape.columns(),
        );
        let dw = match self.has_bias {
            true => {
                let [dw, db] = args.outputs.f32();
                sum_columns(dy, columns, db);
                dw
            }
            false => {
                let [dw] = args.outputs.f32();
                dw
            }
        };
        if dw.is_empty() {
            return;
        }
        let x = Operand::new(x, rows, inner);
        let dy = Operand::new(dy, rows, columns);
        dw.par_chunks_mut(OUTPUTS_PER_TASK * inner)
            .enumerate()
            .for_each(|(task, dw)| {
                if let Some(Some(sum)) = sum {
                    dw.copy_from_slice(&sum[task * OUTPUTS_PER_TASK * inner..][..dw.len()]);
                }
                let dy = dy.columns(task * OUTPUTS_PER_TASK, dw.len() / inner);
                product(dy.transposed(), x, dw, self.accumulates);
            });
    }

    fn backward(&self, _backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        unreachable!("a backward op is not differentiated again")
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let product = 2.0 * inputs[0].numel() as f64 * inputs[1].shape.columns() as f64;
        let bias = if self.has_bias { inputs[0].numel() } else { 0 };
        Cost::streaming(product + bias as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        if self.accumulates { &[(0, 2)] } else { &[] }
    }

    fn accumulating(&self) -> Option<Box<dyn Op>> {
        (!self.accumulates).then(|| {
            Box::new(LinearWeightGradient {
                accumulates: true,
                ..*self
            }) as Box<dyn Op>
        })
    }

    fn is_matrix_product(&self) -> bool {
        true
    }
}

/// The sum over rows of dy [.., N]: the bias's gradient where the weight is frozen.
#[derive(Clone, Copy, Debug)]
pub(super) struct ColumnSum;

impl Op for ColumnSum {
    fn name(&self) -> &'static str {
        "linear_bias_gradient"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        expect_float(self.name(), "dy", 1, inputs[0])?;
        Ok(vec![TensorType::new(
            inputs[0].dtype,
            [inputs[0].shape.columns()],
        )])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([dy], [db]) = args.split();
        let columns = dy.columns();
        for (n, db) in db.float_mut().iter_mut().enumerate() {
            *db = dy.float().iter().skip(n).step_by(columns).sum();
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let columns = args.input_types[0].shape.columns();
        let dy = args.inputs.f32(0);
        let [db] = args.outputs.f32();
        sum_columns(dy, columns, db);
    }

    fn backward(&self, _backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        unreachable!("a backward op is not differentiated again")
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(inputs[0].numel() as f64, inputs, outputs)
    }
}

/// Sums the rows of `matrix` [.., columns] into `sums` [columns], row by row: each task takes a band of columns.
fn sum_columns(matrix: &[f32], columns: usize, sums: &mut [f32]) {
    sums.par_chunks_mut(COLUMNS_PER_TASK)
        .enumerate()
        .for_each(|(task, sums)| {
            let first = task * COLUMNS_PER_TASK;
            sums.fill(0.0);
            // Sums of 64 rows at a time are added up, which keeps the error of long columns small.
            let mut partial = [0.0; COLUMNS_PER_TASK];
            for rows in matrix.chunks(64 * columns) {
                partial.fill(0.0);
                for row in rows.chunks_exact(columns) {
                    for (sum, x) in partial.iter_mut().zip(&row[first..first + sums.len()]) {
                        *sum += x;
                    }
                }
                for (sum, partial) in sums.iter_mut().zip(&partial) {
                    *sum += partial;
                }
            }
        });
}
