//! f32 values in shards ([`keel_engine::program::Program::masters_in_shards`]): how a stage's ranks get them whole again.

use std::sync::Arc;

use crate::checkpoint::OptimizerValues;
use crate::run::Run;
use keel_base::error::Result;
use keel_engine::ops::{MASTER_STATE, record_whole_masters};
use keel_engine::program::{CompileOptions, Program};
use keel_engine::tape::{Arena, Tape};

/// Has all ranks hold in f32 again what the stage of `program` has kept in shards, of which `own` is this rank's. The stage's
/// session must be gone. Called by all ranks at the same place.
///
/// # Errors
/// Whatever planning, executor and session report.
pub(crate) fn make_whole(run: &Run, program: &Program, own: &OptimizerValues) -> Result<()> {
    let cut = *program.shards().expect("ranks keep their own slices");
    run.executor.hold_in_bf16(&[])?;
    let mut state = program.optimizer_state().iter();
    let state = state.find(|state| state.name == MASTER_STATE);
    let state = state.expect("values in shards have a slot");
    let mut kept = Vec::new();
    for entry in program.gradient_entries() {
        let range = entry.offset..entry.offset + entry.reserved;
        if state.keeps(&range) {
            let known = run.layout.get(&entry.parameter);
            let known = known.expect("trained parameters are laid out");
            kept.push((known.offset, range));
        }
    }
    let target = run.executor.compile_target();
    let world = run.options.seat.world();
    let tape = Tape::new(run.layout.clone(), |_| false).in_precision(target.precision);
    let mut tape = tape.over_ranks(world, cut.slice() * world.ranks);
    record_whole_masters(&mut tape, &cut, &kept)?;
    let gather = Program::compile(tape, &CompileOptions::new(target))?;
    let mut session = run.executor.load(Arc::new(gather))?;
    let mut shard = vec![0.0f32; cut.owned()];
    for (first, values) in own.in_gradients() {
        // All of them in one of the rank's slices.
        let slice = cut.slice_of(first / (cut.slice() * world.ranks), world.rank);
        let before = first / (cut.slice() * world.ranks) * cut.slice();
        let at = before + first - slice.start;
        shard[at..at + values.len()].copy_from_slice(values);
    }
    session.write_arena(Arena::GradientShard, &shard)?;
    session.run()
}
