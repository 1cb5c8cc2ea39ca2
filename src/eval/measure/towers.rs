//! What images' features are worth: retrieval, zero-shot classes, neighbours and probes.

use std::rc::Rc;

use super::features::{Features, Wanted, unit};
use super::{Measurer, Metric, ProbeMeasure, RetrievalMeasure, ZeroShotMeasure};
use crate::aligned_retriever::AlignedRetriever;
use crate::{
    Labelled, LinearProbe, Neighbours, ProbeForm, ProbeSettings, TrainedProbe, accuracy,
    classify_among, rank_positives,
};
use keel_base::error::{Error, Result};
use keel_data::eval_set::{ClassifiedSet, EvalSet};
use keel_data::sample::Sample;
use keel_model::ContrastivePair;

/// Penalty of the linear probe, relative to the features' mean sum of squares.
pub(super) const RIDGE: f64 = 0.03;

/// What follows a probe's name where it was fitted on the tower's own pooled output and not on the mean of its tokens.
pub(super) const OF_HEAD: &str = ", own pooling";

/// A classifier that has been fitted.
enum Probe<'a> {
    Trained(TrainedProbe),
    Linear(LinearProbe),
    Neighbours {
        /// Training rows of unit length [N, C].
        known: Vec<f32>,
        /// Their classes.
        labels: &'a [usize],
        /// C.
        width: usize,
        classes: usize,
    },
}

impl Probe<'_> {
    /// A probe on one row an image, `rows` [N, C].
    fn of_rows<'a>(
        metric: Metric,
        rows: &[f32],
        labels: &'a [usize],
        (width, classes): (usize, usize),
    ) -> Probe<'a> {
        match metric {
            Metric::LinearProbe => {
                Probe::Linear(LinearProbe::fit(rows, width, labels, classes, RIDGE))
            }
            _ => Probe::Neighbours {
                known: unit(rows.to_vec(), width),
                labels,
                width,
                classes,
            },
        }
    }

    /// The likeliest class of each of `rows`.
    fn classify(&self, rows: &[f32]) -> Result<Vec<usize>> {
        match self {
            Probe::Trained(probe) => probe.classify(rows),
            Probe::Linear(probe) => Ok(probe.classify(rows)),
            Probe::Neighbours {
                known,
                labels,
                width,
                classes,
            } => {
                let rows = unit(rows.to_vec(), *width);
                Ok(Neighbours::default().classify((known, labels), &rows, *width, *classes))
            }
        }
    }
}

impl Measurer<'_> {
    /// The pair of towers that retrieval goes by: the text tower where there is one.
    pub(super) fn retrieval_pair(&self) -> ContrastivePair {
        match self.context.config.text {
            Some(_) => ContrastivePair::TextTower,
            None => ContrastivePair::LanguageModel,
        }
    }

    pub(super) fn retriever(&self, pair: ContrastivePair) -> Result<AlignedRetriever<'_>> {
        let images = self.settings.images;
        let shape = self.batch_shape();
        AlignedRetriever::new(self.context, self.suite.fitted(), shape, pair, images)
    }

    pub(super) fn retrieval(&self) -> Result<Vec<RetrievalMeasure>> {
        let mut retriever = self.retriever(self.retrieval_pair())?;
        let mut measures = Vec::new();
        for set in self.suite.sets() {
            let samples = set.captioned(self.settings.images);
            let (captions, to_image) = self.several_captions(set, &samples);
            let images = retriever.images(&samples)?;
            let texts = retriever.texts(&captions, 1)?;
            let width = images.len() / samples.len().max(1);
            let mut to_text = vec![Vec::new(); samples.len()];
            for (caption, image) in to_image.iter().enumerate() {
                to_text[*image].push(caption);
            }
            let to_image: Vec<Vec<usize>> = to_image.into_iter().map(|i| vec![i]).collect();
            measures.push(RetrievalMeasure {
                set: set.name(),
                images: samples.len(),
                captions: captions.len(),
                image_to_text: rank_positives(&images, &texts, width, &to_text),
                text_to_image: rank_positives(&texts, &images, width, &to_image),
            });
        }
        Ok(measures)
    }

    pub(super) fn zero_shot(&self) -> Result<Vec<ZeroShotMeasure>> {
        let mut measures = Vec::new();
        if self.context.config.text.is_some() {
            measures.extend(self.zero_shot_by(ContrastivePair::TextTower, "text tower")?);
        }
        if self.settings.is_connected {
            measures.extend(self.zero_shot_by(ContrastivePair::LanguageModel, "language model")?);
        }
        if measures.is_empty() {
            return Err(Error::setting(
                "metric zero-shot",
                "sets with classes, and a model with a text tower or a connector that has been trained",
                "neither",
            ));
        }
        Ok(measures)
    }

    fn zero_shot_by(&self, pair: ContrastivePair, text: &str) -> Result<Vec<ZeroShotMeasure>> {
        let mut retriever = self.retriever(pair)?;
        let mut measures = Vec::new();
        // Sets mostly share their classes: those of the set before are kept.
        let mut known = None;
        for set in self.suite.sets() {
            let Some(asked) = ClassifiedSet::of(set, self.settings.images) else {
                continue;
            };
            let texts = match known.take() {
                Some((before, texts)) if before == asked.classes => texts,
                _ => retriever.texts(&asked.classes.prompts, asked.classes.templates)?,
            };
            let classes = asked.classes.names.len();
            let images = retriever.images(&asked.samples)?;
            let width = texts.len() / classes;
            let top = |most| classify_among(&images, &texts, width, &asked.labels, most);
            measures.push(ZeroShotMeasure {
                set: set.name(),
                text: text.to_owned(),
                images: asked.samples.len(),
                classes,
                top_1: top(1),
                top_5: top(5),
            });
            known = Some((asked.classes, texts));
        }
        Ok(measures)
    }

    /// Fits a probe on all of the set for that, tests it on the others of its classes.
    pub(super) fn probe(&self, metric: Metric) -> Result<Vec<ProbeMeasure>> {
        if metric == Metric::LinearProbe
            && self.suite.fitted().classes().is_none()
            && let Some(measures) = self.region_probes()?
        {
            return Ok(measures);
        }
        let tokens = metric == Metric::AttentiveProbe;
        let wanted = Wanted {
            tokens,
            pooled: !tokens,
            ..Wanted::default()
        };
        let train = self.classified(metric)?;
        let config = &self.context.config.vision;
        let (width, classes) = (config.width, train.classes.names.len());
        let fitted = self.probe_features(usize::MAX, &train.samples, wanted)?;
        let heads = config.heads;
        let trained = |form, features: &[f32], tokens| {
            let labelled = Labelled {
                features,
                labels: &train.labels,
            };
            let settings = ProbeSettings::new(form);
            TrainedProbe::fit(settings, self.compute, labelled, (tokens, width, classes))
        };
        let of_rows = |rows: &[f32]| Probe::of_rows(metric, rows, &train.labels, (width, classes));
        let probe = match metric {
            Metric::TwoLayerProbe => {
                let form = ProbeForm::TwoLayer { hidden: 2 * width };
                Probe::Trained(trained(form, &fitted.means, 1)?)
            }
            Metric::AttentiveProbe => {
                let form = ProbeForm::Attentive { heads };
                Probe::Trained(trained(form, &fitted.tokens, config.patches())?)
            }
            _ => of_rows(&fitted.means),
        };
        let has_head = self.context.head.is_some() && metric.is_of_rows();
        // A published tower has a pooling of its own, which may be worth more than the mean of its tokens: both are
        // shown.
        let of_head = has_head.then(|| of_rows(&fitted.pooled));
        let mut measures = Vec::new();
        for (index, set) in self.suite.sets().enumerate() {
            // The probe was trained on this set.
            if index == self.suite.fitted_index() {
                continue;
            }
            // An image costs a probe little: more of them make the share surer.
            let images = self.settings.images.saturating_mul(5);
            let test = ClassifiedSet::of(set, images);
            let Some(test) = test.filter(|test| test.classes == train.classes) else {
                continue;
            };
            let features = self.probe_features(index, &test.samples, wanted)?;
            let measure = |name: String, found: &[usize]| ProbeMeasure {
                probe: name,
                set: set.name(),
                images: test.samples.len(),
                classes,
                accuracy: accuracy(found, &test.labels),
            };
            let rows = if wanted.tokens {
                &features.tokens
            } else {
                &features.means
            };
            let found = probe.classify(rows)?;
            measures.push(measure(metric.name().to_owned(), &found));
            if let Some(probe) = &of_head {
                let found = probe.classify(&features.pooled)?;
                measures.push(measure(format!("{}{OF_HEAD}", metric.name()), &found));
            }
        }
        Ok(measures)
    }

    /// The features of the set `key`, whose images are `samples`; made once, and kept for the probe that comes next.
    fn probe_features(
        &self,
        key: usize,
        samples: &[Sample],
        wanted: Wanted,
    ) -> Result<Rc<Features>> {
        let known = self.kept.borrow().get(&(key, wanted.tokens)).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let made = Rc::new(self.features(samples, wanted)?);
        self.kept
            .borrow_mut()
            .insert((key, wanted.tokens), made.clone());
        Ok(made)
    }

    /// The captions by which each image may be found, those that are short enough, and whose each is.
    fn several_captions(&self, set: &dyn EvalSet, samples: &[Sample]) -> (Vec<String>, Vec<usize>) {
        let mut captions = Vec::new();
        let mut images = Vec::new();
        for (image, sample) in samples.iter().enumerate() {
            for caption in set.wordings(sample) {
                if self.context.tokenizer.caption(&caption).len() <= self.settings.caption_tokens {
                    captions.push(caption);
                    images.push(image);
                }
            }
        }
        (captions, images)
    }
}
