//! Validation inside a stage: how often, on how many samples, which checkpoint is the best, and when to end early.

use serde::{Deserialize, Serialize};

use super::{Stage, StageKind};
use keel_base::error::{Error, Result};
use keel_data::held_out::HeldOutKind;
use keel_data::task::Task;

/// Most held-out samples of a stage.
const MOST_SAMPLES: usize = 1 << 20;

/// Most steps or validations.
const MOST: u64 = 1_000_000_000_000;

/// Validations of a stage where the recipe does not say how often it is validated.
const TIMES: u64 = 10;

/// What is measured on held-out samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ValidationMetric {
    /// The losses below, weighted as the stage weighs them.
    #[serde(rename = "loss")]
    Loss,
    /// The next-token loss, nats a token; in stages with one.
    #[serde(rename = "loss.next_token")]
    NextToken,
    /// The contrastive loss among the held-out samples of a batch; in stages with one.
    #[serde(rename = "loss.contrastive")]
    Contrastive,
    /// The next-token loss of images that nothing is asked about.
    #[serde(rename = "loss.captions")]
    Captions,
    /// The next-token loss of questions about images.
    #[serde(rename = "loss.questions")]
    Questions,
    /// The next-token loss of text without an image.
    #[serde(rename = "loss.text")]
    Text,
    /// Share of held-out images whose caption is the most similar; in stages with a contrastive loss.
    #[serde(rename = "image_to_text_r1")]
    ImageToText1,
    /// Share of held-out images whose caption is among the five most similar; likewise.
    #[serde(rename = "image_to_text_r5")]
    ImageToText5,
    /// Share of held-out captions whose image is the most similar; likewise.
    #[serde(rename = "text_to_image_r1")]
    TextToImage1,
    /// Share of held-out captions whose image is among the five most similar; likewise.
    #[serde(rename = "text_to_image_r5")]
    TextToImage5,
}

impl ValidationMetric {
    /// All of them.
    pub const ALL: [ValidationMetric; 10] = [
        ValidationMetric::Loss,
        ValidationMetric::NextToken,
        ValidationMetric::Contrastive,
        ValidationMetric::Captions,
        ValidationMetric::Questions,
        ValidationMetric::Text,
        ValidationMetric::ImageToText1,
        ValidationMetric::ImageToText5,
        ValidationMetric::TextToImage1,
        ValidationMetric::TextToImage5,
    ];

    /// The name in recipes, metrics.jsonl and trackers.
    pub const fn name(self) -> &'static str {
        match self {
            ValidationMetric::Loss => "loss",
            ValidationMetric::NextToken => "loss.next_token",
            ValidationMetric::Contrastive => "loss.contrastive",
            ValidationMetric::Captions => "loss.captions",
            ValidationMetric::Questions => "loss.questions",
            ValidationMetric::Text => "loss.text",
            ValidationMetric::ImageToText1 => "image_to_text_r1",
            ValidationMetric::ImageToText5 => "image_to_text_r5",
            ValidationMetric::TextToImage1 => "text_to_image_r1",
            ValidationMetric::TextToImage5 => "text_to_image_r5",
        }
    }

    /// Whether more is better.
    pub const fn is_share(self) -> bool {
        matches!(
            self,
            ValidationMetric::ImageToText1
                | ValidationMetric::ImageToText5
                | ValidationMetric::TextToImage1
                | ValidationMetric::TextToImage5
        )
    }

    /// Whether `value` is better than `other`. What is not a number never is.
    pub fn is_better(self, value: f64, other: f64) -> bool {
        if self.is_share() {
            value > other || other.is_nan() && !value.is_nan()
        } else {
            value < other || other.is_nan() && !value.is_nan()
        }
    }

    /// The next-token loss of a kind of sample.
    pub(crate) const fn of_kind(kind: HeldOutKind) -> ValidationMetric {
        match kind {
            HeldOutKind::Captions => ValidationMetric::Captions,
            HeldOutKind::Questions => ValidationMetric::Questions,
            HeldOutKind::Text => ValidationMetric::Text,
        }
    }

    /// Whether a stage can measure it; of losses by kind the samples have a say too.
    pub(crate) fn is_of(self, stage: &Stage) -> bool {
        match self {
            ValidationMetric::Loss => true,
            ValidationMetric::NextToken | ValidationMetric::Text => stage.next_token_weight > 0.0,
            ValidationMetric::Captions | ValidationMetric::Questions => {
                stage.next_token_weight > 0.0 && stage.kind != StageKind::WarmStart
            }
            ValidationMetric::Contrastive
            | ValidationMetric::ImageToText1
            | ValidationMetric::ImageToText5
            | ValidationMetric::TextToImage1
            | ValidationMetric::TextToImage5 => stage.contrastive_weight > 0.0,
        }
    }
}

/// Validation of a stage on held-out samples, which `keel train --validate` gives. It changes no bit of what is trained, but for
/// `patience`, which ends the stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationSettings {
    /// Steps between validations. The stage is validated before its first step and after its last one too; 0 only there. Without
    /// it, a tenth of the stage.
    ///
    /// - Unit: optimiser steps
    /// - Range: 0 to 10¹²
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// Most held-out samples: the same ones every time.
    ///
    /// - Unit: samples
    /// - Range: 2 to 2²⁰
    #[serde(default = "samples")]
    pub samples: usize,
    /// Keeps the checkpoint of the validation that is best by this metric, as `checkpoints/<n>-<stage>.best.safetensors`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_by: Option<ValidationMetric>,
    /// Validations in a row without a better `best_by` after which the stage ends early. Without it, it runs all its steps.
    ///
    /// - Unit: validations
    /// - Range: 1 to 10¹²; needs `best_by`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<u64>,
}

fn samples() -> usize {
    500
}

impl Default for ValidationSettings {
    fn default() -> ValidationSettings {
        ValidationSettings {
            every: None,
            samples: samples(),
            best_by: None,
            patience: None,
        }
    }
}

impl ValidationSettings {
    /// Whether a stage of `steps` steps is validated when `done` of them are done.
    pub fn is_due(&self, done: u64, steps: u64) -> bool {
        let every = self.every.unwrap_or_else(|| steps.div_ceil(TIMES));
        done == 0 || done == steps || every > 0 && done.is_multiple_of(every)
    }
}

impl Stage {
    /// How the stage is validated where there are held-out samples; nothing for one that trains on text which is not the user's.
    pub fn validated(&self) -> Option<ValidationSettings> {
        let sees_images = self.kind != StageKind::WarmStart || self.contrastive_weight > 0.0;
        let is_users = self.data.contains_key(Task::SAMPLES.name);
        (sees_images || is_users).then(|| self.validation.clone().unwrap_or_default())
    }

    /// Whether the best checkpoint of the stage is kept.
    pub fn keeps_best(&self) -> bool {
        let settings = self.validated();
        settings.is_some_and(|settings| settings.best_by.is_some())
    }
}

/// Refuses what a stage cannot be validated by.
///
/// # Errors
/// [`Error::Setting`] whose subject is the setting's path below the stage.
pub(super) fn validate_validation(stage: &Stage) -> Result<()> {
    let Some(settings) = &stage.validation else {
        return Ok(());
    };
    if stage.validated().is_none() {
        let want = "a stage that sees images or draws from the task samples";
        return Err(Error::setting(
            "validation",
            want,
            "one that trains on other text",
        ));
    }
    let holds = settings.every.is_none_or(|every| every <= MOST);
    let refuse = |key: &str, want: String, found: String| {
        Err(Error::setting(format!("validation.{key}"), want, found))
    };
    if !holds {
        let found = settings.every.unwrap_or(0).to_string();
        return refuse("every", format!("at most {MOST}"), found);
    }
    if !(2..=MOST_SAMPLES).contains(&settings.samples) {
        let want = format!("2 to {MOST_SAMPLES}");
        return refuse("samples", want, settings.samples.to_string());
    }
    if let Some(metric) = settings.best_by.filter(|metric| !metric.is_of(stage)) {
        let all = ValidationMetric::ALL.into_iter();
        let names: Vec<&str> = all.filter(|m| m.is_of(stage)).map(|m| m.name()).collect();
        let want = format!("one that this stage measures: {}", names.join(", "));
        return refuse("best_by", want, metric.name().to_owned());
    }
    match (settings.patience, settings.best_by) {
        (Some(patience), _) if !(1..=MOST).contains(&patience) => {
            refuse("patience", format!("1 to {MOST}"), patience.to_string())
        }
        (Some(_), None) => {
            let want = "a best_by beside it, which says what has to become better";
            refuse("patience", want.to_owned(), "none".to_owned())
        }
        _ => Ok(()),
    }
}
