//! Contrastive losses between N pictures and N texts, in tiles: memory is O(N·E), never N².
//!
//! With unit features u, v [N, E] and a = log_scale:
//!
//! InfoNCE (Radford et al. 2021): S = eᵃ u vᵀ, r_i = log Σ_j e^S_ij, c_j = log Σ_i e^S_ij,
//! L = 1/2N · [Σ (r_i − S_ii) + Σ (c_j − S_jj)], G = ∂L/∂S = (e^(S − r 1ᵀ) + e^(S − 1 cᵀ) − 2·1) / 2N.
//!
//! Sigmoid (Zhai et al. 2023): S = eᵃ u vᵀ + b, L = 1/N · [Σ_ij softplus(S_ij) − Σ S_ii], G = (σ(S) − 1) / N, where 1
//! is the identity; ∂b = Σ G.
//!
//! Both: ∂u = eᵃ G v, ∂v = eᵃ Gᵀ u, ∂a = Σ_i ⟨u_i, ∂u_i⟩. Saved: r and c [N] (InfoNCE), nothing (sigmoid).
//! Work: forward 4·N²·E flops (rows and columns are swept apart so that each log-sum has one owner), backward 8·N²·E.

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::executor::cpu::matmul::{Rows, RowsMut, product, product_workspace};
use crate::tape::{Backward, Cost, CpuArgs, Op, Output, ReferenceArgs, Tape, Target, Value};
use crate::tensor::TensorType;

/// The form of a contrastive loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contrastive {
    /// Softmax over the batch in both directions.
    InfoNce,
    /// One logistic loss a pair, with a bias.
    Sigmoid,
}

/// Rows of one similarity tile.
const TILE_ROWS: usize = 64;
/// Columns of one similarity tile.
const TILE_COLUMNS: usize = 256;
/// Runs of rows that are worked on side by side, whatever the threads.
const LANES: usize = 16;

/// Records the loss [1]. `image` and `text` f32 [N, E] of unit length, `log_scale` [1]; `bias` [1] in the sigmoid form
/// and only there.
///
/// # Errors
/// [`Error::Shape`] when the features differ in shape or the bias does not fit the form.
pub fn contrastive_loss(
    tape: &mut Tape,
    image: Value,
    text: Value,
    log_scale: Value,
    bias: Option<Value>,
    kind: Contrastive,
) -> Result<Value> {
    let mut inputs = vec![image, text, log_scale];
    inputs.extend(bias);
    tape.record_one(ContrastiveLoss { kind }, &inputs)
}

fn infer_features(inputs: &[TensorType], kind: Contrastive) -> Result<[usize; 2]> {
    const OP: &str = "contrastive_loss";
    let want = match kind {
        Contrastive::InfoNce => 3,
        Contrastive::Sigmoid => 4,
    };
    if inputs.len() < want {
        return Err(Error::shape(
            OP,
            "inputs",
            format!("{want} values"),
            inputs.len(),
        ));
    }
    let [image, text, ..] = inputs else {
        unreachable!("counted above")
    };
    let &[n, e] = image.shape.dims() else {
        return Err(Error::shape(OP, "image", "f32 [N, E]", image));
    };
    if *image != TensorType::f32([n, e]) || n == 0 {
        return Err(Error::shape(
            OP,
            "image",
            "f32 [N, E] with N at least 1",
            image,
        ));
    }
    if text != image {
        return Err(Error::shape(
            OP,
            "text",
            format!("of the images' type, {image}"),
            text,
        ));
    }
    for (name, ty) in ["log_scale", "bias"].iter().zip(&inputs[2..want]) {
        if *ty != TensorType::f32([1]) {
            return Err(Error::shape(OP, *name, "f32 [1]", ty));
        }
    }
    Ok([n, e])
}

#[derive(Clone, Copy, Debug)]
struct ContrastiveLoss {
    kind: Contrastive,
}

/// softplus(x) = log(1 + eˣ) without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let most = values.clone().fold(f64::NEG_INFINITY, f64::max);
    most + values.map(|x| (x - most).exp()).sum::<f64>().ln()
}

/// All similarities in f64, for the reference.
fn similarities(u: &[f64], v: &[f64], n: usize, scale: f64, bias: f64) -> Vec<f64> {
    let e = u.len() / n;
    let mut s = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..n {
            let dot: f64 = (0..e).map(|k| u[i * e + k] * v[j * e + k]).sum();
            s[i * n + j] = scale * dot + bias;
        }
    }
    s
}

impl Op for ContrastiveLoss {
    fn name(&self) -> &'static str {
        "contrastive_loss"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [n, _] = infer_features(inputs, self.kind)?;
        let mut outputs = vec![TensorType::f32([1])];
        if self.kind == Contrastive::InfoNce {
            outputs.extend([TensorType::f32([n]), TensorType::f32([n])]);
        }
        Ok(outputs)
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let (u, v) = (args.inputs[0].float(), args.inputs[1].float());
        let n = args.inputs[0].shape.rows();
        let scale = args.inputs[2].float()[0].exp();
        match self.kind {
            Contrastive::InfoNce => {
                let s = similarities(u, v, n, scale, 0.0);
                let mut loss = 0.0;
                for i in 0..n {
                    let row = log_sum_exp((0..n).map(|j| s[i * n + j]));
                    let column = log_sum_exp((0..n).map(|j| s[j * n + i]));
                    loss += (row - s[i * n + i]) + (column - s[i * n + i]);
                    args.outputs[1].float_mut()[i] = row;
                    args.outputs[2].float_mut()[i] = column;
                }
                args.outputs[0].float_mut()[0] = loss / (2 * n) as f64;
            }
            Contrastive::Sigmoid => {
                let s = similarities(u, v, n, scale, args.inputs[3].float()[0]);
                let all: f64 = s.iter().map(|x| softplus(*x)).sum();
                let own: f64 = (0..n).map(|i| s[i * n + i]).sum();
                args.outputs[0].float_mut()[0] = (all - own) / n as f64;
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let (u, v) = (args.inputs.f32(0), args.inputs.f32(1));
        let shape = args.input_types[0].shape;
        let sweep = Sweep {
            n: shape.rows(),
            e: shape.columns(),
            scale: args.inputs.f32(2)[0].exp(),
            bias: if self.kind == Contrastive::Sigmoid {
                args.inputs.f32(3)[0]
            } else {
                0.0
            },
        };
        let n = sweep.n;
        match self.kind {
            Contrastive::InfoNce => {
                let [loss, row, column] = args.outputs.f32();
                sweep.log_sums(u, v, row, args.workspace);
                sweep.log_sums(v, u, column, args.workspace);
                let mut sum = 0.0;
                for i in 0..n {
                    let own = f64::from(sweep.own(u, v, i));
                    sum += (f64::from(row[i]) - own) + (f64::from(column[i]) - own);
                }
                loss[0] = (sum / (2 * n) as f64) as f32;
            }
            Contrastive::Sigmoid => {
                let [loss] = args.outputs.f32();
                let (sums, scratch) = args.workspace.split_at_mut(n);
                sweep.rows(u, v, sums, 1, scratch, |tile, _, _, sum| {
                    sum[0] += tile.iter().map(|x| softplus(f64::from(*x))).sum::<f64>() as f32;
                });
                let all: f64 = sums.iter().map(|x| f64::from(*x)).sum();
                let own: f64 = (0..n).map(|i| f64::from(sweep.own(u, v, i))).sum();
                loss[0] = ((all - own) / n as f64) as f32;
            }
        }
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let mut inputs = backward.inputs.to_vec();
        inputs.extend(&backward.outputs[1..]);
        inputs.push(backward.gradient(0));
        let gradients = backward
            .tape
            .record(ContrastiveLossBackward { kind: self.kind }, &inputs)?;
        Ok(gradients.into_iter().map(Some).collect())
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let (n, e) = (
            inputs[0].shape.rows() as f64,
            inputs[0].shape.columns() as f64,
        );
        let sweeps = if self.kind == Contrastive::InfoNce {
            2.0
        } else {
            1.0
        };
        Cost::streaming(sweeps * 2.0 * n * n * e, inputs, outputs)
    }

    fn workspace(&self, inputs: &[TensorType], _: &[TensorType], target: Target) -> usize {
        workspace_bytes(inputs, target)
    }
}

fn workspace_bytes(inputs: &[TensorType], target: Target) -> usize {
    match target {
        Target::Cpu { .. } => {
            let (n, e) = (inputs[0].shape.rows(), inputs[0].shape.columns());
            (2 * n + LANES * Sweep::scratch(e)) * size_of::<f32>()
        }
        _ => 0,
    }
}

/// The similarities of N rows with N others, tile by tile.
struct Sweep {
    n: usize,
    e: usize,
    scale: f32,
    bias: f32,
}

impl Sweep {
    /// Floats of scratch memory of one lane: a tile and the product's own, for the similarity and the gradient.
    fn scratch(e: usize) -> usize {
        let products = product_workspace(e, TILE_COLUMNS).max(product_workspace(TILE_COLUMNS, e));
        TILE_ROWS * TILE_COLUMNS + products
    }

    fn own(&self, u: &[f32], v: &[f32], i: usize) -> f32 {
        let (u, v) = (&u[i * self.e..][..self.e], &v[i * self.e..][..self.e]);
        let dot: f64 = u
            .iter()
            .zip(v)
            .map(|(u, v)| f64::from(*u) * f64::from(*v))
            .sum();
        (f64::from(self.scale) * dot + f64::from(self.bias)) as f32
    }

    /// Rows that one lane owns.
    fn lane_rows(&self) -> usize {
        self.n.div_ceil(LANES).next_multiple_of(8).max(1)
    }

    /// Calls `visit(similarities of one row with a run of columns, row, first column, the row's output)` for every row,
    /// columns in rising order; `out` has `width` numbers a row, zeroed first.
    fn rows(
        &self,
        x: &[f32],
        y: &[f32],
        out: &mut [f32],
        width: usize,
        scratch: &mut [f32],
        visit: impl Fn(&[f32], usize, usize, &mut [f32]) + Sync,
    ) {
        self.tiles(
            x,
            y,
            out,
            width,
            scratch,
            |tile, columns, first_row, first, out, _| {
                for (offset, (tile, out)) in
                    tile.chunks(columns).zip(out.chunks_mut(width)).enumerate()
                {
                    visit(tile, first_row + offset, first, out);
                }
            },
        );
    }

    /// Calls `visit(tile [rows, columns], columns, first row, first column, outputs of these rows, scratch)`.
    fn tiles(
        &self,
        x: &[f32],
        y: &[f32],
        out: &mut [f32],
        width: usize,
        scratch: &mut [f32],
        visit: impl Fn(&mut [f32], usize, usize, usize, &mut [f32], &mut [f32]) + Sync,
    ) {
        let (n, e, lane_rows) = (self.n, self.e, self.lane_rows());
        out.par_chunks_mut(lane_rows * width)
            .zip(scratch.par_chunks_mut(Self::scratch(e)))
            .enumerate()
            .for_each(|(lane, (out, scratch))| {
                out.fill(0.0);
                let (tile, scratch) = scratch.split_at_mut(TILE_ROWS * TILE_COLUMNS);
                for (block, out) in out.chunks_mut(TILE_ROWS * width).enumerate() {
                    let first_row = lane * lane_rows + block * TILE_ROWS;
                    let rows = out.len() / width;
                    for first in (0..n).step_by(TILE_COLUMNS) {
                        let columns = TILE_COLUMNS.min(n - first);
                        let tile = &mut tile[..rows * columns];
                        product(
                            self.scale,
                            Rows::new(&x[first_row * e..], rows, e),
                            Rows::new(&y[first * e..], columns, e).transposed(),
                            0.0,
                            RowsMut::new(tile, rows, columns),
                            scratch,
                        );
                        if self.bias != 0.0 {
                            tile.iter_mut().for_each(|s| *s += self.bias);
                        }
                        visit(tile, columns, first_row, first, out, scratch);
                    }
                }
            });
    }

    /// out_i = log Σ_j e^(S_ij), by a running maximum and sum.
    fn log_sums(&self, x: &[f32], y: &[f32], out: &mut [f32], workspace: &mut [f32]) {
        let (state, scratch) = workspace.split_at_mut(2 * self.n);
        self.rows(x, y, state, 2, scratch, |tile, _, first, state| {
            let most = tile.iter().fold(f32::NEG_INFINITY, |m, s| m.max(*s));
            let before = if first == 0 {
                f32::NEG_INFINITY
            } else {
                state[0]
            };
            let top = most.max(before);
            let here: f32 = tile.iter().map(|s| (s - top).exp()).sum();
            let kept = if first == 0 {
                0.0
            } else {
                state[1] * (before - top).exp()
            };
            state[0] = top;
            state[1] = kept + here;
        });
        for (out, state) in out.iter_mut().zip(state.chunks(2)) {
            *out = state[0] + state[1].ln();
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct ContrastiveLossBackward {
    kind: Contrastive,
}

impl Op for ContrastiveLossBackward {
    fn name(&self) -> &'static str {
        "contrastive_loss_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        infer_features(inputs, self.kind)?;
        let scalars = if self.kind == Contrastive::Sigmoid {
            2
        } else {
            1
        };
        let mut outputs = vec![inputs[0], inputs[1]];
        outputs.extend(vec![TensorType::f32([1]); scalars]);
        Ok(outputs)
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let (u, v) = (args.inputs[0].float(), args.inputs[1].float());
        let (n, e) = (args.inputs[0].shape.rows(), args.inputs[0].columns());
        let scale = args.inputs[2].float()[0].exp();
        let dloss = args.inputs[args.inputs.len() - 1].float()[0];
        let sigmoid = self.kind == Contrastive::Sigmoid;
        let bias = if sigmoid {
            args.inputs[3].float()[0]
        } else {
            0.0
        };
        let s = similarities(u, v, n, scale, bias);
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
        for i in 0..n {
            for k in 0..e {
                let du: f64 = (0..n).map(|j| scale * g[i * n + j] * v[j * e + k]).sum();
                let dv: f64 = (0..n).map(|j| scale * g[j * n + i] * u[j * e + k]).sum();
                dscale += du * u[i * e + k];
                args.outputs[0].float_mut()[i * e + k] = du;
                args.outputs[1].float_mut()[i * e + k] = dv;
            }
        }
        args.outputs[2].float_mut()[0] = dscale;
        if sigmoid {
            args.outputs[3].float_mut()[0] = g.iter().sum();
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let (u, v) = (args.inputs.f32(0), args.inputs.f32(1));
        let shape = args.input_types[0].shape;
        let (n, e) = (shape.rows(), shape.columns());
        let dloss = args.inputs.f32(args.inputs.len() - 1)[0];
        let sigmoid = self.kind == Contrastive::Sigmoid;
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
            set(sum * f64::from(dloss) / n as f64);
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

    fn workspace(&self, inputs: &[TensorType], _: &[TensorType], target: Target) -> usize {
        workspace_bytes(inputs, target)
    }
}
