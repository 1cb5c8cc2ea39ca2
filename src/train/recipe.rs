//! Recipes: the TOML files that say what a run trains, on what, and how. Every key is checked before anything runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::locate::{KeyFinder, named_text};
use super::validate::validate;
use keel_base::error::{Error, Found, Result, with_near_miss};
use keel_data::batch::Pixels;
use keel_data::chat::Layout;
use keel_data::task::TaskKind;
use keel_data::tiles::Tiling;
use keel_engine::ops::Contrastive;
use keel_model::{
    ContrastivePair, LANGUAGE_PRESETS, ModelConfig, Objectives, VISION_PRESETS, language_preset,
    vision_preset,
};

/// The built-in recipes: name and text.
pub const BUILT_IN: &[(&str, &str)] = &[
    ("emoji", include_str!("../../recipes/emoji.toml")),
    ("tiny", include_str!("../../recipes/tiny.toml")),
    (
        "sailvit-large",
        include_str!("../../recipes/sailvit-large.toml"),
    ),
    (
        "sailvit-huge",
        include_str!("../../recipes/sailvit-huge.toml"),
    ),
];

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// A short name; run folders start with it.
    pub name: String,
    /// The seed of everything random: first values, order, augmentation.
    pub seed: u64,
    /// The form of every contrastive loss.
    #[serde(default = "info_nce")]
    pub contrastive_form: ContrastiveForm,
    /// Whether the bf16 twins of parameters are rounded at random, unbiased, instead of to nearest: small updates of masters then
    /// reach them on average. Without effect in f32.
    #[serde(default, skip_serializing_if = "is_false")]
    pub random_rounding: bool,
    /// A Hugging Face folder that the vision tower's first values come from; `model.vision` has its settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision_weights: Option<String>,
    /// A Hugging Face folder that the language model's first values come from; `model.language` has its settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language_weights: Option<String>,
    /// A Hugging Face folder of a whole model that the connector's first values come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connector_weights: Option<String>,
    /// How pictures become numbers; mean and deviation 0.5 where it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pixels: Option<Pixels>,
    /// How a published language model speaks; runs without it speak the embedded tokeniser.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatSettings>,
    /// The model.
    pub model: ModelConfig,
    /// The stages in order.
    #[serde(rename = "stage")]
    pub stages: Vec<Stage>,
}

/// How a published language model speaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatSettings {
    /// Its `tokenizer.json`; a run keeps a copy in its folder.
    pub tokenizer: String,
    /// The layout of its chats.
    pub layout: Layout,
}

fn is_false(switch: &bool) -> bool {
    !switch
}

fn info_nce() -> ContrastiveForm {
    ContrastiveForm::InfoNce
}

/// The form of a contrastive loss, as recipes name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContrastiveForm {
    /// Softmax over the batch in both directions (Radford et al. 2021).
    InfoNce,
    /// One sigmoid a pair (Zhai et al. 2023).
    Sigmoid,
}

impl From<ContrastiveForm> for Contrastive {
    fn from(form: ContrastiveForm) -> Contrastive {
        match form {
            ContrastiveForm::InfoNce => Contrastive::InfoNce,
            ContrastiveForm::Sigmoid => Contrastive::Sigmoid,
        }
    }
}

/// What a stage is, which decides what it contrasts and whether images are spliced into its conversations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageKind {
    /// Towers contrasted with each other, the language model on text alone: stands in for pre-trained weights.
    WarmStart,
    /// A stage of refinement: images go through the connector into the language model.
    Refine,
    /// What users do next: a fresh connector on the refined tower. Measures the backbone.
    Target,
}

/// How the learning rate moves after its linear rise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays.
    Constant,
    /// Falls to zero along half a cosine.
    Cosine,
}

/// How supervised tokens are weighted within a batch (an answer has n of them).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenWeighting {
    /// Every token 1.
    Token,
    /// Every token 1/n: every answer the same.
    Sample,
    /// Every token 1/√n (InternVL).
    Square,
}

/// One stage of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Its name in logs, checkpoints and tables.
    pub name: String,
    /// What it is.
    pub kind: StageKind,
    /// The modules it trains; all others are frozen, bit for bit.
    pub trains: Vec<String>,
    /// Task → share of the batch's samples; the shares are relative.
    pub data: BTreeMap<String, f64>,
    /// The share of the training concepts that the stage sees, by the seed.
    #[serde(default = "one_f64")]
    pub data_share: f64,
    /// Weight of the next-token loss.
    #[serde(default = "one")]
    pub next_token: f32,
    /// Weight λ of the contrastive loss.
    #[serde(default)]
    pub contrastive: f32,
    /// Optimiser steps; give this or `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Passes over the data; give this or `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Samples B of a step.
    pub batch: usize,
    /// Samples that are computed at once: a part of `batch`, whose gradients are gathered until the batch is whole. All of
    /// it by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    /// Tokens T of a sequence, image tokens included.
    pub tokens: usize,
    /// Samples that share a sequence, on average: a step packs its samples into as many sequences as that gives, each seen
    /// only by its own tokens. 1 gives each sample a sequence of its own.
    #[serde(default = "one_usize", skip_serializing_if = "is_one")]
    pub pack: usize,
    /// Tiles that a user's picture is cut into beside the whole one, at most; 0 leaves pictures whole.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tiles: usize,
    /// Tiles that a step has room for, for each of its samples on average: pictures that come when most of it is taken are
    /// cut into fewer. As many as `tiles` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tile_room: Option<usize>,
    /// Pictures that one of a user's samples may show, at most; those of more are passed over. Several stay whole.
    #[serde(default = "one_usize", skip_serializing_if = "is_one")]
    pub pictures: usize,
    /// Tokens Tc of a caption on the contrastive side.
    #[serde(default = "caption_tokens")]
    pub caption_tokens: usize,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Share of the steps over which the learning rate rises from zero.
    #[serde(default = "warm_up")]
    pub warm_up: f64,
    /// What the learning rate does after that.
    #[serde(default = "cosine")]
    pub schedule: Schedule,
    /// Decoupled weight decay (Loshchilov and Hutter 2019).
    #[serde(default)]
    pub weight_decay: f64,
    /// β₁ and β₂ of AdamW.
    #[serde(default = "betas")]
    pub betas: [f64; 2],
    /// ε of AdamW.
    #[serde(default = "epsilon")]
    pub epsilon: f64,
    /// Largest gradient norm; 0 leaves gradients as they are.
    #[serde(default = "one_f64")]
    pub clip: f64,
    /// Questions about one scene, at most; as many are asked as fit the tokens.
    #[serde(default = "one_usize")]
    pub turns: usize,
    /// How supervised tokens are weighted.
    #[serde(default = "square")]
    pub token_weighting: TokenWeighting,
    /// How strongly pictures are varied: 0 not at all, 1 fully.
    #[serde(default = "one")]
    pub augmentation: f32,
    /// Modules that start this stage from fresh values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fresh: Vec<String>,
}

fn is_one(pack: &usize) -> bool {
    *pack == 1
}
fn is_zero(tiles: &usize) -> bool {
    *tiles == 0
}
fn one_usize() -> usize {
    1
}
fn one() -> f32 {
    1.0
}
fn one_f64() -> f64 {
    1.0
}
fn caption_tokens() -> usize {
    32
}
fn warm_up() -> f64 {
    0.03
}
fn cosine() -> Schedule {
    Schedule::Cosine
}
fn betas() -> [f64; 2] {
    [0.9, 0.999]
}
fn epsilon() -> f64 {
    1e-8
}
fn square() -> TokenWeighting {
    TokenWeighting::Square
}

impl Stage {
    /// Whether the stage trains the parameter of that name.
    pub fn trains(&self, parameter: &str) -> bool {
        let module = parameter.split('.').next().unwrap_or(parameter);
        self.trains.iter().any(|name| name == module)
    }

    /// What the stage minimises.
    pub fn objectives(&self, kind: Contrastive) -> Objectives {
        let warm = self.kind == StageKind::WarmStart;
        Objectives {
            next_token: self.next_token,
            splices_images: !warm,
            contrastive: self.contrastive,
            kind,
            pair: match warm {
                true => ContrastivePair::TextTower,
                false => ContrastivePair::LanguageModel,
            },
            holds_text_alone: self.holds_text_alone(),
        }
    }

    /// Whether some of its samples may have no picture: those of a task of text, and a user's pairs.
    pub fn holds_text_alone(&self) -> bool {
        let mut kinds = self.data.keys().filter_map(|task| TaskKind::of_name(task));
        kinds.any(|kind| !kind.has_image() || kind == TaskKind::Pairs)
    }

    /// Samples that are computed at once.
    pub fn micro_batch(&self) -> usize {
        self.micro_batch.unwrap_or(self.batch)
    }

    /// Into how many tiles the pictures of `batch` samples are cut, with room for the pictures of those that show several.
    pub fn tiling(&self, batch: usize) -> Tiling {
        let tiles = self.tile_room.unwrap_or(self.tiles);
        let several = match self.pictures {
            0 | 1 => 0,
            pictures => pictures,
        };
        Tiling {
            most: self.tiles,
            slots: batch * tiles.max(several),
        }
    }

    /// Runs of a step, each with [`Stage::micro_batch`] samples.
    pub fn micro_batches(&self) -> usize {
        self.batch / self.micro_batch()
    }

    /// The learning rate of step `step` (from 0) of `steps`.
    pub fn learning_rate_at(&self, step: u64, steps: u64) -> f64 {
        let rise = (self.warm_up * steps as f64).round();
        let done = step as f64 + 1.0;
        if done <= rise {
            return self.learning_rate * done / rise;
        }
        match self.schedule {
            Schedule::Constant => self.learning_rate,
            Schedule::Cosine => {
                let part = (step as f64 - rise) / (steps as f64 - rise).max(1.0);
                self.learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * part).cos())
            }
        }
    }
}

/// The modules that a stage can train.
pub const MODULES: &[&str] = &[
    "vision",
    "text",
    "contrastive",
    "connector",
    "align",
    "language",
];

impl Recipe {
    /// How pictures become numbers.
    pub fn pixels(&self) -> Pixels {
        self.pixels.unwrap_or_default()
    }

    /// The most tiles that a stage cuts a picture into; 0 where all leave them whole.
    pub fn most_tiles(&self) -> usize {
        self.stages
            .iter()
            .map(|stage| stage.tiles)
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
        let finder = KeyFinder::new(origin, text, sets)?;
        let mut table = finder.table()?;
        for set in sets {
            apply_set(&mut table, set)?;
        }
        expand_presets(&mut table, &finder)?;
        let recipe: Recipe = finder.typed(table)?;
        validate(&recipe).map_err(|problem| finder.place(problem))?;
        Ok(recipe)
    }

    /// The first stage that draws from the user's own pairs.
    pub fn stage_of_pairs(&self) -> Option<&Stage> {
        let name = TaskKind::Pairs.name();
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

/// Replaces `preset = "…"` in [model.vision] and [model.language] by the preset's fields; keys beside it win.
fn expand_presets(table: &mut Table, finder: &KeyFinder<'_>) -> Result<()> {
    let Some(Value::Table(model)) = table.get_mut("model") else {
        return Ok(());
    };
    type Preset = fn(&str) -> Result<Value>;
    let towers: [(&str, &[&str], Preset); 2] = [
        ("vision", VISION_PRESETS, |name| {
            Ok(as_value(vision_preset(name)?))
        }),
        ("language", LANGUAGE_PRESETS, |name| {
            Ok(as_value(language_preset(name)?))
        }),
    ];
    for (tower, known, preset) in towers {
        let Some(Value::Table(settings)) = model.get_mut(tower) else {
            continue;
        };
        let Some(name) = settings.remove("preset") else {
            continue;
        };
        let refuse = |found: Found| {
            let want = format!("one of {}", known.join(", "));
            finder.place(Error::setting(format!("model.{tower}.preset"), want, found))
        };
        let Value::String(name) = name else {
            return Err(refuse(name.into()));
        };
        if !known.contains(&name.as_str()) {
            return Err(refuse(with_near_miss(&name, known)));
        }
        if let Value::Table(mut full) = preset(&name)? {
            full.extend(std::mem::take(settings));
            *settings = full;
        }
    }
    Ok(())
}

fn as_value(config: impl Serialize) -> Value {
    Value::try_from(config).expect("a configuration is made of numbers and names")
}

/// Applies one `--set key.path=value`. A stage is named by its name: `stage.warm-up.steps=10`.
fn apply_set(table: &mut Table, set: &str) -> Result<()> {
    let refuse = |want: &str, found: Found| Error::setting(format!("--set {set}"), want, found);
    let (path, value) = set
        .split_once('=')
        .ok_or_else(|| refuse("key=value", "no equals sign".into()))?;
    let value = parse_value(value.trim());
    let keys: Vec<&str> = path.trim().split('.').collect();
    if keys.iter().any(|key| key.is_empty()) {
        return Err(refuse("key=value", "an empty key".into()));
    }
    let (last, keys) = keys.split_last().expect("a split gives at least one part");
    let mut here = table;
    let mut keys = keys.iter().copied();
    while let Some(key) = keys.next() {
        let next = here
            .entry(key)
            .or_insert_with(|| Value::Table(Table::new()));
        here = match next {
            Value::Table(inner) => inner,
            Value::Array(stages) => {
                let names: Vec<String> = stages
                    .iter()
                    .filter_map(|stage| Some(stage.get("name")?.as_str()?.to_owned()))
                    .collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let want = format!("{key}.<one of {}>.<key>=value", names.join(", "));
                let Some(name) = keys.next() else {
                    return Err(refuse(&want, format!("{key}.{last}").into()));
                };
                let index = names.iter().position(|known| *known == name);
                let index = index.ok_or_else(|| refuse(&want, with_near_miss(name, &names)))?;
                match &mut stages[index] {
                    Value::Table(stage) => stage,
                    other => return Err(refuse("a table", other.type_str().into())),
                }
            }
            other => {
                return Err(refuse(
                    &format!("{key} to be a table"),
                    other.type_str().into(),
                ));
            }
        };
    }
    // A stage has one of the two: whoever sets one on the command line means it in place of the recipe's.
    for (set, other) in [("steps", "epochs"), ("epochs", "steps")] {
        if *last == set {
            here.remove(other);
        }
    }
    here.insert((*last).to_owned(), value);
    Ok(())
}

/// A TOML value, or a string where it is not one: `--set name=mine` needs no quotes.
fn parse_value(text: &str) -> Value {
    let parsed: Result<Table, _> = format!("value = {text}").parse();
    match parsed {
        Ok(mut table) => table
            .remove("value")
            .unwrap_or_else(|| Value::String(text.to_owned())),
        Err(_) => Value::String(text.to_owned()),
    }
}
