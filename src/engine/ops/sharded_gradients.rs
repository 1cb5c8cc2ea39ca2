//! The recording of gradients in shards: each rank keeps the sums of its own slices, and the rest only until it is sent.
//!
//! As soon as all gradients of a bucket are complete, they are put side by side in the gradient arena, which has room for the few
//! buckets that are under way, exchanged, added in a tree over ranks, and added to what earlier micro-batches left in the rank's
//! shard. Bits are those of gradients that are kept whole where a rank has one micro-batch; with several, ranks are summed
//! before micro-batches and not after them, unless both are added in one tree ([`super::tree_accumulate`]).

use super::adamw::Run;
use super::collective::{Begun, begin, finish};
use super::sharded_update::{UNDER_WAY, as_completed};
use super::tree_accumulate::Tree;
use super::tree_sum::tree_sum;
use crate::tape::{Add, Arena, Fill, ParameterLayout, Slice, Tape, Value};
use crate::tensor::TensorType;
use keel_base::error::Result;
use keel_ranks::Kind;
use keel_ranks::order::Cut;

/// Buckets that the gradient arena holds: those under way, and the one that is filled.
const SLOTS: usize = UNDER_WAY + 1;

/// Records how the gradients of every bucket leave, and how what comes in their place is added to the shard.
pub(super) fn reduce(tape: &mut Tape, layout: &ParameterLayout, cut: &Cut) -> Result<()> {
    let elements = cut.bucket(0).len();
    tape.sent_elements = Some(SLOTS.min(cut.buckets()) * elements);
    let mut under_way = Vec::new();
    let mut tree = Tree::begin(tape);
    for (position, bucket) in as_completed(tape, cut).into_iter().enumerate() {
        // The bucket that lay there before has arrived.
        let place = position % SLOTS * elements;
        put_together(tape, layout, cut, bucket, place)?;
        let sent = tape.arena_range(Arena::Gradients, place, elements);
        under_way.push((bucket, begin(tape, Kind::Exchange, sent)?));
        if under_way.len() > UNDER_WAY {
            let (bucket, begun) = under_way.remove(0);
            add_to_shard(tape, &mut tree, cut, bucket, begun)?;
        }
    }
    let mut last = under_way.into_iter();
    last.try_for_each(|(bucket, begun)| add_to_shard(tape, &mut tree, cut, bucket, begun))
}

/// Records copies of a bucket's gradients to their places behind element `place` of the gradient arena, and zeros between them.
fn put_together(
    tape: &mut Tape,
    layout: &ParameterLayout,
    cut: &Cut,
    bucket: usize,
    place: usize,
) -> Result<()> {
    let range = cut.bucket(bucket);
    let entries = tape.gradient_entries().iter().zip(&tape.gradient_values);
    let parts = entries.filter_map(|(entry, value)| {
        let known = layout.get(&entry.parameter);
        let spec = &known.expect("trained parameters are laid out").spec;
        let first = range.start.max(entry.offset);
        let end = range.end.min(entry.offset + spec.shape.numel());
        let part = Slice {
            first: first.checked_sub(entry.offset)?,
            elements: end.checked_sub(first).filter(|elements| *elements > 0)?,
        };
        Some((*value, part, place + first - range.start))
    });
    let parts: Vec<(Value, Slice, usize)> = parts.collect();
    let filled: usize = parts.iter().map(|(_, part, _)| part.elements).sum();
    if filled < range.len() {
        let ty = TensorType::f32([range.len()]);
        let zeros = tape.record_one(Fill { ty, value: 0.0 }, &[])?;
        tape.bind(zeros, Arena::Gradients, place);
    }
    for (gradient, part, place) in parts {
        let copied = tape.record_one(part, &[gradient])?;
        tape.bind(copied, Arena::Gradients, place);
    }
    Ok(())
}

/// Records the sum over ranks of the slices of a bucket that this rank receives, on top of earlier micro-batches.
fn add_to_shard(
    tape: &mut Tape,
    tree: &mut Tree,
    cut: &Cut,
    bucket: usize,
    begun: Begun,
) -> Result<()> {
    let parts = tape.world().ranks;
    let received = finish(tape, begun)?;
    let mut sum = tree_sum(tape, received, parts)?;
    let place = bucket * cut.slice();
    if tape.adds_to_arena() {
        let so_far = tape.arena_range(Arena::GradientShard, place, cut.slice());
        sum = tape.record_one(Add, &[so_far, sum])?;
    }
    tape.bind(sum, Arena::GradientShard, place);
    tree.add(tape, Arena::GradientShard, place..place + cut.slice())
}

/// Records how what ranks keep in the arena `shards`, slices of all buckets, reaches its places in the arena `whole` of all
/// ranks, a few buckets at a time: of those buckets that hold any of `runs`.
pub(super) fn gather_shards(
    tape: &mut Tape,
    cut: &Cut,
    runs: &[&Run],
    [shards, whole]: [Arena; 2],
) -> Result<()> {
    let mut under_way = Vec::new();
    let holds = |bucket: &usize| {
        let range = cut.bucket(*bucket);
        let mut runs = runs.iter();
        runs.any(|run| run.gradients < range.end && range.start < run.gradients + run.elements)
    };
    for bucket in (0..cut.buckets()).filter(holds) {
        let own = tape.arena_range(shards, bucket * cut.slice(), cut.slice());
        under_way.push((bucket, begin(tape, Kind::AllGather, own)?));
        if under_way.len() > UNDER_WAY {
            let (bucket, begun) = under_way.remove(0);
            put_in_place(tape, cut, runs, bucket, begun, whole)?;
        }
    }
    let mut last = under_way.into_iter();
    last.try_for_each(|(bucket, begun)| put_in_place(tape, cut, runs, bucket, begun, whole))
}

/// Records copies of the parameters of a bucket to their places in the arena `whole`.
fn put_in_place(
    tape: &mut Tape,
    cut: &Cut,
    runs: &[&Run],
    bucket: usize,
    begun: Begun,
    whole: Arena,
) -> Result<()> {
    let gathered = finish(tape, begun)?;
    let range = cut.bucket(bucket);
    for run in runs {
        let first = range.start.max(run.gradients);
        let end = range.end.min(run.gradients + run.elements);
        if first < end {
            let part = Slice {
                first: first - range.start,
                elements: end - first,
            };
            let copied = tape.record_one(part, &[gathered])?;
            tape.bind(copied, whole, run.parameters + first - run.gradients);
        }
    }
    Ok(())
}
