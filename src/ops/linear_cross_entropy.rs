//! Next-token loss fused with the output product: logits h·Wᵀ are made tile by tile and never stored whole.
//!
//! h [N, D], W [V, D], targets i32 [N] (negative: not supervised), weights f32 [N]:
//! L = Σ w_t (lse_t − z_t[target]) / Σ w_t over supervised t, with z = h Wᵀ and lse = log Σ_v e^z_v; 0 where Σ w is 0.
//! ∂z = (softmax(z) − onehot) w_t / Σ w · dL, ∂h = ∂z W, ∂W = ∂zᵀ h. Saved: lse [N] and Σ w [1].
//! Rows that are not supervised are left out before the product. Forward 2·N·V·D flops, backward 8·N·V·D: logits are
//! made again for ∂h and for ∂W, which is what not storing N·V of them costs.
//! A target of V or above makes the loss NaN, which stops a run: it must not pass for an unsupervised row.

use std::cell::Cell;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::executor::cpu::matmul::{Rows, RowsMut, product, product_workspace};
use crate::tape::{Backward, Cost, CpuArgs, Op, ReferenceArgs, Tape, Target, Value};
use crate::tensor::TensorType;

/// Supervised rows of one tile.
const TILE_ROWS: usize = 128;
/// Words of one tile.
const TILE_WORDS: usize = 256;
/// Runs of rows that are worked on side by side, whatever the threads.
const LANES: usize = 16;

/// Records the loss [1] of `hidden` f32 [.., D] through `weight` f32 [V, D] against `targets` i32 [..] with `weights`
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

/// Records the word of the largest logit for each row: `hidden` f32 [.., D], `weight` f32 [V, D] → i32 [..]. Ties go to
/// the smaller word.
///
/// # Errors
/// [`Error::Shape`] when the widths differ.
pub fn linear_argmax(tape: &mut Tape, hidden: Value, weight: Value) -> Result<Value> {
    tape.record_one(LinearArgmax, &[hidden, weight])
}

fn check_product(op: &'static str, hidden: &TensorType, weight: &TensorType) -> Result<()> {
    if hidden.dtype != crate::tensor::DType::F32 || hidden.shape.rank() < 2 {
        return Err(Error::shape(op, "hidden", "f32 [.., D]", hidden));
    }
    let d = hidden.shape.columns();
    let &[v, _] = weight.shape.dims() else {
        return Err(Error::shape(op, "weight", format!("f32 [V, {d}]"), weight));
    };
    if *weight != TensorType::f32([v, d]) || v == 0 {
        return Err(Error::shape(op, "weight", format!("f32 [V, {d}]"), weight));
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
    w.chunks(d)
        .map(|w| w.iter().zip(h).map(|(w, h)| w * h).sum())
        .collect()
}

fn log_sum_exp(z: &[f64]) -> f64 {
    let most = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    most + z.iter().map(|z| (z - most).exp()).sum::<f64>().ln()
}

#[derive(Clone, Copy, Debug)]
struct LinearCrossEntropy;

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
        let head = Head::of(&args);
        let weights = args.inputs.f32(3);
        let (sums, scratch) = args.workspace.split_at_mut(head.n);
        let [loss, lse, total] = args.outputs.f32();
        let lane_rows = head.lane_rows();
        lse.par_chunks_mut(lane_rows)
            .zip(sums.par_chunks_mut(lane_rows))
            .zip(scratch.par_chunks_mut(head.scratch()))
            .enumerate()
            .for_each(|(lane, ((lse, losses), scratch))| {
                lse.fill(0.0);
                losses.fill(0.0);
                let first = lane * lane_rows;
                head.supervised(first..first + lse.len(), scratch, |rows, h, scratch| {
                    let mut top = [f32::NEG_INFINITY; TILE_ROWS];
                    let mut sum = [0.0f32; TILE_ROWS];
                    let mut own = [f32::NAN; TILE_ROWS];
                    head.words(h, rows.len(), scratch, |z, words, _| {
                        for (slot, z) in z.chunks(words.len()).enumerate() {
                            let most = z.iter().fold(top[slot], |m, z| m.max(*z));
                            let here: f32 = z.iter().map(|z| (z - most).exp()).sum();
                            let kept = match sum[slot] {
                                0.0 => 0.0,
                                sum => sum * (top[slot] - most).exp(),
                            };
                            (top[slot], sum[slot]) = (most, kept + here);
                            let target = head.targets[rows[slot]] as usize;
                            if words.contains(&target) {
                                own[slot] = z[target - words.start];
                            }
                        }
                    });
                    for (slot, row) in rows.iter().enumerate() {
                        lse[row - first] = top[slot] + sum[slot].ln();
                        losses[row - first] = lse[row - first] - own[slot];
                    }
                });
            });
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
        let dw = match backward.needs(1) {
            true => Some(
                backward
                    .tape
                    .record_one(WeightGradient { accumulates: false }, &inputs)?,
            ),
            false => None,
        };
        let dh = match backward.needs(0) {
            true => Some(backward.tape.record_one(HiddenGradient, &inputs)?),
            false => None,
        };
        Ok(vec![dh, dw, None, None])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(2.0 * product_size(inputs), inputs, outputs)
    }

    fn workspace(&self, inputs: &[TensorType], _: &[TensorType], target: Target) -> usize {
        workspace_bytes(inputs, target)
    }
}

fn product_size(inputs: &[TensorType]) -> f64 {
    inputs[0].shape.rows() as f64 * inputs[1].numel() as f64
}

fn workspace_bytes(inputs: &[TensorType], target: Target) -> usize {
    match target {
        Target::Cpu { .. } => {
            let head = Head {
                h: &[],
                w: &[],
                targets: &[],
                n: inputs[0].shape.rows(),
                d: inputs[0].shape.columns(),
                v: inputs[1].shape.rows(),
            };
            let lanes = LANES.max(head.v.div_ceil(head.lane_words()));
            (head.n + lanes * head.scratch()) * size_of::<f32>()
        }
        _ => 0,
    }
}

/// The output product's operands.
struct Head<'a> {
    h: &'a [f32],
    w: &'a [f32],
    targets: &'a [i32],
    n: usize,
    d: usize,
    v: usize,
}

impl<'a> Head<'a> {
    fn of(args: &CpuArgs<'a>) -> Head<'a> {
        let types = args.input_types;
        Head {
            h: args.inputs.f32(0),
            w: args.inputs.f32(1),
            targets: if args.inputs.len() > 2 {
                args.inputs.i32(2)
            } else {
                &[]
            },
            n: types[0].shape.rows(),
            d: types[0].shape.columns(),
            v: types[1].shape.rows(),
        }
    }

    /// Floats of one lane: rows of h, a gradient of as many, a tile of logits, the product's own.
    fn scratch(&self) -> usize {
        let own = product_workspace(self.d, TILE_WORDS)
            .max(product_workspace(TILE_WORDS, self.d))
            .max(product_workspace(TILE_ROWS, self.d));
        2 * TILE_ROWS * self.d + TILE_ROWS * TILE_WORDS + own
    }

    /// Rows that one lane owns.
    fn lane_rows(&self) -> usize {
        self.n.div_ceil(LANES).next_multiple_of(16)
    }

    /// Words whose weight gradient one lane owns.
    fn lane_words(&self) -> usize {
        self.v
            .div_ceil(LANES)
            .next_multiple_of(16)
            .clamp(16, TILE_WORDS)
    }

    /// Gathers the supervised rows of a range, up to [`TILE_ROWS`] at a time, and calls `visit(rows, h, scratch)`.
    fn supervised(
        &self,
        range: std::ops::Range<usize>,
        scratch: &mut [f32],
        mut visit: impl FnMut(&[usize], &[f32], &mut [f32]),
    ) {
        let (gathered, scratch) = scratch.split_at_mut(TILE_ROWS * self.d);
        let mut rows = [0usize; TILE_ROWS];
        let mut count = 0;
        let last = range.end;
        for row in range {
            if self.targets.get(row).is_none_or(|target| *target >= 0) {
                gathered[count * self.d..][..self.d]
                    .copy_from_slice(&self.h[row * self.d..][..self.d]);
                rows[count] = row;
                count += 1;
            }
            if count > 0 && (count == TILE_ROWS || row + 1 == last) {
                visit(&rows[..count], &gathered[..count * self.d], scratch);
                count = 0;
            }
        }
    }

    /// Calls `visit(logits [rows, words], words, scratch)` for every run of words, in rising order.
    fn words(
        &self,
        h: &[f32],
        rows: usize,
        scratch: &mut [f32],
        mut visit: impl FnMut(&mut [f32], std::ops::Range<usize>, &mut [f32]),
    ) {
        for first in (0..self.v).step_by(TILE_WORDS) {
            let words = first..self.v.min(first + TILE_WORDS);
            self.tile(h, rows, words, scratch, &mut visit);
        }
    }

    fn tile(
        &self,
        h: &[f32],
        rows: usize,
        words: std::ops::Range<usize>,
        scratch: &mut [f32],
        visit: &mut impl FnMut(&mut [f32], std::ops::Range<usize>, &mut [f32]),
    ) {
        let (tile, scratch) = scratch.split_at_mut(TILE_ROWS * TILE_WORDS);
        let tile = &mut tile[..rows * words.len()];
        product(
            1.0,
            Rows::new(h, rows, self.d),
            Rows::new(&self.w[words.start * self.d..], words.len(), self.d).transposed(),
            0.0,
            RowsMut::new(tile, rows, words.len()),
            scratch,
        );
        visit(tile, words, scratch);
    }
}

/// What both gradients are given: h, W, targets, weights, lse, Σ w, dL.
struct Softmax<'a> {
    weights: &'a [f32],
    lse: &'a [f32],
    factor: f32,
}

impl<'a> Softmax<'a> {
    fn of(args: &CpuArgs<'a>) -> Softmax<'a> {
        let total = args.inputs.f32(5)[0];
        let dloss = args.inputs.f32(6)[0];
        Softmax {
            weights: args.inputs.f32(3),
            lse: args.inputs.f32(4),
            factor: if total == 0.0 { 0.0 } else { dloss / total },
        }
    }

    /// Turns logits [rows, words] into their gradient.
    fn differentiate(
        &self,
        z: &mut [f32],
        words: &std::ops::Range<usize>,
        rows: &[usize],
        targets: &[i32],
    ) {
        for (z, row) in z.chunks_mut(words.len()).zip(rows) {
            let (lse, factor) = (self.lse[*row], self.factor * self.weights[*row]);
            for z in z.iter_mut() {
                *z = factor * (*z - lse).exp();
            }
            let target = targets[*row] as usize;
            if words.contains(&target) {
                z[target - words.start] -= factor;
            }
        }
    }
}

fn infer_gradient(inputs: &[TensorType]) -> Result<()> {
    let n = infer_loss(inputs)?;
    const OP: &str = "linear_cross_entropy_backward";
    let scalars = [
        TensorType::f32([n]),
        TensorType::f32([1]),
        TensorType::f32([1]),
    ];
    for (index, want) in scalars.iter().enumerate() {
        if inputs.get(4 + index) != Some(want) {
            return Err(Error::shape(OP, "saved values", want, "another"));
        }
    }
    Ok(())
}

/// ∂z of one row in f64, for the references.
fn reference_gradient(inputs: &[&crate::tape::Array], row: usize) -> Option<Vec<f64>> {
    let target = inputs[2].int()[row];
    let total = inputs[5].float()[0];
    if target < 0 || total == 0.0 {
        return None;
    }
    let factor = inputs[6].float()[0] * inputs[3].float()[row] / total;
    let lse = inputs[4].float()[row];
    let mut z = logits(
        inputs[0].float(),
        inputs[1].float(),
        row,
        inputs[0].columns(),
    );
    for z in &mut z {
        *z = factor * (*z - lse).exp();
    }
    if let Some(own) = z.get_mut(target as usize) {
        *own -= factor;
    }
    Some(z)
}

#[derive(Clone, Copy, Debug)]
struct HiddenGradient;

impl Op for HiddenGradient {
    fn name(&self) -> &'static str {
        "linear_cross_entropy_hidden_gradient"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        infer_gradient(inputs)?;
        Ok(vec![inputs[0]])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let d = args.inputs[0].columns();
        let w = args.inputs[1].float();
        for (row, dh) in args.outputs[0].float_mut().chunks_mut(d).enumerate() {
            let Some(dz) = reference_gradient(args.inputs, row) else {
                continue;
            };
            for (dz, w) in dz.iter().zip(w.chunks(d)) {
                for (dh, w) in dh.iter_mut().zip(w) {
                    *dh += dz * w;
                }
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let (head, softmax) = (Head::of(&args), Softmax::of(&args));
        let (lane_rows, d) = (head.lane_rows(), head.d);
        let scratch = args.workspace;
        let [dh] = args.outputs.f32();
        dh.par_chunks_mut(lane_rows * d)
            .zip(scratch.par_chunks_mut(head.scratch()))
            .enumerate()
            .for_each(|(lane, (dh, scratch))| {
                dh.fill(0.0);
                let first = lane * lane_rows;
                head.supervised(first..first + dh.len() / d, scratch, |rows, h, scratch| {
                    let (gradient, scratch) = scratch.split_at_mut(TILE_ROWS * d);
                    let gradient = &mut gradient[..rows.len() * d];
                    head.words(h, rows.len(), scratch, |z, words, scratch| {
                        softmax.differentiate(z, &words, rows, head.targets);
                        product(
                            1.0,
                            Rows::new(z, rows.len(), words.len()),
                            Rows::new(&head.w[words.start * d..], words.len(), d),
                            if words.start == 0 { 0.0 } else { 1.0 },
                            RowsMut::new(gradient, rows.len(), d),
                            scratch,
                        );
                    });
                    for (row, gradient) in rows.iter().zip(gradient.chunks(d)) {
                        dh[(row - first) * d..][..d].copy_from_slice(gradient);
                    }
                });
            });
    }

    fn backward(&self, _: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        unreachable!("the tape differentiates forward ops only")
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(4.0 * product_size(inputs), inputs, outputs)
    }

    fn workspace(&self, inputs: &[TensorType], _: &[TensorType], target: Target) -> usize {
        workspace_bytes(inputs, target)
    }
}

#[derive(Clone, Copy, Debug)]
struct WeightGradient {
    accumulates: bool,
}

impl Op for WeightGradient {
    fn name(&self) -> &'static str {
        "linear_cross_entropy_weight_gradient"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        infer_gradient(inputs)?;
        Ok(vec![inputs[1]])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let (h, d) = (args.inputs[0].float(), args.inputs[0].columns());
        let dw = args.outputs[0].float_mut();
        if self.accumulates {
            dw.copy_from_slice(args.inputs[7].float());
        }
        for (row, h) in h.chunks(d).enumerate() {
            let Some(dz) = reference_gradient(args.inputs, row) else {
                continue;
            };
            for (dz, dw) in dz.iter().zip(dw.chunks_mut(d)) {
                for (dw, h) in dw.iter_mut().zip(h) {
                    *dw += dz * h;
                }
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let (head, softmax) = (Head::of(&args), Softmax::of(&args));
        let (lane_words, d) = (head.lane_words(), head.d);
        let before = match self.accumulates {
            true => args
                .inputs
                .f32_or_in_place(7)
                .map(Before::Elsewhere)
                .unwrap_or(Before::InPlace),
            false => Before::Nothing,
        };
        let scratch = args.workspace;
        let [dw] = args.outputs.f32();
        dw.par_chunks_mut(lane_words * d)
            .zip(scratch.par_chunks_mut(head.scratch()))
            .enumerate()
            .for_each(|(lane, (dw, scratch))| {
                let first = lane * lane_words;
                match before {
                    Before::Nothing => dw.fill(0.0),
                    Before::Elsewhere(sum) => dw.copy_from_slice(&sum[first * d..][..dw.len()]),
                    Before::InPlace => {}
                }
                let own = first..first + dw.len() / d;
                let dw = Cell::new(dw);
                head.supervised(0..head.n, scratch, |rows, h, scratch| {
                    head.tile(
                        h,
                        rows.len(),
                        own.clone(),
                        scratch,
                        &mut |z, words, scratch| {
                            softmax.differentiate(z, &words, rows, head.targets);
                            let into = dw.take();
                            product(
                                1.0,
                                Rows::new(z, rows.len(), words.len()).transposed(),
                                Rows::new(h, rows.len(), d),
                                1.0,
                                RowsMut::new(into, words.len(), d),
                                scratch,
                            );
                            dw.set(into);
                        },
                    );
                });
            });
    }

    fn backward(&self, _: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        unreachable!("the tape differentiates forward ops only")
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(4.0 * product_size(inputs), inputs, outputs)
    }

    fn workspace(&self, inputs: &[TensorType], _: &[TensorType], target: Target) -> usize {
        workspace_bytes(inputs, target)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 7)]
    }

    fn accumulating(&self) -> Option<Box<dyn Op>> {
        (!self.accumulates).then(|| Box::new(WeightGradient { accumulates: true }) as Box<dyn Op>)
    }
}

/// What a weight gradient is added to.
#[derive(Clone, Copy)]
enum Before<'a> {
    Nothing,
    InPlace,
    Elsewhere(&'a [f32]),
}

#[derive(Clone, Copy, Debug)]
struct LinearArgmax;

impl Op for LinearArgmax {
    fn name(&self) -> &'static str {
        "linear_argmax"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [hidden, weight] = inputs else {
            return Err(Error::shape(
                "linear_argmax",
                "inputs",
                "two values",
                inputs.len(),
            ));
        };
        check_product("linear_argmax", hidden, weight)?;
        Ok(vec![TensorType::i32(outer(hidden))])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([h, w], [next]) = args.split();
        let d = h.columns();
        for (row, next) in next.int_mut().iter_mut().enumerate() {
            let z = logits(h.float(), w.float(), row, d);
            let best = (0..z.len()).max_by(|a, b| z[*a].total_cmp(&z[*b]).then(b.cmp(a)));
            *next = best.expect("a vocabulary is not empty") as i32;
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let head = Head::of(&args);
        let lane_rows = head.lane_rows();
        let scratch = args.workspace;
        let next = args.outputs.i32();
        next.par_chunks_mut(lane_rows)
            .zip(scratch.par_chunks_mut(head.scratch()))
            .enumerate()
            .for_each(|(lane, (next, scratch))| {
                let first = lane * lane_rows;
                head.supervised(first..first + next.len(), scratch, |rows, h, scratch| {
                    let mut best = [(f32::NEG_INFINITY, 0i32); TILE_ROWS];
                    head.words(h, rows.len(), scratch, |z, words, _| {
                        for (best, z) in best.iter_mut().zip(z.chunks(words.len())) {
                            for (word, z) in words.clone().zip(z) {
                                if *z > best.0 {
                                    *best = (*z, word as i32);
                                }
                            }
                        }
                    });
                    for (row, best) in rows.iter().zip(best) {
                        next[row - first] = best.1;
                    }
                });
            });
    }

    fn backward(&self, _: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        Ok(vec![None, None])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(2.0 * product_size(inputs), inputs, outputs)
    }

    fn workspace(&self, inputs: &[TensorType], _: &[TensorType], target: Target) -> usize {
        workspace_bytes(inputs, target)
    }
}
