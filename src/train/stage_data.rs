//! The data of a stage: its tasks, mixed by their shares.

use std::sync::Arc;

use super::recipe::{Recipe, Stage};
use super::worlds::task_sources;
use keel_base::error::Result;
use keel_data::augment::Augmentation;
use keel_data::batch::BatchShape;
use keel_data::chat::ChatTokenizer;
use keel_data::mixture::{Mixture, MixtureSettings};
use keel_data::pairs::PairSource;
use keel_data::source::SampleSettings;
use keel_emoji::emoji_set::EmojiSet;

impl Recipe {
    /// The sizes of what `stage` computes at once, where `image_id` stands for an image token.
    pub fn batch_shape(&self, stage: &Stage, image_id: i32) -> BatchShape {
        BatchShape {
            batch: stage.micro_batch(),
            image_size: self.model.vision.image_size,
            image_tokens: self.model.image_tokens(),
            tokens: stage.max_tokens,
            pack: stage.samples_per_sequence,
            tiling: stage.tiling(stage.micro_batch()),
            caption_tokens: stage.max_caption_tokens,
            image_id,
            pixels: self.pixels(),
        }
    }
}

/// The mixture of stage `index` of `recipe`, in the words of its model.
///
/// # Errors
/// Whatever the mixture reports, for example that a stage draws from pairs and there are none.
pub(super) fn stage_mixture(
    recipe: &Recipe,
    emoji: &Arc<EmojiSet>,
    pairs: Option<&Arc<dyn PairSource>>,
    tokenizer: &Arc<ChatTokenizer>,
    index: usize,
) -> Result<Mixture> {
    let stage = &recipe.stages[index];
    let samples = SampleSettings {
        augmentation: Augmentation::of_strength(stage.augmentation),
        turns: stage.max_turns,
        images: stage.max_images,
        share: stage.data_share,
    };
    let settings = MixtureSettings {
        seed: recipe.seed,
        stage: stage.number(),
        weights: stage.tasks(),
        shape: recipe.batch_shape(stage, tokenizer.image()),
        weighting: stage.token_weighting,
        contrastive: stage.contrastive_weight > 0.0,
    };
    let sources = task_sources(emoji, pairs.cloned(), recipe.seed, &samples);
    Ok(Mixture::new(sources, settings)?.with_tokenizer(tokenizer.clone()))
}
