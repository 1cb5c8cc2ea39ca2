//! Attention on the processor: one head of one batch row after another, in blocks whose scores stay in cache.
//!
//! The batch rows and heads are split among a few workers, each with scratch memory of its own. A head's result does not
//! depend on the worker it falls to, so neither do the bits on the number of workers or threads. Workers get whole
//! batch rows where there are enough, and heads within a batch row otherwise; those of a gradient get the heads that
//! share a key head.
//!
//! Heads stored in bf16 are multiplied in pairs where the machine is faster at that: products of bf16 numbers with sums in f32,
//! everything between them in f32, and probabilities and the gradient of the scores rounded once, as the CUDA kernels do.
//! Elsewhere they are widened into the worker's memory, where the f32 arithmetic meets them. Results are rounded once on
//! their way back.
//!
//! What needs an order of its own is in [`forward`] and [`backward`], and in [`forward_in_pairs`] and [`backward_in_pairs`];
//! [`block`] and [`pairs`] have the arithmetic on a block of scores.

mod backward;
mod backward_in_pairs;
mod block;
mod forward;
mod forward_in_pairs;
mod pairs;

use std::ops::Range;

use super::geometry::{Form, Geometry, Layout};
use crate::tape::{CpuArgs, Element, Target};
use keel_cpu::matmul::{Rows, product_workspace};

pub(super) use backward::{backward, backward_workspace};
pub(super) use backward_in_pairs::backward_in_pairs;
pub(super) use forward::{forward, forward_workspace};
pub(super) use forward_in_pairs::forward_in_pairs;
pub(super) use pairs::are_pairs;

/// Queries of a block.
const QUERIES: usize = 64;

/// Keys of a block: with 64 queries, the scores take 32 KiB.
const KEYS: usize = 128;

/// Workers for each thread: enough to even out what the masks take away.
const WORKERS_PER_THREAD: usize = 4;

/// What one worker does: the batch rows and heads (query heads forward, key heads backward).
#[derive(Clone, Debug)]
struct Share {
    batches: Range<usize>,
    heads: Range<usize>,
}

/// Query, key and value as slices, with the segments.
#[derive(Clone, Copy)]
struct Sources<'a, T> {
    geometry: Geometry,
    query: &'a [T],
    key_value: &'a [T],
    segments: Option<&'a [i32]>,
}

impl<'a, T: Element> Sources<'a, T> {
    /// The inputs of an op whose segments, where it has them, are input `segments`.
    fn new(geometry: Geometry, form: Form, args: &CpuArgs<'a>, segments: usize) -> Self {
        let query = args.inputs.of::<T>(0);
        Sources {
            geometry,
            query,
            key_value: match form {
                Form::Packed => query,
                Form::Next | Form::Cross => args.inputs.of::<T>(1),
            },
            segments: (args.inputs.len() > segments).then(|| args.inputs.i32(segments)),
        }
    }

    fn head(&self, data: &'a [T], layout: Layout, at: [usize; 2], tokens: usize) -> Rows<'a, T> {
        let [batch, head] = at;
        let dim = self.geometry.heads.dim;
        Rows::strided(
            &data[layout.at(batch, 0, head, dim)..],
            tokens,
            dim,
            layout.row,
        )
    }

    /// The queries [Tq, D] of a query head.
    fn query(&self, batch: usize, head: usize) -> Rows<'a, T> {
        let g = &self.geometry;
        self.head(self.query, g.query, [batch, head], g.query_tokens)
    }

    /// The keys [T, D] of a key head.
    fn key(&self, batch: usize, head: usize) -> Rows<'a, T> {
        let g = &self.geometry;
        self.head(self.key_value, g.key, [batch, head], g.key_tokens)
    }

    /// The values [T, D] of a key head.
    fn value(&self, batch: usize, head: usize) -> Rows<'a, T> {
        let g = &self.geometry;
        self.head(self.key_value, g.value, [batch, head], g.key_tokens)
    }

    /// Query, key and value of a query head.
    fn of(&self, [batch, head]: [usize; 2]) -> [Rows<'a, T>; 3] {
        let shared = head / self.geometry.group();
        [
            self.query(batch, head),
            self.key(batch, shared),
            self.value(batch, shared),
        ]
    }

    /// The segments [T] of a batch row.
    fn segments(&self, batch: usize) -> Option<&'a [i32]> {
        let tokens = self.geometry.key_tokens;
        self.segments.map(|all| &all[batch * tokens..][..tokens])
    }
}

/// Calls `visit` with the parts of a head that have to be computed: a range of queries and the range of keys that some
/// of them may see. Blocks come in the order of their queries, then of their keys.
fn for_each_block(
    geometry: &Geometry,
    segments: Option<&[i32]>,
    queries: Range<usize>,
    mut visit: impl FnMut(Range<usize>),
) {
    // The keys that the last query sees are the most.
    let limit = geometry.limit(queries.end - 1);
    for first in (0..limit).step_by(KEYS) {
        let keys = first..limit.min(first + KEYS);
        // Packed rows hold several short samples: most blocks off the diagonal are of two different ones, and skipping
        // them is what packing gains here. By ranges of segments, which may let a block pass that needs no computing:
        // it is masked then.
        if !segments.is_some_and(|s| are_apart(&s[queries.clone()], &s[keys.clone()])) {
            visit(keys);
        }
    }
}

/// Whether no segment of the queries can be one of the keys.
fn are_apart(queries: &[i32], keys: &[i32]) -> bool {
    let range = |segments: &[i32]| {
        let seen = segments.iter().filter(|segment| **segment >= 0);
        seen.fold((i32::MAX, -1), |(least, most), segment| {
            (least.min(*segment), most.max(*segment))
        })
    };
    let (queries, keys) = (range(queries), range(keys));
    queries.1 < keys.0 || keys.1 < queries.0
}

/// The blocks of queries.
fn query_blocks(tokens: usize) -> impl Iterator<Item = Range<usize>> {
    (0..tokens)
        .step_by(QUERIES)
        .map(move |first| first..tokens.min(first + QUERIES))
}

/// Floats of scratch memory for the products of one worker.
fn panel_elements(dim: usize) -> usize {
    product_workspace(dim, KEYS).max(product_workspace(KEYS, dim))
}

/// Workers to split `items` among.
fn workers(items: usize, target: Target) -> usize {
    match target {
        Target::Cpu { threads } => (threads * WORKERS_PER_THREAD).min(items).max(1),
        _ => 0,
    }
}

/// Work that can be divided among workers.
trait Divide: Sized + Send {
    /// Batch rows or heads it can be divided into.
    fn items(&self) -> usize;
    /// The first `items` of them, and the rest.
    fn divide(self, items: usize) -> (Self, Self);
}

/// Runs `body` on the parts of `whole`, each with scratch memory of `elements` floats, by as many workers as `scratch`
/// has room for.
fn run_workers<D: Divide>(
    whole: D,
    scratch: &mut [f32],
    elements: usize,
    body: &(impl Fn(D, &mut [f32]) + Sync),
) {
    assert!(
        scratch.len() >= elements,
        "scratch memory of {} floats, and a worker needs {elements}",
        scratch.len()
    );
    let workers = scratch.len() / elements;
    let items = whole.items();
    if workers <= 1 || items <= 1 {
        return body(whole, &mut scratch[..elements]);
    }
    // Halved again and again, with the scratch memory in proportion, instead of a list of parts: lists would have to be
    // allocated, and no step allocates.
    let first = (items / 2).max(1);
    let (left, right) = whole.divide(first);
    let workers = (workers * first / items).max(1);
    let (left_scratch, right_scratch) = scratch.split_at_mut(workers * elements);
    rayon::join(
        || run_workers(left, left_scratch, elements, body),
        || run_workers(right, right_scratch, elements, body),
    );
}
