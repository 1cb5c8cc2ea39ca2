//! The output and its log-sum-exp, key block after key block (Dao 2023, algorithm 1).

use std::ops::Range;

use super::block::{Block, ScaleRows, SoftmaxEnd, SoftmaxStep, Soon, score_stride};
use super::{
    Divide, Geometry, KEYS, QUERIES, Share, Sources, for_each_block, forward_in_pairs,
    panel_elements, query_blocks, run_workers, workers,
};
use crate::ops::attention::op::Attention;
use crate::tape::{CpuArgs, Element, Target, with_element};
use crate::tensor::DType;
use keel_cpu::matmul::{Extent, Hint, Rows, RowsMut, product_within};

/// Floats of scratch memory of one worker: scores, the products' panel, three numbers a query, and a head in f32.
fn worker_elements<T: Element>(geometry: &Geometry) -> usize {
    let own = QUERIES * score_stride(KEYS) + panel_elements(geometry.heads.dim) + 3 * QUERIES;
    let widened = own + head_elements::<T>(geometry);
    // The plan does not know which way the products will go.
    widened.max(T::scratch(forward_in_pairs::worker_elements(geometry)))
}

/// Floats of one head's query, key, value and output, where they are stored in bf16.
fn head_elements<T: Element>(geometry: &Geometry) -> usize {
    let rows = 2 * (geometry.query_tokens + geometry.key_tokens);
    T::scratch(rows * geometry.heads.dim)
}

/// Bytes of scratch memory for [`forward`].
pub(in crate::ops::attention) fn forward_workspace(
    geometry: &Geometry,
    dtype: DType,
    target: Target,
) -> usize {
    let items = geometry.batch * geometry.heads.query;
    let each = with_element!(dtype, T => worker_elements::<T>(geometry));
    workers(items, target) * each * size_of::<f32>()
}

/// The part of the outputs that one worker writes.
pub(super) struct Part<'a, T> {
    pub geometry: Geometry,
    pub share: Share,
    /// [batch rows · Tq, heads · D].
    pub output: RowsMut<'a, T>,
    /// [batch rows, heads, Tq], or nothing where it is not saved.
    pub log_sum_exp: &'a mut [f32],
}

impl<T: Element> Divide for Part<'_, T> {
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
            output,
            log_sum_exp,
        } = self;
        let tokens = geometry.query_tokens;
        // The log-sum-exps lie by batch row and then by head, so either division cuts them in proportion; 0 where none
        // are saved.
        let divided = log_sum_exp.len() * items
            / if batches.len() == 1 {
                heads.len()
            } else {
                batches.len()
            };
        let (output, shares) = if batches.len() == 1 {
            let middle = heads.start + items;
            let shares = [
                (batches.clone(), heads.start..middle),
                (batches, middle..heads.end),
            ];
            (output.split_at_column(items * geometry.heads.dim), shares)
        } else {
            let middle = batches.start + items;
            let shares = [
                (batches.start..middle, heads.clone()),
                (middle..batches.end, heads),
            ];
            (output.split_at_row(items * tokens), shares)
        };
        let log_sum_exp = log_sum_exp.split_at_mut(divided);
        let part = |(batches, heads), output, log_sum_exp| Part {
            geometry,
            share: Share { batches, heads },
            output,
            log_sum_exp,
        };
        let [first, second] = shares;
        (
            part(first, output.0, log_sum_exp.0),
            part(second, output.1, log_sum_exp.1),
        )
    }
}

/// Computes the op from numbers stored as `T`, each part of it by `compute` with the memory of a worker.
pub(super) fn in_parts<T: Element>(
    op: &Attention,
    args: CpuArgs<'_>,
    compute: &(impl Fn(Part<'_, T>, &Sources<'_, T>, &mut [f32]) + Sync),
) {
    let geometry = op.geometry(args.input_types);
    let sources = Sources::<T>::new(geometry, op.form, &args, op.form.sources());
    let mut outputs = args.outputs.in_order();
    let output = outputs.next::<T>();
    let log_sum_exp: &mut [f32] = if op.saves { outputs.next() } else { &mut [] };
    let rows = geometry.batch * geometry.query_tokens;
    let whole = Part {
        geometry,
        share: Share {
            batches: 0..geometry.batch,
            heads: 0..geometry.heads.query,
        },
        output: RowsMut::new(output, rows, geometry.heads.query_width()),
        log_sum_exp,
    };
    if rows == 0 {
        return;
    }
    let elements = worker_elements::<T>(&geometry);
    run_workers(
        whole,
        args.workspace,
        elements,
        &|part: Part<'_, T>, scratch: &mut [f32]| compute(part, &sources, scratch),
    );
}

/// Computes the op in f32 from numbers stored as `T`.
pub(in crate::ops::attention) fn forward<T: Element>(op: &Attention, args: CpuArgs<'_>) {
    in_parts::<T>(op, args, &|part, sources, scratch| {
        part.compute(sources, scratch);
    });
}

impl<T: Element> Part<'_, T> {
    /// What a query head of a batch row, counted from the part's first, writes: the place of its output, and its log-sum-exps.
    pub fn place(&self, [row, column]: [usize; 2]) -> (Place, Range<usize>) {
        let (dim, tokens) = (self.geometry.heads.dim, self.geometry.query_tokens);
        let at = (row * self.share.heads.len() + column) * tokens;
        (
            ((row * tokens, tokens), (column * dim, dim)),
            at..at + tokens,
        )
    }

    /// What this head writes and the next one reads.
    pub fn soon(&self, sources: &Sources<'_, T>, [batch, head]: [usize; 2]) -> Soon {
        let Share { batches, heads } = &self.share;
        let next = match head + 1 < heads.end {
            true => [batch, head + 1],
            false => [batch + 1, heads.start],
        };
        let mut soon = [Hint::NONE; 8];
        let (place, _) = self.place([batch - batches.start, head - heads.start]);
        soon[0] = self.output.hint(place.0, place.1);
        if next[0] < batches.end {
            let [query, key, value] = sources.of(next).map(Rows::hint);
            soon[1..4].copy_from_slice(&[query, key, value]);
        }
        soon
    }

    fn compute(mut self, sources: &Sources<'_, T>, scratch: &mut [f32]) {
        let (dim, tokens) = (self.geometry.heads.dim, self.geometry.query_tokens);
        let (of_head, scratch) = scratch.split_at_mut(head_elements::<T>(&self.geometry));
        let (result, of_head) = of_head.split_at_mut(T::scratch(tokens * dim));
        let (query, of_head) = of_head.split_at_mut(T::scratch(tokens * dim));
        let (key, value) = of_head.split_at_mut(of_head.len() / 2);
        let Share { batches, heads } = self.share.clone();
        for (row, batch) in batches.clone().enumerate() {
            for (column, head) in heads.clone().enumerate() {
                let soon = self.soon(sources, [batch, head]);
                let (place, range) = self.place([row, column]);
                let mut output = self.output.part(place.0, place.1);
                let log_sum_exp = self.log_sum_exp.get_mut(range);
                let [of_query, of_key, of_value] = sources.of([batch, head]);
                let of_head = Head {
                    geometry: &self.geometry,
                    segments: sources.segments(batch),
                    query: T::view(of_query, query),
                    key: T::view(of_key, key),
                    value: T::view(of_value, value),
                };
                let target = T::target(output.reborrow(), result);
                one_head(&of_head, &soon, target, log_sum_exp, scratch);
                T::settle(output, result);
            }
        }
    }
}

/// Rows and columns of a matrix: the first, and how many.
pub(super) type Place = ((usize, usize), (usize, usize));

/// What one query head of one batch row reads, in f32.
struct Head<'a> {
    geometry: &'a Geometry,
    segments: Option<&'a [i32]>,
    query: Rows<'a>,
    key: Rows<'a>,
    value: Rows<'a>,
}

/// One query head of one batch row; asks for what is needed `soon`.
fn one_head(
    of_head: &Head<'_>,
    soon: &Soon,
    mut output: RowsMut<'_>,
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
    let (scores, rest) = scratch.split_at_mut(QUERIES * score_stride(KEYS));
    let (largest, rest) = rest.split_at_mut(QUERIES);
    let (sums, rest) = rest.split_at_mut(QUERIES);
    let (factors, panel) = rest.split_at_mut(QUERIES);
    // A block of queries sees all its keys before the next begins: its scores, sums and output stay in cache, and no
    // [T, T] matrix is ever made.
    for queries in query_blocks(geometry.query_tokens) {
        let (first, count) = (queries.start, queries.len());
        largest.fill(f32::NEG_INFINITY);
        sums.fill(0.0);
        let mut output = output.part((first, count), (0, dim));
        let mut is_first = true;
        for_each_block(geometry, segments, queries.clone(), |keys: Range<usize>| {
            let (from, width) = (keys.start, keys.len());
            let block = Block {
                geometry,
                segments,
                queries: queries.clone(),
                keys,
            };
            let stairs = block.stairs();
            let to = RowsMut::strided(scores, count, width, block.stride());
            let (q, k) = (query.part(first, count), key.part(from, width));
            // The scale goes into the product: it would cost a pass over the scores otherwise.
            let below = Extent::Result(stairs);
            product_within(below, scale, q, k.transposed(), 0.0, to, panel);
            let soon = if is_first { soon } else { &[Hint::NONE; 8] };
            SoftmaxStep {
                block: &block,
                scores,
                largest,
                sums,
                factors,
                soon,
            }
            .run();
            // The output so far is brought to the new maximum before the block is added to it, row by row and only
            // where the maximum moved; the product then adds on the way out.
            let beta = if is_first { 0.0 } else { 1.0 };
            if !is_first {
                let (rows, factors) = (output.reborrow(), &factors[..count]);
                ScaleRows { rows, factors }.run();
            }
            let p = Rows::strided(scores, count, width, block.stride());
            let v = value.part(from, width);
            let (left, to) = (Extent::Left(stairs), output.reborrow());
            product_within(left, 1.0, p, v, beta, to, panel);
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
        .run(&mut output, factors, own);
        ScaleRows {
            rows: output,
            factors,
        }
        .run();
    }
}
