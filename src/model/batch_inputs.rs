//! Hands batches to a loaded program. Which arrays it reads is settled once, from the program's own inputs: one that a batch
//! does not have is refused by name, and an array that the program does not read is left where it is.

use super::inputs::{ModelInput, unfed};
use keel_base::error::Result;
use keel_data::batch::Batch;
use keel_engine::executor::Session;
use keel_engine::program::Program;

/// What a batch holds for one input.
enum Values<'a> {
    F32(&'a [f32]),
    I32(&'a [i32]),
}

/// Finds it.
type Array = fn(&Batch) -> Values<'_>;

/// Where a batch has what this input reads; nothing where no batch has it.
fn array_of(input: ModelInput) -> Option<Array> {
    Some(match input {
        ModelInput::Images => |batch| Values::F32(&batch.images),
        ModelInput::Tokens => |batch| Values::I32(&batch.tokens),
        ModelInput::Targets => |batch| Values::I32(&batch.targets),
        ModelInput::Weights => |batch| Values::F32(&batch.weights),
        ModelInput::Segments => |batch| Values::I32(&batch.segments),
        ModelInput::Positions => |batch| Values::I32(&batch.positions),
        ModelInput::TokenTypes => |batch| Values::I32(&batch.places),
        ModelInput::CaptionTokens => |batch| Values::I32(&batch.caption_tokens),
        ModelInput::CaptionEnd => |batch| Values::I32(&batch.caption_end),
        ModelInput::CaptionWeights => |batch| Values::F32(&batch.caption_weights),
        ModelInput::Pairs => |batch| Values::I32(&batch.pair_counts),
        ModelInput::ImageIdentities => |batch| Values::I32(&batch.image_identities),
        ModelInput::CaptionIdentities => |batch| Values::I32(&batch.caption_identities),
        ModelInput::LossWeight
        | ModelInput::ContrastiveWeight
        | ModelInput::KeptPatches
        | ModelInput::ClassToken
        | ModelInput::Features
        | ModelInput::Token
        | ModelInput::Slots
        | ModelInput::Position
        | ModelInput::Index
        | ModelInput::Seen => return None,
    })
}

/// The inputs of one program that come with every batch.
pub struct BatchInputs(Vec<(ModelInput, Array)>);

impl BatchInputs {
    /// Settles what `program` reads of a batch. Its caller writes the inputs `written_elsewhere`, as far as it has them.
    ///
    /// # Errors
    /// [`keel_base::error::Error::Setting`] naming an input that neither a batch nor the caller has anything for.
    pub fn of(program: &Program, written_elsewhere: &[&str]) -> Result<BatchInputs> {
        let inputs = ModelInput::of(program, written_elsewhere)?;
        let arrays = inputs.into_iter().map(|input| {
            let array = array_of(input).ok_or_else(|| unfed(input.name()))?;
            Ok((input, array))
        });
        Ok(BatchInputs(arrays.collect::<Result<_>>()?))
    }

    /// Writes them for the next run of `session`, which runs that program.
    ///
    /// # Errors
    /// [`keel_base::error::Error::Setting`] when an array does not fit the program's shapes.
    pub fn write(&self, session: &mut dyn Session, batch: &Batch) -> Result<()> {
        for (input, array) in &self.0 {
            match array(batch) {
                Values::F32(values) => session.write_f32(input.name(), values)?,
                Values::I32(values) => session.write_i32(input.name(), values)?,
            }
        }
        Ok(())
    }
}
