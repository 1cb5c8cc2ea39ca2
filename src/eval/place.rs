//! The model that is measured: its settings, where its parameters are, and how programs on it are made.

use std::sync::Arc;

use crate::data::batch::BatchShape;
use crate::data::tokenizer::{FIRST_BYTE, IMAGE};
use crate::error::Result;
use crate::executor::{Executor, Session};
use crate::model::{ModelConfig, StepShape};
use crate::program::{CompileOptions, Program};
use crate::tape::{ParameterLayout, Tape};

/// A model, its parameters' layout, where they are, and what runs there.
pub type Place<'a> = (&'a ModelConfig, &'a Arc<ParameterLayout>, &'a dyn Executor);

/// Rows of one evaluation batch.
pub(super) const BATCH: usize = 64;

/// The shape of an evaluation batch with conversations of `tokens` and captions of `caption_tokens`.
pub(super) fn batch_shape(
    config: &ModelConfig,
    tokens: usize,
    caption_tokens: usize,
) -> BatchShape {
    BatchShape {
        batch: BATCH,
        image_size: config.vision.image_size,
        image_tokens: config.image_tokens(),
        tokens,
        caption_tokens,
    }
}

/// The shape that a model records for such a batch.
pub(super) fn step_shape(shape: &BatchShape) -> StepShape {
    StepShape {
        batch: shape.batch,
        tokens: shape.tokens,
        caption_tokens: shape.caption_tokens,
        image_id: i32::from(IMAGE),
    }
}

/// Loads the program that `record` records, which trains nothing. The values named in `keep` can be read after a run.
///
/// # Errors
/// Whatever recording or loading reports.
pub(super) fn load_forward(
    layout: &Arc<ParameterLayout>,
    executor: &dyn Executor,
    keep: Vec<String>,
    record: impl FnOnce(&mut Tape) -> Result<()>,
) -> Result<Box<dyn Session>> {
    let machine = executor.machine();
    let mut tape = Tape::new(layout.clone(), |_| false).in_precision(machine.precision);
    record(&mut tape)?;
    let options = CompileOptions {
        keep,
        ..CompileOptions::new(machine.target)
    };
    executor.load(Arc::new(Program::compile(tape, &options)?))
}

/// The embeddings of text tokens [V − specials, D]: special tokens are no text.
pub(super) fn text_embeddings((config, layout, executor): Place<'_>) -> Vec<f32> {
    let entry = layout.get("language.embedding");
    let entry = entry.expect("every language model has an embedding table");
    let specials = usize::from(FIRST_BYTE) * config.language.width;
    let mut table = vec![0.0; entry.spec.shape.numel() - specials];
    executor.read_parameters(entry.offset + specials, &mut table);
    table
}
