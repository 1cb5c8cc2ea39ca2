//! Everything that can be measured of a checkpoint, metric by metric, as plain data for tables, files and reports.

mod answers;
mod features;
mod image_features;
mod layers;
mod regions;
mod robustness;
mod spaces;
mod towers;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::context::{BATCH, EvalContext};
use super::{Ranking, WeightDrift};
use keel_base::error::{Error, Result, with_near_miss};
use keel_data::batch::BatchShape;
use keel_data::eval_set::{ClassifiedSet, EvalSuite, SetName};
use keel_engine::executor::SelectedDevice;

pub use features::LayerFeatures;
pub use image_features::{FeatureForm, ImageFeatures};

/// A metric that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Recall of captions and images, several captions an image.
    Retrieval,
    /// Classes by prompts.
    ZeroShot,
    /// Classes by the nearest training features.
    Neighbours,
    /// Classes by a linear map of features, in closed form; where images have labelled regions and no classes, what the regions
    /// show.
    LinearProbe,
    /// Classes by SAIL-VL2's two-layer probe on mean tokens.
    TwoLayerProbe,
    /// Classes by AIM's attentive probe on all tokens.
    AttentiveProbe,
    /// Loss and perplexity of captions.
    Captions,
    /// Questions answered by kind.
    Questions,
    /// Questions answered by kind where the facts are given as text, without an image.
    TextQuestions,
    /// Distances of visual from text tokens.
    Distances,
    /// Modality gap, alignment, uniformity.
    Space,
    /// Likeness of layers to each other and to those of the stages before.
    Cka,
    /// What each block of the tower is worth: a linear probe, and the distance of its tokens from text tokens.
    Layers,
    /// How far parameters moved from stage to stage.
    Drift,
    /// What corrupted images cost.
    Robustness,
}

impl Metric {
    /// All, in the order of reports.
    pub const ALL: [Metric; 15] = [
        Metric::Retrieval,
        Metric::ZeroShot,
        Metric::Neighbours,
        Metric::LinearProbe,
        Metric::TwoLayerProbe,
        Metric::AttentiveProbe,
        Metric::Captions,
        Metric::Questions,
        Metric::TextQuestions,
        Metric::Distances,
        Metric::Space,
        Metric::Cka,
        Metric::Layers,
        Metric::Drift,
        Metric::Robustness,
    ];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Retrieval => "retrieval",
            Metric::ZeroShot => "zero-shot",
            Metric::Neighbours => "neighbours",
            Metric::LinearProbe => "linear-probe",
            Metric::TwoLayerProbe => "two-layer-probe",
            Metric::AttentiveProbe => "attentive-probe",
            Metric::Captions => "captions",
            Metric::Questions => "questions",
            Metric::TextQuestions => "text-questions",
            Metric::Distances => "distances",
            Metric::Space => "space",
            Metric::Cka => "cka",
            Metric::Layers => "layers",
            Metric::Drift => "drift",
            Metric::Robustness => "robustness",
        }
    }

    /// Whether it looks through the connector and the language model, which must have seen images then.
    pub fn needs_language(self) -> bool {
        matches!(
            self,
            Metric::Captions | Metric::Questions | Metric::Distances
        )
    }

    /// Whether it asks nothing of a model but its language model, which need not have seen images.
    pub fn needs_text_alone(self) -> bool {
        self == Metric::TextQuestions
    }

    /// Whether it asks nothing of a model but its tower.
    pub fn needs_tower_alone(self) -> bool {
        self.is_probe() || matches!(self, Metric::Cka | Metric::Layers)
    }

    /// Whether it classifies one row an image, without training steps.
    fn is_of_rows(self) -> bool {
        matches!(self, Metric::Neighbours | Metric::LinearProbe)
    }

    /// Whether it fits a classifier on frozen features.
    pub fn is_probe(self) -> bool {
        matches!(
            self,
            Metric::Neighbours
                | Metric::LinearProbe
                | Metric::TwoLayerProbe
                | Metric::AttentiveProbe
        )
    }
}

/// Everything that was measured of one checkpoint; what was not asked for is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Measurements {
    /// The stage after which the checkpoint was written.
    pub stage: String,
    /// Retrieval by set.
    pub retrieval: Vec<RetrievalMeasure>,
    /// Zero-shot classes by set.
    pub zero_shot: Vec<ZeroShotMeasure>,
    /// Probes by kind and set.
    pub probes: Vec<ProbeMeasure>,
    /// Captions by set.
    pub captions: Vec<CaptionMeasure>,
    /// Questions by set and kind.
    pub questions: Vec<QuestionMeasure>,
    /// Questions about facts as text, by kind.
    pub text_questions: Vec<TextQuestionMeasure>,
    /// Distances by space.
    pub distances: Vec<DistanceMeasure>,
    /// Contrastive spaces.
    pub spaces: Vec<SpaceMeasure>,
    /// Likeness of layers.
    pub cka: Option<CkaMeasure>,
    /// What each block of the tower is worth.
    pub layers: Vec<LayerMeasure>,
    /// Drift of parameters, stage by stage.
    pub drift: Vec<StageDrift>,
    /// What corruptions cost.
    pub robustness: Vec<RobustnessMeasure>,
}

impl Measurements {
    /// Takes over everything that `new` has measured.
    pub fn update(&mut self, new: &Measurements) {
        fn take<T: Clone>(old: &mut Vec<T>, new: &[T]) {
            if !new.is_empty() {
                *old = new.to_vec();
            }
        }
        self.stage.clone_from(&new.stage);
        take(&mut self.retrieval, &new.retrieval);
        take(&mut self.zero_shot, &new.zero_shot);
        // Probes are measured one metric at a time, so a new list holds some of them and replaces only those.
        for probe in &new.probes {
            let mut old = self.probes.iter_mut();
            match old.find(|old| old.probe == probe.probe && old.set == probe.set) {
                Some(old) => *old = probe.clone(),
                None => self.probes.push(probe.clone()),
            }
        }
        take(&mut self.captions, &new.captions);
        take(&mut self.questions, &new.questions);
        take(&mut self.text_questions, &new.text_questions);
        take(&mut self.distances, &new.distances);
        take(&mut self.spaces, &new.spaces);
        if new.cka.is_some() {
            self.cka.clone_from(&new.cka);
        }
        take(&mut self.layers, &new.layers);
        take(&mut self.drift, &new.drift);
        take(&mut self.robustness, &new.robustness);
    }
}

/// Retrieval on one set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RetrievalMeasure {
    /// The set.
    pub set: SetName,
    /// Images.
    pub images: usize,
    /// Captions, several of most images.
    pub captions: usize,
    /// Captions found by images.
    pub image_to_text: Ranking,
    /// Images found by captions.
    pub text_to_image: Ranking,
}

/// Zero-shot classes on one set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ZeroShotMeasure {
    /// The set.
    pub set: SetName,
    /// What read the prompts: `text tower` or `language model`.
    pub text: String,
    /// Images.
    pub images: usize,
    /// Classes.
    pub classes: usize,
    /// Share whose class is the likeliest.
    pub top_1: f64,
    /// Share whose class is among the likeliest five.
    pub top_5: f64,
}

/// A classifier on frozen features, fitted on the suite's set for that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeMeasure {
    /// Its metric's name.
    pub probe: String,
    /// The set it was tested on.
    pub set: SetName,
    /// Images.
    pub images: usize,
    /// Classes.
    pub classes: usize,
    /// Share classified rightly.
    pub accuracy: f64,
}

/// Captions of one set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaptionMeasure {
    /// The set.
    pub set: SetName,
    /// Supervised tokens.
    pub tokens: usize,
    /// Nats a token.
    pub loss: f64,
    /// e to the loss.
    pub perplexity: f64,
}

/// Questions of one kind about one set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuestionMeasure {
    /// The set.
    pub set: SetName,
    /// Kind of question; `all` over all kinds.
    pub kind: String,
    /// Questions.
    pub count: usize,
    /// Share answered letter for letter.
    pub exact: f64,
    /// Share answered rightly after normalisation.
    pub normalised: f64,
    /// What the blind baseline reaches, which sees no image, letter for letter.
    pub text_only: f64,
}

/// Questions of one kind about facts that are given as text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextQuestionMeasure {
    /// Kind of question.
    pub kind: String,
    /// Questions.
    pub count: usize,
    /// Share whose right answer is the likeliest of the kind's closed set.
    pub share: f64,
}

/// Distances of visual from text tokens in one space.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DistanceMeasure {
    /// `plane` (each cloud on its own two principal components, as in the SAIL-VL2 report), `language` (after the connector,
    /// in the language model's space) or `language, unit length`.
    pub space: String,
    /// Visual tokens.
    pub visual: usize,
    /// Text tokens.
    pub text: usize,
    /// Mean distance of a visual token from its nearest text token.
    pub nearest: f64,
    /// Mean distance over all pairs.
    pub mean: f64,
    /// Exact Wasserstein-1 on samples of equal size.
    pub exact: f64,
    /// Sliced Wasserstein-2.
    pub sliced: f64,
    /// The square root of the Sinkhorn divergence of squared distances, ε a twentieth of their mean.
    pub sinkhorn: f64,
}

/// Where images and their captions lie in one contrastive space.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpaceMeasure {
    /// `contrastive` (with the text tower) or `align` (with the language model).
    pub space: String,
    /// Pairs.
    pub pairs: usize,
    /// Distance between the centres.
    pub gap: f64,
    /// Mean distance of an image from its caption.
    pub alignment: f64,
    /// Uniformity of images.
    pub image_uniformity: f64,
    /// Uniformity of captions.
    pub text_uniformity: f64,
}

/// Linear CKA of mean tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CkaMeasure {
    /// Images.
    pub images: usize,
    /// Layers against layers, L rows of L.
    pub layers: Vec<Vec<f64>>,
    /// For each other stage of the run, every layer against the same layer then.
    pub stages: Vec<(String, Vec<f64>)>,
}

/// What one block of the tower is worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerMeasure {
    /// The block, from 0.
    pub block: usize,
    /// Share classified rightly by a linear probe on its mean tokens, by set, as [`Metric::LinearProbe`] on the tower's output.
    pub linear_probe: Vec<(SetName, f64)>,
    /// Mean distance of its tokens from the nearest text token, each cloud on its own two principal components, as the `plane` of
    /// [`Metric::Distances`]; nothing without a language model that has been trained with the tower.
    pub plane_nearest: Option<f64>,
}

/// How far parameters moved in one stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageDrift {
    /// The stage.
    pub stage: String,
    /// By module and block, from the stage before.
    pub from_before: Vec<WeightDrift>,
    /// By module and block, from the first stage's end.
    pub from_first: Vec<WeightDrift>,
}

/// What one corruption costs, by severity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RobustnessMeasure {
    /// The corruption.
    pub corruption: String,
    /// R@1 of captions by images at severities 0 (none) to 5.
    pub recall_1: Vec<f64>,
    /// Zero-shot classes, alike.
    pub zero_shot: Vec<f64>,
    /// The linear probe, alike.
    pub linear_probe: Vec<f64>,
}

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeasureSettings {
    /// Images of each set.
    pub images: usize,
    /// Questions of each kind.
    pub questions_per_kind: usize,
    /// Tokens T of a conversation.
    pub tokens: usize,
    /// Tokens Tc of a caption.
    pub caption_tokens: usize,
    /// Whether the connector has been trained, so that prompts can be read by the language model too.
    pub is_connected: bool,
}

/// Measures the parameters that an executor holds.
pub struct Measurer<'a> {
    context: EvalContext<'a>,
    compute: &'a SelectedDevice,
    suite: &'a EvalSuite,
    settings: MeasureSettings,
    /// Features that several probes share, by set and by whether they hold tokens.
    kept: RefCell<BTreeMap<(usize, bool), Rc<features::Features>>>,
}

impl<'a> Measurer<'a> {
    /// A measurer of the model of `context` on the sets of `suite`. The model's parameters must not change while probes are
    /// measured; probes are trained on executors of their own, opened by `compute`.
    pub fn new(
        context: EvalContext<'a>,
        compute: &'a SelectedDevice,
        suite: &'a EvalSuite,
        settings: MeasureSettings,
    ) -> Measurer<'a> {
        Measurer {
            context,
            compute,
            suite,
            settings,
            kept: RefCell::default(),
        }
    }

    /// Measures `metric` into `all`. [`Metric::Drift`], which is about several checkpoints, is left to who holds them.
    ///
    /// # Errors
    /// [`Error::Setting`] when the model cannot give the metric; whatever recording, loading or the data report.
    pub fn measure(&self, metric: Metric, all: &mut Measurements) -> Result<()> {
        match metric {
            Metric::Retrieval => all.retrieval = self.retrieval()?,
            Metric::ZeroShot => all.zero_shot = self.zero_shot()?,
            Metric::Neighbours
            | Metric::LinearProbe
            | Metric::TwoLayerProbe
            | Metric::AttentiveProbe => {
                let own = |probe: &str| probe.split(", ").next() == Some(metric.name());
                all.probes.retain(|probe| !own(&probe.probe));
                all.probes.extend(self.probe(metric)?);
            }
            Metric::Captions => all.captions = self.captions()?,
            Metric::Questions => all.questions = self.questions()?,
            Metric::TextQuestions => all.text_questions = self.text_questions()?,
            Metric::Distances => all.distances = self.distances()?,
            Metric::Space => all.spaces = self.contrastive_spaces()?,
            Metric::Cka => {
                let features = self.layer_features()?;
                let before = all.cka.take().map(|cka| cka.stages).unwrap_or_default();
                all.cka = Some(CkaMeasure {
                    images: features.images,
                    layers: features.against(&features),
                    stages: before,
                });
            }
            Metric::Layers => all.layers = self.layers()?,
            // Drift compares checkpoints, which a measurer of one does not have: whoever has both fills it in.
            Metric::Drift => {}
            Metric::Robustness => all.robustness = self.robustness()?,
        }
        Ok(())
    }

    fn batch_shape(&self) -> BatchShape {
        let MeasureSettings {
            tokens,
            caption_tokens,
            ..
        } = self.settings;
        self.context.batch_shape(BATCH, tokens, caption_tokens)
    }

    /// All of the set that probes are fitted on.
    ///
    /// # Errors
    /// [`Error::Setting`] when it has no classes.
    fn classified(&self, metric: Metric) -> Result<ClassifiedSet> {
        ClassifiedSet::of(self.suite.fitted(), usize::MAX).ok_or_else(|| {
            let SetName { vendor, split } = self.suite.fitted().name();
            Error::setting(
                format!("metric {}", metric.name()),
                "an evaluation set with classes",
                format!("{vendor} {split}, which has none"),
            )
        })
    }
}

/// The metrics of a list such as `retrieval,questions`, or all for `all`.
///
/// # Errors
/// [`Error::Setting`] naming the nearest right one.
pub fn metrics_of(list: &str) -> Result<Vec<Metric>> {
    if list.trim() == "all" {
        return Ok(Metric::ALL.to_vec());
    }
    let mut metrics = Vec::new();
    for name in list.split(',').map(str::trim) {
        let found = Metric::ALL.into_iter().find(|metric| metric.name() == name);
        let Some(metric) = found else {
            let names = Metric::ALL.map(Metric::name);
            let found = with_near_miss(name, &names);
            let want = format!("all, or metrics out of {}", names.join(", "));
            return Err(Error::setting("--metrics", want, found));
        };
        if !metrics.contains(&metric) {
            metrics.push(metric);
        }
    }
    Ok(metrics)
}
