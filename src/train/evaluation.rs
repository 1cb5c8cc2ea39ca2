//! What is worth measuring after a stage.

use super::recipe::{Stage, StageKind};
use crate::eval::EvaluationSettings;

/// Questions of each kind and drawing style for 200 pictures; fewer pictures, fewer questions.
const QUESTIONS_PER_KIND: usize = 40;

/// The settings for a stage's evaluation, with `pictures` in each set; `None` for a stage that sees no pictures.
pub(super) fn evaluation_settings(stage: &Stage, pictures: usize) -> Option<EvaluationSettings> {
    let warm = stage.kind == StageKind::WarmStart;
    if warm && stage.contrastive == 0.0 {
        return None;
    }
    Some(EvaluationSettings {
        pictures,
        questions_per_kind: (QUESTIONS_PER_KIND * pictures).div_ceil(200).max(4),
        answers: !warm,
        tokens: stage.tokens.max(80),
        caption_tokens: stage.caption_tokens,
    })
}
