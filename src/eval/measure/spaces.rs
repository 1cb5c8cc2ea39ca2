//! How visual and text tokens, and images and captions, lie to each other.

use super::features::{Wanted, unit};
use super::{DistanceMeasure, Measurer, SpaceMeasure};
use crate::aligned_retriever::projected_features;
use crate::context::text_embeddings;
use crate::distances::squared_costs;
use crate::{
    Principal, Sinkhorn, alignment, exact_wasserstein, mean_distance, modality_gap,
    nearest_neighbour_distance, sinkhorn_divergence, sliced_wasserstein, uniformity,
};
use keel_base::error::{Error, Result};
use keel_model::ContrastivePair;

/// Images whose tokens make the clouds: as many as in the SAIL-VL2 report.
const IMAGES: usize = 5;

/// Most points of a cloud for the exact distance, which takes time with their third power.
const EXACT_POINTS: usize = 400;

/// Most points of a cloud for the Sinkhorn divergence.
const SINKHORN_POINTS: usize = 200;

/// Every k-th row, so that at most `most` are left.
fn thinned(rows: &[f32], width: usize, most: usize) -> Vec<f32> {
    let count = rows.len() / width;
    let kept = count.min(most);
    (0..kept)
        .flat_map(|i| {
            let row = i * count / kept.max(1);
            rows[row * width..(row + 1) * width].iter().copied()
        })
        .collect()
}

fn distances_in(space: &str, visual: &[f32], text: &[f32], width: usize) -> DistanceMeasure {
    // The exact distance needs clouds of one size and costs the cube of it; Sinkhorn costs the square, a few hundred
    // times.
    let equal = EXACT_POINTS
        .min(visual.len() / width)
        .min(text.len() / width);
    let exact = [visual, text].map(|rows| thinned(rows, width, equal));
    let few = [visual, text].map(|rows| thinned(rows, width, SINKHORN_POINTS));
    let squares = squared_costs(&few[0], &few[1], width);
    let settings = Sinkhorn {
        // A twentieth of the mean cost: the smoothing follows the scale of the space, and spaces compare.
        epsilon: (0.05 * squares.iter().sum::<f64>() / squares.len().max(1) as f64).max(1e-12),
        most_rounds: 500,
        tolerance: 1e-6,
    };
    DistanceMeasure {
        space: space.to_owned(),
        visual: visual.len() / width,
        text: text.len() / width,
        nearest: nearest_neighbour_distance(visual, text, width),
        mean: mean_distance(visual, text, width),
        exact: exact_wasserstein(&exact[0], &exact[1], width),
        sliced: sliced_wasserstein(visual, text, width, 0),
        sinkhorn: sinkhorn_divergence(&few[0], &few[1], width, &settings).sqrt(),
    }
}

impl Measurer<'_> {
    pub(super) fn distances(&self) -> Result<Vec<DistanceMeasure>> {
        let config = self.context.config;
        let samples = self.suite.shown().captioned(IMAGES);
        let wanted = Wanted {
            tokens: true,
            connected: true,
            ..Wanted::default()
        };
        let features = self.features(&samples, wanted)?;
        let (width, deep) = (config.vision.width, config.language.width);
        let table = text_embeddings(self.context)?;
        Ok(vec![
            distances_in(
                "plane",
                &Principal::plane(&features.tokens, width),
                &Principal::plane(&table, deep),
                2,
            ),
            distances_in("language", &features.connected, &table, deep),
            distances_in(
                "language, unit length",
                &unit(features.connected.clone(), deep),
                &unit(table.clone(), deep),
                deep,
            ),
        ])
    }

    pub(super) fn contrastive_spaces(&self) -> Result<Vec<SpaceMeasure>> {
        let samples = self.suite.shown().captioned(self.settings.images);
        let mut measures = Vec::new();
        for (name, pair) in [
            ("contrastive", ContrastivePair::TextTower),
            ("align", ContrastivePair::LanguageModel),
        ] {
            if self
                .context
                .layout
                .get(&format!("{name}.log_scale"))
                .is_none()
            {
                continue;
            }
            let shape = self.batch_shape();
            let (images, texts) = projected_features(self.context, &samples, &shape, pair)?;
            let width = images.len() / samples.len().max(1);
            measures.push(SpaceMeasure {
                space: name.to_owned(),
                pairs: samples.len(),
                gap: modality_gap(&images, &texts, width),
                alignment: alignment(&images, &texts, width),
                image_uniformity: uniformity(&images, width),
                text_uniformity: uniformity(&texts, width),
            });
        }
        if measures.is_empty() {
            return Err(Error::setting(
                "metric space",
                "a model that contrasts images with texts",
                "none",
            ));
        }
        Ok(measures)
    }
}
