//! What each block of the vision tower is worth: where in the tower training pays, and which layer a connector might take.

use super::features::Wanted;
use super::towers::RIDGE;
use super::{LayerMeasure, Measurer, Metric};
use crate::context::text_embeddings;
use crate::{LinearProbe, Principal, accuracy, nearest_neighbour_distance};
use keel_base::error::Result;
use keel_data::eval_set::ClassifiedSet;

/// Images whose tokens make the clouds, as those of the distances.
const IMAGES: usize = 5;

impl Measurer<'_> {
    /// A linear probe and the distance from text tokens, for every block.
    pub(super) fn layers(&self) -> Result<Vec<LayerMeasure>> {
        let config = &self.context.config.vision;
        let wanted = Wanted {
            layers: true,
            ..Wanted::default()
        };
        let train = self.classified(Metric::Layers)?;
        let (width, classes) = (config.width, train.classes.names.len());
        let fitted = self.features(&train.samples, wanted)?.layers;
        let fit = |rows: &Vec<f32>| LinearProbe::fit(rows, width, &train.labels, classes, RIDGE);
        let probes: Vec<LinearProbe> = fitted.iter().map(fit).collect();
        let mut measures: Vec<LayerMeasure> = (0..config.depth)
            .map(|block| LayerMeasure {
                block,
                linear_probe: Vec::new(),
                plane_nearest: None,
            })
            .collect();
        for (index, set) in self.suite.sets().enumerate() {
            if index == self.suite.fitted_index() {
                continue;
            }
            // As many as for the probes of the output.
            let test = ClassifiedSet::of(set, self.settings.images.saturating_mul(5));
            let Some(test) = test.filter(|test| test.classes == train.classes) else {
                continue;
            };
            let layers = self.features(&test.samples, wanted)?.layers;
            for ((measure, probe), rows) in measures.iter_mut().zip(&probes).zip(&layers) {
                let share = accuracy(&probe.classify(rows), &test.labels);
                measure.linear_probe.push((set.name(), share));
            }
        }
        if self.settings.is_connected {
            let samples = self.suite.shown().captioned(IMAGES);
            let table = text_embeddings(self.context)?;
            let text = Principal::plane(&table, self.context.config.language.width);
            for (measure, tokens) in measures.iter_mut().zip(self.layer_tokens(&samples)?) {
                let plane = Principal::plane(&tokens, width);
                measure.plane_nearest = Some(nearest_neighbour_distance(&plane, &text, 2));
            }
        }
        Ok(measures)
    }
}
