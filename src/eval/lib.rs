//! Measures what a model can do: retrieval, zero-shot classes, captions, questions, and how close visual tokens are to
//! text tokens. All sets are fixed, so numbers of different stages and runs compare.
#![deny(unsafe_code)]

mod aligned_retriever;
mod answer_match;
mod answers;
mod benchmark;
mod benchmark_rules;
mod closed_answers;
mod comparable;
mod context;
mod distances;
mod evaluator;
mod generation;
mod linear_map;
mod linear_probe;
mod measure;
mod neighbours;
mod power;
mod principal;
mod probe;
mod qualitative;
mod retrieval;
mod spaces;
mod statistics;
mod streams;
mod weight_drift;
mod word_looks;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use answer_match::{answers_match, normalise_answer};
pub use answers::{Answerer, exact_answers};
pub use benchmark::{
    AnswerKind, AnsweredItem, BenchmarkComparison, BenchmarkScore, Score, Wording, is_right,
};
pub use benchmark_rules::{chosen_option, short_answers_match, yes_or_no};
pub use closed_answers::{ClosedAnswer, ClosedSets, answer_closed};
pub use comparable::{ANSWERABLE, COMPARED, Compared, answerable, comparable, of_benchmark};
pub use context::{EvalContext, plan_forward};
pub use distances::{
    Sinkhorn, exact_wasserstein, mean_distance, nearest_neighbour_distance, sinkhorn_divergence,
    sliced_wasserstein, sliced_wasserstein_along,
};
pub use evaluator::{EvaluationSettings, Evaluator};
pub use generation::{GenerationPrograms, Generator, PromptImage, Sampling, draw_token};
pub use linear_map::LinearMap;
pub use linear_probe::LinearProbe;
pub use measure::{
    CaptionMeasure, CkaMeasure, DistanceMeasure, FeatureForm, ImageFeatures, LayerFeatures,
    LayerMeasure, MeasureSettings, Measurements, Measurer, Metric, ProbeMeasure, QuestionMeasure,
    RetrievalMeasure, RobustnessMeasure, SpaceMeasure, StageDrift, ZeroShotMeasure, metrics_of,
};
pub use neighbours::{Neighbours, accuracy};
pub use power::{detectable_effect, holm, power};
pub use principal::Principal;
pub use probe::{Labelled, ProbeForm, ProbeSettings, TrainedProbe};
pub use qualitative::{
    AttentionSample, Confusion, QualitativeSamples, RetrievalExample, RetrievalSamples,
    TokenClouds, floats_of, floats_text, rgb_of, rgb_text,
};
pub use retrieval::{
    Ranking, Recall, class_features, classify, classify_among, normalise_rows, rank_positives,
    recall,
};
pub use spaces::{alignment, linear_cka, modality_gap, uniformity};
pub use statistics::{
    Interval, LEVEL, POWER, PairedTest, clustered_interval, clustered_test, interval, paired_test,
    student_quantile,
};
pub use streams::{Begun, Reading, StreamPrompt, StreamShape, Streams};
pub use weight_drift::{WeightDrift, weight_drift};
pub use word_looks::{WordLook, word_looks};

/// What one stage's model can do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The stage after which it was measured.
    pub stage: String,
    /// Images by set.
    pub sets: Vec<SetEvaluation>,
    /// Share of questions answered exactly, by set and kind.
    pub questions: Vec<QuestionEvaluation>,
    /// Mean distance from a visual token to the nearest text token, in the language model's space, all of unit length.
    pub nearest_neighbour: Option<f64>,
    /// Sliced Wasserstein-2 distance between visual and text tokens of unit length.
    pub sliced_wasserstein: Option<f64>,
    /// Mean distance from a patch of the tower to the nearest text token, each cloud on its own two principal components
    /// (SAIL-VL2 report, Table 7).
    #[serde(default)]
    pub plane_nearest: Option<f64>,
}

/// The images of one set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SetEvaluation {
    /// Where the images come from: a drawing style, or the name of a data set.
    pub vendor: String,
    /// Whether what they show was trained on.
    pub split: String,
    /// Images.
    pub count: usize,
    /// Retrieval of captions by images and of images by captions.
    pub recall: Option<Recall>,
    /// Share of images whose class is the likeliest of all.
    pub zero_shot: Option<f64>,
    /// Number of classes; 0 where the set has none.
    pub classes: usize,
    /// Next-token loss of the captions given the images, nats a token.
    pub caption_loss: Option<f64>,
}

/// The questions of one set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QuestionEvaluation {
    /// Where the images come from: a drawing style, or the name of a data set.
    pub vendor: String,
    /// Whether what they show was trained on; empty in files of versions that asked of nothing else.
    #[serde(default)]
    pub split: String,
    /// Questions.
    pub count: usize,
    /// Share answered exactly, or by the likeliest answer of a closed set where there is one.
    pub accuracy: f64,
    /// What the blind baseline reaches, which sees no image.
    pub text_only: f64,
    /// Loss of the answers given images and questions: nats a token, and nats an answer where all answers are of closed sets.
    #[serde(default)]
    pub answer_loss: Option<f64>,
    /// Share answered exactly by kind, with that of the blind baseline.
    pub by_kind: BTreeMap<String, (f64, f64)>,
    /// Each question's image, by its place among the set's, and whether it was answered rightly; in the set's order, which is the same
    /// for every model. Empty in files of versions that did not keep them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<(u32, bool)>,
}

impl QuestionEvaluation {
    /// What the set is called beside others: by its images, and by what was never trained on.
    pub fn set(&self) -> String {
        match self.split.as_str() {
            "" | "train" => self.vendor.clone(),
            split => format!("{}, {split}", self.vendor),
        }
    }
}

impl Evaluation {
    /// All numbers by name, for event files.
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let mut scalars = Vec::new();
        let mut add = |name: String, value: Option<f64>| {
            scalars.extend(value.map(|value| (format!("evaluation/{name}"), value)));
        };
        for set in &self.sets {
            let of = format!("{}.{}", set.vendor, set.split);
            let recall = set.recall.as_ref();
            add(format!("recall_1.{of}"), recall.map(|r| r.image_to_text[0]));
            add(format!("zero_shot.{of}"), set.zero_shot);
            add(format!("caption_loss.{of}"), set.caption_loss);
        }
        for question in &self.questions {
            add(
                format!("questions.{}", question.set()),
                Some(question.accuracy),
            );
        }
        add("nearest_neighbour".into(), self.nearest_neighbour);
        add("sliced_wasserstein".into(), self.sliced_wasserstein);
        add("plane_nearest".into(), self.plane_nearest);
        scalars
    }

    /// One readable line.
    pub fn line(&self, stage: &str) -> String {
        let mut parts = Vec::new();
        for set in &self.sets {
            let mut words = Vec::new();
            if let Some(recall) = &set.recall {
                words.push(format!("R@1 {:.1} %", 100.0 * recall.image_to_text[0]));
            }
            if let Some(share) = set.zero_shot {
                words.push(format!("zero-shot {:.1} %", 100.0 * share));
            }
            if let Some(loss) = set.caption_loss {
                words.push(format!("caption loss {loss:.3}"));
            }
            if !words.is_empty() {
                parts.push(format!(
                    "{} {}: {}",
                    set.vendor,
                    set.split,
                    words.join(", ")
                ));
            }
        }
        for asked in &self.questions {
            parts.push(format!(
                "{} questions {:.1} % (blind baseline {:.1} %)",
                asked.set(),
                100.0 * asked.accuracy,
                100.0 * asked.text_only
            ));
        }
        if let (Some(near), Some(sliced)) = (self.nearest_neighbour, self.sliced_wasserstein) {
            let plane = self.plane_nearest.unwrap_or(f64::NAN);
            parts.push(format!(
                "distance to text: nearest {near:.3}, sliced {sliced:.3}, nearest in the plane {plane:.3}"
            ));
        }
        format!("evaluation after {stage}: {}", parts.join("; "))
    }
}
