//! What corrupted images cost, corruption by corruption and severity by severity.

use super::towers::RIDGE;
use super::{Measurer, Metric, RobustnessMeasure};
use crate::{LinearProbe, accuracy, classify_among, recall};
use keel_base::error::Result;
use keel_data::corruption::{Corruption, SEVERITIES};

impl Measurer<'_> {
    /// Of the set that maps and probes are fitted on, so that nothing but the corruption is new. Each image is corrupted by a
    /// seed of its own, the same for every checkpoint.
    pub(super) fn robustness(&self) -> Result<Vec<RobustnessMeasure>> {
        let mut retriever = self.retriever(self.retrieval_pair())?;
        let train = self.classified(Metric::Robustness)?;
        let fitted = retriever.pooled(&train.samples, None)?;
        let width = fitted.len() / train.samples.len().max(1);
        let classes = train.classes.names.len();
        // Map and probe are fitted on clean images once: what is asked is how a finished model takes corrupted ones.
        let probe = LinearProbe::fit(&fitted, width, &train.labels, classes, RIDGE);

        // The first of them: sets of fewer samples are the beginnings of larger ones.
        let count = self.settings.images.min(train.samples.len());
        let (samples, labels) = (&train.samples[..count], &train.labels[..count]);
        let captions: Vec<String> = samples.iter().map(|s| s.caption.clone()).collect();
        let texts = retriever.texts(&captions, 1)?;
        let prompts = retriever.texts(&train.classes.prompts, train.classes.templates)?;
        let side = self.context.config.vision.image_size;
        let mut measures = Vec::new();
        for corruption in Corruption::ALL {
            let mut measure = RobustnessMeasure {
                corruption: corruption.name().to_owned(),
                recall_1: Vec::new(),
                zero_shot: Vec::new(),
                linear_probe: Vec::new(),
            };
            // Severity 0 is the clean image, measured by the same path: what the others are compared with.
            for severity in 0..=SEVERITIES {
                let corrupt = |image: &mut [f32]| corruption.apply(image, side, severity);
                let pooled = retriever.pooled(samples, Some(&corrupt))?;
                let images = retriever.map(&pooled);
                let deep = images.len() / samples.len().max(1);
                measure
                    .recall_1
                    .push(recall(&images, &texts, deep).image_to_text[0]);
                let zero_shot = classify_among(&images, &prompts, deep, labels, 1);
                measure.zero_shot.push(zero_shot);
                let found = probe.classify(&pooled);
                measure.linear_probe.push(accuracy(&found, labels));
            }
            measures.push(measure);
        }
        Ok(measures)
    }
}
