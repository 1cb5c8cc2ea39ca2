//! y = norm(x), and sum = x + residual on the way.

use rayon::prelude::*;

use super::Kind;
use super::backward::NormBackward;
use super::kernel;
use crate::launch::{Argument, Launch, index, kernels};
use crate::ops::rows::RowKernel;
use crate::ops::shapes::{expect_float, expect_type, expect_vector};
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Value, with_element,
};
use crate::tensor::{DType, TensorType};
use keel_base::error::Result;
use keel_cpu::simd::dispatch;

/// Elements that one task works on, in whole rows.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// Inputs x, residual where present, weight, bias for LayerNorm; outputs the sum where there is a residual, y, and the
/// statistics [M, 2]: mean and rstd of each row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm {
    pub kind: Kind,
    pub epsilon: f32,
    pub has_residual: bool,
}

impl Norm {
    fn weight(&self) -> usize {
        1 + usize::from(self.has_residual)
    }

    fn bias(&self) -> Option<usize> {
        (self.kind == Kind::Layer).then(|| self.weight() + 1)
    }
}

impl Norm {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let columns = args.input_types[0].shape.columns();
        if args.input_types[0].numel() == 0 {
            return;
        }
        let scale = kernel::Scale {
            weight: args.inputs.f32(self.weight()),
            bias: self.bias().map(|index| args.inputs.f32(index)),
            epsilon: self.epsilon,
        };
        let rows = (ELEMENTS_PER_TASK / columns).max(1);
        let chunk = rows * columns;
        let x = args.inputs.of_or_in_place::<T>(0);
        let mut outputs = args.outputs.in_order();
        if !self.has_residual {
            let (y, statistics) = (outputs.next::<T>(), outputs.next::<f32>());
            (y.par_chunks_mut(chunk), statistics.par_chunks_mut(2 * rows))
                .into_par_iter()
                .enumerate()
                .for_each(|(task, (y, statistics))| {
                    let x = x.map(|x| &x[task * chunk..][..y.len()]);
                    dispatch(kernel::Forward {
                        kind: self.kind,
                        x,
                        y,
                        statistics,
                        scale,
                    });
                });
            return;
        }
        // The sum is made task by task, next to the rows that read it: it is still in cache when it is normalised.
        let residual = args.inputs.of_or_in_place::<T>(1);
        let (sum, y) = (outputs.next::<T>(), outputs.next::<T>());
        let statistics = outputs.next::<f32>();
        (
            sum.par_chunks_mut(chunk),
            y.par_chunks_mut(chunk),
            statistics.par_chunks_mut(2 * rows),
        )
            .into_par_iter()
            .enumerate()
            .for_each(|(task, (sum, y, statistics))| {
                let x = x.map(|x| &x[task * chunk..][..sum.len()]);
                let residual = residual.map(|r| &r[task * chunk..][..sum.len()]);
                dispatch(kernel::Add {
                    sum,
                    a: x,
                    b: residual,
                });
                dispatch(kernel::Forward {
                    kind: self.kind,
                    x: Some(sum),
                    y,
                    statistics,
                    scale,
                });
            });
    }
}

impl Op for Norm {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Layer => "layer_norm",
            Kind::Rms => "rms_norm",
        }
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let op = self.name();
        let x = inputs[0];
        expect_float(op, "x", 1, x)?;
        if self.has_residual {
            expect_type(op, "residual", "like x", x, inputs[1])?;
        }
        let vector = (DType::F32, x.shape.columns());
        let rule = "[C] with x's C columns";
        expect_vector(op, "weight", rule, vector, inputs[self.weight()])?;
        if let Some(bias) = self.bias() {
            expect_vector(op, "bias", rule, vector, inputs[bias])?;
        }
        let mut outputs = vec![x; 1 + usize::from(self.has_residual)];
        outputs.push(TensorType::f32([x.shape.rows(), 2]));
        Ok(outputs)
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let shape = args.inputs[0].shape;
        let columns = shape.columns();
        let weight = args.inputs[self.weight()].float();
        let bias = self.bias().map(|index| args.inputs[index].float());
        let y_index = usize::from(self.has_residual);
        for row in 0..shape.rows() {
            let at = row * columns;
            let mut x = args.inputs[0].float()[at..][..columns].to_vec();
            if self.has_residual {
                for (x, residual) in x.iter_mut().zip(&args.inputs[1].float()[at..]) {
                    *x += residual;
                }
                args.outputs[0].float_mut()[at..][..columns].copy_from_slice(&x);
            }
            let mean = match self.kind {
                Kind::Layer => x.iter().sum::<f64>() / columns as f64,
                Kind::Rms => 0.0,
            };
            let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / columns as f64;
            let rstd = 1.0 / (variance + f64::from(self.epsilon)).sqrt();
            let y = &mut args.outputs[y_index].float_mut()[at..][..columns];
            for (column, y) in y.iter_mut().enumerate() {
                let scaled = (x[column] - mean) * rstd * weight[column];
                *y = scaled + bias.map_or(0.0, |bias| bias[column]);
            }
            let statistics = args.outputs[y_index + 1].float_mut();
            statistics[2 * row] = mean;
            statistics[2 * row + 1] = rstd;
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
        let (rows, columns) = (inputs[0].shape.rows(), inputs[0].shape.columns());
        let widths = match self.kind {
            Kind::Layer => kernels::LAYER_NORM_FORWARD_WIDTHS,
            Kind::Rms => kernels::RMS_NORM_FORWARD_WIDTHS,
        };
        let kernel = RowKernel::new(widths, columns, inputs[0].dtype)?;
        let y = usize::from(self.has_residual);
        let (sum, residual) = if self.has_residual {
            (Argument::output(0), Argument::input(1))
        } else {
            (Argument::Null, Argument::Null)
        };
        let arguments = vec![
            sum,
            Argument::output(y),
            Argument::output(y + 1),
            Argument::input(0),
            residual,
            Argument::input(self.weight()),
            self.bias().map_or(Argument::Null, Argument::input),
            Argument::F32(self.epsilon),
            Argument::I64(rows as i64),
            index(kernel.entry, "the number of columns", columns)?,
        ];
        let blocks = kernel.sharing_blocks(rows)?;
        Ok(vec![Launch::new(kernel.entry, blocks, arguments)])
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let mut gradients = vec![None; backward.inputs.len()];
        let y_index = usize::from(self.has_residual);
        let sum_gradient = if self.has_residual {
            backward.gradients[0]
        } else {
            None
        };
        // x and the residual enter the sum alike, so one gradient is theirs both: what arrives at the sum itself plus
        // what comes through the norm, which adds to it in the same pass.
        let mut dx = sum_gradient;
        if let Some(dy) = backward.gradients[y_index] {
            let x = if self.has_residual {
                backward.outputs[0]
            } else {
                backward.inputs[0]
            };
            let statistics = backward.outputs[y_index + 1];
            let weight = backward.inputs[self.weight()];
            let owes_parameters = (self.weight()..backward.inputs.len()).any(|i| backward.needs(i));
            let op = NormBackward {
                kind: self.kind,
                gives_parameters: owes_parameters,
                accumulates: sum_gradient.is_some(),
            };
            let mut inputs = vec![dy, x, weight, statistics];
            inputs.extend(sum_gradient);
            let outputs = backward.tape.record(op, &inputs)?;
            dx = Some(outputs[0]);
            if owes_parameters {
                gradients[self.weight()..]
                    .copy_from_slice(&outputs[1..].iter().copied().map(Some).collect::<Vec<_>>());
            }
        }
        for gradient in &mut gradients[..self.weight()] {
            *gradient = dx;
        }
        for index in 0..gradients.len() {
            if !backward.needs(index) {
                gradients[index] = None;
            }
        }
        Ok(gradients)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let each = match self.kind {
            Kind::Layer => 8.0,
            Kind::Rms => 4.0,
        } + f64::from(u8::from(self.has_residual));
        Cost::streaming(each * inputs[0].numel() as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        if self.has_residual {
            &[(0, 0), (0, 1)]
        } else {
            &[(0, 0)]
        }
    }
}
