//! Contrastive losses between N images and N texts, in tiles: memory is O(N·E), never N².
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
//!
//! A batch may hold text without images: with a number of pairs M, all of the above is of the first M rows of both sides,
//! and the gradients of the others are 0. A loss of no pairs is 0.
//!
//! A batch may hold an image or a text several times. Such an image and such a text match each other's partners too, so
//! with identities given, a score S_ij, i ≠ j, whose images i and j or whose texts i and j are equal is masked: neither
//! positive nor negative, as if it were −∞. It adds nothing to r_i, c_j or the sigmoid sum, and G_ij = 0. What a row is
//! compared with is settled tile by tile from two numbers a row, so that no N² mask is ever stored.
//! Work: forward 4·N²·E flops (rows and columns are swept apart so that each log-sum has one owner), backward 8·N²·E; on a
//! GPU 2·N²·E and 6·N²·E.

mod backward;
mod launches;
mod mask;
mod over_ranks;
mod rank_launches;
mod sweep;

use serde::{Deserialize, Serialize};

use backward::ContrastiveLossBackward;
use launches::{BLOCK_ROWS, Problem};
use mask::{Identities, MaskInputs};
use sweep::{Sweep, workspace_bytes};

pub use mask::ContrastiveMask;
pub use over_ranks::{RankPairs, contrastive_loss_over_ranks};

use crate::launch::Launch;
use crate::ops::special::dot;
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Tape, Target, Value,
    with_element,
};
use crate::tensor::TensorType;
use keel_base::error::{Error, Result};

/// The form of a contrastive loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contrastive {
    /// Softmax cross entropy over the batch in both directions (CLIP; Radford et al. 2021, §2.3).
    InfoNce,
    /// One logistic loss for each image-text pair of the batch (SigLIP; Zhai et al. 2023, §3.2).
    Sigmoid,
}

impl Contrastive {
    /// Inputs of the loss before those of the mask.
    fn inputs(self) -> usize {
        match self {
            Contrastive::InfoNce => 3,
            Contrastive::Sigmoid => 4,
        }
    }
}

/// Records the loss f32 `[1]` of image, text and log_scale: image and text f32 or bf16 [N, E] of unit length, log_scale f32
/// `[1]`; `bias` f32 `[1]` in the sigmoid form and only there. `mask` says which scores take part.
///
/// # Errors
/// [`Error::Shape`] when the features differ in shape, the bias does not fit the form or an input of the mask is not of its
/// type.
pub fn contrastive_loss(
    tape: &mut Tape,
    features: [Value; 3],
    bias: Option<Value>,
    mask: ContrastiveMask,
    kind: Contrastive,
) -> Result<Value> {
    contrastive_loss_in_row_blocks(tape, features, bias, mask, kind, BLOCK_ROWS)
}

/// As [`contrastive_loss`], with at most `block_rows` rows of scores held at a time on a GPU, in whole tiles of 128: for
/// proof that row blocks add up, at sizes that need few.
///
/// # Errors
/// As [`contrastive_loss`].
pub fn contrastive_loss_in_row_blocks(
    tape: &mut Tape,
    features: [Value; 3],
    bias: Option<Value>,
    mask: ContrastiveMask,
    kind: Contrastive,
    block_rows: usize,
) -> Result<Value> {
    let mut inputs = features.to_vec();
    inputs.extend(bias);
    inputs.extend(mask.values());
    let op = ContrastiveLoss {
        kind,
        mask: mask.inputs(),
        block_rows,
    };
    tape.record_one(op, &inputs)
}

fn infer_features(inputs: &[TensorType], kind: Contrastive) -> Result<[usize; 2]> {
    const OP: &str = "contrastive_loss";
    let want = kind.inputs();
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
        return Err(Error::shape(OP, "image", "f32 or bf16 [N, E]", image));
    };
    if !image.dtype.is_float() || n == 0 {
        return Err(Error::shape(
            OP,
            "image",
            "f32 or bf16 [N, E] with N at least 1",
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
    mask: MaskInputs,
    /// Rows of a block of scores, at most.
    block_rows: usize,
}

impl ContrastiveLoss {
    fn problem(&self, inputs: &[TensorType]) -> Problem {
        Problem::of(inputs, self.kind, self.mask, self.block_rows)
    }
}

/// softplus(x) = log(1 + eˣ) without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let most = values.clone().fold(f64::NEG_INFINITY, f64::max);
    most + values.map(|x| (x - most).exp()).sum::<f64>().ln()
}

/// The scores of the first `n` rows of `e` features in f64, −∞ where they are masked, for the reference.
fn scores(
    [u, v]: [&[f64]; 2],
    [n, e]: [usize; 2],
    [scale, bias]: [f64; 2],
    identities: Option<Identities<'_>>,
) -> Vec<f64> {
    let mut s = vec![f64::NEG_INFINITY; n * n];
    for i in 0..n {
        for j in 0..n {
            if identities.is_none_or(|identities| !identities.masks(i, j)) {
                s[i * n + j] = scale * dot(&u[i * e..][..e], &v[j * e..][..e]) + bias;
            }
        }
    }
    s
}

impl ContrastiveLoss {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let (u, v) = (args.inputs.of::<T>(0), args.inputs.of::<T>(1));
        let shape = args.input_types[0].shape;
        let mask = self.mask.behind(self.kind.inputs());
        let integers = |index| args.inputs.i32(index);
        let pairs = mask.pairs(shape.rows(), integers);
        let sweep = Sweep {
            n: pairs,
            columns: pairs,
            first: 0,
            pairs,
            counts: None,
            e: shape.columns(),
            scale: args.inputs.f32(2)[0].exp(),
            bias: if self.kind == Contrastive::Sigmoid {
                args.inputs.f32(3)[0]
            } else {
                0.0
            },
            identities: mask.identities(integers),
        };
        let n = sweep.n;
        match self.kind {
            Contrastive::InfoNce => {
                let [loss, row, column] = args.outputs.f32();
                let (row, others) = row.split_at_mut(n);
                others.fill(0.0);
                let (column, others) = column.split_at_mut(n);
                others.fill(0.0);
                sweep.log_sums(u, v, row, args.workspace);
                sweep.log_sums(v, u, column, args.workspace);
                let mut sum = 0.0;
                for i in 0..n {
                    let own = f64::from(sweep.own(u, v, i));
                    sum += (f64::from(row[i]) - own) + (f64::from(column[i]) - own);
                }
                loss[0] = (sum / (2 * n.max(1)) as f64) as f32;
            }
            Contrastive::Sigmoid => {
                let [loss] = args.outputs.f32();
                let (sums, scratch) = args.workspace.split_at_mut(n);
                sweep.rows(u, v, sums, 1, scratch, |tile, _, _, sum| {
                    sum[0] += tile.iter().map(|x| softplus(f64::from(*x))).sum::<f64>() as f32;
                });
                let all: f64 = sums.iter().map(|x| f64::from(*x)).sum();
                let own: f64 = (0..n).map(|i| f64::from(sweep.own(u, v, i))).sum();
                loss[0] = ((all - own) / n.max(1) as f64) as f32;
            }
        }
    }
}

impl Op for ContrastiveLoss {
    fn name(&self) -> &'static str {
        "contrastive_loss"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [n, _] = infer_features(inputs, self.kind)?;
        self.mask
            .infer("contrastive_loss", &inputs[self.kind.inputs()..], n)?;
        let mut outputs = vec![TensorType::f32([1])];
        if self.kind == Contrastive::InfoNce {
            outputs.extend([TensorType::f32([n]), TensorType::f32([n])]);
        }
        Ok(outputs)
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let features = [args.inputs[0].float(), args.inputs[1].float()];
        let (rows, e) = (args.inputs[0].shape.rows(), args.inputs[0].columns());
        let mask = self.mask.behind(self.kind.inputs());
        let integers = |index: usize| args.inputs[index].int();
        let (n, identities) = (mask.pairs(rows, integers), mask.identities(integers));
        let scale = args.inputs[2].float()[0].exp();
        match self.kind {
            Contrastive::InfoNce => {
                let s = scores(features, [n, e], [scale, 0.0], identities);
                let mut loss = 0.0;
                for sums in &mut args.outputs[1..] {
                    sums.float_mut()[n..].fill(0.0);
                }
                for i in 0..n {
                    let row = log_sum_exp((0..n).map(|j| s[i * n + j]));
                    let column = log_sum_exp((0..n).map(|j| s[j * n + i]));
                    loss += (row - s[i * n + i]) + (column - s[i * n + i]);
                    args.outputs[1].float_mut()[i] = row;
                    args.outputs[2].float_mut()[i] = column;
                }
                args.outputs[0].float_mut()[0] = loss / (2 * n.max(1)) as f64;
            }
            Contrastive::Sigmoid => {
                let bias = args.inputs[3].float()[0];
                let s = scores(features, [n, e], [scale, bias], identities);
                let all: f64 = s.iter().map(|x| softplus(*x)).sum();
                let own: f64 = (0..n).map(|i| s[i * n + i]).sum();
                args.outputs[0].float_mut()[0] = (all - own) / n.max(1) as f64;
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[0].dtype, T => self.compute::<T>(args));
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let (features, mask) = backward.inputs.split_at(self.kind.inputs());
        let mut inputs = features.to_vec();
        inputs.extend(&backward.outputs[1..]);
        inputs.push(backward.gradient(0));
        inputs.extend(mask);
        let op = ContrastiveLossBackward {
            kind: self.kind,
            mask: self.mask,
            block_rows: self.block_rows,
        };
        let gradients = backward.tape.record(op, &inputs)?;
        let none = mask.iter().map(|_| None);
        Ok(gradients.into_iter().map(Some).chain(none).collect())
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

    fn launches(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        self.problem(inputs).forward_launches()
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        match compile_target.target {
            Target::Cuda => self.problem(inputs).forward_bytes(),
            _ => workspace_bytes(inputs, compile_target.target),
        }
    }
}
