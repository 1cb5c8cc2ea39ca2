//! What the parts of images show, read off the tower's tokens there by a linear map: what a tower knows of places, whatever
//! reads it.

use super::features::Wanted;
use super::towers::RIDGE;
use super::{Measurer, ProbeMeasure};
use crate::{LinearProbe, accuracy};
use keel_base::error::Result;
use keel_data::eval_set::{EvalSet, Regions};
use keel_data::sample::Sample;

/// Questions of each kind whose images a probe is fitted on.
const FITTED_PER_KIND: usize = 64;

/// A region's tokens are averaged in this many blocks along each side: a digit takes more than one place.
const BLOCKS: usize = 2;

impl Measurer<'_> {
    /// A linear probe for each fact about the regions of images, fitted on the images of questions about the set for that and
    /// tested on the captioned images of every set. Nothing where images have no regions.
    pub(super) fn region_probes(&self) -> Result<Option<Vec<ProbeMeasure>>> {
        let fitted = self.suite.fitted();
        let Some(train) = fitted.questions(FITTED_PER_KIND, &|_| true) else {
            return Ok(None);
        };
        let Some(known) = fitted.regions(&train) else {
            return Ok(None);
        };
        let (rows, width) = self.region_rows(&train, known.across)?;
        let mut measures = Vec::new();
        let mut probes = Vec::new();
        for fact in &known.facts {
            let probe = LinearProbe::fit(&rows, width, &fact.labels, fact.classes, RIDGE);
            probes.push(probe);
        }
        for set in self.suite.sets() {
            let Some((samples, regions)) = self.regions_of(set) else {
                continue;
            };
            let (rows, _) = self.region_rows(&samples, regions.across)?;
            for (fact, probe) in regions.facts.iter().zip(&probes) {
                measures.push(ProbeMeasure {
                    probe: format!("linear-probe, {}", fact.fact),
                    set: set.name(),
                    images: samples.len(),
                    classes: fact.classes,
                    accuracy: accuracy(&probe.classify(&rows), &fact.labels),
                });
            }
        }
        Ok(Some(measures))
    }

    fn regions_of(&self, set: &dyn EvalSet) -> Option<(Vec<Sample>, Regions)> {
        let samples = set.captioned(self.settings.images);
        let regions = set.regions(&samples)?;
        Some((samples, regions))
    }

    /// A row for each region of each image, and its width: the means of the region's blocks of tokens, one after the other.
    fn region_rows(&self, samples: &[Sample], across: usize) -> Result<(Vec<f32>, usize)> {
        let wanted = Wanted {
            tokens: true,
            ..Wanted::default()
        };
        let tokens = self.features(samples, wanted)?.tokens;
        let channels = self.context.config.vision.width;
        let grid = self.context.config.vision.patches().isqrt();
        let image = grid * grid * channels;
        let blocks = BLOCKS.min((grid / across).max(1));
        let cut = |part: usize| part * grid / (across * blocks);
        let mut rows = Vec::with_capacity(samples.len() * image);
        for tokens in tokens.chunks_exact(image) {
            for region in 0..across * across {
                for block in 0..blocks * blocks {
                    let row = region / across * blocks + block / blocks;
                    let column = region % across * blocks + block % blocks;
                    let (ys, xs) = (cut(row)..cut(row + 1), cut(column)..cut(column + 1));
                    let places = ys.flat_map(|y| xs.clone().map(move |x| y * grid + x));
                    rows.extend(mean(tokens, places, channels));
                }
            }
        }
        Ok((rows, blocks * blocks * channels))
    }
}

/// The mean of the tokens at `places`; zeros where there are none.
fn mean(tokens: &[f32], places: impl Iterator<Item = usize>, channels: usize) -> Vec<f32> {
    let mut sum = vec![0.0; channels];
    let mut count = 0;
    for place in places {
        let token = &tokens[place * channels..(place + 1) * channels];
        for (sum, value) in sum.iter_mut().zip(token) {
            *sum += value;
        }
        count += 1;
    }
    let scale = 1.0 / count.max(1) as f32;
    sum.iter().map(|value| value * scale).collect()
}
