//! The gradients of both features, of the scale and of the bias.

use super::launches::Problem;
use super::mask::{MaskInputs, MaskPlaces};
use super::sweep::{Sweep, workspace_bytes};
use super::{Contrastive, infer_features, scores};
use crate::launch::Launch;
use crate::ops::special::dot;
use crate::tape::{CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Target, with_element};
use crate::tensor::TensorType;
use keel_base::error::Result;
use keel_cpu::Stored;
use keel_cpu::matmul::{Rows, RowsMut, product};

/// Inputs: u, v, log_scale; r and c (InfoNCE) or the bias; dL; those of the mask.
#[derive(Clone, Copy, Debug)]
pub(super) struct ContrastiveLossBackward {
    pub kind: Contrastive,
    pub mask: MaskInputs,
    pub block_rows: usize,
}

impl ContrastiveLossBackward {
    fn is_sigmoid(self) -> bool {
        self.kind == Contrastive::Sigmoid
    }

    /// The input dL; behind it come those of the mask.
    fn gradient_input(self) -> usize {
        if self.is_sigmoid() { 4 } else { 5 }
    }

    fn mask_places(self) -> MaskPlaces {
        self.mask.behind(self.gradient_input() + 1)
    }

    fn problem(&self, inputs: &[TensorType]) -> Problem {
        Problem::of(inputs, self.kind, self.mask, self.block_rows)
    }
}

/// What the gradient of a tile of scores is made of on the processor.
pub(super) struct ScoreGradient<'a> {
    pub sweep: &'a Sweep<'a>,
    pub dloss: f32,
    /// The log-sums of the rows and of the columns of S (InfoNCE); nothing in the sigmoid form.
    pub log_sums: Option<[&'a [f32]; 2]>,
}

impl ScoreGradient<'_> {
    /// dx = eᵃ G y, where G's rows belong to x and the log-sums are those of G's rows and columns.
    pub fn features<T: Stored>(&self, [x, y]: [&[T]; 2], dx: &mut [f32], scratch: &mut [f32]) {
        let e = self.sweep.e;
        self.sweep.tiles(
            x,
            y,
            dx,
            e,
            scratch,
            |tile, columns, first_row, first, dx, scratch| {
                self.of_tile(tile, columns, [first_row, first]);
                let rows = dx.len() / e;
                product(
                    self.sweep.scale,
                    Rows::new(tile, rows, columns),
                    Rows::new(&y[first * e..], columns, e),
                    1.0,
                    RowsMut::new(dx, rows, e),
                    scratch,
                );
            },
        );
    }

    /// Turns a tile of S, whose first score is of row and column `first`, into that of G. A masked score is −∞, and becomes
    /// 0 in both forms.
    fn of_tile(&self, tile: &mut [f32], columns: usize, first: [usize; 2]) {
        let n = self.sweep.pairs as f32;
        for (row, tile) in tile.chunks_mut(columns).enumerate() {
            let row = self.sweep.first + first[0] + row;
            match self.log_sums {
                Some([own, other]) => {
                    let factor = self.dloss / (2.0 * n);
                    for (s, other) in tile.iter_mut().zip(&other[first[1]..]) {
                        *s = factor * ((*s - own[row]).exp() + (*s - other).exp());
                    }
                }
                None => {
                    let factor = self.dloss / n;
                    for s in tile.iter_mut() {
                        *s = factor / (1.0 + (-*s).exp());
                    }
                }
            }
            if (first[1]..first[1] + columns).contains(&row) {
                tile[row - first[1]] -= self.dloss / n;
            }
        }
    }

    /// ∂b = Σ G of the sigmoid form. From S once more, because ∂u and ∂v leave no G behind.
    pub fn bias<T: Stored>(&self, [u, v]: [&[T]; 2], workspace: &mut [f32]) -> f64 {
        let n = self.sweep.n;
        let (sums, scratch) = workspace.split_at_mut(n);
        self.sweep
            .rows(u, v, sums, 1, scratch, |tile, row, first, sum| {
                let sigmoids: f64 = tile
                    .iter()
                    .map(|s| 1.0 / (1.0 + f64::from(-*s).exp()))
                    .sum();
                let row = self.sweep.first + row;
                let own = if (first..first + tile.len()).contains(&row) {
                    1.0
                } else {
                    0.0
                };
                sum[0] += (sigmoids - own) as f32;
            });
        let sum: f64 = sums.iter().map(|x| f64::from(*x)).sum();
        sum * f64::from(self.dloss) / self.sweep.pairs.max(1) as f64
    }
}

impl ContrastiveLossBackward {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let features = [args.inputs.of::<T>(0), args.inputs.of::<T>(1)];
        let shape = args.input_types[0].shape;
        let integers = |index| args.inputs.i32(index);
        let pairs = self.mask_places().pairs(shape.rows(), integers);
        let sweep = Sweep {
            n: pairs,
            columns: pairs,
            first: 0,
            pairs,
            counts: None,
            e: shape.columns(),
            scale: args.inputs.f32(2)[0].exp(),
            bias: if self.is_sigmoid() {
                args.inputs.f32(3)[0]
            } else {
                0.0
            },
            identities: self.mask_places().identities(integers),
        };
        let of_images = ScoreGradient {
            sweep: &sweep,
            dloss: args.inputs.f32(self.gradient_input())[0],
            log_sums: (!self.is_sigmoid()).then(|| [args.inputs.f32(3), args.inputs.f32(4)]),
        };
        // Of the texts, the rows of Gᵀ are the columns of G.
        let of_texts = ScoreGradient {
            log_sums: of_images.log_sums.map(|[row, column]| [column, row]),
            ..of_images
        };
        let mut outputs = args.outputs.in_order();
        let (du, dv) = (outputs.next::<T>(), outputs.next::<T>());
        let ([u, v], [n, e]) = (features, [sweep.n, sweep.e]);
        let (unrounded, workspace) = args.workspace.split_at_mut(T::scratch(n * e));
        let mut dscale = 0.0;
        for (gradient, features, dx) in [(&of_texts, [v, u], dv), (&of_images, [u, v], du)] {
            let (dx, others) = dx.split_at_mut(n * e);
            others.fill(T::default());
            let mut dx = RowsMut::new(dx, n, e);
            let mut target = T::target(dx.reborrow(), unrounded);
            let of_features = target.as_mut_slice();
            gradient.features(features, of_features, workspace);
            // Of the side that comes last, the images, and from sums that nobody has rounded.
            dscale = features[0]
                .iter()
                .zip(&*of_features)
                .map(|(x, dx)| f64::from(x.widen()) * f64::from(*dx))
                .sum();
            T::settle(dx, unrounded);
        }
        outputs.next::<f32>()[0] = dscale as f32;
        if self.is_sigmoid() {
            outputs.next::<f32>()[0] = of_images.bias(features, workspace) as f32;
        }
    }
}

impl Op for ContrastiveLossBackward {
    fn name(&self) -> &'static str {
        "contrastive_loss_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [n, _] = infer_features(inputs, self.kind)?;
        self.mask
            .infer(self.name(), &inputs[self.gradient_input() + 1..], n)?;
        let scalars = if self.is_sigmoid() { 2 } else { 1 };
        let mut outputs = vec![inputs[0], inputs[1]];
        outputs.extend(vec![TensorType::f32([1]); scalars]);
        Ok(outputs)
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let (u, v) = (args.inputs[0].float(), args.inputs[1].float());
        let (rows, e) = (args.inputs[0].shape.rows(), args.inputs[0].columns());
        let integers = |index: usize| args.inputs[index].int();
        let n = self.mask_places().pairs(rows, integers);
        let identities = self.mask_places().identities(integers);
        let scale = args.inputs[2].float()[0].exp();
        let dloss = args.inputs[self.gradient_input()].float()[0];
        let bias = if self.is_sigmoid() {
            args.inputs[3].float()[0]
        } else {
            0.0
        };
        let s = scores([u, v], [n, e], [scale, bias], identities);
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
        if self.is_sigmoid() {
            args.outputs[3].float_mut()[0] = g.iter().sum();
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[0].dtype, T => self.compute::<T>(args));
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
        self.problem(inputs).backward_launches()
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        match compile_target.target {
            Target::Cuda => self.problem(inputs).backward_bytes(),
            _ => workspace_bytes(inputs, compile_target.target),
        }
    }
}
