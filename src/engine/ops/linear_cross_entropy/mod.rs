//! Next-token loss fused with the output product: logits h·Wᵀ are made tile by tile and never stored whole.
//!
//! h [N, D], W [V, D], targets i32 [N] (negative: not supervised), weights f32 [N]:
//! L = Σ w_t (lse_t − z_t[target]) / Σ w_t over supervised t, with z = h Wᵀ and lse = log Σ_v e^z_v; 0 where Σ w is 0.
//! ∂z = (softmax(z) − onehot) w_t / Σ w · dL, ∂h = ∂z W, ∂W = ∂zᵀ h. Saved: lse [N] and Σ w [1].
//! Rows that are not supervised are left out before the product. Forward 2·N·V·D flops, backward 6·N·V·D on a GPU: logits are
//! made once again for ∂h and ∂W, which is what not storing N·V of them costs. The processor makes them for each of the two:
//! 8·N·V·D.
//! A target of V or above makes the loss NaN, which stops a run: it must not pass for an unsupervised row.

mod argmax;
mod backward;
mod launches;
mod products;
mod tiles;

pub use argmax::linear_argmax;
use rayon::prelude::*;

use backward::{BackwardBoth, BackwardHidden, BackwardWeight};
use launches::Sizes;
use products::{Online, Products, with_products};
use tiles::{Head, TILE_ROWS, product_size, workspace_bytes};

use crate::launch::Launch;
use crate::ops::special::dot;
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Tape, Target, Value,
};
use crate::tensor::TensorType;
use keel_base::error::{Error, Result};

/// Records the loss `[1]` of `hidden` [.., D] through `weight` [V, D] of its type against `targets` i32 [..] with `weights`
/// f32 [..].
///
/// # Errors
/// [`Error::Shape`] when the shapes do not belong together.
pub fn linear_cross_entropy(
    tape: &mut Tape,
    hidden: Value,
    weight: Value,
    targets: Value,
    weights: Value,
) -> Result<Value> {
    tape.record_one(LinearCrossEntropy, &[hidden, weight, targets, weights])
}

fn check_product(op: &'static str, hidden: &TensorType, weight: &TensorType) -> Result<()> {
    if !hidden.dtype.is_float() || hidden.shape.rank() < 2 {
        return Err(Error::shape(op, "hidden", "floats [.., D]", hidden));
    }
    let d = hidden.shape.columns();
    let want = format!("{} [V, {d}]", hidden.dtype);
    let &[v, _] = weight.shape.dims() else {
        return Err(Error::shape(op, "weight", want, weight));
    };
    if *weight != TensorType::new(hidden.dtype, [v, d]) || v == 0 {
        return Err(Error::shape(op, "weight", want, weight));
    }
    Ok(())
}

fn outer(ty: &TensorType) -> &[usize] {
    let dims = ty.shape.dims();
    &dims[..dims.len() - 1]
}

fn infer_loss(inputs: &[TensorType]) -> Result<usize> {
    const OP: &str = "linear_cross_entropy";
    let [hidden, weight, targets, weights, ..] = inputs else {
        return Err(Error::shape(OP, "inputs", "four values", inputs.len()));
    };
    check_product(OP, hidden, weight)?;
    if *targets != TensorType::i32(outer(hidden)) {
        return Err(Error::shape(
            OP,
            "targets",
            TensorType::i32(outer(hidden)),
            targets,
        ));
    }
    if *weights != TensorType::f32(outer(hidden)) {
        return Err(Error::shape(
            OP,
            "weights",
            TensorType::f32(outer(hidden)),
            weights,
        ));
    }
    Ok(hidden.shape.rows())
}

/// Logits of one row in f64, for the reference.
fn logits(h: &[f64], w: &[f64], row: usize, d: usize) -> Vec<f64> {
    let h = &h[row * d..(row + 1) * d];
    w.chunks(d).map(|w| dot(w, h)).collect()
}

fn log_sum_exp(z: &[f64]) -> f64 {
    let most = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    most + z.iter().map(|z| (z - most).exp()).sum::<f64>().ln()
}

#[derive(Clone, Copy, Debug)]
struct LinearCrossEntropy;

impl LinearCrossEntropy {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element, P: Products<T>>(&self, args: CpuArgs<'_>) {
        let head = Head::<T>::of(&args);
        let weights = args.inputs.f32(3);
        let (sums, scratch) = args.workspace.split_at_mut(head.n);
        let [loss, lse, total] = args.outputs.f32();
        let worker_rows = head.worker_rows();
        lse.par_chunks_mut(worker_rows)
            .zip(sums.par_chunks_mut(worker_rows))
            .zip(scratch.par_chunks_mut(head.scratch()))
            .enumerate()
            .for_each(|(worker, ((lse, losses), scratch))| {
                lse.fill(0.0);
                losses.fill(0.0);
                let first = worker * worker_rows;
                head.supervised::<P>(first..first + lse.len(), scratch, |rows, h, scratch| {
                    let mut online = Online::new();
                    // NaN until the target's tile comes by: a target outside the vocabulary has none, and must not
                    // pass.
                    let mut own = [f32::NAN; TILE_ROWS];
                    head.words::<P>(h, rows.len(), 0..head.v, scratch, |z, words, _| {
                        for (slot, z) in z.chunks(words.len()).enumerate() {
                            let target = head.targets[rows[slot]] as usize;
                            if words.contains(&target) {
                                own[slot] = z[target - words.start];
                            }
                        }
                        P::add_exponentials(&mut online, z, words.len());
                    });
                    for (slot, row) in rows.iter().enumerate() {
                        lse[row - first] = online.top[slot] + online.sum[slot].ln();
                        losses[row - first] = lse[row - first] - own[slot];
                    }
                });
            });
        // On one thread and in f64: N terms are few beside the product, and a mean over a long batch keeps its digits.
        let (mut sum, mut all) = (0.0f64, 0.0f64);
        for ((target, weight), row_loss) in head.targets.iter().zip(weights).zip(&*sums) {
            if *target >= 0 {
                sum += f64::from(*weight) * f64::from(*row_loss);
                all += f64::from(*weight);
            }
        }
        loss[0] = if all == 0.0 { 0.0 } else { (sum / all) as f32 };
        total[0] = all as f32;
    }
}

impl Op for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let n = infer_loss(inputs)?;
        Ok(vec![
            TensorType::f32([1]),
            TensorType::f32([n]),
            TensorType::f32([1]),
        ])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([h, w, targets, weights], [loss, lse, total]) = args.split();
        let d = h.columns();
        let (mut sum, mut all) = (0.0, 0.0);
        for (row, (target, weight)) in targets.int().iter().zip(weights.float()).enumerate() {
            if *target < 0 {
                continue;
            }
            let z = logits(h.float(), w.float(), row, d);
            let own = z.get(*target as usize).copied().unwrap_or(f64::NAN);
            lse.float_mut()[row] = log_sum_exp(&z);
            sum += weight * (lse.float()[row] - own);
            all += weight;
        }
        loss.float_mut()[0] = if all == 0.0 { 0.0 } else { sum / all };
        total.float_mut()[0] = all;
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_products!(args, T, P => self.compute::<T, P>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        Sizes::of(inputs).forward()
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let dloss = backward.gradient(0);
        let [h, w, targets, weights] = backward.inputs else {
            unreachable!("inferred")
        };
        let shared = [
            *targets,
            *weights,
            backward.outputs[1],
            backward.outputs[2],
            dloss,
        ];
        let inputs = [[*h, *w].as_slice(), &shared].concat();
        let accumulates = false;
        let (needs_hidden, needs_weight) = (backward.needs(0), backward.needs(1));
        let tape = &mut *backward.tape;
        let [dh, dw] = match (needs_hidden, needs_weight) {
            (true, true) => {
                let made = tape.record(BackwardBoth { accumulates }, &inputs)?;
                [Some(made[1]), Some(made[0])]
            }
            (true, false) => [Some(tape.record_one(BackwardHidden, &inputs)?), None],
            (false, true) => {
                let dw = tape.record_one(BackwardWeight { accumulates }, &inputs)?;
                [None, Some(dw)]
            }
            (false, false) => [None, None],
        };
        Ok(vec![dh, dw, None, None])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(2.0 * product_size(inputs), inputs, outputs)
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        match compile_target.target {
            Target::Cuda => Sizes::of(inputs).forward_workspace(),
            _ => workspace_bytes(inputs, compile_target.target),
        }
    }
}
