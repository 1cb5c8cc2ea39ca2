//! The gradients of both features, of the scale and of the bias.

use super::launches::Problem;
use super::sweep::{Sweep, workspace_bytes};
use super::{Contrastive, infer_features, pairs_of, similarities};
use crate::launch::Launch;
use crate::ops::special::dot;
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Op, Output, ReferenceArgs, Target, Value,
};
use crate::tensor::TensorType;
use keel_base::error::Result;
use keel_cpu::matmul::{Rows, RowsMut, product};

/// Inputs: u, v, log_scale; r and c (InfoNCE) or the bias; dL; the number of pairs, where it is one.
#[derive(Clone, Copy, Debug)]
pub(super) struct ContrastiveLossBackward {
    pub kind: Contrastive,
    pub strip_rows: usize,
}

impl ContrastiveLossBackward {
    fn is_sigmoid(self) -> bool {
        self.kind == Contrastive::Sigmoid
    }

    /// The input dL; behind it comes the number of pairs.
    fn gradient_input(self) -> usize {
        if self.is_sigmoid() { 4 } else { 5 }
    }
}

impl Op for ContrastiveLossBackward {
    fn name(&self) -> &'static str {
        "contrastive_loss_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        infer_features(inputs, self.kind)?;
        let scalars = if self.is_sigmoid() { 2 } else { 1 };
        let mut outputs = vec![inputs[0], inputs[1]];
        outputs.extend(vec![TensorType::f32([1]); scalars]);
        Ok(outputs)
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let (u, v) = (args.inputs[0].float(), args.inputs[1].float());
        let (rows, e) = (args.inputs[0].shape.rows(), args.inputs[0].columns());
        let last = self.gradient_input();
        let count = args.inputs.get(last + 1);
        let n = pairs_of(rows, count.map(|count| count.int()[0]));
        let scale = args.inputs[2].float()[0].exp();
        let dloss = args.inputs[last].float()[0];
        let sigmoid = self.is_sigmoid();
        let bias = if sigmoid {
            args.inputs[3].float()[0]
        } else {
            0.0
        };
        let s = similarities(u, v, [n, e], scale, bias);
        let mut g = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..n {
                let own = if i == j { 1.0 } else { 0.0 };
                let s = s[i * n + j];
                g[i * n + j] = dloss
                    * match self.kind {
                        Contrastive::InfoNce => {
                            let (row, column) = (args.inputs[3].float(), args.inputs[4].float());
                            ((s - row[i]).exp() + (s - column[j]).exp() - 2.0 * own)
                                / (2 * n) as f64
                        }
                        Contrastive::Sigmoid => (1.0 / (1.0 + (-s).exp()) - own) / n as f64,
                    };
            }
        }
        let mut dscale = 0.0;
        for features in &mut args.outputs[..2] {
            features.float_mut()[n * e..].fill(0.0);
        }
        for i in 0..n {
            let (mut du, mut dv) = (vec![0.0; e], vec![0.0; e]);
            for j in 0..n {
                let (of_u, of_v) = (scale * g[i * n + j], scale * g[j * n + i]);
                for k in 0..e {
                    du[k] += of_u * v[j * e + k];
                    dv[k] += of_v * u[j * e + k];
                }
            }
            dscale += dot(&du, &u[i * e..][..e]);
            args.outputs[0].float_mut()[i * e..][..e].copy_from_slice(&du);
            args.outputs[1].float_mut()[i * e..][..e].copy_from_slice(&dv);
        }
        args.outputs[2].float_mut()[0] = dscale;
        if sigmoid {
            args.outputs[3].float_mut()[0] = g.iter().sum();
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let (u, v) = (args.inputs.f32(0), args.inputs.f32(1));
        let shape = args.input_types[0].shape;
        let last = self.gradient_input();
        let count = (last + 1 < args.inputs.len()).then(|| args.inputs.i32(last + 1)[0]);
        let (n, e) = (pairs_of(shape.rows(), count), shape.columns());
        let dloss = args.inputs.f32(last)[0];
        let sigmoid = self.is_sigmoid();
        let sweep = Sweep {
            n,
            e,
            scale: args.inputs.f32(2)[0].exp(),
            bias: if sigmoid { args.inputs.f32(3)[0] } else { 0.0 },
        };
        // dx = eᵃ G y, where G's rows belong to x; `own` and `other` are the log-sums of rows and columns.
        let gradient = |x: &[f32],
                        y: &[f32],
                        sums: Option<(&[f32], &[f32])>,
                        dx: &mut [f32],
                        scratch: &mut [f32]| {
            let factor = dloss / if sigmoid { n as f32 } else { 2.0 * n as f32 };
            sweep.tiles(
                x,
                y,
                dx,
                e,
                scratch,
                |tile, columns, first_row, first, dx, scratch| {
                    for (row, tile) in tile.chunks_mut(columns).enumerate() {
                        let row = first_row + row;
                        match sums {
                            Some((own, other)) => {
                                for (s, other) in tile.iter_mut().zip(&other[first..]) {
                                    *s = factor * ((*s - own[row]).exp() + (*s - other).exp());
                                }
                            }
                            None => {
                                for s in tile.iter_mut() {
                                    *s = factor / (1.0 + (-*s).exp());
                                }
                            }
                        }
                        if (first..first + columns).contains(&row) {
                            tile[row - first] -= dloss / n as f32;
                        }
                    }
                    let rows = dx.len() / e;
                    product(
                        sweep.scale,
                        Rows::new(tile, rows, columns),
                        Rows::new(&y[first * e..], columns, e),
                        1.0,
                        RowsMut::new(dx, rows, e),
                        scratch,
                    );
                },
            );
        };
        let outputs = args.outputs.0;
        let [Output::F32(du), Output::F32(dv), scalars @ ..] = outputs else {
            unreachable!("infer makes f32 outputs")
        };
        let (du, others) = du.split_at_mut(n * e);
        others.fill(0.0);
        let (dv, others) = dv.split_at_mut(n * e);
        others.fill(0.0);
        let sums = (!sigmoid).then(|| (args.inputs.f32(3), args.inputs.f32(4)));
        gradient(u, v, sums, du, args.workspace);
        gradient(
            v,
            u,
            sums.map(|(row, column)| (column, row)),
            dv,
            args.workspace,
        );
        let dscale: f64 = u
            .iter()
            .zip(du.iter())
            .map(|(u, d)| f64::from(*u) * f64::from(*d))
            .sum();
        let mut scalars = scalars.iter_mut();
        let mut set = |value: f64| {
            if let Some(Output::F32(place)) = scalars.next() {
                place[0] = value as f32;
            }
        };
        set(dscale);
        if sigmoid {
            let (sums, scratch) = args.workspace.split_at_mut(n);
            sweep.rows(u, v, sums, 1, scratch, |tile, row, first, sum| {
                let sigmoids: f64 = tile
                    .iter()
                    .map(|s| 1.0 / (1.0 + f64::from(-*s).exp()))
                    .sum();
                let own = if (first..first + tile.len()).contains(&row) {
                    1.0
                } else {
                    0.0
                };
                sum[0] += (sigmoids - own) as f32;
            });
            let sum: f64 = sums.iter().map(|x| f64::from(*x)).sum();
            set(sum * f64::from(dloss) / n.max(1) as f64);
        }
    }

    fn backward(&self, _: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        unreachable!("the tape differentiates forward ops only")
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let (n, e) = (
            inputs[0].shape.rows() as f64,
            inputs[0].shape.columns() as f64,
        );
        Cost::streaming(8.0 * n * n * e, inputs, outputs)
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        Problem::of(inputs, self.kind, self.strip_rows).backward_launches()
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        match compile_target.target {
            Target::Cuda => Problem::of(inputs, self.kind, self.strip_rows).backward_bytes(),
            _ => workspace_bytes(inputs, compile_target.target),
        }
    }
}
