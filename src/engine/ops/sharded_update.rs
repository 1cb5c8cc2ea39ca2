//! The recording of an update over several ranks: gradients summed over all of them, moments in shards.
//!
//! The gradient arena is cut into buckets, and each bucket into a slice for every rank ([`keel_ranks::order::Cut`]). As soon
//! as the backward part has completed a bucket, its slices are exchanged, and each rank adds those it receives in a tree
//! ([`super::tree_sum`]). It then updates the parameters of its own slices with moments that no other rank keeps, and the
//! updated parameters are gathered, through the gradient arena, which nobody needs any more. The norm is that of the whole
//! gradient, the same bits on all ranks.
//!
//! Where the gradients of micro-batches are added in a tree ([`Tape::adding_in_tree`]), each run adds its own to those that wait in
//! [`Arena::PartialSums`], bucket by bucket, and what is exchanged with the last is the sum of this rank's subtree.
//!
//! Gradients that are in shards too ([`Tape::sharding_gradients`]) have no arena of their own: [`super::sharded_gradients`]. So do f32
//! values of a bf16 program ([`UpdateOptions::shards_masters`]): [`super::sharded_masters`].

use super::adamw::{AdamW, Clamp, Run, moments, runs};
use super::cast::cast;
use super::collective::{Begun, begin, finish};
use super::ema::{EMA_STATE, Ema};
use super::grad_norm::norm_of_atoms;
use super::muon::{self, MuonMomentum};
use super::sharded_gradients::{gather_shards, reduce};
use super::tree_accumulate::Tree;
use super::tree_sum::tree_sum;
use super::{
    OPTIMIZER_SCALARS, OptimizerInput, ParameterGroups, UpdateOptions,
    parameter_groups::{GROUP_SCALARS, Optimizer},
    sharded_masters,
};
use crate::tape::{
    Arena, Copy, EXCHANGE, Fill, ParameterLayout, REDUCE, Tape, UPDATE, Value, is_matrix,
};
use crate::tensor::{DType, TensorType};
use keel_base::error::{Error, Result};
use keel_ranks::Kind;
use keel_ranks::order::Cut;

/// Buckets that are on their way at once. Each has memory of its own for what arrives.
pub(super) const UNDER_WAY: usize = 2;

/// Part of a run of parameters that this rank owns.
pub(super) struct Stretch {
    parameters: usize,
    /// First element of the gradients, among those of all ranks.
    pub gradients: usize,
    /// First element in the shard.
    pub shard: usize,
    pub elements: usize,
    group: usize,
    /// See [`Run::is_in_shards`].
    pub is_in_shards: bool,
}

/// See the module's documentation. As [`super::record_update`], on a tape over several ranks.
pub(super) fn record_sharded_update(
    tape: &mut Tape,
    layout: &ParameterLayout,
    groups: &ParameterGroups,
    options: &UpdateOptions,
) -> Result<()> {
    let is_bf16 = tape.precision() == DType::Bf16;
    let by_adamw = |group: usize| groups.groups()[group].optimizer == Optimizer::AdamW;
    let runs = runs(tape, layout, groups, |parameter, group| {
        options.shards_masters && is_bf16 && is_matrix(parameter) && by_adamw(group)
    })?;
    let cut = tape.cut_gradients();
    let in_shards = tape.shards_gradients();
    if in_shards && !runs.iter().all(|run| by_adamw(run.group)) {
        let want = "1 where Muon updates, whose matrices are whole on every rank";
        return Err(Error::setting("zero_stage", want, 2));
    }
    let last = if in_shards {
        tape.scoped(REDUCE, |tape| reduce(tape, layout, &cut))?;
        Vec::new()
    } else {
        tape.scoped(EXCHANGE, |tape| sum_buckets(tape, &cut))?
    };
    tape.scoped(UPDATE, |tape| {
        for (bucket, begun) in last {
            sum_bucket(tape, &cut, bucket, begun)?;
        }
        let stretches = stretches(&runs, &cut, tape.world().rank);
        // Who updates a parameter draws for it, and sends the copy too: 2 bytes more of each.
        let rounding = options.random_rounding.filter(|_| is_bf16);
        let state = State {
            moments: moments(tape, &runs, groups),
            master: sharded_masters::declare(tape, &runs),
        };
        let [each, scale] = update(tape, &cut, &stretches, groups, state, rounding)?;
        let all: Vec<&Run> = runs.iter().collect();
        if state.master.is_some() {
            sharded_masters::gather_whole(tape, &cut, &runs, |run| !by_adamw(run.group))?;
        } else {
            // Of what Muon updates, directions are there already.
            for stretch in stretches.iter().filter(|stretch| by_adamw(stretch.group)) {
                let own = tape.arena_range(Arena::Parameters, stretch.parameters, stretch.elements);
                moved(tape, own, Arena::GradientShard, stretch.shard)?;
            }
            if in_shards {
                gather_shards(tape, &cut, &all, [Arena::GradientShard, Arena::Parameters])?;
            } else {
                gather(tape, &cut)?;
            }
        }
        for run in &runs {
            if !by_adamw(run.group) {
                // On every rank: a matrix is orthogonalised whole.
                muon::record_steps(tape, layout, run, [each, scale])?;
            } else if state.master.is_none() && !in_shards {
                let gathered = tape.arena_range(Arena::Gradients, run.gradients, run.elements);
                moved(tape, gathered, Arena::Parameters, run.parameters)?;
            }
        }
        match (rounding, state.master) {
            (Some(_), _) => gather_rounded(tape, &cut, &all, &stretches)?,
            (None, master) if is_bf16 => {
                if let Some(master) = master {
                    sharded_masters::gather_copies(tape, &cut, &runs, &stretches, master)?;
                }
                let is_rounded = |run: &&Run| by_adamw(run.group) && !run.is_in_shards;
                let mut whole = runs.iter().filter(is_rounded);
                whole.try_for_each(|run| round_copies(tape, run))?;
            }
            (None, _) => {}
        }
        clamp(tape, layout, options)?;
        if let Some(decay) = options.ema_decay {
            average(tape, &stretches, state, decay, scale)?;
        }
        // Cleared by the step that used them, so that the first batch of the next finds zeros.
        if tape.adds_to_arena() {
            let (arena, elements) = match in_shards {
                true => (Arena::GradientShard, cut.owned()),
                false => (Arena::Gradients, cut.padded()),
            };
            let ty = TensorType::f32([elements]);
            let cleared = tape.record_one(Fill { ty, value: 0.0 }, &[])?;
            tape.bind(cleared, arena, 0);
        }
        Ok(())
    })
}

/// The slots of what the update keeps.
#[derive(Clone, Copy)]
struct State {
    moments: [Arena; 2],
    /// f32 values in shards.
    master: Option<Arena>,
}

impl State {
    /// The f32 values of what this rank updates.
    fn values(self, tape: &mut Tape, stretch: &Stretch) -> Value {
        match self.master.filter(|_| stretch.is_in_shards) {
            Some(master) => tape.state_range(master, stretch.gradients, stretch.elements),
            None => tape.arena_range(Arena::Parameters, stretch.parameters, stretch.elements),
        }
    }
}

/// The buckets in the order in which the backward part completes them.
pub(super) fn as_completed(tape: &Tape, cut: &Cut) -> Vec<usize> {
    let ready = |bucket: usize| {
        let range = cut.bucket(bucket);
        let entries = tape.gradient_entries().iter();
        let inside = entries.filter(|entry| {
            entry.offset < range.end && range.start < entry.offset + entry.reserved
        });
        inside.map(|entry| entry.ready).max().unwrap_or_default()
    };
    let mut order: Vec<(usize, usize)> = (0..cut.buckets())
        .map(|bucket| (ready(bucket), bucket))
        .collect();
    order.sort_unstable();
    order.into_iter().map(|(_, bucket)| bucket).collect()
}

/// Records the exchange of all buckets in the order in which the backward part completes them, and the sums of all but the
/// last few, which are returned as they are on their way.
fn sum_buckets(tape: &mut Tape, cut: &Cut) -> Result<Vec<(usize, Begun)>> {
    let mut under_way = Vec::new();
    let mut tree = Tree::begin(tape);
    for bucket in as_completed(tape, cut) {
        let range = cut.bucket(bucket);
        // In every run, and not in that alone which sends.
        tape.scoped(REDUCE, |tape| {
            tree.add(tape, Arena::Gradients, range.clone())
        })?;
        let sent = tape.arena_range(Arena::Gradients, range.start, range.len());
        under_way.push((bucket, begin(tape, Kind::Exchange, sent)?));
        // What arrives has a place from begin to finish: not all of it at once.
        if under_way.len() > UNDER_WAY {
            let (bucket, begun) = under_way.remove(0);
            sum_bucket(tape, cut, bucket, begun)?;
        }
    }
    Ok(under_way)
}

/// Records the sum of the slices of a bucket that this rank receives.
fn sum_bucket(tape: &mut Tape, cut: &Cut, bucket: usize, begun: Begun) -> Result<()> {
    let parts = tape.world().ranks;
    let received = finish(tape, begun)?;
    let sum = tree_sum(tape, received, parts)?;
    tape.bind(sum, Arena::GradientShard, bucket * cut.slice());
    Ok(())
}

/// What of the runs this rank owns, in the order of its shard.
fn stretches(runs: &[Run], cut: &Cut, rank: usize) -> Vec<Stretch> {
    let mut found = Vec::new();
    for bucket in 0..cut.buckets() {
        let slice = cut.slice_of(bucket, rank);
        for run in runs {
            let first = slice.start.max(run.gradients);
            let end = slice.end.min(run.gradients + run.elements);
            if first < end {
                found.push(Stretch {
                    parameters: run.parameters + first - run.gradients,
                    gradients: first,
                    shard: bucket * cut.slice() + first - slice.start,
                    elements: end - first,
                    group: run.group,
                    is_in_shards: run.is_in_shards,
                });
            }
        }
    }
    found
}

/// Records the norm of the whole gradient, and over what this rank owns AdamW, or Muon's momentum, which leaves directions in
/// the gradients' place. Returns the groups' scalars and the clip factor.
fn update(
    tape: &mut Tape,
    cut: &Cut,
    stretches: &[Stretch],
    groups: &ParameterGroups,
    state: State,
    rounding: Option<u64>,
) -> Result<[Value; 2]> {
    let shared = TensorType::f32([OPTIMIZER_SCALARS]);
    let shared = tape.input(OptimizerInput::Scalars, shared);
    let each = TensorType::f32([groups.groups().len(), GROUP_SCALARS]);
    let each = tape.input(OptimizerInput::GroupScalars, each);
    let [first, second] = state.moments;
    let shard = tape.arena_range(Arena::GradientShard, 0, cut.owned());
    let norm = norm_of_atoms(tape, shard, cut, shared)?;
    tape.output(norm[0], "gradient_norm");
    tape.output(norm[1], "clip_scale");
    for stretch in stretches {
        let range =
            |tape: &mut Tape, arena, offset| tape.arena_range(arena, offset, stretch.elements);
        let gradients = range(tape, Arena::GradientShard, stretch.shard);
        let momentum = tape.state_range(first, stretch.gradients, stretch.elements);
        if let Optimizer::Muon { momentum: decay } = groups.groups()[stretch.group].optimizer {
            let inputs = [gradients, momentum, norm[1]];
            tape.record_update(MuonMomentum::new(decay), &inputs)?;
            continue;
        }
        let mut inputs = vec![
            state.values(tape, stretch),
            gradients,
            momentum,
            tape.state_range(second, stretch.gradients, stretch.elements),
            shared,
            each,
            norm[1],
        ];
        // To nearest, every rank rounds what it has gathered.
        if rounding.is_some() {
            inputs.push(range(tape, Arena::ParametersBf16, stretch.parameters));
        }
        let op = AdamW {
            group: stretch.group,
            writes_bf16_copy: rounding.is_some(),
            random_rounding: rounding,
            first: stretch.parameters,
        };
        tape.record_update(op, &inputs)?;
    }
    Ok([each, norm[1]])
}

/// Records the averages of what this rank owns.
fn average(
    tape: &mut Tape,
    stretches: &[Stretch],
    state: State,
    decay: f64,
    scale: Value,
) -> Result<()> {
    let average = tape.optimizer_state(EMA_STATE, DType::F32);
    for stretch in stretches {
        let inputs = [
            tape.state_range(average, stretch.gradients, stretch.elements),
            state.values(tape, stretch),
            scale,
        ];
        tape.record_update(Ema::new(decay), &inputs)?;
    }
    Ok(())
}

/// Records how what is in the shards, updated parameters and directions, reaches all ranks: into the gradient arena.
fn gather(tape: &mut Tape, cut: &Cut) -> Result<()> {
    let mut under_way = Vec::new();
    for bucket in 0..cut.buckets() {
        let first = bucket * cut.slice();
        let own = tape.arena_range(Arena::GradientShard, first, cut.slice());
        under_way.push(begin(tape, Kind::AllGather, own)?);
    }
    for (bucket, begun) in under_way.into_iter().enumerate() {
        let gathered = finish(tape, begun)?;
        tape.bind(gathered, Arena::Gradients, cut.bucket(bucket).start);
    }
    Ok(())
}

/// Records the rounding of updated parameters to nearest.
fn round_copies(tape: &mut Tape, run: &Run) -> Result<()> {
    let updated = tape.arena_range(Arena::Parameters, run.parameters, run.elements);
    let rounded = cast(tape, updated, DType::Bf16)?;
    tape.bind(rounded, Arena::ParametersBf16, run.parameters);
    Ok(())
}

/// Records how copies that were rounded at random reach all ranks.
fn gather_rounded(tape: &mut Tape, cut: &Cut, runs: &[&Run], stretches: &[Stretch]) -> Result<()> {
    for stretch in stretches {
        let (first, elements) = (stretch.parameters, stretch.elements);
        let own = tape.arena_range(Arena::ParametersBf16, first, elements);
        moved(tape, own, Arena::RoundedShard, stretch.shard)?;
    }
    gather_shards(
        tape,
        cut,
        runs,
        [Arena::RoundedShard, Arena::ParametersBf16],
    )
}

/// Records a copy of x in a fixed arena.
pub(super) fn moved(tape: &mut Tape, x: Value, arena: Arena, offset: usize) -> Result<()> {
    let copy = tape.record_one(Copy, &[x])?;
    tape.bind(copy, arena, offset);
    Ok(())
}

/// Records the clamps, on every rank.
fn clamp(tape: &mut Tape, layout: &ParameterLayout, options: &UpdateOptions) -> Result<()> {
    for &(name, least, most) in &options.clamps {
        let mut entries = tape.gradient_entries().iter();
        if entries.any(|entry| entry.parameter == name) {
            let parameter = layout.get(name).expect("trained parameters are laid out");
            let value = tape.arena_range(Arena::Parameters, parameter.offset, 1);
            tape.record_update(Clamp { least, most }, &[value])?;
        }
    }
    Ok(())
}
