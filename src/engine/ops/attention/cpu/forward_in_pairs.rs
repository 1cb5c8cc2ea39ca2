//! The forward pass of [`super::forward`] with products in pairs. Keys and values are packed once for all the queries of a
//! head, and of the heads that share them.

use std::ops::Range;

use half::bf16;

use super::block::{Block, ScaleRows, SoftmaxEnd, Soon};
use super::forward::{Part, in_parts};
use super::pairs::{FinishRows, SoftmaxInPairs, equal_blocks, score_elements};
use super::{Geometry, QUERIES, Sources, for_each_block};
use crate::ops::attention::op::Attention;
use crate::tape::CpuArgs;
use keel_cpu::matmul::{
    Cells, Extent, Hint, Panels, Rows, RowsMut, panels_workspace, product_of_pairs,
};

/// Floats of scratch memory of one worker: keys and values in panels, scores, probabilities, outputs, and three numbers a query.
pub(super) fn worker_elements(geometry: &Geometry) -> usize {
    let (dim, keys) = (geometry.heads.dim, geometry.key_tokens);
    let panels = panels_workspace(dim, keys) + panels_workspace(keys, dim);
    let scores = score_elements(geometry);
    panels + scores + scores / 2 + QUERIES * (dim + 3)
}

/// Computes the op in pairs.
pub(in crate::ops::attention) fn forward_in_pairs(op: &Attention, args: CpuArgs<'_>) {
    in_parts::<bf16>(op, args, &|part, sources, scratch| {
        part.compute_in_pairs(sources, scratch);
    });
}

impl Part<'_, bf16> {
    fn compute_in_pairs(mut self, sources: &Sources<'_, bf16>, scratch: &mut [f32]) {
        let (dim, keys) = (self.geometry.heads.dim, self.geometry.key_tokens);
        let group = self.geometry.group();
        let (key_memory, scratch) = scratch.split_at_mut(panels_workspace(dim, keys));
        let (value_memory, scratch) = scratch.split_at_mut(panels_workspace(keys, dim));
        let (batches, heads) = (self.share.batches.clone(), self.share.heads.clone());
        for (row, batch) in batches.enumerate() {
            let mut first = heads.start;
            while first < heads.end {
                let shared = first / group;
                let end = heads.end.min((shared + 1) * group);
                let key = Panels::pack(sources.key(batch, shared).transposed(), key_memory);
                let value = Panels::pack(sources.value(batch, shared), value_memory);
                for head in first..end {
                    let soon = self.soon(sources, [batch, head]);
                    let (place, range) = self.place([row, head - heads.start]);
                    let of_head = Head {
                        geometry: &self.geometry,
                        segments: sources.segments(batch),
                        query: sources.query(batch, head),
                        key,
                        value,
                    };
                    let output = self.output.part(place.0, place.1);
                    let log_sum_exp = self.log_sum_exp.get_mut(range);
                    one_head(&of_head, &soon, output, log_sum_exp, scratch);
                }
                first = end;
            }
        }
    }
}

/// What one query head of one batch row reads.
struct Head<'a> {
    geometry: &'a Geometry,
    segments: Option<&'a [i32]>,
    query: Rows<'a, bf16>,
    /// Of the transposed keys [D, T].
    key: Panels<'a>,
    /// Of the values [T, D].
    value: Panels<'a>,
}

/// One query head of one batch row; asks for what is needed `soon`.
fn one_head(
    of_head: &Head<'_>,
    soon: &Soon,
    mut output: RowsMut<'_, bf16>,
    mut log_sum_exp: Option<&mut [f32]>,
    scratch: &mut [f32],
) {
    let &Head {
        geometry,
        segments,
        query,
        key,
        value,
    } = of_head;
    let (dim, scale) = (geometry.heads.dim, geometry.scale() as f32);
    let elements = score_elements(geometry);
    let (scores, rest) = scratch.split_at_mut(elements);
    let (probabilities, rest) = rest.split_at_mut(elements / 2);
    let probabilities: &mut [bf16] = bytemuck::cast_slice_mut(probabilities);
    let (results, rest) = rest.split_at_mut(QUERIES * dim);
    let (largest, rest) = rest.split_at_mut(QUERIES);
    let (sums, factors) = rest.split_at_mut(QUERIES);
    for queries in equal_blocks(geometry.query_tokens) {
        let (first, count) = (queries.start, queries.len());
        largest.fill(f32::NEG_INFINITY);
        sums.fill(0.0);
        let mut result = RowsMut::new(results, count, dim);
        let mut is_first = true;
        for_each_block(geometry, segments, queries.clone(), |keys: Range<usize>| {
            let (from, width) = (keys.start, keys.len());
            let block = Block {
                geometry,
                segments,
                queries: queries.clone(),
                keys,
            };
            let (stairs, stride) = (block.stairs(), block.stride());
            let to = RowsMut::strided(scores, count, width, stride);
            let q = Cells::of_rows(query.part(first, count));
            let below = Extent::Result(stairs);
            product_of_pairs(below, scale, q, key.columns(from, width), 0.0, to);
            SoftmaxInPairs {
                block: &block,
                scores,
                probabilities,
                largest,
                sums,
                factors,
                soon: if is_first { soon } else { &[Hint::NONE; 8] },
            }
            .run();
            let beta = if is_first { 0.0 } else { 1.0 };
            if !is_first {
                let (rows, factors) = (result.reborrow(), &factors[..count]);
                ScaleRows { rows, factors }.run();
            }
            let terms = width.next_multiple_of(2);
            let p = Cells::of_rows(Rows::strided(probabilities, count, terms, stride));
            let v = value.rows(from, width);
            product_of_pairs(Extent::Left(stairs), 1.0, p, v, beta, result.reborrow());
            is_first = false;
        });
        let factors = &mut factors[..count];
        let own = log_sum_exp.as_deref_mut();
        let own = own.map(|all| &mut all[first..first + count]);
        SoftmaxEnd {
            largest,
            sums,
            has_seen: !is_first,
        }
        .run(&mut result, factors, own);
        FinishRows {
            from: result.as_rows(),
            factors,
            to: output.part((first, count), (0, dim)),
        }
        .run();
    }
}
