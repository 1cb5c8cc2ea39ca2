//! Arithmetic on one block of scores whose products are computed in pairs of bf16 numbers: as in [`super::block`], in f32, but
//! probabilities and the gradient of the scores are rounded to bf16 on their way into the next product, as the CUDA kernels do.
//!
//! Rows of cells go where a product sums over keys; pairs of rows, side by side in cells, where it sums over queries.

use std::ops::Range;

use half::bf16;

use super::block::{Block, Soon, ask, rescaling, score_stride, seen_lanes};
use super::{Geometry, KEYS, QUERIES};
use crate::tensor::DType;
use keel_cpu::matmul::{READ_BEYOND, Rows, RowsMut};
use keel_cpu::simd::{LANES, Simd, Task, dispatch_pairs};
use keel_cpu::vector_math::functions::exp;
use keel_cpu::vector_math::{load, store, store_terms};
use keel_cpu::{Bf16Products, bf16_products};

/// Whether heads of numbers of `dtype` are multiplied in pairs here, or in tiles of them.
pub(in crate::ops::attention) fn are_pairs(dtype: DType) -> bool {
    dtype == DType::Bf16 && bf16_products() != Bf16Products::Widened
}

/// Queries of a block: as many in each, so that none is too small for a tile, and an even number, so that pairs of them stay
/// together.
fn block_queries(tokens: usize) -> usize {
    let blocks = tokens.div_ceil(QUERIES).max(1);
    tokens.div_ceil(blocks).next_multiple_of(2)
}

/// The blocks of queries.
pub(super) fn equal_blocks(tokens: usize) -> impl Iterator<Item = Range<usize>> {
    let size = block_queries(tokens);
    (0..tokens)
        .step_by(size.max(1))
        .map(move |first| first..tokens.min(first + size))
}

/// Elements of a block of scores.
pub(super) fn score_elements(geometry: &Geometry) -> usize {
    block_queries(geometry.query_tokens) * score_stride(geometry.key_tokens.min(KEYS))
}

/// The end of what has to be zero behind the `seen` first of a row, whole vectors, because products may read it.
#[inline(always)]
fn cleared_end(seen: usize, row: usize) -> usize {
    (seen + READ_BEYOND).next_multiple_of(LANES).min(row)
}

/// How many lanes of the vector at `at` are among the `seen` first.
#[inline(always)]
fn lanes_of(seen: usize, at: usize) -> usize {
    seen.saturating_sub(at).min(LANES)
}

/// A vector of scores of which the first `count` are seen; the others become −∞.
#[inline(always)]
fn scores_at<S: Simd>(simd: S, scores: &[f32], at: usize, count: usize) -> S::Vector {
    let scores: &[f32; LANES] = scores[at..].first_chunk().expect("rows are whole vectors");
    if count == LANES {
        load(simd, scores, 0)
    } else {
        seen_lanes(simd, scores, count)
    }
}

/// As [`super::block::SoftmaxStep`], with the exponentials rounded into rows of terms; their sums are taken before.
pub(super) struct SoftmaxInPairs<'a> {
    pub block: &'a Block<'a>,
    pub scores: &'a mut [f32],
    /// Receives the exponentials, in rows as far apart as those of the scores.
    pub probabilities: &'a mut [bf16],
    pub largest: &'a mut [f32],
    pub sums: &'a mut [f32],
    pub factors: &'a mut [f32],
    pub soon: &'a Soon,
}

impl SoftmaxInPairs<'_> {
    pub fn run(self) {
        dispatch_pairs(self);
    }
}

impl Task for SoftmaxInPairs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (stairs, keys) = (self.block.stairs(), self.block.keys.len());
        let stride = self.block.stride();
        for row in 0..self.block.queries.len() {
            ask(simd, self.soon, self.block.queries.start + row);
            let scores = &mut self.scores[row * stride..][..stride];
            let terms = &mut self.probabilities[row * stride..][..stride];
            let seen = stairs.end(row, keys);
            self.block.mask_segments(row, scores, seen);
            let before = self.largest[row];
            let mut best = simd.splat(before);
            for at in (0..seen).step_by(LANES) {
                best = simd.max(scores_at(simd, scores, at, lanes_of(seen, at)), best);
            }
            let largest = simd.largest(best);
            let (mut sum, mut end) = (simd.splat(0.0), 0);
            if largest != f32::NEG_INFINITY {
                let shift = simd.splat(largest);
                for at in (0..seen).step_by(LANES) {
                    let x = scores_at(simd, scores, at, lanes_of(seen, at));
                    let y = exp(simd, simd.sub(x, shift));
                    store_terms(simd, terms, at, y);
                    sum = simd.add(sum, y);
                }
                end = seen.next_multiple_of(LANES);
            }
            for at in (end..cleared_end(seen, stride)).step_by(LANES) {
                store_terms(simd, terms, at, simd.splat(0.0));
            }
            // Where nothing was seen so far, the maximum did not move either.
            let factor = rescaling(before, largest);
            self.largest[row] = largest;
            self.sums[row] = self.sums[row] * factor + simd.sum(sum);
            self.factors[row] = factor;
        }
    }
}

/// Multiplies each row by its factor and rounds it.
pub(super) struct FinishRows<'a> {
    pub from: Rows<'a>,
    pub factors: &'a [f32],
    pub to: RowsMut<'a, bf16>,
}

impl FinishRows<'_> {
    pub fn run(self) {
        dispatch_pairs(self);
    }
}

impl Task for FinishRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        for (row, factor) in self.factors.iter().enumerate() {
            let (from, to) = (self.from.row(row), self.to.row(row));
            for at in (0..from.len()).step_by(LANES) {
                store(
                    simd,
                    to,
                    at,
                    simd.mul(load(simd, from, at), simd.splat(*factor)),
                );
            }
        }
    }
}

/// δ = Σ over a head of do·o, of each row.
pub(super) struct Deltas<'a> {
    pub output: Rows<'a, bf16>,
    pub d_output: Rows<'a, bf16>,
    pub deltas: &'a mut [f32],
}

impl Deltas<'_> {
    pub fn run(self) {
        dispatch_pairs(self);
    }
}

impl Task for Deltas<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (row, delta) in self.deltas.iter_mut().enumerate() {
            let (output, d_output) = (self.output.row(row), self.d_output.row(row));
            let mut sum = simd.splat(0.0);
            for at in (0..output.len()).step_by(LANES) {
                sum = simd.mul_add(load(simd, output, at), load(simd, d_output, at), sum);
            }
            *delta = simd.sum(sum);
        }
    }
}

/// From scores S and dP the probabilities P = exp(S − lse) and dS = P∘(dP − δ), without the factor of the scores, rounded into
/// what the products of the gradients read.
pub(super) struct GradientInPairs<'a> {
    pub block: &'a Block<'a>,
    pub scores: &'a mut [f32],
    pub d_probabilities: &'a [f32],
    /// Of the block's queries.
    pub log_sum_exp: &'a [f32],
    /// δ of the block's queries.
    pub deltas: &'a [f32],
    /// Receives P, two queries in each cell of a row.
    pub probability_cells: &'a mut [f32],
    /// Receives dS in the same form.
    pub gradient_cells: &'a mut [f32],
    /// Receives dS in rows of terms; all rows are as far apart as those of the scores.
    pub gradient_terms: &'a mut [bf16],
    pub soon: &'a Soon,
}

/// One query of a block of gradients.
struct GradientRow<'a, V> {
    scores: &'a [f32],
    d_probabilities: &'a [f32],
    seen: usize,
    log_sum_exp: V,
    delta: V,
}

impl<V: Copy> GradientRow<'_, V> {
    /// P and dS at `at`; zeros where nothing is seen, whatever lies there.
    #[inline(always)]
    fn at<S: Simd<Vector = V>>(&self, simd: S, at: usize) -> [V; 2] {
        let count = lanes_of(self.seen, at);
        if count == 0 {
            return [simd.splat(0.0); 2];
        }
        let x = scores_at(simd, self.scores, at, count);
        let p = exp(simd, simd.sub(x, self.log_sum_exp));
        // Behind the last key lies anything, even NaN, and the last term of an odd number of keys has it in its cell.
        let d = load(simd, &self.d_probabilities[at..][..count], 0);
        let d = simd.sub(d, self.delta);
        [p, simd.mul(p, d)]
    }
}

impl GradientInPairs<'_> {
    pub fn run(self) {
        dispatch_pairs(self);
    }

    /// Query `row` of the block; the partner of the last of an odd number sees nothing.
    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, row: usize) -> GradientRow<'_, S::Vector> {
        let (stride, count) = (self.block.stride(), self.block.queries.len());
        let (is_there, at) = (row < count, row.min(count - 1));
        let keys = self.block.keys.len();
        GradientRow {
            scores: &self.scores[at * stride..][..stride],
            d_probabilities: &self.d_probabilities[at * stride..][..stride],
            seen: if is_there {
                self.block.stairs().end(row, keys)
            } else {
                0
            },
            log_sum_exp: simd.splat(self.log_sum_exp[at]),
            delta: simd.splat(self.deltas[at]),
        }
    }
}

impl Task for GradientInPairs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let (stairs, keys) = (self.block.stairs(), self.block.keys.len());
        let (stride, count) = (self.block.stride(), self.block.queries.len());
        let probabilities = std::mem::take(&mut self.probability_cells);
        let gradients = std::mem::take(&mut self.gradient_cells);
        let terms = std::mem::take(&mut self.gradient_terms);
        let rows = probabilities.chunks_exact_mut(stride);
        let rows = rows.zip(gradients.chunks_exact_mut(stride));
        let rows = rows.zip(terms.chunks_exact_mut(2 * stride));
        for (first, ((p_cells, d_cells), terms)) in (0..count).step_by(2).zip(rows) {
            for row in first..count.min(first + 2) {
                ask(simd, self.soon, self.block.queries.start + row);
                let scores = &mut self.scores[row * stride..][..stride];
                self.block.mask_segments(row, scores, stairs.end(row, keys));
            }
            let (even, odd) = (self.row(simd, first), self.row(simd, first + 1));
            let (even_terms, odd_terms) = terms.split_at_mut(stride);
            for at in (0..cleared_end(even.seen.max(odd.seen), stride)).step_by(LANES) {
                let [p, d] = even.at(simd, at);
                let [next_p, next_d] = odd.at(simd, at);
                store(simd, p_cells, at, simd.pair(p, next_p));
                store(simd, d_cells, at, simd.pair(d, next_d));
                store_terms(simd, even_terms, at, d);
                store_terms(simd, odd_terms, at, next_d);
            }
        }
    }
}
