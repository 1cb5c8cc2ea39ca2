//! What corrupted pictures cost, corruption by corruption and severity by severity.

use super::towers::RIDGE;
use super::{Measurer, RobustnessMeasure};
use crate::{LinearProbe, accuracy, classify_among, recall};
use keel_base::error::Result;
use keel_data::corruption::{Corruption, SEVERITIES};
use keel_data::embedded::Artist;
use keel_data::eval_sets::subcategories;
use keel_data::library::Split;

impl Measurer<'_> {
    /// Trained concepts in the trained style, so that nothing but the corruption is new. Each picture is corrupted by a
    /// seed of its own, the same for every checkpoint.
    pub(super) fn robustness(&self) -> Result<Vec<RobustnessMeasure>> {
        let mut matcher = self.matcher(self.retrieval_pair())?;
        let train = self.training_set();
        let fitted = matcher.pooled(&train.samples, None)?;
        let width = fitted.len() / train.samples.len().max(1);
        let classes = train.classes.len();
        let probe = LinearProbe::fit(&fitted, width, &train.labels, classes, RIDGE);

        let pictures = self.settings.pictures;
        let asked = subcategories(&self.library, Artist::Noto, Split::Train, pictures);
        let captions: Vec<String> = asked.samples.iter().map(|s| s.caption.clone()).collect();
        let texts = matcher.texts(&captions, 1)?;
        let prompts = matcher.texts(&asked.prompts, asked.templates)?;
        let side = self.place.config.vision.image_size;
        let mut measures = Vec::new();
        for corruption in Corruption::ALL {
            let mut measure = RobustnessMeasure {
                corruption: corruption.name().to_owned(),
                recall_1: Vec::new(),
                zero_shot: Vec::new(),
                linear_probe: Vec::new(),
            };
            for severity in 0..=SEVERITIES {
                let corrupt = |picture: &mut [f32]| corruption.apply(picture, side, severity);
                let pooled = matcher.pooled(&asked.samples, Some(&corrupt))?;
                let images = matcher.map(&pooled);
                let deep = images.len() / asked.samples.len().max(1);
                measure
                    .recall_1
                    .push(recall(&images, &texts, deep).image_to_text[0]);
                let zero_shot = classify_among(&images, &prompts, deep, &asked.labels, 1);
                measure.zero_shot.push(zero_shot);
                let found = probe.classify(&pooled);
                measure.linear_probe.push(accuracy(&found, &asked.labels));
            }
            measures.push(measure);
        }
        Ok(measures)
    }
}
