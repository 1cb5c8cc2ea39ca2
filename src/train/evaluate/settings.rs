//! What is worth measuring after a stage, and on what model.

use std::sync::Arc;

use crate::recipe::{Recipe, Stage, StageKind};
use keel_data::chat::ChatTokenizer;
use keel_engine::executor::Executor;
use keel_engine::tape::ParameterLayout;
use keel_eval::{EvalContext, EvaluationSettings};

/// Questions of each kind and drawing style for 200 images; fewer images, fewer questions.
const QUESTIONS_PER_KIND: usize = 40;

/// The settings for a stage's evaluation, with `images` in each set; `None` for a stage that sees no images.
pub(crate) fn evaluation_settings(stage: &Stage, images: usize) -> Option<EvaluationSettings> {
    let warm = stage.kind == StageKind::WarmStart;
    if warm && stage.contrastive_weight == 0.0 {
        return None;
    }
    Some(EvaluationSettings {
        images,
        questions_per_kind: (QUESTIONS_PER_KIND * images).div_ceil(200).max(4),
        answers: !warm,
        tokens: stage.max_tokens.max(80),
        caption_tokens: stage.max_caption_tokens,
    })
}

/// The recipe's model with parameters where `layout` says in `executor`, for measuring.
pub(crate) fn eval_context<'a>(
    recipe: &'a Recipe,
    layout: &'a Arc<ParameterLayout>,
    executor: &'a dyn Executor,
    tokenizer: &'a ChatTokenizer,
) -> EvalContext<'a> {
    EvalContext {
        config: &recipe.model,
        layout,
        executor,
        tokenizer,
        pixels: recipe.pixels(),
        head: None,
    }
}
