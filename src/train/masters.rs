//! Sharded master weights ([`keel_engine::program::Program::masters_in_shards`]): how every rank gets all of them after a stage.

use std::sync::Arc;

use crate::checkpoint::OptimizerValues;
use crate::run::Run;
use keel_base::error::Result;
use keel_engine::ops::{MASTER_STATE, record_whole_masters};
use keel_engine::program::{CompileOptions, Program};
use keel_engine::tape::{Arena, CompileTarget, ParameterLayout, Tape};
use keel_ranks::World;

/// Has every rank hold all master weights again, of which the stage of `program` has kept those sharded; `own` are this rank's.
/// The stage's session must be gone. Called by all ranks at the same place.
///
/// # Errors
/// Whatever planning, executor and session report.
pub(crate) fn make_whole(run: &Run, program: &Program, own: &OptimizerValues) -> Result<()> {
    let cut = *program.shards().expect("ranks keep their own slices");
    run.executor.hold_in_bf16(&[])?;
    let world = run.options.seat.world();
    let gather = gathering(&run.layout, program, run.executor.compile_target(), world)?;
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

/// The program by which the ranks gather the sharded master weights of `program`, each writing its own to
/// [`Arena::GradientShard`] before.
///
/// # Errors
/// Whatever planning reports.
pub(crate) fn gathering(
    layout: &Arc<ParameterLayout>,
    program: &Program,
    target: CompileTarget,
    world: World,
) -> Result<Program> {
    let cut = *program.shards().expect("ranks keep their own slices");
    let mut state = program.optimizer_state().iter();
    let state = state.find(|state| state.name == MASTER_STATE);
    let state = state.expect("sharded master weights have a slot");
    let mut kept = Vec::new();
    for entry in program.gradient_entries() {
        let range = entry.offset..entry.offset + entry.reserved;
        if state.keeps(&range) {
            let known = layout.get(&entry.parameter);
            let known = known.expect("trained parameters are laid out");
            kept.push((known.offset, range));
        }
    }
    let tape = Tape::new(layout.clone(), |_| false).in_precision(target.precision);
    let mut tape = tape.over_ranks(world, cut.slice() * world.ranks);
    record_whole_masters(&mut tape, &cut, &kept)?;
    Program::compile(tape, &CompileOptions::new(target))
}
