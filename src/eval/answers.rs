//! Answers of the language model: exact match over a set in one pass, and generation without a cache, which [`super::Generator`]
//! is checked against.

use super::context::{EvalContext, load_forward};
use keel_base::error::Result;
use keel_data::batch::{Batch, BatchShape, IGNORED};
use keel_engine::executor::Session;
use keel_model::{BatchInputs, ModelInput, record_vision_language};

/// A loaded program that predicts the next token everywhere.
pub struct Answerer {
    session: Box<dyn Session>,
    inputs: BatchInputs,
    shape: BatchShape,
    pad: i32,
    end: i32,
}

/// For each row, whether every supervised token is the most likely one given those before it.
///
/// That is the case exactly when greedy generation would give the answer, its end included: as long as it has been
/// right so far, it has seen the same prefix.
pub fn exact_answers(next: &[f64], targets: &[i32], tokens: usize) -> Vec<bool> {
    next.chunks(tokens)
        .zip(targets.chunks(tokens))
        .map(|(next, targets)| {
            next.iter()
                .zip(targets)
                .all(|(next, target)| *target == IGNORED || *next == f64::from(*target))
        })
        .collect()
}

impl Answerer {
    /// Loads the program for a shape.
    ///
    /// # Errors
    /// Whatever recording or loading reports.
    pub fn new(context: EvalContext<'_>, shape: BatchShape) -> Result<Answerer> {
        let session = load_forward(context, Vec::new(), |tape| {
            record_vision_language(tape, context.config, &shape, true, true)
        })?;
        Ok(Answerer {
            inputs: BatchInputs::of(session.program(), &[])?,
            session,
            shape,
            pad: context.tokenizer.pad(),
            end: context.tokenizer.end(),
        })
    }

    /// Runs a batch; returns which rows are answered exactly and the mean loss of the batch.
    ///
    /// # Errors
    /// Whatever the session reports.
    pub fn check(&mut self, batch: &Batch) -> Result<(Vec<bool>, f64)> {
        self.inputs.write(self.session.as_mut(), batch)?;
        self.session.run()?;
        let next = self.session.read_f64("next")?;
        let loss = self.session.read_f64("loss.next_token")?[0];
        Ok((
            exact_answers(&next, &batch.targets, self.shape.tokens),
            loss,
        ))
    }

    /// Continues a prompt greedily until the end token or the last position, running the whole row again for each token.
    /// The program's batch must be 1.
    ///
    /// # Errors
    /// Whatever the session reports.
    pub fn generate_uncached(&mut self, images: &[f32], prompt: &[i32]) -> Result<Vec<i32>> {
        let mut tokens = vec![self.pad; self.shape.tokens];
        tokens[..prompt.len()].copy_from_slice(prompt);
        self.session.write_f32(ModelInput::Images.name(), images)?;
        self.session.write_i32(
            ModelInput::Targets.name(),
            &vec![IGNORED; self.shape.tokens],
        )?;
        self.session
            .write_f32(ModelInput::Weights.name(), &vec![0.0; self.shape.tokens])?;
        let mut answer = Vec::new();
        // The whole sequence again for each token: slow, and without a cache that could be wrong.
        for position in prompt.len()..self.shape.tokens {
            self.session.write_i32(ModelInput::Tokens.name(), &tokens)?;
            self.session.run()?;
            let next = self.session.read_f64("next")?[position - 1] as i32;
            if next == self.end {
                break;
            }
            answer.push(next);
            tokens[position] = next;
        }
        Ok(answer)
    }
}
