//! The gradients of query, key and value, block by block (Dao 2023, algorithm 2).
//!
//! A worker computes whole groups of query heads: only then is the gradient of their key head its own.

use std::ops::Range;

use super::block::{Block, ClearRows, ScoreGradient, Soon, score_stride};
use super::{
    Divide, Geometry, KEYS, QUERIES, Share, Sources, backward_in_pairs, for_each_block,
    panel_elements, query_blocks, run_workers, workers,
};
use crate::ops::attention::geometry::Form;
use crate::ops::attention::op::AttentionBackward;
use crate::ops::rows::dot;
use crate::tape::{CpuArgs, Element, Target, with_element};
use crate::tensor::DType;
use keel_cpu::matmul::{Extent, Hint, Rows, RowsMut, product_within};

/// Floats of scratch memory of one worker: scores, their gradient, the products' panel, δ, and a head in f32.
fn worker_elements<T: Element>(geometry: &Geometry) -> usize {
    let own = 2 * QUERIES * score_stride(KEYS) + panel_elements(geometry.heads.dim) + QUERIES;
    let widened = own + head_elements::<T>(geometry);
    // The plan does not know which way the products will go.
    widened.max(T::scratch(backward_in_pairs::worker_elements(geometry)))
}

/// Floats of one head where it is stored in bf16: query, output and the gradients of both, key, value and theirs.
fn head_elements<T: Element>(geometry: &Geometry) -> usize {
    let rows = 4 * (geometry.query_tokens + geometry.key_tokens);
    T::scratch(rows * geometry.heads.dim)
}

/// Floats in which a query that all batch rows share keeps its gradient for each of them, until they are added up.
fn shared_elements(geometry: &Geometry) -> usize {
    match geometry.query.batch {
        0 => geometry.batch * geometry.query_tokens * geometry.query.row,
        _ => 0,
    }
}

/// Bytes of scratch memory for [`backward`].
pub(in crate::ops::attention) fn backward_workspace(
    geometry: &Geometry,
    dtype: DType,
    target: Target,
) -> usize {
    let items = geometry.batch * geometry.heads.key_value;
    let each = with_element!(dtype, T => worker_elements::<T>(geometry));
    match workers(items, target) {
        0 => 0,
        workers => (shared_elements(geometry) + workers * each) * size_of::<f32>(),
    }
}

/// The output of the forward pass, what was saved, and the output's gradient.
#[derive(Clone, Copy)]
pub(super) struct Saved<'a, T> {
    pub sources: Sources<'a, T>,
    /// [B · Tq, H·D].
    pub output: &'a [T],
    /// [B, H, Tq].
    pub log_sum_exp: &'a [f32],
    /// [B · Tq, H·D].
    pub d_output: &'a [T],
}

impl<'a, T: Element> Saved<'a, T> {
    /// The rows [Tq, D] of a query head in the output or its gradient.
    pub fn head(&self, data: &'a [T], batch: usize, head: usize) -> Rows<'a, T> {
        let g = &self.sources.geometry;
        let (width, dim) = (g.heads.query_width(), g.heads.dim);
        let start = batch * g.query_tokens * width + head * dim;
        Rows::strided(&data[start..], g.query_tokens, dim, width)
    }
}

impl<T: Element> Saved<'_, T> {
    /// What a query head reads.
    pub fn hints(&self, [batch, head]: [usize; 2]) -> Soon {
        let [query, key, value] = self.sources.of([batch, head]).map(Rows::hint);
        let [output, d_output] =
            [self.output, self.d_output].map(|data| self.head(data, batch, head).hint());
        let none = Hint::NONE;
        [query, key, value, output, d_output, none, none, none]
    }
}

/// The part of the gradients that one worker writes; its heads are key heads.
pub(super) struct Part<'a, Q, T> {
    pub geometry: Geometry,
    pub share: Share,
    /// [batch rows · Tq, query heads · D].
    pub query: RowsMut<'a, Q>,
    /// [batch rows · T, key heads · D].
    pub key: RowsMut<'a, T>,
    /// [batch rows · T, key heads · D].
    pub value: RowsMut<'a, T>,
}

impl<Q: Element, T: Element> Divide for Part<'_, Q, T> {
    fn items(&self) -> usize {
        match self.share.batches.len() {
            1 => self.share.heads.len(),
            batches => batches,
        }
    }

    fn divide(self, items: usize) -> (Self, Self) {
        let Part {
            geometry,
            share: Share { batches, heads },
            query,
            key,
            value,
        } = self;
        let part = |(batches, heads), query, key, value| Part {
            geometry,
            share: Share { batches, heads },
            query,
            key,
            value,
        };
        // Batch rows first, which are whole rows of every gradient; a single batch row is divided by columns, between
        // heads. Key heads decide: a worker that owns one owns all query heads that add to it.
        if batches.len() == 1 {
            let columns = items * geometry.heads.dim;
            let middle = heads.start + items;
            let query = query.split_at_column(columns * geometry.group());
            let (key, value) = (key.split_at_column(columns), value.split_at_column(columns));
            let first = (batches.clone(), heads.start..middle);
            return (
                part(first, query.0, key.0, value.0),
                part((batches, middle..heads.end), query.1, key.1, value.1),
            );
        }
        let (middle, rows) = (batches.start + items, items * geometry.key_tokens);
        let query = query.split_at_row(items * geometry.query_tokens);
        let (key, value) = (key.split_at_row(rows), value.split_at_row(rows));
        let first = (batches.start..middle, heads.clone());
        (
            part(first, query.0, key.0, value.0),
            part((middle..batches.end, heads), query.1, key.1, value.1),
        )
    }
}

/// How parts of gradients are computed from numbers stored as `T`.
pub(super) trait Way<T> {
    /// Computes a part with the scratch memory of a worker.
    fn compute<Q: Element>(part: Part<'_, Q, T>, saved: &Saved<'_, T>, scratch: &mut [f32]);
}

/// Products in f32.
struct InF32;

impl<T: Element> Way<T> for InF32 {
    fn compute<Q: Element>(part: Part<'_, Q, T>, saved: &Saved<'_, T>, scratch: &mut [f32]) {
        part.compute(saved, scratch);
    }
}

/// Computes the op in f32 from numbers stored as `T`.
pub(in crate::ops::attention) fn backward<T: Element>(op: &AttentionBackward, args: CpuArgs<'_>) {
    in_parts::<T, InF32>(op, args);
}

/// Computes the op from numbers stored as `T`, each part of it by `W`.
pub(super) fn in_parts<T: Element, W: Way<T>>(op: &AttentionBackward, args: CpuArgs<'_>) {
    let geometry = op.geometry(args.input_types);
    let first = op.form.sources();
    let saved = Saved::<T> {
        sources: Sources::new(geometry, op.form, &args, first + 3),
        output: args.inputs.of(first),
        log_sum_exp: args.inputs.f32(first + 1),
        d_output: args.inputs.of(first + 2),
    };
    if geometry.batch == 0 {
        return;
    }
    let share = Share {
        batches: 0..geometry.batch,
        heads: 0..geometry.heads.key_value,
    };
    let rows = geometry.batch * geometry.query_tokens;
    let key_rows = geometry.batch * geometry.key_tokens;
    let (query_width, dim) = (geometry.heads.query_width(), geometry.heads.dim);
    let key_width = geometry.heads.key_value * dim;
    let (shared, scratch) = args.workspace.split_at_mut(shared_elements(&geometry));
    let mut outputs = args.outputs.in_order();
    match op.form {
        Form::Packed => {
            let gradient = outputs.next::<T>();
            let whole = RowsMut::new(gradient, rows, geometry.heads.packed_width());
            let (query, rest) = whole.split_at_column(query_width);
            let (key, value) = rest.split_at_column(key_width);
            run::<T, W>(&saved, share, [query, key, value], scratch);
        }
        Form::Next => unreachable!("it has no gradient"),
        Form::Cross => {
            let (d_query, d_key_value) = (outputs.next::<T>(), outputs.next::<T>());
            let whole = RowsMut::new(d_key_value, key_rows, 2 * key_width);
            let (key, value) = whole.split_at_column(key_width);
            if shared.is_empty() {
                let query = RowsMut::new(d_query, rows, query_width);
                run::<T, W>(&saved, share, [query, key, value], scratch);
                return;
            }
            // One query for all batch rows: each worker would add to the same gradient, in an order that depends on the
            // threads. They write one copy for each batch row instead, in f32, which are added up in order.
            let part = Part {
                geometry,
                share,
                query: RowsMut::<f32>::new(shared, rows, query_width),
                key,
                value,
            };
            run_part::<_, T, W>(part, &saved, scratch);
            for (index, d_query) in d_query.iter_mut().enumerate() {
                let of_rows = shared
                    .iter()
                    .skip(index)
                    .step_by(geometry.query_tokens * query_width);
                *d_query = T::rounded(of_rows.fold(0.0, |sum, of_row| sum + of_row));
            }
        }
    }
}

/// Computes gradients that are all of one type.
fn run<T: Element, W: Way<T>>(
    saved: &Saved<'_, T>,
    share: Share,
    [query, key, value]: [RowsMut<'_, T>; 3],
    scratch: &mut [f32],
) {
    let part = Part {
        geometry: saved.sources.geometry,
        share,
        query,
        key,
        value,
    };
    run_part::<_, T, W>(part, saved, scratch);
}

fn run_part<Q: Element, T: Element, W: Way<T>>(
    whole: Part<'_, Q, T>,
    saved: &Saved<'_, T>,
    scratch: &mut [f32],
) {
    let elements = worker_elements::<T>(&saved.sources.geometry);
    run_workers(
        whole,
        scratch,
        elements,
        &|part: Part<'_, Q, T>, scratch| {
            W::compute(part, saved, scratch);
        },
    );
}

impl<Q: Element, T: Element> Part<'_, Q, T> {
    fn compute(mut self, saved: &Saved<'_, T>, scratch: &mut [f32]) {
        let g = self.geometry;
        let (dim, tokens, keys) = (g.heads.dim, g.query_tokens, g.key_tokens);
        let sources = &saved.sources;
        // Where a head stored in bf16 is in f32: four of the query's size, then four of the key's.
        let (of_head, scratch) = scratch.split_at_mut(head_elements::<T>(&g));
        let (of_query, of_key) = of_head.split_at_mut(T::scratch(4 * tokens * dim));
        let (query_memory, of_query) = of_query.split_at_mut(T::scratch(tokens * dim));
        let (output_memory, of_query) = of_query.split_at_mut(T::scratch(tokens * dim));
        let (d_output_memory, d_query_memory) = of_query.split_at_mut(T::scratch(tokens * dim));
        let (key_memory, of_key) = of_key.split_at_mut(T::scratch(keys * dim));
        let (value_memory, of_key) = of_key.split_at_mut(T::scratch(keys * dim));
        let (d_key_memory, d_value_memory) = of_key.split_at_mut(T::scratch(keys * dim));
        let Share { batches, heads } = self.share.clone();
        for (row, batch) in batches.clone().enumerate() {
            for (column, shared) in heads.clone().enumerate() {
                let next_shared = match column + 1 < heads.len() {
                    true => self.soon(saved, [row, column + 1]),
                    false => self.soon(saved, [row + 1, 0]),
                };
                let place = ((row * keys, keys), (column * dim, dim));
                let mut key = self.key.part(place.0, place.1);
                let mut value = self.value.part(place.0, place.1);
                let mut d_key = T::target(key.reborrow(), d_key_memory);
                let mut d_value = T::target(value.reborrow(), d_value_memory);
                // Zeroed, and added to afterwards: several query heads, and blocks of queries within each, contribute
                // to one key head.
                ClearRows(d_key.reborrow()).run();
                ClearRows(d_value.reborrow()).run();
                let of_keys = [
                    T::view(sources.key(batch, shared), key_memory),
                    T::view(sources.value(batch, shared), value_memory),
                ];
                // One after the other: their order is the order of the sums in dk and dv.
                for member in 0..g.group() {
                    let columns = ((column * g.group() + member) * dim, dim);
                    let mut query = self.query.part((row * tokens, tokens), columns);
                    let head = shared * g.group() + member;
                    let soon = match member + 1 < g.group() {
                        true => saved.hints([batch, head + 1]),
                        false => next_shared,
                    };
                    let start = (batch * g.heads.query + head) * tokens;
                    let of_head = Head {
                        geometry: &g,
                        segments: sources.segments(batch),
                        query: T::view(sources.query(batch, head), query_memory),
                        key: of_keys[0],
                        value: of_keys[1],
                        output: T::view(saved.head(saved.output, batch, head), output_memory),
                        d_output: T::view(saved.head(saved.d_output, batch, head), d_output_memory),
                        log_sum_exp: &saved.log_sum_exp[start..][..tokens],
                    };
                    let d_query = Q::target(query.reborrow(), d_query_memory);
                    let gradients = [d_query, d_key.reborrow(), d_value.reborrow()];
                    one_head(&of_head, &soon, gradients, scratch);
                    Q::settle(query, d_query_memory);
                }
                T::settle(key, d_key_memory);
                T::settle(value, d_value_memory);
            }
        }
    }

    /// What the first query head of a key head reads and writes, if the part has it.
    pub fn soon(&self, saved: &Saved<'_, T>, [row, column]: [usize; 2]) -> Soon {
        let g = &self.geometry;
        let Share { batches, heads } = &self.share;
        if batches.start + row >= batches.end {
            return [Hint::NONE; 8];
        }
        let head = (heads.start + column) * g.group();
        let mut soon = saved.hints([batches.start + row, head]);
        let (dim, tokens, keys) = (g.heads.dim, g.query_tokens, g.key_tokens);
        let columns = (column * g.group() * dim, dim);
        soon[5] = self.query.hint((row * tokens, tokens), columns);
        let place = ((row * keys, keys), (column * dim, dim));
        soon[6] = self.key.hint(place.0, place.1);
        soon[7] = self.value.hint(place.0, place.1);
        soon
    }
}

/// What one query head of one batch row reads, in f32.
struct Head<'a> {
    geometry: &'a Geometry,
    segments: Option<&'a [i32]>,
    query: Rows<'a>,
    key: Rows<'a>,
    value: Rows<'a>,
    output: Rows<'a>,
    d_output: Rows<'a>,
    log_sum_exp: &'a [f32],
}

/// Writes the gradient of the head's query and adds to those of its key head; asks for what is needed `soon`.
fn one_head(
    of_head: &Head<'_>,
    soon: &Soon,
    [mut d_query, mut d_key, mut d_value]: [RowsMut<'_>; 3],
    scratch: &mut [f32],
) {
    let &Head {
        geometry,
        segments,
        query,
        key,
        value,
        output,
        d_output,
        log_sum_exp,
    } = of_head;
    let (dim, scale) = (geometry.heads.dim, geometry.scale() as f32);
    let (scores, rest) = scratch.split_at_mut(QUERIES * score_stride(KEYS));
    let (gradient, rest) = rest.split_at_mut(QUERIES * score_stride(KEYS));
    let (deltas, panel) = rest.split_at_mut(QUERIES);
    // Blocks of queries outside, keys inside: dq of a block is complete when the inner loop ends and is written once,
    // while dk and dv are added to in cache. The other way round, dq would be read and written once for each block of
    // keys.
    for queries in query_blocks(geometry.query_tokens) {
        let (first, count) = (queries.start, queries.len());
        let d_o = d_output.part(first, count);
        for (row, delta) in deltas[..count].iter_mut().enumerate() {
            // δ = Σ_k P·dP over all keys equals do·o, which needs no pass over the keys.
            *delta = dot(d_o.row(row), output.row(first + row));
        }
        let q = query.part(first, count);
        let mut is_first = true;
        for_each_block(geometry, segments, queries.clone(), |keys: Range<usize>| {
            let (from, width) = (keys.start, keys.len());
            let (k, v) = (key.part(from, width), value.part(from, width));
            let block = Block {
                geometry,
                segments,
                queries: queries.clone(),
                keys,
            };
            let stairs = block.stairs();
            let below = Extent::Result(stairs);
            let to = RowsMut::strided(scores, count, width, block.stride());
            // The scores again, by the product that made them forward: the same bits, so that P = exp(S − lse) sums to
            // one as it did there.
            product_within(below, scale, q, k.transposed(), 0.0, to, panel);
            let to = RowsMut::strided(gradient, count, width, block.stride());
            product_within(below, 1.0, d_o, v.transposed(), 0.0, to, panel);
            let soon = if is_first { soon } else { &[Hint::NONE; 8] };
            ScoreGradient {
                block: &block,
                scores,
                d_probabilities: gradient,
                log_sum_exp: &log_sum_exp[first..first + count],
                deltas,
                scale,
                soon,
            }
            .run();
            let p = Rows::strided(scores, count, width, block.stride());
            let d_s = Rows::strided(gradient, count, width, block.stride());
            let at = ((from, width), (0, dim));
            let across = Extent::LeftTransposed(stairs);
            let to = d_value.part(at.0, at.1);
            product_within(across, 1.0, p.transposed(), d_o, 1.0, to, panel);
            let to = d_key.part(at.0, at.1);
            product_within(across, 1.0, d_s.transposed(), q, 1.0, to, panel);
            // The first block overwrites what dq's memory held; a product with β 0 does not read it.
            let beta = if is_first { 0.0 } else { 1.0 };
            let to = d_query.part((first, count), (0, dim));
            product_within(Extent::Left(stairs), 1.0, d_s, k, beta, to, panel);
            is_first = false;
        });
        // No key was seen: nothing has been written yet.
        if is_first {
            for row in queries {
                d_query.row(row).fill(0.0);
            }
        }
    }
}
