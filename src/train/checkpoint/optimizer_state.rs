//! What an optimiser keeps from step to step, copied out of a session: whatever slots its program declares.

use keel_base::error::Result;
use keel_engine::executor::{Executor, Session};
use keel_engine::ops::{EMA_STATE, MASTER_STATE};
use keel_engine::program::Program;
use keel_engine::tape::{GradientEntry, OptimizerState, ParameterLayout, StatePiece};

/// The contents of every slot, as one session holds them: of a rank among several its own slices. In the order in which the program declares them.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerValues(Vec<SlotValues>);

/// One slot.
#[derive(Clone, Debug, PartialEq)]
struct SlotValues {
    state: OptimizerState,
    /// Where what lies of it.
    pieces: Vec<StatePiece>,
    values: Vec<f32>,
}

/// Neighbours of one parameter in a slot.
#[derive(Debug)]
pub(super) struct ParameterPiece<'a> {
    /// The slot's name.
    pub slot: &'static str,
    /// The parameter.
    pub entry: &'a GradientEntry,
    /// The parameter's element that the first of them is of.
    pub first: usize,
    /// They.
    pub values: &'a [f32],
}

impl OptimizerValues {
    /// Of slots with a number for each element of the gradient arena of all ranks, what the rank of `program` keeps.
    pub fn of_rank(slots: Vec<(OptimizerState, Vec<f32>)>, program: &Program) -> OptimizerValues {
        let own = |(state, values): (OptimizerState, Vec<f32>)| {
            let pieces = program.state_pieces(&state);
            let parts = pieces.iter().map(|piece| piece.gradients.clone());
            let values = match parts.clone().eq(std::iter::once(0..values.len())) {
                true => values,
                false => parts.flat_map(|part| values[part].to_vec()).collect(),
            };
            SlotValues {
                state,
                pieces,
                values,
            }
        };
        OptimizerValues(slots.into_iter().map(own).collect())
    }

    fn read_slot(session: &dyn Session, state: &OptimizerState) -> Result<SlotValues> {
        Ok(SlotValues {
            state: state.clone(),
            pieces: session.program().state_pieces(state),
            values: session.read_arena(state.arena)?,
        })
    }

    /// Copies what `session` holds.
    ///
    /// # Errors
    /// Whatever the session reports.
    pub fn read(session: &dyn Session) -> Result<OptimizerValues> {
        let slots = session.program().optimizer_state().iter();
        let slots = slots.map(|state| OptimizerValues::read_slot(session, state));
        Ok(OptimizerValues(slots.collect::<Result<_>>()?))
    }

    /// Puts them back.
    ///
    /// # Errors
    /// [`keel_base::error::Error::Setting`] when they are of a program that trains something else.
    pub fn write(&self, session: &mut dyn Session) -> Result<()> {
        let mut slots = self.0.iter();
        slots.try_for_each(|slot| session.write_arena(slot.state.arena, &slot.values))
    }

    /// What a stage of `program` begins with: averages and sharded master weights are the parameters as `executor` holds them,
    /// all else is zero.
    ///
    /// # Errors
    /// Whatever the executor reports.
    pub fn at_start(
        program: &Program,
        layout: &ParameterLayout,
        executor: &dyn Executor,
    ) -> Result<OptimizerValues> {
        let mut slots = Vec::new();
        for state in program.optimizer_state() {
            let pieces = program.state_pieces(state);
            let mut values = vec![0.0f32; pieces.last().map_or(0, StatePiece::end)];
            if [EMA_STATE, MASTER_STATE].contains(&state.name) {
                let entries = program.gradient_entries();
                for (piece, entry, first, end) in parts(&pieces, entries, layout) {
                    let known = layout.get(&entry.parameter);
                    let known = known.expect("trained parameters are laid out");
                    let at = piece.at + first - piece.gradients.start;
                    let place = &mut values[at..at + end - first];
                    executor.read_parameters(known.offset + first - entry.offset, place)?;
                }
            }
            slots.push(SlotValues {
                state: state.clone(),
                pieces,
                values,
            });
        }
        Ok(OptimizerValues(slots))
    }

    /// The slot of that name alone; nothing where the program keeps none.
    ///
    /// # Errors
    /// Whatever the session reports.
    pub fn read_named(session: &dyn Session, name: &str) -> Result<Option<OptimizerValues>> {
        let mut slots = session.program().optimizer_state().iter();
        let Some(state) = slots.find(|state| state.name == name) else {
            return Ok(None);
        };
        let slot = OptimizerValues::read_slot(session, state)?;
        Ok(Some(OptimizerValues(vec![slot])))
    }

    /// The slots by name, with their contents.
    pub fn slots(&self) -> impl Iterator<Item = (&'static str, &[f32])> {
        let slots = self.0.iter();
        slots.map(|slot| (slot.state.name, slot.values.as_slice()))
    }

    /// The places of all neighbours in the gradient arena, each with its values, of all slots.
    pub fn in_gradients(&self) -> impl Iterator<Item = (usize, &[f32])> {
        self.0.iter().flat_map(|slot| {
            let of =
                |piece: &StatePiece| (piece.gradients.start, &slot.values[piece.at..piece.end()]);
            slot.pieces.iter().map(of)
        })
    }

    /// All that is kept, parameter by parameter; `entries` are those of the program.
    pub(super) fn by_parameter<'a>(
        &'a self,
        entries: &'a [GradientEntry],
        layout: &ParameterLayout,
    ) -> Vec<ParameterPiece<'a>> {
        let mut found = Vec::new();
        for slot in &self.0 {
            for (piece, entry, first, end) in parts(&slot.pieces, entries, layout) {
                let at = piece.at + first - piece.gradients.start;
                found.push(ParameterPiece {
                    slot: slot.state.name,
                    entry,
                    first: first - entry.offset,
                    values: &slot.values[at..at + end - first],
                });
            }
        }
        found
    }
}

/// What pieces of state and parameters have in common, padding left out: first element of the gradient arena, and the one behind
/// the last.
fn parts<'a>(
    pieces: &'a [StatePiece],
    entries: &'a [GradientEntry],
    layout: &ParameterLayout,
) -> Vec<(&'a StatePiece, &'a GradientEntry, usize, usize)> {
    let mut found = Vec::new();
    for piece in pieces {
        for entry in entries {
            let known = layout.get(&entry.parameter);
            let known = known.expect("trained parameters are laid out");
            let first = piece.gradients.start.max(entry.offset);
            let end = piece
                .gradients
                .end
                .min(entry.offset + known.spec.shape.numel());
            if first < end {
                found.push((piece, entry, first, end));
            }
        }
    }
    found
}
