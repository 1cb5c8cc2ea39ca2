//! dW = dyᵀ·x with db = Σ over rows of dy, and that sum alone.

use super::input_gradient::copy;
use crate::error::{Error, Result};
use crate::executor::cpu::matmul::{self, Rows, RowsMut};
use crate::executor::cpu::reduce;
use crate::ops::shapes::expect_float;
use crate::tape::{Backward, Cost, CpuArgs, Op, ReferenceArgs, Target, Value};
use crate::tensor::TensorType;

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
        let rows = args.input_types[0].shape.rows();
        let (columns, inner) = (
            args.input_types[0].shape.columns(),
            args.input_types[1].shape.columns(),
        );
        let (dw, mut db) = match self.has_bias {
            true => {
                let [dw, db] = args.outputs.f32();
                (dw, Some(db))
            }
            false => {
                let [dw] = args.outputs.f32();
                (dw, None)
            }
        };
        if let Some(Some(sum)) = sum {
            copy(sum, dw);
        }
        if let (true, Some(db)) = (self.accumulates, &mut db) {
            // The product adds to both; only dW has something to be added to.
            db.fill(0.0);
        }
        matmul::linear_weight_gradient(
            Rows::new(dy, rows, columns),
            Rows::new(x, rows, inner),
            RowsMut::new(dw, columns, inner),
            db,
            self.accumulates,
            args.workspace,
        );
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

    fn workspace(&self, inputs: &[TensorType], _outputs: &[TensorType], target: Target) -> usize {
        let (dy, x) = (inputs[0].shape, inputs[1].shape);
        match target {
            Target::Cpu { .. } => {
                let (rows, inner, columns) = (dy.rows(), x.columns(), dy.columns());
                matmul::linear_weight_gradient_workspace(rows, inner, columns) * size_of::<f32>()
            }
            Target::Reference | Target::Cuda => 0,
        }
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
        let shape = args.input_types[0].shape;
        let dy = Rows::new(args.inputs.f32(0), shape.rows(), shape.columns());
        let [db] = args.outputs.f32();
        reduce::column_sums(dy, db, false, args.workspace);
    }

    fn backward(&self, _backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        unreachable!("a backward op is not differentiated again")
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(inputs[0].numel() as f64, inputs, outputs)
    }

    fn workspace(&self, inputs: &[TensorType], _outputs: &[TensorType], target: Target) -> usize {
        let (rows, columns) = (inputs[0].shape.rows(), inputs[0].shape.columns());
        match target {
            Target::Cpu { .. } => {
                reduce::sum_over_rows_workspace(rows, columns, columns) * size_of::<f32>()
            }
            Target::Reference | Target::Cuda => 0,
        }
    }
}
