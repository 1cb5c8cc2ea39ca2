//! Recipes: the TOML files that say what a run trains, on what, and how. Every key is checked before anything runs.
//!
//! The doc comments of what is deserialised here are the recipe reference: `cargo tool reference --write` makes docs/recipes.md
//! of them. A key's list items `Unit:`, `Range:` and `Source:` become columns and citations there.

mod division;
pub(super) mod locate;
mod origins;
mod overrides;
mod parameters;
mod renamed;
mod schedule;
mod stage;
mod validate;
mod validation;

use serde::{Deserialize, Serialize};

pub(crate) use self::division::Dealing;
use self::locate::{KeyFinder, named_text};
use self::origins::{complete_controls, validate_origins};
use self::overrides::{apply_set, expand_presets, flatten_patterns};
pub(super) use self::parameters::validate_patterns;
pub(super) use self::renamed::refuse_old_names;
pub use self::renamed::{RENAMED_PLAN_KEYS, RENAMED_RECIPE_KEYS, Renamed};
pub use self::schedule::{DecayShape, Schedule};
pub use self::stage::{ContrastWith, INITIAL, MODULES, Stage, StageKind};
pub(super) use self::validate::validate_recipe;
pub use self::validation::{ValidationMetric, ValidationSettings};
use crate::from_weights::{Beginning, PublishedWeights};
use keel_base::error::{Error, Result, with_near_miss};
use keel_data::chat::ChatTemplate;
use keel_data::pixels::Pixels;
use keel_data::task::Task;
use keel_engine::ops::Contrastive;
use keel_model::ModelConfig;

/// The built-in recipes: name and text.
pub const BUILT_IN: &[(&str, &str)] = &[
    ("emoji", include_str!("../../../recipes/emoji.toml")),
    ("tiny", include_str!("../../../recipes/tiny.toml")),
    ("panels", include_str!("../../../recipes/panels.toml")),
    (
        "sailvit-large",
        include_str!("../../../recipes/sailvit-large.toml"),
    ),
    (
        "sailvit-huge",
        include_str!("../../../recipes/sailvit-huge.toml"),
    ),
];

/// Largest factor of a connector that a tower is opened for: a larger one leaves no image to speak of.
const MOST_FACTOR: usize = 64;

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// A short name. Run folders start with it.
    ///
    /// - Range: 1 to 64 letters, digits, `-` and `_`
    pub name: String,
    /// The seed of everything random: initial parameters, data order and augmentation. `--seed` overrides it.
    ///
    /// - Range: 0 to 2⁶³ − 1
    pub seed: u64,
    /// The form of every contrastive loss.
    #[serde(default = "info_nce")]
    pub contrastive_loss: Contrastive,
    /// Whether the bf16 copies of the parameters are rounded stochastically, which is unbiased, instead of to nearest. Small
    /// updates of the f32 master weights then reach the copies on average. No effect in f32.
    ///
    /// - Source: Gupta et al. 2015 (arXiv 1502.02551), §3.1
    #[serde(default, skip_serializing_if = "is_false")]
    pub stochastic_rounding: bool,
    /// What each of several ranks keeps only its own part of, as ZeRO counts it: 1, the moments, and in bf16 the f32 weights;
    /// 2, gradients too, which are sent after every micro-batch. No effect on one rank.
    ///
    /// - Range: 1 or 2
    /// - Source: Rajbhandari et al. 2020 (arXiv 1910.02054), §5
    #[serde(default = "shards_moments", skip_serializing_if = "is_moments")]
    pub zero_stage: usize,
    /// Whether a run leaves the same bits on any number of ranks, one included. Gradients of micro-batches are added in one
    /// balanced binary tree, and a contrastive loss compares the pairs of a micro-batch alone, so every stage has to say its
    /// `micro_batch_size`. Costs memory: up to one more copy of the gradients for each halving of the micro-batches of a rank.
    #[serde(default, skip_serializing_if = "is_false")]
    pub reproducible_across_ranks: bool,
    /// A Hugging Face folder with the initial weights of the vision tower; `model.vision` must agree with its settings.
    /// `--vision` sets both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision_weights: Option<String>,
    /// A Hugging Face folder with the initial weights of the language model; `model.language` must agree with its settings.
    /// `--language` sets both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language_weights: Option<String>,
    /// A Hugging Face folder of a complete vision-language model with the initial weights of the connector. Set where
    /// `--vision` and `--language` name the same folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connector_weights: Option<String>,
    /// A Hugging Face folder with the weights of the teacher of feature distillation; `model.teacher.tower` must agree with its
    /// settings. `--teacher` sets both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_weights: Option<String>,
    /// A folder of PEFT with the first values of the vision tower's adapters; `model.vision.lora` must agree with its settings.
    /// `--vision-adapter` sets both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision_adapter: Option<String>,
    /// A folder of PEFT with the first values of the language model's adapters; `model.language.lora` must agree with its settings.
    /// `--language-adapter` sets both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language_adapter: Option<String>,
    /// How images are resized and normalised. Without it mean and std are 0.5, and images are cropped and scaled as
    /// `pixels.fit` and `pixels.filter` do by default.
    ///
    /// - Source: without it as SigLIP, whose mean and std are 0.5 (Zhai et al. 2023)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pixels: Option<Pixels>,
    /// Tokenizer and chat template of a published language model. Runs without it use the embedded 512-token tokenizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatSettings>,
    /// The sizes of the model.
    pub model: ModelConfig,
    /// The stages, in the order in which they run.
    ///
    /// - Range: at least one, each with a name of its own
    #[serde(rename = "stage")]
    pub stages: Vec<Stage>,
}

/// Tokenizer and chat template of a published language model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatSettings {
    /// The path of its `tokenizer.json`. A run keeps a copy in its folder.
    pub tokenizer: String,
    /// The chat template that the model was trained on.
    pub template: ChatTemplate,
}

fn is_false(switch: &bool) -> bool {
    !switch
}

fn shards_moments() -> usize {
    1
}

fn is_moments(zero_stage: &usize) -> bool {
    *zero_stage == 1
}

fn info_nce() -> Contrastive {
    Contrastive::InfoNce
}

impl Recipe {
    /// How images become numbers.
    pub fn pixels(&self) -> Pixels {
        self.pixels.unwrap_or_default()
    }

    /// The most tiles that a stage cuts an image into; 0 where all leave them whole.
    pub fn most_tiles(&self) -> usize {
        self.stages
            .iter()
            .map(|stage| stage.max_tiles)
            .max()
            .unwrap_or(0)
    }

    /// Reads a built-in recipe by name or a file by path, applies `--set` settings and checks everything.
    ///
    /// # Errors
    /// [`Error::Setting`] with file, line and key; [`Error::Io`] when the file cannot be read.
    pub fn load(name_or_path: &str, sets: &[String]) -> Result<Recipe> {
        let words = ("recipe", "--recipe", "read the recipe");
        let (origin, text) = named_text(BUILT_IN, name_or_path, words)?;
        Recipe::parse(&origin, &text, sets)
    }

    /// Reads a recipe from text. `origin` names it in errors.
    ///
    /// # Errors
    /// [`Error::Setting`] with origin, line and key.
    pub fn parse(origin: &str, text: &str, sets: &[String]) -> Result<Recipe> {
        let (recipe, finder) = Recipe::parse_unchecked(origin, text, sets)?;
        let path = |index, _: &Stage| format!("stage.{index}.");
        let checked = validate_recipe(&recipe).and_then(|()| validate_patterns(&recipe, path));
        checked.map_err(|problem| finder.place(problem))?;
        Ok(recipe)
    }

    /// Loads a recipe as [`Recipe::load`] does and begins from published weights, where there are any, as
    /// [`Recipe::begin_from`] does. Whether the connector's factor goes with the tower is asked of the tower that comes with
    /// the weights, not of the one that it takes the place of.
    ///
    /// # Errors
    /// As [`Recipe::load`], [`PublishedWeights::check_sets`] and [`Recipe::begin_from`].
    pub fn load_from(
        name_or_path: &str,
        sets: &[String],
        weights: &PublishedWeights,
    ) -> Result<(Recipe, Beginning)> {
        if weights.is_empty() {
            let recipe = Recipe::load(name_or_path, sets)?;
            return Ok((recipe, Beginning::default()));
        }
        weights.check_sets(sets)?;
        let words = ("recipe", "--recipe", "read the recipe");
        let (origin, text) = named_text(BUILT_IN, name_or_path, words)?;
        let (mut recipe, finder) = Recipe::parse_unchecked(&origin, &text, sets)?;
        match validate_recipe(&recipe) {
            Err(Error::Setting { what, .. }) if recipe.awaits_tower(weights, &what) => {}
            Err(problem) => return Err(finder.place(problem)),
            Ok(()) => {}
        }
        let begun = recipe.begin_from(weights)?;
        Ok((recipe, begun))
    }

    /// Whether only the tower, or the adapters, of the weights can say what is wrong with `key`.
    fn awaits_tower(&self, weights: &PublishedWeights, key: &str) -> bool {
        let factor = self.model.connector.unshuffle_factor;
        let is_possible = (1..=MOST_FACTOR).contains(&factor);
        let is_factor = key == "model.connector.unshuffle_factor" && is_possible;
        let adapters = [&weights.vision_adapter, &weights.language_adapter];
        let brings_adapters = adapters.into_iter().any(Option::is_some);
        let is_of_stage = |name: &str| key.starts_with("stage.") && key.ends_with(name);
        weights.vision.is_some() && is_factor
            || (brings_adapters || weights.teacher.is_some()) && is_of_stage(".trains")
            || weights.teacher.is_some()
                && (is_of_stage(".distillation_weight") || key.starts_with("model.teacher"))
    }

    fn parse_unchecked<'a>(
        origin: &'a str,
        text: &'a str,
        sets: &'a [String],
    ) -> Result<(Recipe, KeyFinder<'a>)> {
        let finder = KeyFinder::new(origin, text, sets)?;
        let mut table = finder.table()?;
        for set in sets {
            apply_set(&mut table, set)?;
        }
        refuse_old_names(RENAMED_RECIPE_KEYS, &table, &finder)?;
        complete_controls(&mut table);
        expand_presets(&mut table, &finder)?;
        flatten_patterns(&mut table);
        let recipe: Recipe = finder.typed(table)?;
        Ok((recipe, finder))
    }

    /// The first stage that draws from the user's own pairs.
    pub fn stage_of_pairs(&self) -> Option<&Stage> {
        let name = Task::SAMPLES.name;
        let mut stages = self.stages.iter();
        stages.find(|stage| stage.data.contains_key(name))
    }

    /// The recipe as TOML, every default written out.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a recipe is made of tables, numbers and strings")
    }

    /// The stage of that name.
    ///
    /// # Errors
    /// [`Error::Setting`] listing the stages.
    pub fn stage(&self, name: &str) -> Result<&Stage> {
        self.stages
            .iter()
            .find(|stage| stage.name == name)
            .ok_or_else(|| {
                let names: Vec<&str> = self.stages.iter().map(|s| s.name.as_str()).collect();
                let want = format!("one of {}", names.join(", "));
                Error::setting("--stage", want, with_near_miss(name, &names))
            })
    }
}
