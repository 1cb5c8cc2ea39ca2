//! Arithmetic on one block of scores: softmax step by step, and the gradient of the scores.
//!
//! A row of a block holds the scores of one query, whole vectors long. What a query does not see is −∞ before the
//! exponential and 0 after it, as far as the tiles of the products reach.

use std::ops::Range;

use super::Geometry;
use keel_cpu::matmul::{Hint, READ_BEYOND, RowsMut, Stairs};
use keel_cpu::simd::{LANES, Simd, Task, dispatch};
use keel_cpu::vector_math::functions::exp;
use keel_cpu::vector_math::{load, store};

/// The numbers 0 to 15, to be compared with the number of lanes that are seen.
static LANE: [f32; LANES] = {
    let mut lanes = [0.0; LANES];
    let mut lane = 0;
    while lane < LANES {
        lanes[lane] = lane as f32;
        lane += 1;
    }
    lanes
};

/// [`Block::stride`] for `keys` keys.
pub(super) const fn score_stride(keys: usize) -> usize {
    keys.next_multiple_of(2 * LANES) + LANES
}

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
    /// What the mask leaves of the block, segments aside: the keys that each query sees are a prefix of them under every mask.
    pub fn stairs(&self) -> Stairs {
        let (first_key, first_query) = (self.keys.start as isize, self.queries.start as isize);
        Stairs {
            floor: self.geometry.seen_by_all.saturating_sub(self.keys.start),
            shift: first_query + 1 - first_key,
        }
    }

    /// Elements from a row of scores to the next: no power of two, at which rows would compete for cache sets.
    pub fn stride(&self) -> usize {
        score_stride(self.keys.len())
    }

    /// Sets to −∞ what query `row` of the block does not see for its segment, among the first `seen` keys.
    #[inline(always)]
    pub fn mask_segments(&self, row: usize, scores: &mut [f32], seen: usize) {
        let Some(segments) = self.segments else {
            return;
        };
        let own = segments[self.queries.start + row];
        for (score, segment) in scores[..seen].iter_mut().zip(&segments[self.keys.clone()]) {
            if own < 0 || own != *segment {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

/// Whole vectors of a row.
type Vectors<'a> = &'a mut [[f32; LANES]];

/// The vectors of a row whose lanes are all seen, and the rest, of whose first vector `seen` % 16 are.
#[inline(always)]
fn split_at_seen(row: &mut [f32], seen: usize) -> (Vectors<'_>, Vectors<'_>) {
    row.as_chunks_mut().0.split_at_mut(seen / LANES)
}

/// A vector of scores of which `count` are seen; the others become −∞.
#[inline(always)]
pub(super) fn seen_lanes<S: Simd>(simd: S, scores: &[f32; LANES], count: usize) -> S::Vector {
    let is_seen = simd.less(load(simd, &LANE, 0), simd.splat(count as f32));
    simd.select(
        is_seen,
        load(simd, scores, 0),
        simd.splat(f32::NEG_INFINITY),
    )
}

/// Zeroes what the products may read of a row beyond its `whole` computed elements.
#[inline(always)]
fn clear_beyond<S: Simd>(simd: S, row: &mut [f32], seen: usize, whole: usize) {
    let end = (seen + READ_BEYOND).next_multiple_of(LANES).min(row.len());
    for at in (whole..end).step_by(LANES) {
        store(simd, row, at, simd.splat(0.0));
    }
}

/// Matrices that are needed soon, and that no processor sees coming: with each row of a block of queries that is worked on,
/// the row of the same number of each is asked for.
pub(super) type Soon = [Hint; 8];

#[inline(always)]
pub(super) fn ask<S: Simd>(simd: S, soon: &Soon, row: usize) {
    for hint in soon {
        hint.ask(simd, row);
    }
}

/// What the output so far is multiplied with when the maximum of its scores moves.
#[inline(always)]
pub(super) fn rescaling(before: f32, largest: f32) -> f32 {
    // Exactly 1 where the maximum did not move: the output is then not scaled at all. Where nothing was seen before,
    // e^(−∞ − m) = 0 drops the output of that time.
    if before == largest {
        1.0
    } else if before == f32::NEG_INFINITY {
        0.0
    } else {
        (before - largest).exp()
    }
}

/// One step of the online softmax (Milakov and Gimelshein 2018) on a block [queries, KEYS] of scores.
///
/// `largest` and `sums` [queries] hold the running maximum and the running sum of exponentials; `factors` [queries]
/// receives what the output so far has to be multiplied with. Scores become exponentials.
pub(super) struct SoftmaxStep<'a> {
    pub block: &'a Block<'a>,
    pub scores: &'a mut [f32],
    pub largest: &'a mut [f32],
    pub sums: &'a mut [f32],
    pub factors: &'a mut [f32],
    pub soon: &'a Soon,
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
        let (stairs, keys) = (self.block.stairs(), self.block.keys.len());
        let stride = self.block.stride();
        for row in 0..self.block.queries.len() {
            ask(simd, self.soon, self.block.queries.start + row);
            let scores = &mut self.scores[row * stride..][..stride];
            let seen = stairs.end(row, keys);
            let (whole, partly) = (seen.next_multiple_of(LANES), seen % LANES);
            self.block.mask_segments(row, scores, seen);
            clear_beyond(simd, scores, seen, whole);
            // Maximum, exponentials and sum in two passes over a row that is in cache. The exponential is taken once
            // the maximum of the block is known: a running one within the block would rescale after each vector.
            let before = self.largest[row];
            let (vectors, rest) = split_at_seen(scores, seen);
            let partial = rest.first_mut().filter(|_| partly > 0);
            let mut best = simd.splat(before);
            for x in vectors.iter() {
                best = simd.max(load(simd, x, 0), best);
            }
            if let Some(x) = &partial {
                best = simd.max(seen_lanes(simd, x, partly), best);
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
            for x in vectors {
                let y = exp(simd, simd.sub(load(simd, x, 0), shift));
                store(simd, x, 0, y);
                sum = simd.add(sum, y);
            }
            if let Some(x) = partial {
                let y = exp(simd, simd.sub(seen_lanes(simd, x, partly), shift));
                store(simd, x, 0, y);
                sum = simd.add(sum, y);
            }
            let factor = rescaling(before, largest);
            self.largest[row] = largest;
            self.sums[row] = self.sums[row] * factor + simd.sum(sum);
            self.factors[row] = factor;
        }
    }
}

/// From scores S and dP [queries, KEYS] the probabilities P = exp(S − lse), in place of S, and α·dS = α·P∘(dP − δ), in
/// place of dP.
pub(super) struct ScoreGradient<'a> {
    pub block: &'a Block<'a>,
    pub scores: &'a mut [f32],
    pub d_probabilities: &'a mut [f32],
    /// Of the block's queries.
    pub log_sum_exp: &'a [f32],
    /// δ of the block's queries.
    pub deltas: &'a [f32],
    /// α, the factor of the scores.
    pub scale: f32,
    pub soon: &'a Soon,
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
        let (stairs, keys) = (self.block.stairs(), self.block.keys.len());
        let stride = self.block.stride();
        for row in 0..self.block.queries.len() {
            ask(simd, self.soon, self.block.queries.start + row);
            let scores = &mut self.scores[row * stride..][..stride];
            let gradient = &mut self.d_probabilities[row * stride..][..stride];
            let seen = stairs.end(row, keys);
            let (whole, partly) = (seen.next_multiple_of(LANES), seen % LANES);
            self.block.mask_segments(row, scores, seen);
            clear_beyond(simd, scores, seen, whole);
            clear_beyond(simd, gradient, seen, whole);
            let shift = simd.splat(self.log_sum_exp[row]);
            let delta = simd.splat(self.deltas[row]);
            let scale = simd.splat(self.scale);
            let (vectors, rest) = split_at_seen(scores, seen);
            let partial = rest.first_mut().filter(|_| partly > 0);
            let (gradients, gradients_rest) = split_at_seen(gradient, seen);
            for (x, dx) in vectors.iter_mut().zip(gradients) {
                let p = exp(simd, simd.sub(load(simd, x, 0), shift));
                let d = simd.sub(load(simd, dx, 0), delta);
                store(simd, x, 0, p);
                store(simd, dx, 0, simd.mul(simd.mul(p, scale), d));
            }
            if let (Some(x), Some(dx)) = (partial, gradients_rest.first_mut()) {
                let p = exp(simd, simd.sub(seen_lanes(simd, x, partly), shift));
                let d = simd.sub(load(simd, dx, 0), delta);
                store(simd, x, 0, p);
                store(simd, dx, 0, simd.mul(simd.mul(p, scale), d));
            }
        }
    }
}

/// Zeroes every row.
pub(super) struct ClearRows<'a>(pub RowsMut<'a>);

impl ClearRows<'_> {
    pub fn run(self) {
        dispatch(self);
    }
}

impl Task for ClearRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        for row in 0..self.0.as_rows().count() {
            let row = self.0.row(row);
            for at in (0..row.len()).step_by(LANES) {
                store(simd, row, at, simd.splat(0.0));
            }
        }
    }
}

/// Multiplies each row of a block of outputs by its factor, except by 1.
pub(super) struct ScaleRows<'a> {
    pub rows: RowsMut<'a>,
    pub factors: &'a [f32],
}

impl ScaleRows<'_> {
    pub fn run(self) {
        dispatch(self);
    }
}

impl Task for ScaleRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        for (row, factor) in self.factors.iter().enumerate() {
            if *factor == 1.0 {
                continue;
            }
            let (row, factor) = (self.rows.row(row), simd.splat(*factor));
            for at in (0..row.len()).step_by(LANES) {
                let x = simd.mul(load(simd, row, at), factor);
                store(simd, row, at, x);
            }
        }
    }
}

/// What the online softmax knows of a block of queries once all its keys have passed.
pub(super) struct SoftmaxEnd<'a> {
    /// Maxima [queries].
    pub largest: &'a [f32],
    /// Sums of exponentials [queries].
    pub sums: &'a [f32],
    /// Whether any key has passed.
    pub has_seen: bool,
}

impl SoftmaxEnd<'_> {
    /// Writes what each row of `output` has still to be multiplied with into `factors` [queries], and where they are wanted,
    /// the logarithms of the sums of exponentials. Rows that see nothing become zeros.
    ///
    /// Rows are divided once at the end and not in each block: the sum is known only now.
    pub fn run(
        &self,
        output: &mut RowsMut<'_>,
        factors: &mut [f32],
        mut log_sum_exp: Option<&mut [f32]>,
    ) {
        for (row, factor) in factors.iter_mut().enumerate() {
            let sum = self.sums[row];
            *factor = if self.has_seen && sum > 0.0 {
                1.0 / sum
            } else {
                output.row(row).fill(0.0);
                1.0
            };
            if let Some(log_sum_exp) = &mut log_sum_exp {
                // Of padding 0: finite, so that a probability of 0 stays one.
                log_sum_exp[row] = if sum > 0.0 {
                    self.largest[row] + sum.ln()
                } else {
                    0.0
                };
            }
        }
    }
}
