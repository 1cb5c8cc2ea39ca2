//! The data of a stage: its tasks, mixed by their shares.

use std::sync::Arc;

use super::recipe::{Recipe, TokenWeighting};
use keel_base::error::Result;
use keel_data::augment::Augmentation;
use keel_data::batch::{BatchShape, Weighting};
use keel_data::chat::ChatTokenizer;
use keel_data::library::Library;
use keel_data::mixture::{Mixture, MixtureSettings};
use keel_data::pairs::PairSource;

/// The mixture of stage `index` of `recipe`, in the words of its model.
///
/// # Errors
/// Whatever the mixture reports, for example that a stage draws from pairs and there are none.
pub(super) fn stage_mixture(
    recipe: &Recipe,
    library: &Arc<Library>,
    pairs: Option<&Arc<dyn PairSource>>,
    words: &Arc<ChatTokenizer>,
    index: usize,
) -> Result<Mixture> {
    let stage = &recipe.stages[index];
    let config = &recipe.model;
    let mixture = Mixture::new(
        library.clone(),
        pairs.cloned(),
        MixtureSettings {
            seed: recipe.seed,
            stage: index as u64,
            weights: stage.tasks(),
            shape: BatchShape {
                pack: stage.samples_per_sequence,
                tiling: stage.tiling(stage.micro_batch()),
                batch: stage.micro_batch(),
                image_size: config.vision.image_size,
                image_tokens: config.image_tokens(),
                tokens: stage.max_tokens,
                caption_tokens: stage.max_caption_tokens,
                pixels: recipe.pixels(),
            },
            turns: stage.max_turns,
            pictures: stage.max_images,
            weighting: match stage.token_weighting {
                TokenWeighting::Token => Weighting::Token,
                TokenWeighting::Sample => Weighting::Sample,
                TokenWeighting::Square => Weighting::Square,
            },
            augmentation: Augmentation::of_strength(stage.augmentation),
            contrastive: stage.contrastive_weight > 0.0,
        },
    )?
    .in_words(words.clone());
    match stage.data_share < 1.0 {
        true => mixture.with_share(stage.data_share),
        false => Ok(mixture),
    }
}
