//! A published tower on its own, opened to be measured: what a refined backbone is worth beside the one it was.

use std::path::Path;
use std::sync::Arc;

use super::measuring::{Measured, measure_each};
use super::settings::eval_context;
use crate::from_weights::PublishedWeights;
use crate::recipe::{Recipe, StageKind};
use keel_base::error::{Error, Result};
use keel_data::chat::ChatTokenizer;
use keel_emoji::emoji_set::EmojiSet;
use keel_emoji::eval_sets::eval_suite;
use keel_engine::executor::{Executor, SelectedDevice};
use keel_engine::tape::{ParameterLayout, ParameterSpec};
use keel_eval::{EvalContext, MeasureSettings, Measurements, Measurer, Metric};
use keel_model::{VisionHead, declare};

use keel_weights::{Folder, OPEN_CLIP_CONFIG, SubModel};

/// Tokens of the captions that samples come with, though nothing reads them.
const WORDS: usize = 256;

/// Image tokens that a recipe with such a tower may have; nothing is computed of them.
const MOST_TOKENS: usize = 1 << 16;

/// See the module's documentation.
pub struct EvalTower {
    /// The tower's settings, in a recipe whose other parts nothing is asked of.
    recipe: Recipe,
    tokenizer: Arc<ChatTokenizer>,
    layout: Arc<ParameterLayout>,
    executor: Box<dyn Executor>,
    compute: SelectedDevice,
    /// How it pools by itself.
    head: Option<VisionHead>,
}

impl EvalTower {
    /// Whether `path` is a Hugging Face folder, and no run.
    pub fn is_one(path: &Path) -> bool {
        let has = |name: &str| path.join(name).is_file();
        (has("config.json") || has(OPEN_CLIP_CONFIG)) && !has("recipe.toml")
    }

    /// Opens a folder's vision tower, for images of the size that its processor makes or of `image_size` pixels.
    ///
    /// # Errors
    /// As [`Recipe::begin_from`]; whatever the device reports.
    pub fn open(
        path: &Path,
        image_size: Option<usize>,
        compute: &SelectedDevice,
    ) -> Result<EvalTower> {
        let mut recipe = Recipe::load("tiny", &[])?;
        // Any grid of patches goes through it.
        recipe.model.connector.unshuffle_factor = 1;
        recipe.stages.truncate(1);
        recipe.stages[0].kind = StageKind::Target;
        (recipe.stages[0].batch_size, recipe.stages[0].max_tokens) = (1, MOST_TOKENS);
        recipe.begin_from(&PublishedWeights {
            vision: Some(path.to_owned()),
            image_size,
            ..PublishedWeights::default()
        })?;
        let mut layout = declare(&recipe.model, recipe.contrastive_loss)?;
        let folder = Folder::open(path)?;
        let mut further = Vec::new();
        let mut head = None;
        if let Some((part, form)) = SubModel::vision(&folder)?.0.head(&folder)? {
            let entries = layout.entries().iter().chain(part.layout().entries());
            let specs: Vec<ParameterSpec> = entries.map(|entry| entry.spec.clone()).collect();
            layout = Arc::new(ParameterLayout::new(&specs));
            head = Some(form);
            further.push((folder, part));
        }
        let executor = compute.open(layout.elements())?;
        recipe.write_first_values(&layout, executor.as_ref(), further)?;
        Ok(EvalTower {
            head,
            tokenizer: recipe.chat_tokenizer(None)?,
            recipe,
            layout,
            executor,
            compute: compute.clone(),
        })
    }

    /// Height and width of the images that it is shown, pixels.
    pub fn image_size(&self) -> usize {
        self.recipe.model.vision.image_size
    }

    /// What the device had to say since this was last asked, such as that it computes slower than it could.
    pub fn take_warnings(&self) -> Vec<String> {
        self.executor.take_warnings()
    }

    pub(super) fn context(&self) -> EvalContext<'_> {
        let executor = self.executor.as_ref();
        EvalContext {
            head: self.head,
            ..eval_context(&self.recipe, &self.layout, executor, &self.tokenizer)
        }
    }

    /// Measures `metrics` on sets of at most `images` images. One that a tower alone cannot give is an error, or left out
    /// where `lenient`.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the metric; whatever recording, loading or the data report.
    pub fn measure(&self, metrics: &[Metric], images: usize, lenient: bool) -> Result<Measured> {
        let context = self.context();
        let settings = MeasureSettings {
            images,
            questions_per_kind: 0,
            tokens: self.recipe.model.image_tokens() + WORDS,
            caption_tokens: WORDS,
            is_connected: false,
        };
        let suite = eval_suite(&EmojiSet::embedded());
        let measurer = Measurer::new(context, &self.compute, &suite, settings);
        let stage = "tower alone".to_owned();
        let all = Measurements {
            stage,
            ..Measurements::default()
        };
        measure_each(metrics, all, lenient, |metric, all| {
            if metric.needs_tower_alone() {
                return measurer.measure(metric, all);
            }
            let alone = Metric::ALL.into_iter().filter(|m| m.needs_tower_alone());
            let names: Vec<&str> = alone.map(Metric::name).collect();
            Err(Error::setting(
                format!("metric {}", metric.name()),
                format!("one of {}, which a tower alone can give", names.join(", ")),
                "one that texts are read for",
            ))
        })
    }
}
