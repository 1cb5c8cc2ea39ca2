//! What an optimiser keeps from step to step, copied out of a session: whatever slots its program declares.

use keel_base::error::Result;
use keel_engine::executor::{Executor, Session};
use keel_engine::ops::EMA_STATE;
use keel_engine::program::Program;
use keel_engine::tape::{OptimizerState, ParameterLayout};

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

    /// Gives `session` what a stage begins with: averages are the parameters as `executor` holds them, all else is zero.
    ///
    /// # Errors
    /// Whatever session and executor report.
    pub fn begin(
        session: &mut dyn Session,
        layout: &ParameterLayout,
        executor: &dyn Executor,
    ) -> Result<()> {
        let program = session.program();
        let elements = program.trained_elements();
        let mut slots = Vec::new();
        for slot in program.optimizer_state() {
            let mut values = vec![0.0f32; elements];
            if slot.name == EMA_STATE {
                for entry in program.gradient_entries() {
                    let known = layout.get(&entry.parameter);
                    let known = known.expect("trained parameters are laid out");
                    let place = &mut values[entry.offset..][..known.spec.shape.numel()];
                    executor.read_parameters(known.offset, place)?;
                }
            }
            slots.push((*slot, values));
        }
        OptimizerValues::new(slots).of_rank(program).write(session)
    }

    /// The averages alone; nothing where the program keeps none.
    ///
    /// # Errors
    /// Whatever the session reports.
    pub fn averages(session: &dyn Session) -> Result<Option<OptimizerValues>> {
        let mut slots = session.program().optimizer_state().iter();
        let Some(slot) = slots.find(|slot| slot.name == EMA_STATE) else {
            return Ok(None);
        };
        let values = session.read_arena(slot.arena)?;
        Ok(Some(OptimizerValues(vec![(*slot, values)])))
    }

    /// The slots by name, with their contents.
    pub fn slots(&self) -> impl Iterator<Item = (&'static str, &[f32])> {
        let slots = self.0.iter();
        slots.map(|(slot, values)| (slot.name, values.as_slice()))
    }
}
