//! What an optimiser keeps from step to step, copied out of a session: whatever slots its program declares.

use keel_base::error::Result;
use keel_engine::executor::Session;
use keel_engine::program::Program;
use keel_engine::tape::OptimizerState;

/// The contents of every slot, as one session holds them: of a rank among several its own slices. In the order in which the program declares them.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerValues(Vec<(OptimizerState, Vec<f32>)>);

impl OptimizerValues {
    /// Slots with their contents, each in the order of the gradient arena.
    pub fn new(slots: Vec<(OptimizerState, Vec<f32>)>) -> OptimizerValues {
        OptimizerValues(slots)
    }

    /// Copies what `session` holds.
    ///
    /// # Errors
    /// Whatever the session reports.
    pub fn read(session: &dyn Session) -> Result<OptimizerValues> {
        let slots = session.program().optimizer_state().iter();
        let slots = slots.map(|slot| Ok((*slot, session.read_arena(slot.arena)?)));
        Ok(OptimizerValues(slots.collect::<Result<_>>()?))
    }

    /// Of whole slots what the rank of `program` keeps.
    pub fn of_rank(self, program: &Program) -> OptimizerValues {
        let Some(cut) = program.shards() else {
            return self;
        };
        let rank = program.world().rank;
        let own = |values: Vec<f32>| -> Vec<f32> {
            let slices = (0..cut.buckets()).map(|bucket| cut.slice_of(bucket, rank));
            slices.flat_map(|slice| values[slice].to_vec()).collect()
        };
        let slots = self.0.into_iter();
        OptimizerValues(slots.map(|(slot, values)| (slot, own(values))).collect())
    }

    /// Puts them back.
    ///
    /// # Errors
    /// [`keel_base::error::Error::Setting`] when they are of a program that trains something else.
    pub fn write(&self, session: &mut dyn Session) -> Result<()> {
        let mut slots = self.0.iter();
        slots.try_for_each(|(slot, values)| session.write_arena(slot.arena, values))
    }

    /// Sets what `session` holds to zero, as it is before the first step.
    ///
    /// # Errors
    /// Whatever the session reports.
    pub fn clear(session: &mut dyn Session) -> Result<()> {
        let mut values = OptimizerValues::read(session)?;
        for (_, values) in &mut values.0 {
            values.fill(0.0);
        }
        values.write(session)
    }

    /// The slots by name, with their contents.
    pub fn slots(&self) -> impl Iterator<Item = (&'static str, &[f32])> {
        let slots = self.0.iter();
        slots.map(|(slot, values)| (slot.name, values.as_slice()))
    }
}
