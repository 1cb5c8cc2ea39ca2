//! The model that is measured: its settings, where its parameters are, and how programs on it are made.

use std::sync::Arc;

use keel_base::error::Result;
use keel_data::batch::BatchShape;
use keel_data::chat::ChatTokenizer;
use keel_data::pixels::Pixels;
use keel_data::tiles::Tiling;
use keel_engine::executor::{Executor, Session};
use keel_engine::program::{CompileOptions, Program};
use keel_engine::tape::{CompileTarget, ParameterLayout, Tape};
use keel_model::{ModelConfig, VisionHead};

/// What is measured.
#[derive(Clone, Copy)]
pub struct EvalContext<'a> {
    /// The model's settings.
    pub config: &'a ModelConfig,
    /// Where its parameters are in their arena.
    pub layout: &'a Arc<ParameterLayout>,
    /// What holds the arena and runs programs on it.
    pub executor: &'a dyn Executor,
    /// Its tokenizer and chat template.
    pub tokenizer: &'a ChatTokenizer,
    /// How it sees.
    pub pixels: Pixels,
    /// How its tower pools, where the parameters are among the layout's.
    pub head: Option<VisionHead>,
}

/// Rows of one evaluation batch.
pub(super) const BATCH: usize = 64;

impl EvalContext<'_> {
    /// The shape of `batch` conversations of `tokens` tokens, each in a sequence of its own with its image whole, and of
    /// captions of `caption_tokens`.
    pub fn batch_shape(&self, batch: usize, tokens: usize, caption_tokens: usize) -> BatchShape {
        BatchShape {
            batch,
            image_size: self.config.vision.image_size,
            image_tokens: self.config.image_tokens(),
            tokens,
            pack: 1,
            tiling: Tiling::NONE,
            caption_tokens,
            image_id: self.tokenizer.image(),
            pixels: self.pixels,
        }
    }
}

/// Plans the program that `record` records, which trains nothing. The values named in `keep` can be read after a run.
///
/// # Errors
/// Whatever recording or planning reports.
pub fn plan_forward(
    layout: &Arc<ParameterLayout>,
    compile_target: CompileTarget,
    keep: Vec<String>,
    record: impl FnOnce(&mut Tape) -> Result<()>,
) -> Result<Arc<Program>> {
    let mut tape = Tape::new(layout.clone(), |_| false).in_precision(compile_target.precision);
    record(&mut tape)?;
    let options = CompileOptions {
        keep,
        ..CompileOptions::new(compile_target)
    };
    Ok(Arc::new(Program::compile(tape, &options)?))
}

/// Plans and loads such a program.
///
/// # Errors
/// As [`plan_forward`]; whatever loading reports.
pub(super) fn load_forward(
    context: EvalContext<'_>,
    keep: Vec<String>,
    record: impl FnOnce(&mut Tape) -> Result<()>,
) -> Result<Box<dyn Session>> {
    let compile_target = context.executor.compile_target();
    let program = plan_forward(context.layout, compile_target, keep, record)?;
    context.executor.load(program)
}

/// The embeddings of text tokens [n, D], without control tokens and without rows beyond the tokenizer's.
///
/// # Errors
/// Whatever the executor reports.
pub(super) fn text_embeddings(context: EvalContext<'_>) -> Result<Vec<f32>> {
    let entry = context.layout.get("language.embedding");
    let entry = entry.expect("every language model has an embedding table");
    let width = context.config.language.width;
    let ids = context.tokenizer.text_ids();
    let mut table = vec![0.0; ids.len() * width];
    // Ids that follow each other are read together.
    let mut first = 0;
    while first < ids.len() {
        let run = ids[first..]
            .windows(2)
            .take_while(|pair| pair[0] + 1 == pair[1])
            .count()
            + 1;
        let rows = &mut table[first * width..(first + run) * width];
        context
            .executor
            .read_parameters(entry.offset + ids[first] * width, rows)?;
        first += run;
    }
    Ok(table)
}
