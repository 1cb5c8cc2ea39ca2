//! Records sharded master weights. In a bf16 program each rank keeps the f32 values of its own slices of the matrices, and every
//! rank has the bf16 copies of all of them, which is all that the other ops read.
//!
//! After the update each rank sends the copies of its own slices, 2 bytes a parameter. Vectors, and matrices that Muon updates,
//! stay whole on every rank and are sent in f32. The bits are those of unsharded master weights, as every rank would round the
//! same numbers.

use std::ops::Range;

use super::adamw::{Run, side_by_side};
use super::cast::cast;
use super::collective::{Begun, begin, finish};
use super::sharded_gradients::gather_shards;
use super::sharded_update::{Stretch, UNDER_WAY, moved};
use crate::tape::{Arena, Slice, Tape, UPDATE};
use crate::tensor::DType;
use keel_base::error::Result;
use keel_ranks::order::Cut;
use keel_ranks::{Kind, World};

/// Declares the slot of the sharded master weights, and tells the tape which they are; nothing where all are whole.
pub(super) fn declare(tape: &mut Tape, runs: &[Run]) -> Option<Arena> {
    let in_shards = || runs.iter().filter(|run| run.is_in_shards);
    in_shards().next()?;
    tape.masters_in_shards = side_by_side(in_shards().map(Run::in_parameters));
    let kept = side_by_side(in_shards().map(Run::in_gradients));
    Some(tape.partial_optimizer_state(super::MASTER_STATE, DType::F32, kept))
}

/// Records the rounding of what is in the slot `master` to nearest, and how the copies reach all ranks.
pub(super) fn gather_copies(
    tape: &mut Tape,
    cut: &Cut,
    runs: &[Run],
    stretches: &[Stretch],
    master: Arena,
) -> Result<()> {
    for stretch in stretches.iter().filter(|stretch| stretch.is_in_shards) {
        let own = tape.state_range(master, stretch.gradients, stretch.elements);
        let rounded = cast(tape, own, DType::Bf16)?;
        tape.bind(rounded, Arena::RoundedShard, stretch.shard);
    }
    let in_shards: Vec<&Run> = runs.iter().filter(|run| run.is_in_shards).collect();
    let arenas = [Arena::RoundedShard, Arena::ParametersBf16];
    gather_shards(tape, cut, &in_shards, arenas)
}

/// Records how master weights that stay whole reach all ranks. Of runs for which `sends_directions` holds, the directions of the
/// update are sent in their place, and go to the gradient arena.
pub(super) fn gather_whole(
    tape: &mut Tape,
    cut: &Cut,
    runs: &[Run],
    sends_directions: impl Fn(&Run) -> bool,
) -> Result<()> {
    let World { rank, ranks, .. } = tape.world();
    let whole: Vec<&Run> = runs.iter().filter(|run| !run.is_in_shards).collect();
    let mut first = 0;
    let mut under_way = Vec::new();
    for bucket in 0..cut.buckets() {
        let slices = (0..ranks).map(|rank| cut.slice_of(bucket, rank));
        let parts: Vec<Vec<Part<'_>>> = slices.map(|slice| parts(&whole, &slice)).collect();
        // Ranks send equally much.
        let most = parts.iter().map(|parts| parts.last().map_or(0, Part::end));
        let most = most.max().unwrap_or_default();
        if most == 0 {
            continue;
        }
        for part in &parts[rank] {
            let source = if sends_directions(part.run) {
                let slice = cut.slice_of(bucket, rank);
                let place = bucket * cut.slice() + part.gradients.start - slice.start;
                tape.arena_range(Arena::GradientShard, place, part.gradients.len())
            } else {
                let place = part.run.parameters + part.gradients.start - part.run.gradients;
                tape.arena_range(Arena::Parameters, place, part.gradients.len())
            };
            moved(tape, source, Arena::WholeShard, first + part.at)?;
        }
        let own = tape.arena_range(Arena::WholeShard, first, most);
        let begun = begin(tape, Kind::AllGather, own)?;
        first += most;
        under_way.push((parts, most, begun));
        if under_way.len() > UNDER_WAY {
            put_in_place(tape, under_way.remove(0), &sends_directions)?;
        }
    }
    tape.whole_shard_elements = first;
    let mut last = under_way.into_iter();
    last.try_for_each(|arriving| put_in_place(tape, arriving, &sends_directions))
}

/// What a rank sends of a run.
struct Part<'a> {
    run: &'a Run,
    gradients: Range<usize>,
    /// The place among what it sends of the bucket.
    at: usize,
}

impl Part<'_> {
    fn end(&self) -> usize {
        self.at + self.gradients.len()
    }
}

/// What of `runs` lies in a rank's slice, side by side.
fn parts<'a>(runs: &[&'a Run], slice: &Range<usize>) -> Vec<Part<'a>> {
    let mut found: Vec<Part<'a>> = Vec::new();
    for run in runs.iter().copied() {
        let of = run.in_gradients();
        let gradients = slice.start.max(of.start)..slice.end.min(of.end);
        if !gradients.is_empty() {
            let at = found.last().map_or(0, Part::end);
            found.push(Part { run, gradients, at });
        }
    }
    found
}

/// Records copies of what has arrived of all ranks to its places.
fn put_in_place(
    tape: &mut Tape,
    (of_ranks, most, begun): (Vec<Vec<Part<'_>>>, usize, Begun),
    is_direction: impl Fn(&Run) -> bool,
) -> Result<()> {
    let gathered = finish(tape, begun)?;
    for (rank, parts) in of_ranks.iter().enumerate() {
        for Part { run, gradients, at } in parts {
            let of = Slice {
                first: rank * most + at,
                elements: gradients.len(),
            };
            let copied = tape.record_one(of, &[gathered])?;
            let (arena, first) = match is_direction(run) {
                true => (Arena::Gradients, run.gradients),
                false => (Arena::Parameters, run.parameters),
            };
            tape.bind(copied, arena, first + gradients.start - run.gradients);
        }
    }
    Ok(())
}

/// Records how values that lie in [`Arena::GradientShard`] of all ranks, laid out as `cut` tells, reach their places among the
/// parameters of all ranks. `kept` are they: the first element among the parameters, and elements of the gradients.
///
/// # Errors
/// Whatever recording reports.
pub fn record_whole_masters(
    tape: &mut Tape,
    cut: &Cut,
    kept: &[(usize, Range<usize>)],
) -> Result<()> {
    let mut runs: Vec<Run> = Vec::new();
    for (parameters, gradients) in kept {
        match runs.last_mut() {
            Some(run)
                if run.in_parameters().end == *parameters
                    && run.in_gradients().end == gradients.start =>
            {
                run.elements += gradients.len();
            }
            _ => runs.push(Run {
                parameters: *parameters,
                gradients: gradients.start,
                elements: gradients.len(),
                group: 0,
                is_in_shards: true,
            }),
        }
    }
    tape.shards = Some(*cut);
    // There are no gradients on their way.
    tape.sent_elements = Some(0);
    let runs: Vec<&Run> = runs.iter().collect();
    tape.scoped(UPDATE, |tape| {
        gather_shards(tape, cut, &runs, [Arena::GradientShard, Arena::Parameters])
    })
}
