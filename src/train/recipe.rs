//! Recipes: the TOML files that say what a run trains, on what, and how. Every key is checked before anything runs.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::locate::{KeyFinder, near_miss};
use crate::error::{Error, Result};
use crate::model::{ContrastivePair, ModelConfig, Objectives, language_preset, vision_preset};
use crate::ops::Contrastive;

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
    /// The model.
    pub model: ModelConfig,
    /// The stages in order.
    #[serde(rename = "stage")]
    pub stages: Vec<Stage>,
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

/// How supervised tokens are weighted within a batch (sample s has n_s of them).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenWeighting {
    /// Every token 1.
    Token,
    /// Every token 1/n_s: every sample the same.
    Sample,
    /// Every token 1/√n_s (InternVL).
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
    /// Tokens T of a conversation, image tokens included.
    pub tokens: usize,
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
        }
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
    /// Reads a built-in recipe by name or a file by path, applies `--set` settings and checks everything.
    ///
    /// # Errors
    /// [`Error::Setting`] with file, line and key; [`Error::Io`] when the file cannot be read.
    pub fn load(name_or_path: &str, sets: &[String]) -> Result<Recipe> {
        if let Some((name, text)) = BUILT_IN.iter().find(|(name, _)| *name == name_or_path) {
            return Recipe::parse(&format!("built-in recipe {name}"), text, sets);
        }
        let path = Path::new(name_or_path);
        if !path.exists() && path.extension().is_none() {
            let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            let want = format!("the path of a TOML file or one of {}", names.join(", "));
            let near = near_miss(name_or_path, &names);
            return Err(Error::setting(
                "--recipe",
                want,
                format!(
                    "{name_or_path}{}",
                    near.map_or(String::new(), |n| format!(" (did you mean {n}?)"))
                ),
            ));
        }
        let text = std::fs::read_to_string(path)
            .map_err(|problem| Error::io(path, "read the recipe", problem))?;
        Recipe::parse(name_or_path, &text, sets)
    }

    /// Reads a recipe from text. `origin` names it in errors.
    ///
    /// # Errors
    /// [`Error::Setting`] with origin, line and key.
    pub fn parse(origin: &str, text: &str, sets: &[String]) -> Result<Recipe> {
        let finder = KeyFinder::new(origin, text);
        let mut table: Table = text.parse().map_err(|problem: toml::de::Error| {
            finder.syntax_error(problem.message(), problem.span())
        })?;
        for set in sets {
            apply_set(&mut table, set)?;
        }
        expand_presets(&mut table, &finder)?;
        let recipe: Recipe = Value::Table(table)
            .try_into()
            .map_err(|problem: toml::de::Error| finder.type_error(problem.message()))?;
        recipe.validate().map_err(|problem| finder.place(problem))?;
        Ok(recipe)
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
                Error::setting("--stage", format!("one of {}", names.join(", ")), name)
            })
    }

    fn validate(&self) -> Result<()> {
        self.model.validate()?;
        if self.stages.is_empty() {
            return Err(Error::setting("stage", "at least one [[stage]]", "none"));
        }
        for (index, stage) in self.stages.iter().enumerate() {
            if self.stages[..index]
                .iter()
                .any(|other| other.name == stage.name)
            {
                return Err(Error::setting(
                    "name",
                    "another name for each stage",
                    &stage.name,
                ));
            }
            self.validate_stage(stage)
                .map_err(|problem| in_stage(&stage.name, problem))?;
        }
        Ok(())
    }

    fn validate_stage(&self, stage: &Stage) -> Result<()> {
        if stage.trains.is_empty() {
            return Err(Error::setting("trains", "at least one module", "none"));
        }
        for (key, modules) in [("trains", &stage.trains), ("fresh", &stage.fresh)] {
            for module in modules {
                if !MODULES.contains(&module.as_str()) {
                    let want = format!("modules out of {}", MODULES.join(", "));
                    let near = near_miss(module, MODULES)
                        .map_or(String::new(), |near| format!(" (did you mean {near}?)"));
                    return Err(Error::setting(key, want, format!("{module}{near}")));
                }
            }
        }
        if stage.kind == StageKind::WarmStart
            && stage.contrastive != 0.0
            && self.model.text.is_none()
        {
            return Err(Error::setting(
                "contrastive",
                "a [model.text] tower to contrast with, or contrastive = 0",
                stage.contrastive,
            ));
        }
        if stage.steps.is_some() == stage.epochs.is_some() {
            return Err(Error::setting(
                "steps",
                "either steps or epochs",
                "both or neither",
            ));
        }
        require("batch", stage.batch >= 1, "at least 1", stage.batch)?;
        require(
            "steps",
            stage.steps != Some(0),
            "at least 1",
            stage.steps.unwrap_or_default(),
        )?;
        require(
            "epochs",
            stage.epochs.is_none_or(|e| e > 0.0),
            "above 0",
            stage.epochs.unwrap_or(0.0),
        )?;
        let image_tokens = self.model.image_tokens();
        let least = image_tokens + 8;
        require(
            "tokens",
            stage.kind == StageKind::WarmStart || stage.tokens >= least,
            format!("at least {least}: {image_tokens} image tokens and room for text"),
            stage.tokens,
        )?;
        require(
            "caption_tokens",
            stage.caption_tokens >= 4,
            "at least 4",
            stage.caption_tokens,
        )?;
        if let Some(text) = &self.model.text
            && stage.kind == StageKind::WarmStart
        {
            require(
                "caption_tokens",
                stage.caption_tokens == text.context,
                format!("the text tower's context, {}", text.context),
                stage.caption_tokens,
            )?;
        }
        let rate = stage.learning_rate;
        require(
            "learning_rate",
            rate > 0.0 && rate < 1.0,
            "between 0 and 1",
            rate,
        )?;
        require(
            "warm_up",
            (0.0..=1.0).contains(&stage.warm_up),
            "a share between 0 and 1",
            stage.warm_up,
        )?;
        let decay = stage.weight_decay;
        require(
            "weight_decay",
            (0.0..1.0).contains(&decay),
            "from 0 to below 1",
            decay,
        )?;
        for beta in stage.betas {
            require(
                "betas",
                (0.0..1.0).contains(&beta),
                "from 0 to below 1",
                beta,
            )?;
        }
        require("epsilon", stage.epsilon > 0.0, "above 0", stage.epsilon)?;
        require("clip", stage.clip >= 0.0, "0 (off) or above", stage.clip)?;
        require(
            "next_token",
            stage.next_token >= 0.0,
            "0 or above",
            stage.next_token,
        )?;
        require(
            "contrastive",
            stage.contrastive >= 0.0,
            "0 or above",
            stage.contrastive,
        )?;
        require(
            "augmentation",
            (0.0..=1.0).contains(&stage.augmentation),
            "between 0 and 1",
            stage.augmentation,
        )?;
        require(
            "next_token",
            stage.next_token > 0.0 || stage.contrastive > 0.0,
            "above 0 where contrastive is 0",
            stage.next_token,
        )?;
        require("data", !stage.data.is_empty(), "at least one task", "none")?;
        for (task, share) in &stage.data {
            require(
                task,
                *share > 0.0 && share.is_finite(),
                "a share above 0",
                share,
            )?;
        }
        Ok(())
    }
}

fn require(key: &str, holds: bool, want: impl ToString, found: impl ToString) -> Result<()> {
    match holds {
        true => Ok(()),
        false => Err(Error::setting(key, want, found)),
    }
}

fn in_stage(stage: &str, problem: Error) -> Error {
    match problem {
        Error::Setting { what, want, found } => Error::Setting {
            what: format!("stage {stage}: {what}"),
            want,
            found,
        },
        other => other,
    }
}

/// Replaces `preset = "…"` in [model.vision] and [model.language] by the preset's fields; keys beside it win.
fn expand_presets(table: &mut Table, finder: &KeyFinder<'_>) -> Result<()> {
    let Some(Value::Table(model)) = table.get_mut("model") else {
        return Ok(());
    };
    let expand = |model: &mut Table, tower: &str, preset: &dyn Fn(&str) -> Result<Table>| {
        let Some(Value::Table(settings)) = model.get_mut(tower) else {
            return Ok(());
        };
        let Some(name) = settings.remove("preset") else {
            return Ok(());
        };
        let Value::String(name) = name else {
            return Err(finder.place(Error::setting("preset", "a name in quotes", name)));
        };
        let mut full = preset(&name).map_err(|problem| finder.place(problem))?;
        full.extend(std::mem::take(settings));
        *settings = full;
        Ok(())
    };
    let table_of = |config: Result<Value, toml::ser::Error>| match config {
        Ok(Value::Table(table)) => table,
        _ => unreachable!("a configuration is a table"),
    };
    expand(model, "vision", &|name| {
        Ok(table_of(Value::try_from(vision_preset(name)?)))
    })?;
    expand(model, "language", &|name| {
        Ok(table_of(Value::try_from(language_preset(name)?)))
    })
}

/// Applies one `--set key.path=value`. A stage is named by its name: `stage.warm-up.steps=10`.
fn apply_set(table: &mut Table, set: &str) -> Result<()> {
    let refuse = |want: &str, found: &str| Error::setting(format!("--set {set}"), want, found);
    let (path, value) = set
        .split_once('=')
        .ok_or_else(|| refuse("key=value", "no equals sign"))?;
    let value = parse_value(value.trim());
    let mut keys: Vec<&str> = path.trim().split('.').collect();
    let last = keys.pop().filter(|key| !key.is_empty());
    let last = last.ok_or_else(|| refuse("key=value", "an empty key"))?;
    let mut here = table;
    let mut keys = keys.into_iter();
    while let Some(key) = keys.next() {
        let next = here
            .entry(key)
            .or_insert_with(|| Value::Table(Table::new()));
        here = match next {
            Value::Table(inner) => inner,
            Value::Array(stages) => {
                let name = keys.next().unwrap_or(last);
                let names: Vec<String> = stages
                    .iter()
                    .filter_map(|stage| Some(stage.get("name")?.as_str()?.to_owned()))
                    .collect();
                let index = names.iter().position(|known| known == name);
                let index = index.ok_or_else(|| {
                    refuse(&format!("{key}.<one of {}>.<key>", names.join(", ")), name)
                })?;
                match &mut stages[index] {
                    Value::Table(stage) => stage,
                    other => return Err(refuse("a table", other.type_str())),
                }
            }
            other => return Err(refuse(&format!("{key} to be a table"), other.type_str())),
        };
    }
    here.insert(last.to_owned(), value);
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
