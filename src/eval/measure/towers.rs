//! What pictures' features are worth: retrieval, zero-shot classes, neighbours and probes.

use std::rc::Rc;

use super::features::{Features, Wanted, unit};
use super::{Measurer, Metric, ProbeMeasure, RetrievalMeasure, SetName, ZeroShotMeasure};
use crate::matcher::Matcher;
use crate::{
    Labelled, LinearProbe, Neighbours, ProbeForm, ProbeSettings, TrainedProbe, accuracy,
    classify_among, rank_positives,
};
use keel_base::error::{Error, Result};
use keel_data::captions::SHORT_TEMPLATES;
use keel_data::embedded::Artist;
use keel_data::eval_sets::{ZeroShot, captioned, subcategories};
use keel_data::library::Split;
use keel_data::task::Sample;
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
    /// A probe on one row a picture, `rows` [N, C].
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

/// The four sets: each style with trained and with held-out concepts.
pub(super) const SETS: [(Artist, Split); 4] = [
    (Artist::Noto, Split::Train),
    (Artist::Noto, Split::HeldOut),
    (Artist::Twemoji, Split::Train),
    (Artist::Twemoji, Split::HeldOut),
];

pub(super) fn set_name((artist, split): (Artist, Split)) -> SetName {
    SetName {
        vendor: artist.name().to_owned(),
        split: split.name().to_owned(),
    }
}

impl Measurer<'_> {
    /// The pair of towers that retrieval goes by: the text tower where there is one.
    pub(super) fn retrieval_pair(&self) -> ContrastivePair {
        match self.place.config.text {
            Some(_) => ContrastivePair::TextTower,
            None => ContrastivePair::LanguageModel,
        }
    }

    pub(super) fn matcher(&self, pair: ContrastivePair) -> Result<Matcher<'_>> {
        let pictures = self.settings.pictures;
        Matcher::new(
            self.place,
            &self.library,
            self.batch_shape(),
            pair,
            pictures,
        )
    }

    pub(super) fn retrieval(&self) -> Result<Vec<RetrievalMeasure>> {
        let mut matcher = self.matcher(self.retrieval_pair())?;
        let mut measures = Vec::new();
        for set in SETS {
            let samples = captioned(&self.library, set.0, set.1, self.settings.pictures);
            let (captions, to_image) = self.several_captions(&samples);
            let images = matcher.images(&samples)?;
            let texts = matcher.texts(&captions, 1)?;
            let width = images.len() / samples.len().max(1);
            let mut to_text = vec![Vec::new(); samples.len()];
            for (caption, picture) in to_image.iter().enumerate() {
                to_text[*picture].push(caption);
            }
            let to_image: Vec<Vec<usize>> = to_image.into_iter().map(|i| vec![i]).collect();
            measures.push(RetrievalMeasure {
                set: set_name(set),
                pictures: samples.len(),
                captions: captions.len(),
                image_to_text: rank_positives(&images, &texts, width, &to_text),
                text_to_image: rank_positives(&texts, &images, width, &to_image),
            });
        }
        Ok(measures)
    }

    pub(super) fn zero_shot(&self) -> Result<Vec<ZeroShotMeasure>> {
        let mut measures = Vec::new();
        if self.place.config.text.is_some() {
            measures.extend(self.zero_shot_by(ContrastivePair::TextTower, "text tower")?);
        }
        if self.settings.is_connected {
            measures.extend(self.zero_shot_by(ContrastivePair::LanguageModel, "language model")?);
        }
        match measures.is_empty() {
            true => Err(Error::setting(
                "metric zero-shot",
                "a model with a text tower, or a connector that has been trained",
                "neither",
            )),
            false => Ok(measures),
        }
    }

    fn zero_shot_by(&self, pair: ContrastivePair, text: &str) -> Result<Vec<ZeroShotMeasure>> {
        let mut matcher = self.matcher(pair)?;
        let mut measures = Vec::new();
        // The same for every set.
        let prompts = subcategories(&self.library, Artist::Noto, Split::Train, 0);
        let classes = matcher.texts(&prompts.prompts, prompts.templates)?;
        for set in SETS {
            let asked = subcategories(&self.library, set.0, set.1, self.settings.pictures);
            let images = matcher.images(&asked.samples)?;
            let width = classes.len() / asked.classes.len();
            let top = |most| classify_among(&images, &classes, width, &asked.labels, most);
            measures.push(ZeroShotMeasure {
                set: set_name(set),
                text: text.to_owned(),
                pictures: asked.samples.len(),
                classes: asked.classes.len(),
                top_1: top(1),
                top_5: top(5),
            });
        }
        Ok(measures)
    }

    /// Fits a probe on every trained concept in the trained style, tests it on the three other sets.
    pub(super) fn probe(&self, metric: Metric) -> Result<Vec<ProbeMeasure>> {
        let tokens = metric == Metric::AttentiveProbe;
        let wanted = Wanted {
            tokens,
            pooled: !tokens,
            ..Wanted::default()
        };
        let train = self.training_set();
        let config = &self.place.config.vision;
        let (width, classes) = (config.width, train.classes.len());
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
        let has_head = self.place.head.is_some() && metric.is_of_rows();
        let of_head = has_head.then(|| of_rows(&fitted.pooled));
        let mut measures = Vec::new();
        for (index, set) in SETS.iter().enumerate().skip(1) {
            // A picture costs a probe little: more of them make the share surer.
            let pictures = self.settings.pictures.saturating_mul(5);
            let test = subcategories(&self.library, set.0, set.1, pictures);
            let features = self.probe_features(index, &test.samples, wanted)?;
            let measure = |name: String, found: &[usize]| ProbeMeasure {
                probe: name,
                set: set_name(*set),
                pictures: test.samples.len(),
                classes,
                accuracy: accuracy(found, &test.labels),
            };
            let rows = match wanted.tokens {
                true => &features.tokens,
                false => &features.means,
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

    /// The features of the set `key`, whose pictures are `samples`; made once, and kept for the probe that comes next.
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

    /// Every trained concept in the trained style with its subcategory.
    pub(super) fn training_set(&self) -> ZeroShot {
        subcategories(&self.library, Artist::Noto, Split::Train, usize::MAX)
    }

    /// The plain caption of each picture in every short template that leaves it short enough, and whose each is.
    fn several_captions(&self, samples: &[Sample]) -> (Vec<String>, Vec<usize>) {
        let mut captions = Vec::new();
        let mut pictures = Vec::new();
        for (picture, sample) in samples.iter().enumerate() {
            for [before, after] in SHORT_TEMPLATES {
                let caption = format!("{before}{}{after}", sample.caption);
                if self.place.words.caption(&caption).len() <= self.settings.caption_tokens {
                    captions.push(caption);
                    pictures.push(picture);
                }
            }
        }
        (captions, pictures)
    }
}
