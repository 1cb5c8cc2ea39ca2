//! The gradients of [`super::backward`] with products in pairs. What a head's products read on their right is packed once for
//! all its blocks.

use std::ops::Range;

use half::bf16;

use super::backward::{Part, Saved, Way, in_parts};
use super::block::{Block, ClearRows, Soon};
use super::pairs::{Deltas, GradientInPairs, equal_blocks, score_elements};
use super::{Geometry, QUERIES, for_each_block};
use crate::ops::attention::op::AttentionBackward;
use crate::tape::{CpuArgs, Element};
use keel_cpu::matmul::{
    Cells, Extent, Hint, Panels, Rows, RowsMut, panels_workspace, product_of_pairs,
};
use keel_cpu::{Stored, round};

/// Floats of scratch memory of one worker: five factors in panels, the gradients of a key head and of a block of queries in f32,
/// scores and their gradient, both rounded in cells and the latter in rows, and δ.
pub(super) fn worker_elements(geometry: &Geometry) -> usize {
    let (dim, tokens, keys) = (
        geometry.heads.dim,
        geometry.query_tokens,
        geometry.key_tokens,
    );
    let across = 2 * panels_workspace(dim, keys);
    let panels = across + panels_workspace(keys, dim) + 2 * panels_workspace(tokens, dim);
    let scores = score_elements(geometry);
    panels + (2 * keys + QUERIES) * dim + 2 * scores + 3 * (scores / 2) + QUERIES
}

/// Computes the op in pairs.
pub(in crate::ops::attention) fn backward_in_pairs(op: &AttentionBackward, args: CpuArgs<'_>) {
    in_parts::<bf16, InPairs>(op, args);
}

/// Products in pairs.
struct InPairs;

impl Way<bf16> for InPairs {
    fn compute<Q: Element>(
        mut part: Part<'_, Q, bf16>,
        saved: &Saved<'_, bf16>,
        scratch: &mut [f32],
    ) {
        let g = part.geometry;
        let (dim, keys) = (g.heads.dim, g.key_tokens);
        let across = panels_workspace(dim, keys);
        let (key_memory, scratch) = scratch.split_at_mut(across);
        let (value_memory, scratch) = scratch.split_at_mut(across);
        let (key_rows_memory, scratch) = scratch.split_at_mut(panels_workspace(keys, dim));
        let (d_key_memory, scratch) = scratch.split_at_mut(keys * dim);
        let (d_value_memory, scratch) = scratch.split_at_mut(keys * dim);
        let (batches, heads) = (part.share.batches.clone(), part.share.heads.clone());
        for (row, batch) in batches.enumerate() {
            for (column, shared) in heads.clone().enumerate() {
                let next_shared = match column + 1 < heads.len() {
                    true => part.soon(saved, [row, column + 1]),
                    false => part.soon(saved, [row + 1, 0]),
                };
                let mut d_key = RowsMut::new(d_key_memory, keys, dim);
                let mut d_value = RowsMut::new(d_value_memory, keys, dim);
                // Zeroed, and added to afterwards: several query heads, and blocks of queries within each, contribute
                // to one key head.
                ClearRows(d_key.reborrow()).run();
                ClearRows(d_value.reborrow()).run();
                let (key, value) = (
                    saved.sources.key(batch, shared),
                    saved.sources.value(batch, shared),
                );
                let of_keys = Keys {
                    key: Panels::pack(key.transposed(), key_memory),
                    value: Panels::pack(value.transposed(), value_memory),
                    key_rows: Panels::pack(key, key_rows_memory),
                };
                // One after the other: their order is the order of the sums in dk and dv.
                for member in 0..g.group() {
                    let head = shared * g.group() + member;
                    let soon = match member + 1 < g.group() {
                        true => saved.hints([batch, head + 1]),
                        false => next_shared,
                    };
                    let columns = ((column * g.group() + member) * dim, dim);
                    let tokens = (row * g.query_tokens, g.query_tokens);
                    let d_query = part.query.part(tokens, columns);
                    let gradients = Gradients {
                        query: d_query,
                        key: d_key.reborrow(),
                        value: d_value.reborrow(),
                    };
                    one_head(saved, [batch, head], of_keys, gradients, &soon, scratch);
                }
                let place = ((row * keys, keys), (column * dim, dim));
                bf16::settle(part.key.part(place.0, place.1), d_key_memory);
                bf16::settle(part.value.part(place.0, place.1), d_value_memory);
            }
        }
    }
}

/// What the query heads of a key head have in common.
#[derive(Clone, Copy)]
struct Keys<'a> {
    /// Of the transposed keys [D, T].
    key: Panels<'a>,
    /// Of the transposed values [D, T].
    value: Panels<'a>,
    /// Of the keys [T, D].
    key_rows: Panels<'a>,
}

/// What a query head writes, and adds to.
struct Gradients<'a, Q> {
    /// [Tq, D].
    query: RowsMut<'a, Q>,
    /// [T, D], added to.
    key: RowsMut<'a>,
    /// [T, D], added to.
    value: RowsMut<'a>,
}

/// Writes the gradient of the head's query and adds to those of its key head; asks for what is needed `soon`.
fn one_head<Q: Element>(
    saved: &Saved<'_, bf16>,
    [batch, head]: [usize; 2],
    of_keys: Keys<'_>,
    mut gradients: Gradients<'_, Q>,
    soon: &Soon,
    scratch: &mut [f32],
) {
    let geometry = &saved.sources.geometry;
    let (dim, tokens) = (geometry.heads.dim, geometry.query_tokens);
    let segments = saved.sources.segments(batch);
    let query = saved.sources.query(batch, head);
    let [output, d_output] =
        [saved.output, saved.d_output].map(|data| saved.head(data, batch, head));
    let start = (batch * geometry.heads.query + head) * tokens;
    let log_sum_exp = &saved.log_sum_exp[start..][..tokens];
    let (query_memory, scratch) = scratch.split_at_mut(panels_workspace(tokens, dim));
    let (d_output_memory, scratch) = scratch.split_at_mut(panels_workspace(tokens, dim));
    let (d_query, scratch) = scratch.split_at_mut(QUERIES * dim);
    let (deltas, scratch) = scratch.split_at_mut(QUERIES);
    let query_rows = Panels::pack(query, query_memory);
    let d_output_rows = Panels::pack(d_output, d_output_memory);
    for queries in equal_blocks(tokens) {
        let (first, count) = (queries.start, queries.len());
        Deltas {
            output: output.part(first, count),
            d_output: d_output.part(first, count),
            deltas: &mut deltas[..count],
        }
        .run();
        let mut d_query = RowsMut::new(d_query, count, dim);
        let mut is_first = true;
        for_each_block(geometry, segments, queries.clone(), |keys: Range<usize>| {
            let block = Block {
                geometry,
                segments,
                queries: queries.clone(),
                keys,
            };
            BlockGradients {
                block: &block,
                of_keys,
                query: query.part(first, count),
                d_output: d_output.part(first, count),
                query_rows: query_rows.rows(first, count),
                d_output_rows: d_output_rows.rows(first, count),
                log_sum_exp: &log_sum_exp[first..first + count],
                deltas,
                soon: if is_first { soon } else { &[Hint::NONE; 8] },
            }
            .compute(
                is_first,
                [
                    d_query.reborrow(),
                    gradients.key.reborrow(),
                    gradients.value.reborrow(),
                ],
                scratch,
            );
            is_first = false;
        });
        for row in 0..count {
            let to = gradients.query.row(first + row);
            match is_first {
                // No key was seen: nothing has been written yet.
                true => to.fill(Q::default()),
                false => round(d_query.row(row), to),
            }
        }
    }
}

/// What the gradients of a block of scores are computed from.
struct BlockGradients<'a> {
    block: &'a Block<'a>,
    of_keys: Keys<'a>,
    /// The block's queries [queries, D], and the gradients of their outputs.
    query: Rows<'a, bf16>,
    d_output: Rows<'a, bf16>,
    /// The same in panels.
    query_rows: Panels<'a>,
    d_output_rows: Panels<'a>,
    log_sum_exp: &'a [f32],
    deltas: &'a [f32],
    soon: &'a Soon,
}

impl BlockGradients<'_> {
    /// Adds to the gradients of the block's queries, which are overwritten where `is_first`, and of all keys and values.
    fn compute(
        &self,
        is_first: bool,
        [d_query, mut d_key, mut d_value]: [RowsMut<'_>; 3],
        scratch: &mut [f32],
    ) {
        let block = self.block;
        let (dim, scale) = (d_query.as_rows().width(), block.geometry.scale() as f32);
        let (from, width) = (block.keys.start, block.keys.len());
        let (count, stride, stairs) = (block.queries.len(), block.stride(), block.stairs());
        let elements = score_elements(block.geometry);
        let (scores, rest) = scratch.split_at_mut(elements);
        let (d_probabilities, rest) = rest.split_at_mut(elements);
        // Two numbers share a cell.
        let (probability_cells, rest) = rest.split_at_mut(elements / 2);
        let (gradient_cells, rest) = rest.split_at_mut(elements / 2);
        let gradient_terms: &mut [bf16] = bytemuck::cast_slice_mut(&mut rest[..elements / 2]);
        let below = Extent::Result(stairs);
        let (key, value) = (
            self.of_keys.key.columns(from, width),
            self.of_keys.value.columns(from, width),
        );
        // The scores again, by the product that made them forward: the same bits, so that P = exp(S − lse) sums to one as
        // it did there.
        let to = RowsMut::strided(scores, count, width, stride);
        product_of_pairs(below, scale, Cells::of_rows(self.query), key, 0.0, to);
        let to = RowsMut::strided(d_probabilities, count, width, stride);
        product_of_pairs(below, 1.0, Cells::of_rows(self.d_output), value, 0.0, to);
        GradientInPairs {
            block,
            scores,
            d_probabilities,
            log_sum_exp: self.log_sum_exp,
            deltas: self.deltas,
            probability_cells,
            gradient_cells,
            gradient_terms,
            soon: self.soon,
        }
        .run();
        let across = Extent::LeftTransposed(stairs);
        let cells = count.div_ceil(2);
        let place = ((from, width), (0, dim));
        let p = Cells::across(Rows::strided(probability_cells, cells, width, stride));
        let to = d_value.part(place.0, place.1);
        product_of_pairs(across, 1.0, p, self.d_output_rows, 1.0, to);
        let d_s = Cells::across(Rows::strided(gradient_cells, cells, width, stride));
        let to = d_key.part(place.0, place.1);
        product_of_pairs(across, scale, d_s, self.query_rows, 1.0, to);
        let terms = width.next_multiple_of(2);
        let d_s = Cells::of_rows(Rows::strided(gradient_terms, count, terms, stride));
        let k = self.of_keys.key_rows.rows(from, width);
        // The first block overwrites what dq's memory held.
        let beta = if is_first { 0.0 } else { 1.0 };
        product_of_pairs(Extent::Left(stairs), scale, d_s, k, beta, d_query);
    }
}
