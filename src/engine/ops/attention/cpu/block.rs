//! Arithmetic on one block of scores: softmax step by step, and the gradient of the scores.
//!
//! A row of a block holds the scores of one query, whole vectors long. What a query does not see is −∞ before the
//! exponential and 0 after it, so that the products take whole blocks.

use std::ops::Range;

use super::{Geometry, KEYS};
use keel_cpu::simd::{LANES, Simd, Task, dispatch};
use keel_cpu::vector_math::functions::exp;
use keel_cpu::vector_math::{load, store};

/// Where a block of scores lies and who sees whom in it.
#[derive(Clone)]
pub(super) struct Block<'a> {
    pub geometry: &'a Geometry,
    /// The segments of the batch row.
    pub segments: Option<&'a [i32]>,
    pub queries: Range<usize>,
    pub keys: Range<usize>,
}

impl Block<'_> {
    /// Sets to −∞ what query `row` of the block does not see, as far as the vectors reach that hold something it may
    /// see; sets the rest to 0. Gives the length of those vectors.
    #[inline(always)]
    fn mask(&self, row: usize, scores: &mut [f32]) -> usize {
        let query = self.queries.start + row;
        // What may be seen is a prefix of the keys under every mask, so a row is two ranges; only segments ask key by
        // key.
        let seen = self.geometry.limit(query).saturating_sub(self.keys.start);
        let seen = seen.min(self.keys.len());
        let whole = seen.next_multiple_of(LANES);
        // −∞ only up to a whole vector: exponentials are not computed beyond it, and 0 is what they would be.
        scores[seen..whole].fill(f32::NEG_INFINITY);
        let width = self.keys.len().next_multiple_of(LANES);
        scores[whole..width].fill(0.0);
        if let Some(segments) = self.segments {
            let own = segments[query];
            for (score, segment) in scores[..seen].iter_mut().zip(&segments[self.keys.clone()]) {
                if own < 0 || own != *segment {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
        whole
    }
}

/// One step of the online softmax (Milakov and Gimelshein 2018) on a block [queries, KEYS] of scores.
///
/// `largest` and `sums` [queries] hold the running maximum and the running sum of exponentials; `factors` [queries]
/// receives what the output so far has to be multiplied with. Scores become exponentials.
pub(super) struct SoftmaxStep<'a> {
    pub block: Block<'a>,
    pub scores: &'a mut [f32],
    pub largest: &'a mut [f32],
    pub sums: &'a mut [f32],
    pub factors: &'a mut [f32],
}

impl SoftmaxStep<'_> {
    pub fn run(self) {
        dispatch(self);
    }
}

impl Task for SoftmaxStep<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for row in 0..self.block.queries.len() {
            let scores = &mut self.scores[row * KEYS..][..KEYS];
            let whole = self.block.mask(row, scores);
            // Maximum, exponentials and sum in two passes over a row that is in cache. The exponential is taken once
            // the maximum of the block is known: a running one within the block would rescale after each vector.
            let before = self.largest[row];
            let mut best = simd.splat(before);
            for at in (0..whole).step_by(LANES) {
                best = simd.max(load(simd, scores, at), best);
            }
            let largest = simd.largest(best);
            if largest == f32::NEG_INFINITY {
                // Nothing seen so far.
                scores[..whole].fill(0.0);
                self.factors[row] = 1.0;
                continue;
            }
            let shift = simd.splat(largest);
            let mut sum = simd.splat(0.0);
            for at in (0..whole).step_by(LANES) {
                let y = exp(simd, simd.sub(load(simd, scores, at), shift));
                store(simd, scores, at, y);
                sum = simd.add(sum, y);
            }
            // Exactly 1 where the maximum did not move: the output is then not scaled at all. Where nothing was seen
            // before, e^(−∞ − m) = 0 drops the output of that time.
            let factor = if before == largest {
                1.0
            } else {
                (before - largest).exp()
            };
            self.largest[row] = largest;
            self.sums[row] = self.sums[row] * factor + simd.sum(sum);
            self.factors[row] = factor;
        }
    }
}

/// From scores S and dP [queries, KEYS] the probabilities P = exp(S − lse), in place of S, and α·dS = α·P∘(dP − δ), in
/// place of dP.
pub(super) struct ScoreGradient<'a> {
    pub block: Block<'a>,
    pub scores: &'a mut [f32],
    pub d_probabilities: &'a mut [f32],
    /// Of the block's queries.
    pub log_sum_exp: &'a [f32],
    /// δ of the block's queries.
    pub deltas: &'a [f32],
    /// α, the factor of the scores.
    pub scale: f32,
}

impl ScoreGradient<'_> {
    pub fn run(self) {
        dispatch(self);
    }
}

impl Task for ScoreGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.block.keys.len().next_multiple_of(LANES);
        for row in 0..self.block.queries.len() {
            let scores = &mut self.scores[row * KEYS..][..KEYS];
            let gradient = &mut self.d_probabilities[row * KEYS..][..KEYS];
            let whole = self.block.mask(row, scores);
            let shift = simd.splat(self.log_sum_exp[row]);
            let delta = simd.splat(self.deltas[row]);
            let scale = simd.splat(self.scale);
            // What lies beyond the block's keys, up to whole vectors, was never written.
            gradient[self.block.keys.len()..width].fill(0.0);
            gradient[whole..width].fill(0.0);
            for at in (0..whole).step_by(LANES) {
                let p = exp(simd, simd.sub(load(simd, scores, at), shift));
                let d = simd.sub(load(simd, gradient, at), delta);
                store(simd, scores, at, p);
                store(simd, gradient, at, simd.mul(simd.mul(p, scale), d));
            }
        }
    }
}

/// Multiplies each row of a block of outputs by its factor.
pub(super) fn scale_row(row: &mut [f32], factor: f32) {
    for x in row {
        *x *= factor;
    }
}
